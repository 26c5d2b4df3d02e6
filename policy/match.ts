/**
 * Does a flow match an external service that has names or checks, given what is known of it (design §4.5, §4.6)? Three
 * answers: it does, it does not, or that is open until its bytes are read or the name table is asked.
 * A name is one of the destination where the bytes say so and the table agrees. Protocols that name no host in their bytes
 * (SSH, DNS: a question's name is not the resolver's) have the table alone. A veto needs less than a permit: the name
 * or, where none was said, the table; and it needs a check to hold only if somebody wrote that check.
 * Left out: services of addresses and ports alone (destination.ts), and which rules are asked.
 */

import { formatAddress, parseRange } from '../api/address.ts';
import type { Application } from '../api/application.ts';
import { NameSet, parseNamePattern } from '../api/host-name.ts';
import type { PortCheck, ServiceEntry } from '../api/plan.ts';
import { PrefixSet } from '../api/prefix-set.ts';
import { must } from '../api/result.ts';
import type { ApplicationProbe, ApplicationReading } from './application.ts';
import { compileApplication } from './application.ts';
import type { Known } from './decision.ts';
import { compilePorts, type Destination, type Probe } from './destination.ts';

/** The first thing that is not the service's. */
export type Miss =
  | Exclude<Probe, 'match'>
  | Exclude<ApplicationProbe, 'match' | 'audit'>
  /** The name that was read is none of the service's. */
  | 'name'
  /** No name was read, where one is needed. */
  | 'unnamed'
  /** The name is the service's, but the table does not have the address for it. */
  | 'not-given'
  /** An IP address was named that is not the destination. */
  | 'literal';

/**
 * `unconforming`: it does, but only since conformance is not enforced, which is counted. `bytes`, `table`: open until its
 * bytes are read, or until the name table is asked.
 */
export type Match = 'match' | 'unconforming' | 'bytes' | 'table' | Miss;

export interface ServiceMatch {
  test(destination: Destination, known: Known | undefined): Match;
  /** Those that cover the destination's port. */
  checksOf(destination: Destination): readonly PortCheck[];
  /** Of one source; of the checks that hold the one that lets most through. Absent: as many as it likes. */
  questionsPerSecond(destination: Destination, reading: ApplicationReading): number | undefined;
  /** Whether the address is its own without a name. */
  lists(destination: Destination): boolean;
  /** A name of its own that the table has the address for. */
  nameOf(address: string, known: Known): string | undefined;
  /** Patterns of names; none: it has only addresses. */
  names: readonly string[];
  /** Exact names for which the table may have to be asked, of flows that name none themselves. */
  exactNames: readonly string[];
}

/** Protocols in whose bytes a client says which host it means. */
const namingApplications: ReadonlySet<Application | undefined> = new Set<Application>(['TLS', 'HTTP', 'QUIC']);
export const namesHosts = (application: Application | undefined): boolean => namingApplications.has(application);

export interface MatchOptions {
  /** The rule drops or rejects. */
  denies: boolean;
  /** Nothing is open by a name that the table, when asked, has not for the address. */
  strict: boolean;
}

/** A plan holds canonical text; what cannot be read is our own mistake and throws. */
export function compileMatch(entry: ServiceEntry, { denies, strict }: MatchOptions): ServiceMatch {
  const addresses = PrefixSet.of(entry.addresses.map((text) => must(parseRange(text))));
  const ports = compilePorts(entry.ports);
  const checks = (entry.checks ?? []).map((check) => ({
    check,
    covers: compilePorts([check]),
    probe: compileApplication(check),
  }));
  const patterns = (entry.names ?? []).map((name) => must(parseNamePattern(name)));
  const names = patterns.length === 0 ? undefined : new NameSet(patterns);

  type Check = (typeof checks)[number];
  const covering = (destination: Destination): Check[] =>
    checks.filter(({ covers }) => covers(destination) === 'match');
  const nameOf = (address: string, known: Known): string | undefined =>
    names && known.namesOf(address).find((name) => names.has(name));
  const hasName = (address: string, known: Known): boolean => nameOf(address, known) !== undefined;

  function test(destination: Destination, known: Known | undefined): Match {
    const listed = addresses.has(destination.address);
    if (!listed && names === undefined) return 'address';
    const probe = ports(destination);
    if (probe !== 'match') return probe;
    const asked = covering(destination);
    if (asked.length === 0) {
      if (listed) return 'match';
      if (known === undefined) return 'table';
      return hasName(formatAddress(destination.address), known) ? 'match' : 'address';
    }
    if (known?.reading === undefined) {
      const hopeless = strict && !denies && known !== undefined && !listed;
      return hopeless && !hasName(formatAddress(destination.address), known) ? 'address' : 'bytes';
    }
    const address = formatAddress(destination.address);
    return denies
      ? denied(asked, listed, address, known, known.reading)
      : permitted(asked, listed, address, known, known.reading);
  }

  /** Why not, or the check that holds. */
  function permitted(
    asked: Check[],
    listed: boolean,
    address: string,
    known: Known,
    reading: ApplicationReading,
  ): Match {
    let miss: Match = 'application';
    let audited: Match | undefined;
    for (const { check, probe } of asked) {
      const said = probe(reading);
      if (said !== 'match' && said !== 'audit') {
        // Of a check of this protocol, what does not hold says more than that others are of another.
        if (miss === 'application') miss = said;
        continue;
      }
      const where = placed(check.application, listed, address, known, reading);
      if (where !== 'match') miss = where;
      else if (said === 'match') return 'match';
      else audited = 'unconforming';
    }
    return audited ?? miss;
  }

  /** Whether the destination is the service's, for bytes with which that check holds. */
  function placed(
    application: Application,
    listed: boolean,
    address: string,
    known: Known,
    { name, literal }: ApplicationReading,
  ): Match {
    if (listed && (literal === undefined || literal === address)) return 'match';
    if (literal !== undefined && name === undefined) return 'literal';
    if (!namesHosts(application)) return hasName(address, known) ? 'match' : 'address';
    if (name === undefined) return 'unnamed';
    if (names === undefined || !names.has(name)) return 'name';
    return known.gives(name, address) ? 'match' : 'not-given';
  }

  function denied(asked: Check[], listed: boolean, address: string, known: Known, reading: ApplicationReading): Match {
    const written = asked.filter(({ check }) => check.implied !== true);
    if (written.length > 0) {
      const probes = written.map(({ probe }) => probe(reading));
      const holds = probes.some((probe) => probe === 'match' || probe === 'audit');
      if (!holds) return (probes.find((probe) => probe !== 'application') ?? 'application') as Miss;
    }
    if (listed) return 'match';
    const name = namesHosts(reading.application) ? reading.name : undefined;
    if (name !== undefined && names?.has(name) === true) return 'match';
    // The name of a hello that hides another is not the host's.
    if (name !== undefined && reading.tls?.encryptedClientHello !== true) return 'name';
    return hasName(address, known) ? 'match' : 'address';
  }

  return {
    test,
    checksOf: (destination) => covering(destination).map(({ check }) => check),
    questionsPerSecond(destination, reading) {
      const rates = covering(destination)
        .filter(({ probe }) => probe(reading) === 'match')
        .map(({ check }) => check.dns?.maxQuestionsPerSecond);
      return rates.length === 0 || rates.includes(undefined) ? undefined : Math.max(...(rates as number[]));
    },
    lists: ({ address }) => addresses.has(address),
    nameOf,
    names: entry.names ?? [],
    exactNames: patterns.flatMap(({ kind, name }) => (kind === 'exact' ? [name] : [])),
  };
}
