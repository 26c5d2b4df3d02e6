/**
 * Policy → nftables. A packet's source has become a mark (its group); one map leads from the mark to the group's chain,
 * which jumps to a chain for each context that has rules for it, in order, and ends with the default action. Groups
 * with the same rules share the chains. So the cost of a flow's first packet depends on the rules that
 * apply to it, not on namespaces or pods.
 * And so does the cost of a change: what came from what is remembered, and only what a rule, a service or a group that
 * changed is part of is compiled again, in place: a rule that is edited changes neither the map nor a workload's element.
 */
import { digest } from '../api/digest.ts';
import { type Context, contexts, type GroupEntry, type RuleEntry, type ServiceEntry } from '../api/plan.ts';
import { sameJson } from '../api/plan-delta.ts';
import { markText } from '../kernel/nft.ts';
import { redirectContexts } from '../policy/redirect.ts';
import type { PolicyView } from './destination-sets.ts';
import { limitElements } from './limits.ts';
import { DEFAULT_ACTION, groupNumbers, ruleNumbers } from './marks.ts';
import { RuleLines, type RuleLinesOptions } from './rule-lines.ts';
import { Scope, type Table } from './table.ts';
import { HITS_SET, HITS_SIZE, hitMarks, refuses } from './verdict.ts';

/** The map of groups' marks to their chains. */
export const GROUPS_SET = 'groups';

/** Keys to set and keys to delete, of one collection of a plan. */
export interface Changes<T> {
  set: [key: string, entry: T][];
  delete: string[];
}

export interface PolicyChanges {
  rules: Changes<RuleEntry>;
  services: Changes<ServiceEntry>;
  groups: Changes<GroupEntry>;
}

export interface PolicyOptions extends RuleLinesOptions {
  table: Table;
  /** Whether this gateway holds `pool/shard`, for its share of limits. */
  isHeld(shard: string): boolean;
}

/** What else than this table depends on the policy. */
export interface PolicyChanged {
  /** Groups for which the policy may say something else. */
  groups: Set<string>;
  /** Groups whose mark is another. */
  marked: Set<string>;
  /** Numbers of rules that came, went, or do something else now. */
  numbers: Set<number>;
}

/** A context's rules, of all groups that have the same there. */
interface RuleList {
  key: string;
  asked: string;
  chain: string;
  context: Context;
  /** Any of its groups: what is compiled is the same for all. */
  group: GroupEntry;
  groups: Set<string>;
  /** All that it is made from. */
  rules: string[];
  scope: Scope;
}

/** Of all groups that have the same lists. */
interface GroupChain {
  name: string;
  groups: Set<string>;
  scope: Scope;
}

/** What is found out while a change is taken in. */
interface Work extends PolicyChanged {
  /** Rules of which something is compiled otherwise. */
  stale: Set<string>;
  /** Groups whose lists must be found anew. */
  regroup: Set<string>;
  lists: Set<RuleList>;
}

export class PolicyCompiler implements PolicyView {
  readonly rules = new Map<string, RuleEntry>();
  readonly services = new Map<string, ServiceEntry>();
  readonly groups = new Map<string, GroupEntry>();
  /** Rule id or DEFAULT_ACTION → number in ct marks and in the marks of logged denials. */
  readonly numbers = ruleNumbers();
  readonly #groupNumbers = groupNumbers();
  readonly #options: PolicyOptions;
  readonly #ruleLines: RuleLines;
  readonly #lists = new Map<string, RuleList>();
  /** Those without a redirect, by asked(): found without a look at each rule of each group. */
  readonly #plainLists = new Map<string, RuleList>();
  readonly #listsOfGroup = new Map<string, RuleList[]>();
  readonly #groupChains = new Map<string, GroupChain>();
  readonly #chainOfGroup = new Map<string, GroupChain>();
  readonly #listsOfRule = new Map<string, Set<RuleList>>();
  readonly #rulesOfService = new Map<string, Set<string>>();
  #counted = 0;

  /** The table has the sets GROUPS_SET, HITS_SET and those of limits. */
  constructor(options: PolicyOptions) {
    this.#options = options;
    this.#ruleLines = new RuleLines(this, options);
    this.#enter(DEFAULT_ACTION, this.numbers.get(DEFAULT_ACTION) ?? 0);
  }

  /** Throws if a group names a rule that is not there: half a policy could permit what the whole one forbids. */
  change({ rules, services, groups }: PolicyChanges): PolicyChanged {
    const work: Work = {
      groups: new Set(),
      marked: new Set(),
      numbers: new Set(),
      stale: new Set(),
      regroup: new Set(),
      lists: new Set(),
    };
    for (const name of services.delete) this.#setService(name, undefined, work);
    for (const [name, entry] of services.set) this.#setService(name, entry, work);
    for (const id of rules.delete) this.#deleteRule(id, work);
    for (const [id, rule] of rules.set) this.#setRule(id, rule, work);
    for (const key of groups.delete) this.#deleteGroup(key, work);
    for (const [key, group] of groups.set) this.#setGroup(key, group, work);
    for (const key of work.regroup) this.#findLists(key, work);
    for (const id of work.stale) addAll(work.lists, this.#listsOfRule.get(id) ?? []);
    for (const list of work.lists) if (list.groups.size > 0) this.#compileList(list);
    return work;
  }

  /** Another set of shards is held now. */
  reshare(): void {
    for (const [id, { limits }] of this.rules) if (limits !== undefined) this.#enter(id, this.numbers.get(id) ?? 0);
  }

  groupMark(group: string): string {
    const number = this.#groupNumbers.get(group);
    if (number === undefined) throw new TypeError(`the plan does not hold group ${group}`);
    return markText(number);
  }

  #setService(name: string, entry: ServiceEntry | undefined, work: Work): void {
    const was = this.services.get(name);
    if (entry === undefined) this.services.delete(name);
    else this.services.set(name, entry);
    if (was !== undefined && entry !== undefined && sameJson(unlimited(was), unlimited(entry))) return;
    for (const id of this.#rulesOfService.get(name) ?? []) this.#otherwise(id, work);
  }

  #deleteRule(id: string, work: Work): void {
    const was = this.rules.get(id);
    const number = this.numbers.get(id);
    if (was === undefined || number === undefined) return;
    this.#otherwise(id, work);
    this.#leave(number, was);
    work.numbers.add(number);
    this.rules.delete(id);
    this.#nameServices(id, was, 'delete');
    this.#moved(this.numbers.delete(id), work);
  }

  #setRule(id: string, rule: RuleEntry, work: Work): void {
    const was = this.rules.get(id);
    if (was !== undefined) {
      this.#leave(this.numbers.get(id) ?? 0, was);
      this.#nameServices(id, was, 'delete');
    }
    this.rules.set(id, rule);
    this.#nameServices(id, rule, 'add');
    this.#moved(this.numbers.add(id), work);
    const number = this.numbers.get(id) ?? 0;
    this.#enter(id, number);
    if (was?.action !== rule.action || refuses(was) !== refuses(rule)) work.numbers.add(number);
    if (was !== undefined && sameJson(unlimited(was), unlimited(rule))) work.stale.add(id);
    else this.#otherwise(id, work);
    // A list with a redirect is made from more.
    if (was !== undefined && (was.redirect === undefined) !== (rule.redirect === undefined)) {
      for (const list of this.#listsOfRule.get(id) ?? []) {
        addAll(work.regroup, list.groups);
        this.#plainLists.delete(list.asked);
      }
    }
  }

  /** The rule means something else from now on. */
  #otherwise(id: string, work: Work): void {
    work.stale.add(id);
    for (const list of this.#listsOfRule.get(id) ?? []) addAll(work.groups, list.groups);
  }

  #nameServices(id: string, { services }: RuleEntry, verb: 'add' | 'delete'): void {
    for (const name of services === '*' ? [] : services) {
      const ids = this.#rulesOfService.get(name) ?? new Set();
      ids[verb](id);
      if (ids.size > 0) this.#rulesOfService.set(name, ids);
      else this.#rulesOfService.delete(name);
    }
  }

  /** The elements that a rule has in sets of marks. */
  #enter(id: string, number: number): void {
    const { table, isHeld } = this.#options;
    const rule = this.rules.get(id);
    const limits = rule?.limits;
    for (const [set, key, value] of limits === undefined ? [] : limitElements(limits, number, isHeld)) {
      table.setElement(set, key, value);
    }
    for (const mark of hitMarks(number, rule)) {
      if (this.#counted >= HITS_SIZE) return;
      if (table.setElement(HITS_SET, markText(mark), '')) this.#counted++;
    }
  }

  #leave(number: number, rule: Pick<Partial<RuleEntry>, 'limits' | 'redirect'>): void {
    const { table, isHeld } = this.#options;
    const { limits } = rule;
    for (const [set, key] of limits === undefined ? [] : limitElements(limits, number, isHeld)) {
      table.deleteElement(set, key);
    }
    for (const mark of hitMarks(number, rule)) if (table.deleteElement(HITS_SET, markText(mark))) this.#counted--;
  }

  #moved(moved: [id: string, before: number][], work: Work): void {
    for (const [id, before] of moved) {
      this.#leave(before, this.rules.get(id) ?? {});
      work.numbers.add(before);
    }
    for (const [id] of moved) {
      const number = this.numbers.get(id) ?? 0;
      this.#enter(id, number);
      work.numbers.add(number);
      work.stale.add(id);
      if (id === DEFAULT_ACTION) addAll(work.regroup, this.groups.keys());
    }
  }

  #deleteGroup(key: string, work: Work): void {
    const number = this.#groupNumbers.get(key);
    if (number === undefined) return;
    work.groups.add(key);
    work.regroup.delete(key);
    this.groups.delete(key);
    this.#takeLists(key, [], work);
    this.#ungroup(number);
    this.#takeChain(key, undefined);
    this.#movedGroups(this.#groupNumbers.delete(key), work);
  }

  #setGroup(key: string, group: GroupEntry, work: Work): void {
    // Of a new group there are no flows.
    if (this.groups.has(key)) work.groups.add(key);
    this.groups.set(key, group);
    this.#movedGroups(this.#groupNumbers.add(key), work);
    work.regroup.add(key);
  }

  #movedGroups(moved: [key: string, before: number][], work: Work): void {
    for (const [, before] of moved) this.#ungroup(before);
    for (const [key] of moved) {
      work.marked.add(key);
      work.regroup.add(key);
    }
  }

  #ungroup(number: number): void {
    this.#options.table.deleteElement(GROUPS_SET, markText(number));
  }

  #findLists(key: string, work: Work): void {
    const group = this.groups.get(key);
    const number = this.#groupNumbers.get(key);
    if (group === undefined || number === undefined) return;
    const lists = contexts.flatMap((context) => this.#listOf(context, group, work) ?? []);
    this.#takeLists(key, lists, work);
    const { table } = this.#options;
    // Groups with the same lists share a chain.
    const content = JSON.stringify([group.audit === true, ...lists.map((list) => list.chain)]);
    const name = `group_${digest(content)}`;
    const chain = this.#groupChains.get(name) ?? { name, groups: new Set(), scope: new Scope(table) };
    const scope = new Scope(table);
    scope.chain(name, { rules: [...lists.map((list) => `jump ${list.chain}`), this.#ruleLines.last(group, scope)] });
    chain.scope.release();
    chain.scope = scope;
    this.#groupChains.set(name, chain);
    table.setElement(GROUPS_SET, markText(number), `goto ${name}`);
    this.#takeChain(key, chain);
  }

  #takeChain(key: string, chain: GroupChain | undefined): void {
    const before = this.#chainOfGroup.get(key);
    if (before === chain) return;
    chain?.groups.add(key);
    if (chain === undefined) this.#chainOfGroup.delete(key);
    else this.#chainOfGroup.set(key, chain);
    before?.groups.delete(key);
    if (before?.groups.size !== 0) return;
    before.scope.release();
    this.#groupChains.delete(before.name);
  }

  #listOf(context: Context, group: GroupEntry, work: Work): RuleList | undefined {
    const ids = group.rules[context];
    if (ids.length === 0) return undefined;
    const asked = askedOf(context, group, ids);
    const plain = this.#plainLists.get(asked);
    if (plain !== undefined) return plain;
    const redirects = ids.some((id) => this.rules.get(id)?.redirect !== undefined);
    const again = redirects ? redirectContexts.map((other) => group.rules[other]) : [];
    const key = digest(JSON.stringify([asked, ...again]));
    let list = this.#lists.get(key);
    if (list === undefined) {
      const chain = `${context}_${key}`;
      const rules = [...new Set([...ids, ...again.flat()])];
      list = { key, asked, chain, context, group, groups: new Set(), rules, scope: new Scope(this.#options.table) };
      this.#lists.set(key, list);
      if (!redirects) this.#plainLists.set(asked, list);
      for (const id of rules) {
        const lists = this.#listsOfRule.get(id) ?? new Set();
        this.#listsOfRule.set(id, lists.add(list));
      }
      work.lists.add(list);
    }
    return list;
  }

  #takeLists(key: string, lists: RuleList[], work: Work): void {
    const before = this.#listsOfGroup.get(key) ?? [];
    for (const list of lists) list.groups.add(key);
    if (lists.length === 0) this.#listsOfGroup.delete(key);
    else this.#listsOfGroup.set(key, lists);
    for (const list of before) {
      if (lists.includes(list)) continue;
      list.groups.delete(key);
      if (list.groups.size > 0) continue;
      work.lists.delete(list);
      this.#lists.delete(list.key);
      if (this.#plainLists.get(list.asked) === list) this.#plainLists.delete(list.asked);
      list.scope.release();
      for (const id of list.rules) {
        const others = this.#listsOfRule.get(id);
        others?.delete(list);
        if (others?.size === 0) this.#listsOfRule.delete(id);
      }
    }
  }

  #compileList(list: RuleList): void {
    const scope = new Scope(this.#options.table);
    const rules = this.#ruleLines.of(list.chain, list.group.rules[list.context], list.group, scope);
    scope.chain(list.chain, { rules });
    // What both want stays as it is.
    list.scope.release();
    list.scope = scope;
  }
}

/** Ids have no space. */
const askedOf = (context: Context, { audit }: GroupEntry, ids: readonly string[]): string =>
  `${context} ${audit === true} ${ids.join(' ')}`;

function addAll<T>(set: Set<T>, items: Iterable<T>): void {
  for (const item of items) set.add(item);
}

/** Limits and logging end no flow. */
const unlimited = (entry: RuleEntry | ServiceEntry): object => ({ ...entry, limits: undefined, logging: undefined });
