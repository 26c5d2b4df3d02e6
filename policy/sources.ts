/**
 * Who sends from an address and which rules can apply to it, ready to be asked; and whether one rule matches. Of a policy
 * of 100,000 rules a few are asked for: each is made ready when it is needed first.
 */

import type { Context, Policy, ServiceEntry, WorkloadEntry } from '../api/plan.ts';
import type { CompiledRule, Known } from './decision.ts';
import { compilePorts, compileService, type Destination } from './destination.ts';
import { isRead } from './external-service.ts';
import { compileMatch } from './match.ts';
import { canRedirect, compileRedirect } from './redirect.ts';

export interface Source {
  key: string;
  workload: WorkloadEntry;
  rules: Record<Context, CompiledRule[]>;
  /** Its whole policy is in audit. */
  audit: boolean;
  /** Whether any of the rules can be open. */
  opens: boolean;
}

/** What the walk saw of one rule; `service` is as matchOf has it, `asked` what was asked for. */
export type Seen = (rule: CompiledRule, service: number, asked: Destination) => void;

/** Instead of the index of the external service that matches: it names any destination; none does; none does yet. */
export const ANY = 0;
export const NONE = -1;
export const OPEN = -2;

export function matchOf(rule: CompiledRule, destination: Destination, known: Known | undefined): number {
  if (rule.redirect !== undefined && !canRedirect(rule.redirect, destination)) return NONE;
  if (rule.entry.services === '*') return ANY;
  if (!rule.opens) return rule.services.findIndex(({ test }) => test?.(destination) === 'match');
  let otherwise = NONE;
  for (const [index, { test }] of rule.services.entries()) {
    const said = test?.(destination, known);
    if (said === 'match') return index;
    if (said === 'unconforming' && otherwise < 0) otherwise = index;
    else if ((said === 'bytes' || said === 'table') && otherwise === NONE) otherwise = OPEN;
  }
  return otherwise;
}

export const denies = ({ entry }: CompiledRule): boolean => entry.action === 'drop' || entry.action === 'reject';

export function sourcesOf(
  policy: Policy,
  workloadOf: (address: string) => WorkloadEntry | undefined,
): (address: string) => Source | undefined {
  const strict = 'pool' in policy.settings && policy.settings.pool.dns?.strict === true;
  const plain = once((name: string) => {
    const entry = own(policy.services, name);
    return { name, test: entry && compileService(entry) };
  });
  const open = (vetoes: boolean) =>
    once((name: string) => {
      const match = compileMatch(own(policy.services, name) as ServiceEntry, { denies: vetoes, strict });
      return { name, test: match.test, match };
    });
  const vetoed = open(true);
  const permitted = open(false);
  const rule = once((id: string): CompiledRule => {
    const entry = own(policy.rules, id) ?? missing('rule', id);
    const redirect = entry.redirect && { redirect: compileRedirect(entry.redirect) };
    const names = entry.services === '*' ? [] : entry.services;
    // What lets nothing through has nothing to limit.
    const accepts = entry.action === 'accept' || entry.action === 'accept-decisively';
    const service = (name: string): CompiledRule['services'][number] => {
      const found = own(policy.services, name);
      if (found === undefined || !isRead(found)) return plain(name);
      return accepts ? permitted(name) : vetoed(name);
    };
    const services = names.map(service);
    const ports = accepts ? services.flatMap((one) => portsOf(one, own(policy.services, one.name))) : [];
    return { id, entry, services, opens: services.some(({ match }) => match !== undefined), ports, ...redirect };
  });
  const group = once((key: string) => {
    const { rules, audit } = own(policy.groups, key) ?? missing('group', key);
    const { cluster, namespace, service: last } = rules;
    const compiled = { cluster: cluster.map(rule), namespace: namespace.map(rule), service: last.map(rule) };
    const opens = Object.values(compiled).some((list) => list.some((one) => one.opens));
    return { rules: compiled, audit: audit === true, opens };
  });
  return (address) => {
    const workload = workloadOf(address);
    return workload && { key: workload.uid, workload, ...group(workload.group) };
  };
}

const own = <T>(collection: Record<string, T>, key: string): T | undefined =>
  Object.hasOwn(collection, key) ? collection[key] : undefined;

function once<T>(make: (key: string) => T): (key: string) => T {
  const made = new Map<string, T>();
  return (key) => {
    let known = made.get(key);
    if (known === undefined) {
      known = make(key);
      made.set(key, known);
    }
    return known;
  };
}

/** Who sends from an address; nobody, should two claim it (gateway/sources.ts). */
export function workloadsByAddress({
  workloads,
}: Pick<Policy, 'workloads'>): (address: string) => WorkloadEntry | undefined {
  const found = new Map<string, WorkloadEntry | undefined>();
  for (const workload of Object.values(workloads))
    for (const address of workload.addresses) found.set(address, found.has(address) ? undefined : workload);
  return (address) => found.get(address);
}

/** Ports of a service that have a limit, which holds for what the service matches there. */
function portsOf(
  { name, test }: CompiledRule['services'][number],
  entry: ServiceEntry | undefined,
): CompiledRule['ports'] {
  return (entry?.limits ?? []).map((limit) => {
    const covers = compilePorts([limit]);
    return {
      name: `port ${limit.name} of ${name}`,
      bandwidth: limit.bandwidth,
      test: (destination, known) =>
        covers(destination) === 'match' ? (test?.(destination, known) ?? 'address') : 'port',
    };
  });
}

/** A plan that names what it does not hold must not come into force: half a policy may permit what all of it forbids. */
function missing(what: string, name: string): never {
  throw new TypeError(`policy: no ${what} ${JSON.stringify(name)}`);
}
