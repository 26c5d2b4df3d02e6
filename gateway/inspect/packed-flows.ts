/**
 * Flows that a thread decided, as they go to the main thread: structured clone writes each name of each field and each object of
 * each flow, which takes longer than to decide it. So what many flows have in common goes once, and of each flow a few values.
 */
import type { DecidedFlow } from './messages.ts';

/** What is said of a flow beside which one it is. */
type Said = Omit<DecidedFlow, 'protocol' | 'source' | 'sourcePort' | 'destination' | 'destinationPort'>;

/** `flows`: five values of each flow, and which of `said` is said of it. */
export interface PackedFlows {
  said: Said[];
  flows: (string | number)[];
}

/** In place of a port that there is not. */
const NO_PORT = -1;
const VALUES = 6;

export class FlowPacker {
  #said: Said[] = [];
  #flows: (string | number)[] = [];
  /** What was said last by the same decision, of flows of which nothing else is to be said. */
  readonly #plain = new Map<object, number>();

  get count(): number {
    return this.#flows.length / VALUES;
  }

  add(flow: DecidedFlow): void {
    const { protocol, source, sourcePort = NO_PORT, destination, destinationPort = NO_PORT } = flow;
    this.#flows.push(protocol, source, sourcePort, destination, destinationPort, this.#saidOf(flow));
  }

  /** All since the last time. */
  take(): PackedFlows {
    const packed = { said: this.#said, flows: this.#flows };
    this.#said = [];
    this.#flows = [];
    this.#plain.clear();
    return packed;
  }

  #saidOf({ decision, reading, reason, detail, life, delete: ends }: DecidedFlow): number {
    const plain = reason === undefined && detail === undefined && life === undefined && ends === undefined;
    // Decisions and readings that are remembered (judge.ts) are the same objects.
    const known = plain && decision !== undefined ? this.#plain.get(decision) : undefined;
    if (known !== undefined && this.#said[known]?.reading === reading) return known;
    const said: Said = { decision, reading };
    if (reason !== undefined) said.reason = reason;
    if (detail !== undefined) said.detail = detail;
    if (life !== undefined) said.life = life;
    if (ends !== undefined) said.delete = ends;
    const at = this.#said.push(said) - 1;
    if (plain && decision !== undefined) this.#plain.set(decision, at);
    return at;
  }
}

export function unpackFlows({ said, flows }: PackedFlows): DecidedFlow[] {
  const all: DecidedFlow[] = [];
  for (let at = 0; at < flows.length; at += VALUES) {
    const { decision, reading, reason, detail, life, delete: ends } = said[flows[at + 5] as number] as Said;
    const flow: DecidedFlow = {
      protocol: flows[at] as number,
      source: flows[at + 1] as string,
      destination: flows[at + 3] as string,
      decision,
      reading,
    };
    if (flows[at + 2] !== NO_PORT) flow.sourcePort = flows[at + 2] as number;
    if (flows[at + 4] !== NO_PORT) flow.destinationPort = flows[at + 4] as number;
    if (reason !== undefined) flow.reason = reason;
    if (detail !== undefined) flow.detail = detail;
    if (life !== undefined) flow.life = life;
    if (ends !== undefined) flow.delete = ends;
    all.push(flow);
  }
  return all;
}
