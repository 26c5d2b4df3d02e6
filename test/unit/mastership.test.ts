/** Which shards a gateway has: what a plan and a machine's addresses come to in elections, and what follows from their reports. */

import type { NetworkInterfaceInfo } from 'node:os';
import t from 'tap';
import { emptyGatewayPlan, type GatewayPlan, type PoolSettings, type PoolVrrp } from '../../api/plan.ts';
import type { Logger } from '../../daemon/log.ts';
import { compileNet, electedAddresses, heldShards } from '../../gateway/compile-net.ts';
import { electionsOf, Mastership, priorityOf, type Standing, sourceOf } from '../../gateway/mastership.ts';
import type { ThreadReport } from '../../ha/election-messages.ts';
import type { ElectionThreadOptions } from '../../ha/election-thread.ts';
import type { ElectionConfig } from '../../ha/elections.ts';

const vrrp: PoolVrrp = { baseId: 51, advertIntervalMs: 40, failback: 'Delayed', failbackDelayMs: 60_000 };
const pool = (more: Partial<PoolSettings> = {}): PoolSettings => ({
  pool: 'edge',
  defaultAction: 'Drop',
  unassigned: 'Drop',
  internalInterface: 'in0',
  externalInterface: 'out0',
  externalGateway: {},
  steering: { mode: 'VXLAN', vni: 7790, port: 4793, mtu: null },
  clusterCIDRs: [],
  excludedCIDRs: [],
  vrrp,
  ...more,
});
const gateway = (internalAddress: string) => ({ internalAddress, addresses: [internalAddress] });
const planOf = (settings: PoolSettings = pool()): GatewayPlan => ({
  ...emptyGatewayPlan(),
  settings: { pool: settings },
  gateways: { 'gw-a': gateway('10.0.0.31'), 'gw-b': gateway('10.0.0.32') },
  shards: {
    s0: {
      index: 9,
      nextHops: { 4: '10.0.0.64', 6: 'fd00:10::64' },
      order: ['gw-a', 'gw-b'],
      egressIPs: ['203.0.113.101', '2001:db8:113::101'],
    },
    s2: { index: 7, nextHops: { 4: '10.0.0.66' }, order: ['gw-b', 'gw-a'], egressIPs: [] },
  },
});
const sources = {
  inside: { 4: '10.0.0.31', 6: 'fe80::31' },
  outside: { 4: '203.0.113.31', 6: 'fe80::113' },
};
const standing = (more: Partial<Standing> = {}): Standing => ({
  sources,
  fenced: true,
  drained: false,
  complete: () => false,
  start: () => ({}),
  ...more,
});

t.test('a plan as elections', async (t) => {
  const [s0, s2] = electionsOf(planOf(), 'gw-a', standing({ complete: (shard) => shard === 's2' }));
  t.same(s0, {
    id: 's0',
    vrid: 51,
    priority: 250,
    intervalMs: 40,
    failback: 'Delayed',
    failbackDelayMs: 60_000,
    stateComplete: false,
    channels: [
      { link: 'inside', family: 4, source: '10.0.0.31', addresses: ['10.0.0.64'] },
      { link: 'inside', family: 6, source: 'fe80::31', addresses: ['fe80::7:33', 'fd00:10::64'] },
      { link: 'outside', family: 4, source: '203.0.113.31', addresses: ['10.0.0.64'] },
      { link: 'outside', family: 6, source: 'fe80::113', addresses: ['fe80::7:33', 'fd00:10::64'] },
    ],
    held: [
      { link: 'inside', address: 'fe80::7:33', prefixLength: 128 },
      { link: 'inside', address: '10.0.0.64', prefixLength: 32 },
      { link: 'inside', address: 'fd00:10::64', prefixLength: 128 },
      { link: 'outside', address: '203.0.113.101', prefixLength: 32 },
      { link: 'outside', address: '2001:db8:113::101', prefixLength: 128 },
    ],
    fenced: true,
    needs: ['inside', 'outside'],
    start: {},
  });
  t.match(
    s2,
    { id: 's2', vrid: 53, priority: 200, stateComplete: true, channels: { length: 2 } },
    'IPv4 alone; second',
  );
  const started: string[] = [];
  const start: Standing['start'] = (shard, own) => {
    started.push(shard, ...own);
    return {};
  };
  electionsOf(planOf(), 'gw-a', standing({ start }));
  t.same(started, ['s0', ...(s0?.held ?? []).map(({ address }) => address), 's2', '10.0.0.66']);
  const drained = electionsOf(planOf(), 'gw-a', standing({ drained: true }));
  t.same(
    drained.map(({ priority }) => priority),
    [1, 1],
    'whoever is there comes before one that is drained',
  );
  t.same(electionsOf(planOf(), 'gw-z', standing()), [], 'a gateway that is in no order');
  const blind = { inside: {}, outside: sources.outside };
  t.same(electionsOf(planOf(), 'gw-a', standing({ sources: blind })), [], 'nobody who cannot be heard inside');
  const one = electionsOf(planOf(pool({ externalInterface: 'in0' })), 'gw-a', standing());
  t.same([...new Set(one.flatMap(({ channels, held }) => [...channels, ...held].map(({ link }) => link)))], ['inside']);
  t.same(one[0]?.needs, ['inside']);
  const { vrrp: _, ...still } = pool();
  t.same(electionsOf(planOf(still), 'gw-a', standing()), [], 'none without vrrp');
});

t.test('priorities fall from place to place, as far as the places go', async (t) => {
  const all = Array.from({ length: 64 }, (_, place) => priorityOf(place));
  t.same(all.slice(0, 5), [250, 200, 150, 100, 99]);
  for (const [place, priority] of all.entries()) t.ok(priority > (all[place + 1] ?? 0) && priority < 255);
});

t.test('what is the plan’s and what is the election’s', async (t) => {
  const { vrrp: _, ...still } = pool();
  t.same(heldShards(planOf(still), 'gw-a', new Set(['s2'])), ['s0'], 'the first of the order');
  t.same(heldShards(planOf(), 'gw-a', new Set(['s2'])), ['s2'], 'who is elected');
  t.same(heldShards(planOf(), 'gw-a'), []);
  t.same(electedAddresses(planOf(still)), []);
  t.same(compileNet(planOf(), 'gw-a', 1500).addresses, []);
  const inPlan = compileNet(planOf(still), 'gw-a', 1500).addresses.map(({ address }) => address);
  t.same(inPlan, ['10.0.0.64/32', 'fd00:10::64/128', '203.0.113.101/32', '2001:db8:113::101/128']);
  t.same(
    electedAddresses(planOf()).map(({ address }) => address),
    ['fe80::7:33/128', ...inPlan, '10.0.0.66/32'],
  );
});

const address = (text: string): NetworkInterfaceInfo =>
  ({ address: text, family: text.includes(':') ? 'IPv6' : 'IPv4' }) as NetworkInterfaceInfo;
const machine = (): Record<string, NetworkInterfaceInfo[]> => ({
  in0: ['10.0.0.64', '10.0.0.31', 'fd00:10::31', 'fe80::7:33', 'fe80::31%in0'].map(address),
  out0: ['203.0.113.101', '203.0.113.31', '2001:db8:113::31', 'fe80::113'].map(address),
});

t.test('the address that a gateway advertises from is its own', async (t) => {
  const shards = new Set(['10.0.0.64', 'fe80::7:33']);
  t.same(
    sourceOf(machine(), 'in0', (one) => shards.has(one)),
    sources.inside,
  );
  t.same(
    sourceOf({}, 'in0', () => false),
    {},
    'of a link that is down none is known',
  );
});

function world() {
  const log = { info() {}, warn() {}, error() {} } as unknown as Logger;
  const said: string[] = [];
  const told: (readonly ElectionConfig[])[] = [];
  const links = machine();
  let thread: ElectionThreadOptions | undefined;
  const complete = new Set<string>();
  let busy = false;
  const mastership = new Mastership({
    name: 'gw-a',
    log,
    complete: (shard) => complete.has(shard),
    drained: () => false,
    onChange: () => void said.push([...mastership.elected].join() || 'none'),
    interfaces: () => links,
    start(options) {
      thread = options;
      said.push(`start ${JSON.stringify(options.links)}`);
      return {
        async configure(configs) {
          told.push(configs);
        },
        busy(yes) {
          busy = yes;
        },
        async close(leave = false) {
          said.push(leave ? 'leaves' : 'gives up');
        },
      };
    },
  });
  return {
    mastership,
    told,
    links,
    complete,
    isBusy: () => busy,
    said: () => said.splice(0),
    report: (report: ThreadReport) => thread?.onReport(report),
    end: () => thread?.onEnd(new Error('x')),
  };
}
type Became = ThreadReport & { kind: 'became' };
const became = (id: string, state: Became['state'], cause: Became['cause']): ThreadReport => ({
  kind: 'became',
  id,
  state,
  cause,
  at: 0,
  heardAt: undefined,
});

t.test('shards come and go with what the election says', async (t) => {
  const { mastership, said, told, report, complete, isBusy } = world();
  await mastership.before(planOf());
  await mastership.follow(planOf());
  await mastership.before(planOf());
  t.ok(isBusy(), 'a plan may keep the program from answering');
  mastership.applied();
  t.notOk(isBusy());
  t.same(said(), ['start {"inside":"in0","outside":"out0"}']);
  t.same(
    told.splice(0).map((configs) => configs.map(({ start }) => start)),
    [[{ holding: true }, { holding: false }]],
    'what it found',
  );
  await mastership.follow(planOf());
  t.same(told, [], 'the same is told once');
  report(became('s0', 'Active', 'silence'));
  report(became('s2', 'Active', 'silence'));
  report(became('s0', 'Waking', 'stopped'));
  t.same(said(), ['s0', 's0,s2'], 'who was stopped has it until it knows');
  report(became('s0', 'Backup', 'replaced'));
  report(became('s2', 'Backup', 'outranked'));
  t.same(said(), ['s2', 'none']);
  t.same(mastership.counts.get('Active silence')?.count, 2);
  const takeovers: unknown[] = [];
  mastership.onTakeover = (takeover) => takeovers.push(takeover);
  report({ ...became('s0', 'Active', 'silence'), at: 1_130, heardAt: 1_000 } as ThreadReport);
  report({ kind: 'held', id: 's0', at: 1_150 });
  report({ kind: 'held', id: 's2', at: 1_150 });
  t.same(takeovers, [{ shard: 's0', cause: 'silence', silentMs: 130, tookMs: 150 }]);
  said();
  told.splice(0);
  complete.add('s0');
  await mastership.look();
  t.same(
    told.map((configs) => configs.map(({ stateComplete }) => stateComplete)),
    [[true, false]],
  );
  await mastership.close();
  t.same(said(), ['gives up'], 'nobody is told at the end');
});

t.test('who has a shard by the plan goes on with it when there is an election', async (t) => {
  const { mastership, told } = world();
  const { vrrp: _, ...still } = pool();
  const start = () => told.at(-1)?.map((config) => [config.id, config.start]);
  await mastership.before(planOf(still));
  await mastership.follow(planOf(still));
  t.same(told, []);
  await mastership.follow(planOf());
  t.same(start(), [
    ['s0', { leads: true }],
    ['s2', { patienceMs: 5_000 }],
  ]);
  await mastership.close();
});

t.test('a thread that ends, other links, a plan without an election', async (t) => {
  const { mastership, said, told, report, end, links } = world();
  await mastership.follow(planOf());
  report(became('s0', 'Active', 'silence'));
  said();
  end();
  t.same(said(), ['none']);
  await mastership.follow(planOf());
  t.same(said(), ['start {"inside":"in0","outside":"out0"}'], 'another begins');
  links.in0 = [address('10.0.0.39'), address('fe80::39')];
  told.splice(0);
  report({ kind: 'carrier', link: 'inside', up: true });
  t.equal(told.at(-1)?.[0]?.channels[0]?.source, '10.0.0.39', 'a link that is there again may have another address');
  report(became('s0', 'Active', 'silence'));
  said();
  const moved = planOf(pool({ internalInterface: 'in1' }));
  await mastership.before(moved);
  t.same(said(), ['leaves', 'none'], 'on other links addresses are found again');
  await mastership.follow(moved);
  const { vrrp: _, ...still } = pool();
  await mastership.before(planOf(still));
  t.same(said(), ['start {"inside":"in1","outside":"out0"}', 'gives up']);
  await mastership.follow(planOf(still));
  t.same(said(), [], 'nothing more');
  const alone = planOf();
  delete alone.gateways['gw-b'];
  await mastership.follow(alone);
  t.same(
    told.at(-1)?.map(({ fenced }) => fenced),
    [false, false],
  );
  await mastership.close();
  t.same(said().at(-1), 'leaves', 'who has nobody to leave them to leaves its addresses');
});
