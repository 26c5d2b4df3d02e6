/**
 * The XDP program of frame-source.ts as instructions (Documentation/bpf/standardization/instruction-set.rst), written by hand:
 * it writes all of an Ethernet, IPv4 and UDP header anew each time, since what forwarding made of a frame is still in
 * its page when that comes round again, and lets the frame pass. Which flow it is of is by chance. Pure.
 */

export interface FrameOptions {
  /** MAC addresses. */
  to: string;
  from: string;
  /** The first address; of the others the last byte counts up. */
  source: string;
  sources: number;
  destination: string;
  port: number;
  /** A power of two. */
  flows: number;
}

/** 14 + 20 + 8 + 18: the smallest Ethernet frame, without its check sum. */
export const FRAME_BYTES = 60;
const IP = 14;
const UDP = 34;
const FIRST_PORT = 1_024;
const TTL = 64;
const [XDP_DROP, XDP_PASS] = [1, 2];
const GET_PRANDOM_U32 = 7;

/** Opcodes: class, with size and mode, or operation and source. */
const LDX_W = 0x61;
const [ST_W, STX_H, STX_B] = [0x62, 0x6b, 0x73];
const [MOV_REG, MOV_IMM, ADD_REG, ADD_IMM, AND_IMM, MOD_IMM, RSH_IMM, XOR_IMM] = [
  0xbf, 0xb7, 0x0f, 0x07, 0x57, 0x97, 0x77, 0xa7,
];
const TO_BE = 0xdc;
const [JGT_REG, CALL, EXIT] = [0x2d, 0x85, 0x95];

interface Instruction {
  code: number;
  to?: number;
  from?: number;
  offset?: number;
  value?: number;
}

export function frameProgram(options: FrameOptions): Uint8Array {
  const { flows, sources } = options;
  if (flows < 1 || (flows & (flows - 1)) !== 0) throw new TypeError('flows: a power of two');
  const header = headersOf(options);
  const view = new DataView(header.buffer);
  const words = Array.from({ length: header.length / 4 }, (_, at) => view.getInt32(4 * at, true));
  const lastByte = header[IP + 15] ?? 0;
  if (lastByte + sources > 256) throw new TypeError('sources: the last byte counts up');
  const write = words.map((value, at): Instruction => ({ code: ST_W, to: 7, offset: 4 * at, value }));
  const body: Instruction[] = [
    { code: MOV_REG, to: 7, from: 2 },
    { code: CALL, value: GET_PRANDOM_U32 },
    ...write,
    { code: AND_IMM, to: 0, value: flows - 1 },
    // The source's port is the flow's.
    { code: MOV_REG, to: 2, from: 0 },
    { code: ADD_IMM, to: 2, value: FIRST_PORT },
    { code: TO_BE, to: 2, value: 16 },
    { code: STX_H, to: 7, from: 2, offset: UDP },
    // Its address, too, and the check sum with it.
    { code: MOV_REG, to: 1, from: 0 },
    { code: MOD_IMM, to: 1, value: sources },
    { code: MOV_REG, to: 2, from: 1 },
    { code: ADD_IMM, to: 2, value: lastByte },
    { code: STX_B, to: 7, from: 2, offset: IP + 15 },
    { code: MOV_IMM, to: 3, value: sumOf(header.subarray(IP, UDP)) },
    { code: ADD_REG, to: 3, from: 1 },
    ...fold,
    ...fold,
    { code: XOR_IMM, to: 3, value: 0xffff },
    { code: TO_BE, to: 3, value: 16 },
    { code: STX_H, to: 7, from: 3, offset: IP + 10 },
    { code: MOV_IMM, to: 0, value: XDP_PASS },
    { code: EXIT },
  ];
  // struct xdp_md: data, data_end. The verifier wants to see that the frame is so long.
  const start: Instruction[] = [
    { code: LDX_W, to: 2, from: 1, offset: 0 },
    { code: LDX_W, to: 3, from: 1, offset: 4 },
    { code: MOV_REG, to: 4, from: 2 },
    { code: ADD_IMM, to: 4, value: FRAME_BYTES },
    { code: JGT_REG, to: 4, from: 3, offset: body.length },
  ];
  return encode([...start, ...body, { code: MOV_IMM, to: 0, value: XDP_DROP }, { code: EXIT }]);
}

/** r3: its upper half added to its lower. */
const fold: Instruction[] = [
  { code: MOV_REG, to: 4, from: 3 },
  { code: RSH_IMM, to: 4, value: 16 },
  { code: AND_IMM, to: 3, value: 0xffff },
  { code: ADD_REG, to: 3, from: 4 },
];

/** 44 bytes: the headers, and the first two of the payload. Check sums are 0: IP's is added, UDP's needs none. */
export function headersOf({ to, from, source, destination, port }: FrameOptions): Uint8Array {
  const bytes = new Uint8Array(44);
  const view = new DataView(bytes.buffer);
  bytes.set([...macBytes(to), ...macBytes(from)]);
  view.setUint16(12, 0x0800);
  view.setUint16(IP, 0x4500);
  view.setUint16(IP + 2, FRAME_BYTES - IP);
  view.setUint16(IP + 8, (TTL << 8) | 17);
  bytes.set(source.split('.').map(Number), IP + 12);
  bytes.set(destination.split('.').map(Number), IP + 16);
  view.setUint16(UDP + 2, port);
  view.setUint16(UDP + 4, FRAME_BYTES - UDP);
  return bytes;
}

const macBytes = (text: string): number[] => text.split(':').map((part) => Number.parseInt(part, 16));

/** Of 16-bit words, not folded. */
export function sumOf(bytes: Uint8Array): number {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  let sum = 0;
  for (let at = 0; at < bytes.length; at += 2) sum += view.getUint16(at);
  return sum;
}

function encode(instructions: Instruction[]): Uint8Array {
  const bytes = new Uint8Array(8 * instructions.length);
  const view = new DataView(bytes.buffer);
  for (const [at, { code, to = 0, from = 0, offset = 0, value = 0 }] of instructions.entries()) {
    view.setUint8(8 * at, code);
    view.setUint8(8 * at + 1, (from << 4) | to);
    view.setInt16(8 * at + 2, offset, true);
    view.setInt32(8 * at + 4, value, true);
  }
  return bytes;
}
