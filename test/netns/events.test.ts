/**
 * The event sockets, the connection table and the announcements against the real kernel.
 *
 *   t-ev-c-PID (client) 10.9.0.1/30, fd09::1/64 --- veth --- 10.9.0.2/30, fd09::2/64 t-ev-s-PID (subject)
 *
 * Sockets are opened in the subject's namespace by this process; the client's packets are frames of our own builders.
 * Nothing listens on the subject: a datagram there makes a connection entry, and that is all that is needed.
 */

import { execFileSync } from 'node:child_process';
import { readdirSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import t from 'tap';
import { type Family, families } from '../../api/plan.ts';
import { announce } from '../../kernel/announce.ts';
import {
  type ConntrackEntry,
  type ConntrackView,
  changeFlows,
  endFlows,
  endTuples,
  listFlows,
} from '../../kernel/conntrack.ts';
import { type EventSocketOptions, startEventSocket } from '../../kernel/event-socket.ts';
import { PacketSocket } from '../../kernel/packet-socket.ts';
import { ARP_REPLY, ARP_REQUEST, parseArp } from '../../wire/arp.ts';
import type { Decoded } from '../../wire/bytes.ts';
import { type ConntrackEvent, decodeConntrack } from '../../wire/conntrack.ts';
import { buildFrame, ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6, parseFrame } from '../../wire/ethernet.ts';
import { buildIcmpEcho, buildTcp, buildUdp, parsePacket, TCP_SYN } from '../../wire/ip.ts';
import { parseNeighbourAdvertisement } from '../../wire/ndp.ts';
import { decodeNflog, type NflogMessage } from '../../wire/nflog.ts';
import { decodeNfqueue, encodeVerdict, type QueuedPacket } from '../../wire/nfqueue.ts';

const CLIENT = `t-ev-c-${process.pid}`;
const SUBJECT = `t-ev-s-${process.pid}`;
const address = { 4: { client: '10.9.0.1', subject: '10.9.0.2' }, 6: { client: 'fd09::1', subject: 'fd09::2' } };
const CLIENT_MAC = '02:00:00:00:09:01';
const SUBJECT_MAC = '02:00:00:00:09:02';
const GROUP = 7790;
const QUEUE = 7790;
const PORT_PLAIN = 4000;
const PORT_MARKED = 5000;
const PORT_LOGGED = 5500;
const PORT_HELD = 6000;
const MARK = 0x80000100;
/** For what comes in the end. */
const WAIT_MS = 60_000;

function run(command: string, input?: string): string {
  const [program = '', ...args] = command.split(' ');
  return execFileSync('timeout', ['60', program, ...args], {
    encoding: 'utf8',
    ...(input === undefined ? {} : { input }),
  });
}
const inside = (namespace: string, command: string, input?: string) =>
  run(`ip netns exec ${namespace} ${command}`, input);

function setUp(): void {
  for (const namespace of [CLIENT, SUBJECT]) run(`ip netns add ${namespace}`);
  run(
    'ip -batch -',
    `link add e0 address ${CLIENT_MAC} netns ${CLIENT} type veth peer name e0 address ${SUBJECT_MAC} netns ${SUBJECT}\n`,
  );
  const ends = [
    [CLIENT, 'client'],
    [SUBJECT, 'subject'],
  ] as const;
  for (const [namespace, end] of ends) {
    inside(
      namespace,
      'ip -batch -',
      `addr add ${address[4][end]}/30 dev e0\naddr add ${address[6][end]}/64 dev e0 nodad\nlink set e0 up\nlink set lo up\n`,
    );
  }
  inside(
    SUBJECT,
    'sysctl -qw net.netfilter.nf_conntrack_acct=1 net.netfilter.nf_conntrack_timestamp=1 net.netfilter.nf_conntrack_udp_timeout=600 net.ipv4.conf.all.arp_accept=1',
  );
  inside(
    SUBJECT,
    'nft -f -',
    `table inet t {
      chain early { type filter hook input priority -10;
        udp dport ${PORT_MARKED} ct mark set ${MARK}
        udp dport ${PORT_LOGGED} meta mark set 0x77 log prefix "denied here" group ${GROUP} drop
      }
      # Before conntrack: a refused TCP connection would end its entry at once.
      chain silent { type filter hook output priority -300; tcp flags & rst == rst drop; }
      chain late { type filter hook input priority 10; udp dport ${PORT_HELD} ct mark set meta mark; }
    }`,
  );
  for (const iptables of ['iptables-nft', 'ip6tables-nft']) {
    inside(SUBJECT, `${iptables} -A INPUT -p udp --dport ${PORT_HELD} -j NFQUEUE --queue-num ${QUEUE}`);
  }
}

function tearDown(): void {
  for (const namespace of [CLIENT, SUBJECT]) {
    try {
      run(`ip netns del ${namespace}`);
    } catch {
      // It was never made.
    }
  }
}

/** An event stream of the subject, decoded, on which a test can wait for a message. */
function listen<T>(source: { kind: string } & Record<string, unknown>, decode: (message: Uint8Array) => Decoded<T>) {
  const seen: T[] = [];
  const faults: string[] = [];
  let overruns = 0;
  let wake = () => {};
  const socket = startEventSocket({
    ...(source as unknown as EventSocketOptions),
    namespace: SUBJECT,
    onBatch(messages) {
      for (const message of messages) {
        const decoded = decode(message);
        if (decoded.ok) seen.push(decoded.value);
        else faults.push(decoded.reason);
      }
      wake();
    },
    onOverrun() {
      overruns++;
      wake();
    },
    onError(error) {
      faults.push(error.message);
    },
  });
  const until = async (what: string, condition: () => boolean) => {
    const deadline = Date.now() + WAIT_MS;
    while (!condition()) {
      if (Date.now() > deadline) throw new Error(`waited in vain for ${what}`);
      await new Promise<void>((resolve) => {
        const timer = setTimeout(resolve, 200);
        wake = () => {
          clearTimeout(timer);
          resolve();
        };
      });
    }
  };
  return {
    socket,
    seen,
    faults,
    overruns: () => overruns,
    until,
    async find(what: string, match: (value: T) => boolean): Promise<T> {
      await until(what, () => seen.some(match));
      return seen.find(match) as T;
    },
  };
}

/** The kernel may take in a packet later than it was sent: flows, once they are as asked. */
async function flowsOnce(what: string, condition: (flows: ConntrackEntry[]) => boolean): Promise<ConntrackEntry[]> {
  for (const deadline = Date.now() + WAIT_MS; ; await sleep(20)) {
    const flows = await listFlows({ namespace: SUBJECT });
    if (condition(flows)) return flows;
    if (Date.now() > deadline) throw new Error(`waited in vain for ${what}`);
  }
}

const openDescriptors = () => readdirSync('/proc/self/fd').length;
// On exit rather than in a teardown: it also follows an exception below.
process.on('exit', tearDown);
setUp();
const wire = PacketSocket.open({ device: 'e0', namespace: CLIENT, etherType: 0 });
t.teardown(() => wire.close());

const etherType = { 4: ETHERTYPE_IPV4, 6: ETHERTYPE_IPV6 };
function sendPacket(family: Family, packet: Uint8Array): void {
  wire.send(
    buildFrame({ destination: SUBJECT_MAC, source: CLIENT_MAC, etherType: etherType[family], payload: packet }),
  );
}
function sendUdp(family: Family, sourcePort: number, destinationPort: number, text = 'x'): void {
  const { client, subject } = address[family];
  const payload = Buffer.from(text);
  sendPacket(family, buildUdp({ source: client, destination: subject, sourcePort, destinationPort, payload }));
}

t.test('conntrack: new and destroy events, and the end of chosen flows', async (t) => {
  const before = openDescriptors();
  const events = listen<ConntrackEvent>({ kind: 'conntrack', groups: ['new', 'destroy'] }, decodeConntrack);
  for (const family of families) {
    const { client, subject } = address[family];
    const udp = { source: client, destination: subject, sourcePort: 1111, destinationPort: PORT_MARKED };
    const back = { source: subject, destination: client, sourcePort: PORT_MARKED, destinationPort: 1111 };
    sendUdp(family, 1111, PORT_MARKED, 'twelve bytes');
    sendUdp(family, 1112, PORT_PLAIN);
    sendPacket(family, buildTcp({ ...udp, destinationPort: PORT_PLAIN, flags: TCP_SYN }));
    sendPacket(family, buildIcmpEcho({ source: client, destination: subject, id: 77, sequence: 1 }));

    const opened = await events.find('a new UDP flow', (e) => e.family === family && e.mark === MARK);
    t.match(opened, { type: 'new', protocol: 17, mark: MARK, zone: 0, original: udp, reply: back });
    const echo = await events.find('an echo', (e) => e.family === family && (e.protocol === 1 || e.protocol === 58));
    t.match(echo.original, { icmpId: 77, icmpCode: 0, icmpType: family === 4 ? 8 : 128, source: client });
    const tcp = await events.find('a TCP flow', (e) => e.family === family && e.protocol === 6);
    t.match(tcp, { original: { sourcePort: 1111, destinationPort: PORT_PLAIN }, mark: 0 });
  }
  sendUdp(4, 1111, PORT_MARKED, 'twelve bytes');

  const listed = await flowsOnce('both packets', (flows) =>
    flows.some((e) => e.mark === MARK && e.packets.original === 2),
  );
  const marked = await listFlows({ namespace: SUBJECT, mark: { value: MARK, mask: 0xffffff00 } });
  t.equal(listed.filter((e) => e.protocol === 17).length, 4, 'both UDP flows of both families are listed');
  t.same(new Set(marked.map((e) => e.id)), new Set(listed.filter((e) => e.mark === MARK).map((e) => e.id)));
  t.equal(marked.length, 2, 'the kernel filters by mark');
  const mark = { value: MARK, mask: 0xffffff00 };
  const [all, some, unmarked] = await Promise.all([
    listFlows({ namespace: SUBJECT }),
    listFlows({ namespace: SUBJECT, mark }),
    listFlows({ namespace: SUBJECT, mark: { ...mark, value: 0 } }),
  ]);
  t.same(new Set(some.map((e) => e.id)), new Set(marked.map((e) => e.id)), 'as it does for one of several at once');
  t.same([all.length, unmarked.length], [listed.length, listed.length - 2]);

  const ended = await endFlows((entry) => entry.mark === MARK, { namespace: SUBJECT });
  t.equal(ended, 2);
  for (const family of families) {
    const gone = await events.find('the end', (e) => e.type === 'destroy' && e.family === family && e.mark === MARK);
    const head = family === 4 ? 20 : 40;
    const packets = family === 4 ? 2 : 1;
    t.equal(gone.packets.original, packets);
    t.equal(gone.bytes.original, packets * (head + 8 + 12));
    t.ok(gone.startNs !== undefined && gone.stopNs !== undefined && gone.stopNs >= gone.startNs, 'has start and stop');
    t.ok(Math.abs(Number((gone.stopNs ?? 0n) / 1_000_000n) - Date.now()) < 60_000, 'in nanoseconds since 1970');
    t.equal(gone.id, marked.find((e) => e.family === family)?.id, 'same identity as in the list');
  }
  const left = await listFlows({ namespace: SUBJECT });
  t.same(
    left.map((e) => e.id).sort(),
    listed
      .filter((e) => e.mark !== MARK)
      .map((e) => e.id)
      .sort(),
  );

  for (const protocol of [6, 1, 58]) {
    t.ok(
      (await endFlows((e) => e.protocol === protocol, { namespace: SUBJECT })) >= 1,
      `protocol ${protocol} ends too`,
    );
  }
  t.equal(await endFlows(() => false, { namespace: SUBJECT }), 0, 'no match deletes nothing');
  t.equal((await listFlows({ namespace: SUBJECT })).filter((e) => e.protocol === 17).length, 2);

  t.same(events.faults, []);
  await Promise.all([events.socket.close(), events.socket.close()]);
  t.equal(openDescriptors(), before, 'no descriptor is left');
});

t.test('conntrack: what changes while the table is looked through', async (t) => {
  inside(SUBJECT, 'conntrack -F');
  const portOf = (entry: ConntrackView) => entry.original.sourcePort ?? 0;
  const isOurs = (entry: ConntrackEntry) => portOf(entry) >= 20_000;
  const ours = async () => (await listFlows({ namespace: SUBJECT })).filter(isOurs);
  /** Of the IPv4 flow from a port; undefined: there is none. */
  const idNow = (port: number): number | undefined => {
    const text = inside(SUBJECT, `conntrack -L -p udp -f ipv4 -o id --orig-port-src ${port}`);
    const [, id] = /\bid=(\d+)/.exec(text) ?? [];
    return id === undefined ? undefined : Number(id);
  };
  let filler = 20_000;
  sendUdp(4, 21_000, PORT_PLAIN);
  sendUdp(6, 21_001, PORT_PLAIN);
  const flows = await flowsOnce('two flows', (all) => all.filter(isOurs).length === 2);
  const before = new Map(flows.map((e) => [portOf(e), e.id]));
  const ended = await endFlows(
    (entry) => {
      const port = portOf(entry);
      if (port < 21_000) return false;
      const family = entry.original.source.includes(':') ? 6 : 4;
      inside(SUBJECT, `conntrack -D -p udp --orig-port-src ${port} -f ipv${family}`);
      if (port !== 21_000) return true;
      // The kernel makes the id of the tuple and of where the entry lies. The same flow in the same place would be the
      // same one to it, as to us: others take that place first.
      for (; filler < 20_900; inside(SUBJECT, `conntrack -D -p udp --orig-port-src ${port} -f ipv4`)) {
        for (let n = 0; n < 40; n++) sendUdp(4, filler++, PORT_PLAIN);
        sendUdp(4, port, PORT_PLAIN);
        let id = idNow(port);
        for (const deadline = Date.now() + WAIT_MS; id === undefined; id = idNow(port)) {
          if (Date.now() > deadline) throw new Error('waited in vain for a flow');
        }
        if (id !== before.get(port)) break;
      }
      return true;
    },
    { namespace: SUBJECT },
  );
  t.equal(ended, 0, 'one had ended by itself, the tuple of the other is another flow now');
  const after = (await ours()).filter((e) => portOf(e) >= 21_000);
  t.same(after.map(portOf), [21_000], 'which is left alone');
  t.not(after[0]?.id, before.get(21_000));

  const events = listen<ConntrackEvent>({ kind: 'conntrack', groups: ['destroy'] }, decodeConntrack);
  for (let port = 30_000; port < 34_000; port += 200) {
    for (let n = port; n < port + 200; n++) sendUdp(n % 2 === 0 ? 4 : 6, n, PORT_PLAIN);
    // Not more at a time than may wait for the kernel.
    const made = port + 200 - 30_000;
    await flowsOnce('so many flows', (all) => all.filter((e) => portOf(e) >= 30_000).length === made);
  }
  const doomed = (entry: ConntrackView) => portOf(entry) >= 30_000 && portOf(entry) % 3 === 0;
  const listed = await ours();
  const many = listed.filter(doomed).length;
  t.equal(await endFlows(doomed, { namespace: SUBJECT }), many);
  t.equal(events.seen.filter(doomed).length, 0, 'they are gone before anybody is told');
  await events.until('their ends', () => events.seen.filter(doomed).length === many);
  await events.socket.close();
  const left = new Set((await ours()).map(portOf));
  t.same(left, new Set(listed.filter((entry) => !doomed(entry)).map(portOf)), 'all of them, and no other');
});

t.test('conntrack: marks of chosen flows, and the end of flows by their tuples', async (t) => {
  const first = 15_000;
  const ours = (entry: ConntrackEntry) => {
    const port = entry.original.sourcePort ?? 0;
    return port >= first && port < first + 6;
  };
  for (let port = first; port < first + 6; port++) sendUdp(port % 2 === 0 ? 4 : 6, port, PORT_MARKED);
  const made = (await flowsOnce('six flows', (all) => all.filter(ours).length === 6)).filter(ours);
  t.same(new Set(made.map(({ mark }) => mark)), new Set([MARK]));
  const of = (port: number) => made.find(({ original }) => original.sourcePort === port);
  const options = { namespace: SUBJECT, mark: { value: MARK, mask: 0xffffffff } };
  const changed = await changeFlows(({ original: { sourcePort = 0 } }) => {
    if (sourcePort < first || sourcePort >= first + 4) return undefined;
    return sourcePort < first + 2 ? 'end' : 0x40000000 + sourcePort;
  }, options);
  t.same(changed, { ended: 2, marked: 2 });
  const left = (await listFlows({ namespace: SUBJECT })).filter(ours);
  t.same(
    left.map(({ original, mark }) => [original.sourcePort, mark]).sort(),
    [
      [first + 2, 0x40000000 + first + 2],
      [first + 3, 0x40000000 + first + 3],
      [first + 4, MARK],
      [first + 5, MARK],
    ],
    'others are as they were',
  );
  const tuple = (port: number, id?: number) => {
    const { client: source, subject: destination } = address[port % 2 === 0 ? 4 : 6];
    const ends = { source, destination, sourcePort: port, destinationPort: PORT_MARKED };
    return { protocol: 17, ...ends, ...(id !== undefined && { id }) };
  };
  const id = of(first + 4)?.id ?? 0;
  const told = [tuple(first), tuple(first + 2), tuple(first + 3), tuple(first + 4, id), tuple(first + 5, 1)];
  t.equal(await endTuples(told, { namespace: SUBJECT }), 3, 'one had ended, one has another id');
  const last = (await listFlows({ namespace: SUBJECT })).filter(ours);
  t.same(
    last.map(({ original }) => original.sourcePort),
    [first + 5],
  );
});

t.test('conntrack: an overrun is reported and the stream goes on', async (t) => {
  const events = listen<ConntrackEvent>(
    { kind: 'conntrack', groups: ['new', 'destroy'], receiveBuffer: 1 },
    decodeConntrack,
  );
  for (let port = 10_000; port < 11_500; port++) {
    sendUdp(4, port, PORT_PLAIN);
    if (port % 100 === 99) await flowsOnce('a flow', (all) => all.some((e) => e.original.sourcePort === port));
  }
  // One call in the kernel that makes 1500 events, against a buffer that holds one.
  inside(SUBJECT, 'conntrack -F');
  await events.until('an overrun', () => events.overruns() > 0);
  // Until all that waits was read, the kernel loses more: of each flow it tells, or of an overrun after it.
  let port = 2221;
  const later = () => events.seen.find((e) => e.original.sourcePort === port);
  do {
    port++;
    const before = events.overruns();
    sendUdp(4, port, PORT_MARKED);
    await flowsOnce('a flow after it', (all) => all.some((e) => e.original.sourcePort === port));
    await events.until('its event or an overrun', () => later() !== undefined || events.overruns() > before);
  } while (later() === undefined);
  t.equal(later()?.type, 'new');
  t.same(events.faults, []);
  await events.socket.close();
});

t.test('nflog: a denied packet with its mark, prefix and headers', async (t) => {
  const log = listen<NflogMessage>({ kind: 'nflog', group: GROUP }, decodeNflog);
  for (const family of families) {
    sendUdp(family, 3333, PORT_LOGGED);
    const record = await log.find('a log record', (r) => r.protocol === etherType[family]);
    t.match(record, { mark: 0x77, prefix: 'denied here', hook: 1, outDevice: 0, group: GROUP });
    t.ok(record.inDevice > 0);
    const packet = parsePacket(record.payload);
    t.match(packet, {
      ok: true,
      value: { family, source: address[family].client, protocol: 17, sourcePort: 3333, destinationPort: PORT_LOGGED },
    });
  }
  t.same(log.faults, []);
  await log.socket.close();
});

t.test('nfqueue: a packet waits for its verdict, which may mark it', async (t) => {
  const settings = { kind: 'nfqueue', queue: QUEUE, maxLength: 64, copyRange: 64 };
  const before = openDescriptors();
  const held = listen<QueuedPacket>(settings, decodeNfqueue);
  t.throws(
    () => startEventSocket({ ...settings, namespace: SUBJECT, onBatch() {} } as unknown as EventSocketOptions),
    { code: 'EPERM' },
    'a second socket cannot take the queue',
  );
  const events = listen<ConntrackEvent>({ kind: 'conntrack', groups: ['new'] }, decodeConntrack);
  const isHeld = (e: { original: { destinationPort?: number } }) => e.original.destinationPort === PORT_HELD;
  for (const family of families) {
    for (const sourcePort of [4001, 4002]) sendUdp(family, sourcePort, PORT_HELD, 'a'.repeat(300));
    const portOf = (q: QueuedPacket) => {
      const packet = parsePacket(q.payload);
      return packet.ok && packet.value.family === family ? packet.value.sourcePort : undefined;
    };
    const first = await held.find('the first held packet', (q) => portOf(q) === 4001);
    const second = await held.find('the second', (q) => portOf(q) === 4002);
    t.match(first, { queue: QUEUE, hook: 1, mark: 0, protocol: etherType[family] });
    t.equal(first.payload.length, 64, 'cut to the copy range');
    t.equal((await listFlows({ namespace: SUBJECT })).filter((e) => isHeld(e) && e.family === family).length, 0);
    held.socket.send(encodeVerdict(QUEUE, first.id, 'accept', 0xab00 + family));
    held.socket.send(encodeVerdict(QUEUE, second.id, 'drop'));
    held.socket.send(encodeVerdict(QUEUE, second.id, 'accept'));
    const opened = await events.find('the accepted flow', (e) => isHeld(e) && e.family === family);
    t.match(opened, { mark: 0xab00 + family, original: { sourcePort: 4001 } });
  }
  const flows = (await listFlows({ namespace: SUBJECT })).filter(isHeld);
  t.same(
    flows.map((e) => e.original.sourcePort),
    [4001, 4001],
    'dropped packets made no flow',
  );
  t.same([...held.faults, ...events.faults], []);
  await Promise.all([held.socket.close(), events.socket.close()]);
  t.equal(openDescriptors(), before);
  const again = listen<QueuedPacket>(settings, decodeNfqueue);
  await again.socket.close();
  t.pass('the queue is free again');
});

t.test('announce: neighbours learn the address', async (t) => {
  const link = PacketSocket.open({ device: 'e0', namespace: SUBJECT, timeoutMs: 2000 });
  const frames: { arp: number[]; na: unknown[] } = { arp: [], na: [] };
  try {
    announce({ device: 'e0', namespace: CLIENT, addresses: ['10.9.0.1', 'fd09::77'] });
    // Among them may be what the kernels say of themselves.
    for (let tries = 0; tries < 100 && (frames.arp.length < 2 || frames.na.length < 1); tries++) {
      const frame = parseFrame(link.receive() ?? new Uint8Array(0));
      if (!frame.ok) continue;
      t.equal(frame.value.source, CLIENT_MAC, 'sent from the MAC of the device itself');
      const arp = parseArp(frame.value.payload);
      if (frame.value.etherType === ETHERTYPE_ARP && arp.ok && arp.value.senderAddress === arp.value.targetAddress) {
        frames.arp.push(arp.value.operation);
      }
      const na = parseNeighbourAdvertisement(frame.value.payload);
      if (na.ok) frames.na.push(na.value);
    }
  } finally {
    link.close();
  }
  t.same(frames.arp, [ARP_REQUEST, ARP_REPLY]);
  t.match(frames.na, [{ target: 'fd09::77', override: true, router: true, solicited: false, targetMac: CLIENT_MAC }]);
  const learn = async (what: string, ...all: RegExp[]): Promise<void> => {
    for (const deadline = Date.now() + WAIT_MS; ; await sleep(20)) {
      const learned = inside(SUBJECT, 'ip neigh show dev e0');
      if (all.every((one) => one.test(learned))) break;
      if (Date.now() > deadline) throw new Error(`${what}: ${learned}`);
    }
    t.pass(what);
  };
  await learn('what nobody knew', new RegExp(`10.9.0.1 .*${CLIENT_MAC}`));

  // A neighbour that holds another MAC for the address takes the new one, in both families.
  inside(SUBJECT, 'ip neigh replace 10.9.0.1 lladdr 02:00:00:00:00:99 dev e0 nud stale');
  inside(SUBJECT, 'ip neigh replace fd09::77 lladdr 02:00:00:00:00:99 dev e0 nud stale');
  announce({ device: 'e0', namespace: CLIENT, mac: '02:00:00:00:09:55', addresses: ['10.9.0.1', 'fd09::77'] });
  await learn(
    'what somebody knew otherwise',
    /10\.9\.0\.1 lladdr 02:00:00:00:09:55/,
    /fd09::77 lladdr 02:00:00:00:09:55 router/,
  );
  t.throws(() => announce({ device: 'nosuch', addresses: ['10.0.0.1'] }), { code: 'ENODEV' });
});

t.test('a process that exits with open event sockets does exit', async (t) => {
  const module = fileURLToPath(new URL('../../kernel/event-socket.js', import.meta.url));
  const script = `import { startEventSocket } from ${JSON.stringify(module)};
    startEventSocket({ kind: 'conntrack', groups: ['new'], namespace: '${SUBJECT}', onBatch() {} });
    setTimeout(() => process.argv[1] === 'throw' ? null.x : process.exit(7), 200);`;
  const codes = ['exit', 'throw'].map((how) => {
    try {
      execFileSync('timeout', ['60', process.execPath, '--input-type=module', '-e', script, how], { stdio: 'ignore' });
      return 0;
    } catch (error) {
      return (error as { status: number }).status;
    }
  });
  t.same(codes, [7, 1], 'its own exit codes, not 124 of timeout');
});
