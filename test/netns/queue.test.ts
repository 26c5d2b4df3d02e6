/**
 * The transport of inspection against the real kernel: real UDP and TCP through a forwarding machine (queue-rig.ts)
 * whose packets meet the queues, and a decider that does what the packets say (queue-decider.ts).
 */
import { spawnSync } from 'node:child_process';
import { randomInt } from 'node:crypto';
import { readdirSync, readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { Worker } from 'node:worker_threads';
import koffi from 'koffi';
import t from 'tap';
import { families } from '../../api/plan.ts';
import { silentLog } from '../../daemon/log.ts';
import {
  type Inspection,
  type InspectionOptions,
  type QueueStatus,
  startInspection,
} from '../../gateway/inspect/workers.ts';
import { listFlows } from '../../kernel/conntrack.ts';
import { NETLINK_NETFILTER, NetlinkSocket } from '../../kernel/netlink-socket.ts';
import { removeQueueRule } from '../../kernel/queue-rule.ts';
import { listQueues } from '../../kernel/queue-socket.ts';
import { openRawSockets, sendRaw } from '../../kernel/raw-socket.ts';
import { buildUdp } from '../../wire/ip.ts';
import { INFO_GSO } from '../../wire/nfqueue.ts';
import { DECIDED, PORT_MIXED, PORT_OPEN, type Sighting } from './queue-decider.ts';
import { clients, FIRST_QUEUE, PORT, QueueRig, SERVER } from './queue-rig.ts';

t.setTimeout(180_000);
const COUNT = 2;
const decider = new URL('./queue-decider.js', import.meta.url).href;
const rig = await QueueRig.create('t', [PORT, PORT_OPEN, PORT_MIXED]);
// On exit rather than only in a teardown: it also follows an exception below.
process.on('exit', () => rig.close());

interface Running extends Inspection {
  workers: Worker[];
  heard: { queue: number; value: unknown }[];
  logged: Record<string, unknown>[];
  of(queue: number): QueueStatus;
}

/** Closed after each test, so that one that fails does not fail the next. */
const running = new Set<Inspection>();
t.afterEach(async () => {
  for (const inspection of running) await inspection.close();
  running.clear();
});

function start(options: Partial<InspectionOptions> = {}): Running {
  const workers: Worker[] = [];
  const heard: Running['heard'] = [];
  const logged: Running['logged'] = [];
  const log = silentLog();
  log.error = ((fields: Record<string, unknown>) => void logged.push(fields)) as typeof log.error;
  const inspection = startInspection({
    queues: { first: FIRST_QUEUE, count: COUNT },
    decider: { module: decider },
    onOverload: 'Drop',
    log,
    namespace: rig.gateway,
    onMessage: (queue, value) => void heard.push({ queue, value }),
    startWorker(file, workerOptions) {
      const worker = new Worker(file, workerOptions);
      workers.push(worker);
      return worker;
    },
    ...options,
    // A machine under load may keep a thread waiting; only tests of stalls are to find one.
    limits: { stallTicks: 40, ...options.limits },
  });
  running.add(inspection);
  const of = (queue: number) => inspection.status().find((status) => status.queue === queue) as QueueStatus;
  return { ...inspection, workers, heard, logged, of };
}

async function until(what: string, condition: () => boolean | Promise<boolean>): Promise<void> {
  const deadline = Date.now() + 30_000;
  while (!(await condition())) {
    if (Date.now() > deadline) throw new Error(`waited in vain for ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

const serving = (inspection: Inspection) =>
  until('all queues to be served', () => inspection.status().every(({ state }) => state === 'serving'));
const total = (inspection: Inspection, name: keyof QueueStatus['counters']): number =>
  inspection.status().reduce((sum, { counters }) => sum + counters[name], 0);

/** Each probe is a flow of its own, so that no decision about another one carries it. */
let ports = 10_000;
const nextPort = () => ports++;
const marks = async (sourcePort: number) =>
  (await listFlows({ namespace: rig.gateway }))
    .filter((flow) => flow.original.sourcePort === sourcePort)
    .map((flow) => flow.mark);

/** A client of each queue: the kernel chooses by addresses, with a seed that it draws at its start. */
async function clientsByQueue(): Promise<Map<number, string>> {
  const inspection = start();
  await serving(inspection);
  const found = new Map<number, string>();
  for (const from of [...clients[4], ...clients[6]]) {
    const port = nextPort();
    await rig.udp(from, port, ['which']);
    await until(`the decision on ${from}`, async () => (await marks(port)).some((mark) => mark !== 0));
    found.set(((await marks(port))[0] ?? 0) - DECIDED, from);
  }
  await inspection.close();
  return found;
}

await rig.put(COUNT);
const clientOf = await clientsByQueue();
const [one, other] = [clientOf.get(FIRST_QUEUE) ?? '', clientOf.get(FIRST_QUEUE + 1) ?? ''];
// Its processes would keep this one alive.
t.teardown(() => rig.close());

t.test('the rule is put, mended and removed, and what others have there stays', async (t) => {
  if (rig.capability.kind !== 'xtables') return t.comment('nft, in a table of its own');
  const { commands } = rig.capability;
  const list = () =>
    families.map((family) => rig.inside(`${commands[family]} -t mangle -S FORWARD`).trim().split('\n'));
  const foreign = '-A FORWARD -m mark --mark 0x20/0xff -j NFQUEUE --queue-num 5';
  const ours = (bypass: string) => `-A FORWARD -m mark --mark 0x10/0xff -j NFQUEUE --queue-balance 7700:7701${bypass}`;
  for (const family of families) rig.inside(`${commands[family]} -t mangle ${foreign}`);
  const expected = (...rules: string[]) => families.map(() => ['-P FORWARD ACCEPT', ...rules]);
  t.same(list(), expected(ours(''), foreign));
  t.equal(await rig.put(COUNT), 0, 'there already');
  t.equal(await rig.put(COUNT, true), 4, 'another one: added and the old one deleted, in both families');
  t.same(list(), expected(foreign, ours(' --queue-bypass')));
  await rig.put(COUNT);
  for (const family of families) rig.inside(`${commands[family]} -t mangle ${ours('')}`);
  t.equal(await rig.put(COUNT), 2, 'once, not twice');
  t.same(list(), expected(foreign, ours('')));
  t.equal(await removeQueueRule(rig.capability, rig.rule(COUNT), rig.gateway), 2);
  t.same(list(), expected(foreign));
  t.equal(await removeQueueRule(rig.capability, rig.rule(COUNT), rig.gateway), 0, 'gone already');
  for (const family of families) rig.inside(`${commands[family]} -t mangle -D ${foreign.slice('-A '.length)}`);
  t.equal(await rig.put(COUNT), 2);
});

t.test('with nobody at the queue packets are dropped; with bypass they pass, and say that nobody looked', async (t) => {
  for (const from of [one, other]) {
    const [before, asked] = [rig.count('passed'), rig.count('asked')];
    await rig.udp(from, nextPort(), ['nobody is there']);
    await until('the packet to come by', () => rig.count('asked') > asked);
    t.equal(rig.count('passed'), before, 'dropped');
  }
  await rig.put(COUNT, true);
  const port = nextPort();
  const unasked = rig.count('unasked');
  await rig.udp(one, port, ['nobody is there']);
  await until('the packet', () => rig.texts(one, port).length === 1);
  t.equal(rig.count('unasked'), unasked + 1);
  await rig.put(COUNT);
});

t.test('another packet goes on in the place of one', async (t) => {
  const inspection = start();
  await serving(inspection);
  for (const family of families) {
    const from = clients[family][0] ?? '';
    for (const word of ['swap', 'swapLater']) {
      // Shorter, and longer.
      for (const times of [1, 30]) {
        const port = nextPort();
        await rig.udp(from, port, [`${word} ${times} ${'x'.repeat(60)}`]);
        await until('its flow', () => rig.texts(from, port).length === 1);
        t.same(rig.texts(from, port), ['swapped'.repeat(times).slice(0, 32)], `${word} IPv${family}`);
        t.ok(((await marks(port))[0] ?? 0) >= DECIDED, 'with its mark');
      }
    }
  }
  await inspection.close();
});

t.test('a raw packet says what it likes, and carries our mark', async (t) => {
  const raw = openRawSockets(rig.gateway);
  for (const family of families) {
    const from = clients[family][0] ?? '';
    const port = nextPort();
    const payload = Buffer.from('raw');
    const packet = buildUdp({
      source: from,
      destination: SERVER[family],
      sourcePort: port,
      destinationPort: PORT,
      payload,
    });
    t.equal(sendRaw(raw.fds, packet), true);
    await until('the packet', () => rig.texts(from, port).length === 1);
    t.same(rig.texts(from, port), ['raw']);
  }
  const nowhere = buildUdp({ source: '10.8.2.1', destination: '203.0.113.1', sourcePort: 1, destinationPort: 1 });
  t.equal(sendRaw(raw.fds, nowhere), false, 'no route');
  raw.close();
  raw.close();
});

t.test('verdicts: their marks reach the connection table, and what is decided is not asked again', async (t) => {
  const unasked = rig.count('unasked');
  const inspection = start({ decider: { module: decider, data: () => ({ policy: 1 }) } });
  await serving(inspection);
  await until('the first words', () => inspection.heard.length === COUNT);
  const names = readdirSync('/proc/self/task').map((id) => readFileSync(`/proc/self/task/${id}/comm`, 'utf8').trim());
  t.same(names.filter((name) => name.startsWith('inspect-')).sort(), ['inspect-7700', 'inspect-7701']);
  t.same(
    inspection.heard.map(({ value }) => value),
    [{ begun: { policy: 1 } }, { begun: { policy: 1 } }],
  );
  for (const family of families) {
    const from = clients[family][0] ?? '';
    const port = nextPort();
    await rig.udp(from, port, ['accept this']);
    await until('its flow', () => rig.texts(from, port).length === 1);
    t.match(await marks(port), [DECIDED + FIRST_QUEUE + ((await marks(port))[0] === DECIDED + FIRST_QUEUE ? 0 : 1)]);
    const [asked, packets] = [rig.count('asked'), total(inspection, 'packets')];
    await rig.udp(from, port, ['more', 'and more']);
    await until('the rest', () => rig.texts(from, port).length === 3);
    t.equal(rig.count('asked'), asked, `decided: IPv${family}`);
    t.equal(total(inspection, 'packets'), packets);
    const refused = nextPort();
    const dropped = total(inspection, 'dropped');
    await rig.udp(from, refused, ['drop this']);
    await until('the drop', () => total(inspection, 'dropped') === dropped + 1);
    t.same(rig.texts(from, refused), []);
    t.equal(await rig.tcp(from, 'over TCP'), 'over TCP');
  }
  inspection.post('to all');
  t.equal(inspection.post('to one', FIRST_QUEUE), true);
  await until('the echoes', () => inspection.heard.length === COUNT + 3);
  t.same(
    inspection.heard
      .slice(COUNT)
      .map(({ queue, value }) => [queue, value])
      .sort(),
    [
      [FIRST_QUEUE, { heard: 'to all' }],
      [FIRST_QUEUE, { heard: 'to one' }],
      [FIRST_QUEUE + 1, { heard: 'to all' }],
    ],
  );
  t.equal(rig.count('unasked'), unasked, 'nothing passed unseen');
  await inspection.close();
  t.equal(inspection.post('nobody'), false);
});

t.test('all packets of a flow, both ways, meet one thread; large sends come whole', async (t) => {
  const inspection = start();
  await serving(inspection);
  const before = total(inspection, 'packets');
  for (const from of [...clients[4], ...clients[6]]) {
    const port = nextPort();
    await rig.udp(from, port, ['a', 'b', 'c'], PORT_OPEN);
    await until('the datagrams', () => rig.texts(from, port).length === 3);
  }
  const text = 'x'.repeat(400_000);
  t.equal(await rig.tcp(one, text, PORT_OPEN), text);
  t.equal(await rig.tcp(other, text, PORT_OPEN), text);
  const asked = () => total(inspection, 'packets') - before;
  const sightings = () => inspection.heard.filter(({ value }) => (value as Sighting).flow !== undefined);
  await until('word of every packet', () => sightings().length === asked());
  const queues = new Map<string, Set<number>>();
  for (const { queue, value } of sightings()) {
    const { flow } = value as Sighting;
    queues.set(flow, (queues.get(flow) ?? new Set()).add(queue));
  }
  t.equal(queues.size, 18, 'sixteen flows of datagrams and two connections');
  t.same(new Set([...queues.values()].map(({ size }) => size)), new Set([1]), 'each at one thread');
  t.same(new Set([...queues.values()].flatMap((each) => [...each])).size, COUNT, 'and both have some');
  const large = sightings().filter(({ value }) => ((value as Sighting).info & INFO_GSO) !== 0);
  t.ok(large.length > 0 && Math.max(...large.map(({ value }) => (value as Sighting).length)) > 10_000);
  t.equal(total(inspection, 'malformed'), 0);
  await inspection.close();
});

t.test(
  'held packets go on in order: by a later packet, by a message, by an alarm; or their time is over',
  async (t) => {
    for (const onOverload of ['Drop', 'Accept'] as const) {
      const inspection = start({ onOverload, limits: { held: 4, holdMs: 1500 } });
      await serving(inspection);
      const port = nextPort();
      await rig.udp(one, port, ['hold 1', 'hold 2', 'hold 3', 'go 4']);
      await until('the release', () => rig.texts(one, port).length === 4);
      t.same(rig.texts(one, port), ['hold 1', 'hold 2', 'hold 3', 'go 4']);
      t.equal((await marks(port))[0], DECIDED + FIRST_QUEUE);

      const second = nextPort();
      await rig.udp(one, second, ['hold 1', 'hold 2']);
      await until('them to wait', () => inspection.of(FIRST_QUEUE).counters.holding === 2);
      t.equal(inspection.of(FIRST_QUEUE).kernel.waiting, 2);
      t.equal(await rig.tcp(one, 'others pass'), 'others pass');
      t.same(rig.texts(one, second), []);
      inspection.post('release');
      await until('the release', () => rig.texts(one, second).length === 2);
      t.same(rig.texts(one, second), ['hold 1', 'hold 2']);

      const third = nextPort();
      await rig.udp(one, third, ['later 1', 'later 2']);
      await until('the alarm', () => rig.texts(one, third).length === 2);
      t.same(rig.texts(one, third), ['later 1', 'later 2']);

      const [fourth, unasked] = [nextPort(), rig.count('unasked')];
      await rig.udp(one, fourth, ['hold 1', 'hold 2', 'hold 3', 'hold 4', 'hold 5', 'hold 6']);
      await until('the time to be over', () => inspection.of(FIRST_QUEUE).counters.expired === 4);
      t.match(inspection.of(FIRST_QUEUE).counters, { holding: 0, held: 11, overHeld: 2, expired: 4 });
      const passed = onOverload === 'Accept' ? 6 : 0;
      await until('what overload lets pass', () => rig.count('unasked') === unasked + passed);
      t.equal(inspection.of(FIRST_QUEUE).kernel.waiting, 0);
      await inspection.close();
    }
  },
);

t.test('any mix of verdicts in one batch does what single verdicts would do', async (t) => {
  const inspection = start({ limits: { holdMs: 60_000 } });
  await serving(inspection);
  for (let round = 0; round < 5; round++) {
    // Long runs of one word, so that one verdict stands for many, and what waits among them.
    const words = Array.from({ length: 60 }, () => ['pass', 'pass', 'tag', 'drop', 'hold', 'go'][randomInt(6)] ?? '');
    const texts = words.flatMap((word, at) => Array.from({ length: 1 + randomInt(9) }, (_, n) => `${word} ${at}.${n}`));
    texts.push('go at last');
    const expected: string[] = [];
    const waiting: string[] = [];
    for (const text of texts) {
      if (text.startsWith('hold')) waiting.push(text);
      else if (text.startsWith('go')) expected.push(...waiting.splice(0), text);
      else if (!text.startsWith('drop')) expected.push(text);
    }
    const [port, before] = [nextPort(), inspection.of(FIRST_QUEUE).counters];
    inspection.post(200, FIRST_QUEUE);
    await rig.udp(one, port, texts, PORT_MIXED);
    await until('the last', () => rig.texts(one, port).at(-1) === 'go at last');
    t.same(rig.texts(one, port), expected);
    const { packets, accepted, dropped, batches } = inspection.of(FIRST_QUEUE).counters;
    t.equal(packets - before.packets, texts.length);
    t.equal(accepted - before.accepted, expected.length);
    t.equal(dropped - before.dropped, texts.length - expected.length);
    t.ok(batches - before.batches < texts.length / 4, 'they came in batches');
  }
  t.equal(total(inspection, 'refused'), 0, 'each packet had one verdict');
});

t.test('a full queue: drops, or lets pass', async (t) => {
  for (const onOverload of ['Drop', 'Accept'] as const) {
    const inspection = start({ onOverload, limits: { queueLength: 8, holdMs: 60_000 } });
    await serving(inspection);
    const unasked = rig.count('unasked');
    await rig.udp(
      one,
      nextPort(),
      Array.from({ length: 11 }, () => 'hold'),
    );
    await until('the queue to be full', () => inspection.of(FIRST_QUEUE).kernel.waiting === 8);
    if (onOverload === 'Accept') await until('the rest', () => rig.count('unasked') === unasked + 3);
    else await until('the rest', () => inspection.of(FIRST_QUEUE).kernel.dropped === 3);
    t.equal(rig.count('unasked'), unasked + (onOverload === 'Accept' ? 3 : 0));
    await inspection.close();
    t.equal(rig.count('unasked'), unasked + (onOverload === 'Accept' ? 11 : 0), 'and so do those that waited');
  }
});

/** How a thread ends, and how that is known. */
const ends: [name: string, kill: (inspection: Running) => Promise<unknown>, reason: string][] = [
  ['it is terminated', async ({ workers }) => workers[0]?.terminate(), 'exited'],
  ['it throws', async (inspection) => inspection.post('throw', FIRST_QUEUE), 'failed'],
  ['it throws over each of many packets', () => rig.udp(one, nextPort(), Array(64).fill('throw')), 'failed'],
  ['a packet makes it exit', () => rig.udp(one, nextPort(), ['quit']), 'exited'],
  ['a packet makes it loop for ever', () => rig.udp(one, nextPort(), ['spin']), 'stalled'],
  [
    'it no longer hears',
    async (inspection) => {
      inspection.post('steal', FIRST_QUEUE);
      await rig.udp(one, nextPort(), ['stolen']);
    },
    'deaf',
  ],
];

for (const onOverload of ['Drop', 'Accept'] as const) {
  t.test(`a thread ends, onOverload ${onOverload}: the other queue goes on, and it is served again`, async (t) => {
    await rig.put(COUNT, onOverload === 'Accept');
    for (const [name, kill, reason] of ends) {
      const inspection = start({ onOverload, limits: { stallTicks: 8 } });
      await serving(inspection);
      const unasked = rig.count('unasked');
      await kill(inspection);
      // While it ends, ends in a stall, or begins again: packets of the other queue are decided.
      let between = 0;
      await until(`the end, when ${name}`, async () => {
        const port = nextPort();
        await rig.udp(other, port, [`beside ${between++}`]);
        // A thread that still takes some packets is not deaf.
        if (reason !== 'deaf') await rig.udp(one, nextPort(), ['meanwhile']);
        await until('a packet of the other queue', () => rig.texts(other, port).length === 1);
        return inspection.of(FIRST_QUEUE).ends > 0;
      });
      t.match(inspection.of(FIRST_QUEUE), { ends: 1, lastEnd: { reason } }, name);
      t.match(inspection.logged.at(-1), { queue: FIRST_QUEUE, reason }, 'and the log says so');
      t.match(inspection.of(FIRST_QUEUE + 1), { ends: 0, state: 'serving' });
      await until('another thread', () => inspection.of(FIRST_QUEUE).state === 'serving');
      const port = nextPort();
      await rig.udp(one, port, ['again']);
      await until('service', async () => rig.texts(one, port).length === 1);
      t.equal((await marks(port))[0], DECIDED + FIRST_QUEUE);
      if (onOverload === 'Drop') t.equal(rig.count('unasked'), unasked, 'nothing leaks');
      await inspection.close();
    }
  });
}

t.test('a queue that fails again and again is left alone meanwhile: dropped, or passed', async (t) => {
  for (const onOverload of ['Drop', 'Accept'] as const) {
    await rig.put(COUNT, onOverload === 'Accept');
    const nowhere = new URL('./no-such-decider.js', import.meta.url).href;
    const inspection = start({ onOverload, decider: { module: nowhere } });
    await until('it to fail', () => inspection.status().every(({ ends, state }) => ends >= 4 && state === 'waiting'));
    t.match(inspection.of(FIRST_QUEUE).lastEnd, { reason: 'failed', message: /no-such-decider/ });
    const [unasked, asked] = [rig.count('unasked'), rig.count('asked')];
    await rig.udp(one, nextPort(), ['anybody?']);
    await until('the packet to come by', () => rig.count('asked') > asked);
    if (onOverload === 'Accept') await until('it to pass', () => rig.count('unasked') === unasked + 1);
    t.equal(rig.count('unasked'), unasked + (onOverload === 'Accept' ? 1 : 0));
    await inspection.close();
  }
  await rig.put(COUNT);
});

t.test('single packets over which the decider throws do not end the thread', async (t) => {
  const inspection = start();
  await serving(inspection);
  const port = nextPort();
  for (let round = 0; round < 70; round++) await rig.udp(one, nextPort(), ['throw', 'fine']);
  await rig.udp(one, port, ['fine']);
  await until('the packet', () => rig.texts(one, port).length === 1);
  t.match(inspection.of(FIRST_QUEUE), { ends: 0, counters: { faults: 70 } });
  t.match(inspection.logged[0], { queue: FIRST_QUEUE, error: /as the packet said/ });
  t.ok(inspection.logged.length < 70, 'not one line each');
  await inspection.close();
});

t.test('12,000 packets while the thread is busy: all wait, none is lost', async (t) => {
  const inspection = start({ limits: { stallTicks: 80 } });
  await serving(inspection);
  const before = inspection.of(FIRST_QUEUE).counters.packets;
  inspection.post(3000, FIRST_QUEUE);
  const passed = rig.count('passed');
  // One flow, that stays undecided while its packets wait.
  await rig.udp(
    one,
    nextPort(),
    Array.from({ length: 12_000 }, () => 'burst'),
    PORT + 5,
  );
  await until('all verdicts', () => inspection.of(FIRST_QUEUE).counters.packets >= before + 12_000);
  await until('all packets', () => rig.count('passed') >= passed + 12_000);
  t.match(inspection.of(FIRST_QUEUE), {
    ends: 0,
    counters: { malformed: 0, refused: 0 },
    kernel: { waiting: 0, dropped: 0, overruns: 0 },
  });
  await inspection.close();
});

t.test('a queue that somebody holds is refused in clear words, and none of the others is kept', async (t) => {
  const first = start();
  await serving(first);
  const before = openDescriptors();
  const module = fileURLToPath(new URL('../../gateway/inspect/workers.js', import.meta.url));
  const log = fileURLToPath(new URL('../../daemon/log.js', import.meta.url));
  const script = `import { startInspection } from ${JSON.stringify(module)};
    import { silentLog } from ${JSON.stringify(log)};
    startInspection({ queues: { first: ${FIRST_QUEUE - 1}, count: 2 }, decider: { module: ${JSON.stringify(decider)} },
      onOverload: 'Drop', log: silentLog() });`;
  const args = ['20', 'ip', 'netns', 'exec', rig.gateway, process.execPath, '--input-type=module', '-e', script];
  const second = spawnSync('timeout', args, { encoding: 'utf8' });
  t.match(second, {
    status: 1,
    stderr: /bind queue 7700: EBUSY: another socket holds it .*is another gateway running/,
  });
  t.throws(() => start({ queues: { first: FIRST_QUEUE - 1, count: 2 } }), { code: 'EBUSY' });
  t.equal(listQueues(rig.gateway).length, COUNT, 'the other one is given back');
  await until('its thread to end', () => openDescriptors() === before);
  t.equal(first.of(FIRST_QUEUE).state, 'serving', 'who has it keeps it');
  const port = nextPort();
  await rig.udp(one, port, ['still']);
  await until('service', () => rig.texts(one, port).length === 1);
  await first.close();
});

t.test('messages that are no packets do no harm', async (t) => {
  const inspection = start();
  await serving(inspection);
  const libc = koffi.load('libc.so.6');
  const sendto = libc.func('int64_t sendto(int, void*, size_t, int, void*, uint32_t)');
  const stranger = NetlinkSocket.open({ protocol: NETLINK_NETFILTER, namespace: rig.gateway });
  const port = listQueues(rig.gateway).find(({ queue }) => queue === FIRST_QUEUE)?.port ?? 0;
  const to = new Uint8Array(12);
  new DataView(to.buffer).setUint16(0, 16, true);
  new DataView(to.buffer).setUint32(4, port, true);
  const head = (length: number, type: number) => [length, 0, 0, 0, type, 3, 0, 0, ...Array(8).fill(0), 2, 0, 0, 0];
  const messages: [name: string, bytes: number[]][] = [
    ['no netlink header', [1, 2, 3]],
    ['another type', head(20, 7)],
    ['no attributes', head(20, 0)],
    ['an attribute that is longer than the message', [...head(28, 0), 40, 0, 1, 0, 0, 0, 0, 0]],
    ['a packet header that is too short', [...head(28, 0), 8, 0, 1, 0, 0, 0, 0, 9]],
    ['larger than any packet', [...head(20, 0), ...Array(70_000).fill(0)]],
  ];
  for (const [at, [name, bytes]] of messages.entries()) {
    const sent = sendto(stranger.fd, Uint8Array.from(bytes), bytes.length, 0, to, to.length);
    t.equal(Number(sent), bytes.length, name);
    await until(name, () => inspection.of(FIRST_QUEUE).counters.malformed === at + 1);
  }
  stranger.close();
  const from = nextPort();
  await rig.udp(one, from, ['hold 1', 'drop', 'hold 2', 'go']);
  await until('service', () => rig.texts(one, from).length === 3);
  t.same(rig.texts(one, from), ['hold 1', 'hold 2', 'go']);
  t.match(inspection.of(FIRST_QUEUE), { ends: 0, state: 'serving' });
  await inspection.close();
});

const openDescriptors = () => readdirSync('/proc/self/fd').length;
const threads = () => readdirSync('/proc/self/task').length;

t.test('close leaves no descriptor, thread or queue behind, also while a thread hangs', async (t) => {
  await until('all threads of other tests to be gone', () => listQueues(rig.gateway).length === 0);
  const before = [openDescriptors(), threads()];
  for (const word of ['nothing', 'spin']) {
    const inspection = start({ limits: { stallTicks: 8 } });
    await serving(inspection);
    const port = nextPort();
    await rig.udp(one, port, ['last 1', 'last 2']);
    await until('them to wait', () => total(inspection, 'holding') === 2);
    if (word === 'spin') {
      inspection.post('spin');
      await until('both to spin', () => inspection.heard.filter(({ value }) => value === 'spins').length === COUNT);
    }
    await inspection.close();
    if (word === 'nothing') await until('the last verdicts', () => rig.texts(one, port).length === 2);
    await inspection.close();
    await until(`all to be gone: ${word}`, () => openDescriptors() === before[0] && threads() <= (before[1] ?? 0));
    t.same(listQueues(rig.gateway), [], 'the queues are free');
  }
});

t.test('a process that exits with queues open does exit', async (t) => {
  const module = fileURLToPath(new URL('../../gateway/inspect/workers.js', import.meta.url));
  const log = fileURLToPath(new URL('../../daemon/log.js', import.meta.url));
  const script = `import { startInspection } from ${JSON.stringify(module)};
    import { silentLog } from ${JSON.stringify(log)};
    startInspection({ queues: { first: ${FIRST_QUEUE}, count: 2 }, decider: { module: ${JSON.stringify(decider)} },
      onOverload: 'Drop', log: silentLog() });
    setTimeout(() => process.exit(7), 500);`;
  const args = ['20', 'ip', 'netns', 'exec', rig.gateway, process.execPath, '--input-type=module', '-e', script];
  t.equal(spawnSync('timeout', args, { stdio: 'ignore' }).status, 7, 'its own code, not 124 of timeout');
});
