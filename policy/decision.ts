/**
 * The words of the evaluator: what goes in, what comes out, and the walk written down as data (design §4, §9 explain).
 * Types only, so that the walk (evaluate.ts) and its wording (explain.ts) need not know each other.
 */

import type { Application } from '../api/application.ts';
import type { Action, Context, RuleEntry } from '../api/plan.ts';
import type { Reason } from '../api/reasons.ts';
import type { ApplicationReading } from './application.ts';
import type { Destination } from './destination.ts';
import type { Match, ServiceMatch } from './match.ts';
import type { CompiledRedirect } from './redirect.ts';

/** A flow as its first packet shows it, before SNAT. Addresses are canonical text of one family. */
export interface Flow {
  source: string;
  destination: string;
  protocol: number;
  /** TCP, UDP and SCTP only. */
  destinationPort?: number;
  /** ICMP and ICMPv6 only. */
  icmpType?: number;
  icmpCode?: number;
}

/** What is known of a flow beside its addresses and ports (design §4.5, §4.6). */
export interface Known {
  /** What its bytes said. Absent: they were not read, and what they decide is open. */
  reading?: ApplicationReading;
  /** Whether the pool's name table has this address for the name; both canonical. */
  gives(name: string, address: string): boolean;
  /** Names that the table has this address for: of flows of whose bytes nobody asks, or in which no host is named. */
  namesOf(address: string): readonly string[];
}

export interface Decision {
  /**
   * What its first bytes say is still to decide: some outcome would permit the flow, so it may begin, and no byte of it may
   * leave. Absent: nothing is open. Then the verdict is accept, the reason `unread`, and no more is said.
   */
  provisional?: true;
  verdict: 'accept' | 'drop' | 'reject';
  reason: Reason;
  /** Where the walk ended, if a rule decided. */
  context?: Context;
  rule?: string;
  /** The policy of the source is in audit: this would have become of the flow, for the reason above. */
  wouldHave?: 'drop' | 'reject';
  /**
   * Rules with limits that matched before the walk ended, in walking order. What is said here holds while none of those of
   * connections is exceeded, which a walk cannot know; over one the flow is dropped for `limit` (under audit of the policy: counted).
   */
  limits?: string[];
  /**
   * External services that the flow matches only since a check's conformance is not enforced, so that other bytes than the
   * protocol's pass: an audited hit of each. Of a flow that is accepted.
   */
  unconforming?: string[];
  /** How many questions a second one source may ask, by external service that says so: all must hold. */
  questionsPerSecond?: Record<string, number>;
  /** Ports with a bandwidth by which rules that matched accept the flow: `port PORT of NAMESPACE/NAME` → bits per second. */
  ports?: Record<string, number>;
  /** Of a flow of which more is known than its first packet: rules that accepted it above the context that decided, in walking order. */
  passed?: string[];
  /** Rules in audit that matched, in walking order. */
  audited?: AuditHit[];
  /** The flow goes there instead. */
  redirect?: RedirectTarget;
  /** It would have gone there, but that is forbidden, for the reason above, or the policy of the source is in audit. */
  wouldRedirect?: RedirectTarget;
}

export interface RedirectTarget {
  /** Id of the rule that permitted. */
  by: string;
  address: string;
  port?: number;
}

export interface AuditHit {
  context: Context;
  /** Rule id. */
  rule: string;
  /** What the rule would have done. */
  action: Action;
}

/** A rule that the walk considered. */
export interface Step {
  context: Context;
  /** Rule id. */
  rule: string;
  action: Action;
  matched: boolean;
  /** Its first bytes, or the name table, say whether it matches. */
  open?: true;
  /** The rule is in audit: matched or not, it decides nothing. */
  audit?: true;
  why: string;
}

export interface ContextOutcome {
  context: Context;
  /** `open`: what its first bytes say decides it. */
  outcome: 'accepted' | 'decided' | 'open' | 'no-match' | 'not-reached';
  /** The rule that decided the context. */
  rule?: string;
  why: string;
}

export interface Explanation {
  decision: Decision;
  steps: Step[];
  contexts: ContextOutcome[];
  /** The second walk, for the destination that a redirect leads to. */
  again?: Step[];
  /** The decision in one or two plain sentences. */
  summary: string;
  /** Key of the workload that the source belongs to. */
  workload?: string;
}

/** What a flow's checks ask of whoever reads it. */
export interface Reads {
  applications: ReadonlySet<Application>;
  /**
   * What the first bytes say does not decide for good: another request of the same connection, or another question, may
   * be judged otherwise.
   */
  life: boolean;
  /** Exact names whose addresses decide, should no name be read. */
  names: ReadonlySet<string>;
}

export type FlowTest = (destination: Destination, known?: Known) => Match;

export interface CompiledRule {
  id: string;
  entry: RuleEntry;
  /** One per name; no test: there is no such external service, and it matches nothing. `match`: it has names or checks. */
  services: { name: string; test: FlowTest | undefined; match?: ServiceMatch }[];
  /** Whether any of them has names or checks. */
  opens: boolean;
  /** Ports of them that have a bandwidth, of a rule that accepts. */
  ports: { name: string; bandwidth: number; test: FlowTest }[];
  redirect?: CompiledRedirect;
}
