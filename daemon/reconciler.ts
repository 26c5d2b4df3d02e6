/**
 * Keeps the kernel at the plan: applies and reconciliations one at a time; a reconciliation at a fixed interval, since
 * the kernel does not tell of every change to what is ours, and at once when somebody deletes our table. One that
 * fails is tried again soon.
 */
import { watchTable } from '../kernel/nft-watch.ts';
import type { Logger } from './log.ts';

const RECONCILE_MS = 30_000;
const RETRY_MS = 1_000;

export interface Reconciler {
  /** Runs `work` after all that was given before; its error is the caller's. */
  inTurn(work: () => Promise<void>): Promise<void>;
  /** Resolves when nothing runs any more. */
  close(): Promise<void>;
}

/**
 * `table`: our nftables table. `reconcile`: compares the kernel's state with the plan in force, if there is one. To be
 * started before the first plan is applied, so that no deletion goes unseen.
 */
export function startReconciler(table: string, reconcile: () => Promise<void>, log: Logger): Reconciler {
  let last: Promise<unknown> = Promise.resolve();
  const inTurn = (work: () => Promise<void>): Promise<void> => {
    const mine = last.then(work);
    last = mine.catch(() => undefined);
    return mine;
  };
  let retry: NodeJS.Timeout | undefined;
  let closed = false;
  const run = (): void => {
    clearTimeout(retry);
    void inTurn(reconcile).catch((error) => {
      log.error({ err: error, againMs: RETRY_MS }, 'reconciliation failed');
      if (!closed) retry = setTimeout(run, RETRY_MS);
    });
  };
  const timer = setInterval(run, RECONCILE_MS);
  const watch = watchTable({
    table,
    onDeleted() {
      log.error({ table }, 'somebody deleted the table: putting it back');
      run();
    },
    onError: (error) => log.error({ err: error }, 'nftables events'),
  });
  return {
    inTurn,
    async close() {
      closed = true;
      clearInterval(timer);
      clearTimeout(retry);
      await watch.close();
      await last;
      clearTimeout(retry);
    },
  };
}
