/**
 * A whole entry of the connection table as a value that another kernel can be given (ctnetlink, IPCTNL_MSG_CT_NEW): what
 * moves when a flow goes on through another gateway. Taken from what the kernel tells of an entry, and written: the entry
 * itself, another mark or lifetime for it, its end.
 * Left out: expectations and helpers (FTP), labels, zones of one direction only, sequence adjustment.
 */
import type { ConntrackEntry } from './conntrack.ts';
import { IPS_ASSURED, IPS_CONFIRMED, IPS_SEEN_REPLY } from './conntrack.ts';
import { type ProtocolTracking, writeTracking } from './conntrack-protocol.ts';
import { type Tuple, writeAddress, writeTuple } from './conntrack-tuple.ts';
import { NFNL_SUBSYS_CTNETLINK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST } from './nlattr.ts';
import type { NetlinkWriter } from './nlwriter.ts';

const IPCTNL_MSG_CT_NEW = 0;
const IPCTNL_MSG_CT_DELETE = 2;
const AF_INET = 2;
const AF_INET6 = 10;
const CTA_TUPLE_ORIG = 1;
const CTA_TUPLE_REPLY = 2;
const CTA_STATUS = 3;
const CTA_NAT_SRC = 6;
const CTA_TIMEOUT = 7;
const CTA_MARK = 8;
const CTA_NAT_DST = 13;
const CTA_ZONE = 18;
const CTA_NAT_V4_MINIP = 1;
const CTA_NAT_V4_MAXIP = 2;
const CTA_NAT_PROTO = 3;
const CTA_NAT_V6_MINIP = 4;
const CTA_NAT_V6_MAXIP = 5;
const CTA_PROTONAT_PORT_MIN = 1;
const CTA_PROTONAT_PORT_MAX = 2;

/** What a packet's source or destination becomes. */
export interface Translation {
  address: string;
  /** Of ICMP: the identifier. Absent: the protocol has neither. */
  port?: number;
}

export interface TrackedFlow {
  protocol: number;
  /** Of its packets as they come from the workload. */
  original: Tuple;
  /** Absent: it stays what it is. */
  source?: Translation;
  destination?: Translation;
  mark: number;
  /** IPS_SEEN_REPLY and IPS_ASSURED. */
  status: number;
  zone: number;
  tracking?: ProtocolTracking;
}

/** Undefined: it cannot be told to another kernel. */
export function trackedFlow(entry: ConntrackEntry, tracking?: ProtocolTracking): TrackedFlow | undefined {
  const { protocol, original, reply, mark, zone } = entry;
  if (entry.originalZone !== undefined) return undefined;
  const status = entry.status & (IPS_SEEN_REPLY | IPS_ASSURED);
  const flow: TrackedFlow = { protocol, original, mark, zone, status };
  const { icmpId } = original;
  const source = translation(
    [original.source, icmpId ?? original.sourcePort],
    [reply.destination, reply.icmpId ?? reply.destinationPort],
  );
  // An answer to a ping has the identifier of the translated question.
  const destination = translation(
    [original.destination, original.destinationPort],
    [reply.source, icmpId === undefined ? reply.sourcePort : undefined],
  );
  if (source !== undefined) flow.source = source;
  if (destination !== undefined) flow.destination = destination;
  if (tracking !== undefined) flow.tracking = tracking;
  return flow;
}

type End = [address: string, port: number | undefined];

function translation([address, port]: End, [became, portBecame]: End): Translation | undefined {
  if (address === became && port === portBecame) return undefined;
  return portBecame === undefined ? { address: became } : { address: became, port: portBecame };
}

/**
 * Writes the entry; EEXIST: there is one with its tuple, or another flow has its translated port. The reply tuple goes as
 * it would be without translation: the kernel makes its own of it, with the translation that it is given. (Were it given
 * translated, nothing would be left to translate, and no packet would be.) `timeout`: seconds, if no packet comes.
 */
export function writeFlow(writer: NetlinkWriter, sequence: number, flow: TrackedFlow, timeout: number): void {
  begin(writer, sequence, IPCTNL_MSG_CT_NEW, NLM_F_CREATE | NLM_F_EXCL, flow);
  writeTuple(writer, CTA_TUPLE_REPLY, replyOf(flow.original), flow.protocol);
  if (flow.source !== undefined) writeTranslation(writer, CTA_NAT_SRC, flow.source);
  if (flow.destination !== undefined) writeTranslation(writer, CTA_NAT_DST, flow.destination);
  writer.putU32(CTA_STATUS, flow.status | IPS_CONFIRMED);
  writer.putU32(CTA_TIMEOUT, timeout);
  writer.putU32(CTA_MARK, flow.mark);
  if (flow.tracking !== undefined) writeTracking(writer, flow.tracking);
  writer.endMessage();
}

/** Names an entry. */
export type FlowName = Pick<TrackedFlow, 'protocol' | 'original' | 'zone'>;

/** Writes that the entry has another mark, or so many seconds, from now on. */
export function writeFlowChange(
  writer: NetlinkWriter,
  sequence: number,
  flow: FlowName,
  change: { mark?: number; timeout?: number },
): void {
  begin(writer, sequence, IPCTNL_MSG_CT_NEW, 0, flow);
  if (change.timeout !== undefined) writer.putU32(CTA_TIMEOUT, change.timeout);
  if (change.mark !== undefined) writer.putU32(CTA_MARK, change.mark);
  writer.endMessage();
}

/** Writes the end of whatever entry has the tuple. */
export function writeFlowEnd(writer: NetlinkWriter, sequence: number, flow: FlowName): void {
  begin(writer, sequence, IPCTNL_MSG_CT_DELETE, 0, flow);
  writer.endMessage();
}

/** Writes the end of whatever entry has what the flow's answers come with: its translated port. */
export function writeHolderEnd(writer: NetlinkWriter, sequence: number, flow: TrackedFlow): void {
  const { original, source, destination } = flow;
  const translated = { ...original, source: source?.address ?? original.source };
  translated.destination = destination?.address ?? original.destination;
  if (original.icmpId !== undefined) translated.icmpId = source?.port ?? original.icmpId;
  if (original.sourcePort !== undefined) translated.sourcePort = source?.port ?? original.sourcePort;
  if (original.destinationPort !== undefined) {
    translated.destinationPort = destination?.port ?? original.destinationPort;
  }
  head(writer, sequence, IPCTNL_MSG_CT_DELETE, 0, original);
  writeTuple(writer, CTA_TUPLE_REPLY, replyOf(translated), flow.protocol);
  if (flow.zone !== 0) writer.putU16(CTA_ZONE, flow.zone);
  writer.endMessage();
}

function head(writer: NetlinkWriter, sequence: number, message: number, flags: number, { source }: Tuple): void {
  const family = isSix(source) ? AF_INET6 : AF_INET;
  const subsystem = NFNL_SUBSYS_CTNETLINK;
  writer.beginMessage({ subsystem, message, flags: NLM_F_REQUEST | flags, sequence, family });
}

function begin(
  writer: NetlinkWriter,
  sequence: number,
  message: number,
  flags: number,
  { protocol, original, zone }: FlowName,
): void {
  head(writer, sequence, message, flags, original);
  writeTuple(writer, CTA_TUPLE_ORIG, original, protocol);
  if (zone !== 0) writer.putU16(CTA_ZONE, zone);
}

const isSix = (address: string): boolean => address.includes(':');

/** ICMP types that ask, and what answers them: v4 echo, timestamp, information, mask; v6 echo. */
const answers = new Map([
  [8, 0],
  [0, 8],
  [13, 14],
  [14, 13],
  [15, 16],
  [16, 15],
  [17, 18],
  [18, 17],
  [128, 129],
  [129, 128],
]);

function replyOf(original: Tuple): Tuple {
  const { source, destination, sourcePort, destinationPort, icmpType, icmpCode, icmpId } = original;
  const reply: Tuple = { source: destination, destination: source };
  if (destinationPort !== undefined) reply.sourcePort = destinationPort;
  if (sourcePort !== undefined) reply.destinationPort = sourcePort;
  if (icmpType !== undefined) reply.icmpType = answers.get(icmpType) ?? icmpType;
  if (icmpCode !== undefined) reply.icmpCode = icmpCode;
  if (icmpId !== undefined) reply.icmpId = icmpId;
  return reply;
}

function writeTranslation(writer: NetlinkWriter, type: number, { address, port }: Translation): void {
  const range = writer.open(type);
  const six = isSix(address);
  writeAddress(writer, six ? CTA_NAT_V6_MINIP : CTA_NAT_V4_MINIP, address);
  writeAddress(writer, six ? CTA_NAT_V6_MAXIP : CTA_NAT_V4_MAXIP, address);
  if (port !== undefined) {
    const proto = writer.open(CTA_NAT_PROTO);
    writer.putU16(CTA_PROTONAT_PORT_MIN, port);
    writer.putU16(CTA_PROTONAT_PORT_MAX, port);
    writer.close(proto);
  }
  writer.close(range);
}
