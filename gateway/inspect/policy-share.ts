/**
 * The part of a plan that those who read flows need, kept up to date step by step: groups with a rule of which something is
 * open until bytes or names are known (policy/parts.ts), all rules and services of these groups, their workloads. The
 * kernel asks about nobody else's flows, so the policy of all others stays here. A pod that comes or goes costs what its
 * change is long; what concerns the rules of the part has it looked for anew.
 * A workload of whom something was asked until now, and nothing is any more, stays for one step: flows of it are still on
 * their way to a thread, and are looked at again after the step. Pure.
 */
import type { GatewayPlan, GroupEntry, Policy, RuleEntry, ServiceEntry, WorkloadEntry } from '../../api/plan.ts';
import { contexts } from '../../api/plan.ts';
import { changePlan, diffPlan, isEmptyDelta, type PlanDelta, sameJson } from '../../api/plan-delta.ts';
import { openParts } from '../../policy/parts.ts';
import { DEFAULT_ACTION, type Numbers } from '../marks.ts';

export interface ShareChange {
  /** Of Policy's collections. */
  delta: PlanDelta;
  /** Of rules, and of DEFAULT_ACTION, that are new here or others now. */
  numbers: [id: string, number: number][];
  /** Rules that are not here any more. */
  gone: string[];
}

export const isEmptyChange = ({ delta, numbers, gone }: ShareChange): boolean =>
  isEmptyDelta(delta) && numbers.length === 0 && gone.length === 0;

const emptyPolicy = (): Policy => ({ settings: {}, workloads: {}, groups: {}, rules: {}, services: {} });
const own = <T>(collection: Record<string, T>, key: string): T | undefined =>
  Object.hasOwn(collection, key) ? collection[key] : undefined;
const isOpen = (entry: ServiceEntry | undefined): boolean =>
  entry !== undefined && (entry.names !== undefined || entry.checks !== undefined) && openParts(entry).length > 0;
const rulesOf = ({ rules }: GroupEntry): string[] => contexts.flatMap((context) => rules[context]);
const servicesOf = (rule: RuleEntry | undefined): string[] =>
  rule === undefined || rule.services === '*' ? [] : rule.services;

/** What of a plan asks. */
interface Open {
  services: Set<string>;
  rules: Set<string>;
  groups: Set<string>;
}

function openOf({ services, rules, groups }: Policy): Open {
  const open: Open = { services: new Set(), rules: new Set(), groups: new Set() };
  for (const name in services) if (isOpen(services[name])) open.services.add(name);
  if (open.services.size === 0) return open;
  for (const id in rules) if (servicesOf(rules[id]).some((name) => open.services.has(name))) open.rules.add(id);
  if (open.rules.size === 0) return open;
  for (const key in groups) if (asks(groups[key], open)) open.groups.add(key);
  return open;
}

const asks = (group: GroupEntry | undefined, { rules }: Open): boolean =>
  group !== undefined && rules.size > 0 && rulesOf(group).some((id) => rules.has(id));

/** The whole of it. `staying`: workloads that it has whatever their group is. */
export function shareOf(plan: Policy, staying: Iterable<string> = [], open = openOf(plan)): Policy {
  const share = emptyPolicy();
  // A plan is changed in place.
  share.settings = { ...plan.settings };
  const take = (uid: string, workload: WorkloadEntry | undefined): void => {
    if (workload !== undefined) share.workloads[uid] = workload;
  };
  if (open.groups.size > 0) {
    for (const uid in plan.workloads) {
      const workload = plan.workloads[uid];
      if (workload !== undefined && open.groups.has(workload.group)) take(uid, workload);
    }
  }
  for (const uid of staying) take(uid, own(plan.workloads, uid));
  const groups = new Set(open.groups);
  for (const { group } of Object.values(share.workloads)) groups.add(group);
  for (const key of groups) {
    const group = own(plan.groups, key);
    if (group === undefined) continue;
    share.groups[key] = group;
    for (const id of rulesOf(group)) {
      const rule = own(plan.rules, id);
      if (rule === undefined || Object.hasOwn(share.rules, id)) continue;
      share.rules[id] = rule;
      for (const name of servicesOf(rule)) {
        const service = own(plan.services, name);
        if (service !== undefined) share.services[name] = service;
      }
    }
  }
  return share;
}

/** How many of those that are here need a thing. */
class Users extends Map<string, number> {
  count(keys: readonly string[], by: 1 | -1, touched: Set<string>): void {
    for (const key of keys) {
      const users = (this.get(key) ?? 0) + by;
      if (users > 0) this.set(key, users);
      else this.delete(key);
      touched.add(key);
    }
  }
}

export class PolicyShare {
  /** As it is after the last change. */
  readonly policy: Policy = emptyPolicy();
  readonly numbers = new Map<string, number>();
  #open: Open = { services: new Set(), rules: new Set(), groups: new Set() };
  /** Some service has names, be it that no rule speaks of it. */
  #named = new Set<string>();
  /** Workloads here of groups that ask, by group. */
  readonly #members = new Map<string, Set<string>>();
  /** The others here, which go with the next step. */
  #staying = new Set<string>();
  #ruleUsers = new Users();
  #serviceUsers = new Users();
  #undo: ShareChange = { delta: { set: {}, delete: {} }, numbers: [], gone: [] };

  /** Whether the kernel may ask about a flow. */
  get asks(): boolean {
    return this.#open.groups.size > 0;
  }

  /** Whether a name in the plan has addresses to be learned. */
  get named(): boolean {
    return this.#named.size > 0;
  }

  /** Whether something may be asked about what that workload sends. */
  asksOf({ group }: WorkloadEntry): boolean {
    return this.#open.groups.has(group);
  }

  /**
   * `delta`: what leads to the plan from the one that was taken in last; absent: it is found. `changed`: numbers that belong
   * to another rule now, or to one that says something else; absent: any may.
   */
  update(
    plan: Pick<GatewayPlan, keyof Policy>,
    delta: PlanDelta | undefined,
    numbers: Pick<Numbers, 'get' | 'nameOf'>,
    changed?: ReadonlySet<number>,
  ): ShareChange {
    const mine = delta !== undefined && !this.#concerns(plan, delta) ? this.#step(plan, delta) : this.#anew(plan);
    const before = inverse(mine, this.policy);
    changePlan(this.policy, mine);
    const was = new Map(this.numbers);
    const change = { delta: mine, ...this.#renumber(mine, numbers, changed) };
    const [gone, back] = [[] as string[], [] as [string, number][]];
    for (const id of [...change.numbers.map(([told]) => told), ...change.gone]) {
      const number = was.get(id);
      if (number === undefined) gone.push(id);
      else back.push([id, number]);
    }
    this.#undo = { delta: before, numbers: back, gone };
    return change;
  }

  /** Takes the last change back; after it the next is to be found, not to be told as a delta. */
  undo(): ShareChange {
    const change = this.#undo;
    this.#undo = { delta: { set: {}, delete: {} }, numbers: [], gone: [] };
    changePlan(this.policy, change.delta);
    for (const [id, number] of change.numbers) this.numbers.set(id, number);
    for (const id of change.gone) this.numbers.delete(id);
    this.#open = openOf(this.policy);
    this.#members.clear();
    this.#staying = new Set();
    for (const uid in this.policy.workloads) this.#file(uid, this.policy.workloads[uid]);
    return change;
  }

  /** Whether what asks may be another, or a rule that is here, or that speaks of other services. */
  #concerns(plan: Policy, { set, delete: gone }: PlanDelta): boolean {
    const services = [...Object.keys(set.services ?? {}), ...(gone.services ?? [])];
    const reopened = services.filter((name) => {
      const entry = own(plan.services, name);
      if (entry?.names !== undefined) this.#named.add(name);
      else this.#named.delete(name);
      return isOpen(entry) !== this.#open.services.has(name);
    });
    if (reopened.length > 0) return true;
    const rules = [...Object.keys(set.rules ?? {}), ...(gone.rules ?? [])];
    return rules.some((id) => {
      const open = servicesOf(own(plan.rules, id)).some((name) => this.#open.services.has(name));
      return open !== this.#open.rules.has(id) || this.#ruleUsers.has(id);
    });
  }

  #anew(plan: Policy): PlanDelta {
    const was = [...this.#members.values()].flatMap((uids) => [...uids]);
    this.#open = openOf(plan);
    this.#named = new Set(Object.keys(plan.services).filter((name) => plan.services[name]?.names !== undefined));
    const share = shareOf(plan, was, this.#open);
    this.#members.clear();
    this.#staying = new Set();
    for (const uid in share.workloads) this.#file(uid, share.workloads[uid]);
    this.#ruleUsers = new Users();
    this.#serviceUsers = new Users();
    const ignored = new Set<string>();
    for (const group of Object.values(share.groups)) this.#ruleUsers.count(rulesOf(group), 1, ignored);
    for (const id of this.#ruleUsers.keys()) this.#serviceUsers.count(servicesOf(own(share.rules, id)), 1, ignored);
    return diffPlan(this.policy, share);
  }

  /** Rules ask what they asked: workloads and groups come and go, services have other addresses. */
  #step(plan: Policy, delta: PlanDelta): PlanDelta {
    const groups = new Set([...Object.keys(delta.set.groups ?? {}), ...(delta.delete.groups ?? [])]);
    const workloads = new Set([...Object.keys(delta.set.workloads ?? {}), ...(delta.delete.workloads ?? [])]);
    const was = new Set([...workloads].filter((uid) => this.#isMember(uid)));
    for (const uid of this.#staying) workloads.add(uid);
    for (const key of groups) {
      const asked = this.#open.groups.has(key);
      if (asks(own(plan.groups, key), this.#open) === asked) continue;
      if (asked) {
        this.#open.groups.delete(key);
        for (const uid of this.#members.get(key) ?? []) was.add(uid);
      } else {
        this.#open.groups.add(key);
        // Nearly always it is new, and so are its workloads.
        for (const uid in plan.workloads) if (plan.workloads[uid]?.group === key) workloads.add(uid);
      }
    }
    for (const uid of was) workloads.add(uid);
    const mine: PlanDelta = { set: {}, delete: {} };
    if (this.#open.groups.size > 0 || workloads.size > 0) this.#takeWorkloads(plan, workloads, was, groups, mine);
    this.#takeGroups(plan, groups, delta, mine);
    if (!sameJson(this.policy.settings, plan.settings)) put(mine, 'settings', this.policy.settings, plan.settings);
    return mine;
  }

  /** Adds to `groups` those that may be needed now, or no more. */
  #takeWorkloads(plan: Policy, uids: Set<string>, was: Set<string>, groups: Set<string>, mine: PlanDelta): void {
    for (const uid of uids) {
      const before = own(this.policy.workloads, uid);
      const after = own(plan.workloads, uid);
      const here = after !== undefined && (this.asksOf(after) || was.has(uid)) ? after : undefined;
      if (before !== undefined) {
        groups.add(before.group);
        this.#members.get(before.group)?.delete(uid);
        if (this.#members.get(before.group)?.size === 0) this.#members.delete(before.group);
        this.#staying.delete(uid);
      }
      if (here !== undefined) {
        groups.add(here.group);
        this.#file(uid, here);
      }
      putOne(mine, 'workloads', uid, before, here);
    }
  }

  #takeGroups(plan: Policy, keys: Set<string>, delta: PlanDelta, mine: PlanDelta): void {
    const needed = new Set([...this.#staying].map((uid) => own(plan.workloads, uid)?.group));
    const rules = new Set<string>();
    for (const key of keys) {
      const before = own(this.policy.groups, key);
      const after = this.#open.groups.has(key) || needed.has(key) ? own(plan.groups, key) : undefined;
      if (before === after) continue;
      if (after !== undefined) this.#ruleUsers.count(rulesOf(after), 1, rules);
      if (before !== undefined) this.#ruleUsers.count(rulesOf(before), -1, rules);
      putOne(mine, 'groups', key, before, after);
    }
    const services = new Set([...Object.keys(delta.set.services ?? {}), ...(delta.delete.services ?? [])]);
    for (const id of rules) {
      const before = own(this.policy.rules, id);
      const after = this.#ruleUsers.has(id) ? own(plan.rules, id) : undefined;
      if (before === after) continue;
      if (after !== undefined) this.#serviceUsers.count(servicesOf(after), 1, services);
      if (before !== undefined) this.#serviceUsers.count(servicesOf(before), -1, services);
      putOne(mine, 'rules', id, before, after);
    }
    for (const name of services) {
      const after = this.#serviceUsers.has(name) ? own(plan.services, name) : undefined;
      putOne(mine, 'services', name, own(this.policy.services, name), after);
    }
  }

  #isMember(uid: string): boolean {
    const group = own(this.policy.workloads, uid)?.group;
    return group !== undefined && this.#members.get(group)?.has(uid) === true;
  }

  #file(uid: string, workload: WorkloadEntry | undefined): void {
    if (workload === undefined) return;
    if (!this.asksOf(workload)) {
      this.#staying.add(uid);
      return;
    }
    const members = this.#members.get(workload.group) ?? new Set();
    this.#members.set(workload.group, members.add(uid));
  }

  #renumber(
    mine: PlanDelta,
    numbers: Pick<Numbers, 'get' | 'nameOf'>,
    changed: ReadonlySet<number> | undefined,
  ): Omit<ShareChange, 'delta'> {
    const gone = mine.delete.rules ?? [];
    for (const id of gone) this.numbers.delete(id);
    const suspect = new Set([DEFAULT_ACTION, ...Object.keys(mine.set.rules ?? {})]);
    if (changed === undefined) for (const id in this.policy.rules) suspect.add(id);
    for (const number of changed ?? []) {
      const id = numbers.nameOf(number);
      if (id !== undefined && Object.hasOwn(this.policy.rules, id)) suspect.add(id);
    }
    const told: [string, number][] = [];
    for (const id of suspect) {
      const number = numbers.get(id);
      if (number === undefined || this.numbers.get(id) === number) continue;
      this.numbers.set(id, number);
      told.push([id, number]);
    }
    return { numbers: told, gone };
  }
}

/** What leads back to the policy, once the change is made to it. */
function inverse({ set, delete: gone }: PlanDelta, policy: Policy): PlanDelta {
  const back: PlanDelta = { set: {}, delete: {} };
  const keys = (part: string): string[] => [...Object.keys(set[part] ?? {}), ...(gone[part] ?? [])];
  for (const part of Object.keys(policy)) {
    const collection = policy[part as keyof Policy] as Record<string, unknown>;
    for (const key of keys(part)) putOne(back, part, key, set[part]?.[key], own(collection, key));
  }
  return back;
}

function putOne(delta: PlanDelta, part: string, key: string, before: unknown, after: unknown): void {
  if (before === after) return;
  if (after !== undefined) {
    delta.set[part] ??= {};
    delta.set[part][key] = after;
  } else {
    delta.delete[part] ??= [];
    delta.delete[part].push(key);
  }
}

function put(delta: PlanDelta, part: string, before: object, after: object): void {
  for (const [key, value] of Object.entries(after)) putOne(delta, part, key, (before as never)[key], value);
  for (const key of Object.keys(before))
    if (!(key in after)) putOne(delta, part, key, (before as never)[key], undefined);
}
