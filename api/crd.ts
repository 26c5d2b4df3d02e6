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
const text = (maxLength: number, description: string): Json => ({ type: 'string', maxLength, description });

const SHARD = 'Name of the shard';
const GATEWAY_POOL = 'GatewayPool of the shard';
const observedGeneration: Json = {
  type: 'integer',
  format: 'int64',
  minimum: 0,
  description: 'Generation of the spec that is in force, or was looked at: of a newer one nothing is said yet',
};

/** metav1.Condition, as a list map keyed by type, so that several writers can own conditions of their own. */
const conditions: Json = {
  type: 'array',
  description:
    'Accepted: it is understood and used. Programmed: the gateways that matter have it in force. Conflicted: another object has what it asks for. WebhookFailing: its webhook is not delivered',
  maxItems: 32,
  'x-kubernetes-list-type': 'map',
  'x-kubernetes-list-map-keys': ['type'],
  items: {
    type: 'object',
    required: ['type', 'status', 'reason', 'message', 'lastTransitionTime'],
    properties: {
      type: text(316, 'Accepted, Programmed, Conflicted or WebhookFailing'),
      status: { type: 'string', enum: ['True', 'False', 'Unknown'], description: 'Whether it holds' },
      reason: {
        type: 'string',
        minLength: 1,
        maxLength: 1024,
        pattern: '^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$',
        description: 'Why, in one word for programs',
      },
      message: text(32_768, 'Why, for people'),
      lastTransitionTime: {
        ...text(64, 'When its status, not only its reason or message, changed last'),
        format: 'date-time',
      },
      observedGeneration,
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

const limitTexts: Readonly<Record<string, string>> = {
  maxConnections: 'Connections at once',
  connectionsPerSecond: 'New connections each second',
  egress: 'Bits each second to the outside',
  ingress: 'Bits each second from the outside',
  bandwidth: 'Bits each second in each direction',
};

/** What the controller says of an object of these kinds beside its conditions (controller/plan/status.ts). */
const facts: Partial<Record<KindInfo['kind'], Json>> = {
  GatewayPool: {
    shards: count('Shards, one for each next hop of a family'),
    namespaces: count('Namespaces that the pool carries'),
    auditedNamespaces: count('Namespaces whose whole policy is in audit'),
    workloads: count('Pods that the plan has'),
    connected: text(16, 'Gateways that are connected to the controller, of all: 2/3'),
    clusterCIDRs: {
      type: 'array',
      maxItems: 256,
      items: { type: 'string', maxLength: 64 },
      description: 'Of a pool that does not list them: what was found of the cluster, the first 256',
    },
    clusterCIDRsFound: text(1_024, 'Where these come from'),
    gateways: {
      type: 'array',
      description: 'What each gateway has said last',
      maxItems: 64,
      'x-kubernetes-list-type': 'map',
      'x-kubernetes-list-map-keys': ['name'],
      items: {
        type: 'object',
        required: ['name'],
        properties: {
          name: text(63, 'Name of the gateway'),
          connected: { type: 'boolean', description: 'Whether it is connected to the controller' },
          generation: count('Of the plan that it has in force'),
          error: text(32_768, 'Why it could not put the newest plan in force'),
        },
      },
    },
    defaultActionCounters: counters('its default action'),
  },
  EgressIPPool: { inUse: count('Addresses of it that are given out') },
  EgressIP: {
    addresses: {
      type: 'array',
      description: 'Addresses in force, of allocation Shared',
      maxItems: 128,
      items: text(45, 'An address'),
      'x-kubernetes-list-type': 'atomic',
    },
    gateways: {
      type: 'array',
      description: 'The gateways that should have these addresses, each once',
      maxItems: 64,
      items: text(63, 'Name of a gateway'),
      'x-kubernetes-list-type': 'atomic',
    },
    assignments: {
      type: 'array',
      description: 'Where each address is: its shard, and the gateway that should have it',
      maxItems: 2_048,
      items: {
        type: 'object',
        properties: {
          address: text(45, 'An address in force'),
          shard: text(253, SHARD),
          gateway: text(63, 'Name of the gateway; absent: the shard has none'),
        },
      },
      'x-kubernetes-list-type': 'atomic',
    },
    given: text(16, 'Of allocation PerNamespace and PerPod: owners of an address, of how many there may be: 3/8'),
    owners: {
      type: 'array',
      description: 'Of allocation PerNamespace and PerPod: who has which address to itself',
      maxItems: 1_024,
      items: {
        type: 'object',
        required: ['owner'],
        properties: {
          owner: text(317, 'NAMESPACE or NAMESPACE/POD'),
          addresses: {
            type: 'array',
            description: 'One of each family',
            maxItems: 2,
            items: text(45, 'An address'),
            'x-kubernetes-list-type': 'atomic',
          },
        },
      },
      'x-kubernetes-list-type': 'map',
      'x-kubernetes-list-map-keys': ['owner'],
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
      items: {
        type: 'object',
        properties: {
          from: text(4096, 'URL, file or ConfigMap'),
          entries: count('Entries of it in force; absent: no list yet'),
        },
      },
      'x-kubernetes-list-type': 'atomic',
    },
    limits: division('What each shard lets through of a port with a bandwidth, in bits per second', ['bandwidth'], {
      port: text(63, 'Name of the port'),
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
        pool: text(253, GATEWAY_POOL),
        shard: text(63, SHARD),
        ...also,
        ...Object.fromEntries(
          limits.map((name) => [name, { type: 'integer', format: 'int64', minimum: 1, description: limitTexts[name] }]),
        ),
      },
    },
    'x-kubernetes-list-type': 'map',
    'x-kubernetes-list-map-keys': ['pool', 'shard', ...Object.keys(also)],
  };
}

function status(info: KindInfo): Json {
  const properties: Json = {
    observedGeneration,
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
  return { type: 'object', description: 'What became of it. Written by the controller', properties };
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
                apiVersion: { type: 'string', description: `${group}/${version}` },
                kind: { type: 'string', description: info.kind },
                // The API server takes no text here, and has its own.
                metadata: { type: 'object' },
                spec: { description: info.description, ...structural(info.schema as Keywords) },
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
