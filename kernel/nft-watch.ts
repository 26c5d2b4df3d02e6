/**
 * Notices at once when somebody deletes a table of ours: `nft flush ruleset`, which Debian's nftables.service runs at
 * start and reload, is the common way. What the caller does then is its own; the kernel has already forgotten.
 */
import { deletedTable } from '../wire/nft-event.ts';
import { type EventSocket, startEventSocket } from './event-socket.ts';

export interface TableWatch {
  table: string;
  /** Also after lost events, when it is not known. */
  onDeleted(): void;
  onError(error: Error): void;
  /** Network namespace `/run/netns/NAME`; absent: the thread's own. */
  namespace?: string;
}

export function watchTable(watch: TableWatch): EventSocket {
  return startEventSocket({
    kind: 'nftables',
    onBatch(messages) {
      if (messages.some((message) => deletedTable(message) === watch.table)) watch.onDeleted();
    },
    onOverrun: watch.onDeleted,
    onError: watch.onError,
    ...(watch.namespace === undefined ? {} : { namespace: watch.namespace }),
  });
}
