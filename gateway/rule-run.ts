/**
 * Many rules one after another as a few look-ups: what each covers first becomes elements of a map to verdicts
 * (policy/first-box.ts), so that a flow pays for the 1,000th rule about what it pays for the first, and a change of a
 * rule is some elements. A packet of a protocol with ports is found in one map, of ICMP in another, of the rest in a third.
 */
import { formatAddress, type Range } from '../api/address.ts';
import { icmpProtocol, portProtocols } from '../api/kinds.ts';
import { type Family, families, type ServiceEntry } from '../api/plan.ts';
import { concat, portsText, protocolText, rangeText } from '../kernel/nft.ts';
import { type Boxes, boxesOf } from '../policy/boxes.ts';
import { firstBoxes, type OrderedBox } from '../policy/first-box.ts';
import { addressType, header, icmpHeader, typeBlocks } from './destination-sets.ts';
import type { Scope } from './table.ts';

export interface RunRule {
  services: ServiceEntry[] | '*';
  /** The chain to which its packets go. */
  chain: string;
}

const everything = (family: Family): Boxes => ({
  addresses: [{ family, first: 0n, last: (1n << (family === 4 ? 32n : 128n)) - 1n }],
  protocols: [],
  ports: [],
});

/** Numbers of ports, and of ICMP's types and codes as they stand in the header. */
const ALL: [first: number, last: number] = [0, 0xffff];
/** Of nearly all packets the map of ports has said all: a look-up of the rest costs more than these comparisons. */
const notAsked = 'meta l4proto != 6 meta l4proto != 17 ';
/** What a run may grow to: more boxes than this many for each match are rather compared one by one. */
const GROWTH = 8;

/** The rules that look a packet up; undefined: as maps they would be too big. `name`: of the maps. */
export function runLines(scope: Scope, name: string, rules: readonly RunRule[]): string[] | undefined {
  const maps: { name: string; type: string; look: string; elements: Map<string, string> }[] = [];
  for (const family of families) {
    const boxes = rules.map(({ services }) => (services === '*' ? everything(family) : boxesOf(services, family)));
    const size = boxes.reduce((sum, b) => sum + b.addresses.length + b.protocols.length + b.ports.length, 0);
    const first = (of: (boxes: Boxes, rule: number) => OrderedBox[]): OrderedBox[] | undefined =>
      firstBoxes(boxes.flatMap(of), GROWTH * size + 64);
    const address = addressType[family];
    const daddr = `${header[family]} daddr`;
    const verdict = ({ rule }: OrderedBox): string => `goto ${rules[rule]?.chain}`;
    const add = (suffix: string, type: string, key: string, found: [string, OrderedBox][], only = ''): void => {
      if (found.length === 0) return;
      const elements = new Map(found.map(([text, box]) => [text, verdict(box)]));
      maps.push({
        name: `${name}_${suffix}${family}`,
        type: `${address} . ${type}`,
        look: `${only}${daddr} . ${key}`,
        elements,
      });
    };

    const ports: [string, OrderedBox][] = [];
    for (const protocol of portProtocols) {
      const found = first((b, rule) => numbered(b, rule, protocol));
      if (found === undefined) return undefined;
      for (const box of found) {
        ports.push([concat(span(box.range), protocolText(protocol), portsText(box.first, box.last)), box]);
      }
    }
    const types = first((b, rule) => numbered(b, rule, icmpProtocol[family]));
    const rest = first((b, rule) => [
      ...b.addresses.map((range) => ({ rule, range, first: 0, last: 255 })),
      ...b.protocols
        .filter(({ protocol }) => !portProtocols.has(protocol) && protocol !== icmpProtocol[family])
        .map(({ range, protocol }) => ({ rule, range, first: protocol, last: protocol })),
    ]);
    if (types === undefined || rest === undefined) return undefined;
    add('ports', 'inet_proto . inet_service', 'meta l4proto . th dport', ports);
    const icmp = icmpHeader[family];
    const blocks = types.flatMap((box) =>
      typeBlocks(box.first, box.last).map((block): [string, OrderedBox] => [
        concat(span(box.range), portsText(...block.types), portsText(...block.codes)),
        box,
      ]),
    );
    add('types', `${icmp}_type . ${icmp}_code`, `${icmp} type . ${icmp} code`, blocks);
    add(
      'rest',
      'inet_proto',
      'meta l4proto',
      rest.map((box) => [concat(span(box.range), portsText(box.first, box.last)), box]),
      notAsked,
    );
  }
  return maps.map(({ name: map, type, look, elements }) => {
    scope.set(map, { type, value: 'verdict', interval: true, elements });
    return `${look} vmap @${map}`;
  });
}

/** What a rule covers of a protocol that has ports, or types and codes. */
function numbered({ addresses, protocols, ports }: Boxes, rule: number, protocol: number): OrderedBox[] {
  const [first, last] = ALL;
  return [
    ...addresses.map((range) => ({ rule, range, first, last })),
    ...protocols.filter((box) => box.protocol === protocol).map(({ range }) => ({ rule, range, first, last })),
    ...ports.filter((box) => box.protocol === protocol).map((box) => ({ ...box, rule })),
  ];
}

const span = ({ family, first, last }: Range): string =>
  rangeText(formatAddress({ family, value: first }), formatAddress({ family, value: last }));
