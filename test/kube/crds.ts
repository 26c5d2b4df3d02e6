/**
 * The CRDs of deploy/crds on a real API server: it takes them and all manifests of ours, it and our own validation
 * agree on many generated objects, and it keeps what a status says. Not among the tests of `npm test`, since nothing
 * that setup.sh installs has an API server. Usage (docs/install.md, "CRDs"): KUBECONFIG=FILE node dist/test/kube/crds.js
 * [OBJECTS [SEED]], on a cluster that is only for tests: the CRDs and a few namespaces stay.
 */

import { execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { readdirSync, readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { isDeepStrictEqual } from 'node:util';
import fc from 'fast-check';
import t from 'tap';
import { type AnyObject, parseObject, sluiceKinds } from '../../api/kinds.ts';
import { API_VERSION } from '../../api/names.ts';
import type { FieldError } from '../../api/schema/walk.ts';
import { parseYaml, readDocuments } from '../../controller/observe/document.ts';
import { emptyMemory } from '../../controller/plan/memory.ts';
import { noPeers } from '../../controller/plan/peers.ts';
import { plan } from '../../controller/plan/plan.ts';
import { samples } from '../unit/samples.ts';
import { type Manifest, objectOf } from './generated.ts';

type Json = Record<string, unknown>;

const root = rootOf(import.meta.dirname);
const count = Number(process.argv[2] ?? 500);
const seed = Number(process.argv[3] ?? 1);

/** Compiled tests lie anywhere below the repository. */
function rootOf(directory: string): string {
  if (readdirSync(directory).includes('tsconfig.json')) return directory;
  if (dirname(directory) === directory) throw new Error('the repository is not above the test');
  return rootOf(dirname(directory));
}

/**
 * What only our own validation says, by its error as `EXPECTED, got GOT`: all else must the API server refuse too. The
 * same list is in docs/install.md.
 */
const onlyOurs: readonly [what: string, error: RegExp][] = [
  ['null where a field may be absent', /, got null$/],
  ['syntax of IPv6', /no IPv4 or IPv6 address, got "[^"]*:|an IPv6 address without zone in the brackets/],
  ['IPv4 mapped into IPv6', /^IPv4 written as IPv4/],
  ['bits after a prefix, ends of a range', /has bits after the prefix length|ends before it begins/],
  ['addresses that no host may have', /addresse?s? that a host may have/],
  ['one address, name or type written in two ways', /^other than spec\.[^ ]*, got "[0-9A-Za-z.:/*-]+"$/],
  ['lengths of labels, and names beyond ASCII', /a name of (labels of|at most)/],
  ['overlaps and counts of addresses', /^(no address that another|no internalAddress|1 to 253|as many v6 as v4)/],
  ['hosts that end in a number', /^an IPv4 address of four decimal numbers/],
  ['order and overlaps of ports', /^(each (port|type and code) once|a range that ends after it begins)/],
  ['time zones that there are', /^a time zone of the IANA database/],
  ['keys of matchLabels', /^(a label key|a usable key)/],
];

// As long as so many objects take.
t.setTimeout(0);

/** `kubectl proxy` has the credentials. */
const proxy = spawn('kubectl', ['proxy', '--port=0'], { stdio: ['ignore', 'pipe', 'inherit'] });
t.teardown(() => proxy.kill());
const [line] = (await once(proxy.stdout, 'data')) as [Buffer];
const base = `http://127.0.0.1:${/:([0-9]+)\s*$/.exec(line.toString())?.[1]}`;

interface Answer {
  status: number;
  body: Json & { message?: string };
}

const types = { PATCH: 'application/merge-patch+json', APPLY: 'application/apply-patch+yaml' } as Record<
  string,
  string
>;

async function ask(method: string, path: string, body?: Json, accept = 'application/json'): Promise<Answer> {
  const response = await fetch(`${base}${path}`, {
    method: method === 'APPLY' ? 'PATCH' : method,
    headers: { 'content-type': types[method] ?? 'application/json', accept },
    ...(body === undefined ? {} : { body: JSON.stringify(body) }),
  });
  return { status: response.status, body: (await response.json()) as Json };
}

const namespaces = new Set<string>();
/** The path of an object's collection; its namespace is made. */
async function placeOf({ kind, metadata }: Manifest): Promise<string> {
  const plural = sluiceKinds.find((info) => info.kind === kind)?.plural;
  const { namespace } = metadata;
  if (namespace === undefined) return `/apis/${API_VERSION}/${plural}`;
  if (!namespaces.has(namespace)) {
    await ask('POST', '/api/v1/namespaces', { apiVersion: 'v1', kind: 'Namespace', metadata: { name: namespace } });
    namespaces.add(namespace);
  }
  return `/apis/${API_VERSION}/namespaces/${namespace}/${plural}`;
}

/** Validated and defaulted as if it were made. */
async function tried(object: Manifest): Promise<Answer> {
  return ask('POST', `${await placeOf(object)}?dryRun=All&fieldValidation=Strict`, object);
}

/** Makes an object, or makes it anew. */
async function made(object: Manifest): Promise<string> {
  const place = await placeOf(object);
  const path = `${place}/${object.metadata.name}`;
  await ask('DELETE', path);
  const { status, body } = await ask('POST', `${place}?fieldValidation=Strict`, object);
  if (status !== 201) throw new Error(`${status} ${body.message}`);
  return path;
}

const manifests = ['examples', join('lab', 'manifests')].flatMap((folder) =>
  readdirSync(join(root, folder))
    .filter((name) => name.endsWith('.yaml'))
    .flatMap((name) => {
      const read = parseYaml(readFileSync(join(root, folder, name), 'utf8'));
      const documents = (read.ok ? read.documents : []) as Manifest[];
      return documents.filter((one) => one?.apiVersion === API_VERSION).map((object) => ({ name, object }));
    }),
);

t.test('the CRDs are taken', async (t) => {
  const folder = join(root, 'deploy', 'crds');
  execFileSync('kubectl', ['apply', '--validate=false', '-f', folder], { stdio: 'ignore' });
  for (const { plural } of sluiceKinds) {
    const path = `/apis/apiextensions.k8s.io/v1/customresourcedefinitions/${plural}.sluice.dev`;
    let conditions: { type: string; status: string }[] = [];
    const holds = (type: string): boolean => conditions.some((one) => one.type === type && one.status === 'True');
    for (let i = 0; i < 100 && !holds('Established'); i++) {
      conditions = ((await ask('GET', path)).body.status as { conditions?: [] } | undefined)?.conditions ?? [];
      if (!holds('Established')) await new Promise((resolve) => setTimeout(resolve, 100));
    }
    t.ok(holds('Established') && holds('NamesAccepted') && !holds('NonStructuralSchema'), plural);
  }
  // A new schema is served a moment after it is stored.
  await new Promise((resolve) => setTimeout(resolve, 2000));
});

t.test('every manifest of ours is taken', async (t) => {
  for (const { name, object } of manifests) {
    const { status, body } = await tried(object);
    // 409: it is there from a test before.
    t.ok(status === 201 || status === 409, `${name} ${object.kind} ${object.metadata.name}: ${body.message ?? status}`);
  }
  t.ok(manifests.length > 30);
});

interface Tally {
  taken: number;
  refused: number;
  ours: Map<string, number>;
}

/** How the API server and we differ on an object, beyond what is known. */
async function difference(object: Manifest, tally: Tally): Promise<string | null> {
  const { status, body } = await tried(object);
  if (status !== 201 && status !== 400 && status !== 422) throw new Error(`${status} ${body.message}`);
  const parsed = parseObject(object);
  if (status === 201 && parsed.ok) {
    tally.taken++;
    const again = parseObject({ ...object, spec: body.spec });
    if (again.ok && isDeepStrictEqual(again.value, parsed.value)) return null;
    return `read otherwise after the API server: ${JSON.stringify([body.spec, again])}`;
  }
  if (parsed.ok) return `only the API server refuses: ${body.message}`;
  if (status !== 201) {
    tally.refused++;
    return null;
  }
  const unknown = parsed.errors.filter((error) => !known(error, tally));
  return unknown.length === 0 ? null : `only we refuse: ${JSON.stringify(unknown)}`;
}

function known({ expected, got }: FieldError, tally: Tally): boolean {
  const what = onlyOurs.find(([, error]) => error.test(`${expected}, got ${got}`))?.[0];
  if (what === undefined) return false;
  tally.ours.set(what, (tally.ours.get(what) ?? 0) + 1);
  return true;
}

for (const info of sluiceKinds) {
  t.test(`${info.kind}: the API server and we agree`, async (t) => {
    const tally: Tally = { taken: 0, refused: 0, ours: new Map() };
    const found = new Map<string, string>();
    const objects = fc.sample(objectOf(info), { numRuns: count, seed });
    for (let i = 0; i < objects.length; i += 8) {
      const differ = async (object: Manifest): Promise<void> => {
        const what = await difference(object, tally);
        if (what === null) return;
        // One of a sort is enough.
        found.set(what.replaceAll(/\d+/g, 'N').slice(0, 160), `${JSON.stringify(object.spec)}: ${what}`.slice(0, 2000));
      };
      await Promise.all(objects.slice(i, i + 8).map(differ));
    }
    t.same([...found.values()], []);
    t.comment(
      `${tally.taken} taken, ${tally.refused} refused by both; refused by us alone:`,
      Object.fromEntries(tally.ours),
    );
    t.ok(tally.taken > count / 10 && tally.refused > count / 10);
  });
}

t.test('what cannot be changed', async (t) => {
  for (const [kind, field] of [
    ['EgressIPPool', 'gatewayPool'],
    ['EgressIP', 'pool'],
  ] as const) {
    const { spec } = samples.find((one) => one.kind === kind) as unknown as Manifest;
    const path = await made({ apiVersion: API_VERSION, kind, metadata: { name: 'fixed' }, spec });
    t.match(await ask('PATCH', path, { spec: { [field]: 'other' } }), {
      status: 422,
      body: { message: new RegExp(`${field} cannot be changed`) },
    });
    t.equal(
      (await ask('PATCH', path, { spec: { [field]: spec[field] }, metadata: { labels: { a: 'b' } } })).status,
      200,
    );
    await ask('DELETE', path);
  }
});

t.test('server-side apply: ports by name, addresses one by one, a selector whole', async (t) => {
  const object = (kind: string, namespace: string | undefined, spec: Json): Manifest => ({
    apiVersion: API_VERSION,
    kind,
    metadata: { name: 'shared', ...(namespace === undefined ? {} : { namespace }) },
    spec,
  });
  const apply = async (manager: string, it: Manifest): Promise<Answer> =>
    ask('APPLY', `${await placeOf(it)}/shared?fieldManager=${manager}`, it);
  const service = (addresses: string[], ports: Json[]): Manifest =>
    object('ExternalService', 'billing', { addresses, ports });
  const https = { name: 'https', protocol: 'TCP', port: '443' };
  const dns = { name: 'dns', protocol: 17, port: '53' };
  const path = `${await placeOf(service([], []))}/shared`;
  await ask('DELETE', path);
  t.equal((await apply('a', service(['198.51.100.1'], [https]))).status, 201);
  t.equal((await apply('b', service(['198.51.100.2'], [dns]))).status, 200);
  t.match((await ask('GET', path)).body.spec, { addresses: ['198.51.100.1', '198.51.100.2'], ports: [https, dns] });
  t.equal((await apply('b', service(['198.51.100.2'], [{ ...https, port: '8443' }]))).status, 409);
  t.equal((await apply('a', object('ExternalService', 'billing', { addresses: ['198.51.100.1'] }))).status, 200);
  t.same(((await ask('GET', path)).body.spec as Json).ports, [dns], 'what its applier leaves out is gone');
  await ask('DELETE', path);

  const rule = (labels: Json): Manifest =>
    object('ClusterEgressRule', undefined, {
      action: 'drop',
      externalServices: ['x'],
      podSelector: { matchLabels: labels },
    });
  await ask('DELETE', `${await placeOf(rule({}))}/shared`);
  t.equal((await apply('a', rule({ a: '1' }))).status, 201);
  t.equal((await apply('b', rule({ b: '1' }))).status, 409);
  await ask('DELETE', `${await placeOf(rule({}))}/shared`);
});

t.test('columns, short names and the category', async (t) => {
  for (const { plural, columns } of sluiceKinds) {
    const accept = 'application/json;as=Table;v=v1;g=meta.k8s.io';
    const { body } = await ask('GET', `/apis/${API_VERSION}/${plural}`, undefined, accept);
    const names = (body.columnDefinitions as { name: string }[]).map(({ name }) => name);
    t.same(names, ['Name', ...columns.map(({ name }) => name)], plural);
  }
  const { body } = await ask('GET', `/apis/${API_VERSION}`);
  const resources = body.resources as { name: string; shortNames?: string[]; categories?: string[] }[];
  for (const { plural, shortNames } of sluiceKinds) {
    t.match(resources.find(({ name }) => name === plural) ?? {}, { shortNames, categories: ['sluice'] }, plural);
    t.ok(resources.some(({ name }) => name === `${plural}/status`));
  }
});

t.test('what the controller says in a status is kept', async (t) => {
  const folder = join(root, 'examples');
  const snapshot = new Map<string, AnyObject>();
  for (const name of readdirSync(folder).filter((one) => one.endsWith('.yaml'))) {
    const { objects } = readDocuments(name, readFileSync(join(folder, name), 'utf8'), new Map(), () => undefined);
    for (const [key, object] of objects) snapshot.set(key, object);
  }
  const { statuses } = plan(snapshot, emptyMemory(), noPeers(), 0, new Map());
  const lastTransitionTime = '2026-11-27T12:00:00Z';
  for (const [key, said] of statuses) {
    const object = snapshot.get(key) as unknown as Manifest;
    const path = await made(object);
    const status = { ...said, conditions: said.conditions.map((one) => ({ ...one, lastTransitionTime })) };
    const answer = await ask('PATCH', `${path}/status?fieldValidation=Strict`, { status });
    t.equal(answer.status, 200, `${key}: ${answer.body.message ?? ''}`);
    t.same(answer.body.status, JSON.parse(JSON.stringify(status)), key);
    await ask('DELETE', path);
  }
  t.ok(statuses.size > 15);
});
