/**
 * The one way in which subjects are measured beside one another: in rounds, each of which takes all subjects, every second
 * in reverse order; a round may be cut into slices, taken in turn. A round before the first is not counted: neighbours are
 * found, code and caches are warm. After `rounds` there are more while nothing is decided, at most `mostRounds`.
 */

export interface Turn<S> {
  subject: S;
  /** -1: not counted. */
  round: number;
  slice: number;
  /** Of this round. */
  slices: number;
}

/** By subject: round, slice. */
export type Samples<S extends string, T> = Partial<Record<S, T[][]>>;

export interface Rounds<S extends string, T> {
  subjects: readonly S[];
  rounds: number;
  mostRounds: number;
  slices?: number;
  /** Fewer rounds than others have, for who is only to be seen beside them. */
  roundsOf?(subject: S): number;
  measure(turn: Turn<S>): Promise<T>;
  /** Asked after `rounds` and after each that follows. */
  decided(samples: Samples<S, T>): boolean;
  /** Asked after each round: no more of them, whatever is decided. */
  late?(): boolean;
  /** A subject that fails has no samples, and no more turns; absent: then there are none for anybody. */
  onFailure?(subject: S, error: unknown): void;
}

export async function inRounds<S extends string, T>(of: Rounds<S, T>): Promise<Samples<S, T>> {
  const samples: Samples<S, T> = {};
  const failed = new Set<S>();
  for (let round = -1; round < of.mostRounds; round++) {
    if (round >= of.rounds && of.decided(samples)) break;
    if (round > 0 && of.late?.()) break;
    const taken = new Map<S, T[]>();
    const slices = round < 0 ? 1 : (of.slices ?? 1);
    const taking = of.subjects.filter(
      (subject) => !failed.has(subject) && round < (of.roundsOf?.(subject) ?? Infinity),
    );
    for (let slice = 0; slice < slices; slice++) {
      for (const subject of (round + slice) % 2 === 0 ? taking : taking.toReversed()) {
        if (failed.has(subject)) continue;
        try {
          const sample = await of.measure({ subject, round, slice, slices });
          taken.set(subject, [...(taken.get(subject) ?? []), sample]);
        } catch (error) {
          if (of.onFailure === undefined) throw error;
          failed.add(subject);
          delete samples[subject];
          taken.delete(subject);
          of.onFailure(subject, error);
        }
      }
    }
    if (round < 0) continue;
    for (const [subject, list] of taken) samples[subject] = [...(samples[subject] ?? []), list];
  }
  return samples;
}
