/**
 * nfnetlink_log (<linux/netfilter/nfnetlink_log.h>): packets that a `log group N` rule copies to us, and the messages
 * that bind a socket to a group. The prefix is the rule's text; the mark is the packet's at the rule.
 * Leaves out: hardware header, uid and gid, conntrack attached to the packet.
 */

import { bytesOfU8, bytesOfU32, counter, type Decoded, join, malformed, u8, u16, u32 } from './bytes.ts';
import {
  AttributeCursor,
  attribute,
  messageType,
  NFNL_HEADER,
  NFNL_SUBSYS_ULOG,
  NLM_F_ACK,
  NLM_F_REQUEST,
  nfnlMessage,
} from './nlattr.ts';

const NFULNL_MSG_PACKET = 0;
const NFULNL_MSG_CONFIG = 1;
const NFULA_PACKET_HDR = 1;
const NFULA_MARK = 2;
const NFULA_TIMESTAMP = 3;
const NFULA_IFINDEX_INDEV = 4;
const NFULA_IFINDEX_OUTDEV = 5;
const NFULA_PAYLOAD = 9;
const NFULA_PREFIX = 10;
const NFULA_CFG_CMD = 1;
const NFULA_CFG_MODE = 2;
const NFULA_CFG_TIMEOUT = 4;
const NFULA_CFG_QTHRESH = 5;
const NFULNL_CFG_CMD_BIND = 1;
const NFULNL_COPY_PACKET = 2;
/** Longer than nft accepts (NF_LOG_PREFIXLEN, 128). */
const PREFIX_MAX = 256;

export interface NflogMessage {
  /** nfnetlink_log group. */
  group: number;
  mark: number;
  prefix: string;
  /** Netfilter hook: 0 prerouting, 1 input, 2 forward, 3 output, 4 postrouting. */
  hook: number;
  /** Ethernet type. */
  protocol: number;
  /** The packet from its IP header on, as long as the rule's snaplen and our copy range allow. A view, not a copy. */
  payload: Uint8Array;
  /** Interface indices; 0: none. */
  inDevice: number;
  outDevice: number;
  /** Milliseconds since 1970; only when the packet was stamped. */
  timestamp?: number;
}

export function decodeNflog(message: Uint8Array): Decoded<NflogMessage> {
  if (message.length < NFNL_HEADER) return malformed('truncated');
  if (messageType(message) !== ((NFNL_SUBSYS_ULOG << 8) | NFULNL_MSG_PACKET)) return malformed('bad-type');
  let header = false;
  const value: NflogMessage = {
    group: u16(message, 18),
    mark: 0,
    prefix: '',
    hook: 0,
    protocol: 0,
    payload: message.subarray(0, 0),
    inDevice: 0,
    outDevice: 0,
  };
  const cursor = new AttributeCursor(message, NFNL_HEADER, message.length);
  while (cursor.next()) {
    const { start, length } = cursor;
    if (cursor.type === NFULA_PACKET_HDR && length >= 3) {
      header = true;
      value.protocol = u16(message, start);
      value.hook = u8(message, start + 2);
    } else if (cursor.type === NFULA_PAYLOAD) value.payload = cursor.bytes();
    else if (cursor.type === NFULA_PREFIX) value.prefix = text(cursor.bytes());
    else if (cursor.type === NFULA_TIMESTAMP && length >= 16) {
      value.timestamp = counter(message, start) * 1000 + Math.floor(counter(message, start + 8) / 1000);
    } else if (length < 4) continue;
    else if (cursor.type === NFULA_MARK) value.mark = u32(message, start);
    else if (cursor.type === NFULA_IFINDEX_INDEV) value.inDevice = u32(message, start);
    else if (cursor.type === NFULA_IFINDEX_OUTDEV) value.outDevice = u32(message, start);
  }
  if (cursor.malformed) return malformed('bad-attribute');
  return header ? { ok: true, value } : malformed('no-header');
}

function text(bytes: Uint8Array): string {
  const end = bytes.indexOf(0);
  return Buffer.from(bytes.subarray(0, Math.min(end < 0 ? bytes.length : end, PREFIX_MAX))).toString('utf8');
}

/**
 * Binds the socket to a group, each with its own acknowledgement (`sequence` and one more). Records wait in the kernel
 * for at most a tenth of a second or until 64 are there.
 */
export function encodeNflogConfig(group: number, copyRange: number, sequence: number): Uint8Array[] {
  const config = (offset: number, ...attributes: Uint8Array[]) =>
    nfnlMessage(
      {
        subsystem: NFNL_SUBSYS_ULOG,
        message: NFULNL_MSG_CONFIG,
        flags: NLM_F_REQUEST | NLM_F_ACK,
        sequence: sequence + offset,
        resource: group,
      },
      ...attributes,
    );
  return [
    config(0, attribute(NFULA_CFG_CMD, bytesOfU8(NFULNL_CFG_CMD_BIND))),
    config(
      1,
      attribute(NFULA_CFG_MODE, join([bytesOfU32(copyRange), Uint8Array.of(NFULNL_COPY_PACKET, 0)])),
      attribute(NFULA_CFG_TIMEOUT, bytesOfU32(10)),
      attribute(NFULA_CFG_QTHRESH, bytesOfU32(64)),
    ),
  ];
}
