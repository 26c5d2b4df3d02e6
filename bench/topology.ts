/**
 * One row of four network namespaces, without addresses shared with the machine:
 *
 *   client (pods' addresses)  --pod--  node  --inside, VXLAN--  gateway  --outside--  server
 *
 * The node has no netfilter at all: two routes steer into the tunnel, so that what is compared is the gateway. It is one
 * gateway for all subjects: the nft table of one is in force, those of the others are there and dormant. Links, addresses,
 * routes and sysctls are those that Sluice compiles; the two rules that ask for marks of its table go with that.
 */
import { existsSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import {
  NFT_TABLE_GATEWAY,
  TABLE_GATEWAY_OWN,
  TABLE_GATEWAY_PROHIBIT,
  TABLE_GATEWAY_RESET,
  TABLE_GATEWAY_UNCHECKED,
  TUNNEL_DEVICE,
  TUNNEL_MAC_NODE,
  TUNNEL_OVERHEAD,
  TUNNEL_PEER,
} from '../api/names.ts';
import { families, type GatewayPlan } from '../api/plan.ts';
import { GatewayApply, type GatewayKernel } from '../gateway/apply.ts';
import { compileNet } from '../gateway/compile-net.ts';
import { endFlows } from '../kernel/conntrack.ts';
import { diffNet, emptyNetState, type NetState } from '../kernel/iproute.ts';
import { HostIp } from '../kernel/iproute-host.ts';
import { HostNft } from '../kernel/nft-host.ts';
import { run } from '../kernel/run.ts';
import { HostTc } from '../kernel/tc-host.ts';
import {
  EGRESS,
  GATEWAY_INSIDE,
  GATEWAY_OUTSIDE,
  NEXT_HOP,
  NODE,
  PORT,
  ROUTER,
  SERVER,
  UDP_PORT,
  VNI,
} from './plan.ts';

/** `floor`: the gateway drops every tunnel packet at once; what is left is the cost of client, node and generator. */
export const subjects = ['sluice', 'baseline', 'floor'] as const;
export type Subject = (typeof subjects)[number];
const tableOf = { sluice: NFT_TABLE_GATEWAY, baseline: 'baseline', floor: 'sink' } as const satisfies Record<
  Subject,
  string
>;
const MTU = 1500;

export class Topology {
  /** Whose table is in force in the gateway. */
  subject: Subject = 'sluice';
  readonly #tag = `t-bench-${process.pid}`;
  /** The rules that each subject needs. */
  #net: Record<Subject, NetState> = { sluice: emptyNetState(), baseline: emptyNetState(), floor: emptyNetState() };

  private constructor() {}

  /**
   * `pods`: addresses that the client sends from; they are the first node's. Without a plan the gateway has its own
   * addresses and nothing else.
   */
  static async create(plan: GatewayPlan | undefined, pods: string[], state: string): Promise<Topology> {
    const topology = new Topology();
    try {
      await topology.#build(pods);
      if (plan !== undefined) await topology.#gateway(plan, state);
    } catch (error) {
      await topology.close();
      throw error;
    }
    return topology;
  }

  /** Puts another subject's table in force, and forgets all flows: they are translated as the last said. */
  async become(subject: Subject): Promise<void> {
    const before = this.subject;
    if (subject === before) return;
    this.subject = subject;
    const namespace = this.namespace('gateway');
    await new HostNft({ namespace }).runScript(
      `add table inet ${tableOf[before]} { flags dormant; }\nadd table inet ${tableOf[subject]} { }\n`,
    );
    await new HostIp({ namespace }).apply(diffNet(this.#net[before], this.#net[subject]));
    await this.forgetFlows();
  }

  namespace(host: 'client' | 'node' | 'gateway' | 'server'): string {
    return `${this.#tag}-${host}`;
  }

  /** Packets that came to the server with a translated source; for the floor: that came to the gateway. */
  async received(): Promise<number> {
    const host = this.subject === 'floor' ? 'gateway' : 'server';
    const { received } = await new HostNft({ namespace: this.namespace(host) }).counters('sink');
    return received?.packets ?? 0;
  }

  /** Forget all flows, so that rounds start alike. */
  async forgetFlows(): Promise<void> {
    await endFlows(() => true, { namespace: this.namespace('gateway') });
  }

  /** Segments of up to 64 KB, or one packet each from the client on. */
  async segmentation(on: boolean): Promise<void> {
    const offload = on ? 'on' : 'off';
    await this.#in('client', ['ethtool', '-K', 'pod', 'tso', offload, 'gso', offload]);
  }

  async close(): Promise<void> {
    for (const host of ['client', 'node', 'gateway', 'server'] as const) {
      await run(['ip', 'netns', 'del', this.namespace(host)], { op: 'netns' }).catch(() => undefined);
    }
  }

  async #build(pods: string[]): Promise<void> {
    for (const host of ['client', 'node', 'gateway', 'server'] as const) {
      await run(['ip', 'netns', 'add', this.namespace(host)], { op: 'netns' });
      const quiet = ['net.ipv6.conf.all.accept_dad=0', 'net.ipv6.conf.default.accept_dad=0'];
      // A namespace inherits the machine's congestion control, but not always its buffers: the same for all.
      // After 64,000 connections from one egress IP ports come round again: none may still wait for the other pod's.
      const waiting = 'net.ipv4.tcp_max_tw_buckets=0';
      await this.#in(host, [
        'sysctl',
        '-qw',
        waiting,
        ...quiet,
        'net.ipv4.ip_forward=1',
        'net.ipv6.conf.all.forwarding=1',
      ]);
      await this.#ip(host, ['link set lo up']);
    }
    await this.#link('client', 'pod', 'node', 'pod');
    await this.#link('node', 'inside', 'gateway', 'inside');
    await this.#link('gateway', 'outside', 'server', 'wire');
    const six = (address: string): boolean => address.includes(':');
    const length = (address: string): string => `${address}/${six(address) ? 128 : 32}`;

    const tunnelMtu = MTU - TUNNEL_OVERHEAD[4];
    await this.#ip('client', [
      ...pods.map((pod) => `addr add ${length(pod)} dev pod ${six(pod) ? 'nodad' : ''}`),
      'route add 169.254.1.1 dev pod',
      `route add default via 169.254.1.1 dev pod mtu ${tunnelMtu}`,
      `-6 route add default via fe80::1 dev pod mtu ${tunnelMtu}`,
    ]);
    await this.#ip('node', [
      'addr add 169.254.1.1/32 dev pod',
      'addr add fe80::1/64 dev pod nodad',
      ...pods.map((pod) => `route add ${length(pod)} dev pod`),
      `addr add ${NODE}/24 dev inside`,
      `link add ${TUNNEL_DEVICE} type vxlan external dstport ${PORT}`,
      `link set ${TUNNEL_DEVICE} address ${TUNNEL_MAC_NODE} mtu ${tunnelMtu} up`,
      ...families.flatMap((family) => [
        `neigh add ${TUNNEL_PEER[family]} lladdr 02:73:6c:75:00:01 dev ${TUNNEL_DEVICE} nud permanent`,
        `-${family} route add default encap ip id ${VNI} dst ${NEXT_HOP} via ${TUNNEL_PEER[family]} dev ${TUNNEL_DEVICE} onlink`,
      ]),
    ]);
    await this.#in('node', ['sysctl', '-qw', `net.ipv4.conf.${TUNNEL_DEVICE}.rp_filter=0`]);
    await this.#ip('gateway', [
      `addr add ${GATEWAY_INSIDE}/24 dev inside`,
      `addr add ${GATEWAY_OUTSIDE[4]}/24 dev outside`,
      `addr add ${GATEWAY_OUTSIDE[6]}/64 dev outside nodad`,
    ]);
    await this.#ip('server', [
      `addr add ${ROUTER[4]}/24 dev wire`,
      `addr add ${ROUTER[6]}/64 dev wire nodad`,
      ...families.map((family) => `addr add ${length(SERVER[family])} dev lo ${family === 6 ? 'nodad' : ''}`),
      ...families.map((family) => `-${family} route add ${EGRESS[family]} via ${GATEWAY_OUTSIDE[family]}`),
    ]);
    const own = [`ip saddr ${EGRESS[4]}`, `ip6 saddr ${EGRESS[6]}`];
    await this.#sink(
      'server',
      own.map((source) => `${source} udp dport ${UDP_PORT} counter name received drop`),
    );
  }

  async #gateway(plan: GatewayPlan, state: string): Promise<void> {
    const namespace = this.namespace('gateway');
    await new GatewayApply('gw-a', hostKernel(namespace), state).apply(plan);
    const { rules } = compileNet(plan, 'gw-a', MTU);
    const sluice = { ...emptyNetState(), rules };
    this.#net = { sluice, baseline: unmarked(sluice), floor: unmarked(sluice) };
    const nft = new HostNft({ namespace });
    await nft.runScript(await readFile(besideSources('bench/baseline.nft'), 'utf8'));
    await this.#sink('gateway', [`iifname "inside" udp dport ${PORT} counter name received drop`]);
    for (const other of [tableOf.baseline, tableOf.floor]) {
      await nft.runScript(`add table inet ${other} { flags dormant; }`);
    }
  }

  #sink(host: 'gateway' | 'server', rules: string[]): Promise<void> {
    return new HostNft({ namespace: this.namespace(host) }).runScript(`table inet sink {
      counter received { }
      chain prerouting { type filter hook prerouting priority -400; policy accept; ${rules.join('; ')}; }
    }`);
  }

  async #link(left: 'client' | 'node' | 'gateway', at: string, right: 'node' | 'gateway' | 'server', end: string) {
    const ends = ['link', 'add', at, 'netns', this.namespace(left), 'type', 'veth'];
    await run(['ip', ...ends, 'peer', 'name', end, 'netns', this.namespace(right)], { op: 'veth' });
    await this.#ip(left, [`link set ${at} mtu ${MTU} up`]);
    await this.#ip(right, [`link set ${end} mtu ${MTU} up`]);
  }

  async #ip(host: 'client' | 'node' | 'gateway' | 'server', lines: string[]): Promise<void> {
    for (const line of lines) {
      await run(['ip', '-n', this.namespace(host), ...line.trim().split(/\s+/)], { op: line, timeoutMs: 10_000 });
    }
  }

  async #in(host: 'client' | 'node' | 'gateway' | 'server', command: string[]): Promise<void> {
    await run(['ip', 'netns', 'exec', this.namespace(host), ...command], { op: command[0] ?? '', timeoutMs: 10_000 });
  }
}

/** To these tables no rule leads where nothing is marked, and where the machine itself may speak as an egress IP (nginx). */
const ourOwn = [TABLE_GATEWAY_UNCHECKED, TABLE_GATEWAY_RESET, TABLE_GATEWAY_PROHIBIT, TABLE_GATEWAY_OWN];

/** Sluice's routes let only packets pass that its table has marked as checked; without the table there is no mark. */
export function unmarked(net: NetState): NetState {
  const rules = net.rules
    .filter(({ table }) => table !== undefined && !ourOwn.includes(table))
    .map(({ mark: _mark, ...rule }) => rule);
  return { ...net, rules };
}

/** A file of the source tree, wherever below it the compiled program lies. */
export function besideSources(path: string): string {
  let directory = import.meta.dirname;
  while (!existsSync(join(directory, path))) {
    if (directory === '/') throw new Error(`${path} is not in any directory above ${import.meta.dirname}`);
    directory = dirname(directory);
  }
  return join(directory, path);
}

/** The real kernel, in a network namespace. */
export function hostKernel(namespace: string): GatewayKernel {
  return {
    nft: new HostNft({ namespace }),
    ip: new HostIp({ namespace }),
    tc: new HostTc({ namespace }),
    sysctl: (desired) => writeSysctls(namespace, desired),
    mtu: async () => MTU,
    // A new namespace's rp_filter is off.
    reversePathFilter: async () => false,
    announce: () => undefined,
    endFlows: (match) => endFlows(match, { namespace }),
  };
}

export async function writeSysctls(namespace: string, desired: Record<string, string>): Promise<void> {
  const settings = Object.entries(desired).map(([key, value]) => `${key}=${value}`);
  await run(['ip', 'netns', 'exec', namespace, 'sysctl', '-qw', ...settings], { op: 'sysctl', timeoutMs: 10_000 });
}
