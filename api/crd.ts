/**
 * CustomResourceDefinitions (apiextensions.k8s.io/v1, structural schemas) rendered from the table of kinds. Written to
 * `deploy/crds/` by cli/render-crds.ts. What our own reading says beyond CEL (strict addresses, counts of next hops) the
 * controller says in the condition `Accepted`; the API server is not asked to do address arithmetic.
 */

import { stringify } from 'yaml';
import { API_GROUP } from './names.ts';
import { egressAddressKind, type KindInfo, sluiceKinds } from './schema/registry.ts';
import type { Keywords } from './schema/walk.ts';

type Json = Record<string, unknown>;

/** A structural schema: the keywords of JSON Schema that Kubernetes takes, and its own extensions. */
export function structural(schema: Keywords): Json {
  const out: Json = {};
  if (schema.description !== undefined) out.description = schema.description;
  if (schema.intOrString === true) {
    // The bounds of both branches stand side by side: each applies to its own type only.
    for (const branch of schema.anyOf ?? []) Object.assign(out, bounds(branch));
    out.anyOf = [{ type: 'integer' }, { type: 'string' }];
    out['x-kubernetes-int-or-string'] = true;
    return out;
  }
  out.type = schema.enum === undefined ? schema.type : 'string';
  if (schema.enum !== undefined) out.enum = schema.enum;
  Object.assign(out, bounds(schema));
  if (schema.default !== undefined) out.default = schema.default;
  if (schema.properties !== undefined) {
    out.properties = Object.fromEntries(Object.entries(schema.properties).map(([name, p]) => [name, structural(p)]));
    // The API server fills in defaults first, so a field with a default is never missing to it.
    const required = (schema.required ?? []).filter((name) => schema.properties?.[name]?.default === undefined);
    if (required.length > 0) out.required = required;
  }
  if (schema.mapType !== undefined) out['x-kubernetes-map-type'] = schema.mapType;
  const [values] = Object.values(schema.patternProperties ?? {});
  if (values !== undefined) out.additionalProperties = structural(values);
  if (schema.items !== undefined) {
    out.items = structural(schema.items);
    if (schema.listMapKeys !== undefined) {
      out['x-kubernetes-list-type'] = 'map';
      out['x-kubernetes-list-map-keys'] = schema.listMapKeys;
    } else out['x-kubernetes-list-type'] = schema.listType ?? 'atomic';
  }
  // Keys of maps have no bound to the API server, so a CEL rule over them would exceed its cost budget: none here.
  if (schema.cel !== undefined) out['x-kubernetes-validations'] = schema.cel;
  return out;
}

const boundKeywords = [
  'pattern',
  'minLength',
  'maxLength',
  'minimum',
  'maximum',
  'minItems',
  'maxItems',
  'maxProperties',
] as const;
function bounds(schema: Keywords): Json {
  return Object.fromEntries(
    boundKeywords.flatMap((word) => (schema[word] === undefined ? [] : [[word, schema[word]]])),
  );
}

const count = (description: string): Json => ({ type: 'integer', format: 'int64', minimum: 0, description });
const text = (maxLength: number): Json => ({ type: 'string', maxLength });

/** metav1.Condition, as a list map keyed by type, so that several writers can own conditions of their own. */
const conditions: Json = {
  type: 'array',
  maxItems: 32,
  'x-kubernetes-list-type': 'map',
  'x-kubernetes-list-map-keys': ['type'],
  items: {
    type: 'object',
    required: ['type', 'status', 'reason', 'message', 'lastTransitionTime'],
    properties: {
      type: { type: 'string', maxLength: 316 },
      status: { type: 'string', enum: ['True', 'False', 'Unknown'] },
      reason: { type: 'string', minLength: 1, maxLength: 1024, pattern: '^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$' },
      message: { type: 'string', maxLength: 32_768 },
      lastTransitionTime: { type: 'string', format: 'date-time', maxLength: 64 },
      observedGeneration: { type: 'integer', format: 'int64', minimum: 0 },
    },
  },
};

/** api/hits.ts, StatusCounters. */
function counters(of: string): Json {
  return {
    type: 'object',
    description: `What ${of} has met on all gateways: two significant digits, changed once a minute at most`,
    properties: {
      hits: count('Flows that it permitted or let on to the next context, and packets that it denied'),
      flows: count('Flows that it permitted or let on to the next context'),
      packets: count('Packets of flows that it permitted, both ways, and packets that it denied'),
      bytes: count('Bytes of these packets'),
      lastHit: { type: 'string', format: 'date-time', maxLength: 64, description: 'To the minute' },
    },
  };
}

/** What the controller says of an object of these kinds beside its conditions (controller/plan/status.ts). */
const facts: Partial<Record<KindInfo['kind'], Json>> = {
  GatewayPool: {
    shards: count('Shards, one for each next hop of a family'),
    namespaces: count('Namespaces that the pool carries'),
    auditedNamespaces: count('Namespaces whose whole policy is in audit'),
    workloads: count('Pods that the plan has'),
    gateways: {
      type: 'array',
      maxItems: 64,
      'x-kubernetes-list-type': 'map',
      'x-kubernetes-list-map-keys': ['name'],
      items: {
        type: 'object',
        required: ['name'],
        properties: {
          name: text(63),
          connected: { type: 'boolean' },
          generation: count('Of the plan that it has in force'),
          error: text(32_768),
        },
      },
    },
    defaultActionCounters: counters('its default action'),
  },
  EgressIPPool: { inUse: count('Addresses of it that are given out') },
  EgressIP: {
    addresses: {
      type: 'array',
      description: 'Addresses in force',
      maxItems: 128,
      items: text(45),
      'x-kubernetes-list-type': 'atomic',
    },
    assignments: {
      type: 'array',
      description: 'Where each address is: its shard, and the gateway that should have it',
      maxItems: 128,
      items: { type: 'object', properties: { address: text(45), shard: text(253), gateway: text(63) } },
      'x-kubernetes-list-type': 'atomic',
    },
    namespaces: count('Namespaces that leave with it'),
    limits: division('What each shard lets through: connections at once, and bits per second', [
      'maxConnections',
      'egress',
      'ingress',
    ]),
  },
  ExternalService: {
    lists: {
      type: 'array',
      description: 'Of each of addressesFrom: where it is from, and how many entries are in force',
      maxItems: 16,
      items: { type: 'object', properties: { from: text(4096), entries: count('Absent: no list yet') } },
      'x-kubernetes-list-type': 'atomic',
    },
    limits: division('What each shard lets through of a port with a bandwidth, in bits per second', ['bandwidth'], {
      port: text(63),
    }),
  },
};

/** How a limit is divided over shards: an entry for each shard, and each value of `also`. */
function division(description: string, limits: readonly string[], also: Json = {}): Json {
  return {
    type: 'array',
    description,
    maxItems: 1024,
    items: {
      type: 'object',
      required: ['pool', 'shard', ...Object.keys(also)],
      properties: {
        pool: { type: 'string', maxLength: 253 },
        shard: { type: 'string', maxLength: 63 },
        ...also,
        ...Object.fromEntries(limits.map((name) => [name, { type: 'integer', format: 'int64', minimum: 1 }])),
      },
    },
    'x-kubernetes-list-type': 'map',
    'x-kubernetes-list-map-keys': ['pool', 'shard', ...Object.keys(also)],
  };
}

function status(info: KindInfo): Json {
  const properties: Json = {
    observedGeneration: { type: 'integer', format: 'int64', minimum: 0 },
    conditions,
    ...facts[info.kind],
  };
  if (info.kind.endsWith('EgressRule')) {
    properties.counters = counters('the rule');
    properties.schedule = { type: 'string', enum: ['Open', 'Closed'], description: 'Of a rule with a schedule' };
    const limits = ['connectionsPerSecond', 'maxConnections', 'bandwidth'];
    properties.limits = division(
      'What each shard lets through of a rule with limits (bandwidth: bits per second)',
      limits,
    );
    properties.nextChange = {
      type: 'string',
      format: 'date-time',
      maxLength: 64,
      description: 'When its schedule opens or closes next',
    };
  }
  return { type: 'object', properties };
}

/** `status`: schema of the subresource; absent: the kind has none. */
export function crdOf(info: Omit<KindInfo, 'kind'> & { kind: string }, status?: Json): Json {
  const [group, version] = [API_GROUP, 'v1alpha1'];
  return {
    apiVersion: 'apiextensions.k8s.io/v1',
    kind: 'CustomResourceDefinition',
    metadata: { name: `${info.plural}.${group}` },
    spec: {
      group,
      scope: info.scope === 'cluster' ? 'Cluster' : 'Namespaced',
      names: {
        kind: info.kind,
        listKind: `${info.kind}List`,
        plural: info.plural,
        singular: info.singular,
        shortNames: info.shortNames,
        categories: ['sluice'],
      },
      versions: [
        {
          name: version,
          served: true,
          storage: true,
          ...(status !== undefined && { subresources: { status: {} } }),
          additionalPrinterColumns: info.columns,
          schema: {
            openAPIV3Schema: {
              description: info.description,
              type: 'object',
              required: ['spec'],
              properties: {
                apiVersion: { type: 'string' },
                kind: { type: 'string' },
                metadata: { type: 'object' },
                spec: structural(info.schema as Keywords),
                ...(status !== undefined && { status }),
              },
            },
          },
        },
      ],
    },
  };
}

/** File name below `deploy/crds/` → text. */
export function renderCrds(): Record<string, string> {
  const head = '# Rendered from api/schema by `npm run crds`. Do not edit.\n';
  const crds = [...sluiceKinds.map((info) => crdOf(info, status(info))), crdOf(egressAddressKind)];
  return Object.fromEntries(
    [...sluiceKinds, egressAddressKind].map(({ plural }, at) => [
      `${API_GROUP}_${plural}.yaml`,
      head + stringify(crds[at], { lineWidth: 0, aliasDuplicateObjects: false, version: '1.1' }),
    ]),
  );
}
