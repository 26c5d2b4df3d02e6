/**
 * What answers of resolvers teach over TCP, whose messages come in segments as both ends like: in any cut, order and
 * repetition what one segment would teach, and nothing that only looks like an answer. Real packets through a whole decider.
 */
import { deepStrictEqual, equal, ok } from 'node:assert/strict';
import fc from 'fast-check';
import t from 'tap';
import { INSPECT_DNS_MARK, INSPECT_PASSED_MARK } from '../../api/names.ts';
import { Conversations, type UntaughtReason, untaughtReasons } from '../../gateway/inspect/conversations.ts';
import { FramedStream } from '../../gateway/inspect/framed-stream.ts';
import { deciderLimits } from '../../gateway/inspect/messages.ts';
import { join } from '../../wire/bytes.ts';
import { framed, message, question, record } from '../dns-build.ts';
import { Rig, SERVER, Talk } from '../inspect-rig.ts';

t.setTimeout(120_000);
const LISTENED = INSPECT_DNS_MARK | INSPECT_PASSED_MARK;
const ask = (name: string, id = 7, type = 1): Uint8Array => framed(message({ id, questions: [question(name, type)] }));
const response = (name: string, id = 7, last = 7, more: number[][] = []): Uint8Array =>
  framed(
    message({
      id,
      flags: 0x8180,
      questions: [question(name, 1)],
      answers: [record(name, 1, [192, 0, 2, last], 300), ...more],
    }),
  );

const resolving = (): Rig => new Rig({ dns: { resolvers: [SERVER] } });
/** Of a flow that nobody reads. */
const listened = (rig: Rig, sourcePort = 40_000): Talk => new Talk(rig, 53, { marks: LISTENED, sourcePort });
const taught = (rig: Rig): string[] =>
  rig.posted.flatMap((one) => (one.kind === 'teach' ? [`${one.names} ${one.addresses.map((a) => a.address)}`] : []));
const releaseAll = (rig: Rig): void => {
  for (const one of rig.posted) if (one.kind === 'teach') rig.tell({ kind: 'release', id: one.id });
};
const untaught = (rig: Rig): Record<string, number> =>
  Object.fromEntries(
    Object.entries(rig.decider.desk.tally.read()).filter(([name, n]) => /^untaught/.test(name) && n > 0),
  );

t.test('a question and an answer in one segment each', async (t) => {
  const rig = resolving();
  const talk = listened(rig);
  t.equal(talk.open(), 'passed', 'it says where both begin');
  t.equal(talk.say(0, ask('www.example')), 'passed');
  t.equal(talk.hear(0, response('www.example')), 'held');
  t.same(taught(rig), ['www.example 192.0.2.7']);
  releaseAll(rig);
  t.equal(rig.left.at(-1), '3 passed');
  const late = listened(rig, 2);
  late.open();
  late.say(0, ask('late.example'));
  t.equal(late.hear(0, response('late.example')), 'held');
  rig.wait(deciderLimits.teachMs + 1);
  t.equal(rig.left.at(-1), '6 passed', 'it waits for so long and no longer');
  t.match(rig.decider.desk.tally.read(), { taught: 2, taught_late: 1 });
});

t.test('both cut at every byte: only what makes an answer whole waits', async (t) => {
  const [asked, answered] = [ask('www.example'), response('www.example')];
  const rig = resolving();
  for (let cut = 1; cut < answered.length; cut++) {
    const talk = listened(rig, 1_000 + cut);
    talk.open();
    const half = Math.min(cut, asked.length - 1);
    equal(talk.say(0, asked.subarray(0, half)), 'passed');
    equal(talk.say(half, asked.subarray(half)), 'passed');
    equal(talk.hear(0, answered.subarray(0, cut)), 'passed', `cut at ${cut}`);
    equal(talk.hear(cut, answered.subarray(cut)), 'held', `cut at ${cut}`);
  }
  t.equal(taught(rig).length, answered.length - 1);
  releaseAll(rig);
  t.equal(rig.holding, 0);
});

t.test('segments out of order, and sent again', async (t) => {
  const rig = resolving();
  const talk = listened(rig);
  const whole = response('www.example');
  talk.open();
  talk.say(0, ask('www.example'));
  t.equal(talk.hear(20, whole.subarray(20)), 'passed');
  t.equal(talk.hear(0, whole.subarray(0, 20)), 'held', 'the one that was missing');
  t.equal(talk.hear(0, whole), 'dropped', 'sent again in the meantime it would be there before its time');
  t.equal(talk.hear(10, whole.subarray(10, 20)), 'dropped');
  t.equal(talk.hear(20, whole.subarray(20)), 'passed', 'what went on may go on again');
  t.equal(talk.open(), 'passed', 'so may the beginning');
  releaseAll(rig);
  t.equal(talk.hear(0, whole), 'passed');
  t.equal(taught(rig).length, 1);

  const second = ask('second.example', 8);
  talk.say(ask('www.example').length, second);
  const both = join([response('second.example', 8, 8), framed(message({ id: 9, flags: 0x8180 }))]);
  t.equal(talk.hear(whole.length, both), 'held', 'a connection goes on');
});

t.test('several answers in one segment: it waits for all of them', async (t) => {
  const rig = resolving();
  const talk = listened(rig);
  talk.open();
  talk.say(0, join([ask('a.example', 1), ask('b.example', 2), ask('c.example', 3)]));
  const answers = join([response('b.example', 2), response('a.example', 1), response('c.example', 3)]);
  t.equal(talk.hear(0, answers), 'held');
  t.equal(taught(rig).length, 3);
  const ids = rig.posted.flatMap((one) => (one.kind === 'teach' ? [one.id] : []));
  for (const [at, id] of ids.entries()) {
    t.equal(rig.left.length, 2, `${at} of 3`);
    rig.tell({ kind: 'release', id });
  }
  t.equal(rig.left.at(-1), '3 passed');
});

t.test('what only looks like an answer teaches nothing', async (t) => {
  // A pod that owns evil.example asks for a text of it, and for a name of others, and has the resolver cut where it likes.
  const forged = response('bank.example', 9, 66);
  const within = [ask('evil.example', 7, 16), ask('bank.example', 9)] as const;
  const text = record('evil.example', 16, [forged.length, ...forged]);
  const honest = framed(message({ flags: 0x8180, questions: [question('evil.example', 16)], answers: [text] }));
  const at = Buffer.from(honest).indexOf(Buffer.from(forged));
  t.ok(at > 0);
  const attack = (rig: Rig, talk: Talk): void => {
    talk.say(0, within[0]);
    talk.say(within[0].length, within[1]);
    for (const [from, to] of [
      [0, at],
      [at, honest.length],
    ] as const) {
      t.equal(talk.hear(from, honest.subarray(from, to)), 'passed');
    }
    t.same(taught(rig), []);
  };
  const rig = resolving();
  const talk = listened(rig);
  talk.open();
  attack(rig, talk);
  t.equal(talk.hear(honest.length, response('bank.example', 9)), 'held', 'the right answer does');

  const unseen = resolving();
  attack(unseen, listened(unseen));
  t.equal(
    listened(unseen).hear(honest.length, response('bank.example', 9)),
    'passed',
    'nor anything of a connection whose beginning was not seen',
  );
  t.same(taught(unseen), []);
});

t.test('another connection with the same ports begins anew', async (t) => {
  const rig = resolving();
  const talk = listened(rig);
  talk.open();
  talk.say(0, ask('www.example').subarray(0, 9));
  const again = new Talk(rig, 53, { marks: LISTENED });
  const after = 100_000;
  again.hear(after - 1, '', 0x12);
  again.say(0, ask('www.example', 8));
  t.equal(again.hear(after, response('www.example', 8)), 'held');
});

t.test('questions in several segments are decided like those in one', async (t) => {
  const policy = {
    dns: { resolvers: [SERVER] },
    services: {
      dns: {
        addresses: ['0.0.0.0/0'],
        ports: null,
        checks: [
          {
            protocol: 6,
            ports: [[53, 53]] as [number, number][],
            application: 'DNS' as const,
            dns: { names: ['**.good.example'] },
          },
        ],
      },
    },
    rules: [{ name: 'dns', services: ['dns'] }],
  };
  const good = ask('www.good.example');
  for (let cut = 1; cut < good.length; cut++) {
    const rig = new Rig(policy);
    const talk = new Talk(rig, 53, { marks: INSPECT_DNS_MARK });
    equal(talk.open(), 'passed');
    equal(talk.say(0, good.subarray(0, cut)), 'held');
    equal(talk.say(cut, good.subarray(cut)), 'cluster/dns for life', `cut at ${cut}`);
    equal(talk.hear(0, response('www.good.example').subarray(0, cut)), 'passed');
    equal(talk.hear(cut, response('www.good.example').subarray(cut)), 'held', 'and their answers wait');
    const bad = ask('www.bad.example', 8);
    const half = Math.min(cut, bad.length - 1);
    equal(talk.say(good.length, bad.subarray(0, half)), 'held');
    equal(rig.left.filter((line) => line.includes('reset')).length, 0);
    const word = talk.say(good.length + half, bad.subarray(half));
    equal(word, 'dropped');
    ok(
      rig.left.some((line) => line.endsWith(`reset to server ${good.length}`)),
      'one that is denied in two segments',
    );
    rig.wait(20);
    equal(rig.flows.at(-1)?.reading.name, 'www.bad.example');
  }
  t.pass('each cut');
});

t.test('bounds have names', async (t) => {
  const met = new Set<UntaughtReason>();
  for (const [reason, say] of [
    ['gap', (talk: Talk) => talk.hear(200_000, 'x')],
    ['pieces', (talk: Talk) => Array.from({ length: 130 }, (_, at) => talk.hear(2 + at * 2, 'x'))],
  ] as const) {
    const rig = resolving();
    const talk = listened(rig);
    talk.open();
    talk.say(0, ask('www.example'));
    say(talk);
    t.same(untaught(rig), { [`untaught_${reason}`]: 1 });
    t.equal(talk.hear(0, response('www.example')), 'passed', 'it teaches nothing any more');
    t.same(taught(rig), []);
    met.add(reason);
  }
  const lost: string[] = [];
  const few = new Conversations((reason) => lost.push(reason), { connections: 2, memory: 70_000 });
  for (const key of ['a', 'b', 'c']) few.begin(key, 0, 0, 1);
  t.same([lost, few.size], [['flows'], 2]);
  for (const key of ['b', 'c']) {
    const of = few.get(key);
    of?.resolver.take(0, Uint8Array.of(0xff, 0xff), 0, 2, () => {});
    if (of !== undefined) few.settle(of, 2);
  }
  t.same([lost, few.size, few.memory < 70_000], [['flows', 'memory'], 1, true]);
  few.expire(1e9);
  t.same([lost.length, few.size, few.memory], [2, 0, 0], 'a silent one has ended');
  for (const reason of lost) met.add(reason as UntaughtReason);
  t.same([...met].sort(), Object.keys(untaughtReasons).sort(), 'a row for each');
});

t.test('a message that is too long is passed over, an empty one is none', async (t) => {
  const seen: number[] = [];
  const stream = new FramedStream(5, { message: 4, gap: 100, pieces: 4 });
  const bytes = Uint8Array.of(0, 5, 1, 1, 1, 1, 1, 0, 0, 0, 2, 7, 8, 0, 4, 1, 2, 3, 4);
  for (let at = 0; at < bytes.length; at++) stream.take(5 + at, bytes, at, at + 1, (one) => seen.push(...one));
  t.same(seen, [0, 2, 7, 8, 0, 4, 1, 2, 3, 4]);
});

t.test('any cuts, order and repetition: the messages, each once', async () => {
  const messages = fc.array(fc.uint8Array({ minLength: 1, maxLength: 60 }), { maxLength: 6 });
  fc.assert(
    fc.property(
      messages,
      fc.nat(0xffffffff),
      fc.array(fc.nat(400), { maxLength: 20 }),
      fc.array(fc.tuple(fc.nat(400), fc.nat(80)), { maxLength: 20 }),
      fc.nat(),
      (all, start, cuts, repeats, seed) => {
        const bytes = join(all.map(framed));
        const edges = [...new Set([0, ...cuts.map((cut) => Math.min(cut, bytes.length)), bytes.length])].sort(
          (a, b) => a - b,
        );
        const pieces = edges.slice(1).map((end, index): [number, number] => [edges[index] ?? 0, end]);
        for (const [at, size] of repeats) pieces.push([Math.min(at, bytes.length), Math.min(at + size, bytes.length)]);
        const order = pieces
          .map((piece, at) => ({ piece, by: Math.imul(seed ^ at, 0x9e3779b1) }))
          .sort((a, b) => a.by - b.by);
        const stream = new FramedStream(start, { message: 100, gap: 1_000, pieces: 100 });
        const seen: Uint8Array[] = [];
        for (const {
          piece: [from, to],
        } of order) {
          equal(
            stream.take((start + from) | 0, bytes, from, to, (one) => seen.push(one.slice(2))),
            undefined,
          );
        }
        deepStrictEqual(
          seen.map((one) => [...one]),
          all.map((one) => [...one]),
        );
        ok(stream.memory <= 2, 'nothing is kept');
      },
    ),
    { numRuns: 1_000 },
  );
});

t.test('random segments: nothing throws, nothing is kept for ever', async () => {
  const rig = resolving();
  fc.assert(
    fc.property(
      fc.nat(3),
      fc.integer({ min: -3, max: 90 }),
      fc.oneof(fc.uint8Array({ maxLength: 40 }), fc.constantFrom(ask('www.example'), response('www.example'))),
      fc.constantFrom(0x10, 0x18, 0x11, 0x12, 0x02, 0x04),
      fc.boolean(),
      fc.nat(300),
      (port, at, bytes, flags, server, milliseconds) => {
        const talk = listened(rig, port + 1);
        if (server) talk.hear(at, bytes, flags);
        else talk.say(at, bytes, flags);
        rig.wait(milliseconds);
      },
    ),
    { numRuns: 3_000 },
  );
  rig.wait(60_000);
  equal(rig.holding, 0);
});
