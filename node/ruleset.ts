/**
 * A node's plan as nftables (design §6): table NFT_TABLE_NODE, family inet. Pure.
 * Base chains have fixed names and only jump; what they jump to is named by its content (kernel/nft.ts).
 * Order of a pod's packet: raw (tunnel) → conntrack → hold (-155) → xtables NFQUEUE (-150) → service translation (-100)
 * → steer (-90) → forward → null binding (before the CNI's masquerade). What only the tunnel needs (raw, clamping, the
 * guard of its port) is there if a shard is VXLAN.
 */
import { formatAddress, parseAddress, parsePrefix, prefixRange, type Range } from '../api/address.ts';
import { NFT_TABLE_NODE, NODE_MARK_HELD, NODE_MARK_MASK, TUNNEL_DEVICE } from '../api/names.ts';
import { neverSteered } from '../api/never-steered.ts';
import { type Family, families, type NodePlan, type NodeSettings, type NodeShardEntry } from '../api/plan.ts';
import { PrefixSet } from '../api/prefix-set.ts';
import { counterName, type DropReason } from '../api/reasons.ts';
import { markText, type NftSet, type NftState, type Ruleset, rangeText } from '../kernel/nft.ts';
import { Chains, words } from './chains.ts';
import type { Before } from './places.ts';
import { Ways } from './ways.ts';

/** Every reason for which a node drops. */
export const nodeDropReasons = [
  'foreign-tunnel',
  'tunnel-port',
  'unknown-source',
  'unassigned',
  'no-egress-ip',
  'invalid',
  'leak',
] as const satisfies readonly DropReason[];

const ours = markText(NODE_MARK_MASK);
const others = markText(~NODE_MARK_MASK);
const dropped = (reason: (typeof nodeDropReasons)[number]): string => `counter name ${counterName(reason)} drop`;

/** Destinations that are not steered. A plan's prefixes are canonical: one that is not is a mistake of the planner. */
export function localDestinations(settings: Pick<NodeSettings, 'clusterCIDRs' | 'excludedCIDRs'>): PrefixSet {
  return PrefixSet.of([...neverSteered, ...settings.clusterCIDRs, ...settings.excludedCIDRs].map(rangeOf));
}

function rangeOf(text: string): Range {
  const prefix = parsePrefix(text);
  if (!prefix.ok) throw new TypeError(`plan: ${prefix.error}`);
  return prefixRange(prefix.value);
}

function intervals(set: PrefixSet, family: Family): Map<string, string> {
  return new Map(
    set
      .ranges(family)
      .map(({ first, last }) => [
        rangeText(formatAddress({ family, value: first }), formatAddress({ family, value: last })),
        '',
      ]),
  );
}

type ByFamily = Record<Family, Map<string, string>>;
/** Of settings, which are the same in most plans and never change. */
const knownPlaces = new WeakMap<NodeSettings, { local: ByFamily; pods: ByFamily }>();

function placesOf(settings: NodeSettings): { local: ByFamily; pods: ByFamily } {
  const known = knownPlaces.get(settings);
  if (known !== undefined) return known;
  const local = localDestinations(settings);
  const pods = PrefixSet.of(settings.podCIDRs.map(rangeOf));
  const places = {
    local: { 4: intervals(local, 4), 6: intervals(local, 6) },
    pods: { 4: intervals(pods, 4), 6: intervals(pods, 6) },
  };
  knownPlaces.set(settings, places);
  return places;
}

/** A plan's addresses are canonical: one that is not is a mistake of the planner. */
export function familyOf(address: string): Family {
  const parsed = parseAddress(address);
  if (!parsed.ok) throw new TypeError(`plan: ${parsed.error}`);
  return parsed.value.family;
}

export interface SeenPlaces {
  /** By address: index of the interface that its workload is behind. */
  seen: ReadonlyMap<string, number>;
  /** Whether it is not there any more. */
  gone(address: string): boolean;
}

/** Of which there may still be flows: an earlier program had no time for them. */
export const leavingIn = ({ sets }: NftState): string[] =>
  families.flatMap((family) => [...(sets.get(`leaving${family}`)?.elements.keys() ?? [])]);

/** What `seen` was when this table was written: no rule asks, it is for the next program. */
export function placesIn({ sets }: NftState): Before {
  const elements = families.flatMap((family) => [...(sets.get(`at${family}`)?.elements ?? [])]);
  return {
    seen: new Map(elements.map(([address, index]) => [address, Number(index)])),
    known: (address) => families.some((family) => sets.get(`known${family}`)?.elements.has(address)),
  };
}

export interface RulesetInput {
  plan: NodePlan;
  settings: NodeSettings;
  /** Interfaces behind which workloads live (`cni0`, `cali*`). */
  workloadInterfaces: readonly string[];
  places: SeenPlaces | undefined;
  /** Addresses of workloads that went, of which there may still be flows. */
  leaving: ReadonlySet<string>;
  /** MTU of the tunnel device, to which TCP's segments are clamped. */
  mtu: number;
  /** Devices by which a shard's packets may leave; none: they may not. */
  devicesOf(shard: NodeShardEntry): string[];
}

export function compileRuleset(input: RulesetInput): Ruleset {
  const { plan, settings, workloadInterfaces, places, leaving, mtu, devicesOf } = input;
  const chains = new Chains();
  const shards = Object.entries(plan.shards);
  const shardChain = new Map(shards.map(([key, shard]) => [key, chains.add(`s${shard.index}`, shardRules(shard))]));
  const verdictChain = {
    unassigned: chains.add('unassigned', [dropped('unassigned')]),
    familyless: chains.add('familyless', [dropped('no-egress-ip')]),
    bypass: chains.add('bypass', ['return']),
  };

  const sets: Record<string, NftSet> = {
    byct: {
      type: 'mark',
      value: 'verdict',
      elements: new Map(shards.map(([key, { index }]) => [markText(index), `goto ${shardChain.get(key)}`])),
    },
  };
  const { local, pods } = placesOf(settings);
  for (const family of families) {
    const { type } = words[family];
    sets[`local${family}`] = { type, interval: true, elements: local[family] };
    sets[`pods${family}`] = { type, interval: true, elements: pods[family] };
    sets[`gateways${family}`] = { type, elements: new Map() };
    sets[`peers${family}`] = { type, elements: new Map() };
    sets[`known${family}`] = { type, elements: new Map() };
    sets[`leaving${family}`] = { type, elements: new Map() };
    sets[`at${family}`] = { type, value: 'mark', elements: new Map() };
    sets[`steer${family}`] = { type, value: 'verdict', elements: new Map() };
  }
  const put = (name: string, address: string, value = ''): void => {
    sets[`${name}${familyOf(address)}`]?.elements.set(address, value);
  };
  // peers: from where tunnel packets come. gateways: where a workload may not send to (outside addresses too).
  for (const gateway of Object.values(plan.gateways)) {
    put('peers', gateway.internalAddress);
    for (const address of [gateway.internalAddress, ...gateway.addresses]) {
      put('gateways', address);
    }
  }
  for (const [, shard] of shards) {
    for (const family of families) {
      const nextHop = shard.nextHops[family];
      if (nextHop === undefined) continue;
      put('peers', nextHop);
      put('gateways', nextHop);
    }
  }
  const ways = new Ways(plan, chains, sets, (steer) => {
    if (steer === undefined) return verdictChain.familyless;
    if (steer === 'drop') return verdictChain.unassigned;
    return steer === 'bypass' ? verdictChain.bypass : shardChain.get(steer.shard);
  });
  for (const workload of Object.values(plan.workloads)) {
    for (const address of workload.addresses) {
      const family = familyOf(address);
      const at = places?.seen.get(address);
      if (at !== undefined) sets[`at${family}`]?.elements.set(address, markText(at));
      if (places?.gone(address)) continue;
      sets[`known${family}`]?.elements.set(address, '');
      sets[`steer${family}`]?.elements.set(address, `goto ${ways.of(workload, address, family)}`);
    }
  }

  for (const address of leaving) put('leaving', address);

  const tunnelled = shards.filter(([, { mode }]) => mode === 'VXLAN');
  const vnis = [...new Set(tunnelled.map(([, { vni }]) => vni))].sort((a, b) => a - b);
  if (tunnelled.length > 0) tunnelChains(chains, settings.port, vnis, workloadInterfaces);
  workloadChains(chains, tunnelled.length > 0 ? settings.port : undefined, workloadInterfaces, leaving.size > 0);
  const devices = new Map(shards.map(([, shard]) => [shard.index, devicesOf(shard)]));
  sets.ways = { type: 'mark', value: 'verdict', elements: new Map() };
  forwardChains(chains, tunnelled.length > 0 ? mtu : undefined, devices, sets.ways.elements);
  return {
    family: 'inet',
    table: NFT_TABLE_NODE,
    counters: nodeDropReasons.map(counterName),
    sets,
    chains: chains.chains,
  };
}

/** Marks packet and flow. A packet without a flow (conntrack calls it invalid) would leave untranslated. */
function shardRules({ index }: NodeShardEntry): string[] {
  return [
    `ct state invalid ${dropped('invalid')}`,
    `ct state untracked ${dropped('invalid')}`,
    `meta mark set meta mark and ${others} or ${markText(index)}`,
    `ct mark set ct mark and ${others} or ${markText(index)}`,
  ];
}

function tunnelChains(chains: Chains, port: number, vnis: number[], workloadInterfaces: readonly string[]): void {
  const accept = chains.add('peer', [
    ...families.map((family) => `${words[family].ip} saddr @peers${family} notrack accept`),
    dropped('foreign-tunnel'),
  ]);
  const tunnel = chains.add('tunnel', [
    // VXLAN: UDP header 8 bytes, flags 1, reserved 3, then the VNI.
    ...vnis.map((vni) => `@th,96,24 0x${vni.toString(16)} goto ${accept}`),
    dropped('foreign-tunnel'),
  ]);
  chains.base(
    'tunnel_in',
    'type filter hook prerouting priority raw',
    chains.add('raw_in', [
      // Never into the tunnel, whatever source they claim; hold and steer count them.
      ...workloadInterfaces.map((name) => `iifname "${name}" return`),
      `udp dport ${port} fib daddr type local goto ${tunnel}`,
    ]),
  );
  chains.base(
    'tunnel_out',
    'type filter hook output priority raw',
    chains.add('raw_out', [`udp dport ${port} notrack`]),
  );
}

/** `someLeave`: else no packet is asked whether it is of a flow of a workload that went. */
function workloadChains(
  chains: Chains,
  port: number | undefined,
  workloadInterfaces: readonly string[],
  someLeave: boolean,
): void {
  // Asked before and after service translation: a Service's endpoint may be a gateway.
  const guard = chains.add('guard', [
    ...(port === undefined ? [] : [`udp dport ${port} ${dropped('tunnel-port')}`]),
    ...families.map((family) => `${words[family].ip} daddr @gateways${family} ${dropped('tunnel-port')}`),
  ]);
  const localReturns = [
    ...families.map((family) => `${words[family].ip} daddr @local${family} return`),
    'fib daddr type local return',
  ];
  const fromWorkloads = (target: string): string[] => [
    `iifname "${TUNNEL_DEVICE}" return`,
    ...workloadInterfaces.map((name) => `iifname "${name}" goto ${target}`),
    ...families.map((family) => `${words[family].ip} saddr @pods${family} goto ${target}`),
  ];
  const hold = chains.add('hold_unknown', [
    `jump ${guard}`,
    ...localReturns,
    ...families.map((family) => `${words[family].ip} saddr @known${family} return`),
    `meta mark set meta mark and ${others} or ${markText(NODE_MARK_HELD)}`,
  ]);
  // Of an address that went whoever is behind it by now has no part in its flows. What begins anew is held, as ever.
  const left = chains.add('left', [
    // Also where a Service's address leads out of the cluster.
    `ct mark and ${ours} != 0 ${dropped('unknown-source')}`,
    ...localReturns,
    `ct direction reply ${dropped('unknown-source')}`,
  ]);
  const leave = families.map((family) => `${words[family].ip} saddr @leaving${family} jump ${left}`);
  chains.base(
    'hold',
    'type filter hook prerouting priority mangle - 5',
    chains.add('hold_flow', [
      ...(someLeave ? leave : []),
      'ct direction reply return',
      `ct mark and ${ours} != 0 return`,
      ...fromWorkloads(hold),
    ]),
  );
  const steer = chains.add('steer_new', [
    `jump ${guard}`,
    ...localReturns,
    ...families.map((family) => `${words[family].ip} saddr vmap @steer${family}`),
    dropped('unknown-source'),
  ]);
  chains.base(
    'steer',
    'type filter hook prerouting priority dstnat + 10',
    chains.add('steer_flow', ['ct direction reply return', `ct mark and ${ours} vmap @byct`, ...fromWorkloads(steer)]),
  );
}

/** `mtu`: of the tunnel, if there is one. `ways`: by shard's index, the devices by which its packets may leave. */
function forwardChains(
  chains: Chains,
  mtu: number | undefined,
  ways: ReadonlyMap<number, string[]>,
  elements: Map<string, string>,
): void {
  const sides = mtu === undefined ? [] : (['oifname', 'iifname'] as const);
  const clamp = sides.flatMap((side) =>
    families.map((family) => {
      const segment = (mtu ?? 0) - (family === 4 ? 40 : 60);
      return `${side} "${TUNNEL_DEVICE}" meta nfproto ${words[family].nfproto} tcp flags & (syn | rst) == syn tcp option maxseg size set ${segment}`;
    }),
  );
  // Our mark and another way out than its shard's: the rule or the route was taken away behind our back.
  for (const [index, devices] of ways) {
    const allowed = devices.map((device) => `oifname "${device}" return`);
    elements.set(markText(index), `goto ${chains.add('way', [...allowed, dropped('leak')])}`);
  }
  const guard = chains.add('ways', [`meta mark and ${ours} vmap @ways`, dropped('leak')]);
  chains.base(
    'forward_all',
    'type filter hook forward priority mangle',
    chains.add('forwarded', [...clamp, `ct mark and ${ours} != 0 meta mark and ${ours} != 0 goto ${guard}`]),
  );
  const devices = [...new Set([...ways.values()].flat())].sort();
  // Claims the source translation with the identity, so that no later chain (the CNI's masquerade) can.
  chains.base(
    'nat_out',
    'type nat hook postrouting priority srcnat - 10',
    chains.add(
      'null',
      devices.flatMap((device) =>
        families.map(
          (family) =>
            `oifname "${device}" ct mark and ${ours} != 0 meta mark and ${ours} != 0 meta nfproto ${words[family].nfproto} snat ${words[family].ip} to ${words[family].ip} saddr`,
        ),
      ),
    ),
  );
}
