/**
 * ExternalService (design §3): a named set of destinations: addresses, lists of them that are kept elsewhere, and names.
 * Its ports, and what they ask of a flow's bytes, are service-port.ts.
 */

import { Type } from 'typebox';
import { URL_MAX_LENGTH } from '../list-url.ts';
import { objectName, oneOf, placeText, urlRule } from './common.ts';
import { describe } from './describe.ts';
import { servicePort } from './service-port.ts';

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
          name: objectName({ description: 'ConfigMap of the same namespace' }),
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
      Type.Array(placeText(), {
        minItems: 1,
        maxItems: 4096,
        listType: 'set',
        description:
          'Address, CIDR or FIRST-LAST; or NAME, *.NAME (one label before it), **.NAME (any number, at least one)',
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
