/**
 * Snapshots and deltas of any size as lines of bounded length (plan-stream.ts): what is coming, then parts, each a
 * delta on what came before, then the end. So neither end ever holds a large plan as text. Strict where they are put
 * together again: what does not belong there is refused, and nothing is handed out before it is whole.
 */
import type { PlanRole } from './plan.ts';
import { changePlan, checkDelta, type PlanDelta, sameJson } from './plan-delta.ts';
import { collectionsOf, formatMessage, type ServerMessage } from './plan-stream.ts';
import type { Result } from './result.ts';

/** A part ends after the entry with which it reaches this many characters; so does a chunk of lines. */
export const PART_LENGTH = 256 * 1024;

/** A whole update. The deltas are one after another; the plan of a snapshot is the receiver's to change. */
export type Update<P extends object = object> =
  | { type: 'snapshot'; generation: number; hash: string; plan: P }
  | { type: 'delta'; from: number; generation: number; hash: string; deltas: PlanDelta[] }
  | { type: 'keep'; generation: number };

/** The lines of an update in chunks, each made when it is taken. `limit`: characters with which a part is full. */
export function* formatUpdate(update: Update, limit = PART_LENGTH): Generator<string> {
  if (update.type === 'keep') {
    yield formatMessage(update);
    return;
  }
  let text: string;
  let deltas: PlanDelta[];
  if (update.type === 'snapshot') {
    const { plan, ...head } = update;
    text = formatMessage({ ...head, collections: Object.keys(plan) });
    deltas = [{ set: plan as PlanDelta['set'], delete: {} }];
  } else {
    const { deltas: parts, ...head } = update;
    text = formatMessage(head);
    deltas = parts;
  }
  for (const delta of deltas) {
    for (const piece of piecesOf(delta, limit)) {
      text += `{"type":"part","delta":${piece}}\n`;
      if (text.length < limit) continue;
      yield text;
      text = '';
    }
  }
  yield text + formatMessage({ type: 'end' });
}

/** Texts of deltas that are one piece: the same goes to every gateway of a pool. */
const singles = new WeakMap<PlanDelta, string>();

/** The delta as JSON texts of deltas that together are it. It is not changed any more. */
function* piecesOf(delta: PlanDelta, limit: number): Generator<string> {
  const single = singles.get(delta);
  if (single !== undefined) {
    yield single;
    return;
  }
  let pieces = 0;
  const texts = { set: new Map<string, string[]>(), delete: new Map<string, string[]>() };
  let length = 0;
  const add = (kind: 'set' | 'delete', name: string, text: string): boolean => {
    const list = texts[kind].get(name) ?? [];
    texts[kind].set(name, list);
    list.push(text);
    length += text.length;
    return length >= limit;
  };
  const take = (): string => {
    const sets = [...texts.set].map(([name, list]) => `${JSON.stringify(name)}:{${list.join(',')}}`);
    const gone = [...texts.delete].map(([name, list]) => `${JSON.stringify(name)}:[${list.join(',')}]`);
    for (const kind of Object.values(texts)) kind.clear();
    length = 0;
    pieces++;
    return `{"set":{${sets.join(',')}},"delete":{${gone.join(',')}}}`;
  };
  for (const [name, keys] of Object.entries(delta.delete)) {
    for (const key of keys) if (add('delete', name, JSON.stringify(key))) yield take();
  }
  for (const [name, entries] of Object.entries(delta.set)) {
    for (const key of Object.keys(entries)) {
      const value = entries[key];
      if (value !== undefined && add('set', name, `${JSON.stringify(key)}:${JSON.stringify(value)}`)) yield take();
    }
  }
  if (length === 0) return;
  const last = take();
  if (pieces === 1) singles.set(delta, last);
  yield last;
}

/** Puts the messages of one connection together to updates. */
export class Assembly<P extends object> {
  readonly #role: PlanRole;
  readonly #limit: number;
  #open: Exclude<Update<P>, { type: 'keep' }> | undefined;
  #length = 0;

  /** `limit`: characters of an update, all its lines together. */
  constructor(role: PlanRole, limit: number) {
    this.#role = role;
    this.#limit = limit;
  }

  /**
   * The update that this message completes, if it does. `length`: of its line. `held`: the plan at hand; what is the
   * same in a snapshot is taken from it, so that a large plan of which little changed is not held twice.
   */
  push(message: ServerMessage, length: number, held?: P): Result<Update<P> | undefined> {
    const open = this.#open;
    if (open === undefined) return this.#begin(message, length);
    this.#length += length;
    if (this.#length > this.#limit) return fail(`${open.type}: is longer than ${this.#limit} characters`);
    if (message.type === 'end') {
      this.#open = undefined;
      return { ok: true, value: open };
    }
    if (message.type !== 'part') return fail(`${message.type}: came within a ${open.type}`);
    if (open.type === 'delta') {
      open.deltas.push(message.delta);
      return { ok: true, value: undefined };
    }
    const part = checkDelta(open.plan, message.delta);
    if (!part.ok) return fail(`snapshot: ${part.error}`);
    if (held !== undefined) share(part.value, held);
    changePlan(open.plan, part.value);
    return { ok: true, value: undefined };
  }

  #begin(message: ServerMessage, length: number): Result<Update<P> | undefined> {
    this.#length = length;
    switch (message.type) {
      case 'keep':
        return { ok: true, value: message };
      case 'delta':
        this.#open = { ...message, deltas: [] };
        return { ok: true, value: undefined };
      case 'snapshot': {
        const { collections, ...head } = message;
        const missing = collectionsOf(this.#role).find((name) => !collections.includes(name));
        if (missing !== undefined) return fail(`snapshot: expected the collection "${missing}"`);
        this.#open = { ...head, plan: Object.fromEntries(collections.map((name) => [name, {}])) as P };
        return { ok: true, value: undefined };
      }
      default:
        return fail(`${message.type}: of nothing`);
    }
  }
}

const fail = (error: string): { ok: false; error: string } => ({ ok: false, error });

function share(delta: PlanDelta, held: object): void {
  for (const [name, set] of Object.entries(delta.set)) {
    const there = (held as PlanDelta['set'])[name];
    if (there === undefined) continue;
    for (const key of Object.keys(set)) {
      if (Object.hasOwn(there, key) && sameJson(there[key], set[key])) set[key] = there[key];
    }
  }
}
