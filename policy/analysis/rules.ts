/**
 * What a rule's place in its walk says about it: rules that can never match, whatever a pod sends (an earlier rule of
 * the context, or the verdict of a context above, comes first everywhere), and accepts that can never permit. Decided
 * cell by cell (cells.ts) for every group of pods that the rule applies to, so that a finding is true and no guess.
 * What holds only at times (a schedule), is only counted (audit), or is a field that this file does not know never
 * counts as in the way; nor does what names or bytes decide, unless the other rule names the very same services; rules of a group that is too large to decide are named, and no more is said of them.
 */

import { type Address, parseRange } from '../../api/address.ts';
import type { Context, Family, GroupEntry, RuleEntry, ServiceEntry } from '../../api/plan.ts';
import { contexts, families } from '../../api/plan.ts';
import { portProtocols } from '../../api/ports.ts';
import { PrefixSet } from '../../api/prefix-set.ts';
import { must } from '../../api/result.ts';
import type { FlowTest } from '../decision.ts';
import type { Destination } from '../destination.ts';
import { compileService } from '../destination.ts';
import { isRead } from '../external-service.ts';
import { compileMatch } from '../match.ts';
import { type CompiledRedirect, canRedirect, compileRedirect } from '../redirect.ts';
import { cellsOf, sampleOf, TooLarge } from './cells.ts';

export const ruleCodes = {
  MatchesNothing: 'the rule names no destination at all, or none that it can match',
  Shadowed: 'earlier rules of the same context match all that it names',
  Contradicted: 'it would permit what a context above drops or rejects',
  Overruled: 'it would forbid what a context above accepts decisively',
  NeverReached: 'rules before it, of its own and other contexts, match all that it names',
  PermitsNothing: 'an accept that only hands on, and nothing after it permits',
} as const;
export type RuleCode = keyof typeof ruleCodes;

export interface RuleFinding {
  rule: string;
  code: RuleCode;
  /** What comes first, in the order of the walk. */
  blockers: string[];
}

export interface Judgement {
  findings: RuleFinding[];
  /** Ids of rules that there is too much to compare with. */
  undecided: string[];
}

/** Pods with one policy. */
export interface JudgedGroup extends GroupEntry {
  /** Of the pool that carries them; absent: not known, so that it may be Accept. */
  defaultAction?: 'Drop' | 'Accept';
  /** Says something about this rule only, and of these it is not known that they apply (scope.ts). */
  only?: string;
  soft?: ReadonlySet<string>;
}

export interface JudgedPolicy {
  rules: Readonly<Record<string, RuleEntry>>;
  services: Readonly<Record<string, ServiceEntry>>;
  groups: readonly JudgedGroup[];
  /** Ids of rules that take effect at times only. */
  soft?: ReadonlySet<string>;
  /** Ids of rules that name lists that are not known here: they may match anything. */
  open?: ReadonlySet<string>;
  /** Comparisons that it may take; absent: some seconds' worth. */
  most?: number | undefined;
}

/**
 * Fields with which a rule decides each flow that it matches. What is over a limit is decided too; a redirect says what
 * the rule matches, which `matches` reads.
 */
const unconditional = new Set([
  'context',
  'namespace',
  'name',
  'action',
  'priority',
  'services',
  'logging',
  'limits',
  'redirect',
]);

/** Whether the rule takes effect on each flow that it matches. */
function isFirm(entry: RuleEntry): boolean {
  return Object.entries(entry).every(
    ([field, value]) =>
      unconditional.has(field) || value === undefined || value === null || (field === 'mode' && value === 'Enforce'),
  );
}

/** Tests of one service against one cell or address, over all groups: some seconds. And of one group, so that others have their turn. */
const MAX_TESTS = 20_000_000;
const MAX_GROUP_TESTS = 5_000_000;

interface Facts {
  named: boolean;
  may: boolean;
  permits: boolean;
  undecided: boolean;
  shadow: Set<string>;
  above: Set<string>;
}

/** An external service, read once for all groups. */
interface Known {
  entry: ServiceEntry;
  /** Where it may match. */
  set: PrefixSet;
  /** Of flows of which nothing is known. */
  test: FlowTest;
}

interface Walked {
  id: string;
  entry: RuleEntry;
  firm: boolean;
  services: Known[] | '*';
  redirect?: CompiledRedirect;
}

/** A rule at an address: with the services that have it. */
interface There {
  rule: Walked;
  services: Known[] | '*';
}

/** A rule in a cell: it matches, or, where it is open, does so by one of these services. */
interface Here {
  rule: Walked;
  open?: Known[];
}

/** In the order of the rules' ids; rules that no group has are not judged. */
export function judgeRules({ rules, services, groups, soft, open, most }: JudgedPolicy): Judgement {
  const facts = new Map<string, Facts>();
  const known = new Map(Object.entries(services).map(([key, entry]) => [key, knownOf(entry)]));
  const walked = new Map<string, Walked>();
  for (const [id, entry] of Object.entries(rules)) {
    const any = entry.services === '*' || open?.has(id) === true;
    const own = any ? '*' : (entry.services as string[]).flatMap((key) => known.get(key) ?? []);
    const firm = isFirm(entry) && !soft?.has(id) && !open?.has(id);
    const redirect = entry.redirect && { redirect: compileRedirect(entry.redirect) };
    walked.set(id, { id, entry, firm, services: own, ...redirect });
  }
  let left = most ?? MAX_TESTS;
  const seen = new Set<string>();
  for (const group of groups) {
    const key = JSON.stringify([group.rules, group.defaultAction, group.only]);
    if (seen.has(key)) continue;
    seen.add(key);
    const rulesOf = (context: Context): Walked[] => group.rules[context].flatMap((id) => walked.get(id) ?? []);
    const lists = contexts.map((context) =>
      rulesOf(context).map((rule) => (group.soft?.has(rule.id) ? { ...rule, firm: false } : rule)),
    );
    const judged = lists.flat().filter(({ id }) => group.only === undefined || id === group.only);
    for (const { id } of judged) {
      if (facts.has(id)) continue;
      const none = { named: false, may: false, permits: false, undecided: false };
      facts.set(id, { ...none, shadow: new Set(), above: new Set() });
    }
    const own = new Map(judged.flatMap(({ id }) => [[id, facts.get(id) as Facts]]));
    const budget = { tests: Math.min(left, MAX_GROUP_TESTS) };
    left -= budget.tests;
    try {
      judgeGroup(lists, known, group.defaultAction === 'Drop', own, budget);
    } catch (error) {
      if (!(error instanceof TooLarge)) throw error;
      for (const [id, fact] of own) fact.undecided ||= !isSettled(rules[id] as RuleEntry, fact);
    }
    left += Math.max(0, budget.tests);
  }
  const order = new Map(Object.keys(rules).map((id, index) => [id, index]));
  const byOrder = (a: string, b: string): number => (order.get(a) ?? 0) - (order.get(b) ?? 0);
  const findings = [...facts].flatMap(([id, fact]): RuleFinding[] => {
    const rule = rules[id];
    if (rule === undefined || fact.undecided) return [];
    const code = codeOf(rule, fact, rules);
    return code === undefined ? [] : [{ rule: id, code, blockers: [...fact.shadow, ...fact.above].sort(byOrder) }];
  });
  return { findings, undecided: [...facts].flatMap(([id, { undecided }]) => (undecided ? [id] : [])) };
}

function knownOf(entry: ServiceEntry): Known {
  const addresses = entry.names === undefined ? entry.addresses : everywhere;
  return {
    entry,
    set: PrefixSet.of(addresses.map((text) => must(parseRange(text)))),
    // What is open does not depend on what the rule does.
    test: isRead(entry) ? compileMatch(entry, { denies: false, strict: false }).test : compileService(entry),
  };
}

/** Any address may be a name's. */
const everywhere = ['0.0.0.0/0', '::/0'];

function codeOf(rule: RuleEntry, fact: Facts, rules: JudgedPolicy['rules']): RuleCode | undefined {
  if (!fact.named) return 'MatchesNothing';
  if (fact.may) {
    return rule.action === 'accept' && rule.context !== 'service' && !fact.permits ? 'PermitsNothing' : undefined;
  }
  if (fact.above.size === 0) return 'Shadowed';
  if (fact.shadow.size > 0) return 'NeverReached';
  const permits = rule.action === 'accept' || rule.action === 'accept-decisively';
  const opposed = [...fact.above].every((id) => (rules[id]?.action === 'accept-decisively') !== permits);
  if (!opposed) return 'NeverReached';
  return permits ? 'Contradicted' : 'Overruled';
}

/** Nothing that another flow or another group shows would change what is said of the rule. */
const isSettled = ({ action, context }: RuleEntry, { may, permits }: Facts): boolean =>
  may && (permits || action !== 'accept' || context === 'service');

function judgeGroup(
  lists: readonly Walked[][],
  known: ReadonlyMap<string, Known>,
  defaultDrops: boolean,
  facts: Map<string, Facts>,
  budget: { tests: number },
): void {
  // What hands on nothing that a pod asks for may hand on what a redirect leads there.
  const redirects = lists.flat().some(({ redirect }) => redirect !== undefined);
  if (redirects) for (const fact of facts.values()) fact.permits = true;
  const stillOpen = (): Walked[] =>
    lists.flat().filter(({ id, entry }) => {
      const fact = facts.get(id);
      return fact !== undefined && !isSettled(entry, fact);
    });
  const open = stillOpen();
  const focus = open.some(({ services }) => services === '*')
    ? undefined
    : open.flatMap(({ services }) => services as Known[]).map(({ set }) => set);
  const named = [...new Set(lists.flat().flatMap(({ entry }) => (entry.services === '*' ? [] : entry.services)))];
  for (const family of families) {
    const near = new Set(
      named
        .flatMap((key) => known.get(key) ?? [])
        .filter(({ set }) => focus === undefined || focus.some((other) => meet(set, other, family))),
    );
    const entries = [...near].map(({ entry }) => entry);
    const { addresses, traffic } = cellsOf(redirects ? [...entries, withPorts] : entries, family);
    for (const address of addresses) {
      if (focus !== undefined && !focus.some((set) => set.has(address.sample))) continue;
      const there = lists.map((list) => list.flatMap((rule) => thereOf(rule, address.sample, near, budget)));
      for (const kind of traffic) {
        const destination = sampleOf(address, kind);
        const inCell = there.map((list) => list.flatMap((one) => hereOf(one, destination, budget)));
        judgeCell(inCell, defaultDrops, facts);
      }
      if (stillOpen().length === 0) return;
    }
  }
}

function thereOf(rule: Walked, address: Address, near: ReadonlySet<Known>, budget: { tests: number }): There[] {
  const { services } = rule;
  if (services === '*') return [{ rule, services }];
  spend(budget, services.length);
  const own = services.filter((one) => near.has(one) && one.set.has(address));
  return own.length === 0 ? [] : [{ rule, services: own }];
}

const meet = (a: PrefixSet, b: PrefixSet, family: Family): boolean => {
  const [few, many] = a.ranges(family).length < b.ranges(family).length ? [a, b] : [b, a];
  return few.ranges(family).some((range) => many.intersects(range));
};

/** What a redirect can take, as the evaluator has it: the boundary of protocols. */
const withPorts: ServiceEntry = {
  addresses: [],
  ports: [...portProtocols].map((protocol) => ({ protocol, ports: null })),
};

function spend(budget: { tests: number }, tests: number): void {
  budget.tests -= tests;
  if (budget.tests < 0) throw new TooLarge('rules and destinations');
}

function hereOf({ rule, services }: There, destination: Destination, budget: { tests: number }): Here[] {
  if (rule.redirect !== undefined && !canRedirect(rule.redirect, destination)) return [];
  if (services === '*') return [{ rule }];
  spend(budget, services.length);
  const open: Known[] = [];
  for (const service of services) {
    const said = service.test(destination);
    if (said === 'match') return [{ rule }];
    if (said === 'bytes' || said === 'table') open.push(service);
  }
  return open.length === 0 ? [] : [{ rule, open }];
}

const isSure = ({ rule, open }: Here): boolean => rule.firm && open === undefined;

/** Whether the first matches whatever the second does. Permits and vetoes ask different things of one service. */
function covers(first: Here, second: Here): boolean {
  if (!first.rule.firm || first.open === undefined || second.open === undefined) return false;
  const own = first.open;
  return denies(first.rule) === denies(second.rule) && second.open.every((service) => own.includes(service));
}
const denies = ({ entry: { action } }: Walked): boolean => action === 'drop' || action === 'reject';

/** `lists`: the rules that match or may in this cell, by context, in walking order. `facts`: of those that are judged. */
function judgeCell(lists: readonly Here[][], defaultDrops: boolean, facts: Map<string, Facts>): void {
  // From the last context up: may a flow that gets into this context still be permitted?
  const permitted: boolean[] = [];
  permitted[lists.length] = !defaultDrops;
  for (let level = lists.length - 1; level >= 0; level--) {
    permitted[level] = mayPermit(lists[level] ?? [], permitted[level + 1] === true);
  }
  let ended: string | undefined;
  lists.forEach((list, level) => {
    let stopper: Walked | undefined;
    let mayHandOn = false;
    /** What is open may be in the way of what is open by the same services. */
    const before: Here[] = [];
    for (const here of list) {
      const { rule, open } = here;
      const fact = facts.get(rule.id);
      if (fact !== undefined) {
        fact.named = true;
        const first = stopper ?? before.find((other) => covers(other, here))?.rule;
        if (first !== undefined) fact.shadow.add(first.id);
        else if (ended !== undefined) fact.above.add(ended);
        else {
          fact.may = true;
          if (permitted[level + 1] === true) fact.permits = true;
        }
      }
      if (stopper !== undefined) continue;
      if (isSure(here)) stopper = rule;
      else if (rule.entry.action === 'accept') mayHandOn = true;
      if (open !== undefined) before.push(here);
    }
    if (ended === undefined && stopper !== undefined && stopper.entry.action !== 'accept' && !mayHandOn) {
      ended = stopper.id;
    }
  });
}

function mayPermit(list: readonly Here[], below: boolean): boolean {
  for (const here of list) {
    const { action, context } = here.rule.entry;
    if (action === 'accept-decisively' || (action === 'accept' && (context === 'service' || below))) return true;
    if (isSure(here)) return false;
  }
  return below;
}

/** Key of the object that a rule id stands for. */
export function objectKeyOfRule(id: string): string {
  const slash = id.indexOf('/');
  const kinds: Record<Context, string> = {
    cluster: 'ClusterEgressRule',
    namespace: 'NamespaceEgressRule',
    service: 'ServiceEgressRule',
  };
  return `${kinds[id.slice(0, slash) as Context]}${id.slice(slash)}`;
}
