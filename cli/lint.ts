/**
 * `sluice lint PATH…`: what is wrong with manifests, before anything reads them. Each document as the controller would
 * parse it, with line and field; then, over all of them together, what the planner says of each object, and rules that
 * can never permit or never be reached. Errors end with exit code 1, warnings do not.
 */
import { readdir, readFile, stat } from 'node:fs/promises';
import { join } from 'node:path';
import type { Command } from 'commander';
import { type Document, LineCounter, parseAllDocuments } from 'yaml';
import { type AnyObject, objectKey, parseObject } from '../api/kinds.ts';
import { contexts, type GatewayPlan } from '../api/plan.ts';
import { isRecord } from '../api/plan-delta.ts';
import { emptyMemory } from '../controller/plan/memory.ts';
import { noPeers } from '../controller/plan/peers.ts';
import { plan } from '../controller/plan/plan.ts';
import type { AnyRule } from '../policy/applies.ts';
import { Exit, painter, print, printable, printError } from './output.ts';

export interface Finding {
  file: string;
  line: number;
  severity: 'error' | 'warning';
  message: string;
}
interface Placed {
  object: AnyObject;
  file: string;
  line: number;
}

const MAX_FILE_BYTES = 32 * 1024 * 1024;
const MAX_ALIASES = 100;
const MAX_DEPTH = 16;

/** YAML files below the paths; names that start with a dot are no manifests (as in the directory source). */
async function filesOf(path: string, depth = 0): Promise<string[]> {
  if (!(await stat(path)).isDirectory()) return [path];
  const files: string[] = [];
  for (const entry of (await readdir(path, { withFileTypes: true })).sort((a, b) => (a.name < b.name ? -1 : 1))) {
    if (entry.name.startsWith('.')) continue;
    const child = join(path, entry.name);
    if (entry.isDirectory() && depth < MAX_DEPTH) files.push(...(await filesOf(child, depth + 1)));
    else if (/\.ya?ml$/.test(entry.name) && (await stat(child)).isFile()) files.push(child);
  }
  return files;
}

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
  const add = (line: number, message: string): void => {
    findings.push({ file, line: Math.max(1, line), severity: 'error', message });
  };
  const lines = new LineCounter();
  try {
    const documents = parseAllDocuments(text, { logLevel: 'silent', stringKeys: true, lineCounter: lines });
    for (const document of Array.isArray(documents) ? documents : []) {
      for (const error of document.errors) {
        add(lines.linePos(error.pos[0]).line, error.message.split('\n')[0] ?? 'is no YAML');
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
            add(line, `${path || '(document)'}: expected ${expected}, got ${got}`);
          }
          return;
        }
        const key = objectKey(result.value);
        const line = lineOf(document, at, lines);
        const other = placed.get(key);
        if (other === undefined) placed.set(key, { object: result.value, file, line });
        else add(line, `${key}: is in ${other.file}:${other.line} already`);
      });
    }
  } catch (error) {
    // Too many aliases, or nesting beyond the stack.
    add(1, error instanceof Error ? (error.message.split('\n')[0] ?? '') : String(error));
  }
  return findings;
}

/** Reasons that another manifest, not among these, may well put right. */
const warningReasons = new Set(['NoEndpoints', 'ForeignEndpoint']);

/** What the planner finds, and what a rule's place in its walk says. */
export function lintTogether(placed: ReadonlyMap<string, Placed>): Finding[] {
  const findings: Finding[] = [];
  const add = (key: string, severity: Finding['severity'], message: string): void => {
    const { file, line } = placed.get(key) ?? { file: '-', line: 1 };
    findings.push({ file, line, severity, message: `${key}: ${message}` });
  };
  // What is wrong with a manifest must not depend on the hour: rules with a schedule are taken as open.
  const scheduled = new Set<string>();
  const snapshot = new Map<string, AnyObject>();
  for (const [key, { object }] of placed) {
    const always = withoutSchedule(object);
    if (always !== object) scheduled.add(key);
    snapshot.set(key, always);
  }
  const result = plan(snapshot, emptyMemory(), noPeers(), 0);
  for (const [key, { conditions }] of result.statuses) {
    for (const { type, status, reason, message } of conditions) {
      if (type === 'Conflicted' && status === 'True') add(key, 'warning', `${reason}: ${message}`);
      if (type !== 'Accepted') continue;
      if (warningReasons.has(reason)) add(key, 'warning', `${reason}: ${message}`);
      else if (status === 'False') add(key, 'error', `${reason}: ${message}`);
      // Accepted, but with a word about a part of it.
      else if (reason !== 'Accepted') add(key, 'warning', `${reason}: ${message}`);
    }
  }
  for (const { object, reason, message } of result.warnings) add(object, 'warning', `${reason}: ${message}`);
  for (const gatewayPlan of result.pools.values()) {
    for (const [id, message] of uselessRules(gatewayPlan, scheduled)) add(keyOfRule(id), 'warning', message);
  }
  for (const [key, message] of unusedAccounts([...snapshot.values()])) add(key, 'warning', message);
  return findings;
}

/** A misspelt name in a drop rule would forbid nothing. Judged only where there are pods among the manifests. */
function* unusedAccounts(objects: readonly AnyObject[]): Generator<[key: string, message: string]> {
  const accounts = new Map<string, Set<string>>();
  for (const object of objects) {
    if (object.kind !== 'Pod') continue;
    const namespace = object.metadata.namespace ?? '';
    accounts.set(namespace, (accounts.get(namespace) ?? new Set()).add(object.spec.serviceAccountName));
  }
  for (const rule of objects) {
    if (!isRule(rule)) continue;
    for (const account of rule.spec.serviceAccounts ?? []) {
      const [name = '', before] = account.split('/').reverse();
      const namespace = before ?? rule.metadata.namespace;
      const there = namespace === undefined ? [...accounts.values()] : [accounts.get(namespace) ?? new Set()];
      if (there.every(({ size }) => size === 0) || there.some((names) => names.has(name))) continue;
      const where = namespace === undefined ? '' : ` of namespace ${namespace}`;
      yield [objectKey(rule), `no pod${where} has the service account ${name}`];
    }
  }
}

const isRule = (object: AnyObject): object is AnyRule => object.kind.endsWith('EgressRule');

function keyOfRule(id: string): string {
  const [context, ...rest] = id.split('/');
  const kind = { cluster: 'ClusterEgressRule', namespace: 'NamespaceEgressRule', service: 'ServiceEgressRule' };
  return [kind[context as keyof typeof kind], ...rest].join('/');
}

function withoutSchedule(object: AnyObject): AnyObject {
  switch (object.kind) {
    case 'ClusterEgressRule':
    case 'NamespaceEgressRule':
    case 'ServiceEgressRule': {
      const { schedule, ...spec } = object.spec;
      return schedule === undefined ? object : ({ ...object, spec } as AnyObject);
    }
    default:
      return object;
  }
}

/**
 * Rules that change nothing for any pod that they select now. Those that select none are not judged. `scheduled`: keys
 * of rules that do not always apply, and so hide no other.
 */
export function uselessRules(gatewayPlan: GatewayPlan, scheduled: ReadonlySet<string>): Map<string, string> {
  const useless = new Map<string, string>();
  const useful = new Set<string>();
  const { rules } = gatewayPlan;
  const defaultDrops = !('pool' in gatewayPlan.settings) || gatewayPlan.settings.pool.defaultAction === 'Drop';
  const audited = (id: string): boolean => rules[id]?.mode === 'Audit';
  const permitting = (id: string): boolean => {
    const rule = rules[id];
    if (audited(id)) return false;
    return rule?.action === 'accept-decisively' || (rule?.action === 'accept' && rule.context === 'service');
  };
  const covers = (id: string, other: string): boolean => {
    const [a, b] = [rules[id]?.services, rules[other]?.services];
    if (a === undefined || b === undefined) return false;
    return a === '*' || (b !== '*' && b.every((name) => a.includes(name)));
  };
  for (const group of Object.values(gatewayPlan.groups)) {
    contexts.forEach((context, level) => {
      const list = group.rules[context];
      const below = contexts.slice(level + 1).flatMap((next) => group.rules[next]);
      list.forEach((id, index) => {
        const before = list
          .slice(0, index)
          .find((earlier) => !scheduled.has(keyOfRule(earlier)) && !audited(earlier) && covers(earlier, id));
        const rule = rules[id];
        if (rule?.services !== '*' && rule?.services.length === 0) {
          useless.set(id, 'matches nothing: none of its ExternalServices exists');
        } else if (before !== undefined) {
          useless.set(id, `is never reached: ${before} comes before it and matches all that it names`);
        } else if (rule?.action === 'accept' && context !== 'service' && defaultDrops && !below.some(permitting)) {
          const message = `can never permit: accept in the ${context} context only hands on, and no rule after it`;
          useless.set(id, `${message} accepts in the service context or decisively for the pods that it selects`);
        } else useful.add(id);
      });
    });
  }
  for (const id of useful) useless.delete(id);
  return useless;
}

export function register(program: Command): void {
  program
    .command('lint')
    .description('check manifests: every document, then all of them together')
    .argument('<path...>', 'files or directories of Kubernetes YAML')
    .addHelpText('after', '\nExamples:\n  sluice lint manifests/\n  sluice lint pool.yaml rules.yaml')
    .action(async (paths: string[], _flags: unknown, command: Command) => {
      const placed = new Map<string, Placed>();
      const findings: Finding[] = [];
      let count = 0;
      for (const path of paths) {
        for (const file of await filesOf(path)) {
          count++;
          if ((await stat(file)).size > MAX_FILE_BYTES) {
            findings.push({ file, line: 1, severity: 'error', message: `is larger than ${MAX_FILE_BYTES} bytes` });
          } else findings.push(...lintText(file, await readFile(file, 'utf8'), placed));
        }
      }
      findings.push(...lintTogether(placed));
      const paint = painter(command);
      for (const { file, line, severity, message } of findings) {
        const word = severity === 'warning' ? `${paint('yellow', 'warning')}: ` : '';
        print(command, `${printable(file)}:${line}: ${word}${printable(message)}`);
      }
      const errors = findings.filter(({ severity }) => severity === 'error').length;
      const warnings = findings.length - errors;
      printError(command, `${count} files, ${placed.size} objects, ${errors} errors, ${warnings} warnings`);
      if (errors > 0) throw new Exit(1);
    });
}
