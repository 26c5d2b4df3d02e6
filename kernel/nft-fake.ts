/**
 * nftables in memory: runs the scripts that scriptOf() writes, with the kernel's answers where it matters to us
 * (a transaction is all or nothing; ENOENT, EEXIST, EBUSY), and keeps them. Expressions are not understood, only the
 * names of sets, chains and counters in them. Overlapping intervals are not refused.
 */
import { type KernelCode, KernelError } from './errors.ts';
import type { CounterValue, Nft, NftState } from './nft.ts';
import { isEmptyChange, scriptOf, type TableChange } from './nft-change.ts';
import { digestIfWhole, emptyState, isLimitShape, withoutDigest } from './nft-state.ts';

interface FakeTable {
  counters: Map<string, CounterValue>;
  sets: Map<string, { shape: string; elements: Map<string, string> }>;
  chains: Map<string, { rules: string[] }>;
}

const digestIn = (rules: string[]): string | undefined =>
  rules[0] === undefined ? '' : digestIfWhole(withoutDigest(rules[0])[1], rules.length);
const fail = (code: KernelCode, line: string): never => {
  throw new KernelError('nft run', code, line.slice(0, 200));
};
const known = <T>(value: T | undefined, line: string): T => value ?? fail('ENOENT', line);

export class FakeNft implements Nft {
  /** Every script that was run, oldest first. */
  readonly scripts: string[] = [];
  /** Set to make the next run fail with it. */
  failNext: KernelError | undefined;
  #tables = new Map<string, FakeTable>();

  async run(change: TableChange): Promise<void> {
    if (!isEmptyChange(change)) this.#run(scriptOf(change));
  }

  #run(script: string): void {
    const failure = this.failNext;
    this.failNext = undefined;
    if (failure !== undefined) throw failure;
    const tables = structuredClone(this.#tables);
    for (const line of script.split('\n')) if (line.trim() !== '') execute(tables, line.trim());
    for (const table of tables.values()) checkReferences(table);
    this.#tables = tables;
    this.scripts.push(script);
  }

  async list(_family: 'inet', name: string): Promise<NftState> {
    const table = this.#tables.get(name);
    if (table === undefined) return emptyState();
    return {
      exists: true,
      counters: new Set(table.counters.keys()),
      sets: structuredClone(table.sets),
      chains: new Map([...table.chains].map(([chain, { rules }]) => [chain, digestIn(rules)])),
    };
  }

  async counters(name: string): Promise<Record<string, CounterValue>> {
    return structuredClone(Object.fromEntries(this.#tables.get(name)?.counters ?? []));
  }

  async drop(name: string): Promise<void> {
    this.#run(`add table inet ${name}\ndelete table inet ${name}\n`);
  }

  /** Rules of a chain, as they were added. */
  rules(table: string, chain: string): string[] | undefined {
    return this.#tables
      .get(table)
      ?.chains.get(chain)
      ?.rules.map((rule) => withoutDigest(rule)[0]);
  }

  /** Plays traffic. */
  count(table: string, counter: string, packets: number, bytes: number): void {
    const value = known(this.#tables.get(table)?.counters.get(counter), `${table} ${counter}`);
    value.packets += packets;
    value.bytes += bytes;
  }
}

function execute(tables: Map<string, FakeTable>, line: string): void {
  const match = /^(add|delete|flush) (\w+) inet (\w+)(?: (\w+))?(?: (.*))?$/.exec(line);
  const [, verb = '', kind = '', tableName = '', name = '', rest = ''] = match ?? fail('syntax', line);
  const inner = /^\{ (.*) \}$/.exec(rest)?.[1] ?? '';
  if (kind === 'table') {
    if (verb === 'add' && !tables.has(tableName)) {
      tables.set(tableName, { counters: new Map(), sets: new Map(), chains: new Map() });
    }
    if (verb === 'delete' && !tables.delete(tableName)) fail('ENOENT', line);
    return;
  }
  const table = known(tables.get(tableName), line);
  switch (`${verb} ${kind}`) {
    case 'add counter':
      if (!table.counters.has(name)) table.counters.set(name, { packets: 0, bytes: 0 });
      break;
    case 'add set':
    case 'add map':
      if ((table.sets.get(name)?.shape ?? inner) !== inner) fail('EEXIST', line);
      if (!table.sets.has(name)) table.sets.set(name, { shape: inner, elements: new Map() });
      break;
    case 'add chain':
      if (!table.chains.has(name)) table.chains.set(name, { rules: [] });
      break;
    case 'add rule':
      known(table.chains.get(name), line).rules.push(rest);
      for (const reference of referencesOf(rest)) checkReference(table, reference, line);
      break;
    case 'flush chain':
      known(table.chains.get(name), line).rules = [];
      break;
    case 'flush set':
    case 'flush map':
      known(table.sets.get(name), line).elements.clear();
      break;
    case 'add element':
      changeElements(known(table.sets.get(name), line), inner, 'add', line);
      break;
    case 'delete element':
      changeElements(known(table.sets.get(name), line), inner, 'delete', line);
      break;
    case 'delete counter':
      deleteObject(table, table.counters, name, 'counter', line);
      break;
    case 'delete set':
    case 'delete map':
      deleteObject(table, table.sets, name, 'set', line);
      break;
    case 'delete chain':
      deleteObject(table, table.chains, name, 'chain', line);
      break;
    default:
      fail('syntax', line);
  }
}

function changeElements(
  { shape, elements }: { shape: string; elements: Map<string, string> },
  inner: string,
  verb: 'add' | 'delete',
  line: string,
): void {
  const between = isLimitShape(shape) ? / (?=limit |ct )/ : ' : ';
  for (const text of inner.split(', ')) {
    const [key = '', value = ''] = text.split(between);
    const old = elements.get(key);
    if (verb === 'delete') {
      if (old === undefined) fail('ENOENT', line);
      elements.delete(key);
    } else {
      if (old !== undefined && old !== value) fail('EEXIST', line);
      elements.set(key, value);
    }
  }
}

type Reference = ['chain' | 'set' | 'counter', string];

/** Names in a rule or a verdict. `@th,336,32` and `@nh,…` are payload expressions, not sets. */
function referencesOf(text: string): Reference[] {
  return [...text.matchAll(/\b(jump|goto) (\w+)|@(\w+)(?![\w,])|counter name "?(\w+)"?/g)].map(
    ([, , chain, set, counter]): Reference =>
      chain !== undefined ? ['chain', chain] : set !== undefined ? ['set', set] : ['counter', counter ?? ''],
  );
}

function checkReference(table: FakeTable, [kind, name]: Reference, line: string): void {
  const objects = { chain: table.chains, set: table.sets, counter: table.counters }[kind];
  if (!objects.has(name)) fail('ENOENT', line);
}

function* usesOf(table: FakeTable): Generator<Reference> {
  for (const { rules } of table.chains.values()) for (const rule of rules) yield* referencesOf(rule);
  for (const { shape, elements } of table.sets.values()) {
    if (shape.includes(': verdict')) for (const value of elements.values()) yield* referencesOf(value);
  }
}

function deleteObject<T>(table: FakeTable, objects: Map<string, T>, name: string, kind: string, line: string): void {
  if (!objects.delete(name)) fail('ENOENT', line);
  for (const [usedKind, used] of usesOf(table)) if (usedKind === kind && used === name) fail('EBUSY', line);
}

function checkReferences(table: FakeTable): void {
  for (const reference of usesOf(table)) checkReference(table, reference, `reference to ${reference.join(' ')}`);
}
