/** The product's decider, whose thread ends without a word when a packet's last bytes are `die`. */
import { createDecider as ownDecider } from '../../gateway/inspect/decider.ts';
import type { Decider, QueueControl } from '../../kernel/queue-loop.ts';

export function createDecider(control: QueueControl, data: unknown): Decider {
  const own = ownDecider(control, data);
  const { decide } = own;
  own.decide = (packet, now) => {
    if (Buffer.from(packet.payload()).toString('latin1').endsWith('die')) process.exit(5);
    return decide.call(own, packet, now);
  };
  return own;
}
