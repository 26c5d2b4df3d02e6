/**
 * The external services that a rule names, resolved to keys of the plan (design §3, "A rule is"). Who may name what:
 * a tenant's rule only its own namespace's, a cluster rule the controller's or a trusted namespace's.
 * A name that does not exist: an accept matches nothing there; a drop or reject keeps the last list that was in force,
 * or is refused if there never was one, since a veto that silently stops to match is worse than one that says so.
 */

import type { ExternalService, Namespace } from '../api/kinds.ts';
import { LABEL_TRUSTED_SERVICES } from '../api/names.ts';
import type { Action, ServiceEntry } from '../api/plan.ts';
import { serviceEntryOf } from './external-service.ts';

export type RefusalReason = 'ExternalServiceNotFound' | 'UntrustedNamespace' | 'ForeignReference';

export type Resolution =
  | { ok: true; services: string[] | '*' /** Names that do not exist. */; missing: string[] }
  | { ok: false; reason: RefusalReason; message: string };

export interface ServiceCatalog {
  /** `namespace`: of the rule; absent for a cluster rule. */
  resolve(rule: { namespace?: string; action: Action; names: string[] }): Resolution;
  /** Every external service that a resolved rule uses. */
  used: Record<string, ServiceEntry>;
}

export function serviceCatalog(input: {
  externalServices: ExternalService[];
  namespaces: Namespace[];
  controllerNamespace: string;
  lastServices: Record<string, ServiceEntry>;
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
    // Without an object it is a list that resolve has found among the last.
    return object === undefined ? (input.lastServices[key] ?? { addresses: [], ports: null }) : serviceEntryOf(object);
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
    if (names.includes('*')) return { ok: true, services: '*', missing };
    // The last list stays under the service's own key, so an accept rule must not name that key.
    const services = [...new Set(keepsLast ? keys : keys.filter((key) => objects.has(key)))];
    for (const key of services) used[key] ??= entryOf(key);
    return { ok: true, services, missing };
  }

  return { resolve, used };
}
