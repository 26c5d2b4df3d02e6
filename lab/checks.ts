/**
 * What the demo shows, as data: who asks for what, and what must come of it, for each family. The judgement of a
 * command's outcome is pure. The last word is the firewall's: which sources it let through, and that there was no other.
 */
import { type Family, families } from '../api/plan.ts';
import { inNamespace, must, type Outcome, run } from './netns.ts';
import { placeOf } from './place.ts';
import { contentHash } from './servers/content.ts';
import { allowList, serverAddresses } from './topology.ts';

export type Expectation =
  /** The server's answer names one of these as the client. */
  | { from: readonly string[] }
  /** The command prints this. */
  | { prints: string }
  | 'rejected'
  | 'dropped';

export interface Check {
  family: Family;
  host: string;
  who: string;
  what: string;
  expected: Expectation;
  argv: string[];
}
export interface CheckResult {
  check: Check;
  seen: string;
  ok: boolean;
}

const downloadBytes = 20_000_000;
/** Of what is to be dropped, and of what is asked once. */
const waitSeconds = 2;
/** Of what is to come: a resolver's client asks again after five seconds. */
const patienceSeconds = 10;
const bracket = (family: Family, address: string): string => (family === 6 ? `[${address}]` : address);

const curl = (family: Family, url: string, ...more: string[]): string[] => [
  'curl',
  `-${family}`,
  // -v: only there does curl say which error it was that it met in connecting.
  ...['-svS', '--connect-timeout', String(patienceSeconds), '-m', '20', ...more, url],
];

export function checksOf(family: Family): Check[] {
  const web = serverAddresses.web[family];
  const web2 = serverAddresses.web2[family];
  const ipUrl = `http://${bracket(family, web)}/ip`;
  const ip = curl(family, ipUrl);
  const soon = ['--connect-timeout', String(waitSeconds)];
  const billing = { from: allowList.billing?.[family] ?? [] };
  const reviews = { from: allowList.reviews?.[family] ?? [] };
  const pay1 = { family, host: 'pay-1', who: 'billing/pay-1' };
  const pay2 = { family, host: 'pay-2', who: 'billing/pay-2' };
  const rev1 = { family, host: 'rev-1', who: 'reviews/rev-1' };
  const download = `curl -${family} -sS -m 20 http://${bracket(family, web)}/bytes/${downloadBytes} | sha256sum`;
  const echo = `echo hello | timeout 3 nc -u -w 1 ${web} 7`;
  return [
    { ...pay1, what: 'web, by name', expected: billing, argv: curl(family, 'http://web.example.test/ip') },
    { ...pay2, what: 'web (from another node)', expected: billing, argv: ip },
    { ...rev1, what: 'web', expected: reviews, argv: ip },
    {
      ...pay1,
      what: 'web, a download of 20 MB',
      expected: { prints: contentHash(downloadBytes) },
      argv: ['sh', '-c', download],
    },
    { ...rev1, what: 'web, UDP echo', expected: { prints: 'hello' }, argv: ['sh', '-c', echo] },
    {
      ...pay2,
      what: 'web, ping',
      expected: { prints: '1 received' },
      argv: ['ping', '-c', '1', '-W', String(waitSeconds), web],
    },
    {
      ...pay1,
      what: 'web2 port 8080',
      expected: 'rejected',
      argv: curl(family, `http://${bracket(family, web2)}:8080/ip`),
    },
    {
      ...rev1,
      what: 'api.example.test, TLS',
      expected: reviews,
      argv: curl(family, 'https://api.example.test/ip', '-k'),
    },
    {
      ...rev1,
      what: 'www.example.test, TLS',
      expected: 'rejected',
      argv: curl(family, 'https://www.example.test/ip', '-k'),
    },
    {
      ...pay1,
      what: 'web2 port 80',
      expected: 'dropped',
      argv: curl(family, `http://${bracket(family, web2)}/ip`, ...soon),
    },
    { family, host: 'job-1', who: 'batch/job-1', what: 'web', expected: 'dropped', argv: curl(family, ipUrl, ...soon) },
  ];
}

/** Why the demo expects it, in a newcomer's words. */
export function explainExpectation(check: Check): string {
  const { expected } = check;
  if (expected === 'rejected')
    return check.what.includes('TLS') ? 'rejected (another name)' : 'rejected (cluster rule)';
  if (expected === 'dropped') return check.host === 'job-1' ? 'dropped (no egress IP)' : 'dropped (default action)';
  if ('from' in expected) return `seen as ${expected.from.join(' or ')}`;
  return check.what.includes('download') ? 'all bytes right' : 'answered';
}

export function judge(expected: Expectation, outcome: Outcome): { seen: string; ok: boolean } {
  const said = outcome.stderr.trim().split('\n').at(-1) ?? '';
  if (expected === 'rejected' || expected === 'dropped') {
    if (outcome.code === 0) return { seen: `got through: ${outcome.stdout.trim().slice(0, 40)}`, ok: false };
    // curl's 7 is any refusal to connect; only a reset says that somebody rejected it. 28 is silence.
    if (outcome.code === 7 && /failed: Connection refused/.test(outcome.stderr))
      return { seen: 'rejected', ok: expected === 'rejected' };
    // 35: after the handshake of TCP, in that of TLS.
    if (outcome.code === 35 && /Connection reset by peer/.test(outcome.stderr))
      return { seen: 'rejected', ok: expected === 'rejected' };
    if (outcome.code === 28) return { seen: 'dropped', ok: expected === 'dropped' };
    return { seen: said || `exit code ${outcome.code}`, ok: false };
  }
  if (outcome.code !== 0)
    return { seen: outcome.code === 28 ? 'no answer' : said || `exit code ${outcome.code}`, ok: false };
  const answer = outcome.stdout.trim();
  if ('from' in expected) return { seen: answer, ok: expected.from.includes(answer) };
  const ok = answer.includes(expected.prints);
  return { seen: ok ? 'yes' : answer.slice(0, 60), ok };
}

export async function runChecks(lab: string): Promise<CheckResult[]> {
  const place = placeOf(lab);
  const checks = families.flatMap(checksOf);
  return Promise.all(
    checks.map(async (check) => {
      const outcome = await run(inNamespace(place.namespace(check.host), check.argv), { timeoutMs: 25_000 });
      return { check, ...judge(check.expected, outcome) };
    }),
  );
}

export interface FirewallView {
  /** Packets let through, by namespace and family. */
  passed: { namespace: string; family: Family; packets: number }[];
  /** `source . destination` of what was not on the list. */
  foreign: string[];
}

interface NftList {
  nftables: {
    counter?: { name: string; packets: number };
    set?: { name: string; elem?: { elem: { val: { concat: string[] } } }[] };
  }[];
}

export async function firewallView(lab: string): Promise<FirewallView> {
  const namespace = placeOf(lab).namespace('fw');
  const text = await must(inNamespace(namespace, ['nft', '-j', 'list', 'table', 'inet', 'fw']));
  const { nftables } = JSON.parse(text) as NftList;
  const packets = new Map(
    nftables.flatMap(({ counter: c }) => (c === undefined ? [] : [[c.name, c.packets] as const])),
  );
  const passed = Object.keys(allowList).flatMap((name) =>
    families.map((family) => ({
      namespace: name,
      family,
      packets: packets.get(`${name.replaceAll('-', '_')}_v${family}`) ?? 0,
    })),
  );
  const foreign = nftables
    .filter(({ set }) => set?.name.startsWith('foreign_'))
    .flatMap(({ set }) => (set?.elem ?? []).map(({ elem }) => elem.val.concat.join(' → ')));
  return { passed, foreign };
}
