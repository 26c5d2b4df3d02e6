/**
 * What a change of plan costs a gateway: the first load of N namespaces with their pods, then single changes, each by
 * GatewayApply into an empty network namespace with the real nft and ip. Printed: milliseconds of the whole apply
 * (compile, list, diff, nft, ip) and bytes of the nft script. Each change is done `--rounds` times, there and back.
 *   node dist/bench/plan-load.js [--namespaces 1000] [--pods 5] [--rounds 9]
 */
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import type { GatewayPlan } from '../api/plan.ts';
import { type Applied, GatewayApply } from '../gateway/apply.ts';
import { compileGateway } from '../gateway/compile.ts';
import { HostNft } from '../kernel/nft-host.ts';
import { run } from '../kernel/run.ts';
import { addNamespace, addPod, generatePlan } from './plan.ts';
import { median } from './statistics.ts';
import { hostKernel } from './topology.ts';

const { values } = parseArgs({
  options: {
    namespaces: { type: 'string', default: '1000' },
    pods: { type: 'string', default: '5' },
    rounds: { type: 'string', default: '9' },
    output: { type: 'string', default: 'bench/results/plan-load.json' },
  },
});
const [namespaces, pods, rounds] = [Number(values.namespaces), Number(values.pods), Number(values.rounds)];

interface Cost {
  what: string;
  milliseconds: number;
  /** Of a change that is made more than once. */
  samples?: number[];
  nftChanges: number;
}

const namespace = `t-bench-load-${process.pid}`;
const state = await mkdtemp(join(tmpdir(), 'sluice-bench-'));
try {
  await run(['ip', 'netns', 'add', namespace], { op: 'netns' });
  await run(['ip', '-n', namespace, 'link', 'set', 'lo', 'up'], { op: 'up' });
  for (const device of ['inside', 'outside']) {
    const pair = ['link', 'add', device, 'up', 'type', 'veth', 'peer', 'name', `${device}-peer`];
    await run(['ip', '-n', namespace, ...pair], { op: 'veth' });
  }
  await run(['ip', '-n', namespace, 'addr', 'add', '203.0.113.31/24', 'dev', 'outside'], { op: 'address' });
  const six = ['addr', 'add', '2001:db8:113::31/64', 'dev', 'outside', 'nodad'];
  await run(['ip', '-n', namespace, ...six], { op: 'address' });
  await report(await costs());
} finally {
  await run(['ip', 'netns', 'del', namespace], { op: 'netns' }).catch(() => undefined);
  await rm(state, { recursive: true });
}

async function costs(): Promise<Cost[]> {
  const gateway = new GatewayApply('gw-a', hostKernel(namespace), state);
  const plan = generatePlan({ namespaces, pods });
  const found: Cost[] = [];
  const timed = async (apply: () => Promise<Applied>): Promise<Cost> => {
    const start = performance.now();
    const { nftChanges } = await apply();
    return { what: '', milliseconds: performance.now() - start, nftChanges };
  };
  found.push({ ...(await timed(() => gateway.apply(plan))), what: `first load: ${namespaces} × ${pods} pods` });
  const start = performance.now();
  compileGateway(plan);
  found.push({ what: 'of which: plan to ruleset, as a value', milliseconds: performance.now() - start, nftChanges: 0 });
  const again = await timed(() => gateway.apply(plan));
  found.push({ ...again, what: 'the same plan once more' });
  const restarted = new GatewayApply('gw-a', hostKernel(namespace), state);
  found.push({ ...(await timed(() => restarted.apply(plan))), what: 'after a restart: list all, nothing to do' });

  for (const [what, changed] of changes(plan)) {
    const there: Cost[] = [];
    const back: Cost[] = [];
    for (let round = 0; round < rounds; round++) {
      there.push(await timed(() => gateway.apply(changed)));
      back.push(await timed(() => gateway.apply(plan)));
    }
    for (const [direction, list] of [['', there] as const, [', undone', back] as const]) {
      const samples = list.map((cost) => cost.milliseconds);
      const nftChanges = list[0]?.nftChanges ?? 0;
      found.push({ what: what + direction, milliseconds: median(samples), samples, nftChanges });
    }
  }
  const script = 'add element inet sluice noegress4 { 192.0.2.77 }\n';
  const nft = new HostNft({ namespace });
  const bare: number[] = [];
  for (let round = 0; round < rounds; round++) {
    const began = performance.now();
    await nft.runScript(script);
    bare.push(performance.now() - began);
  }
  found.push({ what: 'nft alone, one element', milliseconds: median(bare), samples: bare, nftChanges: 1 });
  return found;
}

function changes(plan: GatewayPlan): [string, GatewayPlan][] {
  const onePod = structuredClone(plan);
  const last = onePod.shards.s0?.egressIPs.slice(-2) ?? [];
  addPod(onePod, namespaces - 1, pods, namespaces * pods, { 4: last[0] ?? '', 6: last[1] ?? '' });
  const oneNamespace = structuredClone(plan);
  addNamespace(oneNamespace, namespaces, pods);
  const oneRule = structuredClone(plan);
  const service = oneRule.services['team-7/web'];
  service?.addresses.push('192.0.2.200/32');
  const allGroups = structuredClone(plan);
  allGroups.services['sluice-system/blocked']?.addresses.push('192.88.99.0/24');
  return [
    ['one pod', onePod],
    ['one namespace with its pods and rules', oneNamespace],
    ['one address in a service of one namespace', oneRule],
    ['one address in a service of all namespaces', allGroups],
  ];
}

async function report(found: Cost[]): Promise<void> {
  for (const { what, milliseconds, nftChanges } of found) {
    const bytes = nftChanges === 0 ? '' : `${nftChanges} changes for nft`;
    console.log(`${what.padEnd(44)} ${milliseconds.toFixed(1).padStart(9)} ms   ${bytes}`);
  }
  await mkdir(join(values.output, '..'), { recursive: true });
  await writeFile(values.output, `${JSON.stringify({ namespaces, pods, rounds, costs: found }, null, 2)}\n`);
  console.log(`written: ${values.output}`);
}
