/**
 * A rule's destinations as nftables sets: up to four interval sets per family (boxes.ts), shared by all rules that
 * name the same services. Ports and types of ICMP need one each, since they stand in different places of a header.
 */
import { createHash } from 'node:crypto';
import { formatAddress } from '../api/address.ts';
import { icmpProtocol, portProtocols } from '../api/kinds.ts';
import { type Family, families, type GatewayPlan } from '../api/plan.ts';
import { concat, type NftSet, portsText, protocolText, rangeText } from '../kernel/nft.ts';
import { boxesOf } from '../policy/boxes.ts';

export const addressType = { 4: 'ipv4_addr', 6: 'ipv6_addr' } as const;
export const header = { 4: 'ip', 6: 'ip6' } as const;
const icmpHeader = { 4: 'icmp', 6: 'icmpv6' } as const;

/** Interval sets for lists of external services, made once per distinct list. */
export class DestinationSets {
  readonly #plan: GatewayPlan;
  readonly #sets: Record<string, NftSet>;
  readonly #made = new Map<string, Record<Family, string[]>>();

  constructor(plan: GatewayPlan, sets: Record<string, NftSet>) {
    this.#plan = plan;
    this.#sets = sets;
  }

  /** One match per set that is not empty; a rule matches if any of them does. `only`: of one family. */
  matches(services: string[] | '*', only?: Family): string[] {
    if (services === '*') return [''];
    const key = [...services].sort().join(',');
    let made = this.#made.get(key);
    if (made === undefined) {
      made = { 4: this.#make(key, services, 4), 6: this.#make(key, services, 6) };
      this.#made.set(key, made);
    }
    return only === undefined ? families.flatMap((family) => made[family]) : made[only];
  }

  #make(key: string, services: string[], family: Family): string[] {
    const entries = services.flatMap((name) => this.#plan.services[name] ?? []);
    const boxes = boxesOf(entries, family);
    const base = `to_${createHash('sha256').update(key).digest('hex').slice(0, 12)}`;
    const address = addressType[family];
    const daddr = `${header[family]} daddr`;
    const span = (range: { family: Family; first: bigint; last: bigint }): string =>
      rangeText(formatAddress({ family, value: range.first }), formatAddress({ family, value: range.last }));
    const matches: string[] = [];
    const make = (suffix: string, type: string, match: string, keys: string[]): void => {
      if (keys.length === 0) return;
      const name = `${base}_${suffix}${family}`;
      this.#sets[name] = { type, interval: true, elements: new Map(keys.map((text) => [text, ''])) };
      matches.push(`${match} @${name} `);
    };
    // Not a plain interval set: before it touches anything, nft reads the elements of every one of those in the table.
    make(
      'all',
      `${address} . inet_proto`,
      `${daddr} . meta l4proto`,
      boxes.addresses.map((range) => concat(span(range), '0-255')),
    );
    make(
      'protocols',
      `${address} . inet_proto`,
      `${daddr} . meta l4proto`,
      boxes.protocols.map(({ range, protocol }) => concat(span(range), protocolText(protocol))),
    );
    make(
      'ports',
      `${address} . inet_proto . inet_service`,
      `${daddr} . meta l4proto . th dport`,
      boxes.ports
        .filter(({ protocol }) => portProtocols.has(protocol))
        .map(({ range, protocol, first, last }) => concat(span(range), protocolText(protocol), portsText(first, last))),
    );
    // Of the other family's ICMP no packet has a type (policy/destination.ts). nft asks for the protocol by itself.
    const icmp = icmpHeader[family];
    make(
      'types',
      `${address} . ${icmp}_type . ${icmp}_code`,
      `${daddr} . ${icmp} type . ${icmp} code`,
      boxes.ports
        .filter(({ protocol }) => protocol === icmpProtocol[family])
        .flatMap(({ range, first, last }) =>
          typeBlocks(first, last).map((block) =>
            concat(span(range), portsText(...block.types), portsText(...block.codes)),
          ),
        ),
    );
    return matches;
  }
}

type Block = Record<'types' | 'codes', [first: number, last: number]>;

/** A range of type * 256 + code as nft takes it, with types and codes apart: types in part, and those with every code. */
function typeBlocks(first: number, last: number): Block[] {
  const [type, code] = [first >>> 8, first & 0xff];
  const [lastType, lastCode] = [last >>> 8, last & 0xff];
  if (type === lastType || (code === 0 && lastCode === 0xff))
    return [{ types: [type, lastType], codes: [code, lastCode] }];
  if (code !== 0) return [...typeBlocks(first, first | 0xff), ...typeBlocks((type + 1) << 8, last)];
  return [...typeBlocks(first, (lastType << 8) - 1), ...typeBlocks(lastType << 8, last)];
}
