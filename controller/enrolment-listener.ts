/**
 * The listener of enrolment: HTTPS/1.1 with the controller's certificate, open to whoever can reach it. `GET /v1/ca` (the
 * CA's certificate, for whoever compares its fingerprint) and `POST /v1/enrol`. All is bounded: connections in all and of
 * one address, bytes, seconds, and requests that were refused: of one address TRIES at once and one more every
 * TRY_MS; what ends well is given back. An IPv6 address stands for its /64. What a request means: enrolment.ts.
 */
import type { IncomingMessage, ServerResponse } from 'node:http';
import { createServer } from 'node:https';
import type { Socket } from 'node:net';
import type { Readable } from 'node:stream';
import { CA_PATH, ENROL_PATH, MAX_REQUEST } from '../api/enrolment.ts';
import { tlsOptions } from '../daemon/certs.ts';
import { type Listen, listening } from '../daemon/listen.ts';
import type { Logger } from '../daemon/log.ts';
import { type Detail, type EnrolmentResult, enrolmentResults, type Outcome, refused } from './enrolment-outcome.ts';

const BODY_MS = 5_000;
const CONNECTIONS = 128;
const CONNECTIONS_PER_ADDRESS = 8;
const TRIES = 20;
const TRY_MS = 3_000;
/** Addresses of which it is known how often they tried; those tried longest ago are forgotten. */
const ADDRESSES = 4_096;
/** Log lines about those who try too often. */
const TOLD_MS = 10_000;

export interface ListenerOptions {
  listen: Listen;
  certs: string;
  /** PEM. */
  ca: string;
  log: Logger;
  enrol(body: string): Promise<Outcome>;
  /** Without detail: counted only. */
  tell(result: EnrolmentResult, detail?: Detail): void;
}

export interface EnrolmentListener {
  port: number;
  reload(): void;
  close(): Promise<void>;
}

/** Tries of addresses: a bucket for each, full at first. `now` in milliseconds. */
export class Tries {
  readonly #spent = new Map<string, { tries: number; at: number }>();

  /** False: not now. */
  take(address: string, now: number): boolean {
    const known = this.#spent.get(address);
    const tries = known === undefined ? 0 : Math.max(0, known.tries - (now - known.at) / TRY_MS);
    if (tries > TRIES - 1) return false;
    this.#spent.delete(address);
    this.#spent.set(address, { tries: tries + 1, at: now });
    if (this.#spent.size > ADDRESSES) for (const [oldest] of this.#spent) return this.#spent.delete(oldest);
    return true;
  }

  giveBack(address: string): void {
    const known = this.#spent.get(address);
    if (known !== undefined) known.tries = Math.max(0, known.tries - 1);
  }

  get size(): number {
    return this.#spent.size;
  }
}

/** Who counts as one: an IPv4 address, also within IPv6, or a /64. */
export function sourceOf(address: string | undefined): string {
  const mapped = /^::ffff:([0-9.]+)$/i.exec(address ?? '');
  if (mapped !== null) return mapped[1] ?? '';
  if (address === undefined || !address.includes(':')) return address ?? '';
  const [head = '', tail] = (address.split('%')[0] ?? '').split('::');
  const first = head === '' ? [] : head.split(':');
  const last = tail === undefined || tail === '' ? [] : tail.split(':');
  const groups =
    tail === undefined
      ? first
      : [...first, ...Array<string>(Math.max(0, 8 - first.length - last.length)).fill('0'), ...last];
  return `${groups.slice(0, 4).join(':')}::/64`;
}

export async function startListener(options: ListenerOptions): Promise<EnrolmentListener> {
  const { log, tell } = options;
  const tries = new Tries();
  const open = new Map<string, number>();
  let told = Number.NEGATIVE_INFINITY;

  const server = createServer({
    ...tlsOptions(options.certs),
    // No client shows a certificate here.
    requestCert: false,
    handshakeTimeout: BODY_MS,
    headersTimeout: BODY_MS,
    requestTimeout: 2 * BODY_MS,
    connectionsCheckingInterval: 1_000,
    keepAliveTimeout: 1,
    maxHeaderSize: 4_096,
  });
  server.maxConnections = CONNECTIONS;
  server.maxRequestsPerSocket = 1;
  server.maxHeadersCount = 50;
  server.on('connection', (socket: Socket) => {
    const source = sourceOf(socket.remoteAddress);
    const count = (open.get(source) ?? 0) + 1;
    open.set(source, count);
    socket.once('close', () => {
      const left = (open.get(source) ?? 1) - 1;
      if (left > 0) open.set(source, left);
      else open.delete(source);
    });
    if (count > CONNECTIONS_PER_ADDRESS) socket.destroy();
  });
  server.on('tlsClientError', (error, socket) => {
    log.debug({ remote: socket.remoteAddress, reason: error.message }, 'enrolment: no TLS');
    socket.destroy();
  });
  server.on('clientError', (_error, socket) => socket.destroy());
  server.on('request', (request, response) => void serve(request, response));

  async function serve(request: IncomingMessage, response: ServerResponse): Promise<void> {
    response.on('error', () => {});
    const path = request.url;
    if (request.method === 'GET' && path === CA_PATH)
      return answer(response, 200, options.ca, 'application/x-pem-file');
    if (request.method !== 'POST' || path !== ENROL_PATH) return answer(response, 404, said('nothing here'));
    const remote = request.socket.remoteAddress ?? '';
    const source = sourceOf(remote);
    if (!tries.take(source, performance.now())) {
      // All are counted, but a flood of them fills no disk.
      const quiet = performance.now() - told < TOLD_MS;
      if (!quiet) told = performance.now();
      tell('too-many', quiet ? undefined : { remote });
      response.setHeader('retry-after', Math.ceil(TRY_MS / 1_000));
      return answer(response, enrolmentResults['too-many'], said('too many requests: wait a little'));
    }
    const body = await readBody(request);
    const outcome = typeof body === 'string' ? await options.enrol(body) : body;
    const { result, detail } = outcome;
    if ('enrolled' in outcome) {
      tries.giveBack(source);
      tell(result, { ...detail, remote });
      return answer(response, enrolmentResults[result], JSON.stringify(outcome.enrolled));
    }
    tell(result, { ...detail, reason: outcome.error, remote });
    answer(response, enrolmentResults[result], said(outcome.error));
  }

  const port = await listening(server, options.listen);
  server.on('error', (error) => log.error({ reason: error.message }, 'enrolment failed'));
  return {
    port,
    reload: () => server.setSecureContext(tlsOptions(options.certs)),
    close: () =>
      new Promise((resolve) => {
        server.close(() => resolve());
        server.closeAllConnections();
      }),
  };
}

const said = (error: string): string => JSON.stringify({ error });

function answer(response: ServerResponse, status: number, body: string, type = 'application/json'): void {
  response.writeHead(status, { 'content-type': type, connection: 'close' });
  response.end(body);
}

/** A request's body, or why there is none. Whoever sends too much or too slowly is not waited for. */
export function readBody(stream: Readable): Promise<string | Outcome> {
  return new Promise((resolve) => {
    let size = 0;
    const chunks: Buffer[] = [];
    const end = (value: string | Outcome): void => {
      clearTimeout(timer);
      stream.removeAllListeners('data');
      // What still comes is thrown away, until the answer has been written and the connection is closed.
      stream.resume();
      resolve(value);
    };
    const timer = setTimeout(() => end(refused('too-slow', 'the request did not come in time')), BODY_MS);
    stream.on('data', (chunk: Buffer) => {
      size += chunk.length;
      if (size > MAX_REQUEST) end(refused('too-large', `expected at most ${MAX_REQUEST} bytes`));
      else chunks.push(chunk);
    });
    stream.once('end', () => end(Buffer.concat(chunks).toString('utf8')));
    stream.once('close', () => end(refused('bad-request', 'the request was cut off')));
    stream.once('error', () => end(refused('bad-request', 'the request was cut off')));
  });
}
