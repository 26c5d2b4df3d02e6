/**
 * Where the pods of churn.ts live: one network namespace with an interface of its own for each pod, a port of the node's bridge,
 * made and deleted as the bridge plugin does it; so the address is behind another interface each time that it is used again.
 * Two `ip -batch` are fed by pipes: to start one for each pod would cost more than the pod.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { createInterface } from 'node:readline';
import { setTimeout as sleep } from 'node:timers/promises';
import { inNamespace, must } from '../../lab/netns.ts';

const FIRST_TABLE = 1000;
/** The kernel deletes several at once in the time of one. */
const DELETED_GROUP = 7;
const DELETE_MS = 50;
/** Between two looks at an interface. */
const UP_MS = 2;
const gateway = { 4: '10.244.1.1', 6: 'fd00:244:1::1' } as const;

/** `ip -batch` in a namespace, command by command. */
class Batch {
  readonly process: ChildProcess;
  readonly #waiting: ((link: string) => void)[] = [];

  constructor(namespace: string) {
    // It goes on after what failed: to delete what is not there.
    const argv = ['-n', namespace, '-o', '-force', '-batch', '-'];
    this.process = spawn('ip', argv, { stdio: ['pipe', 'pipe', 'inherit'] });
    createInterface({ input: this.process.stdout as NodeJS.ReadableStream }).on('line', (line) =>
      this.#waiting.shift()?.(line),
    );
  }

  /** Resolves when they have been carried out: what shows a link is printed at once. */
  async run(...lines: string[]): Promise<void> {
    await this.#show('lo', lines);
  }

  /** Until its carrier is known: before, a bridge lets nothing through the port. */
  async up(device: string): Promise<void> {
    while (!/ state UP /.test(await this.#show(device))) await sleep(UP_MS);
  }

  #show(device: string, before: readonly string[] = []): Promise<string> {
    this.process.stdin?.write([...before, `link show dev ${device}`, ''].join('\n'));
    return new Promise((resolve) => this.#waiting.push(resolve));
  }
}

export class Farm {
  readonly namespace: string;
  readonly #node: Batch;
  readonly #farm: Batch;
  readonly #deleting: NodeJS.Timeout;
  /** Told when what was unplugged by then is deleted. */
  #unplugged: (() => void)[] = [];

  private constructor(namespace: string, node: string) {
    this.namespace = namespace;
    [this.#node, this.#farm] = [new Batch(node), new Batch(namespace)];
    this.#deleting = setInterval(() => {
      const waiting = this.#unplugged;
      this.#unplugged = [];
      if (waiting.length === 0) return;
      void this.#node.run(`link del group ${DELETED_GROUP}`).then(() => {
        for (const told of waiting) told();
      });
    }, DELETE_MS);
  }

  get processes(): ChildProcess[] {
    return [this.#node.process, this.#farm.process];
  }

  static async make(namespace: string, node: string, slots: readonly (readonly [string, string])[]): Promise<Farm> {
    await must(['ip', 'netns', 'add', namespace]);
    // As the plugin does: else it takes the lowest MAC of its ports, another with each that comes or goes, and everybody's neighbours are forgotten.
    const [bridge] = JSON.parse(await must(['ip', '-n', node, '-j', 'link', 'show', 'dev', 'cni0'])) as [
      { address: string },
    ];
    await must(['ip', '-n', node, 'link', 'set', 'cni0', 'address', bridge.address]);
    // Many interfaces on one segment: each speaks for its own address.
    const settings = ['ipv4.conf.all.arp_ignore=1', 'ipv4.conf.all.arp_announce=2', 'ipv6.conf.default.accept_dad=0'];
    // What each of them would say to all others when it comes, and nobody needs: that it has a link-local address and looks for a router.
    settings.push('ipv6.conf.default.addr_gen_mode=1', 'ipv6.conf.default.accept_ra=0');
    await must(inNamespace(namespace, ['sysctl', '-qw', ...settings.map((one) => `net.${one}`)]));
    await must(['ip', '-n', namespace, 'link', 'set', 'lo', 'up']);
    for (const [slot, addresses] of slots.entries()) {
      for (const [at, family] of (['-4', '-6'] as const).entries()) {
        const rule = ['from', addresses[at] ?? '', 'lookup', String(FIRST_TABLE + slot)];
        await must(['ip', '-n', namespace, family, 'rule', 'add', ...rule]);
      }
    }
    return new Farm(namespace, node);
  }

  /** As the plugin's ADD, which waits for the port too. `pod`: another number each time, since `ip -batch` remembers which interface had a name. */
  async plug(pod: number, slot: number, [four, six]: readonly [string, string]): Promise<void> {
    const [port, device, table] = [`c${pod}`, `p${pod}`, FIRST_TABLE + slot];
    const link = `link add ${port} type veth peer name ${device} netns ${this.namespace}`;
    await this.#node.run(link, `link set ${port} master cni0 up`);
    await this.#farm.run(
      `link set ${device} up`,
      `addr add ${four}/24 dev ${device}`,
      `addr add ${six}/64 dev ${device} nodad`,
      `route add default via ${gateway[4]} dev ${device} table ${table}`,
      `route add default via ${gateway[6]} dev ${device} table ${table}`,
    );
    await this.#node.up(port);
  }

  /** As its DEL. Resolves when the interface is gone. */
  async unplug(pod: number): Promise<void> {
    await this.#node.run(`link set c${pod} group ${DELETED_GROUP}`);
    await new Promise<void>((resolve) => this.#unplugged.push(resolve));
  }

  close(): void {
    clearInterval(this.#deleting);
  }
}
