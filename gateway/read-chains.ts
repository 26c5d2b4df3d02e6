/**
 * What becomes of the packets of flows that are read (design §4.5, §5), in the forward hook behind the queue: chains that
 * are there only while a rule asks for what flows say. Before them the table sluice_inspect has marked what goes to the
 * queue and what need not (inspect/table.ts), and the threads have given their verdicts as marks.
 *
 *   read_forward   a packet of such a flow passes if it need not be read, or was let on; whatever is missing (that table,
 *                  the rule that queues, a thread that answers), no byte leaves
 *   read_verdict   what a flow said decides it, in the name of a rule: its hit is counted, its limits hold, and its number
 *                  stands in the ct mark, beside READ if the flow is read for life
 *   read_last      of the last hook: a flow that is read is never a decided one, so each packet is asked for its source
 */
import {
  CT_DECIDED,
  CT_READ,
  CT_RULE_MASK,
  CT_RULE_SHIFT,
  GATEWAY_CHECKED_MARK,
  GATEWAY_CT_MASK,
  GATEWAY_PROHIBIT_MARK,
  GATEWAY_RESET_MARK,
  INSPECT_LIFE_MARK,
  INSPECT_PASSED_MARK,
  INSPECT_QUEUE_MARK,
  INSPECT_VERDICT_MARK,
  NUMBER_READ_BYTES,
  NUMBER_READ_FIRST,
} from '../api/names.ts';
import type { RuleLimits } from '../api/plan.ts';
import { markText } from '../kernel/nft.ts';
import { limitLines } from './limits.ts';
import type { Scope } from './table.ts';
import { HITS_SET } from './verdict.ts';

export interface ReadEnds {
  /** Rules that drop what was not let on. */
  unread: string[];
  /** The chain for what is over a limit of the rule of its mark. */
  overLimit: string;
  /** Rules for the last hook. */
  last: string[];
  /** What becomes of what cannot be read for want of threads or room. */
  overload: 'Drop' | 'Accept';
}

export const READ_LAST = 'read_last';

const has = (what: 'meta mark' | 'ct mark', bits: number): string =>
  `${what} and ${markText(bits)} == ${markText(bits)}`;

/** A flow that was decided before is read no more, whatever asks for it now. */
export const isRead = `ct mark and ${markText(CT_READ | CT_DECIDED)} == ${markText(CT_READ)}`;

const rule = markText(CT_RULE_MASK);
const passed = `meta mark set ${markText(GATEWAY_CHECKED_MARK | INSPECT_PASSED_MARK)} accept`;
/** Bits of the ct mark that are somebody else's. */
const OTHERS = ~GATEWAY_CT_MASK >>> 0;
/** Of the two numbers that say so; no rule's number has all these bits. */
const UNDECIDED = (NUMBER_READ_BYTES & NUMBER_READ_FIRST) << CT_RULE_SHIFT;
/** Any rule may have any limit: what has none is in no set. */
const everyLimit: RuleLimits = { connectionsPerSecond: 1, maxConnections: 1 };

export function addReadChains(scope: Scope, { unread, overLimit, last, overload }: ReadEnds): void {
  const chain = (name: string, rules: string[]): string => {
    scope.chain(name, { rules });
    return name;
  };
  const drop = chain('drop_unread', unread);
  const passesOver = overload === 'Accept' ? [`${has('meta mark', INSPECT_QUEUE_MARK)} accept`] : [];
  const read = chain('read_packets', [
    `${has('meta mark', INSPECT_VERDICT_MARK)} goto ${verdict(chain, overLimit)}`,
    `${has('meta mark', INSPECT_PASSED_MARK)} accept`,
    // Exactly: in a verdict these are bits of a rule's number.
    `meta mark ${markText(GATEWAY_RESET_MARK)} reject with tcp reset`,
    `meta mark ${markText(GATEWAY_PROHIBIT_MARK)} reject with icmpx admin-prohibited`,
    ...passesOver,
    `goto ${drop}`,
  ]);
  scope.chain('read_forward', {
    hook: 'type filter hook forward priority -140; policy accept;',
    rules: [`${isRead} goto ${read}`],
  });
  chain(READ_LAST, last);
}

/** The marks of verdicts: VERDICT, a number, LIFE. */
function verdict(chain: (name: string, rules: string[]) => string, overLimit: string): string {
  // No statement takes bits from both marks: those that are somebody else's are few, and mostly 0.
  const bits = Array.from({ length: 8 }, (_, at) => 1 << at);
  const keep = chain('read_keep', [
    `ct mark and ${markText(OTHERS)} == 0x00000000 ct mark set meta mark ${passed}`,
    ...bits.map((bit) => `${has('ct mark', bit)} meta mark set meta mark or ${markText(bit)}`),
    `ct mark set meta mark ${passed}`,
  ]);
  // Once: with the packet that brings the verdict come those that were held with it. What had a rule before was counted for it.
  const count = chain('read_count', [...limitLines(everyLimit, overLimit), `update @${HITS_SET} { meta mark }`]);
  const decided = [`meta mark set meta mark and ${rule}`, `${has('ct mark', UNDECIDED)} jump ${count}`];
  const more = markText(CT_READ | (NUMBER_READ_BYTES << CT_RULE_SHIFT));
  return chain('read_verdict', [
    // Not a rule: the flow's first packet may go, its bytes are to be read.
    `meta mark and ${rule} == ${markText(NUMBER_READ_BYTES << CT_RULE_SHIFT)} ct mark set ct mark and ${markText(OTHERS)} or ${more} ${passed}`,
    `${has('meta mark', INSPECT_LIFE_MARK)} goto ${chain('read_life', [...decided, `meta mark set meta mark or ${markText(CT_READ)}`, `goto ${keep}`])}`,
    ...decided,
    `goto ${keep}`,
  ]);
}
