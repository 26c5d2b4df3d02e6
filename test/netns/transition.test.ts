/**
 * From one policy to another under traffic (topology: gateway-rig.ts): while the new plan is being applied, every new
 * flow gets what the old or the new policy says, never a third thing, and flows that both permit stay as they are.
 */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import t from 'tap';
import { families, type GatewayPlan } from '../../api/plan.ts';
import { compilePolicy } from '../../policy/evaluate.ts';
import { PROTOCOL_TCP, PROTOCOL_UDP } from '../../wire/ip.ts';
import { DESTINATIONS, PODS, PORTS, randomPlan } from './gateway-plans.ts';
import { GatewayRig, type Probe, probePacket, type Sighting } from './gateway-rig.ts';

t.setTimeout(570_000);
const CHANGES = Number(process.env.SLUICE_PROPERTY_RUNS ?? 40) / 2;
const state = mkdtempSync(join(tmpdir(), 'sluice-test-'));
const rig = await GatewayRig.create('tr', state);
t.teardown(async () => {
  await rig.close();
  rmSync(state, { recursive: true });
});

let marker = 0;
function randomProbe(): Probe {
  marker++;
  const family = families[marker % 2] ?? 4;
  const pod = marker % 3 === 0 ? 'rev' : 'pay';
  const destinations = DESTINATIONS[family];
  return {
    source: PODS[pod][family],
    destination: destinations[(marker * 5) % destinations.length] ?? destinations[0],
    protocol: marker % 5 === 0 ? PROTOCOL_UDP : PROTOCOL_TCP,
    destinationPort: PORTS[(marker * 3) % PORTS.length] ?? 80,
    marker,
  };
}

function observed(seen: Sighting[]): Map<number, string> {
  const verdicts = new Map<number, string>();
  for (const { where, kind, marker: about } of seen) {
    if (where === 'outside' && kind === 'packet') verdicts.set(about, 'accept');
    else if (where === 'inside' && kind !== 'packet') verdicts.set(about, 'reject');
  }
  return verdicts;
}

/** Applies `next` while probes are sent; says what was neither the old nor the new policy's verdict. */
async function change(before: GatewayPlan, next: GatewayPlan): Promise<{ sent: number; wrong: string[] }> {
  const sent: Probe[] = [];
  const seen: Sighting[] = [];
  let done = false;
  const applied = rig.apply(next).finally(() => {
    done = true;
  });
  while (!done) {
    for (let n = 0; n < 8; n++) {
      const probe = randomProbe();
      sent.push(probe);
      rig.fromNode(probePacket(probe));
    }
    seen.push(...(await rig.collect(1)));
  }
  await applied;
  seen.push(...(await rig.collect()));
  const verdicts = observed(seen);
  const old = compilePolicy(before);
  const fresh = compilePolicy(next);
  const wrong = sent.flatMap((probe) => {
    const got = verdicts.get(probe.marker) ?? 'drop';
    const may = [old.decide(probe).verdict, fresh.decide(probe).verdict];
    return may.includes(got as never) ? [] : [`${JSON.stringify(probe)}: ${got}, where ${may.join(' then ')} is right`];
  });
  return { sent: sent.length, wrong };
}

t.test('every flow during a change is judged by the old policy or by the new', async (t) => {
  const plans = fc.sample(randomPlan, { seed: 11, numRuns: CHANGES });
  let before = plans[0] as GatewayPlan;
  await rig.apply(before);
  let probes = 0;
  for (const next of plans.slice(1)) {
    const { sent, wrong } = await change(before, next);
    probes += sent;
    if (wrong.length > 0) t.strictSame(wrong.slice(0, 5), []);
    before = next;
  }
  t.ok(probes > CHANGES * 4, `${probes} flows while ${CHANGES} changes were made`);
});

t.test('flows that both policies permit are not touched by a change', async (t) => {
  const plans = fc.sample(randomPlan, { seed: 13, numRuns: 8 });
  await rig.reset();
  await rig.apply(plans[0] as GatewayPlan);
  let kept = 0;
  for (const next of plans.slice(1)) {
    for (let n = 0; n < 60; n++) rig.fromNode(probePacket(randomProbe()));
    await rig.collect();
    const before = await rig.flows();
    await rig.apply(next);
    const after = new Set((await rig.flows()).map(({ id }) => id));
    const evaluator = compilePolicy(next);
    for (const { id, original, protocol } of before) {
      if (!/^(10\.244|fd00:244)/.test(original.source)) continue;
      const { verdict } = evaluator.decide({ ...original, protocol });
      const may = verdict === 'accept';
      if (may) kept++;
      if (after.has(id) !== may)
        t.fail(`${JSON.stringify(original)} is ${after.has(id) ? 'there' : 'gone'}: ${verdict}`);
    }
  }
  t.ok(kept > 20, `${kept} flows went on, and none that the new policy forbids`);
});
