/**
 * Where workloads' addresses are: messages of a real kernel (6.18, recorded) decoded, and the machine that says whose interface
 * is gone, event by event. With real interfaces: test/netns/places.test.ts.
 */
import t from 'tap';
import { Places } from '../../node/places.ts';
import { decodePlace, encodePlaceDumps, type PlaceEvent } from '../../wire/rtnetlink.ts';

const hex = (text: string) => Uint8Array.from(Buffer.from(text.replaceAll(/\s/g, ''), 'hex'));
const LINK = `5807000010000000000000000000000000000100020000004310000000000000`;
const ROUTE4 = `340000001800000615040a6b953e000002200000fe03fd010000000008000f00fe000000080001000af4010b0800040003000000`;
const ROUTE6 = `740000001900000015040a6ba83e00000a800000fe0300010000000008000f00fe00000014000100fd000244000100000000000000000011
  0800060000040000080004000300000024000c0000000000000000000000000000000000000000000000000000000000000000000500140000000000`;
const NEIGHBOUR = `4c0000001c000000000000009d3e0000020000000200000080000003080001000af4010c0a0002000200000000120000080004000000
  00001400030000000000000000000000000001000000`;
const PORT = `4c0000001d00000000000000000000000700000004000000020000000a0002009aa0c7a633f30000080009000200000008000f0000000000
  14000300000000000f0000000f00000000000000`;

t.test('messages of the kernel', async (t) => {
  const cases: [what: string, text: string, event: PlaceEvent | undefined][] = [
    ['a link', LINK, { kind: 'link', gone: false, index: 2, up: true }],
    ['a port leaves a bridge', LINK.replace('00000100', '07000100').replace('1000', '1100'), undefined],
    ['a route to one address', ROUTE4, { kind: 'route', gone: false, address: '10.244.1.11', index: 3 }],
    ['it goes', ROUTE6, { kind: 'route', gone: true, address: 'fd00:244:1::11', index: 3 }],
    [
      'a route to more',
      ROUTE4.replace('0220', '0218'),
      { kind: 'subnet', gone: false, prefix: '10.244.1.11/24', index: 3 },
    ],
    ['by a gateway', ROUTE4.replace('08000400', '08000500'), undefined],
    ['a route of another table', ROUTE4.replace('fe03fd01', 'ff03fd01'), undefined],
    ['a black hole', ROUTE4.replace('fe03fd01', 'fe03fd06'), undefined],
    [
      'a neighbour',
      NEIGHBOUR,
      { kind: 'neighbour', gone: false, address: '10.244.1.12', index: 2, mac: '02:00:00:00:00:12' },
    ],
    ['a MAC behind a port', PORT, { kind: 'port', gone: true, bridge: 2, index: 4, mac: '9a:a0:c7:a6:33:f3' }],
  ];
  for (const [what, text, event] of cases) {
    const message = hex(text);
    t.same(decodePlace(message), event, what);
    for (let length = 0; length < message.length; length++) decodePlace(message.subarray(0, length));
  }
  t.same(
    encodePlaceDumps().map(({ length }) => length),
    [32, 28, 28, 28, 28],
  );
});

const A = '10.244.1.11';
const link = (index: number, up = true): PlaceEvent => ({ kind: 'link', gone: false, index, up });
const unlink = (index: number): PlaceEvent => ({ kind: 'link', gone: true, index, up: false });
const route = (index: number, gone = false): PlaceEvent => ({ kind: 'route', gone, address: A, index });
const neighbour = (mac: string): PlaceEvent => ({ kind: 'neighbour', gone: false, address: A, index: 1, mac });
const port = (index: number, mac: string, gone = false): PlaceEvent => ({ kind: 'port', gone, bridge: 1, index, mac });
const owned = (uid: string, networked?: string) => ({
  workloads: { [uid]: { namespace: 'a', name: uid, uid, addresses: [A], steer: {}, ...(networked && { networked }) } },
});

/** What happens one after the other; a text is who has the address by the plan. */
function goneAfter(...steps: (PlaceEvent | ReturnType<typeof owned>)[]): boolean {
  let now = Date.parse('2026-01-01T00:00:00.600Z');
  const places = new Places(() => now);
  places.list([link(1)]);
  for (const step of steps) {
    now += 10;
    if ('workloads' in step) places.own(step);
    else places.take(step);
    places.settle();
  }
  return places.gone(A);
}

t.test('who is gone', async (t) => {
  const [u, v] = [owned('u'), owned('v')];
  const ptp = [link(5), route(5), u];
  const bridge = [link(5), port(5, 'm'), neighbour('m'), u];
  const forget: PlaceEvent = { kind: 'neighbour', gone: true, address: A, index: 1, mac: 'm' };
  const subnet: PlaceEvent = { kind: 'subnet', gone: false, prefix: '10.244.1.0/24', index: 1 };
  const came = [link(5), route(5), unlink(5)];
  const later = owned('v', '2026-01-01T00:00:02Z');
  const cases: [what: string, gone: boolean, ...steps: Parameters<typeof goneAfter>][] = [
    ['routed, and there', false, ...ptp],
    ['routed, and its interface goes', true, ...ptp, unlink(5)],
    ['another interface goes', false, ...ptp, link(6), unlink(6)],
    ['its route goes', true, ...ptp, route(5, true)],
    ['and comes back', false, ...ptp, route(5, true), route(5)],
    ['its route goes with its interface down', false, ...ptp, link(5, false), route(5, true)],
    ['its address is routed elsewhere', true, ...ptp, link(6), route(6)],
    ['a new interface has its address', true, ...ptp, unlink(5), link(6), route(6)],
    ['and is the next one’s', false, ...ptp, unlink(5), link(6), route(6), v],
    ['of which the interface goes too', true, ...ptp, unlink(5), link(6), route(6), v, unlink(6)],
    ['the next is known before the old interface goes', false, ...ptp, link(6), route(6), v, unlink(5)],
    ['and before its own is seen', false, ...ptp, v, unlink(5), link(6), route(6)],
    ['and then its own goes', true, ...ptp, v, unlink(5), link(6), route(6), unlink(6)],
    ['behind a port, and there', false, ...bridge],
    ['its port goes', true, ...bridge, unlink(5)],
    ['the bridge forgets its MAC', false, ...bridge, port(5, 'm', true)],
    ['somebody else says to have its address', false, ...bridge, link(6), port(6, 'n'), neighbour('n')],
    ['and goes', false, ...bridge, link(6), port(6, 'n'), neighbour('n'), unlink(6)],
    ['its MAC is behind the next one’s port', true, ...bridge, unlink(5), link(6), port(6, 'm')],
    ['seen only after the plan', true, u, link(5), port(5, 'm'), neighbour('m'), unlink(5)],
    ['never seen', false, u, link(5), unlink(5)],
    ['the same plan again', true, ...ptp, unlink(5), u],
    [
      'the network is made anew',
      false,
      link(5),
      route(5),
      owned('u', '2026-01-01T00:00:00Z'),
      unlink(5),
      link(6),
      route(6),
      owned('u', '2026-01-01T00:00:01Z'),
    ],
    [
      'nothing new of the network',
      true,
      link(5),
      route(5),
      owned('u', '2026-01-01T00:00:00Z'),
      unlink(5),
      link(6),
      route(6),
      owned('u', '2026-01-01T00:00:00Z'),
    ],
    ['named late: its interface was gone before', true, ...came, owned('u', '2025-12-31T23:59:58Z')],
    ['and somebody else is there', true, ...came, link(6), route(6), owned('u', '2025-12-31T23:59:58Z')],
    ['who is the next of the plan', false, ...came, link(6), route(6), owned('u', '2025-12-31T23:59:58Z'), later],
    ['newer than who was there, and not seen yet', true, ...came, later],
    ['and then seen', false, ...came, later, link(6), route(6)],
    ['on a bridge, and not seen yet', true, subnet, port(1, 'b'), u],
    ['on a bridge, and seen', false, subnet, port(1, 'b'), u, link(5), port(5, 'm'), neighbour('m')],
    ['seen, and forgotten before the plan', false, subnet, ...bridge.slice(0, 3), forget, u],
    ['and its port goes', true, subnet, ...bridge.slice(0, 3), forget, u, unlink(5)],
    ['forgotten, and its port goes before the plan', true, subnet, ...bridge.slice(0, 3), forget, unlink(5), u],
    [
      'and its MAC is behind another’s then',
      true,
      ...[subnet, ...bridge.slice(0, 3), forget, unlink(5), link(6), port(6, 'm'), u],
    ],
    [
      'forgotten, and another has the address by then',
      true,
      ...[subnet, ...bridge.slice(0, 3), forget, link(6), port(6, 'n'), neighbour('n'), u, unlink(6)],
    ],
    ['on no bridge, and never seen', false, subnet, u],
    ['another pod of its interface', false, ...ptp, v],
    ['and the interface goes', true, ...ptp, v, unlink(5)],
    ['named late, never seen, and somebody else is there', true, owned('u', '2025-12-31T23:59:58Z'), link(6), route(6)],
    ['the same, named later still', true, link(6), route(6), owned('u', '2025-12-31T23:59:58Z')],
    ['within the second of which both are', false, ...came, link(6), route(6), owned('u', '2026-01-01T00:00:00Z')],
    [
      'its network is not there yet',
      true,
      link(5),
      route(5),
      owned('u', '2026-01-01T00:00:00Z'),
      unlink(5),
      owned('u'),
    ],
    ['the plan forgets it between', true, ...ptp, unlink(5), { workloads: {} }, u],
    ['and it is seen', false, ...ptp, unlink(5), { workloads: {} }, u, link(6), route(6)],
  ];
  for (const [what, gone, ...steps] of cases) t.equal(goneAfter(...steps), gone, what);
});

t.test('to look at what happened is to look at everything', async (t) => {
  const addresses = ['10.244.1.11', '10.244.1.12', 'fd00:244:1::11'];
  let state = 7;
  const random = (): number => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    return state / 2 ** 32;
  };
  const pick = <T>(from: readonly T[]): T => from[Math.floor(random() * from.length)] as T;
  const events: (() => PlaceEvent)[] = [
    () => link(pick([1, 5, 6, 7]), random() < 0.7),
    () => unlink(pick([5, 6, 7])),
    () => ({ kind: 'route', gone: random() < 0.3, address: pick(addresses), index: pick([5, 6, 7]) }),
    () => ({ kind: 'subnet', gone: random() < 0.5, prefix: '10.244.1.0/24', index: 1 }),
    () => ({ kind: 'neighbour', gone: random() < 0.2, address: pick(addresses), index: 1, mac: pick(['m', 'n']) }),
    () => port(pick([5, 6, 7]), pick(['m', 'n']), random() < 0.3),
  ];
  let [differ, bound] = [0, 0];
  for (let run = 0; run < 200; run++) {
    let now = 0;
    const [touched, all] = [new Places(() => now), new Places(() => now)];
    let plan: Parameters<Places['own']>[0] = { workloads: {} };
    for (const places of [touched, all]) places.list([link(1)]);
    for (let step = 0; step < 40; step++) {
      now += 500;
      if (random() < 0.15) {
        const one = (uid: string, address: string) => ({
          namespace: 'a',
          name: uid,
          uid,
          addresses: [address],
          steer: {},
          ...(random() < 0.3 && { networked: new Date(now - 3_000).toISOString() }),
        });
        const uids = ['u', 'v', 'w'].filter(() => random() < 0.7);
        plan = { workloads: Object.fromEntries(uids.map((uid, at) => [uid, one(uid, addresses[at] ?? '')])) };
        touched.own(plan);
      } else {
        const event = pick(events)();
        touched.take(event);
        all.take(event);
        touched.settle();
      }
      all.own(plan);
      bound += touched.seen().size;
      const says = (places: Places) => JSON.stringify([[...places.seen()], addresses.map((one) => places.gone(one))]);
      if (says(touched) !== says(all)) differ++;
    }
  }
  t.equal(differ, 0);
  t.ok(bound > 1_000, 'and it was about something');
});

t.test('what leaves with an interface, what is remembered, what a listing replaces', async (t) => {
  const places = new Places();
  places.list([link(1), link(5), route(5)]);
  places.own(owned('u'));
  t.same([...places.seen()], [[A, 5]]);
  t.same(places.take(unlink(5)), [A], 'its packets that wait are nobody’s');
  t.same(places.take(unlink(5)), []);

  const after = new Places();
  after.own(owned('u'), { seen: new Map([[A, 5]]), known: () => true });
  t.notOk(after.gone(A), 'as long as nothing is known of interfaces');
  after.list([link(1), link(6), route(6)]);
  t.same(after.settle(), { gone: true, seen: false });
  after.list([link(1), link(5), link(6), route(5)]);
  t.same(after.settle(), { gone: true, seen: false });
  t.notOk(after.gone(A), 'it was there after all');
});
