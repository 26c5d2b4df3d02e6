/**
 * Netlink acknowledgements and errors with what the kernel adds to them (<linux/netlink.h>, NETLINK_CAP_ACK and
 * NETLINK_EXT_ACK): a text, and which attribute of the request it objects to.
 */
import { type Decoded, malformed } from './bytes.ts';
import {
  AttributeCursor,
  messageErrno,
  messageFlags,
  messageSequence,
  messageType,
  NLMSG_ERROR,
  NLMSG_HEADER,
} from './nlattr.ts';

const NLM_F_CAPPED = 0x100;
const NLM_F_ACK_TLVS = 0x200;
const NLMSGERR_ATTR_MSG = 1;
const NLMSGERR_ATTR_OFFS = 2;
const TEXT_MAX = 500;

export interface Ack {
  /** Of the request. */
  sequence: number;
  /** 0: done. */
  errno: number;
  text?: string;
  /** Into the request, of the attribute at fault. */
  offset?: number;
}

export function decodeAck(message: Uint8Array): Decoded<Ack> {
  const errno = messageErrno(message);
  if (errno === undefined) return malformed('truncated');
  if (messageType(message) !== NLMSG_ERROR) return malformed('bad-type');
  const ack: Ack = { sequence: messageSequence(message), errno };
  // Without the first flag the request stands between, of a length that its own header tells.
  if ((messageFlags(message) & NLM_F_ACK_TLVS) === 0 || (messageFlags(message) & NLM_F_CAPPED) === 0) {
    return { ok: true, value: ack };
  }
  const cursor = new AttributeCursor(message, 2 * NLMSG_HEADER + 4, message.length);
  while (cursor.next()) {
    if (cursor.type === NLMSGERR_ATTR_MSG) {
      const bytes = cursor.bytes().subarray(0, TEXT_MAX);
      const end = bytes.indexOf(0);
      ack.text = new TextDecoder().decode(end < 0 ? bytes : bytes.subarray(0, end));
    } else if (cursor.type === NLMSGERR_ATTR_OFFS && cursor.length === 4) {
      ack.offset = new DataView(message.buffer, message.byteOffset + cursor.start, 4).getUint32(0, true);
    }
  }
  return cursor.malformed ? malformed('bad-attribute') : { ok: true, value: ack };
}
