/**
 * Which plan each gateway and node was given last, under which generation, and which it has acknowledged. A plan that
 * did not change keeps its generation and its object, so that nothing is sent and comparing costs nothing.
 * Generations only grow, across restarts too: main.ts reserves them on disk in blocks.
 */
import type { GatewayPlan, NodePlan, PlanOf, PlanRole } from '../../api/plan.ts';
import { differenceOf, hashOf } from '../../api/plan-difference.ts';
import type { PlanPeer } from '../../daemon/stream-server.ts';
import type { Peer, Peers } from '../plan/peers.ts';

interface Version<P> {
  plan: P;
  generation: number;
}

/** Versions that may still be acknowledged; a client that is further behind acknowledges a later one. */
const MAX_VERSIONS = 32;

class Client<P extends object> implements Peer<P> {
  connected = false;
  addresses: string[] = [];
  generation = 0;
  inForce?: P;
  error?: string;
  versions: Version<P>[] = [];

  hello(peer: PlanPeer): void {
    this.connected = true;
    this.addresses = peer.addresses;
    // It came back without what it had (a new machine, a lost disk).
    if (this.inForce !== undefined && hashOf(this.inForce) !== peer.hash) {
      delete this.inForce;
      this.generation = 0;
    }
  }

  ack(generation: number, error: string | undefined): void {
    if (error !== undefined) {
      this.error = error;
      return;
    }
    const version = this.versions.find((candidate) => candidate.generation === generation);
    if (version === undefined || generation < this.generation) return;
    this.inForce = version.plan;
    this.generation = generation;
    this.versions = this.versions.filter((candidate) => candidate.generation >= generation);
    delete this.error;
  }
}

export class Versions {
  readonly #clients = { gateway: new Map<string, Client<GatewayPlan>>(), node: new Map<string, Client<NodePlan>>() };

  get peers(): Peers {
    return { gateways: this.#clients.gateway, nodes: this.#clients.node };
  }

  #client<R extends PlanRole>(role: R, name: string): Client<PlanOf[R]> {
    const clients = this.#clients[role] as unknown as Map<string, Client<PlanOf[R]>>;
    const client = clients.get(name) ?? new Client<PlanOf[R]>();
    clients.set(name, client);
    return client;
  }

  hello(peer: PlanPeer): void {
    this.#client(peer.role, peer.name).hello(peer);
  }

  ack(peer: PlanPeer, generation: number, error?: string): void {
    this.#client(peer.role, peer.name).ack(generation, error);
  }

  gone(peer: PlanPeer): void {
    this.#client(peer.role, peer.name).connected = false;
  }

  connected(role: PlanRole): number {
    return [...this.#clients[role].values()].filter(({ connected }) => connected).length;
  }

  /** `planned`, and others that are connected. Who is neither is forgotten: nodes come and go under ever new names. */
  names(role: PlanRole, planned: Iterable<string>, forgotten: (name: string) => void): Set<string> {
    const names = new Set(planned);
    for (const [name, { connected }] of this.#clients[role]) {
      if (connected) names.add(name);
      if (names.has(name)) continue;
      this.#clients[role].delete(name);
      forgotten(name);
    }
    return names;
  }

  /** What it was given last. */
  last<R extends PlanRole>(role: R, name: string): PlanOf[R] | undefined {
    return (this.#clients[role].get(name) as Client<PlanOf[R]> | undefined)?.versions.at(-1)?.plan;
  }

  /**
   * The version to publish, or undefined if the client has been given the same already. `shared`: what another
   * client was given for the same plan object in this round, so that a pool's gateways share one object.
   */
  offer<R extends PlanRole>(
    role: R,
    name: string,
    plan: PlanOf[R],
    generation: number,
  ): Version<PlanOf[R]> | undefined {
    const client = this.#client(role, name);
    const last = client.versions.at(-1);
    if (last !== undefined && (last.plan === plan || differenceOf(last.plan, plan).empty)) return undefined;
    const version = { plan, generation };
    client.versions = [...client.versions.slice(1 - MAX_VERSIONS), version];
    return version;
  }
}
