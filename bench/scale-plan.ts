/**
 * The plan of a large cluster (issue 3, "What it must show"): by default 10,000 namespaces with 100,000 pods of both
 * families and 100,000 rules. A namespace has two applications; each rule names destinations of its own, so that
 * nothing is shared but the cluster's rules. Addresses, nodes and the way into the tunnel are those of plan.ts.
 */
import type { GatewayPlan, PortEntry, RuleEntry, ServiceEntry } from '../api/plan.ts';
import { addPod, addRule, blockList, emptyPool, own, SERVER, TCP_PORT, UDP_PORT } from './plan.ts';

export interface ScaleSize {
  namespaces: number;
  /** Of each namespace. */
  pods: number;
  namespaceRules: number;
  serviceRules: number;
  /** Of each family; fewer than namespaces: they share. */
  egressIPs: number;
}

export const issueSize: ScaleSize = {
  namespaces: 10_000,
  pods: 10,
  namespaceRules: 7,
  serviceRules: 3,
  egressIPs: 10_000,
};

/** Rules for all. */
export const CLUSTER_RULES = 20;
const applications = ['api', 'jobs'] as const;

export function generateScalePlan(size: ScaleSize): GatewayPlan {
  const { namespaces, pods, namespaceRules, serviceRules, egressIPs } = size;
  const plan = emptyPool();
  const cluster = Array.from({ length: CLUSTER_RULES }, (_, at) =>
    at === 0
      ? addRule(plan, 'cluster', undefined, 'blocked', 'drop', blockList())
      : addRule(plan, 'cluster', undefined, `closed-${at}`, at % 2 === 0 ? 'drop' : 'reject', {
          addresses: [0, 1, 2, 3].map((part) => `185.${200 + at}.${64 * part}.0/19`).concat(`2a0f:${at}::/32`),
          ports: at % 3 === 0 ? [{ protocol: 6, ports: [[25, 25]] }] : null,
        }),
  );
  for (let at = 0; at < namespaces; at++) {
    const namespace = `team-${at}`;
    const open = Array.from({ length: namespaceRules }, (_, index) => namespaceRule(plan, at, index));
    const byApplication: Record<string, string[]> = { api: [], jobs: [] };
    for (let index = 0; index < serviceRules; index++) {
      // Both can reach the server that the benchmark has; only the first application has more.
      const of = index === 0 ? applications : [applications[(index + 1) % 2] ?? 'api'];
      const id = serviceRule(plan, at, index);
      for (const application of of) byApplication[application]?.push(id);
    }
    for (const application of applications) {
      plan.groups[`${namespace}/${application}`] = {
        namespace,
        rules: { cluster, namespace: open, service: byApplication[application] ?? [] },
      };
    }
    const number = (at % egressIPs) + 1;
    const egress = { 4: `100.64.${number >> 8}.${number & 255}`, 6: `2001:db8:e::${number.toString(16)}` };
    if (at < egressIPs) plan.shards.s0?.egressIPs.push(egress[4], egress[6]);
    for (let pod = 0; pod < pods; pod++) {
      const application = applications[pod % 2] ?? 'api';
      addPod(plan, at, pod, at * pods + pod, egress, application, `${namespace}/${application}`);
    }
  }
  return plan;
}

const tcp = (...ports: number[]): PortEntry => ({ protocol: 6, ports: ports.map((port) => [port, port]) });
const udp = (...ports: number[]): PortEntry => ({ ...tcp(...ports), protocol: 17 });

/** Number `index` of a namespace: two things that its owners do not permit, and what they do. */
function namespaceRule(plan: GatewayPlan, at: number, index: number): string {
  const [network4, network6] = own(at);
  const some = [...hosts(network4, index, 1), ...hosts(network6, index, 1)];
  const rows: [name: string, action: RuleEntry['action'], service: ServiceEntry][] = [
    ['no-mail', 'drop', { addresses: ['0.0.0.0/0', '::/0'], ports: [tcp(25)] }],
    ['closed', 'drop', { addresses: some, ports: null }],
  ];
  const [name, action, service] = rows[index] ?? [
    `partner-${index}`,
    'accept' as const,
    { addresses: some, ports: [tcp(5432 + index)] },
  ];
  return addRule(plan, 'namespace', `team-${at}`, name, action, service);
}

function serviceRule(plan: GatewayPlan, at: number, index: number): string {
  const [network4, network6] = own(at);
  const service =
    index === 0
      ? {
          addresses: [`${SERVER[4]}/32`, `${SERVER[6]}/128`],
          ports: [tcp(443, TCP_PORT), udp(443, UDP_PORT)],
        }
      : {
          addresses: [...hosts(network4, 20 + index, 1), ...hosts(network6, 20 + index, 1)],
          ports: index === 1 ? null : [tcp(443)],
        };
  return addRule(plan, 'service', `team-${at}`, `app-${index}`, 'accept', service);
}

/** Some addresses of a namespace's own network, apart for each `index`. */
function hosts(network: string, index: number, count: number): string[] {
  const six = network.includes(':');
  return Array.from({ length: count }, (_, at) => {
    const host = 8 * index + at + 1;
    return six ? `${network}${host.toString(16)}/128` : `${network}${host % 256}/32`;
  });
}
