/**
 * Addresses that EgressIPs give to each namespace or pod, over any history of pods, namespaces, manifests that shrink and grow,
 * restarts and time: none has two owners, none comes to another before it has rested, who stays keeps his, and who is
 * without is so because none is free.
 */
import fc from 'fast-check';
import t from 'tap';
import { type AnyObject, objectKey, parseObject } from '../../api/kinds.ts';
import { families, type GatewayPlan } from '../../api/plan.ts';
import { sameJson } from '../../api/plan-delta.ts';
import { PlanCache } from '../../controller/plan/cache.ts';
import { emptyMemory, type PlannerMemory, readMemory } from '../../controller/plan/memory.ts';
import { noPeers } from '../../controller/plan/peers.ts';
import { type PlanResult, plan } from '../../controller/plan/plan.ts';

t.setTimeout(570_000);
const NOW = Date.parse('2026-01-01T00:00:00Z');
const QUARANTINE = 60_000;
const NAMESPACES = ['a', 'b', 'c', 'd'] as const;
const PODS = ['x-0', 'x-1', 'y'] as const;
const EGRESS_IPS = ['one', 'two'] as const;

interface Giving {
  allocation: 'PerNamespace' | 'PerPod' | 'Shared';
  /** How many it draws, or from which on three are its own. */
  count: number;
  explicit: boolean;
  namespaces: string[];
  selector: boolean;
}

interface World {
  egressIPs: Partial<Record<string, Giving>>;
  /** `namespace/pod` → how often it was made anew. */
  pods: Partial<Record<string, number>>;
  namespaces: string[];
  ranges: number;
}

const giving: fc.Arbitrary<Giving> = fc.record({
  allocation: fc.constantFrom('PerNamespace', 'PerPod', 'PerPod', 'Shared'),
  count: fc.integer({ min: 1, max: 4 }),
  explicit: fc.boolean(),
  namespaces: fc.subarray([...NAMESPACES], { minLength: 1 }),
  selector: fc.boolean(),
});

const changes = fc.record({
  egressIPs: fc.dictionary(fc.constantFrom(...EGRESS_IPS), giving),
  pods: fc.dictionary(
    fc.tuple(fc.constantFrom(...NAMESPACES), fc.constantFrom(...PODS)).map(([namespace, pod]) => `${namespace}/${pod}`),
    fc.nat(3),
  ),
  namespaces: fc.subarray([...NAMESPACES], { minLength: 2 }),
  ranges: fc.integer({ min: 3, max: 9 }),
  /** What of this comes into force: most of a world stays as it is from one moment to the next. */
  of: fc.subarray(['egressIPs', 'pods', 'pods', 'namespaces', 'ranges'] as const),
  seconds: fc.constantFrom(0, 1, 20, 59, 61),
  restart: fc.nat(5),
});

function objectsOf(world: World): AnyObject[] {
  const at = (age: number) => new Date(NOW - 1e8 + age * 1000).toISOString().replace('.000Z', 'Z');
  const inputs: object[] = [
    ...world.namespaces.map((name, age) => ({
      apiVersion: 'v1',
      kind: 'Namespace',
      metadata: { name, creationTimestamp: at(age) },
    })),
    {
      kind: 'GatewayPool',
      metadata: { name: 'p', creationTimestamp: at(0) },
      spec: {
        namespaceSelector: {},
        gateways: [{ name: 'g1', internalAddress: '10.0.0.1' }],
        interfaces: { internal: 'in', external: { name: 'out' } },
        nextHops: { v4: ['10.0.0.64-10.0.0.65'] },
        steering: { mode: 'VXLAN', vni: 1 },
      },
    },
    {
      kind: 'EgressIPPool',
      metadata: { name: 'd', creationTimestamp: at(0) },
      spec: {
        gatewayPool: 'p',
        ranges: [`192.0.2.1-192.0.2.${world.ranges}`, `2001:db8::1-2001:db8::${world.ranges - 1}`],
        namespaceSelector: {},
        quarantineSeconds: QUARANTINE / 1000,
      },
    },
    ...Object.entries(world.egressIPs).map(([name, one], age) => ({
      kind: 'EgressIP',
      metadata: { name, creationTimestamp: at(age) },
      spec: {
        pool: 'd',
        allocation: one?.allocation,
        ...(one?.explicit
          ? { addresses: [0, 1, 2].flatMap((n) => [`192.0.2.${one.count + n}`, `2001:db8::${one.count + n}`]) }
          : { count: one?.count }),
        ...(one?.selector ? { namespaceSelector: {} } : { namespaces: one?.namespaces }),
      },
    })),
    ...Object.entries(world.pods).map(([key, anew], host) => {
      const [namespace, name] = key.split('/');
      return {
        apiVersion: 'v1',
        kind: 'Pod',
        metadata: { name, namespace, uid: `${namespace}-${name}-${anew}`, creationTimestamp: at(anew ?? 0) },
        spec: { nodeName: 'n1' },
        // One of a few has no address yet, one has finished.
        status:
          anew === 3
            ? { phase: 'Succeeded' }
            : {
                phase: 'Running',
                ...(anew !== 2 && { podIPs: [{ ip: `10.1.0.${host + 1}` }, { ip: `fd01::${host + 1}` }] }),
              },
      };
    }),
  ];
  return inputs.map((input) => {
    const parsed = parseObject({ apiVersion: 'sluice.dev/v1alpha1', ...input });
    if (!parsed.ok) throw new Error(JSON.stringify(parsed.errors));
    return parsed.value;
  });
}

/** Address → EgressIP and owner, of those that are used. */
const used = ({ allocations, owners }: PlannerMemory): Map<string, string> =>
  new Map(
    Object.entries(owners).flatMap(([address, { egressIP, owner, goneAt }]) =>
      goneAt === undefined && allocations[address]?.releasedAt === undefined ? [[address, `${egressIP} ${owner}`]] : [],
    ),
  );

/** Who leaves with which address in the plan that gateways get. */
function leaving({ pools }: PlanResult): Map<string, Set<string>> {
  const found = new Map<string, Set<string>>();
  const { workloads } = pools.get('p') as GatewayPlan;
  for (const { namespace, name, egress } of Object.values(workloads)) {
    for (const family of families) {
      const address = egress[family]?.address;
      if (address === undefined) continue;
      const by = found.get(address) ?? new Set();
      found.set(address, by.add(`${namespace}/${name}`));
    }
  }
  return found;
}

t.test('an address never has two owners, rests before it has another, and stays with who stays', async (t) => {
  const seen = { given: 0, kept: 0, rested: 0, without: 0, gone: 0 };
  fc.assert(
    fc.property(fc.array(changes, { minLength: 3, maxLength: 12 }), (list) => {
      let memory = emptyMemory();
      let now = NOW;
      let cache = new PlanCache();
      let world: World = list[0] as World;
      /** Address → who used it last, and until when. */
      const last = new Map<string, { who: string; until: number }>();
      for (const { of, seconds, restart, ...fresh } of list) {
        world = { ...world, ...Object.fromEntries(of.map((part) => [part, fresh[part]])) };
        now += 1000 * seconds;
        if (restart === 0) {
          memory = readMemory(JSON.parse(JSON.stringify(memory))) as PlannerMemory;
          cache = new PlanCache();
        }
        const snapshot = new Map(objectsOf(world).map((o) => [objectKey(o), o]));
        const before = used(memory);
        const result = plan(snapshot, memory, noPeers(), now, new Map(), cache);
        memory = result.memory;
        if (!sameJson(plan(snapshot, memory, noPeers(), now).memory, memory)) throw new Error('not idempotent');
        const after = used(memory);

        for (const [address, who] of after) {
          seen.given++;
          const { egressIP, owner } = memory.owners[address] ?? {};
          const one = world.egressIPs[egressIP ?? ''];
          if (one === undefined || memory.allocations[address]?.owner !== egressIP)
            throw new Error('not its EgressIP’s');
          if (one.allocation === 'Shared' || owner?.includes('/') !== (one.allocation === 'PerPod'))
            throw new Error('whose?');
          const was = last.get(address);
          if (was === undefined || was.who === who) continue;
          // Whom an operator names an address to does not wait (allocate.ts); owners of one EgressIP do.
          const same = was.who.split(' ')[0] === egressIP;
          if (same && now < was.until + QUARANTINE)
            throw new Error(`${address} of ${was.who} came to ${who} too early`);
          seen.rested++;
        }
        for (const [address, who] of before) {
          if (after.get(address) === who) {
            seen.kept++;
            continue;
          }
          seen.gone++;
          // It is its own again if nothing but time went by: it was served no more, or its EgressIP gave the address up.
          const [egressIP = '', owner = ''] = who.split(' ');
          const there = [...after].some(([, other]) => other === who);
          const wanted = wants(world, egressIP).has(owner);
          const had = memory.allocations[address];
          if (wanted && !there && had?.owner === egressIP && had.releasedAt === undefined)
            throw new Error(`${who} lost ${address}`);
        }
        for (const [address, who] of before) if (!after.has(address)) last.set(address, { who, until: now });
        for (const [address, who] of after) last.set(address, { who, until: now });
        // Another EgressIP may have had it meanwhile, because an operator named it there: who had it by this one is forgotten.
        for (const [address, { who }] of last)
          if (!who.startsWith(`${memory.allocations[address]?.owner} `)) last.delete(address);

        // Plans say what was given and nothing else.
        for (const [address, pods] of leaving(result)) {
          const { egressIP, owner } = memory.owners[address] ?? {};
          const allocated = memory.allocations[address]?.owner ?? '';
          if (world.egressIPs[allocated]?.allocation === 'Shared') continue;
          if (egressIP !== allocated || !after.has(address)) throw new Error('in use, and given to nobody');
          const others = [...pods].filter((pod) => pod !== owner && !pod.startsWith(`${owner}/`));
          if (others.length > 0) throw new Error(`${others} leave with ${address} of ${owner}`);
        }
        for (const [name, one] of Object.entries(world.egressIPs)) {
          if (one === undefined || one.allocation === 'Shared') continue;
          for (const family of families) {
            const own = Object.entries(memory.allocations).filter(
              ([address, { owner, releasedAt }]) =>
                owner === name && releasedAt === undefined && address.includes(':') === (family === 6),
            );
            const holders = own.flatMap(([address]) =>
              after.has(address) ? (memory.owners[address]?.owner ?? '') : [],
            );
            if (new Set(holders).size !== holders.length) throw new Error('two of one family');
            const without = [...wants(world, name)].filter((owner) => !holders.includes(owner));
            if (own.length === 0 || without.length === 0) continue;
            seen.without++;
            const free = own.some(([address]) => {
              const { goneAt } = memory.owners[address] ?? {};
              return !after.has(address) && (goneAt === undefined || goneAt + QUARANTINE <= now);
            });
            if (free) throw new Error(`${without} have none though one is free`);
          }
        }
      }
    }),
    { numRuns: 250 },
  );
  for (const [what, count] of Object.entries(seen)) t.ok(count > 30, `the worlds were not empty: ${count} ${what}`);
});

/** Whom an EgressIP is to give an address, by the rules of precedence: listed before selected, the older first. */
function wants({ egressIPs, namespaces, pods }: World, name: string): Set<string> {
  const owners = new Set<string>();
  for (const namespace of namespaces) {
    const serving = Object.entries(egressIPs)
      .filter(([, one]) => one?.selector === true || one?.namespaces.includes(namespace))
      .sort(([, x], [, y]) => Number(x?.selector) - Number(y?.selector));
    const allocation = serving[0]?.[0] === name ? serving[0][1]?.allocation : undefined;
    if (allocation === 'PerNamespace') owners.add(namespace);
    if (allocation === 'PerPod') {
      for (const [key, anew] of Object.entries(pods))
        if (key.startsWith(`${namespace}/`) && anew !== 3) owners.add(key);
    }
  }
  return owners;
}
