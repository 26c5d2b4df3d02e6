/**
 * The Kubernetes source against a fake API server, for what a real one won't do on demand (test/api/source.test.ts has the real
 * one). Each fault is followed by a change that only a source that got over it can see.
 */
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import type { ServerResponse } from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Writable } from 'node:stream';
import { pino } from 'pino';
import { Registry } from 'prom-client';
import t from 'tap';
import { parseObject } from '../../api/kinds.ts';
import type { Tuning } from '../../controller/kubernetes/informer.ts';
import { resources } from '../../controller/kubernetes/resources.ts';
import { type KubernetesSource, type SourceTuning, watchKubernetes } from '../../controller/kubernetes/source.ts';
import type { Observation } from '../../controller/observe/source.ts';
import { answer, event, FakeApiServer, type FakeObject, type FakeRequest, refuse } from './fake-api-server.ts';
import { samples } from './samples.ts';

type Test = Parameters<Parameters<typeof t.test>[0]>[0];

const PODS = '/api/v1/pods';
const NAMESPACES = '/api/v1/namespaces';
const CONFIG_MAPS = '/api/v1/configmaps';
const SERVICES = '/apis/sluice.dev/v1alpha1/externalservices';
const RULES = '/apis/sluice.dev/v1alpha1/clusteregressrules';
const SLICES = '/apis/discovery.k8s.io/v1/endpointslices';
const OLD_SLICES = '/apis/discovery.k8s.io/v1beta1/endpointslices';
const allPaths = [...resources.map(({ paths }) => paths[0] ?? ''), CONFIG_MAPS];

const pod = (name: string, ip = '10.1.0.1', fields: object = {}): FakeObject => ({
  metadata: { name, namespace: 'a', creationTimestamp: '2026-11-25T12:00:00Z', ...fields },
  spec: { nodeName: 'n', containers: [{ name: 'unknown field' }] },
  status: { phase: 'Running', podIP: ip, podIPs: [{ ip }], conditions: [{}] },
});
const rule = (name: string, spec: object, fields: object = {}): FakeObject => ({
  metadata: { name, ...fields },
  spec: { action: 'drop', externalServices: ['*'], ...spec },
});
const service = (name: string, configMap: string): FakeObject => ({
  metadata: { name, namespace: 'a' },
  spec: { addressesFrom: [{ configMapRef: { name: configMap } }] },
});
const configMap = (name: string, text: string): FakeObject => ({ metadata: { name, namespace: 'a' }, data: { text } });

/** Watches that end when the test does; pauses that a person does not see. */
const tuning: Partial<Tuning & SourceTuning> = {
  watchMs: 60_000,
  backoffMs: 5,
  maxBackoffMs: 50,
  maxAwayMs: 50,
};

interface World {
  api: FakeApiServer;
  source: KubernetesSource;
  seen: Observation[];
  /** Lines of the log. */
  log: string[];
  registry: Registry;
  names(kind: string): string[];
}

const until = async (what: string, check: () => boolean, ms = 10_000): Promise<void> => {
  const since = performance.now();
  while (!check()) {
    if (performance.now() - since > ms) throw new Error(`not within ${ms} ms: ${what}`);
    await new Promise((done) => setTimeout(done, 2));
  }
};

async function directory(t: Test): Promise<string> {
  const path = await mkdtemp(join(tmpdir(), 'sluice-kubernetes-'));
  t.teardown(() => rm(path, { recursive: true, force: true }));
  return path;
}

async function kubeconfig(t: Test, server: string): Promise<string> {
  const file = join(await directory(t), 'kubeconfig');
  const text = {
    clusters: [{ name: 'c', cluster: { server, 'insecure-skip-tls-verify': true } }],
    users: [{ name: 'u', user: { token: 'secret' } }],
    contexts: [{ name: 'x', context: { cluster: 'c', user: 'u' } }],
    'current-context': 'x',
  };
  await writeFile(file, JSON.stringify(text));
  return file;
}

interface Settings {
  paths?: readonly string[];
  tuning?: Partial<Tuning & SourceTuning>;
  state?: string;
  api?: FakeApiServer;
}

async function world(t: Test, prepare: (api: FakeApiServer) => void, settings: Settings = {}): Promise<World> {
  const api = settings.api ?? new FakeApiServer(settings.paths ?? allPaths);
  const log: string[] = [];
  const seen: Observation[] = [];
  const registry = new Registry();
  const sink = new Writable({ write: (chunk, _, done) => done(void log.push(String(chunk))) });
  prepare(api);
  const config = await kubeconfig(t, await api.listen());
  const source = await watchKubernetes({
    target: { kubeconfig: config },
    log: pino({ level: 'info' }, sink),
    registry,
    onChange: (observation) => seen.push(observation),
    tuning: { ...tuning, ...settings.tuning },
    ...(settings.state === undefined ? {} : { state: settings.state }),
  });
  t.teardown(async () => {
    await source.close();
    await api.close();
  });
  const names = (kind: string): string[] =>
    [...source.current().snapshot.keys()].filter((key) => key.startsWith(`${kind}/`)).sort();
  return { api, source, seen, log, registry, names };
}

/** Once, for the first request that fits. */
function once(
  api: FakeApiServer,
  path: string,
  watch: boolean,
  fault: (response: ServerResponse, request: FakeRequest) => void,
  fits = (_: FakeRequest): boolean => true,
): void {
  times(1, api, path, watch, fault, fits);
}
function times(
  count: number,
  api: FakeApiServer,
  path: string,
  watch: boolean,
  fault: (response: ServerResponse, request: FakeRequest) => void,
  fits = (_: FakeRequest): boolean => true,
): void {
  let left = count;
  api.faults.push((request) => {
    if (left === 0 || request.path !== path || request.watch !== watch || !fits(request)) return false;
    left--;
    fault(request.response, request);
    return true;
  });
}

/** What the source cannot know unless it goes on. */
async function goesOn({ api, names }: World, name = 'last'): Promise<void> {
  api.put(PODS, pod(name));
  await until(`pod ${name} is seen`, () => names('Pod').includes(`Pod/a/${name}`));
}

t.test('every kind gives the value that a manifest gives', async (t) => {
  const paths = new Map<string, string>(resources.map(({ kind, paths }) => [kind, paths[0] ?? '']));
  paths.set('ConfigMap', CONFIG_MAPS);
  const { source } = await world(t, (api) => {
    for (const { kind, apiVersion: _, ...sample } of structuredClone(samples) as unknown as (FakeObject & {
      kind: string;
    })[]) {
      const metadata = { ...sample.metadata, newInServers: {}, managedFields: [{}], annotations: { long: 'text' } };
      api.put(paths.get(kind) ?? '', { ...sample, metadata });
    }
    api.put(SERVICES, { ...service('lists', 'list'), metadata: { name: 'lists', namespace: 'billing' } });
  });
  for (const { apiVersion, kind, metadata, ...rest } of samples) {
    const { namespace, name } = metadata as { namespace?: string; name: string };
    const key = [kind, ...(namespace === undefined ? [] : [namespace]), name].join('/');
    const found = source.current().snapshot.get(key);
    // Servers give every object one.
    const uid = found?.metadata.uid ?? '';
    const parsed = parseObject({ apiVersion, kind, metadata: { ...metadata, uid }, ...rest });
    t.same(found, parsed.ok && parsed.value, key);
  }
  t.same(source.current().errors, []);
});

t.test('changes come as one observation, and what did not change is the same', async (t) => {
  const w = await world(
    t,
    (api) => {
      for (let i = 0; i < 5; i++) api.put(PODS, pod(`p${i}`));
    },
    { tuning: { pageSize: 2 } },
  );
  const { api, source, seen } = w;
  t.equal(api.count(PODS, false), 3, 'three pages');
  t.equal(w.names('Pod').length, 5);
  const first = source.current();
  await until('watched', () => api.watched(PODS));
  const began = performance.now();
  for (let i = 0; i < 100; i++) {
    api.put(PODS, pod(`q${i}`));
    await new Promise((done) => setTimeout(done, 1));
  }
  api.remove(PODS, pod('p0'));
  api.put(PODS, pod('p1', '10.1.0.9'));
  api.put(PODS, pod('p2', '10.1.0.1', { annotations: { irrelevant: 'x' } }));
  await until('all are seen', () => w.names('Pod').length === 104 && !source.current().snapshot.has('Pod/a/p0'));
  const ms = performance.now() - began;
  // Ten milliseconds of quiet are before each.
  t.ok(seen.length <= 2 + ms / 9, `${seen.length} observations in ${ms} ms`);
  const last = source.current().snapshot;
  t.match(last.get('Pod/a/p1'), { status: { podIPs: [{ ip: '10.1.0.9' }] } });
  for (const key of ['Pod/a/p2', 'Pod/a/p3'])
    t.equal(last.get(key), first.snapshot.get(key), `${key} is the same value`);
  t.equal(first.snapshot.size, 5, 'an observation is a value');
  const before = seen.length;
  for (let i = 0; i < 20; i++) api.put(PODS, pod('p2', '10.1.0.1', { annotations: { irrelevant: String(i) } }));
  await goesOn(w);
  t.ok(seen.length <= before + 1, 'what is nothing to us changes nothing');
  t.equal(api.count(PODS, false), 3, 'and no list was read again');
});

t.test('a watch goes on where it ended, by a bookmark too', async (t) => {
  const w = await world(t, (api) => api.put(PODS, pod('p')));
  const { api } = w;
  await until('watched', () => api.watched(PODS));
  api.version = 500;
  api.bookmark(PODS);
  await new Promise((done) => setTimeout(done, 1_100));
  api.endWatches(PODS);
  await until('watched again', () => api.count(PODS, true) === 2);
  const [, again] = api.requests.filter(({ path, watch }) => path === PODS && watch);
  t.equal(again?.query.get('resourceVersion'), '500');
  t.equal(again?.query.get('allowWatchBookmarks'), 'true');
  await goesOn(w);
  t.equal(api.count(PODS, false), 1);
});

const expired = { kind: 'Status', code: 410, message: 'too old resource version' };
const breaking: [name: string, fault: (api: FakeApiServer) => void, lists: boolean][] = [
  ['an ERROR event 410', (api) => api.send(PODS, event('ERROR', expired)), true],
  [
    'an older version than before, as after a restore of etcd',
    (api) => api.send(PODS, event('BOOKMARK', { metadata: { resourceVersion: '3' } })),
    true,
  ],
  [
    'an ERROR event 500',
    (api) => api.send(PODS, event('ERROR', { kind: 'Status', code: 500, message: 'etcd' })),
    false,
  ],
  ['a line that is no JSON', (api) => api.send(PODS, '{"type":"ADD\n'), false],
  ['JSON that is no event', (api) => api.send(PODS, '[1]\n'), false],
  [
    'an event of an unknown type',
    (api) => api.send(PODS, event('RENAMED', pod('x', '10.1.0.2', { resourceVersion: '9999' }))),
    false,
  ],
  ['an event of nothing', (api) => api.send(PODS, event('ADDED', { metadata: { resourceVersion: '9999' } })), false],
  ['an event without a version', (api) => api.send(PODS, event('ADDED', pod('x'))), false],
  ['a line without an end', (api) => api.send(PODS, 'x'.repeat(300_000)), false],
  ['a connection that breaks', (api) => api.endWatches(PODS), false],
];
for (const [name, fault, lists] of breaking) {
  t.test(`a watch with ${name}`, async (t) => {
    const w = await world(
      t,
      (api) => {
        api.put(PODS, pod('old'));
        api.put(PODS, pod('stays'));
      },
      { tuning: { maxEventBytes: 200_000 } },
    );
    const { api, source, seen } = w;
    await until('watched', () => api.watched(PODS));
    const stays = source.current().snapshot.get('Pod/a/stays');
    // Nothing tells of these but a list.
    if (lists) {
      api.remove(PODS, pod('old'), true);
      api.put(PODS, pod('new'), true);
    }
    fault(api);
    const expected = lists ? ['Pod/a/last', 'Pod/a/new', 'Pod/a/stays'] : ['Pod/a/last', 'Pod/a/old', 'Pod/a/stays'];
    await until('another watch', () => api.count(PODS, true) >= 2 && api.watched(PODS));
    await goesOn(w);
    t.same(w.names('Pod'), expected);
    t.equal(api.count(PODS, false), lists ? 2 : 1, 'lists');
    t.equal(source.current().snapshot.get('Pod/a/stays'), stays, 'what did not change is the same');
    t.ok(
      seen.every(({ snapshot }) => snapshot.has('Pod/a/stays')),
      'nothing was away meanwhile',
    );
  });
}

t.test('a watch that is refused with 410, while the list takes its time', async (t) => {
  const w = await world(t, (api) => {
    api.put(PODS, pod('old'));
    once(api, PODS, true, (response) => {
      // Not told of by any watch.
      api.remove(PODS, pod('old'), true);
      once(api, PODS, false, (slow) =>
        setTimeout(() => answer(slow, { metadata: { resourceVersion: String(api.version) }, items: null }), 300),
      );
      refuse(response, 410, 'too old resource version');
    });
  });
  await until('the second list is asked for', () => w.api.count(PODS, false) === 2);
  t.same(w.names('Pod'), ['Pod/a/old'], 'in force until the list is whole');
  await until('gone', () => w.names('Pod').length === 0);
  await goesOn(w);
  t.notMatch(w.log.join(''), /cannot read/, 'nothing to worry about');
});

t.test('429 with Retry-After is obeyed, on a list and on a watch', async (t) => {
  const busy = (response: ServerResponse): void => refuse(response, 429, 'too many requests', { 'retry-after': '1' });
  const w = await world(t, (api) => {
    once(api, PODS, false, busy);
    once(api, PODS, true, busy);
  });
  await goesOn(w);
  const [first, second, watch, next] = w.api.requests.filter(({ path }) => path === PODS).map(({ at }) => at);
  for (const [from, to] of [
    [first, second],
    [watch, next],
  ])
    t.ok((to ?? 0) - (from ?? 0) >= 995, `${(to ?? 0) - (from ?? 0)} ms`);
});

t.test('a half-open watch is noticed', async (t) => {
  const w = await world(
    t,
    (api) => {
      once(api, PODS, true, (response) => {
        response.writeHead(200);
        response.flushHeaders();
      });
    },
    { tuning: { watchMs: 1_000, graceMs: 300 } },
  );
  t.equal(w.api.watched(PODS), false);
  await goesOn(w);
  t.ok(w.api.count(PODS, true) >= 2);
  t.equal(w.api.count(PODS, false), 1, 'without a list');
  t.match(await w.registry.metrics(), /source_failures_total\{kind="Pod",reason="Silent"\} [1-9]/);
});

t.test('a server that does not answer at all is given up', async (t) => {
  const w = await world(
    t,
    (api) => {
      once(api, PODS, false, () => undefined);
      once(api, NAMESPACES, true, () => undefined);
    },
    { tuning: { idleMs: 1_000, pageMs: 300 } },
  );
  await goesOn(w);
  w.api.put(NAMESPACES, { metadata: { name: 'a' } });
  await until('the other too', () => w.names('Namespace').length === 1);
});

t.test('watches that tell nothing for long lead to a list', async (t) => {
  const w = await world(
    t,
    (api) => {
      times(5, api, PODS, true, (response) => {
        response.writeHead(200);
        response.flushHeaders();
        setTimeout(() => response.end(), 1_010);
      });
    },
    { tuning: { watchMs: 1_000 } },
  );
  // The server's history began anew below our version.
  w.api.put(PODS, pod('unheard'), true);
  await until('listed', () => w.names('Pod').length === 1, 15_000);
  t.equal(w.api.count(PODS, false), 2);
});

t.test('a server that comes back with an older history, as after a restore of etcd', async (t) => {
  const w = await world(t, (api) => api.put(PODS, pod('made-since')));
  const { api, names } = w;
  await until('watched', () => api.watched(PODS));
  api.remove(PODS, pod('made-since'), true);
  api.restore(50);
  api.put(PODS, pod('of-the-copy'), true);
  api.breakWatches(PODS);
  await until('as it is now', () => names('Pod').join() === 'Pod/a/of-the-copy');
  await goesOn(w);
});

t.test('a server that comes back as it was is not listed again', async (t) => {
  const w = await world(t, (api) => api.put(PODS, pod('p')));
  await until('watched', () => w.api.watched(PODS));
  w.api.breakWatches(PODS);
  await goesOn(w);
  const lists = w.api.requests.filter(({ path, watch }) => path === PODS && !watch);
  t.same(
    lists.map(({ query }) => query.get('limit')),
    ['500', '1'],
    'one look at the version',
  );
});

const second = ({ query }: FakeRequest): boolean => query.has('continue');
const lists: [
  name: string,
  fault: (response: ServerResponse) => void,
  fits: (request: FakeRequest) => boolean,
  failures: RegExp | undefined,
][] = [
  ['that is no JSON', (response) => answer(response, '{"items": [tru'), () => true, /BadAnswer/],
  ['that is a page of a proxy', (response) => answer(response, '<html>'), () => true, /BadAnswer/],
  ['that is another thing', (response) => answer(response, { kind: 'Status' }), () => true, /BadAnswer/],
  ['without items', (response) => answer(response, { metadata: { resourceVersion: '1' } }), () => true, /BadAnswer/],
  ['without a version', (response) => answer(response, { metadata: {}, items: [] }), () => true, /BadAnswer/],
  [
    'with an item that is none',
    (response) => answer(response, { metadata: { resourceVersion: '1' }, items: [7] }),
    () => true,
    /BadAnswer/,
  ],
  [
    'with an item without a name',
    (response) => answer(response, { metadata: { resourceVersion: '1' }, items: [{ metadata: {} }] }),
    () => true,
    /BadAnswer/,
  ],
  ['that is refused', (response) => refuse(response, 403, 'pods is forbidden'), () => true, /Forbidden/],
  ['of a server in trouble', (response) => refuse(response, 500, 'etcd'), () => true, /ServerError/],
  [
    'that breaks off',
    (response) => {
      response.writeHead(200, { 'content-length': '1000' });
      response.write('{');
      setTimeout(() => response.destroy(), 20);
    },
    () => true,
    /Unreachable/,
  ],
  [
    'whose second page is expired',
    (response) => refuse(response, 410, 'The provided continue parameter is too old'),
    second,
    /Expired/,
  ],
  ['whose second page fails once', (response) => refuse(response, 500, 'etcd'), second, undefined],
  ['whose second page is no JSON', (response) => answer(response, '{'), second, /BadAnswer/],
];
for (const [name, fault, fits, failure] of lists) {
  t.test(`a list ${name}, at first and later`, async (t) => {
    const w = await world(
      t,
      (api) => {
        for (let i = 0; i < 5; i++) api.put(PODS, pod(`p${i}`));
        once(api, PODS, false, fault, fits);
      },
      { tuning: { pageSize: 2 } },
    );
    t.equal(w.names('Pod').length, 5, 'read in the end');
    await until('watched', () => w.api.watched(PODS));
    times(4, w.api, PODS, false, fault, fits);
    w.api.remove(PODS, pod('p0'), true);
    w.api.send(PODS, event('ERROR', expired));
    await until('read again', () => w.names('Pod').length === 4);
    await goesOn(w);
    t.ok(
      w.seen.every(({ snapshot }) => snapshot.has('Pod/a/p4')),
      'nothing was away meanwhile',
    );
    if (failure !== undefined) t.match(w.log.join(''), failure, 'said');
  });
}

t.test('pages that are too large are read in smaller ones', async (t) => {
  const w = await world(
    t,
    (api) => {
      for (let i = 0; i < 64; i++) api.put(PODS, pod(`p${i}`));
    },
    { tuning: { pageSize: 64, maxPageBytes: 4_000 } },
  );
  t.equal(w.names('Pod').length, 64);
  const limits = w.api.requests
    .filter(({ path, watch }) => path === PODS && !watch)
    .map(({ query }) => query.get('limit'));
  t.equal(limits[0], '64');
  t.equal(limits.at(-1), '8');
});

t.test('more objects than are bearable are refused as a whole', async (t) => {
  const w = await world(
    t,
    (api) => {
      for (let i = 0; i < 5; i++) api.put(PODS, pod(`p${i}`));
    },
    { tuning: { maxObjects: 10 } },
  );
  await until('watched', () => w.api.watched(PODS));
  for (let i = 5; i < 20; i++) w.api.put(PODS, pod(`p${i}`), true);
  w.api.send(PODS, event('ERROR', expired));
  await until('said', () => /TooLarge/.test(w.log.join('')));
  t.equal(w.names('Pod').length, 5);
});

t.test('a CRD that is not installed is said, and waited for', async (t) => {
  const api = new FakeApiServer(allPaths.filter((path) => path !== RULES));
  const installed = until('asked for in vain', () => api.count(RULES, false) > 1).then(() => {
    api.install(RULES);
    api.put(RULES, rule('block', {}));
  });
  const w = await world(t, () => undefined, { api });
  await installed;
  t.same(w.names('ClusterEgressRule'), ['ClusterEgressRule/block']);
  t.match(
    w.log.join(''),
    /CustomResourceDefinition clusteregressrules\.sluice\.dev is not installed; it is waited for/,
  );

  await until('watched', () => api.watched(RULES));
  api.uninstall(RULES);
  const before = api.count(RULES, false);
  api.send(RULES, event('ERROR', expired));
  await until('asked for in vain', () => api.count(RULES, false) > before + 3);
  t.same(w.names('ClusterEgressRule'), ['ClusterEgressRule/block'], 'what was in force stays');
});

t.test('the start is given up on a signal', async (t) => {
  const api = new FakeApiServer([]);
  const config = await kubeconfig(t, await api.listen());
  t.teardown(() => api.close());
  const options = { target: { kubeconfig: config }, log: pino({ level: 'silent' }), onChange: () => undefined, tuning };
  await t.rejects(watchKubernetes({ ...options, signal: AbortSignal.timeout(50) }), {
    name: /AbortError|TimeoutError/,
  });
  await t.rejects(watchKubernetes({ ...options, target: { kubeconfig: '/nowhere' } }), /nowhere/);
  const plain = join(await directory(t), 'kubeconfig');
  await writeFile(plain, (await readFile(config, 'utf8')).replace('"insecure-skip-tls-verify":true', '"x":0'));
  await t.rejects(watchKubernetes({ ...options, target: { kubeconfig: plain } }), /not without TLS/);
});

t.test('EndpointSlices of an older server', async (t) => {
  const slice = {
    metadata: { name: 's', namespace: 'a' },
    addressType: 'IPv4',
    endpoints: [{ addresses: ['10.1.0.1'], topology: {} }],
  };
  const w = await world(t, (api) => api.put(OLD_SLICES, slice), {
    paths: [...allPaths.filter((path) => path !== SLICES), OLD_SLICES],
  });
  const key = 'EndpointSlice/a/s';
  t.match(w.source.current().snapshot.get(key), {
    apiVersion: 'discovery.k8s.io/v1',
    endpoints: [{ addresses: ['10.1.0.1'] }],
  });
  await until('watched', () => w.api.watched(OLD_SLICES));
  w.api.remove(OLD_SLICES, slice);
  await until('gone', () => !w.source.current().snapshot.has(key));
});

t.test(
  'of an own object that is bad the last good version stays, across restarts, and not of its successor',
  async (t) => {
    const state = await directory(t);
    const bad = { priority: -1 };
    const key = 'ClusterEgressRule/block';
    const spec = (w: World): unknown => (w.source.current().snapshot.get(key) as { spec?: object } | undefined)?.spec;
    const first = await world(
      t,
      (api) => {
        api.put(RULES, rule('block', { priority: 7 }));
        api.put(RULES, rule('never-good', bad));
      },
      { state },
    );
    t.match(first.source.current().errors, [
      { file: 'apiserver', object: 'ClusterEgressRule/never-good', reason: 'Invalid', details: [/spec.priority/] },
    ]);
    t.equal(first.source.current().snapshot.has('ClusterEgressRule/never-good'), false);
    await until('watched', () => first.api.watched(RULES));
    first.api.put(RULES, rule('block', bad));
    await until('refused', () => first.source.current().errors.length === 2);
    t.match(spec(first), { priority: 7 });
    t.match(first.log.join(''), /"object":"ClusterEgressRule\/block".*an object was refused; what was in force stays/);
    await first.source.close();
    t.equal(JSON.parse(await readFile(join(state, 'apiserver.json'), 'utf8')).lastGood.length, 1);

    const again = await world(t, (api) => api.put(RULES, rule('block', bad)), { state });
    t.match(spec(again), { priority: 7 }, 'after a restart');
    await until('watched', () => again.api.watched(RULES));
    again.api.put(RULES, rule('block', bad, { uid: 'made-anew' }));
    await until('gone', () => spec(again) === undefined);
    again.api.put(RULES, rule('block', { priority: 8 }, { uid: 'made-anew' }));
    await until('good', () => spec(again) !== undefined);
    t.same(again.source.current().errors, []);
    again.api.remove(RULES, rule('block', {}));
    await until('gone', () => spec(again) === undefined);
    await again.source.close();
    t.same(JSON.parse(await readFile(join(state, 'apiserver.json'), 'utf8')).lastGood, []);
  },
);

t.test('errors are bounded', async (t) => {
  const w = await world(t, (api) => {
    for (let i = 0; i < 1_100; i++) api.put(RULES, rule(`r${i}`, { priority: -1 }));
  });
  const { errors } = w.source.current();
  t.equal(errors.length, 1_001);
  t.match(errors.at(-1), { details: ['and 100 more objects'] });
});

t.test('ConfigMaps are read if an ExternalService refers to them, and no others', async (t) => {
  const w = await world(t, (api) => {
    for (const name of ['one', 'two', 'other']) api.put(CONFIG_MAPS, configMap(name, '10.0.0.1'));
    api.put(SERVICES, service('s', 'one'));
  });
  const { api, source, names } = w;
  t.same(names('ConfigMap'), ['ConfigMap/a/one']);
  const path = '/api/v1/namespaces/a/configmaps';
  await until('watched', () => api.count(path, true) === 1);
  api.put(CONFIG_MAPS, configMap('one', '10.0.0.2'));
  api.put(CONFIG_MAPS, configMap('other', '10.0.0.2'));
  await until(
    'changed',
    () =>
      (source.current().snapshot.get('ConfigMap/a/one') as { data?: Record<string, string> }).data?.text === '10.0.0.2',
  );
  await until('watched', () => api.watched(SERVICES));
  api.put(SERVICES, service('s', 'two'));
  await until('the other', () => names('ConfigMap').join() === 'ConfigMap/a/two');
  const first = w.seen.find(({ snapshot }) => JSON.stringify(snapshot.get('ExternalService/a/s')).includes('two'));
  t.ok(first?.snapshot.has('ConfigMap/a/two'), 'the service comes with its list');
  api.put(SERVICES, { metadata: { name: 's', namespace: 'a' }, spec: { addresses: ['10.0.0.1'] } });
  await until('none', () => names('ConfigMap').length === 0);
  api.put(CONFIG_MAPS, configMap('two', '10.0.0.3'));
  await goesOn(w);
  t.same(names('ConfigMap'), []);
  t.notOk(api.requests.some((request) => request.path === path && !request.query.has('fieldSelector')));
});

t.test('ConfigMaps beyond those that are watched are polled', async (t) => {
  const w = await world(t, (api) => {
    for (let i = 0; i < 20; i++) {
      api.put(CONFIG_MAPS, configMap(`c${i}`, '10.0.0.1'));
      api.put(SERVICES, service(`s${i}`, `c${i}`));
    }
  });
  t.equal(w.names('ConfigMap').length, 20);
  const path = '/api/v1/namespaces/a/configmaps';
  await until('watched', () => w.api.count(path, true) === 16);
  await goesOn(w);
  t.equal(w.api.count(path, true), 16);
});

t.test('a ConfigMap that may not be read does not hold up the start for ever', async (t) => {
  const w = await world(
    t,
    (api) => {
      api.put(SERVICES, service('s', 'secret'));
      times(1_000, api, '/api/v1/namespaces/a/configmaps', false, (response) => refuse(response, 403, 'forbidden'));
    },
    { tuning: { configMapsMs: 100 } },
  );
  t.match(w.log.join(''), /a\/secret.*starting without them/);
  await goesOn(w);
});

t.test('a resource that cannot be read is alarmed when it is stale, and is in force all the while', async (t) => {
  const w = await world(t, (api) => api.put(PODS, pod('p')), { tuning: { staleMs: 300 } });
  const { api, source, registry, seen } = w;
  await until('watched', () => api.watched(PODS));
  let down = true;
  api.faults.push(({ path, response }) => {
    if (down && path === PODS) refuse(response, 503, 'down');
    return down && path === PODS;
  });
  api.endWatches(PODS);
  const stale = (): boolean =>
    source.current().errors.some(({ details }) => /^Pod: ServerError: 503: down/.test(details[0] ?? ''));
  await until('alarmed', stale);
  t.match(w.log.join(''), /"kind":"Pod".*stale: what is in force may be old/);
  t.match(
    seen.at(-1)?.errors.filter(({ details }) => details[0]?.startsWith('Pod')),
    [{ file: 'apiserver', reason: 'Unreadable' }],
  );
  const metrics = await registry.metrics();
  t.ok(Number(/source_stale_seconds\{kind="Pod"\} ([0-9.]+)/.exec(metrics)?.[1]) >= 0.3, 'as a metric');
  t.match(metrics, /source_failures_total\{kind="Pod",reason="ServerError"\} [1-9]/);
  t.same(w.names('Pod'), ['Pod/a/p']);
  down = false;
  await goesOn(w);
  api.bookmark(PODS);
  await until('over', () => !stale());
  t.match(w.log.join(''), /not stale any more/);
});
