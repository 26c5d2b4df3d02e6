/**
 * What an entry of the connection table keeps of its protocol beside the tuples (CTA_PROTOINFO of ctnetlink,
 * <linux/netfilter/nf_conntrack_tcp.h>): read and written. UDP, ICMP and unknown protocols keep nothing.
 * Left out: TCP's windows and sequence numbers, which the kernel neither tells nor takes: hence TCP_LIBERAL for an entry
 * that begins in the middle of a connection.
 */
import { u8, u32 } from './bytes.ts';
import { putU8 } from './conntrack-tuple.ts';
import type { AttributeCursor } from './nlattr.ts';
import type { NetlinkWriter } from './nlwriter.ts';

const CTA_PROTOINFO = 4;
const CTA_PROTOINFO_TCP = 1;
const CTA_PROTOINFO_SCTP = 3;
const CTA_PROTOINFO_TCP_STATE = 1;
const CTA_PROTOINFO_TCP_WSCALE_ORIGINAL = 2;
const CTA_PROTOINFO_TCP_WSCALE_REPLY = 3;
const CTA_PROTOINFO_TCP_FLAGS_ORIGINAL = 4;
const CTA_PROTOINFO_TCP_FLAGS_REPLY = 5;
const CTA_PROTOINFO_SCTP_STATE = 1;
const CTA_PROTOINFO_SCTP_VTAG_ORIGINAL = 2;
const CTA_PROTOINFO_SCTP_VTAG_REPLY = 3;

/** enum tcp_conntrack. */
export const TCP_SYN_SENT = 1;
export const TCP_ESTABLISHED = 3;
export const TCP_FIN_WAIT = 4;
export const TCP_CLOSE_WAIT = 5;
/** enum sctp_conntrack. */
export const SCTP_ESTABLISHED = 4;

/** IP_CT_TCP_FLAG_*: of a direction's sender. */
export const TCP_SCALES = 0x01;
/** Whatever lies out of the window is let on. */
export const TCP_LIBERAL = 0x08;

export interface PerDirection {
  original: number;
  reply: number;
}

export interface TcpTracking {
  protocol: 6;
  state: number;
  flags: PerDirection;
  /** Shifts of the windows; they count only where the flags of both have TCP_SCALES. */
  scale: PerDirection;
}

export interface SctpTracking {
  protocol: 132;
  state: number;
  /** Verification tags; 0: not seen yet. */
  tags: PerDirection;
}

export type ProtocolTracking = TcpTracking | SctpTracking;

/** `info`: over what is inside CTA_PROTOINFO, `fields`: to be used. */
export function readTracking(
  bytes: Uint8Array,
  info: AttributeCursor,
  fields: AttributeCursor,
): ProtocolTracking | undefined {
  while (info.next()) {
    if (info.type === CTA_PROTOINFO_TCP) return readTcp(bytes, info.inside(fields));
    if (info.type === CTA_PROTOINFO_SCTP) return readSctp(bytes, info.inside(fields));
  }
  return undefined;
}

function readTcp(bytes: Uint8Array, fields: AttributeCursor): TcpTracking {
  const tcp: TcpTracking = {
    protocol: 6,
    state: 0,
    flags: { original: 0, reply: 0 },
    scale: { original: 0, reply: 0 },
  };
  while (fields.next()) {
    if (fields.length < 1) continue;
    const value = u8(bytes, fields.start);
    if (fields.type === CTA_PROTOINFO_TCP_STATE) tcp.state = value;
    else if (fields.type === CTA_PROTOINFO_TCP_WSCALE_ORIGINAL) tcp.scale.original = value;
    else if (fields.type === CTA_PROTOINFO_TCP_WSCALE_REPLY) tcp.scale.reply = value;
    else if (fields.type === CTA_PROTOINFO_TCP_FLAGS_ORIGINAL) tcp.flags.original = value;
    else if (fields.type === CTA_PROTOINFO_TCP_FLAGS_REPLY) tcp.flags.reply = value;
  }
  return tcp;
}

function readSctp(bytes: Uint8Array, fields: AttributeCursor): SctpTracking {
  const sctp: SctpTracking = { protocol: 132, state: 0, tags: { original: 0, reply: 0 } };
  while (fields.next()) {
    if (fields.type === CTA_PROTOINFO_SCTP_STATE && fields.length >= 1) sctp.state = u8(bytes, fields.start);
    else if (fields.length < 4) continue;
    else if (fields.type === CTA_PROTOINFO_SCTP_VTAG_ORIGINAL) sctp.tags.original = u32(bytes, fields.start);
    else if (fields.type === CTA_PROTOINFO_SCTP_VTAG_REPLY) sctp.tags.reply = u32(bytes, fields.start);
  }
  return sctp;
}

export function writeTracking(writer: NetlinkWriter, tracking: ProtocolTracking): void {
  const info = writer.open(CTA_PROTOINFO);
  if (tracking.protocol === 6) {
    const { state, flags, scale } = tracking;
    const tcp = writer.open(CTA_PROTOINFO_TCP);
    putU8(writer, CTA_PROTOINFO_TCP_STATE, state);
    putU8(writer, CTA_PROTOINFO_TCP_WSCALE_ORIGINAL, scale.original);
    putU8(writer, CTA_PROTOINFO_TCP_WSCALE_REPLY, scale.reply);
    putFlags(writer, CTA_PROTOINFO_TCP_FLAGS_ORIGINAL, flags.original);
    putFlags(writer, CTA_PROTOINFO_TCP_FLAGS_REPLY, flags.reply);
    writer.close(tcp);
  } else {
    const { state, tags } = tracking;
    const sctp = writer.open(CTA_PROTOINFO_SCTP);
    putU8(writer, CTA_PROTOINFO_SCTP_STATE, state);
    writer.putU32(CTA_PROTOINFO_SCTP_VTAG_ORIGINAL, tags.original);
    writer.putU32(CTA_PROTOINFO_SCTP_VTAG_REPLY, tags.reply);
    writer.close(sctp);
  }
  writer.close(info);
}

/** struct nf_ct_tcp_flags: the flags, and which of them are meant: all. */
function putFlags(writer: NetlinkWriter, type: number, flags: number): void {
  const at = writer.attribute(type, 2);
  writer.buffer[at] = flags;
  writer.buffer[at + 1] = 0xff;
}
