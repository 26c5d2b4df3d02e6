/**
 * Hostile bytes: no decoder throws, hangs or reads past its input, whatever it is given; what the builders make reads
 * back as what it was made from. Mutated messages start from well-formed ones, since random bytes alone do not get far.
 */

import { deepStrictEqual, equal, ok } from 'node:assert/strict';
import fc from 'fast-check';
import t from 'tap';
import { addressBytes, ipv4Text, ipv6Text, rememberedText } from '../../wire/address-text.ts';
import { gratuitousArp, parseArp } from '../../wire/arp.ts';
import { bytesOfU16, bytesOfU32, type Decoded } from '../../wire/bytes.ts';
import { type ConntrackEntry, ConntrackReader, decodeConntrack } from '../../wire/conntrack.ts';
import { buildFrame, parseFrame } from '../../wire/ethernet.ts';
import {
  buildIcmpEcho,
  buildIp,
  buildTcp,
  buildUdp,
  PROTOCOL_TCP,
  PROTOCOL_UDP,
  parsePacket,
  transportChecksum,
} from '../../wire/ip.ts';
import { parseNeighbourAdvertisement, unsolicitedAdvertisement } from '../../wire/ndp.ts';
import { decodeNflog } from '../../wire/nflog.ts';
import { decodeNfqueue } from '../../wire/nfqueue.ts';
import { decodeSetCounts } from '../../wire/nft-counts.ts';
import { AttributeCursor, attribute, messageBounds, nested, nfnlMessage, splitMessages } from '../../wire/nlattr.ts';
import { NetlinkWriter } from '../../wire/nlwriter.ts';
import { decapVxlan, encapVxlan } from '../../wire/vxlan.ts';

const u16 = fc.nat(0xffff);
const u32 = fc.nat(0xffffffff);
const ipv4 = fc.uint8Array({ minLength: 4, maxLength: 4 }).map((bytes) => ipv4Text(bytes, 0));
// Zero groups are what canonical text is about.
const ipv6 = fc
  .array(fc.oneof({ weight: 2, arbitrary: fc.constant(0) }, { weight: 1, arbitrary: u16 }), {
    minLength: 8,
    maxLength: 8,
  })
  .map((groups) => ipv6Text(Uint8Array.from(groups.flatMap((group) => [group >> 8, group & 255])), 0));
const ends = fc.oneof(fc.record({ source: ipv4, destination: ipv4 }), fc.record({ source: ipv6, destination: ipv6 }));
const MAC = '02:00:00:00:00:05';
const payload = fc.uint8Array({ maxLength: 64 });

/** Built by our encoders in the kernel's shape: a deletion holds one tuple; an event two, and more. */
const entry = fc
  .record({
    ends,
    sourcePort: u16,
    destinationPort: u16,
    protocol: fc.nat(255),
    id: u32,
    mark: u32,
    zone: u16,
    bytes: u32,
  })
  .map((v) => {
    const original = { ...v.ends, sourcePort: v.sourcePort, destinationPort: v.destinationPort };
    const reply = {
      source: v.ends.destination,
      destination: v.ends.source,
      sourcePort: v.destinationPort,
      destinationPort: v.sourcePort,
    };
    const zero = { original: 0, reply: 0 };
    const family = v.ends.source.includes(':') ? 6 : 4;
    const value: ConntrackEntry = {
      family,
      id: v.id,
      protocol: v.protocol,
      original,
      reply,
      mark: v.mark,
      status: 8,
      packets: zero,
      bytes: { original: v.bytes, reply: 0 },
      zone: v.zone,
    };
    return value;
  });

/** The event that a kernel would send for an entry. */
function eventOf(value: ConntrackEntry): Uint8Array {
  const tuple = ({ family, protocol, original }: ConntrackEntry, type: number) => {
    const [from, to] = family === 4 ? [1, 2] : [3, 4];
    return nested(
      type,
      nested(1, attribute(from, addressBytes(original.source)), attribute(to, addressBytes(original.destination))),
      nested(
        2,
        attribute(1, Uint8Array.of(protocol)),
        attribute(2, bytesOfU16(original.sourcePort ?? 0)),
        attribute(3, bytesOfU16(original.destinationPort ?? 0)),
      ),
    );
  };
  return nfnlMessage(
    { subsystem: 1, message: 2, flags: 0 },
    tuple(value, 1),
    tuple({ ...value, original: value.reply }, 2),
    attribute(12, bytesOfU32(value.id)),
    attribute(3, bytesOfU32(value.status)),
    attribute(8, bytesOfU32(value.mark)),
    attribute(18, bytesOfU16(value.zone)),
    nested(9, attribute(2, Uint8Array.from([0, 0, 0, 0, ...bytesOfU32(value.bytes.original)]))),
  );
}

const text = rememberedText();

/** Names the entry of a message between others; undefined: it is none. */
function deletionOf(message: Uint8Array, before = new Uint8Array(), after = before): Uint8Array | undefined {
  const bytes = Uint8Array.from([...before, ...message, ...after]);
  const reader = new ConntrackReader(text);
  if (reader.read(bytes, before.length, before.length + message.length) !== undefined) return undefined;
  const writer = new NetlinkWriter(16);
  reader.writeDeletion(writer, 1);
  return writer.written();
}

t.test('what is built reads back', async (t) => {
  const holds = <T>(name: string, property: fc.IProperty<T>) => {
    const outcome = fc.check(property, { numRuns: 300 });
    t.notOk(outcome.failed, name, { found: String(outcome.errorInstance), input: outcome.counterexample });
  };
  holds(
    'conntrack entries',
    fc.property(entry, (value) => {
      const event = eventOf(value);
      deepStrictEqual(decodeConntrack(event), { ok: true, value: { type: 'destroy', ...value } });
      // A deletion names the same tuple, id and zone.
      const again = { ...value, mark: 0, status: 0, bytes: { original: 0, reply: 0 } };
      const deletion = deletionOf(event) ?? new Uint8Array();
      const reply = Uint8Array.from(event.subarray(20 + (event[20] ?? 0)).subarray(0, event[20]));
      const answered = Uint8Array.from([...deletion, ...reply]);
      deepStrictEqual(decodeConntrack(answered), { ok: true, value: { type: 'destroy', ...again } });
    }),
  );
  const transport = fc.record({
    ends,
    sourcePort: u16,
    destinationPort: u16,
    flags: fc.nat(255),
    payload,
    sequence: u32,
  });
  holds(
    'TCP, UDP and echoes',
    fc.property(transport, ({ ends, sourcePort, destinationPort, flags, payload, sequence }) => {
      const head = ends.source.includes(':') ? 40 : 20;
      const ports = { ...ends, sourcePort, destinationPort, payload };
      for (const [bytes, protocol, fields] of [
        [
          buildTcp({ ...ports, flags, sequence }),
          PROTOCOL_TCP,
          { sourcePort, destinationPort, tcpFlags: flags, sequence },
        ],
        [buildUdp(ports), PROTOCOL_UDP, { sourcePort, destinationPort }],
        [
          buildIcmpEcho({ ...ends, id: sourcePort, sequence: destinationPort, payload }),
          head === 40 ? 58 : 1,
          { icmpId: sourcePort, icmpSequence: destinationPort },
        ],
      ] as const) {
        const packet = parsePacket(bytes);
        ok(packet.ok);
        const { value } = packet;
        for (const [name, expected] of Object.entries({ ...ends, protocol, ...fields })) {
          equal(value[name as keyof typeof value], expected, name);
        }
        deepStrictEqual(bytes.subarray(value.payloadOffset, value.end), payload);
        // A one's complement sum is zero in two forms.
        if (protocol !== 1) equal(transportChecksum(ends, protocol, bytes.subarray(head)), 0);
      }
    }),
  );
  holds(
    'frames in VXLAN, ARP and neighbour advertisements',
    fc.property(fc.nat(0xffffff), u16, payload, ipv4, ipv6, (vni, etherType, payload, address4, address6) => {
      const frame = { destination: '02:00:00:00:00:07', source: MAC, etherType, payload };
      deepStrictEqual(decapVxlan(encapVxlan(vni, buildFrame(frame))), { ok: true, value: { vni, frame } });
      for (const bytes of gratuitousArp(MAC, address4)) {
        const arp = parseArp(bytes.subarray(14));
        equal(arp.ok && arp.value.senderAddress, address4);
      }
      const na = parseNeighbourAdvertisement(unsolicitedAdvertisement(MAC, address6).subarray(14));
      equal(na.ok && na.value.target, address6);
      equal(na.ok && na.value.targetMac, MAC);
    }),
  );
  const few = fc.constantFrom(0, 1, 254, 255);
  const near = fc.oneof(
    fc.record({ family: fc.constant(4 as const), bytes: fc.uint8Array({ minLength: 4, maxLength: 4 }) }),
    fc.record({ family: fc.constant(6 as const), bytes: fc.array(few, { minLength: 16, maxLength: 16 }) }),
  );
  holds(
    'addresses that are remembered',
    fc.property(fc.array(near, { maxLength: 20 }), (addresses) => {
      for (const { family, bytes } of [...addresses, ...addresses]) {
        const message = Uint8Array.from([7, ...bytes]);
        equal(text(message, 1, family), (family === 4 ? ipv4Text : ipv6Text)(message, 1));
      }
    }),
  );
  holds(
    'addresses, in the text that WHATWG URLs print too',
    fc.property(fc.oneof(ipv6, fc.ipV6()), (text) => {
      const bytes = addressBytes(text);
      const canonical = ipv6Text(bytes, 0);
      equal(`[${canonical}]`, new URL(`http://[${text}]/`).hostname);
      deepStrictEqual(addressBytes(canonical), bytes);
    }),
  );
});

/** Some bytes changed, and perhaps cut: mostly still recognisable. */
const mutated = (seed: fc.Arbitrary<Uint8Array>) =>
  fc
    .tuple(seed, fc.array(fc.tuple(u16, fc.nat(255)), { maxLength: 6 }), fc.option(u16, { freq: 3 }))
    .map(([bytes, edits, cut]) => {
      const changed = bytes.slice();
      for (const [at, value] of edits) changed[at % changed.length] = value;
      return cut === null ? changed : changed.subarray(0, cut % (changed.length + 1));
    });

t.test('hostile bytes', async (t) => {
  const packets = fc.record({ ends, payload }).map(({ ends, payload }) => {
    const ports = { ...ends, sourcePort: 1, destinationPort: 2, payload };
    return buildTcp({ ...ports, flags: 2 });
  });
  const extended = fc.array(fc.constantFrom(0, 43, 44, 51, 60), { minLength: 1, maxLength: 12 }).map((chain) => {
    const extensions = chain.flatMap((_, index) => [chain[index + 1] ?? 17, 0, 0, 0, 0, 0, 0, 0]);
    return buildIp(
      { source: 'fd00::1', destination: 'fd00::2' },
      chain[0] ?? 0,
      Uint8Array.from([...extensions, 0, 1, 0, 2]),
    );
  });
  const advertisement = fc.constant(unsolicitedAdvertisement(MAC, 'fd00::1').subarray(14));
  const log = fc.constant(
    nfnlMessage(
      { subsystem: 4, message: 0, flags: 0 },
      attribute(1, Uint8Array.of(8, 0, 2, 0)),
      attribute(2, bytesOfU32(7)),
      attribute(3, new Uint8Array(16)),
      attribute(10, Buffer.from('denied\0')),
      attribute(9, new Uint8Array(30)),
    ),
  );
  const count = attribute(2, Uint8Array.from([...attribute(1, new Uint8Array(8)), ...attribute(2, new Uint8Array(8))]));
  const element = nested(
    1,
    nested(1, attribute(1, Uint8Array.of(0, 5, 0, 128))),
    nested(7, attribute(1, Buffer.from('counter\0')), count),
  );
  const setCounts = fc.constant(
    nfnlMessage(
      { subsystem: 10, message: 12, flags: 2 },
      attribute(1, Buffer.from('s\0')),
      nested(3, element, element),
    ),
  );
  const queued = fc.constant(
    nfnlMessage(
      { subsystem: 3, message: 0, flags: 0 },
      attribute(1, new Uint8Array(7)),
      attribute(10, new Uint8Array(30)),
    ),
  );
  const whole = (decode: (bytes: Uint8Array) => Decoded<unknown>) => (bytes: Uint8Array) => {
    const decoded = decode(bytes);
    ok(decoded.ok || decoded.reason.length > 0);
    return decoded;
  };
  const subjects: [string, fc.Arbitrary<Uint8Array>, (bytes: Uint8Array) => unknown][] = [
    ['decodeConntrack', entry.map(eventOf), whole(decodeConntrack)],
    [
      'ConntrackReader',
      entry.map(eventOf),
      (bytes) => {
        const alone = deletionOf(bytes);
        equal(alone !== undefined, decodeConntrack(bytes).ok);
        ok(alone === undefined || alone.length <= bytes.length + 3);
        for (const fill of [0, 255]) deepStrictEqual(deletionOf(bytes, new Uint8Array(20).fill(fill)), alone);
      },
    ],
    ['decodeNflog', log, whole(decodeNflog)],
    ['decodeSetCounts', setCounts, whole(decodeSetCounts)],
    ['decodeNfqueue', queued, whole(decodeNfqueue)],
    [
      'parsePacket',
      fc.oneof(packets, extended),
      (bytes) => {
        const packet = whole(parsePacket)(bytes) as ReturnType<typeof parsePacket>;
        if (!packet.ok) return;
        const { transportOffset, payloadOffset, end, length } = packet.value;
        ok(transportOffset <= payloadOffset && payloadOffset <= bytes.length && end <= bytes.length && end <= length);
      },
    ],
    ['parseNeighbourAdvertisement', advertisement, whole(parseNeighbourAdvertisement)],
    [
      'parseArp',
      fc.constant(gratuitousArp(MAC, '10.0.0.1')[0] as Uint8Array),
      whole((bytes) => parseArp(bytes.subarray(14))),
    ],
    ['parseFrame', packets, whole(parseFrame)],
    ['decapVxlan', packets.map((bytes) => encapVxlan(1, bytes)), whole(decapVxlan)],
    [
      'messageBounds',
      entry.map((value) => Uint8Array.from([...eventOf(value), ...eventOf(value)])),
      (bytes) => {
        let last = 0;
        for (const at of messageBounds(bytes)) {
          ok(at >= last && at <= bytes.length);
          last = at;
        }
        ok(splitMessages(bytes).length <= bytes.length / 16);
      },
    ],
    [
      'AttributeCursor',
      entry.map((value) => eventOf(value).subarray(20)),
      (bytes) => {
        const cursor = new AttributeCursor(bytes, 0, bytes.length + 8);
        let steps = 0;
        for (; cursor.next(); steps++) ok(cursor.start <= cursor.end && cursor.end <= bytes.length);
        ok(steps <= bytes.length / 4);
      },
    ],
  ];
  for (const [name, seed, decode] of subjects) {
    const bytes = fc.oneof(
      { weight: 4, arbitrary: mutated(seed) },
      { weight: 1, arbitrary: fc.uint8Array({ maxLength: 300 }) },
    );
    const outcome = fc.check(
      fc.property(bytes, (input) => {
        decode(input);
      }),
      { numRuns: 2000 },
    );
    t.notOk(outcome.failed, `${name} neither throws nor strays`, {
      found: String(outcome.errorInstance),
      input: outcome.counterexample,
    });
  }
});
