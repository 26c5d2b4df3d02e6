/**
 * Which records a rule's flows leave (its `logging`), as chains: what it hands on is logged by a statement in the chain
 * that counts it, what it denies is ended by a chain with or without one. A rule that says nothing of it shares its
 * chains with all others of its kind, so no packet pays for another rule's. Starts and ends of what a rule permits
 * come from the connection table and are left out where they are written (record/recorder.ts).
 */
import type { RuleEntry } from '../api/plan.ts';
import type { Chains } from './chains.ts';
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

export function verdictsByLogging(chains: Chains, { decisions, none, match }: Logged): VerdictsFor {
  const verdicts = {
    All: countedVerdicts(chains, decisions, [match]),
    Decisions: countedVerdicts(chains, decisions),
    None: countedVerdicts(chains, none),
  };
  return (rule) => verdicts[rule?.logging ?? 'Decisions'];
}
