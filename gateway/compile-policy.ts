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
import { AskLines, askChain } from './ask-lines.ts';
import type { PolicyView } from './destination-sets.ts';
import { DEFAULT_ACTION, groupNumbers, ruleNumbers } from './marks.ts';
import type { PolicyChanges } from './plan-changes.ts';
import { RuleElements, type RuleElementsOptions } from './rule-elements.ts';
import { RuleLines, type RuleLinesOptions } from './rule-lines.ts';
import { Scope } from './table.ts';
import { refuses } from './verdict.ts';

/** The map of groups' marks to their chains. */
export const GROUPS_SET = 'groups';

export interface PolicyOptions extends RuleLinesOptions, RuleElementsOptions {
  /** What is to be read is asked about at its first packet already (ask-lines.ts). */
  strict: boolean;
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
  /** One of its own rules redirects. */
  redirects: boolean;
  /** One of its own rules has something that is open until a flow is read. */
  asks: boolean;
  /** Chains of groups that ask before they decide, and so ask all of their lists; with what that takes. */
  askers: Set<GroupChain>;
  askScope: Scope | undefined;
}

/** Of all groups that have the same lists. */
interface GroupChain {
  name: string;
  /** Any of its groups. */
  group: GroupEntry;
  lists: RuleList[];
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
  chains: Set<GroupChain>;
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
  readonly #askLines: AskLines;
  readonly #elements: RuleElements;
  readonly #lists = new Map<string, RuleList>();
  /** Those without a redirect, by asked(): found without a look at each rule of each group. */
  readonly #plainLists = new Map<string, RuleList>();
  readonly #listsOfGroup = new Map<string, RuleList[]>();
  readonly #groupChains = new Map<string, GroupChain>();
  readonly #chainOfGroup = new Map<string, GroupChain>();
  readonly #listsOfRule = new Map<string, Set<RuleList>>();
  readonly #rulesOfService = new Map<string, Set<string>>();
  #asking = 0;

  /** The table has the sets GROUPS_SET, HITS_SET and those of limits. */
  constructor(options: PolicyOptions) {
    this.#options = options;
    this.#ruleLines = new RuleLines(this, options);
    this.#askLines = new AskLines(this, options);
    this.#elements = new RuleElements(options);
    this.#elements.enter(this.numbers.get(DEFAULT_ACTION) ?? 0, undefined);
  }

  /** Whether flows may be read at all. */
  get asks(): boolean {
    return this.#asking > 0;
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
      chains: new Set(),
    };
    for (const name of services.delete) this.#setService(name, undefined, work);
    for (const [name, entry] of services.set) this.#setService(name, entry, work);
    for (const id of rules.delete) this.#deleteRule(id, work);
    for (const [id, rule] of rules.set) this.#setRule(id, rule, work);
    for (const key of groups.delete) this.#deleteGroup(key, work);
    for (const [key, group] of groups.set) this.#setGroup(key, group, work);
    for (const key of work.regroup) this.#findLists(key, work);
    for (const id of work.stale) addAll(work.lists, this.#listsOfRule.get(id) ?? []);
    for (const list of work.lists) if (list.groups.size > 0) this.#findAsks(list, work);
    for (const chain of work.chains) {
      const asks = chain.groups.size > 0 && chain.lists.some((list) => list.asks);
      for (const list of chain.lists) setAsker(list, chain, asks, work);
    }
    for (const list of work.lists) if (list.groups.size > 0) this.#compileList(list);
    for (const chain of work.chains) if (chain.groups.size > 0) this.#compileChain(chain);
    return work;
  }

  /** Another set of shards is held now. */
  reshare(): void {
    for (const [id, rule] of this.rules) {
      if (rule.limits !== undefined) this.#elements.enter(this.numbers.get(id) ?? 0, rule);
    }
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
    this.#elements.leave(number, was);
    work.numbers.add(number);
    this.rules.delete(id);
    this.#nameServices(id, was, 'delete');
    this.#moved(this.numbers.delete(id), work);
  }

  #setRule(id: string, rule: RuleEntry, work: Work): void {
    const was = this.rules.get(id);
    if (was !== undefined) {
      this.#elements.leave(this.numbers.get(id) ?? 0, was);
      this.#nameServices(id, was, 'delete');
    }
    this.rules.set(id, rule);
    this.#nameServices(id, rule, 'add');
    this.#moved(this.numbers.add(id), work);
    const number = this.numbers.get(id) ?? 0;
    this.#elements.enter(number, rule);
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

  #moved(moved: [id: string, before: number][], work: Work): void {
    for (const [id, before] of moved) {
      this.#elements.leave(before, this.rules.get(id));
      work.numbers.add(before);
    }
    for (const [id] of moved) {
      const number = this.numbers.get(id) ?? 0;
      this.#elements.enter(number, this.rules.get(id));
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
    this.#options.table.deleteElement(GROUPS_SET, markText(number));
    this.#takeChain(key, undefined, work);
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
    for (const [, before] of moved) this.#options.table.deleteElement(GROUPS_SET, markText(before));
    for (const [key] of moved) {
      work.marked.add(key);
      work.regroup.add(key);
    }
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
    let chain = this.#groupChains.get(name);
    if (chain === undefined) {
      chain = { name, group, lists, groups: new Set(), scope: new Scope(table) };
      this.#groupChains.set(name, chain);
    }
    work.chains.add(chain);
    table.setElement(GROUPS_SET, markText(number), `goto ${name}`);
    this.#takeChain(key, chain, work);
  }

  /** A group that asks pays for the walk before the walk; others have nothing of it. */
  #compileChain(chain: GroupChain): void {
    const { name, group, lists } = chain;
    const scope = new Scope(this.#options.table);
    const asked = lists.some((list) => list.asks) ? this.#askLines.before(lists, group, scope) : [];
    const jumps = lists.map((list) => `jump ${list.chain}`);
    scope.chain(name, { rules: [...asked, ...jumps, this.#ruleLines.last(group, scope)] });
    chain.scope.release();
    chain.scope = scope;
  }

  #takeChain(key: string, chain: GroupChain | undefined, work: Work): void {
    const before = this.#chainOfGroup.get(key);
    if (before === chain) return;
    chain?.groups.add(key);
    if (chain === undefined) this.#chainOfGroup.delete(key);
    else this.#chainOfGroup.set(key, chain);
    before?.groups.delete(key);
    if (before?.groups.size !== 0) return;
    for (const list of before.lists) setAsker(list, before, false, work);
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
      const { table } = this.#options;
      const empty = { groups: new Set<string>(), askers: new Set<GroupChain>() };
      const scopes = { scope: new Scope(table), askScope: undefined };
      list = { key, asked, chain, context, group, rules, redirects, asks: false, ...empty, ...scopes };
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
      list.askScope?.release();
      if (list.asks) this.#asking--;
      for (const id of list.rules) {
        const others = this.#listsOfRule.get(id);
        others?.delete(list);
        if (others?.size === 0) this.#listsOfRule.delete(id);
      }
    }
  }

  #findAsks(list: RuleList, work: Work): void {
    const asks = list.group.rules[list.context].some((id) => this.#askLines.asks(id));
    if (asks === list.asks) return;
    list.asks = asks;
    this.#asking += asks ? 1 : -1;
    for (const key of list.groups) {
      const chain = this.#chainOfGroup.get(key);
      if (chain !== undefined) work.chains.add(chain);
    }
  }

  #compileList(list: RuleList): void {
    const { chain, group, context, askers } = list;
    const scope = new Scope(this.#options.table);
    const askScope = askers.size > 0 ? new Scope(this.#options.table) : undefined;
    const ids = group.rules[context];
    scope.chain(chain, { rules: this.#ruleLines.of(chain, ids, group, scope, askers.size > 0) });
    if (askScope !== undefined) {
      const name = askChain(chain);
      askScope.chain(name, { rules: this.#askLines.of(name, ids, group, askScope) });
    }
    // What both want stays as it is.
    list.scope.release();
    list.askScope?.release();
    list.scope = scope;
    list.askScope = askScope;
  }
}

function setAsker(list: RuleList, chain: GroupChain, asks: boolean, work: Work): void {
  if (asks === list.askers.has(chain)) return;
  if (asks) list.askers.add(chain);
  else list.askers.delete(chain);
  // The first has come, or the last has gone.
  if (list.askers.size === (asks ? 1 : 0)) work.lists.add(list);
}

/** Ids have no space. */
const askedOf = (context: Context, { audit }: GroupEntry, ids: readonly string[]): string =>
  `${context} ${audit === true} ${ids.join(' ')}`;

function addAll<T>(set: Set<T>, items: Iterable<T>): void {
  for (const item of items) set.add(item);
}

/** Limits and logging end no flow. */
const unlimited = (entry: RuleEntry | ServiceEntry): object => ({ ...entry, limits: undefined, logging: undefined });
