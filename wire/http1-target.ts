/**
 * The request target (RFC 9112 §3.2) in its four forms, and the path in the form that rules compare with: RFC 3986 §6.2.2,
 * percent-encoded unreserved characters decoded, hexadecimal digits in upper case, dot segments removed (§5.2.4), nothing
 * else. Servers go further, each in its own way, so that one path is two files: such shapes are told by name, and whoever
 * permits by path refuses them.
 * Leaves out: the query's meaning, and what an application makes of a path (case, extensions, rewrites).
 */

import { type Host, type HostReason, readHost } from './http1-host.ts';

export type TargetForm = 'origin' | 'absolute' | 'authority' | 'asterisk';

export type PathAmbiguity =
  /** `%2f`: a separator to some. */
  | 'encoded-slash'
  /** `\` or `%5c`: a separator to some. */
  | 'backslash'
  /** `%2e` in a segment that is `.` or `..`: removed here, a name to some. */
  | 'encoded-dot-segment'
  /** `..;x`: a dot segment to who strips parameters first. */
  | 'dot-segment-with-parameter'
  /** `//`: one separator to some. */
  | 'empty-segment'
  /** `..` with nothing left to go back from. */
  | 'above-root'
  /** `%25` before two hexadecimal digits: decoded twice by some. */
  | 'double-encoding'
  /** `%` without two hexadecimal digits. */
  | 'bad-percent-encoding'
  /** `%00` to `%1f`, `%7f`: ends the name for some. */
  | 'encoded-control';

export interface Path {
  /** As sent, without the query. */
  readonly raw: string;
  readonly normal: string;
  /** None twice; empty if all agree on what the path is. */
  readonly ambiguous: readonly PathAmbiguity[];
}

export interface Target {
  readonly form: TargetForm;
  /** Of the absolute and the authority form. */
  readonly host: Host | undefined;
  /** Of the absolute form. */
  readonly scheme: 'http' | 'https' | undefined;
  /** Of the origin and the absolute form. */
  readonly path: Path | undefined;
}

export type TargetReason =
  | HostReason
  /** No form of a target, or one that the method does not have. */
  | 'bad-target'
  | 'fragment-in-target'
  | 'unsupported-scheme'
  /** CONNECT without a port. */
  | 'missing-port';

const ASTERISK: Target = { form: 'asterisk', host: undefined, scheme: undefined, path: undefined };

/** Of printable ASCII without space; a reason is a text. */
export function readTarget(method: string, text: string): Target | TargetReason {
  if (text.includes('#')) return 'fragment-in-target';
  if (method === 'CONNECT') {
    // Only here: elsewhere `a:80` is no target.
    if (text.includes('/') || text.includes('?')) return 'bad-target';
    const host = readHost(text);
    if (typeof host === 'string') return host;
    return host.port === undefined ? 'missing-port' : { form: 'authority', host, scheme: undefined, path: undefined };
  }
  if (text.charCodeAt(0) === SLASH) return { form: 'origin', host: undefined, scheme: undefined, path: pathOf(text) };
  if (text === '*') return method === 'OPTIONS' ? ASTERISK : 'bad-target';
  return absolute(text);
}

function absolute(text: string): Target | TargetReason {
  const colon = text.indexOf('://');
  if (colon < 0) return 'bad-target';
  const scheme = text.slice(0, colon).toLowerCase();
  if (scheme !== 'http' && scheme !== 'https') {
    return /^[a-z][a-z0-9+.-]*$/.test(scheme) ? 'unsupported-scheme' : 'bad-target';
  }
  let end = colon + 3;
  while (end < text.length && text.charCodeAt(end) !== SLASH && text.charCodeAt(end) !== QUESTION) end++;
  const host = readHost(text.slice(colon + 3, end));
  if (typeof host === 'string') return host;
  const rest = text.slice(end);
  // The path may be empty before a query, and is then `/`.
  return { form: 'absolute', host, scheme, path: pathOf(rest.startsWith('/') ? rest : `/${rest}`) };
}

const PERCENT = 0x25;
const DOT = 0x2e;
const SLASH = 0x2f;
const QUESTION = 0x3f;
const BACKSLASH = 0x5c;

/** An encoded semicolon begins a parameter too, to who decodes first. */
const PARAMETER = /^\.\.?(?:;|%3B)/;

const NOT_AMBIGUOUS: readonly PathAmbiguity[] = Object.freeze([]);

/** Of an origin form: begins with a slash. */
export function pathOf(target: string): Path {
  const query = target.indexOf('?');
  const raw = query < 0 ? target : target.slice(0, query);
  if (isPlain(raw)) return { raw, normal: raw, ambiguous: NOT_AMBIGUOUS };
  return normalised(raw);
}

/** Nearly every path: nothing to decode, no segment that is empty or begins with a dot. */
function isPlain(raw: string): boolean {
  let previous = 0;
  for (let i = 0; i < raw.length; i++) {
    const code = raw.charCodeAt(i);
    if (code === PERCENT || code === BACKSLASH) return false;
    if (previous === SLASH && (code === DOT || code === SLASH)) return false;
    previous = code;
  }
  return true;
}

function normalised(raw: string): Path {
  const found = new Set<PathAmbiguity>();
  const decoded = decodeUnreserved(raw, found);
  const asSent = raw.split('/');
  const segments = decoded.split('/');
  const kept: string[] = [];
  // The first is empty, before the leading slash.
  for (let i = 1; i < segments.length; i++) {
    const segment = segments[i] ?? '';
    const last = i === segments.length - 1;
    if (segment === '' && !last) found.add('empty-segment');
    const dots = segment === '.' || segment === '..';
    if (dots && asSent[i] !== segment) found.add('encoded-dot-segment');
    if (PARAMETER.test(segment)) found.add('dot-segment-with-parameter');
    if (!dots) kept.push(segment);
    else {
      if (segment === '..' && kept.pop() === undefined) found.add('above-root');
      // `/a/b/..` is the folder `/a/`.
      if (last) kept.push('');
    }
  }
  return { raw, normal: `/${kept.join('/')}`, ambiguous: found.size === 0 ? NOT_AMBIGUOUS : [...found] };
}

function decodeUnreserved(raw: string, found: Set<PathAmbiguity>): string {
  let text = '';
  let from = 0;
  for (let i = 0; i < raw.length; i++) {
    const code = raw.charCodeAt(i);
    if (code === BACKSLASH) found.add('backslash');
    if (code !== PERCENT) continue;
    const value = hexPair(raw, i + 1);
    if (value < 0) {
      found.add('bad-percent-encoding');
      continue;
    }
    if (value === SLASH) found.add('encoded-slash');
    else if (value === BACKSLASH) found.add('backslash');
    else if (value < 0x20 || value === 0x7f) found.add('encoded-control');
    else if (value === PERCENT && hexPair(raw, i + 3) >= 0) found.add('double-encoding');
    const one = isUnreserved(value) ? String.fromCharCode(value) : raw.slice(i, i + 3).toUpperCase();
    text += raw.slice(from, i) + one;
    i += 2;
    from = i + 1;
  }
  return text + raw.slice(from);
}

function isUnreserved(code: number): boolean {
  const letter = (code | 0x20) >= 0x61 && (code | 0x20) <= 0x7a;
  return letter || (code >= 0x30 && code <= 0x39) || code === 0x2d || code === DOT || code === 0x5f || code === 0x7e;
}

/** -1 unless two hexadecimal digits stand there. */
function hexPair(text: string, at: number): number {
  const high = hexValue(text.charCodeAt(at));
  const low = hexValue(text.charCodeAt(at + 1));
  return high < 0 || low < 0 ? -1 : 16 * high + low;
}

/** Either case; -1 if it is no digit, or beyond the text. */
function hexValue(code: number): number {
  if (code >= 0x30 && code <= 0x39) return code - 0x30;
  const lower = code | 0x20;
  return lower >= 0x61 && lower <= 0x66 ? lower - 0x57 : -1;
}
