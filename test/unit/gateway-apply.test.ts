/** gateway/apply.ts where the machine does not do all that a plan asks for. What it does otherwise: test/netns. */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import { type FlowReaders, GatewayApply, type GatewayKernel } from '../../gateway/apply.ts';
import { KernelError } from '../../kernel/errors.ts';
import { FakeIp } from '../../kernel/iproute-fake.ts';
import { FakeNft } from '../../kernel/nft-fake.ts';
import { FakeTc } from '../../kernel/tc-fake.ts';
import type { ConntrackView } from '../../wire/conntrack.ts';
import { basePlan, EGRESS, PODS, WEB } from '../netns/gateway-plans.ts';

const state = mkdtempSync(join(tmpdir(), 'sluice-apply-'));
t.teardown(() => rmSync(state, { recursive: true }));

class Machine implements GatewayKernel {
  readonly nft = new FakeNft();
  readonly tc = new FakeTc();
  readonly #ip = new FakeIp(['inside', 'outside']);
  failing = false;
  lists = 0;
  ended = 0;
  readonly ip: GatewayKernel['ip'] = {
    list: (scope) => {
      this.lists++;
      return this.#ip.list(scope);
    },
    apply: async (lines) => {
      if (this.failing) throw new KernelError('ip apply', 'ENODEV', 'no such device');
      await this.#ip.apply(lines);
    },
  };
  sysctl = async (): Promise<void> => undefined;
  mtu = async (): Promise<number> => 1500;
  reversePathFilter = async (): Promise<boolean> => true;
  announce = (): void => undefined;
  /** One flow is there. */
  endFlows = async (match: (flow: ConntrackView) => boolean): Promise<number> => {
    const { 4: source } = PODS.pay;
    const { 4: destination } = WEB;
    const flow = {
      protocol: 17,
      original: { source, destination, sourcePort: 7, destinationPort: 7 },
      reply: { source: destination, destination: EGRESS.pay[4], sourcePort: 7, destinationPort: 7 },
    };
    const ends = match(flow as ConntrackView);
    if (ends) this.ended++;
    return ends ? 1 : 0;
  };
}
const open = basePlan('Accept');

t.test('flows that the rules forbid end, whatever becomes of addresses and routes', async (t) => {
  const machine = new Machine();
  const gateway = new GatewayApply('gw-a', machine, state);
  await gateway.apply(open);
  t.equal(machine.ended, 0);
  const closed = basePlan('Drop');
  machine.failing = true;
  Object.assign(closed.nodes, { c: { addresses: ['10.0.0.99'], podCIDRs: ['10.99.0.0/16'] } });
  await t.rejects(gateway.apply(closed), /ENODEV/);
  t.equal(machine.ended, 1);
  machine.failing = false;
  await gateway.apply(closed);
});

t.test('a look ahead: the reconciliation lists nothing again, unless something was changed since', async (t) => {
  const machine = new Machine();
  const gateway = new GatewayApply('gw-a', machine, state);
  const nothing = { set: {}, delete: {} };
  await gateway.look();
  t.equal(machine.lists, 0, 'without a plan there is nothing to look for');
  await gateway.apply(open);
  await gateway.look();
  machine.lists = 0;
  gateway.forget(false);
  await gateway.apply(open, nothing);
  t.equal(machine.lists, 0);
  await gateway.look();
  const more = basePlan('Accept');
  Object.assign(more.nodes, { c: { addresses: ['10.0.0.99'], podCIDRs: ['10.99.0.0/16'] } });
  await gateway.apply(more);
  machine.lists = 0;
  gateway.forget(false);
  await gateway.apply(more, nothing);
  t.equal(machine.lists, 1, 'routes were');
});

t.test('rules that the kernel refuses end no flow, and the next plan is in force whole', async (t) => {
  const machine = new Machine();
  const gateway = new GatewayApply('gw-a', machine, state);
  await gateway.apply(open);
  const closed = basePlan('Drop');
  const before = await machine.nft.list('inet', 'sluice');
  machine.nft.failNext = new KernelError('nft run', 'EINVAL', 'refused');
  await t.rejects(gateway.apply(closed), /EINVAL/);
  t.same(await machine.nft.list('inet', 'sluice'), before, 'what was in force stays');
  t.equal(machine.ended, 0);
  await gateway.apply(closed);
  t.equal(machine.ended, 1);
});

t.test('readers of flows: told before the rules, and told back what did not come into force', async (t) => {
  const machine = new Machine();
  const said: string[] = [];
  const readers: FlowReaders = {
    before: async (_, delta) => void said.push(delta === undefined ? 'whole' : 'delta'),
    undo: () => void said.push('undo'),
    inForce: async () => void said.push('in force'),
    review: async (judge) => {
      said.push(`review ${judge(flow)}`);
      return 1;
    },
    after: async () => void said.push('after'),
    known: () => undefined,
  };
  const flow = {
    protocol: 17,
    original: { source: '192.0.2.1', destination: '192.0.2.2' },
  } as unknown as ConntrackView;
  const gateway = new GatewayApply('gw-a', machine, state, { readers });
  const { flowsEnded } = await gateway.apply(open);
  t.equal(flowsEnded, 1, 'those that are read, too');
  t.same(said.splice(0), ['whole', 'in force', 'review ended', 'after']);
  await gateway.apply(open, { set: {}, delete: {} });
  t.same(said.splice(0), ['delta', 'after']);
  machine.nft.failNext = new KernelError('nft run', 'EINVAL', 'refused');
  await t.rejects(gateway.apply(basePlan('Drop'), undefined), /EINVAL/);
  t.same(said.splice(0), ['whole', 'undo']);
  await gateway.apply(open, { set: {}, delete: {} });
  t.equal(said[0], 'whole', 'what they know is not what the delta is from');
});

t.test('flows of workloads that went: once for many, and before anybody else has the address', async (t) => {
  const machine = new Machine();
  let asked = 0;
  const gateway = new GatewayApply('gw-a', machine, state, { onDeparted: () => asked++ });
  const plan = basePlan('Accept');
  await gateway.apply(plan);
  const [uid, pay] = Object.entries(plan.workloads).find(([, { addresses }]) => addresses.includes(PODS.pay[4])) ?? [];
  if (uid === undefined || pay === undefined) throw new Error('no such pod');
  const without = {
    ...plan,
    workloads: Object.fromEntries(Object.entries(plan.workloads).filter(([key]) => key !== uid)),
  };
  await gateway.apply(without);
  t.same([asked, machine.ended], [1, 0], 'put off');
  t.equal(await gateway.endDeparted(), 1);
  t.equal(await gateway.endDeparted(), 0, 'there is nothing left to look for');

  await gateway.apply(plan);
  await gateway.apply(without);
  t.same([asked, machine.ended], [2, 1]);
  const next = { ...pay, uid: 'next', egress: {} };
  await gateway.apply({ ...without, workloads: { ...without.workloads, next } });
  t.equal(machine.ended, 2, 'the address has another owner: with the plan');
  t.equal(await gateway.endDeparted(), 0);
});
