/**
 * What an importer hands back, whatever the format: manifests, and a report of what became of every object that was
 * read. Three lists: *not carried over* (its meaning is not, or not wholly, in what was written), *changed* (other
 * words, same meaning) and *notes* (what a person should know about the whole). Pure; command.ts prints it.
 */
import { type KindName, parseObject } from '../../api/kinds.ts';
import { printable } from '../output.ts';

/** An object as it is written: no field that says no more than its default. */
export interface Manifest {
  apiVersion: string;
  kind: KindName;
  metadata: {
    name: string;
    namespace?: string;
    labels?: Record<string, string>;
    annotations?: Record<string, string>;
  };
  spec: Record<string, unknown>;
}

/** One object of the input, and where it was found (`file`, or `file (document 3)`). */
export interface Input {
  value: unknown;
  at: string;
}

/** What a loss does to policy: an accept that is gone permits less, a drop or reject that is gone permits more. */
export type Effect = 'none' | 'permits less' | 'permits more' | 'permits less here and more there';

export interface Remark {
  /** `Kind/namespace/name` in the input. */
  object: string;
  /** Field in the input; absent: the whole object. */
  path?: string;
  /** A stable word. */
  reason: string;
  message: string;
  effect?: Effect;
}

export interface Outcome {
  object: string;
  at: string;
  /** What was written for it; empty: nothing was. */
  written: string[];
  /** `whole`, also if other words say the same. */
  result: 'whole' | 'in part' | 'not';
}

export interface Note {
  reason: string;
  message: string;
  /** What it speaks of. */
  items?: string[];
}

export interface Report {
  format: string;
  /** Objects of the format that were read, of other kinds that were passed over, written; remarks beyond the bound. */
  counts: { read: number; passedOver: number; written: number; unlisted: number };
  objects: Outcome[];
  notCarried: Remark[];
  changed: Remark[];
  notes: Note[];
}

export type Imported = { ok: true; manifests: Manifest[]; report: Report } | { ok: false; errors: string[] };

/** Remarks of one list: what a hostile input can say in few bytes must not fill the memory. */
const MAX_REMARKS = 100_000;
/** Objects of one import. */
export const MAX_OBJECTS = 100_000;
/** Errors of bad input that are told; the rest is counted. */
const MAX_ERRORS = 50;

export function refusal(errors: readonly string[]): Imported {
  const more = errors.length - MAX_ERRORS;
  return { ok: false, errors: [...errors.slice(0, MAX_ERRORS), ...(more > 0 ? [`and ${more} more`] : [])] };
}

export const keyOf = ({ kind, metadata }: Pick<Manifest, 'kind' | 'metadata'>): string =>
  [kind, metadata.namespace, metadata.name].filter((part) => part !== undefined).join('/');

/** Collects a report while the objects are converted, in the order of the input. */
export class Reporter {
  readonly manifests: Manifest[] = [];
  readonly #report: Report;
  readonly #outcomes = new Map<string, Outcome>();

  constructor(format: string) {
    const counts = { read: 0, passedOver: 0, written: 0, unlisted: 0 };
    this.#report = { format, counts, objects: [], notCarried: [], changed: [], notes: [] };
  }

  read(object: string, at: string): void {
    const outcome: Outcome = { object, at, written: [], result: 'whole' };
    this.#outcomes.set(object, outcome);
    this.#report.objects.push(outcome);
  }

  passedOver(count: number): void {
    this.#report.counts.passedOver += count;
  }

  changed(remark: Remark): void {
    this.#list(this.#report.changed, remark);
  }

  notCarried(remark: Remark): void {
    this.#list(this.#report.notCarried, remark);
    const outcome = this.#outcomes.get(remark.object);
    if (outcome !== undefined) outcome.result = 'in part';
  }

  #list(list: Remark[], remark: Remark): void {
    if (list.length < MAX_REMARKS) list.push(remark);
    else this.#report.counts.unlisted++;
  }

  note(reason: string, message: string, items?: string[]): void {
    this.#report.notes.push({ reason, message, ...(items === undefined ? {} : { items }) });
  }

  /**
   * False: our own schema does not take what came out, which is then said and not written. What a source's API server
   * lets pass need not pass ours: a label, a name, a limit.
   */
  write(object: string, manifest: Manifest, effect: Effect): boolean {
    const parsed = parseObject(manifest);
    if (!parsed.ok) {
      const { path, expected, got } = parsed.errors[0] ?? { path: '', expected: 'an object', got: 'another' };
      this.notCarried({ object, path, reason: 'Refused', message: `expected ${expected}, got ${got}`, effect });
      return false;
    }
    this.manifests.push(manifest);
    this.#outcomes.get(object)?.written.push(keyOf(manifest));
    return true;
  }

  done(): Imported {
    for (const outcome of this.#report.objects) if (outcome.written.length === 0) outcome.result = 'not';
    this.#report.counts.read = this.#report.objects.length;
    this.#report.counts.written = this.manifests.length;
    return { ok: true, manifests: this.manifests, report: this.#report };
  }
}

/** Remarks of one reason that a person is shown; JSON has them all. */
const MAX_SHOWN = { notCarried: 50, changed: 5, items: 20 };

const andMore = (number: number): string =>
  number > 0 ? `    and ${number} more (all of them: --report FILE -o json)\n` : '';

function remarksText(title: string, remarks: readonly Remark[], max: number): string {
  if (remarks.length === 0) return '';
  const byReason = new Map<string, Remark[]>();
  for (const remark of remarks) {
    const list = byReason.get(remark.reason);
    if (list === undefined) byReason.set(remark.reason, [remark]);
    else list.push(remark);
  }
  const lines = [...byReason].flatMap(([reason, list]) => [
    `  ${reason} (${list.length})\n`,
    ...list.slice(0, max).map(({ object, path, message, effect }) => {
      const where = path === undefined || path === '' ? object : `${object} ${path}`;
      return `    ${printable(`${where}: ${message}${effect === undefined ? '' : ` [${effect}]`}`)}\n`;
    }),
    andMore(list.length - max),
  ]);
  return `${title} (${remarks.length}):\n${lines.join('')}`;
}

export function reportText({ counts, objects, notCarried, changed, notes }: Report): string {
  const number = (result: Outcome['result']): number => objects.filter((one) => one.result === result).length;
  const noteLines = notes.flatMap(({ reason, message, items = [] }) => [
    `  ${reason}: ${printable(message)}\n`,
    ...items.slice(0, MAX_SHOWN.items).map((item) => `    ${printable(item)}\n`),
    andMore(items.length - MAX_SHOWN.items),
  ]);
  return [
    remarksText('not carried over', notCarried, MAX_SHOWN.notCarried),
    remarksText('changed', changed, MAX_SHOWN.changed),
    notes.length === 0 ? '' : `notes (${notes.length}):\n${noteLines.join('')}`,
    `${counts.read} objects read: ${number('whole')} carried over, ${number('in part')} in part, ${number('not')} not; `,
    `${counts.written} written`,
    counts.passedOver === 0 ? '' : `; ${counts.passedOver} of other kinds passed over`,
    counts.unlisted === 0 ? '' : `; ${counts.unlisted} remarks are beyond the bound and not listed`,
    '\n',
  ].join('');
}
