/**
 * DNS queries, as datagrams and over TCP (RFC 1035 §4, RFC 6891, RFC 7766): one question, its name with the measures of
 * tunnelling checks, EDNS. A query that carries more than that is refused: what a check of the name does not see would pass
 * with it. Allocates the name only.
 * Leaves out: answers (dns-answer.ts), the names of types, DNS over TLS, HTTPS and QUIC (nothing to read there).
 */

import {
  type DnsReason,
  FLAG_RECURSION_DESIRED,
  framedSize,
  MessageReader,
  refusal,
  TYPE_TSIG,
} from './dns-message.ts';
import type { NameMeasures } from './dns-name.ts';
import { type Reading, read } from './reading.ts';

export type { DnsReason } from './dns-message.ts';

export interface DnsQuery extends NameMeasures {
  readonly id: number;
  /** Lower case, without the last dot; the root is `.`. */
  readonly name: string;
  readonly type: number;
  readonly class: number;
  readonly recursionDesired: boolean;
  /** Bytes of datagrams that the client takes, by EDNS; 0 without EDNS. */
  readonly udpSize: number;
  /** Of EDNS: bytes that say something and are no name. */
  readonly optionBytes: number;
  /** Bytes of the message; over TCP two more stand before it. */
  readonly size: number;
}

/** 255 of name, EDNS with cookie and padding to a multiple of 128 (RFC 8467), TSIG; and room. */
export const DNS_QUERY_MAX = 1024;

/** One for each thread. */
export class DnsQueryReader {
  readonly #maxBytes: number;
  readonly #message = new MessageReader();
  readonly #query: { -readonly [Field in keyof DnsQuery]: DnsQuery[Field] } = {
    id: 0,
    name: '',
    type: 0,
    class: 0,
    recursionDesired: false,
    udpSize: 0,
    optionBytes: 0,
    size: 0,
    length: 0,
    longestLabel: 0,
    labels: 0,
    entropy: 0,
    entropyOf: 0,
  };
  readonly #read: Reading<DnsQuery, DnsReason> = read(this.#query);

  constructor(maxBytes = DNS_QUERY_MAX) {
    this.#maxBytes = maxBytes;
  }

  /** The payload of a datagram. What is read is good until the next call. */
  datagram(bytes: Uint8Array): Reading<DnsQuery, DnsReason> {
    if (bytes.length > this.#maxBytes) return refusal('message-too-large');
    return this.#answer(bytes, 0, bytes.length);
  }

  /** The first message of a stream, from its length on; the next begins 2 + `size` bytes later. */
  stream(bytes: Uint8Array): Reading<DnsQuery, DnsReason> {
    const size = framedSize(bytes, this.#maxBytes);
    return typeof size === 'number' ? this.#answer(bytes, 2, 2 + size) : size;
  }

  #answer(bytes: Uint8Array, base: number, end: number): Reading<DnsQuery, DnsReason> {
    return this.#whole(bytes, base, end) ? this.#read : refusal(this.#message.reason!);
  }

  #whole(bytes: Uint8Array, base: number, end: number): boolean {
    const message = this.#message;
    if (!message.header(bytes, base, end, false)) return false;
    if (message.questions === 0) return message.refuse('no-question');
    if (message.answers > 0 || message.authorities > 0 || message.additionals > 2) {
      return message.refuse('records-in-query');
    }
    if (!message.question()) return false;
    const { name } = message;
    const query = this.#query;
    // Records have names of their own, which are only skipped: this one stands.
    for (let i = 1; i <= message.additionals; i++) {
      if (!message.record()) return false;
      // RFC 8945 §5.1: the last.
      const signature = message.recordType === TYPE_TSIG && i === message.additionals;
      if (!message.isEdns && !signature) return message.refuse('records-in-query');
    }
    if (!message.ended()) return false;
    query.id = message.id;
    query.name = name.text();
    query.type = message.type;
    query.class = message.class;
    query.recursionDesired = (message.flags & FLAG_RECURSION_DESIRED) !== 0;
    query.udpSize = message.udpSize;
    query.optionBytes = message.optionBytes;
    query.size = end - base;
    query.length = name.length;
    query.longestLabel = name.longestLabel;
    query.labels = name.labels;
    query.entropy = name.entropy();
    query.entropyOf = name.entropyOf;
    return true;
  }
}
