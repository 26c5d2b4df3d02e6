/**
 * Admission: for each rule a change that is denied or warned of, with its text, and one beside it that is taken in
 * silence; what is never looked at; deletion; finalizers. Then the exchange with the API server: hostile bodies, limits
 * of texts, and that deploy/webhook.yaml asks for what the server answers.
 */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { parse } from 'yaml';
import { immutableFields, sluiceKinds } from '../../api/kinds.ts';
import { ANNOTATION_CONFIRM_DELETION, FINALIZER_FORBIDDING_RULE } from '../../api/names.ts';
import { answerTo, readReview } from '../../controller/admission/exchange.ts';
import { finalizersOf, withFinalizers } from '../../controller/admission/finalizers.ts';
import { hints } from '../../controller/admission/problems.ts';
import { type AdmissionRequest, type AdmissionWorld, review } from '../../controller/admission/review.ts';
import { ADMISSION_PATH, admissionLimits } from '../../controller/admission/server.ts';
import { changed } from '../../controller/plan/objects.ts';
import {
  billing,
  create,
  drawPool,
  egressIP,
  gatewayPool,
  inForce,
  type Json,
  manifest,
  otherPool,
  parsed,
  publicPool,
  remove,
  rule,
  service,
  update,
  worldOf,
} from './admission-world.ts';

const world = worldOf(inForce());
const ruleOf = (spec: Json) => rule('NamespaceEgressRule', 'billing/new', spec);
const clusterRule = (spec: Json) => rule('ClusterEgressRule', 'new', { externalServices: ['partner'], ...spec });
const appRule = (spec: Json) => rule('ServiceEgressRule', 'billing/new', { service: 'payments', ...spec });
const third = (spec: Json = {}) => otherPool({ ...spec });
/** Another GatewayPool beside main and other. */
const pool = (spec: Json = {}) =>
  gatewayPool('third', {
    namespaceSelector: { matchLabels: { zone: 'c' } },
    gateways: [{ name: 'gw-3', internalAddress: '10.8.0.31' }],
    nextHops: { v4: ['10.8.0.64'] },
    ...spec,
  });
const overriding = (object: ReturnType<typeof gatewayPool>, spec: Json) => ({
  ...object,
  spec: { ...(object.spec as Json), ...spec },
});

const listAt = (host: string): Json => ({ url: `https://${host}.example.test/a.txt` });

interface Row {
  /** Of a condition of the planner's, or `-`. */
  reason: string;
  what: string;
  request: AdmissionRequest;
  denied?: RegExp;
  warned?: RegExp;
  world?: AdmissionWorld;
}
const row = (
  reason: string,
  what: string,
  request: AdmissionRequest,
  says: Pick<Row, 'denied' | 'warned' | 'world'> = {},
): Row => ({
  reason,
  what,
  request,
  ...says,
});

const rows: Row[] = [
  // What parseObject refuses, by path.
  row('-', 'a good EgressIP', create(egressIP('new'))),
  row('-', 'an address that is none', create(egressIP('new', { addresses: ['203.0.113.256'] })), {
    denied: /^spec\.addresses\[0\]: expected an (IP|IPv4)[^;]*, got "203\.0\.113\.256"/,
  }),
  row('-', 'two mistakes', create(egressIP('new', { addresses: undefined, namespaces: undefined })), {
    denied: /^spec: expected addresses or count, got neither; spec: expected namespaces or namespaceSelector/,
  }),
  row('-', 'a field that there is not', create(egressIP('new', { colour: 'red' })), { denied: /^spec\.colour: / }),
  row('-', 'a field that is not carried out', create(pool({ announce: {} })), {
    denied: /^spec\.announce: .*not carried out yet/,
  }),
  row('-', 'bits after a prefix', create(drawPool('new', { ranges: ['192.0.2.1/28'] })), {
    denied: /^spec\.ranges\[0\]: /,
  }),
  row('-', 'as many v6 as v4', create(pool({ nextHops: { v4: ['10.8.0.64'], v6: ['fd00::1-fd00::2'] } })), {
    denied: /^spec\.nextHops: expected as many v6 as v4 addresses/,
  }),
  row('-', 'a bad object that was good', update(billing({ count: 1 }), billing()), { denied: /^spec\.count: / }),

  // EgressIP.
  row('OutOfPool', 'beside the ranges', create(egressIP('new', { addresses: ['203.0.113.105', '203.0.113.200'] })), {
    denied: /^spec\.addresses: 203\.0\.113\.200 is not in EgressIPPool public; name an address of the pool/,
  }),
  row('OutOfPool', 'excluded', create(egressIP('new', { addresses: ['203.0.113.97'] })), {
    denied: /203\.0\.113\.97 is not in/,
  }),
  row('OutOfPool', 'by an update', update(billing({ addresses: ['203.0.113.101', '203.0.113.97'] }), billing()), {
    denied: /203\.0\.113\.97 is not in/,
  }),
  row('OutOfPool', 'an update within', update(billing({ addresses: ['203.0.113.101', '203.0.113.106'] }), billing())),
  row('AddressTaken', 'of another EgressIP', create(egressIP('new', { addresses: ['203.0.113.101'] })), {
    denied: /^spec\.addresses: 203\.0\.113\.101 belongs to EgressIP billing.*; name another address/,
  }),
  row('AddressTaken', 'by an older one', update(billing({ addresses: ['203.0.113.110'] }), billing()), {
    denied: /^spec: it would take from EgressIP\/idle what that has \(203\.0\.113\.110 belongs to EgressIP billing/,
  }),
  row('AddressTaken', 'that another drew', update(billing({ addresses: ['203.0.113.96'] }), billing()), {
    denied: /^spec: it would take from EgressIP\/reviews what that has \(203\.0\.113\.96 would be EgressIP billing's\)/,
  }),
  row('AddressReserved', 'a next hop', create(egressIP('new', { pool: 'inside', addresses: ['10.0.0.65'] })), {
    world: worldOf([...inForce(), drawPool('inside', { ranges: ['10.0.0.0/24'] })]),
    denied: /^spec\.addresses: 10\.0\.0\.65 is a next hop or a gateway's own address/,
  }),
  row('AddressReserved', 'a next hop on an address in use', create(pool({ nextHops: { v4: ['203.0.113.101'] } })), {
    denied: /^spec: it would take from EgressIP\/billing what that has \(203\.0\.113\.101 is a next hop/,
  }),
  row('AddressTaken', 'a next hop on an address that was drawn', create(pool({ nextHops: { v4: ['203.0.113.96'] } })), {
    denied:
      /^spec: it would take from EgressIP\/reviews what that has \(203\.0\.113\.96 would be a next hop or a gateway's\)/,
  }),
  row('NoSuchPool', 'a pool to come', create(egressIP('new', { pool: 'later' })), {
    warned: /^spec\.pool: EgressIPPool later does not exist; it is not in use until/,
  }),
  row('NamespaceNotAllowed', 'listed', create(egressIP('new', { namespaces: ['batch', 'guests'] })), {
    denied: /^spec\.namespaces\[1\]: EgressIPPool public does not let namespace guests draw from it; take it out/,
  }),
  row(
    'NamespaceNotAllowed',
    'selected, as labels say',
    create(egressIP('new', { namespaces: undefined, namespaceSelector: {} })),
    {
      warned: /EgressIPPool public does not let namespace guests draw/,
    },
  ),
  row(
    'NamespaceNotAllowed',
    'by a pool that is',
    create(egressIP('new', { pool: 'second', addresses: ['192.0.2.130'], namespaces: ['guests'] })),
  ),
  row('-', 'a namespace to come', create(egressIP('new', { namespaces: ['soon'] })), {
    warned: /^spec\.namespaces\[0\]: there is no namespace soon yet/,
  }),
  row('PoolExhausted', 'more than there are', create(egressIP('new', { addresses: undefined, count: 64 })), {
    warned: /^spec\.count: EgressIPPool public has no free IPv4 address/,
  }),
  row('PoolExhausted', 'as many as there are', create(egressIP('new', { addresses: undefined, count: 2 }))),
  row(
    'AddressesExhausted',
    'fewer than namespaces',
    create(egressIP('new', { allocation: 'PerNamespace', namespaces: ['batch', 'security'] })),
    { warned: /^namespace security: no IPv4 address is left .* they are given one when one is free/ },
  ),
  row(
    'AddressesExhausted',
    'as many as namespaces',
    create(
      egressIP('new', {
        allocation: 'PerNamespace',
        addresses: undefined,
        count: 2,
        namespaces: ['batch', 'security'],
      }),
    ),
  ),
  row('NamespaceTaken', 'served by another', create(egressIP('new', { namespaces: ['billing'] })), {
    warned: /^namespace billing is served by EgressIP billing/,
  }),
  row(
    'DestinationTaken',
    'a prefix of another',
    create(egressIP('new', { namespaces: ['reviews'], destinations: ['198.51.100.0/24'] })),
    {
      world: worldOf([
        ...inForce(),
        egressIP('far', { namespaces: ['reviews'], addresses: ['203.0.113.107'], destinations: ['198.51.100.0/24'] }),
      ]),
      warned: /^spec\.destinations: destination 198\.51\.100\.0\/24 of namespace reviews is served by EgressIP far/,
    },
  ),
  row('UntrustedNamespace', 'destinations of a tenant', create(egressIP('new', { destinations: ['billing/web'] })), {
    denied: /^spec\.destinations: "billing\/web": namespace billing is not labelled/,
  }),
  row('-', 'destinations that are lent', create(egressIP('new', { destinations: ['security/list'] }))),
  row('DestinationNeedsAddresses', 'names', create(egressIP('new', { destinations: ['security/names'] })), {
    world: worldOf([...inForce(), service('security/names', { addresses: ['a.example.test'] })]),
    denied: /^spec\.destinations: external service security\/names has names/,
  }),
  row(
    'TooManyDestinations',
    'more than the kernel takes',
    create(egressIP('new', { destinations: ['security/large'] })),
    {
      world: worldOf([...inForce(), service('security/large', { addresses: largeList() })]),
      denied: /^spec\.destinations: \d+ prefixes; all EgressIPs together/,
    },
  ),
  row(
    'ExternalServiceNotFound',
    'a destination to come',
    create(egressIP('new', { destinations: ['security/later'] })),
    {
      warned: /^spec\.destinations: external service security\/later not found/,
    },
  ),
  row('-', 'another pool', update(billing({ pool: 'second', addresses: ['192.0.2.130'] }), billing()), {
    denied: /^spec\.pool: cannot be changed \(it is "public"\); make another object/,
  }),

  // EgressIPPool.
  row('RangeTaken', 'of another pool', create(drawPool('new', { ranges: ['203.0.113.104-203.0.113.140'] })), {
    denied: /^spec\.ranges: some of 203\.0\.113\.104-203\.0\.113\.140 belongs to EgressIPPool public.*; take it out/,
  }),
  row(
    'RangeTaken',
    'by an older one',
    update(publicPool({ ranges: ['203.0.113.96/28', '192.0.2.128'] }), publicPool()),
    {
      denied: /^spec: it would take from EgressIPPool\/second what that has/,
    },
  ),
  row('RangeTaken', 'beside it', create(drawPool('new', { ranges: ['203.0.113.112-203.0.113.140'] }))),
  row('RangeTaken', 'what that excludes', create(drawPool('new', { ranges: ['203.0.113.97'] }))),
  row('NoSuchPool', 'a GatewayPool to come', create(drawPool('new', { gatewayPool: 'later' })), {
    warned: /^spec\.gatewayPool: GatewayPool later does not exist/,
  }),
  row('OutOfPool', 'shrinking', update(publicPool({ exclude: ['203.0.113.96', '203.0.113.101'] }), publicPool()), {
    warned:
      /^then EgressIP\/billing: 203\.0\.113\.101 is no longer in EgressIPPool public\nthen EgressIP\/reviews: 203\.0\.113\.96 is no longer/,
  }),
  row(
    'OutOfPool',
    'shrinking beside what is in use',
    update(publicPool({ exclude: ['203.0.113.97', '203.0.113.98'] }), publicPool()),
  ),
  row(
    'NamespaceNotAllowed',
    'narrowing',
    update(publicPool({ namespaceSelector: { matchLabels: { team: 'pay' } } }), publicPool()),
    {
      warned:
        /^then EgressIP\/idle: EgressIPPool public does not let namespace empty draw from it\nthen EgressIP\/reviews: /,
    },
  ),
  row('-', 'another GatewayPool', update(publicPool({ gatewayPool: 'other' }), publicPool()), {
    denied: /^spec\.gatewayPool: cannot be changed/,
  }),

  // GatewayPool.
  row('-', 'a third GatewayPool', create(pool())),
  row('InsideAddressTaken', 'next hops of another', create(pool({ nextHops: { v4: ['10.0.0.66-10.0.0.67'] } })), {
    denied: /^spec\.nextHops: 10\.0\.0\.66 is a next hop of GatewayPool main; choose an address/,
  }),
  row('InsideAddressTaken', 'a gateway of another', create(pool({ nextHops: { v4: ['10.0.0.31'] } })), {
    denied: /^spec\.nextHops: 10\.0\.0\.31 is internalAddress of gateway gw-a of GatewayPool main/,
  }),
  row(
    'InsideAddressTaken',
    'by an older one',
    update(overriding(gatewayPool('main'), { nextHops: { v4: ['10.9.0.64'] } }), gatewayPool('main')),
    {
      denied:
        /^spec: it would take from GatewayPool\/other what that has \(nextHops: 10\.9\.0\.64 is a next hop of GatewayPool main\)/,
    },
  ),
  row(
    'InsideAddressTaken',
    'a gateway on a next hop',
    create(pool({ gateways: [{ name: 'gw-3', internalAddress: '10.0.0.64' }] })),
    {
      denied: /^spec\.gateways: 10\.0\.0\.64 is a next hop of GatewayPool main/,
    },
  ),
  row(
    'GatewayTaken',
    'a gateway by name',
    create(pool({ gateways: [{ name: 'gw-a', internalAddress: '10.8.0.31' }] })),
    {
      denied: /^spec\.gateways: gateway gw-a belongs to GatewayPool main; take it out/,
    },
  ),
  row(
    'GatewayTaken',
    'by an older one',
    update(
      gatewayPool('main', {
        gateways: [
          { name: 'gw-a', internalAddress: '10.0.0.31' },
          { name: 'gw-z', internalAddress: '10.0.0.39' },
        ],
      }),
      gatewayPool('main'),
    ),
    { denied: /^spec: it would take from GatewayPool\/other what that has \(gateway gw-z belongs to GatewayPool main/ },
  ),
  row('VirtualRouterTaken', 'shards of two pools that are one router', create(pool({ vrrp: { baseId: 3 } })), {
    warned: /^spec\.vrrp\.baseId: virtual router 3 is GatewayPool main's, too; if they are on one link/,
    world: worldOf(inForce().map((one) => (one.metadata.name === 'main' ? gatewayPool('main', { vrrp: {} }) : one))),
  }),
  row('TunnelPort', 'another port', create(pool({ steering: { port: 4794 } })), {
    denied: /^spec\.steering\.port: steering\.port is 4793, that of the older GatewayPool main; a node has one/,
  }),
  row('TunnelPort', 'of the oldest', update(gatewayPool('main', { steering: { port: 4794 } }), gatewayPool('main')), {
    warned: /^then GatewayPool\/other: steering\.port is 4794/,
  }),
  row('TunnelPort', 'the same VNI is no clash', create(pool({ steering: { vni: 7790 } }))),
  row('NamespaceTaken', 'namespaces of another', create(pool({ namespaceSelector: {} })), {
    warned: /namespace billing is carried by GatewayPool main/,
  }),
  row('TooManyShards', 'more than nodes can mark', create(pool({ nextHops: { v4: ['10.8.1.1-10.8.1.252'] } })), {
    denied: /^spec\.nextHops: all pools together may have 253 shards/,
  }),
  row(
    '-',
    'what is wrong already may stay',
    update(third({ unassigned: 'Bypass', steering: { port: 9 } }), third({ steering: { port: 9 } })),
    {
      world: worldOf(inForce().map((one) => (one.metadata.name === 'other' ? third({ steering: { port: 9 } }) : one))),
      warned: /^spec\.steering\.port: steering\.port is 4793/,
    },
  ),

  // Rules.
  row('-', 'a good rule', create(ruleOf({}))),
  row('ExternalServiceNotFound', 'an accept of what is to come', create(ruleOf({ externalServices: ['later'] })), {
    warned: /^spec\.externalServices: external service billing\/later not found: it matches nothing$/,
  }),
  row(
    'ExternalServiceNotFound',
    'a veto of what never was',
    create(ruleOf({ action: 'drop', externalServices: ['later'] })),
    {
      // It may be the next object of the same `kubectl apply`, or the controller has not observed it yet.
      warned:
        /^spec\.externalServices: billing\/later not found and never in force: a drop rule would match nothing; apply/,
    },
  ),
  row('ExternalServiceNotFound', 'a veto of what was', create(ruleOf({ action: 'drop', externalServices: ['gone'] })), {
    world: {
      ...world,
      memory: { ...world.memory, lastServices: { 'billing/gone': { addresses: ['198.51.100.1'], ports: null } } },
    },
    warned: /billing\/gone not found: the last list stays in force/,
  }),
  row(
    'ListNotRead',
    'a veto by a list not read yet',
    create(ruleOf({ action: 'reject', externalServices: ['listed'] })),
    {
      warned: /^spec\.externalServices: billing\/listed .*never read/,
    },
  ),
  row('-', 'of another namespace', create(ruleOf({ externalServices: ['reviews/own'] })), {
    denied: /^spec\.externalServices\[0\]: /,
  }),
  row('UntrustedNamespace', 'of the cluster by a tenant', create(clusterRule({ externalServices: ['reviews/own'] })), {
    denied:
      /^spec\.externalServices: "reviews\/own": namespace reviews is not labelled sluice\.dev\/trusted-services: "true"; label/,
  }),
  row('UntrustedNamespace', 'that lends', create(clusterRule({ externalServices: ['security/list', 'partner'] }))),
  row(
    'RedirectForbidden',
    'into the cluster',
    create(ruleOf({ action: 'accept-decisively', redirect: { address: '10.244.1.9' } })),
    {
      denied: /^spec\.redirect\.address 10\.244\.1\.9: it lies in clusterCIDRs/,
    },
  ),
  row(
    'RedirectForbidden',
    'outside',
    create(ruleOf({ action: 'accept-decisively', redirect: { address: '198.51.100.9' } })),
  ),
  row(
    'RedirectNeedsAddresses',
    'of names',
    create(ruleOf({ action: 'accept-decisively', externalServices: ['named'], redirect: { address: '198.51.100.9' } })),
    {
      denied: /^spec\.redirect: external service billing\/named has names/,
    },
  ),
  row(
    'LimitNeedsAddresses',
    'of names, handed on',
    create(ruleOf({ externalServices: ['named'], maxConnections: 5 })),
    {
      denied: /^spec\.maxConnections: external service billing\/named has names/,
    },
  ),
  row(
    'HostNotAllowed',
    'a webhook',
    create(ruleOf({ action: 'accept-decisively', webhook: { url: 'https://evil.example.test/' } })),
    {
      warned: /^spec\.webhook\.url: host evil\.example\.test is not among fetch\.allowedHosts/,
    },
  ),
  row(
    '-',
    'a webhook that may be',
    create(ruleOf({ action: 'accept-decisively', webhook: { url: 'https://hooks.example.test/' } })),
  ),
  row(
    'TooManyWebhooks',
    'the 17th',
    create(ruleOf({ action: 'accept-decisively', webhook: { url: 'https://hooks.example.test/17' } })),
    {
      world: worldOf([
        ...inForce(),
        ...Array.from({ length: 16 }, (_, at) =>
          rule('NamespaceEgressRule', `billing/hook-${at}`, {
            action: 'accept-decisively',
            webhook: { url: `https://hooks.example.test/${at}` },
          }),
        ),
      ]),
      warned: /^spec\.webhook\.url: more than 16 webhook URLs/,
    },
  ),
  row('NoEndpoints', 'a Service without pods', create(appRule({})), {
    warned: /^spec\.service: service payments lists no pod/,
  }),
  row('ForeignEndpoint', 'a Service of others', create(appRule({})), {
    world: worldOf([...inForce(), endpoints(['10.244.1.2', '192.0.2.77'])]),
    warned: /^spec\.service: no pod of the namespace, ignored: 192\.0\.2\.77/,
  }),
  row('NoEndpoints', 'a Service with pods', create(appRule({})), {
    world: worldOf([...inForce(), endpoints(['10.244.1.2'])]),
  }),

  // ExternalServices, whose rules suffer.
  row('-', 'a good service', create(service('billing/new'))),
  row('-', 'names without resolvers', create(service('billing/new', { addresses: ['a.example.test'] })), {
    warned: /^spec\.addresses: has names, and the GatewayPool has no dns\.resolvers/,
  }),
  row('-', 'names with resolvers', create(service('billing/new', { addresses: ['a.example.test'] })), {
    world: worldOf(
      inForce().map((one) =>
        one.metadata.name === 'main' ? gatewayPool('main', { dns: { resolvers: ['198.51.100.53'] } }) : one,
      ),
    ),
  }),
  row(
    '-',
    'lists that nobody reads',
    create(service('billing/new', { addressesFrom: [{ file: 'a.txt' }, listAt('lists')] })),
    {
      warned:
        /^spec\.addressesFrom\[0\]\.file: only.*\nspec\.addressesFrom\[1\]\.url: host lists\.example\.test is not among/,
    },
  ),
  row('-', 'a list that may be fetched', create(service('billing/new', { addressesFrom: [listAt('hooks')] }))),
  row(
    'RedirectNeedsAddresses',
    'a name for a redirect',
    update(service('billing/web', { addresses: ['a.example.test'] }), service('billing/web')),
    {
      warned: /\nthen NamespaceEgressRule\/billing\/sent: redirect: external service billing\/web has names/,
    },
  ),
  row(
    'DestinationNeedsAddresses',
    'a name for destinations',
    update(service('security/list', { addresses: ['a.example.test'] }), service('security/list')),
    {
      world: worldOf([
        ...inForce(),
        egressIP('far', { addresses: ['203.0.113.107'], destinations: ['security/list'] }),
      ]),
      warned: /\nthen EgressIP\/far: destinations: external service security\/list has names/,
    },
  ),
];

/** 78,000 prefixes in 2600 texts. */
function largeList(): string[] {
  return Array.from({ length: 2600 }, (_, at) => `${20 + (at >> 8)}.${at & 255}`).map(
    (net) => `${net}.0.1-${net}.255.254`,
  );
}

function endpoints(addresses: string[]): Json {
  const { spec, ...rest } = manifest(
    'EndpointSlice',
    'billing/payments-1',
    {},
    { labels: { 'kubernetes.io/service-name': 'payments' } },
  );
  return { ...rest, apiVersion: 'discovery.k8s.io/v1', addressType: 'IPv4', endpoints: [{ addresses }] };
}

for (const { reason, what, request, denied, warned, world: own } of rows) {
  const { kind } = (request.object ?? request.oldObject) as { kind: string };
  t.test(`${kind} ${request.operation}, ${reason}: ${what}`, async (t) => {
    const before = JSON.stringify(request);
    const verdict = review(request, own ?? world);
    t.equal(verdict.allowed, denied === undefined, verdict.status?.message ?? 'allowed');
    if (denied !== undefined) t.match(verdict.status, { code: 422, reason: 'Invalid', message: denied });
    else if (warned === undefined) t.same(verdict.warnings, []);
    else t.match(verdict.warnings.join('\n'), warned);
    t.equal(JSON.stringify(request), before, 'the request is as it was');
  });
}

t.test('every reason of the planner that there is a hint for has a row', async (t) => {
  const shown = new Set(rows.filter(({ denied, warned }) => denied ?? warned).map(({ reason }) => reason));
  // A GatewayPool of which parseObject refuses these before.
  const before = ['NextHopCount', 'BadNextHop'];
  t.same(
    Object.keys(hints).filter((reason) => !shown.has(reason)),
    before,
  );
  const known = sluiceKinds.flatMap((info) => immutableFields(info).map((field) => `${info.kind} ${field}`));
  t.same(known, ['EgressIPPool gatewayPool', 'EgressIP pool']);
});

t.test('what is never looked at', async (t) => {
  const bad = egressIP('billing', { addresses: ['192.0.2.1'], colour: 'red' });
  const meta = (object: Json, more: Json) => ({ ...object, metadata: { ...(object.metadata as Json), ...more } });
  const deleted = { deletionTimestamp: '2026-11-27T12:00:00Z', finalizers: ['x'] };
  const cases: [what: string, request: AdmissionRequest][] = [
    ['labels of a bad object', { operation: 'UPDATE', object: meta(bad, { labels: { a: 'b' } }), oldObject: bad }],
    ['finalizers', { operation: 'UPDATE', object: meta(bad, { finalizers: ['a/b'] }), oldObject: bad }],
    ['its status', { operation: 'UPDATE', object: { ...bad, status: { addresses: ['x'] } }, oldObject: bad }],
    [
      'its fields in another order',
      {
        operation: 'UPDATE',
        object: { ...bad, spec: Object.fromEntries(Object.entries(bad.spec as Json).reverse()) },
        oldObject: bad,
      },
    ],
    ['the status subresource', { operation: 'UPDATE', subResource: 'status', object: bad, oldObject: billing() }],
    [
      'an object that is being deleted',
      { operation: 'UPDATE', object: meta(bad, deleted), oldObject: meta(billing(), deleted) },
    ],
    ['deleting it once more', { operation: 'DELETE', oldObject: meta(billing(), deleted) }],
    ['CONNECT', { operation: 'CONNECT', object: bad }],
    ['other kinds', { operation: 'CREATE', object: { apiVersion: 'v1', kind: 'Pod', metadata: {} } }],
    ['deleting other kinds', { operation: 'DELETE', oldObject: { apiVersion: 'v1', kind: 'Pod', metadata: {} } }],
    ['deleting rules', remove(rule('NamespaceEgressRule', 'billing/veto', { action: 'drop' }))],
  ];
  for (const [what, request] of cases) t.same(review(request, world), { allowed: true, warnings: [] }, what);
  // Each would be refused else; and it is the object that is stored which says that it is being deleted.
  t.notOk(review({ operation: 'UPDATE', object: meta(bad, deleted), oldObject: billing() }, world).allowed);
  t.notOk(review({ operation: 'CREATE', object: meta(bad, deleted) }, world).allowed);
  t.notOk(review(update(bad, billing()), world).allowed);
});

t.test('an object without date or name is the youngest', async (t) => {
  const { metadata, ...rest } = egressIP('x', { addresses: ['203.0.113.101'] });
  const verdict = review({ operation: 'CREATE', object: { ...rest, metadata: { generateName: 'x-' } } }, world);
  t.match(verdict.status?.message, /^spec\.addresses: 203\.0\.113\.101 belongs to EgressIP billing/);
});

t.test('the API server is ahead of what was observed', async (t) => {
  const now = billing({ addresses: ['203.0.113.106'] });
  t.match(
    review(update(billing({ addresses: ['203.0.113.106', '203.0.113.97'] }), now), world).status?.message,
    /113\.97/,
  );
  const gone = { ...world, objects: changed(world.objects, world.snapshot.get('EgressIP/billing'), undefined) };
  t.equal(review(update(billing({ priority: 5 }), billing()), gone).allowed, true);
  t.equal(review(create(billing({ priority: 5 })), world).allowed, true, 'made anew before the deletion was seen');
});

t.test('deleting what workloads leave through', async (t) => {
  const confirmed = (object: ReturnType<typeof billing>, value = object.metadata.name) => ({
    ...object,
    metadata: { ...object.metadata, annotations: { [ANNOTATION_CONFIRM_DELETION]: value } },
  });
  const drawn = egressIP('reviews', { addresses: undefined, count: 1, namespaces: ['reviews'] });
  const denials: [object: ReturnType<typeof billing>, says: RegExp][] = [
    [
      billing(),
      /^EgressIP\/billing: 2 workloads leave through it.*kubectl annotate --overwrite egressip billing sluice\.dev\/confirm-deletion=billing$/,
    ],
    [drawn, /^EgressIP\/reviews: 1 workload leaves through it/],
    [publicPool(), /^EgressIPPool\/public: 3 workloads leave/],
    [gatewayPool('main'), /^GatewayPool\/main: 3 workloads leave/],
    [confirmed(billing(), 'reviews'), /\(the annotation says "reviews"\)/],
    [{ ...billing(), spec: { unreadable: true } }, /2 workloads/],
  ];
  for (const [object, says] of denials) {
    const { allowed, status } = review(remove(object), world);
    t.equal(allowed, false, String(says));
    t.match(status, { code: 403, reason: 'Forbidden', message: says });
  }
  const taken: [object: ReturnType<typeof billing>, warnings: RegExp | null][] = [
    [confirmed(billing()), null],
    [confirmed(gatewayPool('main')), /then EgressIPPool\/public: GatewayPool main does not exist/],
    [confirmed(publicPool()), /then EgressIP\/billing: EgressIPPool public does not exist/],
    [egressIP('idle', { addresses: ['203.0.113.110'] }), null],
    [drawPool('second', { ranges: ['192.0.2.128/28'] }), null],
    [otherPool(), null],
    [egressIP('never-seen'), null],
  ];
  for (const [object, warnings] of taken) {
    const verdict = review(remove(object), world);
    t.equal(verdict.allowed, true, verdict.status?.message ?? object.metadata.name);
    if (warnings === null) t.same(verdict.warnings, []);
    else t.match(verdict.warnings.join('\n'), warnings);
  }
  // Spread over and by destination they leave through it as well.
  for (const spec of [{ spread: 'Connection' }, { destinations: ['198.51.100.0/24'] }]) {
    const object = billing(spec);
    const other = worldOf(
      inForce().map((one) => (one.metadata.name === 'billing' && one.kind === 'EgressIP' ? object : one)),
    );
    t.match(review(remove(object), other).status?.message, /2 workloads leave/, JSON.stringify(spec));
  }
});

t.test('ExternalServices that vetoes name', async (t) => {
  const held = (objects = world.objects) => [...finalizersOf(objects)].sort();
  const ours = [FINALIZER_FORBIDDING_RULE];
  t.same(held(), [
    ['ExternalService/billing/web', ours],
    ['ExternalService/security/list', ours],
  ]);
  const { warnings } = review(remove(service('billing/web')), world);
  t.same(warnings, [
    'it stays until no drop or reject rule names it: NamespaceEgressRule/billing/veto',
    'named by NamespaceEgressRule/billing/sent',
  ]);
  t.same(review(remove(service('reviews/own')), world), { allowed: true, warnings: [] });

  const withRule = (object: Json) => held(changed(world.objects, undefined, parsed(object)));
  const only = (list: [string, readonly string[]][]) =>
    list.map(([key]) => key).filter((key) => !/web$|security\/list$/.test(key));
  const cases: [what: string, object: Json, more: string[]][] = [
    ['an accept', clusterRule({}), []],
    ['a drop in audit', clusterRule({ action: 'drop', mode: 'Audit' }), ['ExternalService/sluice-system/partner']],
    ['a reject', clusterRule({ action: 'reject' }), ['ExternalService/sluice-system/partner']],
    ['all', clusterRule({ action: 'drop', externalServices: ['*'] }), []],
    ['what does not lend', clusterRule({ action: 'drop', externalServices: ['reviews/own'] }), []],
    ['what does not exist', ruleOf({ action: 'drop', externalServices: ['later'] }), []],
    ['a service rule', appRule({ action: 'drop', externalServices: ['named'] }), ['ExternalService/billing/named']],
    [
      'of its own namespace only',
      rule('NamespaceEgressRule', 'reviews/x', { action: 'drop', externalServices: ['web'] }),
      [],
    ],
  ];
  for (const [what, object, more] of cases) t.same(only(withRule(object)), more, what);

  const lists: [now: string[], wanted: string[], deleting: boolean, becomes: string[] | undefined][] = [
    [[], [], false, undefined],
    [[], ours, false, ours],
    [ours, ours, false, undefined],
    [['a/b'], ours, false, ['a/b', ...ours]],
    [['a/b', ...ours, 'c/d'], [], false, ['a/b', 'c/d']],
    [['a/b', ...ours], [], true, ['a/b']],
    [['a/b'], ours, true, undefined],
    [ours, ours, true, undefined],
  ];
  for (const [now, wanted, deleting, becomes] of lists)
    t.same(withFinalizers(now, wanted, deleting), becomes, `${now} → ${wanted}`);
});

t.test('hostile requests', async (t) => {
  const request = {
    uid: 'u',
    kind: { group: 'sluice.dev', version: 'v1alpha1', kind: 'EgressIP' },
    operation: 'CREATE',
    object: {},
  };
  const body = (more: Json, envelope: Json = {}) =>
    JSON.stringify({
      apiVersion: 'admission.k8s.io/v1',
      kind: 'AdmissionReview',
      request: { ...request, ...more },
      ...envelope,
    });
  t.match(readReview(body({})), { ok: true, value: { uid: 'u', kind: 'EgressIP', operation: 'CREATE' } });
  const bad: [text: string, error: RegExp][] = [
    ['', /no JSON/],
    ['{', /no JSON/],
    ['null', /expected an AdmissionReview/],
    ['[]', /expected an AdmissionReview/],
    [`${'['.repeat(100_000)}${']'.repeat(100_000)}`, /no JSON|expected an AdmissionReview/],
    [body({}, { apiVersion: 'admission.k8s.io/v1beta1' }), /admission\.k8s\.io\/v1$/],
    [body({}, { kind: 'TokenReview' }), /expected an AdmissionReview/],
    [body({}, { request: null }), /^request: /],
    [body({ uid: 7 }), /^request\.uid/],
    [body({ uid: '' }), /^request\.uid/],
    [body({ uid: 'u'.repeat(129) }), /^request\.uid/],
    [body({ kind: 'EgressIP' }), /^request\.kind\.kind/],
    [body({ operation: 'PATCH' }), /^request\.operation/],
    [body({ operation: 'toString' }), /^request\.operation/],
    [body({ subResource: {} }), /^request\.subResource/],
    [body({ object: null }), /^request\.object/],
    [body({ object: [] }), /^request\.object/],
    [body({ operation: 'UPDATE' }), /^request\.oldObject/],
    [body({ operation: 'DELETE', oldObject: 'x' }), /^request\.oldObject/],
  ];
  for (const [text, error] of bad) {
    const read = readReview(text);
    t.notOk(read.ok, text.slice(0, 200));
    if (!read.ok) t.match(read.error, error);
  }

  const deep = (depth: number) => JSON.parse(`${'{"a":'.repeat(depth)}1${'}'.repeat(depth)}`) as Json;
  const objects: [what: string, object: Json][] = [
    ['nothing', {}],
    ['a kind alone', { kind: 'EgressIP' }],
    ['a kind of Object', { kind: 'constructor' }],
    ['metadata that is none', { ...egressIP('x'), metadata: 'x' }],
    ['a name that is none', { ...egressIP('x'), metadata: { name: { a: 1 } } }],
    [
      '__proto__',
      JSON.parse('{"kind":"EgressIP","__proto__":{"x":1},"metadata":{"name":"__proto__"},"spec":{"__proto__":{}}}'),
    ],
    [
      'annotations that are none',
      { ...billing(), metadata: { name: 'billing', annotations: { [ANNOTATION_CONFIRM_DELETION]: { a: 1 } } } },
    ],
    ['deep', { ...egressIP('x'), spec: deep(9000) }],
    ['long', { ...egressIP('x'), spec: { pool: 'x'.repeat(1_000_000) } }],
    ['wide', { ...egressIP('x'), spec: Object.fromEntries(Array.from({ length: 20_000 }, (_, at) => [`f${at}`, at])) }],
  ];
  for (const [what, object] of objects) {
    for (const operation of ['CREATE', 'UPDATE', 'DELETE'] as const) {
      const verdict = review({ operation, object, oldObject: operation === 'UPDATE' ? billing() : object }, world);
      const answer = answerTo('u', verdict);
      t.ok(answer.length < 16_384, `${what}, ${operation}: ${answer.length} bytes`);
    }
  }
});

t.test('texts as the API server takes them', async (t) => {
  const said = (warnings: string[], message = '') =>
    (
      JSON.parse(
        answerTo('u', {
          allowed: message === '',
          warnings,
          ...(message && { status: { code: 422, reason: 'Invalid', message } }),
        }),
      ) as { response: { uid: string; allowed: boolean; status?: Json; warnings?: string[] } }
    ).response;
  t.same(said([]), { uid: 'u', allowed: true });
  t.same(said(['one\ntwo\u001b[31m']).warnings, ['one two [31m']);
  t.equal(said([], 'x'.repeat(9000)).status?.message, `${'x'.repeat(8189)}...`);
  const long = said(['ü'.repeat(200)]).warnings ?? [];
  t.equal(long[0], `${'ü'.repeat(126)}...`, 'cut at a whole character');
  const many = said(Array.from({ length: 500 }, (_, at) => `warning ${at} ${'x'.repeat(80)}`)).warnings ?? [];
  t.ok(Buffer.byteLength(many.join('')) <= 4096);
  t.equal(many.at(-1), `and ${500 - (many.length - 1)} more`);
  t.match(said(Array.from({ length: 30 }, () => 'x')).warnings?.length, 30);
});

t.test('deploy/webhook.yaml asks for what is answered', async (t) => {
  const root = import.meta.dirname.split(/\/(?:build|dist|test)\//)[0] ?? '';
  const { webhooks } = parse(readFileSync(join(root, 'deploy/webhook.yaml'), 'utf8')) as { webhooks: Json[] };
  const asked = new Map<string, string>();
  for (const one of webhooks) {
    t.match(one, {
      sideEffects: 'None',
      matchPolicy: 'Equivalent',
      namespaceSelector: {},
      admissionReviewVersions: ['v1'],
    });
    t.match(one.clientConfig, { service: { path: ADMISSION_PATH } });
    t.ok((one.timeoutSeconds as number) * 1000 > admissionLimits.requestMs, 'we give up first');
    for (const { operations, resources } of one.rules as { operations: string[]; resources: string[] }[]) {
      for (const resource of resources)
        for (const op of operations) asked.set(`${op} ${resource}`, one.failurePolicy as string);
    }
  }
  const expected = new Map<string, string>();
  for (const { plural, kind } of sluiceKinds) {
    for (const op of ['CREATE', 'UPDATE']) expected.set(`${op} ${plural}`, 'Ignore');
    if (/Pool$|^EgressIP$/.test(kind)) expected.set(`DELETE ${plural}`, 'Fail');
  }
  expected.set('DELETE externalservices', 'Ignore');
  t.same(new Map([...asked].sort()), new Map([...expected].sort()));
});
