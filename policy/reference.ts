/**
 * The external services that a rule names, resolved to keys of the plan (design §3, "A rule is"). Who may name what:
 * a tenant's rule only its own namespace's, a cluster rule the controller's or a trusted namespace's.
 * A name that does not exist: an accept matches nothing there; a drop or reject keeps the last list that was in force,
 * or is refused if there never was one, since a veto that silently stops to match is worse than one that says so.
 * So it is with a namespace that is gone, or not trusted any more: what it lent last stays in a veto, and nothing else.
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
      /** Names in namespaces that lend no more. */
      withdrawn: string[];
    }
  | { ok: false; reason: RefusalReason; message: string };

export interface ServiceCatalog {
  /** `namespace`: of the rule; absent for a cluster rule. */
  resolve(rule: { namespace?: string; action: Action; names: string[] }): Resolution;
  /** Of a key that a resolution gave. */
  entry(key: string): ServiceEntry;
  /** What answers were made of, beside the objects. */
  watched(): Watched[];
}

/** What is known of external services beside their objects. */
export interface KnownServices {
  /** Lists that were in force last, for drop and reject rules whose ExternalService is gone. By `namespace/name`. */
  lastServices: Readonly<Record<string, ServiceEntry>>;
  /** What `addressesFrom` lists; absent: nothing is known. */
  lists?: KnownLists | undefined;
}

/** A service that is missing, or has lists of elsewhere, and what was known of it. */
export interface Watched {
  key: string;
  last: ServiceEntry | undefined;
  lists: (readonly string[] | undefined)[];
}

export const isUnchanged = ({ key, last, lists }: Watched, known: KnownServices): boolean => {
  const now = known.lists?.get(key) ?? [];
  return (
    lastOf(key, known) === last && now.length === lists.length && lists.every((list, i) => list === now[i]?.addresses)
  );
};

/** Tenants choose names. */
const lastOf = (key: string, { lastServices }: KnownServices): ServiceEntry | undefined =>
  Object.hasOwn(lastServices, key) ? lastServices[key] : undefined;

/** Beside what is known of a service now, which an accept rule may use, the plan has what a veto keeps of it. */
const KEPT = ' (last in force)';
const keptKey = (key: string): string => `${key}${KEPT}`;
/** The same of what a namespace lent. Its own vetoes may have another list by now. */
const LENT = ' (as it was lent)';
const lentKey = (key: string): string => `${key}${LENT}`;
/** `namespace/name` of a key in a plan's services. */
export const serviceName = (key: string): string => [KEPT, LENT].reduce(without, key);
/** Under which a veto's list is remembered. */
export const vetoKey = (key: string): string => without(key, KEPT);
const without = (key: string, suffix: string): string => (key.endsWith(suffix) ? key.slice(0, -suffix.length) : key);

/** Rules of these actions keep the last list of a service that is gone. */
export const isVeto = (action: Action): boolean => action === 'drop' || action === 'reject';

/** Whether a namespace lends its services to cluster rules. */
export const lendsServices = ({ metadata }: Namespace): boolean => metadata.labels?.[LABEL_TRUSTED_SERVICES] === 'true';

/** `namespace/name` of what a rule of this namespace names; without one: a rule of the cluster. */
export const namedService = (name: string, namespace: string | undefined, controllerNamespace: string): string =>
  name.includes('/') ? name : `${namespace ?? controllerNamespace}/${name}`;

export function serviceCatalog(input: {
  /** By `namespace/name`. */
  find(key: string): ExternalService | undefined;
  /** As lendsServices of the namespace; the controller's own lends always. */
  trusts(namespace: string): boolean;
  controllerNamespace: string;
  known: KnownServices;
}): ServiceCatalog {
  const { lists } = input.known;
  const watched = new Map<string, Watched>();

  function find(key: string): ExternalService | undefined {
    const object = input.find(key);
    if ((object === undefined || object.spec.addressesFrom !== undefined) && !watched.has(key)) {
      const addresses = (lists?.get(key) ?? []).map((list) => list.addresses);
      watched.set(key, { key, last: lastOf(key, input.known), lists: addresses });
    }
    return object;
  }
  const has = (key: string): boolean => find(key) !== undefined;

  function entry(key: string): ServiceEntry {
    const object = find(key);
    if (object !== undefined) return serviceEntryOf(object, lists?.get(key));
    // Without an object it is a list that resolve has found among the last.
    return lastOf(key, input.known) ?? lastOf(serviceName(key), input.known) ?? { addresses: [], ports: null };
  }

  function unreadOf(key: string): number[] {
    const object = find(key);
    return object === undefined ? [] : unreadLists(object, lists?.get(key));
  }

  function resolve({ namespace, action, names }: Parameters<ServiceCatalog['resolve']>[0]): Resolution {
    const keepsLast = isVeto(action);
    const keys: string[] = [];
    const withdrawn: string[] = [];
    for (const name of names) {
      if (name === '*') continue;
      const slash = name.indexOf('/');
      if (slash < 0) {
        keys.push(namedService(name, namespace, input.controllerNamespace));
        continue;
      }
      if (namespace !== undefined) {
        const message = `externalServices: "${name}" names another namespace; only a cluster rule can`;
        return { ok: false, reason: 'ForeignReference', message };
      }
      const lender = name.slice(0, slash);
      if (lender !== input.controllerNamespace && !input.trusts(lender)) {
        if (keepsLast && [lentKey(name), name].some((key) => lastOf(key, input.known) !== undefined)) {
          withdrawn.push(name);
          continue;
        }
        const message = `externalServices: "${name}": namespace ${lender} is not labelled ${LABEL_TRUSTED_SERVICES}: "true"`;
        return { ok: false, reason: 'UntrustedNamespace', message };
      }
      keys.push(name);
    }
    const missing = keys.filter((key) => !has(key));
    const never = keepsLast ? missing.filter((key) => lastOf(key, input.known) === undefined) : [];
    if (never.length > 0) {
      const message = `externalServices: ${never.join(', ')} not found and never in force: a ${action} rule would match nothing`;
      return { ok: false, reason: 'ExternalServiceNotFound', message };
    }
    const unread = keys.filter((key) => unreadOf(key).length > 0);
    const unkept = keepsLast ? unread.filter((key) => lastOf(key, input.known) === undefined) : [];
    if (unkept.length > 0) {
      const which = unkept.map((key) => `${key} (addressesFrom[${unreadOf(key).join('], [')}])`).join(', ');
      const message = `externalServices: ${which} never read and never in force: a ${action} rule would match too little`;
      return { ok: false, reason: 'ListNotRead', message };
    }
    if (names.includes('*')) return { ok: true, services: '*', missing, unread: [], withdrawn };
    // The last list stays under the service's own key, so an accept rule must not name that key.
    const vetoed = (key: string): string => (unread.includes(key) ? keptKey(key) : key);
    const found = keepsLast ? [...keys.map(vetoed), ...withdrawn.map(lentKey)] : keys.filter(has);
    return { ok: true, services: [...new Set(found)], missing, unread, withdrawn };
  }

  return { resolve, entry, watched: () => [...watched.values()] };
}
