/**
 * The election simulated: up to five virtual routers on two links that lose and delay frames, are cut in two and heal,
 * while routers stop and wake, end and begin, and change their priorities. Time is simulated too.
 *
 * Connected: each two that run share a segment of one link at least. A link loses at most every second frame of
 * a sender: more is a cut.
 */

import { deepStrictEqual, ok } from 'node:assert/strict';
import fc from 'fast-check';
import t from 'tap';
import { type Failback, FLAP_WINDOW_MS, VirtualRouter, WAKE_INTERVALS } from '../../ha/virtual-router.ts';

const INTERVAL = 40;
const LINKS = [0, 1];
/** Of the lowest priority. */
const DOWN_MAX = 4 * INTERVAL;
const RUNS = Number(process.env.SLUICE_ELECTION_RUNS ?? 150);

interface Step {
  /** Milliseconds after the step before. */
  after: number;
  what:
    | { kind: 'cut'; link: number; segments: number[] }
    | { kind: 'heal' }
    | { kind: 'stop'; router: number; forMs: number }
    | { kind: 'end' | 'begin'; router: number }
    | { kind: 'priority'; router: number; priority: number };
}

interface Network {
  priorities: number[];
  failback: Failback;
  /** Of each link. */
  delays: number[];
  /** Which frames are lost, one after the other. */
  losses: boolean[];
  steps: Step[];
}

interface Frame {
  at: number;
  from: number;
  to: number;
  link: number;
  priority: number;
}

/** What the simulation found wrong; the states at its end. */
function simulate({ priorities, failback, delays, losses, steps }: Network, quietMs: number) {
  const faults: string[] = [];
  const count = priorities.length;
  const address = (router: number, link: number) => `10.${link}.0.${link === 0 ? 10 + router : 100 - router}`;
  const settings = (router: number, priority: number) => ({
    priority,
    intervalMs: INTERVAL,
    failback,
    failbackDelayMs: 500,
    sources: LINKS.map((link) => address(router, link)),
    stateTracked: false,
  });
  const routers = priorities.map((priority, router) => new VirtualRouter(settings(router, priority)));
  const stopped: (number | undefined)[] = routers.map(() => undefined);
  const waiting: Frame[][] = routers.map(() => []);
  const mute = routers.map(() => Number.NEGATIVE_INFINITY);
  const segments = LINKS.map(() => routers.map(() => 0));
  const flights: Frame[] = [];
  const lastLost = new Map<string, boolean>();
  const delayMax = Math.max(...delays);
  let lossAt = 0;
  let now = 0;

  const runs = (router: number) => routers[router]?.state !== 'Initialize' && stopped[router] === undefined;
  const linked = (a: number, b: number, link: number) => segments[link]?.[a] === segments[link]?.[b];
  const connected = () =>
    routers.every((_, a) => routers.every((_, b) => !runs(a) || !runs(b) || LINKS.some((link) => linked(a, b, link))));

  const feed = (router: number, event: Parameters<VirtualRouter['handle']>[0]) => {
    const machine = routers[router] as VirtualRouter;
    const holds = machine.state === 'Active' || machine.state === 'Waking';
    const actions = machine.handle(event, now);
    const gaveUp = actions.some(({ kind }) => kind === 'give-up');
    const holdsNow = machine.state === 'Active' || machine.state === 'Waking';
    if (holds && !holdsNow && !gaveUp) faults.push(`${now}: ${router} left ${machine.state} without giving up`);
    for (const action of actions) {
      if (action.kind !== 'advertise') continue;
      if (action.priority > 0 && machine.state !== 'Active') faults.push(`${now}: ${router} says it is active`);
      if (action.priority > 0 && now < (mute[router] ?? 0)) faults.push(`${now}: ${router} woke and does not listen`);
      for (const link of LINKS) {
        if (action.channel !== undefined && action.channel !== link) continue;
        for (let to = 0; to < count; to++) {
          if (to === router || !linked(router, to, link)) continue;
          const path = `${router} ${to} ${link}`;
          const lost = losses.length > 0 && losses[lossAt++ % losses.length] === true && !lastLost.get(path);
          lastLost.set(path, lost);
          if (!lost) flights.push({ at: now + (delays[link] ?? 0), from: router, to, link, priority: action.priority });
        }
      }
    }
  };
  const hear = ({ from, to, link, priority }: Frame) =>
    feed(to, { kind: 'advert', channel: link, source: address(from, link), priority, intervalMs: INTERVAL });
  const apply = (what: Step['what']) => {
    const router = 'router' in what ? what.router % count : 0;
    switch (what.kind) {
      case 'cut':
        segments[what.link] = routers.map((_, index) => what.segments[index] ?? 0);
        break;
      case 'heal':
        for (const link of LINKS) segments[link] = routers.map(() => 0);
        break;
      case 'stop':
        if (runs(router)) stopped[router] = now + what.forMs;
        break;
      case 'end':
        if (runs(router)) feed(router, { kind: 'shutdown' });
        break;
      case 'begin':
        if (routers[router]?.state === 'Initialize') feed(router, { kind: 'startup' });
        break;
      case 'priority':
        if (stopped[router] === undefined)
          feed(router, { kind: 'settings', settings: settings(router, what.priority) });
    }
  };
  const wake = (router: number) => {
    stopped[router] = undefined;
    const machine = routers[router] as VirtualRouter;
    const { due } = machine;
    if (due !== undefined && now - due >= WAKE_INTERVALS * INTERVAL) mute[router] = now + 3 * INTERVAL;
    for (const frame of (waiting[router] as Frame[]).splice(0)) hear(frame);
  };

  for (const router of routers.keys()) feed(router, { kind: 'startup' });
  let stepAt = 0;
  const script = steps.map(({ after, what }) => {
    stepAt += after;
    return { at: stepAt, what };
  });
  const end = stepAt + quietMs;
  let doubledSince: number | undefined;
  while (now < end) {
    let next = Math.min(end, script[0]?.at ?? end);
    for (const frame of flights) next = Math.min(next, frame.at);
    for (const [router, { due }] of routers.entries()) {
      next = Math.min(next, stopped[router] ?? due ?? end);
    }
    now = Math.max(now, next);
    while (script[0] !== undefined && script[0].at <= now) apply((script.shift() as (typeof script)[0]).what);
    for (const [router, until] of stopped.entries()) if (until !== undefined && until <= now) wake(router);
    for (const frame of flights.filter(({ at }) => at <= now)) {
      flights.splice(flights.indexOf(frame), 1);
      if (stopped[frame.to] !== undefined) waiting[frame.to]?.push(frame);
      else hear(frame);
    }
    for (const [router, { due }] of routers.entries()) {
      if (stopped[router] === undefined && due !== undefined && due <= now) feed(router, { kind: 'timer' });
    }
    const active = routers.filter(({ state }, router) => runs(router) && state === 'Active');
    if (active.length < 2 || !connected()) doubledSince = undefined;
    else {
      doubledSince ??= now;
      // Equals give each other time to be heard on the channel that decides.
      const equals = new Set(active.map(({ settings }) => settings.priority)).size < active.length;
      if (now - doubledSince > (equals ? 2 : 1) * DOWN_MAX + delayMax) {
        faults.push(`${now}: ${active.length} are active since ${doubledSince}`);
        doubledSince = undefined;
      }
    }
  }
  return { faults, routers };
}

const priority = fc.oneof({ weight: 4, arbitrary: fc.integer({ min: 1, max: 254 }) }, fc.constantFrom(100, 100, 101));
const router = fc.nat(4);
const what: fc.Arbitrary<Step['what']> = fc.oneof(
  fc.record({
    kind: fc.constant('cut' as const),
    link: fc.constantFrom(...LINKS),
    segments: fc.array(fc.nat(1), { minLength: 5, maxLength: 5 }),
  }),
  fc.record({ kind: fc.constant('heal' as const) }),
  fc.record({ kind: fc.constant('stop' as const), router, forMs: fc.integer({ min: 10, max: 3_000 }) }),
  fc.record({ kind: fc.constantFrom('end' as const, 'begin' as const), router }),
  fc.record({
    kind: fc.constant('priority' as const),
    router,
    priority: fc.oneof({ weight: 3, arbitrary: priority }, fc.constant(0)),
  }),
);
const network = (failback: Failback): fc.Arbitrary<Network> =>
  fc.record({
    priorities: fc.oneof(
      { weight: 3, arbitrary: fc.array(priority, { minLength: 2, maxLength: 5 }) },
      fc.integer({ min: 2, max: 5 }).map((count) => Array<number>(count).fill(100)),
    ),
    failback: fc.constant(failback),
    delays: fc.tuple(fc.nat(15), fc.nat(15)),
    losses: fc.array(fc.boolean(), { maxLength: 40 }),
    steps: fc
      .array(fc.record({ after: fc.nat(1_500), what }), { maxLength: 25 })
      .map((steps): Step[] => [...steps, { after: 10, what: { kind: 'heal' } }]),
  });

/** Stops, delays of failback and what is remembered of flaps are over by then. */
const QUIET_MS = FLAP_WINDOW_MS + 5_000;

t.setTimeout(60_000 + RUNS * 500);
for (const failback of ['Immediate', 'Delayed', 'Never'] as const) {
  t.test(
    `failback ${failback}: one is active, and after all is healed exactly one`,
    { timeout: 60_000 + RUNS * 100 },
    async () => {
      fc.assert(
        fc.property(network(failback), (drawn) => {
          const { faults, routers } = simulate(drawn, QUIET_MS);
          deepStrictEqual(faults, []);
          const able = routers.filter(({ state, settings }) => state !== 'Initialize' && settings.priority > 0);
          const active = able.filter(({ state }) => state === 'Active');
          deepStrictEqual(active.length, Math.min(1, able.length), 'active at last');
          ok(routers.every(({ state }) => state !== 'Waking'));
          if (failback === 'Never') return;
          const highest = Math.max(...able.map(({ settings }) => settings.priority));
          for (const { settings } of active) deepStrictEqual(settings.priority, highest, 'the highest leads');
        }),
        { numRuns: RUNS },
      );
    },
  );
}

t.test('of routers that begin at once the highest leads, and nothing else happens', async () => {
  fc.assert(
    fc.property(
      fc.uniqueArray(fc.integer({ min: 1, max: 254 }), { minLength: 2, maxLength: 5 }),
      fc.nat(3),
      (priorities, delay) => {
        const { faults, routers } = simulate(
          { priorities, failback: 'Never', delays: [delay, delay], losses: [], steps: [] },
          2_000,
        );
        deepStrictEqual(faults, []);
        ok(routers.some(({ state }) => state === 'Active'));
      },
    ),
    { numRuns: RUNS },
  );
});
