/**
 * Notices when somebody else changes or deletes a table of ours: `nft flush ruleset`, which Debian's nftables.service runs
 * at start and reload, is the common way. What the caller does then is its own; the kernel has already forgotten.
 */

import { type TableEvent, tableEvent } from '../wire/nft-event.ts';
import { NFPROTO_INET } from '../wire/nft-names.ts';
import { messagePort } from '../wire/nlattr.ts';
import { type EventSocket, startEventSocket } from './event-socket.ts';

export interface TableEvents {
  /** Also after lost events, when it is not known. */
  onChanged(): void;
  onDeleted(): void;
  onError(error: Error): void;
}

export interface TableWatch extends TableEvents {
  /** Of family inet; or what says of a table whether it is meant. */
  table: string | ((event: TableEvent) => boolean);
  /** Whether a change that was asked for at this netlink port is our own. */
  ours(port: number): boolean;
  /** Network namespace `/run/netns/NAME`; absent: the thread's own. */
  namespace?: string;
}

/** Most events are of our own changes, dozens a second where pods come and go. */
const GATHER_MS = 20;

export function watchTable(watch: TableWatch): EventSocket {
  const { table } = watch;
  const isMeant =
    typeof table === 'function' ? table : (event: TableEvent) => event.family === NFPROTO_INET && event.table === table;
  return startEventSocket({
    kind: 'nftables',
    gatherMs: GATHER_MS,
    onBatch(messages) {
      let changed = false;
      let deleted = false;
      for (const message of messages) {
        // First, since most changes are our own.
        if (watch.ours(messagePort(message))) continue;
        const event = tableEvent(message);
        if (event === undefined || !isMeant(event)) continue;
        changed = true;
        deleted ||= event.deleted;
      }
      if (deleted) watch.onDeleted();
      else if (changed) watch.onChanged();
    },
    onOverrun: watch.onChanged,
    onError: watch.onError,
    ...(watch.namespace === undefined ? {} : { namespace: watch.namespace }),
  });
}
