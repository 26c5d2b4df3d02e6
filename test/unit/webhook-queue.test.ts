/**
 * What webhooks are told, and when (design §4.7): the queue is pure, clock and randomness are passed in. Differences of
 * totals, batches, back-off, bounds, and what statuses say.
 */
import fc from 'fast-check';
import t from 'tap';
import { noHits, type RuleHits } from '../../api/hits.ts';
import type { WebhookTarget } from '../../controller/plan/webhooks.ts';
import {
  type Delivery,
  type DeliveryOutcome,
  type WebhookLimits,
  WebhookQueue,
  webhookLimits,
} from '../../controller/publish/webhook-queue.ts';

const NAME = 'hooks.example.test';
const ok: DeliveryOutcome = { ok: true };
const bad: DeliveryOutcome = { ok: false, reason: 'DeliveryFailed', message: 'expected status 200 to 299, got 503' };

const target = (rule: string, url: string, more: object = {}): [string, WebhookTarget] => [
  `service/a/${rule}`,
  {
    url,
    host: new URL(url).host,
    rule: { context: 'service', namespace: 'a', rule, action: 'accept', ...more },
  },
];

/** A queue with totals that the test moves, and a random number in the middle. */
function bench(targets: [string, WebhookTarget][], limits: Partial<WebhookLimits> = {}, told?: Map<string, RuleHits>) {
  const totals = new Map<string, RuleHits>();
  const queue = new WebhookQueue({ ...webhookLimits, ...limits }, () => 0.5, told);
  const use = (next: [string, WebhookTarget][]): void => queue.use(new Map(next), (id) => totals.get(id) ?? noHits());
  if (told === undefined) use(targets);
  return {
    queue,
    totals,
    use,
    grow(rule: string, flows: number, packets = 0, lastHit = 1000): void {
      const id = `service/a/${rule}`;
      const sum = totals.get(id) ?? noHits();
      const { hits, bytes } = sum;
      const flowsNow = sum.flows + flows;
      totals.set(id, {
        hits: hits + flows,
        flows: flowsNow,
        packets: sum.packets + packets,
        bytes: bytes + packets * 100,
        lastHit,
      });
      if (flows > 0) queue.grown(id);
    },
    /** Takes what there is; `rule+flows` of each delivery. */
    take(now: number): { deliveries: Delivery[]; texts: string[] } {
      const deliveries = queue.take(now);
      const text = ({ events }: Delivery) => events.map(({ rule, flows }) => `${rule}+${flows}`).join(' ');
      return { deliveries, texts: deliveries.map(text) };
    },
  };
}
const U = `https://${NAME}/a`;
const only = ({ deliveries }: { deliveries: Delivery[] }): Delivery => {
  const [delivery] = deliveries;
  if (delivery === undefined || deliveries.length > 1)
    throw new Error(`expected one delivery, got ${deliveries.length}`);
  return delivery;
};

t.test('what is told: the difference since the last delivery, each flow once', async (t) => {
  const b = bench([target('x', U, { generation: 3 })]);
  t.same(b.take(0).texts, [], 'nothing permitted, nothing told');
  b.grow('x', 3, 40, Date.UTC(2026, 10, 27, 12));
  const first = only(b.take(0));
  t.same(first.events, [
    {
      context: 'service',
      namespace: 'a',
      rule: 'x',
      action: 'accept',
      generation: 3,
      flows: 3,
      packets: 40,
      bytes: 4000,
      total: { flows: 3, packets: 40, bytes: 4000 },
      lastHit: '2026-11-27T12:00:00.000Z',
    },
  ]);
  b.grow('x', 2, 7);
  t.same(b.take(10).texts, [], 'one request a URL at a time');
  t.same(b.queue.settle(first, ok, 100), { delivered: 1, dropped: 0 });
  t.same(b.take(1099).texts, [], 'and a second between them');
  t.equal(b.queue.nextAt(), 1100);
  const second = only(b.take(1100));
  t.match(second.events, [{ flows: 2, packets: 7, total: { flows: 5, packets: 47 } }], 'what came meanwhile');
  t.not(second.key, first.key);
  b.queue.settle(second, ok, 1200);
  b.grow('x', 0, 100);
  t.same(b.take(9000).texts, [], 'traffic of known flows alone is no match');
  t.equal(b.queue.nextAt(), undefined);
  b.grow('x', 1);
  t.match(only(b.take(9000)).events, [{ flows: 1, packets: 100 }], 'it is told with the next one');
});

t.test('a webhook begins with what comes after it; saved and restored, nothing is lost', async (t) => {
  const b = bench([]);
  b.grow('x', 1000);
  b.use([target('x', U)]);
  t.same(b.take(0).texts, [], 'not what was before');
  b.grow('x', 1);
  t.same(b.take(0).texts, ['x+1']);
  t.equal(b.queue.told.get('service/a/x')?.flows, 1000, 'not told until the answer came');
  const again = bench([], {}, new Map(b.queue.told));
  again.grow('x', 1001);
  again.use([target('x', U)]);
  const restored = only(again.take(0));
  t.match(restored.events, [{ flows: 1 }], 'a restart tells it again');
  again.queue.settle(restored, ok, 0);
  t.equal(again.queue.told.get('service/a/x')?.flows, 1001);
  again.use([]);
  t.equal(again.queue.told.size, 0, 'a rule without webhook is forgotten');
  again.grow('x', 5);
  again.use([target('x', U)]);
  t.same(again.take(99_999).texts, [], 'and begins anew');
  const lost = bench([], {}, new Map([['service/a/x', { ...noHits(), flows: 50 }]]));
  lost.grow('x', 5);
  lost.use([target('x', U)]);
  lost.grow('x', 1);
  t.same(lost.take(0).texts, ['x+1'], 'totals that are less than what was told began anew');
});

t.test('the same content has the same key, whatever the attempt or the run', async (t) => {
  const told = new Map([['service/a/x', noHits()]]);
  const [one, two] = [bench([], {}, told), bench([], {}, told)];
  for (const b of [one, two]) {
    b.grow('x', 3);
    b.use([target('x', U)]);
  }
  const first = only(one.take(0));
  t.equal(only(two.take(0)).key, first.key, 'two runs');
  t.match(first.key, /^[0-9a-f]{32}$/);
  one.queue.settle(first, bad, 0);
  one.grow('x', 9);
  const second = only(one.take(750));
  t.equal(second.key, first.key, 'two attempts');
  t.equal(second.events, first.events, 'and the same content, though there is more by now');
  t.equal(second.attempt, 2);
  one.queue.settle(second, ok, 800);
  t.same(one.take(1800).texts, ['x+9']);
});

t.test('failures: later and later, then dropped; what comes after is still told', async (t) => {
  const b = bench([target('x', U), target('y', U)]);
  b.grow('x', 1);
  b.grow('y', 2);
  let now = 0;
  const waits: number[] = [];
  for (let attempt = 1; ; attempt++) {
    const delivery = only(b.take(now));
    t.same(
      delivery.events.map(({ rule, flows }) => `${rule}+${flows}`),
      ['x+1', 'y+2'],
    );
    const { delivered, dropped } = b.queue.settle(delivery, bad, now);
    t.equal(delivered, 0);
    const next = b.queue.nextAt();
    if (attempt === webhookLimits.attempts) {
      t.equal(dropped, 2, 'two events are dropped');
      t.equal(next, undefined, 'and nothing is left to send');
      break;
    }
    t.equal(dropped, 0);
    waits.push((next ?? 0) - now);
    t.same(b.take((next ?? 0) - 1).texts, [], 'not earlier');
    now = next ?? 0;
  }
  t.same(
    waits.map((ms) => ms / 750),
    [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300].map((seconds) => seconds),
    'doubled up to five minutes, here with 3/4 of each',
  );
  b.grow('x', 4);
  t.same(b.take(now).texts, [], 'a URL that failed is left alone for as long as before');
  now = b.queue.nextAt() ?? 0;
  const later = only(b.take(now));
  t.match(later.events, [{ rule: 'x', flows: 4, total: { flows: 5 } }], 'the total tells what was dropped');
  b.queue.settle(later, ok, now);
  b.grow('x', 1);
  t.same(b.take(now + 1000).texts, ['x+1'], 'one success, and it is as before');
});

t.test('one URL is one batch, of a bounded length; one host has a bound of its own', async (t) => {
  const rules = Array.from({ length: 250 }, (_, i) => `r${i}`);
  const b = bench(rules.map((rule) => target(rule, U)));
  for (const rule of rules) b.grow(rule, 1);
  const lengths: number[] = [];
  const seen: string[] = [];
  for (let now = 0; now < 5000; now += 1000) {
    for (const delivery of b.queue.take(now)) {
      lengths.push(delivery.events.length);
      seen.push(...delivery.events.map(({ rule }) => rule));
      b.queue.settle(delivery, ok, now);
    }
  }
  t.same(lengths, [100, 100, 50]);
  t.same(seen, rules, 'the longest waiting first');

  const urls = Array.from({ length: 6 }, (_, i) => `https://${NAME}/${i}`);
  const many = bench([...urls.map((url, i) => target(`m${i}`, url)), target('far', 'https://far.example.test/')]);
  for (let i = 0; i < 6; i++) many.grow(`m${i}`, 1);
  many.grow('far', 1);
  const first = many.take(0);
  t.same(first.texts, ['m0+1', 'far+1'], 'a host begins one request in 200 ms, others do not wait for it');
  const second = many.take(200);
  t.same(second.texts, ['m1+1']);
  t.same(many.take(60_000).texts, [], 'and has two at once');
  for (const delivery of first.deliveries) many.queue.settle(delivery, bad, 60_000);
  t.same(many.take(60_000).texts, ['m2+1'], 'whose turn it is, not who was there first');

  const hosts = Array.from({ length: 40 }, (_, i) => target(`h${i}`, `https://h${i}.example.test/`));
  const crowd = bench(hosts);
  for (let i = 0; i < 40; i++) crowd.grow(`h${i}`, 1);
  t.equal(crowd.take(0).texts.length, webhookLimits.atOnce, 'sixteen in all');
  t.equal(crowd.queue.nextAt(), undefined, 'until one is back');
});

t.test('rules and URLs that go while a request is under way', async (t) => {
  const b = bench([target('x', U)]);
  b.grow('x', 1);
  const gone = only(b.take(0));
  t.ok(b.queue.wants(gone));
  b.use([]);
  t.notOk(b.queue.wants(gone), 'nobody wants it any more');
  b.use([target('x', U)]);
  b.grow('x', 2);
  const next = only(b.take(1000));
  t.notOk(b.queue.wants(gone), 'another one is under way');
  t.same(b.queue.settle(gone, ok, 1000), { delivered: 0, dropped: 0 });
  t.ok(b.queue.wants(next));
  t.same(b.queue.settle(next, ok, 1000), { delivered: 1, dropped: 0 });

  b.grow('x', 4);
  const old = only(b.take(5000));
  const V = `https://${NAME}/elsewhere`;
  b.use([target('x', V), target('y', U)]);
  b.queue.settle(old, ok, 5000);
  t.same(b.take(6000).texts, ['x+4'], 'what was told elsewhere is told to the new URL too');

  const c = bench([target('x', U), target('y', U)]);
  c.grow('x', 1);
  const failed = only(c.take(0));
  c.use([target('x', U), target('y', U)]);
  t.match(c.queue.counts(), { waitingRules: 0, batchedEvents: 1 }, 'what is under way does not wait as well');
  c.queue.settle(failed, bad, 0);
  c.use([target('y', U)]);
  c.grow('x', 4);
  c.use([target('x', U), target('y', U)]);
  c.queue.settle(only(c.take(1000)), ok, 1000);
  t.equal(c.queue.told.get('service/a/x')?.flows, 5, 'a rule that began anew is not set back by an old batch');
});

t.test('conditions: at once, then not more often than a minute', async (t) => {
  const b = bench([target('x', U), target('y', U), target('z', 'https://z.example.test/')]);
  const says = (rule: string) => {
    const { status, reason, message } = b.queue.condition(`service/a/${rule}`) ?? {};
    return `${status} ${reason}: ${message}`;
  };
  t.match(says('x'), /^False NotFailing/);
  t.equal(b.queue.condition('service/a/other'), undefined);
  b.grow('x', 1);
  b.queue.settle(only(b.take(0)), bad, 0);
  t.same(b.queue.due(0), ['service/a/x', 'service/a/y'], 'every rule of the URL');
  t.equal(says('y'), 'True DeliveryFailed: expected status 200 to 299, got 503');
  t.match(says('z'), /^False/);
  t.same(b.queue.due(1), [], 'once');
  b.queue.settle(only(b.take(1000)), ok, 1000);
  t.same(b.queue.due(1000), []);
  t.match(says('x'), /^True/, 'it is still what statuses say');
  t.same(b.queue.due(60_000), ['service/a/x', 'service/a/y']);
  t.match(says('x'), /^False/);
  const rules = Array.from({ length: 25 }, (_, i) => `r${i}`);
  const many = bench(rules.map((rule) => target(rule, U)));
  many.grow('r0', 1);
  many.queue.settle(only(many.take(0)), bad, 0);
  t.same(
    [0, 1, 2, 3].map((now) => many.queue.due(now).length),
    [10, 10, 5, 0],
    'so many at a time',
  );
});

t.test('whatever happens: bounds hold, and every flow is delivered, dropped or waiting', async () => {
  const limits = { ...webhookLimits, eventsPerRequest: 3, attempts: 3, atOnce: 4 };
  const hosts = ['a.test', 'b.test', 'c.test'];
  const rule = fc.integer({ min: 0, max: 11 });
  const step = fc.oneof(
    fc.record({ do: fc.constant('grow' as const), rule, flows: fc.integer({ min: 1, max: 5 }) }),
    fc.record({ do: fc.constant('settle' as const), which: fc.nat(), good: fc.boolean() }),
    fc.record({ do: fc.constant('wait' as const), ms: fc.integer({ min: 0, max: 2000 }) }),
    fc.record({ do: fc.constant('plan' as const) }),
  );
  const urlOf = (i: number): string => `https://${hosts[i % 3]}/${i % 6}`;
  fc.assert(
    fc.property(
      fc.array(step, { maxLength: 200 }),
      fc.infiniteStream(fc.double({ min: 0, max: 1, noNaN: true })),
      (steps, random) => {
        const totals = new Map<string, RuleHits>();
        const queue = new WebhookQueue(limits, () => random.next().value);
        const targets = new Map(Array.from({ length: 12 }, (_, i) => target(`r${i}`, urlOf(i))));
        const plan = (): void => queue.use(targets, (id) => totals.get(id) ?? noHits());
        plan();
        let now = 0;
        const flying: Delivery[] = [];
        const quietUntil = new Map<string, number>();
        const begun = new Map<string, number>();
        const finished = new Map<string, number>();
        const count = (delivery: Delivery): void => {
          for (const { rule, flows } of delivery.events) finished.set(rule, (finished.get(rule) ?? 0) + flows);
        };
        const settle = (which: number, good: boolean): void => {
          const [delivery] = flying.splice(which % flying.length, 1);
          if (delivery === undefined) return;
          const { delivered, dropped } = queue.settle(delivery, good ? ok : bad, now);
          if (delivered + dropped > 0) count(delivery);
          if (delivered !== (good ? delivery.events.length : 0)) throw new Error('delivered is what was taken');
          if (dropped > 0 !== (!good && delivery.attempt === limits.attempts))
            throw new Error('dropped after too many');
          quietUntil.set(delivery.url, now + (good ? limits.urlIntervalMs : limits.firstRetryMs / 2));
        };
        const take = (): void => {
          for (const delivery of queue.take(now)) {
            const { url, host, events, attempt } = delivery;
            if (flying.some((one) => one.url === url)) throw new Error('one a URL');
            if (flying.filter((one) => one.host === host).length >= limits.hostAtOnce)
              throw new Error('at once a host');
            if (now - (begun.get(host) ?? -Infinity) < limits.hostIntervalMs) throw new Error('too soon for the host');
            if (now < (quietUntil.get(url) ?? -Infinity)) throw new Error('too soon for the URL');
            if (events.length === 0 || events.length > limits.eventsPerRequest) throw new Error('events');
            if (attempt > limits.attempts) throw new Error('attempts');
            if (events.some(({ flows }) => flows < 1)) throw new Error('an event without a flow');
            begun.set(host, now);
            flying.push(delivery);
          }
          if (flying.length > limits.atOnce) throw new Error('at once');
          const { batchedEvents, waitingRules } = queue.counts();
          if (batchedEvents > 6 * limits.eventsPerRequest || waitingRules > targets.size) throw new Error('memory');
        };
        for (const one of steps) {
          if (one.do === 'grow') {
            const id = `service/a/r${one.rule}`;
            const sum = totals.get(id) ?? noHits();
            totals.set(id, { ...sum, flows: sum.flows + one.flows });
            queue.grown(id);
          } else if (one.do === 'settle') settle(one.which, one.good);
          else if (one.do === 'wait') now += one.ms;
          else plan();
          take();
        }
        // In the end everybody is well, and hears of all.
        for (let rounds = 0; flying.length > 0 || queue.nextAt() !== undefined; rounds++) {
          if (rounds > 1000) throw new Error('no end');
          while (flying.length > 0) settle(0, true);
          now = Math.max(now, queue.nextAt() ?? now);
          take();
        }
        for (const [id, { flows }] of totals) {
          if (finished.get(id.slice('service/a/'.length)) !== flows) throw new Error(`${id}: each flow once`);
        }
      },
    ),
    { numRuns: 300 },
  );
});
