/**
 * nfnetlink_queue (<linux/netfilter/nfnetlink_queue.h>): packets that a queue holds, verdicts on them, and the
 * messages that bind a socket to a queue. A held packet goes on only with a verdict from the socket that holds the
 * queue; when that closes, or the queue is full, packets are dropped (no fail-open: it would let them past policy).
 * Leaves out: changed payloads, conntrack attached to the packet (this needs NETFILTER_NETLINK_GLUE_CT).
 */

import { bytesOfU32, type Decoded, join, malformed, u8, u16, u32 } from './bytes.ts';
import {
  AttributeCursor,
  attribute,
  messageType,
  NFNL_HEADER,
  NFNL_SUBSYS_QUEUE,
  NLM_F_ACK,
  NLM_F_REQUEST,
  nfnlMessage,
} from './nlattr.ts';

const NFQNL_MSG_PACKET = 0;
const NFQNL_MSG_VERDICT = 1;
const NFQNL_MSG_CONFIG = 2;
const NFQNL_MSG_VERDICT_BATCH = 3;
const NFQA_PACKET_HDR = 1;
const NFQA_VERDICT_HDR = 2;
const NFQA_MARK = 3;
const NFQA_IFINDEX_INDEV = 5;
const NFQA_IFINDEX_OUTDEV = 6;
const NFQA_PAYLOAD = 10;
const NFQA_CFG_CMD = 1;
const NFQA_CFG_PARAMS = 2;
const NFQA_CFG_QUEUE_MAXLEN = 3;
const NFQA_CFG_MASK = 4;
const NFQA_CFG_FLAGS = 5;
const NFQNL_CFG_CMD_BIND = 1;
const NFQNL_COPY_PACKET = 2;
/** A large send is held as one packet, not cut into segments. */
const NFQA_CFG_F_GSO = 4;

export type Verdict = 'accept' | 'drop' | 'repeat';
const verdicts: Record<Verdict, number> = { drop: 0, accept: 1, repeat: 4 };

export interface QueuedPacket {
  queue: number;
  /** Names the packet in the verdict; ascending per queue. */
  id: number;
  mark: number;
  hook: number;
  protocol: number;
  /** From the IP header on, at most the copy range. A view, not a copy. */
  payload: Uint8Array;
  inDevice: number;
  outDevice: number;
}

export function decodeNfqueue(message: Uint8Array): Decoded<QueuedPacket> {
  if (message.length < NFNL_HEADER) return malformed('truncated');
  if (messageType(message) !== ((NFNL_SUBSYS_QUEUE << 8) | NFQNL_MSG_PACKET)) return malformed('bad-type');
  let header = false;
  const value: QueuedPacket = {
    queue: u16(message, 18),
    id: 0,
    mark: 0,
    hook: 0,
    protocol: 0,
    payload: message.subarray(0, 0),
    inDevice: 0,
    outDevice: 0,
  };
  const cursor = new AttributeCursor(message, NFNL_HEADER, message.length);
  while (cursor.next()) {
    const { start, length } = cursor;
    if (cursor.type === NFQA_PACKET_HDR && length >= 7) {
      header = true;
      value.id = u32(message, start);
      value.protocol = u16(message, start + 4);
      value.hook = u8(message, start + 6);
    } else if (cursor.type === NFQA_PAYLOAD) value.payload = cursor.bytes();
    else if (length < 4) continue;
    else if (cursor.type === NFQA_MARK) value.mark = u32(message, start);
    else if (cursor.type === NFQA_IFINDEX_INDEV) value.inDevice = u32(message, start);
    else if (cursor.type === NFQA_IFINDEX_OUTDEV) value.outDevice = u32(message, start);
  }
  if (cursor.malformed) return malformed('bad-attribute');
  return header ? { ok: true, value } : malformed('no-header');
}

/** Verdict on one packet; with a mark, the packet goes on with it. No acknowledgement is asked for. */
export function encodeVerdict(queue: number, id: number, verdict: Verdict, mark?: number): Uint8Array {
  return verdictMessage(NFQNL_MSG_VERDICT, queue, id, verdict, mark);
}

/** Verdict on every packet of the queue whose id is at most `id`. */
export function encodeVerdictBatch(queue: number, id: number, verdict: Verdict, mark?: number): Uint8Array {
  return verdictMessage(NFQNL_MSG_VERDICT_BATCH, queue, id, verdict, mark);
}

function verdictMessage(message: number, queue: number, id: number, verdict: Verdict, mark?: number): Uint8Array {
  return nfnlMessage(
    { subsystem: NFNL_SUBSYS_QUEUE, message, flags: NLM_F_REQUEST, resource: queue },
    attribute(NFQA_VERDICT_HDR, join([bytesOfU32(verdicts[verdict]), bytesOfU32(id)])),
    ...(mark === undefined ? [] : [attribute(NFQA_MARK, bytesOfU32(mark))]),
  );
}

export interface QueueSettings {
  queue: number;
  /** Packets that the queue holds before it drops. */
  maxLength: number;
  /** Bytes of each packet that we see. */
  copyRange: number;
}

/** Binds the socket to a queue: three messages, acknowledged under `sequence` and the two after it. */
export function encodeQueueConfig(settings: QueueSettings, sequence: number): Uint8Array[] {
  const config = (offset: number, ...attributes: Uint8Array[]) =>
    nfnlMessage(
      {
        subsystem: NFNL_SUBSYS_QUEUE,
        message: NFQNL_MSG_CONFIG,
        flags: NLM_F_REQUEST | NLM_F_ACK,
        sequence: sequence + offset,
        resource: settings.queue,
      },
      ...attributes,
    );
  return [
    config(0, attribute(NFQA_CFG_CMD, Uint8Array.of(NFQNL_CFG_CMD_BIND, 0, 0, 0))),
    config(
      1,
      attribute(NFQA_CFG_PARAMS, join([bytesOfU32(settings.copyRange), Uint8Array.of(NFQNL_COPY_PACKET)])),
      attribute(NFQA_CFG_QUEUE_MAXLEN, bytesOfU32(settings.maxLength)),
    ),
    config(
      2,
      attribute(NFQA_CFG_FLAGS, bytesOfU32(NFQA_CFG_F_GSO)),
      attribute(NFQA_CFG_MASK, bytesOfU32(NFQA_CFG_F_GSO)),
    ),
  ];
}
