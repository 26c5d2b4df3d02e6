/**
 * `sluice flows [FILE…]`: flow records of gateways (design §8, §9), as a table or as they are: what was, and with -f what
 * comes. Reads the files that a gateway writes, so that it works where the gateway does not, and on copies.
 */
import { type Command, InvalidArgumentError, Option } from 'commander';
import type { FlowRecord } from '../gateway/record/flow-record.ts';
import { FlowReading, openFlows } from './flow-files.ts';
import {
  applicationsArgument,
  eventsArgument,
  type FlowQuery,
  flowFilter,
  momentArgument,
  verdictsArgument,
  whereArgument,
} from './flow-filter.ts';
import { type Paint, painter, print, printable, printError, yaml } from './output.ts';

/** Where docs/install.md has a gateway write them. */
export const FLOW_LOG = '/var/log/sluice/flows.jsonl';

interface Flags extends FlowQuery {
  follow?: true;
  last?: number;
  output: 'text' | 'wide' | 'json' | 'yaml';
}

const endpoint = (address: string, port?: number): string =>
  port === undefined ? address : `${address.includes(':') ? `[${address}]` : address}:${port}`;

/** `tcp 198.51.100.80:443`, `icmp 198.51.100.80 8/0`, and where it went instead. */
function whither(r: FlowRecord): string {
  const type = r.icmpType === undefined ? '' : ` ${r.icmpType}/${r.icmpCode ?? 0}`;
  const instead =
    r.redirectedTo === undefined ? '' : ` > ${endpoint(r.redirectedTo, r.redirectedPort ?? r.destinationPort)}`;
  return `${r.protocol} ${endpoint(r.destination, r.destinationPort)}${type}${instead}`;
}

/** `TLS api.example.com`, `HTTP web.example.com GET /x`, `DNS web.example.com AAAA`. */
const spoken = (r: FlowRecord): string =>
  [r.application, r.destinationName, r.http?.method, r.http?.path, r.dns?.type].filter((part) => part).join(' ');

function reasonOf(r: FlowRecord): string {
  const by = r.rule === undefined ? r.reason : `${r.context} ${r.rule}${r.reason === 'limit' ? ' (limit)' : ''}`;
  return r.wouldHave === undefined ? by : `${by} would ${r.wouldHave}`;
}

interface Column {
  header: string;
  width: number;
  cell(record: FlowRecord): string;
}
const column = (header: string, width: number, cell: Column['cell']): Column => ({ header, width, cell });

/** Widths to begin with: columns only grow, since what is to come is not known. */
const columnsOf = (wide: boolean): Column[] => [
  column('time', 20, ({ time }) => time.replace(/\.\d+Z$/, 'Z')),
  column('verdict', 7, ({ verdict }) => verdict),
  column('event', 5, ({ event }) => event),
  column('from', 16, (r) => (r.pod === undefined ? r.source : `${r.namespace}/${r.pod}`)),
  column('to', 22, whither),
  column('speaks', 20, spoken),
  ...(wide
    ? [
        column('source', 15, (r) => endpoint(r.source, r.sourcePort)),
        column('egress ip', 15, (r) => (r.egressIP === undefined ? '' : endpoint(r.egressIP, r.egressPort))),
        column('gateway', 8, ({ gateway }) => gateway),
        column('node', 8, ({ node }) => node ?? ''),
        column('out', 8, ({ bytes }) => (bytes === undefined ? '' : String(bytes.egress))),
        column('in', 8, ({ bytes }) => (bytes === undefined ? '' : String(bytes.ingress))),
        column('seconds', 8, ({ durationSeconds }) => (durationSeconds === undefined ? '' : String(durationSeconds))),
        column('sampled', 7, ({ sampled }) => (sampled ? 'yes' : '')),
      ]
    : []),
  column('why', 0, reasonOf),
];

const colours = { accept: 'green', drop: 'red', reject: 'red', audit: 'yellow', match: 'dim' } as const;

/** Rows of one table, a batch at a time. */
export class FlowTable {
  readonly #columns: Column[];
  readonly #paint: Paint;
  #begun = false;

  constructor(wide: boolean, paint: Paint) {
    this.#columns = columnsOf(wide);
    this.#paint = paint;
  }

  text(records: readonly FlowRecord[]): string {
    const rows = records.map((record) => this.#columns.map(({ cell }) => printable(cell(record))));
    this.#columns.forEach((column, at) => {
      for (const row of rows) column.width = Math.max(column.width, [...(row[at] ?? '')].length);
    });
    const lines = rows.map((row, at) => this.#line(row, records[at]?.verdict));
    if (!this.#begun) lines.unshift(this.#line(this.#columns.map(({ header }) => header.toUpperCase())));
    this.#begun = true;
    return lines.join('');
  }

  #line(cells: string[], verdict?: FlowRecord['verdict']): string {
    const padded = cells.map((cell, at) => {
      const last = at === cells.length - 1;
      const space = last ? '' : ' '.repeat(Math.max(0, (this.#columns[at]?.width ?? 0) - [...cell].length) + 2);
      return `${at === 1 && verdict !== undefined ? this.#paint(colours[verdict], cell) : cell}${space}`;
    });
    return `${padded.join('').trimEnd()}\n`;
  }
}

/** One object a line, or one document each, so that there may be any number. JSON.stringify leaves some controls as they are. */
const forms = {
  json: (record: FlowRecord): string =>
    `${JSON.stringify(record).replace(/[\u007f-\u009f\u202a-\u202e\u2066-\u2069]/g, printable)}\n`,
  yaml: (record: FlowRecord): string => `---\n${yaml(record)}`,
};

const BATCH = 1_000;
/** Printed before what comes, if nothing else was said. */
const LAST_FOLLOWED = 10;

/** Prints until the end, or while following until the signal. */
export async function showFlows(files: string[], flags: Flags, command: Command, signal: AbortSignal): Promise<void> {
  const { output, follow = false } = flags;
  const reading = new FlowReading();
  const wanted = flowFilter(flags);
  const rows = new FlowTable(output === 'wide', painter(command));
  const show = (records: FlowRecord[]): void => {
    if (output === 'json' || output === 'yaml') print(command, records.map(forms[output]).join(''));
    else if (records.length > 0) print(command, rows.text(records));
  };
  const complain = (): void => {
    const { bad, firstBad } = reading;
    const what = bad === 1 ? 'a line is no flow record' : `${bad} lines are no flow records`;
    printError(command, `${what}, and passed over (${bad === 1 ? '' : 'the first is '}${printable(firstBad ?? '')})`);
  };
  const flows = await openFlows(files, reading, { follow });
  try {
    const last = flags.last ?? (follow ? LAST_FOLLOWED : undefined);
    let batch: FlowRecord[] = [];
    for await (const record of flows.records()) {
      if (signal.aborted) break;
      if (!wanted(record)) continue;
      batch.push(record);
      if (last !== undefined) {
        if (batch.length > 2 * last + BATCH) batch = batch.slice(-last);
      } else if (batch.length === BATCH) show(batch.splice(0));
    }
    show(last === undefined ? batch : batch.slice(batch.length - Math.min(batch.length, last)));
    let said = reading.bad;
    if (said > 0) complain();
    if (!follow) return;
    for await (const record of flows.follow(signal)) {
      if (wanted(record)) show([record]);
      if (said === 0 && reading.bad > 0) complain();
      said = reading.bad;
    }
  } finally {
    await flows.close();
  }
}

function countArgument(text: string): number {
  const count = /^\d{1,7}$/.test(text) ? Number(text) : 0;
  if (count > 0) return count;
  throw new InvalidArgumentError('expected a number of records');
}

function whileNoSignal<T>(work: (signal: AbortSignal) => Promise<T>): Promise<T> {
  const abort = new AbortController();
  const stop = (): void => abort.abort();
  const signals = ['SIGINT', 'SIGTERM'] as const;
  for (const signal of signals) process.once(signal, stop);
  return work(abort.signal).finally(() => {
    for (const signal of signals) process.off(signal, stop);
  });
}

export function register(program: Command): void {
  program
    .command('flows')
    .description('flow records of gateways: who went where, by which rule, and what it spoke')
    .argument('[file...]', `flow logs, with what was rotated away of them; - is the standard input`, [FLOW_LOG])
    .option('-n, --namespace <namespace>', 'only of pods in this namespace')
    .option('--pod <pod>', 'only of this pod: NAME or NAMESPACE/NAME')
    .option(
      '--verdict <verdicts>',
      'only these, with commas between: accept, drop, reject, audit, match',
      verdictsArgument,
    )
    .option('--event <events>', 'only these: start, end, deny, audit, match', eventsArgument)
    .option('--rule <rule>', 'only what this rule decided: NAME, NAMESPACE/NAME or CONTEXT/…')
    .option('--to <where>', 'only to this address, prefix, name, *.name or **.name', whereArgument)
    .option('--application <applications>', 'only what speaks this: TLS, HTTP, QUIC, DNS, SSH …', applicationsArgument)
    .option('--since <time>', 'only from then on: 30m, 24h, 7d ago, or 2026-03-29T01:00:00Z', momentArgument)
    .option('--until <time>', 'only before then', momentArgument)
    .option('--last <count>', `only the last ones of all these (with -f: ${LAST_FOLLOWED})`, countArgument)
    .option('-f, --follow', 'go on with what comes, until interrupted')
    .addOption(new Option('-o, --output <form>', 'how').choices(['text', 'wide', 'json', 'yaml']).default('text'))
    .addHelpText(
      'after',
      `
json is one record a line, yaml one document each. Lines that are no flow records are counted.

Examples:
  sluice flows --namespace billing --verdict drop,reject --since 1h
  sluice flows -f --pod billing/pay-1
  sluice flows gw-a.jsonl gw-b.jsonl --to '*.example.com' -o wide
  zcat old.jsonl.gz | sluice flows - --application DNS -o json | jq -r .destinationName`,
    )
    .action((files: string[], flags: Flags, command: Command) =>
      whileNoSignal((signal) => showFlows(files, flags, command, signal)),
    );
}
