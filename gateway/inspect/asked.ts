/**
 * What policy asks of a flow's bytes (design §4.5): which protocols they may be, how long they are read, which names might
 * have its address. It says what to look for, never what may pass: that is the evaluator's, whose word most of it is.
 */
import { type Application, applications, tlsVersions } from '../../api/application.ts';
import { contexts, type GroupEntry, type Policy, type PortCheck } from '../../api/plan.ts';
import type { Reads } from '../../policy/decision.ts';
import { portRangesOf } from '../../policy/destination.ts';

export interface Asked {
  /** In the order in which they are tried. */
  applications: readonly Application[];
  /** Each request, question or connection is judged, not the first alone. */
  life: boolean;
  /** A request that servers may read in two ways is refused: hosts, methods or paths are asked for. */
  shapes: boolean;
  /** The highest that `minVersion` of TLS asks for, as on the wire; 0: none does. */
  leastVersion: number;
  /** Exact names that decide if one of them has the address. */
  names: readonly string[];
}

export function askedOf(reads: Reads, checks: readonly PortCheck[]): Asked {
  return {
    applications: applications.filter((application) => reads.applications.has(application)),
    life: reads.life,
    shapes: checks.some(({ http }) => http !== undefined),
    leastVersion: Math.max(
      0,
      ...checks.map(({ tls }) => (tls?.minVersion === undefined ? 0 : tlsVersions[tls.minVersion])),
    ),
    names: [...reads.names],
  };
}

/** What the rules of a group ask of flows to that port. */
export function checksAt(
  { rules, services }: Pick<Policy, 'rules' | 'services'>,
  group: GroupEntry,
  protocol: number,
  port: number | undefined,
): PortCheck[] {
  const ids = contexts.flatMap((context) => group.rules[context]);
  return ids.flatMap((id) => {
    const names = rules[id]?.services ?? [];
    if (names === '*') return [];
    return names.flatMap((name) =>
      (services[name]?.checks ?? []).filter((check) => {
        if (check.protocol !== protocol) return false;
        const ranges = portRangesOf(check);
        return ranges === null || (port !== undefined && ranges.some(([first, last]) => first <= port && port <= last));
      }),
    );
  });
}
