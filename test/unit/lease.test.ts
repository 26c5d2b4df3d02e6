/**
 * Leader election: the candidate's rules in a world with a clock of its own (pauses, requests and answers that are lost
 * or late, clocks that differ in what they show and how fast they run), and the program against a fake API server. Two
 * processes and a real API server: test/api/status.test.ts.
 */
import fc from 'fast-check';
import t from 'tap';
import { Candidate, defaultLeaseTimes, type Step } from '../../controller/kubernetes/candidate.ts';
import { type Lease, startLease } from '../../controller/kubernetes/lease.ts';
import type { Answer, Json } from '../../controller/kubernetes/requests.ts';
import { silentLog } from '../../daemon/log.ts';
import { type FakeApi, fakeApi, until } from './kubernetes-api.ts';

const answer = (status: number, body: Json = {}): Answer => ({ status, body, message: '' });

/** One lease of an API server, whose requests are done at the time at which they arrive. */
class LeaseServer {
  #version = 0;
  stored: Json | undefined;

  do(step: Step): Answer {
    if (step.do === 'read') return this.stored === undefined ? answer(404) : answer(200, this.stored);
    if (step.do !== 'write') throw new Error('nothing to do');
    const version = (step.lease.metadata as { resourceVersion?: string }).resourceVersion;
    const mine = (this.stored?.metadata as { resourceVersion?: string } | undefined)?.resourceVersion;
    if (step.create ? this.stored !== undefined : this.stored === undefined || version !== mine) return answer(409);
    return answer(step.create ? 201 : 200, this.keep(step.lease));
  }

  keep(lease: Json): Json {
    const metadata = { ...(lease.metadata as Json), resourceVersion: String(++this.#version) };
    this.stored = { ...lease, metadata };
    return this.stored;
  }
}

interface Clock {
  /** Reads a true time as this machine does. */
  (at: number): number;
  wall: number;
}
interface Process {
  candidate: Candidate;
  clock: Clock;
  rate: number;
  /** Nothing is done before: stopped, or out of turn. */
  pausedUntil: number;
  stopped: boolean;
}

/** A world of some candidates, driven by `draw`, which gives numbers of [0, 1). Returns what went wrong, and who led. */
function simulate(count: number, draw: () => number, forMs: number): { two: string[]; terms: number; led: number } {
  const server = new LeaseServer();
  const queue: { at: number; run(): void }[] = [];
  const later = (at: number, run: () => void): void => {
    queue.push({ at, run });
  };
  const { leaseMs, retryMs, renewMs } = defaultLeaseTimes;
  let time = 0;
  let led = 0;
  let last = -1;
  let terms = 0;
  const two: string[] = [];

  const processes = Array.from({ length: count }, (_, i): Process => {
    const rate = 0.9 + draw() * 0.2;
    const start = draw() * 1e9;
    const clock: Clock = Object.assign((at: number) => start + at * rate, { wall: draw() * 1e12 });
    const random = draw;
    const wallClock = (): number => clock.wall + time;
    const options = { namespace: 'n', name: 'l', identity: `p${i}`, times: defaultLeaseTimes, wallClock, random };
    return { candidate: new Candidate(options), clock, rate, pausedUntil: 0, stopped: false };
  });

  /** When it can do something again; sometimes a pause begins just then. */
  const turn = (one: Process, at: number, run: () => void): void => {
    later(at, () => {
      if (draw() < 0.02) one.pausedUntil = Math.max(one.pausedUntil, time + draw() * 3 * leaseMs);
      if (one.pausedUntil > time) turn(one, one.pausedUntil, run);
      else run();
    });
  };

  function act(one: Process): void {
    const { candidate, clock, rate } = one;
    const sentAt = clock(time);
    const step = candidate.next(sentAt);
    if (step.do === 'wait') {
      turn(one, time + Math.max(1, (step.until - sentAt) / rate), () => act(one));
      return;
    }
    // It may take longer to send it than to think of it, and the answer may come after nobody waits for it.
    let waits = true;
    const delay = (): number => (draw() < 0.1 ? draw() * 2 * leaseMs : 1 + draw() * 50);
    const [there, back, lost, unheard] = [delay(), delay(), draw() < 0.08, draw() < 0.08];
    const heard = (got: Answer): void => {
      if (!waits) return;
      waits = false;
      candidate.answered(step, sentAt, clock(time), got);
      act(one);
    };
    if (!lost) {
      later(time + there, () => {
        const got = server.do(step);
        if (!unheard) turn(one, time + back, () => heard(got));
      });
    }
    turn(one, time + renewMs / 2 / rate, () => heard(answer(draw() < 0.5 ? 0 : 503)));
  }

  const check = (): void => {
    const leaders = processes.flatMap(({ candidate, clock }, i) => (candidate.isLeader(clock(time)) ? [i] : []));
    if (leaders.length > 1) two.push(`${Math.round(time)} ms: ${leaders}`);
    const [leader] = leaders;
    if (leader === undefined) return;
    led++;
    if (leader !== last) terms++;
    last = leader;
  };

  for (const one of processes) turn(one, draw() * retryMs, () => act(one));
  const meddle = (): void => {
    // Wall clocks are set, by hours.
    for (const { clock } of processes) if (draw() < 0.1) clock.wall += (draw() - 0.5) * 1e8;
    // Somebody labels the lease.
    if (draw() < 0.2 && server.stored !== undefined) server.keep(server.stored);
    later(time + draw() * leaseMs, meddle);
  };
  meddle();
  while (time < forMs) {
    let first = 0;
    for (let i = 1; i < queue.length; i++) if ((queue[i]?.at ?? 0) < (queue[first]?.at ?? 0)) first = i;
    const [event] = queue.splice(first, 1);
    if (event === undefined) break;
    // Between events leaders only end: it is enough to look right before and after each.
    time = Math.max(time, event.at);
    check();
    event.run();
    check();
  }
  return { two, terms, led };
}

/** A small generator, so that a seed is all that a failure needs. */
function generator(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let x = Math.imul(state ^ (state >>> 15), state | 1);
    x ^= x + Math.imul(x ^ (x >>> 7), x | 61);
    return ((x ^ (x >>> 14)) >>> 0) / 2 ** 32;
  };
}

t.test('never two at once, and nearly always one', async (t) => {
  let [led, terms] = [0, 0];
  fc.assert(
    fc.property(fc.integer(), fc.integer({ min: 2, max: 3 }), (seed, count) => {
      const result = simulate(count, generator(seed), 120_000);
      led += result.led;
      terms += result.terms;
      if (result.two.length > 0) throw new Error(result.two.slice(0, 3).join('; '));
    }),
    { numRuns: 1000 },
  );
  t.comment(`${terms} terms`);
  t.ok(terms > 1000 && led > 10_000, 'somebody leads');
});

t.test('a candidate, step by step', async (t) => {
  const server = new LeaseServer();
  const make = (identity: string, times = defaultLeaseTimes): Candidate =>
    new Candidate({
      namespace: 'n',
      name: 'l',
      identity,
      times,
      wallClock: () => 1_700_000_000_000,
      random: Math.random,
    });
  const [a, b] = [make('a'), make('b')];
  const go = (one: Candidate, now: number): string => {
    const step = one.next(now);
    if (step.do === 'wait') return `wait ${Math.round(step.until - now)}`;
    one.answered(step, now, now, server.do(step));
    return step.do;
  };
  const spec = (): Json => server.stored?.spec as Json;
  t.same([go(a, 0), go(a, 0)], ['read', 'write'], 'there is none: it makes one');
  t.match(spec(), { holderIdentity: 'a', leaseDurationSeconds: 6, leaseTransitions: 1 });
  t.match(spec().renewTime, /^2023-11-14T22:13:20\.\d{6}Z$/);
  t.same([a.isLeader(0), a.isLeader(3999), a.isLeader(4000)], [true, true, false]);
  t.equal(go(a, 0), 'wait 1000');
  t.equal(go(b, 500), 'read');
  t.match(go(b, 500), /^wait 1[012]\d\d$/, "another's: it looks again");
  t.equal(b.holder, 'a');
  t.equal(go(a, 1000), 'write', 'it renews without reading');
  t.ok(a.isLeader(4999));
  t.equal(go(b, 1800), 'read', 'a renewal is seen');
  for (let now = 3100; now < 7800; now += 1300) t.equal(go(b, now), 'read');
  t.equal(
    go(b, 7000),
    `wait ${1800 + 6000 - 7000}`,
    'the last wait ends with the lease, 6 s after the renewal was seen',
  );
  t.same([go(b, 7800), go(b, 7800)], ['read', 'write'], 'it takes what is not renewed');
  t.match(spec(), { holderIdentity: 'b', leaseTransitions: 2 });
  t.equal(go(a, 8000), 'write', 'who slept tries to renew, in vain');
  t.equal(go(a, 8000), 'read');
  t.notOk(a.isLeader(8000));
  t.equal(a.holder, 'b');

  const given = b.resign();
  t.notOk(b.isLeader(8001), 'leads no more before it is given back');
  server.do({ do: 'write', create: false, lease: given ?? {}, term: '' });
  t.match(spec(), { holderIdentity: '', leaseDurationSeconds: 1, leaseTransitions: 2 });
  t.equal(make('c').resign(), undefined, 'nothing to give back');
  t.same([go(a, 9500), go(a, 9500)], ['read', 'write'], 'what was given back is free at once');
  t.ok(a.isLeader(9500));

  const twin = make('a');
  t.equal(go(twin, 9600), 'read');
  t.match(go(twin, 9600), /^wait/, 'the same name is not the same candidate');

  t.equal(go(b, 9600), 'read');
  server.stored = undefined;
  t.equal(go(b, 11_000), 'read');
  t.match(go(b, 11_000), /^wait/, 'a lease that is deleted is free no sooner than one that is not renewed');
  t.same([go(a, 11_000), go(a, 11_000), go(a, 11_000)], ['write', 'read', 'write'], 'its holder makes it anew');
  t.match(spec(), { holderIdentity: 'a' });

  server.keep({ ...(server.stored as Json | undefined), spec: { ...spec(), holderIdentity: 'z' } });
  t.same([go(a, 12_000), go(a, 12_000)], ['write', 'read']);
  t.notOk(a.isLeader(12_000), 'who reads that another has it leads no more, with time left');

  server.stored = undefined;
  const [one, two] = [make('same'), make('same')];
  t.same([go(one, 0), go(two, 0), go(one, 0), go(two, 0), go(two, 0)], ['read', 'read', 'write', 'write', 'read']);
  t.match(go(two, 0), /^wait/, 'nor is it who asked for it at the same time');

  t.throws(() => make('d', { ...defaultLeaseTimes, renewMs: 6000 }), /lasts longer/);
});

t.test('on an API server', async (t) => {
  const api = await fakeApi();
  t.teardown(() => api.close());
  const times = { leaseMs: 1000, renewMs: 600, retryMs: 100 };
  const words: string[] = [];
  const start = (identity: string, more: { now?: () => number } = {}): Lease =>
    startLease({
      config: api.config,
      name: 'controller',
      namespace: 'sluice',
      identity,
      log: silentLog(),
      onStarted: () => words.push(`${identity} starts`),
      onStopped: () => words.push(`${identity} stops`),
      times,
      ...more,
    });
  const path = '/apis/coordination.k8s.io/v1/namespaces/sluice/leases/controller';
  const holder = (): unknown => (api.objects.get(path)?.spec as Json | undefined)?.holderIdentity;

  let sleep = 0;
  const a = start('a', { now: () => performance.now() + sleep });
  await until('a leads', () => a.isLeader());
  const b = start('b');
  await until('b knows', () => b.holder() === 'a');
  t.notOk(b.isLeader());

  // The clock of a goes on by itself, as after a pause.
  sleep = 5000;
  t.notOk(a.isLeader(), 'who slept does not lead when it wakes, whether it was told or not');
  await until('a leads again', () => a.isLeader());

  // Nobody hears a.
  let cut = 'nobody';
  api.fault = ({ method, body }) =>
    method === 'PUT' && (body.spec as Json).holderIdentity === cut ? { status: 503 } : undefined;
  words.length = 0;
  cut = 'a';
  let both = false;
  const began = performance.now();
  await until('b leads', () => {
    both ||= a.isLeader() && b.isLeader();
    return b.isLeader();
  });
  const took = performance.now() - began;
  t.notOk(both);
  t.same(words, ['a stops', 'b starts']);
  t.ok(took > times.leaseMs - times.retryMs && took < times.leaseMs + 600, `${took} ms`);
  cut = 'nobody';

  words.length = 0;
  await until('a knows', () => a.holder() === 'b');
  const closing = performance.now();
  await b.close();
  t.notOk(b.isLeader());
  await until('a leads', () => a.isLeader());
  t.ok(performance.now() - closing < times.leaseMs / 2, 'what is given back is taken at the next look');
  t.equal(holder(), 'a');
  t.same(words, ['a starts'], 'who closes is not told');
  await a.close();
  t.equal(holder(), '');
});

t.test('an answer that is lost, one that never comes, and callers that throw', async (t) => {
  const api: FakeApi = await fakeApi();
  t.teardown(() => api.close());
  let n = 0;
  api.fault = ({ method }) =>
    method === 'GET' ? undefined : n++ % 3 === 0 ? 'lost' : n % 7 === 0 ? 'silent' : undefined;
  let stopped = 0;
  const lease = startLease({
    config: api.config,
    name: 'x',
    namespace: 'y',
    identity: 'me',
    log: silentLog(),
    onStarted() {
      throw new Error('no');
    },
    onStopped: () => stopped++,
    times: { leaseMs: 2000, renewMs: 1000, retryMs: 100 },
  });
  await until('it leads', () => lease.isLeader());
  const end = performance.now() + 3000;
  await until('the end', () => performance.now() > end);
  t.equal(stopped, 0, 'it goes on');
  t.ok(lease.isLeader());
  await lease.close();
});
