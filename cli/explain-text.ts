/**
 * What `sluice explain` prints for people: the walk, context by context, the verdict, and with what the flow leaves.
 */
import { tlsVersions } from '../api/application.ts';
import { formatBandwidth } from '../api/bandwidth.ts';
import { protocolName } from '../policy/destination.ts';
import type { Step } from '../policy/evaluate.ts';
import { readingText } from '../policy/explain-match.ts';
import type { Answer } from './explain.ts';
import { type Paint, printable, table } from './output.ts';
import type { Said } from './said.ts';

/** As many as a person reads. */
const MAX_EXCLUDED = 10;

/** `?`: what is read decides whether it matches. */
const rowOf = ({ matched, open, rule, action, audit, why }: Step): string[] => [
  matched ? '  *' : open ? '  ?' : '',
  rule,
  audit ? `${action} (audit)` : action,
  why,
];

/** Without its head. */
function stepTable(rows: string[][]): string {
  return table(['  ', 'rule', 'action', 'why'], rows).split('\n').slice(1).join('\n');
}

function leavingText({ address, shard, pool, gateway }: NonNullable<Answer['egress']>, paint: Paint): string {
  const by = gateway === undefined ? 'no gateway' : `gateway ${gateway}`;
  return `${paint('bold', address)}: shard ${shard} of pool ${pool}, ${by}`;
}

function egressIPText({ name, destination, maxConnections }: NonNullable<Answer['egressIP']>): string {
  const by = destination === undefined ? `EgressIP ${name}` : `EgressIP ${name}, which serves ${destination}`;
  const limit =
    maxConnections === undefined ? '' : `; ${maxConnections} connections at once, what is beyond is dropped (limit)`;
  return `By ${by}${limit}.`;
}

function saidText({ reading, names }: Said): string {
  const parts = [
    ...(reading === undefined ? [] : [`its first bytes are ${readingText(reading)}${tlsText(reading)}`]),
    ...(names.length === 0 ? [] : [`the name table has that address for ${names.join(' and ')}`]),
  ];
  return `Taken as given: ${parts.join('; ')}.`;
}

function tlsText({ tls }: NonNullable<Said['reading']>): string {
  if (tls === undefined) return '';
  const version = Object.entries(tlsVersions).find(([, number]) => number === tls.version)?.[0];
  return ` (TLS ${version}, ALPN ${tls.alpn.length === 0 ? 'none' : tls.alpn.join(', ')})`;
}

export function answerText(answer: Answer, paint: Paint): string {
  const { policy, egress, spread, egressIP } = answer;
  const from = answer.source === undefined ? answer.from : `${answer.from} (${answer.source})`;
  const type = answer.icmpType === undefined ? '' : ` type ${answer.icmpType}/${answer.icmpCode}`;
  const lines = [`${printable(from)} to ${answer.to}, ${protocolName(answer.protocol)}${type}\n`];
  if (answer.said !== undefined) lines.push(`${printable(saidText(answer.said))}\n`);
  if (policy !== undefined) {
    lines.push('\n');
    for (const { context, outcome, why } of policy.contexts) {
      lines.push(`${paint('bold', context)}: ${outcome}. ${printable(why)}\n`);
      const steps = policy.steps.filter((step) => step.context === context);
      const excluded = (answer.excluded ?? []).filter((rule) => rule.context === context);
      const others = [true, undefined].flatMap((late) => excluded.filter((rule) => rule.outOfSchedule === late));
      const more = others.length - MAX_EXCLUDED;
      const rows = [
        ...steps.map(rowOf),
        ...others.slice(0, MAX_EXCLUDED).map(({ rule, why }) => ['', rule, '', `does not apply: ${why}`]),
        ...(more > 0 ? [['', `and ${more} more`, '', 'do not apply (-o json)']] : []),
      ];
      if (rows.length > 0) lines.push(stepTable(rows));
    }
    if (policy.again !== undefined) {
      lines.push(`${paint('bold', 'asked again')} for where the flow is redirected to:\n`);
      lines.push(stepTable(policy.again.map(rowOf)));
    }
    lines.push('\n');
  }
  const open = answer.verdict === 'bypass' || answer.provisional;
  const style = open ? 'yellow' : answer.verdict === 'accept' ? 'green' : 'red';
  const verdict = answer.provisional ? 'accept, until it is read' : answer.verdict;
  lines.push(`${paint(style, verdict)} (${answer.reason})\n${printable(answer.summary)}\n`);
  if (egress !== undefined) lines.push(`Leaves as ${leavingText(egress, paint)}.\n`);
  if (spread !== undefined) {
    lines.push('Leaves as one of these, by connection:\n');
    for (const way of spread) lines.push(`  ${leavingText(way, paint)}\n`);
  }
  if (answer.owner !== undefined) {
    const { egressIP: by, owner } = answer.owner;
    const what = owner.includes('/') ? 'pod' : 'namespace';
    lines.push(`EgressIP ${by} gives this address to ${what} ${printable(owner)} alone.\n`);
  }
  if (egressIP !== undefined) lines.push(`${egressIPText(egressIP)}\n`);
  const bandwidth = (egress ?? spread?.[0])?.bandwidth;
  if (bandwidth !== undefined) lines.push(`${egressBandwidthText(bandwidth)}\n`);
  if (answer.records !== undefined) lines.push(`Flow records: ${answer.records.join('; ')}.\n`);
  if (answer.webhook !== undefined) lines.push(`Told to the rule's webhook at ${printable(answer.webhook)}.\n`);
  for (const note of answer.lists ?? []) {
    lines.push(`${paint('yellow', 'The lists of an ExternalService are not all known here')}: ${printable(note)}\n`);
  }
  return lines.join('');
}

function egressBandwidthText({
  egressIP,
  egress,
  ingress,
}: NonNullable<NonNullable<Answer['egress']>['bandwidth']>): string {
  const ways = [
    ...(egress === undefined ? [] : [`${formatBandwidth(egress)} to the outside`]),
    ...(ingress === undefined ? [] : [`${formatBandwidth(ingress)} back`]),
  ];
  return `Bandwidth of EgressIP ${egressIP}, all of it together: ${ways.join(', ')}.`;
}
