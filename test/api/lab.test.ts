/**
 * The lab steered by a real API server instead of a directory. Two controllers, of which one leads; the lab's own checks,
 * restarts of everything, and what the API server shows of it.
 *   node dist/test/api/lab.test.js [SECONDS]      by hand with the API server away for longer
 */
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import t, { type Test } from 'tap';
import { defaultLeaseTimes } from '../../controller/kubernetes/candidate.ts';
import { checksOf, explainExpectation, firewallView, runChecks } from '../../lab/checks.ts';
import { firewallIsContent, formatFirewall } from '../../lab/demo.ts';
import { inNamespace, run } from '../../lab/netns.ts';
import { compiledRoot } from '../../lab/place.ts';
import { LabCluster, within } from '../kube/lab-cluster.ts';

/** For what takes seconds, on a machine that is busy with other things too. */
const SOON_MS = 120_000;
/** How long the API server is away. */
const AWAY_S = Number(process.argv[2] ?? 12);
t.setTimeout(1000 * AWAY_S + 900_000);
/** Gateways and nodes of the lab. */
const CLIENTS = 5;
const LEASE_MS = defaultLeaseTimes.leaseMs;
/** Longer than it takes another to lead. */
const PULSE_S = 20;
const cluster = new LabCluster(`t${process.pid}`);
t.teardown(() => cluster.close());

await t.test('a cluster, and the lab’s programs beside it', async (t) => {
  const began = performance.now();
  await cluster.up([], ['one', 'two']);
  t.comment(`all Programmed ${Math.round(performance.now() - began)} ms after nothing`);
  const { server, lab, place } = cluster;
  const settled = async (): ReturnType<typeof cluster.roles> => {
    let roles = { leader: '', standby: '' };
    await within('one leads, one waits', SOON_MS, async () => {
      roles = await cluster.roles();
      return roles.leader !== '' && roles.standby !== '';
    });
    return roles;
  };
  await settled();
  const checks = async (t: Pick<Test, 'ok' | 'equal'>, when: string): Promise<void> => {
    // IPv6 of services is not known to this API server: what needs it is not looked at.
    let results = await runChecks(lab);
    // The answer to a datagram is waited for a second, which on a busy machine may be too short.
    for (let left = 2; left > 0 && results.some(({ ok }) => !ok); left--) results = await runChecks(lab);
    for (const { check, seen, ok } of results)
      t.ok(ok, `${when}: IPv${check.family} ${check.who} → ${check.what}: ${explainExpectation(check)}`, { seen });
    t.equal(results.length, 2 * checksOf(4).length);
  };
  await checks(t, 'at first');
  t.match(await server.kubectl(['get', 'egad', '203.0.113.101']), /billing/);
  const given = async () => server.kubectl(['get', 'egad', '-o', 'jsonpath={range .items[*]}{.spec}{"\\n"}{end}']);
  const before = await given();

  await t.test('the webhook refuses, the finalizer holds', async (t) => {
    const outside = {
      apiVersion: 'sluice.dev/v1alpha1',
      kind: 'EgressIP',
      metadata: { name: 'outside' },
      spec: { pool: 'edge', addresses: ['192.0.2.1'], namespaces: ['batch'] },
    };
    const text = JSON.stringify(outside);
    const create = ['create', '--dry-run=server', '-f', '-'];
    const { leader, standby } = await settled();
    for (const [who, name] of [
      ['the leader', leader],
      ['the one that stands by', standby],
    ] as const) {
      await cluster.admit(name);
      await within(`the API server asks ${who}`, SOON_MS, async () =>
        /denied the request.*192\.0\.2\.1/.test(await server.refusal(create, text)),
      );
      t.match(await server.refusal(['delete', 'eip', 'billing']), /sluice\.dev\/confirm-deletion/, who);
      t.match(await server.kubectl(['get', 'eip', 'billing']), /billing/);
    }
    const place = ['-n', 'sluice-system'];
    const finalizers = () =>
      server.kubectl(['get', 'exsvc', 'forbidden', ...place, '-o', 'jsonpath={.metadata.finalizers}']);
    t.match(await finalizers(), /sluice\.dev\/forbidding-rule/, 'the rule no-admin-port names it');
    await server.kubectl(['delete', 'exsvc', 'forbidden', ...place, '--wait=false']);
    await sleep(1_000);
    t.match(await server.kubectl(['get', 'exsvc', 'forbidden', ...place]), /forbidden/, 'it is held');
    await server.kubectl(['delete', 'cgr', 'no-admin-port']);
    await within('it goes when no rule names it', SOON_MS, async () =>
      server.kubectl(['get', 'exsvc', 'forbidden', ...place]).then(
        () => false,
        () => true,
      ),
    );
    await cluster.applyLab();
    await sleep(2_000);
  });

  /** Until all have a stream to the controller that stands by. */
  const warm = async (t: Pick<Test, 'comment'>): Promise<void> => {
    const { standby } = await settled();
    const took = await within('warm streams', 300_000, async () => (await cluster.clients(standby)) === CLIENTS);
    t.comment(`all have a stream to the one that stands by ${Math.round(took)} ms later`);
  };
  const streamsWereThere = async (t: Pick<Test, 'ok' | 'equal' | 'comment'>, since: number): Promise<void> => {
    const away = await cluster.withoutStream(since);
    t.comment(`without a stream, milliseconds: ${[...away].map(([name, ms]) => `${name} ${ms}`).join(', ')}`);
    t.equal(away.size, CLIENTS);
    for (const [name, ms] of away) t.ok(ms <= 2_000, `${name}: its stream is there (${ms} ms without)`);
  };

  await t.test('the leader dies: the other leads, and nobody notices', async (t) => {
    await warm(t);
    const said = '%{size_download} bytes in %{time_total} s';
    const download = ['curl', '-4', '-sS', '-m', '170', '--limit-rate', '2M', '-o', '/dev/null', '-w', said];
    const traffic = run(inNamespace(place.namespace('pay-1'), [...download, 'http://198.51.100.80/bytes/30000000']), {
      timeoutMs: 180_000,
    });
    const pulse = run(
      inNamespace(place.namespace('rev-1'), [
        ...[process.execPath, join(compiledRoot(), 'test', 'api', 'pulse.js')],
        ...['198.51.100.80', '7', String(PULSE_S)],
      ]),
      { timeoutMs: 1000 * PULSE_S + 60_000 },
    );
    await sleep(1_000);
    const { leader, standby } = await settled();
    const killedAt = Date.now();
    cluster.kill(leader);
    const took = await within('the other leads', SOON_MS, async () => (await cluster.roles()).leader === standby);
    t.comment(`the other leads ${Math.round(took)} ms after kill -9`);
    t.ok(took < 2 * LEASE_MS, 'within the lease time, and some for a machine that is busy');
    await streamsWereThere(t, killedAt);
    const { sent, lost, longestMs } = JSON.parse((await pulse).stdout) as {
      sent: number;
      lost: number[];
      longestMs: number;
    };
    t.comment(`${sent} datagrams, ${longestMs} ms without an answer at most`);
    // Not none: on a busy machine a run lost four, and it is not known where.
    t.ok(sent > 100 && lost.length < 12, `datagrams go on, lost: ${lost.join(' ') || 'none'}`);
    await server.kubectl(['label', 'pod', '-n', 'billing', 'pay-1', 'tried=yes', '--overwrite']);
    await checks(t, 'led by the other');
    const { code, stdout, stderr } = await traffic;
    t.comment(stdout.trim());
    t.equal(code, 0, `a download goes on: ${stderr}`);
    t.equal(await given(), before, 'no address has another owner');
    await cluster.startController(leader);
    await settled();
  });

  await t.test('the leader is stopped in order: the other leads at once', async (t) => {
    await warm(t);
    const { leader, standby } = await settled();
    const since = Date.now();
    cluster.kill(leader, 'SIGTERM');
    const took = await within('the other leads', SOON_MS, async () => (await cluster.roles()).leader === standby);
    t.comment(`the other leads ${Math.round(took)} ms after SIGTERM`);
    await streamsWereThere(t, since);
    t.equal(await given(), before, 'no address has another owner');
    await cluster.startController(leader);
    await settled();
  });

  await t.test('the API server and its etcd die', async (t) => {
    await server.kill('kube-apiserver');
    await server.kill('etcd');
    await sleep(1000 * AWAY_S);
    await checks(t, 'without an API server');
    await server.up();
    await settled();
    t.equal(await given(), before, 'no address has another owner');
  });

  const view = await firewallView(lab);
  t.ok(firewallIsContent(view), `no packet with a foreign source: ${formatFirewall(view)}`);
});
