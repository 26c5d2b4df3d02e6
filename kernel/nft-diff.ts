/**
 * The difference between two states of one table: nft-change.ts.
 */
import type { NftChain, NftState, Ruleset } from './nft.ts';
import { emptyChange, type NftElement, type TableChange } from './nft-change.ts';
import { digestOf, rulesOf, shapeOf } from './nft-state.ts';

/** What leads from `current` to `desired`. */
export function diffRuleset(current: NftState, desired: Ruleset): TableChange {
  const change = emptyChange(desired.family, desired.table);
  change.create = !current.exists;
  change.chainsOut = [...current.chains.keys()].filter((name) => desired.chains[name] === undefined);
  const newChains: [name: string, chain: NftChain][] = [];
  const rewritten: typeof newChains = [];
  for (const entry of Object.entries(desired.chains)) {
    const [name, chain] = entry;
    if (!current.chains.has(name)) newChains.push(entry);
    else if (current.chains.get(name) !== digestOf(chain)) rewritten.push(entry);
  }
  change.flushed = [...change.chainsOut, ...rewritten.map(([name]) => name)];
  for (const [name, set] of current.sets) {
    const wanted = desired.sets[name];
    const { shape } = set;
    if (wanted === undefined || shapeOf(wanted) !== shape) {
      if (wanted !== undefined) checkUnused(name, current, desired);
      change.setsOut.push({ name, shape });
      if (shape.includes(': verdict')) change.flushedMaps.push(name);
      continue;
    }
    const { removed, added } = diffElements(set.elements, wanted.elements);
    if (removed.length > 0) change.elementsOut.push({ set: name, shape, elements: removed });
    if (added.length > 0) change.elementsIn.push({ set: name, shape, elements: added });
  }
  change.countersOut = [...current.counters].filter((name) => !desired.counters.includes(name));
  change.counters = desired.counters.filter((name) => !current.counters.has(name));
  for (const [name, set] of Object.entries(desired.sets)) {
    const shape = shapeOf(set);
    if (current.sets.get(name)?.shape === shape) continue;
    change.sets.push({ name, shape });
    if (set.elements.size > 0) change.elementsIn.push({ set: name, shape, elements: [...set.elements] });
  }
  change.chains = newChains.map(([name, { hook }]) => (hook === undefined ? { name } : { name, hook }));
  for (const chains of [newChains, rewritten]) {
    for (const [name, chain] of chains) for (const rule of rulesOf(name, chain)) change.rules.push(rule);
  }
  return change;
}

function diffElements(current: Map<string, string>, desired: Map<string, string>) {
  const removed: NftElement[] = [];
  const added: NftElement[] = [];
  if (current === desired) return { removed, added };
  for (const [key, value] of current) if (desired.get(key) !== value) removed.push([key, value]);
  for (const [key, value] of desired) if (current.get(key) !== value) added.push([key, value]);
  return { removed, added };
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
