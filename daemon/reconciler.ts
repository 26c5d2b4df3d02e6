/**
 * Keeps the kernel at the plan: applies and reconciliations one at a time. Links, addresses, routes and rules are compared
 * at a fixed interval, since the kernel does not tell of every change to what is ours. Our nftables table, which may be
 * large, is listed only after somebody else changed it, or devices came or went (a chain on a device goes with it);
 * at once when somebody deleted it. A reconciliation that fails is tried again soon.
 */
import { deviceList } from '../kernel/devices.ts';
import type { HostNft } from '../kernel/nft-host.ts';
import type { Logger } from './log.ts';

const RECONCILE_MS = 30_000;
/** Nothing is forwarded while the table is gone: at first soon, then twice as late each time. */
const [RETRY_FIRST_MS, RETRY_MS] = [50, 1_000];
/** After somebody else's change: theirs may be one of several. */
const CHANGED_MS = 1_000;
/** Between two of those: two programs that undo each other's changes should not be busy with it. */
const CHANGED_APART_MS = 10_000;

export interface Reconciler {
  /** Runs `work` after all that was given before; its error is the caller's. */
  inTurn(work: () => Promise<void>): Promise<void>;
  /** Compares now, and again soon while that fails. */
  again(): void;
  /** Resolves when nothing runs any more. */
  close(): Promise<void>;
}

export interface ReconcilerOptions {
  /** Our nftables table. */
  table: string;
  nft: Pick<HostNft, 'watch'>;
  /** Compares the kernel's state with the plan in force, if there is one; the table only if it is told to. */
  reconcile(table: boolean): Promise<void>;
  /**
   * Before the regular `reconcile`, while other work has its turns: finds out what that needs. Commands that list take seconds
   * where processors are busy, and whoever is to be released or withdrawn does not wait for them.
   */
  look?(): Promise<void>;
  /** No chain of ours is on a device, so that none is lost with one. */
  devices?: 'indifferent';
  /** For tests: between two regular ones. */
  everyMs?: number;
  log: Logger;
}

/** To be started before the first plan is applied, so that no change goes unseen. */
export function startReconciler(options: ReconcilerOptions): Reconciler {
  const { table, nft, reconcile, log } = options;
  let last: Promise<unknown> = Promise.resolve();
  const inTurn = (work: () => Promise<void>): Promise<void> => {
    const mine = last.then(work);
    last = mine.catch(() => undefined);
    return mine;
  };
  let retry: NodeJS.Timeout | undefined;
  let soon: NodeJS.Timeout | undefined;
  let failures = 0;
  let closed = false;
  /** The table may not be as we left it. */
  let suspect = false;
  let comparedAt = Number.NEGATIVE_INFINITY;
  let devices: string | undefined;

  const compare = async (): Promise<void> => {
    const now = options.devices === 'indifferent' ? '' : await deviceList();
    if (devices !== undefined && now !== devices) suspect = true;
    devices = now;
    const whole = suspect;
    suspect = false;
    if (whole) comparedAt = performance.now();
    try {
      await reconcile(whole);
    } catch (error) {
      suspect ||= whole;
      throw error;
    }
  };
  const run = (before: Promise<void> = Promise.resolve()): void => {
    clearTimeout(retry);
    clearTimeout(soon);
    soon = undefined;
    const compared = before.then(() => (closed ? undefined : inTurn(compare)));
    void compared.then(
      () => {
        failures = 0;
      },
      (error) => {
        const againMs = Math.min(RETRY_MS, RETRY_FIRST_MS * 2 ** failures++);
        log.error({ err: error, againMs }, 'reconciliation failed');
        if (!closed) retry = setTimeout(() => run(), againMs);
      },
    );
  };
  const timer = setInterval(() => run(options.look?.()), options.everyMs ?? RECONCILE_MS);
  const watch = nft.watch(table, {
    onChanged() {
      suspect = true;
      if (soon !== undefined || closed) return;
      log.warn({ table }, 'somebody changed the table: comparing it with the plan');
      soon = setTimeout(() => run(), Math.max(CHANGED_MS, comparedAt + CHANGED_APART_MS - performance.now()));
    },
    onDeleted() {
      suspect = true;
      log.error({ table }, 'somebody deleted the table: putting it back');
      run();
    },
    onError: (error) => log.error({ err: error }, 'nftables events'),
  });
  return {
    inTurn,
    again: () => run(),
    async close() {
      closed = true;
      clearInterval(timer);
      clearTimeout(retry);
      clearTimeout(soon);
      await watch.close();
      await last;
      clearTimeout(retry);
    },
  };
}
