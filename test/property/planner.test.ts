/**
 * The planner over random worlds that change step by step: an address never has two owners, what is given stays given,
 * order and restarts change nothing, a gateway that dies moves only what it held, and a node steers a pod to a shard
 * only if the shard's holder has said that it has exactly that entry.
 */
import fc from 'fast-check';
import t from 'tap';
import { type AnyObject, objectKey, parseObject } from '../../api/kinds.ts';
import { emptyGatewayPlan, families, type GatewayPlan } from '../../api/plan.ts';
import { sameJson } from '../../api/plan-delta.ts';
import { emptyMemory, type PlannerMemory, readMemory } from '../../controller/plan/memory.ts';
import { noPeers, type Peer, type Peers } from '../../controller/plan/peers.ts';
import { type PlanResult, plan } from '../../controller/plan/plan.ts';
import { sharedOf } from '../../controller/plan/release-shared.ts';
import { rendezvousOrder, rendezvousPick } from '../../controller/plan/rendezvous.ts';
import { compileNode, settingsOf } from '../../node/compile.ts';
import { compileEgress } from '../../policy/egress.ts';

t.setTimeout(570_000);
const NOW = Date.parse('2026-01-01T00:00:00Z');
const QUARANTINE = 60_000;
const facts = { workloadInterfaces: ['cni0'], underlayMtu: 1500, rpFilterAll: 0, underlays: {} };
const letters = ['a', 'b', 'c', 'd'] as const;
const gatewayNames = ['g1', 'g2', 'g3'] as const;

/** What people may change between two runs. */
interface World {
  egressIPs: Partial<
    Record<
      string,
      {
        count?: number;
        addresses?: number[];
        age: number;
        selector: boolean;
        priority: number;
        destinations: string[] | null;
        spread: 'Pod' | 'Connection';
      }
    >
  >;
  /** Pod → namespace and generation (a pod that is made anew has another uid). */
  pods: Partial<Record<string, { namespace: string; anew: number; address: number }>>;
  ranges: number;
  gateways: string[];
}

const worlds: fc.Arbitrary<World> = fc.record({
  egressIPs: fc.dictionary(
    fc.constantFrom(...letters),
    fc
      .record({
        count: fc.integer({ min: 1, max: 3 }),
        addresses: fc.uniqueArray(fc.integer({ min: 1, max: 8 }), { minLength: 1, maxLength: 3 }),
        explicit: fc.boolean(),
        age: fc.integer({ min: 0, max: 3 }),
        selector: fc.boolean(),
        priority: fc.integer({ min: 0, max: 2 }),
        destinations: fc.option(
          fc.subarray(['198.51.100.0/24', '198.51.100.80/32', '2001:db8:100::/64', '0.0.0.0/0'], { minLength: 1 }),
        ),
        spread: fc.constantFrom('Pod' as const, 'Connection' as const),
      })
      .map(({ explicit, count, addresses, ...rest }) => ({ ...rest, ...(explicit ? { addresses } : { count }) })),
  ),
  pods: fc.dictionary(
    fc.constantFrom('p', 'q', 'r', 's', 'u'),
    fc.record({
      namespace: fc.constantFrom(...letters),
      anew: fc.integer({ min: 0, max: 1 }),
      address: fc.integer({ min: 1, max: 6 }),
    }),
  ),
  ranges: fc.integer({ min: 4, max: 9 }),
  gateways: fc.uniqueArray(fc.constantFrom(...gatewayNames), { minLength: 1 }),
});

function objectsOf(world: World): AnyObject[] {
  const at = (age: number) => new Date(NOW - 1e8 + age * 1000).toISOString().replace('.000Z', 'Z');
  const inputs: unknown[] = [
    ...letters.map((name) => ({ apiVersion: 'v1', kind: 'Namespace', metadata: { name, creationTimestamp: at(0) } })),
    ...['n1', 'n2'].map((name) => ({ apiVersion: 'v1', kind: 'Node', metadata: { name, creationTimestamp: at(0) } })),
    {
      kind: 'GatewayPool',
      metadata: { name: 'p', creationTimestamp: at(0) },
      spec: {
        namespaceSelector: {},
        gateways: world.gateways.map((name) => ({ name, internalAddress: `10.0.0.${name.slice(1)}` })),
        interfaces: { internal: 'in', external: { name: 'out' } },
        nextHops: { v4: ['10.0.0.64-10.0.0.67'], v6: ['fd00::64-fd00::67'] },
        steering: { mode: 'VXLAN', vni: 1 },
      },
    },
    {
      kind: 'EgressIPPool',
      metadata: { name: 'd', creationTimestamp: at(0) },
      spec: {
        gatewayPool: 'p',
        ranges: [`192.0.2.1-192.0.2.${world.ranges}`, `2001:db8::1-2001:db8::${world.ranges}`],
        namespaceSelector: {},
        quarantineSeconds: QUARANTINE / 1000,
      },
    },
    ...Object.entries(world.egressIPs).map(([name, egressIP]) => ({
      kind: 'EgressIP',
      metadata: { name, creationTimestamp: at(egressIP?.age ?? 0) },
      spec: {
        pool: 'd',
        ...(egressIP?.addresses === undefined
          ? { count: egressIP?.count }
          : { addresses: egressIP.addresses.flatMap((n) => [`192.0.2.${n}`, `2001:db8::${n}`]) }),
        ...(egressIP?.selector ? { namespaceSelector: {} } : { namespaces: [name] }),
        priority: egressIP?.priority,
        ...(egressIP?.destinations && { destinations: egressIP.destinations }),
        spread: egressIP?.spread,
      },
    })),
    ...Object.entries(world.pods).map(([name, pod]) => ({
      apiVersion: 'v1',
      kind: 'Pod',
      metadata: {
        name,
        namespace: pod?.namespace,
        uid: `${pod?.namespace}-${name}-${pod?.anew}`,
        creationTimestamp: at(pod?.anew ?? 0),
      },
      spec: { nodeName: (pod?.address ?? 0) % 2 === 0 ? 'n1' : 'n2' },
      status: { phase: 'Running', podIPs: [{ ip: `10.1.0.${pod?.address}` }, { ip: `fd01::${pod?.address}` }] },
    })),
  ];
  return inputs.map((input) => {
    const parsed = parseObject({ apiVersion: 'sluice.dev/v1alpha1', ...(input as object) });
    if (!parsed.ok) throw new Error(JSON.stringify(parsed.errors));
    return parsed.value;
  });
}

const run = (objects: AnyObject[], memory: PlannerMemory, peers: Peers, now: number): PlanResult =>
  plan(new Map(objects.map((o) => [objectKey(o), o])), memory, peers, now);
/** Maps as objects: their order means nothing. */
const asData = ({ pools, nodes, statuses, gateways, ...rest }: PlanResult): unknown => ({
  ...rest,
  pools: Object.fromEntries(pools),
  nodes: Object.fromEntries(nodes),
  statuses: Object.fromEntries(statuses),
  gateways: Object.fromEntries(gateways),
});

const active = (memory: PlannerMemory): [string, string][] =>
  Object.entries(memory.allocations).flatMap(([address, { owner, releasedAt }]) =>
    releasedAt === undefined ? [[address, owner] as [string, string]] : [],
  );

/** A step: the world changes, time passes, some gateways acknowledge, then the planner runs. */
const steps = fc.array(
  fc.record({
    world: worlds,
    seconds: fc.integer({ min: 0, max: 90 }),
    acknowledge: fc.subarray([...gatewayNames]),
    restart: fc.boolean(),
    order: fc.integer(),
    /** What of the world before stays. */
    keep: fc.subarray(['pods', 'egressIPs', 'gateways'] as const),
  }),
  { minLength: 2, maxLength: 5 },
);

const shuffled = <T>(list: readonly T[], seed: number): T[] =>
  list
    .map((item, index) => ({ item, rank: Math.abs(Math.imul(index + 1, seed | 1) ^ seed) % 104_729 }))
    .sort((a, b) => a.rank - b.rank)
    .map(({ item }) => item);

t.test('planner: invariants over changing worlds', async (t) => {
  let steered = 0;
  let heldOrOld = 0;
  let sharedChanges = 0;
  fc.assert(
    fc.property(steps, (list) => {
      let memory = emptyMemory();
      let now = NOW;
      const gateways = new Map<string, Peer<GatewayPlan>>();
      let published: PlanResult | undefined;
      let last: World | undefined;
      // Each world twice: once as a change, once more after gateways acknowledged it.
      for (const { world: fresh, keep, seconds, acknowledge, restart, order } of list.flatMap((step) => [
        { ...step, acknowledge: [] },
        { ...step, seconds: 0, restart: false },
      ])) {
        now += seconds * 1000;
        const world: World = { ...fresh, ...Object.fromEntries(keep.map((part) => [part, (last ?? fresh)[part]])) };
        last = world;
        // A gateway acknowledges what was published last.
        for (const name of acknowledge) {
          const inForce = published?.pools.get('p');
          if (published?.gateways.has(name) && inForce) {
            gateways.set(name, { connected: true, addresses: [], generation: 1, inForce });
          }
        }
        if (restart) {
          memory = readMemory(JSON.parse(JSON.stringify(memory))) ?? emptyMemory();
          gateways.clear();
        }
        const peers: Peers = { gateways, nodes: new Map() };
        const objects = objectsOf(world);
        const result = run(objects, memory, peers, now);

        // Order of objects, and running again, change nothing.
        if (!sameJson(asData(run(shuffled(objects, order), memory, peers, now)), asData(result)))
          throw new Error('order');
        const again = run(objects, result.memory, peers, now);
        if (!sameJson(asData(again), asData(result))) throw new Error('not idempotent');

        const given = active(result.memory);
        // In plans: every address is in one shard, and every source is its EgressIP's own.
        const inShards = Object.values(result.pools.get('p')?.shards ?? {}).flatMap(({ egressIPs }) => egressIPs);
        if (new Set(inShards).size !== inShards.length) throw new Error('an address in two shards');
        if (!sameJson([...inShards].sort(), given.map(([address]) => address).sort()))
          throw new Error('shards and owners differ');
        const ownerOf = new Map(given);
        for (const [key, status] of result.statuses) {
          for (const address of key.startsWith('EgressIP/') ? (status.addresses as string[]) : []) {
            if (`EgressIP/${ownerOf.get(address)}` !== key) throw new Error('two owners');
          }
        }
        // An address that was drawn stays with its owner as long as he wants so many and no older claim is made; and
        // nobody else draws it before the quarantine is over.
        for (const [address, before] of Object.entries(memory.allocations)) {
          const owner = ownerOf.get(address);
          if (owner === undefined || owner === before.owner) continue;
          const newOwner = world.egressIPs[owner];
          const since = before.releasedAt ?? now;
          if (newOwner?.addresses === undefined && now < since + QUARANTINE) throw new Error('drawn in quarantine');
        }
        // Release only after the acknowledgement, or as it was before.
        const gatewayPlan = result.pools.get('p') ?? emptyGatewayPlan();
        const egress = compileEgress(gatewayPlan);
        const inForceAt = (shard: string) => gateways.get(gatewayPlan.shards[shard]?.order[0] ?? '')?.inForce;
        for (const [node, nodePlan] of result.nodes) {
          const settings = settingsOf(nodePlan);
          // Throws where it names what is not there.
          if (settings !== undefined) compileNode(nodePlan, settings, facts);
          for (const [uid, entry] of Object.entries(nodePlan.workloads)) {
            const [was, is] = [memory, result.memory].map(({ released }) => released[node]?.[uid]?.fingerprint);
            if (was === is) {
              heldOrOld++;
              continue;
            }
            const workload = gatewayPlan.workloads[uid];
            if (workload === undefined) throw new Error('a pod that nobody carries');
            for (const family of families) {
              const [otherwise] = egress.choices(workload, family);
              const steer = entry.steer[family];
              if (typeof steer !== 'object') continue;
              const shards = otherwise?.addresses.map(({ shard }) => shard) ?? [];
              const expected = 'spread' in steer ? { spread: otherwise?.egressIP } : { shard: `p/${shards[0]}` };
              if (!sameJson(steer, expected)) throw new Error('steered elsewhere');
            }
            for (const { shard } of families.flatMap((family) => egress.everything(workload, family))) {
              steered++;
              const theirs = inForceAt(shard);
              if (!sameJson(theirs?.workloads[uid], workload)) throw new Error('released without acknowledgement');
              // Another pod's EgressIP may be one that this gateway, but not yet all of its own, has as something else.
              for (const name of Object.keys(sharedOf([entry], nodePlan).egressIPs)) {
                const known = nodePlan.egressIPs[name]?.spread?.[4]?.includes(`p/${shard}`);
                if (known && theirs?.egressIPs[name] === undefined) throw new Error('a shard that knows nothing of it');
              }
            }
          }
        }
        for (const [name, entry] of Object.entries(result.memory.shared.egressIPs)) {
          const before = memory.shared.egressIPs[name];
          if (before === undefined || sameJson(before, entry)) continue;
          sharedChanges++;
          const shards = Object.entries(gatewayPlan.shards).flatMap(([shard, { egressIPs }]) =>
            egressIPs.some((address) => ownerOf.get(address) === name) ? [shard] : [],
          );
          for (const shard of shards) {
            if (sameJson(inForceAt(shard)?.egressIPs[name], gatewayPlan.egressIPs[name])) continue;
            throw new Error('nodes were told before the gateways said that they know');
          }
        }
        // No address of a pod is in two plans' entries.
        const podAddresses = [...result.nodes.values()].flatMap(({ workloads }) =>
          Object.values(workloads).flatMap((w) => w.addresses),
        );
        if (new Set(podAddresses).size !== podAddresses.length) throw new Error('a pod address twice');
        memory = result.memory;
        published = result;
      }
    }),
    { numRuns: 40 },
  );
  t.comment(`what pods share changed ${sharedChanges} times`);
  t.ok(steered > 50 && heldOrOld > 50, `the worlds were not empty: ${steered} releases, ${heldOrOld} kept`);
});

t.test('planner: a shrunken world gives back no more than it must', async (t) => {
  fc.assert(
    fc.property(worlds, fc.subarray([...letters]), (world, removed) => {
      const before = run(objectsOf(world), emptyMemory(), noPeers(), NOW);
      const egressIPs = Object.fromEntries(
        Object.entries(world.egressIPs).filter(([name]) => !removed.some((r) => r === name)),
      );
      const after = run(objectsOf({ ...world, egressIPs }), before.memory, noPeers(), NOW);
      const owners = new Map(active(after.memory));
      return active(before.memory).every(
        ([address, owner]) => removed.some((r) => r === owner) || owners.get(address) === owner,
      );
    }),
    { numRuns: 100 },
  );
  t.pass();
});

t.test('rendezvous: a member that goes moves only what it held', async (t) => {
  const members = fc.uniqueArray(
    fc.record({ name: fc.string({ minLength: 1, maxLength: 8 }), weight: fc.integer({ min: 1, max: 5 }) }),
    {
      selector: ({ name }) => name,
      minLength: 2,
      maxLength: 6,
    },
  );
  fc.assert(
    fc.property(members, fc.string(), fc.nat(), (list, key, pick) => {
      const order = rendezvousOrder(key, list);
      const gone = list[pick % list.length]?.name;
      const left = rendezvousOrder(
        key,
        list.filter(({ name }) => name !== gone),
      );
      return (
        sameJson(
          left,
          order.filter((name) => name !== gone),
        ) && rendezvousPick(key, order) === rendezvousPick(key, [...order].reverse())
      );
    }),
  );
  const world = { egressIPs: {}, pods: {}, ranges: 4, gateways: [...gatewayNames] };
  const order = (gateways: string[]) =>
    run(objectsOf({ ...world, gateways }), emptyMemory(), noPeers(), NOW).pools.get('p')?.shards ?? {};
  const all = order([...gatewayNames]);
  for (const gone of gatewayNames) {
    const left = order(gatewayNames.filter((name) => name !== gone));
    for (const [shard, { order: holders }] of Object.entries(all)) {
      t.same(
        left[shard]?.order,
        holders.filter((name) => name !== gone),
        `${shard} without ${gone}`,
      );
    }
  }
  const held = { light: 0, heavy: 0 };
  for (let key = 0; key < 4000; key++) {
    const [first] = rendezvousOrder(`k${key}`, [
      { name: 'light', weight: 1 },
      { name: 'heavy', weight: 3 },
    ]);
    if (first === 'light' || first === 'heavy') held[first]++;
  }
  t.ok(Math.abs(held.heavy / 4000 - 0.75) < 0.03, `weight 3 of 4 holds three quarters: ${held.heavy / 4000}`);
});
