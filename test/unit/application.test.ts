/**
 * What a port of an ExternalService asks of a flow's bytes: each row is a check, what was read, and the part that does
 * not hold. The last test fails if a part of a check is in no row, or decides in none.
 */
import t from 'tap';
import { type ApplicationCheck, applications, tlsVersions } from '../../api/application.ts';
import {
  type ApplicationProbe,
  type ApplicationReading,
  compileApplication,
  type TlsReading,
} from '../../policy/application.ts';

const hello: TlsReading = { version: tlsVersions['1.3'], alpn: ['h2', 'http/1.1'], encryptedClientHello: false };
const tls = (name?: string, some: Partial<TlsReading> = {}): ApplicationReading => ({
  application: 'TLS',
  ...(name !== undefined && { name }),
  tls: { ...hello, ...some },
});
const http = (name: string | undefined, method: string, path: string): ApplicationReading => ({
  application: 'HTTP',
  ...(name !== undefined && { name }),
  http: { method, path },
});
const dns = (name: string, type: string): ApplicationReading => ({ application: 'DNS', name, dns: { type } });
const nothing: ApplicationReading = {};

const TLS: ApplicationCheck = { application: 'TLS' };
const served: ApplicationCheck = { application: 'TLS', tls: { serverNames: ['a.test', '*.b.test'] } };
const recent: ApplicationCheck = { application: 'TLS', tls: { minVersion: '1.2' } };
const alpn: ApplicationCheck = { application: 'TLS', tls: { alpn: ['h2', 'http/1.1'] } };
const open: ApplicationCheck = { application: 'TLS', tls: { rejectEncryptedClientHello: true } };
const hosts: ApplicationCheck = { application: 'HTTP', http: { hosts: ['**.a.test'] } };
const methods: ApplicationCheck = { application: 'HTTP', http: { methods: ['GET', 'HEAD'] } };
const paths: ApplicationCheck = { application: 'HTTP', http: { paths: ['/v1/status', '/v2/*'] } };
const asked: ApplicationCheck = { application: 'DNS', dns: { names: ['**.a.test'] } };
const types: ApplicationCheck = { application: 'DNS', dns: { types: ['A', 'AAAA'] } };

const rows: [string, ApplicationCheck, ApplicationReading, ApplicationProbe][] = [
  ['TLS that names nobody, where TLS is all that is asked', TLS, tls(), 'match'],
  ['SSH where TLS is asked', TLS, { application: 'SSH' }, 'application'],
  ['bytes of nothing that we know', TLS, nothing, 'application'],
  ['the same, where that is counted only', { ...TLS, conformance: 'Audit' }, nothing, 'audit'],
  ['the same, where nobody minds', { ...TLS, conformance: 'Off' }, nothing, 'match'],
  ['TLS, where others are counted', { ...TLS, conformance: 'Audit' }, tls(), 'match'],
  ['other bytes where a name is asked and nobody minds', { ...served, conformance: 'Off' }, nothing, 'application'],
  ['a server that is listed', served, tls('a.test'), 'match'],
  ['a server below one', served, tls('x.b.test'), 'match'],
  ['another', served, tls('c.test'), 'server-name'],
  ['none named', served, tls(), 'server-name'],
  ['an address named in place of a server', served, { ...tls(), literal: '192.0.2.1' }, 'server-name'],
  ['TLS 1.2 where that is the least', recent, tls('a.test', { version: 0x0303 }), 'match'],
  ['TLS 1.1', recent, tls('a.test', { version: 0x0302 }), 'tls-version'],
  ['SSL 3', recent, tls('a.test', { version: 0x0300 }), 'tls-version'],
  ['both protocols that are listed', alpn, tls('a.test'), 'match'],
  ['one of them', alpn, tls('a.test', { alpn: ['h2'] }), 'match'],
  ['one that is not, beside', alpn, tls('a.test', { alpn: ['h2', 'acme-tls/1'] }), 'alpn'],
  ['no protocol offered', alpn, tls('a.test', { alpn: [] }), 'alpn'],
  ['a hello in the clear', open, tls('a.test'), 'match'],
  ['an encrypted one', open, tls('a.test', { encryptedClientHello: true }), 'encrypted-client-hello'],
  ['an encrypted one, where nobody forbids it', served, tls('a.test', { encryptedClientHello: true }), 'match'],
  ['a host that is listed', hosts, http('x.y.a.test', 'GET', '/'), 'match'],
  ['another host', hosts, http('a.test', 'GET', '/'), 'host'],
  ['no host', hosts, http(undefined, 'GET', '/'), 'host'],
  ['a method that is listed', methods, http('a.test', 'HEAD', '/'), 'match'],
  ['another method', methods, http('a.test', 'POST', '/'), 'method'],
  ['a method in small letters', methods, http('a.test', 'get', '/'), 'method'],
  ['a path that is listed', paths, http('a.test', 'GET', '/v1/status'), 'match'],
  ['one below it', paths, http('a.test', 'GET', '/v1/status/x'), 'path'],
  ['one below a prefix', paths, http('a.test', 'GET', '/v2/a/b'), 'match'],
  ['the prefix itself, which ends in a slash', paths, http('a.test', 'GET', '/v2/'), 'match'],
  ['the prefix without it', paths, http('a.test', 'GET', '/v2'), 'path'],
  ['one that only begins alike', paths, http('a.test', 'GET', '/v22/a'), 'path'],
  ['a question for a name that is listed', asked, dns('x.a.test', 'A'), 'match'],
  ['for another', asked, dns('x.b.test', 'A'), 'question'],
  ['of a type that is listed', types, dns('x.a.test', 'AAAA'), 'match'],
  ['of another type', types, dns('x.a.test', 'TXT'), 'question-type'],
  ['TLS where HTTP is asked', hosts, tls('x.a.test'), 'application'],
  ['QUIC where TLS is asked', served, { ...tls('a.test'), application: 'QUIC' }, 'application'],
];

t.test('checks of bytes', async (t) => {
  for (const [what, check, reading, probe] of rows) t.equal(compileApplication(check)(reading), probe, what);
});

t.test('every protocol is itself and no other', async (t) => {
  for (const application of applications) {
    const test = compileApplication({ application });
    const held = applications.filter((other) => test({ application: other }) === 'match');
    t.same(held, [application]);
  }
});

t.test('a reading without what is asked for meets nothing', async (t) => {
  for (const check of [served, recent, alpn, open, hosts, methods, paths, asked, types]) {
    t.not(compileApplication(check)({ application: check.application }), 'match', JSON.stringify(check));
  }
});

t.test('no part is left out', async (t) => {
  const probes: Record<ApplicationProbe, true> = {
    match: true,
    audit: true,
    application: true,
    'server-name': true,
    'tls-version': true,
    alpn: true,
    'encrypted-client-hello': true,
    host: true,
    method: true,
    path: true,
    question: true,
    'question-type': true,
  };
  const seen = new Set(rows.map(([, , , probe]) => probe));
  t.same(
    Object.keys(probes).filter((probe) => !seen.has(probe as ApplicationProbe)),
    [],
  );
});
