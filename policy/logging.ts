/**
 * Which flow records a walk leaves where a rule's `logging` says otherwise than the default, in words (design §4.7). What a
 * rule in audit notes does not depend on it.
 */
import type { Policy } from '../api/plan.ts';
import type { Explanation } from './decision.ts';

/** One text each, without a full stop; none: its start and end, or its denial, as always. */
export function describeLogging(
  { contexts, decision }: Pick<Explanation, 'contexts' | 'decision'>,
  rules: Policy['rules'],
): string[] {
  const loggingOf = (id: string | undefined): 'All' | 'None' | undefined =>
    id === undefined ? undefined : rules[id]?.logging;
  const handedOn = contexts.filter(
    ({ context, outcome, rule }) => context !== 'service' && outcome === 'accepted' && loggingOf(rule) === 'All',
  );
  const what = decision.verdict === 'accept' ? 'start and end' : 'denial';
  return [
    ...handedOn.map(({ rule }) => `a match of ${rule}, which says logging: All`),
    ...(loggingOf(decision.rule) === 'None' ? [`no ${what}, since ${decision.rule} says logging: None`] : []),
  ];
}
