/**
 * What rules say beside permitting and denying, of flows that are read by the gateway program itself (inspect-rig.ts): hits and
 * records of rules that hand on and of audit, questions of DNS, policies in audit, and pools that let pass what nobody reads.
 */
import t from 'tap';
import { INSPECT_QUEUE } from '../../api/names.ts';
import {
  type Family,
  families,
  type GatewayPlan,
  type PoolSettings,
  type PortEntry,
  type RuleEntry,
  type ServiceEntry,
} from '../../api/plan.ts';
import { QueueSocket } from '../../kernel/queue-socket.ts';
import { basePlan, directPlan, PODS, WEB } from './gateway-plans.ts';
import { InspectRig, RESOLVER } from './inspect-rig.ts';

t.setTimeout(300_000);
const port = (protocol: number, number: number): PortEntry => ({ protocol, ports: [[number, number]] });
const https = port(6, 443);
const domain = port(17, 53);
const web = [`${WEB[4]}/32`, `${WEB[6]}/128`];
const resolvers = [`${RESOLVER[4]}/32`, `${RESOLVER[6]}/128`];
const named = (...names: string[]): ServiceEntry => ({
  addresses: [],
  names,
  ports: [https],
  checks: [{ ...https, application: 'TLS', implied: true }],
});

type Rule = Pick<RuleEntry, 'context' | 'name' | 'action' | 'mode' | 'logging'> & { service: ServiceEntry | '*' };

/** Of pay. Its DNS is permitted by the last rule, if none before says something of it. */
function planOf(rules: Rule[], pool: Partial<PoolSettings> = {}, audit = false): GatewayPlan {
  const plan = directPlan(basePlan());
  if ('pool' in plan.settings) {
    plan.settings.pool = {
      ...plan.settings.pool,
      dns: { resolvers: Object.values(RESOLVER) },
      inspection: { workers: 2 },
      ...pool,
    };
  }
  const dns: Rule = {
    context: 'namespace',
    name: 'dns',
    action: 'accept-decisively',
    service: { addresses: resolvers, ports: [domain] },
  };
  for (const { service, ...rule } of [...rules, dns]) {
    const tenant = rule.context === 'cluster' ? {} : { namespace: 'billing' };
    const id = [rule.context, ...Object.values(tenant), rule.name].join('/');
    plan.rules[id] = { ...rule, ...tenant, priority: 1, services: service === '*' ? '*' : [`billing/${rule.name}`] };
    if (service !== '*') plan.services[`billing/${rule.name}`] = service;
    plan.groups['g-pay']?.rules[rule.context].push(id);
  }
  const group = plan.groups['g-pay'];
  if (audit && group !== undefined) plan.groups['g-pay'] = { ...group, audit: true };
  return plan;
}

const rig = await InspectRig.create('rules');
t.teardown(() => rig.close());
await rig.start();
const now = (): string => new Date().toISOString();
const both = (work: (family: Family) => Promise<void>) => Promise.all(families.map(work));
const hits = (rule: string): number => rig.metric('sluice_rule_hits_total', `rule="${rule}"`) ?? 0;
const ask = (family: Family, name: string) =>
  rig.client({ do: 'ask', from: PODS.pay[family], server: RESOLVER[family], name, family });
const hello = (family: Family, name: string) =>
  rig.client({ do: 'tls', from: PODS.pay[family], to: WEB[family], port: 443, name });
async function publish(plan: GatewayPlan): Promise<void> {
  await rig.publish(plan);
  await rig.until('threads that serve', () => rig.metric('sluice_inspection_queues', 'serving') === 2);
  await both(async (family) => {
    for (const name of ['api.test', 'other.test']) await ask(family, name);
  });
}
const permit: Rule = { context: 'namespace', name: 'api', action: 'accept-decisively', service: named('api.test') };
const rest: Rule = { context: 'namespace', name: 'rest', action: 'reject', service: { addresses: web, ports: null } };

t.test('rules that hand on are hit by flows that are read, and say so', async (t) => {
  const since = now();
  const watch: Rule = { context: 'cluster', name: 'watch', action: 'accept', logging: 'All', service: '*' };
  const open: Rule = { ...watch, name: 'open', service: named('**.test') };
  await publish(planOf([open, watch, permit, rest]));
  // What the kernel has counted is told a moment later.
  await rig.until('questions, which are not read, are hits', () => hits('watch') === 4);
  const before = { open: hits('open'), watch: hits('watch') };
  await both(async (family) => {
    t.match(await hello(family, 'api.test'), { outcome: 'answered' });
    t.match(await hello(family, 'other.test'), { outcome: 'ECONNRESET' });
  });
  t.equal(hits('open'), before.open + 4, 'each flow once');
  t.equal(hits('watch'), before.watch, 'the rule before it has decided the context');
  t.equal(hits('api'), 2);
  t.equal(hits('rest'), 2);
  const matched = await rig.recordsWith(since, { event: 'match', rule: 'open' }, 4);
  t.same(new Set(matched.map(({ destinationName }) => destinationName)), new Set(['api.test', 'other.test']));
});

t.test('rules in audit are hit by what they would have decided, and decide nothing', async (t) => {
  const since = now();
  const tried: Rule = {
    context: 'namespace',
    name: 'tried',
    action: 'drop',
    mode: 'Audit',
    service: named('api.test'),
  };
  await publish(planOf([tried, { ...permit, service: named('**.test') }]));
  await both(async (family) => {
    t.match(await hello(family, 'api.test'), { outcome: 'answered' });
    t.match(await hello(family, 'other.test'), { outcome: 'answered' });
  });
  t.equal(hits('tried'), 2, 'of one name alone');
  const [record] = await rig.recordsWith(since, { event: 'audit', rule: 'billing/tried' }, 2);
  t.match(record, { wouldHave: 'drop', destinationName: 'api.test', application: 'TLS' });
});

t.test('a policy in audit: everything passes, and is read to be counted', async (t) => {
  const since = now();
  await publish(planOf([permit, { ...rest, name: 'strict' }], {}, true));
  await both(async (family) => {
    t.match(await hello(family, 'api.test'), { outcome: 'answered' });
    t.match(await hello(family, 'other.test'), { outcome: 'answered' });
  });
  const [record] = await rig.recordsWith(since, { event: 'audit', rule: 'billing/strict' }, 2);
  t.match(record, { wouldHave: 'reject', destinationName: 'other.test' });
  t.equal(rig.records().filter(({ event, time }) => event === 'deny' && time >= since).length, 0);
});

t.test('questions are read one by one', async (t) => {
  const since = now();
  const asked: Rule = {
    context: 'namespace',
    name: 'asked',
    action: 'accept-decisively',
    service: {
      addresses: resolvers,
      ports: [domain],
      checks: [{ ...domain, application: 'DNS', dns: { names: ['*.test'], types: ['A', 'AAAA'] } }],
    },
  };
  const others: Rule = { context: 'namespace', name: 'others', action: 'reject', service: '*' };
  await publish(planOf([asked, others]));
  await both(async (family) => {
    t.match(await ask(family, 'fine.test'), { outcome: 'answered' });
    t.not((await ask(family, 'a.tunnel.example')).outcome, 'answered', `v${family}: a name that is not permitted`);
  });
  const [started] = await rig.recordsWith(since, { event: 'start', application: 'DNS', rule: 'billing/asked' }, 2);
  t.match(started, { dns: { type: /^A/ } });
  const denied = await rig.recordsWith(since, { event: 'deny', destinationName: 'a.tunnel.example' }, 2);
  t.match(denied[0], { rule: 'billing/others', verdict: 'reject', application: 'DNS' });
});

t.test('onOverload: Accept lets pass what nobody reads, and nothing while somebody does', async (t) => {
  await publish(planOf([permit, rest], { inspection: { workers: 2, onOverload: 'Accept' } }));
  t.match(rig.inside('iptables-nft -t mangle -S FORWARD'), /--queue-bypass/);
  t.match(await hello(4, 'other.test'), { outcome: 'ECONNRESET' });
  await rig.kill();
  await both(async (family) => {
    t.match(await hello(family, 'other.test'), { outcome: 'answered' }, `v${family}: it could not be read`);
  });
  await rig.start();
  await rig.until('threads that serve', () => rig.metric('sluice_inspection_queues', 'serving') === 2);
  await both(async (family) => {
    t.match(await hello(family, 'other.test'), { outcome: 'ECONNRESET' }, `v${family}: it can again`);
  });
});

t.test(
  'another number of threads; a queue that somebody else holds is said, and had as soon as it is free',
  async (t) => {
    const serving = () => rig.metric('sluice_inspection_queues', 'serving');
    await publish(planOf([permit, rest]));
    t.notMatch(rig.readiness(), /degraded/);
    await rig.publish(planOf([permit, rest], { inspection: { workers: 1 } }));
    await rig.until('one thread', () => serving() === 1);
    t.match(rig.inside('iptables-nft -t mangle -S FORWARD'), /--queue-num 7800\n/);
    t.match(await hello(4, 'api.test'), { outcome: 'answered' });
    const other = QueueSocket.open({
      queue: INSPECT_QUEUE + 1,
      maxLength: 1,
      copyRange: 64,
      failOpen: false,
      receiveBuffer: 1 << 16,
      namespace: rig.gateway,
    });
    await rig.publish(planOf([permit, rest], { inspection: { workers: 2 } }));
    t.match(rig.readiness(), /^plan \d+ in force, inspection degraded: workers: .*EBUSY/);
    t.equal(rig.metric('sluice_inspection_degraded'), 1);
    t.match(await hello(4, 'other.test'), { outcome: 'silence' }, 'nobody reads: it goes nowhere');
    other.close();
    await rig.until('two threads', () => serving() === 2);
    t.notMatch(rig.readiness(), /degraded/);
    t.match(await hello(4, 'other.test'), { outcome: 'ECONNRESET' });
  },
);

t.test('a pod that comes, or gets other rules, is read from its first flow on', async (t) => {
  const plan = planOf([permit, rest]);
  const { 'uid-rev': rev } = plan.workloads;
  if (rev === undefined) throw new Error('there is no such pod');
  delete plan.workloads['uid-rev'];
  await publish(plan);
  const from = (name: string) => rig.client({ do: 'tls', from: PODS.rev[4], to: WEB[4], port: 443, name });
  for (const group of ['g-pay', 'g-rev', 'g-pay']) {
    const next = structuredClone(plan);
    next.workloads['uid-rev'] = { ...rev, group };
    await rig.publish(next);
    const read = group === 'g-pay';
    t.match(await from('api.test'), { outcome: read ? 'answered' : 'silence' }, `in ${group}`);
    if (read) t.match(await from('other.test'), { outcome: 'ECONNRESET' });
    await rig.publish(plan);
  }
});

t.test('a pod that goes takes its connections with it', async (t) => {
  const plan = planOf([permit, rest]);
  await publish(plan);
  t.match(await rig.client({ do: 'tls', from: PODS.pay[4], to: WEB[4], port: 443, name: 'api.test', keep: 'gone' }), {
    outcome: 'answered',
  });
  const without = structuredClone(plan);
  delete without.workloads['uid-pay'];
  await rig.publish(without);
  t.match(await rig.client({ do: 'send', keep: 'gone', text: 'on' }), { outcome: /silence|ECONNRESET/ });
  t.match(rig.inside('nft list tables'), /sluice_inspect/, 'rules ask, though nobody is there to be asked about');
});
