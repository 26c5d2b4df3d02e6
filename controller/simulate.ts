/**
 * The difference that a change of manifests makes (design §9, simulate): two runs of the planner compared pod by pod.
 * Pods with the same policy before and the same after are one row. A pod is the same if namespace and name are.
 * Pure. Left out: flows that are open now; nothing here asks a gateway.
 */
import { createHash } from 'node:crypto';
import type { Range } from '../api/address.ts';
import type { Pod } from '../api/kinds.ts';
import { contexts, type Family, families, type GatewayPlan, type WorkloadEntry } from '../api/plan.ts';
import { TooLarge } from '../policy/analysis/cells.ts';
import { type Change, changesOf, type Side } from '../policy/analysis/difference.ts';
import { type Carriage, compileCarriage } from '../policy/carriage.ts';
import type { PlanResult } from './plan/plan.ts';
import { countedPods } from './plan/pods.ts';
import { compareText, ofKind, type Snapshot } from './plan/snapshot.ts';

/** Pods of one namespace, by name. */
export interface PodGroup {
  namespace: string;
  pods: string[];
}
export interface PodChange extends PodGroup, Change {}
/** Absent address: none. */
export interface EgressChange extends PodGroup {
  family: Family;
  before?: string;
  after?: string;
}

export interface Simulation {
  /** Pods that are on both sides. */
  compared: number;
  changes: PodChange[];
  egress: EgressChange[];
  /** `namespace/name`. */
  added: string[];
  removed: string[];
}

export interface SimulatedState {
  snapshot: Snapshot;
  result: PlanResult;
}

/** Cells of destinations over all groups of pods: about half a minute. */
const MAX_CELLS = 3_000_000;

export function simulate(before: SimulatedState, after: SimulatedState, namespace?: string): Simulation {
  const [was, is] = [sidesOf(before, namespace), sidesOf(after, namespace)];
  const groups = new Map<string, PodGroup & { before: Side | undefined; after: Side | undefined }>();
  const egress = new Map<string, EgressChange>();
  const simulation: Simulation = { compared: 0, changes: [], egress: [], added: [], removed: [] };
  simulation.added = [...is.keys()].filter((key) => !was.has(key)).sort(compareText);
  simulation.removed = [...was.keys()].filter((key) => !is.has(key)).sort(compareText);
  for (const [key, { pod, side, content }] of was) {
    const other = is.get(key);
    if (other === undefined) continue;
    simulation.compared++;
    const place = { namespace: pod.metadata.namespace ?? 'default', pods: [pod.metadata.name] };
    const moves = families.map((family) => {
      const pair = [side, other.side].map((one) => one && leavesWith(one, family));
      if (pair[0] === pair[1]) return null;
      gather(egress, [place.namespace, family, ...pair], {
        ...place,
        family,
        ...(pair[0] === undefined ? {} : { before: pair[0] }),
        ...(pair[1] === undefined ? {} : { after: pair[1] }),
      });
      return pair;
    });
    if (content === other.content && moves.every((move) => move === null)) continue;
    const parts = [place.namespace, content, other.content, ...moves];
    gather(groups, parts, { ...place, before: side, after: other.side });
  }
  simulation.egress = [...egress.values()];
  const budget = { cells: MAX_CELLS };
  const changes = new Map<string, PodChange[]>();
  for (const { before: left, after: right, ...place } of groups.values()) {
    try {
      for (const change of changesOf(left, right, budget)) {
        // Groups that differ elsewhere may change alike here.
        const key = JSON.stringify([place.namespace, change.spans, change.said, change.before, change.after]);
        const alike = changes.get(key) ?? [];
        changes.set(key, alike);
        const known = alike.find(({ ranges }) => sameRanges(ranges, change.ranges));
        if (known === undefined) alike.push({ ...change, namespace: place.namespace, pods: [...place.pods] });
        else known.pods.push(...place.pods);
      }
    } catch (error) {
      if (!(error instanceof TooLarge)) throw error;
      throw new TooLarge(
        `too much to compare exactly (namespace ${place.namespace}: ${error.message}); look at one namespace at a time, or split the lists of ports`,
      );
    }
  }
  simulation.changes = [...changes.values()]
    .flat()
    .sort(
      (a, b) =>
        compareText(a.namespace, b.namespace) || rankOf(a) - rankOf(b) || compareText(a.pods[0] ?? '', b.pods[0] ?? ''),
    );
  return simulation;
}

/**
 * What of the outcome changed, the weightiest: a verdict or where the flow goes, the address outside, limits, or only the
 * reason or rule.
 */
export function kindOf({ before, after }: Pick<Change, 'before' | 'after'>): 'verdict' | 'egress' | 'limits' | 'rule' {
  if (before.verdict !== after.verdict || before.wouldHave !== after.wouldHave) return 'verdict';
  if (before.redirect !== after.redirect) return 'verdict';
  if (before.egress !== after.egress) return 'egress';
  return before.limits === after.limits ? 'rule' : 'limits';
}

/** What is permitted no more, or newly, before one refusal that becomes another. */
function rankOf(change: Change): number {
  const kind = kindOf(change);
  if (kind !== 'verdict') return { egress: 2, limits: 3, rule: 4 }[kind];
  return change.before.verdict === 'accept' || change.after.verdict === 'accept' ? 0 : 1;
}

function sameRanges(a: readonly Range[], b: readonly Range[]): boolean {
  return (
    a.length === b.length &&
    a.every(({ family, first, last }, i) => b[i]?.family === family && b[i]?.first === first && b[i]?.last === last)
  );
}

/** Adds the pods of `item` to those of the same key. */
function gather<T extends PodGroup>(groups: Map<string, T>, key: unknown, item: T): void {
  const text = JSON.stringify(key);
  const known = groups.get(text);
  if (known === undefined) groups.set(text, { ...item, pods: [...item.pods] });
  else known.pods.push(...item.pods);
}

/** Where no EgressIP of its destinations says otherwise; absent: with nothing. */
function leavesWith({ carriage, workload }: Side, family: Family): string | undefined {
  const [otherwise] = carriage.egress.choices(workload, family);
  const addresses = new Set((otherwise?.addresses ?? []).map(({ address }) => address));
  return addresses.size === 0 ? undefined : [...addresses].join(' or ');
}

interface PodSide {
  pod: Pod;
  side: Side | undefined;
  /** Equal where nothing but the egress address can differ in what becomes of the pod's flows. */
  content: string;
}

function sidesOf({ snapshot, result }: SimulatedState, namespace: string | undefined): Map<string, PodSide> {
  const workloads = new Map<string, Side>();
  const contents = new Map<string, string>();
  for (const plan of result.pools.values()) {
    const carriage = compileCarriage(plan);
    const contentOf = contentsOf(plan, carriage);
    for (const [uid, workload] of Object.entries(plan.workloads)) {
      workloads.set(uid, { carriage, workload });
      contents.set(uid, contentOf(workload));
    }
  }
  const sides = new Map<string, PodSide>();
  for (const { pod, uid, namespace: home } of countedPods(ofKind(snapshot, 'Pod'), [])) {
    if (namespace !== undefined && home !== namespace) continue;
    const about = { pod, side: workloads.get(uid), content: contents.get(uid) ?? '' };
    sides.set(`${home}/${pod.metadata.name}`, about);
  }
  return sides;
}

/** A short text per content, made once per group. */
function contentsOf(
  plan: GatewayPlan,
  { boundaries, egress, egressLimits }: Carriage,
): (workload: WorkloadEntry) => string {
  const base = JSON.stringify([plan.settings, boundaries]);
  const services = new Map<string, string>();
  const serviceText = (key: string): string => {
    const text = services.get(key) ?? JSON.stringify(plan.services[key]);
    services.set(key, text);
    return text;
  };
  const groups = new Map<string, string>();
  return (workload) => {
    const { group } = workload;
    let text = groups.get(group);
    if (text === undefined) {
      const ids = contexts.flatMap((context) => plan.groups[group]?.rules[context] ?? []);
      const rules = ids.map((id) => {
        const rule = plan.rules[id];
        const named = rule === undefined || rule.services === '*' ? [] : rule.services;
        return [id, rule, named.map(serviceText)];
      });
      text = createHash('sha256')
        .update(JSON.stringify([base, plan.groups[group], rules]))
        .digest('hex');
      groups.set(group, text);
    }
    // Where destinations tell, so do their EgressIPs; else the address is compared by itself.
    const { destinations: table } = workload;
    const names = table === undefined ? [] : (plan.destinations[table]?.egressIPs ?? []);
    const by = names.map((name) => [name, plan.egressIPs[name], workload.elsewhere?.[name]]);
    const ways = families.filter((family) => egress.everything(workload, family).length > 0);
    const limits = families
      .flatMap((family) => egress.choices(workload, family))
      .map((way) => egressLimits(workload, way));
    return [
      text,
      ...familiesOf(workload),
      'leaves',
      ...ways,
      ...limits,
      ...(by.length > 0 ? [JSON.stringify(by)] : []),
    ].join(' ');
  };
}

function familiesOf({ addresses }: WorkloadEntry): Family[] {
  return families.filter((family) => addresses.some((text) => text.includes(':') === (family === 6)));
}
