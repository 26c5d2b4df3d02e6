/**
 * deploy/ agrees with itself and with the programs: manifests with the chart, the controller's rights with its calls, what
 * programs are started with (chart, systemd, Vagrant) with their flags, capabilities with what docs/kubernetes.md says.
 * Whether an API server takes the manifests, and Go's templates read the chart as we do: test/kube/deploy.ts.
 */
import { X509Certificate } from 'node:crypto';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import type { Command } from 'commander';
import t from 'tap';
import { Compile } from 'typebox/schema';
import { parseAllDocuments } from 'yaml';
import {
  ADMISSION_SERVICE,
  CONTROLLER_NAMESPACE,
  PORT_ADMISSION,
  PORT_METRICS,
  PORT_PLAN_STREAM,
} from '../../api/names.ts';
import { buildProgram } from '../../cli/program.ts';
import { ADMISSION_PATH } from '../../controller/admission/server.ts';
import { createCa, issueCertificate } from '../../daemon/certs.ts';
import { type ApiCall, apiCalls, writtenKinds } from '../api-calls.ts';
import { defaultValues, type Json, renderChart, withValues } from '../chart.ts';
import { MANIFESTS, renderManifests } from '../manifests.ts';

interface Rule {
  apiGroups: string[];
  resources: string[];
  verbs: string[];
  resourceNames?: string[];
}

interface Container {
  name: string;
  image: string;
  args: string[];
  env?: { name: string }[];
  ports?: { name: string; containerPort: number }[];
  volumeMounts?: { name: string; mountPath: string; readOnly?: boolean }[];
  securityContext: Json & { capabilities: { drop: string[]; add?: string[] } };
  livenessProbe: { httpGet: { path: string; port: string | number } };
  readinessProbe: { httpGet: { path: string; port: string | number } };
}

interface Manifest {
  kind: string;
  metadata: { name: string; namespace?: string; labels: Record<string, string> };
  rules: Rule[];
  roleRef: { kind: string; name: string };
  subjects: { kind: string; name: string; namespace: string }[];
  spec: Json & {
    selector: { matchLabels: Record<string, string> };
    ports: { targetPort: string; port: number }[];
    template: { metadata: { labels: Record<string, string> }; spec: PodSpec };
  };
}

interface Webhook extends Json {
  name: string;
  failurePolicy: string;
  clientConfig: { service: Json; caBundle?: string };
}

interface Configuration {
  metadata: Json;
  webhooks: [Webhook, Webhook];
}

type PodSpec = Json & {
  serviceAccountName: string;
  priorityClassName: string;
  securityContext: Json;
  initContainers?: Container[];
  containers: [Container];
  volumes: (Json & { name: string })[];
};

const root = rootOf(import.meta.dirname);
const chart = join(root, 'deploy', 'chart');
const read = (...path: string[]): string => readFileSync(join(root, ...path), 'utf8');

/** Compiled tests lie anywhere below the repository. */
function rootOf(directory: string): string {
  if (existsSync(join(directory, 'tsconfig.json'))) return directory;
  if (dirname(directory) === directory) throw new Error('the repository is not above the test');
  return rootOf(dirname(directory));
}

function documents(text: string): Manifest[] {
  return parseAllDocuments(text).flatMap((document) => {
    if (document.errors.length > 0) throw document.errors[0];
    return (document.toJS() as Manifest | null) ?? [];
  });
}

function render(more: Json = {}): Manifest[] {
  const values = withValues(defaultValues(chart), more);
  return [...renderChart(chart, { name: 'sluice', namespace: CONTROLLER_NAMESPACE, values }).values()].flatMap(
    documents,
  );
}

function only(objects: readonly Manifest[], kind: string, name: string): Manifest {
  const [found, ...more] = objects.filter((object) => object.kind === kind && object.metadata.name === name);
  if (found === undefined || more.length > 0) throw new Error(`${kind} ${name}: ${more.length === 0 ? 'none' : 'two'}`);
  return found;
}

const podOf = (objects: readonly Manifest[], kind: string, name: string): PodSpec =>
  only(objects, kind, name).spec.template.spec;

/** As long as the program does not know the source, a directory stands in for it. */
function known(program: Command, args: readonly string[]): string[] {
  const verb = program.commands.find((command) => command.name() === args[0]);
  const there = verb?.options.some(({ long }) => long === '--kubeconfig');
  return args.map((arg) => (arg === 'kubernetes' && !there ? 'directory:/nowhere' : arg));
}

/** The flags as the program reads them; throws what it would say. */
async function flagsOf(args: readonly string[]): Promise<Json> {
  const program = await buildProgram({ writeErr: () => {}, writeOut: () => {} });
  let flags: Json | undefined;
  for (const command of program.commands) {
    command.exitOverride().action((options: Json) => {
      flags = options;
    });
  }
  program.parse(known(program, args), { from: 'user' });
  if (flags === undefined) throw new Error(`${args[0]}: not run`);
  return flags;
}

/** One line per right: `scope group resource verb [name]`. */
function rights(scope: string, rules: readonly Rule[]): string[] {
  return rules.flatMap(({ apiGroups, resources, verbs, resourceNames = [''] }) =>
    apiGroups.flatMap((group) =>
      resources.flatMap((resource) =>
        verbs.flatMap((verb) => resourceNames.map((name) => [scope, group, resource, verb, name].join(' ').trim())),
      ),
    ),
  );
}

const asRule = ({ group, resources, verbs, names }: ApiCall): Rule => ({
  apiGroups: [group],
  resources: [...resources],
  verbs: [...verbs],
  ...(names && { resourceNames: [...names] }),
});

t.test('the plain manifests are what the chart renders to', async (t) => {
  t.equal(read(MANIFESTS), renderManifests(root), '`npm run manifests` writes them');
  t.equal(documents(read(MANIFESTS)).length, render({ namespace: { create: true } }).length, 'each is a document');
});

t.test("the controller's rights are its calls, and nothing else", async (t) => {
  const objects = render();
  const granted = [
    ...rights('cluster', only(objects, 'ClusterRole', 'sluice-controller').rules),
    ...rights('namespace', only(objects, 'Role', 'sluice-controller').rules),
  ];
  const called = apiCalls.flatMap((call) => rights(call.scope, [asRule(call)]));
  t.same(granted.sort(), called.sort());
  t.equal(new Set(called).size, called.length, 'each once');
  t.notMatch(JSON.stringify(objects.flatMap(({ rules = [] }) => rules)), /\*|secrets|escalate|bind|impersonate/);
});

t.test('roles speak of kinds that there are', async (t) => {
  const files = readdirSync(join(root, 'deploy', 'crds'));
  const plurals = files.map((file) => /^sluice\.dev_(\w+)\.yaml$/.exec(file)?.[1] ?? file);
  t.same([...writtenKinds].sort(), plurals.filter((plural) => plural !== 'egressaddresses').sort());
  const resources = render().flatMap(({ rules = [] }) =>
    rules.flatMap((rule) => (rule.apiGroups[0] === 'sluice.dev' ? rule.resources : [])),
  );
  for (const resource of resources) {
    t.ok([...writtenKinds, 'egressaddresses'].includes(resource.replace(/\/status$/, '')), resource);
  }
});

t.test('who may write what', async (t) => {
  const objects = render();
  const writes = ['create', 'update', 'patch', 'delete'];
  const namespaced = ['externalservices', 'namespaceegressrules', 'serviceegressrules'];
  const rows: [role: string, kind: 'ClusterRole' | 'Role', written: string[], read: string[], label?: string][] = [
    [
      'sluice-network',
      'ClusterRole',
      ['gatewaypools', 'egressippools', 'egressips'],
      [...writtenKinds, 'egressaddresses'],
    ],
    ['sluice-security', 'ClusterRole', ['clusteregressrules'], [...writtenKinds, 'egressaddresses']],
    ['sluice-security', 'Role', ['externalservices'], ['externalservices', 'configmaps']],
    ['sluice-namespace', 'ClusterRole', namespaced, namespaced, 'admin'],
    ['sluice-application', 'ClusterRole', ['serviceegressrules'], namespaced, 'edit'],
    ['sluice-namespaced-view', 'ClusterRole', [], namespaced, 'view'],
  ];
  for (const [name, kind, written, readable, label] of rows) {
    const role = only(objects, kind, name);
    const of = (verb: string): string[] =>
      role.rules.flatMap(({ resources, verbs }) => (verbs.includes(verb) ? resources : [])).sort();
    for (const verb of writes) t.same(of(verb), [...written].sort(), `${kind} ${name}: ${verb}`);
    for (const verb of ['get', 'list', 'watch']) t.same(of(verb), [...readable].sort(), `${kind} ${name}: ${verb}`);
    const labels = Object.keys(role.metadata.labels).filter((key) => key.includes('aggregate-to-'));
    t.same(labels, label === undefined ? [] : [`rbac.authorization.k8s.io/aggregate-to-${label}`], name);
  }
  t.equal(rows.length + 2, objects.filter(({ kind }) => kind.endsWith('Role')).length, 'and no other role');
  t.notMatch(JSON.stringify(render({ teamRoles: { aggregate: false } })), /aggregate-to/);
  t.equal(render({ teamRoles: { create: false } }).filter(({ kind }) => kind.endsWith('Role')).length, 2);
});

t.test('programs are started with flags that they have', async (t) => {
  const objects = render({ node: { workloadInterfaces: ['cni0', 'cali*'] } });
  const [controller] = podOf(objects, 'Deployment', 'sluice-controller').containers;
  const [node] = podOf(objects, 'DaemonSet', 'sluice-node').containers;
  t.match(await flagsOf(controller.args), {
    listen: { host: '0.0.0.0', port: PORT_PLAN_STREAM },
    metrics: { port: PORT_METRICS.controller },
    certs: '/etc/sluice/certs',
  });
  t.match(controller.args, ['controller', '--source', 'kubernetes']);
  t.match(await flagsOf(node.args.map((arg) => arg.replace('$(NODE_NAME)', 'node-a'))), {
    name: 'node-a',
    controller: `https://sluice-controller.${CONTROLLER_NAMESPACE}.svc:${PORT_PLAN_STREAM}`,
    workloadInterface: ['cni0', 'cali*'],
    metrics: `127.0.0.1:${PORT_METRICS.node}`,
  });
  t.same(
    node.env?.map(({ name }) => name),
    ['NODE_NAME'],
  );
  await t.rejects(flagsOf(['node', '--nonsense']), 'what they do not have is found');

  const alone = render({ controller: { replicas: 1, bindAddress: '[::]', extraArgs: ['--x'] } });
  const args = podOf(alone, 'Deployment', 'sluice-controller').containers[0].args;
  t.match(args.join(' '), `--listen [::]:${PORT_PLAN_STREAM}`);
  t.equal(args.at(-1), '--x');
});

t.test('the webhook, of every controller that is ready', async (t) => {
  t.notOk(
    render().some(({ kind }) => kind === 'ValidatingWebhookConfiguration'),
    'only where it is asked for',
  );
  t.throws(() => render({ admission: { enabled: true } }), /admission\.ca/, 'nobody would believe it');
  const folder = t.testdir();
  await createCa(join(folder, 'ca'));
  await issueCertificate({
    ...{ caDir: join(folder, 'ca'), outDir: join(folder, 'controller') },
    ...{ role: 'controller', name: 'controller', addresses: [] },
  });
  const ca = readFileSync(join(folder, 'controller', 'ca.crt'), 'utf8');
  const objects = render({ admission: { enabled: true, ca } });
  const configuration = only(objects, 'ValidatingWebhookConfiguration', 'sluice') as unknown as Configuration;
  const [plain] = documents(read('deploy', 'webhook.yaml')) as unknown as [Configuration];
  const without = ({ webhooks }: Configuration): Json[] => webhooks.map(({ clientConfig: _, ...webhook }) => webhook);
  t.same(without(configuration), without(plain), 'as in deploy/webhook.yaml');
  t.same(
    plain.webhooks.map(({ name, failurePolicy }) => [name.split('.')[0], failurePolicy]),
    [
      ['objects', 'Ignore'],
      ['deletions', 'Fail'],
    ],
    'and docs/admission.md',
  );
  const service = only(objects, 'Service', ADMISSION_SERVICE);
  for (const { clientConfig } of configuration.webhooks) {
    t.same(clientConfig.service, {
      ...{ namespace: CONTROLLER_NAMESPACE, name: ADMISSION_SERVICE },
      ...{ path: ADMISSION_PATH, port: service.spec.ports[0]?.port },
    });
    t.equal(Buffer.from(clientConfig.caBundle ?? '', 'base64').toString(), ca);
    t.same(plain.webhooks[0].clientConfig.service, clientConfig.service);
  }
  const deployment = only(objects, 'Deployment', 'sluice-controller').spec.template;
  t.match(deployment.metadata.labels, service.spec.selector as unknown as Record<string, string>);
  const [controller] = deployment.spec.containers;
  t.match(controller.ports, [{}, {}, { name: service.spec.ports[0]?.targetPort, containerPort: PORT_ADMISSION }]);
  const flags = await flagsOf(controller.args);
  t.match(flags.admission, { host: '0.0.0.0', port: PORT_ADMISSION });
  const mounted = (path: unknown, of = controller): boolean =>
    of.volumeMounts?.some(({ mountPath }) => mountPath === path) ?? false;
  t.ok(mounted(flags.admissionCerts));
  const names = new X509Certificate(readFileSync(join(folder, 'controller', 'tls.crt'))).subjectAltName;
  t.match(names, `DNS:${ADMISSION_SERVICE}.${CONTROLLER_NAMESPACE}.svc`, 'the certificate there is for the Service');

  const annotations = { 'cert-manager.io/inject-ca-from': 'sluice-system/webhook' };
  const injected = render({ admission: { enabled: true, certsSecret: 'webhook', annotations } });
  const [own] = podOf(injected, 'Deployment', 'sluice-controller').containers;
  t.equal((await flagsOf(own.args)).admissionCerts, '/etc/sluice/admission');
  t.ok(mounted('/etc/sluice/admission', own));
  const { metadata, webhooks } = only(injected, 'ValidatingWebhookConfiguration', 'sluice') as unknown as Configuration;
  t.match(metadata, { annotations });
  t.notOk('caBundle' in webhooks[0].clientConfig, 'nothing in its way');
});

t.test('workloads hold together', async (t) => {
  const sets: [what: string, values: Json][] = [
    ['defaults', {}],
    ['certificates of nodes in a Secret', { node: { certs: { secret: 'node-certs' } } }],
    ['an image by digest', { image: { repository: 'r.example/sluice', digest: `sha256:${'0'.repeat(64)}` } }],
    ['secrets for the registry', { image: { pullSecrets: [{ name: 'registry' }] } }],
    ['nodes that are cleaned', { node: { cleanup: true } }],
    ['a webhook', { admission: { enabled: true, ca: 'x', certsSecret: 'webhook' } }],
  ];
  for (const [what, values] of sets) {
    const objects = render(values);
    for (const [kind, name] of [
      ['Deployment', 'sluice-controller'],
      ['DaemonSet', 'sluice-node'],
    ] as const) {
      const { spec } = only(objects, kind, name);
      const pod = spec.template.spec;
      t.match(spec.template.metadata.labels, spec.selector.matchLabels, `${what}: ${name} selects its pods`);
      only(objects, 'ServiceAccount', pod.serviceAccountName);
      only(objects, 'PriorityClass', pod.priorityClassName);
      const volumes = pod.volumes.map((volume) => volume.name).sort();
      const containers = [...(pod.initContainers ?? []), ...pod.containers];
      const mounted = new Set(containers.flatMap((c) => (c.volumeMounts ?? []).map((mount) => mount.name)));
      t.same([...mounted].sort(), volumes, `${what}: ${name} mounts its volumes`);
      for (const container of containers) {
        t.same(container.securityContext.capabilities.drop, ['ALL'], `${what}: ${container.name}`);
        t.match(container.securityContext, { allowPrivilegeEscalation: false, readOnlyRootFilesystem: true });
      }
    }
  }
  const objects = render();
  const controller = podOf(objects, 'Deployment', 'sluice-controller');
  const ports = new Map(controller.containers[0].ports?.map((port) => [port.name, port.containerPort]));
  t.same([...ports], [['plan-stream', PORT_PLAN_STREAM] as const, ['metrics', PORT_METRICS.controller] as const]);
  const service = only(objects, 'Service', 'sluice-controller').spec;
  t.ok(ports.has(service.ports[0]?.targetPort ?? ''), 'the Service leads to a port that there is');
  t.match(
    only(objects, 'Deployment', 'sluice-controller').spec.template.metadata.labels,
    service.selector as unknown as Record<string, string>,
  );
  t.match(controller.containers[0].livenessProbe.httpGet, { path: '/healthz', port: 'metrics' });
  t.match(controller.containers[0].readinessProbe.httpGet, { path: '/readyz', port: 'metrics' });
  const { version } = JSON.parse(read('package.json')) as { version: string };
  t.equal(controller.containers[0].image, `sluice:${version}`, 'the image that build.sh makes of this version');
  t.match(only(objects, 'PodDisruptionBudget', 'sluice-controller').spec, { maxUnavailable: 1 });
  t.equal(
    render({ node: { enabled: false } }).filter(({ metadata }) => metadata.name === 'sluice-node').length,
    0,
    'the node can be left out',
  );
});

t.test('Pod Security: what the controller does not need, and the one capability of a node', async (t) => {
  const objects = render({ namespace: { create: true } });
  const controller = podOf(objects, 'Deployment', 'sluice-controller');
  // All that `restricted` asks for.
  t.match(controller.securityContext, { runAsNonRoot: true, seccompProfile: { type: 'RuntimeDefault' } });
  t.same(controller.containers[0].securityContext.capabilities, { drop: ['ALL'] });
  t.notMatch(Object.keys(controller).join(' '), /host/);
  t.same(
    controller.volumes.map(({ name, ...volume }) => `${name} ${Object.keys(volume)}`),
    ['certs secret', 'state emptyDir'],
  );
  t.match(controller.volumes[0], { secret: { defaultMode: 0o440 } });
  const node = podOf(objects, 'DaemonSet', 'sluice-node');
  t.same(node.containers[0].securityContext.capabilities.add, ['NET_ADMIN']);
  t.equal(node.hostNetwork, true);
  t.equal(node.automountServiceAccountToken, false, 'no token on nodes');
  t.equal(node.containers[0].securityContext.privileged, undefined);
  t.match(
    node.containers[0].volumeMounts?.map((mount) => mount.mountPath),
    ['/etc/sluice/certs', '/var/lib/sluice', '/host/proc/sys/net'],
  );
  const [cleanup, ...others] =
    podOf(render({ node: { cleanup: true } }), 'DaemonSet', 'sluice-node').initContainers ?? [];
  t.same(others, []);
  t.same(cleanup?.securityContext, node.containers[0].securityContext, 'what cleans a node may do as much');
  const state = node.containers[0].args.indexOf('--state');
  t.same(cleanup?.args, ['node', 'cleanup', ...node.containers[0].args.slice(state, state + 2)]);
  const labels = only(objects, 'Namespace', CONTROLLER_NAMESPACE).metadata.labels;
  t.equal(labels['pod-security.kubernetes.io/enforce'], 'privileged');
});

t.test('into its own namespace only', async (t) => {
  const release = { name: 'sluice', namespace: 'elsewhere', values: defaultValues(chart) };
  t.throws(() => renderChart(chart, release), /installed into the namespace sluice-system/);
  t.equal(CONTROLLER_NAMESPACE, 'sluice-system');
});

t.test('values are checked', async (t) => {
  const schema = Compile(JSON.parse(read('deploy', 'chart', 'values.schema.json')));
  const rows: [what: string, values: Json, ok: boolean][] = [
    ['defaults', {}, true],
    ['a word that there is not', { controler: {} }, false],
    ['no replica', { controller: { replicas: 0 } }, false],
    ['no interface', { node: { workloadInterfaces: [] } }, false],
    ['a URL that is none', { node: { controllerUrl: 'http://10.0.0.1' } }, false],
    ['a relative path', { node: { certs: { hostPath: 'certs' } } }, false],
    ['two volumes', { controller: { stateVolume: { emptyDir: {}, hostPath: {} } } }, false],
    ['a port too many', { controller: { metricsPort: 65536 } }, false],
    ['IPv6', { controller: { bindAddress: '[::]' } }, true],
    ['a CA in base64', { admission: { enabled: true, ca: 'LS0tLS1CRUdJTg==' } }, false],
    [
      'a CA',
      { admission: { enabled: true, ca: '-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n' } },
      true,
    ],
  ];
  for (const [what, more, ok] of rows) t.equal(schema.Check(withValues(defaultValues(chart), more)), ok, what);
});

t.test('what the renderer does not know is an error', async (t) => {
  const folder = t.testdir({ 'Chart.yaml': 'name: x\nversion: 1\nappVersion: 1\n', templates: { 'a.yaml': '' } });
  const rows: [template: string, expected: string | RegExp][] = [
    ['a: {{ .Values.a }}', 'a: 1\n'],
    ['{{- with .Values.list }}{{ range . }}\n- {{ . | quote }}{{ end }}{{ end }}', '- "x"\n- "y"\n'],
    ['a{{/* nothing */}} {{- /* of it */ -}} b', 'ab\n'],
    ['{{ if .Values.no }}a{{ else }}b{{ end }}', 'b\n'],
    ['{{ .Values.empty | default (printf "%v-%s" 1 "x") }}', '1-x\n'],
    ['{{ .Values.b }}', /there is no b/],
    ['{{ lower "A" }}', /no such function/],
    ['{{ if .Values.a }}', /expected else or end/],
    ['{{ end }}', /without a beginning/],
    ['{{ $x }}', /not understood/],
    ['{{ include "a" . }}', /not defined/],
  ];
  const { writeFileSync } = await import('node:fs');
  for (const [template, expected] of rows) {
    writeFileSync(join(folder, 'templates', 'a.yaml'), template);
    const run = (): string | undefined =>
      renderChart(folder, {
        name: 'x',
        namespace: 'y',
        values: { a: 1, empty: '', no: false, list: ['x', 'y'] },
      }).get('a.yaml');
    if (typeof expected === 'string') t.equal(run(), expected, template);
    else t.throws(run, expected, template);
  }
});

/** Of a unit: each setting with its values, in order. */
function unit(name: string): Map<string, string[]> {
  const settings = new Map<string, string[]>();
  for (const [, key = '', value = ''] of read('deploy', 'systemd', name).matchAll(/^(\w+)=(.*)$/gm))
    settings.set(key, [...(settings.get(key) ?? []), value]);
  return settings;
}

/** As systemd puts an environment file into a command: `${NAME}` is one word, `$NAME` several. */
function commandLine(command: string, environment: string): string[] {
  const variables = new Map([...environment.matchAll(/^(\w+)=(.*)$/gm)].map(([, name, value]) => [name, value]));
  return command.split(' ').flatMap((word) => {
    const [, one, several] = /^\$(?:\{(\w+)\}|(\w+))$/.exec(word) ?? [];
    const value = variables.get(one ?? several ?? '');
    if (one === undefined && several === undefined) return word;
    if (value === undefined) throw new Error(`${word} is not in the environment file`);
    return several === undefined ? value : value.split(' ').filter((part) => part !== '');
  });
}

t.test('systemd units', async (t) => {
  const rows: [verb: string, capabilities: string][] = [
    ['gateway', 'CAP_NET_ADMIN CAP_NET_RAW'],
    ['run', 'CAP_NET_ADMIN CAP_NET_RAW'],
    ['node', 'CAP_NET_ADMIN'],
    ['controller', ''],
  ];
  const names = readdirSync(join(root, 'deploy', 'systemd')).filter((name) => name.endsWith('.service'));
  t.same(names.sort(), rows.map(([verb]) => `sluice-${verb}.service`).sort(), 'each of them is here');
  const text = read('docs', 'kubernetes.md');
  for (const [verb, capabilities] of rows) {
    const settings = unit(`sluice-${verb}.service`);
    const one = (key: string): string | undefined => settings.get(key)?.at(-1);
    t.equal(one('CapabilityBoundingSet'), capabilities, verb);
    t.equal(one('AmbientCapabilities'), capabilities, verb);
    t.match(
      text,
      new RegExp(`^\\| \`sluice ${verb}\` .*\\| ${capabilities.replaceAll('CAP_', '') || 'none'} \\|`, 'm'),
    );
    t.match(
      {
        User: 'sluice',
        NoNewPrivileges: 'yes',
        ProtectSystem: 'strict',
        EnvironmentFile: `/etc/sluice/${verb}.env`,
      },
      Object.fromEntries(['User', 'NoNewPrivileges', 'ProtectSystem', 'EnvironmentFile'].map((key) => [key, one(key)])),
      verb,
    );
    const [program, ...args] = commandLine(one('ExecStart') ?? '', read('deploy', 'systemd', `sluice-${verb}.env`));
    t.equal(program, '/usr/local/bin/sluice');
    const flags = await flagsOf(args);
    // What it writes is where it may.
    t.match(flags.state, new RegExp(`^/var/lib/sluice/${verb}$`));
    t.match(one('StateDirectory'), `sluice/${verb}`);
    if (flags.flowLog !== undefined)
      t.match([flags.flowLog, one('LogsDirectory')], [/^\/var\/log\/sluice\//, 'sluice']);
  }
});

t.test('the Vagrantfile names scripts that there are, and machines as they do', async (t) => {
  const text = read('Vagrantfile');
  const plan = read('deploy', 'vagrant', 'plan.sh');
  const manifests = read('deploy', 'vagrant', 'manifests.yaml');
  const machines = [
    ...text.matchAll(
      /^ {2}"([\w-]+)" +=> \{ script: "([\w-]+)",(?: +inside: "([\d.]+)",)?(?: +outside: "([\d.]+)",)?/gm,
    ),
  ];
  t.equal(machines.length, 7);
  for (const [, name = '', script = '', inside = '', outside] of machines) {
    t.ok(existsSync(join(root, 'deploy', 'vagrant', `${script}.sh`)), `${name}: ${script}.sh`);
    if (script === 'gateway') t.match(manifests, `name: ${name}\n      internalAddress: ${inside}\n`);
    else t.match(plan, inside || `ROUTER=${outside}`, `${name} in plan.sh`);
  }
  t.match(manifests, 'v4: 203.0.113.1\n');
});
