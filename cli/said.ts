/**
 * What a flow's first bytes say, as a person writes it (`sluice explain`): flags → what the evaluator takes as read. No name
 * table is at hand here: names that are given count as names of the destination, and the answer says so.
 */
import { type Command, InvalidArgumentError, Option } from 'commander';
import { canonicalAddress } from '../api/address.ts';
import { type Application, applications, type TlsVersion, tlsVersions } from '../api/application.ts';
import { parseDnsType } from '../api/dns-type.ts';
import { parseHostName } from '../api/host-name.ts';
import type { ApplicationReading } from '../policy/application.ts';
import type { Known } from '../policy/evaluate.ts';
import { namesHosts } from '../policy/match.ts';
import { pathOf } from '../wire/http1-target.ts';
import { Exit } from './output.ts';
import type { Target } from './target.ts';

export interface SaidFlags {
  application?: Application | 'other';
  sni?: string;
  alpn?: string[];
  tlsVersion?: TlsVersion;
  ech?: true;
  host?: { name: string } | { literal: string };
  method?: string;
  path?: string;
  qname?: string;
  qtype?: string;
}

/** What is taken as known of a flow. */
export interface Said {
  reading?: ApplicationReading;
  /** Names that the destination is taken to have. */
  names: string[];
}

export function addSaidOptions(command: Command): Command {
  return command
    .addOption(
      new Option('--application <name>', 'its first bytes are of that protocol, or of no known one').choices([
        ...applications,
        'other',
      ]),
    )
    .option('--sni <name>', 'its TLS (over UDP: QUIC) asks for that server', nameArgument)
    .option('--alpn <list>', 'and offers these, as h2,http/1.1 (the default)', (text) => text.split(','))
    .addOption(
      new Option('--tls-version <version>', 'and speaks that at most (default: 1.3)').choices(Object.keys(tlsVersions)),
    )
    .option('--ech', 'and its hello is encrypted')
    .option('--host <host>', 'its HTTP asks for that host', hostArgument)
    .option('--method <method>', 'with that method (default: GET)')
    .option('--path <path>', 'for that path (default: /)', pathArgument)
    .option('--qname <name>', 'its DNS asks for that name', nameArgument)
    .option('--qtype <type>', 'and that type (default: A)', typeArgument);
}

/** undefined: nothing is said of it. */
export function saidOf(flags: SaidFlags, target: Target, protocol: number): Said | undefined {
  const { name: own } = target;
  const application = applicationOf(flags, target, protocol);
  const names = own === undefined ? [] : [own];
  if (application === undefined) return own === undefined ? undefined : { names };
  if (protocol !== TCP && protocol !== UDP) throw new Exit(2, 'what a flow says is read of TCP and UDP only');
  const reading = application === 'other' ? {} : readingOf(application, flags, target);
  const named = namesHosts(reading.application) ? reading.name : undefined;
  return { reading, names: [...new Set([...(named === undefined ? [] : [named]), ...names])] };
}

export function knownBy({ reading, names }: Said): Known {
  return { ...(reading && { reading }), gives: (name) => names.includes(name), namesOf: () => names };
}

const TCP = 6;
const UDP = 17;

function applicationOf(flags: SaidFlags, { name, port }: Target, protocol: number): SaidFlags['application'] {
  const { application, sni, alpn, tlsVersion, ech, host, method, path, qname, qtype } = flags;
  const tls = protocol === UDP ? 'QUIC' : 'TLS';
  const said = new Set<SaidFlags['application']>([
    ...(application === undefined ? [] : [application]),
    ...([sni, alpn, tlsVersion, ech].some((flag) => flag !== undefined) ? ([tls] as const) : []),
    ...([host, method, path].some((flag) => flag !== undefined) ? (['HTTP'] as const) : []),
    ...([qname, qtype].some((flag) => flag !== undefined) ? (['DNS'] as const) : []),
  ]);
  if (said.size > 1) throw new Exit(2, `a flow says one thing, not ${[...said].join(' and ')}`);
  const [only] = said;
  if (only !== undefined || name === undefined) return only;
  // As ports of an ExternalService with names have it.
  if (port === 443) return protocol === TCP || protocol === UDP ? tls : undefined;
  return port === 80 && protocol === TCP ? 'HTTP' : undefined;
}

function readingOf(application: Application, flags: SaidFlags, { name: own, address }: Target): ApplicationReading {
  switch (application) {
    case 'TLS':
    case 'QUIC': {
      const name = flags.sni ?? own;
      const version = tlsVersions[flags.tlsVersion ?? '1.3'];
      const alpn = flags.alpn ?? (application === 'QUIC' ? ['h3'] : ['h2', 'http/1.1']);
      const tls = { version, alpn, encryptedClientHello: flags.ech === true };
      return { application, ...(name !== undefined && { name }), tls };
    }
    case 'HTTP': {
      const host = flags.host ?? (own === undefined ? { literal: address } : { name: own });
      return { application, ...host, http: { method: flags.method ?? 'GET', path: flags.path ?? '/' } };
    }
    case 'DNS':
      return {
        application,
        ...(flags.qname !== undefined && { name: flags.qname }),
        dns: { type: flags.qtype ?? 'A' },
      };
    default:
      return { application };
  }
}

export function nameArgument(text: string): string {
  const name = parseHostName(text);
  if (!name.ok) throw new InvalidArgumentError(`expected ${name.error}`);
  return name.value;
}

function hostArgument(text: string): { name: string } | { literal: string } {
  const address = canonicalAddress(text.replace(/^\[(.*)\]$/, '$1'));
  return address.ok ? { literal: address.value } : { name: nameArgument(text) };
}

function pathArgument(text: string): string {
  if (!text.startsWith('/')) throw new InvalidArgumentError('expected a path that begins with /');
  return pathOf(text).normal;
}

function typeArgument(text: string): string {
  const type = parseDnsType(text);
  if (!type.ok) throw new InvalidArgumentError(`expected ${type.error}`);
  return type.value;
}
