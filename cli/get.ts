/**
 * `sluice get KIND [NAME]`: objects of a directory source with their status, as kubectl would show them; and
 * `sluice get errors`: the documents that were refused. The columns are those of the CRDs (api/schema/registry.ts).
 */
import { Argument, type Command, Option } from 'commander';
import { type AnyObject, type KindName, kindScopes, objectKey, type PrinterColumn, sluiceKinds } from '../api/kinds.ts';
import { isRecord } from '../api/plan-delta.ts';
import type { SourceError } from '../controller/observe/directory.ts';
import { sourceArgument } from './controller.ts';
import { countedObjects, rulesTable } from './get-rules.ts';
import {
  Exit,
  json,
  type OutputForm,
  outputForms,
  painter,
  print,
  printable,
  printError,
  stateDress,
  table,
  yaml,
} from './output.ts';
import { conditionsOf, loadSource, statusOf } from './source.ts';

interface Shown {
  kind: KindName;
  columns: readonly PrinterColumn[];
}
type WithStatus = AnyObject & { status?: unknown };

const age: PrinterColumn = { name: 'Age', type: 'date', jsonPath: '.metadata.creationTimestamp' };
const column = (name: string, jsonPath: string): PrinterColumn => ({ name, type: 'string', jsonPath });
const kubeKinds: { kind: KindName; names: string[]; columns: PrinterColumn[] }[] = [
  { kind: 'Namespace', names: ['namespaces', 'ns'], columns: [age] },
  {
    kind: 'Pod',
    names: ['pods', 'po'],
    columns: [column('Phase', '.status.phase'), column('IPs', '.status.podIPs'), column('Node', '.spec.nodeName'), age],
  },
  { kind: 'Service', names: ['services', 'svc'], columns: [age] },
  { kind: 'EndpointSlice', names: ['endpointslices'], columns: [age] },
  {
    kind: 'Node',
    names: ['nodes', 'no'],
    columns: [column('Addresses', '.status.addresses'), column('Pods', '.spec.podCIDRs'), age],
  },
  { kind: 'ConfigMap', names: ['configmaps', 'cm'], columns: [age] },
];

/** Conditions' messages are columns for kubectl, which has no PROBLEM. */
const ours = (columns: readonly PrinterColumn[]): PrinterColumn[] =>
  columns.filter(({ jsonPath }) => !jsonPath.endsWith('.message'));

/** Word of the command line (any case) → kinds. */
function kindsNamed(word: string): Shown[] | undefined {
  const name = word.toLowerCase();
  if (name === 'all') return sluiceKinds.map(({ kind, columns }) => ({ kind, columns: ours(columns) }));
  for (const { kind, plural, singular, shortNames, columns } of sluiceKinds) {
    if ([kind.toLowerCase(), plural, singular, ...shortNames].includes(name)) return [{ kind, columns: ours(columns) }];
  }
  for (const { kind, names, columns } of kubeKinds) {
    if ([kind.toLowerCase(), ...names].includes(name)) return [{ kind, columns }];
  }
  return undefined;
}

/** The two forms of path that printer columns have: `.a.b` and `.status.conditions[?(@.type=="X")].status`. */
function cellOf(object: unknown, { jsonPath, type }: PrinterColumn, now: number): string {
  const condition = /^\.status\.conditions\[\?\(@\.type=="(\w+)"\)\]\.status$/.exec(jsonPath)?.[1];
  if (condition !== undefined) {
    const status = isRecord(object) ? object.status : undefined;
    return conditionsOf(status).find((item) => item.type === condition)?.status ?? '';
  }
  let value: unknown = object;
  for (const name of jsonPath.split('.').slice(1)) {
    value = isRecord(value) && Object.hasOwn(value, name) ? value[name] : undefined;
  }
  return type === 'date' ? ageText(value, now) : cellText(value);
}

/** Lists with commas, maps by their values; of an entry (`{ip: …}`, `{address: …}`) what it is about. */
function cellText(value: unknown): string {
  if (value === undefined || value === null) return '';
  if (Array.isArray(value)) return value.map(cellText).join(',');
  if (!isRecord(value)) return String(value);
  return cellText(value.ip ?? value.address ?? Object.values(value));
}

function ageText(value: unknown, now: number): string {
  const seconds = Math.max(0, (now - Date.parse(String(value))) / 1000);
  if (!Number.isFinite(seconds)) return '';
  for (const [unit, length] of [
    ['d', 86_400],
    ['h', 3_600],
    ['m', 60],
  ] as const) {
    if (seconds >= 2 * length) return `${Math.floor(seconds / length)}${unit}`;
  }
  return `${Math.floor(seconds)}s`;
}

/** Conditions whose status True is the bad one. */
const troubles = new Set(['Conflicted', 'WebhookFailing']);

/** Reasons of Accepted True that are as the author wants it: the word itself, none, and what the column Schedule says. */
const fine = new Set(['Accepted', '', 'OutOfSchedule']);

/** The first thing about an object that is not as its author wants it: not so at all, else only in part. */
function problemOf(object: WithStatus): string {
  const conditions = conditionsOf(object.status);
  const problem =
    conditions.find(({ type, status }) => status === (troubles.has(type) ? 'True' : 'False')) ??
    conditions.find(({ type, status, reason }) => type === 'Accepted' && status === 'True' && !fine.has(reason));
  return problem === undefined ? '' : `${problem.reason}: ${problem.message}`;
}

function kindTable({ kind, columns }: Shown, objects: WithStatus[], wide: boolean, paint: ReturnType<typeof painter>) {
  const namespaced = kindScopes[kind] === 'namespaced';
  const now = Date.now();
  const headers = [...(namespaced ? ['Namespace'] : []), 'Name', ...columns.map(({ name }) => name)];
  if (wide) headers.push('Problem');
  const rows = objects.map((object) => [
    ...(namespaced ? [object.metadata.namespace ?? ''] : []),
    object.metadata.name,
    ...columns.map((item) => cellOf(object, item, now)),
    ...(wide ? [problemOf(object)] : []),
  ]);
  return table(headers, rows, stateDress(paint));
}

function errorsText(errors: readonly SourceError[], form: OutputForm): string {
  if (form === 'json') return json({ errors });
  if (form === 'yaml') return yaml({ errors });
  const rows = errors.map(({ file, document, object, reason, details }) => [
    document === undefined ? file : `${file} (document ${document + 1})`,
    object ?? '',
    reason,
    form === 'wide' || details.length < 2 ? details.join('; ') : `${details[0]} (and ${details.length - 1} more)`,
  ]);
  return table(['File', 'Object', 'Reason', 'Detail'], rows);
}

interface Flags {
  source: string;
  output: OutputForm;
  namespace?: string;
  state?: string;
}

async function getRules(name: string | undefined, flags: Flags, command: Command): Promise<void> {
  const source = await loadSource(flags.source, flags.state);
  const objects = await countedObjects(source, { ...flags, name });
  if (name !== undefined && objects.length === 0) throw new Exit(1, `no rule "${name}"`);
  if (flags.output === 'json' || flags.output === 'yaml') {
    const one = name !== undefined && objects.length === 1;
    const value = one ? objects[0] : { apiVersion: 'v1', kind: 'List', items: objects };
    print(command, flags.output === 'json' ? json(value) : yaml(value));
  } else {
    const now = Date.now();
    const age = (time: string): string => ageText(time, now);
    const wide = flags.output === 'wide';
    print(command, rulesTable(objects, wide, painter(command), { age, problem: problemOf }));
  }
  if (source.errors.length > 0) printError(command, `${source.errors.length} refused, see: sluice get errors`);
}

async function get(word: string, name: string | undefined, flags: Flags, command: Command): Promise<void> {
  if (word.toLowerCase() === 'rules') return getRules(name, flags, command);
  const kinds = kindsNamed(word);
  const isErrors = word.toLowerCase() === 'errors';
  if (kinds === undefined && !isErrors) {
    const named = ([first, ...short]: readonly string[]): string =>
      short.length === 0 ? `${first}` : `${first} (${short.join(', ')})`;
    const known = [
      ...sluiceKinds.map(({ plural, shortNames }) => named([plural, ...shortNames])),
      ...kubeKinds.map(({ names }) => named(names)),
    ];
    throw new Exit(2, `no kind "${word}"; there are ${known.join(', ')}, rules, all, errors`);
  }
  const { path, snapshot, errors, unaged } = await loadSource(flags.source, flags.state);
  if (kinds === undefined) {
    if (errors.length === 0 && (flags.output === 'table' || flags.output === 'wide')) {
      printError(command, 'no document was refused');
    } else print(command, errorsText(errors, flags.output));
    return;
  }
  const found: { shown: Shown; objects: WithStatus[] }[] = [];
  for (const shown of kinds) {
    const matching = [...snapshot.values()]
      .filter(({ kind, metadata }) => kind === shown.kind && (name === undefined || metadata.name === name))
      .filter(({ metadata }) => flags.namespace === undefined || metadata.namespace === flags.namespace)
      .sort((a, b) => (objectKey(a) < objectKey(b) ? -1 : 1));
    const ours = sluiceKinds.some(({ kind }) => kind === shown.kind);
    const objects: WithStatus[] = [];
    for (const aged of matching) {
      const object = unaged.get(objectKey(aged)) ?? aged;
      const status = ours ? await statusOf(path, object) : undefined;
      objects.push(status === undefined ? object : ({ ...object, status } as WithStatus));
    }
    if (objects.length > 0) found.push({ shown, objects });
  }
  const all = found.flatMap(({ objects }) => objects);
  if (name !== undefined && all.length === 0) {
    const refused = errors.find(({ object }) => object?.endsWith(`/${name}`) === true);
    throw new Exit(
      1,
      refused === undefined ? `no ${word} "${name}"` : `${refused.object} was refused: sluice get errors`,
    );
  }
  if (flags.output === 'json' || flags.output === 'yaml') {
    const value = name !== undefined && all.length === 1 ? all[0] : { apiVersion: 'v1', kind: 'List', items: all };
    print(command, flags.output === 'json' ? json(value) : yaml(value));
  } else {
    const several = kinds.length > 1;
    const texts = found.map(
      ({ shown, objects }) =>
        `${several ? `${shown.kind}\n` : ''}${kindTable(shown, objects, flags.output === 'wide', painter(command))}`,
    );
    print(command, texts.join('\n'));
    if (all.length === 0) printError(command, `no ${printable(word)} found`);
  }
  if (errors.length > 0) printError(command, `${errors.length} refused, see: sluice get errors`);
}

export function register(program: Command): void {
  program
    .command('get')
    .description('show objects with their status, or the documents that were refused')
    .addArgument(
      new Argument(
        '<kind>',
        'kind, plural or short name; "rules" (of all levels, with hits), "all" (kinds of Sluice) or "errors"',
      ),
    )
    .addArgument(new Argument('[name]', 'only this one'))
    .requiredOption('--source <source>', 'directory:PATH of Kubernetes YAML', sourceArgument)
    .option('-n, --namespace <namespace>', 'only this namespace')
    .option('--state <dir>', "the controller's state directory, for ages; of rules exact counters, not rounded ones")
    .addOption(new Option('-o, --output <form>', 'how').choices([...outputForms]).default('table'))
    .addHelpText(
      'after',
      `
Examples:
  sluice get egressips --source directory:manifests
  sluice get svcgr -n billing -o wide --source directory:manifests   # with what is wrong, if anything
  sluice get eip billing -o yaml --source directory:manifests
  sluice get rules -o wide --source directory:manifests --state /var/lib/sluice/controller
  sluice get errors --source directory:manifests`,
    )
    .action(get);
}
