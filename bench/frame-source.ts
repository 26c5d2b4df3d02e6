/**
 * A source of frames in the kernel, where pktgen is not built in: an XDP program that writes a UDP frame of 60 bytes, run
 * by BPF_PROG_RUN with live frames (Documentation/bpf/bpf_prog_run.rst) as if each had come in by the node's device. No
 * socket and no client are in what it costs, so that a gateway is a larger part of what is measured. The program is
 * written by hand (bpf-program.ts): a compiler for it is no part of the machine. IPv4.
 *   node frame-source.js NAMESPACE DEVICE TO_MAC FROM_MAC DESTINATION PORT FLOWS SOURCE...
 * then, by IPC: {seconds} → {sent, seconds}. SOURCEs are neighbours: the last byte counts up.
 */
import koffi from 'koffi';
import { enterNamespace } from '../kernel/libc.ts';
import { FRAME_BYTES, frameProgram } from './bpf-program.ts';

const SYS_BPF = process.arch === 'arm64' ? 280 : 321;
const [BPF_PROG_LOAD, BPF_PROG_TEST_RUN] = [5, 10];
const BPF_PROG_TYPE_XDP = 6;
const BPF_F_TEST_XDP_LIVE_FRAMES = 2;
/** Frames of one call: some 10 ms. */
const FRAMES = 16_384;
const BATCH = 64;
const ATTR_BYTES = 144;
const LOG_BYTES = 65_536;

const libc = koffi.load('libc.so.6');
const syscall = libc.func('int64_t syscall(int64_t, int, void*, uint32_t)');
const if_nametoindex = libc.func('unsigned int if_nametoindex(const char*)');

/** Memory that never moves, and its address. */
function fixed(bytes: Uint8Array): bigint {
  const memory = koffi.alloc('uint8_t', bytes.length);
  new Uint8Array(koffi.view(memory, bytes.length)).set(bytes);
  kept.push(memory);
  return BigInt(koffi.address(memory));
}
const kept: unknown[] = [];

function bpf(command: number, attr: Uint8Array, what: string): number {
  const result = Number(syscall(SYS_BPF, command, attr, attr.length));
  if (result < 0) throw new Error(`bpf ${what}: errno ${koffi.errno()}`);
  return result;
}

/** union bpf_attr of BPF_PROG_LOAD: prog_type, insn_cnt, insns, license, log_level, log_size, log_buf. */
function load(program: Uint8Array): number {
  const attr = new Uint8Array(ATTR_BYTES);
  const view = new DataView(attr.buffer);
  view.setUint32(0, BPF_PROG_TYPE_XDP, true);
  view.setUint32(4, program.length / 8, true);
  view.setBigUint64(8, fixed(program), true);
  view.setBigUint64(16, fixed(new TextEncoder().encode('GPL\0')), true);
  view.setUint32(24, 1, true);
  view.setUint32(28, LOG_BYTES, true);
  const log = koffi.alloc('uint8_t', LOG_BYTES);
  kept.push(log);
  view.setBigUint64(32, BigInt(koffi.address(log)), true);
  try {
    return bpf(BPF_PROG_LOAD, attr, 'load');
  } catch (error) {
    const said = Buffer.from(koffi.view(log, LOG_BYTES)).toString('latin1').split('\0')[0];
    throw new Error(`the kernel refuses the program: ${said}`, { cause: error });
  }
}

/**
 * union bpf_attr of BPF_PROG_TEST_RUN: prog_fd 0, data_size_in 8, data_in 16, repeat 32, ctx_size_in 40, ctx_in 48, flags
 * 64, batch_size 72. Context: struct xdp_md with data_end 4 and ingress_ifindex 12.
 */
function runOf(program: number, device: number): Uint8Array {
  const context = new Uint8Array(24);
  const md = new DataView(context.buffer);
  md.setUint32(4, FRAME_BYTES, true);
  md.setUint32(12, device, true);
  const attr = new Uint8Array(ATTR_BYTES);
  const view = new DataView(attr.buffer);
  view.setUint32(0, program, true);
  view.setUint32(8, FRAME_BYTES, true);
  view.setBigUint64(16, fixed(new Uint8Array(FRAME_BYTES)), true);
  view.setUint32(32, FRAMES, true);
  view.setUint32(40, context.length, true);
  view.setBigUint64(48, fixed(context), true);
  view.setUint32(64, BPF_F_TEST_XDP_LIVE_FRAMES, true);
  view.setUint32(72, BATCH, true);
  return attr;
}

const [namespace = '', device = '', to = '', from = '', destination = '', port = '', flows = '', ...sources] =
  process.argv.slice(2);
enterNamespace(namespace);
const index = Number(if_nametoindex(device));
if (index === 0) throw new Error(`no device ${device}`);
const program = frameProgram({
  to,
  from,
  source: sources[0] ?? '',
  sources: sources.length,
  destination,
  port: Number(port),
  flows: Number(flows),
});
const attr = runOf(load(program), index);

function flood(seconds: number): { sent: number; seconds: number } {
  const start = performance.now();
  let [sent, now] = [0, start];
  for (; now < start + 1000 * seconds; now = performance.now()) {
    bpf(BPF_PROG_TEST_RUN, attr, 'run');
    sent += FRAMES;
  }
  return { sent, seconds: (now - start) / 1000 };
}

process.on('message', ({ seconds }: { seconds: number }) => process.send?.(flood(seconds)));
process.on('disconnect', () => process.exit(0));
process.send?.('ready');
