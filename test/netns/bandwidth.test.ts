/**
 * Bandwidth on a real kernel (topology: flow-rig.ts), as TCP gets it: rules in both directions and families while a
 * neighbour without a limit sends, EgressIPs over rules with limits of their own, ports, rules above the deciding one, a change
 * while flows run, a restart, an interface that is another program's. What does not disturb each other runs at once.
 */
import { setTimeout as wait } from 'node:timers/promises';
import t, { type Test } from 'tap';
import { type Family, families, type GatewayPlan, type RuleEntry, type SteeringMode } from '../../api/plan.ts';
import { bandwidthsOf } from '../../gateway/bandwidth.ts';
import { desiredClasses } from '../../gateway/shaping.ts';
import { diffTc } from '../../kernel/tc.ts';
import { FlowRig, type Goodput, type Transfer } from './flow-rig.ts';
import { basePlan, directPlan, EGRESS, PODS, WEB } from './gateway-plans.ts';

t.setTimeout(570_000);
/** As long as the figure of the issue is about. */
const SECONDS = 10;
const TRIES = 4;
const rigs = { VXLAN: await FlowRig.create('bw-vx', 'VXLAN'), Direct: await FlowRig.create('bw-di', 'Direct') };
t.teardown(async () => {
  for (const rig of Object.values(rigs)) await rig.close();
});

type Service = { ports: [first: number, last: number]; family?: Family; bandwidth?: number };

class Made {
  readonly plan: GatewayPlan;

  constructor(mode: SteeringMode) {
    this.plan = mode === 'VXLAN' ? basePlan() : directPlan(basePlan());
    const { job } = this.plan.groups['g-job'] ? { job: this.plan.workloads['uid-job'] } : {};
    // A third pod, with the address of the second.
    if (job !== undefined) {
      job.node = 'a';
      job.egress = { 4: { address: EGRESS.rev[4], shard: 's0' }, 6: { address: EGRESS.rev[6], shard: 's0' } };
    }
  }

  service(name: string, { ports, family, bandwidth }: Service): this {
    const addresses = families
      .filter((f) => family === undefined || f === family)
      .map((f) => `${WEB[f]}/${f === 4 ? 32 : 128}`);
    const entry = { protocol: 6, ports: [ports] };
    const limits = bandwidth === undefined ? {} : { limits: [{ ...entry, name: 'p', bandwidth: bandwidth * 1e6 }] };
    this.plan.services[name] = { addresses, ports: [entry], ...limits };
    return this;
  }

  /** `bandwidth` in Mbit/s. */
  rule(
    pod: keyof typeof PODS,
    name: string,
    services: RuleEntry['services'],
    bandwidth?: number,
    context: RuleEntry['context'] = 'service',
  ): this {
    const id = `${context}/${name}`;
    const limits = bandwidth === undefined ? {} : { limits: { bandwidth: bandwidth * 1e6 } };
    this.plan.rules[id] = { context, name, action: 'accept', services, priority: 1000, ...limits };
    this.plan.groups[`g-${pod}`]?.rules[context].push(id);
    return this;
  }

  egress(pod: 'pay' | 'rev', rates: { egress?: number; ingress?: number }): this {
    const bits = Object.fromEntries(Object.entries(rates).map(([way, rate]) => [way, rate * 1e6]));
    const addresses = [EGRESS[pod][4], EGRESS[pod][6]];
    this.plan.egressIPs[pod] = { bandwidth: { ...bits, addresses, shards: ['edge/s0'] } };
    return this;
  }
}

const transfer = (pod: keyof typeof PODS, port: number, more: Partial<Transfer> = {}): Transfer => {
  const family = more.family ?? 4;
  return { source: PODS[pod][family], family, port, to: 'outside', seconds: SECONDS, ...more };
};
const text = ({ mean, seconds }: Goodput): string =>
  `${mean.toFixed(1)} Mbit/s (${seconds.map((rate) => rate.toFixed(0)).join(' ')})`;

type Figure = [got: Goodput | undefined, least: number, most: number, what: string];
const isShort = ([got, least]: Figure): boolean => got !== undefined && got.mean < least;
const isOver = ([got, , most]: Figure): boolean => got !== undefined && got.mean > most;

function between(test: Test, figure: Figure): void {
  const [got, least, most, what] = figure;
  const right = got !== undefined && !isShort(figure) && !isOver(figure);
  test.ok(right, `${what}: ${got && text(got)}, of ${least} to ${most}`);
}

/** What carries too little may have had no time on a busy machine, and is asked again; what carries too much has no excuse. */
async function figures(test: Test, measure: () => Promise<Figure[]>): Promise<void> {
  let got = await measure();
  for (let tries = 1; tries < TRIES && got.some(isShort) && !got.some(isOver); tries++) {
    for (const [short, least, , what] of got.filter(isShort))
      test.comment(`again: ${what}: ${short && text(short)}, of ${least}`);
    got = await measure();
  }
  for (const figure of got) between(test, figure);
}
const sum = (list: readonly Goodput[]): Goodput => ({
  mean: list.reduce((total, { mean }) => total + mean, 0),
  seconds: (list[0]?.seconds ?? []).map((_, at) => list.reduce((total, { seconds }) => total + (seconds[at] ?? 0), 0)),
});

const NEIGHBOUR = 150;

t.test('a rule: 45 to 50 of 50 Mbit/s in each direction and family, and the neighbour has what it had', async (t) => {
  const rig = rigs.VXLAN;
  const made = new Made('VXLAN').rule('rev', 'free', '*');
  for (const f of families)
    made.service(`a/web${f}`, { ports: [5000, 5009], family: f }).rule('pay', `web${f}`, [`a/web${f}`], 50);
  t.same((await rig.apply(made.plan)).unshaped, []);
  const flows = families.flatMap((family) => [
    transfer('pay', 5000, { family }),
    transfer('pay', 5001, { family, to: 'pod' }),
  ]);
  const neighbours = (['outside', 'pod'] as const).map((to, at) => transfer('rev', 5010 + at, { to, pace: NEIGHBOUR }));
  await figures(t, async () => {
    const got = await Promise.all([...flows, ...neighbours].map((flow) => rig.transfer(flow)));
    return [
      ...flows.map(({ family, to }, at): Figure => [got[at], 45, 50, `IPv${family} to the ${to}`]),
      ...neighbours.map(({ to }, at): Figure => {
        const what = `a neighbour that sends ${NEIGHBOUR} to the ${to}`;
        return [got[flows.length + at], 0.95 * NEIGHBOUR, 1.05 * NEIGHBOUR, what];
      }),
    ];
  });
  t.equal((await rig.kernel.nft.counters('sluice')).drop_bandwidth?.packets, 0, 'no bucket was needed');
});

t.test('EgressIP, ports, rules above; another rate, a restart and an end while flows run', async (t) => {
  const direct = new Made('Direct')
    .egress('pay', { egress: 60 })
    .service('a/one', { ports: [5000, 5009] })
    .service('a/two', { ports: [5010, 5019] })
    .rule('pay', 'one', ['a/one'], 20)
    .rule('pay', 'two', ['a/two'], 55)
    // The same port of the same service, by rules of two pods; the second time one has a limit of its own.
    .service('a/shared', { ports: [5020, 5029], bandwidth: 50 })
    .rule('rev', 'shared', ['a/shared'])
    .rule('job', 'shared-too', ['a/shared'])
    .service('a/mixed', { ports: [5040, 5049], bandwidth: 50 })
    .rule('rev', 'mixed', ['a/mixed'])
    .rule('job', 'mixed-too', ['a/mixed'], 40)
    // Of a rule that permits nothing.
    .service('a/above', { ports: [5030, 5039] })
    .rule('job', 'above', ['a/above'], 30, 'cluster')
    .rule('job', 'below', ['a/above']);
  await rigs.Direct.apply(direct.plan);
  const flows = [
    transfer('pay', 5000),
    transfer('pay', 5010),
    transfer('pay', 5011, { to: 'pod' }),
    transfer('rev', 5020),
    transfer('job', 5021),
    transfer('rev', 5040),
    transfer('job', 5041),
    transfer('job', 5030, { family: 6 }),
  ];
  const changing = changes(t, rigs.VXLAN);
  await figures(t, async () => {
    const [one, two, back, shared, sharedToo, mixed, mixedToo, above] = await Promise.all(
      flows.map((flow) => rigs.Direct.transfer(flow)),
    );
    const both = (...list: (Goodput | undefined)[]): Goodput => sum(list.flatMap((each) => each ?? []));
    return [
      [one, 17, 20, 'a rule with 20 behind an EgressIP'],
      [both(one, two), 54, 60, 'both rules of it, which may 75, behind an EgressIP with 60'],
      [back, 49, 55, 'back, where the EgressIP has no limit'],
      [both(shared, sharedToo), 45, 50, 'two rules through one port with 50'],
      // They wait in two queues, and the bucket has one second's bytes at first.
      [both(mixed, mixedToo), 45, 58, 'and where one of them may 40'],
      [mixedToo, 5, 40, 'which is the one that may 40'],
      [above, 27, 30, 'a rule above the one that decides'],
    ];
  });
  await changing;
});

const classesOf = (plan: GatewayPlan) => desiredClasses(plan, bandwidthsOf(plan, ['s0']));

/** One flow, while its rule's limit changes, the program starts anew, and the limit goes. */
async function changes(test: Test, rig: FlowRig, tries = 1): Promise<void> {
  const planWith = (bandwidth?: number): GatewayPlan =>
    new Made('VXLAN').service('a/web', { ports: [5000, 5009] }).rule('pay', 'web', ['a/web'], bandwidth).plan;
  await rig.apply(planWith(80));
  let running: Promise<Goodput> | undefined;
  await new Promise<void>((started) => {
    running = rig.transfer(transfer('pay', 5000, { pace: 120 }), started);
  });
  const began = performance.now();
  const second = async (at: number): Promise<void> => wait(Math.max(0, began + at * 1000 - performance.now()));
  await second(3.5);
  await rig.apply(planWith(20));
  await second(5.5);
  // As a program that starts finds it: nothing to do.
  rig.restart();
  const before = await rig.kernel.tc.list();
  test.same(diffTc(before, classesOf(planWith(20))), []);
  const ended = (await rig.apply(planWith(20))).flowsEnded;
  test.same([ended, await rig.kernel.tc.list()], [0, before], 'a restart touches nothing');
  await second(7.5);
  await rig.apply(planWith());
  test.same(
    [...(await rig.kernel.tc.list()).values()].filter(({ root }) => root === 'ours'),
    [],
    'the qdisc is gone',
  );
  const seconds = (await running)?.seconds ?? [];
  const mean = (from: number, to: number): number =>
    seconds.slice(from, to).reduce((total, rate) => total + rate, 0) / (to - from);
  const shown = seconds.map((rate) => rate.toFixed(0)).join(' ');
  const [first, limited, last] = [mean(1, 3), mean(5, 7), mean(9, 10)];
  const right = first > 70 && first <= 81 && limited > 15 && limited <= 21 && last > 100;
  if (!right && tries < TRIES) {
    // On a busy machine a change may come late, or the sender, by which the seconds are counted.
    test.comment(`again: ${shown}`);
    return changes(test, rig, tries + 1);
  }
  test.ok(first > 70 && first <= 81, `80 at first: ${shown}`);
  test.ok(limited > 15 && limited <= 21, `20, a second after it was said, through the restart: ${shown}`);
  test.ok(last > 100, `as much as it likes: ${shown}`);
}

t.test("another program's qdisc stays, and the buckets keep the limit", async (t) => {
  const rig = rigs.Direct;
  await rig.apply(new Made('Direct').plan);
  await rig.in('gateway', 'tc qdisc add dev outside root handle 1: pfifo');
  const made = new Made('Direct').rule('pay', 'all', '*', 50);
  const { unshaped } = await rig.apply(made.plan);
  t.match(unshaped, [{ device: 'outside', reason: /another program's: pfifo 1:/ }]);
  await figures(t, async () => {
    const [out, back] = await Promise.all([
      rig.transfer(transfer('pay', 5000, { seconds: 4 })),
      rig.transfer(transfer('pay', 5001, { seconds: 4, to: 'pod' })),
    ]);
    return [
      // A bucket holds one second's bytes, which pass at once.
      [out, 30, 1.3 * 50, 'by dropping'],
      [back, 45, 50, 'the other way'],
    ];
  });
  t.ok(((await rig.kernel.nft.counters('sluice')).drop_bandwidth?.packets ?? 0) > 0);
  t.match(await rig.in('gateway', 'tc qdisc show dev outside'), /^qdisc pfifo 1: root/);
});
