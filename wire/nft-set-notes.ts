/**
 * What `nft` notes in the user data of a set, from which it prints the set's types: the kernel keeps only their lengths.
 * As nft 1.0.6 writes it (libnftnl's udata.h, nftables' src/mnl.c and each expression's build_udata).
 */

import { u8 } from './bytes.ts';
import type { SetLayout } from './nft-shape.ts';
import { type NftExpression, type NftType, typeOfNote } from './nft-types.ts';

// User data: type, length, value; numbers in host order.
const NOTE_KEY_ORDER = 0;
const NOTE_DATA_ORDER = 1;
export const NOTE_KEY = 3;
export const NOTE_DATA = 4;
const NOTE_DATA_INTERVAL = 6;
const EXPR_VERDICT = 1;
const EXPR_PAYLOAD = 7;
const EXPR_META = 9;
const EXPR_CONCAT = 13;

const note = (type: number, value: number[]): number[] => [type, value.length, ...value];
const number = (type: number, value: number): number[] =>
  note(type, [value & 0xff, (value >>> 8) & 0xff, (value >>> 16) & 0xff, value >>> 24]);

/** What is noted of a new set. */
export function notesOf({ fields, value, expressions }: SetLayout): number[] {
  const [first] = fields;
  const single = fields.length === 1 ? first?.type : undefined;
  const notes = number(NOTE_KEY_ORDER, single?.order ?? 0);
  if (value !== undefined) notes.push(...number(NOTE_DATA_ORDER, value === 'verdict' ? 0 : value.order));
  if (single === undefined) {
    const parts = expressions ? fields.flatMap(({ type }, index) => note(index, noteOf(type))) : [];
    notes.push(...note(NOTE_KEY, [...number(0, EXPR_CONCAT), ...note(1, parts)]));
  } else if (expressions) notes.push(...note(NOTE_KEY, noteOf(single)));
  if (value === undefined) return notes;
  if (expressions) notes.push(...note(NOTE_DATA, noteOf(value)));
  return [...notes, ...number(NOTE_DATA_INTERVAL, 0)];
}

function noteOf(type: NftType | 'verdict'): number[] {
  const expression = type === 'verdict' ? undefined : type.expression;
  if (expression === undefined) return [...number(0, EXPR_VERDICT), ...note(1, [])];
  switch (expression.kind) {
    case 'payload':
      return [
        ...number(0, EXPR_PAYLOAD),
        ...note(1, [...number(0, expression.protocol), ...number(1, expression.field)]),
      ];
    case 'raw': {
      const { base, offset, length } = expression;
      const told = [0, 0, base, offset, length].flatMap((value, index) => number(index, value));
      return [...number(0, EXPR_PAYLOAD), ...note(1, told)];
    }
    case 'meta':
      return [...number(0, EXPR_META), ...note(1, number(0, expression.key))];
  }
}

/** The notes of one level, by type; those that do not fit are left out. */
export function notesIn(bytes: Uint8Array): Map<number, Uint8Array> {
  const found = new Map<number, Uint8Array>();
  for (let at = 0; at + 2 <= bytes.length; ) {
    const end = at + 2 + u8(bytes, at + 1);
    if (end > bytes.length) break;
    found.set(u8(bytes, at), bytes.subarray(at + 2, end));
    at = end;
  }
  return found;
}

const NOTHING = new Uint8Array(0);
function numberIn(notes: Map<number, Uint8Array>, type: number): number | undefined {
  const bytes = notes.get(type);
  return bytes?.length === 4 ? new DataView(bytes.buffer, bytes.byteOffset).getUint32(0, true) : undefined;
}

/** The names of what an expression stands for; [] where nothing is noted, undefined where it is not understood. */
export function namesNoted(bytes: Uint8Array | undefined): string[] | undefined {
  if (bytes === undefined) return [];
  const notes = notesIn(bytes);
  const inside = notesIn(notes.get(1) ?? NOTHING);
  const kind = numberIn(notes, 0);
  if (kind !== EXPR_CONCAT) {
    const name = kind === EXPR_VERDICT ? 'verdict' : typeOfNote(expressionIn(kind, inside))?.name;
    return name === undefined ? undefined : [name];
  }
  const names: string[] = [];
  for (const [, part] of [...inside].sort(([a], [b]) => a - b)) {
    const of = namesNoted(part);
    if (of?.length !== 1) return undefined;
    names.push(...of);
  }
  return names;
}

function expressionIn(kind: number | undefined, notes: Map<number, Uint8Array>): NftExpression {
  const of = (type: number): number => numberIn(notes, type) ?? -1;
  if (kind === EXPR_META) return { kind: 'meta', key: of(0) };
  if (kind === EXPR_PAYLOAD && of(0) > 0) return { kind: 'payload', protocol: of(0), field: of(1) };
  if (kind === EXPR_PAYLOAD) return { kind: 'raw', base: of(2), offset: of(3), length: of(4) };
  return { kind: 'meta', key: -1 };
}
