/**
 * Updates of the plan stream in parts: what is put together is what was sent, however it was cut; a hash follows a
 * delta; and whatever comes instead, nothing throws, nothing reaches a prototype and nothing half is handed out.
 */
import fc from 'fast-check';
import t from 'tap';
import { emptyGatewayPlan, emptyNodePlan } from '../../api/plan.ts';
import { Changes, changePlan, checkDelta, copyPlan, diffPlan, type PlanDelta } from '../../api/plan-delta.ts';
import { differenceOf, hashOf } from '../../api/plan-difference.ts';
import { canonicalJson, hashAfter, hashPlan } from '../../api/plan-hash.ts';
import { Assembly, formatUpdate, type Update } from '../../api/plan-parts.ts';
import { parseServerMessage } from '../../api/plan-stream.ts';

const LIMIT = 1_000_000;
const key = fc.constantFrom('a', 'b', 'c', 'constructor', 'toString', 'ns/x', '1', '');
const value = fc.dictionary(key, fc.jsonValue({ maxDepth: 2 }), { noNullPrototype: true });
const collection = fc.dictionary(key, value, { noNullPrototype: true });
const plan = fc
  .record({ settings: collection, shards: collection, gateways: collection, workloads: collection })
  .map((of) => ({ ...(emptyNodePlan() as object), ...of }))
  .filter((made) => !JSON.stringify(made).includes('__proto__'));
const textLength = (of: unknown): number => JSON.stringify(of).length;
const HASH = '0f'.repeat(32);

/** As a client would, and the lines that it took. */
function assemble(update: Update, limit: number, held?: object): { update: Update; lines: string[] } {
  const assembly = new Assembly('node', LIMIT);
  const lines = [...formatUpdate(update, limit)].join('').split('\n').slice(0, -1);
  for (const [at, line] of lines.entries()) {
    const message = parseServerMessage(line);
    if (!message.ok) throw new Error(message.error);
    const whole = assembly.push(message.value, line.length, held);
    if (!whole.ok) throw new Error(whole.error);
    if ((whole.value !== undefined) !== (at === lines.length - 1)) throw new Error('whole at the wrong line');
    if (whole.value !== undefined) return { update: whole.value, lines };
  }
  throw new Error('never whole');
}

t.test('a snapshot comes out as it went in, and shares what is held already', async (t) => {
  fc.assert(
    fc.property(plan, plan, fc.integer({ min: 1, max: 300 }), (sent, other, limit) => {
      const head = { type: 'snapshot', generation: 7, hash: HASH } as const;
      const { update, lines } = assemble({ ...head, plan: sent }, limit);
      if (update.type !== 'snapshot') throw new Error(update.type);
      if (canonicalJson(update.plan) !== canonicalJson(sent)) throw new Error('differs');
      if (canonicalJson({ ...update, plan: 0 }) !== canonicalJson({ ...head, plan: 0 }))
        throw new Error('head differs');
      // A part holds one entry beyond its limit at most.
      const longest = Math.max(0, ...Object.values(sent).flatMap((of) => Object.values(of).map(textLength)));
      if (lines.some((line) => line.length > limit + longest + 200)) throw new Error('a line is too long');
      const held = copyPlan(other);
      const shared = assemble({ ...head, plan: sent }, limit, held).update;
      if (shared.type !== 'snapshot' || canonicalJson(shared.plan) !== canonicalJson(sent)) throw new Error('differs');
      if (canonicalJson(held) !== canonicalJson(other)) throw new Error('what was held changed');
      const got = shared.plan as typeof sent;
      for (const name of Object.keys(sent) as (keyof typeof sent)[]) {
        for (const item of Object.keys(sent[name])) {
          const same =
            Object.hasOwn(other[name], item) && canonicalJson(other[name][item]) === canonicalJson(sent[name][item]);
          if (same !== (Object.hasOwn(other[name], item) && got[name][item] === other[name][item]))
            throw new Error('not shared');
        }
      }
    }),
    { numRuns: 60 },
  );
  t.pass();
});

t.test('deltas come out as they went in, and the hash follows them', async (t) => {
  fc.assert(
    fc.property(plan, plan, plan, fc.integer({ min: 1, max: 300 }), (first, second, third, limit) => {
      const deltas = [diffPlan(first, second), diffPlan(second, third)];
      const { update } = assemble({ type: 'delta', from: 3, generation: 9, hash: HASH, deltas }, limit);
      if (update.type !== 'delta' || update.from !== 3 || update.generation !== 9) throw new Error('head differs');
      const changes = new Changes();
      for (const delta of update.deltas) {
        const fits = checkDelta(first, delta, changes);
        if (!fits.ok) throw new Error(fits.error);
        changes.add(fits.value);
      }
      const result = copyPlan(first);
      changePlan(result, changes.from(first));
      if (canonicalJson(result) !== canonicalJson(third)) throw new Error('differs');
      if (hashAfter(hashPlan(first), first, diffPlan(first, third)) !== hashPlan(third))
        throw new Error('hash differs');
      if (hashOf(first) !== hashPlan(first)) throw new Error('hash of the first differs');
      const found = differenceOf(first, third);
      if (found.empty !== (hashPlan(first) === hashPlan(third)))
        throw new Error('equal plans, or equal hashes, but not both');
      if (differenceOf(first, third) !== found) throw new Error('found twice');
      // By now it follows from the difference.
      if (hashOf(third) !== hashPlan(third)) throw new Error('the hash that follows differs');
    }),
    { numRuns: 60 },
  );
  t.pass();
});

t.test('what does not belong together is refused', async (t) => {
  const head = `{"type":"snapshot","generation":1,"hash":"${HASH}","collections":${JSON.stringify(Object.keys(emptyNodePlan()))}}`;
  const delta = `{"type":"delta","from":1,"generation":2,"hash":"${HASH}"}`;
  const part = (set: string, gone = '{}'): string => `{"type":"part","delta":{"set":${set},"delete":${gone}}}`;
  const end = '{"type":"end"}';
  const keep = '{"type":"keep","generation":4}';
  const rows: [string, string[], RegExp | 'fits'][] = [
    ['a snapshot', [head, part('{"workloads":{"a":{}}}'), end], 'fits'],
    ['an empty snapshot', [head, end], 'fits'],
    ['a delta without parts', [delta, end], 'fits'],
    ['two updates', [head, end, keep, delta, end], 'fits'],
    ['a part of nothing', [part('{}')], /^part: of nothing/],
    ['an end of nothing', [head, end, end], /^end: of nothing/],
    ['a delta within a snapshot', [head, delta], /^delta: came within a snapshot/],
    ['a snapshot within a delta', [delta, head], /^snapshot: came within a delta/],
    ['keep within a delta', [delta, keep], /^keep: came within a delta/],
    ['a snapshot that lacks a collection', [head.replace('"workloads"', '"w"')], /expected the collection "workloads"/],
    ['a collection named __proto__', [head.replace('"workloads"', '"workloads","__proto__"')], /names of collections/],
    ['a collection that is a number', [head.replace('"workloads"', '"workloads",7')], /names of collections/],
    ['collections without number', [head.replace('"workloads"', `"workloads"${',"x"'.repeat(100)}`)], /names of coll/],
    ['no hash', [head.replace(HASH, '')], /^snapshot: expected a hash/],
    ['no generation', [delta.replace('"generation":2,', '')], /^expected a generation/],
    ['no from', [delta.replace('"from":1,', '')], /^delta: expected "from"/],
    ['a part that is a list', [head, '{"type":"part","delta":[]}'], /^part: expected a delta/],
    ['an entry that is a number', [head, part('{"workloads":{"a":7}}')], /no object/],
    ['an unknown collection', [head, part('{"shoes":{"a":{}}}')], /unknown collection "shoes"/],
    ['a collection of Object.prototype', [head, part('{"toString":{"a":{}}}')], /unknown collection/],
    ['an entry named __proto__', [head, part('{"workloads":{"__proto__":{"polluted":1}}}')], /forbidden key/],
    ['a collection __proto__ in a part', [head, part('{"__proto__":{"a":{}}}')], /unknown collection/],
    [
      'an entry too deep',
      [head, part(`{"workloads":{"a":${'{"a":'.repeat(5_000)}1${'}'.repeat(5_000)}}}`)],
      /forbidden/,
    ],
    ['a deletion of what is not there', [head, part('{}', '{"workloads":["a"]}')], /not there/],
    ['another type', ['{"type":"toString","generation":1}'], /unknown type/],
    [
      'more than the limit',
      [delta, ...Array(11).fill(part(`{"workloads":{"a":{"b":"${'x'.repeat(100_000)}"}}}`))],
      /longer than/,
    ],
  ];
  for (const [name, lines, expected] of rows) {
    const assembly = new Assembly('node', LIMIT);
    let error: string | undefined;
    for (const line of lines) {
      const message = parseServerMessage(line);
      const result = message.ok ? assembly.push(message.value, line.length) : message;
      if (!result.ok) {
        error = result.error;
        break;
      }
    }
    if (expected === 'fits') t.equal(error, undefined, name);
    else t.match(error, expected, name);
  }
  t.equal(({} as Record<string, unknown>).polluted, undefined);
});

t.test('whatever comes, nothing throws and no prototype changes', async (t) => {
  const hostileKey = fc.oneof(key, fc.constantFrom('__proto__', 'set', 'delete', 'workloads', 'delta', 'collections'));
  const nested = fc.dictionary(hostileKey, fc.dictionary(hostileKey, fc.oneof(fc.jsonValue(), fc.array(hostileKey))));
  const message = fc.oneof(
    fc.record({ type: fc.constant('part'), delta: fc.record({ set: nested, delete: nested }) }),
    fc.record({ type: fc.constant('part'), delta: fc.oneof(fc.jsonValue(), nested) }),
    fc.constantFrom<object>(
      { type: 'snapshot', generation: 1, hash: HASH, collections: Object.keys(emptyGatewayPlan()) },
      { type: 'delta', from: 1, generation: 2, hash: HASH },
      { type: 'end' },
      { type: 'keep', generation: 3 },
    ),
  );
  const untouched = Object.getOwnPropertyNames(Object.prototype).length;
  fc.assert(
    fc.property(fc.array(message, { maxLength: 12 }), (messages) => {
      const assembly = new Assembly('gateway', LIMIT);
      const held = emptyGatewayPlan();
      for (const item of messages) {
        const parsed = parseServerMessage(JSON.stringify(item));
        if (!parsed.ok) continue;
        const update = assembly.push(parsed.value, 10, held);
        if (update.ok && update.value?.type === 'delta') {
          const changes = new Changes();
          for (const delta of update.value.deltas as PlanDelta[]) {
            if (checkDelta(held, delta, changes).ok) changes.add(delta);
          }
          changePlan(held, changes.from(held));
        }
      }
      if (Object.getOwnPropertyNames(Object.prototype).length !== untouched) throw new Error('polluted');
    }),
    { numRuns: 200 },
  );
  t.pass();
});

t.test('canonical JSON is JSON, whatever stands in it', async (t) => {
  fc.assert(
    fc.property(fc.jsonValue(), fc.string({ unit: 'binary' }), (made, text) => {
      for (const value of [made, text, { [text]: [text, made] }, { a: undefined, b: [undefined, made] }]) {
        const again: unknown = JSON.parse(canonicalJson(value));
        if (JSON.stringify(sorted(again)) !== JSON.stringify(sorted(JSON.parse(JSON.stringify(value))))) {
          throw new Error(canonicalJson(value));
        }
        if (canonicalJson(again) !== canonicalJson(value)) throw new Error('not canonical');
      }
    }),
    { numRuns: 100 },
  );
  t.pass();
});
function sorted(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(sorted);
  if (typeof value !== 'object' || value === null) return value;
  return Object.fromEntries(
    Object.entries(value)
      .sort(([a], [b]) => (a < b ? -1 : 1))
      .map(([key, item]) => [key, sorted(item)]),
  );
}
