/**
 * `sluice flows`: records of one and several logs, their old parts, the standard input; filters; forms; lines that are no
 * records; and what comes while it follows, over rotations by the product's own writer.
 */
import { appendFileSync, mkdtempSync, readFileSync, renameSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Readable } from 'node:stream';
import fc from 'fast-check';
import t from 'tap';
import { parseAllDocuments } from 'yaml';
import { FlowReading, openFlows } from '../../cli/flow-files.ts';
import { FlowLog } from '../../gateway/record/flow-log.ts';
import type { FlowRecord } from '../../gateway/record/flow-record.ts';
import { RECORD_MAX, readRecord } from '../../gateway/record/read-record.ts';
import { sluice, sluiceInColours } from '../sluice.ts';

const dir = mkdtempSync(join(tmpdir(), 'sluice-flows-'));
t.teardown(() => rmSync(dir, { recursive: true }));

const start = Date.parse('2026-03-01T10:00:00Z');
/** As it is written: what is undefined is not there. */
const flow = (second: number, more: { [Field in keyof FlowRecord]?: FlowRecord[Field] | undefined } = {}): FlowRecord =>
  JSON.parse(JSON.stringify({ ...base(second), ...more })) as FlowRecord;
const base = (second: number): FlowRecord => ({
  time: new Date(start + second * 1000).toISOString(),
  event: 'end',
  verdict: 'accept',
  reason: 'service-accept',
  context: 'service',
  rule: 'billing/web',
  namespace: 'billing',
  pod: 'pay-1',
  services: ['payments'],
  node: 'node-a',
  protocol: 'tcp',
  source: '10.244.1.5',
  sourcePort: 40_000,
  destination: '198.51.100.80',
  destinationPort: 443,
  egressIP: '203.0.113.101',
  egressPort: 40_000,
  gateway: 'gw-a',
});
const text = (records: object[]): string => records.map((record) => `${JSON.stringify(record)}\n`).join('');
let files = 0;
function logOf(records: object[], name = `log-${files++}.jsonl`): string {
  const file = join(dir, name);
  writeFileSync(file, text(records));
  return file;
}
const denied = { event: 'deny', verdict: 'drop', reason: 'default-action', egressIP: undefined } as const;
const plain = { context: undefined, rule: undefined } as const;
const seconds = (out: string): number[] =>
  out
    .split('\n')
    .filter(Boolean)
    .map((line) => (Date.parse((JSON.parse(line) as FlowRecord).time) - start) / 1000);

t.test('a record is what its fields are', async (t) => {
  t.same(readRecord(JSON.stringify(flow(1))), JSON.parse(JSON.stringify(flow(1))));
  t.same(readRecord(JSON.stringify({ ...flow(1), later: { any: 1 } })), { ...flow(1), later: { any: 1 } });
  const bad: [what: string, line: string][] = [
    ['nothing', ''],
    ['no JSON', '{"time":'],
    ['a list', '[1]'],
    ['null', 'null'],
    ['no time', JSON.stringify({ ...flow(1), time: undefined })],
    ['no day', JSON.stringify({ ...flow(1), time: 'yesterday' })],
    ['another event', JSON.stringify({ ...flow(1), event: 'constructor' })],
    ['another verdict', JSON.stringify({ ...flow(1), verdict: 'maybe' })],
    ['a name for an address', JSON.stringify({ ...flow(1), destination: 'web.example.test' })],
    ['an address that is not canonical', JSON.stringify({ ...flow(1), destination: '2001:DB8::1' })],
    ['a list for an address', JSON.stringify({ ...flow(1), destination: ['198.51.100.80'] })],
    ['a port beyond ports', JSON.stringify({ ...flow(1), destinationPort: 65_536 })],
    ['a pod that is a number', JSON.stringify({ ...flow(1), pod: 7 })],
    ['services that are a text', JSON.stringify({ ...flow(1), services: 'payments' })],
    ['bytes without a direction', JSON.stringify({ ...flow(1), bytes: { egress: 1 } })],
    ['a prototype', `{"__proto__":{},${JSON.stringify(flow(1)).slice(1)}`],
    ['nested without end', `{"x":${'['.repeat(5_000)}${']'.repeat(5_000)},${JSON.stringify(flow(1)).slice(1)}`],
    ['longer than any', JSON.stringify({ ...flow(1), later: 'x'.repeat(RECORD_MAX) })],
  ];
  for (const [what, line] of bad) t.equal(readRecord(line), undefined, what);
  fc.assert(fc.property(fc.string(), (line) => readRecord(line) === undefined));
  fc.assert(
    fc.property(fc.json(), fc.constantFrom(...Object.keys(flow(1))), (value, field) => {
      readRecord(JSON.stringify({ ...flow(1), [field]: JSON.parse(value) }));
      return true;
    }),
  );
});

t.test('a table', async (t) => {
  const file = logOf([
    flow(0, { application: 'TLS', destinationName: 'api.example.test', sampled: true }),
    flow(1, { ...denied, ...plain, destination: '2001:db8::1', source: 'fd00:244:1::5' }),
    flow(2, { protocol: 'icmp', destinationPort: undefined, icmpType: 8, icmpCode: 0 }),
    flow(3, { redirectedTo: '198.51.100.90', redirectedPort: 8443, wouldHave: 'drop' }),
    flow(4, { pod: undefined, namespace: undefined, ...denied, ...plain, reason: 'unknown-source' }),
    flow(5, { application: 'HTTP', destinationName: 'web.example.test', http: { method: 'GET', path: '/a' } }),
  ]);
  const { code, out, err } = await sluice('flows', file);
  t.equal(code, 0);
  t.equal(err, '');
  const lines = out.split('\n');
  t.match(lines[0], /^TIME +VERDICT +EVENT +FROM +TO +SPEAKS +WHY$/);
  t.match(
    lines[1],
    /^2026-03-01T10:00:00Z +accept +end +billing\/pay-1 +tcp 198\.51\.100\.80:443 +TLS api\.example\.test +service billing\/web$/,
  );
  t.match(lines[2], /drop +deny +billing\/pay-1 +tcp \[2001:db8::1\]:443 +default-action$/);
  t.match(lines[3], /icmp 198\.51\.100\.80 8\/0 /);
  t.match(lines[4], /tcp 198\.51\.100\.80:443 > 198\.51\.100\.90:8443 +service billing\/web would drop$/);
  t.match(lines[5], / 10\.244\.1\.5 +tcp .* unknown-source$/);
  t.match(lines[6], /HTTP web\.example\.test GET \/a +service/);
  const at = lines.slice(0, 7).map((line) => line.search(/WHY|service billing|default-action|unknown-source/));
  t.equal(new Set(at).size, 1, 'columns are aligned');
  const wide = await sluice('flows', file, '-o', 'wide');
  t.match(wide.out, /^TIME.*EGRESS IP +GATEWAY +NODE +OUT +IN +SECONDS +SAMPLED +WHY/);
  t.match(wide.out.split('\n')[1], /203\.0\.113\.101:40000 +gw-a +node-a +yes +service/);
  t.notMatch(out, '\u001b');
  const colours = await sluiceInColours('flows', file);
  t.match(colours.out.split('\n')[1], '\u001b[32maccept');
  t.match(colours.out.split('\n')[2], '\u001b[31mdrop');
});

t.test('other forms', async (t) => {
  const records = [flow(0), flow(1, { destinationName: 'a\u009b2Jb.example' })];
  const file = logOf(records);
  const lines = (await sluice('flows', file, '-o', 'json')).out.split('\n').filter(Boolean);
  t.same(
    lines.map((line) => JSON.parse(line)),
    JSON.parse(JSON.stringify(records)),
    'a record a line',
  );
  const documents = parseAllDocuments((await sluice('flows', file, '-o', 'yaml')).out);
  t.same(
    Array.from(documents, (document) => document.toJS()),
    JSON.parse(JSON.stringify(records)),
  );
  for (const form of ['text', 'wide', 'json']) {
    t.notMatch((await sluice('flows', file, '-o', form)).out, '\u009b', `${form}: no control characters`);
  }
  t.equal((await sluice('flows', logOf([]))).out, '');
});

t.test('filters', async (t) => {
  const file = logOf([
    flow(0),
    flow(1, { pod: 'pay-2', application: 'TLS', destinationName: 'api.example.test' }),
    flow(2, { namespace: 'reviews', rule: 'reviews/web', event: 'start' }),
    flow(3, { ...denied, ...plain }),
    flow(4, { verdict: 'reject', event: 'deny', context: 'cluster', rule: 'no-smtp', destinationPort: 25 }),
    flow(5, { destination: '2001:db8::7', application: 'DNS', destinationName: 'example.test' }),
    flow(6, { redirectedTo: '192.0.2.9' }),
  ]);
  const rows: [flags: string[], expected: number[]][] = [
    [[], [0, 1, 2, 3, 4, 5, 6]],
    [['--namespace', 'reviews'], [2]],
    [['-n', 'billing', '--pod', 'pay-2'], [1]],
    [['--pod', 'billing/pay-2'], [1]],
    [['--pod', 'reviews/pay-2'], []],
    [
      ['--verdict', 'drop,REJECT'],
      [3, 4],
    ],
    [
      ['--verdict', 'drop', '--verdict', 'reject'],
      [3, 4],
    ],
    [['--event', 'start'], [2]],
    [
      ['--rule', 'web'],
      [0, 1, 2, 5, 6],
    ],
    [['--rule', 'reviews/web'], [2]],
    [['--rule', 'cluster/no-smtp'], [4]],
    [['--rule', 'service/no-smtp'], []],
    [
      ['--to', '198.51.100.80'],
      [0, 1, 2, 3, 4, 6],
    ],
    [['--to', '2001:db8::/32'], [5]],
    [['--to', '192.0.2.9'], [6]],
    [['--to', 'API.example.test.'], [1]],
    [['--to', '*.example.test'], [1]],
    [['--to', 'example.test'], [5]],
    [
      ['--application', 'tls,dns'],
      [1, 5],
    ],
    [
      ['--since', '2026-03-01T10:00:05Z'],
      [5, 6],
    ],
    [['--until', '2026-03-01T10:00:01Z'], [0]],
    [['--since', '9d', '--until', '1s', '--verdict', 'accept'], []],
    [
      ['--last', '2'],
      [5, 6],
    ],
    [['--last', '2', '--verdict', 'drop'], [3]],
    [
      ['--last', '100'],
      [0, 1, 2, 3, 4, 5, 6],
    ],
  ];
  for (const [flags, expected] of rows) {
    const { out } = await sluice('flows', file, '-o', 'json', ...flags);
    t.same(seconds(out), expected, flags.join(' '));
  }
  const wrong = [
    '--verdict maybe',
    '--event x',
    '--to a..b',
    '--to 1.2.3',
    '--since yesterday',
    '--last 0',
    '-o table',
  ];
  for (const flags of wrong) t.equal((await sluice('flows', file, ...flags.split(' '))).code, 2, flags);
});

t.test('several files', async (t) => {
  const a = logOf([flow(1), flow(4), flow(6)]);
  const b = logOf([flow(2), flow(3), flow(7)]);
  t.same(seconds((await sluice('flows', a, b, '-o', 'json')).out), [1, 2, 3, 4, 6, 7], 'by time');
  t.same(seconds((await sluice('flows', a, a, '-o', 'json')).out), [1, 4, 6], 'one once');
  const log = logOf([flow(9)], 'old.jsonl');
  for (const [n, name] of ['old.jsonl.1', 'old.jsonl.2', 'old.jsonl.10', 'old.jsonl.bak'].entries()) {
    logOf([flow(8 - n)], name);
  }
  t.same(seconds((await sluice('flows', log, '-o', 'json')).out), [6, 7, 8, 9], 'with what was rotated away');
  const again = await sluice('flows', log, `${log}.1`, '-o', 'json');
  t.same(seconds(again.out), [6, 7, 8, 9], 'what is named and rotated is read once');
  t.same(seconds((await sluice('flows', `${log}.2`, '-o', 'json')).out), [7], 'an old part alone');
});

t.test('what is missing, or no record', async (t) => {
  const missing = await sluice('flows', join(dir, 'nowhere.jsonl'));
  t.equal(missing.code, 1);
  t.match(missing.err, /^sluice: .*nowhere\.jsonl: there is no such file\n$/);
  const directory = await sluice('flows', dir);
  t.equal(directory.code, 1);
  t.match(directory.err, /: expected a file of flow records\n$/);
  const file = logOf([flow(0)]);
  appendFileSync(file, `no record\n\n${'x'.repeat(3 * RECORD_MAX)}\n${text([flow(1)])}\u0000\u001b[2J\n{"time"`);
  const { code, out, err } = await sluice('flows', file, '-o', 'json');
  t.equal(code, 0);
  t.same(seconds(out), [0, 1]);
  t.equal(err, `3 lines are no flow records, and passed over (the first is ${file}:2)\n`, 'counted, and said once');
  appendFileSync(file, `:1}\n`);
  t.match((await sluice('flows', file)).err, /^4 lines/, 'the last one was not at its end');
  const unended = logOf([flow(0)]);
  truncateSync(unended, text([flow(0)]).length - 1);
  t.same(seconds((await sluice('flows', unended, '-o', 'json')).out), [0], 'a record without a line end is one');
});

async function all(records: AsyncIterable<FlowRecord>): Promise<number[]> {
  const found: number[] = [];
  for await (const { time } of records) found.push((Date.parse(time) - start) / 1000);
  return found;
}

t.test('standard input, in any pieces', async (t) => {
  const bytes = Buffer.from(`${text([flow(0), flow(1, { pod: 'é' })])}bad\n${text([flow(2)])}`);
  await fc.assert(
    fc.asyncProperty(fc.array(fc.nat(bytes.length), { maxLength: 10 }), async (cuts) => {
      const at = [0, ...cuts.sort((a, b) => a - b), bytes.length];
      const reading = new FlowReading();
      const pieces = at.slice(1).map((end, i) => bytes.subarray(at[i], end));
      const flows = await openFlows(['-'], reading, {
        input: Readable.from(pieces.filter(({ length }) => length > 0)),
      });
      t.same(await all(flows.records()), [0, 1, 2]);
      t.match(reading, { bad: 1, firstBad: '-:3' });
    }),
    { numRuns: 50 },
  );
});

/** A follower of a log, and what it has seen. */
async function following(
  file: string,
): Promise<{ seen: number[]; reading: FlowReading; until(count: number): Promise<void>; end(): Promise<void> }> {
  const reading = new FlowReading();
  const flows = await openFlows([file], reading, { follow: true });
  const seen = await all(flows.records());
  const abort = new AbortController();
  const done = (async () => {
    for await (const { time } of flows.follow(abort.signal)) seen.push((Date.parse(time) - start) / 1000);
    await flows.close();
  })();
  return {
    seen,
    reading,
    async until(count) {
      for (let i = 0; i < 200 && seen.length < count; i++) await new Promise((resolve) => setTimeout(resolve, 25));
    },
    end() {
      abort.abort();
      return done;
    },
  };
}

t.test('follows over rotations by the gateway', async (t) => {
  const file = join(dir, 'followed.jsonl');
  // A record has some 450 bytes: a rotation at every third or so.
  const log = new FlowLog(file, 1_200);
  log.write(flow(0));
  log.flush();
  const follower = await following(file);
  let written = 1;
  // One at a time; and several rotations between two looks of the follower.
  for (const burst of [1, 1, 1, 1, 1, 1, 1, 1, 12, 1, 12, 2]) {
    for (let i = 0; i < burst; i++) {
      log.write(flow(written++));
      log.flush();
    }
    await follower.until(written);
  }
  t.same(
    follower.seen,
    Array.from({ length: written }, (_, i) => i),
    'each once, in order',
  );
  t.ok(readFileSync(`${file}.5`).length > 0, 'it was rotated often');
  t.equal(follower.reading.bad, 0);
  await follower.end();
  log.close();
});

t.test('follows a file that is cut, begun anew, or away for a while', async (t) => {
  const file = logOf([flow(0), flow(1)]);
  const follower = await following(file);
  const half = text([flow(2)]);
  appendFileSync(file, half.slice(0, 100));
  await new Promise((resolve) => setTimeout(resolve, 250));
  t.same(follower.seen, [0, 1], 'half a line is none');
  appendFileSync(file, half.slice(100));
  await follower.until(3);
  renameSync(file, `${file}.1`);
  appendFileSync(`${file}.1`, text([flow(3)]));
  await follower.until(4);
  writeFileSync(file, text([flow(4)]));
  await follower.until(5);
  truncateSync(file);
  await new Promise((resolve) => setTimeout(resolve, 250));
  appendFileSync(file, `bad\n${text([flow(5)])}`);
  await follower.until(6);
  t.same(follower.seen, [0, 1, 2, 3, 4, 5]);
  t.equal(follower.reading.bad, 1);
  await follower.end();
});
