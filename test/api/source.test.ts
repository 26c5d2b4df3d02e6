/**
 * The Kubernetes source on a real API server, while objects come and go, the API server and its etcd are killed, and at last
 * restored from an older copy: in the end it has what a fresh list has, and no observation lacked what was there all the time.
 *   node dist/test/api/source.test.js [SECONDS]      of changes; by hand for longer
 */
import { setTimeout as pause } from 'node:timers/promises';
import t, { type Test } from 'tap';
import { sameJson } from '../../api/plan-delta.ts';
import { loadKubeConfig, loadLibrary } from '../../controller/kubernetes/client.ts';
import { watchKubernetes } from '../../controller/kubernetes/source.ts';
import type { Observation } from '../../controller/observe/source.ts';
import { silentLog } from '../../daemon/log.ts';
import { RealApiServer } from '../kube/api-server.ts';

const seconds = Number(process.argv[2] ?? 12);
const OURS = { group: 'sluice.dev', version: 'v1alpha1' };
const PREFIX = 'sluice-source-';
const LIST = 'list';

t.setTimeout(1000 * seconds + 500_000);

const server = await RealApiServer.start();
t.teardown(() => server.close());
await server.addKinds();
const { kubeconfig } = server;
const library = await loadLibrary();
const config = await loadKubeConfig({ kubeconfig });
const core = config.makeApiClient(library.CoreV1Api);
const custom = config.makeApiClient(library.CustomObjectsApi);

/** What fails while a server is away has not happened. */
const trying = async (work: () => Promise<unknown>): Promise<boolean> =>
  work().then(
    () => true,
    () => false,
  );
/** Until it has happened, or had already. */
const surely = async (work: () => Promise<unknown>): Promise<void> => {
  for (let left = 50; left > 0; left--) {
    try {
      await work();
      return;
    } catch (error) {
      if ((error as { code?: number }).code === 409) return;
      if (left === 1) throw error;
      await pause(200);
    }
  }
};

const namespaceOf = (i: number): string => `${PREFIX}${i}`;
async function makeNamespace(name: string): Promise<void> {
  await core.createNamespace({ body: { metadata: { name, labels: { team: name } } } });
}
/** There is no controller-manager to do it. */
async function endNamespace(name: string): Promise<void> {
  await core.deleteNamespace({ name });
  await core.replaceNamespaceFinalize({ name, body: { metadata: { name }, spec: { finalizers: [] } } });
}
async function makePod(namespace: string, name: string): Promise<void> {
  const spec = { nodeName: 'nowhere', automountServiceAccountToken: false, containers: [{ name: 'c', image: 'i' }] };
  await core.createNamespacedPod({ namespace, body: { metadata: { name, labels: { app: name } }, spec } });
}
async function givePodAddress(namespace: string, name: string, ip: string, begin: () => void): Promise<void> {
  const pod = await core.readNamespacedPod({ namespace, name });
  const status = { phase: 'Running', podIP: ip, podIPs: [{ ip }] };
  begin();
  await core.replaceNamespacedPodStatus({ namespace, name, body: { ...pod, status } });
}
const endPod = (namespace: string, name: string): Promise<unknown> =>
  core.deleteNamespacedPod({ namespace, name, gracePeriodSeconds: 0 });
const rule = (name: string, priority: number): object => ({
  apiVersion: `${OURS.group}/${OURS.version}`,
  kind: 'ClusterEgressRule',
  metadata: { name },
  spec: { action: 'accept', externalServices: ['*'], namespaceSelector: {}, priority },
});
const makeRule = (name: string, priority: number): Promise<unknown> =>
  custom.createClusterCustomObject({ ...OURS, plural: 'clusteregressrules', body: rule(name, priority) });
const changeRule = async (name: string, priority: number): Promise<void> => {
  const at = { ...OURS, plural: 'clusteregressrules', name };
  const before = (await custom.getClusterCustomObject(at)) as object;
  await custom.replaceClusterCustomObject({
    ...at,
    body: { ...before, spec: (rule(name, priority) as { spec: object }).spec },
  });
};
const endRule = (name: string): Promise<unknown> =>
  custom.deleteClusterCustomObject({ ...OURS, plural: 'clusteregressrules', name });

const first = namespaceOf(0);

/** Servers of 1.20 have only the older version. */
let sliceVersion = 'v1';
async function makeSlice(name: string, address: string): Promise<void> {
  const make = (version: string): Promise<unknown> => {
    const at = { group: 'discovery.k8s.io', version, namespace: first, plural: 'endpointslices' };
    const body = {
      apiVersion: `${at.group}/${version}`,
      kind: 'EndpointSlice',
      metadata: { name, labels: { 'kubernetes.io/service-name': 's' } },
      addressType: 'IPv4',
      endpoints: [{ addresses: [address], conditions: { ready: true } }],
      ports: [],
    };
    return custom.createNamespacedCustomObject({ ...at, body });
  };
  await make(sliceVersion).catch(async (error: unknown) => {
    if ((error as { code?: number }).code !== 404) throw error;
    sliceVersion = 'v1beta1';
    await make(sliceVersion);
  });
}
async function makeListedService(name: string): Promise<void> {
  const body = {
    apiVersion: `${OURS.group}/${OURS.version}`,
    kind: 'ExternalService',
    metadata: { name },
    spec: { addressesFrom: [{ configMapRef: { name } }] },
  };
  await custom.createNamespacedCustomObject({ ...OURS, namespace: first, plural: 'externalservices', body });
}
const setConfigMap = async (name: string, text: string): Promise<void> => {
  const body = { metadata: { name }, data: { text } };
  await core
    .replaceNamespacedConfigMap({ namespace: first, name, body })
    .catch(() => core.createNamespacedConfigMap({ namespace: first, body }));
};

const until = async (what: string, check: () => boolean | Promise<boolean>, ms: number): Promise<number> => {
  const since = performance.now();
  while (!(await check())) {
    if (performance.now() - since > ms) throw new Error(`not within ${ms} ms: ${what}`);
    await pause(5);
  }
  return performance.now() - since;
};

await surely(() => makeNamespace(first));
await surely(() => makePod(first, 'anchor'));
await surely(() => makeRule(`${PREFIX}anchor`, 1));
await surely(() => setConfigMap(LIST, '10.0.0.1'));
await surely(() => setConfigMap('not-referred-to', '10.0.0.1'));
await surely(() => makeListedService(LIST));
await surely(() => makeSlice('anchor', '10.0.0.1'));

const seen: { at: number; snapshot: Observation['snapshot'] }[] = [];
let missing = 0;
const anchors = [
  `Namespace/${first}`,
  `Pod/${first}/anchor`,
  `ClusterEgressRule/${PREFIX}anchor`,
  `ConfigMap/${first}/${LIST}`,
  `EndpointSlice/${first}/anchor`,
];
const waiting = new Map<string, { since: number; ip: string }>();
const latencies: number[] = [];
const onChange = ({ snapshot }: Observation): void => {
  missing += anchors.filter((key) => !snapshot.has(key)).length;
  seen.push({ at: performance.now(), snapshot });
  if (seen.length > 10) seen.shift();
  for (const [key, { since, ip }] of waiting) {
    const pod = snapshot.get(key);
    if (pod?.kind !== 'Pod' || pod.status.podIP !== ip) continue;
    latencies.push(performance.now() - since);
    waiting.delete(key);
  }
};
/** So that lists have several pages. */
const tuning = { pageSize: 20 };
const source = await watchKubernetes({ target: { kubeconfig }, log: silentLog(), onChange, tuning });
t.teardown(() => source.close());

async function compare(t: Test): Promise<void> {
  const fresh = await watchKubernetes({
    target: { kubeconfig },
    log: silentLog(),
    onChange: () => undefined,
    tuning,
  });
  const different = (): string[] => {
    const [a, b] = [source.current().snapshot, fresh.current().snapshot];
    return [...new Set([...a.keys(), ...b.keys()])].filter((key) => !sameJson(a.get(key), b.get(key)));
  };
  const ms = await until('as a fresh list', () => different().length === 0, 60_000).catch(() => undefined);
  t.same(different(), [], `as a fresh list has it, after ${Math.round(ms ?? -1)} ms`);
  await fresh.close();
}

t.test(`${seconds} s of changes, with restarts`, async (t) => {
  const pods = new Set<string>();
  const rules = new Set<string>();
  const namespaces = new Set<string>();
  let done = 0;
  let failed = 0;
  const one = async (i: number): Promise<void> => {
    const dice = Math.random();
    const name = `p-${i}`;
    const some = (set: Set<string>): string => [...set][Math.floor(Math.random() * set.size)] ?? '';
    const attempt = async (work: () => Promise<unknown>): Promise<boolean> => {
      const ok = await trying(work);
      ok ? done++ : failed++;
      return ok;
    };
    if (dice < 0.5) {
      if (!(await attempt(() => makePod(first, name)))) return;
      pods.add(name);
      const ip = `10.${(i >> 16) & 255}.${(i >> 8) & 255}.${i & 255}`;
      const key = `Pod/${first}/${name}`;
      const begin = (): void => void waiting.set(key, { since: performance.now(), ip });
      if (!(await attempt(() => givePodAddress(first, name, ip, begin)))) waiting.delete(key);
    } else if (dice < 0.54) await attempt(() => setConfigMap(LIST, `10.0.0.${i % 256}`));
    else if (dice < 0.56) await attempt(() => setConfigMap('not-referred-to', `10.0.0.${i % 256}`));
    else if (dice < 0.6) await attempt(() => makeSlice(`s-${i}`, `10.0.0.${i % 256}`));
    else if (dice < 0.75 && pods.size > 0) {
      const gone = some(pods);
      waiting.delete(`Pod/${first}/${gone}`);
      if (await attempt(() => endPod(first, gone))) pods.delete(gone);
    } else if (dice < 0.85) {
      if (await attempt(() => makeRule(`${PREFIX}${i}`, i % 65_535))) rules.add(`${PREFIX}${i}`);
    } else if (dice < 0.9 && rules.size > 0) {
      await attempt(() => changeRule(some(rules), i % 1000));
    } else if (dice < 0.93 && rules.size > 0) {
      const gone = some(rules);
      if (await attempt(() => endRule(gone))) rules.delete(gone);
    } else if (dice < 0.97) {
      if (await attempt(() => makeNamespace(namespaceOf(i)))) namespaces.add(namespaceOf(i));
    } else if (namespaces.size > 0) {
      const gone = some(namespaces);
      if (await attempt(() => endNamespace(gone))) namespaces.delete(gone);
    }
  };
  let ended = false;
  const workers = Array.from({ length: 4 }, async (_, worker) => {
    for (let i = worker + 1; !ended; i += 4) {
      await one(i);
      await pause(20);
    }
  });
  const step = (1000 * seconds) / 4;
  for (const [program, downMs] of [
    ['kube-apiserver', 500],
    ['etcd', 3_000],
  ] as const) {
    await pause(step);
    await server.kill(program);
    await pause(downMs);
    await server.up();
  }
  await pause(step);
  await server.backUp();
  await pause(step);
  ended = true;
  await Promise.all(workers);
  t.comment(`${done} changes, ${failed} failed`);
  t.equal(missing, 0, 'what was there all the time was in every observation');

  await compare(t);
  for (const [kind, resource] of [
    ['Pod', 'pods'],
    ['Namespace', 'namespaces'],
    ['ClusterEgressRule', 'clusteregressrules'],
    ['EndpointSlice', 'endpointslices'],
  ] as const) {
    const text = await server.kubectl(['get', resource, '-A', '-o', 'name']);
    const have = [...source.current().snapshot.keys()].filter((key) => key.startsWith(`${kind}/`)).length;
    t.equal(have, text.split('\n').filter(Boolean).length, `as many of ${resource} as kubectl finds`);
  }
  const kinds = [...source.current().snapshot.keys()].filter((key) => key.startsWith('ConfigMap/'));
  t.same(kinds, [`ConfigMap/${first}/${LIST}`], 'no other ConfigMap');
  t.same(source.current().errors, []);
  latencies.sort((a, b) => a - b);
  const at = (share: number): string => `${latencies[Math.floor(share * (latencies.length - 1))]?.toFixed(0)} ms`;
  t.comment(
    `an address until it is observed (with its request, restarts included): p50 ${at(0.5)}, p99 ${at(0.99)}, of ${latencies.length}`,
  );
});

t.test('etcd is restored from an older copy', async (t) => {
  for (let i = 0; i < 5; i++) await surely(() => makePod(first, `made-since-${i}`));
  await surely(() => endRule(`${PREFIX}anchor`));
  const key = `Pod/${first}/made-since-4`;
  await until('seen', () => source.current().snapshot.has(key), 60_000);
  await server.restore();
  const ms = await until('forgotten', () => !source.current().snapshot.has(key), 60_000);
  t.pass(`what was made since is gone after ${Math.round(ms)} ms`);
  await compare(t);
  t.ok(source.current().snapshot.has(`ClusterEgressRule/${PREFIX}anchor`), 'what was deleted since is there again');
});
