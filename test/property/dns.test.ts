/**
 * DNS against generated messages and another codec (dns-packet): what it builds we read, what we read it reads the same way,
 * whatever was done to the bytes; any bytes have an answer, which over TCP no cut changes. The measures are those of a slow
 * reading of their definition. dns-packet compresses nothing, so a slow writer here does.
 *
 * Where we are stricter: all but one question, records in a query, bytes behind the end, names that no host has, pointers that
 * do not go backwards, addresses of another name than the question's.
 */

import { deepStrictEqual, equal, ok } from 'node:assert/strict';
import { createRequire } from 'node:module';
import fc from 'fast-check';
import t from 'tap';
import { DnsQueryReader } from '../../wire/dns.ts';
import { DnsAnswerReader } from '../../wire/dns-answer.ts';
import { edns, framed, message, nameBytes, pointer, question, record } from '../dns-build.ts';

/** It has no types of its own. */
interface Packet {
  type: 'query' | 'response';
  id: number;
  flags: number;
  questions: { name: string; type: string; class?: string }[];
  answers?: { name: string; type: string; ttl: number; data: unknown }[];
  additionals?: object[];
}
const packet = createRequire(import.meta.url)('dns-packet') as {
  encode(value: Packet): Buffer;
  decode(bytes: Buffer): Packet & { answers: NonNullable<Packet['answers']> };
  streamEncode(value: Packet): Buffer;
};

const queries = new DnsQueryReader();
const answers = new DnsAnswerReader();

const label = fc
  .array(fc.constantFrom(...'abcdefghijklmnopqrstuvwxyzABCXYZ0123456789-_'), { minLength: 1, maxLength: 20 })
  .map((some) => some.join(''));
const name = fc.array(label, { minLength: 1, maxLength: 7 }).map((labels) => labels.join('.'));
const few = fc.constantFrom('a.test', 'b.test', 'c.A.test', 'd.b.test', 'www.example.test');
const id = fc.nat(0xffff);
const byte = fc.nat(255);
const v4 = fc.tuple(byte, byte, byte, byte).map((bytes) => bytes.join('.'));
const v6 = fc.constantFrom('2001:db8::1', 'fe80::1', '::', '2001:db8:0:1:0:0:0:1');
const ttl = fc.nat(0x7fffffff);

const NUMBERS = { A: 1, AAAA: 28, TXT: 16 } as const;

const longest = (labels: readonly string[]): number => Math.max(...labels.map(({ length }) => length));

/** Shannon's definition, slowly. */
function entropyOf(text: string): number {
  const counts = new Map<string, number>();
  for (const character of text) counts.set(character, (counts.get(character) ?? 0) + 1);
  return [...counts.values()].reduce((sum, n) => sum - (n / text.length) * Math.log2(n / text.length), 0);
}

t.test('a query that dns-packet built is read, with its measures', async () => {
  const property = fc.property(id, name, fc.constantFrom('A', 'AAAA', 'TXT'), fc.boolean(), (id, name, type, opt) => {
    const additionals = opt ? [{ type: 'OPT', name: '.', udpPayloadSize: 1400, flags: 0, options: [] }] : [];
    const bytes = packet.encode({ type: 'query', id, flags: 0x0100, questions: [{ name, type }], additionals });
    const reading = queries.datagram(bytes);
    ok(reading.state === 'read');
    const { value } = reading;
    const labels = name.toLowerCase().split('.');
    const below = labels.slice(0, -2).join('');
    deepStrictEqual(
      [value.id, value.name, value.type, value.class, value.udpSize, value.length, value.labels, value.longestLabel],
      [id, labels.join('.'), NUMBERS[type], 1, opt ? 1400 : 0, name.length, labels.length, longest(labels)],
    );
    equal(value.entropyOf, below.length);
    ok(Math.abs(value.entropy - entropyOf(below)) < 1e-9);
  });
  fc.assert(property, { numRuns: 500 });
});

const resource = fc.oneof(
  fc.record({ type: fc.constant('A'), name: few, ttl, data: v4 }),
  fc.record({ type: fc.constant('AAAA'), name: few, ttl, data: v6 }),
  fc.record({ type: fc.constant('CNAME'), name: few, ttl, data: few }),
  fc.record({ type: fc.constant('TXT'), name: few, ttl, data: fc.constant('x') }),
);
const reply = fc
  .record({ id, name: few, type: fc.constantFrom('A', 'AAAA'), answers: fc.array(resource, { maxLength: 8 }) })
  .map(({ id, name, type, answers }): Packet => {
    return { type: 'response', id, flags: 0x0180, questions: [{ name, type }], answers };
  });

/** What it teaches, by the words of the definition: the first alias of each name, in circles none; addresses at the end. */
function taught({ questions: [asked], answers = [] }: Packet): unknown {
  const lower = (text: unknown): string => String(text).toLowerCase();
  const chain = [lower(asked?.name)];
  for (;;) {
    const alias = answers.find(({ name, type }) => type === 'CNAME' && lower(name) === chain.at(-1));
    if (alias === undefined) break;
    if (chain.includes(lower(alias.data))) return { chain: 'loop', names: chain.slice(1), addresses: [] };
    chain.push(lower(alias.data));
  }
  const addresses = answers
    .filter(({ name, type }) => type === asked?.type && lower(name) === chain.at(-1))
    .map(({ data, ttl }) => ({ address: data === '2001:db8:0:1:0:0:0:1' ? '2001:db8:0:1::1' : data, ttl }));
  return { chain: 'whole', names: chain.slice(1), addresses };
}

t.test('an answer that dns-packet built teaches what it says of the name that was asked', async () => {
  const property = fc.property(reply, fc.boolean(), (built, stream) => {
    const reading = stream ? answers.stream(packet.streamEncode(built)) : answers.datagram(packet.encode(built));
    ok(reading.state === 'read');
    const { chain, aliases, addresses } = reading.value;
    const read = {
      chain,
      names: aliases.map(({ name }) => name),
      addresses: addresses.map(({ address, ttl }) => ({ address, ttl })),
    };
    deepStrictEqual(read, taught(built));
  });
  fc.assert(property, { numRuns: 700 });
});

t.test('names that lean on each other are read as if they stood alone', async () => {
  const property = fc.property(fc.array(few, { minLength: 1, maxLength: 8 }), few, (names, asked) => {
    const places = new Map<string, number>();
    let at = 12;
    const compressed = (text: string, from: number): number[] => {
      const labels = text.split('.');
      for (let i = 0; i < labels.length; i++) {
        const known = places.get(labels.slice(i).join('.'));
        const before = labels.slice(0, i);
        const own = known === undefined && i < labels.length - 1 ? undefined : before;
        if (own === undefined) continue;
        const bytes = known === undefined ? nameBytes(text) : pointer(known, ...before);
        let offset = from;
        for (const [j, label] of labels.slice(0, known === undefined ? labels.length : i).entries()) {
          places.set(labels.slice(j).join('.'), offset);
          offset += label.length + 1;
        }
        return bytes;
      }
      return nameBytes(text);
    };
    const q = question(compressed(asked, at), 1);
    at += q.length;
    const records = names.map((name, i) => {
      const built = record(compressed(name, at), 1, [192, 0, 2, i]);
      at += built.length;
      return built;
    });
    const reading = answers.datagram(message({ flags: 0x8180, questions: [q], answers: records }));
    ok(reading.state === 'read');
    const expected = names.flatMap((name, i) => (name.toLowerCase() === asked.toLowerCase() ? [`192.0.2.${i}`] : []));
    deepStrictEqual(
      reading.value.addresses.map(({ address }) => address),
      expected,
    );
    equal(reading.value.foreign, names.length - expected.length);
  });
  fc.assert(property, { numRuns: 500 });
});

const built = fc.oneof(
  reply.map((value) => Uint8Array.from(packet.encode(value))),
  fc.tuple(few, byte).map(([name, type]) => message({ questions: [question(name, type)], additionals: [edns()] })),
  few.map((name) =>
    message({ flags: 0x8180, questions: [question(name, 1)], answers: [record(pointer(12), 1, [1, 2, 3, 4])] }),
  ),
);
const edits = fc.array(fc.record({ at: fc.nat(1000), drop: fc.nat(2), insert: fc.array(byte, { maxLength: 2 }) }), {
  maxLength: 3,
});
const bent = fc.tuple(built, edits).map(([bytes, edits]) => {
  const bent = [...bytes];
  for (const { at, drop, insert } of edits) bent.splice(at % (bent.length + 1), drop, ...insert);
  return Uint8Array.from(bent);
});

t.test('bent bytes and any bytes have an answer, which no cut changes', async () => {
  const bytes = fc.oneof(bent, fc.uint8Array({ maxLength: 120 }));
  const property = fc.property(bytes, fc.nat(1000), (bytes, place) => {
    for (const reader of [queries, answers]) {
      const datagram = structuredClone(reader.datagram(bytes));
      ok(datagram.state !== 'more');
      const stream = framed(bytes);
      const size = stream.length;
      const part = structuredClone(reader.stream(stream.subarray(0, place % size)));
      const whole = structuredClone(reader.stream(stream));
      if (part.state !== 'more') deepStrictEqual(part, whole);
      deepStrictEqual(whole, datagram);
      deepStrictEqual(
        structuredClone(reader.stream(Uint8Array.from([...stream, 0, 9, 9]))),
        whole,
        'the next one is left',
      );
    }
  });
  fc.assert(property, { numRuns: 2000 });
});

t.test('dns-packet reads what we let pass as we do', async (t) => {
  let read = 0;
  const property = fc.property(bent, (bytes) => {
    const query = queries.datagram(bytes);
    const answer = answers.datagram(bytes);
    if (query.state !== 'read' && answer.state !== 'read') return;
    let theirs: ReturnType<typeof packet.decode>;
    try {
      theirs = packet.decode(Buffer.from(bytes));
    } catch {
      // It reads all records' data, of types too that we only walk past.
      return;
    }
    read++;
    const ours = query.state === 'read' ? query.value : answer.state === 'read' ? answer.value : undefined;
    equal(theirs.id, ours?.id);
    const asked = theirs.questions[0]?.name;
    equal(asked === undefined || asked === '.' ? asked : asked.toLowerCase(), ours?.name);
    if (answer.state !== 'read') return;
    const addresses = answer.value.addresses.map(({ address }) => address);
    const all = theirs.answers.flatMap(({ type, data }) => (type === 'A' || type === 'AAAA' ? [String(data)] : []));
    for (const address of addresses)
      ok(
        all.some((other) => sameAddress(other, address)),
        `${address} is among ${all}`,
      );
  });
  fc.assert(property, { numRuns: 1500 });
  t.ok(read > 200, `${read} were let pass`);
});

/** Theirs need not be canonical. */
function sameAddress(theirs: string, ours: string): boolean {
  if (!theirs.includes(':') || !ours.includes(':')) return theirs === ours;
  return new URL(`http://[${theirs}]/`).hostname === new URL(`http://[${ours}]/`).hostname;
}
