/**
 * A thread's own policy and names, and the evaluator over both (design §4.9): what a flow is permitted by, in the words
 * that its verdict needs. Policy changes in place, and is compiled anew when it is asked next, rule by rule. Decisions are
 * remembered for a moment, by group of workloads, destination, port and what was read: the names of an address, a change of policy
 * and time make them void.
 */
import { parseAddress } from '../../api/address.ts';
import { CT_RULE_SHIFT, INSPECT_VERDICT_MARK, NUMBER_READ_BYTES } from '../../api/names.ts';
import type { Policy, WorkloadEntry } from '../../api/plan.ts';
import { changePlan } from '../../api/plan-delta.ts';
import { icmpNumber } from '../../api/ports.ts';
import type { ApplicationReading } from '../../policy/application.ts';
import type { Decision, Flow, Known } from '../../policy/decision.ts';
import { compilePolicy, type Evaluator } from '../../policy/evaluate.ts';
import { DEFAULT_ACTION } from '../marks.ts';
import { Sources } from '../sources.ts';
import { type Asked, askedOf, checksAt } from './asked.ts';
import type { DeciderData, ToDecider } from './messages.ts';
import { type NamedAddress, NameTable } from './name-table.ts';
import type { Tally } from './tally.ts';

/** What a decision means for packets. */
export interface Judged {
  decision: Decision;
  /** Mark of the verdict that permits; 0: it is denied, or the rule has no number here yet. */
  mark: number;
  /** Not permitted, and a name that was asked for did not have the address: it may have it by now. */
  missed: readonly string[];
  /** What was read, as it was read when this was first decided: the same object each time. */
  reading: ApplicationReading | undefined;
}

interface Remembered extends Judged {
  until: number;
}

/** Where flows of one group go: what is asked of them, and what was decided by what they said. */
interface Place {
  asked: Asked;
  decisions: Map<string, Remembered>;
}

/** Milliseconds for which a decision is remembered. */
const REMEMBER_MS = 5_000;
/** Beyond as many all are forgotten. */
const PLACES_MAX = 65_536;
const DECISIONS_MAX = 32_768;
const NO_MISS: readonly string[] = [];

export class Judge {
  readonly #policy: Policy;
  readonly #sources = new Sources();
  readonly #numbers: Map<string, number>;
  readonly #tally: Tally;
  #evaluator: Evaluator | undefined;
  #names = new NameTable(() => false);
  /** By destination, group, and protocol with port. */
  readonly #places = new Map<string, Map<string, Map<number, Place>>>();
  #placeCount = 0;
  #decisionCount = 0;
  /** Of the decision at hand: names that do not have its address, and whether it was asked which have it. */
  #missed: string[] = [];
  #byAddress = false;
  #time = 0;
  readonly #known: Required<Pick<Known, 'gives' | 'namesOf'>> = {
    gives: (name, address) => {
      const gives = this.#names.gives(name, address, this.#time);
      if (!gives && !this.#missed.includes(name)) this.#missed.push(name);
      return gives;
    },
    namesOf: (address) => {
      this.#byAddress = true;
      return this.#names.namesOf(address, this.#time);
    },
  };

  constructor(
    { policy, numbers, names }: Pick<DeciderData, 'policy' | 'numbers' | 'names'>,
    tally: Tally,
    time: number,
  ) {
    this.#policy = policy;
    this.#numbers = new Map(numbers);
    this.#tally = tally;
    for (const workload of Object.values(policy.workloads)) this.#sources.add(workload);
    this.learn(names, time);
  }

  change({ delta, numbers, gone }: Extract<ToDecider, { kind: 'policy' }>): void {
    const { workloads } = this.#policy;
    const { workloads: set = {} } = delta.set;
    const { workloads: deleted = [] } = delta.delete;
    const changed = [...deleted, ...Object.keys(set)];
    for (const uid of changed) {
      const before = Object.hasOwn(workloads, uid) ? workloads[uid] : undefined;
      if (before !== undefined) this.#sources.remove(before);
    }
    changePlan(this.#policy, delta);
    for (const workload of Object.values(set)) this.#sources.add(workload as WorkloadEntry);
    for (const id of gone) this.#numbers.delete(id);
    for (const [id, number] of numbers) this.#numbers.set(id, number);
    this.#evaluator = undefined;
    this.#forgetAll();
  }

  /** `time`: of the clock, as all that names are asked with. */
  learn(pairs: readonly NamedAddress[], time: number): void {
    const parsed = pairs.flatMap((pair) => {
      const address = parseAddress(pair.address);
      return address.ok ? [{ ...pair, parsed: address.value }] : [];
    });
    this.#names.merge(parsed, time);
    for (const { address } of pairs) this.#forgetOf(address);
  }

  forget(addresses: readonly string[]): void {
    const gone = new Set(addresses);
    this.#names.forget((address) => gone.has(address));
    for (const address of addresses) this.#forgetOf(address);
  }

  expire(time: number): void {
    this.#names.expire(time);
  }

  resolvers(): readonly string[] {
    const { settings } = this.#policy;
    return 'pool' in settings ? (settings.pool.dns?.resolvers ?? []) : [];
  }

  /** Whether the whole policy of a source is in audit. */
  audits(source: string): boolean {
    const group = this.#sources.ownerOf(source)?.group;
    return group !== undefined && this.#policy.groups[group]?.audit === true;
  }

  asked(flow: Flow): Asked {
    return this.#placeOf(flow).asked;
  }

  #placeOf(flow: Flow): Place {
    const { source, destination, protocol } = flow;
    const {
      icmpType,
      icmpCode = 0,
      destinationPort = icmpType === undefined ? 0 : icmpNumber(icmpType, icmpCode),
    } = flow;
    const group = this.#sources.ownerOf(source)?.group ?? '';
    const key = protocol * 0x1_0000 + destinationPort;
    // Texts whose hash is known, and a number: no text is made.
    const place = this.#places.get(destination)?.get(group)?.get(key);
    return place ?? this.#newPlace(flow, group, key);
  }

  #newPlace(flow: Flow, group: string, key: number): Place {
    const { destination, protocol, destinationPort } = flow;
    const entry = Object.hasOwn(this.#policy.groups, group) ? this.#policy.groups[group] : undefined;
    const checks = entry === undefined ? [] : checksAt(this.#policy, entry, protocol, destinationPort);
    const place: Place = { asked: askedOf(this.#compiled().reads(flow), checks), decisions: new Map() };
    if (this.#placeCount >= PLACES_MAX) this.#forgetAll();
    this.#placeCount++;
    const there = this.#places.get(destination) ?? new Map<string, Map<number, Place>>();
    this.#places.set(destination, there);
    const own = there.get(group) ?? new Map<number, Place>();
    there.set(group, own);
    own.set(key, place);
    return place;
  }

  #compiled(): Evaluator {
    this.#evaluator ??= compilePolicy(this.#policy, (address) => this.#sources.ownerOf(address));
    return this.#evaluator;
  }

  /** `reading` undefined: nothing was read yet, and names are asked for by the address. `now` and `time`: of both clocks. */
  decide(flow: Flow, reading: ApplicationReading | undefined, now: number, time: number): Judged {
    const place = this.#placeOf(flow);
    const key = textOf(reading);
    const known = place.decisions.get(key);
    if (known !== undefined && known.until > now) {
      this.#tally.count('remembered');
      return known;
    }
    this.#missed = [];
    this.#byAddress = false;
    this.#time = time;
    const decision = this.#compiled().decide(flow, reading === undefined ? this.#known : { ...this.#known, reading });
    const judged: Remembered = {
      decision,
      mark: this.#markOf(decision),
      missed: NO_MISS,
      reading,
      until: now + REMEMBER_MS,
    };
    if (decision.verdict !== 'accept' || decision.wouldHave !== undefined) {
      const missed = new Set(this.#missed);
      // The table was asked for the names of the address: one more might have it.
      if (this.#byAddress) for (const name of place.asked.names) missed.add(name);
      const open = [...missed].filter((name) => !this.#names.gives(name, flow.destination, time));
      if (open.length > 0) return { ...judged, missed: open };
    }
    if (this.#decisionCount >= DECISIONS_MAX) this.#forgetAll();
    if (!place.decisions.has(key)) this.#decisionCount++;
    place.decisions.set(key, judged);
    return judged;
  }

  /** Of what inspection ends in the name of no rule, where all is let through: as the default action. */
  auditMark(): number {
    return verdictMark(this.#numbers.get(DEFAULT_ACTION) ?? 0);
  }

  #markOf(decision: Decision): number {
    if (decision.provisional === true) return verdictMark(NUMBER_READ_BYTES);
    // A flow whose bytes were asked for cannot be sent elsewhere any more.
    if (decision.verdict !== 'accept' || decision.redirect !== undefined) return 0;
    return verdictMark(this.#numbers.get(decision.rule ?? DEFAULT_ACTION) ?? 0);
  }

  #forgetOf(address: string): void {
    for (const places of this.#places.get(address)?.values() ?? []) {
      for (const { decisions } of places.values()) {
        this.#decisionCount -= decisions.size;
        decisions.clear();
      }
    }
  }

  #forgetAll(): void {
    this.#places.clear();
    this.#placeCount = this.#decisionCount = 0;
  }
}

const verdictMark = (number: number): number =>
  number === 0 ? 0 : (INSPECT_VERDICT_MARK | (number << CT_RULE_SHIFT)) >>> 0;

/** Two that differ have different texts: none of its parts has a line feed in it. */
function textOf(reading: ApplicationReading | undefined): string {
  if (reading === undefined) return '-';
  const { application, name, literal, tls, http, dns } = reading;
  let text = `${application}\n${name}`;
  if (literal !== undefined) text += `\n=${literal}`;
  if (http !== undefined) text += `\n${http.method}\n${http.path}`;
  if (dns !== undefined) text += `\n${dns.type}`;
  if (tls === undefined) return text;
  text += `\n${tls.version}\n${tls.encryptedClientHello}`;
  for (const protocol of tls.alpn) text += `\n${protocol}`;
  return text;
}
