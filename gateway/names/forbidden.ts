/**
 * Addresses that no outside name may have (design §4.6): where one of them were learned, whoever answers for a name could
 * open the way to a place that policy speaks of by other means. Pure.
 */
import { type Address, addressRange, parseAddress } from '../../api/address.ts';
import { neverSteered } from '../../api/never-steered.ts';
import type { GatewayPlan } from '../../api/plan.ts';
import { PrefixSet } from '../../api/prefix-set.ts';
import { must } from '../../api/result.ts';
import { clusterRanges, hairpinAddresses } from '../membership.ts';

/** An IPv4 address as IPv6 (RFC 4291 §2.5.5): a socket takes it for the IPv4 address, past what is asked about that. */
const embedded = ['::/96', '::ffff:0:0/96'];
const never = must(PrefixSet.parse([...neverSteered, ...embedded]));

/** Absent: no plan, or nobody's answers are believed. Then no address may be learned. */
export type Forbidden = PrefixSet | undefined;

export function forbiddenAddresses(plan: GatewayPlan): Forbidden {
  const { settings, nodes } = plan;
  if (!('pool' in settings) || settings.pool.dns === undefined) return undefined;
  const own = [...hairpinAddresses(plan), ...Object.values(nodes).flatMap(({ addresses }) => addresses)];
  const ranges = own.flatMap((text) => {
    const address = parseAddress(text);
    return address.ok ? [addressRange(address.value)] : [];
  });
  return never.union(clusterRanges(settings.pool)).union(PrefixSet.of(ranges));
}

export const isForbidden = (forbidden: Forbidden, address: Address): boolean => forbidden?.has(address) ?? true;
