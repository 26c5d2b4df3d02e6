/**
 * What becomes of a flow that a rule matches, as nftables statements.
 */
import { GATEWAY_CHECKED_MARK, GATEWAY_CT_MASK } from '../api/names.ts';
import type { RuleEntry } from '../api/plan.ts';
import { markText } from '../kernel/nft.ts';
import { ruleMark } from './marks.ts';

/** Statements that permit a flow in the name of a rule. It is decided when its first packet leaves: lastHook(). */
export function decide(number: number): string {
  const keep = markText(~GATEWAY_CT_MASK);
  return `ct mark set ct mark and ${keep} or ${markText(ruleMark(number))} meta mark set ${markText(GATEWAY_CHECKED_MARK)} accept`;
}

/** Chains that end a flow. */
export interface Endings {
  drop: string;
  reject: string;
  /** The drop of the pool's default action, made if it is needed. */
  byDefault(): string;
}

/** What a matching rule does. `accept` above the service context only ends its own context: back to the walk. */
export function verdictOf(rule: RuleEntry, number: number, { drop, reject }: Endings): string {
  switch (rule.action) {
    case 'accept':
      return rule.context === 'service' ? decide(number) : 'return';
    case 'accept-decisively':
      return decide(number);
    case 'drop':
      return `meta mark set ${markText(ruleMark(number))} goto ${drop}`;
    case 'reject':
      return `meta mark set ${markText(ruleMark(number))} goto ${reject}`;
  }
}
