/**
 * The stage of the benchmarks on a real kernel: each peer's gateway forwards when it has its turn, and no other does; each load
 * that has small packets arrives. How fast is nobody's business here.
 *
 *   client (pods)  --  node  --  VXLAN or routed  --  one gateway a subject  --  server
 */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import { families, type SteeringMode } from '../../api/plan.ts';
import { Gateways } from '../../bench/gateways.ts';
import { type Load, LoadGenerator } from '../../bench/load.ts';
import { podAddresses } from '../../bench/plan.ts';
import { Stage } from '../../bench/stage.ts';
import { forwardingSubjects } from '../../bench/subjects.ts';
import { run } from '../../kernel/run.ts';

t.setTimeout(570_000);
const places = [0, 1, 2].map(podAddresses);
const pods = { 4: places.map((of) => of[4]), 6: places.map((of) => of[6]) };
/** Whose program would need a controller are tested elsewhere. */
const peers = forwardingSubjects.filter(({ table }) => table !== 'sluice');
/** CPU time depends on how the kernel was built. */
const meter = { procs: '/dev/null', seconds: () => 1 };
const SECONDS = 0.1;

async function stands(steering: SteeringMode): Promise<{
  stage: Stage;
  generator: LoadGenerator;
  close(): Promise<void>;
}> {
  const state = mkdtempSync(join(tmpdir(), 'sluice-bench-test-'));
  const stage = await Stage.create(steering, [...pods[4], ...pods[6]], steering.toLowerCase());
  const generator = new LoadGenerator(stage, meter, pods);
  const close = async (): Promise<void> => {
    await generator.close();
    await stage.close();
    rmSync(state, { recursive: true });
  };
  try {
    const gateways = await Gateways.create(stage, state, { namespaces: 1, steering });
    for (const subject of peers) await gateways.add(subject);
    await generator.start(steering === 'VXLAN' ? [...families] : [4], 4, ['udp', 'frames', 'connect', 'request']);
  } catch (error) {
    await close();
    throw error;
  }
  return { stage, generator, close };
}

for (const steering of ['VXLAN', 'Direct'] as const) {
  t.test(`${steering}: each gateway has its turn`, async (t) => {
    const { stage, generator, close } = await stands(steering);
    t.teardown(close);
    for (const { id, source, table } of peers) {
      await stage.become(id);
      for (const family of steering === 'VXLAN' ? families : ([4] as const)) {
        const seen = await stage.sourcesDuring(family, () => generator.measure('udp', family, SECONDS));
        t.same(seen, [source], `${id}, IPv${family}: the server sees ${source}`);
        const loads: Load[] = family === 4 ? ['frames', 'connect', 'request'] : ['connect', 'request'];
        for (const load of loads) {
          const { amount } = await generator.measure(load, family, SECONDS);
          t.ok(amount > 0, `${id}, IPv${family}: ${load}`);
        }
      }
      if (table === 'way') continue;
      const flows = async (): Promise<number> =>
        Number(await run(['ip', 'netns', 'exec', stage.gatewayOf(id), 'conntrack', '-C'], { op: 'conntrack' }));
      if (table === 'none') t.equal(await flows(), 0, 'plain: no connection is tracked');
      else {
        t.ok((await flows()) > 0, `${id}: connections are tracked`);
        t.ok((await stage.become(id)) > 0, `${id}: the next turn begins with none of them`);
      }
    }
  });
}

t.test('a gateway that drops is seen', async (t) => {
  const { stage, generator, close } = await stands('VXLAN');
  t.teardown(close);
  await stage.become('nft');
  const link = ['ip', '-n', stage.gatewayOf('nft'), 'link', 'set', 'outside', 'down'];
  await run(link, { op: 'link' });
  await t.rejects(generator.measure('udp', 4, SECONDS), /nft: no datagram arrived/);
  await t.rejects(generator.measure('connect', 4, SECONDS), /connector\.js ended/);
  await stage.become('iptables');
  t.ok((await generator.measure('udp', 4, SECONDS)).amount > 0, 'the others go on');
  t.ok((await generator.measure('connect', 4, SECONDS)).amount > 0, 'and the generator begins anew');
});
