/**
 * The difference between two states of one table as an nft script, which the kernel runs as one transaction.
 * Order: what goes first goes out (old chains are emptied before any is deleted, so that no jump to a deleted one
 * remains; then elements, which may name old chains; then chains, sets, counters), what comes in follows. Packets see
 * none of the order, only before and after; deleting first lets a set change its shape under its own name.
 */
import type { NftSet, NftState, Ruleset } from './nft.ts';
import { isLimitShape, isMapShape, jumpsOf, shapeOf } from './nft-state.ts';

/** Elements on one line: long lists stay readable in logs, short enough for an error to point at. */
const LINE_ELEMENTS = 256;

/** The script that leads from `current` to `desired`; '' if there is nothing to do. */
export function diffRuleset(current: NftState, desired: Ruleset): string {
  const at = `${desired.family} ${desired.table}`;
  const staleChains = [...current.chains].filter((name) => desired.chains[name] === undefined);
  const newChains = Object.entries(desired.chains).filter(([name]) => !current.chains.has(name));
  const rewritten = Object.entries(desired.chains).filter(
    ([name, chain]) =>
      chain.hook !== undefined &&
      current.chains.has(name) &&
      String(current.jumps.get(name)) !== String(jumpsOf(chain.rules)),
  );

  const out: string[] = [];
  for (const name of [...staleChains, ...rewritten.map(([name]) => name)]) out.push(`flush chain ${at} ${name}`);
  const goneSets: string[] = [];
  const elementsIn: string[] = [];
  for (const [name, set] of current.sets) {
    const wanted = desired.sets[name];
    if (wanted === undefined || shapeOf(wanted) !== set.shape) {
      if (wanted !== undefined) checkUnused(name, current, desired);
      goneSets.push(`delete ${isMapShape(set.shape) ? 'map' : 'set'} ${at} ${name}`);
      // A map of verdicts that goes still holds its chains until then; emptied first, the chains can go.
      if (set.shape.includes(': verdict') && set.elements.size > 0) out.push(`flush map ${at} ${name}`);
      continue;
    }
    const { removed, added } = diffElements(set.elements, wanted.elements);
    out.push(...elementLines('delete', at, name, set.shape, removed));
    elementsIn.push(...elementLines('add', at, name, set.shape, added));
  }
  for (const name of staleChains) out.push(`delete chain ${at} ${name}`);
  out.push(...goneSets);
  for (const name of current.counters) if (!desired.counters.includes(name)) out.push(`delete counter ${at} ${name}`);

  for (const name of desired.counters) if (!current.counters.has(name)) out.push(`add counter ${at} ${name}`);
  for (const [name, set] of Object.entries(desired.sets)) {
    if (current.sets.get(name)?.shape === shapeOf(set)) continue;
    out.push(setLine(at, name, set));
    elementsIn.push(...elementLines('add', at, name, shapeOf(set), [...set.elements]));
  }
  for (const [name, chain] of newChains) {
    out.push(`add chain ${at} ${name}${chain.hook === undefined ? '' : ` { ${chain.hook} }`}`);
  }
  for (const [name, chain] of [...newChains, ...rewritten]) {
    for (const rule of chain.rules) out.push(`add rule ${at} ${name} ${rule}`);
  }
  out.push(...elementsIn);
  if (!current.exists) out.unshift(`add table ${at}`);
  return out.length === 0 ? '' : `${out.join('\n')}\n`;
}

function setLine(at: string, name: string, set: NftSet): string {
  return `add ${set.value === undefined ? 'set' : 'map'} ${at} ${name} { ${shapeOf(set)} }`;
}

type Element = [key: string, value: string];

function diffElements(current: Map<string, string>, desired: Map<string, string>) {
  const removed: Element[] = [];
  const added: Element[] = [];
  if (current === desired) return { removed, added };
  for (const [key, value] of current) if (desired.get(key) !== value) removed.push([key, value]);
  for (const [key, value] of desired) if (current.get(key) !== value) added.push([key, value]);
  return { removed, added };
}

function elementLines(verb: 'add' | 'delete', at: string, set: string, shape: string, elements: Element[]): string[] {
  const between = isLimitShape(shape) ? ' ' : ' : ';
  const lines: string[] = [];
  for (let start = 0; start < elements.length; start += LINE_ELEMENTS) {
    const texts = elements
      .slice(start, start + LINE_ELEMENTS)
      .map(([key, value]) => (value === '' ? key : `${key}${between}${value}`));
    lines.push(`${verb} element ${at} ${set} { ${texts.join(', ')} }`);
  }
  return lines;
}

/** A set cannot be replaced under a chain that stays. */
function checkUnused(set: string, current: NftState, desired: Ruleset): void {
  const mention = new RegExp(`@${set}(?![\\w])`);
  for (const [name, chain] of Object.entries(desired.chains)) {
    if (current.chains.has(name) && chain.rules.some((rule) => mention.test(rule))) {
      throw new TypeError(`set ${set} changes its shape, but chain ${name}, which stays, uses it: rename one of them`);
    }
  }
}
