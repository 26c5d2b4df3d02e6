/**
 * EgressIPs by destination and by connection, the whole way: manifests change in the lab's default topology, the real
 * programs carry the traffic of reviews/rev-1, and the servers outside say whom they saw. The upstream firewall is the
 * witness that no packet left with a foreign source.
 */
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import t from 'tap';
import { type Family, families } from '../../api/plan.ts';
import { firewallView } from '../../lab/checks.ts';
import { down } from '../../lab/down.ts';
import { inNamespace, type Outcome, run } from '../../lab/netns.ts';
import { placeOf } from '../../lab/place.ts';
import { awaitReady } from '../../lab/ready.ts';
import { allowList, serverAddresses } from '../../lab/topology.ts';
import { up } from '../../lab/up.ts';

t.setTimeout(570_000);
const lab = `x${process.pid}`;
const place = placeOf(lab);
t.teardown(() => down(lab));

const at = (host: string, argv: string[]): Promise<Outcome> =>
  run(inNamespace(place.namespace(host), argv), { timeoutMs: 60_000 });
type Server = 'web' | 'web2';
/** With what address each of so many new connections of rev-1 is seen; '' for one that fails. */
async function seen(server: Server, family: Family, count: number): Promise<string[]> {
  const address = serverAddresses[server][family];
  const url = `http://${family === 6 ? `[${address}]` : address}/ip`;
  const answers: string[] = [];
  for (let i = 0; i < count; i++) {
    answers.push((await at('rev-1', ['curl', '-sS', '-m', '10', url])).stdout.trim());
  }
  return answers;
}
const distinct = (answers: string[]): string[] => [...new Set(answers)].sort();
/** Until new connections are seen as that: manifests need a moment, through controller, gateways and node. */
async function becomes(server: Server, family: Family, count: number, expected: string[]): Promise<string[]> {
  let answers: string[] = [];
  for (let i = 0; i < 200; i++) {
    answers = distinct(await seen(server, family, count));
    if (String(answers) === String([...expected].sort())) break;
    await sleep(100);
  }
  return answers;
}
const egressIP = (name: string, spec: string): string =>
  `---\napiVersion: sluice.dev/v1alpha1\nkind: EgressIP\nmetadata: { name: ${name} }\nspec: { pool: edge, ${spec} }\n`;

/** The network team's EgressIPs of reviews; the rest of its manifests is as it was. */
async function give(...egressIPs: string[]): Promise<void> {
  const kept = original.split(/^---$/m).filter((text) => !/name: reviews/.test(text));
  await writeFile(join(place.manifests, '10-network-team.yaml'), `${kept.join('---')}${egressIPs.join('')}`);
}
let original = '';
const own = allowList.reviews as Record<Family, string[]>;

await t.test('the lab comes up', async () => {
  const world = await up({ name: lab });
  await awaitReady(world);
  original = await readFile(join(place.manifests, '10-network-team.yaml'), 'utf8');
  await writeFile(
    join(place.manifests, '90-anywhere.yaml'),
    `apiVersion: sluice.dev/v1alpha1
kind: NamespaceEgressRule
metadata: { name: anywhere, namespace: reviews }
spec: { action: accept-decisively, externalServices: ["*"] }
`,
  );
});

t.test('spread by pod: one of two addresses; by connection: both', async (t) => {
  const both = `addresses: [${families.flatMap((f) => own[f].map((a) => `"${a}"`)).join(', ')}], namespaces: [reviews]`;
  for (const family of families) t.equal(distinct(await seen('web', family, 4)).length, 1, `v${family}: by pod`);
  await give(egressIP('reviews', `${both}, spread: Connection`));
  for (const family of families) t.same(await becomes('web', family, 12, own[family]), [...own[family]].sort());
  for (const family of families) {
    t.notOk((await seen('web', family, 20)).includes(''), `v${family}: each connection works`);
  }
});

t.test('by destination: each server sees its address; a list that changes moves new connections', async (t) => {
  const addresses = (index: number) => `addresses: ["${own[4][index]}", "${own[6][index]}"], namespaces: [reviews]`;
  const to = (server: Server) =>
    `destinations: ["${serverAddresses[server][4]}/32", "${serverAddresses[server][6]}/128"]`;
  await give(egressIP('reviews', addresses(0)), egressIP('partner', `${addresses(1)}, ${to('web2')}`));
  for (const family of families) {
    t.same(await becomes('web2', family, 3, [own[family][1] ?? '']), [own[family][1]], `v${family}: the partner`);
    t.same(await becomes('web', family, 3, [own[family][0] ?? '']), [own[family][0]], `v${family}: all others`);
  }
  await give(egressIP('reviews', addresses(0)), egressIP('partner', `${addresses(1)}, ${to('web')}`));
  for (const family of families) {
    t.same(
      await becomes('web', family, 3, [own[family][1] ?? '']),
      [own[family][1]],
      `v${family}: the other way round`,
    );
    t.same(await becomes('web2', family, 3, [own[family][0] ?? '']), [own[family][0]]);
  }
});

t.test('no packet left with a foreign source', async (t) => {
  t.same((await firewallView(lab)).foreign, []);
});
