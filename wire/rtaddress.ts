/**
 * rtnetlink messages that add, renew and remove addresses of interfaces (<linux/if_addr.h>): what `ip addr` says, for a
 * thread that has no time to start it. Addresses of IPv6 come without duplicate detection and without a route to their prefix.
 * Leaves out: peers, labels, broadcast addresses.
 */

import { addressBytes } from './address-text.ts';
import { join } from './bytes.ts';
import { attribute, NLM_F_ACK, NLM_F_CREATE, NLM_F_REQUEST, NLMSG_HEADER } from './nlattr.ts';

const RTM_NEWADDR = 20;
const RTM_DELADDR = 21;
const NLM_F_REPLACE = 0x100;
const AF_INET = 2;
const AF_INET6 = 10;
/** struct ifaddrmsg. */
const ADDRESS_BODY = 8;
const IFA_ADDRESS = 1;
const IFA_LOCAL = 2;
const IFA_CACHEINFO = 6;
const IFA_FLAGS = 8;
const IFA_F_NODAD = 0x02;
const IFA_F_NOPREFIXROUTE = 0x200;
const FOR_EVER = 0xffffffff;

export interface LinkAddress {
  /** Of the interface. */
  index: number;
  address: string;
  prefixLength: number;
}

/**
 * Adds it, or gives it another lifetime. With `validSeconds` the kernel removes it by itself when they are over, and
 * never chooses it as a source meanwhile (it is deprecated); without, it stays.
 */
export function encodeAddressAdd(address: LinkAddress, sequence: number, validSeconds?: number): Uint8Array {
  const lifetime = validSeconds ?? FOR_EVER;
  const cache = new Uint8Array(16);
  const view = new DataView(cache.buffer);
  view.setUint32(0, validSeconds === undefined ? FOR_EVER : 0, true);
  view.setUint32(4, lifetime, true);
  const flags = new Uint8Array(Uint32Array.of(IFA_F_NODAD | IFA_F_NOPREFIXROUTE).buffer);
  return message(RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, address, sequence, [
    attribute(IFA_CACHEINFO, cache),
    ...(address.address.includes(':') ? [attribute(IFA_FLAGS, flags)] : []),
  ]);
}

/** With the prefix length that it was added with. */
export function encodeAddressRemove(address: LinkAddress, sequence: number): Uint8Array {
  return message(RTM_DELADDR, 0, address, sequence, []);
}

function message(
  type: number,
  flags: number,
  { index, address, prefixLength }: LinkAddress,
  sequence: number,
  more: Uint8Array[],
): Uint8Array {
  const local = addressBytes(address);
  const bytes = join([
    new Uint8Array(NLMSG_HEADER + ADDRESS_BODY),
    attribute(IFA_LOCAL, local),
    attribute(IFA_ADDRESS, local),
    ...more,
  ]);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, bytes.length, true);
  view.setUint16(4, type, true);
  view.setUint16(6, NLM_F_REQUEST | NLM_F_ACK | flags, true);
  view.setUint32(8, sequence, true);
  bytes[NLMSG_HEADER] = local.length === 4 ? AF_INET : AF_INET6;
  bytes[NLMSG_HEADER + 1] = prefixLength;
  view.setUint32(NLMSG_HEADER + 4, index, true);
  return bytes;
}
