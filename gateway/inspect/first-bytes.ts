/**
 * What the first bytes of a TCP connection say, of the protocols that policy asks for: which it is, and what it names.
 * Pure. Readers are asked in order, and take no two the same bytes. In protocols in which the server speaks first its
 * greeting says what is spoken: a client can say anything. What none of them reads is unknown, which policy judges as well.
 *
 * A server of TLS may ask for another hello. OpenSSL, and so nginx, serves the name of that one, though it has to be that of
 * the first (RFC 8446 §4.1.2): so it is read as well. That there will be none is known of servers that have answered a hello
 * like it before (answering-servers.ts), else the server's answer says it, for which the hello has to go on. So it has to
 * where policy asks for a version (`minVersion`) and the client offers older ones too: the server chooses.
 */
import type { Application } from '../../api/application.ts';
import { dnsTypeText } from '../../api/dns-type.ts';
import type { ApplicationReading, TlsReading } from '../../policy/application.ts';
import { DnsQueryReader } from '../../wire/dns.ts';
import { type Protocol, protocols } from '../../wire/greeting.ts';
import type { RequestHead } from '../../wire/http1.ts';
import { readRequestHead } from '../../wire/http1.ts';
import { readHttp2Preface } from '../../wire/http2.ts';
import { readChosenVersion, readClientHello, readServerTls, secondHelloAt } from '../../wire/tls.ts';
import type { ClientHello } from '../../wire/tls-hello.ts';
import type { Asked } from './asked.ts';

export type FirstBytes =
  | { state: 'more' }
  /** Once policy permits the reading, what the client said may go on to the server, whose answer is needed. */
  | { state: 'answer'; reading: ApplicationReading }
  /**
   * `units`: what comes one after the other, each of which can be read, from the first byte on. `answered`: the hello that the
   * server took as it was.
   */
  | {
      state: 'read';
      reading: ApplicationReading;
      detail?: string;
      units?: 'requests' | 'questions';
      answered?: ClientHello;
    };

const MORE: FirstBytes = { state: 'more' };

/** Protocols that greeting.ts reads. */
const greeted: Partial<Record<Application, Protocol>> = {
  SSH: protocols.ssh,
  SMTP: protocols.smtp,
  IMAP: protocols.imap,
  POP3: protocols.pop3,
  MySQL: protocols.mysql,
  PostgreSQL: protocols.postgresql,
  Redis: protocols.redis,
  MQTT: protocols.mqtt,
  RDP: protocols.rdp,
};

const queries = new DnsQueryReader();

/**
 * What the client of a connection said, and its server; both from the first byte on. `answers`: whether the server is known to
 * answer such a hello at once.
 */
export function readFirstBytes(
  asked: Asked,
  client: Uint8Array,
  server: Uint8Array,
  answers: (hello: ClientHello) => boolean,
): FirstBytes {
  let undecided = false;
  let detail: string | undefined;
  for (const application of asked.applications) {
    const answer = readAs(application, asked, client, server, answers);
    if (answer === 'more') undecided = true;
    else if (typeof answer === 'object') return answer;
    else if (answer !== 'other') detail ??= answer;
  }
  if (undecided) return MORE;
  return { state: 'read', reading: {}, ...(detail !== undefined && { detail }) };
}

/** `other`: another protocol's bytes; any other text: this protocol's, but not well-formed, and why. */
function readAs(
  application: Application,
  asked: Asked,
  client: Uint8Array,
  server: Uint8Array,
  answers: (hello: ClientHello) => boolean,
): FirstBytes | string {
  const protocol = greeted[application];
  if (protocol !== undefined) return readGreeting(application, protocol, client, server);
  if (application === 'QUIC') return 'other';
  if (client.length === 0) return 'more';
  switch (application) {
    case 'TLS':
      return readTls(client, server, asked, answers);
    case 'HTTP':
      return readHttp(client, asked);
    default: {
      const query = queries.stream(client);
      if (query.state === 'more') return 'more';
      if (query.state === 'refused') return query.reason;
      return { state: 'read', reading: { application: 'DNS' }, units: 'questions' };
    }
  }
}

function readTls(
  client: Uint8Array,
  server: Uint8Array,
  { leastVersion }: Asked,
  answers: (hello: ClientHello) => boolean,
): FirstBytes | string {
  const hello = readClientHello(client);
  if (hello.state === 'more') return 'more';
  if (hello.state === 'refused') return hello.reason === 'not-tls' ? 'other' : hello.reason;
  const { value } = hello;
  const reading = tlsReading(value);
  const undecided = leastOffered(value) < leastVersion;
  if (!undecided && (value.groups === undefined || answers(value))) return { state: 'read', reading };
  const second = secondHelloAt(client, value.length);
  const answer = readServerTls(server);
  if (answer.state === 'more') return typeof second === 'number' ? 'early-second-hello' : { state: 'answer', reading };
  // Who speaks no TLS asks for no hello.
  if (answer.state === 'refused') return answer.reason === 'not-tls' ? { state: 'read', reading } : answer.reason;
  if (answer.value.message === 'server-hello') {
    if (!undecided) return { state: 'read', reading, answered: value };
    const version = readChosenVersion(server);
    if (version.state === 'more') return { state: 'answer', reading };
    if (version.state === 'refused') return version.reason;
    const { tls, ...rest } = reading;
    return { state: 'read', reading: { ...rest, tls: { ...tls, version: version.value } }, answered: value };
  }
  if (answer.value.message === 'alert') return { state: 'read', reading };
  if (second === 'more') return 'more';
  return second === 'other' ? 'no-second-hello' : readSecondHello(client.subarray(second), value);
}

function readSecondHello(bytes: Uint8Array, first: ClientHello): FirstBytes | string {
  const hello = readClientHello(bytes);
  if (hello.state === 'more') return 'more';
  if (hello.state === 'refused') return hello.reason;
  if (hello.value.serverName !== first.serverName) return 'other-second-hello';
  return { state: 'read', reading: tlsReading(hello.value) };
}

/** What a server may choose. Without a list any that is older. */
const leastOffered = ({ versions, legacyVersion }: ClientHello): number =>
  versions.length === 1 && versions[0] === legacyVersion ? 0 : Math.min(...versions);

const tlsReading = (hello: ClientHello) => Object.assign(helloReading(hello), TLS);

const TLS = { application: 'TLS' } as const;

/** What a hello says, in TLS and QUIC. */
export function helloReading(hello: ClientHello): Pick<ApplicationReading, 'name'> & { tls: TlsReading } {
  const { serverName, versions, legacyVersion, alpn, encryptedClientHello } = hello;
  let version = versions.length === 0 ? legacyVersion : 0;
  for (const offered of versions) if (offered > version) version = offered;
  const tls = { version, alpn, encryptedClientHello };
  return serverName === undefined ? { tls } : { name: serverName, tls };
}

/** Before they are met, bytes may be of any protocol. */
const notHttp = new Set([
  'bad-method',
  'bad-request-line',
  'control-byte',
  'null-byte',
  'bare-line-feed',
  'lower-case-method',
]);

function readHttp(client: Uint8Array, asked: Asked): FirstBytes | string {
  const preface = readHttp2Preface(client);
  if (preface.state === 'read') {
    // Its requests cannot be read: it has no name, and what is asked of requests does not hold.
    return { state: 'read', reading: { application: 'HTTP' }, ...(asked.shapes && { detail: 'http2-preface' }) };
  }
  const head = readRequestHead(client);
  if (head.state === 'more' || preface.state === 'more') return 'more';
  if (head.state === 'refused') return notHttp.has(head.reason) ? 'other' : head.reason;
  return { state: 'read', reading: requestReading(head.value), units: 'requests' };
}

/** What a request asks for. */
export function requestReading(head: RequestHead): ApplicationReading {
  const { host, method, path, target, form } = head;
  const http = { method, path: path?.normal ?? (form === 'asterisk' ? target : '') };
  if (host === undefined) return { application: 'HTTP', http };
  return { application: 'HTTP', http, ...(host.kind === 'name' ? { name: host.text } : { literal: host.text }) };
}

/** Why servers may take a request for another one than we do; undefined: they all agree. */
export function ambiguityOf({ path, bodyAmbiguous, following }: RequestHead): string | undefined {
  return path?.ambiguous[0] ?? bodyAmbiguous[0] ?? (following === 'request' ? undefined : following);
}

function readGreeting(
  application: Application,
  { first, client: readClient, server: readServer }: Protocol,
  client: Uint8Array,
  server: Uint8Array,
): FirstBytes | string {
  if (first !== 'client' && server.length > 0 && readServer !== undefined) {
    const greeting = readServer(server);
    if (greeting.state === 'read') return { state: 'read', reading: { application } };
    if (first === 'server') return greeting.state === 'more' ? 'more' : 'other';
  }
  if (client.length === 0) return 'more';
  const said = readClient(client);
  if (said.state === 'refused') return 'other';
  // What only answers a greeting is none.
  if (said.state === 'more' || first === 'server') return 'more';
  return { state: 'read', reading: { application } };
}

/** Of a question. */
export function questionReading(name: string, type: number): ApplicationReading {
  return { application: 'DNS', ...(name !== '.' && { name }), dns: { type: dnsTypeText(type) } };
}
