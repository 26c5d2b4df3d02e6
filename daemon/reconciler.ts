/**
 * Keeps the kernel at the plan: applies and reconciliations one at a time; a reconciliation at a fixed interval, since
 * the kernel does not tell of every change to what is ours, and at once when somebody deletes our table.
 */
import { watchTable } from '../kernel/nft-watch.ts';
import type { Logger } from './log.ts';

const RECONCILE_MS = 30_000;

export interface Reconciler {
  /** Runs `work` after all that was given before; its error is the caller's. */
  inTurn(work: () => Promise<void>): Promise<void>;
  /** Starts to reconcile. */
  start(): void;
  /** Resolves when nothing runs any more. */
  close(): Promise<void>;
}

/** `table`: our nftables table. `reconcile`: compares the kernel's state with the plan in force, if there is one. */
export function createReconciler(table: string, reconcile: () => Promise<void>, log: Logger): Reconciler {
  let last: Promise<unknown> = Promise.resolve();
  const inTurn = (work: () => Promise<void>): Promise<void> => {
    const mine = last.then(work);
    last = mine.catch(() => undefined);
    return mine;
  };
  const run = (): void => void inTurn(reconcile).catch((error) => log.error({ err: error }, 'reconciliation failed'));
  let timer: NodeJS.Timeout | undefined;
  let watch: ReturnType<typeof watchTable> | undefined;
  return {
    inTurn,
    start() {
      timer = setInterval(run, RECONCILE_MS);
      watch = watchTable({
        table,
        onDeleted() {
          log.error({ table }, 'somebody deleted the table: putting it back');
          run();
        },
        onError: (error) => log.error({ err: error }, 'nftables events'),
      });
    },
    async close() {
      clearInterval(timer);
      await watch?.close();
      await last;
    },
  };
}
