/**
 * Which records a rule's flows leave (its `logging`), as chains: what it hands on is logged by a statement in the chain
 * that counts it, what it denies is ended by a chain with or without one. A rule that says nothing of it shares its
 * chains with all others of its kind, so no packet pays for another rule's. Starts and ends of what a rule permits
 * come from the connection table and are left out where they are written (record/recorder.ts).
 */
import type { RuleEntry } from '../api/plan.ts';
import { countedVerdicts, type Denials, type Verdicts } from './verdict.ts';

export interface Logged {
  /** Chains that log what they end. */
  decisions: Denials;
  /** The same, and nothing is logged but hits of audit. */
  none: Denials;
  /** Statement that logs what a rule hands on. */
  match: string;
}

export type VerdictsFor = (rule: Pick<RuleEntry, 'logging'> | undefined) => Verdicts;

/** `chain` makes a chain of these rules. */
export function verdictsByLogging(
  chain: (name: string, rules: string[]) => string,
  { decisions, none, match }: Logged,
): VerdictsFor {
  const suffixed = (suffix: string) => (name: string, rules: string[]) => chain(`${name}${suffix}`, rules);
  const verdicts = {
    All: countedVerdicts(suffixed('_logged'), decisions, [match]),
    Decisions: countedVerdicts(chain, decisions),
    None: countedVerdicts(suffixed('_unlogged'), none),
  };
  return (rule) => verdicts[rule?.logging ?? 'Decisions'];
}
