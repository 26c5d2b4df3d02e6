/**
 * A flow in few bytes: its key (protocol, original tuple, zone) and its body (translations, mark, what the protocol keeps),
 * each a string of bytes (latin1), so that a table of 200,000 flows is a Map of two short strings each, and two bodies are
 * compared as strings. What changes with every packet or is not told by events is left out, so that a flow has one body for
 * most of its life: states of a handshake are "established", and TCP's windows are not kept (the receiver lets on what is
 * out of them).
 */
import { type AddressText, putIpv4, putIpv6, rememberedText } from '../wire/address-text.ts';
import { putU16, putU32, u8, u16, u32 } from '../wire/bytes.ts';
import { IPS_ASSURED, IPS_SEEN_REPLY, type Tuple } from '../wire/conntrack.ts';
import type { TrackedFlow, Translation } from '../wire/conntrack-flow.ts';
import {
  SCTP_ESTABLISHED,
  TCP_CLOSE_WAIT,
  TCP_ESTABLISHED,
  TCP_FIN_WAIT,
  TCP_LIBERAL,
  type TcpTracking,
} from '../wire/conntrack-protocol.ts';

export interface PackedFlow {
  key: string;
  body: string;
}

const ICMP = 1;
const TCP = 6;
const ICMPV6 = 58;
const SCTP = 132;
/** GRE (its keys), TCP, UDP, DCCP, SCTP, UDP-Lite: what conntrack knows ports of. */
const withPorts = new Set([6, 17, 33, 47, SCTP, 136]);

/** First byte of a key. */
const KEY_SIX = 0x01;
const KEY_ZONE = 0x02;
/** First byte of a body. */
const BODY_SOURCE = 0x01;
const BODY_DESTINATION = 0x02;
const BODY_TRACKING = 0x04;
const BODY_SEEN_REPLY = 0x10;
const BODY_ASSURED = 0x20;
const BODY_BITS = BODY_SOURCE | BODY_DESTINATION | BODY_TRACKING | BODY_SEEN_REPLY | BODY_ASSURED;
/** Where the mark is in a body. */
const MARK_AT = 1;

export const KEY_MAX = 2 + 32 + 4 + 2;
export const BODY_MAX = 5 + 2 * 18 + 9;

const scratch = Buffer.alloc(KEY_MAX + BODY_MAX);

const tupleBytes = (protocol: number): number =>
  withPorts.has(protocol) || protocol === ICMP || protocol === ICMPV6 ? 4 : 0;
const trackingBytes = (protocol: number): number => (protocol === TCP ? 1 : 9);

/** Undefined: it is not one that another gateway could carry on: closed already, or named in a way that we do not know. */
export function packFlow(flow: TrackedFlow): PackedFlow | undefined {
  const { protocol, source, destination, mark, status } = flow;
  const key = packKey(flow);
  if (key === undefined) return undefined;
  const six = flow.original.source.includes(':');
  let at = 5;
  let bits = 0;
  putU32(scratch, MARK_AT, mark);
  for (const [bit, translated] of [
    [BODY_SOURCE, source],
    [BODY_DESTINATION, destination],
  ] as const) {
    if (translated === undefined) continue;
    bits |= bit;
    if (!putAddress(translated.address, six, at)) return undefined;
    at += six ? 16 : 4;
    putU16(scratch, at, translated.port ?? 0);
    at += 2;
  }
  if (protocol === TCP) {
    const state = lastingState(flow.tracking?.state);
    if (state === undefined) return undefined;
    bits |= BODY_TRACKING | BODY_SEEN_REPLY | BODY_ASSURED;
    scratch[at++] = state;
  } else {
    if ((status & IPS_SEEN_REPLY) !== 0) bits |= BODY_SEEN_REPLY;
    if ((status & IPS_ASSURED) !== 0) bits |= BODY_ASSURED;
    if (flow.tracking?.protocol === SCTP && protocol === SCTP) {
      bits |= BODY_TRACKING;
      scratch[at] = flow.tracking.state;
      putU32(scratch, at + 1, flow.tracking.tags.original);
      putU32(scratch, at + 5, flow.tracking.tags.reply);
      at += 9;
    }
  }
  scratch[0] = bits;
  return { key, body: scratch.toString('latin1', 0, at) };
}

/** Of a handshake: as it will be. The kernel takes a handshake's packets for such an entry, and data for no other. */
function lastingState(state: number = TCP_ESTABLISHED): number | undefined {
  if (state <= TCP_ESTABLISHED) return TCP_ESTABLISHED;
  return state === TCP_FIN_WAIT || state === TCP_CLOSE_WAIT ? state : undefined;
}

/** Undefined: as packFlow(). */
export function packKey({ protocol, original, zone }: Pick<TrackedFlow, 'protocol' | 'original' | 'zone'>) {
  const six = original.source.includes(':');
  const icmp = protocol === (six ? ICMPV6 : ICMP);
  // The kernel has no ICMP of the other family's number with an identifier.
  if (!icmp && (protocol === ICMP || protocol === ICMPV6)) return undefined;
  const length = six ? 16 : 4;
  scratch[0] = (six ? KEY_SIX : 0) | (zone === 0 ? 0 : KEY_ZONE);
  scratch[1] = protocol;
  if (!putAddress(original.source, six, 2) || !putAddress(original.destination, six, 2 + length)) return undefined;
  let at = 2 + 2 * length;
  if (icmp) {
    putU16(scratch, at, original.icmpId ?? 0);
    scratch[at + 2] = original.icmpType ?? 0;
    scratch[at + 3] = original.icmpCode ?? 0;
    at += 4;
  } else if (withPorts.has(protocol)) {
    putU16(scratch, at, original.sourcePort ?? 0);
    putU16(scratch, at + 2, original.destinationPort ?? 0);
    at += 4;
  }
  if (zone !== 0) {
    putU16(scratch, at, zone);
    at += 2;
  }
  return scratch.toString('latin1', 0, at);
}

const putAddress = (address: string, six: boolean, at: number): boolean =>
  (six ? putIpv6 : putIpv4)(address, scratch, at);

const liberalTcp = (state: number): TcpTracking => ({
  protocol: TCP,
  state,
  flags: { original: TCP_LIBERAL, reply: TCP_LIBERAL },
  scale: { original: 0, reply: 0 },
});
/** One for all flows of a state. */
const lasting = new Map([TCP_ESTABLISHED, TCP_FIN_WAIT, TCP_CLOSE_WAIT].map((state) => [state, liberalTcp(state)]));

/** Of a key and a body of ours, or that keyEnd() and bodyEnd() have found whole. */
export function unpackFlow(key: string, body: string): TrackedFlow {
  const flow = unpackKey(key) as TrackedFlow;
  const { protocol } = flow;
  const six = isSix(key.charCodeAt(0));
  scratch.write(body, 0, 'latin1');
  const bits = u8(scratch, 0);
  flow.mark = u32(scratch, MARK_AT);
  flow.status = ((bits & BODY_SEEN_REPLY) !== 0 ? IPS_SEEN_REPLY : 0) | ((bits & BODY_ASSURED) !== 0 ? IPS_ASSURED : 0);
  let at = 5;
  const translation = (numbered: boolean): Translation => {
    const address = addressAt(six, at);
    at += six ? 16 : 4;
    const port = u16(scratch, at);
    at += 2;
    return numbered ? { address, port } : { address };
  };
  if ((bits & BODY_SOURCE) !== 0) flow.source = translation(tupleBytes(protocol) > 0);
  // A ping's identifier is of its source.
  if ((bits & BODY_DESTINATION) !== 0) flow.destination = translation(withPorts.has(protocol));
  if ((bits & BODY_TRACKING) === 0) return flow;
  const state = u8(scratch, at);
  if (protocol === TCP) {
    flow.tracking = lasting.get(state) ?? liberalTcp(state);
  } else {
    const tags = { original: u32(scratch, at + 1), reply: u32(scratch, at + 5) };
    flow.tracking = { protocol: SCTP, state: state || SCTP_ESTABLISHED, tags };
  }
  return flow;
}

/** What names the flow. */
export function unpackKey(key: string): Pick<TrackedFlow, 'protocol' | 'original' | 'zone'> {
  scratch.write(key, 0, 'latin1');
  const six = isSix(u8(scratch, 0));
  const protocol = u8(scratch, 1);
  const length = six ? 16 : 4;
  const original: Tuple = { source: addressAt(six, 2), destination: addressAt(six, 2 + length) };
  let at = 2 + 2 * length;
  if (protocol === ICMP || protocol === ICMPV6) {
    original.icmpType = u8(scratch, at + 2);
    original.icmpCode = u8(scratch, at + 3);
    original.icmpId = u16(scratch, at);
    at += 4;
  } else if (withPorts.has(protocol)) {
    original.sourcePort = u16(scratch, at);
    original.destinationPort = u16(scratch, at + 2);
    at += 4;
  }
  const zone = (u8(scratch, 0) & KEY_ZONE) === 0 ? 0 : u16(scratch, at);
  return { protocol, original, zone };
}

const isSix = (first: number): boolean => (first & KEY_SIX) !== 0;
/** Destinations and egress IPs come again and again. */
let text: AddressText | undefined;
function addressAt(six: boolean, at: number): string {
  text ??= rememberedText();
  return text(scratch, at, six ? 6 : 4);
}

/** Where the key ends that begins there; undefined: there is no whole one. */
export function keyEnd(bytes: Uint8Array, at: number): number | undefined {
  if (at + 2 > bytes.length) return undefined;
  const [first, protocol] = [u8(bytes, at), u8(bytes, at + 1)];
  if ((first & ~(KEY_SIX | KEY_ZONE)) !== 0) return undefined;
  if (protocol === (isSix(first) ? ICMP : ICMPV6)) return undefined;
  const zone = (first & KEY_ZONE) === 0 ? 0 : 2;
  const end = at + 2 + (isSix(first) ? 32 : 8) + tupleBytes(protocol) + zone;
  if (end > bytes.length) return undefined;
  // One way only to say that there is none.
  return zone !== 0 && u16(bytes, end - 2) === 0 ? undefined : end;
}

/** The same of the body of a key that begins with these two bytes. */
export function bodyEnd(bytes: Uint8Array, at: number, first: number, protocol: number): number | undefined {
  if (at + 5 > bytes.length) return undefined;
  const bits = u8(bytes, at);
  if ((bits & ~BODY_BITS) !== 0) return undefined;
  const translated = (isSix(first) ? 16 : 4) + 2;
  let end = at + 5;
  if ((bits & BODY_SOURCE) !== 0) end += translated;
  if ((bits & BODY_DESTINATION) !== 0) end += translated;
  if ((bits & BODY_TRACKING) !== 0) {
    if (protocol !== TCP && protocol !== SCTP) return undefined;
    end += trackingBytes(protocol);
  } else if (protocol === TCP) return undefined;
  if (end > bytes.length) return undefined;
  if (protocol === TCP && lastingState(u8(bytes, end - 1)) !== u8(bytes, end - 1)) return undefined;
  return end;
}

export function markOf(body: string): number {
  return (
    ((body.charCodeAt(MARK_AT) << 24) |
      (body.charCodeAt(MARK_AT + 1) << 16) |
      (body.charCodeAt(MARK_AT + 2) << 8) |
      body.charCodeAt(MARK_AT + 3)) >>>
    0
  );
}

export const withMark = (body: string, mark: number): string =>
  body.slice(0, MARK_AT) +
  String.fromCharCode(mark >>> 24, (mark >>> 16) & 255, (mark >>> 8) & 255, mark & 255) +
  body.slice(MARK_AT + 4);

/** What the kernel of another gateway has to do for a flow that had one body and has another. */
export type Difference = 'none' | 'mark' | 'other';

/** Whether a reply or more was seen is no difference: the kernel finds out by itself. */
export function difference(before: string, after: string): Difference {
  if (before === after) return 'none';
  const seen = BODY_SEEN_REPLY | BODY_ASSURED;
  if (((before.charCodeAt(0) ^ after.charCodeAt(0)) & ~seen) !== 0) return 'other';
  if (before.length !== after.length || before.slice(MARK_AT + 4) !== after.slice(MARK_AT + 4)) return 'other';
  return before.slice(MARK_AT, MARK_AT + 4) === after.slice(MARK_AT, MARK_AT + 4) ? 'none' : 'mark';
}
