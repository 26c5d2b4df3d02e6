/**
 * What a gateway's plan and the kernel's events say to replication of connection state (ha/replicator.ts): who stands behind
 * whom, which shard a flow belongs to, and which events are of this gateway's own flows and not of others' that it has put
 * into its kernel itself.
 * Left out: who is master, which the election knows (`masters`).
 */
import type { GatewayPlan } from '../api/plan.ts';
import type { Logger } from '../daemon/log.ts';
import { Replicator } from '../ha/replicator.ts';
import { walk } from '../kernel/conntrack.ts';
import { FlowInjector } from '../kernel/conntrack-inject.ts';
import type { ConntrackEntry, ConntrackEvent } from '../wire/conntrack.ts';
import { messagePort } from '../wire/nlattr.ts';
import { isDecided, isRead } from './marks.ts';

/** So many gateways hold a shard's flows beside its master. */
const STANDBYS = 2;

export interface Roles {
  /** Shards of this gateway, and who stands behind it in each. */
  leads: Map<string, string[]>;
  /** Shards that others are master of, or will be. */
  follows: string[];
}

/** Whoever is among the first of a shard's order is told of its flows, whichever of them is master. */
export function rolesOf({ shards }: Pick<GatewayPlan, 'shards'>, self: string, masters: ReadonlySet<string>): Roles {
  const roles: Roles = { leads: new Map(), follows: [] };
  for (const [name, { order }] of Object.entries(shards)) {
    if (masters.has(name)) {
      const others = order.filter((gateway) => gateway !== self);
      roles.leads.set(name, others.slice(0, STANDBYS));
    } else if (order.slice(0, STANDBYS + 1).includes(self)) roles.follows.push(name);
  }
  return roles;
}

export interface GatewayReplicationOptions {
  name: string;
  certs: string;
  log: Logger;
  /** Of tests: a namespace `/run/netns/NAME`, and a port. */
  namespace?: string;
  port?: number;
}

export class GatewayReplication {
  readonly replicator: Replicator;
  readonly #name: string;
  readonly #injector: FlowInjector;
  readonly #port: number;
  readonly #shards = new Map<string, string>();
  #plan: Pick<GatewayPlan, 'shards'> = { shards: {} };
  #masters: ReadonlySet<string> = new Set();

  constructor({ name, certs, log, namespace, port }: GatewayReplicationOptions) {
    this.#name = name;
    this.#injector = FlowInjector.open(namespace);
    this.#port = this.#injector.port;
    const table = namespace === undefined ? {} : { namespace };
    this.replicator = new Replicator({
      name,
      certs,
      log,
      kernel: {
        apply: (changes) => this.#injector.apply(changes),
        walk: (visit) => walk(table, visit),
      },
      shardOf: (address) => this.#shards.get(address),
      isDecided: (mark) => isDecided(mark) && !isRead(mark),
      ...(port !== undefined && { port }),
    });
  }

  /** In force from now on. Resolves as masters(). The plan is read while this runs, but for its shards. */
  plan({ gateways, shards }: Pick<GatewayPlan, 'gateways' | 'shards'>): Promise<void> {
    this.#plan = { shards };
    this.#shards.clear();
    for (const [name, { egressIPs }] of Object.entries(shards)) {
      for (const address of egressIPs) this.#shards.set(address, name);
    }
    const others = new Map<string, string>();
    for (const [gateway, { internalAddress }] of Object.entries(gateways)) {
      if (gateway !== this.#name) others.set(gateway, internalAddress);
    }
    this.replicator.place({ address: gateways[this.#name]?.internalAddress, others });
    return this.masters(this.#masters);
  }

  /**
   * This gateway is master of these shards, as of now. Resolves when what it was told of their flows is in its kernel: their
   * addresses come after that.
   */
  masters(shards: ReadonlySet<string>): Promise<void> {
    this.#masters = shards;
    const { leads, follows } = rolesOf(this.#plan, this.#name, shards);
    return this.replicator.shards(leads, follows);
  }

  /** Shards that this gateway stands behind another in. */
  get followed(): string[] {
    return rolesOf(this.#plan, this.#name, this.#masters).follows;
  }

  /** False: the event is of a flow that is not this gateway's, and nobody else need hear of it. */
  heard(message: Uint8Array, event: ConntrackEvent): boolean {
    if (messagePort(message) === this.#port) return false;
    if (event.type === 'new') this.replicator.began(event);
    else if (event.type === 'destroy') this.replicator.ended(event);
    return this.isOwn(event);
  }

  /** Whether the flow is of a shard of this gateway's, or of none. */
  isOwn({ reply }: Pick<ConntrackEntry, 'reply'>): boolean {
    const shard = this.#shards.get(reply.destination);
    return shard === undefined || this.#masters.has(shard);
  }

  async close(): Promise<void> {
    await this.replicator.close();
    await this.#injector.close();
  }
}
