/**
 * A decider that does what the packet's text says, so that a test can have it do anything: see `words`. It marks what
 * it accepts: DECIDED and the queue's number, except on PORT_OPEN and PORT_MIXED, where each packet is to be asked for.
 */
import { workerData } from 'node:worker_threads';
import type { WorkerData } from '../../gateway/inspect/worker.ts';
import * as libc from '../../kernel/libc.ts';
import { ACCEPT, type Decider, type Decision, DROP, HOLD, type QueueControl } from '../../kernel/queue-loop.ts';
import { buildUdp, type Packet, parsePacket } from '../../wire/ip.ts';
import type { QueuePacket } from '../../wire/nfqueue.ts';

/** Accepted, and asked again. */
export const UNDECIDED = 0x1;
export const DECIDED = 0x100;
export const PORT_OPEN = 9001;
export const PORT_MIXED = 9002;

/** What is posted of each packet to or from PORT_OPEN. */
export interface Sighting {
  flow: string;
  length: number;
  info: number;
}

/** The same datagram with another text: what stands behind its second word. */
function replacementOf(packet: QueuePacket): Uint8Array {
  const parsed = parsePacket(packet.payload());
  if (!parsed.ok) throw new Error('no packet');
  const { source, destination, sourcePort = 0, destinationPort = 0, payloadOffset } = parsed.value;
  const [, times = '1'] = Buffer.from(packet.payload().subarray(payloadOffset)).toString('latin1').split(' ');
  return buildUdp({
    source,
    destination,
    sourcePort,
    destinationPort,
    payload: Buffer.from('swapped'.repeat(Number(times))),
  });
}

function spin(): never {
  for (;;);
}

export function createDecider(control: QueueControl, data: unknown): Decider {
  const { fd, queue } = workerData as WorkerData;
  const held: number[] = [];
  const last: number[] = [];
  const swapped: (() => boolean)[] = [];
  let decided = DECIDED + queue;
  const release = (): void => {
    for (const id of held.splice(0)) control.verdict(id, ACCEPT, decided);
  };
  const words: Record<string, (packet: QueuePacket) => Decision> = {
    hold(packet) {
      held.push(packet.id);
      return HOLD;
    },
    go(packet) {
      release();
      packet.mark = decided;
      return ACCEPT;
    },
    /** Released by the alarm, in 50 ms. */
    later(packet) {
      held.push(packet.id);
      control.wakeAt(performance.now() + 50);
      return HOLD;
    },
    /** Released when the thread is told to end. */
    last(packet) {
      last.push(packet.id);
      return HOLD;
    },
    /** Another packet goes on in its place, at once; or later, as the next that goes on. */
    swap(packet) {
      packet.replacement = replacementOf(packet);
      packet.mark = decided;
      return ACCEPT;
    },
    swapLater(packet) {
      const replacement = replacementOf(packet);
      const { id } = packet;
      swapped.push(() => control.replace(id, replacement, decided));
      control.wakeAt(performance.now() + 50);
      return HOLD;
    },
    drop: () => DROP,
    tag(packet) {
      packet.mark = UNDECIDED << 1;
      return ACCEPT;
    },
    throw() {
      throw new Error('as the packet said');
    },
    spin,
    quit: () => process.exit(5),
  };
  const flowOf = (packet: Packet): string => {
    const ends = [`${packet.source} ${packet.sourcePort}`, `${packet.destination} ${packet.destinationPort}`];
    return ends.sort().join(' ');
  };

  control.post({ begun: data });
  return {
    decide(packet) {
      const parsed = parsePacket(packet.payload());
      if (!parsed.ok) return DROP;
      const { payloadOffset, sourcePort, destinationPort } = parsed.value;
      const bytes = packet.payload().subarray(payloadOffset);
      if (sourcePort === PORT_OPEN || destinationPort === PORT_OPEN) {
        control.post({ flow: flowOf(parsed.value), length: packet.end - packet.start, info: packet.info });
        packet.mark = UNDECIDED;
        return ACCEPT;
      }
      decided = destinationPort === PORT_MIXED ? UNDECIDED : DECIDED + queue;
      const word = words[Buffer.from(bytes.subarray(0, 16)).toString('latin1').split(' ')[0] ?? ''];
      if (word !== undefined) return word(packet);
      // A handshake is nothing to decide by.
      packet.mark = bytes.length === 0 ? UNDECIDED : decided;
      return ACCEPT;
    },
    expired(id) {
      held.splice(held.indexOf(id), 1);
    },
    alarm() {
      release();
      for (const swap of swapped.splice(0)) swap();
    },
    close() {
      for (const id of last) control.verdict(id, ACCEPT, decided);
    },
    message(value) {
      if (value === 'release') release();
      else if (value === 'throw') throw new Error('as the message said');
      else if (value === 'spin') {
        control.post('spins');
        spin();
      } else if (value === 'steal') {
        // A message of the kernel that the loop never sees: as if it had gone deaf.
        libc.receive(fd, new Uint8Array(65_536), 0);
      } else if (typeof value === 'number') Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, value);
      else control.post({ heard: value });
    },
  };
}
