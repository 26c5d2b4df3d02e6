/**
 * The three rule kinds (design §3 and §4): one rule, written in the cluster, the namespace or the service context.
 */

import { Type } from 'typebox';
import { bandwidthText } from './bandwidth.ts';
import { addressText, labelSelectorSchema, objectName, oneOf } from './common.ts';
import { scheduleSchema } from './schedule.ts';
import { webhookSchema } from './webhook.ts';

const rule = {
  action: oneOf(['accept', 'accept-decisively', 'drop', 'reject'], {
    description:
      'accept: the next context goes on, in the last one it permits. accept-decisively: permits here. reject: drops, and says so to the sender',
  }),
  mode: oneOf(['Enforce', 'Audit'], {
    default: 'Enforce',
    description: 'Audit: what the rule matches is counted and logged, and the walk goes on as if it had not matched',
  }),
  externalServices: Type.Array(
    Type.String({
      pattern: '^(\\*|([a-z0-9]([-a-z0-9]*[a-z0-9])?/)?[a-z0-9]([-a-z0-9.]*[a-z0-9])?)$',
      maxLength: 317,
      expected: 'the name of an ExternalService, or "*"',
    }),
    {
      minItems: 1,
      maxItems: 256,
      listType: 'set',
      description: 'Names of ExternalServices; "*" is any destination',
      cel: [{ rule: "size(self) == 1 || !('*' in self)", message: 'no other name beside "*"' }],
    },
  ),
  priority: Type.Integer({ minimum: 0, maximum: 65_535, default: 1000, description: 'Lower first' }),
  podSelector: Type.Optional(labelSelectorSchema({ description: 'Absent: every pod' })),
  serviceAccounts: Type.Optional(
    Type.Array(
      Type.String({
        pattern: '^([a-z0-9]([-a-z0-9]*[a-z0-9])?/)?[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$',
        minLength: 1,
        maxLength: 317,
        expected: 'the name of a ServiceAccount',
      }),
      {
        minItems: 1,
        maxItems: 256,
        listType: 'set',
        description:
          "ServiceAccounts of the pod's own namespace; in a cluster rule a plain name in each namespace that it selects, or namespace/name. Absent: all",
      },
    ),
  ),
  logging: oneOf(['All', 'Decisions', 'None'], {
    default: 'Decisions',
    description:
      'Flow records: Decisions has the start and end of what the rule permits and what it denies; All also what it accepts and hands on to the next context; None has nothing of what it decides',
  }),
  schedule: Type.Optional(scheduleSchema),
  redirect: Type.Optional(
    Type.Object(
      {
        address: addressText({ description: 'The rule matches flows of this family only' }),
        port: Type.Optional(Type.Integer({ minimum: 1, maximum: 65_535, description: 'Absent: unchanged' })),
      },
      {
        additionalProperties: false,
        description: 'Where the TCP, UDP and SCTP flows that this rule permits go instead; it matches no others',
      },
    ),
  ),
  webhook: Type.Optional(webhookSchema),
  connectionsPerSecond: Type.Optional(
    Type.Integer({
      minimum: 1,
      maximum: 1_000_000,
      description: 'New connections of all sources together, of what the rule accepts; the rest is dropped',
    }),
  ),
  maxConnections: Type.Optional(
    Type.Integer({
      minimum: 1,
      maximum: 10_000,
      description: 'Connections at once of all sources together, of what the rule accepts; the rest is dropped',
    }),
  ),
  bandwidth: Type.Optional(
    bandwidthText({
      description: 'Of all sources together, of what the rule accepts, in each direction: as 50Mbit; the rest waits',
    }),
  ),
};

/** A rule of a namespace speaks of what is in it. */
const ownNamespace = [
  {
    rule: "self.externalServices.all(name, !name.contains('/'))",
    message: 'externalServices are names in the namespace of the rule, without a namespace before them',
  },
  {
    rule: "!has(self.serviceAccounts) || self.serviceAccounts.all(name, !name.contains('/'))",
    message: 'serviceAccounts are names in the namespace of the rule, without a namespace before them',
  },
];

/** Of what lets nothing through there is nothing to limit. */
const limits = {
  rule: "self.action in ['accept', 'accept-decisively'] || !(has(self.connectionsPerSecond) || has(self.maxConnections) || has(self.bandwidth))",
  message: 'connectionsPerSecond, maxConnections and bandwidth need an action that lets something through',
};

/** Fields of a rule that permits; `actions`: those that do in its context. */
const permitting = (...actions: string[]) =>
  ['redirect', 'webhook'].map((field) => ({
    rule: `!has(self.${field}) || self.action in [${actions.map((action) => `'${action}'`).join(', ')}]`,
    message: `${field} is only of a rule that permits here: action ${actions.join(' or ')}`,
  }));

export const clusterEgressRuleSpec = Type.Object(
  { ...rule, namespaceSelector: Type.Optional(labelSelectorSchema({ description: 'Absent: every namespace' })) },
  { additionalProperties: false, cel: [limits, ...permitting('accept-decisively')] },
);
export const namespaceEgressRuleSpec = Type.Object(rule, {
  additionalProperties: false,
  cel: [...ownNamespace, limits, ...permitting('accept-decisively')],
});
export const serviceEgressRuleSpec = Type.Object(
  {
    ...rule,
    service: objectName({ description: 'Service of the same namespace; its endpoints are the sources' }),
    endpoints: oneOf(['All', 'Ready'], {
      default: 'All',
      description: 'Ready: only of endpoints that the Service sends traffic to',
    }),
  },
  { additionalProperties: false, cel: [...ownNamespace, limits, ...permitting('accept', 'accept-decisively')] },
);
