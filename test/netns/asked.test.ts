/**
 * The kernel's walk before the walk against the words of the plan (asked-walk.ts), for random policies with names and
 * checks and from one to the next, in both modes of steering (topology: gateway-rig.ts): each first packet is dropped,
 * rejected, permitted in the name of the right rule, or begins a flow that is to be read, with the right mark. Root.
 */
import { execFileSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import t from 'tap';
import { CT_DECIDED, CT_READ, CT_RULE_SHIFT, NUMBER_READ_BYTES, NUMBER_READ_FIRST } from '../../api/names.ts';
import { families, type GatewayPlan } from '../../api/plan.ts';
import { compileGateway } from '../../gateway/compile.ts';
import { ruleNumberOf } from '../../gateway/marks.ts';
import { shapeOf } from '../../kernel/nft.ts';
import { compilePolicy } from '../../policy/evaluate.ts';
import { PROTOCOL_TCP, PROTOCOL_UDP } from '../../wire/ip.ts';
import { compileRule } from '../../wire/nft-rule.ts';
import { layoutOf, type SetLayout } from '../../wire/nft-shape.ts';
import { NetlinkWriter } from '../../wire/nlwriter.ts';
import { assertUntilMet } from '../draws.ts';
import { askedOf } from './asked-walk.ts';
import { addRule, basePlan, DESTINATIONS, directPlan, PODS, PORTS, randomAskingPlan, WEB } from './gateway-plans.ts';
import { GatewayRig, icmpOf, type Probe, probePacket, type Sighting } from './gateway-rig.ts';

t.setTimeout(570_000);
const RUNS = Number(process.env.SLUICE_PROPERTY_RUNS ?? 40);
const states = [mkdtempSync(join(tmpdir(), 'sluice-test-')), mkdtempSync(join(tmpdir(), 'sluice-test-'))] as const;
const rig = await GatewayRig.create('as', states[0]);
/** With as many maps as can be. */
const directRig = await GatewayRig.create('ad', states[1], 'Direct', { compared: 1 });
const rigs = [rig, directRig];
t.teardown(async () => {
  for (const each of rigs) await each.close();
  for (const directory of states) rmSync(directory, { recursive: true });
});

/** What is to be read would be dropped, as there is nobody to read it: so that it can be seen, it is let on. */
const letOn = `table inet let_on {
  chain forward { type filter hook forward priority -150; ct mark & 0xc0000000 == 0x40000000 meta mark set 0x8100; }
}`;
for (const tag of ['as', 'ad']) {
  execFileSync('ip', ['netns', 'exec', `t-${tag}-gw-${process.pid}`, 'nft', '-f', '-'], { input: letOn });
}

let nextMarker = 1;
function probes(seed: number): Probe[] {
  const all: Probe[] = [];
  for (const family of families) {
    for (const pod of ['pay', 'rev'] as const) {
      for (const destination of DESTINATIONS[family]) {
        const ends = { source: PODS[pod][family], destination, marker: 0 };
        all.push({ ...ends, protocol: icmpOf(family) });
        for (const protocol of [PROTOCOL_TCP, PROTOCOL_UDP])
          for (const destinationPort of PORTS) all.push({ ...ends, protocol, destinationPort });
      }
    }
  }
  return all.filter((_, at) => (at * 7 + seed) % 3 === 0).map((probe) => ({ ...probe, marker: nextMarker++ }));
}

const seen = { bytes: 0, first: 0, accept: 0, drop: 0, reject: 0, audited: 0, redirected: 0, blocked: 0 };

async function round(plan: GatewayPlan, seed: number, on: GatewayRig): Promise<string | undefined> {
  await on.apply(on.mode === 'Direct' ? directPlan(plan) : plan);
  const { ruleNumbers } = compileGateway(plan);
  const { decide } = compilePolicy(plan);
  const sent = probes(seed);
  for (const probe of sent) on.fromNode(probePacket(probe));
  const byMarker = new Map<number, Sighting[]>();
  for (const one of await on.collect()) byMarker.set(one.marker, [...(byMarker.get(one.marker) ?? []), one]);
  const portOf = ({ marker }: Probe): number => 1024 + (marker % 60_000);
  const flowKey = (source: string, destination: string, protocol: number, port: number | undefined): string =>
    `${source} ${destination} ${protocol} ${port}`;
  const marks = new Map(
    (await on.flows()).map(({ original, protocol, mark }) => [
      flowKey(original.source, original.destination, protocol, original.icmpId ?? original.sourcePort),
      mark,
    ]),
  );
  for (const probe of sent) {
    const { source, destination, protocol, destinationPort } = probe;
    const icmp = protocol === icmpOf(source.includes(':') ? 6 : 4);
    const flow = { source, destination, protocol };
    const port = icmp ? (source.includes(':') ? 128 << 8 : 8 << 8) : destinationPort;
    const types = icmp ? { icmpType: source.includes(':') ? 128 : 8, icmpCode: 0 } : {};
    const asked = askedOf(plan, { ...flow, ...(port !== undefined && { port }) });
    const said = decide({ ...flow, ...(destinationPort !== undefined && { destinationPort }), ...types });
    if ((said.provisional === true) !== (asked !== undefined)) {
      return `${JSON.stringify(probe)}: asked ${asked}, evaluator ${JSON.stringify(said)}`;
    }
    const got: Sighting[] = byMarker.get(probe.marker) ?? [];
    const left = got.some(({ where, kind }) => where === 'outside' && kind === 'packet');
    const answer = got.some(({ where, kind }) => where === 'inside' && kind !== 'packet');
    const observed = left ? 'accept' : answer ? 'reject' : 'drop';
    const mark = marks.get(flowKey(source, destination, protocol, portOf(probe)));
    const what = `${JSON.stringify(probe)}: asked ${asked}, kernel ${observed}, mark 0x${mark?.toString(16)}`;
    if (asked !== undefined) {
      seen[asked]++;
      const number = asked === 'first' ? NUMBER_READ_FIRST : NUMBER_READ_BYTES;
      if (mark !== CT_READ + (number << CT_RULE_SHIFT) || !left) return what;
      continue;
    }
    const { verdict, rule, wouldHave, redirect, reason } = said;
    seen[verdict]++;
    if (wouldHave !== undefined) seen.audited++;
    if (redirect !== undefined) seen.redirected++;
    if (reason === 'redirect') seen.blocked++;
    if (observed !== verdict) return `${what}, evaluator ${verdict}`;
    if (verdict !== 'accept') continue;
    const id = rule ?? 'default-action';
    if (mark === undefined || (mark & CT_DECIDED) === 0 || ruleNumberOf(mark) !== ruleNumbers.get(id)) {
      return `${what}, evaluator ${id} (${ruleNumbers.get(id)})`;
    }
  }
  return undefined;
}

t.test('what is asked, and what is not, for random policies', async (t) => {
  const rare = (): string[] =>
    Object.entries(seen).flatMap(([what, count]) => (count > 5 || what === 'blocked' ? [] : [what]));
  for (const on of rigs) {
    let seed = 0;
    const last = on === rigs.at(-1);
    await assertUntilMet(
      fc.asyncProperty(randomAskingPlan, async (plan) => {
        const problem = await round(plan, seed++, on);
        if (problem !== undefined) throw new Error(problem);
      }),
      () => !last || rare().length === 0,
      { numRuns: on.mode === 'Direct' ? Math.ceil(RUNS / 2) : RUNS, endOnFailure: true },
    );
  }
  t.same(rare(), [], 'all was met');
});

t.test('many rules in a row, of which some ask: maps, as many as of one', async (t) => {
  const plan = basePlan();
  const count = 400;
  for (let at = 0; at < count; at++) {
    plan.services[`x/s${at}`] = {
      addresses: [`192.0.${at >> 8}.${at & 255}/32`, `2001:db8:7::${at.toString(16)}/128`],
      ports: [{ protocol: PROTOCOL_TCP, ports: [[80, 443]] }],
      ...(at % 3 === 0 && { names: [`n${at}.example.test`] }),
      ...(at % 2 === 0 && { checks: [{ protocol: PROTOCOL_TCP, ports: [[443, 443]], application: 'TLS' }] }),
    };
    const action = (['accept', 'accept-decisively', 'drop', 'reject'] as const)[at % 4] ?? 'drop';
    addRule(plan, 'g-pay', { context: 'namespace', action, services: [`x/s${at}`], name: `r${at}` });
  }
  addRule(plan, 'g-pay', { context: 'service', action: 'accept', services: '*', name: 'last' });
  const { ruleset } = compileGateway(plan);
  const layoutIn = (set: string): SetLayout | undefined => {
    const there = ruleset.sets[set];
    return there && layoutOf(shapeOf(there));
  };
  const ours = Object.entries(ruleset.chains).filter(([name]) => /^(ask|group|read)/.test(name));
  const rules = ours.flatMap(([, chain]) => chain.rules);
  const foreign = rules.filter((text) => compileRule(new NetlinkWriter(), text.split(' '), layoutIn) === undefined);
  t.same(foreign, [], 'nothing of it is for the nft command');
  const asking = Object.entries(ruleset.chains).filter(([name]) => name.startsWith('ask_namespace_'));
  t.ok(asking.length === 1 && (asking[0]?.[1].rules.length ?? 0) <= 6, 'a few look-ups');
  for (const on of rigs) {
    await on.reset();
    t.equal(await round(plan, 0, on), undefined);
    const listed = [`192.0.0.7`, '192.0.1.8', '192.0.0.6', '2001:db8:7::9', '2001:db8:7::c', WEB[4]];
    for (const destination of listed) {
      for (const destinationPort of [80, 443, 444]) {
        const source = PODS.pay[destination.includes(':') ? 6 : 4];
        const probe = { source, destination, protocol: PROTOCOL_TCP, destinationPort, marker: nextMarker++ };
        on.fromNode(probePacket(probe));
        await on.collect();
        const asked = askedOf(plan, { source, destination, protocol: PROTOCOL_TCP, port: destinationPort });
        const flow = (await on.flows()).find(({ original }) => original.sourcePort === 1024 + (probe.marker % 60_000));
        const read = flow !== undefined && (flow.mark & CT_READ) !== 0;
        t.equal(read, asked !== undefined, `${destination} ${destinationPort}: ${asked}`);
      }
    }
  }
});

t.test('what has to be read before it is known whether it is denied is not redirected', async (t) => {
  const named = { addresses: [], names: ['**.example.test'], ports: [{ protocol: PROTOCOL_TCP, ports: null }] };
  const tls = { protocol: PROTOCOL_TCP, ports: [[443, 444]] as [number, number][], application: 'TLS' as const };
  for (const mode of [undefined, 'Audit' as const]) {
    const plan = basePlan();
    plan.services['x/named'] = { ...named, checks: [tls] };
    plan.services['x/there'] = { addresses: ['192.0.2.200/32'], ports: null, checks: [tls] };
    addRule(plan, 'g-pay', { context: 'cluster', action: 'drop', services: ['x/named'], name: 'veto' });
    addRule(plan, 'g-rev', { context: 'cluster', action: 'reject', services: ['x/there'], name: 'there' });
    for (const group of ['g-pay', 'g-rev']) {
      addRule(plan, group, { context: 'service', action: 'accept', services: '*', name: 'away' });
    }
    for (const [id, rule] of Object.entries(plan.rules)) {
      if (id === 'service/away') rule.redirect = { address: '192.0.2.200' };
      else if (mode !== undefined) rule.mode = mode;
    }
    for (const on of rigs) {
      const before = seen.blocked;
      await on.reset();
      for (let seed = 0; seed < 3; seed++) t.equal(await round(plan, seed, on), undefined, `${on.mode} ${mode}`);
      t.equal(seen.blocked > before, mode === undefined, `${on.mode} ${mode}: ${seen.blocked - before} were not`);
    }
  }
});

t.test('strict: what is to be read is asked about at its first packet', async (t) => {
  const plan = basePlan();
  if ('pool' in plan.settings) plan.settings.pool.dns = { resolvers: [], strict: true };
  const tls = { protocol: PROTOCOL_TCP, ports: [[443, 443]] as [number, number][], application: 'TLS' as const };
  plan.services['x/named'] = { addresses: [], names: ['**.example.test'], ports: [tls], checks: [tls] };
  addRule(plan, 'g-pay', { context: 'namespace', action: 'accept-decisively', services: ['x/named'], name: 'named' });
  await rig.reset();
  await rig.apply(plan);
  for (const family of families) {
    const probe = { source: PODS.pay[family], destination: WEB[family], protocol: PROTOCOL_TCP, destinationPort: 443 };
    rig.fromNode(probePacket({ ...probe, marker: nextMarker++ }));
    await rig.collect();
    const flow = (await rig.flows()).find(({ original }) => original.destination === WEB[family]);
    t.equal(flow?.mark, CT_READ + (NUMBER_READ_FIRST << CT_RULE_SHIFT), `v${family}`);
  }
});
