/**
 * A port of an ExternalService (design §3): which packets by protocol and port, what their bytes must say (checks), and
 * how much may flow. What a check means is policy/application.ts.
 */

import { Type } from 'typebox';
import { type Application, applications, type TlsVersion, tlsVersions } from '../application.ts';
import { dnsTypes } from '../dns-type.ts';
import { protocolNumbers } from '../ports.ts';
import { bandwidthText } from './bandwidth.ts';
import { label, nameText, octet, oneOf, portNumber } from './common.ts';
import { describe } from './describe.ts';

const listOf = (number: string, between: string): string => {
  const entry = `${number}(${between}${number})?`;
  return `${entry}(,${entry})*`;
};

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

const patterns = (maxItems: number, description: string) =>
  Type.Optional(Type.Array(nameText(), { minItems: 1, maxItems, listType: 'set', description }));

/** A part that asks for nothing would be a wish that nobody carries out. */
function part<Fields extends Type.TProperties>(fields: Fields, description: string) {
  const names = Object.keys(fields);
  return Type.Object(fields, {
    additionalProperties: false,
    description,
    check: (value: object) =>
      names.some((name) => Object.hasOwn(value, name))
        ? null
        : { field: names[0] ?? '', expected: `${names.join(', ')}: at least one of them`, got: 'none of them' },
    cel: [
      {
        rule: names.map((name) => `has(self.${name})`).join(' || '),
        message: `one of ${names.join(', ')} is required`,
      },
    ],
  });
}

const tls = part(
  {
    serverNames: patterns(256, 'What the client may ask for (SNI)'),
    minVersion: Type.Optional(
      oneOf(Object.keys(tlsVersions) as [TlsVersion, ...TlsVersion[]], {
        expected: 'text in quotes: "1.0", "1.1", "1.2" or "1.3"',
        description: 'What is older is refused, once the server has chosen it or the client offers no more',
      }),
    ),
    alpn: Type.Optional(
      Type.Array(
        Type.String({
          pattern: '^[!-~]+$',
          minLength: 1,
          maxLength: 255,
          expected: 'a protocol of ALPN, as h2 or http/1.1',
        }),
        { minItems: 1, maxItems: 32, listType: 'set', description: 'All that the client offers must be of these' },
      ),
    ),
    rejectEncryptedClientHello: Type.Optional(
      Type.Boolean({ description: 'true: a hello whose inner name cannot be read (ECH) is refused' }),
    ),
  },
  'Asked of the hello of TLS and QUIC; all that is given must hold',
);

/** A segment in the form that is compared (RFC 3986 §6.2.2), as all servers read it: no `*`, no dot segment. */
const encoded = '%(2[0-46-9A-C]|3[A-F]|40|5[BDE]|60|7[BCD]|[89A-F][0-9A-F])';
const plain = "A-Za-z0-9_~!$&'()+,=:@-";
const inSegment = `([.;${plain}]|${encoded})`;
/** What a parameter does not begin with, which makes a dot segment to some. */
const noParameter = `([${plain}]|%(2[0-46-9A-C]|3[AC-F]|40|5[BDE]|60|7[BCD]|[89A-F][0-9A-F]))`;
const segment = `(([;${plain}]|${encoded})${inSegment}*|[.]${noParameter}${inSegment}*|[.][.]([.]|${noParameter})${inSegment}*)`;

const http = part(
  {
    hosts: patterns(256, 'Host, or that of an absolute target'),
    methods: Type.Optional(
      Type.Array(
        Type.String({
          pattern: "^[-!#$%&'*+.^_`|~0-9A-Z]+$",
          minLength: 1,
          maxLength: 32,
          expected: 'a method in upper case, as GET',
        }),
        { minItems: 1, maxItems: 32, listType: 'set', description: 'Of every request' },
      ),
    ),
    paths: Type.Optional(
      Type.Array(
        Type.String({
          pattern: `^(/${segment})*/(${segment}|[*])?$`,
          minLength: 1,
          maxLength: 1024,
          expected:
            'a path without query, as /v1/status, or /v1/* for all below /v1/; percent-encoded only where it must be, in upper case; without //, /./, /../ and %25',
        }),
        { minItems: 1, maxItems: 128, listType: 'set', description: 'Of every request: /exact, or /below/*' },
      ),
    ),
  },
  'Asked of every request of HTTP/1; all that is given must hold',
);

const dns = part(
  {
    names: patterns(1024, 'What may be asked for'),
    types: Type.Optional(
      Type.Array(
        Type.String({
          reads: 'dnsType',
          pattern: `^(${Object.keys(dnsTypes).join('|')}|TYPE(0|${portNumber}))$`,
          minLength: 1,
          maxLength: 16,
          expected: 'a type of DNS in upper case, as AAAA or TYPE65',
        }),
        { minItems: 1, maxItems: 64, listType: 'set', description: 'As AAAA or TYPE65' },
      ),
    ),
    maxQuestionsPerSecond: Type.Optional(
      Type.Integer({ minimum: 1, maximum: 100_000, description: 'Of one source; what is over it is dropped' }),
    ),
  },
  'Asked of every question; all that is given must hold',
);

/** Which appProtocol has which part. */
const partOf = { tls: ['TLS', 'QUIC'], http: ['HTTP'], dns: ['DNS'] } as const satisfies Record<string, Application[]>;

interface CheckedPort {
  protocol: string | number;
  appProtocol?: Application;
  tls?: object;
  http?: object;
  dns?: { names?: unknown; types?: unknown };
  conformance?: string;
}

function checkPort(port: CheckedPort) {
  const { protocol, appProtocol, conformance } = port;
  if (appProtocol !== undefined) {
    const number = typeof protocol === 'number' ? protocol : (protocolNumbers[protocol] ?? Number(protocol));
    const carried = number === 6 ? appProtocol !== 'QUIC' : number === 17 && ['QUIC', 'DNS'].includes(appProtocol);
    if (!carried) {
      const over =
        number === 6
          ? 'any but QUIC, which is over UDP'
          : number === 17
            ? 'QUIC or DNS: the others are over TCP'
            : 'absent: it is for TCP and UDP';
      return { field: 'appProtocol', expected: over, got: describe(appProtocol) };
    }
  }
  for (const [field, of] of Object.entries(partOf) as [keyof typeof partOf, readonly Application[]][]) {
    if (port[field] === undefined || (appProtocol !== undefined && of.includes(appProtocol))) continue;
    return { field, expected: `absent: it is for appProtocol ${of.join(' or ')}`, got: describe(port[field]) };
  }
  if (conformance === undefined) return null;
  if (appProtocol === undefined) {
    return { field: 'conformance', expected: 'absent: it is for ports with appProtocol', got: describe(conformance) };
  }
  const { tls, http, dns } = port;
  const demands = tls !== undefined || http !== undefined || dns?.names !== undefined || dns?.types !== undefined;
  if (conformance === 'Enforce' || !demands) return null;
  const expected = 'Enforce: other bytes cannot meet what tls, http or dns asks for';
  return { field: 'conformance', expected, got: describe(conformance) };
}

export const servicePort = Type.Object(
  {
    name: label({ description: 'Name of the port, by which its status speaks of it' }),
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
    bandwidth: Type.Optional(
      bandwidthText({
        description: 'Of all that rules accept by this port, together, in each direction: as 50Mbit; the rest waits',
      }),
    ),
    appProtocol: Type.Optional(
      oneOf([...applications], {
        description:
          'What the bytes of its flows must be; absent: nobody reads them, unless names of the service say so',
      }),
    ),
    tls: Type.Optional(tls),
    http: Type.Optional(http),
    dns: Type.Optional(dns),
    conformance: Type.Optional(
      oneOf(['Enforce', 'Audit', 'Off'], {
        // Without quotes it is false to kubectl.
        expected: 'Enforce, Audit or "Off" (in quotes)',
        description:
          'Whether other bytes than those of appProtocol may pass: no (Enforce, if absent), counted (Audit), yes (Off)',
      }),
    ),
  },
  {
    additionalProperties: false,
    check: checkPort,
    cel: [
      {
        rule: "!has(self.port) || string(self.protocol) in ['TCP', 'UDP', 'SCTP', 'ICMP', 'ICMPv6', '6', '17', '132', '1', '58']",
        message: 'port is only for TCP, UDP, SCTP, ICMP and ICMPv6',
      },
      {
        rule: `!has(self.port) || self.port.matches(string(self.protocol) in ['ICMP', 'ICMPv6', '1', '58'] ? '^${listOf(octet, '/')}$' : '^${listOf(portNumber, '-')}$')`,
        message: 'ports are from 1 to 65535, as in 443,8000-8100; types and codes of ICMP from 0 to 255, as in 8,3/4',
      },
      {
        rule: "!has(self.appProtocol) || (string(self.protocol) in ['TCP', '6'] ? self.appProtocol != 'QUIC' : string(self.protocol) in ['UDP', '17'] && self.appProtocol in ['QUIC', 'DNS'])",
        message: 'appProtocol is for TCP (all but QUIC) and UDP (QUIC and DNS)',
      },
      ...Object.entries(partOf).map(([part, of]) => ({
        rule: `!has(self.${part}) || has(self.appProtocol) && self.appProtocol in ['${of.join("', '")}']`,
        message: `${part} is only for appProtocol ${of.join(' or ')}`,
      })),
      {
        rule: 'has(self.appProtocol) || !has(self.conformance)',
        message: 'conformance is only for ports with appProtocol',
      },
      {
        rule: "!has(self.conformance) || self.conformance == 'Enforce' || !has(self.tls) && !has(self.http) && !(has(self.dns) && (has(self.dns.names) || has(self.dns.types)))",
        message: 'conformance is Enforce where tls, http or dns asks for more: other bytes cannot meet that',
      },
    ],
  },
);
export type ServicePort = Type.Static<typeof servicePort>;
