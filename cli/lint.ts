/**
 * `sluice lint PATH…`: what is wrong with manifests, before anything reads them. Each document as the controller would
 * parse it, with line and field; then all of them together (controller/analyse.ts). Errors end with exit code 1,
 * warnings only if asked to.
 */
import { readFile, stat } from 'node:fs/promises';
import { dirname, resolve } from 'node:path';
import { type Command, Option } from 'commander';
import { type Document, LineCounter, parseAllDocuments } from 'yaml';
import { type AnyObject, objectKey, parseObject } from '../api/kinds.ts';
import { isRecord } from '../api/plan-delta.ts';
import { analyse, type ObjectFinding } from '../controller/analyse.ts';
import { keyOf, yamlMessage } from '../controller/observe/document.ts';
import { readLists } from '../controller/observe/lists.ts';
import type { KnownLists } from '../policy/external-service.ts';
import { filesOf, MAX_FILE_BYTES } from './files.ts';
import { Exit, json, type Paint, painter, print, printable, printError, yaml } from './output.ts';

export interface Finding extends Omit<ObjectFinding, 'object'> {
  file: string;
  line: number;
  /** Absent where a document does not say what it is. */
  object?: string;
}
interface Placed {
  object: AnyObject;
  file: string;
  line: number;
}

const MAX_ALIASES = 100;

/** `spec.gateways[1].name` → ['spec', 'gateways', 1, 'name']; keys in quotes or brackets otherwise end the search. */
function pathOf(path: string): (string | number)[] {
  return [...path.matchAll(/\[(\d+)\]|\["([^"]*)"\]|([^.[\]]+)/g)].map(([, index, quoted, name]) =>
    index !== undefined ? Number(index) : (quoted ?? name ?? ''),
  );
}

/** Line of the deepest part of the path that the document has. */
function lineOf(document: Document.Parsed, path: readonly (string | number)[], lines: LineCounter): number {
  for (let length = path.length; length >= 0; length--) {
    const node: unknown = length === 0 ? document.contents : document.getIn(path.slice(0, length), true);
    const range = isRecord(node) ? node.range : undefined;
    if (Array.isArray(range) && typeof range[0] === 'number') return lines.linePos(range[0]).line;
  }
  return lines.linePos(document.range[0]).line;
}

export function lintText(file: string, text: string, placed: Map<string, Placed>): Finding[] {
  const findings: Finding[] = [];
  const add = (line: number, code: string, message: string, object?: string): void => {
    const about = object === undefined ? {} : { object };
    findings.push({ file, line: Math.max(1, line), severity: 'error', ...about, code, message });
  };
  const lines = new LineCounter();
  try {
    const documents = parseAllDocuments(text, { logLevel: 'silent', stringKeys: true, lineCounter: lines });
    for (const document of Array.isArray(documents) ? documents : []) {
      for (const error of document.errors) {
        add(lines.linePos(error.pos[0]).line, 'BadYAML', yamlMessage(error));
      }
      if (document.errors.length > 0) continue;
      const content: unknown = document.toJS({ maxAliasCount: MAX_ALIASES });
      if (content === null || content === undefined) continue;
      const isList = isRecord(content) && content.kind === 'List' && Array.isArray(content.items);
      const items: unknown[] = isList ? (content.items as unknown[]) : [content];
      items.forEach((item, index) => {
        const at: (string | number)[] = isList ? ['items', index] : [];
        const result = parseObject(item);
        if (!result.ok) {
          for (const { path, expected, got } of result.errors) {
            const line = lineOf(document, [...at, ...pathOf(path)], lines);
            add(line, 'Invalid', `${path || '(document)'}: expected ${expected}, got ${got}`, keyOf(item));
          }
          return;
        }
        const key = objectKey(result.value);
        const line = lineOf(document, at, lines);
        const other = placed.get(key);
        if (other === undefined) placed.set(key, { object: result.value, file, line });
        else add(line, 'Duplicate', `is in ${other.file}:${other.line} already`, key);
      });
    }
  } catch (error) {
    // Too many aliases, or nesting beyond the stack.
    add(1, 'BadYAML', yamlMessage(error));
  }
  return findings;
}

export function lintTogether(placed: ReadonlyMap<string, Placed>, lists?: KnownLists): Finding[] {
  const snapshot = new Map([...placed].map(([key, { object }]) => [key, object]));
  return analyse(snapshot, lists).map((finding) => {
    const { file, line } = placed.get(finding.object) ?? { file: '-', line: 1 };
    return { file, line, ...finding };
  });
}

/** ConfigMaps and files are read; what a url lists only the controller knows. */
function listsOf(placed: ReadonlyMap<string, Placed>, roots: ReadonlyMap<string, string>): Promise<KnownLists> {
  const snapshot = new Map([...placed].map(([key, { object }]) => [key, object]));
  return readLists(snapshot, (service) => roots.get(placed.get(objectKey(service))?.file ?? '') ?? '.');
}

/** `FILE:LINE: [warning: ][OBJECT: CODE: ]MESSAGE`, as editors know it. */
function findingText({ file, line, severity, object, code, message }: Finding, paint: Paint): string {
  const word = severity === 'warning' ? `${paint('yellow', 'warning')}: ` : '';
  const about = object === undefined ? '' : `${object}: ${code}: `;
  return `${printable(file)}:${line}: ${word}${printable(about + message)}`;
}

interface Flags {
  strict?: true;
  output: 'text' | 'json' | 'yaml';
}

async function lint(paths: string[], { strict, output }: Flags, command: Command): Promise<void> {
  const placed = new Map<string, Placed>();
  const findings: Finding[] = [];
  let files = 0;
  /** File → where the paths of its lists begin. */
  const roots = new Map<string, string>();
  for (const path of paths) {
    const root = (await stat(path)).isDirectory() ? path : dirname(path);
    const { files: found, unread } = await filesOf(path);
    for (const [file, message] of unread) {
      findings.push({ file, line: 1, severity: 'error', code: 'Unreadable', message });
    }
    for (const file of found) {
      files++;
      roots.set(file, resolve(root));
      const bad = (code: string, message: string): void => {
        findings.push({ file, line: 1, severity: 'error', code, message });
      };
      try {
        if ((await stat(file)).size > MAX_FILE_BYTES)
          bad('TooLarge', `is larger than ${MAX_FILE_BYTES} bytes: split it`);
        else findings.push(...lintText(file, await readFile(file, 'utf8'), placed));
      } catch (error) {
        bad('Unreadable', error instanceof Error ? error.message : String(error));
      }
    }
  }
  findings.push(...lintTogether(placed, await listsOf(placed, roots)));
  const errors = findings.filter(({ severity }) => severity === 'error').length;
  const warnings = findings.length - errors;
  const value = { findings, files, objects: placed.size, errors, warnings };
  if (output === 'json') print(command, json(value));
  else if (output === 'yaml') print(command, yaml(value));
  else {
    const paint = painter(command);
    for (const finding of findings) print(command, findingText(finding, paint));
    printError(command, `${files} files, ${placed.size} objects, ${errors} errors, ${warnings} warnings`);
  }
  if (errors > 0 || (strict && warnings > 0)) throw new Exit(1);
}

export function register(program: Command): void {
  program
    .command('lint')
    .description('check manifests: every document, then all of them together')
    .argument('<path...>', 'files or directories of Kubernetes YAML')
    .option('--strict', 'exit code 1 for warnings too')
    .addOption(new Option('-o, --output <form>', 'how').choices(['text', 'json', 'yaml']).default('text'))
    .addHelpText(
      'after',
      `
Exit codes: 0 no errors (warnings are told, and count with --strict), 1 errors, 2 used wrongly.

Examples:
  sluice lint manifests/
  sluice lint pool.yaml rules.yaml
  sluice lint --strict -o json manifests/ | jq -r '.findings[].code'`,
    )
    .action(lint);
}
