/**
 * Schedules with packets (topology: gateway-rig.ts): the real controller, whose clock is passed in, over the plan stream
 * to the gateway's own apply. Edges of a window where Berlin's clocks change, both ways: new flows are judged by the new
 * state within a second, flows that it forbids end, all others go on.
 */
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import { families } from '../../api/plan.ts';
import { runController } from '../../controller/main.ts';
import { createCa, issueCertificate } from '../../daemon/certs.ts';
import { silentLog } from '../../daemon/log.ts';
import { startPlanClient } from '../../daemon/stream-client.ts';
import { PROTOCOL_UDP } from '../../wire/ip.ts';
import { EGRESS, PODS, WEB } from './gateway-plans.ts';
import { GATEWAY_INSIDE, GatewayRig, NODES, PORT, type Probe, probePacket, VNI } from './gateway-rig.ts';

t.setTimeout(570_000);
const root = await mkdtemp(join(tmpdir(), 'sluice-test-'));
const rig = await GatewayRig.create('sched', root);
const manifests = join(root, 'manifests');
const certs = (name: string): string => join(root, 'certs', name);
await mkdir(manifests);
await createCa(certs('ca'));
await issueCertificate({
  caDir: certs('ca'),
  outDir: certs('ctl'),
  role: 'controller',
  name: 'c',
  addresses: ['127.0.0.1'],
});
await issueCertificate({ caDir: certs('ca'), outDir: certs('gw-a'), role: 'gateway', name: 'gw-a', addresses: [] });

/** Each rule its own port. */
const ports = { always: 53, night: 80, holiday: 81 } as const;
const inBilling = { namespace: 'billing' };
const ours = (kind: string, name: string, spec: object, meta: object = {}) => ({
  apiVersion: 'sluice.dev/v1alpha1',
  kind,
  metadata: { name, ...meta },
  spec,
});
const permit = (name: keyof typeof ports, schedule?: object[]) => [
  ours(
    'ExternalService',
    name,
    {
      addresses: Object.values(WEB),
      ports: [{ name: 'a', protocol: 'UDP', port: String(ports[name]) }],
    },
    inBilling,
  ),
  ours(
    'NamespaceEgressRule',
    name,
    { action: 'accept-decisively', externalServices: [name], ...(schedule && { schedule }) },
    inBilling,
  ),
];
const timezone = 'Europe/Berlin';
const documents = [
  ours('GatewayPool', 'edge', {
    namespaceSelector: {},
    gateways: [{ name: 'gw-a', internalAddress: GATEWAY_INSIDE }],
    interfaces: { internal: 'inside', external: { name: 'outside' } },
    nextHops: { v4: ['10.0.0.64'], v6: ['fd00:10::64'] },
    steering: { mode: 'VXLAN', vni: VNI, port: PORT },
    clusterCIDRs: ['10.244.0.0/16', '10.0.0.0/24', 'fd00:244::/32', 'fd00:10::/64'],
  }),
  ours('EgressIPPool', 'public', {
    gatewayPool: 'edge',
    ranges: ['203.0.113.96/27', '2001:db8:113::100/120'],
    namespaceSelector: {},
  }),
  ours('EgressIP', 'billing', { pool: 'public', addresses: Object.values(EGRESS.pay), namespaces: ['billing'] }),
  { apiVersion: 'v1', kind: 'Namespace', metadata: { name: 'billing' } },
  {
    apiVersion: 'v1',
    kind: 'Node',
    metadata: { name: 'a' },
    status: { addresses: [{ type: 'InternalIP', address: NODES.a }] },
  },
  {
    apiVersion: 'v1',
    kind: 'Pod',
    metadata: { name: 'pay', uid: 'uid-pay', ...inBilling },
    spec: { nodeName: 'a' },
    status: { phase: 'Running', podIPs: families.map((family) => ({ ip: PODS.pay[family] })) },
  },
  ...permit('always'),
  // Closes and opens again while the clock is set back; holiday opens where it is set forward, and only there.
  ...permit('night', [{ from: '01:00', to: '02:30', timezone }]),
  ...permit('holiday', [{ days: ['Sun'], from: '02:30', to: '04:00', timezone }]),
];
let touched = 0;
/** Any event makes a controller look at its clock, which otherwise it does once a minute. */
const touch = (): Promise<void> =>
  writeFile(
    join(manifests, 'touched.yaml'),
    JSON.stringify({ apiVersion: 'v1', kind: 'Namespace', metadata: { name: `n${touched++}` } }),
  );
await writeFile(join(manifests, 'all.yaml'), documents.map((one) => JSON.stringify(one)).join('\n---\n'));

let offset = 0;
const now = (): number => Date.now() + offset;
const utc = (text: string): number => Date.parse(`${text}Z`);
let generation = 0;
offset = utc('2026-03-29T00:50:00') - Date.now();
const controller = await runController({
  source: `directory:${manifests}`,
  state: join(root, 'state'),
  listen: { host: '127.0.0.1', port: 0 },
  certs: certs('ctl'),
  log: silentLog(),
  now,
});
const client = startPlanClient({
  role: 'gateway',
  name: 'gw-a',
  url: `https://127.0.0.1:${controller.port}`,
  certs: certs('gw-a'),
  addresses: [],
  log: silentLog(),
  async onPlan(plan, at) {
    await rig.apply(structuredClone(plan));
    generation = at;
  },
});
t.teardown(async () => {
  await client.close();
  await controller.close();
  await rig.close();
  await rm(root, { recursive: true });
});

type Rule = keyof typeof ports;
const rules = Object.keys(ports) as Rule[];
/** A slow machine's second. A controller that missed the edge would see it within a minute. */
const SOON_MS = 10_000;
let marker = 1;
const probesOf = (names: readonly Rule[]): Probe[] =>
  names.flatMap((name) =>
    families.map((family) => ({
      source: PODS.pay[family],
      destination: WEB[family],
      protocol: PROTOCOL_UDP,
      destinationPort: ports[name],
      marker: ++marker,
    })),
  );

/** Rules whose packets left, in both families, with the pod's address; undefined: of one they did in one family only. */
async function passed(probes: Probe[]): Promise<Rule[] | undefined> {
  for (const probe of probes) rig.fromNode(probePacket(probe));
  const seen = (await rig.collect(8)).filter(({ where, kind }) => where === 'outside' && kind === 'packet');
  const left = probes.filter((probe) =>
    seen.some(
      (sighting) =>
        sighting.marker === probe.marker && sighting.packet.source === EGRESS.pay[probe.source.includes(':') ? 6 : 4],
    ),
  );
  const found = rules.map((rule) => left.filter(({ destinationPort }) => destinationPort === ports[rule]).length);
  if (found.some((count) => count === 1)) return undefined;
  return rules.filter((_, at) => found[at] === 2);
}

async function until(what: string, condition: () => boolean | Promise<boolean>): Promise<void> {
  for (const began = performance.now(); !(await condition()); ) {
    if (performance.now() - began > 60_000) throw new Error(`waited in vain: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}

/** What is right before and after. */
const edges: [what: string, at: string, before: Rule[], after: Rule[]][] = [
  [
    'at 01:00 UTC it is three o’clock: 02:30 is skipped',
    '2026-03-29T01:00:00',
    ['always', 'night'],
    ['always', 'holiday'],
  ],
  ['at the first 02:30 it closes', '2026-10-25T00:30:00', ['always', 'night'], ['always', 'holiday']],
  ['back at two o’clock it opens again', '2026-10-25T01:00:00', ['always', 'holiday'], ['always', 'night']],
  ['and closes at the second 02:30', '2026-10-25T01:30:00', ['always', 'night'], ['always', 'holiday']],
  ['on a Monday four o’clock is none of it', '2026-10-26T01:30:00', ['always', 'night'], ['always']],
];

t.test('every edge, with packets', async (t) => {
  await until('a plan', () => generation > 0);
  for (const [what, at, before, after] of edges) {
    const edge = utc(at);
    // Long before: who knows how long a look at it all takes.
    offset = edge - 600_000 - Date.now();
    await touch();
    await until(`${what}: before it`, async () => String(await passed(probesOf(rules))) === String(before));
    const flows = probesOf(rules);
    t.same(await passed(flows), before, `${what}: before it`);
    const ids = async (): Promise<Map<string, number>> =>
      new Map((await rig.flows()).map(({ id, original }) => [`${original.source} ${original.sourcePort}`, id]));
    const known = await ids();
    t.ok(now() < edge, `${what}: the edge is still to come`);
    offset = edge - 1500 - Date.now();
    await touch();
    let last: Rule[] | undefined = before;
    let first: number | undefined;
    await until(what, async () => {
      last = await passed(probesOf(rules));
      if (first === undefined && String(last) !== String(before)) first = now();
      return String(last) === String(after);
    });
    const late = now() - edge;
    t.ok((first ?? 0) >= edge && late < SOON_MS, `${what}: new flows ${late} ms after it`);
    t.comment(`${what}: ${late} ms after the edge`);
    const goOn = before.filter((rule) => after.includes(rule));
    // Flows are ended when the rules are in force.
    await until(`${what}: flows from before it`, async () => String(await passed(flows)) === String(after));
    t.ok(now() - edge < SOON_MS, `${what}: flows from before it end soon`);
    const left = await ids();
    for (const { source, marker, destinationPort } of flows) {
      const key = `${source} ${1024 + marker}`;
      if (!goOn.some((rule) => ports[rule] === destinationPort)) continue;
      t.equal(left.get(key), known.get(key), `${what}: port ${destinationPort} is the same flow`);
    }
  }
});
