/**
 * Manifests of F5 Container Egress Service (`kubeovn.io/v1alpha1`) as its CRDs let them pass: what they refuse cannot
 * be in a cluster and is bad input here; fields that they do not know are pruned by the API server, and named here.
 * The group is Kube-OVN's own, so other kinds of it are passed over.
 */
import { Type } from 'typebox';
import type { ObjectMeta } from '../../api/kinds.ts';
import { isRecord } from '../../api/plan-delta.ts';
import { objectMetaSchema } from '../../api/schema/common.ts';
import { describe, show } from '../../api/schema/describe.ts';
import { type Keywords, walk } from '../../api/schema/walk.ts';
import { type Input, MAX_OBJECTS } from './report.ts';

const API = 'kubeovn.io/v1alpha1';

/** In all, so that aliases in the input cannot multiply. CES has no such bound. */
const MAX_ADDRESSES = 1_000_000;
const text = (maxLength: number, options: object = {}) => Type.String({ maxLength, ...options });

const externalService = Type.Object({
  metadata: objectMetaSchema,
  spec: Type.Object({
    addresses: Type.Array(text(1024), { maxItems: 100_000 }),
    ports: Type.Optional(
      Type.Array(
        Type.Object({
          name: Type.Optional(text(1024)),
          protocol: Type.Optional(text(64)),
          port: Type.Optional(
            text(8192, {
              pattern: '^([0-9]+(-[0-9]+)?(,[0-9]+(-[0-9]+)?)*)?$',
              expected: 'text in quotes with ports and ranges, as in "443,8000-8100"',
            }),
          ),
          bandwidth: Type.Optional(text(1024)),
        }),
        { maxItems: 4096 },
      ),
    ),
  }),
});
const rule = {
  action: Type.Enum(['accept', 'drop', 'accept-decisively', 'reject']),
  logging: Type.Optional(Type.Boolean()),
  externalServices: Type.Array(text(1024), { maxItems: 10_000 }),
};
const egressRule = Type.Object({ metadata: objectMetaSchema, spec: Type.Object(rule) });
const serviceRule = Type.Object({
  metadata: objectMetaSchema,
  spec: Type.Object({ ...rule, service: text(1024) }),
});

export type CesService = Type.Static<typeof externalService> & { kind: 'ExternalService' } & Place;
export type CesRule = Type.Static<typeof egressRule> & {
  kind: 'ClusterEgressRule' | 'NamespaceEgressRule' | 'ServiceEgressRule';
  /** Of a ServiceEgressRule only. */
  spec: { service?: string };
} & Place;
interface Place {
  key: string;
  at: string;
  /** Fields that CES does not have. */
  unknown: string[];
}
export type CesPort = NonNullable<CesService['spec']['ports']>[number];

const kinds = {
  ExternalService: externalService,
  ClusterEgressRule: egressRule,
  NamespaceEgressRule: egressRule,
  ServiceEgressRule: serviceRule,
} as const;
/** Unknown fields of one object that are named. */
const MAX_UNKNOWN = 10;

export interface CesManifests {
  services: CesService[];
  rules: CesRule[];
  /** ExternalIPRules of a later CES, by key and place. */
  externalIPRules: { key: string; at: string }[];
  passedOver: number;
  errors: string[];
}

export function readCes(inputs: readonly Input[]): CesManifests {
  const read: CesManifests = { services: [], rules: [], externalIPRules: [], passedOver: 0, errors: [] };
  const seen = new Map<string, string>();
  let addresses = 0;
  for (const { value, at } of inputs) {
    if (!isRecord(value)) {
      read.errors.push(`${at}: expected an object with apiVersion, kind and metadata, got ${describe(value)}`);
      continue;
    }
    const { apiVersion, kind } = value;
    const isEip = apiVersion === 'bigip.io/v1alpha1' && kind === 'ExternalIPRule';
    if (!isEip && (apiVersion !== API || typeof kind !== 'string' || !Object.hasOwn(kinds, kind))) {
      read.passedOver++;
      continue;
    }
    if (seen.size >= MAX_OBJECTS) {
      read.errors.push(`${at}: expected at most ${MAX_OBJECTS} objects, got more`);
      break;
    }
    const schema = isEip ? Type.Object({ metadata: objectMetaSchema }) : kinds[kind as keyof typeof kinds];
    const known = isEip ? null : fieldsOf(kind as keyof typeof kinds);
    const unknown = new Set<string>();
    const walked = walk(schema as Keywords, value, {
      maxErrors: 20,
      // Asked of every field: the way to learn of those that the schema passes over.
      absent: (pattern) => {
        if (known?.test(pattern) === false && unknown.size < MAX_UNKNOWN) unknown.add(pattern);
        return null;
      },
    });
    if (!walked.ok) {
      read.errors.push(
        ...walked.errors.map(({ path, expected, got }) => `${at}: ${path}: expected ${expected}, got ${got}`),
      );
      continue;
    }
    const object = walked.value as { metadata: ObjectMeta; spec: object };
    const scoped = kind !== 'ClusterEgressRule';
    if (scoped && object.metadata.namespace === undefined) {
      read.errors.push(`${at}: metadata.namespace: expected a namespace, got nothing`);
      continue;
    }
    // kubectl does the same with a namespace that does not belong there.
    if (!scoped) delete object.metadata.namespace;
    const { name, namespace } = object.metadata;
    const key = [kind, namespace, name].filter((part) => part !== undefined).join('/');
    const first = seen.get(key);
    if (first !== undefined) {
      read.errors.push(`${at}: expected each object once, got ${show(key)}, which is in ${first} too`);
      continue;
    }
    seen.set(key, at);
    const place = { key, at, unknown: [...unknown] };
    if (isEip) read.externalIPRules.push({ key, at });
    else if (kind === 'ExternalService') {
      const service = { ...object, kind, ...place } as CesService;
      addresses += service.spec.addresses.length;
      if (addresses > MAX_ADDRESSES) {
        read.errors.push(`${at}: expected at most ${MAX_ADDRESSES} addresses in all, got more`);
        break;
      }
      read.services.push(service);
    } else read.rules.push({ ...object, kind, ...place } as CesRule);
  }
  return read;
}

/** Paths with which the walk asks of the fields that a kind has; of metadata it asks of the API server's too. */
function fieldsOf(kind: keyof typeof kinds): RegExp {
  const fields = kind === 'ExternalService' ? 'addresses|ports' : 'action|logging|externalServices';
  const own = kind === 'ServiceEgressRule' ? `${fields}|service` : fields;
  return new RegExp(
    `^($|apiVersion$|kind$|status$|metadata|spec$|spec\\.(${own})(\\[\\])?$|spec\\.ports\\[\\]\\.(name|protocol|port|bandwidth)$)`,
  );
}
