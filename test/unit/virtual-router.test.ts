/**
 * The state machine of a virtual router, against RFC 9568 §6.4 line by line, and what Sluice adds to it. Times are
 * milliseconds; the interval is 40, so that the skew of priority 128 is 20 and its Active_Down_Interval 140.
 */

import t from 'tap';
import {
  FLAP_WINDOW_MS,
  FLAPS_MAX,
  type RouterAction,
  type RouterEvent,
  type RouterSettings,
  VirtualRouter,
} from '../../ha/virtual-router.ts';

const OWN = ['10.0.0.5', '203.0.113.5', 'fe80::5'];
const settings = (more: Partial<RouterSettings> = {}): RouterSettings => ({
  priority: 128,
  intervalMs: 40,
  failback: 'Immediate',
  failbackDelayMs: 1_000,
  sources: OWN,
  stateTracked: false,
  ...more,
});
const advert = (priority: number, more: Partial<RouterEvent & { kind: 'advert' }> = {}): RouterEvent => ({
  kind: 'advert',
  channel: 0,
  source: '10.0.0.4',
  priority,
  intervalMs: 40,
  ...more,
});
const startup: RouterEvent = { kind: 'startup' };
const timer: RouterEvent = { kind: 'timer' };
const said = (actions: RouterAction[]): string =>
  actions
    .map((action) => {
      if (action.kind === 'became') return `${action.state}(${action.cause})`;
      if (action.kind !== 'advertise') return action.kind;
      return `advertise ${action.priority}${action.channel === undefined ? '' : ` on ${action.channel}`}`;
    })
    .join(', ');

/** Each step: when, what, what comes of it, and when the timer is due then. */
type Step = [at: number, event: RouterEvent, actions: string, due: number | undefined | 'later'];
const toActive: Step[] = [
  [0, startup, 'Backup(startup)', 140],
  [140, timer, 'Active(silence), advertise 128, take-over', 180],
];

const rows: [name: string, more: Partial<RouterSettings>, steps: Step[]][] = [
  ['nobody is heard for an Active_Down_Interval', {}, toActive],
  [
    'the owner of the addresses begins as active',
    { priority: 255 },
    [[0, startup, 'Active(owner), advertise 255, take-over', 40]],
  ],
  ['before its time a timer is nothing', {}, [toActive[0]!, [139, timer, '', 140]]],
  [
    'a backup waits on, for one of higher or the same priority',
    {},
    [toActive[0]!, [100, advert(200), '', 240], [200, advert(128), '', 340]],
  ],
  [
    'the interval of the active router is what counts',
    {},
    [toActive[0]!, [100, advert(200, { intervalMs: 100 }), '', 100 + 300 + 50]],
  ],
  [
    'a backup of higher priority does not wait longer',
    {},
    [toActive[0]!, [100, advert(100), '', 140], [140, timer, 'Active(preempts), advertise 128, take-over', 180]],
  ],
  [
    'a backup waits on, where it must not preempt',
    { failback: 'Never' },
    [toActive[0]!, [100, advert(100), '', 240], [240, timer, 'Active(silence), advertise 128, take-over', 280]],
  ],
  [
    'one that goes is followed after the skew, once for all channels',
    {},
    [
      toActive[0]!,
      [100, advert(200), '', 240],
      [110, advert(0), '', 130],
      [115, advert(0, { channel: 1, source: '203.0.113.4' }), '', 130],
      [130, timer, 'Active(resigned), advertise 128, take-over', 170],
    ],
  ],
  ['an active router advertises each interval', {}, [...toActive, [181, timer, 'advertise 128', 220]]],
  ['an active router answers one that goes', {}, [...toActive, [150, advert(0), 'advertise 128, announce', 190]]],
  [
    'an active router yields to a higher priority, and waits as that one says',
    {},
    [...toActive, [150, advert(129, { intervalMs: 100 }), 'Backup(outranked), give-up, advertise 0', 150 + 350]],
  ],
  [
    'an active router tells a lower one that it is there, on that link, not more often than each interval',
    {},
    [
      ...toActive,
      [150, advert(127, { channel: 1 }), 'advertise 128 on 1, announce', 180],
      [160, advert(127), '', 180],
      [180, timer, 'advertise 128', 220],
      [190, advert(127), 'advertise 128 on 0', 220],
    ],
  ],
  [
    'of equals the higher address is above',
    {},
    [
      ...toActive,
      [150, advert(128, { source: '10.0.0.4' }), 'advertise 128 on 0, announce', 180],
      [170, advert(128, { source: '10.0.0.10' }), 'Backup(outranked), give-up, advertise 0', 'later'],
    ],
  ],
  [
    'of equals that are heard on another channel only, that one decides, an interval later; with IPv6 too',
    {},
    [
      ...toActive,
      [150, advert(128, { channel: 2, source: 'fe80::10' }), '', 180],
      [180, timer, 'advertise 128', 220],
      [190, advert(128, { channel: 2, source: 'fe80::10' }), 'Backup(outranked), give-up, advertise 0', 'later'],
    ],
  ],
  [
    'of equals on several channels the first decides, whichever is heard first',
    {},
    [
      ...toActive,
      [149, advert(128, { channel: 1, source: '203.0.113.9' }), '', 180],
      [150, advert(128, { source: '10.0.0.4' }), 'advertise 128 on 0, announce', 180],
      [180, timer, 'advertise 128', 220],
      [189, advert(128, { channel: 1, source: '203.0.113.9' }), '', 220],
    ],
  ],
  ['its own address is nobody', {}, [...toActive, [150, advert(200, { source: '10.0.0.5' }), '', 180]]],
  [
    'a shutdown gives up before it says so',
    {},
    [...toActive, [150, { kind: 'shutdown' }, 'Initialize(shutdown), give-up, advertise 0', undefined]],
  ],
  [
    'a backup ends without a word',
    {},
    [toActive[0]!, [50, { kind: 'shutdown' }, 'Initialize(shutdown)', undefined], [60, advert(1), '', undefined]],
  ],
  [
    'an unfit router gives up, takes over from nobody, and comes back',
    {},
    [
      ...toActive,
      [
        150,
        { kind: 'settings', settings: settings({ priority: 0 }) },
        'Backup(unfit), give-up, advertise 0',
        undefined,
      ],
      [160, advert(100), '', undefined],
      [170, advert(0), '', undefined],
      [200, { kind: 'settings', settings: settings() }, '', 340],
      [340, timer, 'Active(silence), advertise 128, take-over', 380],
    ],
  ],
  [
    'a new priority is told at once',
    {},
    [
      ...toActive,
      [150, { kind: 'settings', settings: settings({ priority: 90 }) }, 'advertise 90', 190],
      [160, { kind: 'settings', settings: settings({ priority: 90, failback: 'Never' }) }, '', 190],
    ],
  ],
  [
    'a backup of a higher priority than before waits less',
    {},
    [
      toActive[0]!,
      [100, advert(130), '', 240],
      [110, { kind: 'settings', settings: settings({ priority: 192 }) }, '', 240],
      [110, { kind: 'settings', settings: settings({ priority: 255 }) }, '', 230.15625],
    ],
  ],
  [
    'one that has lowered its priority is followed, whatever failback says',
    { failback: 'Never' },
    [
      toActive[0]!,
      [100, advert(200), '', 240],
      [140, advert(90), '', 240],
      [180, advert(90), '', 240],
      [240, timer, 'Active(preempts), advertise 128, take-over', 280],
    ],
  ],
  [
    'failback is delayed',
    { failback: 'Delayed' },
    [
      toActive[0]!,
      [100, advert(90), '', 240],
      [239, advert(90), '', 379],
      [378, advert(90), '', 518],
      [500, advert(90), '', 640],
      [630, advert(90), '', 770],
      [760, advert(90), '', 900],
      [890, advert(90), '', 1_030],
      [1_001, advert(90), '', 1_030],
      [1_030, timer, 'Active(preempts), advertise 128, take-over', 1_070],
    ],
  ],
  [
    'without the state of the connections it takes over from nobody alive, but from one that is gone',
    { stateTracked: true },
    [
      toActive[0]!,
      [100, advert(90), '', 240],
      [200, advert(90), '', 340],
      [210, { kind: 'state', complete: true }, '', 340],
      [240, advert(90), '', 340],
      [340, timer, 'Active(preempts), advertise 128, take-over', 380],
    ],
  ],
  ['a gap without the state ends in a take-over all the same', { stateTracked: true }, [...toActive]],
  [
    'an active router that was stopped listens, and goes on where nobody has taken over',
    {},
    [
      ...toActive,
      [1_000, timer, 'Waking(stopped)', 1_140],
      [1_140, timer, 'Active(unreplaced), advertise 128, take-over', 1_180],
    ],
  ],
  [
    'an active router that was stopped gives up where another has taken over, even a lower one',
    {},
    [...toActive, [1_000, advert(90), 'Waking(stopped), Backup(replaced), give-up', 1_140]],
  ],
  ['a pause that nobody noticed is none', {}, [...toActive, [299, timer, 'advertise 128', 319]]],
  [
    'a backup that was stopped listens anew, and is not hurried',
    {},
    [
      toActive[0]!,
      [100, advert(200), '', 240],
      [5_000, timer, 'Backup(stopped)', 5_140],
      [5_010, advert(0), '', 5_140],
      [5_140, timer, 'Active(resigned), advertise 128, take-over', 5_180],
    ],
  ],
  [
    'addresses from a life before: nobody else has them',
    {},
    [
      [0, { kind: 'startup', holding: true }, 'Waking(startup)', 140],
      [140, timer, 'Active(unreplaced), advertise 128, take-over', 180],
    ],
  ],
  [
    'who had the addresses when there was no election goes on',
    {},
    [
      [0, { kind: 'startup', holding: true, leads: true }, 'Active(startup), advertise 128, take-over', 40],
      [20, advert(200), 'Backup(outranked), give-up, advertise 0', 160],
    ],
  ],
  [
    'who knows that another is about to begin waits for it',
    {},
    [
      [0, { kind: 'startup', patienceMs: 1_000 }, 'Backup(startup)', 1_140],
      [10, { kind: 'settings', settings: settings() }, '', 1_140],
      [800, advert(200), '', 940],
    ],
  ],
  ['unless it is unfit', { priority: 0 }, [[0, { kind: 'startup', leads: true }, 'Backup(startup)', undefined]]],
  [
    'addresses from a life before: another is active',
    {},
    [
      [0, { kind: 'startup', holding: true }, 'Waking(startup)', 140],
      [20, advert(0), '', 140],
      [40, advert(90), 'Backup(replaced), give-up', 180],
    ],
  ],
];

for (const [name, more, steps] of rows) {
  t.test(name, async (t) => {
    const router = new VirtualRouter(settings(more));
    for (const [at, event, actions, due] of steps) {
      t.equal(said(router.handle(event, at)), actions, `${at}: ${event.kind}`);
      if (due !== 'later') t.equal(router.due, due, `${at}: ${event.kind}: due`);
      else t.ok(router.due! > at + 140 && router.due! <= at + 180, 'an equal comes back a part of an interval later');
    }
  });
}

t.test('a router that flaps takes over from nobody alive, until it has kept still for long enough', async (t) => {
  const router = new VirtualRouter(settings());
  let now = 0;
  router.handle(startup, now);
  const hears = (forMs: number) => {
    const end = now + forMs;
    while (now < end && router.state === 'Backup') {
      now = Math.min(now + 40, router.due ?? end);
      router.handle(router.due === now ? timer : advert(90), now);
    }
  };
  for (let times = 0; times < FLAPS_MAX; times++) {
    hears(1_000);
    t.equal(router.state, 'Active', `preempts the ${times + 1}. time`);
    router.handle({ kind: 'settings', settings: settings({ priority: 0 }) }, now);
    router.handle({ kind: 'settings', settings: settings() }, now);
  }
  const still = now;
  hears(FLAP_WINDOW_MS - 2_000);
  t.equal(router.state, 'Backup', 'not again');
  hears(5_000);
  t.equal(router.state, 'Active', 'until the first is forgotten');
  t.ok(now - still >= FLAP_WINDOW_MS - 3_000);
});
