/**
 * Building blocks of the schemas: names, labels, selectors, metadata, address texts. TypeBox values are the single
 * source: the TypeScript types, the validation (walk.ts) and the CRDs (crd.ts) are all made from them. Every text and
 * list has a bound, since CEL's cost budget and a hostile manifest both need one.
 */

import { Type } from 'typebox';
import { NAME_MAX_LENGTH } from '../host-name.ts';
import { describe } from './describe.ts';
import { labelKeyPattern } from './walk.ts';

/** RFC 1123 label, as the API server wants for namespaces and list-map keys. */
export const label = (options: object = {}) =>
  Type.String({
    pattern: '^[a-z0-9]([-a-z0-9]*[a-z0-9])?$',
    minLength: 1,
    maxLength: 63,
    expected: 'a name of lower-case letters, digits and -',
    ...options,
  });
/** RFC 1123 subdomain: names of objects. */
export const objectName = (options: object = {}) =>
  Type.String({
    pattern: '^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$',
    minLength: 1,
    maxLength: 253,
    expected: 'a name of lower-case letters, digits, - and .',
    ...options,
  });
/** What the kernel takes for an interface name (15 bytes), less the characters that nft or a shell would read otherwise. */
export const interfaceName = (options: object = {}) =>
  Type.String({
    pattern: '^[A-Za-z0-9_][A-Za-z0-9_.-]*$',
    minLength: 1,
    maxLength: 15,
    expected: 'an interface name of at most 15 letters, digits, _, . and -',
    ...options,
  });
/** Parts of patterns for the API server, which reads them as RE2, and some in the texts of CEL: so no backslash. */
export const portNumber = '([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])';
export const octet = '(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])';
const v4 = `(${octet}[.]){3}${octet}`;
const v6 = '[0-9A-Fa-f]*:[0-9A-Fa-f:.]+';
const length4 = '([12]?[0-9]|3[0-2])';
const length6 = '(12[0-8]|1[01][0-9]|[1-9]?[0-9])';
const hostLabel = (inner: string) => `[A-Za-z0-9]([${inner}]{0,61}[A-Za-z0-9])?`;
/** `HOST` or `HOST:PORT` (list-url.ts, which asks more of a host that ends in a number). */
export const authority = `((${hostLabel('-A-Za-z0-9_')}[.])*${hostLabel('-A-Za-z0-9')}|[[]${v6}])(:${portNumber})?`;

/** CEL of a field with a URL: of list-url.ts what a pattern says. */
export const urlRule = (field: string) => ({
  rule: `!has(${field}) || ${field}.matches('^https://${authority}([/?][!-~]*)?$') && !${field}.contains('#') && !${field}.contains('\\\\')`,
  message: 'url is https://HOST, a port and a path if need be, in printable ASCII, without user, password and fragment',
});

/** Parts of a name's labels; without look-ahead, which RE2 has not. */
const within = '[-A-Za-z0-9_]*[A-Za-z0-9_]';
const nameLabel = `[A-Za-z0-9_](${within})?`;
const onward = (first: string): string => `(${first}(${within})?|-${within})`;
/** No number, in decimal or hexadecimal: what ends in one could be an IPv4 address (host-name.ts). */
const lastLabel = `([A-Za-z_](${within})?|[1-9][0-9]*${onward('[A-Za-z_]')}|0([0-9]+${onward('[A-Za-z_]')}|${onward('[A-WYZa-wyz_]')}|[Xx][0-9A-Fa-f]*${onward('[G-Zg-z_]')}))`;
const beyondAscii = '[^\\x00-\\x20\\x7f]*[^\\x00-\\x7f][^\\x00-\\x20\\x7f]*';
/** Exact of ASCII but for lengths, coarse of all else. */
const names = `([*][*]?[.])?((${nameLabel}[.])*${lastLabel}[.]?|${beyondAscii})`;
/** With the root's dot, and `**.`. */
const NAME_TEXT_LENGTH = NAME_MAX_LENGTH + 4;

/** Exact of IPv4 and coarse of IPv6, for the API server; `reads` asks for the strict reading (walk.ts). */
export const addressText = (options: object = {}) =>
  Type.String({ reads: 'address', pattern: `^(${v4}|${v6})$`, minLength: 2, maxLength: 45, ...options });
export const prefixText = (options: object = {}) =>
  Type.String({
    reads: 'prefix',
    pattern: `^(${v4}/${length4}|${v6}/${length6})$`,
    minLength: 4,
    maxLength: 49,
    ...options,
  });
const rangePattern = `(${v4}(-${v4}|/${length4})?|${v6}(-${v6}|/${length6})?)`;
export const rangeText = (options: object = {}) =>
  Type.String({
    reads: 'range',
    pattern: `^${rangePattern}$`,
    minLength: 2,
    maxLength: 91,
    ...options,
  });

/** Names that hosts have, as host-name.ts reads them. */
export const nameText = (options: object = {}) =>
  Type.String({ reads: 'name', pattern: `^${names}$`, minLength: 1, maxLength: NAME_TEXT_LENGTH, ...options });
/** An address, a range of them, or such names. */
export const placeText = (options: object = {}) =>
  Type.String({
    reads: 'place',
    pattern: `^(${rangePattern}|${names})$`,
    minLength: 1,
    maxLength: NAME_TEXT_LENGTH,
    ...options,
  });

/** A CIDR, or `NAMESPACE/NAME`: no namespace has a dot or a colon, so that neither can be taken for the other (checks.ts). */
export const destinationText = (options: object = {}) =>
  Type.String({
    pattern: `^(${v4}/${length4}|${v6}/${length6}|[a-z0-9]([-a-z0-9]*[a-z0-9])?/[a-z0-9]([-a-z0-9.]*[a-z0-9])?)$`,
    minLength: 3,
    maxLength: 317,
    expected: 'a CIDR, or NAMESPACE/NAME of an ExternalService',
    ...options,
  });

export const oneOf = <Values extends string[]>(values: readonly [...Values], options: object = {}) =>
  Type.Enum<Values>(values, { ...options });

const labelKey = (options: object = {}) =>
  Type.String({
    pattern: labelKeyPattern,
    minLength: 1,
    maxLength: 317,
    expected: 'a label key',
    ...options,
  });
const labelValue = () =>
  Type.String({
    pattern: '^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$',
    maxLength: 63,
    expected:
      'a label value: text (in quotes if it looks like a number or true) of at most 63 letters, digits, -, _ and .',
  });

function checkRequirement(requirement: { operator: string; values?: string[] }) {
  const { operator, values } = requirement;
  const wants = operator === 'In' || operator === 'NotIn';
  if (wants === (values !== undefined && values.length > 0)) return null;
  const expected = wants ? `at least one value for ${operator}` : `absent: ${operator} takes no values`;
  return { field: 'values', expected, got: describe(values) };
}

/** A label selector as Kubernetes has it: all of matchLabels and all of matchExpressions must hold; `{}` is all. */
export const labelSelectorSchema = (options: object = {}) =>
  Type.Object(
    {
      matchLabels: Type.Optional(
        Type.Record(Type.String(), labelValue(), {
          maxProperties: 64,
          keys: 'label',
          description: 'Labels with these values',
        }),
      ),
      matchExpressions: Type.Optional(
        Type.Array(
          Type.Object(
            {
              key: labelKey({ description: 'Key of the label' }),
              operator: oneOf(['In', 'NotIn', 'Exists', 'DoesNotExist'], {
                description: 'NotIn holds for objects without the label, too',
              }),
              values: Type.Optional(Type.Array(labelValue(), { maxItems: 64, description: 'Of In and NotIn' })),
            },
            {
              additionalProperties: false,
              check: checkRequirement,
              cel: [
                {
                  rule: "self.operator in ['In', 'NotIn'] ? has(self.values) && size(self.values) > 0 : !has(self.values) || size(self.values) == 0",
                  message: 'In and NotIn need values, Exists and DoesNotExist take none',
                },
              ],
            },
          ),
          { maxItems: 64, description: 'All of them must hold' },
        ),
      ),
    },
    { additionalProperties: false, mapType: 'atomic', ...options },
  );
export type LabelSelector = Type.Static<ReturnType<typeof labelSelectorSchema>>;

const metaFields = {
  name: objectName(),
  namespace: Type.Optional(label()),
  uid: Type.Optional(Type.String({ minLength: 1, maxLength: 128, pattern: '^[A-Za-z0-9._:-]+$' })),
  labels: Type.Optional(Type.Record(Type.String(), labelValue(), { maxProperties: 256, keys: 'label' })),
  annotations: Type.Optional(Type.Record(Type.String(), Type.String({ maxLength: 262_144 }), { maxProperties: 256 })),
  creationTimestamp: Type.Optional(timestamp()),
  generation: Type.Optional(Type.Integer({ minimum: 0, maximum: Number.MAX_SAFE_INTEGER })),
  deletionTimestamp: Type.Optional(timestamp()),
};

/** One form only, since "oldest first" compares these texts. */
function timestamp() {
  return Type.String({
    maxLength: 20,
    pattern: '^[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]Z$',
    expected: 'a time like 2026-11-25T12:00:00Z',
  });
}

/** Metadata of kinds that Kubernetes writes: other fields are dropped. */
export const objectMetaSchema = Type.Object(metaFields);
/** Metadata of our kinds: a misspelt field is refused; those of the API server are dropped. */
export const strictMetaSchema = Type.Object(metaFields, {
  additionalProperties: false,
  nullAsAbsent: true,
  ignored: [
    'deletionGracePeriodSeconds',
    'finalizers',
    'generateName',
    'managedFields',
    'ownerReferences',
    'resourceVersion',
    'selfLink',
  ],
});
export type ObjectMeta = Type.Static<typeof objectMetaSchema>;

/** `cluster` objects have no namespace, `namespaced` ones must have one. */
export type Scope = 'cluster' | 'namespaced';
