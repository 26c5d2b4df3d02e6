/**
 * What policy asks of a flow's bytes (design §4.5): which protocols they may be, how long they are read, which names might
 * have its address. It says what to look for, never what may pass: that is the evaluator's, whose word most of it is.
 */
import { type Application, applications } from '../../api/application.ts';
import { contexts, type GroupEntry, type Policy } from '../../api/plan.ts';
import type { Reads } from '../../policy/decision.ts';
import { portRangesOf } from '../../policy/destination.ts';

export interface Asked {
  /** In the order in which they are tried. */
  applications: readonly Application[];
  /** Each request, question or connection is judged, not the first alone. */
  life: boolean;
  /** A request that servers may read in two ways is refused: hosts, methods or paths are asked for. */
  shapes: boolean;
  /** Exact names that decide if one of them has the address. */
  names: readonly string[];
}

export function askedOf(reads: Reads, shapes: boolean): Asked {
  return {
    applications: applications.filter((application) => reads.applications.has(application)),
    life: reads.life,
    shapes,
    names: [...reads.names],
  };
}

/** Whether any rule of a group asks for more of a request to that port than that it is one. */
export function asksForRequests(
  { rules, services }: Pick<Policy, 'rules' | 'services'>,
  group: GroupEntry,
  protocol: number,
  port: number | undefined,
): boolean {
  return contexts.some((context) =>
    group.rules[context].some((id) => {
      const names = rules[id]?.services ?? [];
      if (names === '*') return false;
      return names.some((name) =>
        services[name]?.checks?.some((check) => {
          if (check.http === undefined || check.protocol !== protocol) return false;
          const ranges = portRangesOf(check);
          return (
            ranges === null || (port !== undefined && ranges.some(([first, last]) => first <= port && port <= last))
          );
        }),
      );
    }),
  );
}
