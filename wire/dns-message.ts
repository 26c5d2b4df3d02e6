/**
 * What queries and answers of the DNS have in common (RFC 1035 §4.1, RFC 6891 §6.1): header, the one question, records one
 * after another with EDNS among them, and the message's length in front over TCP (RFC 1035 §4.2.2, RFC 7766 §8).
 * Leaves out: what records say; dns.ts reads queries with this, dns-answer.ts answers.
 */

import { u8, u16, u32 } from './bytes.ts';
import { DNS_HEADER, NameReader, type NameReason } from './dns-name.ts';
import { MORE, type Reading, refused } from './reading.ts';

export type DnsReason =
  | NameReason
  | 'message-too-large'
  /** An answer where a query is due. */
  | 'response-not-query'
  /** A query where an answer is due. */
  | 'query-not-response'
  /** Not QUERY: updates, notifications, DSO. */
  | 'opcode-not-query'
  /** RFC 1035 §4.1.1 Z. */
  | 'reserved-bit'
  | 'no-question'
  | 'several-questions'
  /** Other than EDNS and TSIG. */
  | 'records-in-query'
  | 'too-many-records'
  /** Its data is not as long as its type demands, or ends within. */
  | 'bad-record'
  /** Not of the root, another version than 0, or options that end within. */
  | 'bad-edns'
  | 'several-edns'
  | 'trailing-bytes';

const FLAG_RESPONSE = 0x8000;
const OPCODE = 0x7800;
const FLAG_RESERVED = 0x0040;
export const FLAG_TRUNCATED = 0x0200;
export const FLAG_RECURSION_DESIRED = 0x0100;
export const RCODE = 0x000f;

export const CLASS_IN = 1;
export const TYPE_A = 1;
export const TYPE_CNAME = 5;
export const TYPE_AAAA = 28;
const TYPE_OPT = 41;
export const TYPE_SVCB = 64;
export const TYPE_HTTPS = 65;
export const TYPE_TSIG = 250;
export const TYPE_ANY = 255;

/** One object for each reason: hostile messages cost no garbage. */
const refusals = new Map<DnsReason, { readonly state: 'refused'; readonly reason: DnsReason }>();

export function refusal(reason: DnsReason): { readonly state: 'refused'; readonly reason: DnsReason } {
  const known = refusals.get(reason);
  if (known !== undefined) return known;
  const first = refused(reason);
  refusals.set(reason, first);
  return first;
}

/** The first message of a stream: its bytes are [2, 2 + size). Read: its size. */
export function framedSize(bytes: Uint8Array, maxBytes: number): number | Reading<never, DnsReason> {
  if (bytes.length < 2) return MORE;
  const size = u16(bytes, 0);
  if (size > maxBytes) return refusal('message-too-large');
  if (size < DNS_HEADER) return refusal('cut-short');
  return bytes.length < 2 + size ? MORE : size;
}

/** Reads one message after another. Steps answer whether they went well; else `reason` says why not. */
export class MessageReader {
  reason: DnsReason | undefined;
  readonly name = new NameReader();
  bytes: Uint8Array = new Uint8Array(0);
  base = 0;
  end = 0;
  id = 0;
  flags = 0;
  questions = 0;
  answers = 0;
  authorities = 0;
  additionals = 0;
  /** Of the question. */
  type = 0;
  class = 0;
  /** EDNS: 0 without; the size of datagrams that the sender takes, the upper rcode, the bytes of its options. */
  udpSize = 0;
  extendedRcode = 0;
  optionBytes = 0;
  /** Of the record at hand: where its owner's name stands, where its data lies. */
  owner = 0;
  recordType = 0;
  recordClass = 0;
  ttl = 0;
  data = 0;
  dataEnd = 0;
  #at = 0;
  #edns = false;

  /** The header; the message is [base, end). */
  header(bytes: Uint8Array, base: number, end: number, response: boolean): boolean {
    this.reason = undefined;
    this.bytes = bytes;
    this.base = base;
    this.end = end;
    this.udpSize = 0;
    this.extendedRcode = 0;
    this.optionBytes = 0;
    this.type = 0;
    this.class = 0;
    this.#edns = false;
    if (end - base < DNS_HEADER) return this.refuse('cut-short');
    this.id = u16(bytes, base);
    this.flags = u16(bytes, base + 2);
    this.questions = u16(bytes, base + 4);
    this.answers = u16(bytes, base + 6);
    this.authorities = u16(bytes, base + 8);
    this.additionals = u16(bytes, base + 10);
    this.#at = base + DNS_HEADER;
    if (((this.flags & FLAG_RESPONSE) !== 0) !== response) {
      return this.refuse(response ? 'query-not-response' : 'response-not-query');
    }
    if ((this.flags & OPCODE) !== 0) return this.refuse('opcode-not-query');
    if ((this.flags & FLAG_RESERVED) !== 0) return this.refuse('reserved-bit');
    return this.questions <= 1 || this.refuse('several-questions');
  }

  /** Its name is what `name` holds then. */
  question(): boolean {
    if (!this.name.read(this.bytes, this.#at, this.base, this.end)) return this.refuse(this.name.reason!);
    const at = this.name.end;
    if (at + 4 > this.end) return this.refuse('cut-short');
    this.type = u16(this.bytes, at);
    this.class = u16(this.bytes, at + 2);
    this.#at = at + 4;
    return true;
  }

  /** The next one. That of EDNS (told by isEdns) is read too. */
  record(): boolean {
    const { bytes } = this;
    this.owner = this.#at;
    if (!this.name.skip(bytes, this.#at, this.end)) return this.refuse(this.name.reason!);
    const at = this.name.end;
    if (at + 10 > this.end) return this.refuse('cut-short');
    this.recordType = u16(bytes, at);
    this.recordClass = u16(bytes, at + 2);
    // RFC 2181 §8: with the top bit it is none.
    const ttl = u32(bytes, at + 4);
    this.ttl = ttl > 0x7fffffff ? 0 : ttl;
    this.data = at + 10;
    this.dataEnd = this.data + u16(bytes, at + 8);
    if (this.dataEnd > this.end) return this.refuse('cut-short');
    this.#at = this.dataEnd;
    return this.recordType !== TYPE_OPT || this.#readEdns(ttl);
  }

  get isEdns(): boolean {
    return this.recordType === TYPE_OPT;
  }

  /** Behind the last record. */
  ended(): boolean {
    return this.#at === this.end || this.refuse('trailing-bytes');
  }

  #readEdns(ttl: number): boolean {
    if (this.#edns) return this.refuse('several-edns');
    this.#edns = true;
    if (u8(this.bytes, this.owner) !== 0 || ((ttl >>> 16) & 0xff) !== 0) return this.refuse('bad-edns');
    for (let at = this.data; at < this.dataEnd; ) {
      if (at + 4 > this.dataEnd) return this.refuse('bad-edns');
      at += 4 + u16(this.bytes, at + 2);
      if (at > this.dataEnd) return this.refuse('bad-edns');
    }
    this.udpSize = this.recordClass;
    this.extendedRcode = ttl >>> 24;
    this.optionBytes = this.dataEnd - this.data;
    return true;
  }

  refuse(reason: DnsReason): false {
    this.reason = reason;
    return false;
  }
}
