/**
 * DNS answers (RFC 1035 §4, RFC 2181 §5, §8, RFC 6891): what one teaches about the name that was asked, its aliases in
 * order and the addresses at their end. Only the answer section teaches, only records of class IN, of the type that was
 * asked, at the end of the chain from the question's name; the rest is walked, and what was ignored is told. The hints of HTTPS
 * and SVCB records (RFC 9460 §7.3) teach nothing: a client asks for the addresses too.
 * Leaves out: whether the answer may be believed (resolver, question seen), DNSSEC, negative answers' TTL, DNAME (a server
 * sends the CNAME that it makes, RFC 6672 §3.1).
 */

import { ipv4Text, ipv6Text } from './address-text.ts';
import { u16 } from './bytes.ts';
import {
  CLASS_IN,
  type DnsReason,
  FLAG_TRUNCATED,
  framedSize,
  MessageReader,
  RCODE,
  refusal,
  TYPE_A,
  TYPE_AAAA,
  TYPE_ANY,
  TYPE_CNAME,
  TYPE_HTTPS,
  TYPE_SVCB,
} from './dns-message.ts';
import { type Reading, read } from './reading.ts';

export interface DnsAlias {
  /** What the name before it (the question's, at first) is an alias of. */
  readonly name: string;
  /** Seconds. */
  readonly ttl: number;
}

export interface DnsAddress {
  /** Canonical text. */
  readonly address: string;
  readonly family: 4 | 6;
  /** Seconds; of this record alone. */
  readonly ttl: number;
}

/** Where the aliases end: at a name that is none, or before one that cannot be followed. Only `whole` chains have addresses. */
export type ChainEnd = 'whole' | 'loop' | 'too-long' | 'odd-name';

export interface DnsAnswer {
  readonly id: number;
  /** Undefined where the server did not repeat the question, which it may in an error without records. */
  readonly name: string | undefined;
  readonly type: number;
  readonly class: number;
  /** With the upper bits of EDNS. */
  readonly rcode: number;
  /** The client is to ask again over TCP; it may use what is there. */
  readonly truncated: boolean;
  readonly aliases: readonly DnsAlias[];
  readonly chain: ChainEnd;
  /** Of the last alias, or of the name that was asked; none where rcode is not 0. */
  readonly addresses: readonly DnsAddress[];
  /** Addresses and aliases of the answer section of another name, type or class. */
  readonly foreign: number;
  /** HTTPS and SVCB records with addresses in them, in all sections. */
  readonly hints: number;
  /** Bytes of the message; over TCP two more stand before it. */
  readonly size: number;
}

export interface AnswerLimits {
  readonly bytes: number;
  /** Of all sections. */
  readonly records: number;
  readonly aliases: number;
}

/** Records: four times those of the largest sets in use, which fill 4 KiB. Aliases: as resolvers follow (unbound 12, BIND 16). */
export const ANSWER_LIMITS: AnswerLimits = { bytes: 65_535, records: 1024, aliases: 16 };

const HINTS = new Set([4, 6]);

/** An address or an alias of the answer section. */
interface Found {
  /** Undefined: an odd name, which is no host's. */
  readonly owner: string | undefined;
  readonly ttl: number;
  /** Of an address: where it lies. */
  readonly data: number;
  /** 0: an alias. */
  readonly family: 0 | 4 | 6;
  /** Of an alias. */
  readonly target: string | undefined;
}

/** One for each thread; what is read is the caller's. */
export class DnsAnswerReader {
  readonly #limits: AnswerLimits;
  readonly #message = new MessageReader();
  #name: string | undefined;
  #questionAt = 0;
  #found: Found[] = [];
  #foreign = 0;
  #hints = 0;

  constructor(limits: AnswerLimits = ANSWER_LIMITS) {
    this.#limits = limits;
  }

  /** The payload of a datagram. */
  datagram(bytes: Uint8Array): Reading<DnsAnswer, DnsReason> {
    if (bytes.length > this.#limits.bytes) return refusal('message-too-large');
    return this.#answer(bytes, 0, bytes.length);
  }

  /** The first message of a stream, from its length on; the next begins 2 + `size` bytes later. */
  stream(bytes: Uint8Array): Reading<DnsAnswer, DnsReason> {
    const size = framedSize(bytes, this.#limits.bytes);
    return typeof size === 'number' ? this.#answer(bytes, 2, 2 + size) : size;
  }

  #answer(bytes: Uint8Array, base: number, end: number): Reading<DnsAnswer, DnsReason> {
    this.#found = [];
    this.#foreign = 0;
    this.#hints = 0;
    return this.#whole(bytes, base, end) ? read(this.#value()) : refusal(this.#message.reason!);
  }

  #whole(bytes: Uint8Array, base: number, end: number): boolean {
    const message = this.#message;
    if (!message.header(bytes, base, end, true)) return false;
    const { answers, authorities, additionals } = message;
    const records = answers + authorities + additionals;
    if (records > this.#limits.records) return message.refuse('too-many-records');
    this.#name = undefined;
    if (message.questions === 1) {
      if (!message.question()) return false;
      this.#name = message.name.text();
      this.#questionAt = base + 12;
    } else if ((message.flags & RCODE) === 0 || answers + authorities > 0) return message.refuse('no-question');
    for (let i = 0; i < records; i++) {
      if (!message.record()) return false;
      if (message.isEdns && i < answers + authorities) return message.refuse('bad-edns');
      if (!this.#look(i < answers)) return false;
    }
    return message.ended();
  }

  /** At the record at hand. */
  #look(teaches: boolean): boolean {
    const message = this.#message;
    const { recordType: type, data, dataEnd, ttl } = message;
    if (type === TYPE_SVCB || type === TYPE_HTTPS) return this.#service();
    const family = type === TYPE_A ? 4 : type === TYPE_AAAA ? 6 : 0;
    if (family === 0 && type !== TYPE_CNAME) return true;
    const ofInternet = message.recordClass === CLASS_IN;
    if (family !== 0) {
      if (ofInternet && dataEnd - data !== (family === 4 ? 4 : 16)) return message.refuse('bad-record');
      if (!teaches) return true;
      const asked = message.type === type || message.type === TYPE_ANY;
      if (!asked || !ofInternet) this.#foreign++;
      else this.#found.push({ owner: this.#owner(), ttl, data, family, target: undefined });
      return message.reason === undefined;
    }
    if (!teaches) return true;
    if (!ofInternet) {
      this.#foreign++;
      return true;
    }
    const target = this.#text(data, dataEnd);
    if (message.reason === 'cut-short') return message.refuse('bad-record');
    if (message.reason !== undefined) return false;
    if (message.name.end !== dataEnd) return message.refuse('bad-record');
    this.#found.push({ owner: this.#owner(), ttl, data, family, target });
    return message.reason === undefined;
  }

  /** Most often a pointer to the question. */
  #owner(): string | undefined {
    const { bytes, base, end, owner } = this.#message;
    const pointer = u16(bytes, owner);
    return pointer >= 0xc000 && base + (pointer & 0x3fff) === this.#questionAt ? this.#name : this.#text(owner, end);
  }

  /** Undefined for an odd one; what is wrong with any other is wrong with the message. */
  #text(at: number, limit: number): string | undefined {
    const { name, bytes, base } = this.#message;
    if (name.read(bytes, at, base, limit)) return name.text();
    if (name.reason !== 'odd-name-byte') this.#message.refuse(name.reason!);
    return undefined;
  }

  /** RFC 9460 §2.2: priority, a target, parameters. */
  #service(): boolean {
    const message = this.#message;
    const { bytes, data, dataEnd, name } = message;
    // Over the end of the data is as wrong as over the end of the message; a pointer is not allowed here.
    if (data + 3 > dataEnd || !name.skip(bytes, data + 2, dataEnd) || name.compressed) {
      return message.refuse('bad-record');
    }
    let hinted = false;
    for (let at = name.end; at < dataEnd; ) {
      if (at + 4 > dataEnd) return message.refuse('bad-record');
      if (HINTS.has(u16(bytes, at))) hinted = true;
      at += 4 + u16(bytes, at + 2);
      if (at > dataEnd) return message.refuse('bad-record');
    }
    if (hinted) this.#hints++;
    return true;
  }

  #value(): DnsAnswer {
    const message = this.#message;
    const name = this.#name;
    const rcode = (message.flags & RCODE) | (message.extendedRcode << 4);
    const aliases: DnsAlias[] = [];
    const asked = message.class === CLASS_IN ? name : undefined;
    const chain = asked === undefined ? 'whole' : this.#follow(asked, aliases);
    const last = chain === 'whole' ? (aliases.at(-1)?.name ?? asked) : undefined;
    const addresses: DnsAddress[] = [];
    let used = aliases.length;
    for (const { owner, family, data, ttl } of this.#found) {
      if (family === 0 || owner === undefined || owner !== last) continue;
      used++;
      if (rcode !== 0) continue;
      const address = family === 4 ? ipv4Text(message.bytes, data) : ipv6Text(message.bytes, data);
      addresses.push({ address, family, ttl });
    }
    return {
      id: message.id,
      name,
      type: message.type,
      class: message.class,
      rcode,
      truncated: (message.flags & FLAG_TRUNCATED) !== 0,
      aliases,
      chain,
      addresses,
      foreign: this.#foreign + this.#found.length - used,
      hints: this.#hints,
      size: message.end - message.base,
    };
  }

  /** RFC 2181 §10.1: one alias of a name; the first, where there are more. They come in any order. */
  #follow(name: string, aliases: DnsAlias[]): ChainEnd {
    const seen = new Set([name]);
    for (let current = name; ; ) {
      const next = this.#found.find(({ owner, family }) => family === 0 && owner === current);
      if (next === undefined) return 'whole';
      if (next.target === undefined) return 'odd-name';
      if (seen.has(next.target)) return 'loop';
      if (aliases.length === this.#limits.aliases) return 'too-long';
      aliases.push({ name: next.target, ttl: next.ttl });
      seen.add(next.target);
      current = next.target;
    }
  }
}
