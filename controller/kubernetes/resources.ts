/**
 * What is read of an API server, and how an item of its lists and watches becomes one of our objects (api/kinds.ts): the
 * same value as a manifest in a directory gives. Items of lists do not say their kind; metadata are reduced to what is
 * kept, so that neither a field that a newer server adds nor `managedFields` matter; texts that thousands of objects
 * have in common are kept once (100,000 pods).
 */
import { type AnyObject, type KindName, kindScopes, objectKey, parseObject, sluiceKinds } from '../../api/kinds.ts';
import { API_VERSION } from '../../api/names.ts';
import { isRecord, sameJson } from '../../api/plan-delta.ts';
import type { SourceError } from '../observe/document.ts';

export interface Resource {
  kind: KindName;
  /** As parseObject wants it. */
  apiVersion: string;
  /** The best version first. */
  paths: readonly string[];
  /** What has to be installed for it to be there. */
  crd?: string;
}

export interface Reading {
  uid: string | undefined;
  object?: AnyObject;
  error?: SourceError;
}

/** What errors have for a file. */
export const API_SERVER = 'apiserver';

export const resources: readonly Resource[] = [
  { kind: 'Namespace', apiVersion: 'v1', paths: ['/api/v1/namespaces'] },
  { kind: 'Node', apiVersion: 'v1', paths: ['/api/v1/nodes'] },
  { kind: 'Service', apiVersion: 'v1', paths: ['/api/v1/services'] },
  {
    kind: 'EndpointSlice',
    apiVersion: 'discovery.k8s.io/v1',
    // In what is read here the two are the same; 1.20 has only the older one.
    paths: ['/apis/discovery.k8s.io/v1/endpointslices', '/apis/discovery.k8s.io/v1beta1/endpointslices'],
  },
  ...sluiceKinds.map(({ kind, plural }) => ({
    kind,
    apiVersion: API_VERSION,
    paths: [`/apis/${API_VERSION}/${plural}`],
    crd: `${plural}.${API_VERSION.replace(/\/.*/, '')}`,
  })),
  { kind: 'Pod', apiVersion: 'v1', paths: ['/api/v1/pods'] },
];

/** ConfigMaps are read one by one, with a field selector (config-maps.ts). */
export const configMaps = (namespace: string): Resource => ({
  kind: 'ConfigMap',
  apiVersion: 'v1',
  paths: [`/api/v1/namespaces/${namespace}/configmaps`],
});

const ownKinds = new Set<string>(sluiceKinds.map(({ kind }) => kind));
export const isOwn = (kind: string): boolean => ownKinds.has(kind);

const MAX_DETAILS = 20;
const metaFields = ['name', 'namespace', 'uid', 'labels', 'creationTimestamp', 'generation', 'deletionTimestamp'];

/** `before`: what is in force of an object; if the item says the same, it is the same value. */
export function readItem(
  { kind, apiVersion }: Resource,
  item: Record<string, unknown>,
  before: (key: string) => AnyObject | undefined,
): { key: string; reading: Reading } | undefined {
  const { metadata } = item;
  if (!isRecord(metadata)) return undefined;
  const key = keyOf(kind, metadata);
  if (key === undefined) return undefined;
  const { uid } = metadata;
  const known = typeof uid === 'string' ? uid : undefined;
  const parsed = parseObject({ ...item, apiVersion, kind, metadata: reduced(metadata) });
  if (!parsed.ok) {
    const details = parsed.errors
      .slice(0, MAX_DETAILS)
      .map(({ path, expected, got }) => `${path || '(object)'}: expected ${expected}, got ${got}`);
    return { key, reading: { uid: known, error: { file: API_SERVER, object: key, reason: 'Invalid', details } } };
  }
  return { key, reading: { uid: known, object: unlessEqual(before(key), shared(parsed.value)) } };
}

function keyOf(kind: KindName, { name, namespace }: Record<string, unknown>): string | undefined {
  if (typeof name !== 'string' || name === '' || name.length > 253) return undefined;
  if (kindScopes[kind] === 'cluster') return objectKey({ kind, metadata: { name } });
  if (typeof namespace !== 'string' || namespace === '' || namespace.length > 63) return undefined;
  return objectKey({ kind, metadata: { name, namespace } });
}

/** Annotations are anybody's, long, and changed often: only ours. */
function reduced(metadata: Record<string, unknown>): Record<string, unknown> {
  const kept: Record<string, unknown> = {};
  for (const field of metaFields) if (Object.hasOwn(metadata, field)) kept[field] = metadata[field];
  if (!isRecord(metadata.annotations)) return kept;
  const ours = Object.entries(metadata.annotations).filter(([name]) => name.startsWith('sluice.dev/'));
  return ours.length === 0 ? kept : { ...kept, annotations: Object.fromEntries(ours) };
}

const unlessEqual = (before: AnyObject | undefined, now: AnyObject): AnyObject =>
  before !== undefined && sameJson(before, now) ? before : now;

/** More than are in use at a time, in a cluster of a size that we are for; beyond it they are gathered anew. */
const MAX_SHARED = 30_000;
const texts = new Map<string, string>();
const labelSets = new Map<string, Record<string, string>>();

/** The same object, with its texts and labels those of others where they are equal. */
function shared(object: AnyObject): AnyObject {
  const { metadata } = object;
  if (metadata.namespace !== undefined) metadata.namespace = one(texts, metadata.namespace, metadata.namespace);
  if (metadata.labels !== undefined) metadata.labels = one(labelSets, JSON.stringify(metadata.labels), metadata.labels);
  if (object.kind !== 'Pod') return object;
  const { spec, status } = object;
  spec.serviceAccountName = one(texts, spec.serviceAccountName, spec.serviceAccountName);
  if (spec.nodeName !== undefined) spec.nodeName = one(texts, spec.nodeName, spec.nodeName);
  if (status.phase !== undefined) status.phase = one(texts, status.phase, status.phase);
  const [first] = status.podIPs ?? [];
  if (first !== undefined && first.ip === status.podIP) first.ip = status.podIP;
  return object;
}

function one<V>(table: Map<string, V>, key: string, value: V): V {
  const known = table.get(key);
  if (known !== undefined) return known;
  if (table.size >= MAX_SHARED) table.clear();
  table.set(key, value);
  return value;
}
