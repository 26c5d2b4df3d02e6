/**
 * What the bytes of a flow said, and whether that is what a port of an ExternalService asks for (design §3 checks per port,
 * §4.5, §4.6): the part of a rule's match that addresses and ports do not show. Pure; the evaluator's, once a flow was read.
 * A check never holds for what was not read: a flow without a server name meets no list of server names.
 * Left out: which port is checked for what, whether an address is the name's own, and how bytes are read (wire/).
 */
import { type Application, type ApplicationCheck, tlsVersions } from '../api/application.ts';
import { NameSet, parseNamePattern } from '../api/host-name.ts';
import { must } from '../api/result.ts';

/** What was read of a flow's bytes, in canonical form. */
export interface ApplicationReading {
  /** Absent: none that we know, or not well-formed. */
  application?: Application;
  /** The host's name that the client asked for: SNI, Host, or the question's. Absent: it named none. */
  name?: string;
  /** Canonical text, where the client named an IP address instead (Host). */
  literal?: string;
  /** Of TLS and QUIC. */
  tls?: TlsReading;
  /** Of HTTP, of one request. */
  http?: { method: string; path: string };
  /** Of DNS: type of the question, as `AAAA` or `TYPE65`. */
  dns?: { type: string };
}

export interface TlsReading {
  /** As on the wire (0x0304 is TLS 1.3): what the server chose; until it has answered, the highest that the client offers. */
  version: number;
  /** RFC 7301; what it offers, in its order. */
  alpn: readonly string[];
  /** RFC 9849. A client's grease for it cannot be told from one, nor is it meant to be. */
  encryptedClientHello: boolean;
}

/** `match`; `audit`: only since conformance is not enforced; else the first part that does not hold. */
export type ApplicationProbe =
  | 'match'
  | 'audit'
  | 'application'
  | 'server-name'
  | 'tls-version'
  | 'alpn'
  | 'encrypted-client-hello'
  | 'host'
  | 'method'
  | 'path'
  | 'question'
  | 'question-type';

export type ApplicationTest = (reading: ApplicationReading) => ApplicationProbe;

/** One check, ready to be asked. */
export function compileApplication(check: ApplicationCheck): ApplicationTest {
  const { application, conformance } = check;
  const tests = [...tlsTests(check), ...httpTests(check), ...dnsTests(check)];
  return (reading) => {
    if (reading.application !== application) {
      // Of other bytes nothing can be said, so what is asked of them does not hold.
      if (conformance === undefined || tests.length > 0) return 'application';
      return conformance === 'Audit' ? 'audit' : 'match';
    }
    for (const [probe, holds] of tests) if (!holds(reading)) return probe;
    return 'match';
  };
}

type Part = [ApplicationProbe, (reading: ApplicationReading) => boolean];

/** Whether the name that was read is one of these. */
const named = (patterns: readonly string[]): ((reading: ApplicationReading) => boolean) => {
  const names = new NameSet(patterns.map((pattern) => must(parseNamePattern(pattern))));
  return ({ name }) => name !== undefined && names.has(name);
};

function* tlsTests({ tls }: ApplicationCheck): Generator<Part> {
  if (tls === undefined) return;
  const { serverNames, minVersion, alpn, rejectEncryptedClientHello } = tls;
  if (serverNames !== undefined) yield ['server-name', named(serverNames)];
  if (minVersion !== undefined) {
    const least = tlsVersions[minVersion];
    yield ['tls-version', (reading) => (reading.tls?.version ?? 0) >= least];
  }
  if (alpn !== undefined) {
    const listed = new Set(alpn);
    yield [
      'alpn',
      ({ tls: read }) => (read?.alpn.length ?? 0) > 0 && read?.alpn.every((one) => listed.has(one)) === true,
    ];
  }
  if (rejectEncryptedClientHello === true) {
    yield ['encrypted-client-hello', (reading) => reading.tls?.encryptedClientHello === false];
  }
}

function* httpTests({ http }: ApplicationCheck): Generator<Part> {
  if (http === undefined) return;
  const { hosts, methods, paths } = http;
  if (hosts !== undefined) yield ['host', named(hosts)];
  if (methods !== undefined) {
    // RFC 9110 §9.1: a method is case-sensitive.
    const listed = new Set(methods);
    yield ['method', (reading) => reading.http !== undefined && listed.has(reading.http.method)];
  }
  if (paths !== undefined) {
    const exact = new Set(paths.filter((path) => !path.endsWith('/*')));
    const below = paths.filter((path) => path.endsWith('/*')).map((path) => path.slice(0, -1));
    yield [
      'path',
      ({ http: read }) =>
        read !== undefined && (exact.has(read.path) || below.some((prefix) => read.path.startsWith(prefix))),
    ];
  }
}

function* dnsTests({ dns }: ApplicationCheck): Generator<Part> {
  if (dns === undefined) return;
  const { names, types } = dns;
  if (names !== undefined) yield ['question', named(names)];
  if (types !== undefined) {
    const listed = new Set(types);
    yield ['question-type', (reading) => reading.dns !== undefined && listed.has(reading.dns.type)];
  }
}
