/**
 * Every form of `ports` of an ExternalService on a real kernel: manifest → plan → nftables → which packets leave
 * (topology: gateway-rig.ts). Types of ICMP, SCTP, protocols by number; both families. What a packet must get is
 * written down here and asked of the evaluator too. Root.
 */
import { execFileSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import t from 'tap';
import { type ExternalService, parseObject } from '../../api/kinds.ts';
import { type Family, families, type GatewayPlan } from '../../api/plan.ts';
import { PacketSocket } from '../../kernel/packet-socket.ts';
import { compilePolicy, type Flow } from '../../policy/evaluate.ts';
import { serviceEntryOf } from '../../policy/external-service.ts';
import { bytesOfU16, bytesOfU32, join as concat, putU16 } from '../../wire/bytes.ts';
import { parseFrame } from '../../wire/ethernet.ts';
import {
  buildIcmp,
  buildIp,
  buildTcp,
  buildUdp,
  checksum,
  type Packet,
  parsePacket,
  TCP_SYN,
  transportChecksum,
} from '../../wire/ip.ts';
import { addRule, basePlan, DESTINATIONS, EGRESS, ICMP_TYPES, PODS, randomTypedPlan, WEB } from './gateway-plans.ts';
import { GatewayRig, ROUTER } from './gateway-rig.ts';

t.setTimeout(570_000);
const RUNS = Math.ceil(Number(process.env.SLUICE_PROPERTY_RUNS ?? 40) / 2);
const state = mkdtempSync(join(tmpdir(), 'sluice-test-'));
const rig = await GatewayRig.create('dst', state);
/** The rig's own eyes see only what carries a marker. */
const wire = PacketSocket.open({ device: 'outside', namespace: `t-dst-wire-${process.pid}`, timeoutMs: 1 });
t.teardown(async () => {
  wire.close();
  await rig.close();
  rmSync(state, { recursive: true });
});

type Port = NonNullable<ExternalService['spec']['ports']>[number];
/** Without a destination: to WEB. */
type Probe = Omit<Flow, 'source' | 'destination'> & { destination?: string };

const [TCP, UDP, GRE, SCTP, UDPLITE] = [6, 17, 47, 132, 136];
const icmp = { 4: 1, 6: 58 } as const;
const names = { 1: 'ICMP', 58: 'ICMPv6' } as const;
const otherFamily = (family: Family): Family => (family === 4 ? 6 : 4);

function planWith(ports: Port[] | undefined): GatewayPlan {
  const object = parseObject({
    apiVersion: 'sluice.dev/v1alpha1',
    kind: 'ExternalService',
    metadata: { name: 'it', namespace: 'billing' },
    spec: { addresses: [WEB[4], WEB[6]], ...(ports && { ports }) },
  });
  if (!object.ok) throw new Error(JSON.stringify(object.errors));
  const plan = basePlan();
  plan.services['billing/it'] = serviceEntryOf(object.value as ExternalService);
  addRule(plan, 'g-pay', { context: 'namespace', action: 'accept-decisively', services: ['billing/it'], name: 'it' });
  return plan;
}

/** CRC32c (RFC 9260 appendix A), least significant octet first. */
function crc32c(bytes: Uint8Array): Uint8Array {
  let crc = 0xffffffff;
  for (const byte of bytes) {
    crc ^= byte;
    for (let bit = 0; bit < 8; bit++) crc = crc & 1 ? (crc >>> 1) ^ 0x82f63b78 : crc >>> 1;
  }
  return bytesOfU32(~crc >>> 0).toReversed();
}

let nextId = 1000;
/** A packet that a well-behaved host would begin with, and no two with the same source port or id. */
function packetOf(family: Family, probe: Probe): Uint8Array {
  const { protocol, destinationPort = 0, icmpType, icmpCode = 0, destination = WEB[family] } = probe;
  const ends = { source: PODS.pay[family], destination };
  const id = nextId++;
  const ports = { ...ends, sourcePort: id, destinationPort };
  if (protocol === TCP) return buildTcp({ ...ports, flags: TCP_SYN });
  if (protocol === UDP) return buildUdp({ ...ports, payload: bytesOfU32(id) });
  if (protocol === icmp[family]) {
    return buildIcmp({ ...ends, type: icmpType ?? 0, code: icmpCode, id, sequence: 1, payload: bytesOfU32(id) });
  }
  if (protocol === icmp[otherFamily(family)]) {
    // As it would be right: the sum is over a pseudo header in IPv6's only.
    const transport = concat([Uint8Array.of(icmpType ?? 0, icmpCode, 0, 0), bytesOfU16(id), bytesOfU16(1)]);
    putU16(transport, 2, family === 4 ? transportChecksum(ends, protocol, transport) : checksum(transport));
    return buildIp(ends, protocol, transport);
  }
  if (protocol === SCTP) {
    // INIT: type, flags, length; tag, window, streams out and in, sequence.
    const chunk = concat([Uint8Array.of(1, 0, 0, 20), bytesOfU32(id), bytesOfU32(65_536), bytesOfU32(0x10001)]);
    const transport = concat([bytesOfU16(id), bytesOfU16(destinationPort), new Uint8Array(8), chunk, bytesOfU32(id)]);
    transport.set(crc32c(transport), 8);
    return buildIp(ends, protocol, transport);
  }
  if (protocol === UDPLITE) {
    const transport = concat([bytesOfU16(id), bytesOfU16(destinationPort), new Uint8Array(4), bytesOfU32(id)]);
    putU16(transport, 6, transportChecksum(ends, protocol, transport) || 0xffff);
    return buildIp(ends, protocol, transport);
  }
  // Read as GRE it is of version 0.
  return buildIp(ends, protocol, concat([Uint8Array.of(icmpType ?? 0, icmpCode, 8, 0), bytesOfU32(id)]));
}

/** Packets with billing's egress IP that came out since the last call. */
async function departed(family: Family): Promise<{ packet: Packet; bytes: Uint8Array }[]> {
  await rig.collect();
  const out: { packet: Packet; bytes: Uint8Array }[] = [];
  for (let bytes = wire.receive(); bytes !== undefined; bytes = wire.receive()) {
    const frame = parseFrame(bytes);
    const packet = frame.ok ? parsePacket(frame.value.payload) : undefined;
    if (!frame.ok || !packet?.ok || packet.value.source !== EGRESS.pay[family]) continue;
    out.push({ packet: packet.value, bytes: frame.value.payload });
  }
  return out;
}

/** Sends all, and says of each whether it left. No two may be alike. */
async function leave(family: Family, probes: Probe[]): Promise<boolean[]> {
  for (const probe of probes) rig.fromNode(packetOf(family, probe));
  const out = await departed(family);
  return probes.map(({ protocol, destination = WEB[family], destinationPort, icmpType, icmpCode }) =>
    out.some(
      ({ packet }) =>
        packet.protocol === protocol &&
        packet.destination === destination &&
        (destinationPort === undefined || packet.destinationPort === destinationPort) &&
        (icmpType === undefined || (packet.icmpType === icmpType && packet.icmpCode === icmpCode)),
    ),
  );
}

const tcp = (destinationPort: number): Probe => ({ protocol: TCP, destinationPort });
const udp = (destinationPort: number): Probe => ({ protocol: UDP, destinationPort });
const sctp = (destinationPort: number): Probe => ({ protocol: SCTP, destinationPort });

/** `types`: of the family's ICMP, as type and code. Types that no answer belongs to have no flow (below). */
interface Row {
  what: string;
  ports: (family: Family) => Port[] | undefined;
  passes: (family: Family) => Probe[];
  stops: (family: Family) => Probe[];
}
const type = (family: Family, v4: [number, number], v6: [number, number]): Probe => {
  const [icmpType, icmpCode] = family === 4 ? v4 : v6;
  return { protocol: icmp[family], icmpType, icmpCode };
};
const ping = (family: Family, code = 0): Probe => type(family, [8, code], [128, code]);
/** Timestamp; node information query. */
const query = (family: Family, code = 0): Probe => type(family, [13, code], [139, code]);
const rows: Row[] = [
  {
    what: 'a type of ICMP, any code',
    ports: () => [
      { name: 'four', protocol: 'ICMP', port: '8' },
      { name: 'six', protocol: 'ICMPv6', port: '128' },
    ],
    passes: (f) => [ping(f), ping(f, 1), ping(f, 255)],
    stops: (f) => [query(f), query(f, 8), tcp(8), udp(2048), { protocol: GRE }],
  },
  {
    what: 'a type and code of ICMP, by number of the protocol',
    ports: () => [
      { name: 'four', protocol: 1, port: '8/0' },
      { name: 'six', protocol: '58', port: '128/0' },
    ],
    passes: (f) => [ping(f)],
    stops: (f) => [ping(f, 1), ping(f, 255), query(f)],
  },
  {
    what: 'a list of types and codes that run on from one type into the next',
    ports: () => [
      { name: 'four', protocol: 'ICMP', port: '8/255,9,10,11,12,13/0,13/1,17' },
      { name: 'six', protocol: 'ICMPv6', port: '138/3,139/0,139/1' },
    ],
    passes: (f) => [query(f), query(f, 1), ...(f === 4 ? [type(f, [17, 9], [0, 0]), ping(f, 255)] : [])],
    stops: (f) => [ping(f), query(f, 2), ...(f === 4 ? [ping(f, 254), type(f, [15, 0], [0, 0])] : [query(f, 3)])],
  },
  {
    what: 'all of ICMP',
    ports: (f) => [{ name: 'any', protocol: names[icmp[f]] }],
    passes: (f) => [ping(f), ping(f, 9), query(f), ...(f === 4 ? [type(f, [15, 0], [0, 0])] : [])],
    stops: () => [tcp(80), udp(53), sctp(7)],
  },
  {
    what: 'ICMP of the other family',
    ports: (f) => [{ name: 'other', protocol: names[icmp[otherFamily(f)]], port: '8,128' }],
    passes: () => [],
    stops: (f) => [ping(f), { ...ping(f), protocol: icmp[otherFamily(f)] }, { ...ping(otherFamily(f)) }],
  },
  {
    what: 'ports of SCTP, TCP and UDP',
    ports: () => [
      { name: 's', protocol: 'SCTP', port: '5000-5010,9' },
      { name: 't', protocol: 'TCP', port: '443,8000-8100' },
      { name: 'u', protocol: '17', port: '53' },
    ],
    passes: () => [sctp(5000), sctp(5010), sctp(9), tcp(443), tcp(8000), tcp(8100), udp(53)],
    stops: (f) => [sctp(4999), sctp(5011), sctp(443), tcp(5000), tcp(442), tcp(8101), udp(443), udp(54), ping(f)],
  },
  {
    what: 'whole protocols: SCTP, and 47 and 254 by number',
    ports: () => [
      { name: 's', protocol: 'SCTP' },
      { name: 'gre', protocol: 47 },
      { name: 'last', protocol: '254' },
    ],
    passes: () => [sctp(1), sctp(65_535), { protocol: GRE }, { protocol: 254 }],
    stops: (f) => [tcp(1), udp(5), { protocol: 48 }, { protocol: 253 }, ping(f)],
  },
  {
    what: 'no ports: every protocol',
    ports: () => undefined,
    passes: (f) => [tcp(1), udp(2), sctp(3), ping(f), { protocol: GRE }, { protocol: 253 }],
    stops: () => [],
  },
];

for (const { what, ports, passes, stops } of rows) {
  t.test(what, async (t) => {
    for (const family of families) {
      const plan = planWith(ports(family));
      await rig.reset();
      await rig.apply(plan);
      const { decide } = compilePolicy(plan);
      const expected: [Probe, boolean][] = [
        ...passes(family).map((probe): [Probe, boolean] => [probe, true]),
        ...stops(family).map((probe): [Probe, boolean] => [probe, false]),
      ];
      const left = await leave(
        family,
        expected.map(([probe]) => probe),
      );
      expected.forEach(([probe, pass], at) => {
        const flow = { source: PODS.pay[family], destination: WEB[family], ...probe };
        const text = `v${family} ${JSON.stringify(probe)}`;
        t.equal(decide(flow).verdict, pass ? 'accept' : 'drop', `${text}: the evaluator`);
        t.equal(left[at], pass, `${text}: the kernel`);
      });
    }
  });
}

/** Type and code, as a plan has them. */
const ECHO = { 4: 8 << 8, 6: 128 << 8 } as const;
t.test('many addresses with many ports: asked one after the other, for the verdict and for bandwidth', async (t) => {
  const many = Array.from({ length: 300 }, (_, at) => [
    `192.0.${at >> 7}.${2 * (at & 127)}/32`,
    `2001:db8:7::${2 * at}/128`,
  ]);
  const ranges = Array.from({ length: 150 }, (_, at): [number, number] => [1000 + 10 * at, 1001 + 10 * at]);
  const plan = planWith([{ name: 'other', protocol: 'SCTP' }]);
  const name = Object.keys(plan.services).find((key) => key.endsWith('/it')) ?? '';
  plan.services['billing/many'] = {
    addresses: [...many.flat(), `${WEB[4]}/32`, `${WEB[6]}/128`],
    ports: [
      { protocol: TCP, ports: ranges },
      { protocol: UDP, ports: null },
      ...families.map((family) => ({
        protocol: icmp[family],
        ports: ranges.map(([first]): [number, number] => [first - 1000 + ECHO[family], first - 997 + ECHO[family]]),
      })),
    ],
  };
  for (const rule of Object.values(plan.rules)) {
    if (rule.services === '*' || !rule.services.includes(name)) continue;
    rule.services = [...rule.services, 'billing/many'];
    rule.limits = { bandwidth: 1e9, shards: ['edge/s0'] };
  }
  const { decide } = compilePolicy(plan);
  for (const family of families) {
    await rig.reset();
    await rig.apply(plan);
    const elsewhere = { 4: '198.51.100.81', 6: '2001:db8:100::81' }[family];
    const listed = { 4: '192.0.1.2', 6: '2001:db8:7::2' }[family];
    const probes: [Probe, boolean][] = [
      [tcp(1000), true],
      [tcp(2491), true],
      [tcp(1002), false],
      [udp(7), true],
      [sctp(7), true],
      [{ ...tcp(1000), destination: listed }, true],
      [{ ...sctp(7), destination: listed }, false],
      [{ ...tcp(1000), destination: elsewhere }, false],
      [{ ...udp(7), destination: elsewhere }, false],
      [ping(family), true],
      [ping(family, 5), false],
    ];
    const left = await leave(
      family,
      probes.map(([probe]) => probe),
    );
    probes.forEach(([probe, pass], at) => {
      const flow = { source: PODS.pay[family], destination: WEB[family], ...probe };
      t.equal(decide(flow).verdict === 'accept', left[at], `v${family} ${JSON.stringify(probe)}: the evaluator`);
      t.equal(left[at], pass, `v${family} ${JSON.stringify(probe)}: the kernel`);
    });
  }
});

t.test(
  'evaluator and kernel agree on types of ICMP, SCTP and protocols by number, for random policies and from one to the next',
  async (t) => {
    await rig.reset();
    const seen = { accept: 0, other: 0 };
    await fc.assert(
      fc.asyncProperty(randomTypedPlan, fc.constantFrom(1, 64), async (plan, compared) => {
        // As maps, or one by one.
        rig.recompile({ compared });
        await rig.apply(plan);
        const { decide } = compilePolicy(plan);
        for (const family of families) {
          const asked: Probe[] = [
            ...ICMP_TYPES[family].map(([icmpType, icmpCode]) => ({ protocol: icmp[family], icmpType, icmpCode })),
            ...[80, 81, 443, 8050].map(sctp),
            { protocol: GRE },
            { protocol: 253 },
          ];
          const probes = DESTINATIONS[family].flatMap((destination) =>
            asked.map((probe) => ({ ...probe, destination })),
          );
          const left = await leave(family, probes);
          probes.forEach((probe, at) => {
            const { verdict, rule } = decide({ source: PODS.pay[family], ...probe });
            const pass = verdict === 'accept';
            seen[pass ? 'accept' : 'other']++;
            if (left[at] !== pass) throw new Error(`${JSON.stringify(probe)}: evaluator ${verdict} (${rule})`);
          });
        }
      }),
      { numRuns: RUNS, endOnFailure: true },
    );
    t.ok(seen.accept > 50 && seen.other > 50, `${seen.accept} left, ${seen.other} did not`);
  },
);

t.test('ICMP that begins no exchange does not leave, whatever the rules say', async (t) => {
  await rig.reset();
  await rig.apply(planWith(undefined));
  for (const family of families) {
    for (let icmpType = 0; icmpType < 256; icmpType++) {
      rig.fromNode(packetOf(family, { protocol: icmp[family], icmpType, icmpCode: 0 }));
    }
    const types = (await departed(family)).map(({ packet }) => packet.icmpType ?? -1).sort((a, b) => a - b);
    t.same(types, family === 4 ? [8, 13, 15, 17] : [128, 139], `v${family}`);
    t.same(await leave(family, [ping(otherFamily(family))]), [false], `v${family}: ICMP of the other family`);
  }
});

t.test('an error about a flow comes back to the pod, though no rule permits it', async (t) => {
  await rig.reset();
  await rig.apply(planWith(rows[0]?.ports(4)));
  for (const family of families) {
    rig.fromNode(packetOf(family, ping(family)));
    const [echo] = await departed(family);
    t.ok(echo, `v${family}: the echo request leaves`);
    const ends = { source: ROUTER[family], destination: EGRESS.pay[family] };
    const unreachable = type(family, [3, 1], [1, 0]);
    t.same(await leave(family, [unreachable]), [false], `v${family}: a pod's own error does not`);
    const { icmpType = 0, icmpCode = 0 } = unreachable;
    rig.fromOutside(
      buildIcmp({
        ...ends,
        type: icmpType,
        code: icmpCode,
        id: 0,
        sequence: 0,
        payload: echo?.bytes ?? new Uint8Array(0),
      }),
    );
    const back = (await rig.collect()).filter(({ where }) => where === 'inside');
    t.match(back, [{ kind: 'unreachable', packet: { destination: PODS.pay[family], icmpType } }], `v${family}: back`);
    t.equal(back.length, 1);
  }
});

t.test('UDP-Lite by its number, whole', async (t) => {
  // Linux reckons its checksum with UDP's protocol number, finds it wrong, and calls the packet invalid.
  const setting = 'net.netfilter.nf_conntrack_checksum=0';
  execFileSync('ip', ['netns', 'exec', `t-dst-gw-${process.pid}`, 'sysctl', '-qw', setting]);
  for (const [protocol, pass] of [
    [136, true],
    [137, false],
  ] as const) {
    await rig.apply(planWith([{ name: 'lite', protocol }]));
    for (const family of families) {
      t.same(
        await leave(family, [{ protocol: UDPLITE, destinationPort: 5 }]),
        [pass],
        `v${family}, protocol ${protocol}`,
      );
    }
  }
});

t.test('the connection table tells type and code of a flow, as the evaluator asks for them', async (t) => {
  await rig.reset();
  await rig.apply(planWith(undefined));
  for (const family of families) {
    await leave(family, [ping(family, 3), query(family), sctp(77)]);
    const flows = (await rig.flows()).filter(({ original }) => original.source === PODS.pay[family]);
    t.equal(flows.length, 3, `v${family}: three flows`);
    const { decide } = compilePolicy(
      planWith([
        { name: 'four', protocol: 'ICMP', port: '8/3' },
        { name: 'six', protocol: 'ICMPv6', port: '128/3' },
        { name: 's', protocol: 'SCTP', port: '77' },
      ]),
    );
    const verdicts = flows.map(({ original, protocol }) => [
      original.icmpType ?? protocol,
      decide({ ...original, protocol }).verdict,
    ]);
    t.same(Object.fromEntries(verdicts), {
      [ping(family).icmpType ?? 0]: 'accept',
      [query(family).icmpType ?? 0]: 'drop',
      [SCTP]: 'accept',
    });
  }
});
