/**
 * On a real API server: what people see of statuses and events with kubectl, and two candidates for a lease of which one is
 * killed, and one stopped.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import t from 'tap';
import { type AnyObject, objectKey, parseObject, sluiceKinds } from '../../api/kinds.ts';
import { loadKubeConfig } from '../../controller/kubernetes/client.ts';
import { apiOf, type Json } from '../../controller/kubernetes/requests.ts';
import { KubernetesStatus } from '../../controller/kubernetes/status.ts';
import { clusterStatuses } from '../../controller/kubernetes/statuses.ts';
import type { Condition, Status } from '../../controller/plan/condition.ts';
import { withErrors } from '../../controller/publish/status.ts';
import { silentLog } from '../../daemon/log.ts';
import { RealApiServer } from '../kube/api-server.ts';
import { samples } from '../unit/samples.ts';

const LEASE = 'controller';
const NAMESPACE = 'seen';

t.setTimeout(500_000);
const server = await RealApiServer.start();
t.teardown(() => server.close());
await server.addKinds();
const config = await loadKubeConfig({ kubeconfig: server.kubeconfig });
const kubectl = (...args: string[]): Promise<string> => server.kubectl(args);
const given = async (verb: 'apply' | 'create', object: Json): Promise<Json[]> => {
  const text = await server.kubectl([verb, '--validate=false', '-o', 'json', '-f', '-'], JSON.stringify(object));
  // Of several one after the other.
  return text.split(/^(?=\{)/m).map((one) => JSON.parse(one) as Json);
};
const kinds = sluiceKinds.map(({ plural }) => plural).join(',');
const api = apiOf(config);
t.before(() => given('apply', { apiVersion: 'v1', kind: 'Namespace', metadata: { name: NAMESPACE } }));
t.teardown(() => api.close());

const condition = (type: Condition['type'], status: Condition['status'], reason: string = type): Condition => ({
  type,
  status,
  reason,
  message: `${type}: ${status}`,
});
const well = [condition('Accepted', 'True'), condition('Conflicted', 'False', 'None'), condition('Programmed', 'True')];
const facts: Record<string, Json> = {
  GatewayPool: { connected: '1/2', shards: 2, namespaces: 1, auditedNamespaces: 0, workloads: 3 },
  EgressIPPool: { inUse: 1 },
  EgressIP: { addresses: ['203.0.113.7', '203.0.113.8'], gateways: ['gw-a', 'gw-b'], namespaces: 1 },
  ClusterEgressRule: { counters: { hits: 1200, flows: 12, packets: 1200, bytes: 99 } },
};
/** As kubectl applies it, and reads it back. */
const made = async (manifest: Json): Promise<AnyObject> => {
  const parsed = parseObject((await given('apply', manifest))[0]);
  if (!parsed.ok) throw new Error(JSON.stringify(parsed.errors));
  return parsed.value;
};
const manifestOf = (kind: string, name: string): Json => {
  const sample = samples.find((one) => one.kind === kind) as unknown as Json;
  const scope = sluiceKinds.find((one) => one.kind === kind)?.scope;
  const metadata = { name, labels: { 'sluice-test': 'status' } };
  const { podSelector: _, ...spec } = sample.spec as Json;
  return {
    ...sample,
    spec,
    metadata: scope === 'cluster' ? metadata : { ...metadata, namespace: NAMESPACE },
  };
};
const statusOf = ({ kind, metadata }: AnyObject, conditions = well): Status => ({
  ...(metadata.generation === undefined ? {} : { observedGeneration: metadata.generation }),
  conditions,
  ...facts[kind],
});
const mapOf = (objects: readonly AnyObject[]): Map<string, AnyObject> =>
  new Map(objects.map((object) => [objectKey(object), object]));
const eventually = async (what: string, holds: () => boolean | Promise<boolean>): Promise<void> => {
  for (let i = 0; i < 600; i++) {
    if (await holds()) return;
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
  throw new Error(what);
};

t.test('what kubectl shows', async (t) => {
  const objects: AnyObject[] = [];
  for (const { kind } of sluiceKinds) objects.push(await made(manifestOf(kind, 'seen')));
  const sink = clusterStatuses({ config, log: silentLog(), now: Date.now });
  const publish = (statuses: Map<string, Status>): void => sink.publish(statuses, [], mapOf(objects));
  const statuses = new Map(objects.map((object) => [objectKey(object), statusOf(object)]));
  publish(statuses);
  const waited = await kubectl(
    'wait',
    '--for=condition=Programmed',
    'eip/seen',
    'gwp/seen',
    'cgr/seen',
    '--timeout=20s',
  );
  t.equal(waited.match(/condition met/g)?.length, 3);
  await eventually(
    'all have a status',
    async () => !(await kubectl('get', kinds, '-n', NAMESPACE)).includes('<none>\n'),
  );
  const shown = await kubectl('get', 'eip,eipp,gwp,cgr,nsgr,svcgr', '-n', NAMESPACE);
  t.match(shown, /egressip\S*\/seen +\S+ +\["203.0.113.7","203.0.113.8"\] +\["gw-a","gw-b"\] +1 +False +True +True/);
  t.match(shown, /gatewaypool\S*\/seen .* 1\/2 +True +True/);
  t.match(shown, /egressippool\S*\/seen .* 1 +True/);

  t.match(JSON.parse(await kubectl('get', 'eip', 'seen', '-o', 'json')), {
    metadata: { generation: 1 },
    status: { observedGeneration: 1 },
  });

  const key = 'EgressIP/seen';
  const refused = [condition('Accepted', 'False', 'NoSuchPool'), condition('Programmed', 'False', 'NoGatewayPool')];
  const [object] = objects.filter(({ kind }) => kind === 'EgressIP') as [AnyObject];
  publish(new Map(statuses).set(key, statusOf(object, refused)));
  const errors = [
    { file: 'cgr', object: 'ClusterEgressRule/seen', reason: 'Invalid' as const, details: ['spec.x: y'] },
  ];
  await eventually('an event', async () => (await kubectl('get', 'events', '-n', 'default')).includes('NoSuchPool'));
  publish(withErrors(statuses, errors));
  await eventually('another', async () => (await kubectl('get', 'events', '-n', 'default')).includes('Invalid'));
  await eventually('and well again', async () =>
    /Normal +Accepted/.test(await kubectl('get', 'events', '-n', 'default')),
  );
  t.match(await kubectl('describe', 'eip', 'seen'), /Events:[\s\S]*Warning +NoSuchPool/);
  t.match(await kubectl('get', 'cgr', 'seen', '-o', 'wide'), /spec\.x: y \(the last good version stays in force\)/);
  await sink.close();

  for (const { kind, plural } of sluiceKinds) {
    const text = await kubectl('explain', `${plural}.spec`);
    t.notMatch(text, /<empty>|no description/, kind);
    t.match(text, /FIELDS/);
  }
  t.match(await kubectl('explain', 'eipp.spec.quarantineSeconds'), /released address/);
});

t.test('objects by the hundred, and one that is gone', async (t) => {
  const objects = Array.from({ length: 300 }, (_, i) => manifestOf('ClusterEgressRule', `many-${i}`));
  const items = await given('create', { apiVersion: 'v1', kind: 'List', items: objects });
  const parsed = items.flatMap((item) => {
    const one = parseObject(item);
    return one.ok ? [one.value] : [];
  });
  t.equal(parsed.length, 300);
  const sink = new KubernetesStatus({ api, log: silentLog(), writesPerSecond: 2000 });
  const statuses = new Map(parsed.map((object) => [objectKey(object), statusOf(object)]));
  await kubectl('delete', 'cgr', 'many-0');
  const began = performance.now();
  sink.publish(statuses, [], mapOf(parsed));
  await kubectl('wait', '--for=condition=Programmed', 'cgr/many-299', '--timeout=60s');
  await eventually(
    'all',
    async () => (await kubectl('get', 'cgr', '-l', 'sluice-test=status')).match(/1200/g)?.length === 300,
  );
  t.comment(`${Math.round((performance.now() - began) / 3)} ms for 100 of 300 statuses, kubectl included`);
  t.notMatch(await kubectl('get', 'cgr', '-o', 'name'), /many-0$/m, 'a status makes no object');
  await sink.close();
});

t.test('two candidates: one is killed, one is stopped, one gives it back', async (t) => {
  interface Running {
    process: ChildProcess;
    said: { at: number; word: string }[];
  }
  const start = (name: string): Running => {
    const process_ = spawn(process.execPath, [join(import.meta.dirname, 'candidate.js'), NAMESPACE, LEASE, name], {
      stdio: ['ignore', 'pipe', 'inherit'],
      env: { ...process.env, KUBECONFIG: server.kubeconfig },
    });
    t.teardown(() => process_.kill('SIGKILL'));
    const said: Running['said'] = [];
    createInterface({ input: process_.stdout }).on('line', (line) => {
      const [at, word = ''] = line.split(' ');
      said.push({ at: Number(at), word });
    });
    return { process: process_, said };
  };
  const last = ({ said }: Running): number => said.findLast(({ word }) => word === 'leads')?.at ?? 0;
  const leads = (one: Running, since: number): boolean => last(one) > since;
  const next = async (of: Running, since: number): Promise<number> => {
    await eventually('it leads', () => leads(of, since));
    return of.said.find(({ at, word }) => word === 'leads' && at > since)?.at ?? 0;
  };
  const took: number[] = [];
  let a = start('first');
  await next(a, 0);
  let b = start('second');
  const knows = async ({ said }: Running): Promise<void> =>
    eventually('it knows', () => said.some(({ word }) => word === 'knows'));
  for (let i = 0; i < 2; i++) {
    await knows(b);
    await new Promise((resolve) => setTimeout(resolve, 1000 + 400 * i));
    const killed = Date.now();
    a.process.kill('SIGKILL');
    took.push((await next(b, killed)) - killed);
    [a, b] = [b, start(`again-${i}`)];
  }
  t.comment(`after kill -9 the other leads in ${took.join(', ')} ms`);
  t.ok(Math.max(...took) < 10_000);

  await knows(b);
  await new Promise((resolve) => setTimeout(resolve, 2000));
  const stopped = Date.now();
  a.process.kill('SIGSTOP');
  const taken = await next(b, stopped);
  await new Promise((resolve) => setTimeout(resolve, 3000));
  const woken = Date.now();
  a.process.kill('SIGCONT');
  await new Promise((resolve) => setTimeout(resolve, 1500));
  t.comment(`after SIGSTOP the other leads in ${taken - stopped} ms`);
  t.notOk(leads(a, stopped + 50), 'who wakes does not believe to lead');
  t.ok(a.said.some(({ at, word }) => word === 'stops' && at >= woken));

  const closing = Date.now();
  b.process.kill('SIGTERM');
  const handed = await next(a, closing);
  t.comment(`given back, the other leads in ${handed - closing} ms`);
  t.ok(handed - closing < 5_000);
  const [mine, others] = [a.said, b.said].map((said) => said.filter(({ word }) => word === 'leads'));
  const overlap = (mine ?? []).filter(({ at }) => at > taken && (others ?? []).some((other) => other.at > at));
  t.same(overlap, [], 'never both');
  a.process.kill('SIGTERM');
  await new Promise((resolve) => a.process.once('exit', resolve));
  t.match(await kubectl('get', 'lease', LEASE, '-n', NAMESPACE, '-o', 'jsonpath={.spec.holderIdentity}'), /^$/);
});
