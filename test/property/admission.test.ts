/**
 * Admission and the planner over random small worlds: what is denied when it is made is what the planner then does not
 * carry out, or what takes from another object; and what the planner does not carry out is denied, but for what another
 * object or time puts right. The planner is asked with all objects, and the reasons are written here a second time.
 */
import fc from 'fast-check';
import t from 'tap';
import { type AnyObject, objectKey } from '../../api/kinds.ts';
import { type AdmissionWorld, review } from '../../controller/admission/review.ts';
import { noPeers } from '../../controller/plan/peers.ts';
import { type PlanResult, plan } from '../../controller/plan/plan.ts';
import {
  create,
  drawPool,
  egressIP,
  gatewayPool,
  inForce,
  type Manifest,
  parsed,
  remove,
  rule,
  service,
  update,
  worldOf,
} from '../unit/admission-world.ts';

t.setTimeout(300_000);

const namespaceNames = ['billing', 'reviews', 'batch', 'guests', 'security', 'soon'] as const;
const base = inForce().filter(({ kind }) => ['Namespace', 'Node', 'Pod'].includes(kind));
const some = <T>(...items: T[]) => fc.constantFrom(...items);

const gatewayPools = fc
  .record({
    name: some('p', 'q', 'r'),
    zone: some({}, { matchLabels: { team: 'pay' } }, { matchLabels: { zone: 'c' } }),
    gateway: fc.integer({ min: 1, max: 3 }),
    hop: fc.integer({ min: 64, max: 67 }),
    hops: some(1, 2, 3),
    port: some(4793, 4793, 4794),
  })
  .map(({ name, zone, gateway, hop, hops, port }) =>
    gatewayPool(name, {
      namespaceSelector: zone,
      gateways: [{ name: `gw-${gateway}`, internalAddress: `10.0.0.${30 + gateway}` }],
      nextHops: { v4: [hops === 1 ? `10.0.0.${hop}` : `10.0.0.${hop}-10.0.0.${hop + hops - 1}`] },
      steering: { port },
    }),
  );
const drawPools = fc
  .record({
    name: some('d', 'e', 'f'),
    gatewayPool: some('p', 'p', 'q', 'none'),
    // 10.0.0.64 to .67 are next hops.
    range: some('203.0.113.0/30', '203.0.113.2-203.0.113.5', '203.0.113.8/30', '10.0.0.64/30'),
    exclude: some([], ['203.0.113.2'], ['203.0.113.2-203.0.113.3']),
    selector: some(
      {},
      { matchLabels: { team: 'pay' } },
      { matchExpressions: [{ key: 'guest', operator: 'DoesNotExist' }] },
    ),
  })
  .map(({ name, gatewayPool, range, exclude, selector }) =>
    drawPool(name, { gatewayPool, ranges: [range], exclude, namespaceSelector: selector }),
  );
const egressIPs = fc
  .record({
    name: some('a', 'b', 'c'),
    pool: some('d', 'd', 'e', 'none'),
    addresses: fc.option(
      fc.subarray(['203.0.113.0', '203.0.113.1', '203.0.113.3', '203.0.113.5', '203.0.113.8', '10.0.0.65'], {
        minLength: 1,
        maxLength: 2,
      }),
    ),
    namespaces: fc.option(fc.subarray([...namespaceNames], { minLength: 1, maxLength: 2 })),
    destinations: some(
      undefined,
      undefined,
      ['198.51.100.0/24'],
      ['security/list'],
      ['billing/web'],
      ['security/named'],
      ['security/none'],
    ),
  })
  .map(({ name, pool, addresses, namespaces, destinations }) =>
    egressIP(name, {
      pool,
      addresses: addresses ?? undefined,
      ...(addresses === null && { count: 2 }),
      namespaces: namespaces ?? undefined,
      ...(namespaces === null && { namespaceSelector: {} }),
      destinations,
    }),
  );
const services = fc
  .record({
    name: some(
      'billing/web',
      'billing/named',
      'security/list',
      'security/named',
      'sluice-system/partner',
      'reviews/own',
    ),
    has: some('addresses', 'names', 'list'),
  })
  .map(({ name, has }) =>
    service(
      name,
      has === 'list'
        ? { addressesFrom: [{ url: 'https://lists.example.test/a' }] }
        : { addresses: [has === 'names' ? 'api.example.test' : '198.51.100.80'] },
    ),
  );
const rules = fc
  .record({
    kind: some('ClusterEgressRule', 'NamespaceEgressRule', 'ServiceEgressRule'),
    name: some('x', 'y'),
    action: some('accept', 'accept-decisively', 'drop', 'reject'),
    names: some(['web'], ['named'], ['list'], ['none'], ['*'], ['web', 'named']),
    lender: some('security/', 'reviews/', 'sluice-system/', ''),
    extra: some('nothing', 'nothing', 'redirect', 'inside', 'maxConnections'),
    audit: fc.boolean(),
  })
  .map(({ kind, name, action, names, lender, extra, audit }) => {
    const permits = action === 'accept-decisively' || (action === 'accept' && kind === 'ServiceEgressRule');
    const passes = permits || action === 'accept';
    return rule(kind, kind === 'ClusterEgressRule' ? name : `billing/${name}`, {
      action,
      externalServices:
        kind === 'ClusterEgressRule' ? names.map((one) => (one === '*' ? one : `${lender}${one}`)) : names,
      ...(audit && { mode: 'Audit' }),
      ...(kind === 'ServiceEgressRule' && { service: 'payments' }),
      ...(permits && extra === 'redirect' && { redirect: { address: '198.51.100.90' } }),
      ...(permits && extra === 'inside' && { redirect: { address: '10.244.1.2' } }),
      ...(passes && extra === 'maxConnections' && { maxConnections: 9 }),
    });
  });
const objects = fc.oneof(gatewayPools, drawPools, egressIPs, services, rules);

const keyOf = (one: Manifest): string => objectKey(one as unknown as AnyObject);
const aged = (one: Manifest, at: number): Manifest => ({
  ...one,
  metadata: {
    ...one.metadata,
    creationTimestamp: new Date(Date.UTC(2026, 0, 1, 0, 0, at)).toISOString().replace('.000Z', 'Z'),
  },
});

/** As after admission: all of it, in random order of age, none of a name twice. */
const worlds = fc.array(objects, { minLength: 3, maxLength: 14 }).map((list) => {
  const unique = [...new Map(list.map((one) => [keyOf(one), one])).values()];
  return unique.map(aged);
});

interface Told {
  reason: string;
  message: string;
}
/** Accepted False, or Conflicted, of an object. */
function refusals({ statuses }: PlanResult, key: string): Told[] {
  return (statuses.get(key)?.conditions ?? []).filter(
    ({ type, status, reason }) =>
      (type === 'Accepted' &&
        status === 'False' &&
        !/^(NoSuchPool|ListNotRead|NotFetched|ExternalServiceNotFound)$/.test(reason)) ||
      (type === 'Conflicted' &&
        /^(AddressTaken|GatewayTaken|InsideAddressTaken|RangeTaken|TunnelPort)$/.test(reason)) ||
      (type === 'Programmed' && reason === 'NamespaceNotAllowed'),
  );
}

/** All that is not as it should be, as text. */
const said = ({ statuses }: PlanResult, key: string): string =>
  (statuses.get(key)?.conditions ?? [])
    .filter(
      ({ type, status, reason }) =>
        (type === 'Accepted' && reason !== 'Accepted') || (type === 'Conflicted' && status === 'True'),
    )
    .map(({ message }) => message)
    .join();

/** With an object instead of what has its name. */
function planned(
  world: AdmissionWorld & { snapshot: Map<string, AnyObject> },
  object: AnyObject | undefined,
): PlanResult {
  const snapshot = new Map(world.snapshot);
  if (object !== undefined) snapshot.set(objectKey(object), object);
  return plan(snapshot, world.memory, noPeers(), world.now, world.lists);
}

/** What others had and have no more, or have by another now. */
function losses(world: AdmissionWorld, before: PlanResult, after: PlanResult, but: string): string[] {
  const found: string[] = [];
  for (const key of before.statuses.keys()) {
    if (key === but || !after.statuses.has(key)) continue;
    const was = new Set(refusals(before, key).map(({ message }) => message));
    // A pool that suffered already had not what it suffers from now, which only shows when the other thing is over.
    if (key.startsWith('GatewayPool/') && was.size > 0) continue;
    for (const { reason, message } of refusals(after, key)) {
      if (
        /^(AddressTaken|AddressReserved|GatewayTaken|InsideAddressTaken|RangeTaken)$/.test(reason) &&
        !was.has(message)
      )
        found.push(`${key} ${reason}`);
    }
  }
  for (const [address, { owner, releasedAt }] of Object.entries(world.memory.allocations)) {
    const is = after.memory.allocations[address];
    if (
      releasedAt === undefined &&
      `EgressIP/${owner}` !== but &&
      (is?.owner !== owner || is.releasedAt !== undefined)
    ) {
      if (before.statuses.get(`EgressIP/${owner}`) !== undefined) found.push(`${owner} loses ${address}`);
    }
  }
  return found;
}

const counts = { denied: 0, allowed: 0, warned: 0, taken: 0, masked: 0 };

t.test('what is denied is what the planner does not carry out, and the other way about', async (t) => {
  fc.assert(
    fc.property(worlds, objects, fc.boolean(), (list, fresh, first) => {
      const present = list.filter((one) => keyOf(one) !== keyOf(fresh));
      const world = worldOf([...base, ...present]);
      const request = create(fresh);
      // As one that is applied in the same second, whose name comes first.
      if (first) Object.assign((request.object as Manifest).metadata, { creationTimestamp: '2025-01-01T00:00:00Z' });
      const verdict = review(request, world);
      const object = parsed(request.object as Manifest);
      const [before, after] = [planned(world, undefined), planned(world, object)];
      const key = objectKey(object);
      const own = refusals(after, key).filter(
        // Of namespaces that it selects, labels may change.
        ({ reason }) =>
          reason !== 'NamespaceNotAllowed' || (fresh.spec as { namespaces?: unknown }).namespaces !== undefined,
      );
      const lost = losses(world, before, after, key);
      counts[verdict.allowed ? (verdict.warnings.length > 0 ? 'warned' : 'allowed') : 'denied']++;
      if (lost.length > 0) counts.taken++;
      const context = JSON.stringify({ verdict, own, lost, fresh });
      if (own.length > 0 || lost.length > 0) return verdict.allowed ? failed(`allowed: ${context}`) : true;
      if (verdict.allowed) return true;
      // A namespace that it lists and no pool carries yet; or status shows another thing first.
      if (/does not let namespace/.test(verdict.status?.message ?? '')) return true;
      counts.masked++;
      // What suffers from one thing already shows no second one.
      const other = [...after.statuses.keys()].some(
        (one) =>
          said(after, one) !== '' && (said(after, one) !== said(before, one) || refusals(before, one).length > 0),
      );
      return other || failed(`denied: ${context}`);
    }),
    { numRuns: 300 },
  );
  const { masked, ...others } = counts;
  for (const [what, count] of Object.entries(others)) t.ok(count > 4, `${what}: ${count}`);
  t.ok(masked < counts.denied / 4, `masked: ${masked}`);
});

t.test('an update of what is as it was is never denied, and nothing but texts comes of a deletion', async () => {
  fc.assert(
    fc.property(worlds, fc.nat(), (list, at) => {
      const world = worldOf([...base, ...list]);
      const object = list[at % list.length] as Manifest;
      const told = review(remove(object), world);
      if (told.allowed === false && !/leaves? through it/.test(told.status?.message ?? ''))
        failed(JSON.stringify(told));
      // Another field of it, which no other object looks at.
      const field =
        { GatewayPool: 'unassigned', EgressIPPool: 'quarantineSeconds', EgressIP: 'priority' }[object.kind] ?? '';
      if (field === '') return true;
      const value = object.kind === 'GatewayPool' ? 'Bypass' : 7;
      const dated = (one: Manifest) => ({ ...one, metadata: { ...object.metadata } });
      const request = update(object, object);
      request.oldObject = dated(object);
      request.object = { ...dated(object), spec: { ...(object.spec as object), [field]: value } };
      const verdict = review(request, world);
      return verdict.allowed || failed(JSON.stringify({ verdict, object }));
    }),
    { numRuns: 100 },
  );
});

function failed(text: string): never {
  throw new Error(text);
}
