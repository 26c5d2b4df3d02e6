/**
 * How an error shows what was got: short, on one line, and harmless whatever it was.
 */

const maxShown = 60;

/** Text in quotes, cut, with control characters escaped. */
export function show(text: string): string {
  return JSON.stringify(text.length > maxShown ? `${text.slice(0, maxShown)}…` : text);
}

export function describe(value: unknown): string {
  switch (typeof value) {
    case 'undefined':
      return 'nothing';
    case 'string':
      return show(value);
    case 'number':
    case 'boolean':
      return String(value);
    case 'object':
      if (value === null) return 'null';
      return Array.isArray(value) ? (value.length === 0 ? 'an empty list' : `a list of ${value.length}`) : 'an object';
    default:
      return `a ${typeof value}`;
  }
}
