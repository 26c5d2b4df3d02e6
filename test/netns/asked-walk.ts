/**
 * The walk before the walk, written down a third time and as plainly as can be (design §4.5): what a flow of which nothing
 * was read is asked for, by the words of the plan alone. Neither the compiler nor the evaluator has a part in it.
 */
import { parseAddress, parsePrefix, parseRange, prefixRange } from '../../api/address.ts';
import { contexts, type GatewayPlan, type PortEntry, type RuleEntry } from '../../api/plan.ts';
import { must } from '../../api/result.ts';

export interface AskedFlow {
  source: string;
  destination: string;
  protocol: number;
  /** Port, or type * 256 + code. */
  port?: number;
}

type Match = 'match' | 'no' | { first: boolean };

function lies(address: string, text: string): boolean {
  if (text.includes(':') !== address.includes(':')) return false;
  const { value } = must(parseAddress(address));
  const { first, last } = text.includes('/') ? prefixRange(must(parsePrefix(text))) : must(parseRange(text));
  return first <= value && value <= last;
}

function covers(entries: readonly PortEntry[] | null, { protocol, port, destination }: AskedFlow): boolean {
  const family = destination.includes(':') ? 6 : 4;
  const numbered = [6, 17, 132].includes(protocol) || protocol === (family === 4 ? 1 : 58);
  const ranged = [6, 17, 132, 1, 58].includes(protocol);
  if (entries === null) return true;
  return entries.some((entry) => {
    if (entry.protocol !== protocol) return false;
    if (entry.ports === null || !ranged) return true;
    return numbered && port !== undefined && entry.ports.some(([first, last]) => first <= port && port <= last);
  });
}

function matchOf(plan: GatewayPlan, rule: RuleEntry, flow: AskedFlow): Match {
  if (rule.redirect !== undefined) {
    const same = rule.redirect.address.includes(':') === flow.destination.includes(':');
    if (!same || ![6, 17, 132].includes(flow.protocol)) return 'no';
  }
  if (rule.services === '*') return 'match';
  let open: { first: boolean } | undefined;
  for (const name of rule.services) {
    const entry = plan.services[name];
    if (entry === undefined || !covers(entry.ports, flow)) continue;
    const there = entry.addresses.some((text) => lies(flow.destination, text));
    if (covers(entry.checks ?? [], flow)) {
      if (there || entry.names !== undefined) open = { first: open?.first ?? false };
    } else if (there) return 'match';
    else if (entry.names !== undefined) open = { first: true };
  }
  return open ?? 'no';
}

/** undefined: it is decided at once. */
export function askedOf(plan: GatewayPlan, flow: AskedFlow): 'bytes' | 'first' | undefined {
  const workload = Object.values(plan.workloads).find(({ addresses }) => addresses.includes(flow.source));
  const group = plan.groups[workload?.group ?? ''];
  if (group === undefined || !('pool' in plan.settings)) return undefined;
  let [pending, first] = [false, false];
  const ask = (): 'bytes' | 'first' => (first ? 'first' : 'bytes');
  for (const context of contexts) {
    let passed = false;
    for (const id of group.rules[context]) {
      const rule = plan.rules[id];
      if (rule === undefined) throw new Error(`no rule ${id}`);
      const found = matchOf(plan, rule, flow);
      const audit = rule.mode === 'Audit';
      const handsOn = rule.action === 'accept' && context !== 'service';
      const permits = !handsOn && rule.action.startsWith('accept') && rule.redirect === undefined;
      if (found === 'no' || (found === 'match' && audit)) continue;
      if (found === 'match') {
        if (handsOn) break;
        if (pending && (permits || group.audit)) return ask();
        if (!permits && passed) break;
        return undefined;
      }
      pending = true;
      first ||= found.first;
      if (audit) continue;
      if (permits) return ask();
      if (handsOn) passed = true;
    }
  }
  return pending && (group.audit || plan.settings.pool.defaultAction === 'Accept') ? ask() : undefined;
}
