/**
 * ExternalService (design §3): a named set of destinations. In this version destinations are addresses, and lists
 * of them that are kept elsewhere; names and checks of application bytes are refused by name.
 */

import { Type } from 'typebox';
import { bandwidthText } from '../bandwidth.ts';
import { URL_MAX_LENGTH } from '../list-url.ts';
import { label, objectName, octet, oneOf, portNumber, rangeText, urlRule } from './common.ts';
import { describe } from './describe.ts';

/** Protocols that may be written by name. A number is taken as text or integer. */
export const protocolNumbers: Readonly<Record<string, number>> = { TCP: 6, UDP: 17, SCTP: 132, ICMP: 1, ICMPv6: 58 };
/** The protocols that have ports. */
export const portProtocols: ReadonlySet<number> = new Set([6, 17, 132]);
/** ICMP of each family, which has types and codes. */
export const icmpProtocol = { 4: 1, 6: 58 } as const;

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
    bandwidth: Type.Optional(
      bandwidthText({
        description: 'Of all that rules accept by this port, together, in each direction: as 50Mbit; the rest waits',
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
        rule: `!has(self.port) || self.port.matches(string(self.protocol) in ['ICMP', 'ICMPv6', '1', '58'] ? '^${listOf(octet, '/')}$' : '^${listOf(portNumber, '-')}$')`,
        message: 'ports are from 1 to 65535, as in 443,8000-8100; types and codes of ICMP from 0 to 255, as in 8,3/4',
      },
    ],
  },
);
export type ServicePort = Type.Static<typeof servicePort>;

/** How often a `url` is fetched, unless it says otherwise. */
export const DEFAULT_REFRESH_SECONDS = 300;

function checkSource(source: { configMapRef?: object; file?: string; url?: string; refreshSeconds?: number }) {
  const given = (['configMapRef', 'file', 'url'] as const).filter((name) => source[name] !== undefined);
  const [first, second] = given;
  if (first === undefined) return { field: 'url', expected: 'configMapRef, file or url', got: 'none of them' };
  if (second !== undefined)
    return { field: second, expected: `absent: ${first} is given`, got: describe(source[second]) };
  if (source.refreshSeconds === undefined || first === 'url') return null;
  return { field: 'refreshSeconds', expected: `absent: a ${first} is watched`, got: describe(source.refreshSeconds) };
}

const listSource = Type.Object(
  {
    configMapRef: Type.Optional(
      Type.Object(
        {
          name: objectName(),
          key: Type.Optional(
            Type.String({
              pattern: '^[-._a-zA-Z0-9]+$',
              minLength: 1,
              maxLength: 253,
              expected: 'a key of a ConfigMap: letters, digits, -, _ and .',
              description: 'Absent: the lists of all keys together',
            }),
          ),
        },
        { additionalProperties: false, description: 'A ConfigMap of the own namespace' },
      ),
    ),
    file: Type.Optional(
      Type.String({
        // No `..`, no hidden file (our own status is below .status), nothing absolute.
        pattern: '^[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)*$',
        minLength: 1,
        maxLength: 1024,
        expected: 'a path below the manifests, as in lists/partners.txt, without hidden parts',
        description: 'Only with the directory source: a path below its PATH, which no link leads out of',
      }),
    ),
    url: Type.Optional(
      Type.String({
        // Without a pattern: what breaks one is shown in the error, and a password may stand in it.
        maxLength: URL_MAX_LENGTH,
        expected: 'a URL that begins with https:// and a host',
        description: 'https; its host must be among fetch.allowedHosts of a GatewayPool',
      }),
    ),
    format: oneOf(['Text', 'JSON'], {
      default: 'Text',
      description:
        'Text: an address, CIDR or FIRST-LAST a line, # begins a comment. JSON: an array of such texts, or an object whose field addresses is one',
    }),
    refreshSeconds: Type.Optional(
      Type.Integer({
        minimum: 30,
        maximum: 604_800,
        description: `How often a url is fetched; absent: ${DEFAULT_REFRESH_SECONDS}`,
      }),
    ),
  },
  {
    additionalProperties: false,
    check: checkSource,
    cel: [
      {
        rule: '[has(self.configMapRef), has(self.file), has(self.url)].exists_one(given, given)',
        message: 'exactly one of configMapRef, file and url is required',
      },
      { rule: 'has(self.url) || !has(self.refreshSeconds)', message: 'refreshSeconds is only for url' },
      urlRule('self.url'),
    ],
  },
);
export type ListSource = Type.Static<typeof listSource>;

export const externalServiceSpec = Type.Object(
  {
    addresses: Type.Optional(
      Type.Array(rangeText(), {
        minItems: 1,
        maxItems: 4096,
        listType: 'set',
        description: 'Address, CIDR or FIRST-LAST',
      }),
    ),
    addressesFrom: Type.Optional(
      Type.Array(listSource, {
        minItems: 1,
        maxItems: 16,
        description: 'Lists that are kept elsewhere; they are added to addresses',
      }),
    ),
    ports: Type.Optional(
      Type.Array(servicePort, {
        minItems: 1,
        maxItems: 64,
        listMapKeys: ['name'],
        description: 'Absent: every protocol',
      }),
    ),
  },
  {
    additionalProperties: false,
    cel: [
      { rule: 'has(self.addresses) || has(self.addressesFrom)', message: 'addresses or addressesFrom is required' },
    ],
  },
);

export const servicePortAbsent = ['appProtocol', 'tls', 'http', 'dns', 'conformance'] as const;
