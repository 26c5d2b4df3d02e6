/**
 * ExternalService (design §3): a named set of destinations. In this version destinations are addresses; names, lists
 * fetched from elsewhere and checks of application bytes are refused by name.
 */

import { Type } from 'typebox';
import { label, rangeText } from './common.ts';

/** Protocols that may be written by name. A number is taken as text or integer. */
export const protocolNumbers: Readonly<Record<string, number>> = { TCP: 6, UDP: 17, SCTP: 132, ICMP: 1, ICMPv6: 58 };
/** The protocols that have ports. */
export const portProtocols: ReadonlySet<number> = new Set([6, 17, 132]);
/** ICMP of each family, which has types and codes. */
export const icmpProtocol = { 4: 1, 6: 58 } as const;

const expectedProtocol = 'TCP, UDP, SCTP, ICMP, ICMPv6 or a number from 1 to 255';
const protocol = Type.Union(
  [
    Type.String({
      pattern: '^(TCP|UDP|SCTP|ICMP|ICMPv6|[1-9]|[1-9][0-9]|1[0-9][0-9]|2[0-4][0-9]|25[0-5])$',
      maxLength: 6,
    }),
    Type.Integer({ minimum: 1, maximum: 255 }),
  ],
  { intOrString: true, description: expectedProtocol, expected: expectedProtocol },
);

const servicePort = Type.Object(
  {
    name: label(),
    protocol,
    port: Type.Optional(
      Type.String({
        pattern: '^[0-9]{1,5}([-/][0-9]{1,5})?(,[0-9]{1,5}([-/][0-9]{1,5})?)*$',
        maxLength: 512,
        expected:
          'text in quotes with ports and ranges, as in "443,8000-8100", or types and codes of ICMP, as in "8,3/4"',
        description:
          'Ports and ranges, as in 443,8000-8100; of ICMP types and TYPE/CODE, as in 8,3/4; absent: all of the protocol',
      }),
    ),
  },
  {
    additionalProperties: false,
    cel: [
      {
        rule: "!has(self.port) || string(self.protocol) in ['TCP', 'UDP', 'SCTP', 'ICMP', 'ICMPv6', '6', '17', '132', '1', '58']",
        message: 'port is only for TCP, UDP, SCTP, ICMP and ICMPv6',
      },
      {
        rule: "!has(self.port) || !self.port.contains(string(self.protocol) in ['ICMP', 'ICMPv6', '1', '58'] ? '-' : '/')",
        message: 'FIRST-LAST is for ports, TYPE/CODE for ICMP and ICMPv6',
      },
    ],
  },
);
export type ServicePort = Type.Static<typeof servicePort>;

export const externalServiceSpec = Type.Object(
  {
    addresses: Type.Array(rangeText(), {
      minItems: 1,
      maxItems: 4096,
      listType: 'set',
      description: 'Address, CIDR or FIRST-LAST',
    }),
    ports: Type.Optional(
      Type.Array(servicePort, {
        minItems: 1,
        maxItems: 64,
        listMapKeys: ['name'],
        description: 'Absent: every protocol',
      }),
    ),
  },
  { additionalProperties: false },
);

export const externalServiceAbsent = ['addressesFrom'] as const;
export const servicePortAbsent = ['appProtocol', 'bandwidth', 'tls', 'http', 'dns', 'conformance'] as const;
