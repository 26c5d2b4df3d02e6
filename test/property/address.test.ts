/**
 * Properties of the parsers and of prefix sets: round trips, agreement with naive references, and that nothing which a
 * stranger can write makes them throw. `net.isIP` is the oracle of address syntax; TypeBox's validator that of the walk.
 */

import { isIP } from 'node:net';
import fc from 'fast-check';
import t from 'tap';
import { Compile } from 'typebox/compile';
import {
  addressBits,
  formatAddress,
  formatPrefix,
  formatRange,
  parseAddress,
  parsePrefix,
  parseRange,
  type Range,
  rangeToPrefixes,
} from '../../api/address.ts';
import { type AnyObject, parseObject } from '../../api/kinds.ts';
import type { Family } from '../../api/plan.ts';
import { parsePorts } from '../../api/ports.ts';
import { PrefixSet } from '../../api/prefix-set.ts';
import { must } from '../../api/result.ts';
import { schemas } from '../../api/schema/registry.ts';
import { samples } from '../unit/samples.ts';

const family = fc.constantFrom<Family>(4, 6);
const address = family.chain((f) =>
  // Small numbers, runs of zero groups and anything at all.
  fc
    .oneof(
      fc.bigInt(0n, 255n),
      fc.bigInt(0n, (1n << BigInt(addressBits(f))) - 1n),
      fc
        .array(fc.constantFrom<bigint>(0n, 0n, 1n, 0xffffn), { minLength: 8, maxLength: 8 })
        .map((g) => g.reduce((v, x) => (v << 16n) | x, 0n) & ((1n << BigInt(addressBits(f))) - 1n)),
    )
    .map((value) => ({ family: f, value })),
);
const anyRange = fc
  .tuple(address, address)
  .filter(([a, b]) => a.family === b.family)
  .map(([a, b]): Range => {
    const [first, last] = a.value < b.value ? [a.value, b.value] : [b.value, a.value];
    return { family: a.family, first, last };
  });

t.test('what is printed reads back as the same', async (t) => {
  fc.assert(
    fc.property(address, (a) => {
      const text = formatAddress(a);
      if (must(parseAddress(text)).value !== a.value) throw new Error(text);
      if (isIP(text) !== a.family) throw new Error(text);
      // Node prints canonical IPv6 in URLs.
      if (a.family === 6 && new URL(`http://[${text}]/`).hostname !== `[${text}]`) throw new Error(text);
    }),
  );
  fc.assert(
    fc.property(anyRange, (range) => {
      const back = must(parseRange(formatRange(range)));
      if (back.first !== range.first || back.last !== range.last) throw new Error(formatRange(range));
      // The prefixes follow each other without gap from first to last.
      let next = range.first;
      for (const prefix of rangeToPrefixes(range)) {
        if (prefix.value !== next) throw new Error('gap');
        if (must(parsePrefix(formatPrefix(prefix))).length !== prefix.length) throw new Error('prefix');
        next += 1n << BigInt(addressBits(range.family) - prefix.length);
      }
      if (next !== range.last + 1n) throw new Error('end');
    }),
  );
  t.pass();
});

t.test('the parser takes what net.isIP takes, less zone ids', async (t) => {
  const near = fc
    .array(fc.constantFrom('0', '1', '255', '256', '01', 'f', 'ffff', '.', '.', ':', ':', '::', '%', '-', '/', ' '), {
      maxLength: 18,
    })
    .map((parts) => parts.join(''));
  fc.assert(
    fc.property(fc.oneof(near, fc.ipV4(), fc.ipV6(), fc.string()), (text) => {
      const got = parseAddress(text);
      const want = text.includes('%') ? 0 : isIP(text);
      if ((got.ok ? got.value.family : 0) !== want) throw new Error(`${JSON.stringify(text)}: ${JSON.stringify(want)}`);
    }),
    { numRuns: 2000 },
  );
  t.pass();
});

t.test('however an IPv6 address is spelled, it is the same', async (t) => {
  const groups = fc.array(fc.oneof(fc.constant(0), fc.integer({ min: 0, max: 0xffff })), {
    minLength: 8,
    maxLength: 8,
  });
  const spelling = fc.record({ padded: fc.boolean(), upper: fc.boolean(), dotted: fc.boolean(), gap: fc.nat(7) });
  fc.assert(
    fc.property(groups, spelling, fc.nat(8), (list, { padded, upper, dotted, gap }, most) => {
      const text = list.map((group) => group.toString(16).padStart(padded ? 4 : 1, '0'));
      const [high = 0, low = 0] = list.slice(6);
      if (dotted) text.splice(6, 2, [high >> 8, high & 255, low >> 8, low & 255].join('.'));
      // As many zero groups as there are from `gap` on become `::`.
      const hexGroups = dotted ? 6 : 8;
      let zeros = 0;
      while (zeros < most && gap + zeros < hexGroups && list[gap + zeros] === 0) zeros++;
      const joined =
        zeros === 0 ? text.join(':') : `${text.slice(0, gap).join(':')}::${text.slice(gap + zeros).join(':')}`;
      const value = list.reduce((sum, group) => (sum << 16n) | BigInt(group), 0n);
      const got = must(parseAddress(upper ? joined.toUpperCase() : joined)).value;
      if (got !== value) throw new Error(joined);
    }),
    { numRuns: 2000 },
  );
  t.pass();
});

t.test('a prefix set is a set of addresses', async (t) => {
  // A universe of 64 addresses around a carry, so that every address can be asked.
  const base = { 4: 0x0a0000e0n, 6: (0xfd00n << 112n) | 0xffe0n };
  const small = fc.tuple(family, fc.integer({ min: 0, max: 63 }), fc.integer({ min: 0, max: 63 })).map(
    ([f, a, b]): Range => ({
      family: f,
      first: base[f] + BigInt(Math.min(a, b)),
      last: base[f] + BigInt(Math.max(a, b)),
    }),
  );
  const ranges = fc.array(small, { maxLength: 8 });
  const naive = (list: Range[], f: Family, v: bigint) =>
    list.some((r) => r.family === f && r.first <= v && v <= r.last);
  fc.assert(
    fc.property(ranges, ranges, small, (a, b, probe) => {
      const [setA, setB] = [PrefixSet.of(a), PrefixSet.of(b)];
      const [union, rest] = [setA.union(setB), setA.exclude(setB)];
      let common = false;
      for (const f of [4, 6] as const) {
        for (let i = -1n; i <= 64n; i++) {
          const value = base[f] + i;
          const [inA, inB] = [naive(a, f, value), naive(b, f, value)];
          if (f === probe.family && inA && value >= probe.first && value <= probe.last) common = true;
          if (setA.has({ family: f, value }) !== inA) throw new Error(`has ${formatAddress({ family: f, value })}`);
          if (union.has({ family: f, value }) !== (inA || inB)) throw new Error('union');
          if (rest.has({ family: f, value }) !== (inA && !inB)) throw new Error('exclude');
        }
        for (const set of [setA, union, rest]) {
          const list = set.ranges(f);
          for (let i = 1; i < list.length; i++)
            if ((list[i]?.first ?? 0n) <= (list[i - 1]?.last ?? 0n) + 1n) throw new Error('not merged');
        }
      }
      if (setA.intersects(probe) !== common) throw new Error('intersects');
    }),
    { numRuns: 150 },
  );
  t.pass();
});

t.test('nothing that a stranger writes makes a parser throw', async (t) => {
  const text = fc.oneof(fc.string({ unit: 'binary' }), fc.string({ maxLength: 5000 }));
  fc.assert(
    fc.property(text, (s) => {
      parseAddress(s);
      parsePrefix(s);
      parseRange(s);
      parsePorts(s);
    }),
  );
  const anything = fc.anything({
    withBigInt: true,
    withDate: true,
    withMap: true,
    withSet: true,
    withNullPrototype: true,
    withSparseArray: true,
    withTypedArray: true,
  });
  const check = (input: unknown) => {
    const parsed = parseObject(input);
    if (
      !parsed.ok &&
      (parsed.errors.length === 0 || parsed.errors.length > 50 || JSON.stringify(parsed).length > 50_000)
    )
      throw new Error('errors');
    if (Object.hasOwn(Object.prototype, 'polluted')) throw new Error('polluted');
  };
  fc.assert(fc.property(anything, check));
  // A good object with one place replaced by anything.
  fc.assert(
    fc.property(
      fc.constantFrom(...samples),
      fc.nat(),
      fc.oneof(anything, fc.constantFrom('__proto__', 'constructor', -1, 1e308, Number.NaN, {}, [], null)),
      (sample, n, evil) => {
        const copy = structuredClone(sample) as Record<string, unknown>;
        const places: [Record<string, unknown>, string][] = [];
        const visit = (o: Record<string, unknown>) => {
          for (const key of Object.keys(o)) {
            places.push([o, key]);
            if (typeof o[key] === 'object' && o[key] !== null) visit(o[key] as Record<string, unknown>);
          }
        };
        visit(copy);
        const place = places[n % places.length];
        if (place) place[0][place[1]] = evil;
        check(copy);
      },
    ),
    { numRuns: 1500 },
  );
  t.pass();
});

t.test("what the walk lets pass, TypeBox's validator lets pass, and reading twice changes nothing", async (t) => {
  const compiled = Object.fromEntries(Object.entries(schemas).map(([kind, schema]) => [kind, Compile(schema)]));
  const mutated = fc
    .tuple(
      fc.constantFrom(...samples),
      fc.nat(),
      fc.constantFrom<unknown>(undefined, '', '10.0.0.1', 0, 1, 70_000, -1, true, [], {}, ['a', 'a'], 'Drop', '*'),
    )
    .map(([sample, n, value]) => {
      const copy = structuredClone(sample) as { spec?: Record<string, unknown> };
      const fields = Object.keys(copy.spec ?? {});
      const field = fields[n % fields.length];
      if (copy.spec && field !== undefined) {
        if (value === undefined) delete copy.spec[field];
        else copy.spec[field] = value;
      }
      return copy;
    });
  let passed = 0;
  fc.assert(
    fc.property(mutated, (input) => {
      const parsed = parseObject(input);
      if (!parsed.ok) return;
      passed++;
      const value: AnyObject = parsed.value;
      const errors = compiled[value.kind]?.Errors(value) ?? [];
      if (errors.length > 0) throw new Error(JSON.stringify(errors));
      const again = parseObject(JSON.parse(JSON.stringify(value)));
      if (!again.ok || JSON.stringify(again.value) !== JSON.stringify(value)) throw new Error(JSON.stringify(again));
    }),
    { numRuns: 1000 },
  );
  t.ok(passed > 50, `${passed} passed`);
});
