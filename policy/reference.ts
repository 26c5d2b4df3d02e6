/**
 * The external services that a rule names, resolved to keys of the plan (design §3, "A rule is"). Who may name what:
 * a tenant's rule only its own namespace's, a cluster rule the controller's or a trusted namespace's.
 * A name that does not exist: an accept matches nothing there; a drop or reject keeps the last list that was in force,
 * or is refused if there never was one, since a veto that silently stops to match is worse than one that says so.
 * A service with a list that was never read (`addressesFrom`) is the same in part: an accept matches what is known of
 * it, a drop or reject keeps what was in force, or is refused.
 */

import type { ExternalService, Namespace } from '../api/kinds.ts';
import { LABEL_TRUSTED_SERVICES } from '../api/names.ts';
import type { Action, ServiceEntry } from '../api/plan.ts';
import { type KnownLists, serviceEntryOf, unreadLists } from './external-service.ts';

export type RefusalReason = 'ExternalServiceNotFound' | 'ListNotRead' | 'UntrustedNamespace' | 'ForeignReference';

export type Resolution =
  | {
      ok: true;
      services: string[] | '*';
      /** Names that do not exist. */
      missing: string[];
      /** Services with a list that was never read. */
      unread: string[];
    }
  | { ok: false; reason: RefusalReason; message: string };

export interface ServiceCatalog {
  /** `namespace`: of the rule; absent for a cluster rule. */
  resolve(rule: { namespace?: string; action: Action; names: string[] }): Resolution;
  /** Every external service that a resolved rule uses. */
  used: Record<string, ServiceEntry>;
}

/** Beside what is known of a service now, which an accept rule may use, the plan has what a veto keeps of it. */
const KEPT = ' (last in force)';
const keptKey = (key: string): string => `${key}${KEPT}`;
/** `namespace/name` of a key in a plan's services. */
export const serviceName = (key: string): string => (key.endsWith(KEPT) ? key.slice(0, -KEPT.length) : key);

export function serviceCatalog(input: {
  externalServices: ExternalService[];
  namespaces: Namespace[];
  controllerNamespace: string;
  lastServices: Record<string, ServiceEntry>;
  lists?: KnownLists;
}): ServiceCatalog {
  const objects = new Map(input.externalServices.map((o) => [`${o.metadata.namespace ?? ''}/${o.metadata.name}`, o]));
  const trusted = new Set(
    input.namespaces
      .filter(({ metadata }) => metadata.labels?.[LABEL_TRUSTED_SERVICES] === 'true')
      .map(({ metadata }) => metadata.name),
  ).add(input.controllerNamespace);
  const used: Record<string, ServiceEntry> = {};

  function entryOf(key: string): ServiceEntry {
    const object = objects.get(key);
    if (object !== undefined) return serviceEntryOf(object, input.lists?.get(key));
    // Without an object it is a list that resolve has found among the last.
    return input.lastServices[serviceName(key)] ?? { addresses: [], ports: null };
  }

  function unreadOf(key: string): number[] {
    const object = objects.get(key);
    return object === undefined ? [] : unreadLists(object, input.lists?.get(key));
  }

  function resolve({ namespace, action, names }: Parameters<ServiceCatalog['resolve']>[0]): Resolution {
    const keys: string[] = [];
    for (const name of names) {
      if (name === '*') continue;
      const slash = name.indexOf('/');
      if (slash < 0) {
        keys.push(`${namespace ?? input.controllerNamespace}/${name}`);
        continue;
      }
      if (namespace !== undefined) {
        const message = `externalServices: "${name}" names another namespace; only a cluster rule can`;
        return { ok: false, reason: 'ForeignReference', message };
      }
      const lender = name.slice(0, slash);
      if (!trusted.has(lender)) {
        const message = `externalServices: "${name}": namespace ${lender} is not labelled ${LABEL_TRUSTED_SERVICES}: "true"`;
        return { ok: false, reason: 'UntrustedNamespace', message };
      }
      keys.push(name);
    }
    const missing = keys.filter((key) => !objects.has(key));
    const keepsLast = action === 'drop' || action === 'reject';
    const never = keepsLast ? missing.filter((key) => !Object.hasOwn(input.lastServices, key)) : [];
    if (never.length > 0) {
      const message = `externalServices: ${never.join(', ')} not found and never in force: a ${action} rule would match nothing`;
      return { ok: false, reason: 'ExternalServiceNotFound', message };
    }
    const unread = keys.filter((key) => unreadOf(key).length > 0);
    const unkept = keepsLast ? unread.filter((key) => !Object.hasOwn(input.lastServices, key)) : [];
    if (unkept.length > 0) {
      const which = unkept.map((key) => `${key} (addressesFrom[${unreadOf(key).join('], [')}])`).join(', ');
      const message = `externalServices: ${which} never read and never in force: a ${action} rule would match too little`;
      return { ok: false, reason: 'ListNotRead', message };
    }
    if (names.includes('*')) return { ok: true, services: '*', missing, unread: [] };
    // The last list stays under the service's own key, so an accept rule must not name that key.
    const vetoed = (key: string): string => (unread.includes(key) ? keptKey(key) : key);
    const services = [...new Set(keepsLast ? keys.map(vetoed) : keys.filter((key) => objects.has(key)))];
    for (const key of services) used[key] ??= entryOf(key);
    return { ok: true, services, missing, unread };
  }

  return { resolve, used };
}
