/**
 * A big table that is not there yet, as several changes: its base chains come last, in one, so that nothing of it is in
 * force before all of it is. What the netlink codec does not understand is in the first and the last of them, which are
 * small; what there is much of comes between, in parts: one is written while the kernel works on another (nft-host.ts).
 * Since no packet comes by, the kernel does not follow the rules of each part through all chains. It does go over the
 * list of them, so that what needs none comes before them, and parts are not small.
 */
import { canWrite } from '../wire/nft-elements.ts';
import { layoutOf } from '../wire/nft-shape.ts';
import { type ElementsChange, emptyChange, type TableChange } from './nft-change.ts';

/** Of what the compilers write, what the codec does not understand: only chains have it of which there are few. */
const special = (rule: string): boolean => rule.includes('{') || rule.includes('tcp option');

/** How much a part holds: while it is written, some 50 ms, this thread stands still. */
const PART = 16_000;

export function* creation(change: TableChange): Generator<TableChange> {
  const base = new Set(change.chains.flatMap(({ name, hook }) => (hook === undefined ? [] : [name])));
  const few = new Set<string>();
  const many = new Set(change.chains.map(({ name }) => name));
  for (const [chain, text] of change.rules) if (!base.has(chain) && special(text)) few.add(chain);
  // Their rules may lead anywhere.
  const declared = new Set(few);
  for (const [chain, text] of change.rules) {
    if (few.has(chain)) for (const [, target = ''] of text.matchAll(/\b(?:jump|goto) (\w+)/g)) declared.add(target);
  }
  for (const name of [...base, ...declared]) many.delete(name);
  const empty = (): TableChange => emptyChange(change.family, change.table);
  // Elements that lead to chains come behind those.
  const [leading, others] = apart(change.elementsIn, ({ shape }) => shape.includes(': verdict'));
  const [plain, plainForCommand] = apart(others, writable);
  const [verdicts, verdictsForCommand] = apart(leading, writable);
  yield {
    ...empty(),
    create: true,
    counters: change.counters,
    sets: change.sets,
    chains: change.chains.filter(({ name }) => declared.has(name)),
    rules: change.rules.filter(([chain]) => few.has(chain)),
    elementsIn: plainForCommand,
  };
  for (const part of elementParts(plain)) yield { ...empty(), elementsIn: part };
  for (const part of change.later ?? []) yield { ...empty(), elementsIn: part };
  for (const chains of parts([...many])) yield { ...empty(), chains: chains.map((name) => ({ name })) };
  const rules = change.rules.filter(([chain]) => !base.has(chain) && !few.has(chain));
  for (const part of parts(rules)) yield { ...empty(), rules: part };
  for (const part of elementParts(verdicts)) yield { ...empty(), elementsIn: part };
  yield {
    ...empty(),
    chains: change.chains.filter(({ name }) => base.has(name)),
    rules: change.rules.filter(([chain]) => base.has(chain)),
    elementsIn: verdictsForCommand,
  };
}

function writable({ shape }: ElementsChange): boolean {
  const layout = layoutOf(shape);
  return layout !== undefined && canWrite(layout);
}

/** Those that are so, and those that are not. */
function apart<T>(list: readonly T[], is: (one: T) => boolean): [T[], T[]] {
  return [list.filter(is), list.filter((one) => !is(one))];
}

function* parts<T>(list: readonly T[]): Generator<T[]> {
  for (let at = 0; at < list.length; at += PART) yield list.slice(at, at + PART);
}

/** Of several sets, if they are small. */
function* elementParts(sets: readonly ElementsChange[]): Generator<ElementsChange[]> {
  let part: ElementsChange[] = [];
  let room = PART;
  for (const { set, shape, elements } of sets) {
    for (let at = 0; at < elements.length; ) {
      const piece = elements.slice(at, at + room);
      part.push({ set, shape, elements: piece });
      at += piece.length;
      room -= piece.length;
      if (room > 0) continue;
      yield part;
      part = [];
      room = PART;
    }
  }
  if (part.length > 0) yield part;
}
