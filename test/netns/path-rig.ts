/**
 * A node and a gateway, each a network namespace with the product's own apply code, between wires that the test reads and
 * writes frame by frame:
 *
 *   test (pods 10.244.1.x)  <-> pod0  node  under 10.0.0.21  <-> inside 10.0.0.31  gateway  outside <->  test (router)
 *                                     uplink <-> test: the node's own way out, where nothing of a steered pod may come
 *
 * Each thing that a program does to its kernel waits for its turn, so that the test can stop between any two of both.
 */
import { execFile } from 'node:child_process';
import { promisify } from 'node:util';
import { families, type GatewayPlan, type NodePlan } from '../../api/plan.ts';
import { GatewayApply, type GatewayKernel } from '../../gateway/apply.ts';
import { decidedMark } from '../../gateway/marks.ts';
import { endFlows } from '../../kernel/conntrack.ts';
import { HostIp } from '../../kernel/iproute-host.ts';
import { HostNft } from '../../kernel/nft-host.ts';
import { PacketSocket } from '../../kernel/packet-socket.ts';
import { HostTc } from '../../kernel/tc-host.ts';
import { Steering } from '../../node/apply.ts';
import { HostKernel, type NodeKernel } from '../../node/kernel.ts';
import { u32 } from '../../wire/bytes.ts';
import { buildFrame, ETHERTYPE_IPV4, ETHERTYPE_IPV6, parseFrame } from '../../wire/ethernet.ts';
import { parsePacket } from '../../wire/ip.ts';
import { ROUTER } from './gateway-rig.ts';

const exec = promisify(execFile);
const WIRE_MAC = '02:00:00:00:00:99';
export const UNDERLAY = { node: '10.0.0.21', gateway: '10.0.0.31' } as const;
type Side = 'node' | 'gateway';

/** Where a packet came out, and with which source. */
export interface Seen {
  where: 'outside' | 'uplink';
  marker: number;
  source: string;
}

interface Waiting {
  side: Side;
  step: string;
  go(): void;
}

export class PathRig {
  readonly #names: Record<Side | 'wires', string>;
  readonly #pod: PacketSocket;
  readonly #outside: PacketSocket;
  readonly #uplink: PacketSocket;
  readonly #podMac: string;
  readonly gateway: GatewayApply;
  readonly node: Steering;
  readonly #waiting: Waiting[] = [];
  /** Between the gateway's program and its kernel, before the turns. */
  wrap: (kernel: GatewayKernel) => GatewayKernel = (kernel) => kernel;

  private constructor(names: Record<Side | 'wires', string>, state: string) {
    this.#names = names;
    const open = (device: string): PacketSocket => PacketSocket.open({ device, namespace: names.wires, timeoutMs: 1 });
    [this.#pod, this.#outside, this.#uplink] = [open('pod'), open('outside'), open('uplink')];
    const door = PacketSocket.open({ device: 'pod0', etherType: 0, namespace: names.node });
    this.#podMac = door.mac();
    door.close();
    this.gateway = new GatewayApply('gw-a', this.#gatewayKernel(), state);
    this.node = new Steering(this.#nodeKernel(), ['pod0']);
  }

  static async create(tag: string, state: string): Promise<PathRig> {
    const name = (host: string): string => `t-${tag}-${host}-${process.pid}`;
    const names = { node: name('node'), gateway: name('gw'), wires: name('wire') };
    const { node, gateway, wires } = names;
    const veth = (left: string, at: string, right: string, end: string): string[] => [
      `ip link add ${at} netns ${left} type veth peer name ${end} netns ${right}`,
      `ip -n ${left} link set ${at} up`,
      `ip -n ${right} link set ${end} up`,
    ];
    const commands = [
      ...Object.values(names).flatMap((each) => [
        `ip netns add ${each}`,
        `ip netns exec ${each} sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0`,
        `ip netns exec ${each} sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0`,
        `ip -n ${each} link set lo up`,
      ]),
      `ip netns exec ${wires} sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1`,
      ...veth(wires, 'pod', node, 'pod0'),
      ...veth(wires, 'uplink', node, 'uplink'),
      ...veth(node, 'under', gateway, 'inside'),
      ...veth(wires, 'outside', gateway, 'outside'),
      ...['pod', 'uplink', 'outside'].map((device) => `ip -n ${wires} link set ${device} address ${WIRE_MAC}`),
      `ip -n ${node} addr add 10.244.1.1/24 dev pod0`,
      `ip -n ${node} addr add fd00:244:1::1/64 dev pod0 nodad`,
      `ip -n ${node} addr add ${UNDERLAY.node}/24 dev under`,
      `ip -n ${node} addr add 192.0.2.21/24 dev uplink`,
      `ip -n ${node} addr add 2001:db8:2::21/64 dev uplink nodad`,
      `ip -n ${node} route add default via 192.0.2.1`,
      `ip -n ${node} -6 route add default via 2001:db8:2::1`,
      ...['192.0.2.1', '2001:db8:2::1'].map(
        (address) => `ip -n ${node} neigh add ${address} lladdr ${WIRE_MAC} dev uplink nud permanent`,
      ),
      `ip netns exec ${node} sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1`,
      `ip -n ${gateway} addr add ${UNDERLAY.gateway}/24 dev inside`,
      `ip -n ${gateway} addr add 203.0.113.31/24 dev outside`,
      `ip -n ${gateway} addr add 2001:db8:113::31/64 dev outside nodad`,
      `ip -n ${gateway} route add default via ${ROUTER[4]}`,
      `ip -n ${gateway} -6 route add default via ${ROUTER[6]}`,
      ...families.map(
        (family) => `ip -n ${gateway} neigh add ${ROUTER[family]} lladdr ${WIRE_MAC} dev outside nud permanent`,
      ),
      ...['pod', 'uplink', 'outside'].map((device) => `ip netns exec ${wires} ethtool -K ${device} tx off rx off`),
    ];
    try {
      for (const command of commands) await exec('sh', ['-c', command], { timeout: 60_000 });
      return new PathRig(names, state);
    } catch (error) {
      await remove(names);
      throw error;
    }
  }

  async #turn<T>(side: Side, step: string, call: () => Promise<T>): Promise<T> {
    await new Promise<void>((go) => this.#waiting.push({ side, step, go }));
    return call();
  }

  #gatewayKernel(): GatewayKernel {
    const namespace = this.#names.gateway;
    const nft = new HostNft({ namespace });
    const ip = new HostIp({ namespace });
    const kernel: GatewayKernel = {
      nft: {
        run: (change) => this.#turn('gateway', 'nft', () => nft.run(change)),
        list: (family, table) => nft.list(family, table),
        counters: (table) => nft.counters(table),
        drop: (table) => nft.drop(table),
      },
      ip: { list: (scope) => ip.list(scope), apply: (lines) => this.#turn('gateway', 'ip', () => ip.apply(lines)) },
      tc: new HostTc({ namespace }),
      async sysctl(desired) {
        const settings = Object.entries(desired).map(([key, value]) => `${key}=${value}`);
        await exec('ip', ['netns', 'exec', namespace, 'sysctl', '-qw', ...settings]);
      },
      mtu: async () => 1500,
      reversePathFilter: async () => false,
      announce: () => undefined,
      endFlows: (match) => this.#turn('gateway', 'flows end', () => endFlows(match, { namespace, mark: decidedMark })),
    };
    // As it is when it is used.
    return { ...kernel, endFlows: (match) => this.wrap(kernel).endFlows(match) };
  }

  #nodeKernel(): NodeKernel {
    const host = new HostKernel(this.#names.node);
    return {
      nft: {
        run: (change) => this.#turn('node', 'nft', () => host.nft.run(change)),
        list: (family, table) => host.nft.list(family, table),
        counters: (table) => host.nft.counters(table),
        drop: (table) => host.nft.drop(table),
      },
      ip: {
        list: (scope) => host.ip.list(scope),
        apply: (lines) => this.#turn('node', 'ip', () => host.ip.apply(lines)),
      },
      facts: (tunnelTo, direct) => host.facts(tunnelTo, direct),
      sysctls: (wanted) => host.sysctls(wanted),
      holdRule: () => host.holdRule(),
      endFlows: (match) => this.#turn('node', 'flows end', () => host.endFlows(match)),
    };
  }

  /**
   * Applies both at the same time, one step of either after the other in an order that `choose` says (below so many), and
   * stops before each step.
   */
  async apply(
    plans: { gateway?: GatewayPlan; node?: NodePlan },
    stop: (where: string) => Promise<void>,
    choose: (below: number) => number,
  ): Promise<void> {
    let running = 0;
    let failure: unknown;
    const start = (work: Promise<unknown>): void => {
      running++;
      work
        .catch((error: unknown) => {
          failure = error;
        })
        .finally(() => {
          running--;
        });
    };
    if (plans.gateway !== undefined) start(this.gateway.apply(structuredClone(plans.gateway)));
    if (plans.node !== undefined) start(this.node.apply(structuredClone(plans.node)));
    while (running > 0) {
      if (this.#waiting.length < running) {
        await new Promise((resolve) => setImmediate(resolve));
        continue;
      }
      const [next] = this.#waiting.splice(choose(this.#waiting.length), 1);
      await stop(`before ${next?.side}: ${next?.step}`);
      next?.go();
    }
    if (failure !== undefined) throw failure;
    await stop('after it');
  }

  async drops(): Promise<Record<string, number>> {
    const values = await new HostNft({ namespace: this.#names.gateway }).counters('sluice');
    return Object.fromEntries(Object.entries(values).map(([name, { packets }]) => [name, packets]));
  }

  fromPod(packet: Uint8Array): void {
    const etherType = (packet[0] ?? 0) >>> 4 === 6 ? ETHERTYPE_IPV6 : ETHERTYPE_IPV4;
    this.#pod.send(buildFrame({ destination: this.#podMac, source: WIRE_MAC, etherType, payload: packet }));
  }

  /** UDP that came out, until nothing has come for a while, nor when that was over. */
  async collect(quietMs: number): Promise<Seen[]> {
    const seen: Seen[] = [];
    for (let quietSince = Date.now(), looking = quietSince; ; looking = Date.now()) {
      const before = seen.length;
      for (const [where, socket] of [['outside', this.#outside] as const, ['uplink', this.#uplink] as const]) {
        for (let bytes = socket.receive(); bytes !== undefined; bytes = socket.receive()) {
          const frame = parseFrame(bytes);
          const packet = frame.ok ? parsePacket(frame.value.payload) : undefined;
          if (!frame.ok || !packet?.ok || packet.value.protocol !== 17) continue;
          const marker = u32(frame.value.payload, packet.value.payloadOffset);
          seen.push({ where, marker, source: packet.value.source });
        }
      }
      if (seen.length > before) quietSince = Date.now();
      else if (looking - quietSince >= quietMs) return seen;
      await new Promise((resolve) => setImmediate(resolve));
    }
  }

  async close(): Promise<void> {
    for (const socket of [this.#pod, this.#outside, this.#uplink]) socket.close();
    await remove(this.#names);
  }
}

async function remove(names: Record<string, string>): Promise<void> {
  for (const name of Object.values(names)) await exec('ip', ['netns', 'del', name]).catch(() => undefined);
}
