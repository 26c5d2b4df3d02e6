/**
 * Samples of flows on a real gateway (topology: gateway-rig.ts): what the ends of flows say that no rule asks about, by the
 * records of the product's recorder; which packets are copied, how many, and that none waits for it.
 */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join as joinPath } from 'node:path';
import t from 'tap';
import { type Family, families } from '../../api/plan.ts';
import { asleep, detectTable } from '../../gateway/record/detect-table.ts';
import type { FlowRecord } from '../../gateway/record/flow-record.ts';
import { endFlows } from '../../kernel/conntrack.ts';
import { join } from '../../wire/bytes.ts';
import { buildTcp, buildUdp, PROTOCOL_TCP, PROTOCOL_UDP, TCP_ACK, TCP_SYN } from '../../wire/ip.ts';
import {
  ascii,
  cryptoFrame,
  helloMessage,
  postQuantumShare,
  record,
  sealInitial,
  serverName,
} from '../unit/hello-bytes.ts';
import { addRule, basePlan, PODS, WEB } from './gateway-plans.ts';
import { GatewayRig } from './gateway-rig.ts';
import { startRecorder } from './recorder-rig.ts';

t.setTimeout(300_000);
const state = mkdtempSync(joinPath(tmpdir(), 'sluice-test-'));
const rig = await GatewayRig.create('detect', state);
const options = { namespace: `t-detect-gw-${process.pid}` };
const recorder = await startRecorder(options.namespace, 0, true);
let closed = false;
t.teardown(async () => {
  if (!closed) await recorder.close();
  await rig.close();
  rmSync(state, { recursive: true });
});

/** All is permitted, by the default action or by a rule; port 81 leads elsewhere, port 82 nowhere. */
const plan = basePlan('Accept');
const add = (name: string, port: number, rule: object): void => {
  plan.services[`x/${name}`] = {
    addresses: Object.values(WEB),
    ports: [PROTOCOL_TCP, PROTOCOL_UDP].map((protocol) => ({ protocol, ports: [[port, port]] })),
  };
  addRule(plan, 'g-pay', { context: 'cluster', name, action: 'accept-decisively', services: [`x/${name}`] });
  Object.assign(plan.rules[`cluster/${name}`] ?? {}, rule);
};
add('web', 443, {});
add('elsewhere', 81, { redirect: { address: '198.51.100.90', port: 8081 } });
add('nowhere', 82, { action: 'drop' });
await rig.apply(plan);
await recorder.ask(JSON.stringify(plan));

let ports = 20_000;
const pod = (family: Family, who: keyof typeof PODS = 'pay') => ({
  source: PODS[who][family],
  destination: WEB[family],
});

interface Connection {
  say(bytes: Uint8Array): void;
  hear(bytes: Uint8Array): void;
}

/** A handshake, packet by packet. */
async function connect(family: Family, destinationPort: number): Promise<Connection> {
  const ends = { ...pod(family), sourcePort: ports++, destinationPort };
  rig.fromNode(buildTcp({ ...ends, flags: TCP_SYN, sequence: 1_000 }));
  const seen = (await rig.collect()).find(({ where, marker }) => where === 'outside' && marker === 1_000)?.packet;
  if (seen === undefined) throw new Error(`port ${destinationPort}: nothing left`);
  const back = {
    source: seen.destination,
    destination: seen.source,
    sourcePort: seen.destinationPort ?? 0,
    destinationPort: seen.sourcePort ?? 0,
  };
  rig.fromOutside(buildTcp({ ...back, flags: TCP_SYN | TCP_ACK, sequence: 5_000, acknowledgement: 1_001 }));
  await rig.collect();
  let [sent, received] = [1_001, 5_001];
  rig.fromNode(buildTcp({ ...ends, flags: TCP_ACK, sequence: sent, acknowledgement: received }));
  return {
    say(payload) {
      rig.fromNode(buildTcp({ ...ends, flags: TCP_ACK, sequence: sent, acknowledgement: received, payload }));
      sent += payload.length;
    },
    hear(payload) {
      rig.fromOutside(buildTcp({ ...back, flags: TCP_ACK, sequence: received, acknowledgement: sent, payload }));
      received += payload.length;
    },
  };
}

function datagram(family: Family, destinationPort: number, payload: Uint8Array, sourcePort = ports++): number {
  rig.fromNode(buildUdp({ ...pod(family), sourcePort, destinationPort, payload }));
  return sourcePort;
}

const question = (name: string): Uint8Array =>
  join([
    Uint8Array.of(0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0),
    ...name.split('.').map((label) => join([Uint8Array.of(label.length), ascii(label)])),
    Uint8Array.of(0, 0, 1, 0, 1),
  ]);

/** Records of all flows so far, which are ended for it: at once, or when nobody waits for what samples say any more. */
async function records(waitMs = 500): Promise<FlowRecord[]> {
  await rig.collect(waitMs);
  const all = (await recorder.ask('wait')).flatMap(({ record }) => record ?? []);
  await endFlows(({ original }) => /^(10|fd)/.test(original.source), options);
  for (let quiet = 0; quiet < 3; ) {
    await new Promise((resolve) => setTimeout(resolve, 50));
    const more = (await recorder.ask('wait')).flatMap(({ record }) => record ?? []);
    quiet = more.length === 0 ? quiet + 1 : 0;
    all.push(...more);
  }
  return all;
}
const said = ({ application, destinationName, sampled }: FlowRecord) => ({ application, destinationName, sampled });

t.test('what the ends of flows say', async (t) => {
  // Behind the chain that copies: packets have the marks that they had.
  await rig.nft.runScript(`table inet t_marks {
	counter seen { }
	counter other { }
	chain after {
		type filter hook forward priority -99
		counter name seen
		meta mark != { 0x00000000, 0x00000100 } counter name other
	}
}
`);
  let startsThatSay = 0;
  for (const family of families) {
    const one = await connect(family, 443);
    one.say(record(helloMessage({ extensions: [serverName('one.example.test')] })));
    const two = await connect(family, 4443);
    const hello = record(helloMessage({ extensions: [serverName('two.example.test'), postQuantumShare()] }));
    two.say(hello.subarray(0, 1200));
    two.say(hello.subarray(1200));
    const ssh = await connect(family, 22);
    ssh.hear(ascii('SSH-2.0-OpenSSH_9.2\r\n'));
    const silent = await connect(family, 23);
    silent.say(new Uint8Array(100).fill(0xee));
    datagram(family, 53, question('three.example.test'));
    const quic = sealInitial({
      frames: [cryptoFrame(0, helloMessage({ extensions: [serverName('four.example.test')] }))],
    });
    datagram(family, 443, quic);
    const late = datagram(family, 54, new Uint8Array(40).fill(0xee));
    for (let i = 0; i < 3; i++) datagram(family, 54, new Uint8Array(40).fill(0xee), late);
    datagram(family, 54, question('late.example.test'), late);
    if (family === 4) {
      const elsewhere = await connect(family, 81);
      elsewhere.say(ascii('GET / HTTP/1.1\r\nHost: five.example.test\r\n\r\n'));
      datagram(family, 82, question('denied.example.test'));
    }
    const all = await records();
    const ends = new Map(
      all.filter(({ event }) => event === 'end').map((end) => [`${end.protocol}/${end.destinationPort}`, end]),
    );
    const sample = (application: string, destinationName?: string) => ({ application, destinationName, sampled: true });
    const nothing = { application: undefined, destinationName: undefined, sampled: undefined };
    const expected = {
      'tcp/443': sample('TLS', 'one.example.test'),
      'tcp/4443': sample('TLS', 'two.example.test'),
      'tcp/22': sample('SSH'),
      'tcp/23': nothing,
      'udp/53': sample('DNS', 'three.example.test'),
      'udp/443': sample('QUIC', 'four.example.test'),
      'udp/54': nothing,
      ...(family === 4 && { 'tcp/81': sample('HTTP', 'five.example.test') }),
    };
    t.same(Object.fromEntries([...ends].map(([port, end]) => [port, said(end)])), expected, `IPv${family}`);
    t.match(ends.get('tcp/443'), { rule: 'web', packets: { egress: 3 } });
    t.match(ends.get('tcp/4443'), { reason: 'default-action' });
    const starts = all.filter(({ event }) => event === 'start');
    t.same(
      starts.map(({ protocol, destinationPort }) => `${protocol}/${destinationPort}`).sort(),
      Object.keys(expected).sort(),
      'each start is written once',
    );
    // One whose bytes come late, on a busy machine, says nothing.
    for (const start of starts) {
      const port = `${start.protocol}/${start.destinationPort}`;
      if (start.sampled === true) {
        t.same(said(start), Object.entries(expected).find(([key]) => key === port)?.[1], `${port}: what its end says`);
        startsThatSay++;
      } else t.same(said(start), nothing, `${port}: nothing`);
    }
    t.notOk(all.some(({ event, application }) => event === 'deny' && application !== undefined));
  }
  t.ok(startsThatSay > 0, `${startsThatSay} starts said it, too`);
  const { seen, other } = await rig.nft.counters('t_marks');
  t.ok((seen?.packets ?? 0) > 30 && other?.packets === 0, 'marks are as before');
  await rig.nft.drop('t_marks');
});

t.test('flows that a worker reads are not sampled', async (t) => {
  // As if their bytes were asked for, in this chain alone.
  await rig.nft.runScript(`table inet t_read {
	chain before { type filter hook forward priority -101; tcp dport 4444 ct mark set ct mark or 0x40000000; }
	chain after { type filter hook forward priority -99; tcp dport 4444 ct mark set ct mark and 0xbfffffff; }
}
`);
  for (const port of [4444, 4445]) {
    const one = await connect(4, port);
    one.say(record(helloMessage({ extensions: [serverName('one.example.test')] })));
  }
  const ends = (await records()).filter(({ event }) => event === 'end');
  t.equal(ends.find(({ destinationPort }) => destinationPort === 4444)?.application, undefined);
  t.equal(ends.find(({ destinationPort }) => destinationPort === 4445)?.application, 'TLS');
  t.equal(ends.length, 2);
  await rig.nft.drop('t_read');
});

t.test('a workload that opens hundreds of flows does not hide the others', async (t) => {
  for (let i = 0; i < 400; i++) {
    datagram(4, 53, question(`n${i}.example.test`));
    if (i % 100 === 0) await rig.collect(0);
  }
  for (let i = 0; i < 5; i++) {
    const ends = { ...pod(4, 'rev'), sourcePort: ports++, destinationPort: 53 };
    rig.fromNode(buildUdp({ ...ends, payload: question(`rev${i}.example.test`) }));
  }
  const ends = (await records()).filter(({ event }) => event === 'end');
  const read = (pod: string) => ends.filter((end) => end.pod === pod && end.application === 'DNS').length;
  t.equal(ends.length, 405, 'all passed');
  t.ok(read('pay') >= 20 && read('pay') < 200, `${read('pay')} of 400`);
  t.equal(read('rev'), 5);
});

t.test('asleep, the table is there and copies nothing', async (t) => {
  await rig.nft.runScript(`${detectTable}${asleep}`);
  datagram(4, 53, question('one.example.test'));
  const [end] = (await records()).filter(({ event }) => event === 'end');
  t.match(end, { destinationPort: 53, application: undefined });
  await rig.nft.runScript(detectTable);
  datagram(4, 53, question('two.example.test'));
  const [other] = (await records()).filter(({ event }) => event === 'end');
  t.match(other, { destinationPort: 53, application: 'DNS' });
});

t.test('a flow that ends while its start waits', async (t) => {
  datagram(4, 55, new Uint8Array(40).fill(0xee));
  const found = (await records(30)).map(({ event, destinationPort }) => `${event} ${destinationPort}`);
  t.same(found, ['start 55', 'end 55']);
});

t.test('whoever ends takes the table away', async (t) => {
  const table = (): Promise<boolean> => rig.nft.list('inet', 'sluice_detect').then(({ exists }) => exists);
  t.equal(await table(), true);
  closed = true;
  await recorder.close();
  t.equal(await table(), false);
});
