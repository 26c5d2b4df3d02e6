/**
 * The Kubernetes kinds that are read (core/v1, discovery.k8s.io/v1), light: only the fields that matter here are
 * kept, every other field is tolerated and dropped, and a field of the wrong type is refused. Bounds are the API
 * server's own or above them: these objects are written by Kubernetes, not by us.
 */

import { Type } from 'typebox';
import { addressText, prefixText } from './common.ts';

const stringMap = (max: number) =>
  Type.Record(Type.String(), Type.String({ maxLength: 1_048_576 }), { maxProperties: max });
const text = (maxLength = 253) => Type.String({ maxLength });

export const namespaceFields = {};

export const podFields = {
  spec: Type.Object(
    {
      nodeName: Type.Optional(text()),
      hostNetwork: Type.Optional(Type.Boolean()),
      serviceAccountName: Type.String({ maxLength: 253, default: 'default' }),
    },
    { default: {} },
  ),
  status: Type.Object(
    {
      phase: Type.Optional(text(64)),
      podIP: Type.Optional(Type.String({ maxLength: 45 })),
      podIPs: Type.Optional(Type.Array(Type.Object({ ip: addressText() }), { maxItems: 16 })),
      conditions: Type.Optional(
        Type.Array(
          Type.Object({
            type: Type.Optional(text(317)),
            status: Type.Optional(text(16)),
            lastTransitionTime: Type.Optional(text(64)),
          }),
          { maxItems: 1024 },
        ),
      ),
    },
    { default: {} },
  ),
};

export const serviceFields = {
  spec: Type.Object(
    {
      clusterIPs: Type.Optional(Type.Array(text(45), { maxItems: 8 })),
      selector: Type.Optional(stringMap(256)),
      ports: Type.Optional(
        Type.Array(
          Type.Object({
            name: Type.Optional(text(63)),
            protocol: Type.Optional(text(16)),
            port: Type.Integer({ minimum: 0, maximum: 65_535 }),
          }),
          { maxItems: 4096 },
        ),
      ),
    },
    { default: {} },
  ),
};

export const endpointSliceFields = {
  addressType: Type.Enum(['IPv4', 'IPv6', 'FQDN']),
  endpoints: Type.Array(
    Type.Object({
      addresses: Type.Array(text(), { maxItems: 100 }),
      conditions: Type.Optional(
        Type.Object({
          ready: Type.Optional(Type.Boolean()),
          serving: Type.Optional(Type.Boolean()),
          terminating: Type.Optional(Type.Boolean()),
        }),
      ),
      targetRef: Type.Optional(
        Type.Object({
          kind: Type.Optional(text()),
          namespace: Type.Optional(text()),
          name: Type.Optional(text()),
          uid: Type.Optional(text()),
        }),
      ),
    }),
    { maxItems: 1000, default: [] },
  ),
};

export const nodeFields = {
  spec: Type.Object(
    { podCIDR: Type.Optional(prefixText()), podCIDRs: Type.Optional(Type.Array(prefixText(), { maxItems: 16 })) },
    { default: {} },
  ),
  status: Type.Object(
    {
      addresses: Type.Optional(Type.Array(Type.Object({ type: objectType(), address: text() }), { maxItems: 64 })),
    },
    { default: {} },
  ),
};

function objectType() {
  return Type.String({ minLength: 1, maxLength: 64 });
}

export const configMapFields = { data: Type.Optional(stringMap(4096)) };
