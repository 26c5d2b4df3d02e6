/**
 * The way out of a list of rules for what its last rules cannot be about: those of one team name networks that often lie
 * close together, and a packet to elsewhere leaves after one comparison of the prefix that covers them all, instead of one for each.
 */
import { addressBits, formatPrefix, hullOf, type Range } from '../api/address.ts';
import { type Family, families } from '../api/plan.ts';
import { type Found, header, setsOf } from './destination-sets.ts';

/** Comparisons that have to be spared. */
const SPARED = 4;
/** Of a shorter prefix most packets are within. */
const SHORTEST = { 4: 8, 6: 16 } as const;

/**
 * `found`: of the rules of a list's end, in their order; undefined: any destination. Gives where the lines are to stand. Rules
 * with sets of their own have none: a change of an address is to be an element, and not another prefix, too.
 */
export function tailGuard(found: readonly (Found | undefined)[]): { at: number; lines: string[] } | undefined {
  const cost = (tail: typeof found, family: Family): number =>
    tail.reduce((sum, of) => sum + (of?.[family].matches.length ?? 0), 0);
  // Most lists are short.
  if (families.every((family) => cost(found, family) < SPARED)) return undefined;
  const spans: Partial<Record<Family, Range>> = {};
  let at = found.length;
  while (at > 0) {
    const of = found[at - 1];
    if (of === undefined || setsOf(of).length > 0) break;
    const wider = families.map((family) => hullOf([spans[family], of[family].span].flatMap((span) => span ?? [])));
    if (wider.some((span) => span !== undefined && lengthOf(span) < SHORTEST[span.family])) break;
    for (const span of wider) if (span !== undefined) spans[span.family] = span;
    at--;
  }
  const tail = found.slice(at);
  const lines = families.flatMap((family) => {
    const span = spans[family];
    if (span === undefined || cost(tail, family) < SPARED) return [];
    const prefix = formatPrefix({ family, value: span.first & maskOf(span), length: lengthOf(span) });
    return `${header[family]} daddr != ${prefix} return`;
  });
  return lines.length === 0 ? undefined : { at, lines };
}

/** Bits that all addresses of a range have in common. */
const lengthOf = ({ family, first, last }: Range): number =>
  addressBits(family) - (first === last ? 0 : (first ^ last).toString(2).length);

const maskOf = (range: Range): bigint => {
  const rest = BigInt(addressBits(range.family) - lengthOf(range));
  return ((1n << BigInt(addressBits(range.family))) - 1n) ^ ((1n << rest) - 1n);
};
