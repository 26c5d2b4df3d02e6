/**
 * What a node does to its machine, as one seam: nftables, iproute2, sysctls, the static xtables rule of the hold queue,
 * the ends of flows. HostKernel is the machine (or one of its network namespaces); tests put fakes of kernel/ here.
 */
import { HOLD_QUEUE, NODE_MARK_HELD, NODE_MARK_MASK } from '../api/names.ts';
import { type ConntrackView, endFlows } from '../kernel/conntrack.ts';
import { KernelError } from '../kernel/errors.ts';
import type { Ip } from '../kernel/iproute.ts';
import { HostIp } from '../kernel/iproute-host.ts';
import type { Nft } from '../kernel/nft.ts';
import { HostNft } from '../kernel/nft-host.ts';
import { inNamespace, run } from '../kernel/run.ts';
import { applySysctls, readSysctl } from '../kernel/sysctl.ts';
import type { SysctlMemory } from '../kernel/sysctl-memory.ts';
import type { NodeFacts, Underlay } from './compile.ts';

export interface NodeKernel {
  nft: Nft;
  ip: Ip;
  /** `tunnelTo`: where tunnel packets will go; absent: nowhere yet. `direct`: next hops without a tunnel. */
  facts(tunnelTo: string | undefined, direct: readonly string[]): Promise<Omit<NodeFacts, 'workloadInterfaces'>>;
  /** Writes what differs. */
  sysctls(wanted: Record<string, string>): Promise<void>;
  /** The rule that queues held packets is there afterwards, once. */
  holdRule(): Promise<void>;
  endFlows(match: (entry: ConntrackView) => boolean): Promise<number>;
}

const DEFAULT_MTU = 1500;
const hex = (value: number): string => `0x${value.toString(16)}`;

/** This kernel's nft has no `queue` statement, the xtables target is there. No bypass: an absent reader drops. */
export const holdRule = [
  'PREROUTING',
  ...['-m', 'mark', '--mark', `${hex(NODE_MARK_HELD)}/${hex(NODE_MARK_MASK)}`],
  ...['-j', 'NFQUEUE', '--queue-num', String(HOLD_QUEUE)],
];

export class HostKernel implements NodeKernel {
  readonly nft: HostNft;
  readonly ip: Ip;
  readonly #namespace: string | undefined;
  readonly #memory: SysctlMemory | undefined;

  /** `memory`: of what parameters were; of this process's own namespace only. */
  constructor(namespace?: string, memory?: SysctlMemory) {
    this.#memory = memory;
    const options = namespace === undefined ? {} : { namespace };
    this.#namespace = namespace;
    this.nft = new HostNft(options);
    this.ip = new HostIp(options);
  }

  async facts(tunnelTo: string | undefined, direct: readonly string[]): Promise<Omit<NodeFacts, 'workloadInterfaces'>> {
    const rpFilterAll = await this.#rpFilter('all');
    const underlayMtu = tunnelTo === undefined ? DEFAULT_MTU : await this.#mtuTowards(tunnelTo);
    const underlays: Record<string, Underlay> = {};
    const rpFilters = new Map<string, number>();
    for (const nextHop of direct) {
      const device = await this.#deviceTowards(nextHop);
      if (device === undefined) continue;
      const rpFilter = rpFilters.get(device) ?? (await this.#rpFilter(device));
      rpFilters.set(device, rpFilter);
      underlays[nextHop] = { device, rpFilter };
    }
    return { rpFilterAll, underlayMtu, underlays };
  }

  async sysctls(wanted: Record<string, string>): Promise<void> {
    // Files below /proc/sys/net are those of the reader's own namespace; for another one it takes a process there.
    if (this.#namespace === undefined) await (this.#memory?.apply(wanted) ?? applySysctls(wanted));
    else {
      for (const [key, value] of Object.entries(wanted)) {
        await this.#run('sysctl', ['sysctl', '-q', '-w', `${key}=${value}`]);
      }
    }
  }

  async holdRule(): Promise<void> {
    for (const command of ['iptables-nft', 'ip6tables-nft']) {
      const edit = (verb: '-C' | '-A'): Promise<string> =>
        this.#run('hold rule', [command, '-w', '-t', 'mangle', verb, ...holdRule]);
      try {
        await edit('-C');
      } catch (error) {
        if (error instanceof KernelError && (error.code === 'missing-command' || error.code === 'EPERM')) throw error;
        await edit('-A');
      }
    }
  }

  endFlows(match: (entry: ConntrackView) => boolean): Promise<number> {
    return endFlows(match, this.#namespace === undefined ? {} : { namespace: this.#namespace });
  }

  /** No route there: as if it were Ethernet; the next reconciliation asks again. */
  async #mtuTowards(address: string): Promise<number> {
    try {
      const device = (await this.#deviceTowards(address)) ?? '';
      const [link] = JSON.parse(await this.#run('link', ['ip', '-j', 'link', 'show', 'dev', device])) as {
        mtu?: number;
      }[];
      return link?.mtu ?? DEFAULT_MTU;
    } catch {
      return DEFAULT_MTU;
    }
  }

  /** Undefined where no route leads: packets for there wait in the black hole until a reconciliation finds one. */
  async #deviceTowards(address: string): Promise<string | undefined> {
    try {
      const [route] = JSON.parse(await this.#run('route get', ['ip', '-j', 'route', 'get', address])) as {
        dev?: string;
      }[];
      return route?.dev;
    } catch {
      return undefined;
    }
  }

  async #rpFilter(device: string): Promise<number> {
    return Number(await this.#sysctl(`net/ipv4/conf/${device}/rp_filter`)) || 0;
  }

  async #sysctl(key: string): Promise<string | undefined> {
    if (this.#namespace === undefined) return readSysctl(key);
    return (await this.#run('sysctl', ['sysctl', '-n', key])).trim();
  }

  #run(op: string, command: string[]): Promise<string> {
    return run(inNamespace(this.#namespace, command), { op, timeoutMs: 10_000 });
  }
}
