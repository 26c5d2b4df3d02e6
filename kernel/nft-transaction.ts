/**
 * A change of a table as one batch of netlink messages (own codec, wire/nft-*.ts): an element in about a millisecond
 * where the `nft` command, which first reads all chains and sets of the machine, takes a tenth of a second in a big
 * table. A change of which a part is not understood is not made so at all (encodeChange() gives undefined).
 * The kernel runs a batch while it is sent: its answers are there when send() returns.
 */
import { decodeAck } from '../wire/netlink-ack.ts';
import { NftBatch } from '../wire/nft-batch.ts';
import { encodeGetGeneration, readGeneration } from '../wire/nft-listing.ts';
import type { SetLayouts } from '../wire/nft-rule.ts';
import { encodeGetSet, layoutOf, readSet, type SetLayout } from '../wire/nft-shape.ts';
import { splitMessages } from '../wire/nlattr.ts';
import type { NetlinkWriter } from '../wire/nlwriter.ts';
import { type KernelCode, KernelError } from './errors.ts';
import * as libc from './libc.ts';
import type { NetlinkSocket } from './netlink-socket.ts';
import { changeSize, type TableChange } from './nft-change.ts';

/** This thread stands still while a batch is made, some seconds for so much; the command would take minutes. */
const CHANGE_MAX = 1_000_000;

/** `known`: layouts of sets that are there; `writer`: one to be written into anew. */
export function encodeChange(change: TableChange, known: SetLayouts, writer?: NetlinkWriter): NftBatch | undefined {
  if (changeSize(change) > CHANGE_MAX) return undefined;
  // A hook is text of many forms, and seldom new.
  if (change.chains.some(({ hook }) => hook !== undefined)) return undefined;
  const layouts = new Map<string, SetLayout | undefined>();
  for (const { name, shape } of change.sets) layouts.set(name, layoutOf(shape));
  if ([...layouts.values()].includes(undefined)) return undefined;
  const layoutNamed: SetLayouts = (set) => {
    if (!layouts.has(set)) layouts.set(set, known(set));
    return layouts.get(set);
  };

  const batch = new NftBatch(change.table, writer);
  const elements = (verb: 'add' | 'delete', { set, shape, elements }: TableChange['elementsIn'][number]): boolean => {
    const layout = layoutOf(shape);
    return layout !== undefined && batch.changeElements(verb, set, layout, elements);
  };
  if (change.create) batch.addTable();
  for (const name of change.flushed) batch.flushChain(name);
  for (const out of change.elementsOut) if (!elements('delete', out)) return undefined;
  for (const name of change.flushedMaps) batch.flushSet(name);
  for (const name of change.chainsOut) batch.deleteChain(name);
  for (const { name } of change.setsOut) batch.deleteSet(name);
  for (const name of change.countersOut) batch.deleteCounter(name);
  for (const name of change.counters) batch.addCounter(name);
  for (const { name } of change.sets) batch.addSet(name, layouts.get(name) as SetLayout);
  for (const { name } of change.chains) batch.addChain(name);
  for (const rule of change.rules) if (!batch.addRule(rule, layoutNamed)) return undefined;
  for (const come of change.elementsIn) if (!elements('add', come)) return undefined;
  return batch;
}

const ANSWER_BYTES = 64 * 1024;
/** Besides the payload of a message the kernel counts its own bookkeeping. */
const SEND_MARGIN = 64 * 1024;

/** Bytes that the kernel is done with in some milliseconds, so that they are not worth another thread. */
const SENT_HERE = 64 * 1024;

/**
 * Makes all of a batch's changes or none; throws KernelError with the message that the kernel refused. Nobody else may
 * use the socket until then.
 */
export async function sendBatch(socket: NetlinkSocket, batch: NftBatch): Promise<void> {
  const bytes = batch.finish();
  libc.setOption(socket.fd, libc.SOL_SOCKET, libc.SO_SNDBUFFORCE, bytes.length + SEND_MARGIN);
  try {
    if (bytes.length > SENT_HERE) await socket.sendAside(bytes);
    else socket.send(bytes);
  } catch (error) {
    throw KernelError.from('nft run', error);
  }
  let done = false;
  let refusal: KernelError | undefined;
  const answers = new Uint8Array(ANSWER_BYTES);
  for (;;) {
    const length = libc.receive(socket.fd, answers, libc.MSG_DONTWAIT, [libc.EAGAIN, libc.EINTR, libc.ENOBUFS]);
    // What was lost for want of space is in front of what is there.
    if (length === -libc.EINTR || length === -libc.ENOBUFS) continue;
    if (length <= 0) break;
    for (const message of splitMessages(answers.subarray(0, length))) {
      const ack = decodeAck(message);
      if (!ack.ok) continue;
      const { errno, sequence, text, offset } = ack.value;
      if (errno === 0) done ||= sequence === batch.last;
      else {
        const name = libc.errnoName(errno);
        const code = codeOf(name);
        const what = `${batch.describe(sequence, offset)}${text === undefined ? '' : ` (${text})`}`;
        refusal ??= new KernelError('nft run', code, code === 'failed' ? `${name}: ${what}` : what);
      }
    }
  }
  if (refusal !== undefined) throw refusal;
  if (!done) throw new KernelError('nft run', 'bad-answer', 'the kernel did not say whether it made the change');
}

const codes = new Set<string>([
  'ENOENT',
  'EEXIST',
  'EBUSY',
  'EPERM',
  'EINVAL',
  'EOPNOTSUPP',
  'ENODEV',
  'ENOBUFS',
] satisfies KernelCode[]);
function codeOf(name: string): KernelCode {
  // Node's name for the number.
  if (name === 'ENOTSUP') return 'EOPNOTSUPP';
  return codes.has(name) ? (name as KernelCode) : 'failed';
}

/** The number that each transaction, anybody's and of any table, makes one more. */
export function askGeneration(socket: NetlinkSocket): number {
  socket.send(encodeGetGeneration(0));
  const answer = new Uint8Array(ANSWER_BYTES);
  for (const message of splitMessages(answer.subarray(0, socket.receive(answer)))) {
    const generation = readGeneration(message);
    if (generation.ok) return generation.value;
  }
  throw new KernelError('nft run', 'bad-answer', 'the kernel does not say which generation is in force');
}

/** The layout of a set that is there. */
export function askLayout(socket: NetlinkSocket, table: string, set: string): SetLayout | undefined {
  socket.send(encodeGetSet(table, set));
  const answer = new Uint8Array(ANSWER_BYTES);
  for (const message of splitMessages(answer.subarray(0, socket.receive(answer)))) {
    const listed = readSet(message);
    if (listed.ok) return listed.value?.layout;
  }
  return undefined;
}
