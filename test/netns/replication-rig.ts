/**
 * A client and a server with two gateways between them, by either of which packets may go:
 *
 *   client (10.88.0.5, fd88::5) <-> a: translates to 203.0.113.7, 2001:db8:113::7 <-> server (198.51.100.80, 2001:db8:100::80)
 *                               <-> b: the same                                   <->
 *
 * Four network namespaces. Both gateways give each flow a port at random and let on no segment of a connection that they do
 * not know, so that a flow goes on through the other one only if its entry is there as it was.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { createInterface } from 'node:readline';
import { setTimeout as delay } from 'node:timers/promises';
import { type Family, families } from '../../api/plan.ts';
import { run } from '../../kernel/run.ts';

export const CLIENT = { 4: '10.88.0.5', 6: 'fd88::5' } as const;
export const SERVER = { 4: '198.51.100.80', 6: '2001:db8:100::80' } as const;
export const EGRESS = { 4: '203.0.113.7', 6: '2001:db8:113::7' } as const;
export const PORT = 7001;
/** As of a decided flow. */
export const MARK = 0x80000100;
export type Side = 'a' | 'b';
type Host = Side | 'client' | 'server';
const sides = ['a', 'b'] as const;

/** Of a gateway's links: 1 and 2. */
const inside = (side: Side, end: 'far' | 'own', family: Family): string => {
  const [net, host] = [side === 'a' ? 1 : 2, end === 'own' ? 2 : 1];
  return family === 4 ? `10.77.${net}.${host}` : `fd77:${net}::${host}`;
};
const outside = (side: Side, end: 'far' | 'own', family: Family): string =>
  inside(side, end, family).replace('77', '78');

const echo = `
const tcp = require('net').createServer((socket) => { socket.on('error', () => {}); socket.pipe(socket); });
tcp.listen(${PORT}, '::');
const udp = require('dgram').createSocket('udp6');
udp.on('message', (bytes, from) => udp.send(bytes + ' ' + from.port, from.port, from.address));
udp.bind(${PORT}, '::', () => console.log('listening'));`;

/** Lines in, answers out. */
const script = (kind: 'tcp' | 'udp', family: Family): string =>
  kind === 'tcp'
    ? `const socket = require('net').connect({ host: '${SERVER[family]}', port: ${PORT}, localAddress: '${CLIENT[family]}' });
socket.on('connect', () => console.log('connected'));
socket.on('error', (error) => console.log('error ' + error.code));
process.stdin.pipe(socket).pipe(process.stdout);`
    : `const socket = require('dgram').createSocket('udp${family}');
socket.bind(0, '${CLIENT[family]}', () => console.log('connected'));
socket.on('message', (bytes) => console.log(String(bytes)));
require('readline').createInterface({ input: process.stdin }).on('line', (line) => socket.send(line, ${PORT}, '${SERVER[family]}'));`;

export class Caller {
  readonly lines: string[] = [];
  readonly #child: ChildProcess;

  constructor(child: ChildProcess) {
    this.#child = child;
    if (child.stdout !== null) createInterface({ input: child.stdout }).on('line', (line) => this.lines.push(line));
  }

  /** Says a line, again and again if that is how it is, until an answer begins with it: the answer. */
  async ask(line: string, again: boolean): Promise<string> {
    for (let tries = 0; tries < 300; tries++) {
      if (tries === 0 || again) this.#child.stdin?.write(`${line}\n`);
      for (let waits = 0; waits < 10; waits++) {
        const answer = this.lines.find((each) => each.startsWith(line));
        if (answer !== undefined) return answer;
        await delay(10);
      }
    }
    const said = this.lines.map((each) => each.slice(0, 100));
    throw new Error(`no answer to ${line.slice(0, 100)}: ${said.join(', ')}`);
  }

  end(): void {
    this.#child.kill();
  }
}

export class ReplicationRig {
  readonly #tag = `${process.pid}`;
  readonly #children: ChildProcess[] = [];

  static async create(): Promise<ReplicationRig> {
    const rig = new ReplicationRig();
    try {
      await rig.#build();
    } catch (error) {
      await rig.close();
      throw error;
    }
    return rig;
  }

  namespace(host: Host): string {
    return `t-repl-${host}-${this.#tag}`;
  }

  in(host: Host, command: string, input?: string): Promise<string> {
    const whole = ['ip', 'netns', 'exec', this.namespace(host), ...command.split(' ')];
    return run(whole, { op: command, timeoutMs: 60_000, ...(input !== undefined && { input }) });
  }

  async call(kind: 'tcp' | 'udp', family: Family): Promise<Caller> {
    const caller = new Caller(this.#node('client', script(kind, family)));
    await caller.ask('connected', false);
    return caller;
  }

  /** From now on packets go that way, both ways. */
  async way(side: Side): Promise<void> {
    for (const family of families) {
      await this.in('client', `ip -${family} route replace default via ${inside(side, 'own', family)}`);
      await this.in(
        'server',
        `ip -${family} route replace ${EGRESS[family]} via ${outside(side, 'own', family)} src ${SERVER[family]}`,
      );
    }
  }

  async close(): Promise<void> {
    for (const child of this.#children) child.kill();
    for (const host of ['client', 'server', ...sides] as const) {
      await run(['ip', 'netns', 'del', this.namespace(host)], { op: 'netns' }).catch(() => undefined);
    }
  }

  #node(host: Host, script: string): ChildProcess {
    const child = spawn('ip', ['netns', 'exec', this.namespace(host), process.execPath, '-e', script], {
      stdio: ['pipe', 'pipe', 'inherit'],
    });
    this.#children.push(child);
    return child;
  }

  async #build(): Promise<void> {
    for (const host of ['client', 'server', ...sides] as const) {
      await run(['ip', 'netns', 'add', this.namespace(host)], { op: 'netns' });
      await this.in(
        host,
        'sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0 net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0',
      );
      await this.in(host, 'ip link set lo up');
    }
    for (const side of sides) {
      for (const [host, own, addresses] of [
        ['client', 'inside', inside],
        ['server', 'outside', outside],
      ] as const) {
        const ends = ['link', 'add', `to-${side}`, 'netns', this.namespace(host), 'type', 'veth'];
        await run(['ip', ...ends, 'peer', 'name', own, 'netns', this.namespace(side)], { op: 'veth' });
        for (const [where, device, end] of [
          [host, `to-${side}`, 'far'],
          [side, own, 'own'],
        ] as const) {
          await this.in(where, `ip link set ${device} up`);
          for (const f of families) {
            await this.in(where, `ip addr add ${addresses(side, end, f)}/${f === 4 ? 24 : 64} dev ${device}`);
          }
        }
      }
      for (const f of families) {
        await this.in(side, `ip -${f} route add ${CLIENT[f]} via ${inside(side, 'far', f)}`);
        await this.in(side, `ip -${f} route add ${SERVER[f]} via ${outside(side, 'far', f)}`);
      }
      await this.in(side, 'sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1');
      await this.in(
        side,
        'nft -f -',
        `table inet t {
          chain forward { type filter hook forward priority filter; policy accept; ct state invalid drop; }
          chain late { type filter hook postrouting priority 0; ct state new ct mark set ${MARK}; }
          chain nat { type nat hook postrouting priority srcnat;
            ip saddr ${CLIENT[4]} snat ip to ${EGRESS[4]} random; ip6 saddr ${CLIENT[6]} snat ip6 to ${EGRESS[6]} random; }
        }`,
      );
      await this.in(side, 'sysctl -qw net.netfilter.nf_conntrack_tcp_loose=0 net.netfilter.nf_conntrack_acct=1');
    }
    for (const f of families) {
      await this.in('client', `ip addr add ${CLIENT[f]}/${f === 4 ? 32 : 128} dev lo`);
      await this.in('server', `ip addr add ${SERVER[f]}/${f === 4 ? 32 : 128} dev lo`);
    }
    await this.way('a');
    const server = this.#node('server', echo);
    if (server.stdout !== null) await once(createInterface({ input: server.stdout }), 'line');
  }
}
