/**
 * The virtual routers of one gateway: which of them an advertisement is for, and what their actions come to: frames,
 * addresses, announcements, reports. No clock, no socket: both are given (ElectionWorld). All that taking over needs is made before, when a router is configured.
 *
 * Fencing: with `fenced` the addresses have a lifetime in the kernel, and are renewed while this runs: those of a process
 * that hangs or was stopped go by themselves. Without, they stay whatever becomes of the process.
 */

import { type Advert, buildAdvertFrame } from '../wire/vrrp.ts';
import { type HeldAddress, Holding, type HoldingWorld } from './holding.ts';
import {
  type Failback,
  type RouterAction,
  type RouterCause,
  type RouterEvent,
  type RouterState,
  type Startup,
  VirtualRouter,
} from './virtual-router.ts';

export interface Channel {
  link: string;
  family: 4 | 6;
  /** Primary address of the link; of IPv6 a link-local one. */
  source: string;
  /** What advertisements list. */
  addresses: string[];
}

export interface ElectionConfig {
  /** Names it in reports: the shard. */
  id: string;
  vrid: number;
  /** 0: unfit (virtual-router.ts). */
  priority: number;
  /** A multiple of 10. */
  intervalMs: number;
  failback: Failback;
  failbackDelayMs: number;
  /** Absent: nobody follows the state of the connections. */
  stateComplete?: boolean;
  /** In the order in which they decide among equals: the same on all gateways. */
  channels: Channel[];
  /** What the active router has. */
  held: HeldAddress[];
  fenced: boolean;
  /** Links without which it is unfit, if it is fenced: whoever has no other gateway to leave it to goes on. Absent: none. */
  needs?: readonly string[];
  /** Of the start alone. */
  start?: Startup;
  /** Over IPv4 checksums without a pseudo header, as a foreign router may want them (wire/vrrp.ts). */
  plainChecksum?: boolean;
}

export interface ElectionWorld extends HoldingWorld {
  report(report: ElectionReport): void;
}

export type ElectionReport =
  | {
      kind: 'became';
      id: string;
      state: RouterState;
      cause: RouterCause;
      at: number;
      /** When another router was heard last; undefined: never. */
      heardAt: number | undefined;
    }
  /** All addresses are there and announced, after it became active. */
  | { kind: 'held'; id: string; at: number }
  /** Addresses could not be added or removed. */
  | { kind: 'fault'; id: string; op: 'add' | 'remove'; errors: string[] };

interface Entry {
  config: ElectionConfig;
  router: VirtualRouter;
  /** By channel; undefined: its link is not there. */
  adverts: (Uint8Array | undefined)[];
  resignations: (Uint8Array | undefined)[];
  holding: Holding;
  /** It has taken over, and not yet told that it holds all. */
  taking: boolean;
  servedAt: number;
  heardAt: number | undefined;
}

const NEVER = Number.POSITIVE_INFINITY;

export class Elections {
  readonly #world: ElectionWorld;
  readonly #entries = new Map<string, Entry>();
  readonly #listeners = new Map<string, { entry: Entry; channel: number }>();
  #trusted = true;
  #cut: ReadonlySet<string> = new Set();

  constructor(world: ElectionWorld) {
    this.#world = world;
  }

  /** The whole of it: what is not among them ends. */
  configure(configs: readonly ElectionConfig[]): void {
    const wanted = new Set(configs.map(({ id }) => id));
    for (const id of [...this.#entries.keys()]) if (!wanted.has(id)) this.#end(id);
    for (const config of configs) {
      const entry = this.#entries.get(config.id);
      if (entry === undefined) this.#begin(config);
      else this.#change(entry, config);
    }
    this.#listen();
  }

  /** False: the advertisement is of a virtual router that is not ours. */
  hear(link: string, advert: Advert): boolean {
    const listener = this.#listeners.get(listenerKey(link, advert.family, advert.vrid));
    if (listener === undefined) return false;
    const { entry, channel } = listener;
    const { source, priority } = advert;
    const now = this.#world.now();
    // Noted after what it means: a report tells when another was heard before that.
    this.#feed(entry, { kind: 'advert', channel, source, priority, intervalMs: advert.interval * 10 }, now);
    if (source !== entry.config.channels[channel]?.source) entry.heardAt = now;
    return true;
  }

  /** What is due by now: all timers, and one slice of what there is to do with addresses. */
  tick(): void {
    const now = this.#world.now();
    for (const entry of this.#entries.values()) {
      if (now >= (entry.router.due ?? NEVER)) this.#feed(entry, { kind: 'timer' }, now);
    }
    const next = this.#world.idle() ? this.#next(now) : undefined;
    if (next !== undefined) {
      next.servedAt = now;
      next.holding.tick();
    }
    for (const entry of this.#entries.values()) {
      if (!entry.taking || !entry.holding.settled) continue;
      entry.taking = false;
      this.#world.report({ kind: 'held', id: entry.config.id, at: this.#world.now() });
    }
  }

  #next(now: number): Entry | undefined {
    let next: Entry | undefined;
    for (const entry of this.#entries.values()) {
      if (entry.router.state !== 'Active' || entry.holding.due > now) continue;
      if (next === undefined || isBefore(entry, next)) next = entry;
    }
    return next;
  }

  /** When tick() has something to do; before that, when the world becomes idle. */
  get due(): number {
    let due = this.timerDue;
    if (!this.#world.idle()) return due;
    for (const { router, holding } of this.#entries.values()) {
      if (router.state === 'Active') due = Math.min(due, holding.due);
    }
    return due;
  }

  /** When the next timer of a router is due: what is left undone meanwhile is not late. */
  get timerDue(): number {
    return Math.min(NEVER, ...[...this.#entries.values()].map(({ router }) => router.due ?? NEVER));
  }

  /** Whether the rest of the program answers: if not, fenced routers give up. */
  trust(trusted: boolean): void {
    if (trusted === this.#trusted) return;
    this.#trusted = trusted;
    for (const entry of this.#entries.values()) this.#change(entry, entry.config, false);
  }

  /** Links that have no carrier now. */
  cut(links: ReadonlySet<string>): void {
    const before = this.#cut;
    const changed = ({ config: { needs = [] } }: Entry): boolean =>
      needs.some((link) => links.has(link) !== before.has(link));
    this.#cut = links;
    for (const entry of this.#entries.values()) if (changed(entry)) this.#change(entry, entry.config, false);
  }

  /** Whoever is active has all its addresses. */
  get settled(): boolean {
    for (const { router, holding } of this.#entries.values()) {
      if (router.state === 'Active' && !holding.settled) return false;
    }
    return true;
  }

  /** A link is there again, perhaps with another MAC. */
  rebuild(): void {
    for (const entry of this.#entries.values()) {
      this.#build(entry);
      entry.holding.prepare();
      // Addresses went with the device that was there before.
      if (entry.router.state === 'Active') entry.holding.take();
    }
  }

  /** `leave`: says nothing and removes nothing, for who comes after. */
  close(leave: boolean): void {
    if (!leave) for (const id of [...this.#entries.keys()]) this.#end(id);
    this.#entries.clear();
    this.#listeners.clear();
  }

  #settingsOf(config: ElectionConfig) {
    const { priority, intervalMs, failback, failbackDelayMs, fenced, channels, stateComplete, needs = [] } = config;
    const fit = this.#trusted && !needs.some((link) => this.#cut.has(link));
    return {
      priority: fenced && !fit ? 0 : priority,
      intervalMs,
      failback,
      failbackDelayMs,
      sources: channels.map(({ source }) => source),
      stateTracked: stateComplete !== undefined,
    };
  }

  #begin(config: ElectionConfig): void {
    const entry: Entry = {
      config,
      router: new VirtualRouter(this.#settingsOf(config)),
      adverts: [],
      resignations: [],
      holding: new Holding(this.#world, (op, errors) =>
        this.#world.report({ kind: 'fault', id: config.id, op, errors }),
      ),
      taking: false,
      servedAt: Number.NEGATIVE_INFINITY,
      heardAt: undefined,
    };
    this.#entries.set(config.id, entry);
    this.#build(entry);
    entry.holding.set(config.held, config.fenced, false);
    this.#feed(entry, { kind: 'startup', ...config.start });
    this.#tellState(entry);
  }

  #change(entry: Entry, config: ElectionConfig, tell = true): void {
    const { state } = entry.router;
    entry.config = config;
    this.#build(entry);
    entry.holding.set(config.held, config.fenced, state === 'Active' || state === 'Waking');
    this.#feed(entry, { kind: 'settings', settings: this.#settingsOf(config) });
    if (tell) this.#tellState(entry);
  }

  #tellState(entry: Entry): void {
    const complete = entry.config.stateComplete;
    if (complete === undefined) return;
    this.#feed(entry, { kind: 'state', complete });
  }

  #end(id: string): void {
    const entry = this.#entries.get(id);
    if (entry === undefined) return;
    this.#feed(entry, { kind: 'shutdown' });
    this.#entries.delete(id);
  }

  #listen(): void {
    this.#listeners.clear();
    for (const entry of this.#entries.values()) {
      for (const [channel, { link, family }] of entry.config.channels.entries()) {
        this.#listeners.set(listenerKey(link, family, entry.config.vrid), { entry, channel });
      }
    }
  }

  #build(entry: Entry): void {
    const { config } = entry;
    const { priority } = this.#settingsOf(config);
    const frames = (priority: number) =>
      config.channels.map(({ link, family, source, addresses }) => {
        const mac = this.#world.mac(link);
        if (mac === undefined) return undefined;
        const { vrid, intervalMs, plainChecksum = false } = config;
        const interval = Math.round(intervalMs / 10);
        return buildAdvertFrame(mac, { family, source, vrid, priority, interval, addresses, plainChecksum });
      });
    entry.adverts = frames(priority);
    entry.resignations = frames(0);
  }

  #feed(entry: Entry, event: RouterEvent, now = this.#world.now()): void {
    const actions = entry.router.handle(event, now);
    const became: (RouterAction & { kind: 'became' })[] = [];
    for (const action of actions) {
      switch (action.kind) {
        case 'became':
          became.push(action);
          break;
        case 'advertise':
          this.#advertise(entry, action.priority, action.channel);
          break;
        case 'take-over':
          entry.holding.take();
          entry.taking = true;
          break;
        case 'announce':
          entry.holding.announce();
          break;
        case 'give-up':
          entry.holding.release();
          entry.taking = false;
      }
    }
    for (const { state, cause } of became) {
      this.#world.report({
        kind: 'became',
        id: entry.config.id,
        state,
        cause,
        at: now,
        heardAt: entry.heardAt,
      });
    }
  }

  #advertise(entry: Entry, priority: number, only: number | undefined): void {
    const frames = priority === 0 ? entry.resignations : entry.adverts;
    for (const [channel, frame] of frames.entries()) {
      const link = entry.config.channels[channel]?.link;
      if (frame === undefined || link === undefined || (only !== undefined && only !== channel)) continue;
      this.#world.send(link, frame);
    }
  }
}

const listenerKey = (link: string, family: 4 | 6, vrid: number): string => `${link} ${family} ${vrid}`;
/** Whose turn it is: who takes over, then who has waited longest. */
const isBefore = (a: Entry, b: Entry): boolean => (a.taking === b.taking ? a.servedAt < b.servedAt : a.taking);
