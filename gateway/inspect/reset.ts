/**
 * Resets of TCP connections that policy ends once they are established (RFC 9293 §3.5.2, RFC 5961 §3): packets with the
 * very sequence number that the other side expects next, as it takes no other.
 */
import type { Family } from '../../api/plan.ts';
import { sendRaw } from '../../kernel/raw-socket.ts';
import { buildTcp, TCP_ACK, TCP_RST } from '../../wire/ip.ts';

/** Who sends it to whom. */
export interface ResetEnds {
  source: string;
  sourcePort: number;
  destination: string;
  destinationPort: number;
}

/** `sequence`: what the receiver expects next; `acknowledgement`: of what the sender expects. 32 bits, signed or not. */
export function resetPacket(ends: ResetEnds, sequence: number, acknowledgement: number): Uint8Array {
  return buildTcp({
    ...ends,
    flags: TCP_RST | TCP_ACK,
    sequence: sequence >>> 0,
    acknowledgement: acknowledgement >>> 0,
    window: 0,
  });
}

export type SendReset = (packet: Uint8Array) => void;

export const resetSender =
  (raw: Record<Family, number>): SendReset =>
  (packet) => {
    sendRaw(raw, packet);
  };
