/**
 * Tells what the kernel knows of where addresses are: first all of it, then each change (wire/rtnetlink.ts). Changes are
 * heard from before the listing on, so that none is missed; some are told twice or late, which the receiver bears
 * (node/places.ts).
 */
import {
  messageErrno,
  messageFlags,
  messageType,
  NLM_F_DUMP_INTR,
  NLMSG_DONE,
  NLMSG_ERROR,
  splitMessages,
} from '../wire/nlattr.ts';
import { decodePlace, encodePlaceDumps, type PlaceEvent } from '../wire/rtnetlink.ts';
import { type EventSocket, startEventSocket } from './event-socket.ts';
import { SystemError } from './libc.ts';
import { NETLINK_ROUTE, NetlinkSocket } from './netlink-socket.ts';

export interface PlaceWatch {
  /** What is there, in place of all that was told before: at the start, and after events were lost. */
  onListed(places: PlaceEvent[]): void;
  onEvents(events: PlaceEvent[]): void;
  /** It has ended without close(), and tells no more. */
  onEnd(error: Error): void;
  /** Network namespace `/run/netns/NAME`; absent: the thread's own. */
  namespace?: string;
}

/** A pod's interface that comes or goes is a dozen events. */
const GATHER_MS = 2;

/** Listed before it returns. Throws SystemError where the kernel refuses. */
export function watchPlaces(watch: PlaceWatch): Pick<EventSocket, 'close'> {
  const where = watch.namespace === undefined ? {} : { namespace: watch.namespace };
  const events = startEventSocket({
    kind: 'places',
    gatherMs: GATHER_MS,
    onBatch: (messages) => watch.onEvents(messages.flatMap((message) => decodePlace(message) ?? [])),
    onOverrun() {
      try {
        watch.onListed(listPlaces(where));
      } catch (error) {
        void events.close();
        watch.onEnd(error as Error);
      }
    },
    onError: (error, fatal) => fatal && watch.onEnd(error),
    ...where,
  });
  try {
    watch.onListed(listPlaces(where));
  } catch (error) {
    void events.close();
    throw error;
  }
  return events;
}

/** More than the kernel puts into one datagram of a dump. */
const DATAGRAM_MAX = 64 * 1024;
/** A table that changes meanwhile is listed anew, and so often it is tried. */
const ATTEMPTS = 5;

function listPlaces(where: { namespace?: string }): PlaceEvent[] {
  const socket = NetlinkSocket.open({ protocol: NETLINK_ROUTE, receiveBuffer: 1 << 20, ...where });
  try {
    return encodePlaceDumps().flatMap((request) => {
      for (let attempt = 1; ; attempt++) {
        const { places, interrupted } = dump(socket, request);
        // What changed under the last attempt is told by events.
        if (!interrupted || attempt === ATTEMPTS) return places;
      }
    });
  } finally {
    socket.close();
  }
}

function dump(socket: NetlinkSocket, request: Uint8Array): { places: PlaceEvent[]; interrupted: boolean } {
  socket.send(request);
  const buffer = new Uint8Array(DATAGRAM_MAX);
  const places: PlaceEvent[] = [];
  let interrupted = false;
  for (;;) {
    for (const message of splitMessages(buffer.subarray(0, socket.receive(buffer)))) {
      const type = messageType(message);
      if (type === NLMSG_DONE || type === NLMSG_ERROR) {
        const errno = messageErrno(message) ?? 0;
        if (errno !== 0) throw new SystemError('list places', errno);
        return { places, interrupted };
      }
      if ((messageFlags(message) & NLM_F_DUMP_INTR) !== 0) interrupted = true;
      const place = decodePlace(message);
      if (place !== undefined) places.push(place);
    }
  }
}
