/**
 * The name table by its rows: what an answer teaches, how long it holds, what flows keep, what makes room for what.
 * The last test drives it at random beside a table that is simply looked through.
 */
import fc from 'fast-check';
import t from 'tap';
import { type Address, parseAddress } from '../../api/address.ts';
import { must } from '../../api/result.ts';
import { type NamedAddress, NameTable, type NameTableLimits } from '../../gateway/inspect/name-table.ts';

const T0 = Date.parse('2026-11-27T12:00:00Z');
const address = (text: string): Address => must(parseAddress(text));
const limits = { ttlFloor: 10, ttlCeiling: 100, grace: 5, addressesPerName: 3, pairs: 6 };
const isLocal = ({ family, value }: Address): boolean => family === 4 && value >> 24n === 10n;
const table = (some: Partial<NameTableLimits> = {}): NameTable => new NameTable(isLocal, { ...limits, ...some });
/** `names` have the addresses for so many seconds. */
const teach = (of: NameTable, names: string, addresses: string, ttlSeconds: number, now = T0): NamedAddress[] =>
  of.learn(
    { names: names.split(' '), addresses: addresses.split(' ').map((a) => ({ address: address(a), ttlSeconds })) },
    now,
  );
const told = (pairs: Iterable<NamedAddress>): string[] => [...pairs].map(({ name, address }) => `${name} ${address}`);

t.test('an answer', async (t) => {
  const names = table();
  t.same(
    told(teach(names, 'www.example.com cdn.example.net', '192.0.2.1 2001:db8::1', 20)),
    [
      'www.example.com 192.0.2.1',
      'cdn.example.net 192.0.2.1',
      'www.example.com 2001:db8::1',
      'cdn.example.net 2001:db8::1',
    ],
    'teaches each name of its chain each address, and says what is to be told',
  );
  t.equal(names.gives('www.example.com', '192.0.2.1', T0), true);
  t.equal(names.gives('cdn.example.net', '2001:db8::1', T0), true);
  t.equal(names.gives('www.example.com', '192.0.2.2', T0), false, 'another address');
  t.equal(names.gives('example.com', '192.0.2.1', T0), false, 'another name');
  t.same(names.namesOf('192.0.2.1', T0), ['www.example.com', 'cdn.example.net']);
  t.same(names.namesOf('192.0.2.9', T0), []);
  t.same(teach(names, 'www.example.com', '192.0.2.1', 20), [], 'nothing new is not told');
  t.equal(teach(names, 'www.example.com', '192.0.2.1', 20, T0 + 1_000).length, 1, 'a longer life is');
  t.equal(names.size, 4);
});

t.test('an address where no outside name may lead is not learned', async (t) => {
  const names = table();
  t.same(told(teach(names, 'a.test', '10.0.0.1 192.0.2.1', 20)), ['a.test 192.0.2.1']);
  t.equal(names.counts.forbidden, 1);
  names.merge([{ name: 'b.test', address: '10.0.0.1', until: T0 + 1_000, parsed: address('10.0.0.1') }], T0);
  t.equal(names.gives('b.test', '10.0.0.1', T0), false, 'nor from another gateway');
  teach(names, 'c.test', '192.0.2.1 198.51.100.1', 20);
  t.equal(
    names.forget((text) => text === '192.0.2.1'),
    2,
    'nor kept, once the plan says so',
  );
  t.same(told(names.pairs()), ['c.test 198.51.100.1']);
  t.equal(names.gives('a.test', '192.0.2.1', T0), false);
});

t.test('how long a pair holds', async (t) => {
  const rows: [string, number, number][] = [
    ['its TTL and the grace', 20, 25],
    ['the floor, if the TTL is less', 0, 15],
    ['the ceiling, if it is more', 1_000_000, 105],
  ];
  for (const [what, ttl, seconds] of rows) {
    const names = table();
    teach(names, 'a.test', '192.0.2.1', ttl);
    t.equal(names.gives('a.test', '192.0.2.1', T0 + seconds * 1000 - 1), true, what);
    t.equal(names.gives('a.test', '192.0.2.1', T0 + seconds * 1000), false, `${what}, and no longer`);
    names.expire(T0);
    names.expire(T0 + seconds * 1000 - 1);
    t.equal(names.size, 1, 'kept until then');
    t.equal(names.expire(T0 + seconds * 1000 + 1_000), 1);
    t.equal(names.size, 0, 'and then forgotten');
    t.equal(names.counts.expired, 1);
  }
});

t.test('a flow keeps its pair, and a grace after it', async (t) => {
  const names = table();
  teach(names, 'a.test', '192.0.2.1', 20);
  t.equal(names.use('a.test', '192.0.2.1', T0), true);
  t.equal(names.use('a.test', '192.0.2.1', T0), true, 'two flows');
  t.equal(names.use('a.test', '192.0.2.2', T0), false, 'there is no such pair');
  for (let second = 0; second <= 3_600; second++) names.expire(T0 + second * 1000);
  const later = T0 + 3_600_000;
  t.equal(names.gives('a.test', '192.0.2.1', later), true, 'for an hour');
  names.release('a.test', '192.0.2.1', later);
  t.equal(names.gives('a.test', '192.0.2.1', later + 60_000), true, 'while the other flow lives');
  names.release('a.test', '192.0.2.1', later + 60_000);
  t.equal(names.gives('a.test', '192.0.2.1', later + 64_999), true);
  t.equal(names.gives('a.test', '192.0.2.1', later + 65_000), false);
  t.equal(names.use('a.test', '192.0.2.1', later + 65_000), false, 'what is over is not used any more');
  names.release('a.test', '192.0.2.1', later + 65_000);
  names.expire(later + 1_000_000);
  t.equal(names.size, 0);
});

t.test('what others are told anew', async (t) => {
  const names = table({ grace: 100, ttlCeiling: 1_000 });
  const later = (seconds: number): NamedAddress[] => teach(names, 'a.test', '192.0.2.1', 20, T0 + seconds * 1000);
  t.equal(later(0).length, 1);
  t.same(later(9), [], 'not what holds hardly longer than they know');
  t.same(
    later(10).map(({ until }) => until - T0),
    [130_000],
    'but what holds a tenth of the grace longer',
  );
  t.same(later(19), []);
  const parsed = address('192.0.2.1');
  const merge = (seconds: number) =>
    names.merge([{ name: 'a.test', address: '192.0.2.1', until: T0 + seconds * 1000, parsed }], T0);
  t.same([merge(139), merge(140).map(({ until }) => until - T0)], [[], [140_000]], 'of another gateway alike');
  t.same(merge(139), [], 'nor what holds shorter');

  t.same(names.renew(T0 + 139_000), [], 'no flow uses it');
  names.use('a.test', '192.0.2.1', T0);
  t.same(names.renew(T0 + 39_000), [], 'the others hold it for a grace yet');
  const renewed = [{ name: 'a.test', address: '192.0.2.1', until: T0 + 190_000 }];
  t.same(names.renew(T0 + 40_000), renewed);
  t.same(names.renew(T0 + 40_000), [], 'once');
  names.release('a.test', '192.0.2.1', T0 + 41_000);
  t.same(names.renew(T0 + 180_000), [], 'not after the flow');
  t.equal(names.gives('a.test', '192.0.2.1', T0 + 189_999), true);
  t.equal(names.gives('a.test', '192.0.2.1', T0 + 190_000), false);
});

t.test('which of the pairs of an answer are known', async (t) => {
  const names = table();
  teach(names, 'a.test b.test', '192.0.2.1 2001:db8::1', 20);
  const asked = {
    names: ['b.test', 'c.test'],
    addresses: ['2001:db8::1', '192.0.2.2'].map((text) => ({ address: address(text), ttlSeconds: 1 })),
  };
  t.same(names.known(asked, T0), [{ name: 'b.test', address: '2001:db8::1', until: T0 + 25_000 }]);
  t.same(names.known(asked, T0 + 25_000), [], 'what is over is not');
  t.same([...names.addresses()], ['192.0.2.1', '2001:db8::1']);
});

t.test('room', async (t) => {
  const names = table();
  teach(names, 'a.test', '192.0.2.1 192.0.2.2 192.0.2.3', 50);
  teach(names, 'a.test', '192.0.2.1', 60);
  teach(names, 'a.test', '192.0.2.4', 50);
  t.same(told(names.pairs()).sort(), ['a.test 192.0.2.1', 'a.test 192.0.2.3', 'a.test 192.0.2.4'], 'of a name');
  for (const [i, name] of ['b', 'c', 'd', 'e'].entries()) teach(names, `${name}.test`, `192.0.2.1${i}`, 50);
  t.equal(names.size, 6, 'of all');
  t.equal(names.gives('a.test', '192.0.2.3', T0), false, 'the longest unused goes first');
  t.equal(names.gives('a.test', '192.0.2.1', T0), true, 'what was answered again is no longer the oldest');
  t.equal(names.counts.evicted, 2);
  for (const { name, address } of [...names.pairs()]) names.use(name, address, T0);
  t.same(teach(names, 'f.test', '192.0.2.20', 50), [], 'what flows use gives no room');
  t.equal(names.counts.full, 1);
  t.equal(names.size, 6);
});

t.test('what another gateway tells', async (t) => {
  const names = table();
  const pair = { name: 'a.test', address: '192.0.2.1', parsed: address('192.0.2.1') };
  names.merge([{ ...pair, until: T0 + 10 * 365 * 86_400_000 }], T0);
  t.equal(names.gives('a.test', '192.0.2.1', T0 + 104_999), true);
  t.equal(names.gives('a.test', '192.0.2.1', T0 + 105_000), false, 'holds no longer than our own ceiling');
  names.merge([{ ...pair, name: 'b.test', until: T0 - 1 }], T0);
  t.equal(names.gives('b.test', '192.0.2.1', T0), false, 'what is over is not taken');
  const other = table();
  teach(other, 'c.test', '192.0.2.3 2001:db8::3', 40);
  const copy = table();
  copy.merge(
    [...other.pairs()].map((p) => ({ ...p, parsed: address(p.address) })),
    T0,
  );
  t.same([...copy.pairs()], [...other.pairs()], 'all of a table is what a new one needs');
});

t.test('what is over before anybody looks for the first time', async (t) => {
  const names = table();
  teach(names, 'a.test', '192.0.2.1', 20);
  t.equal(names.expire(T0 + 3_600_000), 1);
  t.equal(names.size, 0);
});

t.test('a clock that leaps', async (t) => {
  const names = table();
  teach(names, 'a.test', '192.0.2.1', 20);
  names.expire(T0);
  t.equal(names.expire(T0 + 30 * 86_400_000), 1, 'forward: at once, however many seconds that are');
  teach(names, 'a.test', '192.0.2.1', 20, T0);
  names.expire(T0);
  t.equal(names.gives('a.test', '192.0.2.1', T0), true, 'back');
  t.equal(names.expire(T0 + 26_000), 1, 'and goes by the clock as it is');
});

t.test('anything in any order: as a table that is looked through', async (t) => {
  const name = fc.constantFrom('a.test', 'b.test', 'c.test');
  const where = fc.constantFrom('192.0.2.1', '192.0.2.2', '2001:db8::1', '10.0.0.1');
  const step = fc.oneof(
    fc.record({ what: fc.constant('learn' as const), name, where, ttl: fc.nat(150) }),
    fc.record({ what: fc.constantFrom('use' as const, 'release' as const), name, where, ttl: fc.constant(0) }),
    fc.record({ what: fc.constant('wait' as const), name, where, ttl: fc.nat(60_000) }),
  );
  fc.assert(
    fc.property(fc.array(step, { maxLength: 60 }), (steps) => {
      const names = table({ addressesPerName: 10, pairs: 100 });
      const model = new Map<string, { until: number; users: number }>();
      let now = T0;
      for (const { what, name, where, ttl } of steps) {
        const key = `${name} ${where}`;
        const held = model.get(key);
        const holds = held !== undefined && (held.users > 0 || held.until > now);
        if (what === 'wait') {
          now += ttl;
          names.expire(now);
        } else if (what === 'learn') {
          teach(names, name, where, ttl, now);
          const until = now + (Math.min(Math.max(ttl, 10), 100) + 5) * 1000;
          if (where !== '10.0.0.1') {
            model.set(key, { until: Math.max(until, held?.until ?? 0), users: held?.users ?? 0 });
          }
        } else if (what === 'use') {
          if (names.use(name, where, now) !== holds) return false;
          if (holds) held.users++;
        } else {
          names.release(name, where, now);
          if (held !== undefined && held.users > 0 && --held.users === 0)
            held.until = Math.max(held.until, now + 5_000);
        }
        for (const [pair, { until, users }] of model) {
          const [n = '', a = ''] = pair.split(' ');
          const has = users > 0 || until > now;
          if (names.gives(n, a, now) !== has || names.namesOf(a, now).includes(n) !== has) return false;
        }
      }
      for (const [pair, { users }] of model) {
        const [n = '', a = ''] = pair.split(' ');
        for (let left = users; left > 0; left--) names.release(n, a, now);
      }
      // What flows kept is over with the grace; nothing is left anywhere.
      names.expire(now + 200_000);
      names.expire(now + 400_000);
      return names.size === 0 && [...names.pairs()].length === 0;
    }),
    { numRuns: 500 },
  );
  t.pass();
});
