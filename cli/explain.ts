/**
 * `sluice explain`: what becomes of a flow from a pod, and why (design §9): the walk of the three contexts, the
 * decision, and the egress IP, shard and gateway with which it would leave. It plans the directory's objects with the
 * controller's own code and asks the one evaluator; it knows no more of the machines than the manifests say.
 */
import { resolve } from 'node:path';
import { type Command, InvalidArgumentError, Option } from 'commander';
import { canonicalAddress, parseAddress } from '../api/address.ts';
import { objectKey, type Pod } from '../api/kinds.ts';
import { type Context, contexts, type Family, type GatewayPlan, type WorkloadEntry } from '../api/plan.ts';
import { beginsExchange } from '../api/ports.ts';
import { dropReasons } from '../api/reasons.ts';
import { must } from '../api/result.ts';
import { readLists } from '../controller/observe/lists.ts';
import { noPeers } from '../controller/plan/peers.ts';
import { type PlanResult, plan } from '../controller/plan/plan.ts';
import { ofKind, type Snapshot } from '../controller/plan/snapshot.ts';
import { describeExclusion, excludes, selectsNamespace } from '../policy/applies.ts';
import { compileCarriage, type Settled } from '../policy/carriage.ts';
import { endpointsOf } from '../policy/endpoints.ts';
import type { Explanation } from '../policy/evaluate.ts';
import { describeLogging } from '../policy/logging.ts';
import { qualifiedName } from '../policy/order.ts';
import { sourceArgument } from './controller.ts';
import { answerText } from './explain-text.ts';
import { memoryOf } from './given-out.ts';
import { listNotes } from './list-notes.ts';
import { Exit, json, painter, print, printError, yaml } from './output.ts';
import { addSaidOptions, knownBy, type Said, type SaidFlags, saidOf } from './said.ts';
import { loadSource, refusedText, type Source } from './source.ts';
import { icmpTypeOf, parseNamedTarget, parseTarget, protocolOf, type Target, targetForms } from './target.ts';

interface Query {
  namespace: string;
  pod: string;
  target: Target;
  protocol: number;
  said?: Said;
}

/** What explain answers; `-o json` prints it as it is. */
export interface Answer {
  from: string;
  source?: string;
  to: string;
  protocol: number;
  icmpType?: number;
  icmpCode?: number;
  /** `bypass`: Sluice does not carry the flow at all. */
  verdict: 'accept' | 'drop' | 'reject' | 'bypass';
  /** It may begin; what its first bytes say is still to decide. */
  provisional?: true;
  reason: string;
  summary: string;
  /** What is taken as said and known of the flow. */
  said?: Said;
  policy?: Explanation;
  /** Rules of the pod's namespace and of the cluster that do not speak of the pod, and why. */
  excluded?: Excluded[];
  egress?: Leaving;
  /** Instead of `egress`, of an EgressIP of spread Connection: one of these, by connection. */
  spread?: Leaving[];
  /** Where it says more than an address: the EgressIP. */
  egressIP?: { name: string; destination?: string; maxConnections?: number };
  /** Of an EgressIP that gives each its own address: which, and to whom alone it gives that of `egress`. */
  owner?: { egressIP: string; owner: string };
  /** Lists that are not known here, or not as they are now. */
  lists?: string[];
  /** Which flow records it leaves, where rules say so. */
  records?: string[];
  /** Host that the permitting rule's webhook tells of the flow. */
  webhook?: string;
}
interface Leaving {
  pool: string;
  address: string;
  shard: string;
  gateway?: string;
  nextHop?: string;
  /** Of the EgressIP; bits per second. */
  bandwidth?: { egressIP: string; egress?: number; ingress?: number };
}
interface Excluded {
  context: Context;
  rule: string;
  why: string;
  /** It would apply at another time. */
  outOfSchedule?: true;
}

export async function explain(source: Source, query: Query, state?: string, now = Date.now()): Promise<Answer> {
  const { namespace, pod: name, target, protocol, said } = query;
  const pods = ofKind(source.snapshot, 'Pod');
  const pod = pods.find(({ metadata }) => metadata.name === name && (metadata.namespace ?? 'default') === namespace);
  if (pod === undefined) {
    const others = pods.filter(({ metadata }) => metadata.namespace === namespace).map(({ metadata }) => metadata.name);
    const known = others.length === 0 ? 'it has none' : `it has ${others.slice(0, 10).join(', ')}`;
    throw new Exit(1, `no pod "${name}" in namespace "${namespace}" (${known})`);
  }
  const to = target.port === undefined ? target.address : addressPort(target);
  const about = { from: `${namespace}/${name}`, to, protocol, ...icmpTypeOf(target, protocol) };
  const base = said === undefined ? about : { ...about, said };
  const bypass = (reason: string, summary: string): Answer => ({ ...base, verdict: 'bypass', reason, summary });
  if (pod.spec.hostNetwork === true) {
    return bypass('host-network', "Not carried: the pod uses its node's network, so its packets are the node's own.");
  }
  const lists = await readLists(source.snapshot, () => resolve(source.path), state);
  const result = plan(source.snapshot, await memoryOf(source, state), noPeers(), now, lists);
  const carried = [...result.pools]
    .map(([pool, gatewayPlan]) => ({ pool, gatewayPlan, workload: workloadOf(gatewayPlan, pod, namespace) }))
    .find(({ workload }) => workload !== undefined);
  if (carried?.workload === undefined) {
    const warning = result.warnings.find(({ object }) => object === `Pod/${namespace}/${name}`);
    if (warning !== undefined) return bypass('no-workload', `Not carried: the pod ${warning.message}.`);
    const idle = pod.status.phase === 'Succeeded' || pod.status.phase === 'Failed' || pod.spec.nodeName === undefined;
    if (idle) return bypass('no-workload', 'Not carried: the pod is not running (finished, or on no node yet).');
    if ((pod.status.podIPs ?? []).length === 0 && pod.status.podIP === undefined) {
      return bypass('no-workload', 'Not carried: the pod has no address yet.');
    }
    return bypass(
      'no-pool',
      `Not carried: no GatewayPool selects namespace ${namespace}; it leaves as if Sluice were absent.`,
    );
  }
  const answer = answerOf(base, carried.pool, carried.gatewayPlan, carried.workload, target);
  const applied = Object.values(carried.gatewayPlan.groups[carried.workload.group]?.rules ?? {}).flat();
  if (answer.policy === undefined) return answer;
  const notes = listNotes(source.snapshot, result, namespace);
  // An accept above the service context has none, so that who decides is who permits.
  const webhook =
    answer.verdict === 'accept' ? result.webhooks.get(answer.policy.decision.rule ?? '')?.host : undefined;
  const owned = result.memory.owners[answer.egress?.address ?? ''];
  return {
    ...answer,
    excluded: excluded(source.snapshot, pod, applied, result),
    ...(owned !== undefined &&
      owned.goneAt === undefined && { owner: { egressIP: owned.egressIP, owner: owned.owner } }),
    ...(notes.length === 0 ? {} : { lists: notes }),
    ...(webhook === undefined ? {} : { webhook }),
  };
}

function excluded(snapshot: Snapshot, pod: Pod, applied: readonly string[], { statuses }: PlanResult): Excluded[] {
  const { namespace } = pod.metadata;
  const labels = ofKind(snapshot, 'Namespace').find(({ metadata }) => metadata.name === namespace)?.metadata.labels;
  const endpoints = endpointsOf(ofKind(snapshot, 'Pod'), ofKind(snapshot, 'EndpointSlice'));
  const rules = {
    cluster: ofKind(snapshot, 'ClusterEgressRule'),
    namespace: ofKind(snapshot, 'NamespaceEgressRule'),
    service: ofKind(snapshot, 'ServiceEgressRule'),
  };
  return contexts.flatMap((context) =>
    rules[context].flatMap((rule): Excluded[] => {
      const id = `${context}/${qualifiedName(rule.metadata)}`;
      if (applied.includes(id) || (context !== 'cluster' && rule.metadata.namespace !== namespace)) return [];
      const elsewhere = rule.kind === 'ClusterEgressRule' && !selectsNamespace(rule, namespace ?? '', labels);
      const exclusion = elsewhere ? 'namespaceSelector' : excludes(rule, pod, endpoints);
      if (exclusion !== undefined) return [{ context, rule: id, why: describeExclusion(rule, pod, exclusion) }];
      const accepted = statuses.get(objectKey(rule))?.conditions.find(({ type }) => type === 'Accepted');
      if (accepted?.reason === 'OutOfSchedule') {
        return [{ context, rule: id, why: accepted.message, outOfSchedule: true }];
      }
      return [{ context, rule: id, why: `it is not accepted: ${accepted?.message ?? 'not in the plan'}` }];
    }),
  );
}

function workloadOf(gatewayPlan: GatewayPlan, pod: Pod, namespace: string): WorkloadEntry | undefined {
  const { name } = pod.metadata;
  return Object.values(gatewayPlan.workloads).find((entry) => entry.name === name && entry.namespace === namespace);
}

/** In the order in which a packet meets node, gateway and policy. */
function answerOf(
  base: Pick<Answer, 'from' | 'to' | 'protocol' | 'icmpType' | 'icmpCode' | 'said'>,
  pool: string,
  gatewayPlan: GatewayPlan,
  workload: WorkloadEntry,
  target: Target,
): Answer {
  const { family, address, port } = target;
  const source = workload.addresses.find((text) => familyOf(text) === family);
  if (source === undefined)
    throw new Exit(1, `${base.from} has no IPv${family} address (it has ${workload.addresses.join(', ')})`);
  const head = { ...base, source };
  const flow = {
    source,
    destination: address,
    protocol: base.protocol,
    ...(port === undefined ? {} : { destinationPort: port }),
    ...icmpTypeOf(target, base.protocol),
  };
  const carriage = compileCarriage(gatewayPlan);
  const destination = { address: must(parseAddress(address)), protocol: base.protocol };
  const settled = carriage.settled(workload, { ...destination, ...(port === undefined ? {} : { port }) });
  if (settled !== undefined) {
    const { egressIP } = carriage.egress.towards(workload, destination.address);
    const allocation = gatewayPlan.egressIPs[egressIP ?? '']?.allocation;
    const each = allocation === 'PerPod' ? 'pod' : 'namespace';
    const none =
      allocation !== undefined && settled.reason === 'no-egress-ip'
        ? ` EgressIP ${egressIP} gives each ${each} an address of its own, and none is left for it.`
        : '';
    return { ...head, ...settled, summary: settledText(settled, address, pool) + none };
  }
  const { icmpType } = base;
  if (icmpType !== undefined && !beginsExchange(family, icmpType)) return { ...head, ...invalid(icmpType) };
  const choice = carriage.egress.towards(workload, destination.address);
  const ways = choice.addresses.map((egress): Leaving => {
    const shard = gatewayPlan.shards[egress.shard];
    const gateway = shard?.order[0];
    const nextHop = shard?.nextHops[family];
    const at = { ...(gateway !== undefined && { gateway }), ...(nextHop !== undefined && { nextHop }) };
    // In audit of the whole policy nothing waits.
    const audit = gatewayPlan.groups[workload.group]?.audit === true;
    return { pool, ...egress, ...at, ...(audit ? {} : egressBandwidth(gatewayPlan, egress.address)) };
  });
  const [only, ...others] = ways;
  const { egressIP: name, prefix } = choice;
  const limit = name === undefined ? undefined : gatewayPlan.egressIPs[name]?.limits?.maxConnections;
  const policy = carriage.evaluator.explain(flow, base.said && knownBy(base.said));
  const { decision, summary } = policy;
  if (base.protocol === UDP_LITE) return { ...head, ...udpLite(summary), policy };
  const records = describeLogging(policy, gatewayPlan.rules);
  return {
    ...head,
    verdict: decision.verdict,
    ...(decision.provisional && { provisional: true }),
    reason: decision.reason,
    summary,
    policy,
    ...(records.length > 0 && { records }),
    ...(decision.verdict === 'accept' && {
      ...(only !== undefined && others.length === 0 ? { egress: only } : { spread: ways }),
      ...(name !== undefined && {
        egressIP: {
          name,
          ...(prefix !== undefined && { destination: prefix }),
          ...(limit !== undefined && { maxConnections: limit }),
        },
      }),
    }),
  };
}

function settledText({ verdict, reason }: Settled, address: string, pool: string): string {
  if (verdict !== 'bypass') {
    return `${verdict === 'drop' ? 'Dropped' : 'Rejected'} whatever the rules say: ${dropReasons[reason]}.`;
  }
  switch (reason) {
    case 'unassigned':
      return 'Not steered: no EgressIP serves the pod there, and the pool says unassigned: Bypass; no rule applies.';
    case 'never-steered':
      return `Not steered: ${address} is an unspecified, loopback, link-local, multicast or broadcast address; no rule applies.`;
    default:
      return `Not steered: ${address} lies in ${reason} of GatewayPool ${pool}.`;
  }
}

/** Without a flow that it answers, or is an error about. */
const invalid = (icmpType: number): Pick<Answer, 'verdict' | 'reason' | 'summary'> => ({
  verdict: 'drop',
  reason: 'invalid',
  summary:
    `Dropped whatever the rules say: ICMP type ${icmpType} begins nothing, so conntrack calls it invalid. ` +
    'What belongs to an open flow (a reply to it, an error about it) passes without a rule.',
});

const UDP_LITE = 136;
/** `summary`: of the policy. The machine's setting stands in no manifest; this is what Linux has by default. */
const udpLite = (summary: string): Pick<Answer, 'verdict' | 'reason' | 'summary'> => ({
  verdict: 'drop',
  reason: 'invalid',
  summary:
    'Dropped whatever the rules say: Linux reckons the checksum of UDP-Lite as if it were UDP, so conntrack calls it invalid. ' +
    `On gateways where net.netfilter.nf_conntrack_checksum is 0: ${summary}`,
});

const familyOf = (address: string): Family => (address.includes(':') ? 6 : 4);
const addressPort = ({ address, family, port }: Target): string =>
  family === 6 ? `[${address}]:${port}` : `${address}:${port}`;

/** `2026-03-29T01:00:00Z`, `2026-03-29T03:00+02:00`: with an offset, since a local time may exist twice or not at all. */
export function timeArgument(text: string): number {
  const form = /^\d{4}-\d\d-\d\dT\d\d:\d\d(:\d\d)?(Z|[+-]\d\d:\d\d)$/;
  const time = form.test(text) && isDay(text) ? Date.parse(text) : Number.NaN;
  if (time >= 0) return time;
  throw new InvalidArgumentError('expected a time since 1970 like 2026-03-29T01:00:00Z or 2026-03-29T03:00+02:00');
}

/** Date.parse takes 30 February for 2 March. */
function isDay(text: string): boolean {
  const day = text.slice(0, 10);
  const parsed = Date.parse(day);
  return !Number.isNaN(parsed) && new Date(parsed).toISOString().startsWith(day);
}

interface Flags extends SaidFlags {
  source: string;
  from: { namespace: string; pod: string };
  to: Target | { name: string; port: number };
  address?: string;
  protocol?: string;
  state?: string;
  at?: number;
  output: 'text' | 'json' | 'yaml';
}

/** A name has an address only where one is said. */
function targetOf({ to, address }: Flags): Target {
  if ('address' in to) {
    if (address !== undefined) throw new Exit(2, '--address: --to says an address already');
    return to;
  }
  if (address === undefined) {
    throw new Exit(2, `--to: ${to.name} needs --address ADDRESS, since no names are asked for here`);
  }
  return { address, family: familyOf(address), ...to };
}

export function register(program: Command): void {
  const command = program
    .command('explain')
    .description('say what becomes of a flow, by which rule, and with which address it leaves')
    .requiredOption('--source <source>', 'directory:PATH of Kubernetes YAML', sourceArgument)
    .requiredOption('--from <namespace/pod>', 'who', (text: string) => {
      const [namespace, pod, ...rest] = text.split('/');
      if (!namespace || !pod || rest.length > 0) throw new InvalidArgumentError('expected NAMESPACE/POD');
      return { namespace, pod };
    })
    .requiredOption('--to <address[:port]>', 'to where; NAME:PORT with --address', (text: string) => {
      const target = parseTarget(text) ?? parseNamedTarget(text);
      if (target === undefined) throw new InvalidArgumentError(`expected ${targetForms}`);
      return target;
    })
    .option('--address <address>', 'of the name in --to', (text: string) => {
      const address = canonicalAddress(text);
      if (!address.ok) throw new InvalidArgumentError('expected an address');
      return address.value;
    })
    .option('--protocol <protocol>', 'tcp, udp, sctp, icmp or a number (default: tcp with a port, else icmp, a ping)')
    .option(
      '--state <dir>',
      'state directory of the controller, for the addresses that it gave out, the lists that it fetched, and ages',
    )
    .option('--at <time>', 'as of another time, for rules with a schedule (default: now)', timeArgument)
    .addOption(new Option('-o, --output <form>', 'how').choices(['text', 'json', 'yaml']).default('text'));
  addSaidOptions(command)
    .addHelpText(
      'after',
      `
Examples:
  sluice explain --source directory:manifests --from billing/pay-1 --to 198.51.100.80:443
  sluice explain --source directory:manifests --from billing/pay-1 --to '[2001:db8:100::80]:53' --protocol udp
  sluice explain --source directory:manifests --from reviews/rev-1 --to 198.51.100.90 -o json
  sluice explain --source directory:manifests --from reviews/rev-1 --to 198.51.100.90:icmp/13
  sluice explain --source directory:manifests --from reviews/rev-1 --to 198.51.100.90:873 --at 2026-03-29T03:00+02:00
  sluice explain --source directory:manifests --from batch/sync-1 --to api.example.com:443 --address 198.51.100.81
  sluice explain --source directory:manifests --from batch/sync-1 --to 198.51.100.81:443 --sni api.example.com --ech
  sluice explain --source directory:manifests --from batch/sync-1 --to 198.51.100.81:80 --host api.example.com --method PUT --path /v1/x
  sluice explain --source directory:manifests --from dns/dns-1 --to 198.51.100.53:53 --protocol udp --qname a.example.com --qtype TXT
  sluice explain --source directory:manifests --from batch/sync-1 --to 198.51.100.81:443 --application SSH`,
    )
    .action(async (flags: Flags, command: Command) => {
      const { source, from, state, at, output } = flags;
      const target = targetOf(flags);
      const protocol = protocolOf(flags.protocol, target);
      const said = saidOf(flags, target, protocol);
      const query = { ...from, target, protocol, ...(said && { said }) };
      const loaded = await loadSource(source, state);
      const answer = await explain(loaded, query, state, at);
      const text = { json, yaml, text: () => answerText(answer, painter(command)) };
      print(command, text[output](answer));
      if (loaded.errors.length > 0) printError(command, refusedText(loaded.errors.length, state));
    });
}

/** Of the EgressIP that has the address, if it has a limit. */
function egressBandwidth({ egressIPs }: GatewayPlan, address: string) {
  for (const [egressIP, { bandwidth }] of Object.entries(egressIPs)) {
    if (bandwidth?.addresses.includes(address) !== true) continue;
    const { egress, ingress } = bandwidth;
    return {
      bandwidth: { egressIP, ...(egress !== undefined && { egress }), ...(ingress !== undefined && { ingress }) },
    };
  }
  return {};
}
