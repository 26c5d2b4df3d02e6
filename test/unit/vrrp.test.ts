/** VRRPv3 advertisements: what is built, what is refused and why; checksums against a sum written once more. */

import t from 'tap';
import { addressBytes } from '../../wire/address-text.ts';
import { ETHERTYPE_IPV4, ETHERTYPE_IPV6, parseFrame } from '../../wire/ethernet.ts';
import { checksum, parsePacket } from '../../wire/ip.ts';
import {
  type Advert,
  type AdvertFault,
  buildAdvert,
  buildAdvertFrame,
  PROTOCOL_VRRP,
  parseAdvert,
  parseAdvertFrame,
} from '../../wire/vrrp.ts';

const v4: Advert = {
  family: 4,
  source: '10.0.0.31',
  vrid: 51,
  priority: 200,
  interval: 4,
  addresses: ['10.0.0.64', '10.0.0.65'],
};
const v6: Advert = { ...v4, family: 6, source: 'fe80::31', addresses: ['fe80::64', 'fd00:10::64'] };
const MAC = '02:00:00:00:00:31';

/** Of 16-bit words, by hand: RFC 1071. */
function sum(bytes: number[]): number {
  let total = 0;
  for (let at = 0; at < bytes.length; at += 2) total += (bytes[at] ?? 0) * 256 + (bytes[at + 1] ?? 0);
  while (total >= 0x10000) total = (total % 0x10000) + Math.floor(total / 0x10000);
  return total;
}

t.test('an advertisement of IPv4, byte by byte', async (t) => {
  const packet = buildAdvert(v4);
  t.equal(packet.length, 20 + 8 + 8);
  t.same([...packet.subarray(20, 26)], [0x31, 51, 200, 2, 0, 4]);
  t.same([...packet.subarray(28)], [10, 0, 0, 64, 10, 0, 0, 65]);
  const pseudo = [10, 0, 0, 31, 224, 0, 0, 18, 0, PROTOCOL_VRRP, 0, 16];
  t.equal(sum([...pseudo, ...packet.subarray(20)]), 0xffff, 'checksum with the pseudo header');
  t.equal(sum([...packet.subarray(0, 20)]), 0xffff, 'checksum of the header');
  t.match(parsePacket(packet), {
    value: { source: '10.0.0.31', destination: '224.0.0.18', protocol: 112, hopLimit: 255, length: 36 },
  });
  t.equal(packet[1], 0xc0, 'as routing protocols are sent');
});

t.test('an advertisement of IPv6, byte by byte', async (t) => {
  const packet = buildAdvert(v6);
  t.equal(packet.length, 40 + 8 + 32);
  t.same([...packet.subarray(40, 46)], [0x31, 51, 200, 2, 0, 4]);
  const ends = [...addressBytes('fe80::31'), ...addressBytes('ff02::12')];
  t.equal(sum([...ends, 0, 0, 0, 40, 0, 0, 0, 112, ...packet.subarray(40)]), 0xffff, 'checksum');
  t.match(parsePacket(packet), {
    value: { source: 'fe80::31', destination: 'ff02::12', protocol: 112, hopLimit: 255, length: 80 },
  });
  t.same([...packet.subarray(0, 2)], [0x6c, 0x00], 'as routing protocols are sent');
});

t.test('frames go from the interface to the group', async (t) => {
  for (const [advert, destination, etherType] of [
    [v4, '01:00:5e:00:00:12', ETHERTYPE_IPV4],
    [v6, '33:33:00:00:00:12', ETHERTYPE_IPV6],
  ] as const) {
    const frame = buildAdvertFrame(MAC, advert);
    t.match(parseFrame(frame), { value: { destination, source: MAC, etherType } });
    t.same(parseAdvertFrame(frame), { ok: true, value: advert });
  }
});

t.test('what is built is read back', async (t) => {
  const rows: [string, Advert][] = [
    ['IPv4', v4],
    ['IPv6', v6],
    ['resignation', { ...v4, priority: 0 }],
    ['owner', { ...v6, priority: 255 }],
    ['longest interval', { ...v4, interval: 4095 }],
    ['most addresses of IPv4', { ...v4, addresses: Array.from({ length: 255 }, (_, n) => `10.0.1.${n}`) }],
    ['most addresses of IPv6', { ...v6, addresses: Array.from({ length: 90 }, (_, n) => `fd00::${n + 1}`) }],
    ['without a pseudo header', { ...v4, plainChecksum: true }],
  ];
  for (const [name, advert] of rows) t.same(parseAdvert(buildAdvert(advert)), { ok: true, value: advert }, name);
  t.same(
    parseAdvert(buildAdvert({ ...v6, plainChecksum: true })),
    { ok: true, value: v6 },
    'of IPv6 there is no checksum without a pseudo header',
  );
});

t.test('what cannot be said is refused', async (t) => {
  const rows: [string, Partial<Advert>][] = [
    ['VRID 0', { vrid: 0 }],
    ['VRID 256', { vrid: 256 }],
    ['priority -1', { priority: -1 }],
    ['priority 256', { priority: 256 }],
    ['advertise interval 0', { interval: 0 }],
    ['advertise interval 4096', { interval: 4096 }],
    ['advertise interval 0.5', { interval: 0.5 }],
    ['count of addresses 0', { addresses: [] }],
    ['count of addresses 256', { addresses: Array.from({ length: 256 }, () => '10.0.0.1') }],
  ];
  for (const [message, more] of rows) t.throws(() => buildAdvert({ ...v4, ...more }), new RangeError(message), message);
  t.throws(() => buildAdvert({ ...v4, addresses: ['fe80::1'] }), TypeError, 'an address of the other family');
});

t.test('what is read is checked, and the reason told', async (t) => {
  /** With the checksum of the IPv4 header made right again. */
  const changed = (advert: Advert, change: (packet: Uint8Array) => void, repair = true): Uint8Array => {
    const packet = buildAdvert(advert);
    change(packet);
    if (repair && advert.family === 4) {
      packet.set([0, 0], 10);
      const right = checksum(packet.subarray(0, 20));
      packet.set([right >>> 8, right], 10);
    }
    return packet;
  };
  /** With the checksum of the message made right again: without a pseudo header. */
  const message = (change: (message: Uint8Array) => void): Uint8Array =>
    changed(v4, (packet) => {
      const inner = packet.subarray(20);
      change(inner);
      inner.set([0, 0], 6);
      const right = checksum(inner);
      inner.set([right >>> 8, right], 6);
    });
  const rows: [name: string, packet: Uint8Array, reason: AdvertFault][] = [
    ['nothing', new Uint8Array(0), 'truncated'],
    ['a part', buildAdvert(v4).subarray(0, 30), 'truncated'],
    ['a part of IPv6', buildAdvert(v6).subarray(0, 60), 'truncated'],
    ['another protocol', changed(v4, (p) => p.fill(6, 9, 10)), 'not-vrrp'],
    ['a fragment', changed(v4, (p) => p.fill(0x20, 6, 7)), 'fragment'],
    ['from behind a router', changed(v4, (p) => p.fill(254, 8, 9)), 'hop-limit'],
    ['from behind a router, IPv6', changed(v6, (p) => p.fill(254, 7, 8)), 'hop-limit'],
    ['to one host', changed(v4, (p) => p.set([10, 0, 0, 1], 16)), 'destination'],
    ['to another group', changed(v6, (p) => p.fill(0x13, 39, 40)), 'destination'],
    ['a broken IPv4 header', changed(v4, (p) => p.fill(1, 1, 2), false), 'checksum'],
    ['a broken message', changed(v4, (p) => p.fill(99, 22, 23)), 'checksum'],
    ['a broken message of IPv6', changed(v6, (p) => p.fill(99, 42, 43)), 'checksum'],
    ['another source than was summed up', changed(v4, (p) => p.fill(99, 15, 16)), 'checksum'],
    ['version 2', message((m) => m.fill(0x21, 0, 1)), 'version'],
    ['another type', message((m) => m.fill(0x32, 0, 1)), 'type'],
    ['more addresses than there are', message((m) => m.fill(3, 3, 4)), 'bad-length'],
    ['VRID 0', message((m) => m.fill(0, 1, 2)), 'vrid'],
    ['interval 0', message((m) => m.fill(0, 4, 6)), 'interval'],
    ['no address', message((m) => m.fill(0, 3, 4)), 'no-addresses'],
  ];
  for (const [name, packet, reason] of rows) t.same(parseAdvert(packet), { ok: false, reason }, name);
  t.match(
    parseAdvert(message((m) => m.fill(1, 3, 4))),
    { ok: true, value: { addresses: ['10.0.0.64'] } },
    'bytes behind the addresses are borne',
  );
  t.match(
    parseAdvert(message((m) => m.fill(0xf0, 4, 5))),
    { ok: true, value: { interval: 4 } },
    'reserved bits mean nothing',
  );

  const frame = buildAdvertFrame(MAC, v4);
  t.same(parseAdvertFrame(frame.subarray(0, 10)), { ok: false, reason: 'truncated' });
  t.match(parseAdvertFrame(Uint8Array.of(...frame, ...new Uint8Array(20))), { ok: true }, 'padded by a device');
  frame.set([0x86, 0xdd], 12);
  t.same(parseAdvertFrame(frame), { ok: false, reason: 'bad-version' });
  frame.set([0x08, 0x06], 12);
  t.same(parseAdvertFrame(frame), { ok: false, reason: 'not-vrrp' });
});
