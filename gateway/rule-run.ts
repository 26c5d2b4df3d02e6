/**
 * Many rules one after another as a few look-ups: what each covers first becomes elements of a map to verdicts
 * (policy/first-box.ts), so that a flow pays for the 1,000th rule about what it pays for the first, and a change of a
 * rule is some elements. A packet of a protocol with ports is found in one map, of ICMP in another, of the rest in a third.
 */
import { formatAddress, type Range } from '../api/address.ts';
import { type Family, families, type ServiceEntry } from '../api/plan.ts';
import { icmpProtocol, portProtocols } from '../api/ports.ts';
import { concat, portsText, protocolText, rangeText } from '../kernel/nft.ts';
import { type Boxes, boxesOf } from '../policy/boxes.ts';
import { firstBoxes, foldedBoxes, type OrderedBox } from '../policy/first-box.ts';
import { addressType, header, icmpHeader, protocolRuns, typeBlocks } from './destination-sets.ts';
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
  const services = rules.map((rule) => rule.services);
  return mapLines(scope, name, services, firstBoxes, (rule) => `goto ${rules[rule]?.chain}`);
}

/**
 * What a step of a run does: ends it, in a way that has a number, or puts bits into the mark and goes on, but not for
 * what lies in `unless`.
 */
export type Step = { services: ServiceEntry[] | '*' } & ({ ends: number } | { bits: number; unless: ServiceEntry[] });

/** Bits of the mark in what a run of steps comes to; above them the way in which it ended, and one more. */
const BITS = 8;

/** The same of steps. `verdictOf`: of the bits that were put in and of the way in which it ended; undefined: it did not. */
export function stepLines(
  scope: Scope,
  name: string,
  steps: readonly Step[],
  verdictOf: (bits: number, ends: number | undefined) => string,
): string[] | undefined {
  const turns = steps.flatMap((step): Turn[] =>
    'unless' in step && step.unless.length > 0
      ? [
          { services: step.unless, skips: true },
          { ...step, skipped: true },
        ]
      : [step],
  );
  const services = turns.map((turn) => turn.services);
  const fold = (covering: readonly number[]): number | undefined => {
    let bits = 0;
    let skipped = -1;
    for (const at of covering) {
      const turn = turns[at];
      if (turn === undefined) continue;
      if ('skips' in turn) skipped = at + 1;
      else if ('ends' in turn) return bits | ((turn.ends + 1) << BITS);
      else if (skipped !== at) bits |= turn.bits;
    }
    return bits === 0 ? undefined : bits;
  };
  const cut: Cut = (boxes, most) => foldedBoxes(telling(boxes, turns), most, fold);
  return mapLines(scope, name, services, cut, (said) => {
    const ended = said >>> BITS;
    return verdictOf(said & ((1 << BITS) - 1), ended === 0 ? undefined : ended - 1);
  });
}

/** A step, or what keeps the next from being taken. */
type Turn = { services: ServiceEntry[] | '*' } & (
  | { ends: number }
  | { bits: number; skipped?: true }
  | { skips: true }
);

/** Without those that say nothing new: of the same place, behind one that ends, or that puts the same bits in. */
function telling(boxes: readonly OrderedBox[], turns: readonly Turn[]): OrderedBox[] {
  const ALL = -1;
  const said = new Map<string, number>();
  return boxes
    .toSorted((a, b) => a.rule - b.rule)
    .filter(({ rule, range, first, last }) => {
      const turn = turns[rule];
      if (turn === undefined) return false;
      const key = `${range.first} ${range.last} ${first} ${last}`;
      const before = said.get(key) ?? 0;
      if ('skips' in turn) return before !== ALL;
      const after = 'ends' in turn ? ALL : before | turn.bits;
      // In a part of that place it may not be taken.
      if (!('skipped' in turn)) said.set(key, after);
      return after !== before;
    });
}

type Cut = (boxes: readonly OrderedBox[], most: number) => OrderedBox[] | undefined;

/** `verdictOf`: of the number of a box that `cut` makes. */
function mapLines(
  scope: Scope,
  name: string,
  rules: readonly (ServiceEntry[] | '*')[],
  cut: Cut,
  verdictOf: (rule: number) => string,
): string[] | undefined {
  const maps: { name: string; type: string; look: string; elements: Map<string, string> }[] = [];
  for (const family of families) {
    const boxes = rules.map((services) => (services === '*' ? everything(family) : boxesOf(services, family)));
    /** Of protocols that have neither ports nor types. */
    const others = boxes.map((b) => protocolRuns(b.protocols.filter(({ protocol }) => !isNumbered(protocol, family))));
    const size = boxes.reduce(
      (sum, b, rule) =>
        sum + b.addresses.length + (others[rule]?.length ?? 0) + numberedOnes(b, family) + b.ports.length,
      0,
    );
    const first = (of: (boxes: Boxes, rule: number) => OrderedBox[]): OrderedBox[] | undefined =>
      cut(boxes.flatMap(of), GROWTH * size + 64);
    const address = addressType[family];
    const daddr = `${header[family]} daddr`;
    const verdict = ({ rule }: OrderedBox): string => verdictOf(rule);
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
      ...(others[rule] ?? []).map((run) => ({ ...run, rule })),
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

/** Whether it is looked up by ports, or types and codes. */
const isNumbered = (protocol: number, family: Family): boolean =>
  portProtocols.has(protocol) || protocol === icmpProtocol[family];

const numberedOnes = ({ protocols }: Boxes, family: Family): number =>
  protocols.reduce((sum, { protocol }) => sum + (isNumbered(protocol, family) ? 1 : 0), 0);

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
