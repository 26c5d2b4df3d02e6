/**
 * One gateway between two wires that the test itself reads and writes, frame by frame:
 *
 *   test (as nodes a, b: 10.0.0.21, .22)  <-> inside  gateway  outside <->  test (as router 203.0.113.1)
 *
 * The gateway is a network namespace with the product's own apply code; the other ends are packet sockets in a second
 * namespace without addresses, so that nothing but the test answers. Every probe carries a marker of its own.
 * With Direct steering there is no tunnel on the inside wire. The reverse-path filter is loose with a tunnel,
 * strict without.
 */
import { execFile } from 'node:child_process';
import { writeFile } from 'node:fs/promises';
import { promisify } from 'node:util';
import { TUNNEL_MAC_GATEWAY, TUNNEL_MAC_NODE } from '../../api/names.ts';
import type { Family, GatewayPlan, SteeringMode } from '../../api/plan.ts';
import { GatewayApply, type GatewayKernel } from '../../gateway/apply.ts';
import type { CompilerOptions } from '../../gateway/compile.ts';
import { decidedMark } from '../../gateway/marks.ts';
import { endFlows, listFlows } from '../../kernel/conntrack.ts';
import { HostIp } from '../../kernel/iproute-host.ts';
import { scriptOf } from '../../kernel/nft.ts';
import { HostNft } from '../../kernel/nft-host.ts';
import { PacketSocket } from '../../kernel/packet-socket.ts';
import { HostTc } from '../../kernel/tc-host.ts';
import { u32 } from '../../wire/bytes.ts';
import { buildFrame, ETHERTYPE_IPV4, ETHERTYPE_IPV6, parseFrame } from '../../wire/ethernet.ts';
import {
  buildIcmpEcho,
  buildTcp,
  buildUdp,
  type Packet,
  PROTOCOL_ICMP,
  PROTOCOL_ICMPV6,
  PROTOCOL_TCP,
  PROTOCOL_UDP,
  parsePacket,
  TCP_SYN,
} from '../../wire/ip.ts';
import { decapVxlan, encapVxlan } from '../../wire/vxlan.ts';

const exec = promisify(execFile);
export const VNI = 7700;
export const PORT = 4793;
export const NODES = { a: '10.0.0.21', b: '10.0.0.22' } as const;
export const NODES6 = { a: 'fd00:10::21', b: 'fd00:10::22' } as const;
export const GATEWAY_INSIDE = '10.0.0.31';
export const ROUTER = { 4: '203.0.113.1', 6: '2001:db8:113::1' } as const;
const WIRE_MAC = '02:00:00:00:00:99';
const NODE_MACS = { a: WIRE_MAC, b: '02:00:00:00:00:9b' } as const;

export interface Probe {
  source: string;
  destination: string;
  protocol: number;
  destinationPort?: number;
  sourcePort?: number;
  /** Unique among the probes of a round; also the source port or echo id. */
  marker: number;
  flags?: number;
}

export interface Sighting {
  where: 'outside' | 'inside';
  /** `packet`: the probe itself; `reset`, `unreachable`: an answer about it. */
  kind: 'packet' | 'reset' | 'unreachable';
  marker: number;
  packet: Packet;
  /** Inside: the node that the tunnel packet, or the frame, was addressed to. */
  node?: string;
}

export function probePacket(probe: Probe): Uint8Array {
  const { source, destination, marker } = probe;
  const payload = Uint8Array.of(marker >>> 24, marker >>> 16, marker >>> 8, marker);
  const port = probe.sourcePort ?? 1024 + (marker % 60_000);
  if (probe.protocol === PROTOCOL_ICMP || probe.protocol === PROTOCOL_ICMPV6) {
    return buildIcmpEcho({ source, destination, id: port, sequence: 1, payload });
  }
  const ends = { source, destination, sourcePort: port, destinationPort: probe.destinationPort ?? 0 };
  if (probe.protocol === PROTOCOL_UDP) return buildUdp({ ...ends, payload });
  return buildTcp({ ...ends, flags: probe.flags ?? TCP_SYN, sequence: marker, acknowledgement: 0 });
}

export class GatewayRig {
  readonly nft: HostNft;
  readonly mode: SteeringMode;
  readonly #names: { gateway: string; wires: string };
  readonly #inside: PacketSocket;
  readonly #outside: PacketSocket;
  readonly #insideMac: string;
  readonly #outsideMac: string;
  #apply: GatewayApply;
  readonly #state: string;
  #options: CompilerOptions;
  /** Changes the scripts on their way to nft: how a wrong compiler would have written them. */
  mutate: ((script: string) => string) | undefined;
  /** Looking through the connection table fails. */
  cannotEndFlows = false;
  /** Stands between the program and the kernel. */
  wrap: (kernel: GatewayKernel) => GatewayKernel = (kernel) => kernel;

  private constructor(
    names: { gateway: string; wires: string },
    inside: PacketSocket,
    outside: PacketSocket,
    macs: [string, string],
    state: string,
    mode: SteeringMode,
    options: CompilerOptions,
  ) {
    this.mode = mode;
    this.#names = names;
    this.#inside = inside;
    this.#outside = outside;
    [this.#insideMac, this.#outsideMac] = macs;
    this.nft = new HostNft({ namespace: names.gateway });
    this.#state = state;
    this.#options = options;
    this.#apply = new GatewayApply('gw-a', this.#kernel(), state, options);
  }

  static async create(
    tag: string,
    state: string,
    mode: SteeringMode = 'VXLAN',
    options: CompilerOptions = {},
  ): Promise<GatewayRig> {
    const names = { gateway: `t-${tag}-gw-${process.pid}`, wires: `t-${tag}-wire-${process.pid}` };
    await exec('ip', ['netns', 'add', names.gateway]);
    await exec('ip', ['netns', 'add', names.wires]);
    const commands = [
      `ip link add inside netns ${names.gateway} type veth peer name inside netns ${names.wires}`,
      `ip link add outside netns ${names.gateway} type veth peer name outside netns ${names.wires}`,
      `ip netns exec ${names.wires} sysctl -qw net.ipv6.conf.all.disable_ipv6=1`,
      `ip netns exec ${names.gateway} sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0`,
      // Else the kernel answers only so many rejected packets a second.
      `ip netns exec ${names.gateway} sysctl -qw net.ipv4.icmp_ratelimit=0 net.ipv6.icmp.ratelimit=0`,
      `ip netns exec ${names.gateway} sysctl -qw net.ipv4.icmp_msgs_per_sec=1000000 net.ipv4.icmp_msgs_burst=100000`,
      `ip netns exec ${names.gateway} sysctl -qw net.ipv4.conf.all.rp_filter=${mode === 'VXLAN' ? 2 : 1}`,
      `ip -n ${names.gateway} link set lo up`,
      ...['inside', 'outside'].flatMap((dev) => [
        `ip -n ${names.wires} link set ${dev} address ${WIRE_MAC} up`,
        `ip -n ${names.gateway} link set ${dev} up`,
        `ip netns exec ${names.gateway} ethtool -K ${dev} tx off rx off gro off`,
      ]),
      `ip -n ${names.gateway} addr add ${GATEWAY_INSIDE}/24 dev inside`,
      `ip -n ${names.gateway} addr add 203.0.113.31/24 dev outside`,
      `ip -n ${names.gateway} addr add 2001:db8:113::31/64 dev outside nodad`,
      `ip -n ${names.gateway} route add default via ${ROUTER[4]}`,
      `ip -n ${names.gateway} -6 route add default via ${ROUTER[6]}`,
      ...(['a', 'b'] as const).flatMap((node) =>
        [NODES[node], NODES6[node]].map(
          (a) => `ip -n ${names.gateway} neigh add ${a} lladdr ${NODE_MACS[node]} dev inside nud permanent`,
        ),
      ),
      ...Object.values(ROUTER).map(
        (a) => `ip -n ${names.gateway} neigh add ${a} lladdr ${WIRE_MAC} dev outside nud permanent`,
      ),
    ];
    try {
      // The same for what a route prohibits; this one is the whole machine's (test/run.sh puts it back).
      await writeFile('/proc/sys/net/ipv4/route/error_cost', '0');
      for (const command of commands) await exec('sh', ['-c', command], { timeout: 60_000 });
      const macOf = (device: string): string => {
        const socket = PacketSocket.open({ device, etherType: 0, namespace: names.gateway });
        const mac = socket.mac();
        socket.close();
        return mac;
      };
      const open = (device: string): PacketSocket =>
        PacketSocket.open({ device, namespace: names.wires, timeoutMs: 1 });
      return new GatewayRig(
        names,
        open('inside'),
        open('outside'),
        [macOf('inside'), macOf('outside')],
        state,
        mode,
        options,
      );
    } catch (error) {
      await remove(names);
      throw error;
    }
  }

  #kernel(): GatewayKernel {
    const namespace = this.#names.gateway;
    const nft = this.nft;
    return {
      nft: {
        // A mutant's chain does not hold what a digest would say.
        run: (change) =>
          this.mutate === undefined
            ? nft.run(change)
            : nft.runScript(this.mutate(scriptOf(change).replaceAll(/ comment "[0-9a-f]{16}"$/gm, ''))),
        list: (family, table) => nft.list(family, table),
        counters: (table) => nft.counters(table),
        drop: (table) => nft.drop(table),
      },
      ip: new HostIp({ namespace }),
      tc: new HostTc({ namespace }),
      sysctl: (desired) =>
        exec('ip', [
          'netns',
          'exec',
          namespace,
          'sysctl',
          '-qw',
          ...Object.entries(desired).map(([k, v]) => `${k}=${v}`),
        ]),
      mtu: async () => 1500,
      reversePathFilter: async () => true,
      announce: () => undefined,
      endFlows: async (match) => {
        if (this.cannotEndFlows) throw new Error('no connection table');
        return endFlows(match, { namespace, mark: decidedMark });
      },
    };
  }

  apply(plan: GatewayPlan): Promise<unknown> {
    return this.#apply.apply(plan);
  }

  /** A gateway program that starts anew on the same kernel. */
  restarted(state: string): GatewayApply {
    return new GatewayApply('gw-a', this.#kernel(), state, this.#options);
  }

  /** From now on it compiles otherwise. */
  recompile(options: CompilerOptions): void {
    this.#options = options;
    this.#apply = this.restarted(this.#state);
  }

  /** Empty table, no connections, a program without memory. */
  async reset(): Promise<void> {
    await this.nft.drop('sluice');
    await endFlows(() => true, { namespace: this.#names.gateway });
    this.#apply = new GatewayApply('gw-a', this.wrap(this.#kernel()), this.#state, this.#options);
  }

  /** The machine itself looks for a neighbour on the internal interface that is not there. */
  async discoverNeighbour(): Promise<void> {
    const ping = ['ping', '-6', '-c1', '-W1', 'fe80::99%inside'];
    await exec('ip', ['netns', 'exec', this.#names.gateway, ...ping]).catch(() => undefined);
  }

  flows(): ReturnType<typeof listFlows> {
    return listFlows({ namespace: this.#names.gateway });
  }

  async counters(): Promise<Record<string, number>> {
    const values = await this.nft.counters('sluice');
    return Object.fromEntries(Object.entries(values).map(([name, { packets }]) => [name, packets]));
  }

  /** A workload's packet as its node sends it: by the tunnel, or as it is. */
  fromNode(
    inner: Uint8Array,
    options: { node?: string; vni?: number; to?: string; etherType?: number; raw?: boolean } = {},
  ): void {
    const family = (inner[0] ?? 0) >>> 4 === 6 ? 6 : 4;
    if (this.mode === 'Direct' || options.raw) {
      const etherType = family === 6 ? ETHERTYPE_IPV6 : ETHERTYPE_IPV4;
      const source = options.node === NODES.b ? NODE_MACS.b : NODE_MACS.a;
      this.#inside.send(buildFrame({ destination: this.#insideMac, source, etherType, payload: inner }));
      return;
    }
    const frame = buildFrame({
      destination: TUNNEL_MAC_GATEWAY,
      source: TUNNEL_MAC_NODE,
      etherType: options.etherType ?? (family === 6 ? ETHERTYPE_IPV6 : ETHERTYPE_IPV4),
      payload: inner,
    });
    const outer = buildUdp({
      source: options.node ?? NODES.a,
      destination: options.to ?? '10.0.0.64',
      sourcePort: 50_000,
      destinationPort: PORT,
      payload: encapVxlan(options.vni ?? VNI, frame),
    });
    this.#inside.send(
      buildFrame({ destination: this.#insideMac, source: WIRE_MAC, etherType: ETHERTYPE_IPV4, payload: outer }),
    );
  }

  fromOutside(packet: Uint8Array): void {
    const etherType = (packet[0] ?? 0) >>> 4 === 6 ? ETHERTYPE_IPV6 : ETHERTYPE_IPV4;
    this.#outside.send(buildFrame({ destination: this.#outsideMac, source: WIRE_MAC, etherType, payload: packet }));
  }

  /** What came out on both wires, until nothing has come for a while, nor when that was over. */
  async collect(quietMs = 30): Promise<Sighting[]> {
    const seen: Sighting[] = [];
    for (let quietSince = Date.now(), looking = quietSince; ; looking = Date.now()) {
      const before = seen.length;
      for (const [where, socket] of [['outside', this.#outside] as const, ['inside', this.#inside] as const]) {
        for (let bytes = socket.receive(); bytes !== undefined; bytes = socket.receive()) {
          const seeInside = this.mode === 'Direct' ? insideDirect : inside;
          const sighting = where === 'outside' ? outside(bytes) : seeInside(bytes);
          if (sighting !== undefined) seen.push(sighting);
        }
      }
      if (seen.length > before) quietSince = Date.now();
      else if (looking - quietSince >= quietMs) return seen;
      await new Promise((resolve) => setImmediate(resolve));
    }
  }

  async close(): Promise<void> {
    this.#inside.close();
    this.#outside.close();
    await remove(this.#names);
  }
}

async function remove(names: { gateway: string; wires: string }): Promise<void> {
  for (const name of Object.values(names)) await exec('ip', ['netns', 'del', name]).catch(() => undefined);
}

function outside(bytes: Uint8Array): Sighting | undefined {
  const frame = parseFrame(bytes);
  return frame.ok ? sightingOf('outside', frame.value.payload) : undefined;
}

function inside(bytes: Uint8Array): Sighting | undefined {
  const frame = parseFrame(bytes);
  const outer = frame.ok ? parsePacket(frame.value.payload) : undefined;
  if (!frame.ok || !outer?.ok || outer.value.destinationPort !== PORT) return undefined;
  const inner = decapVxlan(frame.value.payload.subarray(outer.value.payloadOffset));
  const sighting = inner.ok ? sightingOf('inside', inner.value.frame.payload) : undefined;
  return sighting && { ...sighting, node: outer.value.destination };
}

function insideDirect(bytes: Uint8Array): Sighting | undefined {
  const frame = parseFrame(bytes);
  const sighting = frame.ok ? sightingOf('inside', frame.value.payload) : undefined;
  const node = (['a', 'b'] as const).find((name) => frame.ok && frame.value.destination === NODE_MACS[name]);
  return sighting && node && { ...sighting, node: NODES[node] };
}

function sightingOf(where: Sighting['where'], bytes: Uint8Array): Sighting | undefined {
  const parsed = parsePacket(bytes);
  if (!parsed.ok) return undefined;
  const packet = parsed.value;
  const icmp = packet.protocol === PROTOCOL_ICMP || packet.protocol === PROTOCOL_ICMPV6;
  if (icmp && (packet.icmpType === 3 || packet.icmpType === 1)) {
    const quoted = bytes.subarray(packet.transportOffset + 8);
    const about = sightingOf(where, quoted);
    return about && { ...about, kind: 'unreachable', packet };
  }
  if (packet.protocol === PROTOCOL_TCP && (packet.tcpFlags ?? 0) & 0x04) {
    return { where, kind: 'reset', marker: ((packet.acknowledgement ?? 0) - 1) >>> 0, packet };
  }
  if (packet.protocol === PROTOCOL_TCP) return { where, kind: 'packet', marker: packet.sequence ?? 0, packet };
  if (icmp && packet.icmpId === undefined) return undefined;
  if (packet.payloadOffset + 4 > bytes.length) return undefined;
  return { where, kind: 'packet', marker: u32(bytes, packet.payloadOffset), packet };
}

export const icmpOf = (family: Family): number => (family === 4 ? PROTOCOL_ICMP : PROTOCOL_ICMPV6);
