/**
 * The decider of the queue benchmark: finds the source among 50,000 and accepts with a mark. `alike`: all with one mark;
 * else each with another one than the packet before, so that every packet has a verdict message of its own. `waiting`: the
 * first 1,000 packets wait all the while.
 */
import { readlinkSync } from 'node:fs';
import { ACCEPT, type Decider, DROP, HOLD, type QueueControl } from '../kernel/queue-loop.ts';
import { u32 } from '../wire/bytes.ts';

export const SOURCES = 50_000;
export const FIRST_SOURCE = 0x0a090002;
const MARK = 0x100;

/** Of this thread, as its CPU time is found: `task/TID` below /proc/self. */
export const threadPath = (): string => readlinkSync('/proc/thread-self').split('/').slice(1).join('/');

export function sourceTable(): Map<number, number> {
  const sources = new Map<number, number>();
  for (let at = 0; at < SOURCES; at++) sources.set(FIRST_SOURCE + at, MARK);
  return sources;
}

export function createDecider(control: QueueControl, data: unknown): Decider {
  const alike = data === 'alike';
  const sources = sourceTable();
  let turn = 0;
  let toHold = data === 'waiting' ? 1_000 : 0;
  control.post(threadPath());
  return {
    decide(packet) {
      const mark = sources.get(u32(packet.bytes, packet.start + 12));
      if (mark === undefined) return DROP;
      if (toHold > 0) {
        toHold--;
        return HOLD;
      }
      turn ^= 1;
      packet.mark = alike ? mark : mark + turn;
      return ACCEPT;
    },
  };
}
