/**
 * No connection is ahead of the gateway's knowledge: names whose addresses change with each answer are looked up through the
 * cluster's caching resolver, whose questions leave by another gateway than the connections that follow at once. None may be
 * wrongly refused; and none wrongly allowed: names that are not allowed at the same addresses, and an allowed name at
 * addresses that nobody gave for it.
 *   SLUICE_RACE=10000 node dist/test/netns/race.test.js      so many connections instead of CI's
 */
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import t from 'tap';
import { families } from '../../api/plan.ts';
import { firewallView } from '../../lab/checks.ts';
import { down } from '../../lab/down.ts';
import { inNamespace, must, run } from '../../lab/netns.ts';
import { placeOf } from '../../lab/place.ts';
import { awaitReady } from '../../lab/ready.ts';
import { allowList } from '../../lab/topology.ts';
import { up } from '../../lab/up.ts';
import { clientManifests } from './clients-manifests.ts';
import type { Order, Told } from './race-client.ts';

const COUNT = Number(process.env.SLUICE_RACE ?? 2_000);
t.setTimeout(60_000 + Math.max(500_000, 100 * COUNT));
const lab = `t${process.pid}`;
const place = placeOf(lab);
t.teardown(() => down(lab));
const client = fileURLToPath(new URL('./race-client.js', import.meta.url));

async function connect(order: Omit<Order, 'concurrency'>): Promise<Told> {
  const argv = inNamespace(place.namespace('pay-1'), [process.execPath, client]);
  const input = JSON.stringify({ ...order, concurrency: 16 });
  return JSON.parse(await must(argv, { input, timeoutMs: 60_000 + 100 * order.count })) as Told;
}

/** The gateway that has this address. */
async function holder(address: string): Promise<string | undefined> {
  for (const gateway of ['gw-a', 'gw-b', 'gw-c']) {
    const shown = await must(['ip', '-n', place.namespace(gateway), '-o', 'address', 'show']);
    if (shown.includes(` ${address}/`)) return gateway;
  }
  return undefined;
}

await t.test('the lab comes up; the resolver asks by another gateway', async (t) => {
  const world = await up({ name: lab });
  await awaitReady(world);
  await writeFile(join(place.manifests, '30-billing.yaml'), clientManifests);
  const works = ['curl', '-sk', '-m', '5', 'https://web.example.test/ip'];
  const refused = ['curl', '-sk', '-m', '5', 'https://www.example.test/ip'];
  const at = async (argv: string[]) => (await run(inNamespace(place.namespace('pay-1'), argv))).code;
  const end = performance.now() + 60_000;
  while ((await at(works)) !== 0 || (await at(refused)) === 0) {
    if (performance.now() > end) throw new Error('the rules are not in force');
    await sleep(100);
  }
  for (const family of families) {
    const [connections, questions] = [
      await holder(allowList.billing?.[family][0] ?? ''),
      await holder(allowList['kube-system']?.[family][0] ?? ''),
    ];
    t.ok(connections, `IPv${family}: ${connections} and ${questions}`);
    t.not(connections, questions, `IPv${family}: different gateways`);
  }
});

for (const family of families) {
  const count = Math.ceil(COUNT / 2 / families.length);
  t.test(`IPv${family}: none of ${2 * count} is wrongly refused`, async (t) => {
    // A name for each connection, never asked for before; and a few, which the cluster's resolver often has.
    for (const [name, names] of [
      [`new-#.ok.rot.example.test`, count],
      ['few-#.ok.rot.example.test', 20],
    ] as const) {
      const told = await connect({ count, family, name, names });
      t.comment(told);
      t.equal(told.connected, count, `${name}, ${names} names: all connected`, told);
      t.ok(told.addresses > Math.min(20, count / 4), 'to many addresses', told);
    }
  });
  t.test(`IPv${family}: none of ${2 * count} is wrongly allowed`, async (t) => {
    for (const order of [
      { name: 'new-#.no.rot.example.test', names: count },
      { name: 'few-#.ok.rot.example.test', names: 20, serverName: 'web.example.test' },
    ]) {
      const told = await connect({ count, family, ...order });
      t.comment(told);
      t.equal(told.refused, count, `${order.serverName ?? order.name}: all refused`, told);
      t.ok(told.refusedMs < 2_000, 'without waiting', told);
    }
  });
}

t.test('no packet left with a foreign source', async (t) => {
  t.same((await firewallView(lab)).foreign, []);
});
