/**
 * Inspection through the gateway program itself, with real clients and servers (inspect-rig.ts): a policy by names and by what
 * ports must say; what the server received is what must have been let on. Worker crashes, kill -9, tables that somebody
 * flushes, policies that change under established connections.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import t from 'tap';
import {
  type Action,
  type Family,
  families,
  type GatewayPlan,
  type PortCheck,
  type ServiceEntry,
} from '../../api/plan.ts';
import { isUndecided } from '../../gateway/marks.ts';
import { listFlows } from '../../kernel/conntrack.ts';
import { cpuLatency } from '../../kernel/cpu-latency.ts';
import { readServerTls } from '../../wire/tls.ts';
import { extension, groups, helloMessage, list16, record, serverName, versions } from '../unit/hello-bytes.ts';
import { basePlan, directPlan, PODS, WEB } from './gateway-plans.ts';
import { InspectRig, RESOLVER } from './inspect-rig.ts';

t.setTimeout(300_000);
const TCP = 6;
const UDP = 17;
const tls = (more: Partial<PortCheck> = {}): PortCheck => ({
  protocol: TCP,
  ports: [[443, 443]],
  application: 'TLS',
  ...more,
});

interface Rules {
  /** Names that pay may reach by TLS. */
  names?: string[];
  http?: PortCheck['http'];
  /** More checks of the address itself. */
  checks?: PortCheck[];
  /** What nothing else permits is answered, rather than dropped by default. */
  reject?: boolean;
  /** Everything at the address of the web server, unread. */
  plain?: boolean;
  /** At these ports the name's address decides. */
  unread?: number[];
}

/** pay: DNS at the resolver; TLS to names; HTTP and others at the web server's address. rev: all of it, unread. */
function policy({
  names = ['api.test'],
  http,
  checks = [],
  reject = true,
  plain,
  unread = [],
}: Rules = {}): GatewayPlan {
  const plan = directPlan(basePlan());
  if ('pool' in plan.settings) {
    plan.settings.pool.dns = { resolvers: Object.values(RESOLVER) };
    plan.settings.pool.inspection = { workers: 2 };
  }
  const web = [`${WEB[4]}/32`, `${WEB[6]}/128`];
  const rule = (group: string, name: string, action: Action, services: string[] | '*'): void => {
    const id = `namespace/billing/${name}`;
    plan.rules[id] = { context: 'namespace', namespace: 'billing', name, action, priority: 1, services };
    plan.groups[group]?.rules.namespace.push(id);
  };
  const add = (group: string, name: string, service: ServiceEntry): void => {
    plan.services[`billing/${name}`] = service;
    rule(group, name, 'accept-decisively', [`billing/${name}`]);
  };
  const resolvers = [`${RESOLVER[4]}/32`, `${RESOLVER[6]}/128`];
  add('g-pay', 'dns', { addresses: resolvers, ports: [UDP, TCP].map((protocol) => ({ protocol, ports: [[53, 53]] })) });
  if (names.length > 0) {
    add('g-pay', 'api', {
      addresses: [],
      names,
      ports: [{ protocol: TCP, ports: [[443, 443]] }],
      checks: [tls({ implied: true })],
    });
  }
  if (http !== undefined) {
    const entry = { protocol: TCP, ports: [[80, 80]] as [number, number][] };
    add('g-pay', 'http', { addresses: web, ports: [entry], checks: [{ ...entry, application: 'HTTP', http }] });
  }
  if (checks.length > 0) add('g-pay', 'checked', { addresses: web, ports: checks, checks });
  if (plain) add('g-pay', 'plain', { addresses: web, ports: null });
  if (unread.length > 0) {
    const ports: [number, number][] = unread.map((port) => [port, port]);
    add('g-pay', 'unread', { addresses: [], names: ['api.test'], ports: [{ protocol: TCP, ports }] });
  }
  if (reject) rule('g-pay', 'rest', 'reject', '*');
  add('g-rev', 'all', { addresses: web, ports: null });
  return plan;
}

const rig = await InspectRig.create('e2e');
t.teardown(() => rig.close());
const now = (): string => new Date().toISOString();
const teach = async (name: string): Promise<void> => {
  for (const family of families) {
    await rig.client({ do: 'ask', from: PODS.pay[family], server: RESOLVER[family], name, family });
  }
};
const hello = (family: Family, name: string | undefined, keep?: string, port = 443) =>
  rig.client({
    do: 'tls',
    from: PODS.pay[family],
    to: WEB[family],
    port,
    ...(name !== undefined && { name }),
    ...(keep !== undefined && { keep }),
  });
const raw = (family: Family, port: number, texts: string[], keep?: string) =>
  rig.client({ do: 'tcp', from: PODS.pay[family], to: WEB[family], port, texts, ...(keep !== undefined && { keep }) });

/** Silence takes its time. */
const both = (work: (family: Family) => Promise<void>) => Promise.all(families.map(work));

const LATENCY = 7;
const options = ['--cpu-latency', String(LATENCY)];
/** What the program asks of the CPUs, where the machine has that device. */
const asksCpus = (): boolean => rig.files().includes('/dev/cpu_dma_latency');

await rig.start({ options });

t.test('a plan that asks nothing: nothing of inspection is there', async (t) => {
  await rig.publish(policy({ names: [] }));
  t.notMatch(rig.inside('nft list tables'), /sluice_inspect/);
  t.notMatch(rig.inside('iptables-nft -t mangle -S FORWARD'), /NFQUEUE/);
  t.equal(rig.metric('sluice_inspection_queues', 'serving'), 0);
  t.notOk(asksCpus());
});

t.test('TLS by name: allowed, refused at once, and what is no TLS', async (t) => {
  const since = now();
  await rig.publish(policy());
  const told = rig.log.some((line) => line.includes('CPUs may sleep'));
  t.not(asksCpus(), told, 'CPUs are asked to wake sooner, or it is said that they cannot');
  if (asksCpus()) t.ok(cpuLatency() <= LATENCY, 'and the kernel has it');
  t.match(rig.inside('nft list tables'), /sluice_inspect/);
  await rig.until('threads that serve', () => rig.metric('sluice_inspection_queues', 'serving') === 2);
  await teach('api.test');
  await teach('other.test');
  await rig.received();
  for (const family of families) {
    t.match(await hello(family, 'api.test'), { outcome: 'answered', text: 'over TLS: 5' }, `v${family}: the name`);
    const other = await hello(family, 'other.test');
    t.match(other, { outcome: 'ECONNRESET' }, `v${family}: another name of the same address`);
    t.ok((other.took ?? 0) < 2_000, `after ${other.took} ms`);
    t.match(await hello(family, undefined), { outcome: 'ECONNRESET' }, `v${family}: no name`);
    t.match(await raw(family, 443, ['SSH-2.0-x\r\n']), { outcome: 'ECONNRESET' }, `v${family}: SSH on 443`);
    t.match(
      await raw(family, 80, ['GET / HTTP/1.1\r\n\r\n']),
      { outcome: /ECONNREFUSED|silence|ETIMEDOUT/ },
      'nothing asked',
    );
  }
  const received = await rig.received();
  t.equal(received.filter(({ text }) => text === 'hello').length, 2, 'the server has the bytes of the permitted');
  t.same(received.filter(({ text }) => /^\d+ bytes of/.test(text)).length, 2, 'and no stream of any other');
  const left = (await listFlows({ namespace: rig.gateway })).filter(({ mark }) => isUndecided(mark));
  t.same(left, [], 'nothing is left of the denied in the connection table');
  const [started] = await rig.recordsWith(since, { event: 'start', destinationName: 'api.test' }, 2);
  t.match(started, {
    verdict: 'accept',
    rule: 'billing/api',
    application: 'TLS',
    tls: { version: '1.3' },
    egressIP: /./,
    pod: 'pay',
  });
  const denied = await rig.recordsWith(since, { event: 'deny', destinationName: 'other.test' }, 2);
  t.match(denied[0], {
    verdict: 'reject',
    reason: 'rule',
    rule: 'billing/rest',
    application: 'TLS',
    destinationPort: 443,
  });
  const unread = await rig.recordsWith(
    since,
    { event: 'deny', destinationPort: 443, application: undefined as never },
    2,
  );
  t.match(unread[0], { verdict: 'reject', rule: 'billing/rest' }, 'SSH on 443');
  t.ok((rig.metric('sluice_inspection_decided_total', 'application="TLS",verdict="accept"') ?? 0) >= 2);
  const hits = (rule: string): number => rig.metric('sluice_rule_hits_total', `rule="${rule}"`) ?? 0;
  t.equal(hits('api'), 2, 'hits of the rule that permits');
  // Of each family three that were read, and one that was not.
  t.equal(hits('rest'), 8, 'and of the one that denies');
});

t.test('a second hello that the server asks for has to name what the first did', async (t) => {
  await teach('api.test');
  const said = (name: string, shares: number[]): string =>
    Buffer.from(
      record(
        helloMessage({
          extensions: [
            serverName(name),
            versions(0x0304),
            extension(13, list16(Uint8Array.of(4, 3, 8, 4, 4, 1))),
            ...groups([0x1d, 0x17], shares),
          ],
        }),
      ),
    ).toString('latin1');
  const messageOf = ({ text = '' }: { text?: string }): object => readServerTls(Buffer.from(text, 'latin1'));
  for (const family of families) {
    await rig.received();
    const asked = await raw(family, 443, [said('api.test', [])]);
    t.match(messageOf(asked), { value: { message: 'hello-retry-request' } }, `v${family}: the server asks for a share`);
    const same = await raw(family, 443, [said('api.test', []), said('api.test', [0x1d])]);
    t.match(messageOf(same), { value: { message: 'server-hello' } }, `v${family}: and gets it`);
    const since = now();
    const first = said('api.test', []);
    t.match(await raw(family, 443, [first, said('other.test', [0x1d])]), { outcome: 'ECONNRESET' });
    await rig.until('the server has no more of it', async () =>
      (await rig.received()).some(({ text }) => text === `${first.length} bytes of a stream`),
    );
    const [denied] = await rig.recordsWith(since, { event: 'deny', detail: 'other-second-hello' });
    t.match(denied, { destinationPort: 443, verdict: 'reject' });
    t.match(await hello(family, 'api.test'), { outcome: 'answered' });
  }
});

t.test('the version that a server chooses', async (t) => {
  const ports: [number, number][] = [
    [443, 443],
    [8443, 8443],
  ];
  await rig.publish(policy({ names: [], checks: [tls({ ports, tls: { minVersion: '1.3' } })] }));
  const since = now();
  for (const family of families) {
    t.match(await hello(family, 'api.test'), { outcome: 'answered' }, `v${family}: 1.3`);
    t.match(await hello(family, 'api.test', undefined, 8443), { outcome: 'ECONNRESET' }, `v${family}: 1.2, of both`);
  }
  const [denied] = await rig.recordsWith(since, { event: 'deny', destinationPort: 8443 }, 2);
  t.match(denied, { tls: { version: '1.2' }, verdict: 'reject' });
  await rig.received();
});

t.test('a resolver that is asked over TCP, in several segments, teaches what is said', async (t) => {
  await rig.publish(policy({ names: ['**.stream.test'] }));
  for (const family of families) {
    const name = `v${family}.stream.test`;
    const before = rig.metric('sluice_inspection_names_total', 'result="taught"') ?? 0;
    const learned = rig.metric('sluice_gateway_names_learned_total', 'by="answer"') ?? 0;
    const told = await rig.client({ do: 'askStream', from: PODS.pay[family], server: RESOLVER[family], name, family });
    t.match(told, { outcome: 'answered' });
    t.equal(
      rig.metric('sluice_inspection_names_total', 'result="taught"'),
      before + 1,
      `v${family}: the answer teaches`,
    );
    t.equal(rig.metric('sluice_gateway_names_learned_total', 'by="answer"'), learned + 1, 'before the client has it');
    t.match(await hello(family, name), { outcome: 'answered' });
  }
  t.equal(rig.metric('sluice_inspection_untaught_total'), 0);
  await rig.received();
});

t.test('what no rule denies by a rejection is dropped in silence', async (t) => {
  const since = now();
  await rig.publish(policy({ reject: false }));
  t.match(await hello(4, 'other.test'), { outcome: 'silence' });
  const [denied] = await rig.recordsWith(since, { event: 'deny', destinationName: 'other.test' });
  t.match(denied, { verdict: 'drop', reason: 'default-action' });
  t.equal(rig.metric('sluice_rule_hits_total', 'context="default"'), 1);
  t.same(await rig.received(), []);
});

t.test('HTTP for life: each request of a connection', async (t) => {
  const since = now();
  await rig.publish(policy({ http: { methods: ['GET'], paths: ['/ok', '/sub/*'] } }));
  const get = (path: string, method = 'GET'): string => `${method} ${path} HTTP/1.1\r\nHost: web.test\r\n\r\n`;
  for (const family of families) {
    const keep = `http${family}`;
    t.match(await raw(family, 80, [get('/ok'), get('/sub/x')], keep), { outcome: 'answered', text: /GET \/sub\/x/ });
    await rig.received();
    t.match(
      await rig.client({ do: 'send', keep, text: get('/no') }),
      { outcome: 'ECONNRESET' },
      `v${family}: another path`,
    );
    t.same(
      (await rig.received()).filter(({ text }) => text.includes('/no')),
      [],
      'of which the server has no byte',
    );
    t.match(await raw(family, 80, [get('/ok', 'POST')]), { outcome: 'ECONNRESET' }, `v${family}: another method`);
  }
  const [started] = await rig.recordsWith(since, { event: 'start', application: 'HTTP' }, 2);
  t.match(started, { rule: 'billing/http', http: { method: 'GET', path: '/ok' } });
  const denied = await rig.recordsWith(since, { event: 'deny', application: 'HTTP' }, 4);
  t.match(
    denied.map(({ http }) => `${http?.method} ${http?.path}`),
    ['GET /no', 'POST /ok', 'GET /no', 'POST /ok'],
  );
  await rig.recordsWith(since, { event: 'end', application: 'HTTP' }, 2);
});

t.test('the name of an address decides where nothing is read', async (t) => {
  const since = now();
  await rig.publish(policy({ names: [], unread: [2222] }));
  await teach('api.test');
  for (const family of families) {
    t.match(await raw(family, 2222, ['anything\r\n']), { outcome: 'answered', text: /anything/ }, `v${family}`);
    t.match(await raw(family, 22, ['anything\r\n']), { outcome: 'ECONNREFUSED' }, `v${family}: another port`);
    // Nobody has asked for a name of the resolver's address.
    const other = await rig.client({
      do: 'tcp',
      from: PODS.pay[family],
      to: RESOLVER[family],
      port: 2222,
      texts: ['x'],
    });
    t.match(other, { outcome: 'ECONNREFUSED' }, `v${family}: another address`);
  }
  await rig.recordsWith(since, { event: 'start', rule: 'billing/unread', destinationPort: 2222 }, 2);
});

t.test('the server speaks first', async (t) => {
  const since = now();
  const ssh = (port: number): PortCheck => ({ protocol: TCP, ports: [[port, port]], application: 'SSH' });
  await rig.publish(policy({ names: [], checks: [ssh(22), ssh(2222)] }));
  for (const family of families) {
    t.match(await raw(family, 22, []), { outcome: 'connected' });
    t.match(await raw(family, 22, ['SSH-2.0-client\r\n']), { outcome: 'answered', text: /SSH-2.0-/ }, `v${family}`);
    t.match(await raw(family, 2222, ['GET / HTTP/1.1\r\n\r\n']), { outcome: 'ECONNRESET' }, `v${family}: no SSH`);
  }
  await rig.recordsWith(since, { event: 'start', rule: 'billing/checked', application: 'SSH' }, 2);
});

t.test('a change of policy ends the connections whose reading it forbids, and no other', async (t) => {
  await rig.publish(policy({ names: ['api.test', 'b.test'] }));
  await teach('b.test');
  await both(async (family) => {
    t.match(await hello(family, 'api.test', `a${family}`), { outcome: 'answered' });
    t.match(await hello(family, 'b.test', `b${family}`), { outcome: 'answered' });
  });
  await rig.publish(policy({ names: ['b.test'] }));
  await both(async (family) => {
    t.match(
      await rig.client({ do: 'send', keep: `b${family}`, text: 'on' }),
      { outcome: 'answered' },
      'permitted as before',
    );
    const ended = await rig.client({ do: 'send', keep: `a${family}`, text: 'on' });
    t.match(ended, { outcome: /silence|ECONNRESET/ }, 'its name is not');
  });
});

t.test('a program that starts anew knows what was read', async (t) => {
  await rig.publish(policy({ names: ['api.test', 'b.test'] }));
  for (const family of families) t.match(await hello(family, 'b.test', `k${family}`), { outcome: 'answered' });
  // Readings are saved every few seconds.
  await sleep(6_000);
  await rig.kill();
  await both(async (family) => {
    t.match(
      await rig.client({ do: 'send', keep: `k${family}`, text: 'on' }),
      { outcome: 'answered' },
      'decided flows run on',
    );
    const undecided = await hello(family, 'b.test');
    t.match(undecided, { outcome: 'silence' }, 'undecided ones go nowhere');
  });
  t.same(
    (await rig.received()).filter(({ text }) => /bytes of/.test(text)),
    [],
  );
  await rig.start();
  await rig.until('threads that serve', () => rig.metric('sluice_inspection_queues', 'serving') === 2);
  await both(async (family) => {
    t.match(await rig.client({ do: 'send', keep: `k${family}`, text: 'on' }), { outcome: 'answered' });
    t.match(await hello(family, 'b.test'), { outcome: 'answered' }, 'and new ones are read again');
  });
  await rig.publish(policy({ names: ['api.test'] }));
  await both(async (family) => {
    t.match(await rig.client({ do: 'send', keep: `k${family}`, text: 'on' }), { outcome: /silence|ECONNRESET/ });
  });
});

/** Connections of both kinds, some at a time, until it is ended: how often each name had which outcome. */
function load(): { end(): Promise<Record<string, number>> } {
  let running = true;
  const outcomes: Record<string, number> = {};
  const loops = Array.from({ length: 8 }, async (_, at) => {
    while (running) {
      const name = at % 2 === 0 ? 'api.test' : 'other.test';
      const { outcome } = await hello(at % 4 < 2 ? 4 : 6, name);
      outcomes[`${name} ${outcome}`] = (outcomes[`${name} ${outcome}`] ?? 0) + 1;
    }
  });
  return {
    async end() {
      running = false;
      await Promise.all(loops);
      return outcomes;
    },
  };
}

t.test('kill -9 under load: nothing leaks', async (t) => {
  await rig.publish(policy());
  await rig.received();
  t.match(await hello(6, 'api.test', 'on'), { outcome: 'answered' });
  const running = load();
  await sleep(500);
  await rig.kill();
  await sleep(500);
  t.match(
    await rig.client({ do: 'send', keep: 'on', text: 'on' }),
    { outcome: 'answered' },
    'what was decided runs on',
  );
  await rig.start();
  await rig.until('threads that serve', () => rig.metric('sluice_inspection_queues', 'serving') === 2);
  await sleep(500);
  const outcomes = await running.end();
  t.comment(JSON.stringify(outcomes));
  t.ok((outcomes['api.test answered'] ?? 0) > 0);
  t.equal(outcomes['other.test answered'], undefined);
  const streams = (await rig.received()).filter(({ text }) => text === 'hello').length;
  t.ok(streams <= (outcomes['api.test answered'] ?? 0) + (outcomes['api.test silence'] ?? 0) + 1);
});

t.test('a thread that dies under load: nothing leaks, and another reads on', async (t) => {
  await rig.kill('SIGTERM');
  await rig.start({ dying: true });
  await rig.publish(policy({ names: ['api.test'], checks: [{ ...tls(), ports: [[8443, 8443]] }] }));
  await rig.until('threads that serve', () => rig.metric('sluice_inspection_queues', 'serving') === 2);
  t.match(await hello(4, 'api.test', 'decided'), { outcome: 'answered' });
  await rig.received();
  const running = load();
  for (let deaths = 1; deaths <= 4; deaths++) {
    await sleep(300);
    // What kills a thread is what it reads (inspect-dying-decider.ts).
    const family = deaths % 2 === 0 ? 4 : 6;
    await rig.client({ do: 'toss', from: PODS.pay[family], to: WEB[family], port: 8443, text: 'die' });
    await rig.until('a death', () => (rig.metric('sluice_inspection_worker_ends_total') ?? 0) >= deaths);
    const on = await rig.client({ do: 'send', keep: 'decided', text: 'on' });
    t.match(on, { outcome: 'answered' }, 'what was decided runs on');
  }
  await rig.until('threads that serve', () => rig.metric('sluice_inspection_queues', 'serving') === 2);
  const outcomes = await running.end();
  t.match(await hello(4, 'api.test'), { outcome: 'answered' }, 'and more is read');
  t.comment(JSON.stringify(outcomes));
  t.ok((outcomes['api.test answered'] ?? 0) > 0);
  t.equal(outcomes['other.test answered'], undefined, 'none of the forbidden was let on');
  const forbidden = await rig.received();
  const streams = forbidden.filter(({ port, text }) => port === 8443 || text.includes('die'));
  t.same(streams, []);
  await rig.kill('SIGTERM');
  await rig.start({ options });
  await rig.until('threads that serve', () => rig.metric('sluice_inspection_queues', 'serving') === 2);
});

t.test('whoever takes tables away: nothing leaks, and they are put back', async (t) => {
  await rig.publish(policy({ names: ['api.test'] }));
  const mended = async (what: string, harm: () => void): Promise<void> => {
    harm();
    const outcomes = new Set<string>();
    const took = await rig.until(what, async () => {
      const { outcome } = await hello(4, 'other.test');
      outcomes.add(outcome);
      return (await hello(4, 'api.test')).outcome === 'answered';
    });
    t.notOk(outcomes.has('answered'), `${what}: nothing is let on unread (${[...outcomes]})`);
    t.comment(`${what}: ${Math.round(took)} ms`);
  };
  await mended('the table is flushed', () => rig.inside('nft flush table inet sluice_inspect'));
  await mended('the table is deleted', () => rig.inside('nft delete table inet sluice_inspect'));
  await mended('the queue rule is deleted', () => {
    rig.inside('iptables-nft -t mangle -F FORWARD');
  });
  await mended('all is deleted', () => rig.inside('nft flush ruleset'));
});

t.test('nothing asks any more: nothing is left, and what was read goes on', async (t) => {
  await rig.publish(policy({ http: { methods: ['GET'], paths: ['/ok', '/sub/*'] } }));
  const request = 'GET /ok HTTP/1.1\r\nHost: web.test\r\n\r\n';
  t.match(await raw(4, 80, [request], 'last'), { outcome: 'answered' });
  await rig.publish(policy({ names: [], plain: true }));
  t.notMatch(rig.inside('nft list tables'), /sluice_inspect/);
  t.notMatch(rig.inside('iptables-nft -t mangle -S FORWARD'), /NFQUEUE/);
  t.notOk(asksCpus());
  t.match(await rig.client({ do: 'send', keep: 'last', text: request }), { outcome: 'answered' });
});

t.test('the log says nothing bad', async (t) => {
  const bad = rig.log.filter((line) => Number((JSON.parse(line) as { level: number }).level) >= 50);
  t.same(
    bad
      .map((line) => (JSON.parse(line) as { msg: string }).msg)
      .filter((text) => !/somebody deleted|the thread of an inspection queue ended/.test(text)),
    [],
  );
});
