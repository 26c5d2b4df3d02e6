/**
 * Names of hosts as policy compares them, and patterns of them (design §3, ExternalService `addresses`): `name`, `*.name`
 * (one label more, and not `name`), `**.name` (any number of labels more, and not `name`). RFC 1123 §2.1 and the underscore
 * that hosts have in practice, RFC 5890 for others than ASCII. Canonical: lower case, A-labels, no trailing dot.
 * What could be read as an IPv4 address (its last label is a number, WHATWG URL "ends in a number") is no name.
 */

import { fail, ok, type Result } from './result.ts';

/** Octets of a name without its trailing dot (RFC 1035 §2.3.4: 255 with lengths and root). */
export const NAME_MAX_LENGTH = 253;
const LABEL = '(?!-)[a-z0-9_-]{1,63}(?<!-)';
const canonicalName = new RegExp(`^${LABEL}(?:\\.${LABEL})*$`);
const lastLabel = /(?:^|\.)(?:[0-9]+|0x[0-9a-f]*)$/;
/** What ends a URL's host, or is decoded in one; `*` is a pattern's. */
const neverInName = /[%/:?#@[\\\]^|<>*]/;

/** One form of each name; the error says what was expected. */
export function parseHostName(text: string): Result<string> {
  // A bound before any work.
  if (text.length > NAME_MAX_LENGTH + 1) return fail(`a name of at most ${NAME_MAX_LENGTH} octets`);
  const lower = text.toLowerCase();
  const plain = isAscii(lower) ? lower : asciiOf(lower);
  const name = plain.endsWith('.') ? plain.slice(0, -1) : plain;
  if (name.length > NAME_MAX_LENGTH) return fail(`a name of at most ${NAME_MAX_LENGTH} octets`);
  if (!canonicalName.test(name)) return fail('a name of labels of letters, digits, - and _, as in api.example.com');
  if (lastLabel.test(name)) return fail('a name whose last label is no number, or a whole IP address');
  return ok(name);
}

const isAscii = (text: string): boolean => {
  for (let at = 0; at < text.length; at++) if (text.charCodeAt(at) > 0x7f) return false;
  return true;
};

/** A-labels (UTS 46, as URLs have them); '' if there are none. */
function asciiOf(name: string): string {
  // A URL passes over tabs, line ends, and white space around it.
  for (let at = 0; at < name.length; at++) if (name.charCodeAt(at) <= 0x20 || name.charCodeAt(at) === 0x7f) return '';
  return neverInName.test(name) || !URL.canParse(`http://${name}`) ? '' : new URL(`http://${name}`).hostname;
}

export interface NamePattern {
  /** Which names: the name itself, those of one label more, those of one or more labels more. */
  kind: 'exact' | 'child' | 'below';
  /** Canonical. */
  name: string;
}

export function parseNamePattern(text: string): Result<NamePattern> {
  const kind = text.startsWith('**.') ? 'below' : text.startsWith('*.') ? 'child' : 'exact';
  const name = parseHostName(text.slice({ below: 3, child: 2, exact: 0 }[kind]));
  return name.ok ? ok({ kind, name: name.value }) : name;
}

export function formatNamePattern({ kind, name }: NamePattern): string {
  return { exact: '', child: '*.', below: '**.' }[kind] + name;
}

/** Patterns, asked for a canonical name in a time that grows with its labels only. */
export class NameSet {
  readonly #exact = new Set<string>();
  readonly #child = new Set<string>();
  readonly #below = new Set<string>();

  constructor(patterns: Iterable<NamePattern>) {
    const sets = { exact: this.#exact, child: this.#child, below: this.#below };
    for (const { kind, name } of patterns) sets[kind].add(name);
  }

  has(name: string): boolean {
    if (this.#exact.has(name)) return true;
    let dot = name.indexOf('.');
    if (dot < 0) return false;
    if (this.#child.size > 0 && this.#child.has(name.slice(dot + 1))) return true;
    if (this.#below.size === 0) return false;
    for (; dot >= 0; dot = name.indexOf('.', dot + 1)) if (this.#below.has(name.slice(dot + 1))) return true;
    return false;
  }
}
