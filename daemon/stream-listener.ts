/**
 * Where the plan stream's server listens: HTTP/2 over mutual TLS, one stream a session. A stream of plans goes to whoever
 * serves them (stream-server.ts), a request for another certificate to whoever issues those; nothing else is answered.
 */
import type { X509Certificate } from 'node:crypto';
import { createSecureServer, type ServerHttp2Session, type ServerHttp2Stream } from 'node:http2';
import type { TLSSocket } from 'node:tls';
import { RENEW_PATH } from '../api/enrolment.ts';
import { PLAN_STREAM_PATH } from '../api/plan-stream.ts';
import { tlsOptions } from './certs.ts';
import { watchPeer } from './heartbeat.ts';
import { type Listen, listening } from './listen.ts';
import type { Logger } from './log.ts';

export interface ListenerOptions {
  listen: Listen;
  /** Directory with `ca.crt`, `tls.crt`, `tls.key`. */
  certs: string;
  log: Logger;
  onStream(stream: ServerHttp2Stream): void;
  onRenewal?(stream: ServerHttp2Stream, certificate: X509Certificate): void;
}

export interface Listener {
  port: number;
  reload(): void;
  close(): Promise<void>;
}

/** A connection that asks for nothing by then is closed. */
const STREAM_TIMEOUT = 5_000;

export async function startListener(options: ListenerOptions): Promise<Listener> {
  const sessions = new Set<ServerHttp2Session>();
  const { log } = options;
  const server = createSecureServer({
    ...tlsOptions(options.certs),
    requestCert: true,
    rejectUnauthorized: true,
    settings: { maxConcurrentStreams: 1, enablePush: false },
    maxSessionMemory: 1024,
  });
  server.on('tlsClientError', (error, socket) => {
    log.warn({ remote: socket.remoteAddress, reason: error.message }, 'a client was refused');
    // With a listener, Node leaves the socket open, half through its handshake. The alert was written already.
    socket.destroy();
  });
  server.on('session', (session) => {
    sessions.add(session);
    const timer = setTimeout(() => session.destroy(), STREAM_TIMEOUT);
    session.once('stream', () => clearTimeout(timer));
    session.once('close', () => {
      clearTimeout(timer);
      sessions.delete(session);
    });
    session.on('error', (error) => log.debug({ reason: error.message }, 'a session failed'));
    watchPeer(session);
  });
  server.on('stream', (stream, headers) => {
    stream.on('error', (error) => log.debug({ reason: error.message }, 'a stream failed'));
    const path = headers[':method'] === 'POST' ? headers[':path'] : undefined;
    if (path === PLAN_STREAM_PATH) return options.onStream(stream);
    // Of a session that holds no plan stream nothing more is expected.
    const { session } = stream;
    stream.once('close', () => session?.close());
    const certificate = certificateOf(stream);
    if (path !== RENEW_PATH || options.onRenewal === undefined || certificate === undefined) {
      stream.respond({ ':status': 404 }, { endStream: true });
      return;
    }
    options.onRenewal(stream, certificate);
  });
  const port = await listening(server, options.listen);
  server.on('error', (error) => log.error({ reason: error.message }, 'the plan stream failed'));
  return {
    port,
    reload: () => server.setSecureContext(tlsOptions(options.certs)),
    close: () =>
      new Promise((resolve) => {
        server.close(() => resolve());
        for (const session of sessions) session.destroy();
      }),
  };
}

export function certificateOf(stream: ServerHttp2Stream): X509Certificate | undefined {
  const socket = stream.session?.socket as TLSSocket | undefined;
  return socket?.getPeerX509Certificate();
}
