/**
 * One gateway with real stacks at both ends, so that TCP can show how fast it gets:
 *
 *   pods (the pods' addresses, and node a)  --inside, VXLAN or Direct--  gateway  --outside--  servers (router, WEB)
 *
 * Three network namespaces; the gateway is the product's own apply code. Plans are those of gateway-plans.ts.
 */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { TUNNEL_DEVICE, TUNNEL_MAC_GATEWAY, TUNNEL_MAC_NODE, TUNNEL_PEER } from '../../api/names.ts';
import { type Family, families, type GatewayPlan, type SteeringMode } from '../../api/plan.ts';
import { hostKernel } from '../../bench/topology.ts';
import { type Applied, GatewayApply, type GatewayKernel } from '../../gateway/apply.ts';
import { run } from '../../kernel/run.ts';
import { EGRESS, PODS, WEB } from './gateway-plans.ts';
import { GATEWAY_INSIDE, NODES, NODES6, PORT, ROUTER, VNI } from './gateway-rig.ts';

export type Host = 'pods' | 'gateway' | 'servers';
const hosts = ['pods', 'gateway', 'servers'] as const;
const NEXT_HOP = { 4: '10.0.0.64', 6: 'fd00:10::64' } as const;
const GATEWAY_OUTSIDE = { 4: '203.0.113.31', 6: '2001:db8:113::31' } as const;
const length = (address: string): string => `${address}/${address.includes(':') ? 128 : 32}`;

export interface Transfer {
  source: string;
  family: Family;
  port: number;
  /** Away from the pod, or towards it. */
  to: 'outside' | 'pod';
  seconds: number;
  /** Sends no faster; Mbit/s. */
  pace?: number;
}

/** Mbit/s of TCP goodput. */
export interface Goodput {
  mean: number;
  /** Of each second. */
  seconds: number[];
}

export class FlowRig {
  readonly #tag: string;
  readonly #state = mkdtempSync(join(tmpdir(), 'sluice-test-'));
  readonly kernel: GatewayKernel;
  #apply: GatewayApply;

  private constructor(tag: string) {
    this.#tag = `t-${tag}-${process.pid}`;
    this.kernel = hostKernel(this.namespace('gateway'));
    this.#apply = new GatewayApply('gw-a', this.kernel, this.#state);
  }

  static async create(tag: string, mode: SteeringMode): Promise<FlowRig> {
    const rig = new FlowRig(tag);
    try {
      await rig.#build(mode);
    } catch (error) {
      await rig.close();
      throw error;
    }
    return rig;
  }

  namespace(host: Host): string {
    return `${this.#tag.slice(0, -`-${process.pid}`.length)}-${host}-${process.pid}`;
  }

  apply(plan: GatewayPlan): Promise<Applied> {
    return this.#apply.apply(plan);
  }

  /** A gateway program that starts anew on the same kernel. */
  restart(): void {
    this.#apply = new GatewayApply('gw-a', this.kernel, this.#state);
  }

  in(host: Host, command: string): Promise<string> {
    const words = command.split(' ');
    return run(['ip', 'netns', 'exec', this.namespace(host), ...words], { op: command, timeoutMs: 90_000 });
  }

  /** `onStart`: it begins now. */
  async transfer({ source, family, port, to, seconds, pace }: Transfer, onStart?: () => void): Promise<Goodput> {
    // `-D` returns once it listens; `-1` ends it with its client.
    await this.in('servers', `iperf3 -s -1 -D -B ${WEB[family]} -p ${port}`);
    const options = [to === 'pod' ? ' -R' : '', pace === undefined ? '' : ` -b ${pace}M`].join('');
    const client = `iperf3 -J -C cubic -c ${WEB[family]} -B ${source} -p ${port} -t ${seconds} -i 1${options}`;
    onStart?.();
    const { intervals, end } = JSON.parse(await this.in('pods', client)) as Report;
    const seen = intervals.map(({ sum }) => sum.bits_per_second / 1e6);
    return { mean: end.sum_received.bits_per_second / 1e6, seconds: seen };
  }

  async close(): Promise<void> {
    for (const host of hosts) {
      await run(['ip', 'netns', 'del', this.namespace(host)], { op: 'netns' }).catch(() => undefined);
    }
    rmSync(this.#state, { recursive: true, force: true });
  }

  async #build(mode: SteeringMode): Promise<void> {
    for (const host of hosts) {
      await run(['ip', 'netns', 'add', this.namespace(host)], { op: 'netns' });
      await this.in(host, 'sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0');
      await this.#ip(host, ['link set lo up']);
    }
    await this.#link('pods', 'inside', 'gateway', 'inside');
    await this.#link('servers', 'outside', 'gateway', 'outside');
    const pods = Object.values(PODS).flatMap((pod) => [pod[4], pod[6]]);
    const addresses = (list: readonly string[], device: string): string[] =>
      list.map((address) => `addr add ${address} dev ${device}${address.includes(':') ? ' nodad' : ''}`);
    await this.#ip('pods', [
      ...addresses(pods.map(length), 'lo'),
      ...addresses([`${NODES.a}/24`, `${NODES6.a}/64`], 'inside'),
      ...(mode === 'VXLAN' ? tunnel() : families.map((f) => `-${f} route add default via ${NEXT_HOP[f]}`)),
    ]);
    await this.#ip('gateway', [
      ...addresses([`${GATEWAY_INSIDE}/24`, 'fd00:10::31/64'], 'inside'),
      ...addresses([`${GATEWAY_OUTSIDE[4]}/24`, `${GATEWAY_OUTSIDE[6]}/64`], 'outside'),
      ...families.map((f) => `-${f} route add default via ${ROUTER[f]}`),
    ]);
    await this.#ip('servers', [
      ...addresses([`${ROUTER[4]}/24`, `${ROUTER[6]}/64`], 'outside'),
      ...addresses([length(WEB[4]), length(WEB[6])], 'lo'),
      ...Object.values(EGRESS).flatMap((own) =>
        families.map((f) => `-${f} route add ${own[f]} via ${GATEWAY_OUTSIDE[f]}`),
      ),
    ]);
  }

  async #link(left: Host, at: string, right: Host, end: string): Promise<void> {
    const ends = ['link', 'add', at, 'netns', this.namespace(left), 'type', 'veth'];
    await run(['ip', ...ends, 'peer', 'name', end, 'netns', this.namespace(right)], { op: 'veth' });
    await this.#ip(left, [`link set ${at} up`]);
    await this.#ip(right, [`link set ${end} up`]);
  }

  async #ip(host: Host, lines: string[]): Promise<void> {
    for (const line of lines) {
      await run(['ip', '-n', this.namespace(host), ...line.split(' ')], { op: line, timeoutMs: 60_000 });
    }
  }
}

interface Report {
  intervals: { sum: { bits_per_second: number } }[];
  end: { sum_received: { bits_per_second: number } };
}

/** What a node has: one device, and routes into it. */
function tunnel(): string[] {
  return [
    `link add ${TUNNEL_DEVICE} type vxlan external dstport ${PORT}`,
    `link set ${TUNNEL_DEVICE} address ${TUNNEL_MAC_NODE} mtu 1450 up`,
    ...families.flatMap((f) => [
      `neigh add ${TUNNEL_PEER[f]} lladdr ${TUNNEL_MAC_GATEWAY} dev ${TUNNEL_DEVICE} nud permanent`,
      `-${f} route add default encap ip id ${VNI} dst ${NEXT_HOP[4]} via ${TUNNEL_PEER[f]} dev ${TUNNEL_DEVICE} onlink`,
    ]),
  ];
}
