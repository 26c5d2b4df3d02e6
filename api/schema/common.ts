/**
 * Building blocks of the schemas: names, labels, selectors, metadata, address texts. TypeBox values are the single
 * source: the TypeScript types, the validation (walk.ts) and the CRDs (crd.ts) are all made from them. Every text and
 * list has a bound, since CEL's cost budget and a hostile manifest both need one.
 */

import { Type } from 'typebox';

/** RFC 1123 label, as the API server wants for namespaces and list-map keys. */
export const label = (options: object = {}) =>
  Type.String({ pattern: '^[a-z0-9]([-a-z0-9]*[a-z0-9])?$', minLength: 1, maxLength: 63, ...options });
/** RFC 1123 subdomain: names of objects. */
export const objectName = (options: object = {}) =>
  Type.String({
    pattern: '^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$',
    minLength: 1,
    maxLength: 253,
    ...options,
  });
/** What the kernel takes for an interface name (15 bytes), less the characters that nft or a shell would read otherwise. */
export const interfaceName = (options: object = {}) =>
  Type.String({ pattern: '^[A-Za-z0-9_][A-Za-z0-9_.-]*$', minLength: 1, maxLength: 15, ...options });
/** Coarse on purpose: the strict reading is parseAddress, parsePrefix or parseRange (validate.ts). */
export const addressText = (options: object = {}) =>
  Type.String({ pattern: '^[0-9A-Fa-f.:]+$', minLength: 2, maxLength: 45, ...options });
export const prefixText = (options: object = {}) =>
  Type.String({ pattern: '^[0-9A-Fa-f.:]+/[0-9]{1,3}$', minLength: 4, maxLength: 49, ...options });
export const rangeText = (options: object = {}) =>
  Type.String({ pattern: '^[0-9A-Fa-f.:]+([-/][0-9A-Fa-f.:]+)?$', minLength: 2, maxLength: 91, ...options });

export const oneOf = <Values extends string[]>(values: readonly [...Values], options: object = {}) =>
  Type.Enum<Values>(values, { ...options });

const labelKey = () =>
  Type.String({
    pattern: '^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$',
    minLength: 1,
    maxLength: 317,
  });
const labelValue = () => Type.String({ pattern: '^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$', maxLength: 63 });

/** A label selector as Kubernetes has it: all of matchLabels and all of matchExpressions must hold; `{}` is all. */
export const labelSelectorSchema = (options: object = {}) =>
  Type.Object(
    {
      matchLabels: Type.Optional(Type.Record(Type.String(), labelValue(), { maxProperties: 64, keys: 'label' })),
      matchExpressions: Type.Optional(
        Type.Array(
          Type.Object(
            {
              key: labelKey(),
              operator: oneOf(['In', 'NotIn', 'Exists', 'DoesNotExist']),
              values: Type.Optional(Type.Array(labelValue(), { maxItems: 64 })),
            },
            { additionalProperties: false },
          ),
          { maxItems: 64 },
        ),
      ),
    },
    { additionalProperties: false, ...options },
  );
export type LabelSelector = Type.Static<ReturnType<typeof labelSelectorSchema>>;

/** Fields of metadata that are kept. Others (managedFields, ownerReferences …) are the API server's and are dropped. */
export const objectMetaSchema = Type.Object({
  name: objectName(),
  namespace: Type.Optional(label()),
  uid: Type.Optional(Type.String({ minLength: 1, maxLength: 128 })),
  labels: Type.Optional(Type.Record(Type.String(), labelValue(), { maxProperties: 256, keys: 'label' })),
  annotations: Type.Optional(Type.Record(Type.String(), Type.String({ maxLength: 262_144 }), { maxProperties: 256 })),
  creationTimestamp: Type.Optional(Type.String({ maxLength: 64 })),
  generation: Type.Optional(Type.Integer({ minimum: 0, maximum: Number.MAX_SAFE_INTEGER })),
  deletionTimestamp: Type.Optional(Type.String({ maxLength: 64 })),
});
export type ObjectMeta = Type.Static<typeof objectMetaSchema>;

/** `cluster` objects have no namespace, `namespaced` ones must have one. */
export type Scope = 'cluster' | 'namespaced';
