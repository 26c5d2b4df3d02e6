/**
 * The text of a list of addresses (ExternalService `addressesFrom`) → canonical ranges, or what is wrong with it. Text:
 * an address, CIDR or FIRST-LAST a line, `#` begins a comment. JSON: an array of such texts, or an object whose field
 * `addresses` is one (its other fields are not read). All or nothing: half a list could permit, or let pass, what the
 * whole one does not. A bad list's content is quoted only on demand: the error of a list from elsewhere stands in a
 * status that others read, and must not become a way to read what the controller can reach.
 */

import { addressBits, formatAddress, formatRange, parseAddress, parsePrefix, parseRange } from './address.ts';
import { describe, show } from './schema/describe.ts';

export type ListFormat = 'Text' | 'JSON';

/** Bytes of a list, whatever its source. */
export const LIST_MAX_BYTES = 4 * 1024 * 1024;
/** Entries of one list: five times the longest threat feeds and cloud ranges in use, and a plan stays a few megabytes. */
export const LIST_MAX_ENTRIES = 50_000;
/** A range with its comment is shorter; a longer line is no list. */
const MAX_LINE = 4096;
/** More than a person reads at once. */
const MAX_ERRORS = 3;

export type ParsedList =
  | { ok: true /** Canonical, sorted, none twice. */; value: string[] }
  | { ok: false /** `line 3: expected …, got …; …`. */; error: string };

export function parseList(text: string, format: ListFormat, options: { quote: boolean }): ParsedList {
  // A file or an answer that was cut to nothing. Who means an empty list writes a comment, or [].
  if (text.trim() === '')
    return { ok: false, error: 'expected a list (a comment or [] for an empty one), got nothing' };
  const reader = new Reader(options.quote);
  if (format === 'Text') reader.text(text);
  else reader.json(text);
  return reader.result();
}

class Reader {
  readonly #quote: boolean;
  readonly #ranges = new Set<string>();
  readonly #errors: string[] = [];
  #bad = 0;

  constructor(quote: boolean) {
    this.#quote = quote;
  }

  result(): ParsedList {
    if (this.#bad === 0) return { ok: true, value: [...this.#ranges].sort() };
    const more = this.#bad - this.#errors.length;
    return { ok: false, error: this.#errors.join('; ') + (more > 0 ? `; and ${more} more` : '') };
  }

  text(text: string): void {
    let number = 0;
    let entries = 0;
    for (let start = 0; start < text.length; ) {
      const newline = text.indexOf('\n', start);
      const end = newline < 0 ? text.length : newline;
      const line = text.slice(start, end);
      start = end + 1;
      number++;
      if (line.length > MAX_LINE) {
        this.#fail(`line ${number}`, `at most ${MAX_LINE} characters`, `${line.length} characters`);
        continue;
      }
      const hash = line.indexOf('#');
      const entry = (hash < 0 ? line : line.slice(0, hash)).trim();
      if (entry === '') continue;
      if (++entries > LIST_MAX_ENTRIES) {
        this.#fail(`line ${number}`, `at most ${LIST_MAX_ENTRIES} entries`, 'one more');
        return;
      }
      this.#entry(`line ${number}`, entry);
    }
  }

  json(text: string): void {
    let document: unknown;
    try {
      document = JSON.parse(text);
    } catch (error) {
      // The parser's own words may quote the text.
      const position = /at position (\d+)/.exec(error instanceof Error ? error.message : '')?.[1];
      const at = position === undefined ? '' : `line ${text.slice(0, Number(position)).split('\n').length}`;
      this.#fail(at, 'JSON', 'text that is none');
      return;
    }
    let path = '';
    let list = document;
    if (typeof document === 'object' && document !== null && !Array.isArray(document)) {
      path = 'addresses';
      list = Object.hasOwn(document, path) ? (document as Record<string, unknown>)[path] : undefined;
    }
    if (!Array.isArray(list)) {
      this.#fail(path, path === '' ? 'an array, or an object with addresses' : 'an array', this.#shown(list));
      return;
    }
    if (list.length > LIST_MAX_ENTRIES) {
      this.#fail(path, `at most ${LIST_MAX_ENTRIES} entries`, `${list.length} entries`);
      return;
    }
    for (const [i, item] of list.entries()) {
      if (typeof item === 'string') this.#entry(`${path}[${i}]`, item);
      else this.#fail(`${path}[${i}]`, 'text', this.#shown(item));
    }
  }

  #entry(at: string, text: string): void {
    const range = canonicalRange(text);
    if (range === undefined) this.#fail(at, 'an address, CIDR or FIRST-LAST', this.#shown(text));
    // As in `addresses` (schema/walk.ts): what a mapped address means depends on who reads it.
    else if (range.mapped) this.#fail(at, 'IPv4 written as IPv4, not mapped into IPv6', this.#shown(text));
    else this.#ranges.add(range.text);
  }

  #shown(value: unknown): string {
    if (typeof value === 'string') return this.#quote ? show(value) : `${value.length} characters that are none`;
    const type = describe(value);
    return this.#quote || typeof value === 'object' || value === undefined ? type : `a ${typeof value}`;
  }

  #fail(at: string, expected: string, got: string): void {
    this.#bad++;
    if (this.#errors.length < MAX_ERRORS) {
      this.#errors.push(`${at === '' ? '' : `${at}: `}expected ${expected}, got ${got}`);
    }
  }
}

/** As formatRange(parseRange(text)), five times as fast for what is no FIRST-LAST: lists are long. */
function canonicalRange(text: string): { text: string; mapped: boolean } | undefined {
  const parsed = text.includes('-') ? parseRange(text) : text.includes('/') ? parsePrefix(text) : parseAddress(text);
  if (!parsed.ok) return undefined;
  const { family } = parsed.value;
  const first = 'first' in parsed.value ? parsed.value.first : parsed.value.value;
  const mapped = family === 6 && first >> 32n === 0xffffn;
  if ('first' in parsed.value) return { text: formatRange(parsed.value), mapped };
  const length = 'length' in parsed.value ? parsed.value.length : addressBits(family);
  return { text: `${formatAddress({ family, value: first })}/${length}`, mapped };
}
