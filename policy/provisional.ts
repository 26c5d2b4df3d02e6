/**
 * The walk of a flow of which nothing was read (design §4.5): whether some outcome of the reading could permit it, so that
 * it may begin and be read. What is not asked is decided by addresses and ports alone (evaluate.ts), as if what is open
 * did not match: no reading would make another verdict of it.
 * The kernel's rules walk the same way at the first packet.
 */

import { type Context, contexts, type PoolSettings, type PortCheck } from '../api/plan.ts';
import type { Known, Reads } from './decision.ts';
import type { Destination } from './destination.ts';
import { namesHosts } from './match.ts';
import { denies, matchOf, NONE, OPEN, type Seen, type Source } from './sources.ts';

export interface Provisional {
  asks: boolean;
  /** Where it ends for certain, if before the last rule. */
  ended?: Context;
}

const decided: Provisional = { asks: false };
const asking: Provisional = { asks: true };

/** `seen`: the walk is not cut short where it is clear that the flow is to be read. */
export function provisional(
  { rules, audit }: Source,
  destination: Destination,
  known: Known | undefined,
  defaultAction: PoolSettings['defaultAction'],
  seen?: Seen,
): Provisional {
  let asks = false;
  /** Something on the way is open; something that is enforced. */
  let pending = false;
  let blocked = false;
  for (const context of contexts) {
    /** An accept above the last context may hand on, whatever comes after it in its own. */
    let passed = false;
    for (const rule of rules[context]) {
      const service = matchOf(rule, destination, known);
      seen?.(rule, service, destination);
      if (service === NONE) continue;
      const { action, mode } = rule.entry;
      const handsOn = action === 'accept' && context !== 'service';
      if (service === OPEN) {
        pending = true;
        if (mode === 'Audit') continue;
        blocked = true;
        if (handsOn) passed = true;
        else if (!denies(rule) && rule.redirect === undefined) {
          if (seen === undefined) return asking;
          asks = true;
        }
        continue;
      }
      if (mode === 'Audit') continue;
      if (handsOn) break;
      // What has to be read can be redirected no more.
      const permits = !denies(rule) && !(blocked && rule.redirect !== undefined);
      if (pending && (audit || (permits && rule.redirect === undefined))) asks = true;
      if (passed) break;
      return { asks, ended: context };
    }
  }
  if (pending && (audit || defaultAction === 'Accept')) asks = true;
  return asks ? asking : decided;
}

/** What the rules that are open on the way of a flow ask for. */
export function readsOf(
  source: Source | undefined,
  destination: Destination,
  defaultAction: PoolSettings['defaultAction'],
): Reads {
  const applications = new Set<PortCheck['application']>();
  const names = new Set<string>();
  let life = false;
  if (source?.opens !== true) return { applications, life, names };
  provisional(source, destination, undefined, defaultAction, (rule, service) => {
    if (service !== OPEN) return;
    for (const { test, match } of rule.services) {
      if (match === undefined) continue;
      const said = test?.(destination);
      if (said !== 'bytes' && said !== 'table') continue;
      const checks = match.checksOf(destination);
      // A permit of what names its host needs that name, whatever the table has.
      const byTable = said === 'table' || denies(rule) || checks.some(({ application }) => !namesHosts(application));
      if (byTable) for (const name of match.exactNames) names.add(name);
      for (const check of checks) {
        applications.add(check.application);
        if (forLife(check, match.names.length > 0, denies(rule))) life = true;
      }
    }
  });
  return { applications, life, names };
}

/**
 * Whether what comes later may be judged otherwise: each request has a Host and a path of its own, each question a name,
 * and a QUIC flow's ports may begin another connection. A permit asks even of a service of addresses whether a Host that
 * is an address is the destination's.
 */
function forLife({ application, http }: PortCheck, named: boolean, vetoes: boolean): boolean {
  if (application === 'HTTP') return named || http !== undefined || !vetoes;
  return application === 'DNS' || application === 'QUIC';
}
