/**
 * Why a packet was not forwarded, or a flow was decided: one union of words. The same word is the nft counter,
 * the metric's label, the record's field and the test's expectation.
 */

/** Reasons for which the data path drops or rejects a packet before, beside or after policy. */
export const dropReasons = {
  'foreign-tunnel':
    'a tunnel packet from an address that is no node or gateway of the plan, by another interface, or with another VNI',
  'bad-tunnel-frame': 'a tunnel packet whose inner frame is neither IPv4 nor IPv6',
  'spoofed-source': 'an inner source that the sending node does not hold',
  'unknown-source': 'a source that no workload of the plan has',
  'tunnel-port': 'a workload sent to the tunnel port or to an inside address of a gateway',
  hairpin: 'a workload sent to an egress IP or to a gateway',
  'cluster-destination': 'a workload packet on a gateway whose destination lies in the cluster',
  stray: 'a packet to an egress IP, or in mid-stream, that belongs to no flow',
  unsolicited: 'a new flow from the outside towards a workload',
  invalid: 'conntrack calls the packet invalid (checksum, impossible flags, out of window)',
  'no-egress-ip': 'the workload has no egress IP of this family',
  unassigned: 'the workload is assigned no egress IP and the pool says unassigned: Drop',
  redirect: 'a rule redirects the flow to where it may not go',
  bandwidth: 'a packet over the bandwidth of an EgressIP, a rule or a port, more than may wait',
  unread: 'a packet of a flow whose bytes are to be read, and that no worker has let on',
  leak: "a packet about to leave with a source that is not the workload's own egress IP",
} as const;
export type DropReason = keyof typeof dropReasons;

/** Reasons for which policy decides a flow. */
export const policyReasons = {
  rule: 'a rule matched and its action ends the walk',
  'service-accept': 'a rule of the service context accepted',
  'default-action': "no context permitted the flow, so the pool's default action decides",
  limit: 'a rule that matched has a limit, and the flow is over it',
  unread: 'what its first bytes say decides',
} as const;
export type PolicyReason = keyof typeof policyReasons;
export type Reason = DropReason | PolicyReason;

/** Reasons that the data path counts: `rule`, `default-action` and `limit` are those by which policy denies. */
export type CountedReason = DropReason | 'rule' | 'default-action' | 'limit';
export const countedReasons: readonly CountedReason[] = [
  ...(Object.keys(dropReasons) as DropReason[]),
  'rule',
  'default-action',
  'limit',
];

/**
 * Reasons of hits of audit: what a rule in audit would have done, what a policy in audit would have denied by default,
 * and what would have been over a limit.
 */
export const auditReasons = ['rule', 'default-action', 'limit'] as const;
export type AuditReason = (typeof auditReasons)[number];

export function auditCounterName(reason: AuditReason): string {
  return `audit_${reason.replaceAll('-', '_')}`;
}

/** The name of the nft counter of a reason: nft identifiers have no hyphen in our tables. */
export function counterName(reason: CountedReason): string {
  return `drop_${reason.replaceAll('-', '_')}`;
}
