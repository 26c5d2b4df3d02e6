/**
 * What the first bytes of a flow are, where no rule says what they ought to be: asks every reader (wire/), whose protocols do
 * not take each other's bytes. Pure. To be shown and to draft rules from, never to decide by: bytes may be cut short, and
 * then the head of a request is read as far as its last whole line.
 * Leaves out: what servers answer; only the greeting of one that speaks first is read.
 */
import type { Application } from '../../api/application.ts';
import { dnsTypeText } from '../../api/dns-type.ts';
import { parseHostName } from '../../api/host-name.ts';
import type { ApplicationReading } from '../../policy/application.ts';
import { type DnsQuery, DnsQueryReader } from '../../wire/dns.ts';
import { recognise, type Side } from '../../wire/greeting.ts';
import type { GreetingProtocol } from '../../wire/greeting-read.ts';
import { type RequestHead, readRequestHead } from '../../wire/http1.ts';
import { readHttp2Preface } from '../../wire/http2.ts';
import { QuicHelloReader } from '../../wire/quic.ts';
import { QuicKeyCache } from '../../wire/quic-keys.ts';
import { MORE, type Reading, read, refused } from '../../wire/reading.ts';
import { readClientHello } from '../../wire/tls.ts';
import type { ClientHello } from '../../wire/tls-hello.ts';

export type FirstReading = Reading<ApplicationReading, 'none-known'>;
type Answer = Reading<ApplicationReading, string>;

const NONE: FirstReading = refused('none-known');
const applicationOf: Record<GreetingProtocol, Application> = {
  ssh: 'SSH',
  smtp: 'SMTP',
  imap: 'IMAP',
  pop3: 'POP3',
  mysql: 'MySQL',
  postgresql: 'PostgreSQL',
  redis: 'Redis',
  mqtt: 'MQTT',
  rdp: 'RDP',
};

const dns = new DnsQueryReader();
const keys = new QuicKeyCache(64);

/** Of a TCP stream, from its first byte on. `cut`: there were more, which nobody will see. */
export function readStream(side: Side, bytes: Uint8Array, cut: boolean): FirstReading {
  const greeting = map(recognise(side, bytes), ({ protocol }) => ({ application: applicationOf[protocol] }));
  if (side === 'server') return firstOf([greeting]);
  const answer = firstOf([
    map(readClientHello(bytes), (hello) => ofHello('TLS', hello)),
    map(readHttp2Preface(bytes), () => ({ application: 'HTTP' })),
    map(readRequestHead(bytes), ofRequest),
    greeting,
    map(dns.stream(bytes), ofQuery),
  ]);
  return answer.state === 'more' && cut ? firstOf([map(readRequestHead(headSoFar(bytes)), ofRequest)]) : answer;
}

/** Of UDP. A reader of its own for each flow: the hello of QUIC may take several datagrams. */
export class DatagramReader {
  readonly #quic = new QuicHelloReader();

  take(bytes: Uint8Array): FirstReading {
    return firstOf([
      map(dns.datagram(bytes), ofQuery),
      map(this.#quic.take(bytes, keys), ({ hello }) => ofHello('QUIC', hello)),
    ]);
  }
}

function map<Value>(reading: Reading<Value, string>, of: (value: Value) => ApplicationReading): Answer {
  return reading.state === 'read' ? read(of(reading.value)) : reading;
}

/** `more` only where none has read it, and some may yet. */
function firstOf(answers: readonly Answer[]): FirstReading {
  let open = false;
  for (const answer of answers) {
    if (answer.state === 'read') return answer;
    if (answer.state === 'more') open = true;
  }
  return open ? MORE : NONE;
}

function ofHello(application: 'TLS' | 'QUIC', hello: ClientHello): ApplicationReading {
  return {
    application,
    ...(hello.serverName !== undefined && { name: hello.serverName }),
    tls: {
      version: Math.max(...hello.versions),
      alpn: hello.alpn,
      encryptedClientHello: hello.encryptedClientHello,
    },
  };
}

function ofRequest({ method, host, path }: RequestHead): ApplicationReading {
  return {
    application: 'HTTP',
    ...(host !== undefined && (host.kind === 'name' ? { name: host.text } : { literal: host.text })),
    ...(path !== undefined && { http: { method, path: path.normal } }),
  };
}

function ofQuery({ name, type }: DnsQuery): ApplicationReading {
  // What is no name of a host (the root, other bytes) is none that a rule could have.
  const host = parseHostName(name);
  return {
    application: 'DNS',
    ...(host.ok && { name: host.value }),
    dns: { type: dnsTypeText(type) },
  };
}

/** The whole lines of a head, and the empty one that ends it. */
function headSoFar(bytes: Uint8Array): Uint8Array {
  const end = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).lastIndexOf('\r\n');
  return end < 0 ? bytes : Buffer.concat([bytes.subarray(0, end), Buffer.from('\r\n\r\n')]);
}
