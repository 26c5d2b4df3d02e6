/**
 * EgressIPPool and EgressIP (design §3): from which ranges source addresses are given out, and to whom.
 */

import { Type } from 'typebox';
import { bandwidthText } from './bandwidth.ts';
import { addressText, destinationText, label, labelSelectorSchema, objectName, oneOf, rangeText } from './common.ts';

/** CEL of a field that no update may change. */
export const IMMUTABLE = 'self == oldSelf';
/** Addresses per family that one EgressIP may draw, and of one whose workloads all have the same. */
export const COUNT_MAX = 1_024;
export const SHARED_COUNT_MAX = 64;
const immutable = (field: string) => [{ rule: IMMUTABLE, message: `${field} cannot be changed` }];

export const egressIPPoolSpec = Type.Object(
  {
    gatewayPool: objectName({
      description: 'GatewayPool that carries these addresses; cannot be changed',
      cel: immutable('gatewayPool'),
    }),
    ranges: Type.Array(rangeText(), {
      minItems: 1,
      maxItems: 256,
      listType: 'set',
      description: 'CIDR, FIRST-LAST or one address',
    }),
    exclude: Type.Array(rangeText(), {
      default: [],
      maxItems: 256,
      listType: 'set',
      description: 'Of the ranges, what is never given out',
    }),
    namespaceSelector: labelSelectorSchema({ description: 'Who may draw from it; {} is every namespace' }),
    quarantineSeconds: Type.Integer({
      minimum: 0,
      maximum: 604_800,
      default: 300,
      description: 'How long a released address is given to nobody',
    }),
  },
  { additionalProperties: false },
);

export const egressIPSpec = Type.Object(
  {
    pool: objectName({ description: 'EgressIPPool; cannot be changed', cel: immutable('pool') }),
    addresses: Type.Optional(
      Type.Array(addressText(), {
        minItems: 1,
        maxItems: 64,
        listType: 'set',
        description: 'These addresses of the pool; or count',
      }),
    ),
    count: Type.Optional(
      Type.Integer({
        minimum: 1,
        maximum: COUNT_MAX,
        description: `Per family that the pool has; of allocation Shared at most ${SHARED_COUNT_MAX}`,
      }),
    ),
    allocation: oneOf(['Shared', 'PerNamespace', 'PerPod'], {
      default: 'Shared',
      description:
        'Shared: all its workloads leave with the same addresses. PerNamespace, PerPod: each namespace, or pod by its name, has one address per family of them to itself, as long as there are enough',
    }),
    namespaces: Type.Optional(
      Type.Array(label(), {
        minItems: 1,
        maxItems: 256,
        listType: 'set',
        description: 'Names of the namespaces that leave with it; or namespaceSelector',
      }),
    ),
    namespaceSelector: Type.Optional(labelSelectorSchema({ description: 'Namespaces that leave with it' })),
    podSelector: Type.Optional(labelSelectorSchema({ description: 'Absent: every pod of them' })),
    destinations: Type.Optional(
      Type.Array(destinationText(), {
        minItems: 1,
        maxItems: 256,
        listType: 'set',
        description:
          'CIDRs, and NAMESPACE/NAME of ExternalServices, of which the addresses count; of several EgressIPs the longest prefix wins. Absent: all that no other names',
      }),
    ),
    spread: oneOf(['Pod', 'Connection'], {
      default: 'Pod',
      description: 'Of several addresses a pod keeps one, or uses all, by connection',
    }),
    maxConnections: Type.Optional(
      Type.Integer({
        minimum: 1,
        maximum: 10_000,
        description: 'Connections at once of all its addresses together; what is beyond is dropped',
      }),
    ),
    bandwidth: Type.Optional(
      Type.Object(
        {
          egress: Type.Optional(bandwidthText({ description: 'To the outside, as 50Mbit; absent: no limit' })),
          ingress: Type.Optional(bandwidthText({ description: 'From the outside, as 50Mbit; absent: no limit' })),
        },
        {
          additionalProperties: false,
          description: 'Of all its addresses together',
          cel: [{ rule: 'has(self.egress) || has(self.ingress)', message: 'egress or ingress is required' }],
        },
      ),
    ),
    priority: Type.Integer({ minimum: 0, maximum: 65_535, default: 1000, description: 'Lower first' }),
  },
  {
    additionalProperties: false,
    cel: [
      { rule: 'has(self.addresses) != has(self.count)', message: 'exactly one of addresses and count is required' },
      {
        rule: `!has(self.count) || self.count <= ${SHARED_COUNT_MAX} || (has(self.allocation) && self.allocation != 'Shared')`,
        message: `count is at most ${SHARED_COUNT_MAX}, but for allocation PerNamespace and PerPod`,
      },
      {
        rule: "!has(self.spread) || self.spread == 'Pod' || !has(self.allocation) || self.allocation == 'Shared'",
        message: 'spread Connection needs allocation Shared: of PerNamespace and PerPod each has one address',
      },
      {
        rule: 'has(self.namespaces) != has(self.namespaceSelector)',
        message: 'exactly one of namespaces and namespaceSelector is required',
      },
    ],
  },
);
