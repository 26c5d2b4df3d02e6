/**
 * Writes the finalizers that objects must have (admission/finalizers.ts) to the API server: of ExternalServices, the only kind that
 * has some. What the objects have is read once, then what changed is written, one object at a time, over the version that was read.
 * What fails is tried again; who does not lead writes nothing.
 */
import { API_GROUP, API_VERSION } from '../../api/names.ts';
import type { Logger } from '../../daemon/log.ts';
import { withFinalizers } from '../admission/finalizers.ts';
import { obtain, obtainAll, Refused } from './obtain.ts';
import { type Api, type Json, MERGE, type Question, recordOf } from './requests.ts';

const AGAIN_MS = 5_000;
const KIND = 'ExternalService';
const VERSION = `/apis/${API_GROUP}/${API_VERSION.slice(API_GROUP.length + 1)}`;

type Wanted = ReadonlyMap<string, readonly string[]>;

export class FinalizerWriter {
  readonly #api: Api;
  readonly #log: Logger;
  readonly #mayWrite: () => boolean;
  #wanted: Wanted = new Map();
  /** Keys of objects that have one of ours, as far as is known; undefined: not read yet. */
  #having: Set<string> | undefined;
  #running: Promise<void> | undefined;
  #again: NodeJS.Timeout | undefined;
  #closed = false;

  constructor({ api, log, mayWrite }: { api: Api; log: Logger; mayWrite: () => boolean }) {
    this.#api = api;
    this.#log = log;
    this.#mayWrite = mayWrite;
  }

  /** Returns at once. By key of the object; all others must have none of ours. */
  want(wanted: Wanted): void {
    this.#wanted = wanted;
    this.#start();
  }

  #start(): void {
    if (this.#closed || !this.#mayWrite()) return;
    this.#running ??= this.#run()
      .catch((error: unknown) => {
        this.#log.warn(
          { reason: error instanceof Error ? error.message : String(error) },
          'finalizers cannot be written yet',
        );
        this.#again = setTimeout(() => this.#start(), AGAIN_MS);
      })
      .finally(() => {
        this.#running = undefined;
      });
  }

  async #run(): Promise<void> {
    this.#having ??= await this.#read();
    for (let key = this.#next(); key !== undefined && !this.#closed && this.#mayWrite(); key = this.#next()) {
      await this.#write(key, this.#having);
    }
  }

  #next(): string | undefined {
    const having = this.#having ?? new Set();
    for (const key of this.#wanted.keys()) if (!having.has(key)) return key;
    for (const key of having) if (!this.#wanted.has(key)) return key;
    return undefined;
  }

  async #read(): Promise<Set<string>> {
    const having = new Set<string>();
    for await (const item of obtainAll(this.#api, `${VERSION}/externalservices`)) {
      const { namespace, name, finalizers } = recordOf(item.metadata);
      // What would be changed if nothing were wanted has one.
      if (withFinalizers(textsOf(finalizers), [], false) !== undefined) having.add(`${KIND}/${namespace}/${name}`);
    }
    return having;
  }

  async #write(key: string, having: Set<string>): Promise<void> {
    const wanted = this.#wanted.get(key) ?? [];
    const [, namespace = '', name = ''] = key.split('/');
    const path = `${VERSION}/namespaces/${encodeURIComponent(namespace)}/externalservices/${encodeURIComponent(name)}`;
    const object = await this.#ask({ method: 'GET', path });
    const { finalizers, deletionTimestamp, resourceVersion } = recordOf(object.metadata);
    const next =
      object.metadata === undefined
        ? undefined
        : withFinalizers(textsOf(finalizers), wanted, deletionTimestamp !== undefined);
    const body = { metadata: { finalizers: next, resourceVersion } };
    if (next !== undefined) await this.#ask({ method: 'PATCH', path, body, contentType: MERGE });
    if (wanted.length > 0) having.add(key);
    else having.delete(key);
  }

  /** Empty: there is no such object. */
  async #ask(question: Omit<Question, 'timeoutMs'>): Promise<Json> {
    try {
      return await obtain(this.#api, question);
    } catch (error) {
      if (error instanceof Refused && error.status === 404) return {};
      throw error;
    }
  }

  async close(): Promise<void> {
    this.#closed = true;
    clearTimeout(this.#again);
    await this.#running;
  }
}

const textsOf = (value: unknown): string[] =>
  Array.isArray(value) ? value.filter((item): item is string => typeof item === 'string') : [];
