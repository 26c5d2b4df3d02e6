/** Conditions of the objects' status, without times (publish/status.ts keeps those), and a list that collects them. */

export type ConditionType = 'Accepted' | 'Programmed' | 'Conflicted' | 'WebhookFailing';

export interface Condition {
  type: ConditionType;
  status: 'True' | 'False';
  reason: string;
  message: string;
}

export interface Status {
  observedGeneration?: number;
  conditions: Condition[];
  [field: string]: unknown;
}

/** Problems found while planning, by object. The first of a type on an object is the one that is shown. */
export class Findings {
  readonly #found = new Map<string, Condition[]>();

  add(objectKey: string, type: ConditionType, status: 'True' | 'False', reason: string, message: string): void {
    const list = this.#found.get(objectKey) ?? [];
    if (!list.some((condition) => condition.type === type)) list.push({ type, status, reason, message });
    this.#found.set(objectKey, list);
  }

  /** The object is ignored, whole or in part. */
  refuse(objectKey: string, reason: string, message: string): void {
    this.add(objectKey, 'Accepted', 'False', reason, message);
  }

  /** Another object has what this one asks for; the message names it. */
  conflict(objectKey: string, reason: string, message: string): void {
    this.add(objectKey, 'Conflicted', 'True', reason, message);
  }

  of(objectKey: string): Condition[] {
    return this.#found.get(objectKey) ?? [];
  }

  /** Those that were made first come first. */
  static join(all: readonly Findings[]): Pick<Findings, 'of'> {
    const seen = new Map<string, Condition[]>();
    for (const findings of all) {
      for (const [key, list] of findings.#found) {
        const known = seen.get(key) ?? [];
        seen.set(key, [...known, ...list.filter(({ type }) => !known.some((other) => other.type === type))]);
      }
    }
    return { of: (key) => seen.get(key) ?? [] };
  }
}
