/**
 * What the fields of HTTP/1.x are made of (RFC 9110 §5.5, §5.6, §8.6): which bytes may stand in names and values, and the
 * value of Content-Length. Heads and trailers are read with it.
 */

export type FieldReason =
  | 'null-byte'
  | 'control-byte'
  | 'bare-line-feed'
  /** Not decimal digits alone: a sign, a list, white space within, zeros in front (octal to some). */
  | 'bad-content-length'
  | 'content-length-too-large';

export const TAB = 0x09;
export const LF = 0x0a;
export const CR = 0x0d;
export const SPACE = 0x20;
export const COLON = 0x3a;
export const DELETE = 0x7f;

export const TOKEN = 1;
export const LOWER = 2;

/** Of each byte: TOKEN where RFC 9110 §5.6.2 has it as tchar, LOWER for a letter in lower case. */
export const octetClass = new Uint8Array(256);
for (const character of "!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ") {
  octetClass[character.charCodeAt(0)] = TOKEN;
}
for (let code = 0x61; code <= 0x7a; code++) octetClass[code] = TOKEN | LOWER;

export function isTokenByte(byte: number): boolean {
  return ((octetClass[byte] ?? 0) & TOKEN) !== 0;
}

export function isBlank(byte: number): boolean {
  return byte === SPACE || byte === TAB;
}

/** Why a byte may not stand in a field value; undefined for one that may. CR is the end of the line or wrong. */
export function badFieldByte(byte: number): 'null-byte' | 'bare-line-feed' | 'control-byte' | undefined {
  if (byte >= SPACE ? byte !== DELETE : byte === TAB) return undefined;
  return byte === 0 ? 'null-byte' : byte === LF ? 'bare-line-feed' : 'control-byte';
}

/** A reason is a text. */
export function readContentLength(value: string): number | FieldReason {
  if (!/^(?:0|[1-9][0-9]*)$/.test(value)) return 'bad-content-length';
  const length = Number(value);
  return Number.isSafeInteger(length) ? length : 'content-length-too-large';
}
