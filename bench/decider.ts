/**
 * What a decider of inspection takes for a packet, without a kernel: hellos of new connections in one segment each, of names of
 * which some hundred are in use, at a policy with a rule for each of them. Beside it the same hellos in two segments, requests of
 * a connection that is read for life, questions, and what the decider tells, as the main thread would get it.
 *   node dist/bench/decider.js [--seconds 2]
 */
import { readFileSync } from 'node:fs';
import { parseArgs } from 'node:util';
import { Worker } from 'node:worker_threads';
import { GATEWAY_CHECKED_MARK, INSPECT_FIRST_MARK, INSPECT_QUEUE_MARK, INSPECT_REPLY_MARK } from '../api/names.ts';
import type { Policy, PortCheck } from '../api/plan.ts';
import { InspectDecider } from '../gateway/inspect/decider.ts';
import type { DeciderData } from '../gateway/inspect/messages.ts';
import { buildTcp, buildUdp, TCP_ACK, TCP_PSH } from '../wire/ip.ts';
import { QueuePacket } from '../wire/nfqueue.ts';

const { values } = parseArgs({ options: { seconds: { type: 'string', default: '2' } } });
const seconds = Number(values.seconds);
const NAMES = 200;
const nameOf = (at: number): string => `host${at % NAMES}.shop.example`;
const SERVER = '192.0.2.10';
const podOf = (at: number): string => `10.1.${(at >> 8) & 255}.${at & 255}`;
const PODS = 1_000;

const check = (protocol: number, port: number, application: PortCheck['application'], more = {}): PortCheck => ({
  protocol,
  ports: [[port, port]],
  application,
  ...more,
});

function policy(): Policy {
  const rules: Policy['rules'] = {};
  const services: Policy['services'] = {
    http: {
      addresses: ['192.0.2.0/24'],
      ports: [{ protocol: 6, ports: [[80, 80]] }],
      checks: [check(6, 80, 'HTTP', { http: { paths: ['/ok'] } })],
    },
    dns: { addresses: ['192.0.2.0/24'], ports: [{ protocol: 17, ports: [[53, 53]] }], checks: [check(17, 53, 'DNS')] },
  };
  for (let at = 0; at < NAMES; at++) {
    services[nameOf(at)] = {
      addresses: [],
      names: [nameOf(at)],
      ports: null,
      checks: [check(6, 443, 'TLS', { implied: true })],
    };
  }
  for (const name of Object.keys(services)) {
    rules[`cluster/${name}`] = { context: 'cluster', name, action: 'accept-decisively', priority: 1, services: [name] };
  }
  const pod = (at: number) => ({
    namespace: 'shop',
    name: `p${at}`,
    uid: `p${at}`,
    node: 'n',
    services: [],
    addresses: [podOf(at)],
    group: 'g',
    egress: {},
  });
  return {
    settings: {},
    workloads: Object.fromEntries(Array.from({ length: PODS }, (_, at) => [`p${at}`, pod(at)])),
    groups: { g: { namespace: 'shop', rules: { cluster: Object.keys(rules), namespace: [], service: [] } } },
    rules,
    services,
  };
}

/** A ClientHello as curl sends it, with that name. */
function hello(name: string): Uint8Array {
  const u16 = (value: number): number[] => [value >> 8, value & 255];
  const extension = (type: number, body: number[]): number[] => [...u16(type), ...u16(body.length), ...body];
  const text = [...Buffer.from(name)];
  const extensions = [
    ...extension(0, [...u16(text.length + 3), 0, ...u16(text.length), ...text]),
    ...extension(11, [3, 0, 1, 2]),
    ...extension(10, [0, 8, 0, 29, 0, 23, 0, 24, 0, 25]),
    ...extension(16, [0, 12, 2, 0x68, 0x32, 8, ...Buffer.from('http/1.1')]),
    ...extension(22, []),
    ...extension(23, []),
    ...extension(13, [...u16(40), ...Array(40).fill(4)]),
    ...extension(43, [4, 3, 4, 3, 3]),
    ...extension(45, [1, 1]),
    ...extension(51, [...u16(36), ...u16(29), ...u16(32), ...Array(32).fill(7)]),
    ...extension(21, Array(150).fill(0)),
  ];
  const suites = Array(60).fill(0x13);
  const body = [3, 3, ...Array(32).fill(1), 32, ...Array(32).fill(2), ...u16(suites.length), ...suites, 1, 0];
  const message = [...body, ...u16(extensions.length), ...extensions];
  return Uint8Array.from([22, 3, 1, ...u16(message.length + 4), 1, 0, ...u16(message.length), ...message]);
}

/** As a client's connection may begin; ports and sequence numbers are patched in. */
const segment = (pod: number, port: number, payload: Uint8Array): Uint8Array =>
  buildTcp({
    source: podOf(pod),
    destination: SERVER,
    sourcePort: 1,
    destinationPort: port,
    flags: TCP_ACK | TCP_PSH,
    sequence: 1,
    acknowledgement: 1,
    payload,
  });

/** Seconds of this thread. */
const cpuOf = (): number => Number(readFileSync('/proc/thread-self/schedstat', 'utf8').split(' ')[0]) / 1e9;

/** Stands for the main thread: what it does with what it is told is not the decider's. */
const main = new Worker("require('node:worker_threads').parentPort.on('message', () => {})", { eval: true });
main.unref();

const packet = new QueuePacket();
let id = 0;
let alarmAt = Number.POSITIVE_INFINITY;
let turn = 0;

function send(
  decider: InspectDecider,
  bytes: Uint8Array,
  port: number,
  sequence: number,
  first: boolean,
  now: number,
): void {
  bytes[20] = port >> 8;
  bytes[21] = port;
  bytes[24] = sequence >> 24;
  bytes[25] = sequence >> 16;
  bytes[26] = sequence >> 8;
  bytes[27] = sequence;
  packet.id = ++id;
  packet.mark = GATEWAY_CHECKED_MARK | INSPECT_QUEUE_MARK | (first ? INSPECT_FIRST_MARK : 0);
  packet.bytes = bytes;
  packet.start = 0;
  packet.end = bytes.length;
  decider.decide(packet, now);
}

function decider(told: boolean): InspectDecider {
  const data: DeciderData = {
    policy: policy(),
    generation: 1,
    numbers: Object.keys(policy().rules).map((rule, at) => [rule, at + 2]),
    names: Array.from({ length: NAMES }, (_, at) => ({ name: nameOf(at), address: SERVER, until: 4e12 })),
    raw: { 4: -1, 6: -1 },
    onOverload: 'Drop',
  };
  return new InspectDecider(
    {
      verdict: () => true,
      replace: () => true,
      readMessages() {},
      wakeAt(time) {
        if (time < alarmAt) alarmAt = time;
      },
      post: (value) => {
        if (told) main.postMessage(value);
      },
    },
    data,
    { reset() {} },
  );
}

/** A ServerHello: of a server that has answered such a hello the next one is decided by itself. */
const answer = Uint8Array.from([22, 3, 3, 0, 44, 2, 0, 0, 40, 3, 3, ...Array(32).fill(1), 0, 0x13, 1, 0, 0, 0]);

function answerAll(to: InspectDecider, now: number): void {
  for (let at = 0; at < NAMES; at++) {
    send(to, hellos[at]!, 1_023, 1, true, now);
    packet.id = ++id;
    packet.mark = GATEWAY_CHECKED_MARK | INSPECT_QUEUE_MARK | INSPECT_REPLY_MARK;
    const [source, destination] = [SERVER, podOf(at)];
    const ends = { source, destination, sourcePort: 443, destinationPort: 1_023 };
    packet.bytes = buildTcp({ ...ends, flags: TCP_ACK | TCP_PSH, sequence: 1, acknowledgement: 1, payload: answer });
    packet.start = 0;
    packet.end = packet.bytes.length;
    to.decide(packet, now);
  }
}

const hellos = Array.from({ length: 1_000 }, (_, at) => segment(at % PODS, 443, hello(nameOf(at))));
const halves = Array.from({ length: 200 }, (_, at) => {
  const bytes = hello(nameOf(at));
  return [segment(at, 443, bytes.subarray(0, 200)), segment(at, 443, bytes.subarray(200))] as const;
});
const request = Buffer.from('GET /ok HTTP/1.1\r\nHost: api.example\r\nUser-Agent: bench\r\nAccept: */*\r\n\r\n');
const requests = segment(0, 80, request);
const question = Buffer.from('000701000001000000000000', 'hex');
const asked = buildUdp({
  source: podOf(0),
  destination: SERVER,
  sourcePort: 1,
  destinationPort: 53,
  payload: Buffer.concat([question, Buffer.from('\x03www\x07example\x03org\0\0\x01\0\x01', 'latin1')]),
});

const cases: [
  name: string,
  told: boolean,
  packets: number,
  run: (decider: InspectDecider, at: number, now: number) => void,
][] = [
  [
    'hello in one segment',
    false,
    1,
    (to, at, now) => send(to, hellos[at % 1_000]!, 1_024 + ((at / 1_000) | 0), at * 7_919, true, now),
  ],
  [
    'the same, and told to the main thread',
    true,
    1,
    (to, at, now) => send(to, hellos[at % 1_000]!, 1_024 + ((at / 1_000) | 0), at * 7_919, true, now),
  ],
  [
    'hello in two segments',
    true,
    2,
    (to, at, now) => {
      const [one, two] = halves[at % 200]!;
      const port = 1_024 + ((at / 200) | 0);
      send(to, one, port, at * 7_919, true, now);
      send(to, two, port, at * 7_919 + 200, false, now);
    },
  ],
  [
    'request of a connection read for life',
    true,
    1,
    (to, at, now) => send(to, requests, 2_000, 1 + at * request.length, at === 0, now),
  ],
  [
    'question',
    true,
    1,
    (to, at, now) => {
      packet.id = ++id;
      packet.mark = GATEWAY_CHECKED_MARK | INSPECT_QUEUE_MARK;
      packet.bytes = asked;
      packet.start = 0;
      packet.end = asked.length;
      asked[20] = at >> 8;
      asked[21] = at;
      to.decide(packet, now);
    },
  ],
];

for (const [name, told, packets, run] of cases) {
  const subject = decider(told);
  answerAll(subject, performance.now());
  const results: number[] = [];
  let at = 0;
  for (let round = -1; round < 3; round++) {
    const cpu = cpuOf();
    const end = performance.now() + (seconds * 1000) / 3;
    let count = 0;
    while (performance.now() < end) {
      // A batch, and what comes at its end.
      const now = performance.now();
      for (let each = 0; each < 64; each++) run(subject, at++, now);
      count += 64 * packets;
      if (now >= alarmAt) {
        alarmAt = Number.POSITIVE_INFINITY;
        subject.alarm(now);
      }
      if (++turn % 64 === 0) await new Promise((resolve) => setImmediate(resolve));
    }
    if (round >= 0) results.push(count / (cpuOf() - cpu));
  }
  results.sort((a, b) => a - b);
  const tally = subject.desk.tally.read();
  console.log(
    `${name.padEnd(40)} ${Math.round((results[1] ?? 0) / 1000)}k packets per CPU second; permitted ${tally.permitted}, denied ${tally.denied}`,
  );
}
