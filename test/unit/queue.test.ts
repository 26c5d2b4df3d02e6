/**
 * The pure parts of the queue transport: messages of a real kernel (6.18, recorded) and the reader that allocates
 * nothing beside the one that does; a model of the kernel's queue that runs what VerdictWriter wrote; the lines of
 * /proc and of iptables. The kernel's own opinion is in test/netns/queue.test.ts.
 */

import { deepStrictEqual, equal } from 'node:assert/strict';
import fc from 'fast-check';
import t from 'tap';
import { counterAt, QueueMemory, queueCounters } from '../../kernel/queue-memory.ts';
import {
  isNftRule,
  nftScript,
  putQueueRule,
  type QueueRule,
  xtablesEdits,
  xtablesRule,
} from '../../kernel/queue-rule.ts';
import { parseQueues } from '../../kernel/queue-socket.ts';
import { u32 } from '../../wire/bytes.ts';
import {
  decodeNfqueue,
  encodeQueueBind,
  encodeQueueConfig,
  encodeQueueUnbind,
  encodeVerdict,
  encodeVerdictBatch,
  INFO_CHECKSUM_NOT_READY,
  PacketReader,
  QueuePacket,
  VerdictWriter,
} from '../../wire/nfqueue.ts';
import { messageType, splitMessages } from '../../wire/nlattr.ts';

const hex = (text: string) => Uint8Array.from(Buffer.from(text.replaceAll(/\s/g, ''), 'hex'));
const toHex = (bytes: Uint8Array) => Buffer.from(bytes).toString('hex');

const UDP4 = hex(`5300000000030000000000000000000002001e140b000100000000010800030008000600000000010800
  0e000000000123000a004500001f6c4d40004011d07e7f0000017f000001ccb60009000bfe1e68690a`);
const CUT = hex(`7c00000000030000000000000000000002001e140b000100000000020800030008000600000000010800
  0d00000000e408000e000000000144000a00450000e41aeb40004011211c7f0000017f000001c60f000900d0fee3
  303030303030303030303030303030303030303030303030303030303030303030303030`);
const UDP6 = hex(`670000000003000000000000000000000a001e140b0001000000000386dd030008000600000000010800
  0e000000000137000a00600edace000b11400000000000000000000000000000000100000000000000000000000000000001e2ee0009000b001e
  68690a`);

t.test('PacketReader reads what the kernel sent, wherever it lies', async (t) => {
  const reader = new PacketReader();
  const packet = new QueuePacket();
  const around = Uint8Array.from([...Array(100).fill(0xff), ...CUT, ...UDP6, ...Array(100).fill(0xff)]);
  t.equal(reader.read(around, 100, 100 + CUT.length, packet), undefined);
  t.match(packet, { id: 2, mark: 0, hook: 3, protocol: 0x800, inDevice: 0, outDevice: 1, cutFrom: 0xe4 });
  t.equal(packet.info, INFO_CHECKSUM_NOT_READY);
  t.equal(packet.payload().length, 64);
  t.match(toHex(packet.payload()), /^450000e41aeb/);
  t.equal(reader.read(around, 100 + CUT.length, 100 + CUT.length + UDP6.length, packet), undefined);
  t.match(packet, { id: 3, protocol: 0x86dd, cutFrom: 0 }, 'nothing is left of the packet before');
  t.match(toHex(packet.payload()), /68690a$/);
});

t.test('PacketReader agrees with decodeNfqueue on any bytes', async () => {
  const reader = new PacketReader();
  const packet = new QueuePacket();
  const mutated = fc
    .record({
      message: fc.constantFrom(UDP4, CUT, UDP6),
      changes: fc.array(fc.tuple(fc.nat(130), fc.nat(255)), { maxLength: 6 }),
      cut: fc.option(fc.nat(130)),
    })
    .map(({ message, changes, cut }) => {
      const bytes = message.slice(0, cut ?? message.length);
      for (const [at, value] of changes) if (at < bytes.length) bytes[at] = value;
      return bytes;
    });
  fc.assert(
    fc.property(fc.oneof(mutated, fc.uint8Array({ maxLength: 80 })), fc.nat(40), (bytes, offset) => {
      const whole = Uint8Array.from([...Array(offset).fill(0), ...bytes, 9, 9, 9]);
      const reason = reader.read(whole, offset, offset + bytes.length, packet);
      const decoded = decodeNfqueue(bytes);
      if (!decoded.ok) equal(reason, decoded.reason);
      else {
        const { id, mark, hook, protocol, payload, inDevice, outDevice } = decoded.value;
        equal(reason, undefined);
        deepStrictEqual(
          [packet.id, packet.mark, packet.hook, packet.protocol, packet.inDevice, packet.outDevice],
          [id, mark, hook, protocol, inDevice, outDevice],
        );
        deepStrictEqual([...packet.payload()], [...payload]);
      }
    }),
    { numRuns: 5000 },
  );
});

t.test('configuration messages', async (t) => {
  const settings = { queue: 7700, maxLength: 1024, copyRange: 128 };
  const flags = (bits: string) => `0800 0500 ${bits} 0800 0400 ${bits}`.replaceAll(' ', '');
  t.match(toHex(encodeQueueConfig(settings, 1)[2] as Uint8Array), new RegExp(`${flags('00000004')}$`));
  t.match(toHex(encodeQueueConfig({ ...settings, failOpen: true }, 1)[2] as Uint8Array), new RegExp(flags('00000005')));
  const { bind, show } = encodeQueueBind({ ...settings, failOpen: true }, 7);
  t.equal(
    toHex(bind),
    `34000000 0203 0500 07000000 00000000 0000 1e14 0800 0100 01000000 0800 0300 00000400 ${flags('00000005')}`.replaceAll(
      ' ',
      '',
    ),
    'bound, with its length and flags, acknowledged',
  );
  t.equal(
    toHex(show),
    '20000000 0203 0100 08000000 00000000 0000 1e14 0900 0200 00000080 02000000'.replaceAll(' ', ''),
    'packets come from here on; no acknowledgement among them',
  );
  t.match(toHex(encodeQueueUnbind(7700)), /00001e140800010002000000$/);
});

t.test('VerdictWriter: messages as the plain encoders write them', async (t) => {
  const writer = new VerdictWriter(7700, 3);
  const written = () => splitMessages(writer.bytes.slice(0, writer.length)).map(toHex);
  writer.add(1, true, -1, true);
  writer.add(2, true, 0xfffffff0, true);
  writer.add(3, false, 0, false);
  t.same(
    written(),
    [
      encodeVerdict(7700, 1, 'accept'),
      encodeVerdict(7700, 2, 'accept', 0xfffffff0),
      encodeVerdict(7700, 3, 'drop', 0),
    ].map(toHex),
  );
  t.equal(writer.full, true);
  writer.clear();
  t.equal(writer.full, false);
  writer.add(0xfffffffe, true, 5, true);
  writer.add(0xffffffff, true, 5, true);
  writer.add(0, true, 5, true);
  t.same(written(), [encodeVerdictBatch(7700, 0, 'accept', 5)].map(toHex), 'like ones are one, also where ids wrap');
  writer.add(1, true, 5, false);
  t.equal(writer.messages, 2, 'only where the caller says that it means the same');
});

/** What nfnetlink_queue does with verdict messages. */
function run(queue: Map<number, string>, bytes: Uint8Array): void {
  for (const message of splitMessages(bytes)) {
    const id = u32(message, 28);
    const verdict = `${u32(message, 24)} ${message.length > 32 ? u32(message, 36) : 'unchanged'}`;
    for (const [each, what] of queue) {
      const meant = messageType(message) === 0x0303 ? each <= id : each === id;
      if (meant && what === 'waits') queue.set(each, verdict);
    }
  }
}

t.test('VerdictWriter: one verdict for many decides each packet as its own would have', async () => {
  const step = fc.record({
    accept: fc.boolean(),
    mark: fc.constantFrom(-1, 0, 7),
    hold: fc.boolean(),
    release: fc.nat(3),
  });
  fc.assert(
    fc.property(fc.array(step, { maxLength: 60 }), fc.integer({ min: 1, max: 8 }), (steps, capacity) => {
      const writer = new VerdictWriter(1, capacity);
      const queue = new Map(steps.map((_, at) => [at + 1, 'waits']));
      const meant = new Map(queue);
      const held: number[] = [];
      const put = (id: number, accept: boolean, mark: number, widen: boolean) => {
        if (writer.full) {
          run(queue, writer.bytes.slice(0, writer.length));
          writer.clear();
        }
        writer.add(id, accept, mark, widen);
        meant.set(id, `${Number(accept)} ${mark < 0 ? 'unchanged' : mark}`);
      };
      for (const [at, { accept, mark, hold, release }] of steps.entries()) {
        for (const id of held.splice(0, release)) put(id, accept, mark, false);
        if (hold) held.push(at + 1);
        else put(at + 1, accept, mark, held.length === 0);
      }
      run(queue, writer.bytes.slice(0, writer.length));
      deepStrictEqual(queue, meant);
    }),
    { numRuns: 2000 },
  );
});

t.test('what the kernel says of its queues', async (t) => {
  const text =
    ' 7700   2453     3 2    64     0     0        3  1\n 7701  -4123    12 2 65531    17     4    99999  1\n';
  t.same(parseQueues(text), [
    { queue: 7700, port: 2453, waiting: 3, dropped: 0, overruns: 0 },
    { queue: 7701, port: -4123, waiting: 12, dropped: 17, overruns: 4 },
  ]);
  for (const odd of ['', '\n\n', 'no numbers at all here to be seen', '7700 1 2']) t.same(parseQueues(odd), [], odd);
});

t.test('counters are where the thread that counts and the one that reads look for them', async (t) => {
  const memory = new QueueMemory();
  const other = new QueueMemory(memory.buffer);
  for (const [index, name] of queueCounters.entries()) other.counters[counterAt(name)] = 1000 + index;
  other.control.fill(-1);
  t.same(
    Object.values(memory.read()),
    queueCounters.map((_, index) => 1000 + index),
  );
});

const rule: QueueRule = { mark: 0x10, mask: 0xff, first: 7700, count: 4, bypass: false };
const right = '-A FORWARD -m mark --mark 0x10/0xff -j NFQUEUE --queue-balance 7700:7703';

t.test('xtables: the rule is there once afterwards, and others stay', async (t) => {
  const policy = '-P FORWARD ACCEPT';
  const add = ['-A', ...right.split(' ').slice(1)];
  const remove = (line: string) => ['-D', ...line.split(' ').slice(1)];
  const [bypass, fewer, single] = [
    `${right} --queue-bypass`,
    right.replace('7703', '7701'),
    '-A FORWARD -m mark --mark 0x10/0xff -j NFQUEUE --queue-num 7700',
  ];
  const foreign = [
    '-A FORWARD -m mark --mark 0x20/0xff -j NFQUEUE --queue-num 7700',
    '-A FORWARD -m mark --mark 0x10/0xff0 -j NFQUEUE --queue-num 7700',
    '-A FORWARD -m mark --mark 0x10/0xff -j ACCEPT',
    '-A FORWARD -p tcp -m mark --mark 0x10/0xff -j NFQUEUE --queue-num 7700',
    '-A OTHER -m mark --mark 0x10/0xff -j NFQUEUE --queue-num 7700',
    '-A FORWARD -m mark --mark 0x10/0xff -j NFQUEUEX --queue-num 7700',
  ];
  const rows: [name: string, listed: string[], wanted: QueueRule | undefined, edits: string[][]][] = [
    ['an empty chain', [policy], rule, [add]],
    ['it is there', [policy, right], rule, []],
    ['among others', [policy, ...foreign, right], rule, []],
    ['only others', [policy, ...foreign], rule, [add]],
    ['twice', [policy, right, right], rule, [remove(right)]],
    ['with bypass, which is no longer wanted', [policy, bypass], rule, [add, remove(bypass)]],
    ['for fewer queues', [policy, fewer, single], rule, [add, remove(fewer), remove(single)]],
    ['the right one and an old one', [policy, fewer, right], rule, [remove(fewer)]],
    ['not wanted, not there', [policy, ...foreign], undefined, []],
    ['not wanted, there in two forms', [policy, bypass, right], undefined, [remove(bypass), remove(right)]],
  ];
  for (const [name, listed, wanted, edits] of rows) {
    t.same(xtablesEdits(`${listed.join('\n')}\n`, wanted, rule.mark, rule.mask), edits, name);
  }
  t.match(
    xtablesRule({ ...rule, count: 1, mask: 0xffffffff }).join(' '),
    '-m mark --mark 0x10 -j NFQUEUE --queue-num 7700',
  );
});

t.test('nft: one transaction makes the table anew, or away', async (t) => {
  t.match(nftScript(rule), /meta mark & 0xff == 0x10 queue to 7700-7703 comment "0x10\/0xff 7700\+4"\n$/);
  t.match(
    nftScript({ ...rule, count: 1, bypass: true }),
    /queue flags bypass to 7700 comment "0x10\/0xff 7700\+1 bypass"\n$/,
  );
  // As nft 1.0.6 lists a table.
  const listed = (note: string, more = '') => `table inet sluice_queue {
	chain forward {
		type filter hook forward priority mangle; policy accept;
		meta mark & 0x000000ff == 0x00000010 queue to 7700-7703 comment "${note}"
${more}	}
}
`;
  t.ok(isNftRule(listed('0x10/0xff 7700+4'), rule));
  t.notOk(isNftRule(listed('0x10/0xff 7700+2'), rule), 'of another count');
  t.notOk(isNftRule(listed('0x10/0xff 7700+4', '\t\tcounter\n'), rule), 'somebody added a rule');
  t.match(nftScript(undefined), /^add table inet sluice_queue\ndelete table inet sluice_queue\n$/);
  await t.rejects(putQueueRule({ kind: 'none', reasons: ['nft: no', 'iptables-nft: no'] }, rule), {
    code: 'EOPNOTSUPP',
    message: /nft: no; iptables-nft: no/,
  });
});
