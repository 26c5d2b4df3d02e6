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

/** Of one object as many are kept as somebody might read. */
const MAX_FINDINGS = 64;

/** Problems found while planning, by object. The first of a type on an object is the one that its status shows. */
export class Findings {
  readonly #found = new Map<string, Condition[]>();

  add(objectKey: string, type: ConditionType, status: 'True' | 'False', reason: string, message: string): void {
    const list = this.#found.get(objectKey) ?? [];
    if (list.length < MAX_FINDINGS || !list.some((one) => one.type === type)) {
      list.push({ type, status, reason, message });
    }
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

  /** One of a type. */
  of(objectKey: string): Condition[] {
    return firstOfType(this.all(objectKey));
  }

  all(objectKey: string): readonly Condition[] {
    return this.#found.get(objectKey) ?? [];
  }

  /** Those that were made first come first. */
  static join(all: readonly Findings[]): Pick<Findings, 'of'> {
    const seen = new Map<string, Condition[]>();
    for (const findings of all) {
      for (const [key, list] of findings.#found) {
        const known = seen.get(key);
        seen.set(key, firstOfType(known === undefined ? list : [...known, ...list]));
      }
    }
    return { of: (key) => seen.get(key) ?? [] };
  }
}

const firstOfType = (list: readonly Condition[]): Condition[] =>
  list.filter(({ type }, at) => list.findIndex((one) => one.type === type) === at);
