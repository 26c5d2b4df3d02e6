/**
 * The classes in which packets of limited flows wait (bandwidth.ts), brought into force: list → diff → apply, for the
 * interface to the outside and the one to the workloads. Where that cannot be (the root of an interface is another
 * program's, the kernel has no HTB) the buckets of nftables keep the limits alone: traffic passes, limited more roughly,
 * and the caller is told.
 */
import type { GatewayPlan } from '../api/plan.ts';
import { KernelError } from '../kernel/errors.ts';
import { diffTc, isForeign, type Tc, type TcClass, type TcState } from '../kernel/tc.ts';
import type { Bandwidths, Direction } from './bandwidth.ts';
import { ingressOf } from './compile-net.ts';

/** An interface on which nothing waits, and why. */
export interface Unshaped {
  device: string;
  reason: string;
}

/** Classes by interface; only those that have some. */
type Desired = ReadonlyMap<string, TcClass[]>;

export class Shaping {
  readonly #tc: Tc;
  /** What is in force as last applied; undefined: ask the kernel. */
  #current: TcState | undefined;
  #changes = 0;
  /** What look() found, unless something was changed since. */
  #ahead: TcState | undefined;

  constructor(tc: Tc) {
    this.#tc = tc;
  }

  /** The next apply() lists the kernel's state anew, unless look() just has. */
  forget(): void {
    this.#current = this.#ahead;
    this.#ahead = undefined;
  }

  /** While others call apply(). What cannot be listed is said there. */
  async look(): Promise<void> {
    const changes = this.#changes;
    const listed = await this.#tc.list().catch(() => undefined);
    if (changes === this.#changes) this.#ahead = listed;
  }

  /** Never fails: what cannot be is the result. */
  async apply(desired: Desired): Promise<Unshaped[]> {
    const remembered = this.#current !== undefined;
    let failed = await this.#apply(desired);
    if (failed.length > 0 && remembered) {
      // Somebody may have changed what is remembered.
      this.forget();
      failed = await this.#apply(desired);
    }
    return failed;
  }

  async #apply(desired: Desired): Promise<Unshaped[]> {
    const failed: Unshaped[] = [];
    try {
      const current = this.#current ?? (await this.#tc.list());
      this.#current = undefined;
      for (const [dev, device] of current) {
        const lines = diffTc(new Map([[dev, device]]), desired);
        if (lines.length > 0) {
          this.#changes++;
          this.#ahead = undefined;
        }
        try {
          if (lines.length > 0) await this.#tc.apply(lines);
        } catch (error) {
          failed.push({ device: dev, reason: KernelError.from('tc apply', error).message });
        }
      }
      if (failed.length === 0) this.#current = after(current, desired);
      return [...failed, ...unshaped(current, desired)];
    } catch (error) {
      const { message } = KernelError.from('tc list', error);
      return [...desired.keys()].map((device) => ({ device, reason: message }));
    }
  }
}

export function desiredClasses(
  { settings }: Pick<GatewayPlan, 'settings'>,
  bandwidths: Bandwidths | undefined,
): Desired {
  const desired = new Map<string, TcClass[]>();
  if (bandwidths === undefined || !('pool' in settings)) return desired;
  const { pool } = settings;
  const devices: Record<Direction, string> = { out: pool.externalInterface, in: ingressOf(pool) };
  for (const made of bandwidths.classes.values()) {
    for (const { direction, ...one } of made) {
      // Both ways may be one interface: their numbers differ.
      const list = desired.get(devices[direction]) ?? [];
      desired.set(devices[direction], list);
      list.push(one);
    }
  }
  return desired;
}

function after(current: TcState, desired: Desired): TcState {
  const state: TcState = new Map();
  for (const [dev, { root }] of current) {
    const classes = isForeign(root) ? [] : (desired.get(dev) ?? []);
    state.set(dev, { root: isForeign(root) ? root : classes.length > 0 ? 'ours' : 'free', classes });
  }
  return state;
}

function unshaped(current: TcState, desired: Desired): Unshaped[] {
  return [...desired.keys()].flatMap((device) => {
    const root = current.get(device)?.root;
    if (root === undefined) return [{ device, reason: 'there is no such interface' }];
    if (!isForeign(root)) return [];
    return [{ device, reason: `its root qdisc is another program's: ${root.kind} ${root.handle}` }];
  });
}
