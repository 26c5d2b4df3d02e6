/**
 * Destinations as a flow's first packet named them, which conntrack keeps: the matches of destination-sets.ts for any
 * later packet, of either direction, before and after translation. nft reads a flow's port only behind a comparison
 * with one protocol, so there is a match for each; ICMP's type and code stand in the same place (api/plan.ts, PortEntry).
 */
import { formatAddress, type Range } from '../api/address.ts';
import { digest } from '../api/digest.ts';
import { type Family, families, type PortLimit, type RuleEntry, type ServiceEntry } from '../api/plan.ts';
import { isIcmp, portProtocols } from '../api/ports.ts';
import { concat, type NftSet, portsText, protocolText, rangeText } from '../kernel/nft.ts';
import { boxesOf } from '../policy/boxes.ts';
import { unreadPart } from '../policy/parts.ts';
import { compileRedirect } from '../policy/redirect.ts';
import { addressType, header, protocolRuns } from './destination-sets.ts';
import { factored } from './factors.ts';

/** Boxes that are compared one after another; more are a set. */
const COMPARED = 8;
/** A service may have 64 ports with limits, of which each is found by itself. */
const MULTIPLIED = 4_096;
const everywhere = { 4: '0.0.0.0/0', 6: '::/0' } as const;

export class FlowMatches {
  readonly #services: Record<string, ServiceEntry>;
  readonly #sets: Record<string, NftSet>;

  /** Sets that are needed are added to `sets`. */
  constructor(services: Record<string, ServiceEntry>, sets: Record<string, NftSet>) {
    this.#services = services;
    this.#sets = sets;
  }

  /** A flow meets any of the rules if any of these matches; '' matches all. The rules have no redirect. */
  ofRules(rules: readonly RuleEntry[]): string[] {
    if (rules.some(({ services }) => services === '*')) return [''];
    const names = new Set(rules.flatMap(({ services }) => services));
    return this.#of([...names].flatMap((name) => this.#unread(name)));
  }

  /** A rule that redirects meets only what can be redirected there. */
  ofRedirect({ services, redirect }: RuleEntry): string[] {
    if (redirect === undefined) throw new TypeError('the rule has no redirect');
    const { family } = compileRedirect(redirect).address;
    const entries =
      services === '*'
        ? [{ addresses: [everywhere[family]], ports: null }]
        : services.flatMap((name) => this.#unread(name));
    const redirectable = entries.map(({ addresses, ports }) => ({
      addresses,
      ports:
        ports?.filter(({ protocol }) => portProtocols.has(protocol)) ??
        [...portProtocols].map((protocol) => ({ protocol, ports: null })),
    }));
    return this.#of(redirectable, [family]);
  }

  /** At most one of these matches a flow. `read`: of a flow that a rule decides by what was read. */
  ofPort({ addresses, names, checks }: ServiceEntry, limit: PortLimit, read: boolean): string[] {
    const ports = [{ protocol: limit.protocol, ports: limit.ports }];
    if (read) return this.#of([{ addresses: names === undefined ? addresses : Object.values(everywhere), ports }]);
    return this.#of([unreadPart({ addresses, ports, ...(checks && { checks }) }) ?? []].flat());
  }

  /** What is open until a flow is read: of those that are, the ct mark says which rule decided (bandwidth-chains.ts). */
  #unread(name: string): ServiceEntry[] {
    const entry = this.#services[name];
    return entry === undefined ? [] : [unreadPart(entry) ?? []].flat();
  }

  #of(entries: ServiceEntry[], of: readonly Family[] = families): string[] {
    const { multiplied, factors } = factored(entries, MULTIPLIED);
    return of.flatMap((family) => [
      ...this.#boxed(multiplied, family),
      ...factors.flatMap(([where, how]) => {
        const there = this.#boxed([where], family);
        return there.length === 0 ? [] : this.#boxed([how], family).flatMap((so) => there.map((at) => `${at}${so}`));
      }),
    ]);
  }

  #boxed(entries: ServiceEntry[], family: Family): string[] {
    const boxes = boxesOf(entries, family);
    const protocols = protocolRuns(boxes.protocols);
    const daddr = `ct original ${header[family]} daddr`;
    if (boxes.addresses.length + protocols.length + boxes.ports.length <= COMPARED) {
      const at = (range: Range): string => (isWhole(range) ? `meta nfproto ipv${family} ` : `${daddr} ${span(range)} `);
      return [
        ...boxes.addresses.map(at),
        ...protocols.map(({ range, first, last }) => `${at(range)}meta l4proto ${portsText(first, last)} `),
        ...boxes.ports
          .filter(({ protocol }) => showsPorts(protocol, family))
          .map(
            ({ range, protocol, first, last }) =>
              `${at(range)}meta l4proto ${protocolText(protocol)} ct original proto-dst ${portsText(first, last)} `,
          ),
      ];
    }
    const matches: string[] = [];
    const make = (suffix: string, type: string, keys: string[], texts: (set: string) => string[]): void => {
      if (keys.length === 0) return;
      const name = `bw_${digest(keys.join(','))}_${suffix}${family}`;
      this.#sets[name] = { type, interval: true, elements: new Map(keys.map((key) => [key, ''])) };
      matches.push(...texts(name));
    };
    const address = addressType[family];
    const whole = (suffix: string, keys: string[]): void =>
      make(suffix, `${address} . inet_proto`, keys, (set) => [`${daddr} . ct protocol @${set} `]);
    // Of one list the boxes are disjoint, as the kernel wants them; those of two may overlap.
    whole(
      'all',
      boxes.addresses.map((range) => concat(span(range), '0-255')),
    );
    whole(
      'protocols',
      protocols.map(({ range, first, last }) => concat(span(range), portsText(first, last))),
    );
    const ports = boxes.ports.filter(({ protocol }) => showsPorts(protocol, family));
    make(
      'ports',
      `${address} . inet_proto . inet_service`,
      ports.map(({ range, protocol, first, last }) =>
        concat(span(range), protocolText(protocol), portsText(first, last)),
      ),
      (set) =>
        [...new Set(ports.map(({ protocol }) => protocol))].map(
          (protocol) =>
            `meta l4proto ${protocolText(protocol)} ${daddr} . ct protocol . ct original proto-dst @${set} `,
        ),
    );
    return matches;
  }
}

/** Of the other family's ICMP no packet has a type (policy/destination.ts). */
const showsPorts = (protocol: number, family: Family): boolean =>
  portProtocols.has(protocol) || (isIcmp(protocol) && (protocol === 1) === (family === 4));

const span = ({ family, first, last }: Range): string =>
  rangeText(formatAddress({ family, value: first }), formatAddress({ family, value: last }));

function isWhole({ family, first, last }: Range): boolean {
  return first === 0n && last === (1n << (family === 4 ? 32n : 128n)) - 1n;
}
