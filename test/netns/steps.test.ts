/**
 * From plan A to plan B in single steps (topology: gateway-rig.ts): between every two things that the gateway's program does
 * to the kernel (an nft transaction, a batch of ip, sysctls, the end of a flow), packets are sent. At every stop each new
 * flow gets what A or B says, each flow that both permit goes on, each source is the pod's own by A or by B, and no
 * address is used by two pods. Then the same with a program that takes its steps in another order, which must fail.
 */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import t from 'tap';
import type { Family, GatewayPlan, WorkloadEntry } from '../../api/plan.ts';
import type { GatewayKernel } from '../../gateway/apply.ts';
import { decidedMark } from '../../gateway/marks.ts';
import { endFlows, listFlows } from '../../kernel/conntrack.ts';
import { changeSize, emptyChange, type TableChange } from '../../kernel/nft.ts';
import { compilePolicy, type Evaluator, workloadsByAddress } from '../../policy/evaluate.ts';
import { PROTOCOL_TCP, PROTOCOL_UDP } from '../../wire/ip.ts';
import { addRule, basePlan, DESTINATIONS, EGRESS, PODS, PORTS, randomPlan } from './gateway-plans.ts';
import { GatewayRig, type Probe, probePacket, type Sighting } from './gateway-rig.ts';

t.setTimeout(570_000);
const PAIRS = Math.ceil(Number(process.env.SLUICE_PROPERTY_RUNS ?? 40) / 4);
const state = mkdtempSync(join(tmpdir(), 'sluice-test-'));
const rig = await GatewayRig.create('st', state);
const options = { namespace: `t-st-gw-${process.pid}` };
t.teardown(async () => {
  await rig.close();
  rmSync(state, { recursive: true });
});

const pods = ['pay', 'rev'] as const;
/** Egress IPs that pods may have, beside those of gateway-plans.ts. */
const THIRD = { 4: '203.0.113.103', 6: '2001:db8:113::103' } as const;

/** A random policy for pods that come, go, leave with each other's address, or are another workload of that address. */
const randomState: fc.Arbitrary<GatewayPlan> = fc
  .record({
    plan: randomPlan,
    there: fc.tuple(fc.integer({ min: 0, max: 4 }), fc.integer({ min: 0, max: 4 })),
    egress: fc.constantFrom(...['pay rev', 'pay rev', 'rev pay', 'third rev', 'pay third', 'rev third']),
    group: fc.constantFrom('g-pay', 'g-pay', 'g-rev'),
    uid: fc.constantFrom('uid-pay', 'uid-pay', 'uid-next'),
  })
  .map(({ plan, there, egress, group, uid }) => {
    const addresses = { ...EGRESS, third: THIRD };
    plan.shards.s0?.egressIPs.push(...Object.values(THIRD));
    egress.split(' ').forEach((name, at) => {
      const entry = plan.workloads[`uid-${pods[at]}`] as WorkloadEntry;
      const own = addresses[name as keyof typeof addresses];
      entry.egress = { 4: { address: own[4], shard: 's0' }, 6: { address: own[6], shard: 's0' } };
      if (there[at] === 0) delete plan.workloads[`uid-${pods[at]}`];
    });
    const pay = plan.workloads['uid-pay'];
    if (pay !== undefined) {
      delete plan.workloads['uid-pay'];
      plan.workloads[uid] = { ...pay, uid, group };
    }
    return plan;
  });

/** What a plan says of a probe: `drop`, `reject`, or the address that it leaves with. */
class Oracle {
  readonly #evaluator: Evaluator;
  readonly #workloads: (address: string) => WorkloadEntry | undefined;

  constructor(plan: GatewayPlan) {
    this.#evaluator = compilePolicy(plan);
    this.#workloads = workloadsByAddress(plan);
  }

  says(probe: Probe): string {
    const { verdict } = this.#evaluator.decide(probe);
    const own = this.#workloads(probe.source)?.egress[probe.source.includes(':') ? 6 : 4]?.address;
    return verdict === 'accept' ? (own ?? 'drop') : verdict;
  }
}

let marker = 1;
function probes(count: number): Probe[] {
  return Array.from({ length: count }, () => {
    marker++;
    const family: Family = marker % 2 === 0 ? 4 : 6;
    const destinations = DESTINATIONS[family];
    return {
      source: PODS[pods[(marker >> 1) % 2] ?? 'pay'][family],
      destination: destinations[(marker * 5) % destinations.length] ?? destinations[0],
      protocol: marker % 5 === 0 ? PROTOCOL_TCP : PROTOCOL_UDP,
      destinationPort: PORTS[(marker * 3) % PORTS.length] ?? 80,
      marker,
    };
  });
}

/** What became of each: the source with which it left, `reject` or `drop`. */
async function send(list: Probe[], quietMs = 6): Promise<string[]> {
  for (const probe of list) rig.fromNode(probePacket(probe));
  const seen = new Map<number, string>();
  const note = ({ where, kind, marker: about, packet }: Sighting): void => {
    if (where === 'outside' && kind === 'packet') seen.set(about, packet.source);
    else if (where === 'inside' && kind !== 'packet') seen.set(about, 'reject');
  };
  (await rig.collect(quietMs)).forEach(note);
  return list.map((probe) => seen.get(probe.marker) ?? 'drop');
}

/** How often the program stops, and what is wrong there. */
class Steps {
  stops = 0;
  /** New flows, of which both plans forbade so many; flows that had to go on. */
  readonly counted = { sent: 0, forbidden: 0, goOn: 0, wrong: 0 };
  readonly #before: Oracle;
  readonly #after: Oracle;
  readonly #flows: Probe[];
  wrong: string | undefined;

  /** `flows`: established under A. */
  constructor(before: GatewayPlan, after: GatewayPlan, flows: Probe[]) {
    this.#before = new Oracle(before);
    this.#after = new Oracle(after);
    this.#flows = flows;
  }

  async stop(where: string): Promise<void> {
    this.stops++;
    const fresh = probes(16);
    const all = [...fresh, ...this.#flows];
    const got = await send(all);
    const users = new Map<string, Set<string>>();
    for (const [at, probe] of all.entries()) {
      const outcome = got[at] ?? 'drop';
      const may = [this.#before.says(probe), this.#after.says(probe)];
      const established = at >= fresh.length;
      const forbidden = may.every((one) => one === 'drop' || one === 'reject');
      this.counted.sent++;
      if (forbidden) this.counted.forbidden++;
      const same = may[0] === may[1];
      if (established && same) this.counted.goOn++;
      // A flow that was permitted and is no more may be dropped before it is ended.
      if (!may.includes(outcome) && !(established && !same && outcome === 'drop')) {
        this.#fail(`${where}: ${JSON.stringify(probe)}${established ? ', established' : ''}: ${outcome}, not ${may}`);
      }
      if (!/[.:]/.test(outcome)) continue;
      const sources = users.get(outcome) ?? new Set();
      users.set(outcome, sources.add(probe.source));
    }
    for (const [address, sources] of users) {
      if (sources.size > 1) this.#fail(`${where}: ${address} is used by ${[...sources].join(' and ')}`);
    }
  }

  #fail(what: string): void {
    this.counted.wrong++;
    this.wrong ??= what;
  }
}

let steps: Steps | undefined;
const stop = async (where: string): Promise<void> => steps?.stop(where);

/** Every call is a step, and of endings each flow. */
function stepped(kernel: GatewayKernel): GatewayKernel {
  const step = async <T>(name: string, call: () => Promise<T>): Promise<T> => {
    await stop(`before ${name}`);
    const result = await call();
    await stop(`after ${name}`);
    return result;
  };
  return {
    ...kernel,
    nft: { ...kernel.nft, run: (change) => step('nft', () => kernel.nft.run(change)) },
    ip: {
      list: (scope) => kernel.ip.list(scope),
      apply: (lines) => step('ip', () => kernel.ip.apply(lines)),
    },
    sysctl: (desired) => step('sysctl', () => kernel.sysctl(desired)),
    async endFlows(match) {
      let ended = 0;
      for (const { id } of (await listFlows({ ...options, mark: decidedMark })).filter(match)) {
        ended += await endFlows((flow) => flow.id === id, options);
        // Some of many, so that the test ends.
        if (ended < 3) await stop(`after ${ended} flows ended`);
      }
      return step('all flows ended', async () => ended);
    },
  };
}

/** Which steps are taken, and what was wrong, from each plan of the list to the next. */
async function run(plans: GatewayPlan[], untilWrong = false) {
  const totals = { stops: 0, sent: 0, forbidden: 0, goOn: 0, wrong: 0 };
  let wrong: string | undefined;
  steps = undefined;
  await rig.reset();
  await rig.apply(plans[0] as GatewayPlan);
  for (const [at, after] of plans.slice(1).entries()) {
    const before = plans[at] as GatewayPlan;
    const tried = probes(40);
    const oracle = new Oracle(before);
    const outcomes = await send(tried, 15);
    const established = tried.filter((_, index) => /[.:]/.test(outcomes[index] ?? ''));
    const next = new Oracle(after);
    // Those that both permit, and those that change.
    const [same, other] = [true, false].map((want) =>
      established.filter((p) => (oracle.says(p) === next.says(p)) === want),
    );
    steps = new Steps(before, after, [...(same ?? []).slice(0, 8), ...(other ?? []).slice(0, 8)]);
    await rig.apply(after);
    const { stops, counted } = steps;
    wrong ??= steps.wrong && `change ${at}: ${steps.wrong}`;
    // What is in force now is B alone.
    steps = undefined;
    const last = [...probes(16), ...established];
    const now = await send(last);
    const left = last.findIndex((probe, index) => now[index] !== next.says(probe));
    if (left >= 0) wrong ??= `change ${at}, at the end: ${JSON.stringify(last[left])}: ${now[left]}`;
    totals.stops += stops;
    for (const key of ['sent', 'forbidden', 'goOn', 'wrong'] as const) totals[key] += counted[key];
    await endFlows(() => true, options);
    if (untilWrong && wrong !== undefined) break;
  }
  return { ...totals, failed: wrong };
}

t.test('at every stop: what A or B says, with the address that A or B gives', async (t) => {
  rig.wrap = stepped;
  const { failed, wrong, ...totals } = await run(fc.sample(randomState, { seed: 3, numRuns: PAIRS + 1 }));
  t.equal(failed, undefined, `${wrong} of ${totals.sent} packets`);
  t.ok(
    totals.stops > PAIRS * 6 && totals.forbidden > totals.stops && 2 * totals.goOn > totals.stops,
    JSON.stringify(totals),
  );
});

/** The same change in two transactions, of which the first takes these sets' elements along. */
function split(change: TableChange, first: (set: string) => boolean, fields: 'both' | 'out'): TableChange[] {
  const part = (of: TableChange['elementsIn'], mine: boolean) => of.filter(({ set }) => first(set) === mine);
  const early = emptyChange(change.family, change.table);
  const late = { ...change, elementsOut: part(change.elementsOut, false) };
  early.elementsOut = part(change.elementsOut, true);
  if (fields === 'both') {
    early.elementsIn = part(change.elementsIn, true);
    late.elementsIn = part(change.elementsIn, false);
  }
  return change.create ? [change] : [early, late];
}

const inParts =
  (parts: (change: TableChange) => TableChange[]) =>
  (kernel: GatewayKernel): GatewayKernel => ({
    ...kernel,
    nft: {
      ...kernel.nft,
      async run(change) {
        for (const part of parts(change)) if (changeSize(part) > 0) await kernel.nft.run(part);
      },
    },
  });

/** Programs that do the same in another order, or not all of it: between GatewayApply and the stops. */
const mutants: [string, (kernel: GatewayKernel) => GatewayKernel][] = [
  [
    'who leaves with which address, before what may leave',
    inParts((change) => split(change, (set) => /^(snat|own|group|sources)[46]$/.test(set), 'both')),
  ],
  ['what goes, before what comes', inParts((change) => split(change, (set) => /^group[46]$/.test(set), 'out'))],
  [
    'only the first packet of a flow is asked, before flows have ended',
    (kernel) => {
      let ending: Parameters<GatewayKernel['endFlows']>[0] | undefined;
      return {
        ...kernel,
        nft: {
          ...kernel.nft,
          async run(change) {
            await kernel.nft.run(change);
            const match = ending;
            ending = undefined;
            if (match !== undefined) await kernel.endFlows(match);
          },
        },
        async endFlows(match) {
          ending = match;
          return 0;
        },
      };
    },
  ],
  ['no flow is ended', (kernel) => ({ ...kernel, endFlows: async () => 0 })],
];

/** Another policy and other addresses, one of them another pod's before; then another group. */
function changes(): GatewayPlan[] {
  const all = basePlan();
  for (const group of ['g-pay', 'g-rev']) {
    addRule(all, group, { context: 'namespace', action: 'accept-decisively', services: '*', name: `${group}-all` });
  }
  all.shards.s0?.egressIPs.push(...Object.values(THIRD));
  const moved = structuredClone(all);
  const half = ['192.0.2.0/24', '198.51.100.0-198.51.100.80', '2001:db8:101::/64', '2001:db8:100::-2001:db8:100::80'];
  moved.services['x/half'] = { addresses: half, ports: null };
  addRule(moved, 'g-pay', { context: 'cluster', action: 'drop', services: ['x/half'], name: 'half' });
  for (const [pod, own] of [
    ['pay', THIRD],
    ['rev', EGRESS.pay],
  ] as const) {
    const entry = moved.workloads[`uid-${pod}`] as WorkloadEntry;
    entry.egress = { 4: { address: own[4], shard: 's0' }, 6: { address: own[6], shard: 's0' } };
  }
  const regrouped = structuredClone(moved);
  Object.assign(regrouped.workloads['uid-pay'] ?? {}, { group: 'g-rev' });
  return [all, moved, regrouped];
}

t.test('another order of the steps is caught', async (t) => {
  rig.wrap = stepped;
  t.equal((await run(changes())).failed, undefined, 'the right one is not');
  for (const [name, mutate] of mutants) {
    rig.wrap = (kernel) => mutate(stepped(kernel));
    const { failed } = await run(changes(), true).catch((error: Error) => ({
      failed: `does not load: ${error.message}`,
    }));
    t.match(failed, /, not |, at the end: | is used by /, name);
    t.comment(`${name}: ${failed}`);
  }
});
