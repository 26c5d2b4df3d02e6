/**
 * A snapshot as the planner reads it: by kind, oldest first, and what belongs to a namespace by namespace. Made from the
 * snapshot before by what changed, so that one object among hundreds of thousands costs a walk over the snapshot, or
 * less where the snapshot says what changed (layered.ts), and lists in which nothing changed are the same lists.
 */
import type {
  AnyObject,
  EgressRule,
  EndpointSlice,
  ExternalService,
  Namespace,
  NamespaceEgressRule,
  Pod,
  ServiceEgressRule,
} from '../../api/kinds.ts';
import { LayeredSnapshot } from './layered.ts';
import { type Kind, older, oldestFirst, type Snapshot } from './snapshot.ts';

type OfKind<K extends Kind> = Extract<AnyObject, { kind: K }>;

/** Kinds of which all objects are looked at together. */
const whole = [
  'GatewayPool',
  'EgressIPPool',
  'EgressIP',
  'Namespace',
  'Node',
  'Service',
  'ClusterEgressRule',
] as const satisfies Kind[];
type Whole = { readonly [K in (typeof whole)[number]]: readonly OfKind<K>[] };

/** A value: a namespace in which something changed is another one. */
export interface NamespaceObjects {
  name: string;
  /** Absent: nobody wrote it, but something is in it. */
  namespace?: Namespace;
  pods: readonly Pod[];
  endpointSlices: readonly EndpointSlice[];
  externalServices: readonly ExternalService[];
  namespaceRules: readonly NamespaceEgressRule[];
  serviceRules: readonly ServiceEgressRule[];
}

const listOf = {
  Pod: 'pods',
  EndpointSlice: 'endpointSlices',
  ExternalService: 'externalServices',
  NamespaceEgressRule: 'namespaceRules',
  ServiceEgressRule: 'serviceRules',
} as const satisfies Partial<Record<Kind, keyof NamespaceObjects>>;

export interface Objects extends Whole {
  namespaces: ReadonlyMap<string, NamespaceObjects>;
  /** ExternalServices with `addressesFrom`. */
  listed: readonly ExternalService[];
  /** Rules that have a webhook. */
  webhookRules: readonly EgressRule[];
  counts: ReadonlyMap<string, number>;
}

/** Lists are values. */
const named = new WeakMap<readonly ExternalService[], Map<string, ExternalService>>();

/** By `namespace/name`. */
export function serviceNamed(namespaces: Objects['namespaces'], key: string): ExternalService | undefined {
  const slash = key.indexOf('/');
  const services = namespaces.get(key.slice(0, slash))?.externalServices;
  if (services === undefined) return undefined;
  let names = named.get(services);
  if (names === undefined) {
    names = new Map(services.map((service) => [service.metadata.name, service]));
    named.set(services, names);
  }
  return names.get(key.slice(slash + 1));
}

/** Few among many, found while objects are walked. */
const special = {
  listed: (object: AnyObject) => object.kind === 'ExternalService' && object.spec.addressesFrom !== undefined,
  webhookRules: (object: AnyObject) => object.kind.endsWith('EgressRule') && 'webhook' in (object as EgressRule).spec,
};

interface Change {
  before: AnyObject | undefined;
  now: AnyObject | undefined;
}

export class ObjectIndex {
  #snapshot: Snapshot = new Map();
  #objects: Objects = {
    ...(Object.fromEntries(whole.map((kind) => [kind, []])) as unknown as Whole),
    namespaces: new Map(),
    listed: [],
    webhookRules: [],
    counts: new Map(),
  };

  look(snapshot: Snapshot): Objects {
    if (snapshot === this.#snapshot) return this.#objects;
    const lists = new Lists();
    const counts = new Map(this.#objects.counts);
    for (const { before, now } of changes(this.#snapshot, snapshot)) {
      const kind = (now ?? before)?.kind ?? '';
      if (before === undefined) counts.set(kind, (counts.get(kind) ?? 0) + 1);
      if (now === undefined) counts.set(kind, (counts.get(kind) ?? 0) - 1);
      lists.add(before, now);
    }
    this.#objects = lists.apply(this.#objects, counts);
    this.#snapshot = snapshot;
    return this.#objects;
  }
}

/** The objects with one more, one less, or one instead of another. `before` is one of them. */
export function changed(objects: Objects, before: AnyObject | undefined, now: AnyObject | undefined): Objects {
  const lists = new Lists();
  lists.add(before, now);
  return lists.apply(objects, new Map(objects.counts));
}

/** Where nothing tells what changed, both are walked side by side: most entries are the same, at the same place. */
function* changes(before: Snapshot, now: Snapshot): Generator<Change> {
  const keys = LayeredSnapshot.keysBetween(before, now);
  for (const key of keys ?? []) {
    const change = { before: before.get(key), now: now.get(key) };
    if (change.before !== change.now) yield change;
  }
  if (keys !== undefined) return;
  const old = before.entries();
  let head = old.next();
  /** Keys of `now` that are at another place in `before`. */
  const elsewhere = new Set<string>();
  for (const [key, object] of now) {
    if (head.done || head.value[0] !== key) {
      for (; !head.done; head = old.next()) {
        if (!now.has(head.value[0])) yield { before: head.value[1], now: undefined };
        else if (!elsewhere.has(head.value[0])) break;
      }
    }
    if (!head.done && head.value[0] === key) {
      if (head.value[1] !== object) yield { before: head.value[1], now: object };
      head = old.next();
      continue;
    }
    elsewhere.add(key);
    const was = before.get(key);
    if (was !== object) yield { before: was, now: object };
  }
  for (; !head.done; head = old.next()) {
    if (!now.has(head.value[0])) yield { before: head.value[1], now: undefined };
  }
}

interface Edit {
  gone: Set<AnyObject>;
  come: AnyObject[];
}

/** Changes, gathered by the list that they belong to. */
class Lists {
  readonly #whole = new Map<Kind | keyof typeof special, Edit>();
  readonly #namespaces = new Map<string, Map<keyof typeof listOf, Edit>>();

  add(before: AnyObject | undefined, now: AnyObject | undefined): void {
    const { kind, metadata } = (now ?? before) as AnyObject;
    for (const name of Object.keys(special) as (keyof typeof special)[]) {
      const [was, is] = [before, now].map((object) =>
        object !== undefined && special[name](object) ? object : undefined,
      );
      if (was !== undefined || is !== undefined) edit(this.#whole, name, was, is);
    }
    if ((whole as readonly Kind[]).includes(kind)) edit(this.#whole, kind, before, now);
    if (Object.hasOwn(listOf, kind)) {
      const namespace = metadata.namespace ?? '';
      const lists = this.#namespaces.get(namespace) ?? new Map<keyof typeof listOf, Edit>();
      this.#namespaces.set(namespace, lists);
      edit(lists, kind as keyof typeof listOf, before, now);
    }
  }

  apply(last: Objects, counts: Map<string, number>): Objects {
    const objects: Record<string, unknown> = { ...last, counts };
    for (const [name, change] of this.#whole) {
      objects[name] = edited((last as unknown as Record<string, readonly AnyObject[]>)[name] ?? [], change);
    }
    const result = objects as unknown as Objects;
    const namespaceEdit = this.#whole.get('Namespace');
    if (this.#namespaces.size === 0 && namespaceEdit === undefined) return result;
    const namespaces = new Map(last.namespaces);
    const place = (name: string): NamespaceObjects => namespaces.get(name) ?? { ...noObjects, name };
    for (const object of namespaceEdit?.gone ?? []) {
      const { namespace, ...rest } = place(object.metadata.name);
      namespaces.set(object.metadata.name, rest);
    }
    for (const object of namespaceEdit?.come ?? []) {
      const { name } = object.metadata;
      namespaces.set(name, { ...place(name), namespace: object as Namespace });
    }
    for (const [name, edits] of this.#namespaces) {
      const was = place(name);
      const lists = [...edits].map(([kind, change]) => {
        const list: readonly AnyObject[] = was[listOf[kind]];
        return [listOf[kind], edited(list, change)] as const;
      });
      namespaces.set(name, { ...was, ...Object.fromEntries(lists) });
    }
    for (const name of [...this.#namespaces.keys(), ...[...(namespaceEdit?.gone ?? [])].map((o) => o.metadata.name)]) {
      const left = namespaces.get(name);
      if (left !== undefined && isEmpty(left)) namespaces.delete(name);
    }
    return { ...result, namespaces };
  }
}

const noObjects = { pods: [], endpointSlices: [], externalServices: [], namespaceRules: [], serviceRules: [] };
const isEmpty = (objects: NamespaceObjects): boolean =>
  objects.namespace === undefined && Object.values(listOf).every((list) => objects[list].length === 0);

function edit<K>(lists: Map<K, Edit>, name: K, before: AnyObject | undefined, now: AnyObject | undefined): void {
  const change = lists.get(name) ?? { gone: new Set(), come: [] };
  lists.set(name, change);
  if (before !== undefined) change.gone.add(before);
  if (now !== undefined) change.come.push(now);
}

function edited<O extends AnyObject>(list: readonly O[], { gone, come }: Edit): O[] {
  const stay = gone.size === 0 ? list : list.filter((object) => !gone.has(object));
  const fresh = oldestFirst(come as O[]);
  const result: O[] = [];
  let from = 0;
  for (const object of fresh) {
    // Where it belongs among those that stay.
    let [low, high] = [from, stay.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (older(stay[middle] as O, object) < 0) low = middle + 1;
      else high = middle;
    }
    for (; from < low; from++) result.push(stay[from] as O);
    result.push(object);
  }
  for (; from < stay.length; from++) result.push(stay[from] as O);
  return result;
}
