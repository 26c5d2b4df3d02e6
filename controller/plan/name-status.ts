/**
 * What an ExternalService says of its names where nobody would know their addresses: a name has those that resolvers of the
 * pool answered, so in a pool without resolvers no rule accepts by name.
 */
import type { ExternalService, Namespace } from '../../api/kinds.ts';
import { CONTROLLER_NAMESPACE } from '../../api/names.ts';
import { namesOf } from '../../policy/external-service.ts';
import { lendsServices } from '../../policy/reference.ts';
import type { Condition } from './condition.ts';
import type { Pool } from './pools.ts';

/** Whether one of the pools has resolvers in which rules may name the services of this namespace; or there is none such. */
export function knowsNames(
  namespace: Namespace | undefined,
  pool: string | undefined,
  pools: readonly Pool[],
): boolean {
  const lent =
    namespace !== undefined && (namespace.metadata.name === CONTROLLER_NAMESPACE || lendsServices(namespace));
  // Nobody's rules are in force there.
  if (!lent && pool === undefined) return true;
  return pools.some(({ name, settings }) => (lent || name === pool) && settings.dns !== undefined);
}

/** Undefined: nothing is wrong. `known`: as knowsNames says of its namespace. */
export function nameProblem(service: ExternalService, known: boolean): Condition | undefined {
  if (known || namesOf(service).length === 0) return undefined;
  const message =
    'addresses: has names, and the GatewayPool has no dns.resolvers: no name has an address, so no rule accepts by name';
  return { type: 'Accepted', status: 'True', reason: 'NoResolvers', message };
}
