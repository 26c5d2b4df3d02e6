/**
 * What the Kubernetes source costs in a large cluster: time and memory until everything is read, then so many changes of
 * pods a second, how long each takes to be observed, and the processor that all of it takes. The API server is made up, in
 * a process of its own: pages of generated pods as long as kubelets leave them (about 5 kB), and one watch of them. So
 * the figures are the source's own; a real server with etcd behind it needs its time for each page on top.
 *   node --expose-gc dist/bench/kubernetes-source.js [--namespaces 10000] [--pods 100000] [--rate 50] [--seconds 20]
 */
import { fork } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { createServer, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as pause } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { watchKubernetes } from '../controller/kubernetes/source.ts';
import { ObjectIndex } from '../controller/plan/objects.ts';
import { createLog } from '../daemon/log.ts';

const { values } = parseArgs({
  options: {
    namespaces: { type: 'string', default: '10000' },
    pods: { type: 'string', default: '100000' },
    rate: { type: 'string', default: '50' },
    seconds: { type: 'string', default: '20' },
    serve: { type: 'boolean', default: false },
  },
});
const size = { namespaces: Number(values.namespaces), pods: Number(values.pods) };
const rate = Number(values.rate);
const seconds = Number(values.seconds);
const megabytes = (bytes: number): number => Math.round(bytes / 1024 / 1024);

async function measure(): Promise<void> {
  const server = fork(fileURLToPath(import.meta.url), ['--serve', ...process.argv.slice(2)], { execArgv: [] });
  const [port] = (await once(server, 'message')) as [number];
  const directory = await mkdtemp(join(tmpdir(), 'sluice-source-'));
  const kubeconfig = join(directory, 'kubeconfig');
  const cluster = { server: `http://127.0.0.1:${port}`, 'insecure-skip-tls-verify': true };
  const config = {
    clusters: [{ name: 'c', cluster }],
    users: [{ name: 'u', user: { token: 't' } }],
    contexts: [{ name: 'x', context: { cluster: 'c', user: 'u' } }],
    'current-context': 'x',
  };
  await writeFile(kubeconfig, JSON.stringify(config));

  const index = new ObjectIndex();
  const delays: number[] = [];
  let looking = 0;
  let observations = 0;
  let last = 0;
  const began = performance.now();
  const source = await watchKubernetes({
    target: { kubeconfig },
    log: createLog('bench', 'warn'),
    onChange({ snapshot }) {
      const now = Date.now();
      const since = performance.now();
      index.look(snapshot);
      looking += performance.now() - since;
      observations++;
      // The newest and all before it, each of which says when it was made.
      for (let i = last; ; i++) {
        const pod = snapshot.get(podKey(i));
        const at = Number(pod?.metadata.labels?.at ?? 0);
        if (at === 0) break;
        delays.push(now - at);
        last = i + 1;
      }
    },
  });
  const ready = performance.now() - began;
  index.look(source.current().snapshot);
  const { maxRSS, userCPUTime, systemCPUTime } = process.resourceUsage();
  const processor = ((userCPUTime + systemCPUTime) / 1e6).toFixed(1);
  console.log(
    `${source.current().snapshot.size} objects in ${(ready / 1000).toFixed(1)} s, ${processor} s of the processor`,
  );
  console.log(`memory: ${Math.round(maxRSS / 1024)} MB at most`);
  globalThis.gc?.();
  const { rss, heapUsed } = process.memoryUsage();
  console.log(`then ${megabytes(rss)} MB, of which ${megabytes(heapUsed)} MB are objects`);

  const cpu = process.cpuUsage();
  const from = performance.now();
  server.send('change');
  while (delays.length < rate * seconds) await pause(50);
  const took = (performance.now() - from) / 1000;
  const { user, system } = process.cpuUsage(cpu);
  delays.sort((a, b) => a - b);
  const at = (share: number): number => delays[Math.floor(share * (delays.length - 1))] ?? 0;
  console.log(`${delays.length} changes in ${took.toFixed(1)} s, ${observations} observations`);
  console.log(`from the server until observed: p50 ${at(0.5)}, p99 ${at(0.99)}, at most ${at(1)} ms`);
  console.log(`index: ${(looking / observations).toFixed(2)} ms an observation`);
  console.log(`processor: ${((user + system) / 10_000 / took).toFixed(1)} % of one`);
  console.log(`memory: ${Math.round(process.resourceUsage().maxRSS / 1024)} MB at most`);
  await source.close();
  server.kill();
  await rm(directory, { recursive: true });
}

const namespaceOf = (i: number): string => `namespace-${i % size.namespaces}`;
const nameOf = (i: number): string => `application-${i % 977}-7c9d8b6f5d-${i.toString(36).padStart(5, '0')}`;
function podKey(i: number): string {
  return `Pod/${namespaceOf(i)}/${nameOf(i)}`;
}

function podOf(i: number, version: number, labels: object = {}): object {
  const ip = `10.${(i >> 16) & 255}.${(i >> 8) & 255}.${i & 255}`;
  const time = '2026-11-25T12:00:00Z';
  const fields = { 'f:metadata': { 'f:labels': { '.': {}, 'f:app': {}, 'f:pod-template-hash': {} } }, 'f:spec': {} };
  const condition = { status: 'True', lastProbeTime: null, lastTransitionTime: time };
  return {
    metadata: {
      name: nameOf(i),
      namespace: namespaceOf(i),
      uid: `0b5ad7e2-0000-4000-8000-${i.toString(16).padStart(12, '0')}`,
      resourceVersion: String(version),
      creationTimestamp: time,
      labels: { app: `application-${i % 977}`, 'pod-template-hash': '7c9d8b6f5d', ...labels },
      annotations: { 'cni.example/network-status': 'x'.repeat(400) },
      ownerReferences: [{ apiVersion: 'apps/v1', kind: 'ReplicaSet', name: nameOf(i), uid: 'u', controller: true }],
      managedFields: Array.from({ length: 4 }, (_, n) => ({ manager: `m-${n}`, operation: 'Update', time, fields })),
    },
    spec: {
      volumes: [{ name: 'token', projected: { sources: [{ serviceAccountToken: { path: 'token' } }] } }],
      containers: Array.from({ length: 2 }, (_, n) => ({
        name: `c-${n}`,
        image: 'registry.example.test/team/application:1.2.3',
        env: Array.from({ length: 12 }, (_, e) => ({ name: `VARIABLE_${e}`, value: `some value of it ${e}` })),
        resources: { limits: { cpu: '500m', memory: '256Mi' }, requests: { cpu: '100m', memory: '128Mi' } },
        volumeMounts: [{ name: 'token', mountPath: '/var/run/secrets/kubernetes.io/serviceaccount' }],
      })),
      nodeName: `node-${i % 1000}`,
      serviceAccountName: `account-${i % 50}`,
      tolerations: [{ key: 'node.kubernetes.io/not-ready', operator: 'Exists', effect: 'NoExecute' }],
    },
    status: {
      phase: 'Running',
      podIP: ip,
      podIPs: [{ ip }, { ip: `fd00::${(i >> 16).toString(16)}:${(i & 0xffff).toString(16)}` }],
      conditions: ['Initialized', 'Ready', 'ContainersReady', 'PodScheduled'].map((type) => ({ type, ...condition })),
      containerStatuses: [{ name: 'c-0', ready: true, image: 'registry.example.test/team/application:1.2.3' }],
    },
  };
}

async function serve(): Promise<void> {
  let version = 1_000;
  let pods: ServerResponse | undefined;
  const server = createServer((request, response) => {
    const { pathname, searchParams } = new URL(request.url ?? '/', 'http://server');
    response.writeHead(200, { 'content-type': 'application/json' });
    if (searchParams.get('watch') === 'true') {
      response.flushHeaders();
      if (pathname === '/api/v1/pods') pods = response;
      const bookmark = { type: 'BOOKMARK', object: { metadata: { resourceVersion: String(version) } } };
      const end = (): void => void response.end(`${JSON.stringify(bookmark)}\n`);
      if (pathname !== '/api/v1/pods') setTimeout(end, 1000 * Number(searchParams.get('timeoutSeconds')));
      return;
    }
    const from = Number(searchParams.get('continue') ?? 0);
    const to = from + Number(searchParams.get('limit'));
    const [count, make] = listOf(pathname);
    const items = Array.from({ length: Math.min(to, count) - from }, (_, i) => make(from + i));
    const metadata = { resourceVersion: '1000', ...(to < count ? { continue: String(to) } : {}) };
    response.end(JSON.stringify({ kind: 'List', metadata, items }));
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  process.on('message', () => {
    let i = 0;
    const timer = setInterval(() => {
      const object = podOf(i++, ++version, { at: String(Date.now()) });
      pods?.write(`${JSON.stringify({ type: 'MODIFIED', object })}\n`);
      if (i === rate * seconds) clearInterval(timer);
    }, 1000 / rate);
  });
  // Nor does it outlive who asked for it.
  process.on('disconnect', () => process.exit());
  process.send?.((server.address() as AddressInfo).port);
}

function listOf(path: string): [count: number, make: (i: number) => object] {
  if (path === '/api/v1/pods') return [size.pods, (i) => podOf(i, 1_000)];
  if (path !== '/api/v1/namespaces') return [0, () => ({})];
  const metadata = { creationTimestamp: '2026-11-25T12:00:00Z', resourceVersion: '1000' };
  const labels = (name: string): object => ({ 'kubernetes.io/metadata.name': name, team: `team-${name.length}` });
  return [
    size.namespaces,
    (i) => ({ metadata: { ...metadata, name: namespaceOf(i), uid: `uid-${i}`, labels: labels(namespaceOf(i)) } }),
  ];
}

await (values.serve ? serve() : measure());
