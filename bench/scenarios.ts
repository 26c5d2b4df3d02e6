/**
 * What is measured, as data: each scenario's load, its way to the gateway, its size, who takes part, and what it must show
 * (issue 7). `npm run bench` takes those that are `quick`, with a part of the subjects; `-- --full` takes all.
 */
import type { Family, SteeringMode } from '../api/plan.ts';
import type { Load } from './load.ts';
import { LARGE } from './planned.ts';
import type { Bar, Group, Limit, Metric } from './result.ts';

interface Common {
  id: string;
  title: string;
  group: Group;
  unit: string;
  main: Metric;
  references: string[];
  bars: Bar[];
  limits: Limit[];
  subjects: string[];
  /** Who takes part in the quick run; absent: it is no part of it. */
  quick?: string[];
}

export interface ForwardingScenario extends Common {
  kind: 'forwarding';
  steering: SteeringMode;
  namespaces: number;
  family: Family;
  load: Load;
}
export interface TlsScenario extends Common {
  kind: 'tls';
  family: Family;
}
export interface ControlScenario extends Common {
  kind: 'control';
  /** Program beside this file, and its arguments. */
  program: string;
  args: string[];
}
export type Scenario = ForwardingScenario | TlsScenario | ControlScenario;

const words: Record<Load, { title: string; unit: string }> = {
  tcp: { title: 'TCP, 64 KB segments', unit: 'Gbit' },
  'tcp-8': { title: 'TCP, 64 KB segments, 8 streams', unit: 'Gbit' },
  'tcp-packets': { title: 'TCP, packets of MTU size', unit: 'Gbit' },
  'tcp-packets-8': { title: 'TCP, packets of MTU size, 8 streams', unit: 'Gbit' },
  udp: { title: 'small packets of established flows', unit: 'thousand packets' },
  frames: { title: 'small packets of established flows, from a source in the kernel', unit: 'thousand packets' },
  connect: { title: 'new TCP connections', unit: 'thousand connections' },
  request: { title: 'request and response, 64 bytes', unit: 'thousand requests' },
};

const everybody = [
  'ceiling',
  'plain',
  'nft',
  'nft-twin',
  'nft-defaults',
  'nft-map',
  'iptables',
  'naive',
  'sluice-silent',
  'sluice',
];
/** In the quick run, by load. */
const quickly: Partial<Record<Load, string[]>> = {
  tcp: ['ceiling', 'plain', 'nft', 'sluice'],
  'tcp-packets': ['ceiling', 'plain', 'nft', 'sluice'],
  udp: ['ceiling', 'plain', 'nft', 'sluice'],
  frames: ['ceiling', 'plain', 'nft', 'iptables', 'sluice'],
  connect: ['ceiling', 'plain', 'nft', 'iptables', 'naive', 'sluice-silent', 'sluice'],
  request: ['plain', 'nft', 'sluice'],
};
/** Subjects that are only to be seen beside the others: rounds enough for a median. */
export const roundsOf = (subject: string): number => (subject === 'ceiling' ? 3 : Number.POSITIVE_INFINITY);

function barsOf(load: Load): Bar[] {
  const bar = (beside: string, metric: Metric, least: Bar['least']): Bar => ({
    subject: 'sluice',
    beside,
    metric,
    least,
  });
  switch (load) {
    case 'tcp':
    case 'tcp-8':
      return [bar('plain', 'perCpuSecond', 0.97)];
    case 'udp':
    case 'frames':
    case 'connect':
      return [bar('nft', 'perCpuSecond', 0.95)];
    case 'request':
      return [bar('nft', 'p50', 'alike')];
    default:
      return [];
  }
}

const sizes = [1, 1_000, LARGE] as const;
const sizeText = (namespaces: number): string =>
  namespaces === LARGE
    ? '10,000 namespaces, 100,000 rules'
    : `${namespaces === 1 ? '1 namespace' : `${namespaces.toLocaleString('en')} namespaces`}`;

function forwarding(steering: SteeringMode, namespaces: number, family: Family, load: Load): ForwardingScenario {
  const tunnel = steering === 'VXLAN';
  const isQuick = tunnel && namespaces === 1_000 && family === 4;
  return {
    kind: 'forwarding',
    id: [load, tunnel ? 'tunnel' : 'direct', namespaces, ...(family === 6 ? ['ipv6'] : [])].join('-'),
    title: `${words[load].title}; ${tunnel ? 'through the tunnel' : 'direct'}, ${sizeText(namespaces)}, IPv${family}`,
    group: load === 'request' ? 'latency' : 'forwarding',
    unit: words[load].unit,
    main: load === 'request' ? 'p50' : 'perCpuSecond',
    references: ['plain', 'nft'],
    bars: barsOf(load),
    limits: [],
    subjects: everybody,
    ...(isQuick && quickly[load] !== undefined && { quick: quickly[load] }),
    steering,
    namespaces,
    family,
    load,
  };
}

function notQuick({ quick: _quick, ...rest }: ForwardingScenario): ForwardingScenario {
  return rest;
}

function churning(namespaces: number, load: Load): ForwardingScenario {
  const calm = forwarding('VXLAN', namespaces, 4, load);
  return {
    ...notQuick(calm),
    id: `churn-${calm.id}`,
    title: `${words[load].title} while 100 rules and 200 pods change a second; through the tunnel, ${sizeText(namespaces)}`,
    group: 'churn',
    main: 'perSecond',
    references: ['sluice'],
    bars: [{ subject: 'sluice-churn', beside: 'sluice', metric: 'perSecond', least: 0.95 }],
    subjects: ['sluice', 'sluice-churn'],
    ...(namespaces === 1_000 && load === 'connect' && { quick: ['sluice', 'sluice-churn'] }),
  };
}

const loads: Load[] = ['tcp', 'tcp-packets', 'udp', 'frames', 'connect', 'request'];
/** In the order of stages: one stands at a time. */
const forwardingScenarios: ForwardingScenario[] = [
  ...loads.map((load) => forwarding('VXLAN', 1_000, 4, load)),
  ...(['udp', 'connect', 'tcp'] as const).map((load) => churning(1_000, load)),
  ...(['udp', 'connect', 'request'] as const).map((load) => forwarding('VXLAN', 1_000, 6, load)),
  ...(['tcp-8', 'tcp-packets-8'] as const).map((load) => notQuick(forwarding('VXLAN', 1_000, 4, load))),
  ...loads.map((load) => forwarding('VXLAN', LARGE, 4, load)),
  ...(['udp', 'connect'] as const).map((load) => churning(LARGE, load)),
  ...loads.map((load) => forwarding('VXLAN', sizes[0], 4, load)),
  ...sizes.flatMap((size) => loads.map((load) => forwarding('Direct', size, 4, load))),
];

const tls = (family: Family): TlsScenario => {
  const peers = ['suricata', 'nginx', 'haproxy', 'squid'];
  const subjects = ['snat', 'by-address', 'by-name', ...peers];
  return {
    kind: 'tls',
    id: family === 4 ? 'tls' : 'tls-ipv6',
    title: `new TLS connections, allowed by name; through the tunnel, IPv${family}`,
    group: 'tls',
    unit: 'connections',
    main: 'perCpuSecond',
    references: ['snat'],
    bars: [
      { subject: 'by-name', beside: 'by-address', metric: 'perCpuSecond', least: 0.75 },
      ...peers.map((beside): Bar => ({ subject: 'by-name', beside, metric: 'perCpuSecond', least: 1 })),
    ],
    limits: [],
    subjects,
    ...(family === 4 && { quick: subjects }),
    family,
  };
};

/** Programs of their own, each of which knows its subject matter; their figures come into the one report. */
const programs: (Pick<ControlScenario, 'id' | 'title' | 'program' | 'args'> & { limits?: Limit[] })[] = [
  {
    id: 'scale',
    title: 'gateway with 10,000 namespaces, 100,000 pods, 100,000 rules',
    program: 'scale',
    args: [],
    limits: [
      { subject: 'first load, until ready', metric: 'milliseconds', most: 30_000 },
      { subject: 'one pod added, in force', metric: 'milliseconds', most: 50 },
      { subject: 'one pod removed, in force', metric: 'milliseconds', most: 50 },
      { subject: 'gateway, resident at most', metric: 'megabytes', most: 1_000 },
    ],
  },
  {
    id: 'planner',
    title: 'planning in the controller, 10,000 namespaces, 100,000 pods, 100,000 rules',
    program: 'planner',
    args: [],
    limits: [{ subject: 'planner, resident', metric: 'megabytes', most: 1_500 }],
  },
  { id: 'plan-load', title: 'changes of plan into an empty gateway, 1,000 namespaces', program: 'plan-load', args: [] },
  { id: 'recheck', title: '100,000 established flows at a change of policy', program: 'recheck', args: [] },
  { id: 'queue', title: 'the queue transport of inspection', program: 'queue', args: [] },
  { id: 'replication', title: 'connection state between gateways', program: 'replication', args: [] },
];
const control = programs.map(
  (row): ControlScenario => ({
    limits: [],
    ...row,
    kind: 'control',
    group: 'control',
    unit: '',
    main: 'milliseconds',
    references: [],
    bars: [],
    subjects: [],
  }),
);

export const scenarios: Scenario[] = [...forwardingScenarios, tls(4), tls(6), ...control];
