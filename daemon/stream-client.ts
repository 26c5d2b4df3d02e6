/**
 * A gateway's or node's end of the plan stream: connects to the controller over mutual TLS, keeps a copy of its plan
 * up to date and hands each new plan to the program (design §1, "plan"). Messages: api/plan-stream.ts.
 * It never gives up: the last plan stays in force while the controller is away. A plan that the program could not
 * apply is reported and tried again. Left out: the saved plan on disk (saved-plan.ts), which the program writes.
 */
import { type ClientHttp2Session, type ClientHttp2Stream, connect } from 'node:http2';
import { connect as connectTls, type TLSSocket } from 'node:tls';
import { CERT_URI_PREFIX, PORT_PLAN_STREAM } from '../api/names.ts';
import { emptyGatewayPlan, type GatewayPlan, type PlanOf, type PlanRole } from '../api/plan.ts';
import { Changes, changePlan, checkDelta, diffPlan, type PlanDelta } from '../api/plan-delta.ts';
import { Assembly, type Update } from '../api/plan-parts.ts';
import {
  type ClientMessage,
  formatMessage,
  type HitsMessage,
  holdsMessages,
  LineReader,
  MAX_ERROR,
  MAX_SERVER_LINE,
  MAX_UPDATE,
  PLAN_STREAM_PATH,
  PLAN_STREAM_VERSION,
  parseServerMessage,
} from '../api/plan-stream.ts';
import { hasUri, tlsOptions } from './certs.ts';
import { watchPeer } from './heartbeat.ts';
import type { Logger } from './log.ts';

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
  onState?(state: 'connected' | 'disconnected'): void;
  log: Logger;
  /** Randomness of the back-off, 0 to 1. */
  random?(): number;
}

export interface PlanClient {
  /** Sends without waiting; false: not connected, or much is on its way already. */
  report(message: HitsMessage): boolean;
  close(): Promise<void>;
}

const BACKOFF_FIRST = 50;
const BACKOFF_LAST = 2_000;
/** A connection that lasted this long was good, so that the next attempt comes soon. */
const GOOD_CONNECTION = 2_000;
const CONNECT_TIMEOUT = 5_000;
/** Bytes that the server may send ahead; the default of 64 KiB makes a snapshot slow over a long way. */
const STREAM_WINDOW = 4 * 1024 * 1024;
const SESSION_WINDOW = 16 * 1024 * 1024;
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
  /** Ends the connection or the attempt. */
  #finish: ((failure: unknown) => void) | undefined;
  #stream: ClientHttp2Stream | undefined;
  #connected = false;
  #connectTimer: NodeJS.Timeout | undefined;
  #backoff = BACKOFF_FIRST;
  #closed = false;

  constructor(options: PlanClientOptions<R>) {
    this.#options = options;
    this.#log = options.log.child({ controller: options.url });
    if (options.saved !== undefined) {
      this.#plan = options.saved.plan;
      this.#generation = options.saved.generation;
      this.#hash = options.saved.hash;
      this.#inForce = true;
    }
  }

  connect(): void {
    let socket: TLSSocket;
    let session: ClientHttp2Session;
    try {
      const url = new URL(this.#options.url);
      socket = connectTls({
        ...tlsOptions(this.#options.certs),
        host: url.hostname.replace(/^\[(.*)\]$/, '$1'),
        port: Number(url.port || PORT_PLAN_STREAM),
        ALPNProtocols: ['h2'],
        // The URI says who it is; the CA is ours alone, so the address does not matter.
        checkServerIdentity: (_host, certificate) =>
          hasUri(certificate, `${CERT_URI_PREFIX}controller`) ? undefined : new Error('the server is no controller'),
      });
      session = connect(url, {
        createConnection: () => socket,
        settings: { enablePush: false, initialWindowSize: STREAM_WINDOW },
        maxSessionMemory: 1024,
      });
    } catch (error) {
      this.#reconnect(error);
      return;
    }
    // Node 20 emits no 'close' on a session whose peer refused the certificate by a TLS 1.3 alert after the handshake,
    // nor does it close the socket. So whichever of the three says first that it is over ends all of them.
    let over = false;
    let since = Number.POSITIVE_INFINITY;
    const finish = (failure: unknown): void => {
      if (over) return;
      over = true;
      clearTimeout(timer);
      session.destroy();
      socket.destroy();
      if (performance.now() - since > GOOD_CONNECTION) this.#backoff = BACKOFF_FIRST;
      this.#finish = undefined;
      this.#reconnect(failure);
    };
    this.#finish = finish;
    const timer = setTimeout(() => finish(new Error('no answer')), CONNECT_TIMEOUT);
    for (const part of [socket, session]) {
      part.on('error', finish);
      part.once('close', () => finish(undefined));
    }
    session.once('connect', () => {
      session.setLocalWindowSize(SESSION_WINDOW);
      const stream = session.request({ ':method': 'POST', ':path': PLAN_STREAM_PATH }, { endStream: false });
      stream.on('error', finish);
      stream.once('close', () => finish(undefined));
      stream.once('response', (headers) => {
        if (headers[':status'] !== 200) {
          finish(new Error(`refused: ${String(headers['x-sluice-reason'] ?? headers[':status'])}`));
          return;
        }
        clearTimeout(timer);
        since = performance.now();
        this.#connected = true;
        this.#log.info('connected');
        this.#options.onState?.('connected');
      });
      this.#stream = stream;
      this.#hello();
      this.#read(stream, finish);
      watchPeer(session);
    });
  }

  #hello(): void {
    const { role, name, addresses } = this.#options;
    const held = { generation: this.#generation, hash: this.#hash };
    this.#send({ type: 'hello', version: PLAN_STREAM_VERSION, role, name, addresses, ...held });
    if (role !== 'gateway') return;
    for (const message of holdsMessages((this.#plan ?? emptyGatewayPlan()) as GatewayPlan)) this.#send(message);
  }

  #reconnect(failure: unknown): void {
    this.#stream = undefined;
    const reason =
      failure instanceof Error ? failure.message || String((failure as NodeJS.ErrnoException).code) : 'closed';
    if (this.#connected) {
      this.#connected = false;
      this.#options.onState?.('disconnected');
    }
    if (this.#closed) return;
    // Full jitter, so that a thousand nodes do not come back at one moment.
    const wait = BACKOFF_FIRST / 2 + (this.#options.random ?? Math.random)() * this.#backoff;
    this.#backoff = Math.min(this.#backoff * 2, BACKOFF_LAST);
    this.#log.warn({ reason, againInMs: Math.round(wait) }, 'disconnected');
    this.#connectTimer = setTimeout(() => this.connect(), wait);
  }

  #read(stream: ClientHttp2Stream, finish: (failure: unknown) => void): void {
    const reader = new LineReader(MAX_SERVER_LINE);
    const assembly = new Assembly<PlanOf[R]>(this.#options.role, MAX_UPDATE);
    stream.on('data', (chunk: Uint8Array) => {
      if (this.#stream !== stream) return;
      const lines = reader.push(chunk);
      if (!lines.ok) return finish(new Error(lines.error));
      for (const line of lines.value) {
        const message = parseServerMessage(line);
        if (!message.ok) return finish(new Error(`a message ${message.error}`));
        const update = assembly.push(message.value, line.length, this.#plan);
        if (!update.ok) return finish(new Error(`a message ${update.error}`));
        if (update.value !== undefined) this.#receive(update.value);
      }
    });
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
    if (!this.#connected || (this.#stream?.writableLength ?? 0) > REPORTS_WAITING) return false;
    this.#send(message);
    return true;
  }

  #send(message: ClientMessage): void {
    if (this.#stream !== undefined && !this.#stream.destroyed) this.#stream.write(formatMessage(message));
  }

  async close(): Promise<void> {
    this.#closed = true;
    clearTimeout(this.#connectTimer);
    clearTimeout(this.#retryTimer);
    this.#finish?.(undefined);
    // Nobody may be half way through the kernel's tables when this returns.
    await this.#applying;
  }
}

const sameKeys = (a: object | undefined, b: object): boolean =>
  a !== undefined && Object.keys(a).sort().join() === Object.keys(b).sort().join();
