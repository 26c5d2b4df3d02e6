/**
 * The controller's end of the plan stream: one HTTP/2 stream per gateway and node, over mutual TLS (design §2).
 * A client's certificate must name the client that its hello names. At most one plan is on its way to a client;
 * what is published meanwhile is coalesced, so that a slow client costs one plan of memory, not a queue.
 * A controller that stands by keeps its clients waiting: they are sent nothing, and nobody hears of them, until it leads and
 * they have said once more what they hold.
 * Messages: api/plan-stream.ts. Left out: connections and TLS (stream-listener.ts), what a plan is made of, and what an
 * acknowledgement means (controller/).
 */
import type { X509Certificate } from 'node:crypto';
import type { ServerHttp2Stream } from 'node:http2';
import type { PlanOf, PlanRole } from '../api/plan.ts';
import { differenceOf, hashOf } from '../api/plan-difference.ts';
import { formatUpdate, type Update } from '../api/plan-parts.ts';
import {
  type ClientMessage,
  CONNECTED_ALREADY,
  formatMessage,
  type HelloMessage,
  type HitsMessage,
  LineReader,
  MAX_CLIENT_LINE,
  parseClientMessage,
  STANDING_HEADER,
} from '../api/plan-stream.ts';
import { certificateUri, hasUri } from './certs.ts';
import type { Listen } from './listen.ts';
import type { Logger } from './log.ts';
import { certificateOf, startListener } from './stream-listener.ts';

/** A gateway or node that is connected, as it said in its hello. */
export interface PlanPeer {
  role: PlanRole;
  name: string;
  /** The machine's own addresses, canonical text. */
  addresses: string[];
  /** Generation and content hash of the plan that it held when it connected; 0 and '' if none. */
  generation: number;
  hash: string;
}

export interface PlanServerOptions {
  listen: Listen;
  /** Directory with `ca.crt`, `tls.crt`, `tls.key`. */
  certs: string;
  log: Logger;
  /** Whether this controller may serve plans now; absent: always, and there is no other. */
  leads?(): boolean;
  /** There is no other all the same. */
  alone?: boolean;
  onHello(client: PlanPeer): void;
  /** A plan is in force (no error), or could not be applied. It covers every older generation too. */
  onAck(client: PlanPeer, generation: number, error?: string): void;
  onGone(client: PlanPeer): void;
  /** Egress IPs that a gateway has by its plan, and whose they are; `more`: others follow. */
  onHolds?(gateway: string, addresses: Readonly<Record<string, string>>, more: boolean): void;
  onHits?(gateway: string, message: HitsMessage): void;
  /** Why a certificate of our CA is refused all the same (revoked), or is no longer valid; asked now and then of those connected. */
  refusal?(certificate: X509Certificate): string | undefined;
  /** A request to renew this certificate, in a stream of its own; absent: nobody renews here. */
  onRenewal?(stream: ServerHttp2Stream, certificate: X509Certificate): void;
}

export interface PlanServer {
  port: number;
  /** Makes this the plan of (role, name); sent at once if connected, else as soon as it is. */
  publish<R extends PlanRole>(role: R, name: string, plan: PlanOf[R], generation: number): void;
  /** Unless it is connected. */
  forget(role: PlanRole, name: string): void;
  /** It leads from now on: those that wait are asked what they hold. */
  lead(): void;
  /** How many clients wait for it to lead. */
  waiting(role: PlanRole): number;
  /** Reads its certificate anew, for connections to come. Throws if it cannot, and goes on with the old one. */
  reload(): void;
  close(): Promise<void>;
}

/** A connection that has said nothing sensible by then is closed. */
const HELLO_TIMEOUT = 5_000;
const REFUSED_TIMEOUT = 500;
/** Of an answer that refuses. */
const FORBIDDEN = 403;
const LOOK_AT_CERTIFICATES = 5_000;

interface Version {
  plan: object;
  generation: number;
}

/** What is known of one (role, name), connected or not. */
interface Slot {
  wanted?: Version;
  /** What the client was sent last, in this run; the base of the next delta. */
  sent?: Version;
  link?: Link;
}

interface Link {
  peer: PlanPeer;
  /** As the client calls the connection. */
  id: string | undefined;
  /** For this controller to lead; `asked`: it does, and another hello is on its way. */
  waits: false | 'waits' | 'asked';
  stream: ServerHttp2Stream;
  certificate: X509Certificate;
  /** What was sent and not answered yet. */
  busy: Update['type'] | false;
  /** What is left to be written of it. */
  rest?: Iterator<string>;
  /** The client's hello was compared with the plan that is wanted; before that, nothing is sent. */
  resumed: boolean;
  /** What the client holds is known (`slot.sent`); false: only a snapshot will do. */
  synced: boolean;
}

const peerKey = (role: PlanRole, name: string): string => `${role}/${name}`;

export async function startPlanServer(options: PlanServerOptions): Promise<PlanServer> {
  const slots = new Map<string, Slot>();
  const { log, leads, alone = leads === undefined } = options;
  const mayServe = (): boolean => leads === undefined || leads();
  const listener = await startListener({ ...options, onStream: serve });

  function serve(stream: ServerHttp2Stream): void {
    const reader = new LineReader(MAX_CLIENT_LINE);
    let link: Link | undefined;
    const timer = setTimeout(() => refuse(stream, 'no hello'), HELLO_TIMEOUT);
    stream.on('data', (chunk: Uint8Array) => {
      if (stream.destroyed || stream.writableEnded) return;
      const lines = reader.push(chunk);
      if (!lines.ok) return refuse(stream, lines.error);
      for (const line of lines.value) {
        const message = parseClientMessage(line);
        if (!message.ok) return refuse(stream, `a message ${message.error}`);
        if (link !== undefined) {
          receive(link, message.value);
          continue;
        }
        if (message.value.type !== 'hello') return refuse(stream, 'expected a hello first');
        clearTimeout(timer);
        link = welcome(stream, message.value);
        if (link === undefined) return;
      }
    });
    stream.once('end', () => stream.close());
    stream.once('close', () => {
      clearTimeout(timer);
      if (link === undefined) return;
      const slot = slots.get(peerKey(link.peer.role, link.peer.name));
      // A newer connection of the same client may have taken its place; then that one is connected still.
      if (slot?.link !== link) return;
      delete slot.link;
      log.info({ role: link.peer.role, client: link.peer.name }, 'disconnected');
      if (!link.waits) options.onGone(link.peer);
    });
  }

  function refuse(stream: ServerHttp2Stream, reason: string, status = FORBIDDEN): void {
    const level = status === FORBIDDEN ? 'warn' : 'debug';
    log[level]({ remote: stream.session?.socket?.remoteAddress, reason }, 'a client was refused');
    if (stream.destroyed) return;
    const session = stream.session;
    if (stream.headersSent) {
      session?.destroy();
      return;
    }
    stream.respond({ ':status': status, 'x-sluice-reason': reason }, { endStream: true });
    // Time enough to read why.
    setTimeout(() => session?.destroy(), REFUSED_TIMEOUT).unref();
  }

  function welcome(stream: ServerHttp2Stream, hello: HelloMessage): Link | undefined {
    const uri = certificateUri(hello.role, hello.name);
    const certificate = certificateOf(stream);
    if (certificate === undefined || !hasUri(certificate, uri)) {
      refuse(stream, `the certificate is not for ${uri}`);
      return undefined;
    }
    const refusal = options.refusal?.(certificate);
    if (refusal !== undefined) {
      refuse(stream, refusal);
      return undefined;
    }
    const { role, name, link: id, others = [] } = hello;
    const serves = mayServe();
    if (!serves && id === undefined) {
      refuse(stream, 'another controller leads');
      return undefined;
    }
    const slot = slotOf(role, name);
    const old = slot.link;
    if (old?.id !== undefined && others.includes(old.id)) {
      refuse(stream, 'it has another connection to this controller', CONNECTED_ALREADY);
      return undefined;
    }
    const link: Link = {
      peer: peerOf(hello),
      id,
      waits: serves ? false : 'waits',
      stream,
      certificate,
      busy: false,
      resumed: false,
      synced: false,
    };
    slot.link = link;
    if (old !== undefined) {
      old.stream.session?.destroy();
      if (!old.waits) options.onGone(old.peer);
    }
    const standing = serves ? (alone ? 'alone' : 'leads') : 'stands-by';
    stream.respond({ ':status': 200, 'content-type': 'application/x-ndjson', [STANDING_HEADER]: standing });
    log.info({ role, client: name, generation: hello.generation, standing }, 'connected');
    if (serves) begin(slot, link);
    return link;
  }

  function begin(slot: Slot, link: Link): void {
    options.onHello(link.peer);
    resume(slot, link);
  }

  /** Of one that waited: what it holds now. */
  function again(slot: Slot, link: Link, hello: HelloMessage): void {
    const { role, name } = link.peer;
    if (link.waits !== 'asked' || hello.role !== role || hello.name !== name) {
      refuse(link.stream, 'a second hello');
      return;
    }
    link.waits = false;
    link.peer = peerOf(hello);
    begin(slot, link);
  }

  /** The first message to a client: nothing, if what it holds is right. */
  function resume(slot: Slot, link: Link): void {
    const { generation, hash } = link.peer;
    const { wanted, sent } = slot;
    if (wanted === undefined || link.resumed || link.waits || !mayServe()) return;
    link.resumed = true;
    if (hash !== '' && hashOf(wanted.plan) === hash) {
      slot.sent = wanted;
      link.synced = true;
      send(link, { type: 'keep', generation: wanted.generation });
      return;
    }
    // It holds what this run sent last: the difference will do.
    link.synced = sent !== undefined && sent.generation === generation && hashOf(sent.plan) === hash;
    update(slot);
  }

  function receive(link: Link, message: ClientMessage): void {
    const slot = slotOf(link.peer.role, link.peer.name);
    if (slot.link !== link) return;
    if (link.waits) {
      // The rest is meant for who leads.
      if (message.type === 'hello') again(slot, link, message);
      return;
    }
    switch (message.type) {
      case 'hello':
        refuse(link.stream, 'a second hello');
        return;
      case 'holds':
        if (link.peer.role === 'gateway') options.onHolds?.(link.peer.name, message.addresses, message.more);
        else refuse(link.stream, 'egress IPs of no gateway');
        return;
      case 'hits':
        if (link.peer.role === 'gateway') options.onHits?.(link.peer.name, message);
        else refuse(link.stream, 'hits of no gateway');
        return;
      case 'resync':
        // A snapshot fits always; whoever asks for another one would only fill our memory.
        if (link.busy === 'snapshot') {
          refuse(link.stream, 'a snapshot was on its way already');
          return;
        }
        link.synced = false;
        link.busy = false;
        break;
      case 'ack':
      case 'nack':
        // An answer about an older plan than the last one says nothing about the one on its way.
        if (message.generation === slot.sent?.generation) link.busy = false;
        if (message.type === 'ack') options.onAck(link.peer, message.generation);
        else options.onAck(link.peer, message.generation, message.error);
        break;
    }
    update(slot);
  }

  /** Sends what is wanted, if it was not sent and nothing is on its way. */
  function update(slot: Slot): void {
    const { link, wanted, sent } = slot;
    if (link === undefined || wanted === undefined || !link.resumed || link.busy || !mayServe()) return;
    const { plan, generation } = wanted;
    if (!link.synced || sent === undefined) {
      send(link, { type: 'snapshot', generation, hash: hashOf(plan), plan });
    } else if (sent.generation !== generation) {
      const { delta, empty } = differenceOf(sent.plan, plan);
      if (empty) send(link, { type: 'keep', generation });
      else send(link, { type: 'delta', from: sent.generation, generation, hash: hashOf(plan), deltas: [delta] });
    } else {
      return;
    }
    link.synced = true;
    slot.sent = wanted;
  }

  function send(link: Link, update: Update): void {
    link.busy = update.type;
    link.rest = formatUpdate(update);
    write(link);
  }

  /** As much as goes out at once, so that a large update is never in memory as a whole. */
  function write(link: Link): void {
    const { stream, rest } = link;
    while (rest !== undefined && link.rest === rest && !stream.destroyed) {
      const chunk = rest.next();
      if (chunk.done) break;
      if (!stream.write(chunk.value)) {
        stream.once('drain', () => link.rest === rest && write(link));
        return;
      }
    }
  }

  function slotOf(role: PlanRole, name: string): Slot {
    const key = peerKey(role, name);
    const slot = slots.get(key) ?? {};
    slots.set(key, slot);
    return slot;
  }

  // A connection may outlive the certificate that it was made with.
  const looking = setInterval(() => {
    for (const { link } of slots.values()) {
      const refusal = link && options.refusal?.(link.certificate);
      if (link !== undefined && refusal !== undefined) refuse(link.stream, refusal);
    }
  }, LOOK_AT_CERTIFICATES);

  return {
    port: listener.port,
    publish(role, name, plan, generation) {
      const slot = slotOf(role, name);
      slot.wanted = { plan, generation };
      if (slot.link?.resumed === false) resume(slot, slot.link);
      else update(slot);
      // So that a client that comes need not wait for it: of a large plan it takes a second or two.
      if (slot.link === undefined) setImmediate(() => slot.wanted?.plan === plan && hashOf(plan));
    },
    forget(role, name) {
      const key = peerKey(role, name);
      if (slots.get(key)?.link === undefined) slots.delete(key);
    },
    lead() {
      for (const { link } of slots.values()) {
        if (link?.waits !== 'waits') continue;
        link.waits = 'asked';
        link.stream.write(formatMessage({ type: 'lead' }));
      }
    },
    waiting: (role) => [...slots.values()].filter(({ link }) => link?.waits && link.peer.role === role).length,
    reload: listener.reload,
    close() {
      clearInterval(looking);
      return listener.close();
    },
  };
}

const peerOf = ({ role, name, addresses, generation, hash }: HelloMessage): PlanPeer => ({
  role,
  name,
  addresses,
  generation,
  hash,
});
