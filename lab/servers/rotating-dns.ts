/**
 * A DNS server whose answers never repeat themselves: every name below its domain has, in each answer, the next two addresses
 * of a pool, for one second; as names of large services do. `--domain` and the names below answer for A and AAAA, with no
 * data for other types; all else does not exist. UDP and TCP on 127.0.0.1, plain queries of one question (RFC 1035 §4); EDNS
 * is read over and not answered, which a server may (RFC 6891 §7).
 * A program of its own: `node rotating-dns.js --port 5300 --domain rot.example.test 198.51.100.128/26 2001:db8::/122`.
 */
import { createSocket } from 'node:dgram';
import { createServer } from 'node:net';
import { parseArgs } from 'node:util';
import { bytesOfU16, bytesOfU32, join, u16 } from '../../wire/bytes.ts';

export const PER_ANSWER = 2;
const TTL_SECONDS = 1;
const [TYPE_A, TYPE_AAAA] = [1, 28];
const HEADER = 12;
/** Response, authoritative; recursion desired is given back. */
const FLAGS = 0x8400;
const FLAG_RECURSION_DESIRED = 0x0100;
const NXDOMAIN = 3;
/** A pointer to the question's name. */
const SAME_NAME = 0xc00c;

/** Addresses of one family, taken in turn and for ever. */
export class AddressPool {
  readonly family: 4 | 6;
  readonly #first: Uint8Array;
  readonly #count: number;
  #next = 0;

  /** `text`: an address with a length that leaves at most 16 bits. */
  constructor(text: string) {
    const [address = '', length = ''] = text.split('/');
    this.family = address.includes(':') ? 6 : 4;
    this.#first = this.family === 4 ? Uint8Array.from(address.split('.'), Number) : bytesOfV6(address);
    this.#count = 2 ** (this.#first.length * 8 - Number(length));
    if (!(this.#count > 0 && this.#count <= 65_536))
      throw new Error(`${text}: expected a length with at most 16 bits left`);
  }

  next(): Uint8Array {
    const address = Uint8Array.from(this.#first);
    const low = address.length - 2;
    address.set(bytesOfU16(u16(address, low) + (this.#next++ % this.#count)), low);
    return address;
  }
}

function bytesOfV6(text: string): Uint8Array {
  const [before = [], after] = text.split('::').map((half) => half.split(':').filter((group) => group !== ''));
  const middle = after === undefined ? 0 : 8 - before.length - after.length;
  const groups = [...before, ...Array.from({ length: middle }, () => '0'), ...(after ?? [])];
  return join(groups.map((group) => bytesOfU16(Number.parseInt(group, 16))));
}

/** Undefined: what is no query is not answered. */
export function answer(query: Uint8Array, domain: string, pools: readonly AddressPool[]): Uint8Array | undefined {
  if (query.length < HEADER || (u16(query, 2) & 0x8000) !== 0 || u16(query, 4) !== 1) return undefined;
  const labels: string[] = [];
  let at = HEADER;
  for (;;) {
    const size = query[at++];
    if (size === undefined || size > 63 || at + size > query.length) return undefined;
    if (size === 0) break;
    labels.push(
      Buffer.from(query.subarray(at, at + size))
        .toString('latin1')
        .toLowerCase(),
    );
    at += size;
  }
  if (at + 4 > query.length) return undefined;
  const name = labels.join('.');
  const known = name === domain || name.endsWith(`.${domain}`);
  const type = u16(query, at);
  const pool = known ? pools.find(({ family }) => type === (family === 4 ? TYPE_A : TYPE_AAAA)) : undefined;
  const addresses = pool === undefined ? [] : Array.from({ length: PER_ANSWER }, () => pool.next());
  return join([
    query.subarray(0, 2),
    bytesOfU16(FLAGS | (u16(query, 2) & FLAG_RECURSION_DESIRED) | (known ? 0 : NXDOMAIN)),
    ...[1, addresses.length, 0, 0].map(bytesOfU16),
    query.subarray(HEADER, at + 4),
    ...addresses.flatMap((address) => [
      ...[SAME_NAME, type, 1].map(bytesOfU16),
      bytesOfU32(TTL_SECONDS),
      bytesOfU16(address.length),
      address,
    ]),
  ]);
}

function main(): void {
  const { values, positionals } = parseArgs({
    options: { port: { type: 'string' }, domain: { type: 'string' } },
    allowPositionals: true,
  });
  const [port, domain, pools] = [
    Number(values.port),
    values.domain ?? '',
    positionals.map((text) => new AddressPool(text)),
  ];
  const udp = createSocket('udp4');
  udp.on('message', (query, from) => {
    const message = answer(query, domain, pools);
    if (message !== undefined) udp.send(message, from.port, from.address, () => {});
  });
  udp.bind(port, '127.0.0.1');
  const tcp = createServer((socket) => {
    let kept = Buffer.alloc(0);
    socket.on('error', () => socket.destroy());
    socket.on('data', (chunk) => {
      kept = Buffer.concat([kept, chunk]);
      while (kept.length >= 2 && kept.length >= 2 + kept.readUInt16BE(0)) {
        const size = kept.readUInt16BE(0);
        const message = answer(kept.subarray(2, 2 + size), domain, pools);
        if (message !== undefined) socket.write(join([bytesOfU16(message.length), message]));
        kept = kept.subarray(2 + size);
      }
    });
  });
  tcp.listen(port, '127.0.0.1');
}

if (process.argv[1] === import.meta.filename) main();
