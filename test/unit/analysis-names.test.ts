/**
 * `sluice lint` and `sluice simulate` where names and bytes decide: what is still certain, and differences that samples
 * show. The samples by themselves: each name that some pattern tells from others is among them.
 */
import { cpSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import t from 'tap';
import { NameSet, parseNamePattern } from '../../api/host-name.ts';
import type { ServiceEntry } from '../../api/plan.ts';
import { must } from '../../api/result.ts';
import { samplesOf } from '../../policy/analysis/said.ts';
import { examplesFolder, sluice } from '../sluice.ts';

const dir = mkdtempSync(join(tmpdir(), 'sluice-names-'));
t.teardown(() => rmSync(dir, { recursive: true }));
let count = 0;
function directory(...documents: string[]): string {
  const path = join(dir, `m${count++}`);
  mkdirSync(path);
  writeFileSync(join(path, 'all.yaml'), documents.join('\n---\n'));
  return path;
}
const object = (kind: string, name: string, spec: string, namespace = 'monitoring'): string =>
  `apiVersion: sluice.dev/v1alpha1
kind: ${kind}
metadata: { name: ${name}${kind === 'ClusterEgressRule' ? '' : `, namespace: ${namespace}`} }
spec: ${spec}`;
const service = (name: string, spec: string): string => object('ExternalService', name, spec);
const rule = (name: string, action: string, services: string): string =>
  object('NamespaceEgressRule', name, `{ action: ${action}, externalServices: [${services}] }`);

const api = service('api', '{ addresses: [api.example.com], ports: [{ name: https, protocol: TCP, port: "443" }] }');
const cdn = service(
  'cdn',
  '{ addresses: ["*.cdn.example.com"], ports: [{ name: https, protocol: TCP, port: "443" }] }',
);

t.test('lint: of names only what is certain', async (t) => {
  // By name: the first comes first.
  const rows: [name: string, documents: string[], expected: string[]][] = [
    ['names are something', [api, rule('a', 'accept-decisively', 'api')], []],
    [
      'the same service again',
      [api, rule('a', 'accept-decisively', 'api'), rule('b', 'accept', 'api')],
      ['b Shadowed'],
    ],
    ['one of more', [api, cdn, rule('a', 'drop', 'api, cdn'), rule('b', 'reject', 'cdn')], ['b Shadowed']],
    ['one more', [api, cdn, rule('a', 'drop', 'api'), rule('b', 'reject', 'api, cdn')], []],
    ['a veto asks for less than a permit', [api, rule('a', 'drop', 'api'), rule('b', 'accept-decisively', 'api')], []],
    ['or the other way round', [api, rule('a', 'accept-decisively', 'api'), rule('b', 'drop', 'api')], []],
    ['all comes before', [api, rule('a', 'drop', '"*"'), rule('b', 'accept-decisively', 'api')], ['b Shadowed']],
    [
      'an accept of names may permit later',
      [api, rule('a', 'accept', 'api'), rule('b', 'drop', '"*"')],
      ['a PermitsNothing'],
    ],
  ];
  for (const [name, documents, expected] of rows) {
    const path = directory(...documents);
    cpSync(join(examplesFolder, 'gateway-pool.yaml'), join(path, 'pool.yaml'));
    cpSync(join(examplesFolder, 'cluster.yaml'), join(path, 'cluster.yaml'));
    const { out } = await sluice('lint', path, '-o', 'json');
    const findings = JSON.parse(out).findings as { object?: string; code: string }[];
    const found = findings.flatMap(({ object: key = '', code }) => {
      const [, own] = /^NamespaceEgressRule\/monitoring\/(.)$/.exec(key) ?? [];
      return own === undefined ? [] : [`${own} ${code}`];
    });
    t.same(found, expected, name);
  }
});

t.test('simulate: a name, a method, a veto more or less', async (t) => {
  const vendor = (addresses: string): string =>
    service('vendor', `{ addresses: [${addresses}], ports: [{ name: https, protocol: TCP, port: "443" }] }`);
  const catalogue = (http: string): string =>
    object(
      'ExternalService',
      'catalogue',
      `{ addresses: [198.51.100.66], ports: [{ name: api, protocol: TCP, port: "8080", appProtocol: HTTP, http: ${http} }] }`,
      'reviews',
    );
  const rows: [name: string, draft: string[], expected: string[]][] = [
    ['nothing', [vendor('api.example.com, "*.status.example.com"')], []],
    [
      'another name',
      [vendor('api.example.com, new.example.com')],
      ['TLS for any.status.example.com: accept, drop', 'TLS for new.example.com: drop, accept'],
    ],
    [
      'deeper names',
      [vendor('api.example.com, "**.status.example.com"')],
      ['TLS for any.any.status.example.com: drop, accept'],
    ],
    [
      'another method, of one family only',
      [catalogue('{ hosts: [catalogue.example.com], methods: [GET, PUT], paths: [/v1/*] }')],
      [
        'HTTP GET /v1/any of catalogue.example.com: accept, drop',
        'HTTP HEAD /v1/any of catalogue.example.com: accept, drop',
        'HTTP PUT /v1/any of catalogue.example.com: drop, accept',
      ],
    ],
    [
      'a veto by name',
      [
        object(
          'ExternalService',
          'status',
          '{ addresses: [x.status.example.com], ports: [{ name: h, protocol: TCP, port: "443" }] }',
          'sluice-system',
        ),
        object('ClusterEgressRule', 'no-status', '{ action: drop, priority: 1, externalServices: [status] }'),
      ],
      [
        'TLS for x.status.example.com: accept, drop',
        // Of others, who may reach such addresses whatever they say.
        ...[1, 2, 3].map(() => 'no protocol that is known, to an address of x.status.example.com: accept, drop'),
      ],
    ],
  ];
  for (const [name, draft, expected] of rows) {
    const { out, code } = await sluice(
      'simulate',
      directory(...draft),
      '--overlay',
      '--source',
      `directory:${examplesFolder}`,
      '-o',
      'json',
    );
    t.equal(code, expected.length === 0 ? 0 : 3, name);
    type Told = { verdict: string };
    const changes = JSON.parse(out).changes as { kind: string; said?: string[]; before: Told; after: Told }[];
    const told = changes
      .filter(
        ({ kind, before, after }) => kind === 'verdict' && [before, after].some(({ verdict }) => verdict === 'accept'),
      )
      .map(({ said = [], before, after }) => `${said[0] ?? ''}: ${before.verdict}, ${after.verdict}`);
    t.same(told.sort(), expected.sort(), name);
  }
  const { out } = await sluice(
    'simulate',
    directory(vendor('new.example.com')),
    '--overlay',
    '--source',
    `directory:${examplesFolder}`,
  );
  t.match(out, /TCP 443: TLS for any\.status\.example\.com, TLS for api\.example\.com +accept \(/);
});

const pattern = fc.constantFrom(
  'a.test',
  'b.a.test',
  '*.a.test',
  '**.a.test',
  '*.b.a.test',
  '**.test',
  'any.a.test',
  'c.example',
);
const label = fc.constantFrom('a', 'b', 'any', 'x');
const name = fc
  .tuple(fc.array(label, { maxLength: 3 }), fc.constantFrom('test', 'example', 'a.test'))
  .map(([labels, end]) => [...labels, end].join('.'));

t.test('samples: a name is told from others as one of them is', async (t) => {
  const property = fc.property(fc.uniqueArray(pattern, { minLength: 1, maxLength: 4 }), name, (patterns, some) => {
    const entry: ServiceEntry = {
      addresses: [],
      names: patterns,
      ports: null,
      checks: [{ protocol: 6, ports: [[443, 443]], application: 'TLS', implied: true }],
    };
    const samples = samplesOf([entry], { address: { family: 4, value: 1n }, protocol: 6, port: 443 });
    const names = samples.flatMap(({ known }) => known.reading?.name ?? []);
    const kinds = (text: string): string =>
      patterns.map((one) => Number(new NameSet([must(parseNamePattern(one))]).has(text))).join('');
    const none = patterns.map(() => 0).join('');
    return kinds(some) === none || names.some((one) => kinds(one) === kinds(some));
  });
  t.doesNotThrow(() => fc.assert(property, { numRuns: 2000 }));
});
