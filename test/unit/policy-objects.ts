/**
 * Objects of a policy as the parser gives them, without the parser: what is tested is the binding.
 */
import type {
  ClusterEgressRule,
  EndpointSlice,
  ExternalService,
  LabelSelector,
  Namespace,
  NamespaceEgressRule,
  Pod,
  ServiceEgressRule,
} from '../../api/kinds.ts';
import type { Action } from '../../api/plan.ts';
import type { BindInput } from '../../policy/bind.ts';

export const NS = 'sluice-system';

export function object<T>(kind: string, qualified: string, rest: object = {}, meta: object = {}): T {
  const [name = '', namespace] = qualified.split('/').reverse();
  return { apiVersion: 'v1', kind, metadata: { name, ...(namespace && { namespace }), ...meta }, ...rest } as T;
}
export const namespace = (name: string, labels = {}): Namespace => object('Namespace', name, {}, { labels });
export const pod = (
  name: string,
  ips: string[],
  more: { labels?: object; uid?: string; hostNetwork?: boolean; phase?: string; account?: string } = {},
): Pod =>
  object(
    'Pod',
    name,
    {
      spec: {
        nodeName: 'n',
        serviceAccountName: more.account ?? 'default',
        ...(more.hostNetwork && { hostNetwork: true }),
      },
      status: { phase: more.phase ?? 'Running', podIPs: ips.map((ip) => ({ ip })) },
    },
    { uid: more.uid ?? `uid-${name}`, labels: more.labels ?? {} },
  );
export const external = (name: string, addresses = ['198.51.100.80'], ports?: object[]): ExternalService =>
  object('ExternalService', name, { spec: { addresses, ...(ports && { ports }) } });
export interface RuleShape {
  action?: Action;
  priority?: number;
  externalServices?: string[];
  created?: string;
  podSelector?: LabelSelector;
  serviceAccounts?: string[];
  namespaceSelector?: LabelSelector;
  service?: string;
  endpoints?: 'All' | 'Ready';
}
export function rule<T>(kind: string, name: string, { created, ...spec }: RuleShape = {}): T {
  const defaults = { action: 'accept', priority: 1000, externalServices: ['web'] };
  return object(kind, name, { spec: { ...defaults, ...spec } }, created ? { creationTimestamp: created } : {});
}
export const cluster = (name: string, spec?: RuleShape): ClusterEgressRule => rule('ClusterEgressRule', name, spec);
export const tenant = (name: string, spec?: RuleShape): NamespaceEgressRule => rule('NamespaceEgressRule', name, spec);
export const app = (name: string, spec?: RuleShape): ServiceEgressRule =>
  rule('ServiceEgressRule', name, { service: 'payments', endpoints: 'All', ...spec });
export const slice = (name: string, service: string, endpoints: object[]): EndpointSlice =>
  object(
    'EndpointSlice',
    name,
    { addressType: 'IPv4', endpoints },
    { labels: { 'kubernetes.io/service-name': service } },
  );
export const input = (more: Partial<BindInput> = {}): BindInput => ({
  namespaces: [],
  pods: [],
  endpointSlices: [],
  externalServices: [],
  clusterRules: [],
  namespaceRules: [],
  serviceRules: [],
  controllerNamespace: NS,
  auditedNamespaces: new Set(),
  lastServices: {},
  now: 0,
  ...more,
});
