/**
 * The elements that a rule has in sets of marks: that its hits are counted (verdict.ts), and its limits (limits.ts).
 */
import type { RuleEntry } from '../api/plan.ts';
import { markText } from '../kernel/nft.ts';
import { limitElements } from './limits.ts';
import type { Table } from './table.ts';
import { HITS_SET, HITS_SIZE, hitMarks } from './verdict.ts';

export interface RuleElementsOptions {
  /** Has the sets HITS_SET and those of limits. */
  table: Table;
  /** Whether this gateway holds `pool/shard`, for its share of limits. */
  isHeld(shard: string): boolean;
}

export class RuleElements {
  readonly #options: RuleElementsOptions;
  #counted = 0;

  constructor(options: RuleElementsOptions) {
    this.#options = options;
  }

  /** undefined: the default action. */
  enter(number: number, rule: RuleEntry | undefined): void {
    const { table, isHeld } = this.#options;
    const limits = rule?.limits;
    for (const [set, key, value] of limits === undefined ? [] : limitElements(limits, number, isHeld)) {
      table.setElement(set, key, value);
    }
    for (const mark of hitMarks(number, rule)) {
      if (this.#counted >= HITS_SIZE) return;
      if (table.setElement(HITS_SET, markText(mark), '')) this.#counted++;
    }
  }

  leave(number: number, rule: RuleEntry | undefined): void {
    const { table, isHeld } = this.#options;
    const limits = rule?.limits;
    for (const [set, key] of limits === undefined ? [] : limitElements(limits, number, isHeld)) {
      table.deleteElement(set, key);
    }
    for (const mark of hitMarks(number, rule)) if (table.deleteElement(HITS_SET, markText(mark))) this.#counted--;
  }
}
