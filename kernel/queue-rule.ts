/**
 * The one rule that sends packets to the queues: those that carry a mark, balanced over `count` queues from `first` on.
 * nft's `queue` where the kernel has it, in a table of its own; else the xtables target, in a chain that others use
 * too, where only rules that ask for our mark are ours.
 *
 * The kernel balances by both addresses and the protocol, alike in both directions: a flow's packets all meet one
 * thread, also behind a translation, since the forward hook sees inside addresses both ways. `--queue-cpu-fanout`
 * chooses by CPU instead, and a flow's two directions may come in on two: never used. Bypass lets packets pass while
 * nobody holds the queue, with their mark: only for `onOverload: Accept`.
 *
 * If somebody flushes the rule, packets go on with the mark that asks for the queue: so the chain behind it must not
 * let a packet out that still carries that mark (unless overload lets them pass).
 */
import { type Family, families } from '../api/plan.ts';
import { KernelError } from './errors.ts';
import { inNamespace, run } from './run.ts';

export interface QueueRule {
  /** Packets whose mark & mask is this. */
  mark: number;
  mask: number;
  first: number;
  count: number;
  bypass: boolean;
}

/** How this machine sends packets to a queue. */
export type QueueCapability =
  | { kind: 'nft' }
  | { kind: 'xtables'; commands: Record<Family, string> }
  | { kind: 'none'; reasons: string[] };

/** Own table, and so nobody else's business; `sluice` itself is a file of another compiler. */
export const QUEUE_TABLE = 'sluice_queue';
const XT_CHAIN = 'FORWARD';
/** Of iptables; iptables-nft has a table of that name in nftables. */
export const XT_TABLE = 'mangle';
const candidates: Record<Family, string>[] = [
  { 4: 'iptables-nft', 6: 'ip6tables-nft' },
  { 4: 'iptables', 6: 'ip6tables' },
  { 4: 'iptables-legacy', 6: 'ip6tables-legacy' },
];
/** Both hold their lock for moments only; a machine under load is slow. */
const TIMEOUT_MS = 20_000;
const LOCK_SECONDS = 10;

const hex = (value: number): string => `0x${value.toString(16)}`;
const range = ({ first, count }: QueueRule, separator: string): string =>
  count === 1 ? String(first) : `${first}${separator}${first + count - 1}`;

/** `iptables -S` leaves a mask of all bits out. */
const xtablesMatch = (mark: number, mask: number): string[] => [
  ...['-m', 'mark', '--mark', mask === 0xffffffff ? hex(mark) : `${hex(mark)}/${hex(mask)}`],
  ...['-j', 'NFQUEUE'],
];

/** As `iptables -S` prints it. */
export function xtablesRule(rule: QueueRule): string[] {
  return [
    ...xtablesMatch(rule.mark, rule.mask),
    ...[rule.count === 1 ? '--queue-num' : '--queue-balance', range(rule, ':')],
    ...(rule.bypass ? ['--queue-bypass'] : []),
  ];
}

/** By which the rule is known again. */
const noteOf = ({ mark, mask, first, count, bypass }: QueueRule): string =>
  `comment "${hex(mark)}/${hex(mask)} ${first}+${count}${bypass ? ' bypass' : ''}"`;

/** Whether what `nft list table` printed is the rule, and nothing else. */
export const isNftRule = (listed: string, rule: QueueRule | undefined): boolean =>
  rule !== undefined &&
  listed.includes(` ${noteOf(rule)}\n`) &&
  listed.split('\n').filter((line) => line.trim()).length === 6;

export function nftScript(rule: QueueRule | undefined): string {
  const lines = [`add table inet ${QUEUE_TABLE}`, `delete table inet ${QUEUE_TABLE}`];
  if (rule !== undefined) {
    // nft wants `flags bypass` before the numbers.
    const target = `queue ${rule.bypass ? 'flags bypass ' : ''}to ${range(rule, '-')}`;
    lines.push(
      `add table inet ${QUEUE_TABLE}`,
      `add chain inet ${QUEUE_TABLE} forward { type filter hook forward priority mangle; policy accept; }`,
      `add rule inet ${QUEUE_TABLE} forward meta mark & ${hex(rule.mask)} == ${hex(rule.mark)} ${target} ${noteOf(rule)}`,
    );
  }
  return `${lines.join('\n')}\n`;
}

/**
 * From what `iptables -S FORWARD` prints to edits: our rule is there once afterwards (or not, if undefined), others
 * stay. What is right is not touched. A wrong one is deleted after the right one is there, so that no packet slips by.
 */
export function xtablesEdits(
  listed: string,
  rule: QueueRule | undefined,
  mark: number,
  mask: number,
  chain = XT_CHAIN,
): string[][] {
  const wanted = rule === undefined ? undefined : xtablesRule(rule).join(' ');
  const ours = xtablesMatch(mark, mask).join(' ');
  const edits: string[][] = [];
  let there = false;
  for (const line of listed.split('\n')) {
    if (!line.startsWith(`-A ${chain} `)) continue;
    const text = line.slice(`-A ${chain} `.length).trim();
    if (text !== ours && !text.startsWith(`${ours} `)) continue;
    if (text === wanted && !there) there = true;
    else edits.push(['-D', chain, ...text.split(' ')]);
  }
  if (wanted !== undefined && !there) edits.unshift(['-A', chain, ...wanted.split(' ')]);
  return edits;
}

const probed: QueueRule = { mark: 1, mask: 1, first: 0, count: 2, bypass: true };

/** Makes a network namespace for a command; the second way needs no CAP_SYS_ADMIN, but a kernel that lets anyone have a user namespace. */
const apart = [
  ['unshare', '--net', '--'],
  ['unshare', '--user', '--map-root-user', '--net', '--'],
];

/** Tries each way in a network namespace made for it: of what is in force here, nothing is read or changed. */
export async function probeQueueRule(): Promise<QueueCapability> {
  const reasons: string[] = [];
  const op = 'queue probe';
  const permitted = await run([...apart[0]!, 'true'], { op, timeoutMs: TIMEOUT_MS }).then(
    () => true,
    () => false,
  );
  const wrapper = apart[permitted ? 0 : 1]!;
  const works = async (command: string[], input = ''): Promise<boolean> => {
    try {
      await run([...wrapper, ...command], { op, input, timeoutMs: TIMEOUT_MS });
      return true;
    } catch (error) {
      reasons.push(`${command[0]}: ${(error as Error).message}`);
      return false;
    }
  };
  if (await works(['nft', '-f', '-'], nftScript(probed))) return { kind: 'nft' };
  for (const commands of candidates) {
    const rule = ['-t', XT_TABLE, '-A', XT_CHAIN, ...xtablesRule(probed)];
    if ((await works([commands[4], ...rule])) && (await works([commands[6], ...rule]))) {
      return { kind: 'xtables', commands };
    }
  }
  return { kind: 'none', reasons };
}

/** Puts the rule in force, or mends it; says how many changes that took. Throws KernelError. */
export function putQueueRule(capability: QueueCapability, rule: QueueRule, namespace?: string): Promise<number> {
  return apply(capability, rule, rule.mark, rule.mask, namespace);
}

/** Takes the rule of that mark away, however many queues it names. Without one nothing happens. */
export function removeQueueRule(
  capability: QueueCapability,
  { mark, mask }: Pick<QueueRule, 'mark' | 'mask'>,
  namespace?: string,
): Promise<number> {
  return apply(capability, undefined, mark, mask, namespace);
}

async function apply(
  capability: QueueCapability,
  rule: QueueRule | undefined,
  mark: number,
  mask: number,
  namespace: string | undefined,
): Promise<number> {
  const execute = (command: string[], input = ''): Promise<string> =>
    run(inNamespace(namespace, command), { op: 'queue rule', input, timeoutMs: TIMEOUT_MS });
  if (capability.kind === 'none') {
    throw new KernelError('queue rule', 'EOPNOTSUPP', capability.reasons.join('; '));
  }
  if (capability.kind === 'nft') {
    const listed = await execute(['nft', 'list', 'table', 'inet', QUEUE_TABLE]).catch(() => undefined);
    if (rule === undefined ? listed === undefined : listed !== undefined && isNftRule(listed, rule)) return 0;
    // One transaction: no packet meets a moment without the rule.
    await execute(['nft', '-f', '-'], nftScript(rule));
    return 1;
  }
  let changes = 0;
  for (const family of families) {
    const command = [capability.commands[family], '-w', String(LOCK_SECONDS), '-t', XT_TABLE];
    const listed = await execute([...command, '-S', XT_CHAIN]);
    for (const edit of xtablesEdits(listed, rule, mark, mask)) {
      await execute([...command, ...edit]);
      changes++;
    }
  }
  return changes;
}
