/**
 * What the planner would say of an object, asked before it is there: of the object itself, and of others because of it.
 * What is refused is what the planner does not carry out, and what takes from another object; a warning is what another
 * object, or time, may put right, since manifests are applied in no order. Pure.
 */
import type { AnyObject, EgressIP, EgressRule, ExternalService } from '../../api/kinds.ts';
import { objectKey } from '../../api/kinds.ts';
import { formatAuthority, parseListUrl } from '../../api/list-url.ts';
import { CONTROLLER_NAMESPACE } from '../../api/names.ts';
import { type AdmittedRules, admit } from '../../policy/admit.ts';
import { endpointsOf } from '../../policy/endpoints.ts';
import { type KnownLists, namesOf } from '../../policy/external-service.ts';
import { qualifiedName } from '../../policy/order.ts';
import { namedService } from '../../policy/reference.ts';
import { allowedHosts } from '../observe/fetch-policy.ts';
import { drawRefusal, mayDraw } from '../plan/assign.ts';
import { clusterCatalog } from '../plan/cluster-rules.ts';
import type { Condition } from '../plan/condition.ts';
import { RedirectBans } from '../plan/forbidden.ts';
import { type Layout, LayoutPlanner } from '../plan/layout.ts';
import type { PlannerMemory } from '../plan/memory.ts';
import { knowsNames, nameProblem } from '../plan/name-status.ts';
import type { Objects } from '../plan/objects.ts';
import { isPerOwner } from '../plan/owners.ts';
import { noPeers } from '../plan/peers.ts';
import { webhooksOf } from '../plan/webhooks.ts';

/** What the planner knows beside the objects. */
export interface Surroundings {
  memory: PlannerMemory;
  lists: KnownLists;
  /** Milliseconds since the epoch. */
  now: number;
}

export interface Problem {
  denied: boolean;
  /** The reason of the condition that the planner would set. */
  reason: string;
  /** Where, what, and what to do. */
  text: string;
}

/** Not accepted by the planner for now: another object or time puts it right. */
const cured = new Set(['NoSuchPool', 'ListNotRead', 'ExternalServiceNotFound']);
/** What the planner calls a conflict and lives with, and no one can have meant. */
const clashes = new Set(['AddressTaken', 'GatewayTaken', 'InsideAddressTaken', 'RangeTaken', 'TunnelPort']);
/** Taken from an object that has it by one that says so later, or made unusable. */
const takings = new Set(['AddressTaken', 'AddressReserved', 'GatewayTaken', 'InsideAddressTaken', 'RangeTaken']);

/** Before the planner's message, unless that begins with it: which field; after it: what to do. */
export const hints: Readonly<Record<string, readonly [where: string, todo: string]>> = {
  AddressTaken: ['spec.addresses: ', 'name another address, or take it out of that EgressIP first'],
  AddressReserved: ['spec.addresses: ', 'name another address'],
  OutOfPool: ['spec.addresses: ', 'name an address of the pool, or add it to the ranges of the pool'],
  NamespaceNotAllowed: ['', 'take it out, or have its labels match the namespaceSelector of the pool'],
  PoolExhausted: ['spec.count: ', 'it is given one when one is free'],
  AddressesExhausted: ['', 'they are given one when one is free: list more addresses, or raise the count'],
  NamespaceTaken: ['', ''],
  DestinationTaken: ['spec.destinations: ', ''],
  InsideAddressTaken: ['', 'choose an address on the inside that no other has'],
  GatewayTaken: ['spec.gateways: ', 'take it out of that GatewayPool first'],
  VirtualRouterTaken: ['', 'if they are on one link choose another baseId: else neither would have the shard'],
  TunnelPort: ['spec.steering.port: ', 'a node has one tunnel device: say the same port'],
  NextHopCount: ['', 'correct the ranges'],
  BadNextHop: ['', 'correct the range'],
  TooManyShards: ['spec.nextHops: ', 'name fewer'],
  RangeTaken: ['spec.ranges: ', 'take it out, or add it to spec.exclude of one of them'],
  NoSuchPool: ['', 'it is not in use until there is one'],
  ExternalServiceNotFound: ['spec.externalServices: ', 'apply the ExternalService first'],
  UntrustedNamespace: ['', 'label the namespace, or copy the ExternalService to a trusted one'],
  ListNotRead: ['spec.externalServices: ', 'it is in force once the list is read'],
  RedirectForbidden: ['', 'redirect to another address'],
  RedirectNeedsAddresses: ['', ''],
  LimitNeedsAddresses: ['', ''],
  DestinationNeedsAddresses: ['', ''],
  TooManyDestinations: ['', 'name fewer, or larger prefixes'],
  HostNotAllowed: ['spec.webhook.url: ', 'no event is posted until it is'],
  TooManyWebhooks: ['spec.webhook.url: ', 'no event of this rule is posted'],
  NoEndpoints: ['spec.service: ', ''],
  ForeignEndpoint: ['spec.service: ', ''],
};

/** Fields with which messages of the planner begin. */
const fields =
  /^(externalServices|vrrp\.baseId|destinations|redirect|nextHops|gateways|addresses|bandwidth|maxConnections|connectionsPerSecond)\b/;

function textOf({ type, status, reason, message }: Condition): string {
  const [where, todo] = hints[reason] ?? ['', ''];
  const pool = message.startsWith('GatewayPool') ? 'spec.gatewayPool: ' : 'spec.pool: ';
  const place = fields.test(message) ? 'spec.' : reason === 'NoSuchPool' ? pool : where;
  // To what is in use there is nothing to do.
  return `${place}${message}${todo === '' || (type === 'Accepted' && status === 'True') ? '' : `; ${todo}`}`;
}

/** Whether the planner does without the object, or another must give way. */
const isDenied = ({ type, status, reason }: Pick<Condition, 'type' | 'status' | 'reason'>): boolean =>
  type === 'Accepted' ? status === 'False' && !cured.has(reason) : type === 'Conflicted' && clashes.has(reason);

const plain = (reason: string, text: string): Problem => ({ denied: false, reason, text });

/** All that is said of `object`, which is one of `objects`. */
export function problemsOf(object: AnyObject, objects: Objects, around: Surroundings): Problem[] {
  switch (object.kind) {
    case 'GatewayPool':
    case 'EgressIPPool':
      return layoutOf(objects, around).own(object);
    case 'EgressIP':
      return [...drawProblems(object, objects), ...layoutOf(objects, around).own(object)];
    case 'ClusterEgressRule':
    case 'NamespaceEgressRule':
    case 'ServiceEgressRule':
      return ruleProblems(object, objects, around);
    case 'ExternalService':
      return serviceProblems(object, objects, around);
  }
  return [];
}

/** What else the planner says of others, `after` being the objects with a change that `before` are without. */
export function effectsOn(
  object: AnyObject,
  before: Objects,
  after: Objects,
  around: Surroundings,
): { key: string; problem: Problem }[] {
  const key = objectKey(object);
  if (object.kind === 'ExternalService') {
    const [was, is] = [before, after].map((objects) => namingConditions(object, objects, around));
    return added(was ?? new Map(), is ?? new Map());
  }
  if (object.kind !== 'GatewayPool' && object.kind !== 'EgressIPPool' && object.kind !== 'EgressIP') return [];
  const [was, is] = [layoutOf(before, around), layoutOf(after, around)];
  return [...added(was.others(key), is.others(key)), ...lost(key, is.layout, after, around)];
}

/** Addresses that others drew, of which the planner would say nothing: it draws them another. */
function lost(but: string, { addresses }: Layout, after: Objects, { memory }: Surroundings) {
  const drawing = new Set(
    after.EgressIP.flatMap(({ metadata, spec }) => (spec.count === undefined ? [] : [metadata.name])),
  );
  const { allocations } = addresses.allocation;
  // Of one that gives each its own, what nobody has is no loss.
  const giving = new Set(after.EgressIP.flatMap((one) => (isPerOwner(one) ? [one.metadata.name] : [])));
  const isIdle = (address: string, egressIP: string): boolean => {
    const owner = memory.owners[address];
    return giving.has(egressIP) && (owner?.egressIP !== egressIP || owner.goneAt !== undefined);
  };
  return Object.entries(memory.allocations).flatMap(([address, { owner, releasedAt }]) => {
    const key = `EgressIP/${owner}`;
    if (releasedAt !== undefined || key === but || !drawing.has(owner) || isIdle(address, owner)) return [];
    const now = allocations[address];
    if (now?.owner === owner && now.releasedAt === undefined) return [];
    // Where its pool is gone, or it wants fewer, nobody took it.
    const by = now?.owner === owner || now === undefined ? 'a next hop or a gateway' : `EgressIP ${now.owner}`;
    const still = after.EgressIPPool.some(({ metadata }) => metadata.name === memory.allocations[address]?.pool);
    const text = `${address} would be ${by}'s`;
    return still ? [{ key, problem: { denied: true, reason: 'AddressTaken', text } }] : [];
  });
}

function added(
  was: ReadonlyMap<string, readonly Condition[]>,
  is: ReadonlyMap<string, readonly Condition[]>,
): { key: string; problem: Problem }[] {
  return [...is].flatMap(([key, list]) =>
    list.flatMap((condition) => {
      const { reason, message } = condition;
      if (was.get(key)?.some((one) => one.reason === reason && one.message === message)) return [];
      return [{ key, problem: { denied: takings.has(reason), reason, text: message } }];
    }),
  );
}

interface KnownLayout {
  layout: Layout;
  own(object: AnyObject): Problem[];
  /** By key; of all but this one. */
  others(key: string): Map<string, readonly Condition[]>;
}

/** Lists of objects are values, and most requests come while nothing changes; what they share is found once. */
const planner = new LayoutPlanner();
const layouts = new WeakMap<Objects, { memory: PlannerMemory; lists: KnownLists; known: KnownLayout }>();

function layoutOf(objects: Objects, { memory, lists, now }: Surroundings): KnownLayout {
  const last = layouts.get(objects);
  if (last !== undefined && last.memory === memory && last.lists === lists) return last.known;
  const layout = planner.look(objects, memory, noPeers(), now, lists);
  const all = (key: string): Condition[] => layout.findings.flatMap((findings) => findings.all(key));
  const known: KnownLayout = {
    layout,
    own: (object) =>
      all(objectKey(object)).flatMap((condition): Problem[] => {
        const { reason } = condition;
        // Of those that it lists, drawProblems says more.
        if (reason === 'NamespaceNotAllowed' && object.kind === 'EgressIP' && object.spec.namespaces) return [];
        return [{ denied: isDenied(condition), reason, text: textOf(condition) }];
      }),
    others: (but) =>
      new Map(
        [...objects.GatewayPool, ...objects.EgressIPPool, ...objects.EgressIP].flatMap((object) => {
          const key = objectKey(object);
          const found = key === but ? [] : all(key);
          return found.length === 0 ? [] : [[key, found] as const];
        }),
      ),
  };
  layouts.set(objects, { memory, lists, known });
  return known;
}

/** Of namespaces that an EgressIP lists, carried by a pool or not yet. */
function drawProblems({ spec }: EgressIP, { EgressIPPool, namespaces }: Objects): Problem[] {
  const pool = EgressIPPool.find(({ metadata }) => metadata.name === spec.pool);
  return (spec.namespaces ?? []).flatMap((name, at): Problem[] => {
    const namespace = namespaces.get(name)?.namespace;
    const where = `spec.namespaces[${at}]: `;
    if (namespace === undefined) return [plain('NoSuchNamespace', `${where}there is no namespace ${name} yet`)];
    if (pool === undefined || mayDraw(pool, namespace)) return [];
    const reason = 'NamespaceNotAllowed';
    const message = drawRefusal(spec.pool, name);
    return [
      { denied: true, reason, text: `${where}${textOf({ type: 'Programmed', status: 'False', reason, message })}` },
    ];
  });
}

const contexts = {
  ClusterEgressRule: 'cluster',
  NamespaceEgressRule: 'namespace',
  ServiceEgressRule: 'service',
} as const;

/** As the planner admits it among all. */
function admitted(rule: EgressRule, objects: Objects, around: Surroundings): AdmittedRules {
  const { memory, lists, now } = around;
  const place = objects.namespaces.get(rule.metadata.namespace ?? '');
  const known = { lastServices: memory.lastServices, lists };
  return admit({
    context: contexts[rule.kind],
    rules: [rule],
    catalog: clusterCatalog(objects.namespaces, known),
    endpoints:
      rule.kind === 'ServiceEgressRule' && place !== undefined
        ? endpointsOf(place.pods, place.endpointSlices)
        : new Map(),
    // To look through all addresses takes a while, and few rules have a redirect.
    forbids:
      rule.spec.redirect === undefined
        ? undefined
        : new RedirectBans().look(objects, layoutOf(objects, around).layout.addresses.pools),
    now,
  });
}

function ruleProblems(rule: EgressRule, objects: Objects, around: Surroundings): Problem[] {
  const [condition] = admitted(rule, objects, around).conditions;
  const about: Condition[] = condition === undefined || quiet.has(condition.reason) ? [] : [condition];
  const webhook = rule.spec.webhook && webhooksOf(objects).refused.get(objectKey(rule));
  return [...about, ...(webhook === undefined ? [] : [webhook])].map((one) => ({
    denied: isDenied(one),
    reason: one.reason,
    text: textOf(one),
  }));
}

/** As its owner wants it. */
const quiet = new Set(['Accepted', 'OutOfSchedule']);

/** What keeps its lists from being read, and its names from having addresses. */
function serviceProblems(service: ExternalService, objects: Objects, around: Surroundings): Problem[] {
  const problems: Problem[] = [];
  for (const [at, { url, file }] of (service.spec.addressesFrom ?? []).entries()) {
    const where = `spec.addressesFrom[${at}]`;
    const text = `${where}.file: only a controller with the directory source reads files; use configMapRef or url`;
    if (file !== undefined) problems.push(plain('FileNotFound', text));
    const read = url === undefined ? undefined : parseListUrl(url);
    if (!read?.ok) continue;
    const { host, port } = read.value;
    if (allowedHosts(objects.GatewayPool).has(`${host} ${port}`)) continue;
    const which = `host ${formatAuthority(host, port)} is not among fetch.allowedHosts of any GatewayPool`;
    problems.push(plain('HostNotAllowed', `${where}.url: ${which}; the list is not fetched until it is`));
  }
  if (namesOf(service).length === 0) return problems;
  const { found, addresses } = layoutOf(objects, around).layout;
  const { namespace = '' } = service.metadata;
  const pool = found.poolOfNamespace.get(namespace)?.name;
  const condition = nameProblem(
    service,
    knowsNames(objects.namespaces.get(namespace)?.namespace, pool, addresses.pools),
  );
  return condition === undefined ? problems : [...problems, plain(condition.reason, textOf(condition))];
}

/** Rules that name an ExternalService. */
export function rulesNaming(service: ExternalService, objects: Objects): EgressRule[] {
  const key = qualifiedName(service.metadata);
  const place = objects.namespaces.get(service.metadata.namespace ?? '');
  const all = [...objects.ClusterEgressRule, ...(place?.namespaceRules ?? []), ...(place?.serviceRules ?? [])];
  return all.filter(({ metadata, spec }) =>
    spec.externalServices.some((name) => namedService(name, metadata.namespace, CONTROLLER_NAMESPACE) === key),
  );
}

/** What is said of those that name an ExternalService, if anything is. */
function namingConditions(service: ExternalService, objects: Objects, around: Surroundings) {
  const found = new Map<string, readonly Condition[]>();
  for (const rule of rulesNaming(service, objects)) {
    const list = admitted(rule, objects, around).conditions.filter(({ reason }) => !quiet.has(reason));
    if (list.length > 0) found.set(objectKey(rule), list);
  }
  const key = qualifiedName(service.metadata);
  if (objects.EgressIP.some(({ spec }) => spec.destinations?.includes(key))) {
    for (const [other, list] of layoutOf(objects, around).others('')) found.set(other, list);
  }
  return found;
}
