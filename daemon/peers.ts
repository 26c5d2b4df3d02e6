/**
 * Connections among the gateways of a pool, over mutual TLS on their inside addresses. Of two gateways the one whose name
 * comes first connects, and goes on trying; each checks that the other's certificate names the gateway that the plan has
 * there. Certificates are read anew at every connection, and now and then by the side that listens.
 * Left out: what is said (gateway/names/link.ts, ha/replica-link.ts).
 */
import { connect, createServer, type Server, type TLSSocket } from 'node:tls';
import { certificateUri, hasUri, tlsOptions } from './certs.ts';
import type { Logger } from './log.ts';

/** One connection after TLS, whatever is said on it. */
export interface PeerLink {
  /** The peer's, once it has said hello and was believed. */
  readonly name: string | undefined;
  close(reason: string): void;
}

export interface PeerLinkEvents<L extends PeerLink> {
  /** Says why the peer is not the one that it should be; undefined: it is. */
  onHello(link: L, name: string): string | undefined;
  /** The peer has said hello and is believed. */
  onOpen(link: L, name: string): void;
  /** Once, also of a link that was never open. */
  onClose(link: L, reason: string): void;
}

export interface PeersOptions<L extends PeerLink> {
  /** This gateway. */
  name: string;
  /** Directory with `ca.crt`, `tls.crt`, `tls.key`. */
  certs: string;
  port: number;
  log: Logger;
  /** What the log calls all this, and what it means that there is no connection. */
  subject: string;
  whenDown: string;
  link(socket: TLSSocket, events: PeerLinkEvents<L>): L;
  onOpen(link: L, name: string): void;
  /** Of a link that was open. */
  onClose(link: L): void;
}

export interface Place {
  /** This gateway's inside address; undefined: it has none in the plan, and talks to nobody. */
  address: string | undefined;
  /** Of the others, by name. */
  others: ReadonlyMap<string, string>;
}

const BACKOFF_FIRST = 50;
const BACKOFF_LAST = 2_000;
const HANDSHAKE_MS = 2_000;
const LISTEN_AGAIN_MS = 1_000;
const CERTIFICATES_MS = 60_000;
/** Of all gateways and of whoever else can reach the address. */
const MAX_CONNECTIONS = 256;
/** Refusals are told so often at most: anybody on the inside network can cause them. */
const REFUSAL_LOG_MS = 10_000;

/** One that we connect to. */
interface Dial {
  address: string;
  backoff: number;
  timer?: NodeJS.Timeout;
  socket?: TLSSocket;
}

export class Peers<L extends PeerLink> {
  readonly #options: PeersOptions<L>;
  readonly #log: Logger;
  #place: Place = { address: undefined, others: new Map() };
  #server: Server | undefined;
  #listenTimer: NodeJS.Timeout | undefined;
  #certificatesTimer: NodeJS.Timeout | undefined;
  readonly #dials = new Map<string, Dial>();
  readonly #open = new Map<string, L>();
  /** Connections that have not said hello, and those that have. */
  readonly #links = new Set<L>();
  /** Whose connections are not up. */
  readonly #saidDown = new Set<string>();
  #refusals = 0;
  #refusalTold = Number.NEGATIVE_INFINITY;

  constructor(options: PeersOptions<L>) {
    this.#options = options;
    this.#log = options.log;
  }

  /** The plan's gateways are these now. */
  place(place: Place): void {
    const before = this.#place;
    this.#place = place;
    const { address, others } = place;
    for (const name of this.#saidDown) if (!others.has(name)) this.#saidDown.delete(name);
    for (const [name, link] of this.#open) {
      if (others.get(name) !== before.others.get(name) || address === undefined) link.close('the plan has changed');
    }
    for (const [name, dial] of this.#dials) {
      if (address !== undefined && others.get(name) === dial.address) continue;
      this.#dials.delete(name);
      clearTimeout(dial.timer);
      dial.socket?.destroy();
    }
    if (address !== before.address) {
      this.#unlisten();
      if (address !== undefined) this.#listen(address);
    }
    if (address === undefined) return;
    for (const [name, other] of others) {
      if (name <= this.#options.name || this.#dials.has(name)) continue;
      const dial: Dial = { address: other, backoff: BACKOFF_FIRST };
      this.#dials.set(name, dial);
      this.#dial(name, dial);
    }
  }

  #listen(address: string): void {
    const again = (error: Error): void => {
      this.#log.warn({ reason: error.message, address }, `${this.#options.subject}: other gateways cannot connect`);
      this.#unlisten();
      this.#listenTimer = setTimeout(() => this.#listen(address), LISTEN_AGAIN_MS);
    };
    try {
      const server = createServer({
        ...tlsOptions(this.#options.certs),
        requestCert: true,
        rejectUnauthorized: true,
        handshakeTimeout: HANDSHAKE_MS,
      });
      this.#server = server;
      server.maxConnections = MAX_CONNECTIONS;
      server.on('secureConnection', (socket) => this.#accept(socket));
      server.on('tlsClientError', (error, socket) => {
        this.#refused(error.message, socket.remoteAddress);
        // With a listener, Node leaves the socket open, half through its handshake.
        socket.destroy();
      });
      server.once('error', again);
      server.listen(this.#options.port, address);
      this.#certificatesTimer = setInterval(() => this.#renewCertificates(server), CERTIFICATES_MS);
    } catch (error) {
      again(error as Error);
    }
  }

  #renewCertificates(server: Server): void {
    try {
      server.setSecureContext(tlsOptions(this.#options.certs));
    } catch (error) {
      this.#log.warn(
        { reason: (error as Error).message },
        `${this.#options.subject}: certificates cannot be read, those from before serve`,
      );
    }
  }

  #unlisten(): void {
    clearTimeout(this.#listenTimer);
    clearInterval(this.#certificatesTimer);
    this.#server?.close();
    this.#server = undefined;
  }

  #accept(socket: TLSSocket): void {
    this.#link(socket, (name) => {
      const known = this.#place.others.has(name) && name < this.#options.name;
      if (!known) return `${name} is no gateway of the plan that has to connect here`;
      return hasUri(socket.getPeerCertificate(), certificateUri('gateway', name))
        ? undefined
        : `the certificate is not for ${certificateUri('gateway', name)}`;
    });
  }

  #dial(name: string, dial: Dial): void {
    let link: L | undefined;
    let over = false;
    const finish = (reason: string): void => {
      if (over) return;
      over = true;
      clearTimeout(timer);
      link?.close(reason);
      dial.socket?.destroy();
      if (this.#dials.get(name) !== dial) return;
      this.#down(name, reason);
      const wait = BACKOFF_FIRST / 2 + Math.random() * dial.backoff;
      dial.backoff = Math.min(dial.backoff * 2, BACKOFF_LAST);
      dial.timer = setTimeout(() => this.#dial(name, dial), wait);
    };
    const timer = setTimeout(() => finish('no answer'), HANDSHAKE_MS);
    try {
      const socket = connect({
        ...tlsOptions(this.#options.certs),
        host: dial.address,
        port: this.#options.port,
        // The URI says who it is; the CA is the installation's alone, so the address does not matter.
        checkServerIdentity: (_host, certificate) =>
          hasUri(certificate, certificateUri('gateway', name)) ? undefined : new Error(`the peer is not ${name}`),
      });
      dial.socket = socket;
      socket.on('error', (error) => finish(error.message));
      socket.once('close', () => finish('closed'));
      socket.once('secureConnect', () => {
        clearTimeout(timer);
        link = this.#link(socket, (said) => {
          if (said !== name) return `expected the hello of ${name}`;
          dial.backoff = BACKOFF_FIRST;
          return undefined;
        });
      });
    } catch (error) {
      // Its files cannot be read.
      finish((error as Error).message);
    }
  }

  /** `check`: as onHello of a link. */
  #link(socket: TLSSocket, check: (name: string) => string | undefined): L {
    socket.setNoDelay(true);
    const link = this.#options.link(socket, {
      onHello: (_link, name) => check(name),
      onOpen: (link, name) => this.#opened(link, name),
      onClose: (link, reason) => this.#closed(link, reason, socket.remoteAddress),
    });
    this.#links.add(link);
    return link;
  }

  #opened(link: L, name: string): void {
    const old = this.#open.get(name);
    this.#open.set(name, link);
    // The other end may know before us that the last one is dead.
    old?.close('it has connected anew');
    this.#saidDown.delete(name);
    this.#log.info({ peer: name }, `${this.#options.subject}: connected`);
    this.#options.onOpen(link, name);
  }

  #closed(link: L, reason: string, remote: string | undefined): void {
    this.#links.delete(link);
    if (link.name === undefined) {
      this.#refused(reason, remote);
      return;
    }
    if (this.#open.get(link.name) === link) this.#open.delete(link.name);
    this.#options.onClose(link);
    if (this.#place.others.has(link.name)) this.#down(link.name, reason);
  }

  /** Said once, not at every attempt. */
  #down(name: string, reason: string): void {
    if (this.#saidDown.has(name) || this.#open.has(name)) return;
    this.#saidDown.add(name);
    this.#log.warn(
      { peer: name, reason },
      `${this.#options.subject}: no connection to a gateway; ${this.#options.whenDown}`,
    );
  }

  #refused(reason: string, remote: string | undefined): void {
    this.#refusals++;
    const now = performance.now();
    if (now - this.#refusalTold < REFUSAL_LOG_MS) return;
    this.#refusalTold = now;
    this.#log.warn({ reason, remote, refusals: this.#refusals }, `${this.#options.subject}: a connection was refused`);
  }

  close(): void {
    this.place({ address: undefined, others: new Map() });
    for (const link of this.#links) link.close('this gateway ends');
  }
}
