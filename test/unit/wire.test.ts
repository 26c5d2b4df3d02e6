/**
 * Codecs against bytes that others made: messages of a real kernel (6.18, recorded), RFC and textbook vectors. What
 * the builders make is checked by the reader and, for checksums, by summing to zero; the kernel's own opinion on
 * both is in test/netns/events.test.ts.
 */

import t from 'tap';
import { addressBytes, ipv6Text, macBytes, macText, rememberedText } from '../../wire/address-text.ts';
import { ARP_REPLY, ARP_REQUEST, gratuitousArp, parseArp } from '../../wire/arp.ts';
import { type ConntrackEvent, ConntrackReader, decodeConntrack, encodeConntrackDump } from '../../wire/conntrack.ts';
import { buildFrame, parseFrame } from '../../wire/ethernet.ts';
import {
  buildIcmp,
  buildIcmpEcho,
  buildIp,
  buildTcp,
  buildUdp,
  checksum,
  parsePacket,
  TCP_ACK,
  TCP_SYN,
  transportChecksum,
} from '../../wire/ip.ts';
import { parseNeighbourAdvertisement, unsolicitedAdvertisement } from '../../wire/ndp.ts';
import { decodeNflog, encodeNflogConfig } from '../../wire/nflog.ts';
import { decodeNfqueue, encodeQueueConfig, encodeVerdict, encodeVerdictBatch } from '../../wire/nfqueue.ts';
import { decodeSetCounts, encodeSetDump } from '../../wire/nft-counts.ts';
import { messageErrno, messageLength, messageType, nested, nfnlMessage, splitMessages } from '../../wire/nlattr.ts';
import { NetlinkWriter } from '../../wire/nlwriter.ts';
import { decapVxlan, encapVxlan } from '../../wire/vxlan.ts';

const hex = (text: string) => Uint8Array.from(Buffer.from(text.replaceAll(/\s/g, ''), 'hex'));
const toHex = (bytes: Uint8Array) => Buffer.from(bytes).toString('hex');
const without = (bytes: Uint8Array, from: number) => bytes.subarray(0, from);

const NEW_UDP = hex(`a8000000000100060000000000000000020000003400018014000180080001000a090001080002000a090002
  1c0002800500010011000000060002000457000006000300138800003400028014000180080001000a090002080002000a0900011c000280
  05000100110000000600020013880000060003000457000008000c0018c4735c0800030000000008080007000000001e0800080080000100
  0c001b0018eb4a880435d21f`);
const NEW_ICMPV6 = hex(`e00000000001000600000000000000000a000000540001802c00018014000300fd09000000000000000000000000
  000114000400fd09000000000000000000000000000224000280050001003a00000006000700004d00000500080080000000050009000000
  0000540002802c00018014000300fd09000000000000000000000000000214000400fd090000000000000000000000000001240002800500
  01003a00000006000700004d00000500080081000000050009000000000008000c003cafc3ee0800030000000008080007000000001e0c00
  1b0018eb4a880516efc9`);
const DESTROY_UDP = hex(`fc00000002010000000000001daf2189020000003400018014000180080001000a090001080002000a0900021c00
  02800500010011000000060002000457000006000300138800003400028014000180080001000a090002080002000a0900011c0002800500
  0100110000000600020013880000060003000457000008000c0018c4735c0800030000000208080007000000001d1c0009800c0001000000
  0000000000010c00020000000000000000281c000a800c00010000000000000000000c00020000000000000000001c0014800c00010018eb
  4a880435d5d70c00020018eb4a881d8b2fc108000800800001000c001b0018eb4a881d8b310c`);
const NFLOG = hex(`a800000000040000000000000000000002000009080001000800010010000a0064656e696564206865726500080004000000
  000208000200000000771000080000060000020000000001000006000f000001000006001100000e00001200100002000000000202000000
  00010800000014000300000000006b06d8c80000000000079c6a210009004500001d00004000401126bc0a0900010a0900020457157c0009
  58f479000000`);
const SET_COUNTS = hex(`a40000000c0a0200010000007a0300000100000206000100730000000900020068697473000000007c0003003c00010
  00c00010008000100060000002c0007000c000100636f756e746572001c0002000c00010000000000000000000c00020000000000000000003c00
  01000c00010008000100000500802c0007000c000100636f756e746572001c0002000c00010000000000000001f80c0002000000000000000006`);

t.test('netlink datagrams', async (t) => {
  const two = Uint8Array.from([...NEW_UDP, ...NEW_ICMPV6]);
  t.same(splitMessages(two).map(messageLength), [NEW_UDP.length, NEW_ICMPV6.length]);
  t.equal(splitMessages(without(two, two.length - 1)).length, 1, 'a message cut short is left out');
  const zero = Uint8Array.from([...NEW_UDP, ...new Uint8Array(16)]);
  t.equal(splitMessages(zero).length, 1, 'a length of zero ends the walk');
  // struct nlmsgerr of ENOENT.
  const refusal = hex('24000000 0200 0000 05000000 00000000 feffffff 00000000000000000000000000000000');
  t.equal(messageType(refusal), 2);
  t.equal(messageErrno(refusal), 2);
  t.equal(messageErrno(without(refusal, 18)), undefined);
});

t.test('conntrack', async (t) => {
  const udp = { source: '10.9.0.1', destination: '10.9.0.2', sourcePort: 1111, destinationPort: 5000 };
  const back = { source: '10.9.0.2', destination: '10.9.0.1', sourcePort: 5000, destinationPort: 1111 };
  const zero = { original: 0, reply: 0 };
  t.same(decodeConntrack(NEW_UDP), {
    ok: true,
    value: {
      type: 'new',
      family: 4,
      id: 0x18c4735c,
      protocol: 17,
      original: udp,
      reply: back,
      mark: 0x80000100,
      status: 8,
      timeout: 30,
      packets: zero,
      bytes: zero,
      zone: 0,
    } satisfies ConntrackEvent,
  });
  t.match(decodeConntrack(DESTROY_UDP), {
    ok: true,
    value: {
      type: 'destroy',
      family: 4,
      id: 0x18c4735c,
      protocol: 17,
      original: udp,
      reply: back,
      mark: 0x80000100,
      packets: { original: 1, reply: 0 },
      bytes: { original: 40, reply: 0 },
      startNs: 0x18eb4a880435d5d7n,
      stopNs: 0x18eb4a881d8b2fc1n,
    },
  });
  const ping = { icmpId: 77, icmpCode: 0 };
  t.match(decodeConntrack(NEW_ICMPV6), {
    ok: true,
    value: {
      type: 'new',
      family: 6,
      protocol: 58,
      original: { source: 'fd09::1', destination: 'fd09::2', icmpType: 128, ...ping },
      reply: { source: 'fd09::2', destination: 'fd09::1', icmpType: 129, ...ping },
      mark: 0,
    },
  });
  const update = NEW_UDP.slice();
  update[7] = 0;
  t.match(decodeConntrack(update), { value: { type: 'update' } }, 'no create flag: an update, or an entry of a dump');

  const refused: [string, Uint8Array, string][] = [
    ['nothing', new Uint8Array(0), 'truncated'],
    ['another subsystem', NFLOG, 'bad-type'],
    ['no attributes', without(NEW_UDP, 20), 'no-tuple'],
    ['no reply tuple', without(NEW_UDP, 20 + 52), 'no-tuple'],
    ['cut within an attribute', without(NEW_UDP, NEW_UDP.length - 3), 'bad-attribute'],
    ['cut within a tuple', without(NEW_UDP, 100), 'bad-attribute'],
  ];
  for (const [what, bytes, reason] of refused) t.same(decodeConntrack(bytes), { ok: false, reason }, what);

  // The tuple in a deletion is the kernel's own encoding of it, byte for byte.
  const reader = new ConntrackReader(rememberedText());
  const deletionOf = (message: Uint8Array): Uint8Array => {
    reader.read(message);
    const writer = new NetlinkWriter();
    reader.writeDeletion(writer, 5);
    return writer.written();
  };
  for (const [message, tupleLength] of [
    [NEW_UDP, 52],
    [NEW_ICMPV6, 84],
  ] as const) {
    const decoded = decodeConntrack(message);
    if (!decoded.ok) throw new Error(decoded.reason);
    const deletion = deletionOf(message);
    const tuple = toHex(message.subarray(20, 20 + tupleLength));
    t.equal(toHex(deletion.subarray(20, 20 + tupleLength)), tuple);
    t.equal(
      toHex(deletion.subarray(0, 20)),
      `${toHex(Uint8Array.of(deletion.length))}000000 0201 0100 05000000 00000000 ${message === NEW_UDP ? '02' : '0a'}000000`.replaceAll(
        ' ',
        '',
      ),
    );
    t.ok(toHex(deletion).endsWith(`08000c00${decoded.value.id.toString(16).padStart(8, '0')}`), 'with the id');
    const zoned = Uint8Array.from([...message, 6, 0, 18, 0, 0, 7, 0, 0]);
    t.match(toHex(deletionOf(zoned)), /0600120000070000$/, 'and the zone');
  }
  for (const [what, message] of refused) {
    t.equal(reader.read(NEW_UDP), undefined);
    t.throws(() => deletionOf(message), /without a tuple/, `${what}: a deletion of it would flush the table`);
  }
  const short = NEW_UDP.slice();
  short[38] = 4;
  t.same(decodeConntrack(short), { ok: false, reason: 'no-tuple' }, 'four bytes are no IPv6 destination');
  const [source4, destination6] = [NEW_UDP.subarray(28, 36), NEW_ICMPV6.subarray(48, 68)];
  for (const ends of [
    [source4, destination6],
    [destination6, source4],
  ]) {
    const original = nested(1, nested(1, ...ends), NEW_UDP.subarray(44, 72));
    const message = nfnlMessage({ subsystem: 1, message: 0, flags: 0 }, original, NEW_UDP.subarray(72, 124));
    t.same(decodeConntrack(message), { ok: false, reason: 'no-tuple' }, 'nor has a tuple ends of two families');
  }
  t.equal(toHex(encodeConntrackDump(3)), '1400000001010103030000000000000000000000');
  t.match(toHex(encodeConntrackDump(3, { value: 0x100, mask: 0xff00 })), /0800080000000100080015000000ff00$/);
});

t.test('counters of an nftables set', async (t) => {
  t.equal(
    toHex(encodeSetDump(1, 's', 'hits')),
    '280000000d0a010301000000000000000100000006000100730000000900020068697473000000 00'.replace(' ', ''),
  );
  t.same(decodeSetCounts(SET_COUNTS), {
    ok: true,
    value: [
      { mark: 6, packets: 0, bytes: 0 },
      { mark: 0x80000500, packets: 6, bytes: 504 },
    ],
  });
  const quota = SET_COUNTS.slice();
  quota.set(Buffer.from('another'), quota.indexOf(0x63));
  t.match(decodeSetCounts(quota), { ok: true, value: { length: 1 } }, 'an element without a counter is none');
  t.same(decodeSetCounts(NEW_UDP), { ok: false, reason: 'bad-type' });
  t.same(decodeSetCounts(without(SET_COUNTS, 8)), { ok: false, reason: 'truncated' });
  t.same(decodeSetCounts(without(SET_COUNTS, SET_COUNTS.length - 4)), { ok: false, reason: 'bad-attribute' });
});

t.test('nflog and nfqueue', async (t) => {
  const record = decodeNflog(NFLOG);
  t.match(record, {
    ok: true,
    value: { group: 9, mark: 0x77, prefix: 'denied here', hook: 1, protocol: 0x800, inDevice: 2, outDevice: 0 },
  });
  if (!record.ok) throw new Error(record.reason);
  t.equal(record.value.timestamp, 0x6b06d8c8 * 1000 + Math.floor(0x79c6a / 1000));
  t.match(parsePacket(record.value.payload), {
    value: { source: '10.9.0.1', destination: '10.9.0.2', sourcePort: 1111, destinationPort: 5500, payloadOffset: 28 },
  });
  t.same(decodeNflog(NEW_UDP), { ok: false, reason: 'bad-type' });
  t.same(decodeNflog(without(NFLOG, 20)), { ok: false, reason: 'no-header' });
  t.equal(
    toHex(encodeNflogConfig(9, 128, 1)[0] as Uint8Array),
    '1c0000000104050001000000000000000000000905000100 01000000'.replace(' ', ''),
  );

  const held = hex(`54000000 0003 0000 00000000 00000000 02001e6e
    0b000100 00000007 0800 02 00  08000300 000000fe  08000500 00000003  0c000a00 4500001400000000
    1000090000060000 0200000000120000`);
  t.same(decodeNfqueue(held), {
    ok: true,
    value: {
      queue: 7790,
      id: 7,
      mark: 0xfe,
      hook: 2,
      protocol: 0x800,
      payload: hex('4500001400000000'),
      inDevice: 3,
      mac: hex('020000000012'),
      outDevice: 0,
    },
  });
  t.same(decodeNfqueue(NFLOG), { ok: false, reason: 'bad-type' });
  t.same(decodeNfqueue(without(held, 20)), { ok: false, reason: 'no-header' });
  t.equal(
    toHex(encodeVerdict(7790, 7, 'accept')),
    '20000000010301000000000000000000 00001e6e 0c000200 00000001 00000007'.replaceAll(' ', ''),
  );
  t.equal(
    toHex(encodeVerdict(7790, 7, 'drop', 0xfe)),
    '28000000010301000000000000000000 00001e6e 0c000200 00000000 00000007 08000300 000000fe'.replaceAll(' ', ''),
  );
  t.equal(toHex(encodeVerdictBatch(1, 9, 'accept')).slice(8, 12), '0303');
  const config = encodeQueueConfig({ queue: 7790, maxLength: 1024, copyRange: 128 }, 1).map(toHex);
  t.match(config[0], /00001e6e0800010001000000$/);
  t.match(config[1], /090002000000008002000000 ?0800030000000400$/);
  t.match(config[2], /08000500000000040800040000000004$/, 'segments are kept together; never fail-open');
});

t.test('addresses as text', async (t) => {
  const canonical: [string, string][] = [
    ['::', '::'],
    ['::1', '::1'],
    ['1::', '1::'],
    ['2001:db8:0:0:1:0:0:1', '2001:db8::1:0:0:1'],
    ['2001:0DB8:0:1:1:1:1:1', '2001:db8:0:1:1:1:1:1'],
    ['2001:0:0:1:0:0:0:1', '2001:0:0:1::1'],
    ['1:0:0:0:0:0:0:0', '1::'],
    ['::ffff:192.0.2.1', '::ffff:c000:201'],
    ['64:ff9b::192.0.2.33', '64:ff9b::c000:221'],
    ['1:2:3:4:5:6:7:8', '1:2:3:4:5:6:7:8'],
    ['1:2:3:4:5:6:7::', '1:2:3:4:5:6:7:0'],
  ];
  for (const [text, expected] of canonical) t.equal(ipv6Text(addressBytes(text), 0), expected, text);
  t.same(addressBytes('192.0.2.1'), Uint8Array.of(192, 0, 2, 1));
  for (const text of ['', '1.2.3', '010.0.0.1', 'fe80::1%e0', '1::2::3', ' ::1'])
    t.throws(() => addressBytes(text), text);
  t.equal(macText(macBytes('02:73:6C:75:00:01'), 0), '02:73:6c:75:00:01');
  t.throws(() => macBytes('02:73:6c:75:00'));
});

t.test('packets', async (t) => {
  // The header of the textbook example of RFC 1071 arithmetic, checksum b861.
  t.equal(checksum(hex('45000073000040004011 0000 c0a80001c0a800c7')), 0xb861);
  t.equal(checksum(hex('0001f203f4f5f6f7')), 0x220d, 'RFC 1071 §3: sum ddf2');

  const ends = {
    4: { source: '10.0.0.1', destination: '192.0.2.9' },
    6: { source: 'fd00::1', destination: '2001:db8::9' },
  };
  const payload = Buffer.from('odd');
  for (const family of [4, 6] as const) {
    const head = family === 4 ? 20 : 40;
    const cases: [string, Uint8Array, number, object][] = [
      [
        'tcp',
        buildTcp({
          ...ends[family],
          sourcePort: 40000,
          destinationPort: 443,
          flags: TCP_SYN | TCP_ACK,
          sequence: 7,
          payload,
        }),
        6,
        { sourcePort: 40000, destinationPort: 443, tcpFlags: 0x12, sequence: 7, payloadOffset: head + 20 },
      ],
      [
        'udp',
        buildUdp({ ...ends[family], sourcePort: 53, destinationPort: 65535, payload }),
        17,
        { sourcePort: 53, destinationPort: 65535, payloadOffset: head + 8 },
      ],
      [
        'echo',
        buildIcmpEcho({ ...ends[family], id: 1, sequence: 2, payload }),
        family === 4 ? 1 : 58,
        { icmpType: family === 4 ? 8 : 128, icmpCode: 0, icmpId: 1, icmpSequence: 2, payloadOffset: head + 8 },
      ],
    ];
    for (const [what, bytes, protocol, fields] of cases) {
      const packet = parsePacket(bytes);
      t.match(
        packet,
        {
          ok: true,
          value: {
            family,
            ...ends[family],
            protocol,
            hopLimit: 64,
            length: bytes.length,
            end: bytes.length,
            ...fields,
          },
        },
        `${what} over IPv${family}`,
      );
      const transport = bytes.subarray(head);
      const sum =
        what === 'echo' && family === 4 ? checksum(transport) : transportChecksum(ends[family], protocol, transport);
      t.equal(sum, 0, 'its checksum holds');
      if (family === 4) t.equal(checksum(bytes.subarray(0, 20)), 0);
      const short = parsePacket(bytes.subarray(0, head + 2));
      t.match(
        short,
        { ok: true, value: { ...ends[family], protocol, sourcePort: undefined } },
        'cut: no ports, no error',
      );
    }
  }
  t.match(parsePacket(buildIcmpEcho({ ...ends[4], id: 1, sequence: 2, reply: true })), { value: { icmpType: 0 } });
  for (const [family, type, icmpId] of [
    [4, 13, 1],
    [4, 3, undefined],
    [6, 139, undefined],
  ] as const) {
    const packet = parsePacket(buildIcmp({ ...ends[family], type, code: 4, id: 1, sequence: 2 }));
    t.match(packet, { value: { icmpType: type, icmpCode: 4, icmpId } }, `v${family}, type ${type}`);
  }
  t.throws(() => buildUdp({ source: '10.0.0.1', destination: '::1', sourcePort: 1, destinationPort: 2 }));

  // A sum of zero is sent as ffff: the payload is chosen so that everything adds up.
  const plain = buildUdp({ ...ends[4], sourcePort: 1, destinationPort: 2, payload: Uint8Array.of(0, 0) });
  const cancel = plain.subarray(26, 28);
  t.equal(toHex(buildUdp({ ...ends[4], sourcePort: 1, destinationPort: 2, payload: cancel }).subarray(26, 28)), 'ffff');

  const udp = buildUdp({ ...ends[6], sourcePort: 5, destinationPort: 6 }).subarray(40);
  const chain = (...parts: number[][]) => buildIp(ends[6], 0, Uint8Array.from([...parts.flat(), ...udp]));
  t.match(
    parsePacket(chain([60, 0, 0, 0, 0, 0, 0, 0], [17, 0, 0, 0, 0, 0, 0, 0])),
    {
      value: { protocol: 17, destinationPort: 6, transportOffset: 56 },
    },
    'hop-by-hop and destination options',
  );
  t.match(
    parsePacket(chain([44, 0, 0, 0, 0, 0, 0, 0], [17, 0, 0, 1, 0, 0, 0, 1])),
    {
      value: { protocol: 17, destinationPort: 6, laterFragment: false, moreFragments: true },
    },
    'first fragment: has ports',
  );
  t.match(
    parsePacket(chain([44, 0, 0, 0, 0, 0, 0, 0], [17, 0, 0, 8, 0, 0, 0, 1])),
    {
      value: { protocol: 17, destinationPort: undefined, laterFragment: true },
    },
    'later fragment: none',
  );
  const later = buildUdp({ ...ends[4], sourcePort: 5, destinationPort: 6 });
  later[7] = 1;
  t.match(parsePacket(later), { value: { destinationPort: undefined, laterFragment: true } });

  const endless = chain(...Array.from({ length: 9 }, () => [0, 0, 0, 0, 0, 0, 0, 0]));
  const refused: [string, Uint8Array, string][] = [
    ['empty', new Uint8Array(0), 'truncated'],
    ['version 5', Uint8Array.of(0x50, ...new Array(60).fill(0)), 'bad-version'],
    ['IPv4 header of 16 bytes', Uint8Array.of(0x44, ...new Array(60).fill(9)), 'bad-length'],
    ['IPv4 length below its header', Uint8Array.of(0x45, 0, 0, 19, ...new Array(60).fill(9)), 'bad-length'],
    ['IPv4 options cut off', Uint8Array.of(0x4f, 0, 0, 60, ...new Array(20).fill(9)), 'truncated'],
    ['IPv6 header cut off', Uint8Array.of(0x60, ...new Array(30).fill(0)), 'truncated'],
    ['extension header past the end', chain([17, 9, 0, 0, 0, 0, 0, 0]), 'truncated'],
    ['too many extension headers', endless, 'bad-header'],
  ];
  for (const [what, bytes, reason] of refused) t.same(parsePacket(bytes), { ok: false, reason }, what);
});

t.test('frames, VXLAN and announcements', async (t) => {
  const mac = '02:73:6c:75:00:01';
  const frame = buildFrame({ destination: 'ff:ff:ff:ff:ff:ff', source: mac, etherType: 0x800, payload: hex('4500') });
  t.equal(toHex(frame), 'ffffffffffff02736c75000108004500');
  const tunnelled = encapVxlan(7790, frame);
  t.equal(toHex(tunnelled), `0800000000${'1e6e'}00${toHex(frame)}`);
  t.match(decapVxlan(tunnelled), { ok: true, value: { vni: 7790, frame: { source: mac, etherType: 0x800 } } });
  t.same(decapVxlan(without(tunnelled, 21)), { ok: false, reason: 'truncated' });
  t.same(decapVxlan(Uint8Array.of(0, ...tunnelled.subarray(1))), { ok: false, reason: 'bad-header' }, 'no VNI flag');
  t.throws(() => encapVxlan(1 << 24, frame));

  const [request, reply] = gratuitousArp(mac, '192.0.2.7').map((bytes) => {
    const parsed = parseFrame(bytes);
    return parsed.ok ? parseArp(parsed.value.payload) : parsed;
  });
  const same = { senderMac: mac, senderAddress: '192.0.2.7', targetAddress: '192.0.2.7' };
  t.match(request, { ok: true, value: { operation: ARP_REQUEST, ...same } });
  t.match(reply, { ok: true, value: { operation: ARP_REPLY, ...same } });
  t.same(parseArp(hex(`0001 86dd ${'00'.repeat(24)}`)), { ok: false, reason: 'bad-type' });
  t.throws(() => gratuitousArp(mac, '::1'));

  const advertised = unsolicitedAdvertisement(mac, '2001:db8::7');
  t.equal(toHex(advertised.subarray(0, 6)), '333300000001');
  const packet = advertised.subarray(14);
  t.same(parseNeighbourAdvertisement(packet), {
    ok: true,
    value: {
      source: '2001:db8::7',
      destination: 'ff02::1',
      target: '2001:db8::7',
      router: true,
      solicited: false,
      override: true,
      targetMac: mac,
    },
  });
  const changed = (at: number, value: number) => packet.with(at, value);
  t.same(parseNeighbourAdvertisement(changed(7, 254)), { ok: false, reason: 'bad-header' }, 'it came over a router');
  t.same(parseNeighbourAdvertisement(changed(71, 0xff)), { ok: false, reason: 'bad-header' }, 'checksum');
  t.same(parseNeighbourAdvertisement(without(packet, 70)), { ok: false, reason: 'truncated' });
});
