/**
 * Bandwidths as nftables chains, to which the last hook jumps with every packet while there are any. What a packet meets
 * is found by the flow's own first destination, which conntrack keeps, and by the policy as it is now: so a new limit,
 * another share, or a rule that came or went holds for established flows at once, and nothing is kept with a flow.
 *
 *   bandwidth   the address outside → bucket and class of its EgressIP; the source → its group
 *   group       the rules of a context, in order: the buckets of what matches, and on to the next context
 *   end         the last limit that was met, together with the address outside → class
 *
 * Which rule a flow met by what was read of it no later packet shows: in a group with rules that ask for that, those that may
 * be decided so are found by the rule in their ct mark. They meet its limits, and those of rules that handed on by address.
 *
 * While it is looked for, the packet's priority holds the number of a limit, or of a group. Rules in a row without a
 * limit that lead to the same are one match, and those behind the last limit none. The walk is that of policy/evaluate.ts.
 */
import { digest } from '../api/digest.ts';
import { CT_RULE_MASK, GATEWAY_CHECKED_MARK } from '../api/names.ts';
import { type Context, contexts, families, type GatewayPlan, type GroupEntry, type RuleEntry } from '../api/plan.ts';
import { bytesLimitText, concat, markText, type NftChain, type NftSet } from '../kernel/nft.ts';
import {
  type Bandwidths,
  classOf,
  type Direction,
  directions,
  limitsOfRule,
  pairName,
  portName,
  ruleName,
  scratchNumbers,
  scratchText,
} from './bandwidth.ts';
import { FlowMatches } from './bandwidth-match.ts';
import { addressType, header } from './destination-sets.ts';
import { DEFAULT_ACTION, ruleMark } from './marks.ts';

export interface BandwidthTable {
  sets: Record<string, NftSet>;
  chains: Record<string, NftChain>;
  /** The chain to jump to. */
  entry: string;
}

type Plan = Pick<GatewayPlan, 'workloads' | 'groups' | 'rules' | 'services'>;

/** Beside a second's bytes: the longest packet that the kernel forwards as one must fit, or it would never pass. */
const BURST = 131_072;
/**
 * As long as an acknowledgement with all its options is at most. It does not wait: behind what is sent the other way it
 * would be as late as that, or lost, and the flow that waits for it as slow.
 */
const ACK = { 4: 80, 6: 100 } as const;
const NOTHING = 'none';
const CHECKED = `meta mark set ${markText(GATEWAY_CHECKED_MARK)}`;
const way = { out: 'ct direction original', in: 'ct direction reply' } as const satisfies Record<Direction, string>;

/** `over`: the chain that drops what is over a limit. `numberOf`: of a rule, or DEFAULT_ACTION, in ct marks. */
export function bandwidthTable(
  plan: Plan,
  bandwidths: Bandwidths,
  over: string,
  numberOf: (id: string) => number,
): BandwidthTable {
  const sets: Record<string, NftSet> = {};
  const chains: Record<string, NftChain> = {};
  const add = (noun: string, rules: string[]): string => {
    const name = `bw_${noun}_${digest(rules.join('\n'))}`;
    chains[name] = { rules };
    return name;
  };
  const keyOf = (name: string): string => bandwidths.limits.get(name)?.key ?? NOTHING;
  const police = directions.map((to) => `${way[to]} meta priority @bw_rate_${to} goto ${over}`);
  const classes = directions.map((to) => `${way[to]} meta priority set meta priority map @bw_class_${to} return`);
  const nothing = `meta priority set ${NOTHING}`;
  const acks = Object.entries(ACK).map(
    ([f, longest]) =>
      `meta nfproto ipv${f} meta length 0-${longest} tcp flags & (fin | syn | rst | ack) == ack ${nothing} return`,
  );

  const hasEgress = bandwidths.egress.size > 0;
  const pairs = directions.flatMap((to) =>
    families.map(
      (f) => `${way[to]} meta priority set ct reply ${header[f]} daddr . meta priority map @bw_pair_${to}${f} return`,
    ),
  );
  const end = add('end', [...acks, ...(hasEgress ? pairs : []), ...classes, nothing]);
  const groupChains = new GroupChains(plan, add, {
    sets,
    numberOf,
    end,
    matches: new FlowMatches(plan.services, sets),
    ask: (name) => [`meta priority set ${keyOf(name)}`, ...police],
  });
  const groupNumbers = scratchNumbers(bandwidths.groups.keys());
  const groupKey = (group: string): string => scratchText(groupNumbers.get(group) ?? 0);
  if (bandwidths.groups.size > 0) {
    const elements = new Map<string, string>();
    for (const key of bandwidths.groups.keys()) {
      const group = plan.groups[key];
      if (group === undefined) continue;
      const first = groupChains.of(group);
      const read = groupChains.ofRead(group);
      elements.set(groupKey(key), `goto ${add('group', [nothing, ...read, `goto ${first}`])}`);
    }
    sets.bw_groups = { type: 'classid', value: 'verdict', elements };
  }
  Object.assign(sets, limitSets(bandwidths), hasEgress ? egressSets(bandwidths) : {});
  Object.assign(sets, memberSets(plan, bandwidths, groupKey));
  const perFamily = (text: (family: 4 | 6) => string): string[] => families.map(text);
  const egressChain = (): string => add('egress', [...police, ...acks, ...classes, nothing]);
  const walk = (): string => add('grouped', ['meta priority vmap @bw_groups']);
  const rules = [
    ...perFamily((f) => (sets[`bw_audit${f}`] ? `ct original ${header[f]} saddr @bw_audit${f} return` : '')),
    ...(hasEgress
      ? perFamily((f) => `meta priority set ct reply ${header[f]} daddr map @bw_egress${f} jump ${egressChain()}`)
      : []),
    ...(bandwidths.groups.size > 0
      ? perFamily((f) => `meta priority set ct original ${header[f]} saddr map @bw_group${f} goto ${walk()}`)
      : []),
  ];
  return { sets, chains, entry: add('bandwidth', rules.filter(Boolean)) };
}

interface Ways {
  sets: Record<string, NftSet>;
  numberOf(id: string): number;
  end: string;
  matches: FlowMatches;
  /** Rules that ask for a limit. */
  ask(name: string): string[];
}

/** The walk of a group's rules, from the last context to the first, since each chain names the next. */
class GroupChains {
  readonly #plan: Plan;
  readonly #add: (noun: string, rules: string[]) => string;
  readonly #ways: Ways;

  constructor(plan: Plan, add: (noun: string, rules: string[]) => string, ways: Ways) {
    this.#plan = plan;
    this.#add = add;
    this.#ways = ways;
  }

  of({ rules }: GroupEntry): string {
    let next = this.#ways.end;
    for (const context of contexts.toReversed()) {
      next = this.#context(context, rules[context], next, false);
    }
    return next;
  }

  /** Rules that lead on what was decided by a rule that is, or comes behind one that is, open until a flow is read. */
  ofRead({ rules }: GroupEntry): string[] {
    const elements = new Map<string, string>();
    const before: Context[] = [];
    let opens = false;
    const decided = (id: string, to: string): void => {
      const end = before.reduceRight((next, context) => this.#context(context, rules[context], next, true), to);
      const chain = this.#add('read', [CHECKED, `goto ${end}`]);
      elements.set(markText(ruleMark(this.#ways.numberOf(id))), `goto ${chain}`);
    };
    for (const context of contexts) {
      for (const id of rules[context]) {
        const rule = this.#plan.rules[id];
        if (rule === undefined || rule.mode === 'Audit') continue;
        opens ||= this.#opens(rule);
        const permits = rule.action === 'accept-decisively' || (rule.action === 'accept' && context === 'service');
        if (opens && permits) decided(id, this.#matched(id, rule, this.#ways.end, true));
      }
      const handsOn = (id: string): boolean => {
        const rule = this.#plan.rules[id];
        return rule?.action === 'accept' && limitsOfRule(id, rule, this.#plan).length > 0;
      };
      // Of others nothing is met.
      if (rules[context].some(handsOn)) before.push(context);
    }
    if (!opens) return [];
    decided(DEFAULT_ACTION, this.#ways.end);
    const name = `bw_read_${digest(JSON.stringify([...elements]))}`;
    this.#ways.sets[name] = { type: 'mark', value: 'verdict', elements };
    return [`meta mark set ct mark and ${markText(CT_RULE_MASK)}`, `meta mark vmap @${name}`, CHECKED];
  }

  #opens({ services }: RuleEntry): boolean {
    if (services === '*') return false;
    return services.some((key) => {
      const entry = this.#plan.services[key];
      return entry?.names !== undefined || entry?.checks !== undefined;
    });
  }

  /** `read`: of flows that are known to have got past it, however: only what hands on is met. */
  #context(context: Context, ids: readonly string[], next: string, read: boolean): string {
    const lines = this.#rules(ids, next, read);
    return lines.length === 0 ? next : this.#add(context, [...lines, `goto ${next}`]);
  }

  #rules(ids: readonly string[], next: string, read: boolean): string[] {
    /** Rules in a row that lead to one chain. */
    const runs: { rules: RuleEntry[]; to: string }[] = [];
    for (const id of ids) {
      const rule = this.#plan.rules[id];
      if (rule === undefined || rule.mode === 'Audit') continue;
      const handsOn = rule.action === 'accept' && rule.context !== 'service';
      const after = handsOn || read ? next : this.#ways.end;
      const to = handsOn || !read ? this.#matched(id, rule, after, false) : after;
      const last = runs.at(-1);
      const joins = rule.redirect === undefined && last?.rules.at(-1)?.redirect === undefined;
      if (joins && last?.to === to) last.rules.push(rule);
      else runs.push({ rules: [rule], to });
    }
    // Nothing matches: to the next context, too.
    while (runs.at(-1)?.to === next) runs.pop();
    return runs.flatMap(({ rules, to }) => {
      const [first] = rules;
      const { matches } = this.#ways;
      const texts = first?.redirect === undefined ? matches.ofRules(rules) : matches.ofRedirect(first);
      return texts.map((match) => `${match}goto ${to}`);
    });
  }

  /** Where a packet goes that a rule matches: to the limits that it meets by that, or straight on. */
  #matched(id: string, rule: RuleEntry, after: string, read: boolean): string {
    const { matches, ask } = this.#ways;
    if (limitsOfRule(id, rule, this.#plan).length === 0) return after;
    const ports = (rule.services === '*' ? [] : rule.services).flatMap((key) => {
      const service = this.#plan.services[key];
      return (service?.limits ?? []).flatMap((limit) => {
        const chain = this.#add('port', ask(portName(key, limit.name)));
        return service === undefined
          ? []
          : matches.ofPort(service, limit, read).map((match) => `${match}jump ${chain}`);
      });
    });
    const own = rule.limits?.bandwidth === undefined ? [] : ask(ruleName(id));
    return this.#add('matched', [...ports, ...own, `goto ${after}`]);
  }
}

/** Buckets, and the class of what meets one limit alone. */
function limitSets(bandwidths: Bandwidths): Record<string, NftSet> {
  const sets: Record<string, NftSet> = {};
  for (const to of directions) {
    const rates = new Map<string, string>();
    const classes = new Map<string, string>();
    const egress = new Set(bandwidths.egress.values());
    for (const [name, { key, shares }] of bandwidths.limits) {
      const bits = shares[to];
      if (bits === undefined) continue;
      rates.set(key, bytesLimitText(Math.max(1, Math.floor(bits / 8)), BURST));
      const found = classOf(bandwidths, egress.has(name) ? pairName(name) : name, to);
      if (found !== undefined) classes.set(key, found);
    }
    sets[`bw_rate_${to}`] = { type: 'classid', limited: 'bytes', elements: rates };
    sets[`bw_class_${to}`] = { type: 'classid', value: 'classid', elements: classes };
  }
  return sets;
}

function egressSets(bandwidths: Bandwidths): Record<string, NftSet> {
  const sets: Record<string, NftSet> = {};
  for (const family of families) {
    const type = addressType[family];
    const addresses = [...bandwidths.egress].filter(([address]) => address.includes(':') === (family === 6));
    const keyOf = (name: string): string => bandwidths.limits.get(name)?.key ?? NOTHING;
    const elements = new Map(addresses.map(([address, name]) => [address, keyOf(name)]));
    sets[`bw_egress${family}`] = { type, value: 'classid', elements };
    for (const to of directions) {
      const pairs = new Map<string, string>();
      for (const [address, egress] of addresses) {
        for (const other of ['', ...(bandwidths.below.get(egress) ?? [])]) {
          const found = classOf(bandwidths, pairName(egress, other), to);
          if (found !== undefined) pairs.set(concat(address, other === '' ? NOTHING : keyOf(other)), found);
        }
      }
      sets[`bw_pair_${to}${family}`] = { type: `${type} . classid`, value: 'classid', elements: pairs };
    }
  }
  return sets;
}

/** Sources: of which group, if it may meet a limit; and those of which nothing is limited, since their policy is in audit. */
function memberSets(plan: Plan, bandwidths: Bandwidths, groupKey: (group: string) => string): Record<string, NftSet> {
  const groups = { 4: new Map<string, string>(), 6: new Map<string, string>() };
  const audited = { 4: new Map<string, string>(), 6: new Map<string, string>() };
  for (const { group, addresses } of Object.values(plan.workloads)) {
    const limited = bandwidths.groups.has(group);
    const audit = bandwidths.egress.size > 0 && plan.groups[group]?.audit === true;
    if (!limited && !audit) continue;
    for (const address of addresses) {
      const family = address.includes(':') ? 6 : 4;
      if (audit) audited[family].set(address, '');
      else groups[family].set(address, groupKey(group));
    }
  }
  const sets: Record<string, NftSet> = {};
  for (const family of families) {
    const type = addressType[family];
    if (bandwidths.groups.size > 0) {
      sets[`bw_group${family}`] = { type, value: 'classid', elements: groups[family] };
    }
    if (audited[family].size > 0) sets[`bw_audit${family}`] = { type, elements: audited[family] };
  }
  return sets;
}
