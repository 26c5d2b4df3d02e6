/**
 * Samples of what flows may say, by which two policies are compared where names and bytes decide (simulate): every name
 * that some pattern tells from others, every value that a check names and one that none does, bytes of no known protocol;
 * each to an address that the name table has for the name, and to one that it has not.
 * Left out: two such values that only together make a difference, and hidden hellos whose inner name differs.
 */

import { type Application, type TlsVersion, tlsVersions } from '../../api/application.ts';
import { parseNamePattern } from '../../api/host-name.ts';
import type { PortCheck, ServiceEntry } from '../../api/plan.ts';
import { must } from '../../api/result.ts';
import type { ApplicationReading } from '../application.ts';
import type { Known } from '../decision.ts';
import { compilePorts, type Destination } from '../destination.ts';
import { readingText } from '../explain-match.ts';
import { isRead } from '../external-service.ts';
import { namesHosts } from '../match.ts';

export interface Sample {
  /** In words. */
  text: string;
  known: Known;
}

/** Of flows to that destination; none: addresses and ports decide there, whatever is said. */
export function samplesOf(services: readonly ServiceEntry[], destination: Destination): Sample[] {
  const near = services.filter((entry) => isRead(entry) && compilePorts(entry.ports)(destination) === 'match');
  const checks = near.flatMap((entry) =>
    (entry.checks ?? [])
      .filter((check) => compilePorts([check])(destination) === 'match')
      .map((check) => ({ check, entry })),
  );
  const hosts = samplesOfNames(near.flatMap(({ names = [] }) => names));
  const samples = new Map<string, Sample>();
  const add = (reading: ApplicationReading | undefined, has: readonly string[], text: string): void => {
    const known = {
      ...(reading && { reading }),
      gives: (name: string) => has.includes(name),
      namesOf: () => has,
    };
    if (!samples.has(text)) samples.set(text, { text, known });
  };
  if (checks.length === 0) {
    for (const name of hosts) add(undefined, [name], `to an address of ${name}`);
    if (near.length > 0) add(undefined, [], 'to an address of no such name');
    return [...samples.values()];
  }
  add({}, [], readingText({}));
  for (const name of hosts) add({}, [name], `${readingText({})}, to an address of ${name}`);
  for (const { check, entry } of checks) {
    const own = samplesOfNames([...(entry.names ?? []), ...asked(check)]);
    const alike = checks.map((other) => other.check).filter(({ application }) => application === check.application);
    for (const reading of readingsOf(check, own, hosts, alike)) {
      const text = `${readingText(reading)}${detail(reading)}`;
      if (!namesHosts(reading.application) || reading.name === undefined) {
        add(reading, [], text);
        for (const name of hosts) add(reading, [name], `${text}, to an address of ${name}`);
        continue;
      }
      add(reading, [reading.name], text);
      if (hosts.length > 0) add(reading, [], `${text}, to an address that is not known as its own`);
    }
  }
  return [...samples.values()];
}

/** Names in each place that some pattern tells from others. */
function samplesOfNames(patterns: readonly string[]): string[] {
  const bases = new Set(patterns.map((pattern) => must(parseNamePattern(pattern)).name));
  let label = 'any';
  while ([...bases].some((base) => base.split('.').includes(label))) label += '1';
  const isOpen = patterns.some((pattern) => pattern.startsWith('*'));
  const found = [...bases].flatMap((base) => [
    base,
    ...(isOpen ? [`${label}.${base}`, `${label}.${label}.${base}`] : []),
  ]);
  return [...new Set(found)];
}

/** Names that a check asks for itself. */
const asked = ({ tls, http, dns }: PortCheck): readonly string[] => tls?.serverNames ?? http?.hosts ?? dns?.names ?? [];

/** One that the check takes, for each name; and for each value that it or its like name, one with that. */
function* readingsOf(
  check: PortCheck,
  own: readonly string[],
  hosts: readonly string[],
  alike: readonly PortCheck[],
): Generator<ApplicationReading> {
  const { application } = check;
  const names = [...new Set([...own, ...hosts, ...alike.flatMap(asked)])];
  const [first] = own;
  const base = baseOf(check);
  const named = (name: string | undefined, reading: ApplicationReading) => ({ ...reading, ...(name && { name }) });
  if (readsNames.has(application)) for (const name of names) yield named(name, base);
  yield base;
  for (const reading of variantsOf(base, alike)) yield named(first, reading);
}

const readsNames: ReadonlySet<Application> = new Set(['TLS', 'QUIC', 'HTTP', 'DNS']);
const other = { alpn: 'other', method: 'OTHER', path: '/other', type: 'TYPE65280' } as const;

function baseOf({ application, tls, http, dns }: PortCheck): ApplicationReading {
  switch (application) {
    case 'TLS':
    case 'QUIC':
      return {
        application,
        tls: { version: tlsVersions['1.3'], alpn: tls?.alpn?.slice(0, 1) ?? [], encryptedClientHello: false },
      };
    case 'HTTP':
      return { application, http: { method: http?.methods?.[0] ?? 'GET', path: pathIn(http?.paths?.[0]) } };
    case 'DNS':
      return { application, dns: { type: dns?.types?.[0] ?? 'A' } };
    default:
      return { application };
  }
}

const pathIn = (path = '/'): string => path.replace(/\*$/, 'any');

function* variantsOf(
  { application, tls, http, dns }: ApplicationReading,
  alike: readonly PortCheck[],
): Generator<ApplicationReading> {
  if (application === undefined) return;
  const of = <T>(values: (check: PortCheck) => readonly T[] | undefined, otherwise: T): T[] => {
    const listed = alike.flatMap((check) => values(check) ?? []);
    return listed.length === 0 ? [] : [...new Set([...listed, otherwise])];
  };
  if (tls !== undefined) {
    if (alike.some((check) => check.tls?.minVersion !== undefined)) {
      for (const version of Object.keys(tlsVersions) as TlsVersion[])
        yield { application, tls: { ...tls, version: tlsVersions[version] } };
    }
    for (const alpn of of((check) => check.tls?.alpn, other.alpn)) yield { application, tls: { ...tls, alpn: [alpn] } };
    yield { application, tls: { ...tls, alpn: [] } };
    yield { application, tls: { ...tls, encryptedClientHello: true } };
  }
  if (http !== undefined) {
    for (const method of of((check) => check.http?.methods, other.method))
      yield { application, http: { ...http, method } };
    for (const path of of((check) => check.http?.paths?.map(pathIn), other.path))
      yield { application, http: { ...http, path } };
  }
  if (dns !== undefined)
    for (const type of of((check) => check.dns?.types, other.type)) yield { application, dns: { type } };
}

/** What tells readings of one name apart. */
function detail({ tls }: ApplicationReading): string {
  if (tls === undefined) return '';
  const version = Object.entries(tlsVersions).find(([, number]) => number === tls.version)?.[0] ?? '';
  const parts = [
    ...(version === '1.3' ? [] : [`TLS ${version}`]),
    ...(tls.alpn.length === 0 ? [] : [`ALPN ${tls.alpn.join()}`]),
  ];
  return parts.length === 0 ? '' : ` (${parts.join(', ')})`;
}
