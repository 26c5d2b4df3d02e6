/**
 * EgressIPs that give each namespace, or each pod, an address to itself, the whole way: manifests change in the lab's default
 * topology, the real programs carry the traffic, the server outside says whom it saw. A pod is deleted and made again with
 * its name; another waits for an address, and gets that of nobody who may come back. The upstream firewall is the witness
 * that no packet left with a foreign source.
 */
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import t from 'tap';
import { parse } from 'yaml';
import { type Family, families } from '../../api/plan.ts';
import { firewallView } from '../../lab/checks.ts';
import { down } from '../../lab/down.ts';
import { inNamespace, run } from '../../lab/netns.ts';
import { placeOf } from '../../lab/place.ts';
import { awaitReady } from '../../lab/ready.ts';
import { allowList, serverAddresses } from '../../lab/topology.ts';
import { up } from '../../lab/up.ts';

t.setTimeout(570_000);
const lab = `u${process.pid}`;
const place = placeOf(lab);
t.teardown(() => down(lab));

const NETWORK = '10-network-team.yaml';
const CLUSTER = '00-cluster.yaml';
const original: Record<string, string> = {};
/** All that the firewall lets through for these two, whoever has which. */
const addresses = (family: Family): string[] =>
  ['billing', 'reviews'].flatMap((namespace) => allowList[namespace]?.[family] ?? []);

/** With what address a new connection is seen outside; '' for one that fails. */
async function seen(pod: string, family: Family): Promise<string> {
  const address = serverAddresses.web[family];
  const url = `http://${family === 6 ? `[${address}]` : address}/ip`;
  const argv = inNamespace(place.namespace(pod), ['curl', '-sS', '-m', '4', url]);
  return (await run(argv, { timeoutMs: 30_000 })).stdout.trim();
}
const allOf = (pods: readonly string[]): Promise<string[]> =>
  Promise.all(pods.flatMap((pod) => families.map((family) => seen(pod, family))));
/** Until new connections of the pods (v4, v6 of each) are as they should be: manifests need a moment. */
async function until(pods: readonly string[], holds: (answers: readonly string[]) => boolean): Promise<string[]> {
  let answers: string[] = [];
  for (let i = 0; i < 200; i++) {
    answers = await allOf(pods);
    if (holds(answers)) break;
    await sleep(100);
  }
  return answers;
}
const all = (answers: readonly string[]): boolean => answers.every((answer) => answer !== '');
const distinct = (answers: readonly string[]): boolean => all(answers) && new Set(answers).size === answers.length;

/** `files` → documents that do not match, and these. */
async function rewrite(file: string, without: RegExp, ...more: string[]): Promise<void> {
  const kept = (original[file] ?? '').split(/^---$/m).filter((text) => !without.test(text));
  await writeFile(join(place.manifests, file), [...kept, ...more].join('---\n'));
}
const give = (allocation: string, namespaces: string[], quarantineSeconds: number): Promise<void> =>
  rewrite(
    NETWORK,
    /kind: EgressIP\nmetadata: \{ name: (billing|reviews) \}|kind: EgressIPPool/,
    `apiVersion: sluice.dev/v1alpha1
kind: EgressIPPool
metadata: { name: edge }
spec:
  gatewayPool: edge
  ranges: [203.0.113.101-203.0.113.120, "2001:db8:113::101-2001:db8:113::120"]
  namespaceSelector: {}
  quarantineSeconds: ${quarantineSeconds}
`,
    `apiVersion: sluice.dev/v1alpha1
kind: EgressIP
metadata: { name: each }
spec:
  pool: edge
  allocation: ${allocation}
  addresses: [${families.flatMap((family) => addresses(family)).map((a) => `"${a}"`)}]
  namespaces: [${namespaces}]
`,
  );
const podOf = (name: string, uid: string): string => {
  const found = (original[CLUSTER] ?? '')
    .split(/^---$/m)
    .find((text) => text.includes(`kind: Pod\nmetadata: { name: ${name},`));
  return (found ?? '').replace(/uid: [-0-9a-f]+/, `uid: ${uid}`);
};
const status = async (): Promise<{ given?: string; owners?: { owner: string; addresses: string[] }[] }> => {
  const text = await readFile(join(place.manifests, '.status', 'EgressIP', 'each.yaml'), 'utf8').catch(() => '');
  return parse(text)?.status ?? {};
};

await t.test('the lab comes up', async () => {
  const world = await up({ name: lab });
  await awaitReady(world);
  for (const file of [NETWORK, CLUSTER]) original[file] = await readFile(join(place.manifests, file), 'utf8');
  const rules = ['billing', 'reviews', 'batch'].map(
    (namespace) => `apiVersion: sluice.dev/v1alpha1
kind: NamespaceEgressRule
metadata: { name: anywhere, namespace: ${namespace} }
spec: { action: accept-decisively, priority: 1, externalServices: ["*"] }
`,
  );
  await writeFile(join(place.manifests, '90-anywhere.yaml'), rules.join('---\n'));
});

t.test(
  'PerNamespace: two namespaces of one EgressIP leave with different addresses, all pods of one with the same',
  async (t) => {
    await give('PerNamespace', ['billing', 'reviews'], 1);
    const answers = await until(
      ['pay-1', 'pay-2', 'rev-1'],
      (now) => now[0] !== now[4] && now[0] === now[2] && all(now),
    );
    const [pay1, , pay2, , rev1] = answers;
    t.equal(pay1, pay2);
    t.not(pay1, rev1);
    t.ok(addresses(4).includes(pay1 ?? '') && addresses(4).includes(rev1 ?? ''));
    t.equal(answers[1], answers[3], 'v6 too');
    t.not(answers[1], answers[5]);
  },
);

let own: string[] = [];
t.test('PerPod: each pod leaves with its own', async (t) => {
  await give('PerPod', ['billing', 'reviews'], 1);
  own = await until(['pay-1', 'pay-2', 'rev-1'], distinct);
  t.ok(distinct(own), own.join(' '));
  // Statuses follow, once a second where changes do not end.
  let { given, owners } = await status();
  for (let i = 0; i < 300 && given !== '3/3'; i++) {
    await sleep(100);
    ({ given, owners } = await status());
  }
  t.equal(given, '3/3');
  const pay2 = owners?.find(({ owner }) => owner === 'billing/pay-2');
  t.same(pay2?.addresses, own.slice(2, 4), 'as the status says');
});

t.test('a pod that is made again with its name keeps its address; who waits for one does not get it', async (t) => {
  await give('PerPod', ['billing', 'reviews', 'batch'], 600);
  t.same(await until(['pay-1', 'pay-2', 'rev-1'], (now) => String(now) === String(own)), own);
  t.same(await allOf(['job-1']), ['', ''], 'none is left for the fourth');
  await rewrite(CLUSTER, /kind: Pod\nmetadata: \{ name: pay-2,/);
  await until(['pay-2'], (now) => String(now) === ',');
  t.same(await allOf(['pay-2', 'job-1']), ['', '', '', ''], 'it is gone, and its address rests');
  const again = '00000000-0000-4000-8000-000000000099';
  await rewrite(CLUSTER, /kind: Pod\nmetadata: \{ name: pay-2,/, podOf('pay-2', again));
  const answers = await until(['pay-1', 'pay-2', 'rev-1'], (now) => String(now) === String(own));
  t.same(answers, own, 'another uid, the same addresses');
});

t.test('when its quarantine is over, an address goes to the one that waits', async (t) => {
  await give('PerPod', ['billing', 'reviews', 'batch'], 1);
  await rewrite(CLUSTER, /kind: Pod\nmetadata: \{ name: pay-2,/);
  t.same(await until(['job-1'], (now) => String(now) === String(own.slice(2, 4))), own.slice(2, 4));
});

t.test('no packet left with a foreign source', async (t) => {
  t.same((await firewallView(lab)).foreign, []);
});
