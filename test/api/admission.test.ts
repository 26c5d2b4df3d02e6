/**
 * The admission webhook registered with a real API server: what kubectl says when good and bad objects are applied, and
 * when what carries workloads is deleted; with the webhook gone, what is taken and what is not. What is in force is asked of
 * the API server before each step; the plan is the planner's own.
 */
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Registry } from 'prom-client';
import t from 'tap';
import { parse } from 'yaml';
import { parseObject, sluiceKinds } from '../../api/kinds.ts';
import { FINALIZER_FORBIDDING_RULE } from '../../api/names.ts';
import { besideSources } from '../../bench/topology.ts';
import { finalizersOf, withFinalizers } from '../../controller/admission/finalizers.ts';
import type { AdmissionWorld } from '../../controller/admission/review.ts';
import { ADMISSION_PATH, startAdmission } from '../../controller/admission/server.ts';
import { emptyMemory } from '../../controller/plan/memory.ts';
import { createCa, issueCertificate } from '../../daemon/certs.ts';
import { createLog } from '../../daemon/log.ts';
import { RealApiServer } from '../kube/api-server.ts';
import { within } from '../kube/lab-cluster.ts';
import {
  billing,
  drawPool,
  egressIP,
  gatewayPool,
  type Json,
  type Manifest,
  manifest,
  publicPool,
  rule,
  service,
  worldOf,
} from '../unit/admission-world.ts';

t.setTimeout(300_000);
const api = await RealApiServer.start();
t.teardown(() => api.close());
await api.addKinds();

interface Said {
  ok: boolean;
  /** Both streams, as a person reads them. */
  text: string;
}
async function kubectl(args: readonly string[], input?: Json): Promise<Said> {
  const { code, stdout, stderr } = await api.tryKubectl(args, input && JSON.stringify(input));
  return { ok: code === 0, text: `${stdout}${stderr}` };
}
const bare = ({ metadata: { creationTimestamp, ...metadata }, ...rest }: Manifest): Json =>
  JSON.parse(JSON.stringify({ ...rest, metadata }));
const apply = (object: Manifest): Promise<Said> => kubectl(['apply', '--validate=false', '-f', '-'], bare(object));

let world: AdmissionWorld | undefined;
let finalizers = new Map<string, readonly string[]>();
/** As the controller would have observed it. */
async function observe(): Promise<void> {
  const kinds = ['namespaces', 'nodes', 'pods', ...sluiceKinds.map(({ plural }) => `${plural}.sluice.dev`)];
  const { items } = JSON.parse(await api.kubectl(['get', kinds.join(), '-A', '-o', 'json'])) as { items: Json[] };
  world = worldOf(
    items.filter((item) => parseObject(item).ok),
    world?.memory ?? emptyMemory(),
  );
  finalizers = finalizersOf(world.objects);
}
async function step(run: () => Promise<Said>): Promise<Said> {
  await observe();
  return run();
}

const directory = mkdtempSync(join(tmpdir(), 'sluice-admission-'));
t.teardown(() => rmSync(directory, { recursive: true }));
const ca = join(directory, 'ca');
await createCa(ca);
await issueCertificate({ caDir: ca, outDir: directory, role: 'controller', name: 'x', addresses: ['127.0.0.1'] });
const registry = new Registry();
const server = await startAdmission({
  listen: { host: '127.0.0.1', port: 0 },
  certificate: { cert: join(directory, 'tls.crt'), key: join(directory, 'tls.key') },
  world: () => world,
  log: createLog('admission', 'warn'),
  registry,
});
t.teardown(() => server.close());

t.test('the webhook is registered', async (t) => {
  const configuration = parse(readFileSync(besideSources('deploy/webhook.yaml'), 'utf8')) as { webhooks: Json[] };
  const clientConfig = {
    url: `https://127.0.0.1:${server.port}${ADMISSION_PATH}`,
    caBundle: readFileSync(join(ca, 'ca.crt')).toString('base64'),
  };
  for (const webhook of configuration.webhooks) webhook.clientConfig = clientConfig;
  t.ok((await kubectl(['apply', '--validate=false', '-f', '-'], configuration as unknown as Json)).ok);
  // It is called a moment after it is stored.
  world = worldOf([], emptyMemory());
  const bad = bare(egressIP('new', { addresses: ['2001:db8::1::2'] }));
  const refused = async (): Promise<boolean> =>
    /admission webhook/.test(await api.refusal(['create', '--dry-run=server', '-f', '-'], JSON.stringify(bad)));
  await within('the API server asks', 60_000, refused);
});

t.test('what is in force', async (t) => {
  const names: [name: string, labels: Json][] = [
    ['billing', { team: 'pay' }],
    ['guests', { guest: 'yes' }],
    ['reviews', {}],
    ['batch', {}],
  ];
  for (const [name, labels] of names) {
    await apply({ apiVersion: 'v1', kind: 'Namespace', metadata: { name, labels } });
  }
  await apply({
    apiVersion: 'v1',
    kind: 'Pod',
    metadata: { name: 'pay-1', namespace: 'billing' },
    spec: { nodeName: 'n', automountServiceAccountToken: false, containers: [{ name: 'c', image: 'none' }] },
  });
  const status = { phase: 'Running', podIP: '10.244.1.2', podIPs: [{ ip: '10.244.1.2' }] };
  const { text } = await kubectl(['get', 'pod', '-n', 'billing', 'pay-1', '-o', 'json']);
  const path = '/api/v1/namespaces/billing/pods/pay-1/status';
  const put = await kubectl(['replace', '--raw', path, '-f', '-'], { ...(JSON.parse(text) as Json), status });
  t.ok(put.ok, put.text);
  for (const object of [
    gatewayPool('main'),
    publicPool(),
    billing(),
    service('billing/web'),
    rule('NamespaceEgressRule', 'billing/veto', { action: 'drop' }),
  ]) {
    const said = await step(() => apply(object));
    t.ok(said.ok, said.text);
    t.notMatch(said.text, /Warning/, 'in order nothing is missing');
  }
});

t.test('bad and good objects', async (t) => {
  const rows: [object: Manifest, denied: RegExp | null, warned?: RegExp][] = [
    [
      egressIP('new', { addresses: ['203.0.113.200'] }),
      /denied the request: spec\.addresses: 203\.0\.113\.200 is not in EgressIPPool public/,
    ],
    [
      egressIP('new', { addresses: ['203.0.113.101'] }),
      /denied the request: spec\.addresses: 203\.0\.113\.101 belongs to EgressIP billing/,
    ],
    [egressIP('new', { namespaces: ['guests'] }), /does not let namespace guests draw from it/],
    [egressIP('new', { addresses: ['2001:db8::1::2'] }), /spec\.addresses\[0\]: expected/],
    [drawPool('new', { ranges: ['203.0.113.104/29'] }), /some of 203\.0\.113\.104\/29 belongs to EgressIPPool public/],
    [
      gatewayPool('new', {
        namespaceSelector: { matchLabels: { zone: 'b' } },
        gateways: [{ name: 'b', internalAddress: '10.0.0.40' }],
      }),
      /10\.0\.0\.64 is a next hop of GatewayPool main/,
    ],
    [
      rule('NamespaceEgressRule', 'billing/new', { action: 'reject', externalServices: ['later'] }),
      null,
      /billing\/later not found and never in force/,
    ],
    [rule('ClusterEgressRule', 'new', { externalServices: ['billing/web'] }), /namespace billing is not labelled/],
    [
      rule('NamespaceEgressRule', 'billing/new', { externalServices: ['later'] }),
      null,
      /billing\/later not found: it matches nothing/,
    ],
    [egressIP('other', { pool: 'later', namespaces: ['reviews'] }), null, /EgressIPPool later does not exist/],
    [
      publicPool({ exclude: ['203.0.113.101'] }),
      null,
      /then EgressIP\/billing: 203\.0\.113\.101 is no longer in EgressIPPool public/,
    ],
    [egressIP('good', { namespaces: ['reviews'] }), null],
  ];
  for (const [object, denied, warned] of rows) {
    const said = await step(() => apply(object));
    t.equal(said.ok, denied === null, said.text);
    if (denied !== null) {
      const create = ['create', '--validate=false', '-f', '-'];
      t.match(await api.refusal(create, JSON.stringify(bare(object))), denied);
    } else if (warned !== undefined) t.match(said.text, warned);
    else t.notMatch(said.text, /Warning/);
  }
  const labelled = await step(() => kubectl(['label', '--overwrite', 'egressip', 'billing', 'a=b']));
  t.ok(labelled.ok);
});

t.test('deletions', async (t) => {
  for (const [kind, name] of [
    ['egressip', 'billing'],
    ['egressippool', 'public'],
    ['gatewaypool', 'main'],
  ] as const) {
    const denied = await step(() => kubectl(['delete', kind, name]));
    t.notOk(denied.ok);
    t.match(denied.text, /1 workload leaves through it.*sluice\.dev\/confirm-deletion/);
  }
  t.ok((await step(() => kubectl(['delete', 'egressip', 'good', 'other']))).ok, 'that carry nothing');
  t.ok(
    (await step(() => kubectl(['annotate', '--overwrite', 'egressip', 'billing', 'sluice.dev/confirm-deletion=bill'])))
      .ok,
  );
  t.notOk((await step(() => kubectl(['delete', 'egressip', 'billing']))).ok, 'another name');
  t.ok(
    (
      await step(() =>
        kubectl(['annotate', '--overwrite', 'egressip', 'billing', 'sluice.dev/confirm-deletion=billing']),
      )
    ).ok,
  );
  t.ok((await step(() => kubectl(['delete', 'egressip', 'billing']))).ok);
  t.ok((await step(() => kubectl(['delete', 'egressippool', 'public']))).ok, 'nothing leaves through it now');
});

t.test('an ExternalService that a veto names', async (t) => {
  await observe();
  const wanted = finalizers.get('ExternalService/billing/web') ?? [];
  t.same(wanted, [FINALIZER_FORBIDDING_RULE]);
  const write = (list: readonly string[]) =>
    kubectl([
      'patch',
      'externalservice',
      '-n',
      'billing',
      'web',
      '--type=merge',
      '-p',
      JSON.stringify({ metadata: { finalizers: list } }),
    ]);
  t.ok((await write(withFinalizers([], wanted, false) ?? [])).ok);
  const said = await step(() => kubectl(['delete', 'externalservice', '-n', 'billing', 'web', '--wait=false']));
  t.ok(said.ok);
  t.match(said.text, /stays until no drop or reject rule names it: NamespaceEgressRule\/billing\/veto/);
  t.ok((await kubectl(['get', 'externalservice', '-n', 'billing', 'web'])).ok, 'it is there');
  t.ok((await step(() => kubectl(['delete', 'nsgr', '-n', 'billing', 'veto']))).ok);
  await observe();
  t.ok(
    (
      await write(
        withFinalizers([FINALIZER_FORBIDDING_RULE], finalizers.get('ExternalService/billing/web') ?? [], true) ?? ['x'],
      )
    ).ok,
  );
  t.notOk((await kubectl(['get', 'externalservice', '-n', 'billing', 'web'])).ok, 'it is gone');
});

t.test('while the webhook cannot answer', async (t) => {
  world = undefined;
  const made = await apply(manifest('EgressIP', 'open', { pool: 'none', count: 1, namespaces: ['reviews'] }));
  t.ok(made.ok, 'creating fails open');
  const deleted = await kubectl(['delete', 'egressip', 'open']);
  t.notOk(deleted.ok, 'deleting fails closed');
  t.match(deleted.text, /deletions\.admission\.sluice\.dev.*not known yet|failed calling webhook/);
});
