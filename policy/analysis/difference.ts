/**
 * Where two policies treat a workload differently, exactly: the destinations, cut at every boundary that either knows
 * (cells.ts), each asked of both evaluators, and neighbours with one answer put together again. Where names or bytes decide
 * it is not exact: samples are asked (said.ts).
 * Left out: what rules in audit would count, since they decide nothing; and packets of TCP, UDP, SCTP or ICMP that show no port or type; the first packet of a flow shows it.
 */

import { type Address, formatRange, parseRange, type Range } from '../../api/address.ts';
import type { Family, Policy, Redirect, RuleEntry, ServiceEntry, WorkloadEntry } from '../../api/plan.ts';
import { contexts, families } from '../../api/plan.ts';
import { sameJson } from '../../api/plan-delta.ts';
import { portProtocols } from '../../api/ports.ts';
import { PrefixSet } from '../../api/prefix-set.ts';
import { must } from '../../api/result.ts';
import type { Carriage, Settled } from '../carriage.ts';
import type { Decision, Known } from '../decision.ts';
import type { Destination } from '../destination.ts';
import { bandwidthsText, connectionLimitsText } from '../limits.ts';
import type { Span, TrafficClass } from './cells.ts';
import { cellsOf, mergeSpans, sampleOf, TooLarge } from './cells.ts';
import { type Sample, samplesOf } from './said.ts';

/** A workload under one policy; absent where no pool carries it. */
export interface Side {
  carriage: Carriage;
  workload: WorkloadEntry;
}

/** What becomes of a flow. `bypass`: Sluice does not carry it. */
export interface Outcome {
  verdict: 'accept' | 'drop' | 'reject' | 'bypass';
  reason: Settled['reason'] | Decision['reason'] | 'no-pool' | 'no-address';
  rule?: string;
  /** The pod's policy is in audit: this would have become of the flow. */
  wouldHave?: 'drop' | 'reject';
  /** A rule sends it there: ADDRESS, or ADDRESS port PORT. */
  redirect?: string;
  /** Of a flow that is accepted: the limits that it is under, in words. */
  limits?: string;
  /** Source address outside, or all that it may be; only where the two sides differ in it. */
  egress?: string;
}

/** All destinations of which one thing became another. */
export interface Change {
  /** Both families; sorted, disjoint. */
  ranges: Range[];
  spans: Span[];
  /** Of flows that say one of these, in words; absent: whatever they say. */
  said?: string[];
  before: Outcome;
  after: Outcome;
}

/** Cells that may still be asked; shared by all comparisons of one run. */
export interface Budget {
  cells: number;
}

export function changesOf(before: Side | undefined, after: Side | undefined, budget: Budget): Change[] {
  const changes = new Map<string, Change>();
  if (before === undefined && after === undefined) return [];
  const focus = focusOf(before, after);
  const services = [...servicesOf(before), ...servicesOf(after)];
  /** By protocol and port. */
  const said = new Map<string, Sample[]>();
  for (const family of families) {
    if (![before, after].some((side) => side !== undefined && hasFamily(side.workload, family))) continue;
    const near =
      focus === undefined
        ? services
        : services.filter(({ addresses, names }) => names !== undefined || meet(addresses, focus, family));
    const cells = cellsOf(near, family);
    const { traffic } = cells;
    const addresses =
      focus === undefined
        ? cells.addresses
        : cells.addresses.filter(({ sample }) => focus.some((set) => set.has(sample)));
    budget.cells -= addresses.length * traffic.length;
    if (budget.cells < 0) throw new TooLarge(`${addresses.length} kinds of addresses with ${traffic.length} of ports`);
    for (const address of addresses) {
      const [left, right] = [before, after].map((side) => side && egressText(side, address.sample));
      const moved = left !== right;
      const differing = new Map<
        string,
        { before: Outcome; after: Outcome; said?: string[]; traffic: TrafficClass[] }
      >();
      for (const kind of traffic) {
        if (kind.spans.length === 0) continue;
        for (const pair of pairsOf(sampleOf(address, kind), moved)) {
          const key = JSON.stringify(pair);
          const known = differing.get(key);
          if (known === undefined) differing.set(key, { ...pair, traffic: [kind] });
          else known.traffic.push(kind);
        }
      }
      for (const [pair, { traffic: kinds, ...outcomes }] of differing) {
        const spans = mergeSpans(kinds.flatMap((kind) => kind.spans));
        const key = `${pair} ${JSON.stringify(spans)}`;
        const known = changes.get(key);
        if (known === undefined) changes.set(key, { ranges: [...address.ranges], spans, ...outcomes });
        else known.ranges.push(...address.ranges);
      }
    }
  }
  return [...changes.values()].map((change) => ({ ...change, ranges: mergeRanges(change.ranges) }));

  /** What is told of a flow there: one difference, or several by what the flow says. */
  function pairsOf(destination: Destination, moved: boolean): Pick<Change, 'before' | 'after' | 'said'>[] {
    const ask = (known?: Known): [Outcome, Outcome] => [
      outcomeOf(before, destination, moved, known),
      outcomeOf(after, destination, moved, known),
    ];
    const [was, is] = ask();
    if (was.reason !== 'unread' && is.reason !== 'unread')
      return sameOutcome(was, is) ? [] : [{ before: was, after: is }];
    const place = `${destination.protocol} ${destination.port}`;
    const samples = said.get(place) ?? samplesOf(services, destination);
    said.set(place, samples);
    budget.cells -= samples.length;
    if (budget.cells < 0) throw new TooLarge(`${samples.length} samples of what flows may say`);
    const pairs = new Map<string, { before: Outcome; after: Outcome; said: string[] }>();
    for (const { text, known } of samples) {
      const [then, now] = ask(known);
      const key = JSON.stringify([then, now]);
      const alike = pairs.get(key) ?? { before: then, after: now, said: [] };
      pairs.set(key, alike);
      alike.said.push(text);
    }
    return [...pairs.values()]
      .filter((pair) => !sameOutcome(pair.before, pair.after))
      .map(({ said: texts, ...pair }) => (pairs.size === 1 ? pair : { ...pair, said: texts }));
  }
}

/**
 * Sorted, neighbours merged. Not a PrefixSet, which copies: ranges of a long list are shared by all changes of a run,
 * or a threat list of thousands would be kept once for every group of pods.
 */
function mergeRanges(ranges: readonly Range[]): Range[] {
  const merged: Range[] = [];
  const sorted = ranges.toSorted((a, b) => a.family - b.family || (a.first < b.first ? -1 : 1));
  for (const range of sorted) {
    const open = merged.at(-1);
    if (open?.family === range.family && open.last + 1n === range.first) {
      merged[merged.length - 1] = { ...open, last: range.last };
    } else merged.push(range);
  }
  return merged;
}

/**
 * Outside of these destinations nothing can differ, since all that does is rules that name them, or services that these
 * name; undefined: anywhere. Of a cluster of many rules that is what makes a change of one quick to compare.
 */
function focusOf(before: Side | undefined, after: Side | undefined): PrefixSet[] | undefined {
  if (before === undefined || after === undefined) return undefined;
  const sides = [before, after] as const;
  if (!sameJson(...both(sides, ({ carriage }) => [carriage.plan.settings, carriage.boundaries]))) return undefined;
  if (!sameJson(...both(sides, ({ workload }) => workload.addresses))) return undefined;
  if (!sameJson(...both(sides, leavings))) return undefined;
  const [was, is] = both(sides, ({ carriage, workload }) => carriage.plan.groups[workload.group]);
  if (was === undefined || is === undefined || was.audit !== is.audit) return undefined;
  /** And those with a redirect, which may lead to what differs from where they are. */
  const differing: RuleEntry[] = [];
  for (const context of contexts) {
    const lists = both([was, is], ({ rules }) => rules[context]);
    const [first, second] = both(
      [0, 1],
      (at) => new Map(lists[at as 0 | 1].map((id) => [id, contentOf(sides[at as 0 | 1], id)])),
    );
    const stays = (id: string): boolean => first.has(id) && second.has(id) && sameJson(first.get(id), second.get(id));
    const [kept, still] = both(lists, (ids) => ids.filter(stays));
    if (!sameJson(kept, still)) return undefined;
    for (const contents of [first, second])
      for (const [id, { entry }] of contents)
        if (entry !== undefined && (!stays(id) || entry.redirect !== undefined)) differing.push(entry);
  }
  if (differing.some(({ services }) => services === '*')) return undefined;
  const named = new Set(differing.flatMap(({ services }) => services));
  return sides.flatMap(({ carriage }) =>
    [...named].flatMap((key) => {
      const service = carriage.plan.services[key];
      if (service === undefined) return [];
      return [setOf(service.names === undefined ? service.addresses : everywhere)];
    }),
  );
}

/** Any address may be a name's. */
const everywhere: readonly string[] = ['0.0.0.0/0', '::/0'];

const both = <T, R>([a, b]: readonly [T, T], of: (one: T) => R): [R, R] => [of(a), of(b)];

/** With what a workload leaves for where, and under which limits. */
function leavings({ carriage, workload }: Side): unknown {
  const { egress, egressLimits } = carriage;
  return families.map((family) => [
    egress.choices(workload, family).map((way) => [way, egressLimits(workload, way)]),
    egress.ranges(workload, family).map(formatRange),
    egress.ranges(workload, family).map(({ egressIP }) => egressIP),
  ]);
}

function contentOf({ carriage }: Side, id: string): { entry: RuleEntry | undefined; services: unknown } {
  const entry = carriage.plan.rules[id];
  const keys = entry === undefined || entry.services === '*' ? [] : entry.services;
  return { entry, services: keys.map((key) => carriage.plan.services[key]) };
}

/** Lists are long, and asked for by each group of pods. */
const sets = new WeakMap<readonly string[], PrefixSet>();
function setOf(addresses: readonly string[]): PrefixSet {
  const known = sets.get(addresses) ?? PrefixSet.of(addresses.map((text) => must(parseRange(text))));
  sets.set(addresses, known);
  return known;
}

function meet(addresses: readonly string[], focus: readonly PrefixSet[], family: Family): boolean {
  const own = setOf(addresses);
  return focus.some((set) => {
    const [few, many] = own.ranges(family).length < set.ranges(family).length ? [own, set] : [set, own];
    return few.ranges(family).some((range) => many.intersects(range));
  });
}

/** What may tell one destination from another: the services of the workload's rules, and what is settled before them. */
function servicesOf(side: Side | undefined): ServiceEntry[] {
  if (side === undefined) return [];
  const { plan, boundaries } = side.carriage;
  const own = side.carriage.boundariesOf(side.workload);
  const rules = plan.groups[side.workload.group]?.rules;
  const entries = contexts.flatMap((context) => rules?.[context] ?? []).flatMap((id) => plan.rules[id] ?? []);
  const keys = new Set(entries.flatMap(({ services }) => (services === '*' ? [] : services)));
  const named = [...keys].flatMap((key) => plan.services[key] ?? []);
  // A port with a limit may lie within others.
  const limited = named.flatMap((entry) => (entry.limits ?? []).map((limit) => ({ ...entry, ports: [limit] })));
  return [...named, ...limited, ...boundaries, ...own, ...redirectBoundaries(entries)];
}

/** A rule with a redirect tells protocols with ports from others, and on the second walk perhaps its own port. */
function redirectBoundaries(entries: readonly RuleEntry[]): ServiceEntry[] {
  const redirects = entries.flatMap(({ redirect }) => redirect ?? []);
  if (redirects.length === 0) return [];
  const addresses = ['0.0.0.0/0', '::/0'];
  const whole = [...portProtocols].map((protocol) => ({ addresses, ports: [{ protocol, ports: null }] }));
  const own = [...new Set(redirects.flatMap(({ port }) => port ?? []))].map((port) => ({
    addresses,
    ports: [...portProtocols].map((protocol) => ({ protocol, ports: [[port, port]] as [number, number][] })),
  }));
  return [...whole, ...own];
}

export function outcomeOf(
  side: Side | undefined,
  destination: Destination,
  withEgress: boolean,
  known?: Known,
): Outcome {
  if (side === undefined) return { verdict: 'bypass', reason: 'no-pool' };
  const decision = side.carriage.decide(side.workload, destination, known);
  if (decision === undefined) return { verdict: 'bypass', reason: 'no-address' };
  const outcome: Outcome = { verdict: decision.verdict, reason: decision.reason };
  if ('rule' in decision && decision.rule !== undefined) outcome.rule = decision.rule;
  if ('wouldHave' in decision && decision.wouldHave !== undefined) outcome.wouldHave = decision.wouldHave;
  if ('redirect' in decision && decision.redirect !== undefined) {
    outcome.redirect = redirectText(side.carriage.plan.rules[decision.redirect.by]?.redirect);
  }
  if (decision.verdict === 'accept') {
    const choice = 'egress' in decision ? decision.egress : undefined;
    const own = choice === undefined ? '' : side.carriage.egressLimits(side.workload, choice);
    const limits = [limitsText(decision, side.carriage.plan), own].filter(Boolean).join(', ');
    if (limits !== '') outcome.limits = limits;
  }
  if (withEgress && 'egress' in decision) outcome.egress = egressText(side, destination.address);
  return outcome;
}

/** All that a flow may leave with. */
export function egressText({ carriage, workload }: Side, destination: Address): string {
  const { addresses } = carriage.egress.towards(workload, destination);
  return [...new Set(addresses.map(({ address }) => address))].join(' or ');
}

function limitsText(decision: Settled | Decision, { rules }: Policy): string {
  const limits = 'limits' in decision ? (decision.limits ?? []) : [];
  const ports = 'ports' in decision ? (decision.ports ?? {}) : {};
  const questions = 'questionsPerSecond' in decision ? (decision.questionsPerSecond ?? {}) : {};
  const asked = Object.entries(questions).map(([name, rate]) => `${name} (${rate} questions a second of one source)`);
  const texts = [connectionLimitsText(limits, rules), bandwidthsText(limits, ports, rules), ...asked];
  return texts.filter(Boolean).join(', ');
}

/** Of the rule, not of the flow: where the port is the flow's own, all its ports are one change. */
const redirectText = (redirect: Redirect | undefined): string =>
  redirect?.port === undefined ? `${redirect?.address}` : `${redirect.address} port ${redirect.port}`;

function sameOutcome(a: Outcome, b: Outcome): boolean {
  const fields = ['verdict', 'reason', 'rule', 'wouldHave', 'redirect', 'limits', 'egress'] as const;
  return fields.every((field) => a[field] === b[field]);
}

function hasFamily({ addresses }: WorkloadEntry, family: Family): boolean {
  return addresses.some((text) => text.includes(':') === (family === 6));
}
