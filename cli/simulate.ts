/**
 * `sluice simulate DRAFT_DIR`: what would change if the draft came into force (design §9): which pods, to which
 * destinations, and by which rule before and after. It plans both with the controller's own code and asks the one
 * evaluator; the draft's EgressIPs get addresses as they would after what is in force now.
 */
import { stat } from 'node:fs/promises';
import { resolve } from 'node:path';
import { type Command, Option } from 'commander';
import { formatRange, type Range } from '../api/address.ts';
import { type AnyObject, objectKey } from '../api/kinds.ts';
import { icmpText, isIcmp } from '../api/ports.ts';
import { loadDirectory } from '../controller/observe/directory.ts';
import { readLists } from '../controller/observe/lists.ts';
import { noPeers } from '../controller/plan/peers.ts';
import { plan } from '../controller/plan/plan.ts';
import { ofKind } from '../controller/plan/snapshot.ts';
import { type EgressChange, kindOf, type PodChange, type Simulation, simulate } from '../controller/simulate.ts';
import type { Span } from '../policy/analysis/cells.ts';
import type { Outcome } from '../policy/analysis/difference.ts';
import { protocolName } from '../policy/destination.ts';
import { unreadLists } from '../policy/external-service.ts';
import { qualifiedName } from '../policy/order.ts';
import { sourceArgument } from './controller.ts';
import { timeArgument } from './explain.ts';
import { memoryOf } from './given-out.ts';
import {
  Exit,
  json,
  type OutputForm,
  outputForms,
  type Paint,
  painter,
  print,
  printable,
  printError,
  table,
  yaml,
} from './output.ts';
import { loadSource, refusedText } from './source.ts';

interface Flags {
  source: string;
  overlay?: true;
  state?: string;
  namespace?: string;
  at?: number;
  output: OutputForm;
}

const SHOWN_PODS = 3;
const SHOWN_RANGES = 4;
const SHOWN_SAID = 2;

/** `TCP 443,8000-8100`, `ICMP 8/0`, `any`. */
export function trafficText(spans: readonly Span[]): string {
  const texts: string[] = [];
  const ports = new Map<number, string[]>();
  for (const { first, last, ports: range } of spans) {
    if (range === null) {
      if (first === 0 && last === 255) texts.push('any');
      else texts.push(first === last ? protocolName(first) : `protocols ${first}-${last}`);
      continue;
    }
    const number = (port: number): string => (isIcmp(first) ? icmpText(port) : String(port));
    const text = range[0] === range[1] ? number(range[0]) : `${number(range[0])}-${number(range[1])}`;
    const known = ports.get(first);
    if (known !== undefined) {
      known.push(text);
      continue;
    }
    ports.set(first, [text]);
    texts.push('');
  }
  const named = [...ports].map(([protocol, list]) => `${protocolName(protocol)} ${list.join(',')}`);
  return texts.map((text) => (text === '' ? (named.shift() ?? '') : text)).join('; ');
}

/** As long as what is said does not matter, nothing. */
const saidText = (said: readonly string[] | undefined, wide: boolean): string =>
  said === undefined ? '' : `: ${shortened(said, SHOWN_SAID, wide)}`;

/** A single address without its length; all of a family as `any IPv4`. */
const rangeText = (range: Range): string => {
  const text = formatRange(range);
  if (text === '0.0.0.0/0') return 'any IPv4';
  return text === '::/0' ? 'any IPv6' : text.replace(range.family === 4 ? /\/32$/ : /\/128$/, '');
};

function destinationText(ranges: readonly Range[], wide: boolean): string {
  const texts = (wide ? ranges : ranges.slice(0, SHOWN_RANGES)).map(rangeText);
  if (ranges.length === 2 && texts.every((text) => text.startsWith('any '))) return 'any';
  const more = ranges.length - texts.length;
  return `${texts.join(', ')}${more > 0 ? ` and ${more} more` : ''}`;
}

const shortened = (texts: readonly string[], shown: number, wide: boolean): string =>
  wide || texts.length <= shown
    ? texts.join(', ')
    : `${texts.slice(0, shown).join(', ')} and ${texts.length - shown} more`;

function outcomeText({ verdict, reason, rule, wouldHave, redirect, limits, egress }: Outcome): string {
  const audit = wouldHave === undefined ? '' : `, would ${wouldHave}`;
  const there = redirect === undefined ? '' : ` to ${redirect}`;
  const limited = limits === undefined ? '' : `, limited by ${limits}`;
  return `${verdict}${audit} (${rule ?? reason})${there}${egress === undefined ? '' : ` as ${egress}`}${limited}`;
}

/** What `-o json` and `yaml` print. */
export function simulationValue({ changes, egress, added, removed, compared }: Simulation): object {
  return {
    changes: changes.map(({ namespace, pods, ranges, spans, said, before, after }) => ({
      namespace,
      pods,
      kind: kindOf({ before, after }),
      destinations: ranges.map(formatRange),
      traffic: spans.map(({ first, last, ports }) => ({
        protocols: [first, last],
        ...(ports === null ? {} : isIcmp(first) ? { types: ports.map(icmpText) } : { ports }),
      })),
      ...(said && { said }),
      before,
      after,
    })),
    egress: egress.map(({ namespace, pods, family, before, after }) => ({
      namespace,
      pods,
      family,
      before: before ?? null,
      after: after ?? null,
    })),
    added,
    removed,
    compared,
  };
}

function simulationText({ changes, egress, added, removed }: Simulation, wide: boolean, paint: Paint): string {
  const pods = ({ pods: names }: PodChange | EgressChange): string =>
    `${names.length}: ${shortened(names, SHOWN_PODS, wide)}`;
  const style = (cell: string): string => {
    if (/^accept[ ,]/.test(cell)) return paint('green', cell);
    if (/^bypass /.test(cell)) return paint('yellow', cell);
    return /^(drop|reject) /.test(cell) ? paint('red', cell) : cell;
  };
  const parts: string[] = [];
  // Who else decides the same is of interest only where nothing else changes.
  const weighty = changes.filter((change) => kindOf(change) !== 'rule');
  const shown = wide || weighty.length === 0 ? changes : weighty;
  if (shown.length > 0) {
    const rows = shown.map((change) => [
      change.namespace,
      pods(change),
      destinationText(change.ranges, wide),
      trafficText(change.spans) + saidText(change.said, wide),
      outcomeText(change.before),
      outcomeText(change.after),
    ]);
    parts.push(table(['Namespace', 'Pods', 'Destination', 'Traffic', 'Before', 'After'], rows, style));
  }
  if (egress.length > 0) {
    const rows = egress.map((change) => [
      change.namespace,
      pods(change),
      `IPv${change.family}`,
      change.before ?? 'none',
      change.after ?? 'none',
    ]);
    parts.push(table(['Namespace', 'Pods', 'Egress IP', 'Before', 'After'], rows));
  }
  const list = (word: string, names: readonly string[]): void => {
    if (names.length > 0) parts.push(`Pods ${word}: ${printable(shortened(names, 10, wide))}\n`);
  };
  list('only in the draft', added);
  list('not in the draft', removed);
  return parts.join('\n');
}

/** In force, and as it would be; the draft's objects keep the age that they have in force. */
async function run(draftPath: string, flags: Flags, command: Command): Promise<void> {
  const { source, overlay, state, namespace, at, output } = flags;
  const isDirectory = await stat(draftPath).then(
    (found) => found.isDirectory(),
    () => false,
  );
  if (!isDirectory) throw new Exit(1, `${draftPath} is no directory`);
  const current = await loadSource(source, state);
  // What is new is younger than all that is in force; ages count in seconds.
  const draft = await loadDirectory(draftPath, { firstSeen: current.firstSeen, now: () => Date.now() + 1000 });
  if (current.errors.length > 0) printError(command, refusedText(current.errors.length, state));
  if (draft.errors.length > 0) {
    for (const { file, object, details } of draft.errors.slice(0, 20)) {
      printError(
        command,
        printable(`${draftPath}/${file}: ${object === undefined ? '' : `${object}: `}${details.join('; ')}`),
      );
    }
    throw new Exit(
      1,
      `the draft has ${draft.errors.length} documents that would be refused (sluice lint ${draftPath})`,
    );
  }
  const drafted = new Map<string, AnyObject>([...(overlay ? current.snapshot : []), ...draft.snapshot]);
  const exists = ({ kind, metadata }: AnyObject): boolean =>
    (kind === 'Namespace' ? metadata.name : metadata.namespace) === namespace;
  if (namespace !== undefined && ![...current.snapshot.values(), ...drafted.values()].some(exists)) {
    throw new Exit(1, `there is no namespace "${namespace}", in force or in the draft`);
  }
  const now = at ?? Date.now();
  const inForce = await readLists(current.snapshot, () => resolve(current.path), state);
  // A file of the draft is below the draft; one of the manifests that an overlay leaves as they are is where it was.
  const root = (service: AnyObject): string => (draft.snapshot.has(objectKey(service)) ? draftPath : current.path);
  const lists = await readLists(drafted, (service) => resolve(root(service)), state);
  const unknown = [...drafted.values()].filter(
    (object) =>
      object.kind === 'ExternalService' && unreadLists(object, lists.get(qualifiedName(object.metadata))).length > 0,
  );
  if (unknown.length > 0) {
    const names = unknown.map(({ metadata }) => qualifiedName(metadata));
    printError(
      command,
      printable(`lists that are not known here (--state DIR) are taken as empty: ${shortened(names, 5, false)}`),
    );
  }
  const before = plan(current.snapshot, await memoryOf(current, state), noPeers(), now, inForce);
  const after = plan(drafted, before.memory, noPeers(), now, lists);
  const simulation = simulate(
    { snapshot: current.snapshot, result: before },
    { snapshot: drafted, result: after },
    namespace,
  );
  if (output === 'json' || output === 'yaml') {
    const value = simulationValue(simulation);
    print(command, output === 'json' ? json(value) : yaml(value));
  } else print(command, simulationText(simulation, output === 'wide', painter(command)));
  const { changes, egress, added, removed, compared } = simulation;
  const count = (kind: string): number => changes.filter((change) => kindOf(change) === kind).length;
  const rules = `${count('rule')} only of the deciding rule${output === 'table' ? ' (-o wide shows them)' : ''}`;
  const limits = count('limits') === 0 ? '' : `${count('limits')} of limits, `;
  printError(
    command,
    `${compared} pods compared; changes: ${count('verdict')} of verdict, ${count('egress')} of address, ${limits}${rules}; ` +
      `${added.length} pods more, ${removed.length} fewer`,
  );
  if (overlay === undefined && removed.length > 0 && ofKind(drafted, 'Pod').length === 0) {
    printError(command, 'the draft has no pods at all: --overlay lays it over the manifests in force');
  }
  if (changes.length + egress.length + added.length + removed.length > 0) throw new Exit(3);
}

export function register(program: Command): void {
  program
    .command('simulate')
    .description('say what would change for which pods if a draft of the manifests came into force')
    .argument('<draft>', 'directory of Kubernetes YAML that would take the place of the manifests in force')
    .requiredOption('--source <source>', 'directory:PATH of the manifests in force', sourceArgument)
    .option('--overlay', 'lay the draft over the manifests in force instead (it can add and change, not delete)')
    .option('--state <dir>', 'state directory of the controller, for ages and the addresses that it gave out')
    .option('--at <time>', 'as of another time, for rules with a schedule (default: now)', timeArgument)
    .option('-n, --namespace <namespace>', 'only pods of this namespace')
    .addOption(new Option('-o, --output <form>', 'how').choices([...outputForms]).default('table'))
    .addHelpText(
      'after',
      `
Exit codes: 0 nothing changes, 3 something does, 1 failed, 2 used wrongly.

Examples:
  sluice simulate draft/ --source directory:manifests
  sluice simulate new-rule/ --overlay --source directory:manifests -n billing -o wide
  sluice simulate draft/ --source directory:manifests -o json | jq '.changes[].after'`,
    )
    .action(run);
}
