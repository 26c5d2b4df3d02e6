/**
 * What the planner keeps between two plans, to save work and so that what did not change is the same object: everything
 * after it (versions, stream, status) then compares by identity. It must see every snapshot in turn, and is thrown
 * away when a run fails, since its parts would be of different moments.
 */
import type { GatewayPlan, NodeEntry, NodePlan, RuleEntry, ServiceEntry } from '../../api/plan.ts';
import type { AdmittedRules } from '../../policy/admit.ts';
import type { Serving } from './assign.ts';
import type { CarriedNamespace } from './carried.ts';
import { ClusterRangesIndex } from './cluster-ranges.ts';
import { ClusterRuleIndex } from './cluster-rules.ts';
import { RedirectBans } from './forbidden.ts';
import { LayoutPlanner } from './layout.ts';
import { ServedIndex } from './loss.ts';
import { Memo, type Part, Union } from './memo.ts';
import type { PlannerMemory } from './memory.ts';
import { ObjectIndex, type Objects } from './objects.ts';
import type { Warning } from './plan.ts';
import { PodIndex } from './pods.ts';
import type { PoolPlan } from './pool-plan.ts';
import type { PlanHistory } from './programmed.ts';
import { NodeIndex, type NodeSurroundings, type Releases } from './release.ts';
import type { Snapshot } from './snapshot.ts';
import type { KnownStatuses } from './status.ts';
import type { PlannedWebhooks } from './webhooks.ts';

/** So that what a gateway has in force need not be compared with all that it should have. */
class History implements PlanHistory {
  #run = 0;
  readonly #made = new WeakMap<GatewayPlan, number>();
  readonly #changed = new Map<string, number>();

  begin(): void {
    this.#run++;
  }

  /** A plan that was made before is as it was. */
  made(plan: GatewayPlan): void {
    if (!this.#made.has(plan)) this.#made.set(plan, this.#run);
  }

  replace(before: CarriedNamespace | undefined, now: CarriedNamespace | undefined): void {
    const name = now?.state.objects.name ?? before?.state.objects.name ?? '';
    if (now === undefined) this.#changed.delete(name);
    else if (
      before?.groups !== now.groups ||
      before.rules !== now.rules ||
      before.services !== now.services ||
      before.binding.own !== now.binding.own
    ) {
      this.#changed.set(name, this.#run);
    }
  }

  madeAt(plan: GatewayPlan): number | undefined {
    return this.#made.get(plan);
  }

  changedAt(namespace: string): number {
    return this.#changed.get(namespace) ?? this.#run;
  }
}

export class PlanParts {
  readonly history = new History();
  readonly warnings = new Memo<Warning[]>();
  readonly clusterRanges = new ClusterRangesIndex();
  readonly layout = new LayoutPlanner();
  readonly servings = new Memo<Map<string, readonly Serving[]>>();
  lastServings: ReadonlyMap<string, readonly Serving[]> = new Map();
  /** As the last run saw them. */
  namespaces: Objects['namespaces'] = new Map();
  /** What the state of every namespace is made of. */
  everywhere: readonly unknown[] = [];
  /** Namespaces whose rules ask of the time, of lists or of addresses. */
  readonly asking = new Set<string>();
  readonly pods = new PodIndex();
  readonly bans = new RedirectBans();
  cluster: AdmittedRules | undefined;
  readonly clusterRules = new ClusterRuleIndex();
  /** Of the cluster, with limits. */
  limited: Part<RuleEntry> = {};
  limitedServices: Part<ServiceEntry> = {};
  readonly carried = new Map<string, CarriedNamespace>();
  readonly poolPlans = new Map<string, PoolPlan>();
  readonly served = new ServedIndex();
  readonly nodeEntries = new Memo<Record<string, NodeEntry>>();
  /** By namespace. */
  readonly releases = new Map<string, { from: readonly unknown[]; releases: Releases }>();
  /** Pods that wait, by namespace. */
  readonly waiting = new Map<string, number>();
  /** As the last run left it. */
  released: PlannerMemory['released'] | undefined;
  shared: PlannerMemory['shared'] | undefined;
  readonly nodes = new NodeIndex();
  /** How many count. */
  readonly podsOfNode = new Map<string, number>();
  readonly nodeSurroundings = new Memo<NodeSurroundings>();
  readonly nodePlans = new Map<string, { from: readonly unknown[]; plan: NodePlan }>();
  readonly vetoes = new Union<ServiceEntry>();
  clusterVetoes: Part<ServiceEntry> | undefined;
  readonly webhooks = new Memo<PlannedWebhooks>();
  readonly statuses: KnownStatuses = { namespaces: new Map() };
}

export class PlanCache {
  readonly #index = new ObjectIndex();
  #parts = new PlanParts();

  /** The objects of a snapshot; what did not change since the last one is the same. */
  look(snapshot: Snapshot): Objects {
    return this.#index.look(snapshot);
  }

  get parts(): PlanParts {
    return this.#parts;
  }

  clear(): void {
    this.#parts = new PlanParts();
  }
}
