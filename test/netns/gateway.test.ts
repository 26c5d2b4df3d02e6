/**
 * The gateway's data path, packets in and packets out (topology: gateway-rig.ts): agreement of the real ruleset with
 * the evaluator for random policies and for changes between them; forged, stray and malformed packets; leaks;
 * restarts. In both modes of steering, the mutants in one.
 */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import t from 'tap';
import { contexts, families, type GatewayPlan } from '../../api/plan.ts';
import { counterName, type DropReason } from '../../api/reasons.ts';
import { compilePolicy } from '../../policy/evaluate.ts';
import { PROTOCOL_TCP, PROTOCOL_UDP, TCP_ACK } from '../../wire/ip.ts';
import { addRule, basePlan, DESTINATIONS, directPlan, EGRESS, PODS, PORTS, randomPlan, WEB } from './gateway-plans.ts';
import {
  GATEWAY_INSIDE,
  GatewayRig,
  icmpOf,
  NODES,
  NODES6,
  type Probe,
  probePacket,
  ROUTER,
  type Sighting,
} from './gateway-rig.ts';

t.setTimeout(570_000);
const RUNS = Number(process.env.SLUICE_PROPERTY_RUNS ?? 40);
const state = mkdtempSync(join(tmpdir(), 'sluice-test-'));
const directState = mkdtempSync(join(tmpdir(), 'sluice-test-'));
const rig = await GatewayRig.create('gw', state);
/** With as many maps as can be. */
const directRig = await GatewayRig.create('gd', directState, 'Direct', { compared: 1 });
const rigs = [rig, directRig];
t.teardown(async () => {
  for (const each of rigs) await each.close();
  for (const directory of [state, directState]) rmSync(directory, { recursive: true });
});
const planFor = (on: GatewayRig, plan: GatewayPlan): GatewayPlan => (on.mode === 'Direct' ? directPlan(plan) : plan);

let nextMarker = 1;
const marker = (): number => nextMarker++;

/** Every pod to every destination by every protocol, thinned. */
function probes(seed: number): Probe[] {
  const all: Probe[] = [];
  for (const family of families) {
    for (const pod of ['pay', 'rev'] as const) {
      for (const destination of DESTINATIONS[family]) {
        all.push({ source: PODS[pod][family], destination, protocol: icmpOf(family), marker: 0 });
        for (const protocol of [PROTOCOL_TCP, PROTOCOL_UDP]) {
          for (const destinationPort of PORTS) {
            all.push({ source: PODS[pod][family], destination, protocol, destinationPort, marker: 0 });
          }
        }
      }
    }
  }
  return all.filter((_, at) => (at * 7 + seed) % 3 === 0).map((probe) => ({ ...probe, marker: marker() }));
}

/** The first difference between what the evaluator says and what the wires showed. */
function disagreement(plan: GatewayPlan, sent: Probe[], seen: Sighting[]): string | undefined {
  const evaluator = compilePolicy(plan);
  const byMarker = new Map<number, Sighting[]>();
  for (const sighting of seen) byMarker.set(sighting.marker, [...(byMarker.get(sighting.marker) ?? []), sighting]);
  for (const probe of sent) {
    const { verdict, rule } = evaluator.decide(probe);
    const got = byMarker.get(probe.marker) ?? [];
    const left = got.find(({ where, kind }) => where === 'outside' && kind === 'packet');
    const answer = got.find(({ where, kind }) => where === 'inside' && kind !== 'packet');
    const observed = left ? 'accept' : answer ? 'reject' : 'drop';
    const what = `${JSON.stringify(probe)}: evaluator ${verdict} (${rule ?? 'default'}), kernel ${observed}`;
    if (observed !== verdict) return what;
    if (left === undefined) {
      if (answer && (answer.kind === 'reset') !== (probe.protocol === PROTOCOL_TCP))
        return `${what}, by ${answer.kind}`;
      continue;
    }
    const pod = Object.entries(PODS).find(([, a]) => Object.values(a).includes(probe.source as never))?.[0] as
      | 'pay'
      | 'rev';
    const family = probe.source.includes(':') ? 6 : 4;
    if (left.packet.source !== EGRESS[pod][family]) return `${what}, with source ${left.packet.source}`;
  }
  return undefined;
}

async function round(plan: GatewayPlan, seed: number, on = rig): Promise<string | undefined> {
  await on.apply(planFor(on, plan));
  const sent = probes(seed);
  for (const probe of sent) on.fromNode(probePacket(probe));
  return disagreement(plan, sent, await on.collect());
}

t.test('evaluator and kernel agree, for random policies and for changes from one to the next', async (t) => {
  for (const on of rigs) {
    const runs = on.mode === 'Direct' ? Math.ceil(RUNS / 2) : RUNS;
    let seed = 0;
    await fc.assert(
      fc.asyncProperty(randomPlan, async (plan) => {
        const problem = await round(plan, seed++, on);
        if (problem !== undefined) throw new Error(problem);
      }),
      { numRuns: runs, endOnFailure: true },
    );
    t.pass(`${on.mode}: ${runs} policies, each reached from the one before`);
  }
});

t.test('several addresses with several ports, in every context and with every action', async (t) => {
  for (const context of contexts) {
    for (const action of ['accept', 'accept-decisively', 'drop', 'reject'] as const) {
      const plan = basePlan();
      plan.services['x/both'] = {
        addresses: ['198.51.100.80/32', '2001:db8:100::80/128'],
        ports: [6, 17].map((protocol) => ({
          protocol,
          ports: [[80, 80] as [number, number], [443, 443] as [number, number]],
        })),
      };
      addRule(plan, 'g-pay', { context, action, services: ['x/both'], name: 'both' });
      addRule(plan, 'g-pay', { context, action: 'drop', services: '*', name: 'last' });
      addRule(plan, 'g-pay', { context: 'service', action: 'accept', services: '*', name: 'open' });
      t.equal(await round(plan, 0), undefined, `${context} ${action}`);
    }
  }
});

/**
 * Ways in which the compiler could be wrong, as changes to the script that it writes. Each must be caught by the
 * rounds above within MUTANT_ROUNDS random policies.
 */
const MUTANT_ROUNDS = 40;
const PERMIT = 'ct mark set 0x00000100 meta mark set 0x00000100 accept';
const swap = (a: string, b: string) => (script: string) =>
  script.replaceAll(a, '\0').replaceAll(b, a).replaceAll('\0', b);
/** Of two contexts that a group's chain walks one after the other. */
const swapJumps = (first: string, second: string) => (script: string) =>
  script.replace(
    new RegExp(`^(add rule inet sluice group_\\w+) (jump ${first}_\\w+)(.*)\n\\1 (jump ${second}_\\w+)$`, 'gm'),
    '$1 $4$3\n$1 $2',
  );
const lines = (keep: (line: string) => boolean) => (script: string) => script.split('\n').filter(keep).join('\n');
const mutants: [string, (script: string) => string][] = [
  ['a port range one too long', (s) => s.replaceAll('8000-8100', '8000-8101')],
  ['a port one too high', (s) => s.replace(/ th dport 443\b/g, ' th dport 444')],
  ['a port one too high in a set', (s) => s.replace(/ \. 6 \. 443\b/g, ' . 6 . 444')],
  ['TCP taken for UDP', swap('meta l4proto 6 ', 'meta l4proto 17 ')],
  ['TCP taken for UDP in a set', swap(' . 6 . ', ' . 17 . ')],
  ['a prefix one address short', (s) => s.replaceAll('-198.51.100.127', '-198.51.100.126')],
  ['a v6 prefix one address short', (s) => s.replaceAll('-2001:db8:100::7f', '-2001:db8:100::7e')],
  ['cluster and namespace contexts swapped', swapJumps('cluster', 'namespace')],
  ['namespace and service contexts swapped', swapJumps('namespace', 'service')],
  ['the service context missing', lines((line) => !line.includes(' jump service_'))],
  ['the v6 arm of ports missing', lines((line) => !/ip6 daddr \S+ meta l4proto \d+ th dport/.test(line))],
  ['the v6 arm of ports missing in a set', lines((line) => !line.includes('ip6 daddr . meta l4proto . th dport'))],
  ['the v4 arm of whole protocols missing', lines((line) => !/ip daddr \S+ meta l4proto \d+ (meta|ct) /.test(line))],
  ['the v4 arm of whole protocols missing in a set', lines((line) => !/ip daddr \. meta l4proto @/.test(line))],
  ['accept above the service context permits', (s) => s.replace(/^(add rule .*) return$/gm, '$1 accept')],
  [
    'a rule that goes on instead of dropping',
    (s) => s.replace(/^(add rule .* service_\w+ .*) meta mark set \S+ goto \S+$/gm, '$1 continue'),
  ],
  ['reject answers nothing', (s) => s.replaceAll(/ reject with \S+( \S+)?$/gm, ' drop')],
  [
    'the default action the other way',
    (s) => s.replace(/^(add rule inet sluice group_\w+) meta mark set \S+ goto \S+$/gm, `$1 ${PERMIT}`),
  ],
  [
    'permitted too early: whatever comes from the tunnel',
    (s) => s.replace(/^(add rule inet sluice walk iifname "sluice-vx") goto \S+(.*)$/gm, `$1 ${PERMIT}$2`),
  ],
  ['reviews leaves with the address of billing', (s) => s.replaceAll(': 203.0.113.102', ': 203.0.113.101')],
  ['all v6 left untranslated', lines((line) => !line.includes('snat ip6'))],
  ['one group for everybody', (s) => s.replace(/(group[46] \{[^}]*?: )(0x\w+)([^}]*?)0x\w+/g, '$1$2$3$2')],
];

/** Of the maps in which many rules are looked up. */
const mapMutants: typeof mutants = [
  ['a port range one too short', (s) => s.replaceAll(' 8000-8100 : ', ' 8000-8099 : ')],
  ['TCP taken for UDP', swap(' . 6 . ', ' . 17 . ')],
  ['the v6 maps missing', lines((line) => !/ip6 daddr .* vmap @/.test(line))],
  ['the map of types missing', lines((line) => !/daddr \. icmp type .* vmap @/.test(line))],
  [
    'the verdicts of two rules swapped',
    (s) => s.replace(/(_ports4 \{[^}]*?)(verdict_\w+)([^}]*?)(?!\2)(verdict_\w+)/g, '$1$4$3$2'),
  ],
];

t.test('every mutant of the ruleset is caught', async (t) => {
  const plans = fc.sample(randomPlan, { seed: 7, numRuns: MUTANT_ROUNDS });
  for (const [on, [name, mutate]] of [
    ...mutants.map((mutant) => [rig, mutant] as const),
    ...mapMutants.map((mutant) => [directRig, mutant] as const),
  ]) {
    let touched = false;
    on.mutate = (script) => {
      const mutated = mutate(script);
      touched ||= mutated !== script;
      return mutated;
    };
    let caught: string | undefined;
    await on.reset();
    for (let at = 0; at < plans.length && caught === undefined; at++) {
      caught = await round(plans[at] as GatewayPlan, at, on).catch((error: Error) => `does not load: ${error.message}`);
    }
    t.ok(touched, `${name}: the mutation applies`);
    t.match(caught, /evaluator/, `${name}: caught by a packet`);
    on.mutate = undefined;
  }
  await directRig.reset();
  await rig.reset();
});

/** billing may reach the web; nothing else is said. */
function webPlan(): GatewayPlan {
  const plan = basePlan();
  plan.services['x/web'] = { addresses: [`${WEB[4]}/32`, `${WEB[6]}/128`], ports: null };
  addRule(plan, 'g-pay', { context: 'namespace', action: 'accept-decisively', services: ['x/web'], name: 'web' });
  return plan;
}

/** Runs `send`, and says by how much each counter grew and what was seen. */
async function watch(send: () => void, on = rig): Promise<{ grew: Record<string, number>; seen: Sighting[] }> {
  const before = await on.counters();
  send();
  const seen = await on.collect();
  const after = await on.counters();
  const grew = Object.fromEntries(
    Object.entries(after).flatMap(([name, value]) =>
      value > (before[name] ?? 0) ? [[name, value - (before[name] ?? 0)]] : [],
    ),
  );
  return { grew, seen };
}

for (const on of rigs)
  t.test(`${on.mode}: packets that must not pass are dropped and counted by kind`, async (t) => {
    await on.apply(planFor(on, webPlan()));
    for (const family of families) {
      const other = family === 4 ? 6 : 4;
      const tcp = (source: string, destination: string, flags?: number): Uint8Array =>
        probePacket({
          source,
          destination,
          protocol: PROTOCOL_TCP,
          destinationPort: 80,
          marker: marker(),
          ...(flags && { flags }),
        });
      const pay = PODS.pay[family];
      const web = WEB[family];
      const node = family === 4 ? NODES.a : NODES6.a;
      const unknown = family === 4 ? '10.244.1.99' : 'fd00:244:1::99';
      const tunnelCases: [string, DropReason, () => void][] = [
        [
          'an inner source that another node holds',
          'spoofed-source',
          () => on.fromNode(tcp(pay, web), { node: NODES.b }),
        ],
        ['a sender that is no node', 'foreign-tunnel', () => on.fromNode(tcp(pay, web), { node: '10.0.0.77' })],
        ['a source of a workload beside the tunnel', 'spoofed-source', () => on.fromNode(tcp(pay, web), { raw: true })],
        ['a source of a workload from outside, to the outside', 'spoofed-source', () => on.fromOutside(tcp(pay, web))],
        ['another VNI', 'foreign-tunnel', () => on.fromNode(tcp(pay, web), { vni: 1 })],
        ['an inner ARP frame', 'bad-tunnel-frame', () => on.fromNode(tcp(pay, web), { etherType: 0x0806 })],
      ];
      const elsewhere = family === 4 ? '203.0.113.32' : '2001:db8:113::32';
      const directCases: [string, DropReason, () => void][] = [
        ['a stranger on the segment to another gateway', 'unknown-source', () => on.fromNode(tcp(unknown, elsewhere))],
        ['a node that takes the gateway for its router', 'unknown-source', () => on.fromNode(tcp(node, web))],
      ];
      const cases: [string, DropReason, () => void][] = [
        ...(on.mode === 'Direct' ? directCases : tunnelCases),
        ['a source that nobody has', 'unknown-source', () => on.fromNode(tcp(unknown, web))],
        [
          'a workload without an egress IP',
          'no-egress-ip',
          () => on.fromNode(tcp(PODS.job[family], web), { node: NODES.b }),
        ],
        ['a workload to an egress IP', 'hairpin', () => on.fromNode(tcp(pay, EGRESS.rev[family]))],
        [
          'a workload to another gateway',
          'hairpin',
          () => on.fromNode(tcp(pay, family === 4 ? '203.0.113.32' : '2001:db8:113::32')),
        ],
        [
          'a workload to this gateway',
          'hairpin',
          () => on.fromNode(tcp(pay, family === 4 ? '203.0.113.31' : '2001:db8:113::31')),
        ],
        ['a workload to the cluster', 'cluster-destination', () => on.fromNode(tcp(pay, PODS.rev[family]))],
        ['a segment in mid-stream', 'stray', () => on.fromNode(tcp(pay, web, TCP_ACK))],
        ['impossible flags', 'invalid', () => on.fromNode(tcp(pay, web, 0x03))],
        [
          'a packet to an egress IP that belongs to no flow',
          'stray',
          () => on.fromOutside(tcp(web, EGRESS.pay[family])),
        ],
        [
          'a segment in mid-stream to an egress IP',
          'stray',
          () => on.fromOutside(tcp(web, EGRESS.pay[family], TCP_ACK)),
        ],
        ['a new flow from outside to a pod', 'unsolicited', () => on.fromOutside(tcp(web, pay))],
      ];
      for (const [what, reason, send] of cases) {
        const { grew, seen } = await watch(send, on);
        // Without a tunnel the reset that the kernel would send ends in a black hole, before any hook.
        const uncounted = on.mode === 'Direct' && what === 'a segment in mid-stream to an egress IP';
        t.strictSame(
          grew,
          uncounted ? {} : { [counterName(reason)]: 1 },
          `v${family}: ${what} is counted as ${reason}, and as nothing else`,
        );
        t.notOk(
          seen.some(({ kind, where }) => kind === 'packet' && where === 'outside'),
          `v${family}: ${what} does not leave`,
        );
        const answers = seen.filter(({ kind }) => kind !== 'packet').length;
        t.equal(
          answers,
          reason === 'hairpin' ? 1 : 0,
          `v${family}: ${what}: ${reason === 'hairpin' ? 'an answer' : 'silence'}`,
        );
      }
      t.ok(PODS.pay[other], 'both families are in the table');
      if (on.mode !== 'Direct') continue;
      const echo = marker();
      const to = family === 4 ? GATEWAY_INSIDE : 'fd00:10::64';
      const { grew, seen } = await watch(
        () => on.fromNode(probePacket({ source: node, destination: to, protocol: icmpOf(family), marker: echo })),
        on,
      );
      t.same(grew, {}, `v${family}: what a node has to say to the gateway itself`);
      t.equal(seen.find((s) => s.marker === echo)?.packet.source, to, `v${family}: is answered`);
    }
  });

for (const on of rigs)
  t.test(
    `${on.mode}: replies come back to the right node, changes end what they forbid and nothing else`,
    async (t) => {
      const policy = webPlan();
      addRule(policy, 'g-rev', {
        context: 'namespace',
        action: 'accept-decisively',
        services: ['x/web'],
        name: 'rev-web',
      });
      const plan = planFor(on, policy);
      await on.apply(plan);
      for (const family of families) {
        const source = PODS.pay[family];
        const destination = WEB[family];
        const sent = { source, destination, protocol: PROTOCOL_UDP, destinationPort: 53, marker: marker() };
        on.fromNode(probePacket(sent));
        const out = (await on.collect()).find((s) => s.marker === sent.marker && s.where === 'outside');
        t.equal(out?.packet.source, EGRESS.pay[family], `v${family}: leaves with billing's address`);
        const answer = marker();
        on.fromOutside(
          probePacket({
            source: destination,
            destination: EGRESS.pay[family],
            protocol: PROTOCOL_UDP,
            sourcePort: 53,
            destinationPort: out?.packet.sourcePort ?? 0,
            marker: answer,
          }),
        );
        const back = (await on.collect()).filter((s) => s.marker === answer);
        t.same(
          back.map(({ where, node, packet }) => [where, node, packet.destination]),
          [['inside', NODES.a, source]],
          `v${family}: the answer comes back to its node, and to nobody else`,
        );
        const reply = marker();
        on.fromOutside(
          probePacket({
            source: destination,
            destination: EGRESS.pay[family],
            protocol: PROTOCOL_UDP,
            marker: reply,
            destinationPort: 0,
          }),
        );
        t.strictSame(
          (await on.collect()).filter((s) => s.marker === reply),
          [],
          `v${family}: a datagram to another port of the egress IP goes nowhere`,
        );
      }
      const revFlow = (): void => {
        for (const family of families) {
          on.fromNode(
            probePacket({
              source: PODS.rev[family],
              destination: WEB[family],
              protocol: PROTOCOL_UDP,
              destinationPort: 53,
              marker: 77,
            }),
          );
        }
      };
      revFlow();
      await on.collect();
      const mine = async (): Promise<string[]> =>
        (await on.flows())
          .map(({ id, original }) => `${original.source} ${id}`)
          .filter((f) => /^(10\.244|fd00:244)/.test(f))
          .sort();
      const before = await mine();
      t.ok(before.length >= 4, 'flows of billing and of reviews are established');

      await on.restarted(on === rig ? state : directState).apply(plan);
      t.strictSame(await mine(), before, 'a restarted gateway keeps every connection');

      const forbidden = structuredClone(plan);
      forbidden.groups['g-pay'] = { namespace: 'billing', rules: { cluster: [], namespace: [], service: [] } };
      await on.apply(forbidden);
      t.strictSame(
        await mine(),
        before.filter((f) => /^(10\.244\.1\.6|fd00:244:1::6) /.test(f)),
        'only flows of billing ended',
      );
    },
  );

t.test('a source that is not translated does not leave, whatever the reason', async (t) => {
  for (const on of rigs) {
    await on.reset();
    on.mutate = lines((line) => !/ snat ip6? to /.test(line));
    await on.apply(planFor(on, webPlan()));
    for (const family of families) {
      const sent = { source: PODS.pay[family], destination: WEB[family], protocol: PROTOCOL_TCP, destinationPort: 80 };
      const { grew, seen } = await watch(() => on.fromNode(probePacket({ ...sent, marker: marker() })), on);
      t.same([grew, seen], [{ drop_leak: 1 }, []], `${on.mode}, v${family}`);
    }
    on.mutate = undefined;
    await on.apply(planFor(on, webPlan()));
    await on.nft.runScript(`table inet foreign {
      chain postrouting { type nat hook postrouting priority srcnat - 5; policy accept; oifname "outside" masquerade; }
    }`);
    for (const family of families) {
      const sent = { source: PODS.pay[family], destination: WEB[family], protocol: PROTOCOL_UDP, destinationPort: 53 };
      const { grew, seen } = await watch(() => on.fromNode(probePacket({ ...sent, marker: marker() })), on);
      t.same([grew, seen], [{ drop_leak: 1 }, []], `${on.mode}, v${family}: somebody else translates it first`);
    }
    await on.nft.drop('foreign');
    await on.nft.runScript(`table inet foreign {
      chain prerouting { type nat hook prerouting priority dstnat; policy accept; udp dport 54 redirect to :53; }
      chain raw { type filter hook prerouting priority raw; policy accept; udp dport 55 notrack; }
    }`);
    for (const family of families) {
      for (const [destinationPort, what] of [
        [54, 'redirects'],
        [55, 'untracks'],
      ] as const) {
        const sent = { source: PODS.pay[family], destination: WEB[family], protocol: PROTOCOL_UDP, destinationPort };
        on.fromNode(probePacket({ ...sent, marker: marker() }));
        const left = (await on.collect()).filter(({ where }) => where === 'outside');
        t.strictSame(left, [], `${on.mode}, v${family}: somebody else ${what} it`);
      }
    }
    await on.nft.drop('foreign');
    await on.nft.drop('sluice');
    for (const family of families) {
      const sent = { source: PODS.pay[family], destination: WEB[family], protocol: PROTOCOL_TCP, destinationPort: 80 };
      on.fromNode(probePacket({ ...sent, marker: marker() }));
    }
    t.same(await on.collect(), [], `${on.mode}: without the table`);
    await on.reset();
  }
});

t.test('the gateway’s own neighbour discovery is no leak', async (t) => {
  for (const on of rigs) {
    await on.reset();
    await on.apply(planFor(on, webPlan()));
    await on.discoverNeighbour();
    t.strictSame(
      Object.entries(await on.counters()).filter(([name, packets]) => name.startsWith('drop_') && packets > 0),
      [],
      on.mode,
    );
  }
});

t.test('an address that changes hands: not even a flow that could not be ended leaves with it', async (t) => {
  for (const on of rigs) {
    await on.reset();
    const plan = planFor(on, webPlan());
    await on.apply(plan);
    const sent = families.map((family) => ({
      source: PODS.pay[family],
      destination: WEB[family],
      protocol: PROTOCOL_UDP,
      destinationPort: 53,
      // Of which the source port is made: the same flow each time.
      marker: marker(),
    }));
    const send = (): void => {
      for (const probe of sent) on.fromNode(probePacket(probe));
    };
    const sources = async (): Promise<string[]> =>
      (await on.collect()).filter(({ where }) => where === 'outside').map(({ packet }) => packet.source);
    send();
    t.strictSame(await sources(), [EGRESS.pay[4], EGRESS.pay[6]], `${on.mode}: before`);
    const moved = structuredClone(plan);
    const pay = moved.workloads['uid-pay'];
    for (const family of families) Object.assign(pay?.egress[family] ?? {}, { address: EGRESS.rev[family] });
    on.cannotEndFlows = true;
    await t.rejects(on.apply(moved), /no connection table/);
    const { grew, seen } = await watch(send, on);
    t.same([grew, seen], [{ drop_leak: 2 }, []], `${on.mode}: the flows are still there, and leak nothing`);
    on.cannotEndFlows = false;
    await on.apply(moved);
    send();
    t.strictSame(await sources(), [EGRESS.rev[4], EGRESS.rev[6]], `${on.mode}: ended, they begin anew`);
  }
});

/** Of pods, as `source destination`. */
async function podFlows(on: GatewayRig): Promise<string[]> {
  return (await on.flows())
    .filter(({ original }) => Object.values(PODS).some((pod) => Object.values(pod).includes(original.source as never)))
    .map(({ id, original }) => `${original.source} ${original.destination} ${id}`)
    .sort();
}

t.test(
  'destinations that nobody may reach any more: flows to there end, no other, and none when there are less',
  async (t) => {
    const there = { 4: DESTINATIONS[4][0], 6: DESTINATIONS[6][0] };
    const ranges = families.map((family) => `${WEB[family]}/${family === 4 ? 32 : 128}`);
    const ways: [string, DropReason, (plan: GatewayPlan) => void][] = [
      [
        'clusterCIDRs',
        'cluster-destination',
        ({ settings }) => 'pool' in settings && settings.pool.clusterCIDRs.push(...ranges),
      ],
      [
        'excludedCIDRs',
        'cluster-destination',
        ({ settings }) => 'pool' in settings && settings.pool.excludedCIDRs.push(...ranges),
      ],
      ['a gateway’s addresses', 'hairpin', ({ gateways }) => gateways['gw-b']?.addresses.push(...Object.values(WEB))],
    ];
    for (const on of rigs) {
      for (const [what, reason, widen] of ways) {
        await on.reset();
        const plan = planFor(on, basePlan('Accept'));
        await on.apply(plan);
        const flows = families.flatMap((family) =>
          [PODS.pay[family], PODS.rev[family]].flatMap((source) =>
            [WEB[family], there[family]].map((destination) => ({
              source,
              destination,
              protocol: PROTOCOL_UDP,
              destinationPort: 53,
              marker: marker(),
            })),
          ),
        );
        for (const probe of flows) on.fromNode(probePacket(probe));
        await on.collect();
        const before = await podFlows(on);
        t.equal(before.length, flows.length, `${on.mode}, ${what}: flows are there`);
        const wider = structuredClone(plan);
        widen(wider);
        await on.apply(wider);
        const others = before.filter((flow) => !Object.values(WEB).some((web) => flow.includes(` ${web} `)));
        t.strictSame(await podFlows(on), others, 'those to there are gone, and they alone');
        const { grew, seen } = await watch(() => {
          for (const probe of flows) on.fromNode(probePacket(probe));
        }, on);
        t.strictSame(grew, { [counterName(reason)]: 4 }, 'what they send now is dropped by its reason');
        t.equal(
          seen.filter(({ where, kind }) => where === 'outside' && kind === 'packet').length,
          4,
          'the rest leaves',
        );
        await on.apply(plan);
        t.strictSame(await podFlows(on), others, 'a narrowing ends nothing');
        for (const probe of flows) on.fromNode(probePacket(probe));
        await on.collect();
        t.equal((await podFlows(on)).length, flows.length, 'and lets them begin anew');
      }
    }
  },
);

t.test('an address that two workloads claim is nobody’s, until one of them has it', async (t) => {
  for (const on of rigs) {
    await on.reset();
    const alone = planFor(on, basePlan('Accept'));
    const both = structuredClone(alone);
    const rev = both.workloads['uid-rev'];
    if (rev === undefined) throw new Error('no workload');
    // Of another namespace, with another group and egress IP; and a manifest that says all twice.
    const addresses = Object.values(PODS.pay).flatMap((address) => [address, address]);
    both.workloads['uid-thief'] = { ...rev, uid: 'uid-thief', name: 'thief', addresses };
    for (const node of Object.values(both.nodes)) node.addresses.push(...node.addresses);
    const after = structuredClone(both);
    delete after.workloads['uid-pay'];
    const sent = families.flatMap((family) =>
      (['pay', 'rev'] as const).map((pod) => ({
        source: PODS[pod][family],
        destination: WEB[family],
        protocol: PROTOCOL_UDP,
        destinationPort: 53,
        marker: marker(),
      })),
    );
    const leave = async (): Promise<string[]> => {
      for (const probe of sent) on.fromNode(probePacket(probe));
      const seen = await on.collect();
      return seen.flatMap(({ where, packet }) => (where === 'outside' ? packet.source : [])).sort();
    };
    const [pay, thief] = [EGRESS.pay, EGRESS.rev];
    const rows: [string, GatewayPlan, string[]][] = [
      ['a first load', both, [EGRESS.rev[4], EGRESS.rev[6]]],
      ['one goes', alone, [pay[4], EGRESS.rev[4], pay[6], EGRESS.rev[6]]],
      ['it comes again', both, [EGRESS.rev[4], EGRESS.rev[6]]],
      ['the other goes', after, [thief[4], EGRESS.rev[4], thief[6], EGRESS.rev[6]]],
    ];
    for (const [what, plan, sources] of rows) {
      await on.apply(plan);
      t.strictSame(await leave(), sources.sort(), `${on.mode}: ${what}`);
    }
    await on.apply(both);
    t.strictSame(
      (await podFlows(on)).filter((flow) => Object.values(PODS.pay).some((address) => flow.startsWith(`${address} `))),
      [],
      `${on.mode}: flows from there end`,
    );
    await on.restarted(on === rig ? state : directState).apply(both);
    t.strictSame(await leave(), [EGRESS.rev[6], EGRESS.rev[4]], `${on.mode}: a restart`);
  }
});

t.test('element updates: a pod that comes or goes changes elements, never a chain', async (t) => {
  const plan = webPlan();
  await rig.apply(plan);
  const chains = async (): Promise<string[]> => [...(await rig.nft.list('inet', 'sluice')).chains.keys()].sort();
  const before = await chains();
  const more = structuredClone(plan);
  const pay = more.workloads['uid-pay'];
  if (pay) more.workloads['uid-pay2'] = { ...pay, uid: 'uid-pay2', addresses: ['10.244.1.50', 'fd00:244:1::50'] };
  await rig.apply(more);
  t.strictSame(await chains(), before);
  const probe = {
    source: '10.244.1.50',
    destination: WEB[4],
    protocol: PROTOCOL_TCP,
    destinationPort: 80,
    marker: marker(),
  };
  rig.fromNode(probePacket(probe));
  t.equal(
    (await rig.collect()).find((s) => s.marker === probe.marker)?.packet.source,
    EGRESS.pay[4],
    'the new pod gets out',
  );
  await rig.apply(plan);
  const { grew } = await watch(() => rig.fromNode(probePacket({ ...probe, marker: marker() })));
  t.strictSame(grew, { drop_unknown_source: 1 }, 'gone from the plan, its packets are dropped');
  t.ok(ROUTER[4]);
});
