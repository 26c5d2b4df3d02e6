/** The frame source's program, by a machine that runs its few instructions; the kernel's own word is in bench itself. */
import t from 'tap';
import { FRAME_BYTES, type FrameOptions, frameProgram, headersOf, sumOf } from '../../bench/bpf-program.ts';

const options: FrameOptions = {
  to: '02:00:00:00:00:01',
  from: '02:00:00:00:00:02',
  source: '10.128.0.2',
  sources: 25,
  destination: '198.51.100.80',
  port: 9000,
  flows: 64,
};

/** What the program makes of a frame full of another's bytes, with this chance; undefined: dropped. */
function frameBy(program: Uint8Array, chance: number, length = FRAME_BYTES): Uint8Array | undefined {
  const frame = new Uint8Array(FRAME_BYTES).fill(0xaa);
  const view = new DataView(program.buffer);
  const memory = new DataView(frame.buffer);
  // Registers; the frame begins at 0, the context's two words are its beginning and its end.
  const r = new Array<number>(11).fill(0);
  for (let at = 0; ; at++) {
    const [code, registers] = [view.getUint8(8 * at), view.getUint8(8 * at + 1)];
    const [to, from] = [registers & 15, registers >> 4];
    const [offset, value] = [view.getInt16(8 * at + 2, true), view.getInt32(8 * at + 4, true)];
    const [a, b] = [r[to] ?? 0, r[from] ?? 0];
    if (code === 0x61) r[to] = offset === 4 ? length : 0;
    else if (code === 0x62) memory.setInt32(a + offset, value, true);
    else if (code === 0x6b) memory.setUint16(a + offset, b, true);
    else if (code === 0x73) memory.setUint8(a + offset, b & 255);
    else if (code === 0xbf) r[to] = b;
    else if (code === 0xb7) r[to] = value;
    else if (code === 0x0f) r[to] = a + b;
    else if (code === 0x07) r[to] = a + value;
    else if (code === 0x57) r[to] = a & value;
    else if (code === 0x97) r[to] = a % value;
    else if (code === 0x77) r[to] = a >>> value;
    else if (code === 0xa7) r[to] = a ^ value;
    else if (code === 0xdc) r[to] = ((a & 255) << 8) | ((a >> 8) & 255);
    else if (code === 0x2d) at += a > b ? offset : 0;
    else if (code === 0x85) r[0] = chance;
    else if (code === 0x95) return r[0] === 2 ? frame : undefined;
    else throw new Error(`no instruction ${code.toString(16)}`);
  }
}

t.test('each frame is a UDP packet of a flow of its own, with a check sum that is right', async (t) => {
  const program = frameProgram(options);
  for (const chance of [0, 1, 24, 25, 63, 64, 0x7fff_ffff]) {
    const frame = frameBy(program, chance);
    if (frame === undefined) return t.fail('it was dropped');
    const view = new DataView(frame.buffer);
    const flow = chance & 63;
    t.equal(view.getUint16(34), 1024 + flow, `${chance}: the port is the flow’s`);
    t.same([...frame.subarray(26, 30)], [10, 128, 0, 2 + (flow % 25)], `${chance}: and so is the pod`);
    let sum = sumOf(frame.subarray(14, 34));
    while (sum > 0xffff) sum = (sum & 0xffff) + (sum >> 16);
    t.equal(sum, 0xffff, `${chance}: the check sum`);
    t.same([...frame.subarray(0, 14)], [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0]);
    t.equal(view.getUint16(16), 46, 'length of the packet');
    t.equal(view.getUint16(36), 9000);
    t.equal(view.getUint16(38), 26, 'length of the datagram');
    t.equal(view.getUint16(40), 0, 'no check sum of UDP');
  }
});

t.test('what cannot be', async (t) => {
  t.equal(frameBy(frameProgram(options), 0, FRAME_BYTES - 1), undefined, 'a shorter frame is dropped');
  t.throws(() => frameProgram({ ...options, flows: 63 }), TypeError);
  t.throws(() => frameProgram({ ...options, sources: 255 }), TypeError, 'beyond the last byte');
  t.equal(headersOf(options).length % 4, 0, 'it is written by words');
});
