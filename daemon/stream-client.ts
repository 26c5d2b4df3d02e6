/**
 * A gateway's or node's end of the plan stream: keeps a copy of its plan up to date and hands each new plan to the program
 * (design §1, "plan"). Messages: api/plan-stream.ts. Plans come from the controller that leads, whichever was the last to
 * say so; a stream to another, which stands by, is kept beside it, so that the client is there when that one leads. It
 * never gives up: the last plan stays in force while no controller is there. A plan that the program could not apply is
 * reported and tried again. Left out: a connection (stream-link.ts), and the saved plan on disk (saved-plan.ts).
 */
import { emptyGatewayPlan, type GatewayPlan, type PlanOf, type PlanRole } from '../api/plan.ts';
import { Changes, changePlan, checkDelta, diffPlan, type PlanDelta } from '../api/plan-delta.ts';
import { Assembly, type Update } from '../api/plan-parts.ts';
import {
  type ClientMessage,
  type HelloMessage,
  type HitsMessage,
  holdsMessages,
  MAX_ERROR,
  MAX_LINKS,
  MAX_UPDATE,
  PLAN_STREAM_VERSION,
  parseServerMessage,
} from '../api/plan-stream.ts';
import type { Logger } from './log.ts';
import { ConnectedAlready, Link } from './stream-link.ts';

export interface PlanClientOptions<R extends PlanRole> {
  role: R;
  name: string;
  /** `https://10.0.0.10:7790` */
  url: string;
  /** Directory with `ca.crt`, `tls.crt`, `tls.key`. */
  certs: string;
  /** The machine's own addresses, canonical; the controller puts them into other plans. */
  addresses: string[];
  /** What the program holds from its last run and has in force. The plan is the client's from now on, see onPlan. */
  saved?: { generation: number; hash: string; plan: PlanOf[R] };
  /**
   * Called for one plan at a time; what arrives meanwhile is coalesced to the newest. Throwing is a nack.
   * `plan` is the client's own and mostly the same object each time: it is changed in place, but never while onPlan
   * runs, nor outside of `inTurn`. Its values are never changed, only replaced.
   * `delta` leads to it from the plan that onPlan was given last and did not throw (or from `saved`); it may be empty,
   * where only the generation is new. It is absent where that is not known: the first plan, or after a failure.
   */
  onPlan(plan: PlanOf[R], generation: number, delta: PlanDelta | undefined, hash: string): Promise<void>;
  /** Runs `work`, in which the plan is changed and given to onPlan, while nothing else uses the plan. */
  inTurn?(work: () => Promise<void>): Promise<void>;
  /** `connected`: to one that leads, another than before; `waiting`: only to such as stand by. */
  onState?(state: 'connected' | 'waiting' | 'disconnected'): void;
  log: Logger;
  /** Randomness of the back-off, 0 to 1. */
  random?(): number;
}

export interface PlanClient {
  /** Sends without waiting; false: not connected, or much is on its way already. */
  report(message: HitsMessage): boolean;
  close(): Promise<void>;
}

/** To the next attempt, milliseconds, longer each time: without any connection, */
const LOST = { first: 50, last: 2_000 };
/** with one to a controller that stands by, where another may lead: at once, since it was found by chance, */
const FOUND = { first: 100, last: 5_000 };
/** or when the leader was lost, and this one is the most likely to be the next, */
const HEIR = { first: 2_000, last: 5_000 };
/** and with the leader alone. Each costs the controller a handshake, and there may be no second. */
const SPARE = { first: 1_000, last: 30_000 };
const SLOWER = 1.5;
/** Bytes that wait for a slow controller before reports are held back; acknowledgements never are. */
const REPORTS_WAITING = 1024 * 1024;
/** A plan that could not be applied is tried again, ever more seldom. */
const RETRY_FIRST = 1_000;
const RETRY_LAST = 30_000;

/** What came and was not given to the program yet; a snapshot stands for all that came before it. */
interface Waiting<R extends PlanRole> {
  snapshot?: PlanOf[R];
  changes: Changes;
}

export function startPlanClient<R extends PlanRole>(options: PlanClientOptions<R>): PlanClient {
  const client = new Client(options);
  client.connect();
  return { report: (message) => client.report(message), close: () => client.close() };
}

class Client<R extends PlanRole> {
  readonly #options: PlanClientOptions<R>;
  readonly #log: Logger;
  /** What the program knows: what it was given last, or will be in this turn. */
  #plan: PlanOf[R] | undefined;
  #waiting: Waiting<R> | undefined;
  /** Of #plan with what waits: the plan as the controller knows that we know it. */
  #generation = 0;
  #hash = '';
  /** onPlan was given #plan, and did not throw. */
  #inForce = false;
  /** The program was told of #plan's generation, or of an older one of the same plan. */
  #told = false;
  /** A generation has not been acknowledged yet. */
  #owed = false;
  #applying: Promise<void> | undefined;
  #retryTimer: NodeJS.Timeout | undefined;
  #failures = 0;
  /** Those that are up. */
  readonly #links = new Set<Link>();
  #attempt: Link | undefined;
  /** Whose plans count. */
  #leader: Link | undefined;
  #assembly: Assembly<PlanOf[R]>;
  #turn = 0;
  #connectTimer: NodeJS.Timeout | undefined;
  #backoff = LOST.first;
  #pace = FOUND;
  #pause = FOUND.first;
  #closed = false;

  constructor(options: PlanClientOptions<R>) {
    this.#options = options;
    this.#log = options.log.child({ controller: options.url });
    this.#assembly = new Assembly(options.role, MAX_UPDATE);
    if (options.saved !== undefined) {
      this.#plan = options.saved.plan;
      this.#generation = options.saved.generation;
      this.#hash = options.saved.hash;
      this.#inForce = true;
    }
  }

  connect(): void {
    const { url, certs } = this.#options;
    this.#attempt = new Link({
      url,
      certs,
      turn: this.#turn++,
      hello: () => this.#hello(),
      onUp: (link) => this.#up(link),
      onLine: (link, line) => this.#read(link, line),
      onEnd: (link, failure) => this.#ended(link, failure),
    });
  }

  /** Of the attempt, or of a connection that is asked for it again. */
  #hello(link = this.#attempt): HelloMessage {
    const { role, name, addresses } = this.#options;
    const held = { generation: this.#generation, hash: this.#hash };
    const others = [...this.#links].filter((other) => other !== link).map(({ id }) => id);
    const links = link === undefined ? {} : { link: link.id, others: others.slice(-MAX_LINKS) };
    return { type: 'hello', version: PLAN_STREAM_VERSION, role, name, addresses, ...held, ...links };
  }

  #up(link: Link): void {
    this.#attempt = undefined;
    this.#links.add(link);
    this.#log.info({ standing: link.standing }, 'connected');
    if (link.standing !== 'stands-by') {
      // The leader before may have sent another plan since: this one would take it for what the hello said.
      const { generation, hash } = link.hello ?? {};
      if (generation !== this.#generation || hash !== this.#hash) {
        link.end(new Error('another plan came meanwhile'));
        return;
      }
      this.#follow(link);
    } else if (this.#leader === undefined) {
      this.#setPace(FOUND);
      if (this.#links.size === 1) this.#options.onState?.('waiting');
    }
    this.#seek();
  }

  /** From now on plans are its; it knows what we hold. */
  #follow(link: Link): void {
    const before = this.#leader;
    this.#leader = link;
    this.#assembly = new Assembly(this.#options.role, MAX_UPDATE);
    before?.end(new Error('another controller leads'));
    this.#setPace(SPARE);
    if (this.#options.role === 'gateway') {
      for (const message of holdsMessages((this.#plan ?? emptyGatewayPlan()) as GatewayPlan)) link.send(message);
    }
    this.#options.onState?.('connected');
  }

  #ended(link: Link, failure: unknown): void {
    const wasUp = this.#links.delete(link);
    const led = this.#leader === link;
    if (led) this.#leader = undefined;
    if (this.#attempt === link) this.#attempt = undefined;
    const lost = this.#links.size === 0;
    if (link.lasted) this.#backoff = LOST.first;
    if (wasUp && this.#leader === undefined) {
      if (lost) this.#options.onState?.('disconnected');
      else if (led) this.#options.onState?.('waiting');
      if (led) this.#setPace(HEIR);
    } else if (wasUp) this.#setPace(SPARE);
    if (this.#closed) return;
    const reason =
      failure instanceof Error ? failure.message || String((failure as NodeJS.ErrnoException).code) : 'closed';
    const againInMs = this.#seek();
    // With a controller at hand an attempt to find another is nobody's trouble.
    const level = wasUp || lost ? 'warn' : 'debug';
    if (!(failure instanceof ConnectedAlready)) {
      this.#log[level]({ reason, againInMs, left: this.#links.size }, wasUp || lost ? 'disconnected' : 'no other');
    }
  }

  #setPace(pace: typeof SPARE): void {
    this.#pace = pace;
    this.#pause = pace.first;
  }

  /** Has another attempt made, if one is wanted; returns in how many milliseconds. */
  #seek(): number | undefined {
    clearTimeout(this.#connectTimer);
    if (this.#closed || this.#attempt !== undefined) return undefined;
    const random = (this.#options.random ?? Math.random)();
    let wait: number;
    if (this.#links.size === 0) {
      // Full jitter, so that a thousand nodes do not come back at one moment.
      wait = LOST.first / 2 + random * this.#backoff;
      this.#backoff = Math.min(this.#backoff * 2, LOST.last);
    } else {
      const enough = this.#links.size > 1 || this.#leader?.standing === 'alone';
      if (this.#leader !== undefined && enough) return undefined;
      wait = this.#pause / 2 + random * this.#pause;
      this.#pause = Math.min(this.#pause * SLOWER, this.#pace.last);
    }
    this.#connectTimer = setTimeout(() => this.connect(), wait);
    return Math.round(wait);
  }

  #read(link: Link, line: string): void {
    const message = parseServerMessage(line);
    if (!message.ok) {
      link.end(new Error(`a message ${message.error}`));
      return;
    }
    if (message.value.type === 'lead' && link !== this.#leader) {
      // What the leader before sends is not read any more, so that this is what we hold.
      const before = this.#leader;
      this.#leader = undefined;
      before?.end(new Error('another controller leads'));
      link.standing = 'leads';
      link.send(this.#hello(link));
      this.#log.info('a controller that stood by leads');
      this.#follow(link);
      this.#seek();
      return;
    }
    // No plan of one that does not lead is ever in force.
    if (link !== this.#leader) {
      link.end(new Error('a plan of a controller that stands by'));
      return;
    }
    const update = this.#assembly.push(message.value, line.length, this.#plan);
    if (!update.ok) link.end(new Error(`a message ${update.error}`));
    else if (update.value !== undefined) this.#receive(update.value);
  }

  #receive(update: Update<PlanOf[R]>): void {
    switch (update.type) {
      case 'snapshot':
        this.#waiting = { snapshot: update.plan, changes: new Changes() };
        break;
      case 'delta': {
        const misfit = this.#take(update.from, update.deltas);
        if (misfit === undefined) break;
        this.#log.warn({ reason: misfit }, 'a delta does not fit, asking for a snapshot');
        this.#send({ type: 'resync' });
        return;
      }
      case 'keep':
        if (this.#plan !== undefined || this.#waiting !== undefined) break;
        this.#send({ type: 'resync' });
        return;
    }
    this.#generation = update.generation;
    if (update.type !== 'keep') this.#hash = update.hash;
    this.#owed = true;
    this.#failures = 0;
    this.#apply();
  }

  /** Keeps deltas, one after another, until the program's turn; or says why they do not fit, and keeps none. */
  #take(from: number, deltas: readonly PlanDelta[]): string | undefined {
    const { snapshot, changes = new Changes() } = this.#waiting ?? {};
    const base = snapshot ?? this.#plan;
    if (base === undefined || from !== this.#generation) {
      return `holds generation ${base === undefined ? 0 : this.#generation}, not ${from}`;
    }
    const trial = new Changes(changes);
    for (const delta of deltas) {
      const checked = checkDelta(base, delta, trial);
      if (!checked.ok) return checked.error;
      trial.add(delta);
    }
    for (const delta of deltas) {
      // The program does not know the snapshot yet.
      if (snapshot !== undefined) changePlan(snapshot, delta);
      else changes.add(delta);
    }
    this.#waiting = { ...(snapshot !== undefined && { snapshot }), changes };
    return undefined;
  }

  /** Applies what came, unless it is being done. What arrives meanwhile is taken up afterwards, all of it at once. */
  #apply(): void {
    clearTimeout(this.#retryTimer);
    if (this.#applying !== undefined || this.#closed) return;
    const inTurn = this.#options.inTurn ?? ((work) => work());
    const all = async (): Promise<void> => {
      while (this.#owed && !this.#closed) {
        let failed = false;
        await inTurn(async () => {
          if (!this.#closed) failed = !(await this.#applyOnce());
        });
        // What came meanwhile may do better; the same again would not.
        if (failed && this.#waiting === undefined) return this.#retryLater();
      }
    };
    this.#applying = all().finally(() => {
      this.#applying = undefined;
    });
  }

  /** Brings #plan up to date, gives it to the program and answers; false: it could not be applied. */
  async #applyOnce(): Promise<boolean> {
    const [generation, hash] = [this.#generation, this.#hash];
    const delta = this.#update();
    const known = this.#inForce;
    this.#owed = false;
    try {
      // In force already, under an older generation: nothing to do but to say so.
      if (!known || !this.#told || delta !== undefined) {
        this.#inForce = false;
        const change = known ? (delta ?? { set: {}, delete: {} }) : undefined;
        await this.#options.onPlan(this.#plan as PlanOf[R], generation, change, hash);
      }
      this.#inForce = true;
      this.#told = true;
      this.#failures = 0;
      this.#send({ type: 'ack', generation });
      return true;
    } catch (error) {
      // What is in force now is unknown: part of the plan may be.
      this.#inForce = false;
      this.#owed = true;
      const text = error instanceof Error ? error.message : String(error);
      this.#log.error({ generation, reason: text }, 'a plan could not be applied');
      this.#send({ type: 'nack', generation, error: text.slice(0, MAX_ERROR) });
      return false;
    }
  }

  /** Makes what waits a change of #plan and returns it, if something waited; a snapshot too is mostly a small one. */
  #update(): PlanDelta | undefined {
    const { snapshot, changes } = this.#waiting ?? {};
    this.#waiting = undefined;
    if (snapshot !== undefined && !sameKeys(this.#plan, snapshot)) {
      this.#plan = snapshot;
      this.#inForce = false;
      return undefined;
    }
    if (changes === undefined || this.#plan === undefined) return undefined;
    const delta = snapshot === undefined ? changes.from(this.#plan) : diffPlan(this.#plan, snapshot);
    changePlan(this.#plan, delta);
    return delta;
  }

  #retryLater(): void {
    if (this.#closed) return;
    const wait = Math.min(RETRY_FIRST * 2 ** this.#failures, RETRY_LAST);
    this.#failures++;
    this.#retryTimer = setTimeout(() => this.#apply(), wait);
  }

  report(message: HitsMessage): boolean {
    if (this.#leader === undefined || this.#leader.waiting > REPORTS_WAITING) return false;
    this.#send(message);
    return true;
  }

  #send(message: ClientMessage): void {
    this.#leader?.send(message);
  }

  async close(): Promise<void> {
    this.#closed = true;
    clearTimeout(this.#connectTimer);
    clearTimeout(this.#retryTimer);
    for (const link of [...this.#links, this.#attempt]) link?.end(undefined);
    // Nobody may be half way through the kernel's tables when this returns.
    await this.#applying;
  }
}

const sameKeys = (a: object | undefined, b: object): boolean =>
  a !== undefined && Object.keys(a).sort().join() === Object.keys(b).sort().join();
