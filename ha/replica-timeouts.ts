/**
 * How long entries live that came from another gateway. No event tells of a flow's packets, so behind the master they live
 * until its master ends them; once this gateway is master they get what the kernel gives a flow of their kind.
 */
import type { TrackedFlow } from '../wire/conntrack-flow.ts';
import { TCP_ESTABLISHED } from '../wire/conntrack-protocol.ts';

/** Seconds: as the kernel's of an established TCP connection, five days. */
export const REPLICA_TIMEOUT = 432_000;
/** The kernel's defaults: TCP half closed, UDP streams, ICMP, everything else. */
const HALF_CLOSED = 120;
const settled = new Map([
  [1, 30],
  [17, 120],
  [58, 30],
  [136, 120],
]);
const OTHERS = 600;

/** Undefined: what it has. The flow's next packet gives it what this kernel is set to. */
export function settledTimeout({ protocol, tracking }: TrackedFlow): number | undefined {
  if (protocol === 6) return tracking?.state === TCP_ESTABLISHED ? undefined : HALF_CLOSED;
  return settled.get(protocol) ?? OTHERS;
}
