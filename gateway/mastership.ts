/**
 * Which shards this gateway has, where the gateways of a pool elect that (GatewayPool `vrrp`, design §7): what the plan and
 * the machine's links say to the election (ha/election-thread.ts), and what that says to the rest of the program. Addresses
 * of shards are the election's. What is in doubt (an address of the machine that is not known) takes no part.
 */
import { type NetworkInterfaceInfo, networkInterfaces } from 'node:os';
import { families, type GatewayPlan, type PerFamily, type PoolSettings } from '../api/plan.ts';
import type { Logger } from '../daemon/log.ts';
import type { ThreadReport } from '../ha/election-messages.ts';
import { type ElectionThread, type ElectionThreadOptions, startElectionThread } from '../ha/election-thread.ts';
import type { Channel, ElectionConfig, ElectionReport } from '../ha/elections.ts';
import type { RouterCause, Startup } from '../ha/virtual-router.ts';
import { electedAddresses, electionOf, heldShards, linkLocalHop, shardAddresses, vridOf } from './compile-net.ts';

type Plan = Pick<GatewayPlan, 'settings' | 'gateways' | 'shards'>;
type Interfaces = NodeJS.Dict<NetworkInterfaceInfo[]>;
type Became = ElectionReport & { kind: 'became' };

/**
 * By place in a shard's order. A backup waits by its priority (RFC 9568 §6.1, Skew_Time): at 40 ms the first four take over
 * 8 ms one after another, so that the one hears the other.
 */
const PRIORITIES = [250, 200, 150, 100] as const;
export const priorityOf = (place: number): number => PRIORITIES[place] ?? Math.max(1, 103 - place);

/** Below all others, but better than none. */
const DRAINED = 1;

/** Own address on each link, from which it advertises. */
export type Sources = Record<'inside' | 'outside', PerFamily<string>>;

/** Of a device: the first of IPv4, the link-local one of IPv6; none that is a shard's. */
export function sourceOf(interfaces: Interfaces, device: string, isShards: (address: string) => boolean) {
  const source: PerFamily<string> = {};
  for (const { address, family } of interfaces[device] ?? []) {
    const [own] = address.split('%');
    if (own === undefined || isShards(own)) continue;
    if (family === 'IPv4') source[4] ??= own;
    else if (/^fe[89ab]/i.test(own)) source[6] ??= own;
  }
  return source;
}

export interface Standing {
  sources: Sources;
  /** Another gateway could take a shard. */
  fenced: boolean;
  /** It is to leave its shards to others: whoever is there comes before it. */
  drained: boolean;
  /** It has the plan that is in force elsewhere, and the state of the connections. */
  complete(shard: string): boolean;
  start(shard: string, addresses: readonly string[]): Startup;
}

/** One for each shard in which this gateway may advertise. */
export function electionsOf(plan: Plan, self: string, standing: Standing): ElectionConfig[] {
  if (!('pool' in plan.settings) || plan.settings.pool.vrrp === undefined) return [];
  const { pool } = plan.settings;
  const { vrrp } = plan.settings.pool;
  const linkOf = linksOf(pool);
  return Object.entries(plan.shards).flatMap(([id, shard]): ElectionConfig[] => {
    const place = shard.order.indexOf(self);
    const vrid = vridOf(vrrp, id);
    const hops: PerFamily<string[]> = {
      ...(shard.nextHops[4] && { 4: [shard.nextHops[4]] }),
      ...(shard.nextHops[6] && { 6: [linkLocalHop(vrid), shard.nextHops[6]] }),
    };
    const channels = (['inside', 'outside'] as const).flatMap((side) =>
      families.flatMap((family): Channel[] => {
        const source = standing.sources[side][family];
        const addresses = hops[family];
        if (source === undefined || addresses === undefined) return [];
        // The one link of both sides.
        if (side === 'outside' && linkOf.outside === linkOf.inside) return [];
        return [{ link: linkOf[side], family, source, addresses }];
      }),
    );
    if (place < 0 || !channels.some(({ link }) => link === linkOf.inside)) return [];
    const addresses = shardAddresses(pool, id, shard);
    return [
      {
        id,
        vrid,
        priority: standing.drained ? DRAINED : priorityOf(place),
        intervalMs: vrrp.advertIntervalMs,
        failback: vrrp.failback,
        failbackDelayMs: vrrp.failbackDelayMs,
        stateComplete: standing.complete(id),
        channels,
        held: addresses.map(({ dev, address }) => {
          const [bare = '', length] = address.split('/');
          return {
            link: dev === pool.internalInterface ? linkOf.inside : linkOf.outside,
            address: bare,
            prefixLength: Number(length),
          };
        }),
        fenced: standing.fenced,
        needs: [...new Set([linkOf.inside, linkOf.outside])],
        start: standing.start(
          id,
          addresses.map(({ address }) => address.slice(0, address.indexOf('/'))),
        ),
      },
    ];
  });
}

const linksOf = ({ internalInterface, externalInterface }: PoolSettings) => ({
  inside: 'inside',
  outside: externalInterface === internalInterface ? 'inside' : 'outside',
});

export interface MastershipOptions {
  name: string;
  log: Logger;
  /** Whether this gateway may take a shard from one that works: it has the plan of now, and the state of the connections. */
  complete(shard: string): boolean;
  drained(): boolean;
  /** Others are elected than before. */
  onChange(): void;
  /** For tests. */
  start?(options: ElectionThreadOptions): ElectionThread;
  interfaces?(): Interfaces;
}

export interface Takeover {
  shard: string;
  cause: RouterCause;
  /** Since another gateway was heard last; undefined: none was. */
  silentMs: number | undefined;
  /** From then, or from when it became active, until all addresses were there and announced. */
  tookMs: number;
}

/** A plan waits so long at most for addresses; a kernel that is slow with them is no reason to hold it up. */
const ADDRESSES_MS = 2_000;
/** Gateways may come to a plan so long one after another. */
const PATIENCE_MS = 5_000;
/** After the thread has ended. */
const RESTART_MS = 1_000;

export class Mastership {
  /** By state and cause. */
  readonly counts = new Map<string, { state: string; cause: string; count: number }>();
  /** Told of each. */
  onTakeover: (takeover: Takeover) => void = () => {};
  /** That have begun: when another was heard last. */
  readonly #taking = new Map<string, Pick<Became, 'cause' | 'at' | 'heardAt'>>();
  readonly #options: MastershipOptions;
  readonly #elected = new Set<string>();
  #thread: ElectionThread | undefined;
  /** Devices of its links. */
  #links = '';
  #plan: Plan | undefined;
  /** What this gateway held by the plan before, which had no election. */
  #still: string[] | undefined;
  /** Last known: a link that is down has none. */
  #sources: Sources = { inside: {}, outside: {} };
  #restart: NodeJS.Timeout | undefined;
  #fenced = false;
  /** For the machine's addresses, since there may have been others. */
  #looked = false;
  /** What the thread was told last. */
  #told = '';
  #closed = false;

  constructor(options: MastershipOptions) {
    this.#options = options;
  }

  /** Shards for which this gateway is elected. */
  get elected(): ReadonlySet<string> {
    return this.#elected;
  }

  /** Before a plan is applied that has no election: addresses are the plan's from then on. */
  async before(plan: Plan): Promise<void> {
    this.#thread?.busy(true);
    if (this.#thread === undefined || threadLinks(plan) === this.#links) return;
    const elects = threadLinks(plan) !== '';
    // Between devices addresses stay, for the next one to find.
    await this.#end(elects);
  }

  /** A plan is in force, or was refused. */
  applied(): void {
    this.#thread?.busy(false);
  }

  /** A plan is in force. Resolves when what this gateway holds has all its addresses. */
  async follow(plan: Plan): Promise<void> {
    const { settings, gateways, shards } = plan;
    // It is changed in place, and then not in force yet.
    this.#plan = { settings, gateways: { ...gateways }, shards: { ...shards } };
    await this.#configure();
    this.#still =
      electionOf(plan) === undefined && 'pool' in settings ? heldShards(plan, this.#options.name) : undefined;
  }

  /** Whether complete() says something else by now. */
  async look(): Promise<void> {
    await this.#configure();
  }

  async close(): Promise<void> {
    this.#closed = true;
    clearTimeout(this.#restart);
    // Who has nobody to leave a shard to leaves its addresses.
    await this.#end(!this.#fenced);
  }

  async #end(leave: boolean): Promise<void> {
    const thread = this.#thread;
    this.#thread = undefined;
    this.#links = '';
    await thread?.close(leave);
    this.#setElected([]);
  }

  /** `again`: though nothing is other than what was told. */
  async #configure(again = false): Promise<void> {
    const plan = this.#plan;
    const links = plan === undefined ? '' : threadLinks(plan);
    if (this.#closed || plan === undefined || links === '') return;
    const begins = this.#thread === undefined;
    if (begins) this.#begin(links);
    const present = this.#look(plan, begins);
    this.#fenced = Object.keys(plan.gateways).length > 1;
    const configs = electionsOf(plan, this.#options.name, {
      sources: this.#sources,
      fenced: this.#fenced,
      drained: this.#options.drained(),
      complete: this.#options.complete,
      start: (shard, addresses) => this.#startOf(shard, addresses, present),
    });
    const told = JSON.stringify(configs.map(({ start, ...config }) => config));
    if (told === this.#told && !begins && !again) return;
    this.#told = told;
    if (configs.length < Object.keys(plan.shards).length) {
      this.#options.log.warn({ sources: this.#sources }, 'election: the machine has no address to advertise from');
    }
    let timer: NodeJS.Timeout | undefined;
    const late = new Promise<void>((resolve) => {
      timer = setTimeout(resolve, ADDRESSES_MS);
    });
    await Promise.race([this.#thread?.configure(configs), late]);
    clearTimeout(timer);
  }

  /** Where there was no election before, the others know who has a shard, and wait until he begins. */
  #startOf(shard: string, addresses: readonly string[], present: ReadonlySet<string>): Startup {
    if (this.#still?.includes(shard)) return { leads: true };
    if (this.#still !== undefined) return { patienceMs: PATIENCE_MS };
    return { holding: addresses.some((address) => present.has(address)) };
  }

  #configureAgain(): void {
    this.#configure(true).catch((err: unknown) => this.#options.log.error({ err }, 'election'));
  }

  #begin(links: string): void {
    const { start = startElectionThread } = this.#options;
    this.#links = links;
    const thread = start({
      links: JSON.parse(links),
      onReport: (report) => {
        if (this.#thread === thread) this.#hear(report);
      },
      onEnd: (err) => {
        if (this.#thread !== thread) return;
        this.#options.log.error({ err }, 'election: its thread has ended; another begins');
        this.#thread = undefined;
        this.#setElected([]);
        this.#restart = setTimeout(() => this.#configureAgain(), RESTART_MS);
      },
    });
    this.#thread = thread;
  }

  /** For own addresses; returns all that the machine has, of a look that was needed. Where there are many it takes time. */
  #look(plan: Plan, begins: boolean): ReadonlySet<string> {
    const present = new Set<string>();
    if (!('pool' in plan.settings) || (this.#looked && !begins)) return present;
    const { interfaces = networkInterfaces } = this.#options;
    const there = interfaces();
    for (const { address } of Object.values(there).flatMap((all) => all ?? []))
      present.add(address.split('%')[0] ?? '');
    const { internalInterface, externalInterface } = plan.settings.pool;
    const shards = new Set(electedAddresses(plan).map(({ address }) => address.slice(0, address.indexOf('/'))));
    const of = (device: string) => sourceOf(there, device, (address) => shards.has(address));
    this.#sources = {
      inside: { ...this.#sources.inside, ...of(internalInterface) },
      outside: { ...this.#sources.outside, ...of(externalInterface) },
    };
    this.#looked = true;
    return present;
  }

  #hear(report: ThreadReport): void {
    const { log } = this.#options;
    switch (report.kind) {
      case 'became':
        this.#became(report);
        break;
      case 'held':
        this.#held(report);
        break;
      case 'fault':
        log.warn({ shard: report.id, op: report.op, errors: report.errors }, 'election: addresses');
        break;
      case 'link':
        if (report.error !== undefined)
          log.warn({ link: report.link, error: report.error }, 'election: link not usable');
        else {
          // It may have got other addresses meanwhile.
          this.#looked = false;
          this.#configureAgain();
        }
        break;
      case 'carrier':
        log[report.up ? 'info' : 'warn']({ link: report.link, up: report.up }, 'election: carrier');
        if (!report.up) break;
        this.#looked = false;
        this.#configureAgain();
        break;
      case 'trust':
        log.warn({ trusted: report.trusted }, 'election: whether the program answers');
    }
  }

  #held({ id: shard, at }: ElectionReport & { kind: 'held' }): void {
    const began = this.#taking.get(shard);
    if (began === undefined) return;
    this.#taking.delete(shard);
    const { cause, heardAt = began.at } = began;
    const silentMs = began.heardAt === undefined ? undefined : Math.round(began.at - began.heardAt);
    const takeover = { shard, cause, silentMs, tookMs: Math.round(at - heardAt) };
    this.#options.log.info(takeover, 'shard taken over: all its addresses are here');
    this.onTakeover(takeover);
  }

  #became({ id, state, cause, at, heardAt }: Became): void {
    this.#options.log.info({ shard: id, state, cause }, 'election');
    if (state === 'Active') this.#taking.set(id, { cause, at, heardAt });
    else this.#taking.delete(id);
    const key = `${state} ${cause}`;
    this.counts.set(key, { state, cause, count: (this.counts.get(key)?.count ?? 0) + 1 });
    const elected = new Set(this.#elected);
    // One that was stopped has its addresses until it knows.
    if (state === 'Active' || (state === 'Waking' && cause === 'stopped')) elected.add(id);
    else elected.delete(id);
    this.#setElected(elected);
    // Who was stopped holds its state for incomplete until it is told anew.
    if (cause === 'stopped' || cause === 'replaced') this.#configureAgain();
  }

  #setElected(shards: Iterable<string>): void {
    const next = [...shards].sort();
    if (next.join() === [...this.#elected].sort().join()) return;
    this.#elected.clear();
    for (const shard of next) this.#elected.add(shard);
    if (!this.#closed) this.#options.onChange();
  }
}

/** As text; '': the plan has no election. */
function threadLinks({ settings }: Pick<GatewayPlan, 'settings'>): string {
  if (!('pool' in settings) || settings.pool.vrrp === undefined) return '';
  const { internalInterface: inside, externalInterface: outside } = settings.pool;
  return JSON.stringify(inside === outside ? { inside } : { inside, outside });
}
