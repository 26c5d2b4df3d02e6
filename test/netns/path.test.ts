/**
 * Node and gateway from one state of the cluster to another, in single steps of both (topology: path-rig.ts), with the
 * planner's own plans and releases: pods come, go, are made anew with the same address, namespaces get other egress IPs
 * and other rules. Between every two steps packets are sent: nothing passes that both states forbid, nothing leaves
 * with another address than the pod's by one of them, or past the gateway; what both permit goes on; and no gateway
 * sees a pod that it does not know before its node lets it out. Programs that take it less seriously must fail.
 */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import t from 'tap';
import { type AnyObject, objectKey, parseObject } from '../../api/kinds.ts';
import { type Family, families, type GatewayPlan } from '../../api/plan.ts';
import { emptyMemory, type PlannerMemory } from '../../controller/plan/memory.ts';
import type { Peers } from '../../controller/plan/peers.ts';
import { plan } from '../../controller/plan/plan.ts';
import type { GatewayKernel } from '../../gateway/apply.ts';
import { PROTOCOL_UDP } from '../../wire/ip.ts';
import { WEB } from './gateway-plans.ts';
import { PORT, type Probe, probePacket, VNI } from './gateway-rig.ts';
import { PathRig, UNDERLAY } from './path-rig.ts';

t.setTimeout(570_000);
const CHANGES = Math.ceil(Number(process.env.SLUICE_PROPERTY_RUNS ?? 40) / 3);
const state = mkdtempSync(join(tmpdir(), 'sluice-test-'));

const PORTS = [53, 80, 81];
const ADDRESSES = [
  { 4: '10.244.1.5', 6: 'fd00:244:1::5' },
  { 4: '10.244.1.6', 6: 'fd00:244:1::6' },
] as const;
const egress = (last: number): Record<Family, string> => ({
  4: `203.0.113.${last}`,
  6: `2001:db8:113::${last}`,
});

/** What of a cluster changes. */
interface Cluster {
  /** By address: none, or the namespace and uid of the pod that has it. */
  pods: (undefined | { namespace: string; uid: string })[];
  /** Namespace → last number of its egress IPs; undefined: it has none, and is dropped. */
  egress: Record<string, number | undefined>;
  /** Namespace → ports that it permits. */
  ports: Record<string, number[]>;
}

const namespaces = ['billing', 'reviews'];
const cluster: fc.Arbitrary<Cluster> = fc.record({
  pods: fc
    .tuple(
      fc.constantFrom(undefined, 'billing a', 'billing a', 'billing b', 'reviews c'),
      fc.constantFrom(undefined, 'reviews d', 'reviews d'),
    )
    .map((names) =>
      names.map((name) => {
        const [namespace = '', uid = ''] = name?.split(' ') ?? [];
        return name === undefined ? undefined : { namespace, uid };
      }),
    ),
  egress: fc
    .constantFrom([101, 102], [101, 102], [103, 102], [102, 101], [102, 103], [undefined, 102])
    .map(([billing, reviews]) => ({ billing, reviews })),
  ports: fc
    .tuple(fc.subarray(PORTS, { minLength: 1 }), fc.subarray(PORTS))
    .map(([billing, reviews]) => ({ billing, reviews })),
});

/** All are there, and permitted all. */
const both: Cluster = {
  pods: [
    { namespace: 'billing', uid: 'a' },
    { namespace: 'reviews', uid: 'd' },
  ],
  egress: { billing: 101, reviews: 102 },
  ports: { billing: PORTS, reviews: PORTS },
};

/** From each to the next some of it changes, so that something is to go on. */
function statesOf(changes: number): Cluster[] {
  const draws = fc.sample(fc.record({ next: cluster, what: fc.constantFrom('pods', 'egress', 'ports', 'all') }), {
    seed: 21,
    numRuns: changes,
  });
  let last = both;
  const states = draws.map(({ next, what }) => {
    last = what === 'all' ? next : { ...last, [what]: next[what as keyof Cluster] };
    return last;
  });
  return [both, ...states];
}

function snapshotOf({ pods, egress: addresses, ports }: Cluster): Map<string, AnyObject> {
  const ours = (kind: string, name: string, spec: object, namespace?: string) => ({
    apiVersion: 'sluice.dev/v1alpha1',
    kind,
    metadata: { name, creationTimestamp: '2026-01-01T00:00:00Z', ...(namespace && { namespace }) },
    spec,
  });
  const documents = [
    ours('GatewayPool', 'edge', {
      namespaceSelector: {},
      gateways: [{ name: 'gw-a', internalAddress: UNDERLAY.gateway }],
      interfaces: { internal: 'inside', external: { name: 'outside' } },
      nextHops: { v4: ['10.0.0.64'], v6: ['fd00:10::64'] },
      steering: { mode: 'VXLAN', vni: VNI, port: PORT },
      clusterCIDRs: ['10.244.0.0/16', '10.0.0.0/24', 'fd00:244::/32', 'fd00:10::/64'],
      unassigned: 'Drop',
    }),
    ours('EgressIPPool', 'public', {
      gatewayPool: 'edge',
      ranges: ['203.0.113.96/27', '2001:db8:113::100/120'],
      namespaceSelector: {},
      quarantineSeconds: 0,
    }),
    {
      apiVersion: 'v1',
      kind: 'Node',
      metadata: { name: 'a' },
      spec: { podCIDRs: ['10.244.1.0/24', 'fd00:244:1::/64'] },
      status: { addresses: [{ type: 'InternalIP', address: UNDERLAY.node }] },
    },
    ...namespaces.flatMap((namespace) => [
      { apiVersion: 'v1', kind: 'Namespace', metadata: { name: namespace } },
      ...(addresses[namespace] === undefined
        ? []
        : [
            ours('EgressIP', `${namespace}-${addresses[namespace]}`, {
              pool: 'public',
              addresses: Object.values(egress(addresses[namespace])),
              namespaces: [namespace],
            }),
          ]),
      ...(ports[namespace] ?? []).flatMap((port) => [
        ours(
          'ExternalService',
          `p${port}`,
          { addresses: Object.values(WEB), ports: [{ name: 'a', protocol: 'UDP', port: String(port) }] },
          namespace,
        ),
        ours(
          'NamespaceEgressRule',
          `p${port}`,
          { action: 'accept-decisively', externalServices: [`p${port}`] },
          namespace,
        ),
      ]),
    ]),
    ...pods.flatMap((pod, at) =>
      pod === undefined
        ? []
        : {
            apiVersion: 'v1',
            kind: 'Pod',
            metadata: { name: pod.uid, uid: pod.uid, namespace: pod.namespace },
            spec: { nodeName: 'a' },
            status: { phase: 'Running', podIPs: Object.values(ADDRESSES[at] ?? {}).map((ip) => ({ ip })) },
          },
    ),
  ];
  const objects = documents.map((document) => {
    const parsed = parseObject(document);
    if (!parsed.ok) throw new Error(JSON.stringify([document, parsed.errors]));
    return parsed.value;
  });
  return new Map(objects.map((object) => [objectKey(object), object]));
}

let marker = 1;
const probes = (): Probe[] =>
  ADDRESSES.flatMap((addresses) =>
    families.flatMap((family) =>
      PORTS.map((destinationPort) => ({
        source: addresses[family],
        destination: WEB[family],
        protocol: PROTOCOL_UDP,
        destinationPort,
        marker: ++marker,
      })),
    ),
  );

interface Says {
  uid?: string;
  namespace?: string;
  as?: string;
}

/** The pod that a probe is of, and the address with which it leaves; undefined: it does not. */
function saysOf({ pods, egress: addresses, ports }: Cluster, probe: Probe): Says {
  const pod = pods[ADDRESSES.findIndex((own) => Object.values(own).includes(probe.source as never))];
  const last = addresses[pod?.namespace ?? ''];
  if (pod === undefined || last === undefined) return {};
  const permitted = ports[pod.namespace]?.includes(probe.destinationPort ?? 0);
  const { uid, namespace } = pod;
  return { uid, namespace, ...(permitted && { as: egress(last)[probe.source.includes(':') ? 6 : 4] }) };
}

interface Totals {
  stops: number;
  forbidden: number;
  goOn: number;
}

/** A controller with a node and a gateway; says what was wrong first. */
class World {
  readonly rig: PathRig;
  readonly totals: Totals = { stops: 0, forbidden: 0, goOn: 0 };
  /** It does not wait for the gateway. */
  hasty = false;
  #memory: PlannerMemory = emptyMemory();
  #inForce: GatewayPlan | undefined;
  #now = 0;
  #random = 1;

  constructor(rig: PathRig) {
    this.rig = rig;
  }

  async change(before: Cluster, after: Cluster): Promise<string | undefined> {
    const established = (await this.#send(probes())).filter(({ as }) => as !== undefined);
    const flows = established.map(({ probe }) => probe);
    // Nobody goes and nobody else comes: then the gateway is to know every pod before it sees it.
    const onlyMore = before.pods.every((pod, at) => pod === undefined || pod.uid === after.pods[at]?.uid);
    const unknown = (await this.rig.drops()).drop_unknown_source ?? 0;
    let wrong: string | undefined;
    const stop = async (where: string): Promise<void> => {
      this.totals.stops++;
      const fresh = probes();
      const owners = new Map<string, string[]>();
      for (const { probe, as, leaked } of await this.#send([...fresh, ...flows])) {
        const [a, b] = [saysOf(before, probe), saysOf(after, probe)];
        const what = `${where}: ${probe.source} port ${probe.destinationPort}`;
        if (leaked) wrong ??= `${what}: past the gateway`;
        if (a.as === undefined && b.as === undefined) this.totals.forbidden++;
        const same = a.uid === b.uid && a.as === b.as && a.as !== undefined;
        if (same) this.totals.goOn++;
        if (as === undefined ? same : as !== a.as && as !== b.as) wrong ??= `${what}: ${as}, not ${a.as} or ${b.as}`;
        if (as === undefined) continue;
        // Of whom it may be: one namespace's by one state, perhaps another's by the other.
        const may = [a, b].flatMap((says) => (says.as === as && says.namespace ? says.namespace : []));
        const still = owners.get(as)?.filter((namespace) => may.includes(namespace)) ?? may;
        if (still.length === 0) wrong ??= `${what}: ${as} is another namespace's at the same time`;
        owners.set(as, still);
      }
    };
    const choose = (below: number): number => {
      this.#random = (this.#random * 16_807) % 2_147_483_647;
      return this.#random % below;
    };
    const snapshot = snapshotOf(after);
    this.#now += 1000;
    for (let round = 0; round < 2; round++) {
      const result = plan(snapshot, this.#memory, this.#peers(), this.#now);
      this.#memory = result.memory;
      const [gateway, node] = [result.pools.get('edge'), result.nodes.get('a')];
      if (gateway === undefined || node === undefined) throw new Error('no plan');
      if (this.hasty && round === 0) {
        this.#inForce = gateway;
        const early = plan(snapshot, this.#memory, this.#peers(), this.#now);
        this.#memory = early.memory;
        await this.rig.apply({ node: early.nodes.get('a') ?? node, gateway }, stop, choose);
      } else if (round === 0) await this.rig.apply({ gateway, node }, stop, choose);
      else await this.rig.apply({ node }, stop, choose);
      this.#inForce = gateway;
    }
    if (onlyMore && ((await this.rig.drops()).drop_unknown_source ?? 0) > unknown) {
      wrong ??= 'a gateway saw a pod that it did not know';
    }
    for (const { probe, as } of await this.#send([...probes(), ...flows])) {
      const { as: right } = saysOf(after, probe);
      if (as !== right) wrong ??= `at the end: ${probe.source} port ${probe.destinationPort}: ${as}, not ${right}`;
    }
    return wrong;
  }

  #peers(): Peers {
    const inForce = this.#inForce;
    if (inForce === undefined) return { gateways: new Map(), nodes: new Map() };
    const peer = { connected: true, addresses: [], generation: 1, inForce };
    return { gateways: new Map([['gw-a', peer]]), nodes: new Map() };
  }

  async #send(list: Probe[]): Promise<{ probe: Probe; as: string | undefined; leaked: boolean }[]> {
    for (const probe of list) this.rig.fromPod(probePacket(probe));
    const seen = await this.rig.collect(8);
    return list.map((probe) => {
      const mine = seen.filter((one) => one.marker === probe.marker);
      const as = mine.find(({ where }) => where === 'outside')?.source;
      return { probe, as, leaked: mine.some(({ where }) => where === 'uplink') };
    });
  }
}

/** The first change brings the programs up; nothing is said of it. */
async function walk(
  states: Cluster[],
  options: { hasty?: boolean; wrap?: (kernel: GatewayKernel) => GatewayKernel } = {},
): Promise<{ wrong: string | undefined; totals: Totals }> {
  const directory = mkdtempSync(join(state, 'gw-'));
  const rig = await PathRig.create('path', directory);
  try {
    const world = new World(rig);
    const [first = states[0] as Cluster, ...others] = states;
    await world.change(first, first);
    world.totals.stops = 0;
    world.hasty = options.hasty === true;
    if (options.wrap !== undefined) rig.wrap = options.wrap;
    let before = first;
    for (const [at, after] of others.entries()) {
      const wrong = await world.change(before, after);
      if (wrong !== undefined) return { wrong: `change ${at}: ${wrong}`, totals: world.totals };
      before = after;
    }
    return { wrong: undefined, totals: world.totals };
  } finally {
    await rig.close();
  }
}
t.teardown(() => rmSync(state, { recursive: true }));

t.test('node and gateway: at every stop what one state or the other says', async (t) => {
  const { wrong, totals } = await walk(statesOf(CHANGES));
  t.equal(wrong, undefined);
  const { stops, forbidden, goOn } = totals;
  t.ok(stops > CHANGES * 4 && forbidden > stops && goOn > stops, JSON.stringify(totals));
});

const one: Cluster = { ...both, pods: [undefined, both.pods[1]] };

t.test('a controller that does not wait, and a gateway that ends no flows, are caught', async (t) => {
  t.match((await walk([one, both, one, both], { hasty: true })).wrong, /did not know/);
  const closed: Cluster = { ...both, ports: { billing: [53], reviews: PORTS } };
  const wrap = (kernel: GatewayKernel): GatewayKernel => ({ ...kernel, endFlows: async () => 0 });
  t.match((await walk([both, closed], { wrap })).wrong, /at the end: .* port 80: 203|at the end: .* port 80: 2001/);
});
