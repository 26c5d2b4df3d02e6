/**
 * Rules with a schedule, from a manifest to a plan that changes at the edge: what is refused, what the plan and the status
 * say before and after an edge, the timer, the controller as it runs over a change of clocks, explain and lint.
 * Which instants are edges: property/schedule.test.ts.
 */
import { mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import { parse } from 'yaml';
import { type AnyObject, objectKey, parseObject, type ScheduleWindow } from '../../api/kinds.ts';
import type { GatewayPlan } from '../../api/plan.ts';
import { runCli } from '../../cli/program.ts';
import { Alarm } from '../../controller/alarm.ts';
import { runController } from '../../controller/main.ts';
import { emptyMemory, type PlannerMemory } from '../../controller/plan/memory.ts';
import { noPeers } from '../../controller/plan/peers.ts';
import { type PlanResult, plan } from '../../controller/plan/plan.ts';
import { createCa, issueCertificate } from '../../daemon/certs.ts';
import { silentLog } from '../../daemon/log.ts';
import { startPlanClient } from '../../daemon/stream-client.ts';
import { compilePolicy } from '../../policy/evaluate.ts';
import { scheduleState } from '../../policy/schedule.ts';

type Json = Record<string, unknown>;
const utc = (at: string): number => Date.parse(`${at.replace(' ', 'T')}Z`);

const document = (kind: string, name: string, spec: Json, more: Json = {}): Json => ({
  apiVersion: ['Namespace', 'Pod', 'Node'].includes(kind) ? 'v1' : 'sluice.dev/v1alpha1',
  kind,
  ...more,
  metadata: { name, creationTimestamp: '2026-01-01T00:00:00Z', ...(more.metadata as Json) },
  spec,
});
const inA = { metadata: { namespace: 'a' } };
const rule = (name: string, schedule: unknown, spec: Json = {}): Json =>
  document(
    'NamespaceEgressRule',
    name,
    { action: 'accept-decisively', externalServices: ['vault'], ...spec, schedule },
    inA,
  );
const vault = document('ExternalService', 'vault', { addresses: ['198.51.100.60', '2001:db8:100::60'] }, inA);
const world: Json[] = [
  document('Namespace', 'a', {}),
  document('Node', 'n1', {}, { status: { addresses: [{ type: 'InternalIP', address: '10.0.0.21' }] } }),
  document(
    'Pod',
    'one',
    { nodeName: 'n1' },
    {
      metadata: { namespace: 'a', uid: 'uid-one' },
      status: { phase: 'Running', podIPs: [{ ip: '10.1.0.1' }, { ip: 'fd01::1' }] },
    },
  ),
  document('GatewayPool', 'p', {
    namespaceSelector: {},
    gateways: [{ name: 'g1', internalAddress: '10.0.0.1' }],
    interfaces: { internal: 'in', external: { name: 'out' } },
    nextHops: { v4: ['10.0.0.64'], v6: ['fd00::64'] },
  }),
  document('EgressIPPool', 'd', {
    gatewayPool: 'p',
    ranges: ['192.0.2.1-192.0.2.9', '2001:db8::1-2001:db8::9'],
    namespaceSelector: {},
  }),
  document('EgressIP', 'a', { pool: 'd', addresses: ['192.0.2.1', '2001:db8::1'], namespaces: ['a'] }),
];

function snapshotOf(documents: Json[]): Map<string, AnyObject> {
  const snapshot = new Map<string, AnyObject>();
  for (const one of documents) {
    const parsed = parseObject(one);
    if (!parsed.ok) throw new Error(JSON.stringify(parsed.errors));
    snapshot.set(objectKey(parsed.value), parsed.value);
  }
  return snapshot;
}
const planAt = (at: string, documents: Json[], memory: PlannerMemory = emptyMemory()): PlanResult =>
  plan(snapshotOf(documents), memory, noPeers(), utc(at));
const outcomes = (gatewayPlan: GatewayPlan | undefined): string[] => {
  if (gatewayPlan === undefined) return ['no plan'];
  const { decide } = compilePolicy(gatewayPlan);
  const flows = [
    ['10.1.0.1', '198.51.100.60'],
    ['fd01::1', '2001:db8:100::60'],
  ] as const;
  return flows.map(([source, destination]) => {
    const { verdict, rule, reason } = decide({ source, destination, protocol: 6, destinationPort: 443 });
    return `${verdict} ${rule ?? reason}`;
  });
};
const both = (outcome: string): string[] => [outcome, outcome];
/** A slow machine's second. A controller that missed an edge would see it within a minute. */
const SOON_MS = 10_000;

t.test('a clock that is set back finds the schedule as it was then', async (t) => {
  const schedule: ScheduleWindow[] = [{ from: '08:00', to: '17:00', timezone: 'UTC' }];
  for (const [at, open, until] of [
    ['2026-11-27 12:00:00', true, '2026-11-27 17:00:00'],
    ['2026-11-27 04:00:00', false, '2026-11-27 08:00:00'],
    ['2026-11-26 12:00:00', true, '2026-11-26 17:00:00'],
    ['2022-11-26 17:00:00', false, '2022-11-27 08:00:00'],
    ['2026-11-27 12:00:00', true, '2026-11-27 17:00:00'],
  ] as const) {
    t.same(scheduleState(schedule, utc(at)), { open, nextChange: utc(until) }, at);
  }
});

t.test('what a schedule may be', async (t) => {
  const good: unknown[] = [
    [{ from: '22:00', to: '04:00' }],
    [{ from: '00:00', to: '24:00', timezone: 'Europe/Berlin', days: ['Sat', 'Sun'] }],
    [{ from: '23:59', to: '00:00', timezone: 'America/Argentina/Buenos_Aires' }],
    [{ from: '08:00', to: '12:00', timezone: 'Etc/GMT+5' }],
    Array.from({ length: 32 }, () => ({ from: '08:00', to: '12:00' })),
  ];
  for (const schedule of good) t.ok(parseObject(rule('r', schedule)).ok, JSON.stringify(schedule).slice(0, 80));
  const defaults = parseObject(rule('r', [{ from: '22:00', to: '04:00' }]));
  t.match(defaults, { value: { spec: { schedule: [{ timezone: 'UTC' }] } } }, 'UTC unless said otherwise');
  t.ok(parseObject(rule('r', undefined)).ok);

  const window = { from: '22:00', to: '04:00' };
  const zone = 'a time zone of the IANA database, as in Europe/Berlin';
  const bad: [unknown, string, string, string][] = [
    [[], 'spec.schedule', 'at least 1 item', 'an empty list'],
    [{}, 'spec.schedule', 'a list', 'an object'],
    [Array(33).fill(window), 'spec.schedule', 'at most 32 items', '33 items'],
    [[{ to: '04:00' }], 'spec.schedule[0].from', 'text in quotes with a time from "00:00" to "23:59"', 'nothing'],
    [
      [{ ...window, to: undefined }],
      'spec.schedule[0].to',
      'text in quotes with a time from "00:00" to "24:00"',
      'nothing',
    ],
    // What a reader of YAML 1.1 makes of 22:00 without quotes.
    [
      [{ ...window, from: 1320 }],
      'spec.schedule[0].from',
      'text in quotes with a time from "00:00" to "23:59"',
      '1320',
    ],
    [
      [{ ...window, from: '24:00' }],
      'spec.schedule[0].from',
      'text in quotes with a time from "00:00" to "23:59"',
      '"24:00"',
    ],
    [
      [{ ...window, to: '24:01' }],
      'spec.schedule[0].to',
      'text in quotes with a time from "00:00" to "24:00"',
      '"24:01"',
    ],
    [
      [{ ...window, to: '4:000' }],
      'spec.schedule[0].to',
      'text in quotes with a time from "00:00" to "24:00"',
      '"4:000"',
    ],
    [[{ ...window, to: '04:00:00' }], 'spec.schedule[0].to', 'at most 5 characters', '8 characters'],
    [
      [window, { ...window, to: '22:00' }],
      'spec.schedule[1].to',
      'other than from; a whole day is "00:00" to "24:00"',
      '"22:00"',
    ],
    [[{ ...window, timezone: 'Europe/Atlantis' }], 'spec.schedule[0].timezone', zone, '"Europe/Atlantis"'],
    [[{ ...window, timezone: '+01:00' }], 'spec.schedule[0].timezone', zone, '"+01:00"'],
    [[{ ...window, timezone: '../etc/passwd' }], 'spec.schedule[0].timezone', zone, '"../etc/passwd"'],
    [[{ ...window, timezone: 'x'.repeat(65) }], 'spec.schedule[0].timezone', 'at most 64 characters', '65 characters'],
    [[{ ...window, days: [] }], 'spec.schedule[0].days', 'at least 1 item', 'an empty list'],
    [
      [{ ...window, days: ['Monday'] }],
      'spec.schedule[0].days[0]',
      'Sun or Mon or Tue or Wed or Thu or Fri or Sat',
      '"Monday"',
    ],
    [[{ ...window, days: ['Mon', 'Mon'] }], 'spec.schedule[0].days[1]', 'other than spec.schedule[0].days[0]', '"Mon"'],
    [[{ ...window, until: '04:00' }], 'spec.schedule[0].until', 'absent: unknown field', '"04:00"'],
  ];
  for (const [schedule, path, expected, got] of bad) {
    const parsed = parseObject(rule('r', schedule));
    t.same(parsed.ok ? [] : parsed.errors, [{ path, expected, got }], JSON.stringify(schedule).slice(0, 80));
  }
});

t.test('the plan on both sides of an edge: a change of clocks', async (t) => {
  // The clocks of Berlin go from 02:00 to 03:00 at 01:00 UTC: 02:30 does not happen, and the window opens at 03:00.
  const spring = [{ from: '02:30', to: '04:00', timezone: 'Europe/Berlin', days: ['Sun'] }];
  const documents = [...world, vault, rule('backup', spring)];
  const rows: [at: string, outcome: string, next: string][] = [
    ['2026-03-29 00:59:59.999', 'drop default-action', '2026-03-29 01:00:00'],
    ['2026-03-29 01:00:00', 'accept namespace/a/backup', '2026-03-29 02:00:00'],
    ['2026-03-29 01:59:59.999', 'accept namespace/a/backup', '2026-03-29 02:00:00'],
    ['2026-03-29 02:00:00', 'drop default-action', '2026-04-05 00:30:00'],
  ];
  for (const [at, outcome, next] of rows) {
    const { pools, statuses, wakeAt } = planAt(at, documents);
    t.same(outcomes(pools.get('p')), both(outcome), at);
    t.equal(wakeAt, utc(next), `${at}: the plan holds until ${next}`);
    const open = outcome.startsWith('accept');
    t.equal(
      pools.get('p')?.rules['namespace/a/backup'] !== undefined,
      open,
      'a gateway does not hear of a closed rule',
    );
    const z = `${next.replace(' ', 'T')}Z`;
    t.match(statuses.get('NamespaceEgressRule/a/backup'), {
      schedule: open ? 'Open' : 'Closed',
      nextChange: z,
      conditions: [
        {
          type: 'Accepted',
          status: 'True',
          reason: open ? 'Accepted' : 'OutOfSchedule',
          message: open
            ? `the rule is in force; by its schedule it applies until ${z}`
            : `out of its schedule until ${z}`,
        },
      ],
    });
  }
  const always = planAt('2026-03-29 00:00:00', [...world, vault, rule('always', [{ from: '00:00', to: '24:00' }])]);
  t.equal(always.wakeAt, undefined, 'nothing to wait for');
  t.match(always.statuses.get('NamespaceEgressRule/a/always'), { schedule: 'Open', nextChange: undefined });
  const without = planAt('2026-03-29 00:00:00', [...world, vault, rule('plain', undefined)]);
  t.notOk('schedule' in (without.statuses.get('NamespaceEgressRule/a/plain') ?? {}), 'a rule without one says nothing');
});

t.test('every context, and the first edge of all rules counts', async (t) => {
  const day = [{ from: '08:00', to: '18:00' }];
  const slice = document(
    'EndpointSlice',
    's',
    {},
    {
      metadata: { namespace: 'a', labels: { 'kubernetes.io/service-name': 'app' } },
      addressType: 'IPv4',
      endpoints: [{ addresses: ['10.1.0.1'], conditions: { ready: true } }],
    },
  );
  const { spec, ...rest } = slice;
  const documents = [
    ...world,
    vault,
    { ...rest, apiVersion: 'discovery.k8s.io/v1' },
    document('ClusterEgressRule', 'freeze', {
      action: 'reject',
      externalServices: ['*'],
      schedule: [{ from: '12:00', to: '13:00' }],
    }),
    document(
      'ServiceEgressRule',
      'app',
      { action: 'accept', service: 'app', externalServices: ['vault'], schedule: day },
      inA,
    ),
  ];
  for (const [at, outcome, next] of [
    ['07:00', 'drop default-action', '08:00'],
    ['08:00', 'accept service/a/app', '12:00'],
    ['12:00', 'reject cluster/freeze', '13:00'],
    ['13:00', 'accept service/a/app', '18:00'],
  ] as const) {
    const { pools, wakeAt } = planAt(`2026-11-27 ${at}:00`, documents);
    t.same(outcomes(pools.get('p')), both(outcome), at);
    t.equal(wakeAt, utc(`2026-11-27 ${next}:00`));
  }
});

t.test('a veto out of its schedule keeps the list that it will enforce', async (t) => {
  const veto = rule('veto', [{ from: '12:00', to: '13:00' }], { action: 'drop' });
  const permit = rule('permit', undefined, { externalServices: ['*'], priority: 2000 });
  const closed = planAt('2026-11-27 11:00:00', [...world, vault, veto, permit]);
  t.same(outcomes(closed.pools.get('p')), both('accept namespace/a/permit'));
  // Its ExternalService is deleted before it ever opened.
  const gone = planAt('2026-11-27 11:30:00', [...world, veto, permit], closed.memory);
  const open = planAt('2026-11-27 12:00:00', [...world, veto, permit], gone.memory);
  t.same(outcomes(open.pools.get('p')), both('drop namespace/a/veto'));
});

t.test('the timer looks at the clock again, whatever the clock does', async (t) => {
  let now = 1000;
  let rang = 0;
  const alarm = new Alarm(
    () => {
      rang++;
    },
    () => now,
    5,
  );
  t.teardown(() => alarm.close());
  const pause = () => new Promise((done) => setTimeout(done, 40));
  alarm.set(1000, 1e9);
  await pause();
  t.equal(rang, 0, 'not before');
  now = 1e9;
  await pause();
  t.equal(rang, 1, 'a clock that was set forward, or a machine that slept');
  alarm.set(now, now + 1e9);
  now -= 1;
  await pause();
  t.equal(rang, 2, 'a clock that was set back');
  alarm.set(now, now - 10);
  t.equal(rang, 2, 'never while it is being set');
  await pause();
  t.equal(rang, 3);
  alarm.set(now, now + 50);
  alarm.set(now, undefined);
  now += 100;
  await pause();
  t.equal(rang, 3, 'what replaces an alarm replaces it');
  alarm.set(now, now + 50);
  alarm.close();
  now += 100;
  await pause();
  t.equal(rang, 3, 'closed');
  const far = new Alarm(
    () => {
      rang++;
    },
    () => now,
  );
  far.set(now, now + 2 ** 40);
  await pause();
  t.equal(rang, 3, 'an edge beyond what a timer takes does not ring at once');
  far.close();
});

t.test('runController: the plan changes within a second of the edge', async (t) => {
  const root = await mkdtemp(join(tmpdir(), 'sluice-s-'));
  t.teardown(() => rm(root, { recursive: true, force: true }));
  const manifests = join(root, 'manifests');
  const certs = (name: string) => join(root, 'certs', name);
  await mkdir(manifests);
  await createCa(certs('ca'));
  const addresses = ['127.0.0.1'];
  await issueCertificate({ caDir: certs('ca'), outDir: certs('ctl'), role: 'controller', name: 'c', addresses });
  await issueCertificate({ caDir: certs('ca'), outDir: certs('g1'), role: 'gateway', name: 'g1', addresses: [] });
  // Open for the second 03:00 to 03:01 of the spring change in Berlin, that is from 01:00 UTC.
  const spring = [{ from: '02:30', to: '03:01', timezone: 'Europe/Berlin' }];
  const documents = [...world, vault, rule('backup', spring)];
  await writeFile(join(manifests, 'all.yaml'), documents.map((one) => JSON.stringify(one)).join('\n---\n'));

  const edge = utc('2026-03-29 01:00:00');
  // Long before: who knows how long all of it takes to start.
  let offset = edge - 600_000 - Date.now();
  const now = () => Date.now() + offset;
  const controller = await runController({
    source: `directory:${manifests}`,
    state: join(root, 'state'),
    listen: { host: '127.0.0.1', port: 0 },
    certs: certs('ctl'),
    log: silentLog(),
    now,
  });
  t.teardown(() => controller.close());
  const changes: { at: number; outcome: string[] }[] = [];
  const client = startPlanClient({
    role: 'gateway',
    name: 'g1',
    url: `https://127.0.0.1:${controller.port}`,
    certs: certs('g1'),
    addresses: [],
    log: silentLog(),
    async onPlan(next: GatewayPlan) {
      const outcome = outcomes(next);
      if (changes.at(-1)?.outcome.join() !== outcome.join()) changes.push({ at: now(), outcome });
    },
  });
  t.teardown(() => client.close());
  const until = async (title: string, check: () => boolean | Promise<boolean>) => {
    const since = performance.now();
    while (!(await check()) && performance.now() - since < 60_000) await new Promise((done) => setTimeout(done, 2));
    t.ok(await check(), title);
  };
  const status = async (): Promise<Json> => {
    const file = join(manifests, '.status', 'NamespaceEgressRule', 'a', 'backup.yaml');
    const text = await readFile(file, 'utf8').catch(() => 'status: {}');
    return (parse(text) as { status: Json }).status;
  };
  await until('closed before the edge', () => changes.length === 1);
  t.same(changes[0]?.outcome, both('drop default-action'));
  await until('its status says so', async () => (await status()).schedule === 'Closed');
  t.equal((await status()).nextChange, '2026-03-29T01:00:00Z');
  t.ok(now() < edge, 'and the edge is still to come');
  // The clock is set forward; any event, here a manifest, makes the controller look at it before its minute is over.
  const touch = (name: string) =>
    writeFile(join(manifests, `${name}.yaml`), JSON.stringify(document('Namespace', name, {})));
  offset = edge - 1500 - Date.now();
  await touch('b');
  await until('opened', () => changes.length === 2);
  t.same(changes[1]?.outcome, both('accept namespace/a/backup'));
  const late = (changes[1]?.at ?? 0) - edge;
  t.ok(late >= 0 && late < SOON_MS, `${late} ms after the edge`);
  t.comment(`opened ${late} ms after the edge`);
  await until('its status says so', async () => (await status()).schedule === 'Open');
  t.equal((await status()).nextChange, '2026-03-29T01:01:00Z');
  offset = edge + 58_500 - Date.now();
  await touch('c');
  await until('closed again', () => changes.length === 3);
  const closed = (changes[2]?.at ?? 0) - edge - 60_000;
  t.same(changes[2]?.outcome, both('drop default-action'));
  t.ok(closed >= 0 && closed < SOON_MS, `${closed} ms after the edge`);
  t.comment(`closed ${closed} ms after the edge`);
});

async function sluice(...args: string[]): Promise<{ code: number; out: string; err: string }> {
  const said = { out: '', err: '' };
  const code = await runCli(args, {
    writeOut: (text) => {
      said.out += text;
    },
    writeErr: (text) => {
      said.err += text;
    },
    getOutHasColors: () => false,
  });
  return { code, ...said };
}

t.test('the command: explain --at, get, lint', async (t) => {
  const root = await mkdtemp(join(tmpdir(), 'sluice-s-'));
  t.teardown(() => rm(root, { recursive: true, force: true }));
  const night = [{ from: '22:00', to: '04:00', timezone: 'Europe/Berlin' }];
  const documents = [
    ...world,
    vault,
    rule('night', night),
    // Would be said to hide `rest`, and to permit nothing, if its hours were not its own.
    document(
      'NamespaceEgressRule',
      'calm',
      { action: 'drop', externalServices: ['*'], priority: 5, schedule: night },
      inA,
    ),
    rule('rest', undefined, { externalServices: ['*'], priority: 2000 }),
  ];
  await writeFile(join(root, 'all.yaml'), documents.map((one) => JSON.stringify(one)).join('\n---\n'));
  const source = ['--source', `directory:${root}`];
  const ask = (at: string, ...more: string[]) =>
    sluice('explain', ...source, '--from', 'a/one', '--to', '198.51.100.60:443', '--at', at, ...more);
  const noon = await ask('2026-11-27T12:00:00+01:00');
  t.match(noon.out, /namespace\/a\/night +does not apply: out of its schedule until 2026-11-27T21:00:00Z\n/);
  t.match(noon.out, /^accept \(rule\)\nAccepted by namespace\/a\/rest/m);
  t.match(JSON.parse((await ask('2026-11-27T12:00+01:00', '-o', 'json')).out), {
    excluded: [
      { rule: 'namespace/a/calm', outOfSchedule: true },
      { rule: 'namespace/a/night', outOfSchedule: true, why: 'out of its schedule until 2026-11-27T21:00:00Z' },
    ],
  });
  const midnight = await ask('2026-11-27T23:30:00Z');
  t.notMatch(midnight.out, /does not apply/);
  t.match(midnight.out, /^drop \(rule\)\nDropped by namespace\/a\/calm/m);
  for (const bad of [
    'noon',
    '2026-11-27T12:00',
    '2026-11-27',
    '2026-13-27T12:00Z',
    '2026-02-30T12:00Z',
    '1969-01-01T00:00Z',
  ]) {
    t.match(await ask(bad), { code: 2, err: /expected a time since 1970/ }, bad);
  }

  t.same((await sluice('lint', root)).out, '', 'neither hides another nor permits nothing');

  await mkdir(join(root, '.status', 'NamespaceEgressRule', 'a'), { recursive: true });
  await writeFile(
    join(root, '.status', 'NamespaceEgressRule', 'a', 'night.yaml'),
    'status: { schedule: Closed, nextChange: "2026-11-27T21:00:00Z" }\n',
  );
  const shown = await sluice('get', 'nsgr', ...source);
  t.match(shown.out, / SCHEDULE +NEXTCHANGE /);
  t.match(shown.out, /night .* Closed +2026-11-27T21:00:00Z/);
});
