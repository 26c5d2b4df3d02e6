/**
 * One gateway's election as a program of its own, to be killed and stopped: `node election-peer.js LINKS` in the namespace
 * of the gateway; LINKS is JSON. Lines of JSON come in (what to do) and go out (reports).
 */

import { createInterface } from 'node:readline';
import { startElectionThread } from '../../ha/election-thread.ts';
import type { ElectionConfig } from '../../ha/elections.ts';

export type PeerOrder =
  | { kind: 'configure'; configs: ElectionConfig[] }
  /** Does nothing else for so long. */
  | { kind: 'hang'; ms: number; busy?: true }
  | { kind: 'close'; leave: boolean };

const say = (value: unknown): void => void process.stdout.write(`${JSON.stringify(value)}\n`);
const thread = startElectionThread({
  links: JSON.parse(process.argv[2] ?? '{}'),
  onReport: say,
  onEnd(error) {
    say({ kind: 'end', error: error.message });
    process.exitCode = 1;
  },
});
for await (const line of createInterface({ input: process.stdin })) {
  const order = JSON.parse(line) as PeerOrder;
  if (order.kind === 'configure') thread.configure(order.configs);
  else if (order.kind === 'hang') {
    thread.busy(order.busy === true);
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, order.ms);
    thread.busy(false);
  } else {
    await thread.close(order.leave);
    say({ kind: 'closed' });
  }
}
await thread.close();
