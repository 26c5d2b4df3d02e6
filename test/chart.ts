/**
 * Renders deploy/chart without helm, which nothing that setup.sh installs has. It knows the part of Go's text/template
 * that the chart is written in (paths, if, with, range, define, include, pipes) and the functions that stand below; all
 * else is an error, and so is a value that is not there. test/kube/deploy.ts compares it with Go's own text/template.
 */
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { parse, stringify } from 'yaml';

export type Json = Record<string, unknown>;
type Run = (dot: unknown) => string;
/** `if` and the like, with what follows until `else` and `end`. */
type Piece = string | { action: string };

export interface Release {
  name: string;
  namespace: string;
  values: Json;
}

/** Texts by file, in the order of their names; files of which nothing is rendered are left out. */
export function renderChart(folder: string, { name, namespace, values }: Release): Map<string, string> {
  const chart = parse(readFileSync(join(folder, 'Chart.yaml'), 'utf8')) as Json;
  const root = {
    Values: values,
    Release: { Name: name, Namespace: namespace, Service: 'Helm' },
    Chart: { Name: chart.name, Version: chart.version, AppVersion: chart.appVersion },
  };
  const templates = new Templates();
  const files = readdirSync(join(folder, 'templates')).sort();
  const runs = files.map((file) => templates.file(readFileSync(join(folder, 'templates', file), 'utf8')));
  const rendered = files.map((file, i) => [file, runs[i]?.(root).trim() ?? ''] as const);
  return new Map(rendered.filter(([, text]) => text !== '').map(([file, text]) => [file, `${text}\n`]));
}

export const defaultValues = (folder: string): Json => parse(readFileSync(join(folder, 'values.yaml'), 'utf8')) as Json;

/** The values of `more` before those of `base`, as helm's --values. */
export function withValues(base: Json, more: Json): Json {
  const merged: Json = { ...base };
  for (const [key, value] of Object.entries(more)) {
    const before = merged[key];
    merged[key] = isObject(before) && isObject(value) ? withValues(before, value) : value;
  }
  return merged;
}

const isObject = (value: unknown): value is Json =>
  typeof value === 'object' && value !== null && !Array.isArray(value);

/** As Go's templates see it. */
const isTrue = (value: unknown): boolean =>
  Array.isArray(value) ? value.length > 0 : isObject(value) ? Object.keys(value).length > 0 : Boolean(value);

const indent = (count: number, text: string): string => text.replaceAll(/^/gm, ' '.repeat(count));

const functions: Record<string, (...args: unknown[]) => unknown> = {
  ne: (a, b) => a !== b,
  not: (value) => !isTrue(value),
  fail(text) {
    throw new Error(String(text));
  },
  int: (value) => Math.trunc(Number(value)),
  quote: (text) => JSON.stringify(String(text)),
  nindent: (count, text) => `\n${indent(Number(count), String(text))}`,
  default: (fallback, value) => (isTrue(value) ? value : fallback),
  b64enc: (text) => Buffer.from(String(text)).toString('base64'),
  toYaml: (value) => stringify(value, { lineWidth: 0 }).trimEnd(),
  printf(format, ...args) {
    const text = String(format).replaceAll(/%[sv]/g, () => String(args.shift()));
    if (args.length > 0 || text.includes('%')) throw new Error(`printf ${format}`);
    return text;
  },
};

class Templates {
  readonly #defined = new Map<string, Run>();

  file(text: string): Run {
    const pieces = split(text);
    const [run, rest] = this.#list(pieces, 0);
    if (rest < pieces.length) throw new Error('an end without a beginning');
    return run;
  }

  /** What stands there until `else` or `end`, and the place of that. */
  #list(pieces: readonly Piece[], from: number): [run: Run, rest: number] {
    const runs: Run[] = [];
    let i = from;
    for (; i < pieces.length; i++) {
      const piece = pieces[i] ?? '';
      if (typeof piece === 'string') {
        runs.push(() => piece);
        continue;
      }
      const { action } = piece;
      if (/^(else|end)\b/.test(action)) break;
      const block = /^(if|with|range|define)\s+(.*)$/s.exec(action);
      if (block === null) {
        const value = this.#pipeline(action);
        runs.push((dot) => String(value(dot)));
        continue;
      }
      const [, word = '', argument = ''] = block;
      const [body, end, otherwise] = this.#block(pieces, i + 1);
      i = end;
      if (word === 'define') this.#defined.set(JSON.parse(argument) as string, body);
      else runs.push(this.#branch(word, this.#pipeline(argument), body, otherwise));
    }
    return [(dot) => runs.map((run) => run(dot)).join(''), i];
  }

  #block(pieces: readonly Piece[], from: number): [body: Run, end: number, otherwise: Run] {
    const [body, at] = this.#list(pieces, from);
    const closing = pieces[at];
    const action = typeof closing === 'object' ? closing.action : '';
    if (action === 'end') return [body, at, () => ''];
    if (action !== 'else') throw new Error(`expected else or end, got ${JSON.stringify(action)}`);
    const [otherwise, end] = this.#list(pieces, at + 1);
    const last = pieces[end];
    if (typeof last !== 'object' || last.action !== 'end') throw new Error('else without end');
    return [body, end, otherwise];
  }

  #branch(word: string, argument: (dot: unknown) => unknown, body: Run, otherwise: Run): Run {
    return (dot) => {
      const value = argument(dot);
      if (!isTrue(value)) return otherwise(dot);
      if (word === 'if') return body(dot);
      if (word === 'with') return body(value);
      if (!Array.isArray(value)) throw new Error('range: expected a list');
      return value.map((item) => body(item)).join('');
    };
  }

  #pipeline(text: string): (dot: unknown) => unknown {
    const stages = cut(text, '|').map((stage) => cut(stage, ' '));
    return (dot) => {
      let piped: unknown[] = [];
      for (const [head = '', ...rest] of stages) {
        const args = [...rest.map((word) => this.#word(word, dot)), ...piped];
        piped = [rest.length + piped.length > 0 ? this.#call(head, args) : this.#word(head, dot)];
      }
      return piped[0];
    };
  }

  #call(name: string, args: unknown[]): unknown {
    if (name === 'include') {
      const run = this.#defined.get(String(args[0]));
      if (run === undefined) throw new Error(`include ${args[0]}: not defined`);
      return run(args[1]);
    }
    const run = functions[name];
    if (run === undefined) throw new Error(`${name}: no such function here`);
    return run(...args);
  }

  #word(word: string, dot: unknown): unknown {
    if (word.startsWith('(')) return this.#pipeline(word.slice(1, -1))(dot);
    if (word.startsWith('"')) return JSON.parse(word);
    if (/^\d+$/.test(word)) return Number(word);
    if (!/^(\.|(\.\w+)+)$/.test(word)) throw new Error(`${word}: not understood`);
    let value = dot;
    for (const key of word.split('.').filter((part) => part !== '')) {
      if (!isObject(value) || !Object.hasOwn(value, key)) throw new Error(`${word}: there is no ${key}`);
      value = value[key];
    }
    return value;
  }
}

/** Texts and actions; `{{-` and `-}}` take the white space beside them away, comments are left out. */
function split(text: string): Piece[] {
  const pieces: Piece[] = [];
  let trim = false;
  const add = (part: string): void => {
    if (part !== '') pieces.push(part);
  };
  let at = 0;
  for (const match of text.matchAll(/\{\{(-\s)?\s*(\/\*[\s\S]*?\*\/|[^}]*?)\s*(\s-)?\}\}/g)) {
    let before = text.slice(at, match.index);
    if (trim) before = before.trimStart();
    if (match[1] !== undefined) before = before.trimEnd();
    add(before);
    const action = match[2] ?? '';
    if (!action.startsWith('/*')) pieces.push({ action });
    trim = match[3] !== undefined;
    at = match.index + match[0].length;
  }
  add(trim ? text.slice(at).trimStart() : text.slice(at));
  return pieces;
}

/** At each separator that is neither in quotes nor in parentheses; nothing empty. */
function cut(text: string, separator: string): string[] {
  const parts: string[] = [];
  let part = '';
  let depth = 0;
  for (const token of text.match(/"(?:[^"\\]|\\.)*"|[\s\S]/g) ?? []) {
    if (token === '(') depth++;
    if (token === ')') depth--;
    if (depth === 0 && token === separator) {
      parts.push(part.trim());
      part = '';
    } else part += token;
  }
  parts.push(part.trim());
  return parts.filter((p) => p !== '');
}
