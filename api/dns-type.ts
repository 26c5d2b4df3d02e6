/**
 * Types of DNS records as texts (IANA "Resource Record (RR) TYPEs"; RFC 3597 §5 for those without a name of their own):
 * one text for each, so that what a policy asks for and what was read can be compared as texts. Of the registry those in
 * use; the others are TYPEn.
 */

import { fail, ok, type Result } from './result.ts';

/** By name. Names are upper case. */
export const dnsTypes: Readonly<Record<string, number>> = {
  A: 1,
  NS: 2,
  CNAME: 5,
  SOA: 6,
  NULL: 10,
  PTR: 12,
  HINFO: 13,
  MX: 15,
  TXT: 16,
  RP: 17,
  AFSDB: 18,
  SIG: 24,
  KEY: 25,
  AAAA: 28,
  LOC: 29,
  SRV: 33,
  NAPTR: 35,
  KX: 36,
  CERT: 37,
  DNAME: 39,
  APL: 42,
  DS: 43,
  SSHFP: 44,
  IPSECKEY: 45,
  RRSIG: 46,
  NSEC: 47,
  DNSKEY: 48,
  DHCID: 49,
  NSEC3: 50,
  NSEC3PARAM: 51,
  TLSA: 52,
  SMIMEA: 53,
  HIP: 55,
  CDS: 59,
  CDNSKEY: 60,
  OPENPGPKEY: 61,
  CSYNC: 62,
  ZONEMD: 63,
  SVCB: 64,
  HTTPS: 65,
  SPF: 99,
  EUI48: 108,
  EUI64: 109,
  IXFR: 251,
  AXFR: 252,
  ANY: 255,
  URI: 256,
  CAA: 257,
};
const names = new Map(Object.entries(dnsTypes).map(([name, number]) => [number, name]));

/** `AAAA`, or `TYPE4242` where we know no name. */
export const dnsTypeText = (type: number): string => names.get(type) ?? `TYPE${type}`;

/** The one text of a type: `TYPE28` is `AAAA`. The error says what was expected. */
export function parseDnsType(text: string): Result<string> {
  if (Object.hasOwn(dnsTypes, text)) return ok(text);
  const number = /^TYPE(0|[1-9][0-9]{0,4})$/.exec(text)?.[1];
  if (number === undefined || Number(number) > 0xffff)
    return fail('a type of DNS in upper case, as AAAA or TYPE65, up to TYPE65535');
  return ok(dnsTypeText(Number(number)));
}
