/**
 * The hold queue at work: NFQUEUE number HOLD_QUEUE feeds the machine of hold.ts, whose decisions go back as verdicts.
 * A released packet goes on without the held mark and meets the steering chain, which now knows its source.
 * Fails closed: with nobody at the queue, or the queue full, the kernel drops.
 */
import { HOLD_QUEUE, NODE_MARK_MASK } from '../api/names.ts';
import type { Logger } from '../daemon/log.ts';
import { type EventSocket, startEventSocket } from '../kernel/event-socket.ts';
import { ipv4Text, ipv6Text, macText } from '../wire/address-text.ts';
import { decodeNfqueue, encodeVerdict, type Verdict } from '../wire/nfqueue.ts';
import { type HeldPacket, Hold } from './hold.ts';

export interface HoldEvents {
  held(): void;
  released(milliseconds: number): void;
  /** Waited in vain, or its interface went, or it was over a limit, or was no IP packet. */
  dropped(why: 'expired' | 'gone' | 'limit' | 'malformed'): void;
}

export interface HoldQueue {
  /** Sources that are in force in the kernel from now on. */
  release(known: ReadonlySet<string>): void;
  /** Sources that nobody is behind any more: what waits of them is dropped. */
  forget(sources: readonly string[]): void;
  /** Whether the kernel's queue is ours. */
  ready(): boolean;
  close(): Promise<void>;
}

/** More than hold.ts ever keeps, so that the machine and not the kernel decides which packet is too many. */
const KERNEL_QUEUE_LENGTH = 4_096;
/** An IPv6 header. */
const COPY_RANGE = 40;
const REOPEN_MILLISECONDS = 500;

/** Source address of an IP packet, canonical; undefined: too short, or neither IPv4 nor IPv6. */
export function packetSource(payload: Uint8Array): string | undefined {
  const version = (payload[0] ?? 0) >> 4;
  if (version === 4 && payload.length >= 20) return ipv4Text(payload, 12);
  if (version === 6 && payload.length >= 40) return ipv6Text(payload, 8);
  return undefined;
}

export interface HoldQueueOptions {
  events: HoldEvents;
  log: Logger;
  /** Who sent a packet that is held: his MAC, seen on that interface. */
  onSource?(address: string, index: number, mac: string): void;
  /** Milliseconds of a monotonic clock. */
  now?: () => number;
  /** Network namespace `/run/netns/NAME`; absent: the thread's own. */
  namespace?: string;
}

export function startHoldQueue(options: HoldQueueOptions): HoldQueue {
  const { events, log, namespace, now = () => performance.now() } = options;
  const hold = new Hold();
  let socket: EventSocket | undefined;
  let expiry: NodeJS.Timeout | undefined;
  let reopening: NodeJS.Timeout | undefined;
  let closed = false;

  const verdict = ({ id, mark }: Pick<HeldPacket, 'id' | 'mark'>, what: Verdict): void =>
    socket?.send(encodeVerdict(HOLD_QUEUE, id, what, what === 'accept' ? (mark & ~NODE_MARK_MASK) >>> 0 : undefined));

  const schedule = (): void => {
    const at = hold.nextExpiry();
    if (expiry !== undefined || at === undefined) return;
    expiry = setTimeout(
      () => {
        expiry = undefined;
        for (const packet of hold.expire(now())) {
          verdict(packet, 'drop');
          events.dropped('expired');
        }
        schedule();
      },
      Math.max(1, Math.ceil(at - now())),
    );
  };

  const arrive = (message: Uint8Array): void => {
    const decoded = decodeNfqueue(message);
    if (!decoded.ok) return;
    const { id, mark, payload, inDevice, mac } = decoded.value;
    const source = packetSource(payload);
    const arrival = source === undefined ? 'malformed' : hold.arrive({ id, mark, source }, now());
    if (arrival === 'drop' || arrival === 'malformed') {
      verdict({ id, mark }, 'drop');
      events.dropped(arrival === 'drop' ? 'limit' : 'malformed');
      return;
    }
    if (source !== undefined && mac.length > 0) options.onSource?.(source, inDevice, macText(mac, 0));
    events.held();
    if (arrival === 'hold') schedule();
    else {
      verdict({ id, mark }, 'accept');
      events.released(0);
    }
  };

  const open = (): void => {
    try {
      socket = startEventSocket({
        kind: 'nfqueue',
        queue: HOLD_QUEUE,
        maxLength: KERNEL_QUEUE_LENGTH,
        copyRange: COPY_RANGE,
        ...(namespace === undefined ? {} : { namespace }),
        onBatch: (messages) => {
          for (const message of messages) arrive(message);
        },
        onOverrun: () => log.warn('the hold queue overran: packets of unknown sources were dropped'),
        onError: (error, fatal) => {
          // A verdict on a packet that is gone (its interface was deleted) is refused: no harm.
          if (!fatal) return log.debug({ error: error.message }, 'hold queue message refused');
          log.error({ error: error.message }, 'the hold queue has ended; opening it again');
          reopen();
        },
      });
    } catch (error) {
      log.error(
        { error: (error as Error).message },
        'the hold queue cannot be opened: is another sluice node running?',
      );
      reopen();
    }
  };
  const reopen = (): void => {
    socket = undefined;
    hold.clear();
    if (!closed) reopening = setTimeout(open, REOPEN_MILLISECONDS);
  };
  open();

  return {
    release(known) {
      for (const { packet, milliseconds } of hold.release(known, now())) {
        verdict(packet, 'accept');
        events.released(milliseconds);
      }
    },
    forget(sources) {
      for (const packet of hold.forget(sources)) {
        verdict(packet, 'drop');
        events.dropped('gone');
      }
    },
    ready: () => socket !== undefined,
    async close() {
      closed = true;
      clearTimeout(expiry);
      clearTimeout(reopening);
      hold.clear();
      await socket?.close();
    },
  };
}
