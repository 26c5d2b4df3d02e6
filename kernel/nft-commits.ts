/**
 * Whether a table was changed while it was listed. The kernel numbers the generations of all its tables as one; to which
 * table a commit belongs its events tell, of which the last has the number of the generation that it made.
 */
import { tableEvent } from '../wire/nft-event.ts';
import { isNft, readGeneration } from '../wire/nft-listing.ts';
import { NFPROTO_INET, NFT_MSG_NEWGEN } from '../wire/nft-names.ts';
import { splitMessages } from '../wire/nlattr.ts';
import { EAGAIN, EINTR, ENOBUFS, receive } from './libc.ts';
import { NETLINK_NETFILTER, NetlinkSocket, NFTABLES_BIT } from './netlink-socket.ts';

/** Of events, while a listing takes its time. */
const RECEIVE_BUFFER = 8 << 20;
const DATAGRAM_MAX = 64 * 1024;
/** The kernel tells of a commit when it has made it, a moment after its generation is there. */
const TOLD_MS = 500;

export class Commits {
  readonly #socket: NetlinkSocket;

  constructor(where: { namespace?: string }) {
    this.#socket = NetlinkSocket.open({
      protocol: NETLINK_NETFILTER,
      groups: NFTABLES_BIT,
      receiveBuffer: RECEIVE_BUFFER,
      timeoutMs: TOLD_MS,
      ...where,
    });
  }

  close(): void {
    this.#socket.close();
  }

  /** Since it was asked last, and up to a generation that is there. What is not known was. */
  touched(table: string, generation: number): boolean {
    const buffer = new Uint8Array(DATAGRAM_MAX);
    for (let touched = false; ; ) {
      const length = receive(this.#socket.fd, buffer, 0, [EAGAIN, EINTR, ENOBUFS]);
      if (length === -EAGAIN) return true;
      touched ||= length === -ENOBUFS;
      for (const message of splitMessages(buffer.subarray(0, Math.max(length, 0)))) {
        const event = tableEvent(message);
        touched ||= event?.family === NFPROTO_INET && event.table === table;
        if (!isNft(message, NFT_MSG_NEWGEN)) continue;
        const made = readGeneration(message);
        if (made.ok && made.value === generation) return touched;
      }
    }
  }
}
