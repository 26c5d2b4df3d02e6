/**
 * Hit counters of rules on a real kernel: packets through the gateway of gateway-rig.ts, counted by the product's own
 * reading of the table and of the connection table; rulesets that change meanwhile, and a program that starts anew.
 */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import { type Family, families, type GatewayPlan, type RuleEntry } from '../../api/plan.ts';
import { compileGateway } from '../../gateway/compile.ts';
import { GatewayHits } from '../../gateway/hits.ts';
import { decidedMark } from '../../gateway/marks.ts';
import { startRecord, viewOf } from '../../gateway/record/flow-record.ts';
import { FlowTraffic } from '../../gateway/record/flow-traffic.ts';
import { HITS_SET } from '../../gateway/verdict.ts';
import { endFlows, listFlows } from '../../kernel/conntrack.ts';
import { listCounts } from '../../kernel/nft-counts.ts';
import { buildUdp, PROTOCOL_TCP, PROTOCOL_UDP } from '../../wire/ip.ts';
import { basePlan, PODS, WEB } from './gateway-plans.ts';
import { GatewayRig, probePacket } from './gateway-rig.ts';
import { type RecorderRig, startRecorder } from './recorder-rig.ts';

const state = mkdtempSync(join(tmpdir(), 'sluice-hits-'));
const rig = await GatewayRig.create('hits', state);
t.teardown(async () => {
  await rig.close();
  rmSync(state, { recursive: true });
});
const options = { namespace: `t-hits-gw-${process.pid}` };
const errors: unknown[] = [];
let plan: GatewayPlan = basePlan();
let program: GatewayHits;
const traffic = new FlowTraffic();

function open(): Promise<GatewayHits> {
  return GatewayHits.open({
    state,
    boot: 'this one',
    counts: () => listCounts('sluice', HITS_SET, options),
    // As the recorder does, which hears of flows in its own namespace only.
    lookAtFlows: async () => {
      const view = viewOf('gw-a', plan, compileGateway(plan).ruleNumbers);
      for (const flow of await listFlows({ ...options, mark: decidedMark })) {
        program.traffic(startRecord(flow, view, new Date()), traffic.look(flow));
      }
    },
    report: () => true,
    onError: (error) => errors.push(error),
  });
}

async function apply(next: GatewayPlan): Promise<void> {
  await program.before(undefined);
  await rig.apply(next);
  program.inForce(next, compileGateway(next).ruleNumbers, undefined);
  plan = next;
}

let marker = 1;
/** UDP to ports, once each. */
async function send(family: Family, pod: keyof typeof PODS, ports: number[], protocol = PROTOCOL_UDP): Promise<void> {
  for (const destinationPort of ports) {
    const source = PODS[pod][family];
    rig.fromNode(probePacket({ source, destination: WEB[family], protocol, destinationPort, marker: marker++ }));
  }
  await rig.collect();
}

async function shown(): Promise<Record<string, [hits: number, flows: number, packets: number]>> {
  await program.read();
  return Object.fromEntries(
    [...program.totals].map(([id, { hits, flows, packets }]) => [id, [hits, flows, packets]] as const),
  );
}

type Rule = Pick<RuleEntry, 'context' | 'action' | 'name' | 'services'>;

function policy(rules: Rule[]): GatewayPlan {
  const made = basePlan();
  made.services['x/udp'] = { addresses: Object.values(WEB), ports: [{ protocol: PROTOCOL_UDP, ports: null }] };
  made.services['x/ssh'] = { addresses: Object.values(WEB), ports: [{ protocol: PROTOCOL_TCP, ports: [[22, 22]] }] };
  made.services['x/53'] = { addresses: Object.values(WEB), ports: [{ protocol: PROTOCOL_UDP, ports: [[53, 53]] }] };
  for (const rule of rules) {
    const tenant = rule.context === 'cluster' ? {} : { namespace: 'billing' };
    const id = [rule.context, ...Object.values(tenant), rule.name].join('/');
    made.rules[id] = { ...rule, ...tenant, priority: 1000 };
    made.groups['g-pay']?.rules[rule.context].push(id);
  }
  return made;
}

const pass: Rule = { context: 'cluster', action: 'accept', name: 'pass', services: ['x/udp'] };
const deny: Rule = { context: 'namespace', action: 'reject', name: 'no-ssh', services: ['x/ssh'] };
const drop: Rule = { context: 'namespace', action: 'drop', name: 'no-dns', services: ['x/53'] };
const permit: Rule = { context: 'service', action: 'accept', name: 'udp', services: ['x/udp'] };

t.test('exact hits of each verdict, IPv4 and IPv6', async (t) => {
  program = await open();
  await apply(policy([pass, deny, drop, permit]));
  const ids = Object.keys(plan.rules);
  const [passId = '', denyId = '', dropId = '', permitId = ''] = ids;
  t.equal(ids.length, 4);
  for (const family of families) {
    await send(family, 'pay', [1000, 1001, 1002]);
    await send(family, 'pay', [53, 53]);
    await send(family, 'pay', [22], PROTOCOL_TCP);
    await send(family, 'pay', [23, 24, 25, 26], PROTOCOL_TCP);
  }
  t.same(await shown(), {
    [passId]: [10, 10, 0],
    [denyId]: [2, 0, 2],
    [dropId]: [4, 0, 4],
    [permitId]: [6, 6, 0],
    'default/edge': [8, 0, 8],
  });
  t.equal(program.totals.get(dropId)?.bytes, 2 * (32 + 52), 'bytes of IP packets');
});

t.test('a flow is one hit, and its packets are counted once each', async (t) => {
  const permitId = Object.keys(plan.rules)[3] ?? '';
  const before = program.totals.get(permitId)?.hits ?? 0;
  for (const family of families) {
    const packet = buildUdp({
      source: PODS.pay[family],
      destination: WEB[family],
      sourcePort: 4000,
      destinationPort: 4001,
      payload: new Uint8Array(72),
    });
    for (let n = 0; n < 7; n++) rig.fromNode(packet);
  }
  await rig.collect();
  await program.round();
  t.equal(program.totals.get(permitId)?.hits, before + 2);
  t.match(program.totals.get(permitId), { packets: 6 + 14, bytes: 3 * (32 + 52) + 7 * (100 + 120) });
});

t.test('hits survive other rules, an edited rule, a restart and a lost table', async (t) => {
  const [passId = '', denyId = '', dropId = '', permitId = ''] = Object.keys(plan.rules);
  const hitsOf = async (id: string): Promise<number | undefined> => (await shown())[id]?.[0];

  const web: Rule = { context: 'cluster', action: 'drop', name: 'other', services: ['x/ssh'] };
  await send(4, 'pay', [53]);
  await apply(policy([web, pass, deny, drop, permit]));
  await send(4, 'pay', [53]);
  t.equal(await hitsOf(dropId), 6, 'a rule more makes the chains anew');
  t.equal(await hitsOf(passId), 14);

  await send(4, 'pay', [2000]);
  await apply(policy([pass, deny, drop, { ...permit, action: 'drop' }]));
  await send(4, 'pay', [2001]);
  t.same((await shown())[permitId]?.slice(0, 2), [10, 9], 'an edited rule goes on');

  await apply(policy([pass, deny, permit]));
  await send(4, 'pay', [53]);
  t.equal(await hitsOf(dropId), 6, 'a rule that is away keeps what it has');
  await apply(policy([pass, deny, drop, permit]));
  await send(4, 'pay', [53]);
  t.equal(await hitsOf(dropId), 7, 'and goes on when it is back');

  await program.round();
  await send(4, 'pay', [53, 53]);
  const again = await open();
  t.equal(again.totals.get(dropId)?.hits, 9, 'a program that starts anew knows what came while there was none');
  program = again;
  program.inForce(plan, compileGateway(plan).ruleNumbers, undefined);
  await rig.restarted(state).apply(plan);
  await send(4, 'pay', [53]);
  t.equal(await hitsOf(dropId), 10, 'its first plan makes no counter anew');

  await rig.nft.drop('sluice');
  await program.recount();
  await rig.restarted(state).apply(plan);
  for (let n = 0; n < 13; n++) await send(4, 'pay', [53]);
  t.equal(await hitsOf(dropId), 23, 'the counters of a new table start at zero, the totals do not');
  t.equal(await hitsOf(denyId), 2);
  t.same(errors, []);
});

/** What flows carried, as the recorder said until it had done what it was asked. */
async function asked(run: RecorderRig, line: string): Promise<{ packets: number; bytes: number }> {
  const all = { packets: 0, bytes: 0 };
  for (const { carried } of await run.ask(line)) {
    all.packets += carried?.packets ?? 0;
    all.bytes += carried?.bytes ?? 0;
  }
  return all;
}

t.test('the recorder: what a flow carries is said once, by look or at its end', async (t) => {
  const packet = buildUdp({
    source: PODS.pay[4],
    destination: WEB[4],
    sourcePort: 5000,
    destinationPort: 5001,
    payload: new Uint8Array(72),
  });
  const burst = async (packets: number): Promise<void> => {
    for (let n = 0; n < packets; n++) rig.fromNode(packet);
    await rig.collect();
  };
  await endFlows(() => true, options);
  await burst(2);
  const atItsEnd = async (run: RecorderRig): Promise<number> => {
    await endFlows(() => true, options);
    let packets = 0;
    for (let tries = 0; tries < 1000 && packets === 0; tries++) {
      packets += (await asked(run, 'wait')).packets;
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
    return packets;
  };
  const first = await startRecorder(options.namespace);
  t.same(await asked(first, 'look'), { packets: 2, bytes: 200 }, 'a flow that was there is counted from its start');
  await burst(3);
  t.same(await asked(first, 'look'), { packets: 3, bytes: 300 });
  t.same(await asked(first, 'look'), { packets: 0, bytes: 0 });
  await burst(5);
  t.equal(await atItsEnd(first), 5, 'at its end the rest');
  await first.close();

  await burst(2);
  const second = await startRecorder(options.namespace, Date.now());
  t.same(await asked(second, 'look'), { packets: 0, bytes: 0 }, 'what an earlier run looked at is its own');
  await burst(4);
  t.equal(await atItsEnd(second), 4, 'and what came since is this one’s');
  await second.close();
});
