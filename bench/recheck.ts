/**
 * A change of policy meets established flows (design §4.8): how long until those that it no longer permits are gone. The
 * flows are put into the connection table of an empty network namespace as the gateway would have made them, half
 * IPv4 and half IPv6; then GatewayApply brings the changed plan into force with the real nft and ctnetlink. Printed:
 * milliseconds of the whole apply, and of these, what the flows take; the median of `--rounds`.
 *   node dist/bench/recheck.js [--flows 100000] [--namespaces 200] [--pods 25] [--rounds 5]
 */
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { CT_DECIDED } from '../api/names.ts';
import { type Family, families, type GatewayPlan } from '../api/plan.ts';
import { GatewayApply } from '../gateway/apply.ts';
import { decidedMark, ruleMark } from '../gateway/marks.ts';
import { endFlows, listFlows } from '../kernel/conntrack.ts';
import { NETLINK_NETFILTER, NetlinkSocket } from '../kernel/netlink-socket.ts';
import { run } from '../kernel/run.ts';
import { addressBytes } from '../wire/address-text.ts';
import { bytesOfU8, bytesOfU16, bytesOfU32 } from '../wire/bytes.ts';
import {
  attribute,
  NFNL_SUBSYS_CTNETLINK,
  NLM_F_ACK,
  NLM_F_CREATE,
  NLM_F_REQUEST,
  nested,
  nfnlMessage,
} from '../wire/nlattr.ts';
import { addRule, generatePlan, podAddresses, UDP_PORT } from './plan.ts';
import { median } from './statistics.ts';
import { hostKernel } from './topology.ts';

const { values } = parseArgs({
  options: {
    flows: { type: 'string', default: '100000' },
    namespaces: { type: 'string', default: '200' },
    pods: { type: 'string', default: '25' },
    rounds: { type: 'string', default: '5' },
    output: { type: 'string', default: 'bench/results/recheck.json' },
  },
});
const [flows, namespaces, pods, rounds] = [values.flows, values.namespaces, values.pods, values.rounds].map(Number) as [
  number,
  number,
  number,
  number,
];
const DESTINATIONS = 10;
const destination = (family: Family, at: number): string =>
  family === 4 ? `198.51.100.${100 + at}` : `2001:db8:100::${(100 + at).toString(16)}`;

interface Flow {
  family: Family;
  source: string;
  destination: string;
  egress: string;
  sourcePort: number;
}

/** Each pod speaks with each destination, from as many ports as it takes. */
function flowsOf(plan: GatewayPlan): Flow[] {
  const workloads = Object.values(plan.workloads);
  return Array.from({ length: flows }, (_, at) => {
    const family = families[at % 2] ?? 4;
    const place = (at >> 1) % workloads.length;
    const egress = workloads[place]?.egress[family]?.address ?? '';
    const source = podAddresses(place)[family];
    const turn = Math.floor(at / 2 / workloads.length);
    // Neighbours in the table are not neighbours in the policy; pods of a namespace share its address.
    const sourcePort = 1024 + turn * pods + (place % pods);
    return { family, source, egress, destination: destination(family, (place + turn) % DESTINATIONS), sourcePort };
  });
}

/** <linux/netfilter/nfnetlink_conntrack.h>; the program itself makes no entries. */
function encodeCreate({ family, source, destination, egress, sourcePort }: Flow, ack: boolean): Uint8Array {
  const tuple = (type: number, from: string, to: string, ports: [number, number]): Uint8Array =>
    nested(
      type,
      nested(1, attribute(family === 4 ? 1 : 3, addressBytes(from)), attribute(family === 4 ? 2 : 4, addressBytes(to))),
      nested(2, attribute(1, bytesOfU8(17)), attribute(2, bytesOfU16(ports[0])), attribute(3, bytesOfU16(ports[1]))),
    );
  return nfnlMessage(
    {
      subsystem: NFNL_SUBSYS_CTNETLINK,
      message: 0,
      flags: NLM_F_REQUEST | NLM_F_CREATE | (ack ? NLM_F_ACK : 0),
      sequence: 1,
      family: family === 4 ? 2 : 10,
    },
    tuple(1, source, destination, [sourcePort, UDP_PORT]),
    tuple(2, destination, egress, [UDP_PORT, sourcePort]),
    attribute(7, bytesOfU32(3600)),
    attribute(8, bytesOfU32((ruleMark(1) | CT_DECIDED) >>> 0)),
  );
}

const BATCH = 64;
function establish(list: Flow[], namespace: string): void {
  const socket = NetlinkSocket.open({ protocol: NETLINK_NETFILTER, receiveBuffer: 1 << 20, namespace });
  try {
    for (let at = 0; at < list.length; at += BATCH) {
      const batch = list.slice(at, at + BATCH);
      const failures = socket.batch(batch.map((flow, index) => encodeCreate(flow, index === batch.length - 1)));
      if (failures.length > 0) throw new Error(`entries were refused: errno ${failures[0]}`);
    }
  } finally {
    socket.close();
  }
}

/** Forbids some of the destinations to all. */
function forbidding(plan: GatewayPlan, count: number): GatewayPlan {
  const changed = structuredClone(plan);
  const addresses = families.flatMap((family) =>
    Array.from({ length: count }, (_, at) => `${destination(family, at)}/${family === 4 ? 32 : 128}`),
  );
  // A change that forbids nothing of all this is one too.
  const id = addRule(changed, 'cluster', undefined, 'forbidden', 'drop', {
    addresses: count === 0 ? ['192.88.99.1/32'] : addresses,
    ports: null,
  });
  for (const group of Object.values(changed.groups)) group.rules.cluster.push(id);
  return changed;
}

interface Cost {
  what: string;
  ended: number;
  milliseconds: number;
  /** Of these: the table looked through, each flow judged, entries deleted; and as CPU time, which others do not count to. */
  flowsMilliseconds: number;
  flowsCpuMilliseconds: number;
  /** Of all rounds. */
  rounds?: { milliseconds: number; flowsMilliseconds: number; flowsCpuMilliseconds: number }[];
}

async function costs(namespace: string, state: string): Promise<Cost[]> {
  const kernel = hostKernel(namespace);
  let took = { flowsMilliseconds: 0, flowsCpuMilliseconds: 0 };
  const gateway = new GatewayApply(
    'gw-a',
    {
      ...kernel,
      async endFlows(match) {
        const [began, cpu] = [performance.now(), process.cpuUsage()];
        const ended = await endFlows(match, { namespace, mark: decidedMark });
        const { user, system } = process.cpuUsage(cpu);
        took = { flowsMilliseconds: performance.now() - began, flowsCpuMilliseconds: (user + system) / 1000 };
        return ended;
      },
    },
    state,
  );
  const plan = generatePlan({ namespaces, pods });
  await gateway.apply(plan);
  const all = flowsOf(plan);
  const found: Cost[] = [];
  for (const [what, count] of [
    ['none is forbidden', 0],
    ['a tenth is', DESTINATIONS / 10],
    ['all are', DESTINATIONS],
  ] as const) {
    const changed = forbidding(plan, count);
    const samples: Cost[] = [];
    for (let round = 0; round < rounds; round++) {
      await gateway.apply(plan);
      establish(all, namespace);
      const began = performance.now();
      const { flowsEnded } = await gateway.apply(changed);
      samples.push({ what, ended: flowsEnded, milliseconds: performance.now() - began, ...took });
      const left = (await listFlows({ namespace, mark: decidedMark })).length;
      if (left + flowsEnded !== all.length) throw new Error(`${left} of ${all.length} left, ${flowsEnded} ended`);
    }
    const of = (pick: (cost: Cost) => number): number => median(samples.map(pick));
    const ended = of((cost) => cost.ended);
    found.push({
      what,
      ended,
      milliseconds: of((c) => c.milliseconds),
      flowsMilliseconds: of((c) => c.flowsMilliseconds),
      flowsCpuMilliseconds: of((c) => c.flowsCpuMilliseconds),
      rounds: samples.map(({ milliseconds, flowsMilliseconds, flowsCpuMilliseconds }) => ({
        milliseconds,
        flowsMilliseconds,
        flowsCpuMilliseconds,
      })),
    });
  }
  return found;
}

const namespace = `t-bench-recheck-${process.pid}`;
const state = await mkdtemp(join(tmpdir(), 'sluice-bench-'));
try {
  await run(['ip', 'netns', 'add', namespace], { op: 'netns' });
  await run(['ip', '-n', namespace, 'link', 'set', 'lo', 'up'], { op: 'up' });
  for (const device of ['inside', 'outside']) {
    const pair = ['link', 'add', device, 'type', 'veth', 'peer', 'name', `${device}-peer`];
    await run(['ip', '-n', namespace, ...pair], { op: 'veth' });
    for (const end of [device, `${device}-peer`])
      await run(['ip', '-n', namespace, 'link', 'set', end, 'up'], { op: 'up' });
  }
  for (const address of ['203.0.113.31/24', '2001:db8:113::31/64']) {
    const nodad = address.includes(':') ? ['nodad'] : [];
    await run(['ip', '-n', namespace, 'addr', 'add', address, 'dev', 'outside', ...nodad], { op: 'address' });
  }
  const found = await costs(namespace, state);
  for (const { what, ended, milliseconds, flowsMilliseconds, flowsCpuMilliseconds } of found) {
    const whole = `${milliseconds.toFixed(0).padStart(6)} ms`;
    const ofThese = `${flowsMilliseconds.toFixed(0)} ms, CPU ${flowsCpuMilliseconds.toFixed(0)} ms`;
    console.log(`${what.padEnd(20)} ${String(ended).padStart(7)} ended ${whole}, of these the flows ${ofThese}`);
  }
  await mkdir(join(values.output, '..'), { recursive: true });
  await writeFile(values.output, `${JSON.stringify({ flows, namespaces, pods, rounds, costs: found }, null, 2)}\n`);
  console.log(`written: ${values.output}`);
} finally {
  await run(['ip', 'netns', 'del', namespace], { op: 'netns' }).catch(() => undefined);
  await rm(state, { recursive: true });
}
