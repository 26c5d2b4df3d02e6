/**
 * The walk before the walk (design §4.5): whether what a flow's bytes or names say could permit it. Where a group has rules
 * that ask for that, its chain asks these chains first: all that is open counts neither as matching nor as not, and if
 * some outcome permits, the flow may begin, marked as one that is to be read. Else the walk of rule-lines.ts decides at
 * once, in which what is open matches nothing. It counts, logs and limits nothing: nothing is decided yet.
 *
 * What was met on the way stands in the packet's mark. Rules in a row become maps here too (rule-run.ts), of steps that
 * put bits into it or end the context. The walk is that of policy/evaluate.ts.
 */
import {
  CT_READ,
  CT_RULE_SHIFT,
  GATEWAY_CHECKED_MARK,
  GATEWAY_CT_MASK,
  NUMBER_READ_BYTES,
  NUMBER_READ_FIRST,
} from '../api/names.ts';
import type { GroupEntry, RuleEntry, ServiceEntry } from '../api/plan.ts';
import { markText } from '../kernel/nft.ts';
import { openParts } from '../policy/parts.ts';
import { compileRedirect } from '../policy/redirect.ts';
import { DestinationSets, type Found, type PolicyView, setsOf } from './destination-sets.ts';
import { REDIRECTS_NO_MORE } from './marks.ts';
import { matchesOf, matchLines } from './match-lines.ts';
import { Redirects } from './redirect.ts';
import { type Step, stepLines } from './rule-run.ts';
import type { Scope } from './table.ts';

/**
 * Something is open; an accept of this context, above the service context, is; the walk is over; a name decides; what is
 * open is enforced.
 */
const [PENDING, PASSED, STOP, FIRST, BLOCKED] = [1, 2, 4, 8, 16];

/** How a context ends: on to the next; a permit; a denial; what is open permits, by bytes or by a name. */
const endings = ['context', 'permit', 'deny', 'bytes', 'first'] as const;
type Ending = (typeof endings)[number];

export interface AskLinesOptions {
  defaultAction: 'Drop' | 'Accept';
  /** Of rules one after another: matches that are compared one by one. More become maps. */
  compared: number;
  /** What is to be read is asked about at its first packet already. */
  strict: boolean;
}

/** What of a list a group's chain depends on. */
export interface AskedList {
  chain: string;
  asks: boolean;
  redirects: boolean;
}

type Effect = { ends: Ending } | { bits: number };

interface AskStep {
  effect: Effect;
  /** undefined: any destination. */
  found: Found | undefined;
  /** Of a rule in audit, which ends nothing: where it matches nothing of it is open. */
  unless?: Found;
  rule: RuleEntry;
}

/** Statement with a space behind it, or a rule of its own. */
const mark = (bits: number): string => `meta mark set meta mark or ${markText(bits)}`;
const has = (bits: number): string => `meta mark and ${markText(bits)} == ${markText(bits)}`;
const readMark = (number: number): string => markText(CT_READ | (number << CT_RULE_SHIFT));
const permits = ({ action, context }: RuleEntry): boolean =>
  action === 'accept-decisively' || (action === 'accept' && context === 'service');

export class AskLines {
  readonly #policy: PolicyView;
  readonly #options: AskLinesOptions;
  readonly #destinations: DestinationSets;

  constructor(policy: PolicyView, options: AskLinesOptions) {
    this.#policy = policy;
    this.#options = options;
    this.#destinations = new DestinationSets(policy);
  }

  /** Whether a rule has something that is open at a flow's first packet. */
  asks(id: string): boolean {
    const services = this.#policy.rules.get(id)?.services ?? [];
    if (services === '*') return false;
    return services.some((name) => {
      const entry = this.#policy.services.get(name);
      if (entry?.names === undefined && entry?.checks === undefined) return false;
      return openParts(entry).length > 0;
    });
  }

  /** With these a group's chain begins: from here on they go no further, or all is decided at once. Of its lists, in order. */
  before(lists: readonly AskedList[], group: GroupEntry, scope: Scope): string[] {
    const walk = `meta mark set 0x00000000 jump ${this.#walk(lists, group, scope)}`;
    if (group.audit || !lists.some(({ redirects }) => redirects)) return [walk];
    return [walk, `${has(BLOCKED)} ct mark set ct mark or ${markText(REDIRECTS_NO_MORE)}`];
  }

  #walk(lists: readonly AskedList[], { audit }: GroupEntry, scope: Scope): string {
    const last = lists.findLastIndex(({ asks }) => asks);
    const rules = lists.flatMap(({ chain }, at) => [
      ...(at === 0 ? [] : [`${has(STOP)} return`]),
      // Behind the last list that asks.
      ...(at === last + 1 ? [`meta mark and ${markText(PENDING)} == 0x00000000 return`] : []),
      ...(at === 0 ? [] : [`meta mark set meta mark and ${markText(~PASSED)}`]),
      `jump ${askChain(chain)}`,
    ]);
    if (audit || this.#options.defaultAction === 'Accept') {
      rules.push(`meta mark and ${markText(STOP | PENDING)} == ${markText(PENDING)} goto ${this.#end('bytes', scope)}`);
    }
    return scope.add('asked', rules);
  }

  /** The rules of a list's chain, in their order. `name`: of what is the list's own. */
  of(name: string, ids: readonly string[], group: GroupEntry, scope: Scope): string[] {
    const steps = ids.flatMap((id) => {
      const rule = this.#policy.rules.get(id);
      if (rule === undefined) throw new TypeError(`a group names rule ${id}, which the plan does not hold`);
      return this.#steps(rule);
    });
    const redirects = new Redirects(this.#policy, scope, false);
    return inRuns(steps).flatMap((run, at) => {
      const compared = run.reduce((sum, step) => sum + comparisonsOf(step), 0);
      const many = !run.some(standsAlone) && compared > this.#options.compared;
      const mapped = many ? this.#run(`${name}_${at}`, run, group, scope) : undefined;
      return mapped ?? run.flatMap((step) => this.#lines(step, group, scope, redirects));
    });
  }

  /** What a rule does, in the order in which it is asked: what matches comes before what is open. */
  #steps(rule: RuleEntry): AskStep[] {
    const { services } = rule;
    const step = (effect: Effect, part: 'unread' | 'bytes' | 'first'): AskStep[] => {
      if (services === '*') return part === 'unread' ? [{ effect, found: undefined, rule }] : [];
      const found = this.#destinations.find(services, part);
      return found.parts.length === 0 ? [] : [{ effect, found, rule }];
    };
    // A flow that must be read cannot be redirected.
    const asks = permits(rule) && rule.redirect === undefined && rule.mode !== 'Audit';
    if (asks) {
      return [
        step({ ends: 'permit' }, 'unread'),
        step({ ends: 'first' }, 'first'),
        step({ ends: 'bytes' }, 'bytes'),
      ].flat();
    }
    const handsOn = rule.action === 'accept' && rule.context !== 'service';
    const bits = PENDING | (rule.mode === 'Audit' ? 0 : BLOCKED | (handsOn ? PASSED : 0));
    const open = [step({ bits: bits | FIRST }, 'first'), step({ bits }, 'bytes')].flat();
    if (rule.mode !== 'Audit') return [...step({ ends: handsOn ? 'context' : 'deny' }, 'unread'), ...open];
    const unless = services === '*' ? undefined : this.#destinations.find(services);
    return unless === undefined ? open : open.map((one) => ({ ...one, unless }));
  }

  #run(name: string, steps: readonly AskStep[], group: GroupEntry, scope: Scope): string[] | undefined {
    const numbered = steps.map(({ effect, found, unless }): Step => {
      const services: ServiceEntry[] | '*' = found === undefined ? '*' : found.parts;
      if ('ends' in effect) return { services, ends: endings.indexOf(effect.ends) };
      return { services, bits: effect.bits, unless: unless?.parts ?? [] };
    });
    return stepLines(scope, name, numbered, (bits, ends) => {
      const ending = ends === undefined ? undefined : endings[ends];
      if (ending === undefined) return `jump ${scope.add('ask_on', [mark(bits)])}`;
      const chain = this.#end(ending, scope, group);
      const to = chain === undefined ? 'return' : `goto ${chain}`;
      return bits === 0 ? to : `goto ${scope.add('ask_end', [`${mark(bits)} ${to}`])}`;
    });
  }

  #lines(step: AskStep, group: GroupEntry, scope: Scope, redirects: Redirects): string[] {
    const { effect, found, unless, rule } = step;
    const compiled = rule.redirect && compileRedirect(rule.redirect);
    const guard = compiled === undefined ? '' : redirects.guard(compiled);
    const family = compiled?.address.family;
    for (const [set, of] of [...setsOf(found, family), ...setsOf(unless)]) scope.set(set, of);
    const ends = 'ends' in effect ? effect.ends : undefined;
    const chain = ends && this.#end(ends, scope, group);
    const verdict = 'bits' in effect ? mark(effect.bits) : chain === undefined ? 'return' : `goto ${chain}`;
    // The others go back to where the list was asked, which a chain within the list could not.
    const over = ends === 'bytes' || ends === 'first';
    const lines = matchLines(matchesOf(found, family), verdict, over, scope).map((line) => `${guard}${line}`);
    const matched = unless === undefined ? [] : matchLines(matchesOf(unless), 'return', false, scope);
    return matched.length === 0 ? lines : [`jump ${scope.add('ask_audited', [...matched, ...lines])}`];
  }

  /** The chain of an ending; undefined: it is only a return. */
  #end(ending: 'bytes' | 'first', scope: Scope): string;
  #end(ending: Ending, scope: Scope, group: GroupEntry): string | undefined;
  #end(ending: Ending, scope: Scope, group?: GroupEntry): string | undefined {
    const read = (number: number): string =>
      `ct mark set ct mark and ${markText(~GATEWAY_CT_MASK)} or ${readMark(number)} meta mark set ${markText(GATEWAY_CHECKED_MARK)} accept`;
    switch (ending) {
      case 'context':
        return undefined;
      case 'first':
        return scope.add('read_first', [read(NUMBER_READ_FIRST)]);
      case 'bytes': {
        const first = this.#end('first', scope);
        if (this.#options.strict) return first;
        return scope.add('read_bytes', [`${has(FIRST)} goto ${first}`, read(NUMBER_READ_BYTES)]);
      }
      case 'permit':
        return scope.add('ask_permit', [`${has(PENDING)} goto ${this.#end('bytes', scope)}`, mark(STOP)]);
      case 'deny':
        // Where the whole policy is in audit everything passes, but is read to be counted.
        if (group?.audit) return this.#end('permit', scope, group);
        return scope.add('ask_deny', [`${has(PASSED)} return`, mark(STOP)]);
    }
  }
}

const comparisonsOf = ({ found, unless }: AskStep): number =>
  matchesOf(found).length + (unless === undefined ? 0 : matchesOf(unless).length);

/** Of a list's chain: the one in which it is asked before. */
export const askChain = (chain: string): string => `ask_${chain}`;

/** It sends packets elsewhere, or asks sets of its own. */
const standsAlone = ({ rule, found, unless }: AskStep): boolean =>
  rule.redirect !== undefined || setsOf(found).length > 0 || setsOf(unless).length > 0;

/** Steps that could be looked up together. */
function inRuns(steps: readonly AskStep[]): AskStep[][] {
  const runs: AskStep[][] = [];
  let open: AskStep[] | undefined;
  for (const step of steps) {
    const alone = standsAlone(step);
    if (!alone && open !== undefined) open.push(step);
    else runs.push([step]);
    open = alone ? undefined : runs.at(-1);
  }
  return runs;
}
