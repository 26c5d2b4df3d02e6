/**
 * deploy/ on a real API server: it takes every object of the manifests and of the chart with other values (dry-run on the
 * server), gives the controller and the roles exactly their rights, and Go's text/template reads the chart as test/chart.ts
 * does. Run by hand, since nothing that setup.sh installs has an API server:
 *
 *   KUBECONFIG=FILE node dist/test/kube/deploy.js      on a cluster that is only for tests: namespaces and roles stay
 *
 * GO: the Go command for the last part (default: `go` in PATH; without one that part is left out, which is said).
 */
import { execFileSync, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdtempSync, readFileSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import t from 'tap';
import { parse, parseAllDocuments, stringify } from 'yaml';
import { CONTROLLER_NAMESPACE } from '../../api/names.ts';
import { apiCalls, writtenKinds } from '../api-calls.ts';
import { defaultValues, type Json, renderChart, withValues } from '../chart.ts';
import { renderManifests } from '../manifests.ts';

const root = rootOf(import.meta.dirname);
const chart = join(root, 'deploy', 'chart');
t.setTimeout(0);

/** Compiled tests lie anywhere below the repository. */
function rootOf(directory: string): string {
  if (existsSync(join(directory, 'tsconfig.json'))) return directory;
  if (dirname(directory) === directory) throw new Error('the repository is not above the test');
  return rootOf(dirname(directory));
}

const valueSets: [what: string, values: Json][] = [
  ['defaults', {}],
  ['certificates of nodes in a Secret', { node: { certs: { secret: 'node-certs' }, extraArgs: ['--x'] } }],
  [
    'one controller with a volume of its own',
    {
      controller: {
        replicas: 1,
        stateVolume: { persistentVolumeClaim: { claimName: 'state' } },
        service: { type: 'NodePort', nodePort: 30790, annotations: { 'example.com/a': 'b: "c"' } },
        nodeSelector: { role: 'egress' },
        tolerations: [{ operator: 'Exists' }],
      },
    },
  ],
  [
    'an image by digest, without roles',
    {
      image: { digest: `sha256:${'a'.repeat(64)}`, pullSecrets: [{ name: 'registry' }] },
      teamRoles: { create: false },
    },
  ],
  [
    'the webhook, with a certificate of its own',
    { admission: { enabled: true, certsSecret: 'webhook', annotations: { 'cert-manager.io/inject-ca-from': 'a/b' } } },
  ],
  ['nodes that are cleaned', { node: { cleanup: true } }],
  ['no node', { node: { enabled: false }, priorityClass: { value: 1_000_000_000 } }],
];

const render = (values: Json): string =>
  [
    ...renderChart(chart, {
      name: 'sluice',
      namespace: CONTROLLER_NAMESPACE,
      values: withValues(defaultValues(chart), values),
    }).values(),
  ].join('---\n');

const kubectl = (args: string[], input = ''): { ok: boolean; text: string } => {
  const { status, stdout, stderr } = spawnSync('kubectl', args, { input, encoding: 'utf8' });
  return { ok: status === 0, text: stdout + stderr };
};
const minor = Number(
  (
    JSON.parse(
      execFileSync('kubectl', ['version', '-o', 'json'], { encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] }),
    ) as { serverVersion: { minor: string } }
  ).serverVersion.minor,
);

/** A server before 1.21 has PodDisruptionBudgets of the same fields under an older name only. */
const forServer = (text: string): string => (minor < 21 ? text.replaceAll('policy/v1\n', 'policy/v1beta1\n') : text);

t.test('the server takes every object', async (t) => {
  t.comment(`API server 1.${minor}${minor < 21 ? ': policy/v1 is not there, looked at as policy/v1beta1' : ''}`);
  kubectl(['create', '--save-config', 'namespace', CONTROLLER_NAMESPACE]);
  const texts: [string, string][] = [['deploy/manifests', renderManifests(root)]];
  for (const [what, values] of valueSets) texts.push([what, render(values)]);
  for (const [what, text] of texts) {
    const { ok, text: said } = kubectl(['apply', '--dry-run=server', '-f', '-'], forServer(text));
    t.ok(ok, `${what}: ${said.trim().split('\n').length} objects`);
    if (!ok) t.comment(said);
    t.equal((said.match(/\(server dry run\)/g) ?? []).length, parseAllDocuments(text).length, what);
    t.notMatch(said, /unknown field|Warning/, what);
  }
  const wrong = render({}).replace('containerPort: 7790', 'containerPort: 77900');
  t.notOk(kubectl(['apply', '--dry-run=server', '-f', '-'], forServer(wrong)).ok, 'and would say what is wrong');
});

t.test('who may do what', async (t) => {
  const roles = parseAllDocuments(render({}))
    .map((document) => document.toJS() as { kind: string })
    .filter(({ kind }) => /Role|ServiceAccount/.test(kind));
  const subject = (name: string): Json => ({ kind: 'User', apiGroup: 'rbac.authorization.k8s.io', name });
  const bind = (kind: 'ClusterRole' | 'Role', role: string, user: string, namespace?: string): Json => ({
    apiVersion: 'rbac.authorization.k8s.io/v1',
    kind: namespace === undefined ? 'ClusterRoleBinding' : 'RoleBinding',
    metadata: { name: `${user}-${kind.toLowerCase()}`, ...(namespace !== undefined && { namespace }) },
    roleRef: { apiGroup: 'rbac.authorization.k8s.io', kind, name: role },
    subjects: [subject(user)],
  });
  kubectl(['create', 'namespace', 'team']);
  const bindings = [
    bind('ClusterRole', 'sluice-network', 'net'),
    bind('ClusterRole', 'sluice-security', 'sec'),
    bind('Role', 'sluice-security', 'sec', CONTROLLER_NAMESPACE),
    bind('ClusterRole', 'sluice-namespace', 'owner', 'team'),
    bind('ClusterRole', 'sluice-application', 'app', 'team'),
  ];
  const { ok, text } = kubectl(['apply', '-f', '-'], [...roles, ...bindings].map((o) => stringify(o)).join('---\n'));
  t.ok(ok, text.trim().split('\n').at(-1) ?? '');

  const proxy = spawn('kubectl', ['proxy', '--port=0'], { stdio: ['ignore', 'pipe', 'inherit'] });
  t.teardown(() => proxy.kill());
  const [line] = (await once(proxy.stdout, 'data')) as [Buffer];
  const base = `http://127.0.0.1:${/:([0-9]+)\s*$/.exec(line.toString())?.[1]}`;
  const controller = `system:serviceaccount:${CONTROLLER_NAMESPACE}:sluice-controller`;
  const may = async (user: string, verb: string, what: string, namespace?: string, name?: string): Promise<boolean> => {
    const [path = '', group = ''] = what.split('@');
    const [resource = '', subresource] = path.split('/');
    const groups = user.startsWith('system:serviceaccount:') ? ['system:serviceaccounts', 'system:authenticated'] : [];
    const resourceAttributes = { verb, group, resource, subresource, namespace, name };
    const body = {
      apiVersion: 'authorization.k8s.io/v1',
      kind: 'SubjectAccessReview',
      spec: { user, groups, resourceAttributes },
    };
    const response = await fetch(`${base}/apis/authorization.k8s.io/v1/subjectaccessreviews`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify(body),
    });
    return ((await response.json()) as { status: { allowed: boolean } }).status.allowed;
  };
  let asked = 0;
  for (const { group, resources, verbs, scope, names = [undefined] } of apiCalls) {
    for (const resource of resources) {
      for (const verb of verbs) {
        for (const name of names) {
          const namespace = scope === 'namespace' ? CONTROLLER_NAMESPACE : undefined;
          t.ok(await may(controller, verb, `${resource}@${group}`, namespace, name), `controller: ${verb} ${resource}`);
          asked++;
        }
      }
    }
  }
  const never: [verb: string, what: string, namespace?: string, name?: string][] = [
    ['list', 'secrets'],
    ['get', 'secrets', CONTROLLER_NAMESPACE],
    ['create', 'pods', CONTROLLER_NAMESPACE],
    ['patch', 'nodes'],
    ['patch', 'namespaces'],
    ['update', 'configmaps', CONTROLLER_NAMESPACE, 'other'],
    ['update', 'configmaps', 'team', 'sluice-controller'],
    ['update', 'leases@coordination.k8s.io', 'team', 'sluice-controller'],
    ['create', 'pods/exec', CONTROLLER_NAMESPACE],
    ...writtenKinds.flatMap((kind): [string, string][] =>
      ['create', 'update', 'patch', 'delete']
        // Finalizers.
        .filter((verb) => kind !== 'externalservices' || verb !== 'patch')
        .map((verb) => [verb, `${kind}@sluice.dev`]),
    ),
  ];
  for (const [verb, what, namespace, name] of never) {
    t.notOk(await may(controller, verb, what, namespace, name), `controller: not ${verb} ${what}`);
  }
  t.notOk(await may(`system:serviceaccount:${CONTROLLER_NAMESPACE}:sluice-node`, 'list', 'pods'), 'node: nothing');

  /** Whoever writes a kind, in the namespace `team`, and where else. */
  const writers: Record<string, string[]> = {
    gatewaypools: ['net'],
    egressippools: ['net'],
    egressips: ['net'],
    clusteregressrules: ['sec'],
    externalservices: ['owner'],
    namespaceegressrules: ['owner'],
    serviceegressrules: ['owner', 'app'],
    egressaddresses: [],
  };
  for (const user of ['net', 'sec', 'owner', 'app']) {
    for (const [kind, who] of Object.entries(writers)) {
      for (const verb of ['create', 'patch', 'delete']) {
        t.equal(await may(user, verb, `${kind}@sluice.dev`, 'team'), who.includes(user), `${user}: ${verb} ${kind}`);
      }
      t.notOk(await may(user, 'patch', `${kind}/status@sluice.dev`, 'team'), `${user}: no status of ${kind}`);
      t.notOk(user !== 'net' && (await may(user, 'delete', 'egressips@sluice.dev')), `${user}: no EgressIP`);
    }
    t.equal(await may(user, 'create', 'externalservices@sluice.dev', CONTROLLER_NAMESPACE), user === 'sec', user);
  }
  t.comment(`${asked} rights of the controller`);
});

t.test("Go's text/template reads the chart as test/chart.ts does", async (t) => {
  const go = process.env.GO ?? 'go';
  if (spawnSync(go, ['version']).status !== 0) return void t.comment(`LEFT OUT: no ${go}`);
  const folder = mkdtempSync(join(tmpdir(), 'sluice-chart-'));
  const { name, version, appVersion } = parse(readFileSync(join(chart, 'Chart.yaml'), 'utf8')) as Json;
  const about = { Name: name, Version: version, AppVersion: appVersion };
  for (const [what, more] of valueSets) {
    const values = withValues(defaultValues(chart), more);
    writeFileSync(join(folder, 'values.json'), JSON.stringify({ values, chart: about }));
    const args = ['run', join(root, 'test', 'kube', 'template.go'), chart, join(folder, 'values.json')];
    const text = execFileSync(go, [...args, CONTROLLER_NAMESPACE], { encoding: 'utf8' });
    const theirs = Object.values(JSON.parse(text) as Record<string, string>).filter((file) => file.trim() !== '');
    const objects = (texts: readonly string[]): unknown[] =>
      texts.flatMap((file) => parseAllDocuments(file).map((document) => document.toJS() as unknown));
    t.same(objects(theirs), objects([render(more)]), what);
  }
});
