/**
 * `sluice suggest NAMESPACE [FILE…]`: a draft of rules from flow records (design §8): what the namespace was seen to do, as
 * manifests that a person reads, cuts and applies. Comments say how often and when last, what was only sampled, and
 * what is left out.
 */
import { type Command, InvalidArgumentError, Option } from 'commander';
import { FlowReading, openFlows } from '../flow-files.ts';
import { type FlowQuery, flowFilter, momentArgument } from '../flow-filter.ts';
import { FLOW_LOG } from '../flows.ts';
import { Exit, json, print, printable, printError, yaml } from '../output.ts';
import { type Drafted, draft } from './draft.ts';
import { type Omission, omissions, Seen, type Tally } from './seen.ts';

interface Flags extends Pick<FlowQuery, 'pod' | 'since' | 'until'> {
  denied?: true;
  atLeast: number;
  output: 'yaml' | 'json';
}

const NAMED = 5;

/** `a, b, c and 4 more`. */
function some(texts: readonly string[]): string {
  const named = texts.slice(0, NAMED).map(printable).join(', ');
  return texts.length > NAMED ? `${named} and ${texts.length - NAMED} more` : named;
}

const flowsText = (count: number): string => (count === 1 ? '1 flow' : `${count} flows`);

function readText({ flows, read, sampled }: Tally): string {
  if (read === 0) return 'nothing was read of them';
  const how = sampled === 0 ? '' : sampled === read ? ', in samples' : `, ${sampled} of them in samples`;
  return `${read === flows ? 'all' : read} read${how}`;
}

function commentOf({ manifest, tally, pods, addresses }: Drafted): string[] {
  const counted = `${flowsText(tally.flows)}, the last ${tally.last}`;
  const by = `passed by: ${some([...tally.by].sort())}`;
  if (pods === undefined) {
    const to = addresses === undefined ? '' : `to ${some(addresses)}; `;
    return [`${counted}; ${readText(tally)}; ${to}${by}`];
  }
  const who = `Pods ${some(pods)}: ${counted}`;
  if (manifest.kind !== 'NamespaceEgressRule') return [who];
  return [
    who,
    'They are of no Service, so this permits every pod of the namespace: a podSelector or serviceAccounts would say which.',
  ];
}

const comment = (lines: readonly string[]): string => lines.map((line) => `# ${line}\n`).join('');

function headOf(namespace: string, seen: Seen, drafted: readonly Drafted[], bad: number): string {
  const { flows, first, last } = seen.all;
  const named = drafted.some(({ addresses }) => addresses !== undefined);
  return comment([
    `Drafted by sluice suggest from ${flowsText(flows)} of namespace ${namespace}, ${first} to ${last}.`,
    'It permits what was seen, which is not what should be: read it before you apply it.',
    ...(named ? ['Names need dns.resolvers in the GatewayPool.'] : []),
    ...[...seen.omitted].map(([why, tally]) => `Left out: ${flowsText(tally.flows)} ${omissions[why]}.`).sort(),
    ...(bad === 0 ? [] : [`Lines that are no flow records: ${bad}.`]),
  ]);
}

async function suggest(namespace: string, files: string[], flags: Flags, command: Command): Promise<void> {
  const reading = new FlowReading();
  const flows = await openFlows(files, reading);
  const seen = new Seen(namespace, flags.denied);
  const { pod, since, until } = flags;
  const wanted = flowFilter({
    namespace,
    ...(pod !== undefined && { pod }),
    ...(since !== undefined && { since }),
    ...(until !== undefined && { until }),
  });
  try {
    for await (const record of flows.records()) if (wanted(record)) seen.add(record);
  } finally {
    await flows.close();
  }
  seen.end();
  const drafted = draft(seen, namespace, flags.atLeast);
  const omitted = Object.fromEntries([...seen.omitted].map(([why, { flows }]) => [why, flows])) as Partial<
    Record<Omission, number>
  >;
  if (flags.output === 'json') {
    const items = drafted.map(({ manifest }) => manifest);
    print(command, json({ namespace, flows: seen.all.flows, omitted, badLines: reading.bad, items }));
  } else if (drafted.length > 0) {
    const documents = drafted.map((one) => `---\n${comment(commentOf(one))}${yaml(one.manifest)}`);
    print(command, `${headOf(namespace, seen, drafted, reading.bad)}${documents.join('')}`);
  }
  if (seen.all.flows === 0) throw new Exit(1, `no flow of namespace ${namespace} in ${some(files)}`);
  const why = (Object.keys(omitted) as Omission[]).map((one) => `${flowsText(omitted[one] ?? 0)} ${omissions[one]}`);
  if (drafted.length === 0) throw new Exit(1, `nothing to suggest: ${why.join('; ')}`);
  for (const one of why.sort()) printError(command, `left out: ${one}`);
}

function namespaceArgument(text: string): string {
  if (/^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$/.test(text)) return text;
  throw new InvalidArgumentError('expected the name of a namespace');
}

function countArgument(text: string): number {
  const count = /^\d{1,9}$/.test(text) ? Number(text) : 0;
  if (count > 0) return count;
  throw new InvalidArgumentError('expected a number of flows');
}

export function register(program: Command): void {
  program
    .command('suggest')
    .description('draft rules for a namespace from what its flow records show')
    .argument('<namespace>', 'whose pods', namespaceArgument)
    .argument('[file...]', 'flow logs, with what was rotated away of them; - is the standard input', [FLOW_LOG])
    .option('--pod <pod>', 'only from what this pod did')
    .option('--since <time>', 'only from then on: 30m, 24h, 7d ago, or 2026-03-29T01:00:00Z', momentArgument)
    .option('--until <time>', 'only before then', momentArgument)
    .option('--denied', 'also what policy denies, or would deny were it not in audit')
    .option('--at-least <count>', 'only destinations of so many flows', countArgument, 1)
    .addOption(new Option('-o, --output <form>', 'how').choices(['yaml', 'json']).default('yaml'))
    .addHelpText(
      'after',
      `
A flow of which nothing was read is taken to speak what others spoke to the same address and port.

Examples:
  sluice suggest billing > billing.yaml && sluice lint manifests/ billing.yaml
  sluice suggest billing gw-a.jsonl gw-b.jsonl --since 7d --at-least 3
  sluice suggest billing --denied -o json | jq .omitted`,
    )
    .action(suggest);
}
