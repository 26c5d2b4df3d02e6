/**
 * The plans of bench/inspection.ts: pods of one node in namespaces of five, an egress IP a namespace, and one rule of each
 * namespace's service: it may talk to the server on port 443, by address, or by name, so that flows are read. Nothing else.
 */
import type { GatewayPlan, PoolSettings, ServiceEntry } from '../api/plan.ts';
import { addPod, addRule, emptyPool, PODS_PER_NODE, podAddresses, SERVER } from './plan.ts';

export const ALLOWED_NAME = 'web.bench.test';
export const OTHER_NAME = 'www.bench.test';
/** The server's names are asked for here, in its own network namespace. */
export const RESOLVER = '203.0.113.1';
const PODS = 5;

export type Way = 'addresses' | 'names';

export function inspectionPlan(way: Way, pods: number, workers: number): GatewayPlan {
  const plan = emptyPool();
  const pool = (plan.settings as { pool: PoolSettings }).pool;
  if (way === 'names') {
    pool.dns = { resolvers: [RESOLVER] };
    pool.inspection = { workers };
  }
  for (let place = 0; place < Math.min(pods, PODS_PER_NODE); place++) {
    const at = Math.floor(place / PODS);
    const namespace = `team-${at}`;
    const egress = { 4: `100.64.0.${at + 1}`, 6: `2001:db8:e::${(at + 1).toString(16)}` };
    if (place % PODS === 0) {
      const rule = addRule(plan, 'service', namespace, 'web', 'accept', serviceOf(way));
      plan.groups[namespace] = { namespace, rules: { cluster: [], namespace: [], service: [rule] } };
      plan.shards.s0?.egressIPs.push(...Object.values(egress));
    }
    addPod(plan, at, place % PODS, place, egress);
  }
  return plan;
}

function serviceOf(way: Way): ServiceEntry {
  const port: { protocol: number; ports: [number, number][] } = { protocol: 6, ports: [[443, 443]] };
  const ports = [port];
  if (way === 'addresses') return { addresses: [`${SERVER[4]}/32`, `${SERVER[6]}/128`], ports };
  return { addresses: [], names: [ALLOWED_NAME], ports, checks: [{ ...port, application: 'TLS', implied: true }] };
}

/** Of the client: what connects. */
export const inspectionPods = (count: number): Record<4 | 6, string[]> => {
  const places = Array.from({ length: Math.min(count, PODS_PER_NODE) }, (_, place) => podAddresses(place));
  return { 4: places.map((of) => of[4]), 6: places.map((of) => of[6]) };
};
