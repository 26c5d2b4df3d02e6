/**
 * Packets of sources that no workload has yet (design §6: held, not let out and not just dropped). A pure machine:
 * packets and time go in, decisions come out; hold-queue.ts joins it to NFQUEUE and to the clock.
 * Order is kept: a source's packets are released as they came. Bounds are what makes it safe to hold at all: a pod
 * that sprays costs itself 4 packets, and all pods together 1,024.
 */

export interface HeldPacket {
  /** The queue's name for it, in the verdict. */
  id: number;
  /** Packet mark as it came, MARK_HELD in it. */
  mark: number;
  /** Canonical address. */
  source: string;
}

export interface HoldLimits {
  perSource: number;
  total: number;
  milliseconds: number;
}
export const holdLimits: HoldLimits = { perSource: 4, total: 1_024, milliseconds: 2_000 };

/** accept: its source is known. drop: over a limit. hold: wait for release() or expire(). */
export type Arrival = 'accept' | 'hold' | 'drop';

export interface Released {
  packet: HeldPacket;
  /** How long it was held. */
  milliseconds: number;
}

interface Waiting {
  packet: HeldPacket;
  since: number;
}

export class Hold {
  readonly #limits: HoldLimits;
  #known: ReadonlySet<string> = new Set();
  /** By id, in order of arrival, which is also the order of expiry. */
  readonly #waiting = new Map<number, Waiting>();
  readonly #bySource = new Map<string, number[]>();

  constructor(limits: HoldLimits = holdLimits) {
    this.#limits = limits;
  }

  get size(): number {
    return this.#waiting.size;
  }

  arrive(packet: HeldPacket, now: number): Arrival {
    // It set out before its source became known, and was read after.
    if (this.#known.has(packet.source)) return 'accept';
    const ids = this.#bySource.get(packet.source);
    if (this.#waiting.size >= this.#limits.total || (ids?.length ?? 0) >= this.#limits.perSource) return 'drop';
    this.#waiting.set(packet.id, { packet, since: now });
    if (ids === undefined) this.#bySource.set(packet.source, [packet.id]);
    else ids.push(packet.id);
    return 'hold';
  }

  /** These sources, and no others, are known from now on. Gives the packets that may go, in order per source. */
  release(known: ReadonlySet<string>, now: number): Released[] {
    this.#known = known;
    const released: Released[] = [];
    for (const [source, ids] of [...this.#bySource]) {
      if (!known.has(source)) continue;
      this.#bySource.delete(source);
      for (const id of ids) {
        const waiting = this.#waiting.get(id);
        if (waiting === undefined) continue;
        this.#waiting.delete(id);
        released.push({ packet: waiting.packet, milliseconds: now - waiting.since });
      }
    }
    return released;
  }

  /** Nobody is behind these any more: takes out what waits, which is not the next owner's. */
  forget(sources: readonly string[]): HeldPacket[] {
    if (sources.some((source) => this.#known.has(source))) {
      const known = new Set(this.#known);
      for (const source of sources) known.delete(source);
      this.#known = known;
    }
    const forgotten: HeldPacket[] = [];
    for (const source of sources) {
      for (const id of this.#bySource.get(source) ?? []) {
        const waiting = this.#waiting.get(id);
        this.#waiting.delete(id);
        if (waiting !== undefined) forgotten.push(waiting.packet);
      }
      this.#bySource.delete(source);
    }
    return forgotten;
  }

  /** Takes out what has waited for too long. */
  expire(now: number): HeldPacket[] {
    const expired: HeldPacket[] = [];
    for (const [id, { packet, since }] of this.#waiting) {
      if (now - since < this.#limits.milliseconds) break;
      this.#waiting.delete(id);
      const ids = this.#bySource.get(packet.source)?.filter((other) => other !== id) ?? [];
      if (ids.length === 0) this.#bySource.delete(packet.source);
      else this.#bySource.set(packet.source, ids);
      expired.push(packet);
    }
    return expired;
  }

  /** Everything, as at the end of the program: the kernel drops it when the queue's socket closes. */
  clear(): void {
    this.#waiting.clear();
    this.#bySource.clear();
  }

  /** When expire() next has something to do. */
  nextExpiry(): number | undefined {
    for (const { since } of this.#waiting.values()) return since + this.#limits.milliseconds;
    return undefined;
  }
}
