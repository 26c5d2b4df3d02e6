/**
 * The way of the packets of flows that are read, through the gateway's real rules, the table sluice_inspect and a queue that the
 * test holds (read-rig.ts): what is queued and with which mark, what passes by, what a verdict does, and that no byte
 * leaves when any part is missing. Root.
 */
import { execFileSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import type { Application } from '../../api/application.ts';
import {
  CT_DECIDED,
  CT_READ,
  GATEWAY_CHECKED_MARK,
  GATEWAY_PROHIBIT_MARK,
  GATEWAY_RESET_MARK,
  INSPECT_DNS_MARK,
  INSPECT_FIRST_MARK,
  INSPECT_LIFE_MARK,
  INSPECT_PASSED_MARK,
  INSPECT_QUEUE,
  INSPECT_QUEUE_MARK,
  INSPECT_REPLY_MARK,
  INSPECT_VERDICT_MARK,
  NUMBER_READ_BYTES,
  NUMBER_READ_FIRST,
} from '../../api/names.ts';
import { type Family, families, type GatewayPlan, type RuleLimits } from '../../api/plan.ts';
import { compileGateway } from '../../gateway/compile.ts';
import { inspectTable, noInspectTable, quicPorts } from '../../gateway/inspect/table.ts';
import { ruleMark } from '../../gateway/marks.ts';
import { HITS_SET } from '../../gateway/verdict.ts';
import { probeQueueRule, putQueueRule, removeQueueRule } from '../../kernel/queue-rule.ts';
import { buildIcmp, buildTcp, buildUdp, TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN } from '../../wire/ip.ts';
import { addRule, basePlan, directPlan, EGRESS, PODS, WEB } from './gateway-plans.ts';
import { GatewayRig, ROUTER, type Sighting } from './gateway-rig.ts';
import { Connection, HeldQueue, type Queued } from './read-rig.ts';

t.setTimeout(570_000);
const states = [mkdtempSync(join(tmpdir(), 'sluice-test-')), mkdtempSync(join(tmpdir(), 'sluice-test-'))] as const;
const rigs = [
  { rig: await GatewayRig.create('rd', states[0]), namespace: `t-rd-gw-${process.pid}` },
  { rig: await GatewayRig.create('re', states[1], 'Direct'), namespace: `t-re-gw-${process.pid}` },
];
t.teardown(async () => {
  for (const { rig } of rigs) await rig.close();
  for (const directory of states) rmSync(directory, { recursive: true });
});

const queueRule = {
  mark: INSPECT_QUEUE_MARK,
  mask: INSPECT_QUEUE_MARK,
  first: INSPECT_QUEUE,
  count: 1,
  bypass: false,
};
const capability = await probeQueueRule();
const nft = (namespace: string, script: string): string =>
  execFileSync('ip', ['netns', 'exec', namespace, 'nft', '-f', '-'], { input: script, encoding: 'utf8' });

/** Ports of which the bytes decide: 443, TLS or QUIC; 8443, where the address's name decides; 53, by address. */
function planOf(limits?: RuleLimits): GatewayPlan {
  const plan = basePlan();
  const tls = { protocol: 6, ports: [[443, 443]] as [number, number][], application: 'TLS' as const };
  const quic = { protocol: 17, ports: [[443, 443]] as [number, number][], application: 'QUIC' as const };
  plan.services['x/named'] = {
    addresses: [],
    names: ['web.example.test'],
    ports: [6, 17].map((protocol) => ({ protocol, ports: [443, 8443].map((port): [number, number] => [port, port]) })),
    checks: [tls, quic],
  };
  plan.services['x/dns'] = {
    addresses: Object.values(WEB).map((address) => `${address}/${address.includes(':') ? 128 : 32}`),
    ports: [6, 17].map((protocol) => ({ protocol, ports: [[53, 53]] })),
  };
  for (const name of ['named', 'dns']) {
    addRule(plan, 'g-pay', { context: 'namespace', action: 'accept-decisively', services: [`x/${name}`], name });
  }
  const rule = plan.rules['namespace/named'];
  if (rule !== undefined && limits !== undefined) rule.limits = limits;
  return plan;
}
const markOf = (plan: GatewayPlan, rule: string): number => ruleMark(compileGateway(plan).ruleNumbers.get(rule) ?? 0);

const [BYTES, FIRST] = [CT_READ + ruleMark(NUMBER_READ_BYTES), CT_READ + ruleMark(NUMBER_READ_FIRST)];
const QUEUED = GATEWAY_CHECKED_MARK | INSPECT_QUEUE_MARK;
const PASSED = GATEWAY_CHECKED_MARK | INSPECT_PASSED_MARK;
const verdict = (mark: number, life = 0): number => (INSPECT_VERDICT_MARK | mark | life) >>> 0;
const hex = (marks: readonly (Queued | number | undefined)[]): string[] =>
  marks.map((one) => `0x${(typeof one === 'object' ? one.mark : (one ?? 0)).toString(16)}`);

interface Way {
  rig: GatewayRig;
  namespace: string;
  queue: HeldQueue;
  plan: GatewayPlan;
  /** Of the rule that names decide. */
  mark: number;
}

/** With all that it takes; `given` changes the plan. */
async function withAll(run: (way: Way) => Promise<void>, given = planOf(), only = rigs): Promise<void> {
  for (const { rig, namespace } of only) {
    const plan = rig.mode === 'Direct' ? directPlan(given) : given;
    await rig.reset();
    await rig.apply(plan);
    const { dns } = 'pool' in plan.settings ? plan.settings.pool : {};
    nft(namespace, inspectTable(dns === undefined ? {} : { dns }, quicPorts(Object.values(plan.services))));
    await putQueueRule(capability, queueRule, namespace);
    const queue = new HeldQueue(namespace);
    try {
      await run({ rig, namespace, queue, plan, mark: markOf(plan, 'namespace/named') });
    } finally {
      queue.close();
      await removeQueueRule(capability, queueRule, namespace);
      nft(namespace, noInspectTable);
    }
  }
}

/** Hits of a rule. */
function hits(namespace: string, mark: number): number {
  const listed = execFileSync('ip', ['netns', 'exec', namespace, 'nft', 'list', 'set', 'inet', 'sluice', HITS_SET], {
    encoding: 'utf8',
  });
  const found = new RegExp(`0x${mark.toString(16).padStart(8, '0')} counter packets (\\d+)`).exec(listed);
  return Number(found?.[1] ?? 0);
}

t.test('TCP: the handshake passes, bytes are queued, a verdict lets the rest run on', async (t) => {
  await withAll(async ({ rig, namespace, queue, mark }) => {
    for (const family of families) {
      const what = `${rig.mode} v${family}`;
      const flow = new Connection(rig, family, 443);
      const before = hits(namespace, mark);
      t.ok(await flow.handshake(), `${what}: the handshake passes`);
      t.equal(await flow.mark(), BYTES, `${what}: to be read`);
      for (let options = 0; options <= 40; options += 4) {
        t.equal(
          (await flow.fromPod({ options })).length,
          1,
          `${what}: an acknowledgement with ${options} bytes of options`,
        );
      }
      t.same(queue.take(), [], `${what}: nobody was asked`);
      t.equal((await flow.fromPod({ payload: 'hello' })).length, 0, `${what}: bytes wait`);
      t.equal((await flow.fromPod({ payload: 'hello', options: 12 })).length, 0, `${what}: sent again, too`);
      flow.client += 5;
      t.equal((await flow.fromPod({ payload: 'more' })).length, 0);
      t.equal((await flow.fromServer({ payload: 'welcome' })).length, 0, `${what}: and the server's`);
      t.equal((await flow.fromPod({ flags: TCP_ACK | TCP_FIN })).length, 0, `${what}: an end counts as bytes`);
      const held = queue.take();
      t.same(
        hex(held),
        hex([QUEUED | INSPECT_FIRST_MARK, QUEUED | INSPECT_FIRST_MARK, QUEUED, QUEUED | INSPECT_REPLY_MARK, QUEUED]),
        `${what}: marks`,
      );
      t.equal(hits(namespace, mark), before, `${what}: nothing is counted yet`);
      for (const { id } of held.slice(0, 4)) queue.answer(id, 'accept', verdict(mark));
      queue.answer(held[4]?.id ?? 0, 'drop');
      const seen = await rig.collect();
      t.equal(seen.filter(({ where }) => where === 'outside').length, 3, `${what}: what was held leaves`);
      t.equal(seen.filter(({ where }) => where === 'inside').length, 1, `${what}: and comes`);
      t.equal(await flow.mark(), (mark | CT_DECIDED) >>> 0, `${what}: decided`);
      t.equal(hits(namespace, mark), before + 1, `${what}: one hit`);
      flow.client += 4;
      flow.server += 7;
      t.equal((await flow.fromPod({ payload: 'on and on' })).length, 1);
      t.equal((await flow.fromServer({ payload: 'and back' })).length, 1);
      t.same(queue.take(), [], `${what}: nobody is asked any more`);
    }
  });
});

t.test('the table that marks is loaded anew: connections that have begun are still known', async (t) => {
  await withAll(async ({ rig, namespace, queue }) => {
    for (const family of families) {
      const flow = new Connection(rig, family, 443);
      t.ok(await flow.handshake());
      nft(namespace, inspectTable({ dns: { resolvers: ['192.0.2.53'] } }, []));
      await flow.fromPod({ payload: 'hello' });
      t.same(hex(queue.take()), hex([QUEUED | INSPECT_FIRST_MARK]), `${rig.mode} v${family}`);
    }
  });
});

t.test('UDP ports of which only the beginnings of QUIC connections are read', async (t) => {
  const check = (application: Application, ports: [number, number][] | null, protocol = 17) => ({
    checks: [{ application, ports, protocol }],
  });
  t.same(quicPorts([]), []);
  t.same(quicPorts([{}, check('QUIC', [[443, 443]]), check('TLS', [[1, 2]], 6)]), [[443, 443]]);
  t.same(quicPorts([check('QUIC', [[440, 445]]), check('DNS', [[442, 443]])]), [
    [440, 441],
    [444, 445],
  ]);
  t.same(quicPorts([check('DNS', [[53, 53]]), check('QUIC', null)]), [
    [0, 52],
    [54, 65_535],
  ]);
});

t.test('TCP: resets, and a SYN with bytes', async (t) => {
  await withAll(async ({ rig, queue }) => {
    for (const family of families) {
      const flow = new Connection(rig, family, 443);
      await flow.handshake();
      const unread = (await rig.counters()).drop_unread ?? 0;
      t.equal((await flow.fromPod({ flags: TCP_RST | TCP_ACK, payload: 'bytes' })).length, 0, 'a reset with bytes');
      t.equal((await rig.counters()).drop_unread, unread + 1, 'is dropped as unread');
      t.same(queue.take(), []);
      const other = new Connection(rig, family, 443);
      await other.handshake();
      t.equal((await other.fromPod({ flags: TCP_RST | TCP_ACK })).length, 1, 'one without passes');
      const open = new Connection(rig, family, 443);
      t.equal((await open.fromPod({ flags: TCP_SYN, payload: 'early' })).length, 0);
      t.same(hex(queue.take()), hex([QUEUED | INSPECT_FIRST_MARK]), 'a SYN with bytes is asked about');
    }
  });
});

t.test('a flow whose first packet is asked about', async (t) => {
  await withAll(async ({ rig, queue, mark }) => {
    for (const family of families) {
      const begin = async (): Promise<[Connection, number]> => {
        const flow = new Connection(rig, family, 8443);
        t.equal((await flow.fromPod({ flags: TCP_SYN })).length, 0, 'its SYN waits');
        const [first, ...more] = queue.take();
        t.same(hex([first]), hex([QUEUED | INSPECT_FIRST_MARK]));
        t.same(more, []);
        return [flow, first?.id ?? 0];
      };
      const [decided, at] = await begin();
      queue.answer(at, 'accept', verdict(mark));
      t.equal((await rig.collect()).filter(({ where }) => where === 'outside').length, 1, 'it leaves');
      t.equal(await decided.mark(), (mark | CT_DECIDED) >>> 0, 'decided');
      const [more, next] = await begin();
      queue.answer(next, 'accept', verdict(ruleMark(NUMBER_READ_BYTES)));
      t.equal((await rig.collect()).filter(({ where }) => where === 'outside').length, 1);
      t.equal(await more.mark(), BYTES, 'its bytes are to be read');
      const [, refused] = await begin();
      queue.answer(refused, 'accept', GATEWAY_RESET_MARK);
      t.match(await rig.collect(), [{ where: 'inside', kind: 'reset' }], 'refused with a reset');
      const [, late] = await begin();
      queue.answer(late, 'accept', GATEWAY_CHECKED_MARK);
      t.same(await rig.collect(), [], 'let on by nobody');
      t.not(FIRST, BYTES);
    }
  });
});

/** A datagram, and whether it left; answers come to where it left from. */
function datagrams(rig: GatewayRig, family: Family, port: number, sourcePort: number) {
  let translated = 0;
  const pad = (bytes: number[]): Uint8Array => Uint8Array.from([...bytes, ...new Array(24).fill(0)]);
  return {
    async out(...bytes: number[]): Promise<Sighting[]> {
      const ends = { source: PODS.pay[family], destination: WEB[family], sourcePort, destinationPort: port };
      rig.fromNode(buildUdp({ ...ends, payload: pad(bytes) }));
      return this.left();
    },
    async left(): Promise<Sighting[]> {
      const left = (await rig.collect()).filter(({ where }) => where === 'outside');
      translated = left[0]?.packet.sourcePort ?? translated;
      return left;
    },
    async back(...bytes: number[]): Promise<Sighting[]> {
      const ends = {
        source: WEB[family],
        destination: EGRESS.pay[family],
        sourcePort: port,
        destinationPort: translated,
      };
      rig.fromOutside(buildUdp({ ...ends, payload: pad(bytes) }));
      return (await rig.collect()).filter(({ where }) => where === 'inside');
    },
  };
}

t.test('UDP, and flows that are read for life', async (t) => {
  const [V1, V2] = [
    [0, 0, 0, 1],
    [0x6b, 0x33, 0x43, 0xcf],
  ] as const;
  let port = 40_000;
  await withAll(async ({ rig, queue, mark, namespace }) => {
    for (const family of families) {
      const what = `${rig.mode} v${family}`;
      const before = hits(namespace, mark);
      const quic = datagrams(rig, family, 443, port++);
      t.same(await quic.out(0xc3, ...V1), [], `${what}: a datagram waits`);
      const [first] = queue.take();
      t.same(hex([first]), hex([QUEUED]));
      queue.answer(first?.id ?? 0, 'accept', PASSED);
      t.equal((await quic.left()).length, 1, `${what}: let on, and nothing decided`);
      t.same(await quic.back(1), [], `${what}: an answer waits`);
      t.same(hex(queue.take()), hex([QUEUED | INSPECT_REPLY_MARK]));
      t.same(await quic.out(0x43), [], `${what}: whatever it is`);
      const [second] = queue.take();
      queue.answer(second?.id ?? 0, 'accept', verdict(mark, INSPECT_LIFE_MARK));
      t.equal((await quic.left()).length, 1, `${what}: decided for what has come so far`);
      t.equal(hits(namespace, mark), before + 1, `${what}: one hit`);
      for (const [header, version, asked] of [
        [0x43, [], false],
        [0xe3, V1, false],
        [0xd3, V1, false],
        [0xc3, V1, true],
        [0xd3, V2, true],
        [0xc3, V2, false],
        [0xf3, V2, false],
        [0xe3, [0, 0, 0, 9], true],
      ] as const) {
        t.equal(
          (await quic.out(header, ...version)).length,
          asked ? 0 : 1,
          `${what}: ${header.toString(16)} ${version}`,
        );
        t.same(hex(queue.take()), hex(asked ? [QUEUED] : []));
      }
      t.equal((await quic.back(7)).length, 1, `${what}: answers pass`);
      const other = datagrams(rig, family, 8443, port++);
      await other.out(1);
      const [asked] = queue.take();
      queue.answer(asked?.id ?? 0, 'accept', verdict(mark, INSPECT_LIFE_MARK));
      t.equal((await other.left()).length, 1);
      t.same(await other.out(0x43), [], `${what}: of others each packet is asked about`);
      const [refused] = queue.take();
      queue.answer(refused?.id ?? 0, 'accept', GATEWAY_PROHIBIT_MARK);
      t.match(await rig.collect(), [{ where: 'inside', kind: 'unreachable' }], `${what}: refused with an error`);

      const flow = new Connection(rig, family, 443);
      await flow.handshake();
      await flow.fromPod({ payload: 'one' });
      const [held] = queue.take();
      queue.answer(held?.id ?? 0, 'accept', verdict(mark, INSPECT_LIFE_MARK));
      await rig.collect();
      t.equal(await flow.mark(), (CT_READ | mark) >>> 0, `${what}: a rule, and read`);
      flow.client += 3;
      t.equal((await flow.fromServer({ payload: 'answer' })).length, 1, `${what}: what the server says passes`);
      t.equal((await flow.fromPod()).length, 1);
      t.equal((await flow.fromPod({ payload: 'two' })).length, 0, `${what}: what the client says waits`);
      t.same(hex(queue.take()), hex([QUEUED]));
    }
    t.same((await rig.counters()).drop_leak, 0);
  });
});

t.test('errors about a flow that is read', async (t) => {
  await withAll(
    async ({ rig, queue }) => {
      for (const family of families) {
        const flow = new Connection(rig, family, 443);
        const [syn] = await flow.fromPod({ flags: TCP_SYN });
        t.ok(syn);
        const { source = '', destination = '', sourcePort = 0 } = syn?.packet ?? {};
        const quoted = buildTcp({
          source,
          destination,
          sourcePort,
          destinationPort: 443,
          flags: TCP_SYN,
          sequence: flow.client,
        });
        const type = family === 4 ? 3 : 1;
        const ends = { source: ROUTER[family], destination: EGRESS.pay[family] };
        rig.fromOutside(buildIcmp({ ...ends, type, code: 1, id: 0, sequence: 0, payload: quoted }));
        t.match(await rig.collect(), [{ where: 'inside', kind: 'unreachable' }], `v${family}: comes to the pod`);
        t.same(queue.take(), [], 'and is asked of nobody');
      }
    },
    planOf(),
    rigs.slice(0, 1),
  );
});

t.test('DNS of resolvers: it teaches, whatever else it is', async (t) => {
  const plan = planOf();
  if ('pool' in plan.settings) plan.settings.pool.dns = { resolvers: [WEB[4], WEB[6]] };
  let port = 50_000;
  await withAll(
    async ({ rig, queue }) => {
      const only = QUEUED | INSPECT_DNS_MARK | INSPECT_PASSED_MARK;
      for (const family of families) {
        const asking = datagrams(rig, family, 53, port++);
        t.same(await asking.out(1), [], 'a question waits');
        const [question] = queue.take();
        t.same(hex([question]), hex([only]));
        queue.answer(question?.id ?? 0, 'accept', PASSED);
        t.equal((await asking.left()).length, 1);
        t.same(await asking.back(1), [], 'and so does its answer');
        const [answer] = queue.take();
        t.same(hex([answer]), hex([only | INSPECT_REPLY_MARK]));
        queue.answer(answer?.id ?? 0, 'accept', PASSED);
        t.equal((await rig.collect()).length, 1);
        const flow = new Connection(rig, family, 53);
        t.equal((await flow.fromPod({ flags: TCP_SYN })).length, 1);
        flow.client++;
        t.same(await flow.fromServer({ flags: TCP_SYN | TCP_ACK, options: 20 }), [], 'over TCP the SYN+ACK waits, too');
        flow.server++;
        const [begins] = queue.take();
        t.same(hex([begins]), hex([only | INSPECT_REPLY_MARK]));
        queue.answer(begins?.id ?? 0, 'accept', PASSED);
        t.equal((await rig.collect()).length, 1);
        t.equal((await flow.fromPod()).length, 1, 'what carries nothing does not');
        await flow.fromPod({ payload: 'question' });
        await flow.fromServer({ payload: 'answer' });
        t.same(hex(queue.take()), hex([only | INSPECT_FIRST_MARK, only | INSPECT_REPLY_MARK]), 'over TCP');
        t.equal(
          (await flow.fromPod({ flags: TCP_RST | TCP_ACK, payload: 'x' })).length,
          1,
          'a reset is its own affair',
        );
      }
    },
    plan,
    rigs.slice(0, 1),
  );
});

t.test('no byte leaves while a part is missing', async (t) => {
  for (const family of families) {
    await withAll(
      async ({ rig, namespace, queue }) => {
        const begun = async (): Promise<Connection> => {
          const flow = new Connection(rig, family, 443);
          t.ok(await flow.handshake());
          return flow;
        };
        const flows = [await begun(), await begun(), await begun()] as const;
        await removeQueueRule(capability, queueRule, namespace);
        t.same(await flows[0].fromPod({ payload: 'x' }), [], 'no rule that queues');
        await putQueueRule(capability, queueRule, namespace);
        queue.close();
        t.same(await flows[1].fromPod({ payload: 'x' }), [], 'nobody at the queue');
        nft(namespace, noInspectTable);
        t.same(await flows[2].fromPod({ payload: 'x' }), [], 'no table that marks');
        t.same(await flows[2].fromPod(), [], 'not even a sign of life');
        t.same(await new Connection(rig, family, 443).fromPod({ flags: TCP_SYN }), []);
        t.ok(((await rig.counters()).drop_unread ?? 0) >= 4, 'counted as unread');
      },
      planOf(),
      rigs.slice(0, 1),
    );
    const open = planOf();
    if ('pool' in open.settings) open.settings.pool.inspection = { onOverload: 'Accept' };
    await withAll(
      async ({ rig, namespace }) => {
        const flow = new Connection(rig, family, 443);
        t.ok(await flow.handshake());
        await removeQueueRule(capability, queueRule, namespace);
        t.equal((await flow.fromPod({ payload: 'x' })).length, 1, 'onOverload: Accept, no rule that queues');
      },
      open,
      rigs.slice(0, 1),
    );
  }
});

/** So many connections whose first bytes wait, decided at once; returns how many of them left. */
async function decideAtOnce({ rig, queue, mark }: Way, count: number): Promise<[left: number, flows: Connection[]]> {
  const flows: Connection[] = [];
  for (let at = 0; at < count; at++) {
    const flow = new Connection(rig, 4, 443);
    t.ok(await flow.handshake());
    await flow.fromPod({ payload: 'x' });
    flows.push(flow);
  }
  for (const { id } of queue.take()) queue.answer(id, 'accept', verdict(mark));
  return [(await rig.collect()).length, flows];
}

t.test('the rate of the deciding rule holds when it decides', async (t) => {
  await withAll(
    async (way) => {
      const [left] = await decideAtOnce(way, 4);
      t.equal(left, 2, 'two in a second');
      t.equal((await way.rig.counters()).drop_limit, 2, 'the others are over it');
    },
    planOf({ connectionsPerSecond: 2, shards: ['edge/s0'] }),
    rigs.slice(0, 1),
  );
});

t.test('bits of the ct mark that are somebody else’s stay', async (t) => {
  const script = `table inet somebody {
    chain marks { type filter hook prerouting priority -140; ct mark set ct mark or 0xa5; }
  }`;
  await withAll(
    async (way) => {
      nft(way.namespace, script);
      const [left, [flow]] = await decideAtOnce(way, 1);
      nft(way.namespace, 'delete table inet somebody');
      t.equal(left, 1);
      t.equal(await flow?.mark(), (way.mark | CT_DECIDED | 0xa5) >>> 0);
    },
    planOf(),
    rigs.slice(0, 1),
  );
});
