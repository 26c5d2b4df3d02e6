/**
 * Shaping as a value: HTB classes at the root of an interface, which packets choose by their priority (`meta priority`),
 * without filters. What is there (list), what must be there (desired), and the difference as lines for `tc -batch`
 * (tc-host.ts runs them, tc-fake.ts for tests). Packets of no class of ours pass by HTB's direct queue, as fast as the
 * interface is. Ours is the qdisc with the major number TC_MAJOR at the root; another program's is never touched.
 */
import { TC_MAJOR } from '../api/names.ts';

export interface TcClass {
  /** Of TC_MAJOR. */
  minor: number;
  /** Minor number of the class that it shares with others; absent: it is at the top. */
  parent?: number;
  /** Bits per second that it may send at most. */
  bits: number;
  /** Whether packets wait in it; one that has children holds none. */
  leaf: boolean;
}

/** The root of an interface. `free`: what the kernel puts there by itself. */
export type TcRoot = 'ours' | 'free' | { kind: string; handle: string };

export interface TcDevice {
  root: TcRoot;
  classes: TcClass[];
}

/** Every interface, by name. */
export type TcState = Map<string, TcDevice>;
/** Classes that an interface must have; none, or no entry: no qdisc of ours. */
export type TcDesired = ReadonlyMap<string, readonly TcClass[]>;

/** Lists and changes shaping; lines are those of diffTc(). */
export interface Tc {
  list(): Promise<TcState>;
  apply(lines: string[]): Promise<void>;
  /** Packets that found the queue of their class full, by interface with a qdisc of ours, since that is there. */
  dropped(): Promise<Record<string, number>>;
}

export const isForeign = (root: TcRoot): root is { kind: string; handle: string } => typeof root === 'object';

const handle = (minor: number | undefined): string => `${TC_MAJOR.toString(16)}:${(minor ?? 0).toString(16)}`;

/** What the listing can tell apart: whole kbit, from 1 Gbit on whole Mbit. */
export function shapedBits(bits: number): number {
  const unit = bits >= 1e9 ? 1e6 : 1e3;
  return Math.max(1e3, Math.floor(bits / unit) * unit);
}

/** What a class sends without asking its parent; as little as can be, or the parent's own limit would not hold. */
const OWN_BITS = 1e3;
/** Longer than the longest packet that the kernel forwards as one, with the headers of all that it will be cut into. */
const LONGEST = 70_000;
const MAX_QUEUE = 16_000_000;
const MAX_BURST_SECONDS = 60;

/**
 * What may be caught up on: 10 ms, which timers are exact enough for, and two of the longest packets, else a class that had to
 * wait for its turn would lose what it did not send. Never more than the kernel can count at that rate.
 */
const burst = (bits: number): number =>
  Math.floor(Math.min(bits * (MAX_BURST_SECONDS / 8), Math.max(2 * LONGEST, (bits / 8) * 0.01)));

/** 50 ms may wait. */
export const queueBytes = (bits: number): number =>
  Math.min(MAX_QUEUE, Math.max(2 * LONGEST, Math.ceil((shapedBits(bits) / 8) * 0.05)));

function classText({ minor, parent, bits }: TcClass): string {
  const ceil = shapedBits(bits);
  const rate = parent === undefined ? ceil : Math.min(OWN_BITS, ceil);
  const own = parent === undefined ? burst(ceil) : 1600;
  // The quantum is how much one class sends before the next of its parent may: it would follow from the rate.
  return `parent ${parent === undefined ? handle(0) : handle(parent)} classid ${handle(minor)} htb rate ${rate}bit ceil ${ceil}bit burst ${own} cburst ${burst(ceil)} quantum 60000`;
}

/** Lines that lead from `current` to `desired`; [] if there is nothing to do, or nothing that may be done. */
export function diffTc(current: TcState, desired: TcDesired): string[] {
  return [...current].flatMap(([dev, device]) => deviceLines(dev, device, desired.get(dev) ?? []));
}

function deviceLines(dev: string, { root, classes }: TcDevice, desired: readonly TcClass[]): string[] {
  if (isForeign(root)) return [];
  const lines: string[] = [];
  if (desired.length === 0) return root === 'ours' ? [`qdisc del dev ${dev} root handle ${handle(0)}`] : [];
  // On a device without a queue of its own the direct one would hold nothing.
  if (root === 'free') lines.push(`qdisc add dev ${dev} root handle ${handle(0)} htb direct_qlen 1000`);

  const wanted = new Map(desired.map((one) => [one.minor, one]));
  const replaced = (one: TcClass): boolean => {
    const to = wanted.get(one.minor);
    return to === undefined || to.parent !== one.parent || to.leaf !== one.leaf;
  };
  // A class goes with its children, and these before it.
  const gone = new Set(classes.filter(replaced).map(({ minor }) => minor));
  for (const { minor, parent } of classes) if (parent !== undefined && gone.has(parent)) gone.add(minor);
  const ordered = classes.toSorted((a, b) => Number(a.parent === undefined) - Number(b.parent === undefined));
  for (const { minor } of ordered) if (gone.has(minor)) lines.push(`class del dev ${dev} classid ${handle(minor)}`);

  const kept = new Map(classes.filter(({ minor }) => !gone.has(minor)).map((one) => [one.minor, one]));
  for (const one of desired.toSorted((a, b) => Number(a.parent !== undefined) - Number(b.parent !== undefined))) {
    const was = kept.get(one.minor);
    const same = was !== undefined && shapedBits(was.bits) === shapedBits(one.bits);
    if (!same) lines.push(`class ${was === undefined ? 'add' : 'change'} dev ${dev} ${classText(one)}`);
    if (!one.leaf || (was !== undefined && queueBytes(was.bits) === queueBytes(one.bits))) continue;
    const verb = was === undefined ? 'add' : 'change';
    lines.push(`qdisc ${verb} dev ${dev} parent ${handle(one.minor)} bfifo limit ${queueBytes(one.bits)}`);
  }
  return lines;
}
