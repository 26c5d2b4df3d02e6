/**
 * Packets and bytes of flows, each counted once: when a flow is looked at while it lives, and what is left when it
 * ends. Remembers only flows that were looked at, which are those that live long. Pure.
 */
import type { ConntrackEntry } from '../../wire/conntrack.ts';

type Traffic = Pick<ConntrackEntry, 'id' | 'packets' | 'bytes'>;

export interface Carried {
  /** Both ways. */
  packets: number;
  bytes: number;
}

const sum = ({ packets, bytes }: Traffic): Carried => ({
  packets: packets.original + packets.reply,
  bytes: bytes.original + bytes.reply,
});

export class FlowTraffic {
  readonly #counted = new Map<number, Carried>();

  /** What it carried so far is somebody else's to count: an earlier run's. */
  skip(flow: Traffic): void {
    this.#counted.set(flow.id, sum(flow));
  }

  /** What it carried since it was last looked at. */
  look(flow: Traffic): Carried {
    const all = sum(flow);
    const carried = since(all, this.#counted.get(flow.id));
    this.#counted.set(flow.id, all);
    return carried;
  }

  end(flow: Traffic): Carried {
    const carried = since(sum(flow), this.#counted.get(flow.id));
    this.#counted.delete(flow.id);
    return carried;
  }

  /** It ended unheard. */
  forget(id: number): void {
    this.#counted.delete(id);
  }
}

function since(all: Carried, counted: Carried | undefined): Carried {
  if (counted === undefined) return all;
  return { packets: Math.max(0, all.packets - counted.packets), bytes: Math.max(0, all.bytes - counted.bytes) };
}
