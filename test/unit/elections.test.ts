/** The elections of one gateway with a world of paper: what goes out on which link, which addresses come and go, when. */

import t from 'tap';
import { startElectionThread } from '../../ha/election-thread.ts';
import { type ElectionConfig, Elections } from '../../ha/elections.ts';
import { ANNOUNCE_MS, FENCE_SECONDS, type HeldAddress, RENEW_MS, SLICE } from '../../ha/holding.ts';
import { parseArp } from '../../wire/arp.ts';
import { ETHERTYPE_ARP, parseFrame } from '../../wire/ethernet.ts';
import { parseNeighbourAdvertisement } from '../../wire/ndp.ts';
import { type Advert, parseAdvertFrame } from '../../wire/vrrp.ts';

const macs: Record<string, string> = { inside: '02:00:00:00:00:01', outside: '02:00:00:00:00:02' };
const config = (more: Partial<ElectionConfig> = {}): ElectionConfig => ({
  id: 'shard-0',
  vrid: 51,
  priority: 128,
  intervalMs: 40,
  failback: 'Immediate',
  failbackDelayMs: 0,
  channels: [
    { link: 'inside', family: 4, source: '10.0.0.31', addresses: ['10.0.0.64'] },
    { link: 'inside', family: 6, source: 'fe80::31', addresses: ['fe80::64', 'fd00:10::64'] },
    { link: 'outside', family: 4, source: '203.0.113.31', addresses: ['10.0.0.64'] },
  ],
  held: [
    { link: 'inside', address: '10.0.0.64', prefixLength: 32 },
    { link: 'inside', address: 'fe80::64', prefixLength: 128 },
    { link: 'outside', address: '203.0.113.101', prefixLength: 32 },
  ],
  fenced: true,
  ...more,
});

function paper() {
  const world = { now: 0, log: [] as string[], mac: { ...macs } as Record<string, string | undefined> };
  const text = (addresses: readonly HeldAddress[]) =>
    addresses.map(({ link, address, prefixLength }) => `${link} ${address}/${prefixLength}`).join(', ');
  const elections = new Elections({
    now: () => world.now,
    mac: (link) => world.mac[link],
    send(link, frame) {
      const advert = parseAdvertFrame(frame);
      const parsed = parseFrame(frame);
      if (!parsed.ok) throw new Error(parsed.reason);
      if (advert.ok) {
        const { family, source, vrid, priority, interval } = advert.value;
        world.log.push(`${link}: v${family} ${source} vrid ${vrid} priority ${priority} every ${interval}`);
      } else if (parsed.value.etherType === ETHERTYPE_ARP) {
        const arp = parseArp(parsed.value.payload);
        if (arp.ok) world.log.push(`${link}: arp ${arp.value.senderAddress} is at ${arp.value.senderMac}`);
      } else {
        const nd = parseNeighbourAdvertisement(parsed.value.payload);
        if (nd.ok) world.log.push(`${link}: nd ${nd.value.target} is at ${nd.value.targetMac}`);
      }
    },
    add(addresses, valid, done) {
      world.log.push(`add ${text(addresses)}${valid === undefined ? '' : ` for ${valid} s`}`);
      done([]);
    },
    remove(addresses, done) {
      world.log.push(`remove ${text(addresses)}`);
      done([]);
    },
    idle: () => true,
    report(report) {
      if (report.kind === 'held') world.log.push(`${report.id} held`);
      else if (report.kind === 'fault') world.log.push(`fault ${report.op}: ${report.errors.join()}`);
      else world.log.push(`${report.id} ${report.state}(${report.cause}) heard ${report.heardAt}`);
    },
  });
  return {
    world,
    elections,
    /** What happened since it was last asked. */
    said: (): string[] => world.log.splice(0),
    /** Lets all that is due happen until then. */
    until(time: number): void {
      while (elections.due <= time) {
        world.now = Math.max(world.now, elections.due);
        elections.tick();
      }
      world.now = time;
    },
  };
}

const adverts = (priority: number) => [
  `inside: v4 10.0.0.31 vrid 51 priority ${priority} every 4`,
  `inside: v6 fe80::31 vrid 51 priority ${priority} every 4`,
  `outside: v4 203.0.113.31 vrid 51 priority ${priority} every 4`,
];
const announcements = [
  'inside: arp 10.0.0.64 is at 02:00:00:00:00:01',
  'inside: arp 10.0.0.64 is at 02:00:00:00:00:01',
  'inside: nd fe80::64 is at 02:00:00:00:00:01',
  'outside: arp 203.0.113.101 is at 02:00:00:00:00:02',
  'outside: arp 203.0.113.101 is at 02:00:00:00:00:02',
];
const ALL = 'inside 10.0.0.64/32, inside fe80::64/128, outside 203.0.113.101/32';
const foreign = (more: Partial<Advert> = {}): Advert => ({
  family: 4,
  source: '10.0.0.32',
  vrid: 51,
  priority: 200,
  interval: 4,
  addresses: ['10.0.0.64'],
  ...more,
});

t.test('taking over: advertisements, addresses, announcements, and the report behind them', async (t) => {
  const { elections, said, until } = paper();
  elections.configure([config()]);
  t.same(said(), ['shard-0 Backup(startup) heard undefined']);
  until(140);
  t.same(said(), [
    ...adverts(128),
    'shard-0 Active(silence) heard undefined',
    `add ${ALL} for ${FENCE_SECONDS} s`,
    ...announcements,
    'shard-0 held',
  ]);
  until(180);
  t.same(said(), adverts(128), 'an interval later');
});

t.test('fenced addresses are renewed, announcements repeated, and then no more', async (t) => {
  const { elections, said, until } = paper();
  elections.configure([config()]);
  until(140);
  said();
  until(140 + Math.max(...ANNOUNCE_MS) + 2 * RENEW_MS);
  const log = said();
  t.equal(log.filter((line) => line === announcements[2]).length, ANNOUNCE_MS.length - 1);
  const renewals = Math.floor((Math.max(...ANNOUNCE_MS) + 2 * RENEW_MS) / RENEW_MS);
  t.equal(log.filter((line) => line === `add ${ALL} for ${FENCE_SECONDS} s`).length, renewals);
  t.ok(FENCE_SECONDS * 1_000 > 3 * RENEW_MS, 'some renewals may be late');
});

t.test('without a fence addresses stay, and are not touched again', async (t) => {
  const { elections, said, until } = paper();
  elections.configure([config({ fenced: false })]);
  until(140);
  t.ok(said().includes(`add ${ALL}`));
  until(20_000);
  t.notOk(said().some((line) => line.startsWith('add')));
});

t.test('an advertisement on any link keeps a backup quiet; one on none of its links is not for it', async (t) => {
  const { world, elections, said, until } = paper();
  elections.configure([config()]);
  said();
  for (const time of [100, 200, 300, 400]) {
    until(time);
    t.ok(elections.hear('outside', foreign({ source: '203.0.113.32' })));
  }
  t.same(said(), []);
  t.notOk(elections.hear('inside', foreign({ vrid: 52 })), 'another virtual router');
  t.notOk(elections.hear('outside', foreign({ family: 6, source: 'fe80::32' })), 'a family that it has not there');
  until(540);
  t.ok(said().includes('shard-0 Active(silence) heard 400'), 'and the report tells when it was heard last');
  world.now = 550;
  elections.hear('inside', foreign());
  t.same(said(), [`remove ${ALL}`, ...adverts(0), 'shard-0 Backup(outranked) heard 400']);
});

t.test('its own advertisements, come back, are nobody', async (t) => {
  const { elections, said, until } = paper();
  elections.configure([config()]);
  until(140);
  said();
  elections.hear('inside', foreign({ source: '10.0.0.31', priority: 128 }));
  t.same(said(), []);
});

t.test('a change while active adds, announces and removes what differs', async (t) => {
  const { elections, said, until } = paper();
  elections.configure([config()]);
  until(141);
  said();
  const held = [...config().held.slice(0, 2), { link: 'outside', address: '203.0.113.102', prefixLength: 32 }];
  elections.configure([config({ held })]);
  elections.tick();
  const log = said();
  t.equal(log[0], 'remove outside 203.0.113.101/32');
  t.match(log[1], /^add .*203\.0\.113\.102\/32 for 2 s$/);
  t.ok(log.includes('outside: arp 203.0.113.102 is at 02:00:00:00:00:02'));
  elections.configure([config({ held, fenced: false })]);
  elections.tick();
  t.match(said(), [/^add .*\/32$/], 'the fence is taken away');
  elections.configure([config({ held, fenced: false })]);
  t.same(said(), [], 'the same again is nothing');
  elections.configure([config({ held, fenced: false, priority: 90 })]);
  t.same(said(), adverts(90), 'a new priority is told');
});

t.test('what is no longer wanted is given up', async (t) => {
  const { elections, said, until } = paper();
  elections.configure([config(), config({ id: 'shard-1', vrid: 52, held: [], priority: 100 })]);
  until(160);
  said();
  elections.configure([config({ id: 'shard-1', vrid: 52, held: [], priority: 100 })]);
  t.same(said(), [`remove ${ALL}`, ...adverts(0), 'shard-0 Initialize(shutdown) heard undefined']);
  t.notOk(elections.hear('inside', foreign()), 'and not heard any more');
});

t.test('when the program hangs, fenced routers give up, others do not; and they come back', async (t) => {
  const { elections, said, until } = paper();
  elections.configure([config(), config({ id: 'alone', vrid: 52, fenced: false, held: [] })]);
  until(160);
  said();
  elections.trust(false);
  t.same(said(), [`remove ${ALL}`, ...adverts(0), 'shard-0 Backup(unfit) heard undefined']);
  until(1_000);
  t.notOk(said().some((line) => line.includes('vrid 51')));
  elections.configure([config(), config({ id: 'alone', vrid: 52, fenced: false, held: [] })]);
  t.same(said(), [], 'a plan that comes meanwhile does not make it fit');
  elections.trust(true);
  until(1_200);
  t.ok(said().includes('shard-0 Active(silence) heard undefined'));
});

t.test('without the carrier of a link that it needs a fenced router gives up', async (t) => {
  const { elections, said, until } = paper();
  const needs = ['outside'];
  elections.configure([config({ needs }), config({ id: 'alone', vrid: 52, fenced: false, held: [], needs })]);
  t.ok(elections.settled, 'who is not active has nothing to add');
  until(160);
  said();
  elections.cut(new Set(['inside']));
  t.same(said(), [], 'not for another link');
  elections.cut(new Set(['outside']));
  t.same(said(), [`remove ${ALL}`, ...adverts(0), 'shard-0 Backup(unfit) heard undefined']);
  until(1_000);
  t.notOk(said().some((line) => line.includes('vrid 51')));
  elections.cut(new Set());
  until(1_200);
  t.ok(said().includes('shard-0 Active(silence) heard undefined'));
  elections.configure([
    config({ needs, held: [...config().held, { link: 'outside', address: '203.0.113.9', prefixLength: 32 }] }),
  ]);
  t.notOk(elections.settled, 'an address is to come');
  elections.tick();
  t.ok(elections.settled);
});

t.test('an end gives up, or leaves all as it is', async (t) => {
  for (const leave of [false, true]) {
    const { elections, said, until } = paper();
    elections.configure([config()]);
    until(150);
    said();
    elections.close(leave);
    t.same(said(), leave ? [] : [`remove ${ALL}`, ...adverts(0), 'shard-0 Initialize(shutdown) heard undefined']);
    t.equal(elections.due, Number.POSITIVE_INFINITY);
  }
});

t.test('addresses from a life before are given up for another, or kept', async (t) => {
  const { elections, said, until } = paper();
  elections.configure([config({ start: { holding: true } })]);
  t.same(said(), ['shard-0 Waking(startup) heard undefined']);
  until(100);
  elections.hear('inside', foreign({ priority: 90 }));
  t.same(said(), [`remove ${ALL}`, 'shard-0 Backup(replaced) heard undefined']);
});

t.test('a link that is away is silent, and spoken on when it is there', async (t) => {
  const { world, elections, said, until } = paper();
  world.mac.outside = undefined;
  elections.configure([config()]);
  until(140);
  t.notOk(said().some((line) => line.startsWith('outside:')));
  world.mac.outside = macs.outside;
  elections.rebuild();
  elections.tick();
  t.same(said(), [`add ${ALL} for ${FENCE_SECONDS} s`, ...announcements], 'its addresses too');
  until(180);
  t.same(said(), adverts(128));
});

t.test('a foreign router may want checksums without a pseudo header', async (t) => {
  const frames: Uint8Array[] = [];
  const elections = new Elections({
    now: () => 0,
    mac: (link) => macs[link],
    send: (_, frame) => frames.push(frame),
    add: () => {},
    remove: () => {},
    idle: () => true,
    report: () => {},
  });
  elections.configure([config({ priority: 255, plainChecksum: true, held: [] })]);
  t.same(
    frames.map((frame) => {
      const advert = parseAdvertFrame(frame);
      return advert.ok && advert.value.plainChecksum;
    }),
    [true, undefined, true],
  );
});

t.test('many addresses go in slices, each announced at once; between them it advertises and hears', async (t) => {
  const { world, elections, said, until } = paper();
  const held = Array.from({ length: 3 * SLICE }, (_, n) => ({
    link: 'outside',
    address: `203.0.113.${n + 100}`,
    prefixLength: 32,
  }));
  elections.configure([config({ held })]);
  until(139);
  world.now = 140;
  elections.tick();
  const first = said();
  t.equal(first.filter((line) => line.startsWith('add')).length, 1);
  t.equal(first.filter((line) => line.includes(' arp ')).length, 2 * SLICE);
  t.notOk(first.includes('shard-0 held'));
  t.ok(elections.due <= world.now, 'it goes on at once');
  world.now = 180;
  elections.tick();
  t.same(said().slice(0, 3), adverts(128), 'but its advertisements first');
  elections.hear('inside', foreign());
  t.match(
    [...said()].filter((line) => !line.includes('priority 0')),
    [/^remove .*100\/32.*195\/32$/, /outranked/],
    'all is removed, whatever was added',
  );
  until(300);
  t.notOk(
    said().some((line) => line.startsWith('add')),
    'and the rest is not added any more',
  );
  until(400);
  t.ok(said().includes('shard-0 held'), 'at last it holds them all');
});

t.test('one that hears another active announces once more: neighbours may believe that one', async (t) => {
  const { world, elections, said, until } = paper();
  elections.configure([config()]);
  until(20_000);
  said();
  elections.hear('inside', foreign({ priority: 90 }));
  t.same(said(), adverts(128).slice(0, 1), 'it says at once that it is there');
  elections.tick();
  elections.tick();
  t.same(
    said().filter((line) => / arp | nd /.test(line)),
    announcements,
  );
  until(world.now + 1_100);
  t.equal(said().filter((line) => line === announcements[2]).length, 2, 'and some times more');
});

t.test('a device that was made anew gets the addresses again', async (t) => {
  const { elections, said, until } = paper();
  elections.configure([config({ fenced: false })]);
  until(1_000);
  said();
  elections.rebuild();
  elections.tick();
  t.same(said(), [`add ${ALL}`, ...announcements]);
});

t.test('what the thread would end over is refused before it is told', async (t) => {
  const thread = startElectionThread({ links: {}, onReport: () => {}, onEnd: (error) => t.fail(error.message) });
  const [channel] = config().channels;
  const rows: [string, ElectionConfig[]][] = [
    ['one twice', [config(), config({ vrid: 52 })]],
    ['one VRID twice on a link', [config(), config({ id: 'shard-1' })]],
    ['VRID 0', [config({ vrid: 0 })]],
    ['a priority that no advertisement says', [config({ priority: 256 })]],
    ['an interval of part of a centisecond', [config({ intervalMs: 45 })]],
    ['an address of the other family', [config({ channels: [{ ...channel!, addresses: ['fe80::1'] }] })]],
    ['no address', [config({ held: [{ link: 'inside', address: 'x', prefixLength: 32 }] })]],
  ];
  for (const [name, configs] of rows) t.throws(() => thread.configure(configs), name);
  await thread.configure([config()]);
  await thread.close();
});

t.test(
  'many shards at once: whatever addresses take, advertisements go out in time and no shard waits for all others',
  async (t) => {
    const SHARDS = 40;
    const ADD_MS = 30;
    let now = 0;
    let underway: { until: number; done: (errors: string[]) => void } | undefined;
    const isDone = (): boolean => underway !== undefined && underway.until <= now;
    const gaps = { advert: new Map<string, number[]>(), add: new Map<string, number[]>() };
    const note = (kind: keyof typeof gaps, key: string) => gaps[kind].set(key, [...(gaps[kind].get(key) ?? []), now]);
    const elections = new Elections({
      now: () => now,
      mac: (link) => macs[link],
      send(_, frame) {
        const advert = parseAdvertFrame(frame);
        if (advert.ok) note('advert', `${advert.value.vrid}`);
      },
      add(addresses, _, done) {
        note('add', addresses[0]!.address);
        underway = { until: now + ADD_MS, done };
      },
      remove: () => {},
      idle: () => underway === undefined,
      report: () => {},
    });
    elections.configure(
      Array.from({ length: SHARDS }, (_, n) => {
        const held = [{ link: 'outside', address: `203.0.113.${n}`, prefixLength: 32 }];
        return config({ id: `shard-${n}`, vrid: n + 1, channels: config().channels.slice(0, 1), held });
      }),
    );
    while (now < 10_000) {
      now = Math.max(now, Math.min(elections.due, underway?.until ?? Number.POSITIVE_INFINITY));
      if (isDone()) {
        const done = underway?.done;
        underway = undefined;
        done?.([]);
      }
      elections.tick();
    }
    const longest = (times: number[]) => Math.max(...times.slice(1).map((time, at) => time - (times[at] ?? 0)));
    t.equal(gaps.advert.size, SHARDS);
    t.ok(Math.max(...[...gaps.advert.values()].map(longest)) <= 40, 'advertisements');
    t.equal(gaps.add.size, SHARDS);
    t.ok(Math.max(...[...gaps.add.values()].map(longest)) < FENCE_SECONDS * 1_000, 'renewals');
  },
);
