/**
 * Flow records (design §8): one per start and end of a flow, per denial, per hit of audit and per match of a
 * rule that wants one, as plain data. Pure:
 * conntrack events and logged packets come in decoded, names come from a view of the plan.
 */
import { type Application, type TlsVersion, tlsVersions } from '../../api/application.ts';
import { defaultActionId } from '../../api/hits.ts';
import type { Action, Context, Family, GatewayPlan, RuleEntry, WorkloadEntry } from '../../api/plan.ts';
import type { ApplicationReading } from '../../policy/application.ts';
import type { Decision } from '../../policy/decision.ts';
import { compileEgress } from '../../policy/egress.ts';
import { workloadsByAddress } from '../../policy/evaluate.ts';
import type { ConntrackEntry } from '../../wire/conntrack.ts';
import type { DecidedFlow } from '../inspect/messages.ts';
import { isCommon } from '../inspect/readings.ts';
import { DEFAULT_ACTION, type Numbers, ruleNumberOf } from '../marks.ts';
import { egressMarks } from '../source-nat.ts';

export interface FlowRecord {
  /** RFC 3339. */
  time: string;
  event: 'start' | 'end' | 'deny' | 'audit' | 'match';
  /** `audit`: something else decides the flow, as it would without the rule. `match`: a later context does. */
  verdict: 'accept' | 'drop' | 'reject' | 'audit' | 'match';
  /** Under audit: the action that was not taken, for the reason and by the rule that stand here. */
  wouldHave?: Action;
  reason: string;
  /** More of a reason that is inspection's own: the word of the reader that refused the bytes. */
  detail?: string;
  context?: Context;
  /** Name of the rule, with its namespace if it has one. */
  rule?: string;
  namespace?: string;
  pod?: string;
  services?: string[];
  node?: string;
  protocol: string;
  source: string;
  sourcePort?: number;
  destination: string;
  destinationPort?: number;
  icmpType?: number;
  icmpCode?: number;
  egressIP?: string;
  egressPort?: number;
  /** Name of the EgressIP whose limit the flow was over; of another limit the rule stands here. */
  limitedBy?: string;
  /** Where a rule sent the flow instead of its destination; the port if it is another. */
  redirectedTo?: string;
  redirectedPort?: number;
  /** What its first bytes are; absent: nobody looked, or not in time, or it is none that we know. */
  application?: Application;
  /** The host's name that the client asked for: SNI, Host, or the question's. With ECH the outer one. */
  destinationName?: string;
  /** Of TLS and QUIC: the version that was chosen, or the highest offered; absent if it is none of those with a name. */
  tls?: { version?: TlsVersion; alpn?: readonly string[]; encryptedClientHello?: true };
  /** Of the first request. The path only where a rule has the flow read. */
  http?: { method: string; path?: string };
  /** Of the first question. */
  dns?: { type: string };
  /** Nobody asked for what was read: it was in a copy of a few packets, of some flows (record/detect.ts). */
  sampled?: true;
  gateway: string;
  shard?: string;
  /** From the workload out, and back. Absent at the start. */
  packets?: { egress: number; ingress: number };
  bytes?: { egress: number; ingress: number };
  durationSeconds?: number;
}

/** What a record needs to know of the plan in force. */
export interface RecordView {
  gateway: string;
  workload(address: string): WorkloadEntry | undefined;
  rule(number: number): NamedRule;
  /** The same of a rule by its id. */
  named(id: string | undefined): NamedRule;
  logging(id: string): RuleEntry['logging'];
  /** Under which the pool's default action is counted; undefined: there is no pool. */
  defaultAction(): string | undefined;
  /** The shard of an egress IP with which a workload leaves. */
  shardOf(workload: WorkloadEntry, family: Family, address: string): string | undefined;
  /** Name of the EgressIP of a packet's mark. */
  egressIP(mark: number): string | undefined;
  /** Whether what this rule decides leaves no record. */
  silent(number: number): boolean;
}

export type NamedRule = Pick<FlowRecord, 'reason' | 'context' | 'rule'> & { action?: Action };

/** It goes on to say what the plan says when that is changed in place. */
export function viewOf(
  gateway: string,
  plan: GatewayPlan,
  numbers: Pick<Numbers, 'nameOf'>,
  workload: (address: string) => WorkloadEntry | undefined = workloadsByAddress(plan),
): RecordView {
  const drops = 'pool' in plan.settings && plan.settings.pool.defaultAction === 'Drop';
  const egress = compileEgress(plan);
  let egressIPs: Map<number, string> | undefined;
  const loggingOf = (id: string): RuleEntry['logging'] => plan.rules[id]?.logging;
  function named(id: string | undefined): NamedRule {
    const rule = id === undefined ? undefined : plan.rules[id];
    if (id === DEFAULT_ACTION) return { reason: 'default-action', ...(drops && { action: 'drop' }) };
    if (rule === undefined) return { reason: 'rule' };
    // Above the service context an accept permits nothing; there it can only be a hit of audit.
    const reason = rule.action === 'accept' && rule.context === 'service' ? 'service-accept' : 'rule';
    const name = rule.namespace === undefined ? rule.name : `${rule.namespace}/${rule.name}`;
    return { reason, context: rule.context, rule: name, action: rule.action };
  }
  return {
    gateway,
    shardOf: (from, family, address) => egress.everything(from, family).find((one) => one.address === address)?.shard,
    egressIP(mark) {
      egressIPs ??= new Map([...egressMarks(plan)].map(([number, its]) => [its, number]));
      return egressIPs.get(mark);
    },
    silent: (number) => loggingOf(numbers.nameOf(number) ?? '') === 'None',
    workload,
    rule: (number) => named(numbers.nameOf(number)),
    named,
    logging: loggingOf,
    defaultAction: () => ('pool' in plan.settings ? defaultActionId(plan.settings.pool.pool) : undefined),
  };
}

const protocolNames: Record<number, string> = { 1: 'icmp', 6: 'tcp', 17: 'udp', 58: 'icmpv6', 132: 'sctp' };
export const protocolName = (protocol: number): string => protocolNames[protocol] ?? String(protocol);

export const workloadFields = (workload: WorkloadEntry | undefined): Partial<FlowRecord> =>
  workload === undefined
    ? {}
    : { namespace: workload.namespace, pod: workload.name, services: workload.services, node: workload.node };

type ReadFields = Pick<FlowRecord, 'application' | 'destinationName' | 'tls' | 'http' | 'dns'>;

const versionNames = new Map<number, TlsVersion>(
  Object.entries(tlsVersions).map(([name, number]) => [number, name as TlsVersion]),
);

/** Of readings that flows share: what their records say is the same, too. */
const fieldsOf = new WeakMap<ApplicationReading, ReadFields>();

/** What was read of a flow, as its records say it. */
export function readingFields(reading: ApplicationReading): ReadFields {
  if (!isCommon(reading)) return fieldsFrom(reading);
  let fields = fieldsOf.get(reading);
  if (fields === undefined) {
    fields = fieldsFrom(reading);
    fieldsOf.set(reading, fields);
  }
  return fields;
}

function fieldsFrom({ application, name, tls, http, dns }: ApplicationReading): ReadFields {
  const version = tls && versionNames.get(tls.version);
  return {
    ...(application !== undefined && { application }),
    ...(name !== undefined && { destinationName: name }),
    ...(tls !== undefined && {
      tls: {
        ...(version !== undefined && { version }),
        ...(tls.alpn.length > 0 && { alpn: tls.alpn }),
        ...(tls.encryptedClientHello && { encryptedClientHello: true }),
      },
    }),
    ...(http !== undefined && { http: { method: http.method, path: http.path } }),
    ...(dns !== undefined && { dns: { type: dns.type } }),
  };
}

/** The same of a flow that nobody asks about: no more than what a draft of rules needs. */
export function sampledFields(reading: ApplicationReading): ReadFields & { sampled: true } {
  const { http, ...fields } = readingFields(reading);
  return { ...fields, ...(http !== undefined && { http: { method: http.method } }), sampled: true };
}

/**
 * Everything of a flow that is known when it starts; its end repeats it, whatever has become of the plan. `decided`: what
 * a thread decided from its bytes, which may be in no mark yet.
 */
export function startRecord(flow: ConntrackEntry, view: RecordView, time: Date, decided?: Decided): FlowRecord {
  const workload = view.workload(flow.original.source);
  const { action, reason, context, rule } =
    decided?.decision === undefined ? view.rule(ruleNumberOf(flow.mark)) : view.named(decidingRule(decided.decision));
  const { original, reply } = flow;
  const { source, sourcePort, destination, destinationPort, icmpType, icmpCode } = original;
  const shard = workload && view.shardOf(workload, flow.family, reply.destination);
  // Nearly every flow has these; of thousands a second, parts to put together would be most of what there is to collect.
  const record = {
    time: time.toISOString(),
    event: 'start',
    verdict: 'accept',
    reason,
    context,
    rule,
    namespace: workload?.namespace,
    pod: workload?.name,
    services: workload?.services,
    node: workload?.node,
    protocol: protocolName(flow.protocol),
    source,
    sourcePort,
    destination,
    destinationPort,
    egressIP: reply.destination,
    egressPort: reply.destinationPort,
    gateway: view.gateway,
    shard,
  } as FlowRecord;
  // It passed in the name of what denies: its policy is in audit.
  if (action === 'drop' || action === 'reject') record.wouldHave = action;
  if (icmpType !== undefined) record.icmpType = icmpType;
  if (icmpCode !== undefined) record.icmpCode = icmpCode;
  // Who answers is where the flow went.
  const port = reply.sourcePort === destinationPort ? undefined : reply.sourcePort;
  if (reply.source !== destination || port !== undefined) record.redirectedTo = reply.source;
  if (port !== undefined) record.redirectedPort = port;
  if (decided !== undefined) Object.assign(record, readingFields(decided.reading));
  return withoutAbsent(record);
}

const mayBeAbsent = ['context', 'rule', 'namespace', 'sourcePort', 'destinationPort', 'egressPort', 'shard'] as const;

/** What is not known is not there. */
function withoutAbsent(record: FlowRecord): FlowRecord {
  for (const name of mayBeAbsent) {
    if (record[name] !== undefined) continue;
    return Object.fromEntries(
      Object.entries(record).filter(([, value]) => value !== undefined),
    ) as unknown as FlowRecord;
  }
  return record;
}

export type Decided = Pick<DecidedFlow, 'decision' | 'reading'>;

/** Id of the rule that decided, or DEFAULT_ACTION. */
export const decidingRule = ({ rule, reason }: Decision): string | undefined =>
  rule ?? (reason === 'default-action' ? DEFAULT_ACTION : undefined);

export function endRecord(started: FlowRecord, flow: ConntrackEntry, time: Date): FlowRecord {
  // A spread of so many fields into another literal takes V8 five times as long.
  const record = Object.assign({}, started);
  record.time = time.toISOString();
  record.event = 'end';
  record.packets = { egress: flow.packets.original, ingress: flow.packets.reply };
  record.bytes = { egress: flow.bytes.original, ingress: flow.bytes.reply };
  const { startNs, stopNs } = flow;
  if (startNs && stopNs) record.durationSeconds = Math.round(Number(stopNs - startNs) / 1e6) / 1000;
  return record;
}

/** Prefix of logged hits of audit that were over a limit of the rule in the mark. */
export const AUDIT_LIMIT = 'audit-limit';
/** Prefix of what was over the limit of the EgressIP in the mark. */
export const EGRESS_LIMIT = 'egress-limit';
/** Prefix of what a rule handed on and wants a record of. */
export const MATCH = 'match';

export interface LoggedPacket {
  /**
   * The word that the rule logs: a drop reason, `match`, or one of audit. Of these, and of `rule`, `limit`, `redirect`, the
   * mark has the rule's number; of `egress-limit` it is the EgressIP's.
   */
  prefix: string;
  mark: number;
  protocol: number;
  source: string;
  sourcePort?: number;
  destination: string;
  destinationPort?: number;
  icmpType?: number;
  icmpCode?: number;
}

export function loggedRecord(packet: LoggedPacket, view: RecordView, time: Date): FlowRecord {
  switch (packet.prefix) {
    case MATCH:
      return matchRecord(packet, view, time);
    case 'audit':
    case AUDIT_LIMIT:
      return auditRecord(packet, view, time);
    default:
      return denyRecord(packet, view, time);
  }
}

function matchRecord(packet: LoggedPacket, view: RecordView, time: Date): FlowRecord {
  const { action: _, ...rule } = view.rule(ruleNumberOf(packet.mark));
  return {
    time: time.toISOString(),
    event: 'match',
    verdict: 'match',
    ...rule,
    ...workloadFields(view.workload(packet.source)),
    protocol: protocolName(packet.protocol),
    ...tuple(packet),
    gateway: view.gateway,
  };
}

export function auditRecord(packet: LoggedPacket, view: RecordView, time: Date): FlowRecord {
  const overLimit = packet.prefix === AUDIT_LIMIT;
  const { action, ...rule } = view.rule(ruleNumberOf(packet.mark));
  return {
    time: time.toISOString(),
    event: 'audit',
    verdict: 'audit',
    ...(overLimit ? { wouldHave: 'drop' } : action === undefined ? {} : { wouldHave: action }),
    ...rule,
    ...(overLimit && { reason: 'limit' }),
    ...workloadFields(view.workload(packet.source)),
    protocol: protocolName(packet.protocol),
    ...tuple(packet),
    gateway: view.gateway,
  };
}

export function denyRecord(packet: LoggedPacket, view: RecordView, time: Date): FlowRecord {
  const { prefix } = packet;
  const byPolicy = ['rule', 'redirect', 'limit'].includes(prefix);
  const { action, ...rule } = byPolicy ? view.rule(ruleNumberOf(packet.mark)) : { reason: prefix };
  const rejected = prefix === 'hairpin' || action === 'reject';
  const limitedBy = prefix === EGRESS_LIMIT ? view.egressIP(packet.mark) : undefined;
  return {
    time: time.toISOString(),
    event: 'deny',
    verdict: rejected ? 'reject' : 'drop',
    ...rule,
    // Its rule permits; what is forbidden is the way, or how much.
    ...(prefix !== 'rule' && { reason: prefix === EGRESS_LIMIT ? 'limit' : prefix }),
    ...(limitedBy !== undefined && { limitedBy }),
    ...workloadFields(view.workload(packet.source)),
    protocol: protocolName(packet.protocol),
    ...tuple(packet),
    gateway: view.gateway,
  };
}

type FlowTuple = Pick<
  FlowRecord,
  'source' | 'sourcePort' | 'destination' | 'destinationPort' | 'icmpType' | 'icmpCode'
>;

export function tuple(of: FlowTuple): FlowTuple {
  return {
    source: of.source,
    ...(of.sourcePort === undefined ? {} : { sourcePort: of.sourcePort }),
    destination: of.destination,
    ...(of.destinationPort === undefined ? {} : { destinationPort: of.destinationPort }),
    ...(of.icmpType === undefined ? {} : { icmpType: of.icmpType }),
    ...(of.icmpCode === undefined ? {} : { icmpCode: of.icmpCode }),
  };
}
