/**
 * Joins what the kernel tells of interfaces (kernel/place-watch.ts) to the steering: an address whose interface goes is
 * withdrawn at once, as if the plan no longer had it, until another owner has it by the plan.
 */
import type { Logger } from '../daemon/log.ts';
import { watchPlaces } from '../kernel/place-watch.ts';
import type { HoldQueue } from './hold-queue.ts';
import type { Places } from './places.ts';

export interface PlaceKeeperOptions {
  places: Places;
  hold: Pick<HoldQueue, 'forget'>;
  /** Runs `work` when nothing else is brought into force; fails as it fails. */
  inTurn(work: () => Promise<void>): Promise<void>;
  /** Brings the plan in force into force anew, if there is one. */
  apply(): Promise<void>;
  /** What to do when that failed. */
  again(): void;
  log: Logger;
  /** Network namespace `/run/netns/NAME`; absent: the thread's own. */
  namespace?: string;
}

/** Where workloads are is written into the kernel with the next plan; if none comes, after so long. */
const WRITE_MS = 1_000;
const RESTART_MS = 500;

export interface PlaceKeeper {
  /** Of a packet that is held. */
  sent(address: string, index: number, mac: string): void;
  close(): Promise<void>;
}

export function keepPlaces(options: PlaceKeeperOptions): PlaceKeeper {
  const { places, hold, inTurn, apply, again, log, ...where } = options;
  let watch: ReturnType<typeof watchPlaces> | undefined;
  let writing: NodeJS.Timeout | undefined;
  let restarting: NodeJS.Timeout | undefined;
  let waiting = false;
  let closed = false;

  const write = (): void => {
    clearTimeout(writing);
    writing = undefined;
    if (waiting || closed) return;
    waiting = true;
    inTurn(() => {
      // What changes from here on wants another turn.
      waiting = false;
      return apply();
    }).catch((error) => {
      log.error({ err: error }, 'what became of interfaces is not in force');
      if (!closed) again();
    });
  };
  const look = (): void => {
    const { gone, seen } = places.settle();
    if (gone) write();
    else if (seen) writing ??= setTimeout(write, WRITE_MS);
  };
  const open = (): void => {
    try {
      watch = watchPlaces({
        ...where,
        onListed(listed) {
          places.list(listed);
          look();
        },
        onEvents(events) {
          hold.forget(events.flatMap((event) => places.take(event)));
          look();
        },
        onEnd(error) {
          log.error({ error: error.message }, 'interfaces are not watched any more; watching them again');
          reopen();
        },
      });
    } catch (error) {
      log.error({ error: (error as Error).message }, 'interfaces cannot be watched');
      reopen();
    }
  };
  const reopen = (): void => {
    watch = undefined;
    if (!closed) restarting = setTimeout(open, RESTART_MS);
  };
  open();

  return {
    sent(address, index, mac) {
      // As the neighbour entry will say, if the kernel makes one.
      places.take({ kind: 'neighbour', gone: false, address, index, mac });
      look();
    },
    async close() {
      closed = true;
      clearTimeout(writing);
      clearTimeout(restarting);
      await watch?.close();
    },
  };
}
