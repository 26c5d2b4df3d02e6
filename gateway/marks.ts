/**
 * Numbers for names: each rule and each group of workloads gets a number that fits into mark bits. The number is a
 * hash of the name, so that it needs no memory and every gateway of a pool finds the same; names that collide take
 * the next free number in the order of their names.
 */
import { hash } from 'node:crypto';
import { CT_DECIDED, CT_READ, CT_RULE_MASK, CT_RULE_SHIFT, GATEWAY_CT_MASK, NUMBER_READ_FIRST } from '../api/names.ts';
import { markText } from '../kernel/nft.ts';

/** Name under which the pool's default action is numbered beside the rules. */
export const DEFAULT_ACTION = 'default-action';

const RULE_NUMBERS = NUMBER_READ_FIRST - 1;
const GROUP_NUMBERS = 0xffffff;
/** Instead of a group's, of who has no egress IP: the walk asks one map who somebody is and whether he may leave. */
export const noEgressMark = markText(GROUP_NUMBERS + 1);

/**
 * Numbers 1..max, stable for all names that collide with none. Which number a name has depends on the names that are
 * there and not on the order in which they came (ordered hashing: O. Amble, D. Knuth, "Ordered hash tables", 1974): of
 * those that want one number the first in order has it. So a name that comes or goes may move a few others.
 */
export class Numbers {
  readonly #max: number;
  readonly #names = new Map<number, string>();
  readonly #numbers = new Map<string, number>();

  constructor(max: number, names: Iterable<string> = []) {
    this.#max = max;
    for (const name of names) this.add(name);
  }

  get size(): number {
    return this.#numbers.size;
  }

  get(name: string): number | undefined {
    return this.#numbers.get(name);
  }

  nameOf(number: number): string | undefined {
    return this.#names.get(number);
  }

  [Symbol.iterator](): IterableIterator<[name: string, number: number]> {
    return this.#numbers.entries();
  }

  /** Returns the other names whose numbers changed, with what they had. */
  add(name: string): [name: string, before: number][] {
    if (this.#numbers.has(name)) return [];
    if (this.#numbers.size === this.#max) throw new RangeError(`more than ${this.#max} names`);
    const moved: [string, number][] = [];
    let at = this.#home(name);
    let placed = name;
    for (;;) {
      const other = this.#names.get(at);
      if (other === undefined || other > placed) {
        this.#names.set(at, placed);
        this.#numbers.set(placed, at);
        if (other === undefined) return moved;
        moved.push([other, at]);
        placed = other;
      }
      at = this.#after(at);
    }
  }

  /** Returns the other names whose numbers changed, with what they had. */
  delete(name: string): [name: string, before: number][] {
    const number = this.#numbers.get(name);
    if (number === undefined) return [];
    this.#remove(name, number);
    // Whoever stands behind it, up to the next gap, may have come by here.
    const behind: [string, number][] = [];
    for (let at = this.#after(number); ; at = this.#after(at)) {
      const other = this.#names.get(at);
      if (other === undefined) break;
      behind.push([other, at]);
      this.#remove(other, at);
    }
    for (const [other] of behind) this.add(other);
    return behind.filter(([other, before]) => this.#numbers.get(other) !== before);
  }

  #remove(name: string, number: number): void {
    this.#names.delete(number);
    this.#numbers.delete(name);
  }

  #home(name: string): number {
    // As text: a buffer of its own for each of 100,000 names costs twice as much as the rest.
    return (Number.parseInt(hash('sha256', name, 'hex').slice(0, 8), 16) % this.#max) + 1;
  }

  #after(number: number): number {
    return (number % this.#max) + 1;
  }
}

export const ruleNumbers = (ids: Iterable<string> = []): Numbers => new Numbers(RULE_NUMBERS, [DEFAULT_ACTION, ...ids]);
export const groupNumbers = (keys: Iterable<string> = []): Numbers => new Numbers(GROUP_NUMBERS, keys);

/** Rule number ↔ bits of ct mark (and of the packet mark of a logged denial or hit of audit). */
export const ruleMark = (number: number): number => (number << CT_RULE_SHIFT) >>> 0;
/** Under it is counted what the rule matched and would let on, but for its limit or for where its redirect leads. */
export const refusedMark = (number: number): number => ruleMark(number) + REFUSED;
export const REFUSED = 1;
/** Of a flow's mark: decided, by that rule. */
export const decidedBy = (mark: number, number: number): number =>
  ((mark & ~GATEWAY_CT_MASK) | CT_DECIDED | ruleMark(number)) >>> 0;
export const ruleNumberOf = (mark: number): number => (mark & CT_RULE_MASK) >>> CT_RULE_SHIFT;
export const isDecided = (mark: number): boolean => (mark & CT_DECIDED) !== 0;
/** Packets of the flow go to a queue. */
export const isRead = (mark: number): boolean => (mark & CT_READ) !== 0;
/** Its first bytes have not been read, or it has none yet. */
export const isUndecided = (mark: number): boolean => isRead(mark) && ruleNumberOf(mark) >= NUMBER_READ_FIRST;

/**
 * In the ct mark of a flow that is about to be decided at once, though a rule on the way would have had to be read: what has
 * to be read before it is known whether it is denied is not sent elsewhere. Whoever permits sets the mark anew.
 */
export const REDIRECTS_NO_MORE = CT_READ;

/** Only flows that policy decided are ours to end. */
export const decidedMark = { value: CT_DECIDED, mask: CT_DECIDED };
/** And those of which packets are read, which are not among them. */
export const readMark = { value: CT_READ, mask: CT_READ };
