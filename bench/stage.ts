/**
 * The topology of the harness: one client, one node, one server, and a gateway for each subject, all of which stand at once:
 *
 *   client (pods' addresses)  --pod--  node  --in-K, VXLAN or routed--  gateway K  --out-K--  server
 *
 * A turn is two routes: where the node sends what pods say, and where the server sends its answers. So no subject's
 * table, program or cache is taken away when another has its turn, and a gateway without connection tracking is one
 * (in a namespace in which any rule asks for it, it runs for all). The node and the server have no netfilter but a sink.
 */
import { TUNNEL_DEVICE, TUNNEL_MAC_NODE, TUNNEL_OVERHEAD, TUNNEL_PEER } from '../api/names.ts';
import { type Family, families, type SteeringMode } from '../api/plan.ts';
import { endFlows } from '../kernel/conntrack.ts';
import { HostNft } from '../kernel/nft-host.ts';
import { run } from '../kernel/run.ts';
import type { Place } from './load.ts';
import {
  EGRESS,
  GATEWAY_INSIDE,
  GATEWAY_OUTSIDE,
  NEXT_HOP,
  NODE,
  PODS,
  PORT,
  ROUTER,
  SERVER,
  UDP_PORT,
  VNI,
} from './plan.ts';
import type { Source } from './subjects.ts';

export const MTU = 1500;
type Fixed = 'client' | 'node' | 'server';

interface Gateway {
  /** Number of its links. */
  at: number;
  namespace: string;
  /** Node and server are joined by a link, and there is no gateway. */
  direct: boolean;
}

export class Stage implements Place {
  readonly steering: SteeringMode;
  readonly #tag: string;
  readonly #gateways = new Map<string, Gateway>();
  #subject = '';

  private constructor(steering: SteeringMode, tag: string) {
    this.steering = steering;
    this.#tag = tag;
  }

  /** `pods`: addresses that the client sends from; `tag`: apart from all other stages of this process. */
  static async create(steering: SteeringMode, pods: string[], tag: string): Promise<Stage> {
    const stage = new Stage(steering, tag);
    try {
      await stage.#build(pods);
    } catch (error) {
      await stage.close();
      throw error;
    }
    return stage;
  }

  get subject(): string {
    return this.#subject;
  }

  namespace(host: Fixed): string {
    return this.#named(host);
  }

  gatewayOf(subject: string): string {
    return this.#gateway(subject).namespace;
  }

  /** A gateway with its links and addresses, and nothing else; `direct`: a link from node to server instead. */
  async addGateway(subject: string, direct: boolean): Promise<string> {
    const at = this.#gateways.size;
    const gateway: Gateway = { at, namespace: this.#named(`gw${at}`), direct };
    this.#gateways.set(subject, gateway);
    const [inside, outside] = [`in-${at}`, `out-${at}`];
    if (direct) await this.#link(this.namespace('node'), inside, this.namespace('server'), outside);
    else {
      await this.#host(gateway.namespace);
      await this.#link(this.namespace('node'), inside, gateway.namespace, 'inside');
      await this.#link(gateway.namespace, 'outside', this.namespace('server'), outside);
      await ip(gateway.namespace, [
        `addr add ${GATEWAY_INSIDE}/24 dev inside`,
        `addr add ${GATEWAY_OUTSIDE[4]}/24 dev outside`,
        `addr add ${GATEWAY_OUTSIDE[6]}/64 dev outside nodad`,
      ]);
    }
    // Whoever asks for a neighbour of IPv6 asks for an address of that very device.
    const six = direct ? [`addr add ${NODE_OF[6]}/128 dev ${inside} nodad`] : [];
    await ip(this.namespace('node'), [`addr add ${NODE}/32 dev ${inside}`, ...six]);
    await ip(this.namespace('server'), [
      `addr add ${ROUTER[4]}/32 dev ${outside}`,
      `addr add ${ROUTER[6]}/128 dev ${outside} nodad`,
    ]);
    return gateway.namespace;
  }

  /** From now on packets go by this subject's gateway; it has forgotten all flows that it had: how many. */
  async become(subject: string): Promise<number> {
    const { at, direct } = this.#gateway(subject);
    const [inside, outside] = [`in-${at}`, `out-${at}`];
    if (subject !== this.#subject) {
      await ip(this.namespace('node'), [
        `route replace ${GATEWAY_INSIDE}/32 dev ${inside} src ${NODE}`,
        `route replace ${NEXT_HOP}/32 dev ${inside} src ${NODE}`,
        ...families.map((family) => this.#wayOut(family, inside, direct)),
      ]);
      const back = (family: Family): string => (direct ? NODE_OF[family] : GATEWAY_OUTSIDE[family]);
      await ip(this.namespace('server'), [
        `route replace ${GATEWAY_OUTSIDE[4]}/32 dev ${outside} src ${ROUTER[4]}`,
        `-6 route replace ${GATEWAY_OUTSIDE[6]}/128 dev ${outside}`,
        ...families.flatMap((family) =>
          [EGRESS[family], PODS[family]].map(
            (prefix) => `-${family} route replace ${prefix} via ${back(family)} dev ${outside} onlink`,
          ),
        ),
      ]);
      this.#subject = subject;
    }
    const { namespace } = this.#gateway(subject);
    return direct ? 0 : endFlows(() => true, { namespace });
  }

  async received(): Promise<number> {
    const { received } = await new HostNft({ namespace: this.namespace('server') }).counters('sink');
    return received?.packets ?? 0;
  }

  async segmentation(on: boolean): Promise<void> {
    const offload = on ? 'on' : 'off';
    await inside(this.namespace('client'), ['ethtool', '-K', 'pod', 'tso', offload, 'gso', offload]);
  }

  /** Whose addresses the server saw while something was sent; the rules that ask are there only meanwhile. */
  async sourcesDuring(family: Family, send: () => Promise<unknown>): Promise<Source[]> {
    const nft = new HostNft({ namespace: this.namespace('server') });
    const address = family === 4 ? 'ip' : 'ip6';
    const own: Record<Source, string> = {
      'egress IP': EGRESS[family],
      gateway: GATEWAY_OUTSIDE[family],
      pod: PODS[family],
    };
    const names = Object.keys(own) as Source[];
    await nft.runScript(`table inet check {
      ${names.map((_, at) => `counter c${at} { }`).join('\n')}
      chain prerouting { type filter hook prerouting priority -500; policy accept;
        ${names.map((name, at) => `${address} saddr ${own[name]} counter name c${at}`).join('\n')}
      }
    }`);
    try {
      await send();
      const counters = await nft.counters('check');
      return names.filter((_, at) => (counters[`c${at}`]?.packets ?? 0) > 0);
    } finally {
      await nft.drop('check');
    }
  }

  async close(): Promise<void> {
    const fixed = (['client', 'node', 'server'] as const).map((host) => this.namespace(host));
    const gateways = [...this.#gateways.values()].filter(({ direct }) => !direct);
    for (const name of [...gateways.map(({ namespace }) => namespace), ...fixed]) {
      await run(['ip', 'netns', 'del', name], { op: 'netns' }).catch(() => undefined);
    }
  }

  #named(host: string): string {
    return `t-bench-${this.#tag}-${host}-${process.pid}`;
  }

  #gateway(subject: string): Gateway {
    const gateway = this.#gateways.get(subject);
    if (gateway === undefined) throw new TypeError(`no gateway of ${subject}`);
    return gateway;
  }

  #wayOut(family: Family, device: string, direct: boolean): string {
    const route = `-${family} route replace default`;
    if (direct) return `${route} via ${ROUTER[family]} dev ${device} onlink`;
    if (this.steering === 'VXLAN')
      return `${route} encap ip id ${VNI} dst ${NEXT_HOP} via ${TUNNEL_PEER[family]} dev ${TUNNEL_DEVICE} onlink`;
    // Routed steering is measured over IPv4.
    return family === 4 ? `${route} via ${NEXT_HOP} dev ${device} onlink` : `${route} dev ${device}`;
  }

  async #build(pods: string[]): Promise<void> {
    for (const host of ['client', 'node', 'server'] as const) await this.#host(this.namespace(host));
    const [client, node, server] = [this.namespace('client'), this.namespace('node'), this.namespace('server')];
    await this.#link(client, 'pod', node, 'pod');
    const six = (address: string): boolean => address.includes(':');
    const length = (address: string): string => `${address}/${six(address) ? 128 : 32}`;
    const mtu = this.steering === 'VXLAN' ? MTU - TUNNEL_OVERHEAD[4] : MTU;
    await ip(client, [
      ...pods.map((pod) => `addr add ${length(pod)} dev pod ${six(pod) ? 'nodad' : ''}`),
      'route add 169.254.1.1 dev pod',
      `route add default via 169.254.1.1 dev pod mtu ${mtu}`,
      `-6 route add default via fe80::1 dev pod mtu ${mtu}`,
    ]);
    await ip(node, [
      'addr add 169.254.1.1/32 dev pod',
      'addr add fe80::1/64 dev pod nodad',
      ...pods.map((pod) => `route add ${length(pod)} dev pod`),
      `link add ${TUNNEL_DEVICE} type vxlan external dstport ${PORT}`,
      `link set ${TUNNEL_DEVICE} address ${TUNNEL_MAC_NODE} mtu ${MTU - TUNNEL_OVERHEAD[4]} up`,
      ...families.map(
        (family) => `neigh add ${TUNNEL_PEER[family]} lladdr 02:73:6c:75:00:01 dev ${TUNNEL_DEVICE} nud permanent`,
      ),
    ]);
    await inside(node, ['sysctl', '-qw', `net.ipv4.conf.${TUNNEL_DEVICE}.rp_filter=0`]);
    await ip(
      server,
      families.map((family) => `addr add ${length(SERVER[family])} dev lo ${family === 6 ? 'nodad' : ''}`),
    );
    await new HostNft({ namespace: server }).runScript(`table inet sink {
      counter received { }
      chain prerouting { type filter hook prerouting priority -400; policy accept; udp dport ${UDP_PORT} counter name received drop; }
    }`);
  }

  /** A namespace that forwards, whose settings do not depend on the machine's. */
  async #host(namespace: string): Promise<void> {
    await run(['ip', 'netns', 'add', namespace], { op: 'netns' });
    const settings = [
      'net.ipv4.tcp_max_tw_buckets=0', // 64,000 connections later ports come round again: none may still wait
      'net.ipv6.conf.all.accept_dad=0',
      'net.ipv6.conf.default.accept_dad=0',
      'net.ipv4.ip_forward=1',
      'net.ipv6.conf.all.forwarding=1',
      'net.ipv4.conf.all.rp_filter=0',
      'net.ipv4.conf.default.rp_filter=0',
    ];
    await inside(namespace, ['sysctl', '-qw', ...settings]);
    await ip(namespace, ['link set lo up']);
  }

  async #link(left: string, at: string, right: string, end: string): Promise<void> {
    await run(['ip', 'link', 'add', at, 'netns', left, 'type', 'veth', 'peer', 'name', end, 'netns', right], {
      op: 'veth',
    });
    await ip(left, [`link set ${at} mtu ${MTU} up`]);
    await ip(right, [`link set ${end} mtu ${MTU} up`]);
  }
}

/** The node, as the server would reach it where no gateway is between. */
const NODE_OF = { 4: NODE, 6: '2001:db8:21::1' } as const;

/** A batch has one family for all its lines. */
async function ip(namespace: string, lines: string[]): Promise<void> {
  const batch = async (family: string[], list: string[]): Promise<void> => {
    if (list.length === 0) return;
    const input = `${list.join('\n')}\n`;
    await run(['ip', '-n', namespace, ...family, '-batch', '-'], { op: list[0] ?? '', input, timeoutMs: 20_000 });
  };
  const marked = (mark: string): string[] =>
    lines.filter((line) => line.startsWith(mark)).map((line) => line.slice(mark.length));
  await batch(
    [],
    lines.filter((line) => !/^-[46] /.test(line)),
  );
  await batch(['-4'], marked('-4 '));
  await batch(['-6'], marked('-6 '));
}

async function inside(namespace: string, command: string[]): Promise<void> {
  await run(['ip', 'netns', 'exec', namespace, ...command], { op: command[0] ?? '', timeoutMs: 10_000 });
}
