/**
 * Many egress IPs at a gateway's first plan (gateway/early-addresses.ts), on a real kernel: they are on the machine before its table
 * is whole, and until then nobody from outside reaches the machine's own sockets through them.
 */
import { spawn } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import t from 'tap';
import { NFT_TABLE_EARLY, NFT_TABLE_GATEWAY } from '../../api/names.ts';
import { GatewayApply, type GatewayKernel } from '../../gateway/apply.ts';
import { HostIp } from '../../kernel/iproute-host.ts';
import { HostNft } from '../../kernel/nft-host.ts';
import { FakeTc } from '../../kernel/tc-fake.ts';
import { inNamespace, must, run } from '../../lab/netns.ts';
import { basePlan } from './gateway-plans.ts';

t.setTimeout(120_000);
const [gateway, outside] = [`t-early-gw-${process.pid}`, `t-early-out-${process.pid}`];
const state = mkdtempSync(join(tmpdir(), 'sluice-early-'));
const PORT = '2222';
const OWN = { 4: '203.0.113.31', 6: '2001:db8:113::31' } as const;
const MANY = 400;

const nft = new HostNft({ namespace: gateway });
/** The kernel of a machine that takes its time over the gateway's table. */
let slow: Promise<void> = Promise.resolve();
const announced = new Set<string>();
const kernel: GatewayKernel = {
  nft: {
    async run(change) {
      if (change.table === NFT_TABLE_GATEWAY) await slow;
      await nft.run(change);
    },
    list: (family, table, like) => nft.list(family, table, like),
    counters: (table) => nft.counters(table),
    drop: (table) => nft.drop(table),
  },
  ip: new HostIp({ namespace: gateway }),
  tc: new FakeTc(),
  sysctl: async () => undefined,
  mtu: async () => 1500,
  reversePathFilter: async () => false,
  announce: (_, addresses) => {
    for (const address of addresses) announced.add(address);
  },
  endFlows: async () => 0,
};

for (const namespace of [gateway, outside]) {
  await must(['ip', 'netns', 'add', namespace]);
  await must(inNamespace(namespace, ['sysctl', '-qw', 'net.ipv6.conf.default.accept_dad=0']));
}
t.teardown(async () => {
  for (const namespace of [gateway, outside]) await must(['ip', 'netns', 'del', namespace]);
  rmSync(state, { recursive: true });
});
for (const dev of ['inside', 'outside'])
  await must(['ip', 'link', 'add', dev, 'netns', gateway, 'type', 'veth', 'peer', 'name', dev, 'netns', outside]);
for (const [namespace, addresses] of [
  [gateway, [`${OWN[4]}/24`, `${OWN[6]}/64`]],
  [outside, ['203.0.113.1/24', '2001:db8:113::1/64']],
] as const) {
  for (const address of addresses) await must(['ip', '-n', namespace, 'addr', 'add', address, 'dev', 'outside']);
  for (const dev of ['lo', 'inside', 'outside']) await must(['ip', '-n', namespace, 'link', 'set', dev, 'up']);
}
const servers = ['-4', '-6'].map((family) => {
  const [command = '', ...args] = inNamespace(gateway, ['nc', family, '-l', '-k', PORT]);
  return spawn(command, args, { stdio: 'ignore' });
});
t.teardown(() => {
  for (const server of servers) server.kill('SIGKILL');
});

const answers = async (address: string): Promise<boolean> =>
  (await run(inNamespace(outside, ['nc', '-z', '-w', '1', address, PORT]))).code === 0;
const egress = (at: number): string[] => [`203.0.113.${100 + (at % 100)}`, `2001:db8:113::1:${(at + 1).toString(16)}`];
const addressesThere = async (): Promise<number> =>
  (await must(['ip', '-n', gateway, '-o', 'addr', 'show', 'dev', 'outside'])).split('\n').filter((line) => line !== '')
    .length;
const until = async (what: string, holds: () => Promise<boolean>): Promise<void> => {
  for (let tries = 0; !(await holds()); tries++) {
    if (tries > 300) throw new Error(`not so: ${what}`);
    await sleep(50);
  }
};

t.test('on their way while the table is, and closed', async (t) => {
  for (const address of Object.values(OWN)) await until('it listens', () => answers(address));
  const plan = basePlan();
  const shard = plan.shards.s0;
  if (shard === undefined) throw new Error('no shard');
  const wanted = new Set(Array.from({ length: MANY }, (_, at) => egress(at)).flat());
  shard.egressIPs = [...wanted];
  let release = (): void => {};
  slow = new Promise((resolve) => {
    release = resolve;
  });
  const applied = new GatewayApply('gw-a', kernel, state).apply(plan);
  await until('all are there', async () => (await addressesThere()) >= wanted.size);
  t.equal((await nft.list('inet', NFT_TABLE_GATEWAY)).exists, false, 'and the table is not');
  for (const address of egress(7)) t.equal(await answers(address), false, `${address} does not answer`);
  for (const address of Object.values(OWN)) t.equal(await answers(address), true, 'the machine itself does');
  t.equal(announced.size, 0, 'nobody has been told of them');
  release();
  await applied;
  t.equal((await nft.list('inet', NFT_TABLE_EARLY)).exists, false);
  t.equal((await nft.list('inet', NFT_TABLE_GATEWAY)).exists, true);
  for (const address of egress(7)) t.equal(await answers(address), false, `${address} does not answer after`);
  for (const address of wanted) if (!announced.has(address)) t.fail(`${address} is announced`);
});

t.test('what a run left that was killed goes with the next', async (t) => {
  await nft.runScript(`add table inet ${NFT_TABLE_EARLY}\n`);
  await new GatewayApply('gw-a', kernel, state).apply(basePlan());
  t.equal((await nft.list('inet', NFT_TABLE_EARLY)).exists, false);
});
