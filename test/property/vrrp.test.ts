/** VRRP advertisements drawn at random: what is built reads back; whatever is read can be built again and says the same. */

import { deepStrictEqual, equal } from 'node:assert/strict';
import fc from 'fast-check';
import t from 'tap';
import { ipv4Text, ipv6Text } from '../../wire/address-text.ts';
import { buildIp, checksum, transportChecksum } from '../../wire/ip.ts';
import { type Advert, buildAdvert, PROTOCOL_VRRP, parseAdvert, VRRP_GROUP } from '../../wire/vrrp.ts';

const bytes = (length: number) => fc.uint8Array({ minLength: length, maxLength: length });
const address = { 4: bytes(4).map((b) => ipv4Text(b, 0)), 6: bytes(16).map((b) => ipv6Text(b, 0)) };
const advertOf = (family: 4 | 6): fc.Arbitrary<Advert> =>
  fc.record(
    {
      family: fc.constant(family),
      source: address[family],
      vrid: fc.integer({ min: 1, max: 255 }),
      priority: fc.nat(255),
      interval: fc.integer({ min: 1, max: 4095 }),
      addresses: fc.array(address[family], { minLength: 1, maxLength: 20 }),
      ...(family === 4 ? { plainChecksum: fc.constant(true) } : {}),
    },
    { requiredKeys: ['family', 'source', 'vrid', 'priority', 'interval', 'addresses'], noNullPrototype: true },
  ) as fc.Arbitrary<Advert>;
const advert = fc.oneof(advertOf(4), advertOf(6));

/** Once in 65,535 times a pseudo header changes nothing. */
const withoutForm = (read: ReturnType<typeof parseAdvert>): unknown => {
  if (!read.ok) return read;
  const { plainChecksum: _, ...said } = read.value;
  return said;
};

t.test('what is built reads back', async () => {
  fc.assert(
    fc.property(advert, (value) => {
      deepStrictEqual(withoutForm(parseAdvert(buildAdvert(value))), withoutForm({ ok: true, value }));
    }),
    { numRuns: 1_000 },
  );
});

t.test('one byte that differs is found, wherever it is summed up', async () => {
  fc.assert(
    fc.property(advertOf(6), fc.nat(), fc.integer({ min: 1, max: 255 }), (value, where, change) => {
      const packet = buildAdvert(value);
      const at = 40 + (where % (packet.length - 40));
      packet[at]! ^= change;
      const read = parseAdvert(packet);
      equal(read.ok, false, `byte ${at}`);
    }),
    { numRuns: 1_000 },
  );
});

t.test('messages of any bytes, their checksum right: what is read says the same when it is built', async (t) => {
  const family = fc.constantFrom(4 as const, 6 as const);
  const message = fc.tuple(bytes(8), fc.uint8Array({ minLength: 60, maxLength: 100 })).map(([head, rest]) => {
    // As random bytes few would get far.
    const count = head[3]! % 6;
    return Uint8Array.from([
      head[0]! < 200 ? 0x31 : head[0]!,
      head[1]!,
      head[2]!,
      count,
      head[4]!,
      head[5]!,
      0,
      0,
      ...rest,
    ]);
  });
  let read = 0;
  fc.assert(
    fc.property(family, message, fc.boolean(), (family, message, plain) => {
      const ends = { source: family === 4 ? '10.0.0.1' : 'fe80::1', destination: VRRP_GROUP[family], hopLimit: 255 };
      message.set([0, 0], 6);
      const right = plain ? checksum(message) : transportChecksum(ends, PROTOCOL_VRRP, message);
      message.set([right >>> 8, right], 6);
      const first = parseAdvert(buildIp(ends, PROTOCOL_VRRP, message));
      if (!first.ok) return;
      read++;
      deepStrictEqual(withoutForm(parseAdvert(buildAdvert(first.value))), withoutForm(first));
    }),
    { numRuns: 2_000 },
  );
  t.ok(read > 200, `${read} were read`);
});
