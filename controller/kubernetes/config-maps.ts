/**
 * ConfigMaps that ExternalServices take lists from, each read by itself with a field selector: no other ConfigMap comes
 * here, and a Role may name the few that Sluice may read. The first so many are watched; a tenant who refers to thousands
 * gets them polled, at a rate that the server bears, and costs nobody else his watch.
 */
import type { AnyObject } from '../../api/kinds.ts';
import type { Informer, InformerOptions } from './informer.ts';
import { configMaps, type Reading, type Resource } from './resources.ts';

const MAX_WATCHED = 256;
/** Of one namespace; the others of it are polled. */
const MAX_WATCHED_OF_NAMESPACE = 16;
const POLL_MS = 30_000;
/** Between two looks at any, if very many are polled. */
const POLL_SPACING_MS = 50;

type Parts = Pick<InformerOptions<Reading>, 'query' | 'pollMs'>;

export interface ConfigMapsOptions {
  start(resource: Resource, parts: Parts): Informer<Reading>;
  /** It is not referred to any more. */
  drop(resource: Resource): void;
}

interface Referred {
  resource: Resource;
  namespace: string;
  informer: Informer<Reading>;
  polled: boolean;
}

export class ReferredConfigMaps {
  readonly #options: ConfigMapsOptions;
  /** By `namespace/name`. */
  readonly #referred = new Map<string, Referred>();
  /** How many are watched, in all (`''`) and by namespace. */
  readonly #watched = new Map<string, number>();
  readonly #closing = new Set<Promise<void>>();

  constructor(options: ConfigMapsOptions) {
    this.#options = options;
  }

  /** Those that these objects refer to, and no others. */
  want(objects: Iterable<AnyObject>): void {
    const wanted = new Map<string, { namespace: string; name: string }>();
    for (const object of objects) {
      if (object.kind !== 'ExternalService') continue;
      const { namespace = '' } = object.metadata;
      for (const { configMapRef } of object.spec.addressesFrom ?? []) {
        if (configMapRef === undefined) continue;
        wanted.set(`${namespace}/${configMapRef.name}`, { namespace, name: configMapRef.name });
      }
    }
    for (const [key, one] of this.#referred) if (!wanted.has(key)) this.#end(key, one);
    for (const [key, { namespace, name }] of wanted) {
      if (!this.#referred.has(key)) this.#referred.set(key, this.#begin(namespace, name));
    }
  }

  /** Referred to, but not read yet. */
  get unread(): string[] {
    return [...this.#referred].flatMap(([key, { informer }]) => (informer.listed ? [] : [key]));
  }

  get informers(): Informer<Reading>[] {
    return [...this.#referred.values()].map(({ informer }) => informer);
  }

  async close(): Promise<void> {
    for (const [key, one] of this.#referred) this.#end(key, one);
    await Promise.all(this.#closing);
  }

  #begin(namespace: string, name: string): Referred {
    const polled = this.#count('') >= MAX_WATCHED || this.#count(namespace) >= MAX_WATCHED_OF_NAMESPACE;
    if (!polled) this.#add(namespace, 1);
    const resource = configMaps(namespace);
    const informer = this.#options.start(resource, {
      query: { fieldSelector: `metadata.name=${name}` },
      pollMs: polled ? () => Math.max(POLL_MS, POLL_SPACING_MS * (this.#referred.size - this.#count(''))) : undefined,
    });
    return { resource, namespace, informer, polled };
  }

  #end(key: string, { resource, namespace, informer, polled }: Referred): void {
    this.#referred.delete(key);
    if (!polled) this.#add(namespace, -1);
    const closing = informer.close().finally(() => this.#closing.delete(closing));
    this.#closing.add(closing);
    this.#options.drop(resource);
  }

  #count(of: string): number {
    return this.#watched.get(of) ?? 0;
  }

  #add(namespace: string, count: number): void {
    for (const of of ['', namespace]) this.#watched.set(of, this.#count(of) + count);
  }
}
