/**
 * One connection of a gateway or node to a controller: a stream of lines both ways over HTTP/2 and mutual TLS. It says
 * hello, learns what the controller is (api/plan-stream.ts, Standing), and ends once. Which connections there are, and
 * whose plan counts: stream-client.ts.
 */
import { randomBytes } from 'node:crypto';
import { lookup } from 'node:dns';
import { type ClientHttp2Session, type ClientHttp2Stream, connect } from 'node:http2';
import type { LookupFunction } from 'node:net';
import { connect as connectTls, type TLSSocket } from 'node:tls';
import { CERT_URI_PREFIX, PORT_PLAN_STREAM } from '../api/names.ts';
import {
  type ClientMessage,
  CONNECTED_ALREADY,
  formatMessage,
  type HelloMessage,
  LineReader,
  MAX_SERVER_LINE,
  PLAN_STREAM_PATH,
  STANDING_HEADER,
  type Standing,
  standingOf,
} from '../api/plan-stream.ts';
import { hasUri, tlsOptions } from './certs.ts';
import { watchPeer } from './heartbeat.ts';

const CONNECT_TIMEOUT = 5_000;
/** A connection that lasted this long was good. */
const GOOD_CONNECTION = 2_000;
/** Bytes that the server may send ahead; the default of 64 KiB makes a snapshot slow over a long way. */
const STREAM_WINDOW = 4 * 1024 * 1024;
const SESSION_WINDOW = 16 * 1024 * 1024;

export interface LinkOptions {
  url: string;
  /** Directory with `ca.crt`, `tls.crt`, `tls.key`. */
  certs: string;
  /** Of several addresses of the name another comes first with each turn. */
  turn: number;
  /** Asked when it is sent. */
  hello(): HelloMessage;
  /** The controller has taken the hello: `standing` is known. */
  onUp(link: Link): void;
  onLine(link: Link, line: string): void;
  /** Once, and nothing comes after it. Never from within the constructor. */
  onEnd(link: Link, failure: unknown): void;
}

/** The controller has another connection of ours. */
export class ConnectedAlready extends Error {}

export class Link {
  readonly id = randomBytes(8).toString('hex');
  /** Undefined until it is up. */
  standing: Standing | undefined;
  /** As it was sent. */
  hello: HelloMessage | undefined;
  readonly #options: LinkOptions;
  #socket: TLSSocket | undefined;
  #session: ClientHttp2Session | undefined;
  #stream: ClientHttp2Stream | undefined;
  #timer: NodeJS.Timeout | undefined;
  #since = Number.POSITIVE_INFINITY;
  #over = false;

  constructor(options: LinkOptions) {
    this.#options = options;
    try {
      this.#connect();
    } catch (error) {
      setImmediate(() => this.end(error));
    }
  }

  /** Bytes that wait to be sent. */
  get waiting(): number {
    return this.#stream?.writableLength ?? 0;
  }

  get lasted(): boolean {
    return performance.now() - this.#since > GOOD_CONNECTION;
  }

  send(message: ClientMessage): void {
    if (this.#stream !== undefined && !this.#stream.destroyed) this.#stream.write(formatMessage(message));
  }

  end(failure: unknown): void {
    if (this.#over) return;
    this.#over = true;
    clearTimeout(this.#timer);
    this.#session?.destroy();
    this.#socket?.destroy();
    this.#options.onEnd(this, failure);
  }

  #connect(): void {
    const url = new URL(this.#options.url);
    const finish = (failure: unknown): void => this.end(failure);
    const socket = connectTls({
      ...tlsOptions(this.#options.certs),
      host: url.hostname.replace(/^\[(.*)\]$/, '$1'),
      port: Number(url.port || PORT_PLAN_STREAM),
      lookup: lookupInTurn(this.#options.turn),
      ALPNProtocols: ['h2'],
      // The URI says who it is; the CA is ours alone, so the address does not matter.
      checkServerIdentity: (_host, certificate) =>
        hasUri(certificate, `${CERT_URI_PREFIX}controller`) ? undefined : new Error('the server is no controller'),
    });
    this.#socket = socket;
    const session = connect(url, {
      createConnection: () => socket,
      settings: { enablePush: false, initialWindowSize: STREAM_WINDOW },
      maxSessionMemory: 1024,
    });
    this.#session = session;
    this.#timer = setTimeout(() => finish(new Error('no answer')), CONNECT_TIMEOUT);
    // Node 20 emits no 'close' on a session whose peer refused the certificate by a TLS 1.3 alert after the handshake,
    // nor does it close the socket. So whichever of the three says first that it is over ends all of them.
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
        const { ':status': status, 'x-sluice-reason': reason = status } = headers;
        if (status === CONNECTED_ALREADY) return finish(new ConnectedAlready(String(reason)));
        if (status !== 200) return finish(new Error(`refused: ${reason}`));
        clearTimeout(this.#timer);
        this.#since = performance.now();
        this.standing = standingOf(headers[STANDING_HEADER]);
        this.#options.onUp(this);
      });
      this.#stream = stream;
      this.hello = this.#options.hello();
      this.send(this.hello);
      this.#read(stream);
      watchPeer(session);
    });
  }

  #read(stream: ClientHttp2Stream): void {
    const reader = new LineReader(MAX_SERVER_LINE);
    stream.on('data', (chunk: Uint8Array) => {
      if (this.#over) return;
      const lines = reader.push(chunk);
      if (!lines.ok) return this.end(new Error(lines.error));
      for (const line of lines.value) if (!this.#over) this.#options.onLine(this, line);
    });
  }
}

/** The system's, begun at another address each turn: behind a name may be one controller after another. */
const lookupInTurn =
  (turn: number): LookupFunction =>
  (host, options, done) => {
    lookup(host, { ...options, all: true }, (error, found) => {
      if (error !== null) return done(error, []);
      const first = turn % Math.max(1, found.length);
      const addresses = [...found.slice(first), ...found.slice(0, first)];
      if (options.all === true) return done(null, addresses);
      done(null, addresses[0]?.address ?? '', addresses[0]?.family);
    });
  };
