/**
 * GatewayPool (design §3): the gateways that carry one cluster's traffic, where their next hops are, how nodes steer
 * to them and what happens to a flow that no rule permits.
 */

import { Type } from 'typebox';
import { TUNNEL_PORT } from '../names.ts';
import {
  addressText,
  authority,
  interfaceName,
  label,
  labelSelectorSchema,
  oneOf,
  prefixText,
  rangeText,
} from './common.ts';

const gateway = Type.Object(
  {
    name: label({ description: 'Name by which the gateway program says hello' }),
    internalAddress: addressText({ description: 'Underlay address on the inside, the end of the tunnels' }),
    weight: Type.Integer({
      minimum: 1,
      maximum: 100,
      default: 1,
      description: 'Share of the shards, relative to the other gateways',
    }),
  },
  { additionalProperties: false },
);

/** By the pattern a text with a colon is IPv6, and one without is IPv4. */
const routers = Type.Object(
  {
    v4: Type.Optional(
      addressText({
        description: 'Next hop of IPv4',
        cel: [{ rule: "!self.contains(':')", message: 'an IPv4 address' }],
      }),
    ),
    v6: Type.Optional(
      addressText({
        description: 'Next hop of IPv6',
        cel: [{ rule: "self.contains(':')", message: 'an IPv6 address' }],
      }),
    ),
  },
  { additionalProperties: false, description: 'Routers on the external link; absent: the routes of the machine' },
);

const nextHopRanges = (text: string, rule: string) =>
  Type.Optional(
    Type.Array(rangeText(), {
      maxItems: 64,
      minItems: 1,
      listType: 'set',
      description: `CIDR, FIRST-LAST or one address, of ${text}`,
      cel: [{ rule: `self.all(range, ${rule})`, message: `${text} addresses` }],
    }),
  );

export const gatewayPoolSpec = Type.Object(
  {
    namespaceSelector: labelSelectorSchema({ description: 'Whom this pool carries; {} is every namespace' }),
    mode: oneOf(['Enforce', 'Audit'], {
      default: 'Enforce',
      description:
        'Audit: what the policy would drop or reject is counted and logged, and passes with its egress IP. Of one namespace: its label sluice.dev/mode: Audit',
    }),
    gateways: Type.Array(gateway, {
      minItems: 1,
      maxItems: 64,
      description: 'The Linux machines of this pool',
      listMapKeys: ['name'],
      cel: [
        {
          rule: "self.all(one, one.internalAddress.contains(':') == self[0].internalAddress.contains(':'))",
          message: 'internalAddress is of one family in all gateways',
        },
        {
          rule: 'self.all(one, self.exists_one(other, other.internalAddress == one.internalAddress))',
          message: 'internalAddress is another in each gateway',
        },
      ],
    }),
    interfaces: Type.Object(
      {
        internal: interfaceName({ description: 'Where nodes reach the gateways' }),
        external: Type.Object(
          {
            name: interfaceName({ description: 'Where traffic leaves; may be the same with tunnels' }),
            gateway: Type.Optional(routers),
          },
          { additionalProperties: false, description: 'The link to the outside' },
        ),
      },
      { additionalProperties: false, description: 'Links of the gateways, of the same names on each' },
    ),
    nextHops: Type.Object(
      {
        v4: nextHopRanges('IPv4', "!range.contains(':')"),
        v6: nextHopRanges('IPv6', "range.contains(':')"),
      },
      {
        additionalProperties: false,
        description: 'Virtual addresses on the inside: one per shard and family, equally many of each family',
        cel: [{ rule: 'has(self.v4) || has(self.v6)', message: 'v4 or v6 is required' }],
      },
    ),
    steering: Type.Object(
      {
        mode: oneOf(['VXLAN', 'Direct'], {
          default: 'VXLAN',
          description:
            'How nodes reach the gateways: through a tunnel, or as next hops on the inside segment. Direct trusts that segment: whoever is on it can send with the source of a workload. vni, port and mtu are of the tunnel',
        }),
        vni: Type.Integer({
          minimum: 1,
          maximum: 16_777_215,
          default: 7790,
          description: "Number of the tunnel's network",
        }),
        port: Type.Integer({
          minimum: 1,
          maximum: 65_535,
          default: TUNNEL_PORT,
          description: 'UDP port of the tunnel, not the one of the CNI',
        }),
        mtu: Type.Optional(
          Type.Integer({
            minimum: 1280,
            maximum: 65_000,
            description: 'Of the tunnel; absent: measured from the link',
          }),
        ),
      },
      { additionalProperties: false, default: {}, description: 'How packets get from nodes to gateways' },
    ),
    defaultAction: oneOf(['Drop', 'Accept'], {
      default: 'Drop',
      description: 'What a flow meets that no rule permits',
    }),
    unassigned: oneOf(['Drop', 'Bypass'], {
      default: 'Bypass',
      description: 'What a workload meets that no EgressIP selects: dropped, or not steered at all',
    }),
    clusterCIDRs: Type.Optional(
      Type.Array(prefixText(), {
        maxItems: 256,
        listType: 'set',
        description:
          'Pods, services and nodes: never steered, never forwarded to. Absent: what Nodes and Services say, see status',
      }),
    ),
    excludedCIDRs: Type.Array(prefixText(), {
      default: [],
      maxItems: 256,
      listType: 'set',
      description: 'Destinations left alone',
    }),
    dns: Type.Optional(
      Type.Object(
        {
          resolvers: Type.Array(addressText(), {
            minItems: 1,
            maxItems: 16,
            listType: 'set',
            description: 'Whose answers say which addresses a name has; gateways ask them, too',
          }),
          strict: Type.Boolean({
            default: false,
            description:
              'A flow that only a name could permit is dropped at its first packet if no name has its address by then',
          }),
        },
        { additionalProperties: false, description: 'Absent: no name has an address, so no rule permits by name' },
      ),
    ),
    inspection: Type.Optional(
      Type.Object(
        {
          workers: Type.Optional(
            Type.Integer({
              minimum: 1,
              maximum: 64,
              description: 'Threads of each gateway that read flows; absent: one a processor, at most 8',
            }),
          ),
          onOverload: oneOf(['Drop', 'Accept'], {
            default: 'Drop',
            description: 'What becomes of flows that cannot be read for want of threads or room',
          }),
        },
        {
          additionalProperties: false,
          description: 'How flows are read that rules ask more of than addresses and ports',
        },
      ),
    ),
    vrrp: Type.Optional(
      Type.Object(
        {
          baseId: Type.Integer({
            minimum: 1,
            maximum: 255,
            default: 1,
            description:
              'Virtual router of the first shard, and one more for each further: no other router on the links may have one of them',
          }),
          advertIntervalMs: Type.Integer({
            minimum: 10,
            maximum: 40_950,
            default: 40,
            description: 'Between two advertisements, in tens; three of silence and another gateway takes over',
            cel: [{ rule: 'self % 10 == 0', message: 'a multiple of 10' }],
          }),
          failback: oneOf(['Immediate', 'Delayed', 'Never'], {
            default: 'Immediate',
            description: 'When a shard goes back to a gateway that comes before the one that has it and works',
          }),
          failbackDelaySeconds: Type.Integer({
            minimum: 1,
            maximum: 86_400,
            default: 60,
            description: 'Of failback Delayed: since that gateway is there again',
          }),
        },
        {
          additionalProperties: false,
          description:
            'Gateways agree among themselves on who has a shard, and another takes over when one fails. Absent: a shard stays with its first gateway',
        },
      ),
    ),
    fetch: Type.Object(
      {
        allowedHosts: Type.Array(
          Type.String({
            pattern: '^[A-Za-z0-9_.:\\[\\]-]+$',
            minLength: 1,
            maxLength: 261,
            expected: 'HOST or HOST:PORT (an IPv6 address in brackets)',
            cel: [{ rule: `self.matches('^${authority}$')`, message: 'HOST or HOST:PORT' }],
          }),
          {
            default: [],
            maxItems: 256,
            listType: 'set',
            description:
              'HOST or HOST:PORT (443 if absent) from which the controller may fetch lists, and to which it may post webhooks, for every namespace',
          },
        ),
      },
      { additionalProperties: false, default: {}, description: 'What the controller may fetch from, and post to' },
    ),
  },
  {
    additionalProperties: false,
    cel: [
      {
        rule: "self.steering.mode != 'Direct' || self.interfaces.external.name != self.interfaces.internal",
        message: 'interfaces.external.name must differ from interfaces.internal with Direct steering',
      },
    ],
  },
);

/** Fields of the design that are refused by name until they do something. */
export const gatewayPoolAbsent = ['gatewaySelector', 'hosts', 'announce', 'logging'] as const;
