/**
 * What `nft -n -j list table` prints (libnftables-json(5), nft 1.0.6), as an NftState: element texts are brought to
 * the forms of nft-element.ts. JSON says of a `typeof` set only "integer", so shapes are read from the terse text
 * listing (`nft -n -t list table`). Rules are not read, but for those that only jump.
 */
import { addressBytes, ipv4Text, ipv6Text } from '../wire/address-text.ts';
import { KernelError } from './errors.ts';
import type { CounterValue, NftState } from './nft.ts';
import { bytesLimitText, concat, connectionLimitText, markText, rangeText, rawText } from './nft-element.ts';
import { emptyState } from './nft-state.ts';

type Json = string | number | boolean | null | Json[] | { [key: string]: Json };
type JsonObject = { [key: string]: Json };

const op = 'nft list';
const bad = (what: unknown) => new KernelError(op, 'bad-answer', `unexpected ${JSON.stringify(what)?.slice(0, 200)}`);
const isObject = (value: Json | undefined): value is JsonObject =>
  typeof value === 'object' && value !== null && !Array.isArray(value);

/** Objects of the listing, each with its kind. Integers past 2^53 (raw payload keys) are kept as text. */
function objectsOf(json: string): [kind: string, object: JsonObject][] {
  const exact = json.replace(/([[:,] ?)(-?\d{16,})(?=[\],}])/g, '$1"$2"');
  let parsed: Json;
  try {
    parsed = JSON.parse(exact) as Json;
  } catch (error) {
    throw new KernelError(op, 'bad-answer', json.slice(0, 200), error);
  }
  const list = isObject(parsed) ? parsed.nftables : undefined;
  if (!Array.isArray(list)) throw bad(parsed);
  return list.flatMap((entry) =>
    isObject(entry)
      ? Object.entries(entry).flatMap(([kind, object]): [string, JsonObject][] =>
          isObject(object) ? [[kind, object]] : [],
        )
      : [],
  );
}

export function parseTable(json: string, terse: string): NftState {
  const state: NftState = { ...emptyState(), exists: true };
  const shapes = parseShapes(terse);
  for (const [kind, object] of objectsOf(json)) {
    const name = String(object.name);
    if (kind === 'counter') state.counters.add(name);
    else if (kind === 'set' || kind === 'map') {
      const shape = shapes.get(name);
      if (shape === undefined) throw bad(`set without a shape: ${name}`);
      state.sets.set(name, { shape, elements: elementsOf(object) });
    } else if (kind === 'chain') state.chains.set(name, '');
    else if (kind === 'rule') {
      const chain = String(object.chain);
      // Chains are listed before rules.
      if (state.chains.get(chain) === '') state.chains.set(chain, digestIn(object.comment));
    }
  }
  return state;
}

export function parseCounters(json: string): Record<string, CounterValue> {
  const counters: Record<string, CounterValue> = {};
  for (const [kind, object] of objectsOf(json)) {
    if (kind !== 'counter') continue;
    counters[String(object.name)] = { packets: Number(object.packets), bytes: Number(object.bytes) };
  }
  return counters;
}

/** `set NAME {`, `type …` or `typeof …`, `size …`, `flags …`, `counter`, a limit of the text listing → the texts of shapeOf(). */
function parseShapes(terse: string): Map<string, string> {
  const shapes = new Map<string, string>();
  let name: string | undefined;
  for (const line of terse.split('\n')) {
    const opened = /^\t(?:set|map) (\S+) \{$/.exec(line);
    if (opened?.[1] !== undefined) name = opened[1];
    else if (line === '\t}') name = undefined;
    else if (name !== undefined && /^\t\t(type|typeof) /.test(line)) shapes.set(name, `${line.trim()};`);
    else if (name !== undefined && /^\t\t(flags |size |counter$|limit rate |ct count )/.test(line))
      shapes.set(name, `${shapes.get(name)} ${line.trim()};`);
  }
  return shapes;
}

/** Rules that somebody else wrote have another comment, or none. */
const digestIn = (comment: Json | undefined): string | undefined =>
  typeof comment === 'string' && /^[0-9a-f]{16}$/.test(comment) ? comment : undefined;

function elementsOf(set: JsonObject): Map<string, string> {
  const types = (Array.isArray(set.type) ? set.type : [set.type ?? '']).map(String);
  const elements = new Map<string, string>();
  for (const element of Array.isArray(set.elem) ? set.elem : []) {
    const [key, value] = set.map !== undefined && Array.isArray(element) ? element : [element];
    const text = value === undefined ? limitText(key) : valueText(bare(value), String(set.map));
    elements.set(keyText(bare(key ?? null), types), text);
  }
  return elements;
}

/** An element with a timeout, comment or counter is wrapped. */
const bare = (element: Json): Json =>
  isObject(element) && isObject(element.elem) && element.elem.val !== undefined ? element.elem.val : element;

/** What a plain element has in place of a value: '', or its limit. */
function limitText(element: Json | undefined): string {
  if (!isObject(element) || !isObject(element.elem)) return '';
  const { limit, 'ct count': count } = element.elem;
  if (isObject(limit) && limit.rate_unit !== undefined) {
    return bytesLimitText(bytesOf(limit.rate, limit.rate_unit), bytesOf(limit.burst, limit.burst_unit));
  }
  if (isObject(limit)) return `limit rate over ${limit.rate}/${limit.per} burst ${limit.burst} packets`;
  return isObject(count) ? connectionLimitText(Number(count.val)) : '';
}

/** nft divides by 1,024 as often as nothing is lost. */
function bytesOf(value: Json | undefined, unit: Json | undefined): number {
  const power = ['bytes', 'kbytes', 'mbytes'].indexOf(String(unit));
  if (power < 0) throw bad(unit);
  return Number(value) * 1024 ** power;
}

function keyText(key: Json, types: string[]): string {
  if (!isObject(key) || !Array.isArray(key.concat)) return partText(key, types[0] ?? '');
  return concat(...key.concat.map((part, index) => partText(part, types[index] ?? '')));
}

function partText(part: Json, type: string): string {
  if (isObject(part)) {
    if (Array.isArray(part.range) && part.range.length === 2) {
      const [first = null, last = null] = part.range;
      return rangeText(plainText(first, type), plainText(last, type));
    }
    if (isObject(part.prefix)) return prefixText(String(part.prefix.addr), Number(part.prefix.len));
    throw bad(part);
  }
  return plainText(part, type);
}

function plainText(value: Json, type: string): string {
  if (typeof value !== 'string' && typeof value !== 'number') throw bad(value);
  switch (type) {
    case 'ipv6_addr':
      // nft writes a v4-mapped address with dots.
      return String(value).includes('.') ? ipv6Text(addressBytes(String(value)), 0) : String(value);
    case 'mark':
      return markText(Number(value));
    case 'integer': {
      const integer = BigInt(value);
      // 64-bit payloads are printed signed.
      return rawText(integer < 0n ? integer + (1n << 64n) : integer);
    }
    case 'ifname':
      return `"${value}"`;
    default:
      return String(value);
  }
}

function prefixText(address: string, length: number): string {
  const first = addressBytes(address);
  const last = first.map((byte, index) => byte | (0xff >> Math.min(8, Math.max(0, length - 8 * index))));
  const text = first.length === 4 ? ipv4Text : ipv6Text;
  return rangeText(text(first, 0), text(last, 0));
}

function valueText(value: Json, type: string): string {
  if (type !== 'verdict') return partText(value, type);
  if (!isObject(value)) throw bad(value);
  const [verdict = '', argument] = Object.entries(value)[0] ?? [];
  return isObject(argument) ? `${verdict} ${String(argument.target)}` : verdict;
}
