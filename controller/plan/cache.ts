/**
 * What the planner keeps between two plans, to save work and so that what did not change is the same object: everything
 * after it (versions, stream, status) then compares by identity. It must see every snapshot in turn, and is thrown
 * away when a run fails, since its parts would be of different moments.
 */
import type { NodeEntry, NodePlan, RuleEntry, ServiceEntry } from '../../api/plan.ts';
import type { AdmittedRules } from '../../policy/admit.ts';
import { AddressPlanner } from './addresses.ts';
import type { Assigner, Serving } from './assign.ts';
import type { CarriedNamespace } from './carried.ts';
import { ClusterRuleIndex } from './cluster-rules.ts';
import type { Findings } from './condition.ts';
import { RedirectBans } from './forbidden.ts';
import { ServedIndex } from './loss.ts';
import { Memo, type Part, Union } from './memo.ts';
import type { PlannerMemory } from './memory.ts';
import { ObjectIndex, type Objects } from './objects.ts';
import type { Warning } from './plan.ts';
import { PodIndex } from './pods.ts';
import type { PoolPlan } from './pool-plan.ts';
import type { poolsOf } from './pools.ts';
import { NodeIndex, type NodeSurroundings, type Releases } from './release.ts';
import type { Snapshot } from './snapshot.ts';
import type { NamespaceStatuses } from './status.ts';
import type { PlannedWebhooks } from './webhooks.ts';

export class PlanParts {
  readonly warnings = new Memo<Warning[]>();
  readonly pools = new Memo<ReturnType<typeof poolsOf> & { findings: Findings }>();
  readonly addresses = new AddressPlanner();
  readonly assigner = new Memo<{ assign: Assigner; findings: Findings }>();
  readonly servings = new Memo<Map<string, readonly Serving[]>>();
  readonly pods = new PodIndex();
  readonly bans = new RedirectBans();
  cluster: AdmittedRules | undefined;
  readonly clusterRules = new ClusterRuleIndex();
  /** Of the cluster, with limits. */
  limited: Part<RuleEntry> = {};
  readonly carried = new Map<string, CarriedNamespace>();
  readonly poolPlans = new Map<string, PoolPlan>();
  readonly served = new ServedIndex();
  readonly nodeEntries = new Memo<Record<string, NodeEntry>>();
  /** By namespace. */
  readonly releases = new Map<string, { from: readonly unknown[]; releases: Releases }>();
  /** As the last run left it. */
  released: PlannerMemory['released'] | undefined;
  readonly nodes = new NodeIndex();
  /** How many count. */
  readonly podsOfNode = new Map<string, number>();
  readonly nodeSurroundings = new Memo<NodeSurroundings>();
  readonly nodePlans = new Map<string, { from: readonly unknown[]; plan: NodePlan }>();
  readonly vetoes = new Union<ServiceEntry>();
  clusterVetoes: Part<ServiceEntry> | undefined;
  readonly webhooks = new Memo<PlannedWebhooks>();
  readonly statuses: NamespaceStatuses = new Map();
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
