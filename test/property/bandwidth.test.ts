/**
 * Bandwidth chains against the evaluator, without a kernel: a small reader of the chains' language walks each flow
 * through them and notes which buckets are asked and which class the packet gets. For random policies they must be the
 * limits that a decision names, and the class of the last of them below the EgressIP's.
 */
import fc from 'fast-check';
import t from 'tap';
import { parseAddress, parsePrefix, parseRange, prefixRange } from '../../api/address.ts';
import {
  type Family,
  families,
  type GatewayPlan,
  type GroupEntry,
  type RuleEntry,
  type ServiceEntry,
} from '../../api/plan.ts';
import { must } from '../../api/result.ts';
import { bandwidthsOf, classOf, type Direction, directions, egressName, pairName } from '../../gateway/bandwidth.ts';
import { type BandwidthTable, bandwidthTable } from '../../gateway/bandwidth-chains.ts';
import { DEFAULT_ACTION, ruleMark, ruleNumbers } from '../../gateway/marks.ts';
import { markText } from '../../kernel/nft.ts';
import type { Known } from '../../policy/decision.ts';
import { compilePolicy } from '../../policy/evaluate.ts';
import { assertUntilMet } from '../draws.ts';
import {
  DESTINATIONS,
  EGRESS,
  ICMP_TYPES,
  PODS,
  PORTS,
  randomAskingPlan,
  randomTypedPlan,
} from '../netns/gateway-plans.ts';

t.setTimeout(570_000);

interface Packet {
  family: Family;
  direction: Direction;
  source: string;
  destination: string;
  /** Address outside. */
  egress: string;
  protocol: number;
  /** Port, or type * 256 + code. */
  port: number;
  /** Of the flow: of the rule that decided it. */
  ctMark: string;
}

interface Walked {
  asked: string[];
  priority: string;
}

const number = (address: string): bigint => must(parseAddress(address)).value;

function within(value: string, text: string): boolean {
  if (/^\d+(-\d+)?$/.test(text)) {
    const [first = 0, last = first] = text.split('-').map(Number);
    return first <= Number(value) && Number(value) <= last;
  }
  const range = text.includes('/') ? prefixRange(must(parsePrefix(text))) : must(parseRange(text));
  return range.first <= number(value) && number(value) <= range.last;
}

const PART = '(?:ct (?:original|reply) ip6? [sd]addr|ct protocol|ct original proto-dst|meta priority)';
const KEY = new RegExp(`^${PART}(?: \\. ${PART})*`);

/** Walks one packet through the chains; throws on a word that it does not know. */
class Walk {
  readonly #table: BandwidthTable;
  readonly #packet: Packet;
  readonly #walked: Walked = { asked: [], priority: 'before' };
  #mark = '0x00000100';

  constructor(table: BandwidthTable, packet: Packet) {
    this.#table = table;
    this.#packet = packet;
  }

  run(): Walked {
    this.#chain(this.#table.entry);
    return this.#walked;
  }

  #chain(name: string): void {
    for (const rule of this.#table.chains[name]?.rules ?? []) {
      const end = this.#rule(rule.split(' '));
      if (end === 'return') return;
      if (end?.startsWith('goto ')) {
        this.#chain(end.slice(5));
        return;
      }
      if (end?.startsWith('jump ')) this.#chain(end.slice(5));
    }
  }

  /** Returns the verdict, if all of the rule matches and it has one. */
  #rule(words: string[]): string | undefined {
    const { family, protocol, direction } = this.#packet;
    const take = (count: number): string => words.splice(0, count).join(' ');
    while (words.length > 0) {
      if (words[0] === 'return') return take(1);
      if (words[0] === 'goto' || words[0] === 'jump') return take(2);
      if (words.slice(0, 2).join(' ') === 'ct direction') {
        if ((words[2] === 'original') !== (direction === 'out')) return undefined;
        take(3);
      } else if (words.slice(0, 2).join(' ') === 'meta nfproto') {
        if (words[2] !== `ipv${family}`) return undefined;
        take(3);
      } else if (words.slice(0, 2).join(' ') === 'meta l4proto') {
        if (words[2] !== String(protocol)) return undefined;
        take(3);
      } else if (words.slice(0, 2).join(' ') === 'meta length') {
        // Our packets are long.
        return undefined;
      } else if (words.slice(0, 4).join(' ') === 'meta mark set ct') {
        if (words.join(' ') !== 'meta mark set ct mark and 0x3fffff00') throw new Error(words.join(' '));
        this.#mark = this.#packet.ctMark;
        return undefined;
      } else if (words.slice(0, 3).join(' ') === 'meta mark set') {
        take(3);
        this.#mark = take(1);
      } else if (words.slice(0, 3).join(' ') === 'meta mark vmap') {
        return this.#look('meta mark', words[3] ?? '');
      } else if (words.slice(0, 3).join(' ') === 'meta priority set') {
        take(3);
        const map = words.indexOf('map');
        if (map < 0) this.#walked.priority = take(1);
        else {
          const found = this.#look(take(map), words[1] ?? '');
          if (found === undefined) return undefined;
          this.#walked.priority = found;
          take(2);
        }
      } else if (words.slice(0, 3).join(' ') === 'meta priority vmap') {
        return this.#look('meta priority', words[3] ?? '');
      } else if (words.slice(0, 2).join(' ') === 'meta priority') {
        // A bucket, which is never full here.
        if (this.#look('meta priority', words[2] ?? '') !== undefined) this.#walked.asked.push(this.#walked.priority);
        return undefined;
      } else {
        const key = KEY.exec(words.join(' '))?.[0] ?? '';
        if (key === '') throw new Error(`not known: ${words.join(' ')}`);
        take(key.split(' ').length);
        const what = take(1);
        const matches = what.startsWith('@')
          ? this.#look(key, what) !== undefined
          : this.#values(key)?.every((value) => within(value, what)) === true;
        if (!matches) return undefined;
      }
    }
    return undefined;
  }

  #values(key: string): string[] | undefined {
    const { family, source, destination, egress, protocol, port } = this.#packet;
    const of = family === 4 ? 'ip' : 'ip6';
    const known: Record<string, string> = {
      [`ct original ${of} saddr`]: source,
      [`ct original ${of} daddr`]: destination,
      [`ct reply ${of} daddr`]: egress,
      'ct protocol': String(protocol),
      'ct original proto-dst': String(port),
      'meta priority': this.#walked.priority,
      'meta mark': this.#mark,
    };
    const values = key.split(' . ').map((part) => known[part]);
    return values.every((value) => value !== undefined) ? (values as string[]) : undefined;
  }

  /** The value of the element that holds the packet's key; '' in a set. */
  #look(key: string, name: string): string | undefined {
    const set = this.#table.sets[name.slice(1)];
    if (set === undefined) throw new Error(`no set ${name}`);
    const values = this.#values(key);
    if (values === undefined) return undefined;
    if (set.interval !== true) return set.elements.get(values.join(' . '));
    for (const [element, value] of set.elements) {
      const parts = element.split(' . ');
      if (parts.every((part, at) => within(values[at] ?? '', part))) return value;
    }
    return undefined;
  }
}

const rates = [1e6, 2e6, 5e6] as const;
const maybe = fc.infiniteStream(fc.constantFrom(undefined, undefined, ...rates));

/** What a random policy limits, drawn afterwards. */
function limit(plan: GatewayPlan, draw: Iterator<number | undefined>): GatewayPlan {
  const next = (): number | undefined => draw.next().value;
  for (const rule of Object.values(plan.rules)) {
    const [bandwidth, audit, redirect] = [next(), next(), next()];
    if (bandwidth !== undefined && rule.action.startsWith('accept')) rule.limits = { bandwidth };
    if (audit === 1e6) rule.mode = 'Audit';
    if (redirect === 2e6 && rule.action === 'accept-decisively') rule.redirect = { address: '192.0.2.200' };
  }
  for (const service of Object.values(plan.services)) {
    const bandwidth = next();
    const [port] = service.ports ?? [{ protocol: 6, ports: [[80, 443]] as [number, number][] }];
    if (bandwidth !== undefined && port !== undefined) service.limits = [{ ...port, name: 'p', bandwidth }];
  }
  const [egress, ingress, audit] = [next(), next(), next()];
  if (egress !== undefined || ingress !== undefined) {
    const addresses = [EGRESS.pay[4], EGRESS.pay[6]];
    const ways = { ...(egress !== undefined && { egress }), ...(ingress !== undefined && { ingress }) };
    plan.egressIPs.pay = { bandwidth: { ...ways, addresses, shards: ['edge/s0'] } };
  }
  const group = plan.groups['g-rev'];
  if (audit !== undefined && group !== undefined) group.audit = true;
  return plan;
}

const packets: Omit<Packet, 'direction' | 'ctMark'>[] = families.flatMap((family) =>
  (['pay', 'rev'] as const).flatMap((pod) =>
    DESTINATIONS[family].flatMap((destination) => {
      const ends = { family, source: PODS[pod][family], destination, egress: EGRESS[pod][family] };
      const icmp = family === 4 ? 1 : 58;
      return [
        ...PORTS.flatMap((port) => [6, 17].map((protocol) => ({ ...ends, protocol, port }))),
        ...ICMP_TYPES[family].map(([type, code]) => ({ ...ends, protocol: icmp, port: type * 256 + code })),
        { ...ends, protocol: 47, port: 0 },
      ];
    }),
  ),
);

/** What was read of every flow; every address is the name's own. */
const known: Known = {
  reading: {
    application: 'TLS',
    name: 'web.example.test',
    tls: { version: 0x0304, alpn: [], encryptedClientHello: false },
  },
  gives: () => true,
  namesOf: () => ['web.example.test'],
};
const asks = (entry: ServiceEntry | undefined): boolean => entry?.names !== undefined || entry?.checks !== undefined;
const handsOn = (rule: RuleEntry): boolean => rule.action === 'accept' && rule.context !== 'service';

/** What hands on and may be open has no limit, by rules or by ports (policy/admit.ts). */
function refuse(plan: GatewayPlan): GatewayPlan {
  for (const rule of Object.values(plan.rules)) {
    if (!handsOn(rule) || rule.services === '*') continue;
    if (!rule.services.some((name) => asks(plan.services[name]))) continue;
    delete rule.limits;
    for (const name of rule.services) delete plan.services[name]?.limits;
  }
  return plan;
}

const groupOf = (plan: GatewayPlan, source: string): GroupEntry | undefined => {
  const found = Object.values(plan.workloads).find(({ addresses }) => addresses.includes(source));
  return plan.groups[found?.group ?? ''];
};
const passedOpen = (plan: GatewayPlan, source: string): boolean =>
  Object.values(groupOf(plan, source)?.rules ?? {}).some((ids) =>
    ids.some((id) => {
      const rule = plan.rules[id];
      if (rule === undefined || rule.mode === 'Audit' || !handsOn(rule) || rule.services === '*') return false;
      return rule.services.some((name) => asks(plan.services[name]));
    }),
  );
const onlyService = (plan: GatewayPlan, id = ''): string => {
  const services = plan.rules[id]?.services ?? [];
  return services === '*' || services.length !== 1 ? '' : (services[0] ?? '');
};

for (const [what, plans] of [
  ['', randomTypedPlan],
  [', by names and checks too', randomAskingPlan],
] as const)
  t.test(`what a packet is asked for is what the decision names${what}`, async (t) => {
    const reads = plans === randomAskingPlan;
    const seen = { asked: 0, ports: 0, pairs: 0, audited: 0, sets: 0, read: 0 };
    const unmet = (): string[] =>
      Object.entries(seen).flatMap(([what, count]) => (count > 0 || (what === 'read' && !reads) ? [] : [what]));
    await assertUntilMet(
      fc.property(plans, maybe, (random, stream) => {
        const plan = refuse(limit(structuredClone(random), stream[Symbol.iterator]()));
        const bandwidths = bandwidthsOf(plan, ['s0']);
        if (bandwidths === undefined) return;
        const numbers = ruleNumbers(Object.keys(plan.rules));
        const table = bandwidthTable(plan, bandwidths, 'over', (id) => numbers.get(id) ?? 0);
        const evaluator = compilePolicy(plan);
        const keyOf = (name: string): string => bandwidths.limits.get(name)?.key ?? `no limit ${name}`;
        seen.sets += Object.keys(table.sets).filter((name) => /_ports\d$/.test(name)).length;
        for (const packet of packets) {
          const { source, destination, protocol, port, egress } = packet;
          const icmp = protocol === 1 || protocol === 58;
          const decision = evaluator.decide(
            {
              source,
              destination,
              protocol,
              ...(icmp ? { icmpType: port >>> 8, icmpCode: port & 0xff } : { destinationPort: port }),
            },
            reads ? known : undefined,
          );
          // Of others there are no packets.
          if (decision.verdict !== 'accept' || decision.wouldRedirect !== undefined) continue;
          const audit = groupOf(plan, source)?.audit === true;
          if (audit) seen.audited++;
          const rules = (decision.limits ?? []).map((id) => `rule ${id}`);
          const ports = Object.keys(decision.ports ?? {}).map((text) =>
            text.replace(/^port (\S+) of (\S+)$/, 'port $2 $1'),
          );
          const met = audit ? [] : [...rules, ...ports].map(keyOf);
          const own = audit ? undefined : bandwidths.egress.get(egress);
          for (const direction of directions) {
            const ctMark = markText(ruleMark(numbers.get(decision.rule ?? DEFAULT_ACTION) ?? 0));
            const { asked, priority } = new Walk(table, { ...packet, direction, ctMark }).run();
            const shares = own === undefined ? undefined : bandwidths.limits.get(own)?.shares[direction];
            const wanted = [...(own !== undefined && shares !== undefined ? [keyOf(own)] : []), ...met];
            const title = `${direction} ${JSON.stringify([packet, decision])}`;
            // In a context that an open rule handed on the rules behind it are asked too: of which it was nobody keeps.
            if (reads && passedOpen(plan, source)) {
              if (!wanted.every((key) => asked.includes(key))) t.same(asked, wanted, title);
              continue;
            }
            if (reads && met.length > 0 && asks(plan.services[onlyService(plan, decision.rule)])) seen.read++;
            if ([...new Set(asked)].sort().join() !== [...new Set(wanted)].sort().join()) t.same(asked, wanted, title);
            const last = audit ? undefined : asked.filter((key) => key !== keyOf(own ?? '')).at(-1);
            const name = [...bandwidths.limits].find(([, { key }]) => key === last)?.[0];
            const expected =
              (own !== undefined && classOf(bandwidths, pairName(own, name), direction)) ||
              (name !== undefined && classOf(bandwidths, name, direction)) ||
              undefined;
            if (expected === undefined ? /^1e6e:/.test(priority) : priority !== expected) {
              t.equal(priority, expected, title);
            }
            seen.asked += met.length;
            seen.ports += ports.length;
            if (own === egressName('pay') && name !== undefined) seen.pairs++;
          }
        }
      }),
      () => unmet().length === 0,
      { numRuns: Number(process.env.SLUICE_PROPERTY_RUNS ?? 30) },
    );
    t.same(unmet(), [], 'all was met');
  });
