/**
 * Single changes to the plan of scale-plan.ts, there and back, each with a probe that sees it: a datagram from a pod of
 * the first namespace that passes, or does not any more. A change makes another plan that shares what stays, as the
 * controller's do.
 */
import type { GatewayPlan, RuleEntry, ServiceEntry } from '../api/plan.ts';
import { SERVER } from './plan.ts';

export interface Probe {
  source: string;
  destination: string;
}

export interface Change {
  name: string;
  /** Of the way back. */
  undo: string;
  /** What the probe sees when the change is in force; the opposite when it is undone. */
  passes: boolean;
  probe: Probe;
  make(plan: GatewayPlan): GatewayPlan;
}

/** What a probe is sent to, at any address: permitted where a rule permits addresses, or TLS. */
export const PROBE_PORT = 443;
/** The first pod of the first namespace, of the application that has more rules. */
export const POD = '10.128.0.2';
/** The first node's last addresses; the generator gives them to nobody. */
const NEW_POD = ['10.128.0.252', 'fd00:244:1::fc'];
/** A rule of the first namespace's application permits it, whatever the port. */
const PERMITTED = '172.16.0.169';
const [MORE, YET_MORE] = ['198.18.0.1', '198.18.0.2'];
/** Destinations that are the server's, beside its own address. */
export const PROBED_NETWORKS = ['172.16.0.0/24', '198.18.0.0/24'];
export const PROBE_SOURCES = [POD, ...NEW_POD];

const withAddress = (plan: GatewayPlan, key: string, address: string): GatewayPlan => {
  const service = plan.services[key] as ServiceEntry;
  const changed = { ...service, addresses: [...service.addresses, `${address}/32`] };
  return { ...plan, services: { ...plan.services, [key]: changed } };
};

const rule = (context: RuleEntry['context'], name: string, action: RuleEntry['action'], key: string): RuleEntry => ({
  context,
  ...(context === 'cluster' ? {} : { namespace: 'team-0' }),
  name,
  action,
  priority: 1000,
  services: [key],
});

/** With one rule more, the first of its context in the groups that `has` picks. */
function withRule(
  plan: GatewayPlan,
  entry: RuleEntry,
  address: string,
  has: (namespace: string) => boolean,
): GatewayPlan {
  const scope = entry.namespace === undefined ? '' : `${entry.namespace}/`;
  const id = `${entry.context}/${scope}${entry.name}`;
  const groups = { ...plan.groups };
  for (const [key, group] of Object.entries(groups)) {
    if (!has(group.namespace)) continue;
    groups[key] = { ...group, rules: { ...group.rules, [entry.context]: [id, ...group.rules[entry.context]] } };
  }
  const service = { addresses: [`${address}/32`], ports: null };
  const services = { ...plan.services, [entry.services[0] ?? '']: service };
  return { ...plan, groups, rules: { ...plan.rules, [id]: entry }, services };
}

function withPod(plan: GatewayPlan): GatewayPlan {
  const like = plan.workloads['uid-0-0'];
  if (like === undefined) throw new TypeError('the plan has no first pod');
  const pod = { ...like, name: 'pod-new', uid: 'uid-new', addresses: NEW_POD };
  return { ...plan, workloads: { ...plan.workloads, [pod.uid]: pod } };
}

const more = rule('namespace', 'more', 'accept-decisively', 'team-0/more');
const closed = rule('cluster', 'closed-more', 'drop', 'sluice-system/closed-more');

export const changes: Change[] = [
  {
    name: 'one pod added',
    undo: 'one pod removed',
    passes: true,
    probe: { source: NEW_POD[0] ?? '', destination: SERVER[4] },
    make: withPod,
  },
  {
    name: "a namespace rule's destinations",
    undo: "a namespace rule's destinations, undone",
    passes: false,
    probe: { source: POD, destination: PERMITTED },
    make: (plan) => withAddress(plan, 'team-0/closed', PERMITTED),
  },
  {
    name: 'a namespace rule added',
    undo: 'a namespace rule removed',
    passes: true,
    probe: { source: POD, destination: MORE ?? '' },
    make: (plan) => withRule(plan, more, MORE ?? '', (namespace) => namespace === 'team-0'),
  },
  {
    name: "a service's address added",
    undo: "a service's address removed",
    passes: true,
    probe: { source: POD, destination: YET_MORE ?? '' },
    make: (plan) => withAddress(plan, 'team-0/app-1', YET_MORE ?? ''),
  },
  {
    name: "a cluster rule's destinations",
    undo: "a cluster rule's destinations, undone",
    passes: false,
    probe: { source: POD, destination: PERMITTED },
    make: (plan) => withAddress(plan, 'sluice-system/closed-1', PERMITTED),
  },
  {
    name: 'a cluster rule added, for all',
    undo: 'a cluster rule removed, for all',
    passes: false,
    probe: { source: POD, destination: PERMITTED },
    make: (plan) => withRule(plan, closed, PERMITTED, () => true),
  },
];
