/**
 * Why a rule matches a flow, does not, or may, in plain words (design §9). Wording only; match.ts decides. Texts start
 * in lower case and have no full stop.
 */

import { formatAddress } from '../api/address.ts';
import { type ApplicationCheck, tlsVersions } from '../api/application.ts';
import { icmpText, isIcmp } from '../api/ports.ts';
import type { ApplicationReading } from './application.ts';
import type { CompiledRule, Known } from './decision.ts';
import { type Destination, protocolName } from './destination.ts';
import { type Match, namesHosts, type ServiceMatch } from './match.ts';
import { canRedirect } from './redirect.ts';

/** As many as a person reads. */
const MAX_NAMED = 4;

/** `service`: index of the external service that matched, negative if none did. */
export function describeMatch(
  rule: CompiledRule,
  destination: Destination,
  service: number,
  known: Known | undefined,
): string {
  const to = formatAddress(destination.address);
  if (rule.redirect !== undefined && !canRedirect(rule.redirect, destination)) {
    return `it redirects to ${formatAddress(rule.redirect.address)}, so it matches only TCP, UDP and SCTP of IPv${rule.redirect.address.family}`;
  }
  if (rule.entry.services === '*') return 'the rule names any destination';
  const matched = rule.services[service];
  if (matched?.match !== undefined) return howMatched(matched.name, matched.match, destination, known);
  if (matched) return `${traffic(destination)} to ${to} is in external service ${matched.name}`;
  if (rule.services.length === 0) return 'none of the external services that the rule names exists';

  const open = openText(rule, destination, known);
  if (open !== '') return open;
  const reasons: string[] = [];
  const elsewhere: string[] = [];
  for (const { name, test, match } of rule.services) {
    if (test === undefined) {
      reasons.push(`external service ${name} does not exist`);
      continue;
    }
    const probe = test(destination, known);
    if (probe === 'address' && match?.names.length !== 0 && match !== undefined) {
      reasons.push(`the name table has ${to} for none of the names of external service ${name}`);
    } else if (probe === 'address') elsewhere.push(name);
    else if (match !== undefined && !match.lists(destination) && (probe === 'protocol' || probe === 'port')) {
      reasons.push(`external service ${name} does not have ${traffic(destination)}`);
    } else if (probe === 'protocol') {
      reasons.push(`${to} is in external service ${name}, but not with ${protocolName(destination.protocol)}`);
    } else if (probe === 'port') {
      reasons.push(`${to} is in external service ${name}, but not with ${traffic(destination)}`);
    } else if (match !== undefined && known?.reading !== undefined) {
      reasons.push(`${missText(probe, to, known.reading, match, destination)} (external service ${name})`);
    }
  }
  const [only] = elsewhere;
  if (only !== undefined) {
    const which =
      elsewhere.length === 1
        ? `not in external service ${only}`
        : `in none of the ${elsewhere.length}${reasons.length > 0 ? ' other' : ''} external services`;
    reasons.push(`destination ${to} is ${which}`);
  }
  return reasons.join('; ');
}

/** What decides whether a rule matches that is open; '' if nothing is. */
function openText(rule: CompiledRule, destination: Destination, known: Known | undefined): string {
  const [first] = openServices(rule, destination, known);
  if (first === undefined) return '';
  return `${first.table ? 'the name table decides' : 'its first bytes decide'}: ${openFor(rule, destination, known)}`;
}

/** For what a rule that is open is asked. */
export function openFor(rule: CompiledRule, destination: Destination, known: Known | undefined): string {
  return openServices(rule, destination, known)
    .map(({ name, match }) => `${wanted(match, destination)} (external service ${name})`)
    .join('; or ');
}

function openServices(rule: CompiledRule, destination: Destination, known: Known | undefined) {
  return rule.services.flatMap(({ name, test, match }) => {
    const said = test?.(destination, known);
    return match === undefined || (said !== 'bytes' && said !== 'table')
      ? []
      : [{ name, match, table: said === 'table' }];
  });
}

/** What a service takes at a port, in words: `TLS for api.example.com`. */
function wanted(match: ServiceMatch, destination: Destination): string {
  const checks = match.checksOf(destination);
  const listed = match.lists(destination);
  if (checks.length === 0) return `${traffic(destination)} to an address of ${someOf(match.names)}`;
  return checks
    .map((check) => {
      const what = checkText(check);
      if (listed || match.names.length === 0) return what;
      const names = someOf(match.names);
      return namesHosts(check.application) ? `${what} for ${names}` : `${what} to an address of ${names}`;
    })
    .join(', or ');
}

function checkText({ application, tls, http, dns, conformance }: ApplicationCheck): string {
  const parts = [
    ...(tls?.serverNames === undefined ? [] : [`server name ${someOf(tls.serverNames)}`]),
    ...(tls?.minVersion === undefined ? [] : [`TLS ${tls.minVersion} or later`]),
    ...(tls?.alpn === undefined ? [] : [`ALPN only ${someOf(tls.alpn)}`]),
    ...(tls?.rejectEncryptedClientHello === true ? ['no Encrypted Client Hello'] : []),
    ...(http?.methods === undefined ? [] : [`method ${someOf(http.methods)}`]),
    ...(http?.hosts === undefined ? [] : [`host ${someOf(http.hosts)}`]),
    ...(http?.paths === undefined ? [] : [`path ${someOf(http.paths)}`]),
    ...(dns?.types === undefined ? [] : [`type ${someOf(dns.types)}`]),
    ...(dns?.names === undefined ? [] : [`question ${someOf(dns.names)}`]),
  ];
  const other = conformance === undefined || parts.length > 0 ? '' : ' or other bytes';
  return `${application}${other}${parts.length === 0 ? '' : ` (${parts.join('; ')})`}`;
}

/** `a, b or c`. */
function someOf(list: readonly string[]): string {
  const shown = list.slice(0, MAX_NAMED);
  if (list.length > MAX_NAMED) return `${shown.join(', ')} or ${list.length - MAX_NAMED} more`;
  const last = shown.at(-1) ?? '';
  return shown.length < 2 ? last : `${shown.slice(0, -1).join(', ')} or ${last}`;
}

function howMatched(name: string, match: ServiceMatch, destination: Destination, known: Known | undefined): string {
  const to = formatAddress(destination.address);
  const where = `${traffic(destination)} to ${to}`;
  const by = match.lists(destination) ? undefined : known && match.nameOf(to, known);
  const checks = match.checksOf(destination);
  if (checks.length === 0) {
    if (match.lists(destination)) return `${where} is in external service ${name} by its address alone`;
    return `${where} is in external service ${name} by its address alone, which the name table has for ${by}`;
  }
  const reading = known?.reading;
  if (reading === undefined) return `${where} is in external service ${name}`;
  const said = match.test(destination, known);
  const audited =
    said === 'unconforming' ? `, only since other bytes than ${protocolsOf(checks)} are let pass and counted` : '';
  return `${readingText(reading)}, ${where}, is in external service ${name}${audited}`;
}

const protocolsOf = (checks: readonly ApplicationCheck[]): string =>
  someOf([...new Set(checks.map(({ application }) => application))]);

/** What was read, in words. */
export function readingText({ application, name, literal, tls, http, dns }: ApplicationReading): string {
  switch (application) {
    case undefined:
      return 'no protocol that is known';
    case 'TLS':
    case 'QUIC': {
      const hello = tls?.encryptedClientHello === true ? ' (with Encrypted Client Hello)' : '';
      return `${application} ${name === undefined ? 'without a server name' : `for ${name}`}${hello}`;
    }
    case 'HTTP': {
      const host = name ?? literal;
      return `HTTP ${http === undefined ? '' : `${http.method} ${http.path} `}${host === undefined ? 'without a host' : `of ${host}`}`;
    }
    case 'DNS':
      return `a DNS question for ${name ?? 'no name'}${dns === undefined ? '' : `, type ${dns.type}`}`;
    default:
      return application;
  }
}

/** Why a reading is not the service's. */
function missText(
  miss: Match,
  to: string,
  reading: ApplicationReading,
  match: ServiceMatch,
  destination: Destination,
): string {
  const { name = 'no name', literal, tls, http, dns } = reading;
  switch (miss) {
    case 'application':
      return `its bytes are ${readingText(reading)}, where ${protocolsOf(match.checksOf(destination))} is asked for`;
    case 'server-name':
      return `${name} is none of the server names that are asked for`;
    case 'tls-version':
      return `it speaks at most ${versionText(tls?.version)}, which is too old`;
    case 'alpn':
      return tls === undefined || tls.alpn.length === 0
        ? 'it offers no ALPN, where some are asked for'
        : `of its ALPN (${tls.alpn.join(', ')}) not all are allowed`;
    case 'encrypted-client-hello':
      return 'its hello is encrypted (or may be), which is refused';
    case 'host':
      return `${name} is none of the hosts that are asked for`;
    case 'method':
      return `method ${http?.method ?? 'none'} is not asked for`;
    case 'path':
      return `path ${http?.path ?? 'none'} is not asked for`;
    case 'question':
      return `a question for ${name} is not asked for`;
    case 'question-type':
      return `a question of type ${dns?.type ?? 'none'} is not asked for`;
    case 'name':
      return `${name} is none of its names`;
    case 'unnamed':
      return `its bytes (${readingText(reading)}) name no host, where one is needed`;
    case 'not-given':
      return `the name table does not have ${to} for ${name}`;
    case 'literal':
      return `its host is the address ${literal}, which is not where it goes`;
    default:
      return 'it does not match';
  }
}

function versionText(version: number | undefined): string {
  const name = Object.entries(tlsVersions).find(([, number]) => number === version)?.[0];
  return name === undefined ? 'no version of TLS that is known' : `TLS ${name}`;
}

export function traffic({ protocol, port }: Destination): string {
  const name = protocolName(protocol);
  if (port === undefined) return name;
  return isIcmp(protocol) ? `${name} type ${icmpText(port)}` : `${name} port ${port}`;
}
