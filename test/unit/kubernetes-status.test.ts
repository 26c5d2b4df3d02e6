/**
 * Status and events on an API server, a fake one: what is sent and what is not, in which order, how fast, and what
 * becomes of it when the server refuses, is away, or has forgotten. The real one: test/api/status.test.ts.
 */
import t, { type Test } from 'tap';
import type { AnyObject } from '../../api/kinds.ts';
import { KubernetesEvents } from '../../controller/kubernetes/events.ts';
import { apiOf, type Json } from '../../controller/kubernetes/requests.ts';
import { KubernetesStatus, type KubernetesStatusOptions, namedBy } from '../../controller/kubernetes/status.ts';
import type { Condition, Status } from '../../controller/plan/condition.ts';
import { withErrors } from '../../controller/publish/status.ts';
import { silentLog } from '../../daemon/log.ts';
import { type FakeApi, fakeApi, until } from './kubernetes-api.ts';

const NOW = Date.parse('2026-11-27T12:00:00.750Z');
const place = '/apis/sluice.dev/v1alpha1';
const billing = `${place}/egressips/billing`;
const retryMs = { from: 20, to: 200 };

const condition = (
  type: Condition['type'],
  status: Condition['status'],
  reason: string = type,
  message = `${type} is ${status}`,
): Condition => ({ type, status, reason, message });
const accepted = condition('Accepted', 'True');
const programmed = condition('Programmed', 'True');
const waits = condition('Programmed', 'False', 'NotAcknowledged');
const refused = condition('Accepted', 'False', 'NoSuchPool');
const status = (conditions: Condition[], facts: Json = {}): Status => ({ observedGeneration: 3, conditions, ...facts });
const objectOf = (key: string, uid: string): AnyObject => {
  const [kind, ...names] = key.split('/');
  return { kind, metadata: { name: names.at(-1), uid, generation: 3 } } as AnyObject;
};

interface World {
  api: FakeApi;
  sink: KubernetesStatus;
  now: { at: number };
  /** A new controller: it knows what the API server tells it. */
  restart(options?: Partial<KubernetesStatusOptions>): KubernetesStatus;
  publish(statuses: Record<string, Status>, uids?: Record<string, string>): void;
  quiet(): Promise<void>;
}

async function world(t: Pick<Test, 'teardown'>, options: Partial<KubernetesStatusOptions> = {}): Promise<World> {
  const api = await fakeApi();
  const client = apiOf(api.config);
  const now = { at: NOW };
  let listed = false;
  const make = (more: Partial<KubernetesStatusOptions> = {}): KubernetesStatus =>
    new KubernetesStatus({ api: client, log: silentLog(), now: () => now.at, retryMs, ...options, ...more });
  const it: World = {
    api,
    now,
    sink: make(),
    restart(more) {
      it.sink = make(more);
      return it.sink;
    },
    publish(statuses, uids = {}) {
      const objects = new Map(
        Object.keys(statuses).map((key): [string, AnyObject] => {
          const { kind, namespace, name } = namedBy(key) ?? { kind: '', name: '' };
          const stored = api.objects.get(pathOf(kind, namespace, name))?.metadata.uid;
          return [key, objectOf(key, uids[key] ?? stored ?? 'none')];
        }),
      );
      it.sink.publish(new Map(Object.entries(statuses)), [], objects);
    },
    async quiet() {
      const list = ({ path }: { path: string }): boolean => path.endsWith('/serviceegressrules');
      if (!listed && api.writes().length === 0) await until('the first list', () => api.seen.some(list));
      listed = true;
      let count = -1;
      while (count !== api.seen.length) {
        count = api.seen.length;
        await new Promise((resolve) => setTimeout(resolve, 60));
      }
    },
  };
  t.teardown(async () => {
    await it.sink.close();
    client.close();
    await api.close();
  });
  return it;
}

const pathOf = (kind: string, namespace: string | undefined, name: string): string =>
  `${place}/${namespace === undefined ? '' : `namespaces/${namespace}/`}${kind.toLowerCase()}s/${name}`;
const ofBilling = (api: FakeApi): Json => api.objects.get(billing)?.status as Json;
const timesOf = (api: FakeApi): Record<string, string> =>
  Object.fromEntries(
    ((ofBilling(api)?.conditions ?? []) as Json[]).map(({ type, lastTransitionTime }) => [type, lastTransitionTime]),
  );

t.test('keys of objects', async (t) => {
  const rows: [string, object | undefined][] = [
    ['EgressIP/billing', { kind: 'EgressIP', name: 'billing' }],
    ['NamespaceEgressRule/pay/out', { kind: 'NamespaceEgressRule', namespace: 'pay', name: 'out' }],
    ['EgressIP/pay/billing', undefined],
    ['ExternalService/x', undefined],
    ['ExternalService/x/', undefined],
    ['Pod/pay/one', undefined],
    ['', undefined],
  ];
  for (const [key, named] of rows) t.same(namedBy(key), named, key);
});

t.test('server-side apply of what differs, with times that move with the status alone', async (t) => {
  const w = await world(t);
  w.api.put(billing, { spec: {} });
  const rule = `${place}/namespaces/pay/namespaceegressrules/out`;
  w.api.put(rule, { spec: {} });
  const ofRule = status([accepted]);
  const facts = { addresses: ['203.0.113.7'], nothing: undefined };
  w.publish({ 'EgressIP/billing': status([accepted, waits], facts), 'NamespaceEgressRule/pay/out': ofRule });
  await w.quiet();
  t.equal(w.api.writes().length, 2);
  const sent = w.api.writes().find(({ path }) => path === `${billing}/status`);
  t.match(sent, { method: 'PATCH', type: 'application/apply-patch+yaml' });
  t.same(Object.fromEntries(sent?.query ?? []), { fieldManager: 'sluice-controller', force: 'true' });
  const time = '2026-11-27T12:00:00Z';
  t.same(sent?.body, {
    apiVersion: 'sluice.dev/v1alpha1',
    kind: 'EgressIP',
    metadata: { name: 'billing', uid: w.api.objects.get(billing)?.metadata.uid },
    status: {
      observedGeneration: 3,
      addresses: ['203.0.113.7'],
      conditions: [
        { ...accepted, lastTransitionTime: time },
        { ...waits, lastTransitionTime: time },
      ],
    },
  });
  t.ok(w.api.objects.get(rule)?.status);

  w.now.at += 60_000;
  w.publish({
    'EgressIP/billing': status([accepted, waits], { addresses: ['203.0.113.7'] }),
    'NamespaceEgressRule/pay/out': ofRule,
  });
  await w.quiet();
  t.equal(w.api.writes().length, 2, 'what is equal is not sent');
  w.publish({
    'EgressIP/billing': status([{ ...accepted, message: 'other' }, programmed], facts),
    'NamespaceEgressRule/pay/out': ofRule,
  });
  await w.quiet();
  t.equal(w.api.writes().length, 3, 'only what changed is sent');
  t.same(timesOf(w.api), { Accepted: time, Programmed: '2026-11-27T12:01:00Z' });

  await w.sink.close();
  w.restart();
  w.now.at += 60_000;
  w.api.seen.length = 0;
  w.publish({
    'EgressIP/billing': status([{ ...accepted, message: 'other' }, programmed], facts),
    'NamespaceEgressRule/pay/out': status([refused]),
  });
  await w.quiet();
  t.same(
    w.api.writes().map(({ path }) => path),
    [`${rule}/status`],
    'a restart sends nothing that is there',
  );
  w.publish({ 'EgressIP/billing': status([refused, programmed]) });
  await w.quiet();
  t.same(timesOf(w.api), { Accepted: '2026-11-27T12:02:00Z', Programmed: '2026-11-27T12:01:00Z' }, 'times go on');

  w.api.objects.delete(billing);
  w.api.put(billing, { spec: {} });
  w.publish({ 'EgressIP/billing': status([refused, programmed]) });
  await w.quiet();
  t.same(timesOf(w.api), { Accepted: '2026-11-27T12:02:00Z', Programmed: '2026-11-27T12:02:00Z' }, 'one made anew');
});

t.test('a refused object says so', async (t) => {
  const w = await world(t);
  w.api.put(billing, { spec: {} });
  const errors = [
    {
      file: 'EgressIP/billing',
      object: 'EgressIP/billing',
      reason: 'Invalid' as const,
      details: ['spec.count: 1 to 64'],
    },
  ];
  w.sink.publish(withErrors(new Map(), errors), errors, new Map());
  await w.quiet();
  t.match(ofBilling(w.api).conditions, [
    { type: 'Accepted', status: 'False', reason: 'Invalid', message: /spec\.count/ },
  ]);
});

t.test('lists of many pages are read', async (t) => {
  const w = await world(t);
  const statuses: Record<string, Status> = {};
  for (let i = 0; i < 1201; i++) {
    const conditions = [{ ...accepted, lastTransitionTime: '2026-01-01T00:00:00Z' }];
    w.api.put(`${place}/egressips/e${i}`, { status: { observedGeneration: 3, conditions } });
    statuses[`EgressIP/e${i}`] = status([i === 1200 ? { ...accepted, message: 'new' } : accepted]);
  }
  w.publish(statuses);
  await until('it is written', () => w.api.writes().length > 0);
  await w.quiet();
  t.equal(w.api.seen.filter(({ path }) => path.endsWith('/egressips')).length, 3);
  t.same(
    w.api.writes().map(({ path }) => path),
    [`${place}/egressips/e1200/status`],
  );
  t.match(w.api.objects.get(`${place}/egressips/e1200`)?.status, {
    conditions: [{ lastTransitionTime: '2026-01-01T00:00:00Z' }],
  });
});

t.test('conditions go first, counters at their pace, few at a time', async (t) => {
  const w = await world(t, { parallel: 3, writesPerSecond: 1000, counterWritesPerSecond: 20 });
  const base: Record<string, Status> = {};
  for (let i = 0; i < 60; i++) {
    w.api.put(`${place}/clusteregressrules/r${i}`, { spec: {} });
    base[`ClusterEgressRule/r${i}`] = status([accepted]);
  }
  w.api.latencyMs = 5;
  w.publish(base);
  await until('all', () => w.api.writes().length === 60);
  t.equal(w.api.most, 3);
  await w.quiet();
  w.api.seen.length = 0;
  const counted = (key: string): [string, Status] => [key, { ...(base[key] as Status), counters: { hits: 7 } }];
  const began = performance.now();
  w.sink.patch(new Map(Object.keys(base).map(counted)));
  await until('some', () => w.api.writes().length >= 22);
  w.publish({ ...Object.fromEntries(Object.keys(base).map(counted)), 'ClusterEgressRule/r59': status([refused]) });
  const asked = w.api.writes().length;
  await until('the condition', () =>
    w.api.writes().some(({ body }) => JSON.stringify(body.status).includes('NoSuchPool')),
  );
  t.ok(w.api.writes().length <= asked + 4, 'a condition does not wait for counters');
  await until('all', () => w.api.writes().length >= 60, 20_000);
  // 20 at once, the others at 20 a second.
  const took = performance.now() - began;
  t.ok(took > 1700 && took < 6000, `${took} ms`);
  t.match(w.api.objects.get(`${place}/clusteregressrules/r0`)?.status, { counters: { hits: 7 } });
  await w.quiet();
  t.equal(w.api.writes().length, 60, 'each once');
});

t.test('what the API server answers', async (t) => {
  const w = await world(t);
  const [a, b] = [`${place}/egressips/a/status`, `${place}/egressips/b/status`];
  for (const name of ['a', 'b']) w.api.put(`${place}/egressips/${name}`, { spec: {} });
  const count = (path: string): number => w.api.writes().filter((one) => one.path === path).length;
  let message = 0;
  const both = (): void => {
    message++;
    const each = (): Status => status([{ ...accepted, message: String(message) }]);
    w.publish({ 'EgressIP/a': each(), 'EgressIP/b': each() });
  };
  const done = (name: string): boolean =>
    JSON.stringify(w.api.objects.get(`${place}/egressips/${name}`)?.status ?? {}).includes(`"${message}"`);
  both();
  await until('both', () => done('a') && done('b'));

  for (const code of [409, 500, 403]) {
    w.api.seen.length = 0;
    let left = 3;
    w.api.fault = ({ path, method }) => (path === a && method === 'PATCH' && left-- > 0 ? { status: code } : undefined);
    both();
    await until('b', () => done('b'));
    t.notOk(done('a'), `${code}: the other does not wait`);
    await until('a', () => done('a'));
    const at = w.api.writes().flatMap((one) => (one.path === a ? [one.at] : []));
    t.equal(at.length, 4);
    t.ok((at[3] ?? 0) - (at[2] ?? 0) > 35, 'it waits longer each time');
  }

  for (const fault of [{ status: 429, retryAfter: 1 }, { status: 503 }, 'lost'] as const) {
    w.api.seen.length = 0;
    let left = 2;
    w.api.fault = ({ method }) => (method === 'PATCH' && left-- > 0 ? fault : undefined);
    const began = performance.now();
    both();
    await until('both', () => done('a') && done('b'));
    const took = performance.now() - began;
    await w.quiet();
    const name = typeof fault === 'string' ? fault : String(fault.status);
    t.ok(count(a) <= 3 && count(b) <= 3, `${name}: none is sent too often`);
    if (name === '429') t.ok(took > 990 && took < 2500, `as long as it asks for: ${took} ms`);
  }

  for (const code of [422, 400]) {
    w.api.seen.length = 0;
    w.api.fault = ({ path }) => (path === a ? { status: code } : undefined);
    both();
    await until('b', () => done('b'));
    await w.quiet();
    t.equal(count(a), 1, `${code}: not again`);
    w.api.fault = () => undefined;
    both();
    await until('a', () => done('a'));
  }

  w.api.seen.length = 0;
  w.api.objects.delete(`${place}/egressips/a`);
  both();
  await until('b', () => done('b'));
  await w.quiet();
  t.equal(count(a), 1, '404: it is gone');

  w.api.seen.length = 0;
  w.api.fault = ({ path }) => (path === b ? 'silent' : undefined);
  both();
  await until('it is asked', () => count(b) === 1);
  const began = performance.now();
  await w.sink.close();
  t.ok(performance.now() - began < 4000, 'the end does not wait for a server that is silent');
});

t.test('what waits is written at the end, and none of it by a standby', async (t) => {
  let leads = false;
  const w = await world(t, { mayWrite: () => leads, writesPerSecond: 2 });
  for (const name of ['a', 'b', 'c', 'd', 'e']) w.api.put(`${place}/egressips/${name}`, { spec: {} });
  const all = (conditions: Condition[]): Record<string, Status> =>
    Object.fromEntries(['a', 'b', 'c', 'd', 'e'].map((name) => [`EgressIP/${name}`, status(conditions)]));
  w.publish(all([accepted]));
  await new Promise((resolve) => setTimeout(resolve, 200));
  t.equal(w.api.seen.length, 0, 'a standby asks for nothing');
  leads = true;
  await until('the first', () => w.api.writes().length > 0);
  leads = false;
  await w.quiet();
  const sent = w.api.writes().length;
  t.ok(sent < 5, 'it ends when it leads no more');

  // Meanwhile another wrote.
  const conditions = [{ ...refused, lastTransitionTime: '2026-01-01T00:00:00Z' }];
  w.api.put(`${place}/egressips/a`, { status: { observedGeneration: 3, conditions } });
  w.publish(all([refused]));
  w.api.seen.length = 0;
  leads = true;
  await until('one', () => w.api.writes().length > 0);
  await w.sink.close();
  t.same(
    w.api
      .writes()
      .map(({ path }) => path.split('/').at(-2))
      .sort(),
    ['b', 'c', 'd', 'e'],
    'all, at the end',
  );
  t.match(w.api.objects.get(`${place}/egressips/a`)?.status, { conditions: [{ lastTransitionTime: /^2026-01-01/ }] });
});

t.test('the request after the one during which the lease was lost is not sent', async (t) => {
  let leads = true;
  const w = await world(t, { mayWrite: () => leads, parallel: 1, retryMs: { from: 5000, to: 5000 } });
  for (const name of ['a', 'b']) w.api.put(`${place}/egressips/${name}`, { spec: {} });
  w.api.fault = ({ method }) => {
    if (method === 'PATCH') leads = false;
    return undefined;
  };
  w.publish({ 'EgressIP/a': status([accepted]), 'EgressIP/b': status([accepted]) });
  await until('the first', () => w.api.writes().length > 0);
  await w.quiet();
  t.equal(w.api.writes().length, 1);
});

t.test('an API server that is away when the controller starts', async (t) => {
  const w = await world(t);
  w.api.put(billing, { spec: {} });
  let left = 3;
  w.api.fault = () => (left-- > 0 ? { status: 503 } : undefined);
  w.publish({ 'EgressIP/billing': status([accepted]) });
  await until('it is written', () => ofBilling(w.api) !== undefined);
  t.pass();
});

t.test('events', async (t) => {
  const api = await fakeApi();
  const client = apiOf(api.config);
  const events = new KubernetesEvents({ api: client, log: silentLog(), settleMs: 50 });
  t.teardown(async () => {
    await events.close();
    client.close();
    await api.close();
  });
  const object = { kind: 'EgressIP', name: 'billing', uid: 'u1' };
  const rule = { kind: 'ServiceEgressRule', namespace: 'pay', name: 'out', uid: 'u2' };
  const all = (): Json[] =>
    [...api.objects].filter(([path]) => path.includes('/events/')).map(([, event]) => event as Json);
  const told = (): string[] =>
    all().map(({ type, reason, count, message }) => `${type} ${reason} ${count}: ${message}`);
  const told4 = async (count: number): Promise<string[]> => {
    await until(`${count} events`, () => all().length >= count);
    await new Promise((resolve) => setTimeout(resolve, 100));
    return told();
  };

  events.changed(object, [], [accepted, waits]);
  events.changed(object, [waits], [accepted, programmed]);
  await new Promise((resolve) => setTimeout(resolve, 150));
  t.same(told(), [], 'what is well from the start, and what gateways acknowledge in time, is no news');

  events.changed(object, [accepted, programmed], [refused, programmed]);
  t.same(await told4(1), ['Warning NoSuchPool 1: Accepted is False']);
  t.match([...api.objects.keys()][0], '/api/v1/namespaces/default/events/billing.');
  t.match(all()[0], {
    kind: 'Event',
    involvedObject: { apiVersion: 'sluice.dev/v1alpha1', kind: 'EgressIP', name: 'billing', uid: 'u1' },
    firstTimestamp: /^2\d{3}-.*Z$/,
    source: { component: 'sluice-controller' },
  });
  events.changed(object, [refused], [{ ...refused, message: 'still' }, programmed]);
  events.changed(object, [refused], [accepted, programmed]);
  t.same(await told4(2), ['Warning NoSuchPool 1: Accepted is False', 'Normal Accepted 1: Accepted is True']);
  events.changed(object, [accepted], [{ ...refused, message: 'again' }]);
  await until('a count', () => told().includes('Warning NoSuchPool 2: again'));
  t.equal(all().length, 2, 'what repeats is counted');

  const conflicted = condition('Conflicted', 'True', 'OtherPool');
  events.changed(rule, [], [accepted, waits, conflicted]);
  t.same((await told4(4)).slice(2), [
    'Warning OtherPool 1: Conflicted is True',
    'Warning NotAcknowledged 1: Programmed is False',
  ]);
  t.match(all()[3], { metadata: { namespace: 'pay' } });
  events.changed(rule, [waits], [accepted, programmed, conflicted]);
  t.same((await told4(5)).slice(4), ['Normal Programmed 1: Programmed is True'], 'what lasted ends with a word');

  // An earlier run told of it.
  const other = { kind: 'EgressIP', name: 'other', uid: 'u3' };
  events.changed(other, [refused], [refused]);
  events.changed(other, [refused], [accepted]);
  t.same((await told4(6)).slice(5), ['Normal Accepted 1: Accepted is True']);

  api.objects.clear();
  for (let i = 0; i < 200; i++) {
    const reason = `Reason${i % 50}`;
    events.changed({ ...object, name: 'noisy' }, [accepted], [condition('Accepted', 'False', reason)]);
    events.changed({ ...object, name: 'noisy' }, [condition('Accepted', 'False', reason)], [accepted]);
  }
  await told4(2);
  const sum = all().reduce((n, { count }) => n + Number(count), 0);
  t.equal(sum, 10, 'an object has a budget');
});
