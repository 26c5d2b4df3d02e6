/**
 * tc of this machine, or of one of its network namespaces: lists with `tc qdisc show` and `tc class show` (which iproute2
 * 6.1 prints as text only), applies with `tc -batch -`. A batch stops at its first error; the next list → diff → apply goes on from there.
 */
import { TC_MAJOR } from '../api/names.ts';
import { KernelError } from './errors.ts';
import type { HostOptions } from './nft-host.ts';
import { inNamespace, run } from './run.ts';
import type { Tc, TcClass, TcRoot, TcState } from './tc.ts';

const op = { list: 'tc list', apply: 'tc apply' } as const;
const ownHandle = `${TC_MAJOR.toString(16)}:`;

export class HostTc implements Tc {
  readonly #namespace: string | undefined;

  constructor(options: HostOptions = {}) {
    this.#namespace = options.namespace;
  }

  async list(): Promise<TcState> {
    const state: TcState = new Map();
    for (const [dev, { root, queued }] of parseQdiscs(await this.#tc(op.list, ['-j', 'qdisc', 'show']))) {
      const classes =
        root === 'ours' ? parseClasses(await this.#tc(op.list, ['class', 'show', 'dev', dev]), queued) : [];
      state.set(dev, { root, classes });
    }
    return state;
  }

  async apply(lines: string[]): Promise<void> {
    if (lines.length > 0) await this.#tc(op.apply, ['-batch', '-'], `${lines.join('\n')}\n`);
  }

  async dropped(): Promise<Record<string, number>> {
    const own = listedQdiscs(await this.#tc(op.list, ['-s', '-j', 'qdisc', 'show'])).filter(isOwnRoot);
    return Object.fromEntries(own.map(({ dev = '', drops = 0 }) => [dev, drops]));
  }

  #tc(name: string, args: string[], input = ''): Promise<string> {
    return run(inNamespace(this.#namespace, ['tc', ...args]), { op: name, input });
  }
}

interface ListedQdisc {
  kind?: string;
  handle?: string;
  dev?: string;
  parent?: string;
  root?: boolean;
  drops?: number;
}

function listedQdiscs(json: string): ListedQdisc[] {
  try {
    return JSON.parse(json) as ListedQdisc[];
  } catch (error) {
    throw new KernelError(op.list, 'bad-answer', json.slice(0, 200), error);
  }
}

const isOwnRoot = ({ root, kind, handle }: ListedQdisc): boolean =>
  root === true && kind === 'htb' && handle === ownHandle;

/** By interface: the root, and classes that have a queue like ours. */
export function parseQdiscs(json: string): Map<string, { root: TcRoot; queued: Set<string> }> {
  const listed = listedQdiscs(json);
  const devices = new Map<string, { root: TcRoot; queued: Set<string> }>();
  for (const qdisc of listed) {
    const { kind = '', handle = '0:', dev = '', root } = qdisc;
    if (root !== true) continue;
    // What the kernel has put there by itself has no handle.
    const found = handle === '0:' ? 'free' : isOwnRoot(qdisc) ? 'ours' : { kind, handle };
    devices.set(dev, { root: found, queued: new Set() });
  }
  for (const { kind, dev = '', parent } of listed) {
    if (kind === 'bfifo' && parent !== undefined) devices.get(dev)?.queued.add(parent);
  }
  return devices;
}

const line = /^class htb (\S+):(\S+) (?:root|parent \S+:(\S+)) .*?\brate \S+ ceil (\d+)([KMGT]?)bit /;
const factor: Record<string, number> = { '': 1, K: 1e3, M: 1e6, G: 1e9, T: 1e12 };

export function parseClasses(text: string, queued: ReadonlySet<string>): TcClass[] {
  const listed = text.split('\n').flatMap((each) => {
    const match = line.exec(each);
    if (match === null || `${match[1]}:` !== ownHandle) return [];
    const [, , minor = '', parent, number = '', unit = ''] = match;
    const bits = Number(number) * (factor[unit] ?? 1);
    return [{ minor: Number.parseInt(minor, 16), ...(parent && { parent: Number.parseInt(parent, 16) }), bits }];
  });
  return listed.map((one) => ({ ...one, leaf: queued.has(`${ownHandle}${one.minor.toString(16)}`) }));
}
