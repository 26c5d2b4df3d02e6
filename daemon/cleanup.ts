/**
 * Taking out of the kernel what a program of ours put there, and nothing else (design §2): what is there is listed, each
 * piece becomes a step with a text, and the steps are run, or only told. Here is what nodes and gateways have in
 * common; node/cleanup.ts and gateway/cleanup.ts say what is whose. Nothing needs the program's state but what the kernel
 * does not tell: whose an address is, and what a parameter was.
 */
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { TUNNEL_DEVICE } from '../api/names.ts';
import { families, type PlanRole } from '../api/plan.ts';
import { KernelError } from '../kernel/errors.ts';
import { diffNet, emptyNetState, type Ip, type NetState } from '../kernel/iproute.ts';
import type { HostNft } from '../kernel/nft-host.ts';
import { XT_TABLE, xtablesEdits } from '../kernel/queue-rule.ts';
import { run } from '../kernel/run.ts';
import { SYSCTL_MEMORY, SysctlMemory } from '../kernel/sysctl-memory.ts';
import { isRunning } from './sole.ts';

/** Of a program with this state directory. The tunnel device's own parameters go with it. */
export const ownSysctls = (state: string): SysctlMemory =>
  new SysctlMemory(join(state, SYSCTL_MEMORY), { except: (key) => key.includes(`/${TUNNEL_DEVICE}/`) });

export interface Step {
  /** What goes, in the words of the tool that lists it. */
  what: string;
  run(): Promise<unknown>;
}

/** What stays though Sluice may have put it there. */
export interface Left {
  what: string;
  why: string;
}

/** In the order in which they are to be run. */
export interface Cleaning {
  steps: Step[];
  left: Left[];
}

export interface CleanupReport {
  role: PlanRole;
  dryRun: boolean;
  removed: string[];
  left: Left[];
  failed: { what: string; error: string }[];
}

export interface CleanupOptions {
  dryRun: boolean;
  /** Though the program runs. */
  force: boolean;
}

/** The program that would put everything back runs. */
export class StillRunning extends Error {
  constructor(role: PlanRole) {
    super(`sluice ${role} is running here and would put everything back; stop it first`);
  }
}

/** A step that fails stops no other. */
export async function cleanUp(
  role: PlanRole,
  look: () => Promise<Cleaning>,
  options: CleanupOptions,
): Promise<CleanupReport> {
  if (!options.force && (await isRunning(role))) throw new StillRunning(role);
  const { steps, left } = await look();
  const report: CleanupReport = { role, dryRun: options.dryRun, removed: [], left, failed: [] };
  for (const step of steps) {
    try {
      if (!options.dryRun) await step.run();
      report.removed.push(step.what);
    } catch (error) {
      report.failed.push({ what: step.what, error: KernelError.from('cleanup', error).message });
    }
  }
  return report;
}

/** Links, addresses, routes, rules and neighbours that were found to be ours. */
export function netSteps(ip: Ip, ours: NetState): Step[] {
  return diffNet(ours, emptyNetState()).map((line) => ({ what: `ip ${line}`, run: () => ip.apply([line]) }));
}

/** Names of the tables of family inet. */
export async function inetTables(): Promise<Set<string>> {
  return new Set((await listedTables()).flatMap(({ family, name }) => (family === 'inet' ? [name] : [])));
}

export function tableSteps(nft: Pick<HostNft, 'drop'>, present: ReadonlySet<string>, ours: readonly string[]): Step[] {
  return ours
    .filter((table) => present.has(table))
    .map((table) => ({ what: `nft delete table inet ${table}`, run: () => nft.drop(table) }));
}

/**
 * Rules of iptables that send what carries our mark to a queue, whichever iptables put them there. Nobody is asked who
 * has no such table: to ask iptables-legacy would make one.
 */
export async function queueRuleSteps(chain: 'PREROUTING' | 'FORWARD', mark: number, mask: number): Promise<Step[]> {
  const steps: Step[] = [];
  const nftTables = await listedTables();
  const legacy = { 4: await names('ip_tables_names'), 6: await names('ip6_tables_names') };
  for (const family of families) {
    const program = family === 4 ? 'iptables' : 'ip6tables';
    const own = family === 4 ? 'ip' : 'ip6';
    const isNft = nftTables.some(({ family: of, name }) => of === own && name === XT_TABLE);
    for (const [there, suffix] of [
      [isNft, 'nft'],
      [legacy[family].has(XT_TABLE), 'legacy'],
    ] as const) {
      if (!there) continue;
      const command = [`${program}-${suffix}`, '-w', '10', '-t', XT_TABLE];
      const listed = await xtables([...command, '-S', chain]);
      const edits = xtablesEdits(listed, undefined, mark, mask, chain);
      for (const edit of edits) {
        steps.push({
          what: `${command[0]} -t ${XT_TABLE} ${edit.join(' ')}`,
          run: () => xtables([...command, ...edit]),
        });
      }
      // iptables-nft made table and chain for our rule, if there is nothing else in it: an empty one does nothing.
      if (suffix === 'nft' && edits.length > 0 && (await isOnly(own, chain, edits.length))) {
        const run = async (): Promise<unknown> =>
          (await isOnly(own, chain, 0)) ? nftCommand(`delete table ${own} ${XT_TABLE}`) : undefined;
        steps.push({ what: `nft delete table ${own} ${XT_TABLE} (nothing else is in it)`, run });
      }
    }
  }
  return steps;
}

/** `kept`: parameters that stay as we have set them, and why. */
export async function sysctlSteps(memory: SysctlMemory, kept: Record<string, string>): Promise<Cleaning> {
  const changed = await memory.changed();
  const cleaning: Cleaning = { steps: [], left: [] };
  if (changed === false) {
    cleaning.left.push({ what: 'sysctls', why: 'nothing is recorded of what they were before sluice ran' });
    return cleaning;
  }
  for (const [key, was] of changed) {
    const why = kept[key];
    if (why !== undefined) cleaning.left.push({ what: `sysctl ${key}`, why: `${why}; it was ${was}` });
    else cleaning.steps.push({ what: `sysctl -w ${key}=${was}`, run: () => memory.restore(key) });
  }
  return cleaning;
}

interface ListedTable {
  family: string;
  name: string;
}

async function listedTables(): Promise<ListedTable[]> {
  const text = await run(['nft', '-j', 'list', 'tables'], { op: 'nft list' });
  const { nftables } = JSON.parse(text) as { nftables: { table?: ListedTable }[] };
  return nftables.flatMap(({ table }) => table ?? []);
}

/** Whether the table has no chain but this, of that many rules, and nothing of another kind. */
async function isOnly(family: string, chain: string, rules: number): Promise<boolean> {
  const text = await run(['nft', '-j', 'list', 'table', family, XT_TABLE], { op: 'nft list' });
  const { nftables } = JSON.parse(text) as { nftables: Record<string, { name?: string; policy?: string }>[] };
  const count = (kind: string): number => nftables.filter((one) => one[kind] !== undefined).length;
  const chains = nftables.flatMap(({ chain: one }) => one ?? []);
  const known = ['metainfo', 'table', 'chain', 'rule'].map(count).reduce((sum, each) => sum + each, 0);
  const [only] = chains;
  return (
    chains.length === 1 &&
    only?.name === chain &&
    only.policy === 'accept' &&
    count('rule') === rules &&
    known === nftables.length
  );
}

const nftCommand = (line: string): Promise<string> => run(['nft', '-f', '-'], { op: 'nft run', input: `${line}\n` });
const xtables = (command: string[]): Promise<string> => run(command, { op: 'queue rule', timeoutMs: 20_000 });

async function names(file: string): Promise<Set<string>> {
  return new Set((await readFile(`/proc/self/net/${file}`, 'utf8').catch(() => '')).split('\n'));
}
