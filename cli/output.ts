/**
 * What verbs print: tables, JSON and YAML, through the program's own writer so that tests can read it. Text that other
 * people wrote (names, messages, file content) never reaches a terminal with control characters in it.
 * Colours only where the writer is a terminal that wants them.
 */
import { styleText } from 'node:util';
import type { Command } from 'commander';
import { stringify } from 'yaml';

export const outputForms = ['table', 'wide', 'json', 'yaml'] as const;
export type OutputForm = (typeof outputForms)[number];

/** Ends a verb with an exit code after it has itself said why: 1 failure, 2 usage, 3 done, with a but (simulate, import). */
export class Exit extends Error {
  readonly code: 1 | 2 | 3;
  constructor(code: 1 | 2 | 3, message = '') {
    super(message);
    this.code = code;
  }
}

/** Control characters (C0, DEL, C1) and bidirectional overrides, which can make a terminal show what is not there. */
const unprintable = /[\p{Cc}\u202a-\u202e\u2066-\u2069]/gu;

export function printable(text: string): string {
  return text.replace(unprintable, (character) => {
    if (character === '\n' || character === '\t') return ' ';
    return `\\u${character.charCodeAt(0).toString(16).padStart(4, '0')}`;
  });
}

export function print(command: Command, text: string): void {
  command.configureOutput().writeOut?.(text.endsWith('\n') || text === '' ? text : `${text}\n`);
}

export function printError(command: Command, text: string): void {
  command.configureOutput().writeErr?.(text.endsWith('\n') ? text : `${text}\n`);
}

export type Paint = (style: 'red' | 'green' | 'yellow' | 'bold' | 'dim', text: string) => string;

/** Paints only on a terminal (which also honours NO_COLOR), else returns the text as it is. */
export function painter(command: Command): Paint {
  const colours = command.configureOutput().getOutHasColors?.() === true;
  return (style, text) => (colours ? styleText(style, text, { validateStream: false }) : text);
}

const widthOf = (text: string): number => [...text].length;

/** Columns two spaces apart, headers in capitals, as kubectl does. Cells are made printable here, then dressed. */
export function table(
  headers: readonly string[],
  rows: readonly (readonly string[])[],
  dress?: (cell: string) => string,
): string {
  const cells = [headers.map((header) => header.toUpperCase()), ...rows].map((row) => row.map(printable));
  const widths = headers.map((_, column) => Math.max(...cells.map((row) => widthOf(row[column] ?? ''))));
  return cells
    .map((row, index) => {
      const line = row.map((cell, column) => {
        const padding = column === row.length - 1 ? '' : ' '.repeat((widths[column] ?? 0) - widthOf(cell));
        return `${index > 0 && dress !== undefined ? dress(cell) : cell}${padding}`;
      });
      return `${line.join('  ').trimEnd()}\n`;
    })
    .join('');
}

/** For `table`: the status of conditions in colour. */
export function stateDress(paint: Paint): (cell: string) => string {
  return (cell) => (cell === 'True' ? paint('green', cell) : cell === 'False' ? paint('yellow', cell) : cell);
}

/** JSON.stringify escapes what is below U+0020 only. */
export const json = (value: unknown): string =>
  `${JSON.stringify(value, null, 2).replace(/[\u007f-\u009f\u202a-\u202e\u2066-\u2069]/g, printable)}\n`;

export const yaml = (value: unknown): string => stringify(value, { aliasDuplicateObjects: false });
