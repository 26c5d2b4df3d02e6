/**
 * By hand: the lab steered by a real API server instead of a directory. Two controllers, of which one leads; the lab's own checks,
 * restarts of everything, and what the API server shows of it.
 *   node dist/test/kube/lab.js
 */
import { setTimeout as sleep } from 'node:timers/promises';
import t from 'tap';
import { checksOf, explainExpectation, firewallView, runChecks } from '../../lab/checks.ts';
import { firewallIsContent, formatFirewall, formatResults } from '../../lab/demo.ts';
import { inNamespace, run } from '../../lab/netns.ts';
import { LabCluster, within } from './lab-cluster.ts';

t.setTimeout(900_000);
const cluster = new LabCluster(`t${process.pid}`);
t.teardown(() => cluster.close());

await t.test('a cluster, and the lab’s programs beside it', async (t) => {
  const began = performance.now();
  await cluster.up();
  t.comment(`all Programmed ${Math.round(performance.now() - began)} ms after nothing`);
  const { server, lab, place } = cluster;
  cluster.startController('two');
  await within('two waits', 30_000, async () => /^standby: .* leads/.test(await cluster.readiness('two')));
  const checks = async (
    t: {
      comment(text: string): void;
      ok: typeof import('tap')['default']['ok'];
      equal: typeof import('tap')['default']['equal'];
    },
    when: string,
  ): Promise<void> => {
    // IPv6 of services is not known to this API server: what needs it is not looked at.
    const results = await runChecks(lab);
    t.comment(`${when}\n${formatResults(results)}`);
    for (const { check, seen, ok } of results)
      t.ok(ok, `${when}: IPv${check.family} ${check.who} → ${check.what}: ${explainExpectation(check)}`, { seen });
    t.equal(results.length, 2 * checksOf(4).length);
  };
  await checks(t, 'at first');
  t.comment(await server.kubectl(['get', 'eip,eipp,gwp,cgr,egad']));
  t.comment(await server.kubectl(['get', 'nsgr,svcgr,exsvc', '-A']));
  t.match(await server.kubectl(['get', 'egad', '203.0.113.101']), /billing/);
  const given = async () => server.kubectl(['get', 'egad', '-o', 'jsonpath={range .items[*]}{.spec}{"\\n"}{end}']);
  const before = await given();

  await t.test('the webhook refuses, the finalizer holds', async (t) => {
    await cluster.admit();
    const refused = async (args: string[], input?: string): Promise<string> =>
      server.kubectl(args, input).then(
        (said) => `not refused: ${said}`,
        (error: Error) => error.message,
      );
    const outside = {
      apiVersion: 'sluice.dev/v1alpha1',
      kind: 'EgressIP',
      metadata: { name: 'outside' },
      spec: { pool: 'edge', addresses: ['192.0.2.1'], namespaces: ['batch'] },
    };
    await within('the API server asks', 10_000, async () =>
      /192\.0\.2\.1/.test(await refused(['create', '--dry-run=server', '-f', '-'], JSON.stringify(outside))),
    );
    t.match(await refused(['create', '-f', '-'], JSON.stringify(outside)), /denied the request.*192\.0\.2\.1/s);
    t.match(await refused(['delete', 'eip', 'billing']), /sluice\.dev\/confirm-deletion/);
    t.match(await server.kubectl(['get', 'eip', 'billing']), /billing/);
    const place = ['-n', 'sluice-system'];
    const finalizers = () =>
      server.kubectl(['get', 'exsvc', 'forbidden', ...place, '-o', 'jsonpath={.metadata.finalizers}']);
    t.match(await finalizers(), /sluice\.dev\/forbidding-rule/, 'the rule no-admin-port names it');
    await server.kubectl(['delete', 'exsvc', 'forbidden', ...place, '--wait=false']);
    await sleep(1_000);
    t.match(await server.kubectl(['get', 'exsvc', 'forbidden', ...place]), /forbidden/, 'it is held');
    await server.kubectl(['delete', 'cgr', 'no-admin-port']);
    await within('it goes when no rule names it', 20_000, async () =>
      server.kubectl(['get', 'exsvc', 'forbidden', ...place]).then(
        () => false,
        () => true,
      ),
    );
    await cluster.applyLab();
    await sleep(2_000);
  });

  await t.test('the leader dies: the other leads, and nobody notices', async (t) => {
    const traffic = run(
      inNamespace(place.namespace('pay-1'), [
        'curl',
        '-4',
        '-sS',
        '-m',
        '60',
        '--limit-rate',
        '2M',
        'http://198.51.100.80/bytes/30000000',
      ]),
      { timeoutMs: 70_000 },
    );
    await sleep(500);
    cluster.kill('one');
    const took = await within('two leads', 30_000, async () => cluster.leads(await cluster.readiness('two')));
    t.comment(`the other leads ${Math.round(took)} ms after kill -9`);
    await server.kubectl(['label', 'pod', '-n', 'billing', 'pay-1', 'tried=yes', '--overwrite']);
    await checks(t, 'led by the other');
    t.equal((await traffic).code, 0, 'a download goes on');
    t.equal(await given(), before, 'no address has another owner');
    cluster.startController('one');
    await within('one waits', 30_000, async () => /^standby/.test(await cluster.readiness('one')));
  });

  await t.test('the API server and its etcd die, for 30 seconds', async (t) => {
    await server.kill('kube-apiserver');
    await server.kill('etcd');
    await sleep(30_000);
    await checks(t, 'without an API server');
    await server.up();
    await within('one of them leads', 60_000, async () =>
      [await cluster.readiness('one'), await cluster.readiness('two')].some((text) => cluster.leads(text)),
    ).catch((error) => t.fail(String(error)));
    for (const name of cluster.controllers.keys())
      if ((await cluster.readiness(name)) === '') t.comment(`${name} has ended, to begin anew`);
    t.equal(await given(), before, 'no address has another owner');
  });

  t.comment(formatFirewall(await firewallView(lab)));
  t.ok(firewallIsContent(await firewallView(lab)), 'no packet with a foreign source');
});
