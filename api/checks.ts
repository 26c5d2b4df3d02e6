/**
 * What a schema cannot say of an object: fields that exclude or need each other, counts that must agree, addresses
 * that cannot be anybody's source. Runs on objects that passed their schema (texts are canonical by then); and puts
 * Kubernetes objects into the one form that the rest of the program reads.
 */

import { formatAddress, formatPrefix, parseAddress, parsePrefix, parseRange, type Range } from './address.ts';
import { parseAuthority, parseListUrl } from './list-url.ts';
import { LABEL_NAMESPACE_NAME, NODE_SHARDS_MAX } from './names.ts';
import { type Family, families } from './plan.ts';
import { parsePortsOf, protocolNumber } from './ports.ts';
import { PrefixSet } from './prefix-set.ts';
import { must } from './result.ts';
import { describe, show } from './schema/describe.ts';
import { SHARED_COUNT_MAX } from './schema/egress-ip.ts';
import type { KindName, ObjectOf } from './schema/registry.ts';

export type Report = (path: string, expected: string, got: string) => void;

/** Addresses that no host on a link may have as its own: they would be given out and never work. */
const notUnicast = must(
  PrefixSet.parse([
    '0.0.0.0/8',
    '127.0.0.0/8',
    '169.254.0.0/16',
    '224.0.0.0/3',
    '::/127',
    '::ffff:0:0/96',
    'fe80::/10',
    'ff00::/8',
  ]),
);

const rangeOf = (text: string): Range => must(parseRange(text));

function checkUnicast(texts: readonly string[], path: string, report: Report, family?: Family): void {
  for (const [i, text] of texts.entries()) {
    const range = rangeOf(text);
    const at = `${path}[${i}]`;
    if (family !== undefined && range.family !== family) report(at, `an IPv${family} address or range`, show(text));
    else if (notUnicast.intersects(range)) report(at, 'addresses that a host may have', show(text));
  }
}

/** Whether ranges overlap each other: then their addresses cannot be counted. */
function checkDisjoint(texts: readonly string[], path: string, report: Report): void {
  let seen = PrefixSet.empty;
  for (const [i, text] of texts.entries()) {
    const range = rangeOf(text);
    if (seen.intersects(range)) report(`${path}[${i}]`, 'no address that another range has too', show(text));
    seen = seen.union(PrefixSet.of([range]));
  }
}

function gatewayPool(o: ObjectOf<'GatewayPool'>, report: Report): void {
  const { gateways, interfaces, nextHops } = o.spec;
  const inside = new Map<string, number>();
  for (const [i, gateway] of gateways.entries()) {
    const at = `spec.gateways[${i}].internalAddress`;
    const first = inside.get(gateway.internalAddress);
    if (first !== undefined)
      report(at, `other than spec.gateways[${first}].internalAddress`, show(gateway.internalAddress));
    else inside.set(gateway.internalAddress, i);
    const range = rangeOf(gateway.internalAddress);
    if (notUnicast.intersects(range)) report(at, 'an address that a host may have', show(gateway.internalAddress));
    if (range.family !== rangeOf(gateways[0]?.internalAddress ?? '').family) {
      report(at, 'the family of the first gateway: all tunnels have one outer family', show(gateway.internalAddress));
    }
  }
  // There the ruleset tells a workload's packet from an answer by the interface.
  if (o.spec.steering.mode === 'Direct' && interfaces.external.name === interfaces.internal) {
    report(
      'spec.interfaces.external.name',
      'other than spec.interfaces.internal (Direct steering)',
      show(interfaces.internal),
    );
  }
  for (const family of families) {
    const router = interfaces.external.gateway?.[`v${family}`];
    if (router !== undefined && rangeOf(router).family !== family) {
      report(`spec.interfaces.external.gateway.v${family}`, `an IPv${family} address`, show(router));
    }
  }

  checkUnicast(o.spec.dns?.resolvers ?? [], 'spec.dns.resolvers', report);
  for (const [i, text] of o.spec.fetch.allowedHosts.entries()) {
    const read = parseAuthority(text);
    if (!read.ok) report(`spec.fetch.allowedHosts[${i}]`, read.error, show(text));
  }

  const counts: Partial<Record<Family, bigint>> = {};
  for (const family of families) {
    const texts = nextHops[`v${family}`];
    if (texts === undefined) continue;
    const path = `spec.nextHops.v${family}`;
    checkUnicast(texts, path, report, family);
    checkDisjoint(texts, path, report);
    const set = PrefixSet.of(texts.map(rangeOf));
    const count = set.size(family);
    counts[family] = count;
    if (count > BigInt(NODE_SHARDS_MAX)) report(path, `1 to ${NODE_SHARDS_MAX} addresses`, `${count} addresses`);
    for (const address of inside.keys()) {
      if (set.has(must(parseAddress(address)))) report(path, 'no internalAddress of a gateway', show(address));
    }
  }
  if (counts[4] === undefined && counts[6] === undefined) report('spec.nextHops', 'v4, v6 or both', 'neither');
  if (counts[4] !== undefined && counts[6] !== undefined && counts[4] !== counts[6]) {
    report('spec.nextHops', 'as many v6 as v4 addresses, one of each per shard', `${counts[4]} v4 and ${counts[6]} v6`);
  }
  const { vrrp } = o.spec;
  if (vrrp === undefined) return;
  const { baseId, advertIntervalMs } = vrrp;
  if (advertIntervalMs % 10 !== 0) report('spec.vrrp.advertIntervalMs', 'a multiple of 10', describe(advertIntervalMs));
  const shards = Number(counts[4] ?? counts[6] ?? 0n);
  if (shards > 0 && baseId + shards - 1 > VRID_MAX) {
    report('spec.vrrp.baseId', `at most ${VRID_MAX + 1 - shards}: ${shards} shards have one each`, describe(baseId));
  }
}

const VRID_MAX = 255;

function egressIPPool(o: ObjectOf<'EgressIPPool'>, report: Report): void {
  const { ranges } = o.spec;
  checkUnicast(ranges, 'spec.ranges', report);
  checkDisjoint(ranges, 'spec.ranges', report);
}

function egressIP(o: ObjectOf<'EgressIP'>, report: Report): void {
  const { addresses, count, namespaces, namespaceSelector } = o.spec;
  if (addresses !== undefined && count !== undefined) {
    report('spec.count', 'absent: addresses are given', describe(count));
  } else if (addresses === undefined && count === undefined) report('spec', 'addresses or count', 'neither');
  if (namespaces !== undefined && namespaceSelector !== undefined) {
    report('spec.namespaceSelector', 'absent: namespaces are given', describe(namespaceSelector));
  } else if (namespaces === undefined && namespaceSelector === undefined) {
    report('spec', 'namespaces or namespaceSelector ({} is every namespace)', 'neither');
  }
  checkUnicast(addresses ?? [], 'spec.addresses', report);
  const { allocation, spread, bandwidth, destinations = [] } = o.spec;
  if (allocation === 'Shared' && count !== undefined && count > SHARED_COUNT_MAX)
    report('spec.count', `at most ${SHARED_COUNT_MAX} of allocation Shared`, describe(count));
  if (allocation !== 'Shared' && spread === 'Connection')
    report('spec.spread', `Pod: of allocation ${allocation} each has one address`, show(spread));
  if (bandwidth !== undefined && bandwidth.egress === undefined && bandwidth.ingress === undefined) {
    report('spec.bandwidth', 'egress or ingress', 'neither');
  }
  const seen = new Map<string, number>();
  for (const [i, text] of destinations.entries()) {
    const at = `spec.destinations[${i}]`;
    if (isPrefixText(text)) {
      const prefix = parsePrefix(text);
      if (!prefix.ok) {
        report(at, `a CIDR: ${prefix.error}`, show(text));
        continue;
      }
      destinations[i] = formatPrefix(prefix.value);
    }
    const first = seen.get(destinations[i] ?? '');
    if (first !== undefined) report(at, `other than spec.destinations[${first}]`, show(text));
    else seen.set(destinations[i] ?? '', i);
  }
}

/** Of a text that may also be `NAMESPACE/NAME`, where no namespace has a dot or a colon. */
export const isPrefixText = (text: string): boolean => /^[^/]*[.:]/.test(text);

function externalService(o: ObjectOf<'ExternalService'>, report: Report): void {
  if (o.spec.addresses === undefined && o.spec.addressesFrom === undefined) {
    report('spec', 'addresses or addressesFrom', 'neither');
  }
  for (const [i, { url }] of (o.spec.addressesFrom ?? []).entries()) {
    if (url === undefined) continue;
    const read = parseListUrl(url);
    // Never shown: a password may stand in it.
    if (!read.ok) report(`spec.addressesFrom[${i}].url`, read.error, 'another text');
  }
  for (const [i, port] of (o.spec.ports ?? []).entries()) {
    if (port.port === undefined) continue;
    const path = `spec.ports[${i}].port`;
    const ports = parsePortsOf(protocolNumber(port.protocol), port.port);
    if (!ports.ok) report(path, ports.error, show(port.port));
  }
}

function rule(o: ObjectOf<'ClusterEgressRule' | 'NamespaceEgressRule' | 'ServiceEgressRule'>, report: Report): void {
  const names = o.spec.externalServices;
  for (const [i, name] of names.entries()) {
    const path = `spec.externalServices[${i}]`;
    if (name === '*' && names.length > 1) report(path, 'no other name beside "*"', `${names.length} names`);
    if (name.includes('/') && o.kind !== 'ClusterEgressRule') {
      report(path, 'a name in the namespace of the rule, without a namespace before it', show(name));
    }
  }
  for (const field of ['connectionsPerSecond', 'maxConnections', 'bandwidth'] as const) {
    const { action, [field]: limit } = o.spec;
    if (limit === undefined || action === 'accept' || action === 'accept-decisively') continue;
    report(`spec.${field}`, `absent: a rule that says ${action} lets nothing through`, describe(limit));
  }
  for (const [i, account] of (o.spec.serviceAccounts ?? []).entries()) {
    if (o.kind === 'ClusterEgressRule' || !account.includes('/')) continue;
    const expected = 'a ServiceAccount of the namespace of the rule, without a namespace before it';
    report(`spec.serviceAccounts[${i}]`, expected, show(account));
  }
  checkPermitting(o, report);
  const { redirect, webhook } = o.spec;
  if (redirect !== undefined && notUnicast.intersects(rangeOf(redirect.address))) {
    report('spec.redirect.address', 'an address that a host may have', show(redirect.address));
  }
  const url = webhook === undefined ? undefined : parseListUrl(webhook.url);
  // Never shown: a password may stand in it.
  if (url?.ok === false) report('spec.webhook.url', url.error, 'another text');
}

/** What is said of flows that the rule permits: on one that permits none it would be a wish that nobody carries out. */
function checkPermitting(
  { kind, spec }: ObjectOf<'ClusterEgressRule' | 'NamespaceEgressRule' | 'ServiceEgressRule'>,
  report: Report,
): void {
  const { action } = spec;
  for (const field of ['redirect', 'webhook'] as const) {
    if (spec[field] === undefined) continue;
    if (action === 'drop' || action === 'reject') {
      report(`spec.${field}`, `absent: a ${action} rule permits nothing`, describe(spec[field]));
    } else if (action === 'accept' && kind !== 'ServiceEgressRule') {
      const expected = 'absent: accept permits nothing in this context; accept-decisively does';
      report(`spec.${field}`, expected, describe(spec[field]));
    }
  }
}

/** The API server labels every namespace with its own name; a manifest cannot claim another. */
function namespace(o: ObjectOf<'Namespace'>): void {
  o.metadata.labels ??= Object.create(null) as Record<string, string>;
  o.metadata.labels[LABEL_NAMESPACE_NAME] = o.metadata.name;
}

/** Of a pod's conditions: that it has its network, since then. */
const NETWORKED = 'PodReadyToStartContainers';

/**
 * `podIP` is the first of `podIPs`; afterwards `podIPs` alone has them all, in canonical form. Conditions change often: only one
 * is kept.
 */
function pod(o: ObjectOf<'Pod'>, report: Report): void {
  const { spec, status } = o;
  const networked = status.conditions?.filter(({ type, status }) => type === NETWORKED && status === 'True') ?? [];
  if (networked.length > 0) status.conditions = networked;
  else delete status.conditions;
  // As the API server fills it in.
  if (spec.serviceAccountName === '') spec.serviceAccountName = 'default';
  if (status.podIP === '') delete status.podIP;
  if (status.podIP === undefined) return;
  const address = parseAddress(status.podIP);
  if (!address.ok) {
    report('status.podIP', `an IP address: ${address.error}`, show(status.podIP));
    return;
  }
  status.podIP = formatAddress(address.value);
  if (status.podIPs === undefined || status.podIPs.length === 0) status.podIPs = [{ ip: status.podIP }];
}

function endpointSlice(o: ObjectOf<'EndpointSlice'>, report: Report): void {
  if (o.addressType === 'FQDN') return;
  const family = o.addressType === 'IPv4' ? 4 : 6;
  for (const [i, endpoint] of o.endpoints.entries()) {
    for (const [j, text] of endpoint.addresses.entries()) {
      const address = parseAddress(text);
      if (address.ok && address.value.family === family) endpoint.addresses[j] = formatAddress(address.value);
      else report(`endpoints[${i}].addresses[${j}]`, `an IPv${family} address`, show(text));
    }
  }
}

/** Afterwards `podCIDRs` alone has the pod ranges, and addresses of type InternalIP and ExternalIP are canonical. */
function node(o: ObjectOf<'Node'>, report: Report): void {
  if (o.spec.podCIDRs === undefined && o.spec.podCIDR !== undefined) o.spec.podCIDRs = [o.spec.podCIDR];
  for (const [i, entry] of (o.status.addresses ?? []).entries()) {
    if (entry.type !== 'InternalIP' && entry.type !== 'ExternalIP') continue;
    const address = parseAddress(entry.address);
    if (!address.ok) report(`status.addresses[${i}].address`, `an IP address: ${address.error}`, show(entry.address));
    else entry.address = formatAddress(address.value);
  }
}

export const checks: { [Kind in KindName]: (object: ObjectOf<Kind>, report: Report) => void } = {
  GatewayPool: gatewayPool,
  EgressIPPool: egressIPPool,
  EgressIP: egressIP,
  ExternalService: externalService,
  ClusterEgressRule: rule,
  NamespaceEgressRule: rule,
  ServiceEgressRule: rule,
  Namespace: namespace,
  Pod: pod,
  Service: () => {},
  EndpointSlice: endpointSlice,
  Node: node,
  ConfigMap: () => {},
};
