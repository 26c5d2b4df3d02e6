/**
 * The first moments of a controller, in which others know more than it does: gateways say which addresses they have before
 * any is given out, lists are asked for before any plan would take them for empty, and nodes keep the pods that they steer
 * until gateways have said what they have in force.
 */
import type { PlanPeer } from '../daemon/stream-server.ts';

/** For gateways to connect: they come back within two seconds (daemon/stream-client.ts). */
const GATEWAYS_MS = 3_000;
/** For them to acknowledge what they are given. */
const NODES_MS = 6_000;

export class Settling {
  readonly #until: number;
  readonly #heard = new Set<string>();
  readonly #holding = new Set<string>();
  #wake: () => void = () => {};
  readonly #timer: NodeJS.Timeout;

  /** `onSettled`: what waited may go on. */
  constructor(onSettled: () => void) {
    this.#until = performance.now() + NODES_MS;
    this.#timer = setTimeout(onSettled, NODES_MS + 1);
  }

  hello({ role, name, generation }: PlanPeer): void {
    if (role === 'node' && generation > 0) this.#holding.add(name);
  }

  /** All that this gateway has is known. */
  heard(gateway: string): void {
    this.#heard.add(gateway);
    this.#wake();
  }

  get over(): boolean {
    return performance.now() >= this.#until;
  }

  /** Something that `gateways` waits for may be there. */
  look(): void {
    this.#wake();
  }

  /** Resolves when all of these have been heard and `ready` says so too, or they have had their time. */
  async gateways(names: () => ReadonlySet<string>, ready: () => Promise<boolean> = async () => true): Promise<void> {
    const until = performance.now() + GATEWAYS_MS;
    for (let left = GATEWAYS_MS; left > 0; left = until - performance.now()) {
      if ([...names()].every((name) => this.#heard.has(name)) && (await ready())) return;
      await new Promise<void>((resolve) => {
        const timer = setTimeout(resolve, left);
        this.#wake = () => {
          clearTimeout(timer);
          resolve();
        };
      });
    }
  }

  /** Whether a node that steers by an earlier plan waits for this one. `held`: pods that no gateway has acknowledged. */
  waits(node: string, held: number): boolean {
    return held > 0 && !this.over && this.#holding.has(node);
  }

  close(): void {
    clearTimeout(this.#timer);
    this.#wake();
  }
}
