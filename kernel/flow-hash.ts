/**
 * The hash by which a flow chooses among the addresses of an EgressIP of spread Connection (design §6). A node finds
 * the shard by it and a gateway the address: over the same bytes, since nothing between them changes them, so that the
 * address that the gateway finds is one of the shard that it was asked as. ICMP has its type and code where ports
 * stand, so that a ping keeps its address. What shows neither is hashed by its addresses alone.
 * The kernel hashes words in the order of the machine's bytes: nodes and gateways must agree in it.
 */
import { FLOW_HASH_SEED } from '../api/names.ts';
import type { Family } from '../api/plan.ts';

const header = { 4: 'ip', 6: 'ip6' } as const;

/**
 * Expressions that give 0 to `slots` - 1, plus `offset`; the first that the packet has bytes for holds.
 * `asSent`: by the addresses with which the packet came in, wherever it was redirected since.
 */
export function flowHash(family: Family, slots: number, { asSent = false, offset = 0 } = {}): string[] {
  const ip = asSent ? `ct original ${header[family]}` : header[family];
  const addresses = `${ip} saddr . ${ip} daddr`;
  const modulus = `mod ${slots} seed 0x${FLOW_HASH_SEED.toString(16)}${offset === 0 ? '' : ` offset ${offset}`}`;
  return [`jhash ${addresses} . th sport ${modulus}`, `jhash ${addresses} ${modulus}`];
}
