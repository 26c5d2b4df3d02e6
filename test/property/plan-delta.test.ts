/**
 * Plan deltas: apply(diff(a, b), a) equals b for any two plans, through JSON as on the wire; and whatever comes
 * instead of a delta or message, nothing throws, nothing reaches a prototype, and the old plan is as it was.
 */
import fc from 'fast-check';
import t from 'tap';
import { emptyNodePlan } from '../../api/plan.ts';
import {
  applyDelta,
  Changes,
  changePlan,
  checkDelta,
  copyPlan,
  diffPlan,
  isEmptyDelta,
  isSafeJson,
} from '../../api/plan-delta.ts';
import { canonicalJson, hashPlan } from '../../api/plan-hash.ts';
import { LineReader, parseClientMessage, parseServerMessage } from '../../api/plan-stream.ts';

const names = ['settings', 'shards', 'workloads'] as const;
// Few keys, so that two plans share some; and those of Object.prototype, which are legal names of things.
const key = fc.constantFrom('a', 'b', 'c', 'constructor', 'toString', 'ns/x', '1', '');
const value = fc.oneof(
  fc.dictionary(key, fc.jsonValue({ maxDepth: 2 }), { noNullPrototype: true }),
  fc.array(fc.constantFrom(1, 'x', null)),
);
const collection = fc.dictionary(key, value, { noNullPrototype: true });
const plan = fc.record({ settings: collection, shards: collection, workloads: collection }, { noNullPrototype: true });
const noProto = (text: string): boolean => !text.includes('__proto__');

t.test('apply(diff(a, b), a) equals b', async (t) => {
  fc.assert(
    fc.property(plan, plan, (a, b) => {
      fc.pre(noProto(JSON.stringify([a, b])));
      const before = canonicalJson(a);
      const delta = JSON.parse(JSON.stringify(diffPlan(a, b)));
      const result = applyDelta(a, delta);
      if (!result.ok) throw new Error(result.error);
      if (canonicalJson(result.value) !== canonicalJson(b) || hashPlan(result.value) !== hashPlan(b))
        throw new Error('differs');
      if (canonicalJson(a) !== before) throw new Error('the old plan was changed');
      if (!isEmptyDelta(diffPlan(result.value, b))) throw new Error('a second difference');
      // Only what changed is sent.
      for (const name of names) {
        for (const item of Object.keys(delta.set[name] ?? {})) {
          if (Object.hasOwn(a[name], item) && canonicalJson(a[name][item]) === canonicalJson(b[name][item]))
            throw new Error('sent without need');
        }
      }
    }),
    { numRuns: 200 },
  );
  t.pass();
});

t.test('deltas one after another are one, and change a plan in place as they would a copy', async (t) => {
  fc.assert(
    fc.property(plan, fc.array(plan, { minLength: 1, maxLength: 4 }), (first, later) => {
      fc.pre(noProto(JSON.stringify([first, later])));
      const changes = new Changes();
      const stepwise = copyPlan(first);
      for (const next of later) {
        const delta = JSON.parse(JSON.stringify(diffPlan(stepwise, next)));
        const fits = checkDelta(first, delta, changes);
        if (!fits.ok) throw new Error(fits.error);
        changes.add(fits.value);
        changePlan(stepwise, fits.value);
      }
      const whole = changes.from(first);
      const result = applyDelta(first, JSON.parse(JSON.stringify(whole)));
      if (!result.ok) throw new Error(result.error);
      const wanted = canonicalJson(later.at(-1));
      if (canonicalJson(stepwise) !== wanted) throw new Error('stepwise differs');
      if (canonicalJson(result.value) !== wanted) throw new Error('as one differs');
      for (const name of names) {
        const both = (whole.delete[name] ?? []).filter((item) => Object.hasOwn(whole.set[name] ?? {}, item));
        if (both.length > 0) throw new Error('sets what it deletes');
      }
      // What does not fit after the changes is refused, even if it fitted before them.
      for (const name of names) {
        for (const item of Object.keys(first[name])) {
          const fits = checkDelta(first, { set: {}, delete: { [name]: [item] } }, changes);
          if (fits.ok !== Object.hasOwn(stepwise[name], item)) throw new Error('fits by what it was');
        }
      }
    }),
    { numRuns: 200 },
  );
  t.pass();
});

t.test('the hash is of the meaning, not of the order of keys', async (t) => {
  t.equal(hashPlan({ a: { x: { p: 1, q: [1, 2] } } }), hashPlan({ a: { x: { q: [1, 2], p: 1, r: undefined } } }));
  t.not(hashPlan({ a: { x: [1, 2] } }), hashPlan({ a: { x: [2, 1] } }));
  t.equal(canonicalJson({ b: 1, a: ['x', null] }), '{"a":["x",null],"b":1}');
});

const deep = (depth: number): unknown => JSON.parse(`${'['.repeat(depth)}${']'.repeat(depth)}`);

t.test('hostile deltas are refused by name', async (t) => {
  const before = { ...emptyNodePlan(), workloads: { u1: {} } } as object;
  const rows: [string, string, RegExp][] = [
    ['no object', '[]', /a delta is an object/],
    ['no set', '{"delete":{}}', /a delta is an object/],
    ['set is a list', '{"set":[],"delete":{}}', /a delta is an object/],
    ['a collection set to null', '{"set":{"workloads":null},"delete":{}}', /set.workloads is not an object/],
    ['a list of deletes that is null', '{"set":{},"delete":{"workloads":null}}', /delete.workloads is not a list/],
    ['an unknown collection', '{"set":{"shoes":{}},"delete":{}}', /unknown collection "shoes"/],
    ['a collection of Object.prototype', '{"set":{"toString":{}},"delete":{}}', /unknown collection/],
    ['__proto__ as a collection', '{"set":{"__proto__":{"a":{}}},"delete":{}}', /unknown collection "__proto__"/],
    ['__proto__ as a key', '{"set":{"workloads":{"__proto__":{"polluted":1}}},"delete":{}}', /forbidden key/],
    [
      '__proto__ within a value',
      '{"set":{"workloads":{"a":{"b":[{"\\u005f_proto__":{}}]}}},"delete":{}}',
      /forbidden key/,
    ],
    ['a value that is text', '{"set":{"workloads":{"a":"x"}},"delete":{}}', /no object/],
    ['a value that is null', '{"set":{"workloads":{"a":null}},"delete":{}}', /no object/],
    ['a key that is not there', '{"set":{},"delete":{"workloads":["u2"]}}', /not there/],
    ['a key of Object.prototype', '{"set":{},"delete":{"workloads":["toString"]}}', /not there/],
    ['deleting a key twice', '{"set":{},"delete":{"workloads":["u1","u1"]}}', /not there/],
    ['deleting a number', '{"set":{},"delete":{"workloads":[1]}}', /not there/],
    ['deleting no list', '{"set":{},"delete":{"workloads":{"length":1}}}', /no list|not a list/],
  ];
  for (const [name, text, error] of rows) t.match(applyDelta(before, JSON.parse(text)), { ok: false, error }, name);
  t.equal(applyDelta(before, { set: { workloads: { a: deep(5_000) } }, delete: {} }).ok, false, 'depth is bounded');
  t.equal(isSafeJson(deep(20)), true);
  t.same(before, { ...emptyNodePlan(), workloads: { u1: {} } });
});

t.test('whatever comes, nothing throws and no prototype changes', async (t) => {
  const hostileKey = fc.oneof(
    key,
    fc.constantFrom('__proto__', 'set', 'delete', 'workloads', 'type', 'plan', 'generation'),
  );
  const collection = fc.constantFrom(...Object.keys(emptyNodePlan()));
  const anything = fc.oneof(
    fc.jsonValue(),
    fc.string(),
    // Names that are known, of whatever: what is looked into only then.
    fc.dictionary(collection, fc.oneof(fc.jsonValue(), fc.dictionary(hostileKey, fc.jsonValue()))),
    fc.dictionary(
      hostileKey,
      fc.oneof(fc.jsonValue(), fc.dictionary(hostileKey, fc.dictionary(hostileKey, fc.jsonValue()))),
    ),
  );
  const untouched = Object.getOwnPropertyNames(Object.prototype).length;
  fc.assert(
    fc.property(
      anything,
      fc.constantFrom('hello', 'ack', 'nack', 'resync', 'snapshot', 'delta', 'part', 'end', 'keep'),
      (input, type) => {
        applyDelta(emptyNodePlan(), input);
        applyDelta(emptyNodePlan(), { set: input, delete: {} });
        applyDelta(emptyNodePlan(), { set: {}, delete: input });
        const fields = typeof input === 'object' && input !== null ? input : { plan: input };
        for (const line of [
          JSON.stringify(input),
          JSON.stringify({ generation: 1, ...fields, type }),
          typeof input === 'string' ? input : '{',
        ]) {
          parseClientMessage(line);
          parseServerMessage(line);
        }
        if (Object.getOwnPropertyNames(Object.prototype).length !== untouched) throw new Error('polluted');
      },
    ),
    { numRuns: 200 },
  );
  t.pass();
});

t.test('lines come out the same however the bytes are cut', async (t) => {
  fc.assert(
    fc.property(fc.array(fc.string({ unit: 'grapheme', minLength: 1 })), fc.array(fc.nat(40)), (texts, cuts) => {
      const lines = texts.map((text) => text.replaceAll('\n', ' '));
      const bytes = Buffer.from(lines.map((line) => `${line}\n`).join(''));
      const reader = new LineReader(10_000);
      const read: string[] = [];
      let at = 0;
      for (const cut of [...cuts, bytes.length]) {
        const result = reader.push(bytes.subarray(at, at + cut));
        if (!result.ok) throw new Error(result.error);
        read.push(...result.value);
        at += cut;
      }
      if (JSON.stringify(read) !== JSON.stringify(lines)) throw new Error(JSON.stringify(read));
    }),
  );
  t.pass();
});
