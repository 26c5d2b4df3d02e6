/**
 * What is measured beside Sluice, as data: for the forwarding scenarios what stands in a gateway, for TLS by name which
 * program reads it. Each says how it is configured, in words that its users would agree to; the report prints them. What
 * cannot run on this machine is listed with the reason (`absent`).
 */

/** Whose address the server must see; proved before anything is measured. */
export type Source = 'egress IP' | 'gateway' | 'pod';

export interface ForwardingSubject {
  id: string;
  title: string;
  /** What is in force in its gateway; `way`: node and server are joined, and there is none. */
  table: 'way' | 'none' | 'nft' | 'nft-map' | 'iptables' | 'naive' | 'sluice';
  /** Accounting and time stamps of connections, as Sluice sets them; absent: as the kernel has them. */
  accounting?: true;
  source: Source;
  /** Of `sluice`: flow records are written to a file. */
  records?: true;
  /** The gateway of another subject, with changes of policy coming in. */
  churnOf?: string;
  configuration: string;
}

export const forwardingSubjects: ForwardingSubject[] = [
  {
    id: 'ceiling',
    title: 'no gateway (ceiling of the generator)',
    table: 'way',
    source: 'pod',
    configuration: 'the node has a link to the server; what is left is the cost of generator, client, node and server',
  },
  {
    id: 'plain',
    title: 'plain forwarding, no conntrack',
    table: 'none',
    source: 'pod',
    configuration: 'a network namespace without any nftables table, in which connection tracking has never begun',
  },
  {
    id: 'nft',
    title: 'hand-written nft SNAT',
    table: 'nft',
    accounting: true,
    source: 'egress IP',
    configuration:
      'bench/baseline.nft: one `snat` rule a family for all pods, policy accept; sysctls as Sluice sets them',
  },
  {
    id: 'nft-twin',
    title: 'hand-written nft SNAT, a second time',
    table: 'nft',
    accounting: true,
    source: 'egress IP',
    configuration: 'the same in another network namespace: what it differs by is what a place differs by',
  },
  {
    id: 'nft-defaults',
    title: 'hand-written nft SNAT, no accounting',
    table: 'nft',
    source: 'egress IP',
    configuration:
      'bench/baseline.nft, and connection tracking neither counts bytes nor notes times (the kernel’s defaults)',
  },
  {
    id: 'nft-map',
    title: 'hand-written nft, map of pods',
    table: 'nft-map',
    accounting: true,
    source: 'egress IP',
    configuration: '`snat to ip saddr map`, and a set of pods that may leave: an egress IP a namespace, no rules',
  },
  {
    id: 'iptables',
    title: 'iptables MASQUERADE',
    table: 'iptables',
    accounting: true,
    source: 'gateway',
    configuration:
      '`iptables -t nat -A POSTROUTING -o outside -j MASQUERADE` (iptables-nft), and the same of ip6tables',
  },
  {
    id: 'naive',
    title: 'naive list, one SNAT rule a pod',
    table: 'naive',
    accounting: true,
    source: 'egress IP',
    configuration:
      'one `ip saddr POD snat to EGRESS_IP` a pod in one chain; the load’s pods lie evenly over the list; no policy',
  },
  {
    id: 'sluice-silent',
    title: 'Sluice, no flow records',
    table: 'sluice',
    accounting: true,
    source: 'egress IP',
    configuration: '`sluice gateway` without --flow-log: policy in three contexts, an egress IP a namespace',
  },
  {
    id: 'sluice',
    title: 'Sluice, flow records on',
    table: 'sluice',
    accounting: true,
    source: 'egress IP',
    records: true,
    configuration: '`sluice gateway` with --flow-log to a file: two lines for each flow, its beginning and its end',
  },
  {
    id: 'sluice-churn',
    title: 'Sluice, flow records on, policy changing',
    table: 'sluice',
    accounting: true,
    source: 'egress IP',
    records: true,
    churnOf: 'sluice',
    configuration:
      'the same gateway while its plan changes: 100 rules’ destinations and 200 pods a second, in 5 plans a second',
  },
];

export interface TlsSubject {
  id: string;
  title: string;
  /** In the words of inspection-subjects.ts. */
  of: 'by address' | 'by name' | 'snat' | 'suricata' | 'nginx' | 'haproxy' | 'squid';
  /** Seconds of load before a figure: V8 compiles what is used some ten thousand times; others only find their neighbours. */
  warmSeconds: number;
  /** A command that must be there, and the Debian package that brings it. */
  needs?: { command: string; package: string };
  /** With whose un-inspected connections it is compared. */
  beside?: string;
  configuration: string;
}

export const tlsSubjects: TlsSubject[] = [
  {
    id: 'snat',
    title: 'hand-written nft SNAT, nothing read',
    of: 'snat',
    warmSeconds: 0.5,
    configuration: 'bench/baseline.nft',
  },
  {
    id: 'by-address',
    title: 'Sluice, rule by address',
    of: 'by address',
    warmSeconds: 2,
    configuration: '`sluice gateway`, a rule of the server’s address: nothing is read',
  },
  {
    id: 'by-name',
    title: 'Sluice, rule by name',
    of: 'by name',
    warmSeconds: 8,
    beside: 'by-address',
    configuration: 'the same program, the same rule by name: each hello is read by one of two threads',
  },
  {
    id: 'suricata',
    title: 'Suricata (IPS, NFQUEUE)',
    of: 'suricata',
    warmSeconds: 1,
    needs: { command: 'suricata', package: 'suricata, of bookworm-backports' },
    beside: 'snat',
    configuration:
      'bench/peers/suricata.yaml and sni.rules: two queues, one rule, decided flows bypass it, nothing logged',
  },
  {
    id: 'nginx',
    title: 'nginx (stream, ssl_preread)',
    of: 'nginx',
    warmSeconds: 1,
    needs: { command: 'nginx', package: 'nginx, libnginx-mod-stream' },
    beside: 'snat',
    configuration: 'bench/peers/nginx.conf: two processes, connections end at it and begin anew, nothing logged',
  },
  {
    id: 'haproxy',
    title: 'HAProxy (tcp mode, req.ssl_sni)',
    of: 'haproxy',
    warmSeconds: 1,
    needs: { command: 'haproxy', package: 'haproxy' },
    beside: 'snat',
    configuration: 'bench/peers/haproxy.cfg: two threads, connections end at it and begin anew, nothing logged',
  },
  {
    id: 'squid',
    title: 'squid (ssl_bump peek and splice)',
    of: 'squid',
    warmSeconds: 1,
    needs: { command: 'squid', package: 'squid-openssl' },
    beside: 'snat',
    configuration:
      'bench/peers/squid.conf: intercepted, peeked at and spliced, never decrypted; no cache, nothing logged',
  },
];

export interface Absent {
  subject: string;
  reason: string;
}

/** Of what the kernel says of itself (a line of its configuration): why a peer is not measured. */
export function absentPeers(kernelConfig: string | undefined): Absent[] {
  const openVswitch = 'Open vSwitch with connection tracking and NAT';
  const elsewhere = {
    subject: 'keepalived with conntrackd',
    reason: 'a peer of failover, which no scenario here measures',
  };
  if (kernelConfig === undefined)
    return [
      { subject: openVswitch, reason: 'the kernel does not tell whether it has the openvswitch module' },
      elsewhere,
    ];
  if (/^CONFIG_OPENVSWITCH=[ym]$/m.test(kernelConfig))
    return [{ subject: openVswitch, reason: 'this kernel has it, but no scenario here configures it yet' }, elsewhere];
  const reason =
    'this kernel is built without CONFIG_OPENVSWITCH; its userspace datapath copies each packet through a packet socket on veth, which nobody who asks for speed would run';
  return [{ subject: openVswitch, reason }, elsewhere];
}
