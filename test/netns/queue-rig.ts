/**
 * A forwarding machine between two hosts with real stacks, whose undecided packets meet the queues:
 *
 *   client 10.8.1.10–17, fd08:1::10–17  --  gateway .1, ::1  --  server 10.8.2.2, fd08:2::2
 *
 * The gateway's table: a packet of a flow without a decided ct mark gets ASK, by which the xtables rule queues it; what
 * comes out with a decided mark leaves it in the ct mark; packets that still carry ASK are counted as `unasked`.
 */
import { type ChildProcess, execFileSync, fork } from 'node:child_process';
import { type Family, families } from '../../api/plan.ts';
import { probeQueueRule, putQueueRule, type QueueCapability, type QueueRule } from '../../kernel/queue-rule.ts';
import { DECIDED } from './queue-decider.ts';
import type { PeerOrder, PeerReport } from './queue-peer.ts';

export const ASK = 0x10;
const ASK_MASK = 0xff;
export const FIRST_QUEUE = 7700;
export const PORT = 9000;
export const SERVER = { 4: '10.8.2.2', 6: 'fd08:2::2' } as const;
export const clients: Record<Family, string[]> = { 4: [], 6: [] };
for (let host = 10; host < 18; host++) {
  clients[4].push(`10.8.1.${host}`);
  clients[6].push(`fd08:1::${host}`);
}
const DECIDED_MASK = 0xff00;
if ((DECIDED & DECIDED_MASK) !== DECIDED) throw new Error('the decider marks other bits than the table keeps');

export function sh(command: string, input = ''): string {
  const [program = '', ...args] = command.split(' ');
  return execFileSync('timeout', ['20', program, ...args], { encoding: 'utf8', input });
}

/** Omit over each member of a union. */
type Without<T, K extends PropertyKey> = T extends unknown ? Omit<T, K> : never;

export class QueueRig {
  readonly #names: { client: string; gateway: string; server: string };
  readonly capability: QueueCapability;
  readonly #children: ChildProcess[] = [];
  readonly #answers = new Map<number, (report: { answer?: string; error?: string }) => void>();
  #orders = 0;
  #client: ChildProcess | undefined;
  #closed = false;
  /** What the server received, in order. */
  readonly seen: { text: string; from: string; fromPort: number }[] = [];

  private constructor(tag: string, capability: QueueCapability) {
    const name = (host: string) => `t-queue-${tag}-${host}-${process.pid}`;
    this.#names = { client: name('c'), gateway: name('g'), server: name('s') };
    this.capability = capability;
  }

  static async create(tag: string, ports: number[]): Promise<QueueRig> {
    const rig = new QueueRig(tag, await probeQueueRule());
    try {
      rig.#build();
      rig.#client = rig.#host(rig.#names.client);
      const server = rig.#host(rig.#names.server);
      await rig.#order(server, { do: 'listen', addresses: Object.values(SERVER), ports });
    } catch (error) {
      rig.close();
      throw error;
    }
    return rig;
  }

  get gateway(): string {
    return this.#names.gateway;
  }

  inside(command: string, input?: string): string {
    return sh(`ip netns exec ${this.gateway} ${command}`, input);
  }

  rule(count: number, bypass = false): QueueRule {
    return { mark: ASK, mask: ASK_MASK, first: FIRST_QUEUE, count, bypass };
  }

  async put(count: number, bypass = false): Promise<number> {
    return putQueueRule(this.capability, this.rule(count, bypass), this.gateway);
  }

  udp(from: string, fromPort: number, texts: string[], port = PORT): Promise<string> {
    const to = SERVER[from.includes(':') ? 6 : 4];
    return this.#order(this.#client, { do: 'udp', from, fromPort, to, port, texts });
  }

  tcp(from: string, text: string, port = PORT): Promise<string> {
    return this.#order(this.#client, { do: 'tcp', from, to: SERVER[from.includes(':') ? 6 : 4], port, text });
  }

  /** Texts that the server got of one flow. */
  texts(from: string, fromPort: number): string[] {
    return this.seen.filter((one) => one.from === from && one.fromPort === fromPort).map(({ text }) => text);
  }

  /** Packets by counter: `asked`, `decided` and `unasked`, and the last by the family. */
  count(name: 'asked' | 'passed' | 'unasked'): number {
    return Number(/packets (\d+)/.exec(this.inside(`nft list counter inet t ${name}`))?.[1]);
  }

  close(): void {
    for (const child of this.#children.splice(0)) child.kill('SIGKILL');
    if (this.#closed) return;
    this.#closed = true;
    for (const name of Object.values(this.#names)) {
      try {
        sh(`ip netns del ${name}`);
      } catch {
        // It was never made.
      }
    }
  }

  #build(): void {
    const { client, gateway, server } = this.#names;
    for (const name of Object.values(this.#names)) sh(`ip netns add ${name}`);
    sh(
      'ip -batch -',
      `link add e0 netns ${client} type veth peer name inside netns ${gateway}
       link add e0 netns ${server} type veth peer name outside netns ${gateway}\n`,
    );
    const at = (name: string, lines: string[]) => sh(`ip -n ${name} -batch -`, `${lines.join('\n')}\n`);
    const bring = (device: string) => [`link set lo up`, `link set ${device} up`];
    const addresses = families.flatMap((family) =>
      clients[family].map((address) => `addr add ${address}/${family === 4 ? '24 dev e0' : '64 dev e0 nodad'}`),
    );
    at(client, [...addresses, ...bring('e0')]);
    at(server, [`addr add ${SERVER[4]}/24 dev e0`, `addr add ${SERVER[6]}/64 dev e0 nodad`, ...bring('e0')]);
    for (const [net, device] of [
      [1, 'inside'],
      [2, 'outside'],
    ] as const) {
      at(gateway, [
        `addr add 10.8.${net}.1/24 dev ${device}`,
        `addr add fd08:${net}::1/64 dev ${device} nodad`,
        ...bring(device),
      ]);
      const host = net === 1 ? client : server;
      at(host, [`route add default via 10.8.${net}.1`]);
      at(host, [`route add default via fd08:${net}::1`]);
    }
    this.inside('sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1');
    this.inside(
      'nft -f -',
      `table inet t {
        counter asked { }
        counter passed { }
        counter unasked { }
        chain ask { type filter hook forward priority mangle - 10;
          meta l4proto { tcp, udp } ct mark & ${DECIDED_MASK} == 0 meta mark set ${ASK} counter name asked
        }
        chain keep { type filter hook forward priority filter;
          meta mark & ${DECIDED_MASK} != 0 ct mark set meta mark
          meta mark == ${ASK} counter name unasked
          meta l4proto { tcp, udp } counter name passed
        }
      }`,
    );
  }

  #host(namespace: string): ChildProcess {
    const child = fork(new URL('./queue-peer.js', import.meta.url), [namespace], { execArgv: [] });
    this.#children.push(child);
    child.on('message', (report: PeerReport) => {
      if ('seen' in report) this.seen.push({ text: report.seen, from: report.from, fromPort: report.fromPort });
      else {
        this.#answers.get(report.id)?.(report);
        this.#answers.delete(report.id);
      }
    });
    return child;
  }

  #order(to: ChildProcess | undefined, order: Without<PeerOrder, 'id'>): Promise<string> {
    const id = ++this.#orders;
    return new Promise((resolve, reject) => {
      this.#answers.set(id, ({ answer, error }) =>
        error === undefined ? resolve(answer ?? '') : reject(new Error(error)),
      );
      to?.send({ ...order, id });
    });
  }
}
