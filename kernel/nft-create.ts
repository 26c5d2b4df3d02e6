/**
 * A big table that is not there yet, as several changes: its base chains come last, in one, so that nothing of it is in
 * force before all of it is. What the netlink codec does not understand is in the first and the last of them, which are
 * small; what there is much of comes between, in parts that leave the event loop some air. Since no packet comes by, nor
 * does the kernel look through all chains after each part.
 */
import { layoutOf } from '../wire/nft-shape.ts';
import { type ElementsChange, emptyChange, type TableChange } from './nft-change.ts';

/** Statements that only chains have of which there are few. */
const special = /\b(log|counter|fib|reject|snat|iifname|oifname|limit|notrack|flags|state|original|iif)\b/;

/** How much a part holds: as long as it takes, this thread stands still. */
const PART = 4_000;

export function* creation(change: TableChange): Generator<TableChange> {
  const base = new Set(change.chains.flatMap(({ name, hook }) => (hook === undefined ? [] : [name])));
  const few = new Set<string>();
  const many = new Set(change.chains.map(({ name }) => name));
  for (const [chain, text] of change.rules) if (!base.has(chain) && special.test(text)) few.add(chain);
  // Their rules may lead anywhere.
  const declared = new Set(few);
  for (const [chain, text] of change.rules) {
    if (few.has(chain)) for (const [, target = ''] of text.matchAll(/\b(?:jump|goto) (\w+)/g)) declared.add(target);
  }
  for (const name of [...base, ...declared]) many.delete(name);
  const known = ({ shape }: ElementsChange): boolean => layoutOf(shape) !== undefined;
  const empty = (): TableChange => emptyChange(change.family, change.table);
  yield {
    ...empty(),
    create: true,
    counters: change.counters,
    sets: change.sets,
    chains: change.chains.filter(({ name }) => declared.has(name)),
    rules: change.rules.filter(([chain]) => few.has(chain)),
    elementsIn: change.elementsIn.filter((elements) => !known(elements)),
  };
  for (const chains of parts([...many])) yield { ...empty(), chains: chains.map((name) => ({ name })) };
  const rules = change.rules.filter(([chain]) => !base.has(chain) && !few.has(chain));
  for (const part of parts(rules)) yield { ...empty(), rules: part };
  for (const { set, shape, elements } of change.elementsIn.filter(known)) {
    for (const part of parts(elements)) yield { ...empty(), elementsIn: [{ set, shape, elements: part }] };
  }
  yield {
    ...empty(),
    chains: change.chains.filter(({ name }) => base.has(name)),
    rules: change.rules.filter(([chain]) => base.has(chain)),
  };
}

function* parts<T>(list: readonly T[]): Generator<T[]> {
  for (let at = 0; at < list.length; at += PART) yield list.slice(at, at + PART);
}
