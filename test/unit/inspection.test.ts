/**
 * Inspection of a gateway on a machine that is a list of what was done to it: in which order threads, queue rule and table
 * come and go, what threads are told, what is tried again. On the real kernel: test/netns/inspection.test.ts.
 */
import { setImmediate } from 'node:timers/promises';
import t from 'tap';
import { emptyGatewayPlan, type GatewayPlan, type PoolSettings, type ServiceEntry } from '../../api/plan.ts';
import { silentLog } from '../../daemon/log.ts';
import { GatewayInspection, type InspectionHost } from '../../gateway/inspect/inspection.ts';
import type { DeciderData, FromDecider, ToDecider } from '../../gateway/inspect/messages.ts';
import type { Inspection, QueueState, QueueStatus } from '../../gateway/inspect/workers.ts';
import { ruleNumbers } from '../../gateway/marks.ts';
import { QueueMemory } from '../../kernel/queue-memory.ts';
import { basePlan } from '../netns/gateway-plans.ts';

const NAMED: ServiceEntry = { addresses: [], names: ['a.test'], ports: null };
const PLAIN: ServiceEntry = { addresses: ['192.0.2.0/24'], ports: null };
const ID = 'namespace/billing/web';

/** `service`: of the one rule. */
function planOf(service: ServiceEntry, settings: Partial<PoolSettings> = {}): GatewayPlan {
  const plan = basePlan();
  if ('pool' in plan.settings) plan.settings = { pool: { ...plan.settings.pool, ...settings } };
  plan.services = { 'billing/web': service };
  const rule = { context: 'namespace', namespace: 'billing', name: 'web', action: 'accept-decisively' } as const;
  plan.rules = { [ID]: { ...rule, priority: 1, services: ['billing/web'] } };
  for (const group of Object.values(plan.groups)) group.rules = { cluster: [], namespace: [], service: [] };
  const [group] = Object.values(plan.groups);
  group?.rules.namespace.push(ID);
  return plan;
}

class Machine implements InspectionHost {
  processors = 16;
  readonly done: string[] = [];
  failing = new Set<string>();
  /** Of the threads that run. */
  posted: ToDecider[] = [];
  data: DeciderData | undefined;
  state: QueueState = 'serving';
  begun: Promise<void> = Promise.resolve();
  hear: (queue: number, value: FromDecider) => void = () => {};
  table: string | undefined;

  #do(what: string): void {
    this.done.push(what);
    const [part = ''] = what.split(' ');
    if (this.failing.has(part)) throw new Error(`no ${part} here`);
  }

  start: InspectionHost['start'] = ({ queues, decider, onOverload, onMessage }): Inspection => {
    this.#do(`threads ${queues.first}+${queues.count} ${onOverload}`);
    this.data = structuredClone(decider.data?.()) as DeciderData;
    this.posted = [];
    this.hear = (queue, value) => onMessage?.(queue, value);
    const status = (): QueueStatus[] =>
      Array.from({ length: queues.count }, (_, at) => ({
        queue: queues.first + at,
        state: this.state,
        ends: 0,
        counters: new QueueMemory().read(),
        kernel: { waiting: 0, dropped: 0, overruns: 0 },
      }));
    return {
      post: (value) => {
        this.posted.push(structuredClone(value) as ToDecider);
        return true;
      },
      status,
      begun: this.begun,
      close: async () => {
        this.done.push('threads end');
      },
    };
  };
  openRaw: InspectionHost['openRaw'] = () => {
    this.done.push('raw');
    return { fds: { 4: 4, 6: 6 }, close: () => this.done.push('raw closed') };
  };
  putRule: InspectionHost['putRule'] = async ({ first, count, bypass }) => {
    this.#do(`rule ${first}+${count}${bypass ? ' bypass' : ''}`);
    return 1;
  };
  removeRule: InspectionHost['removeRule'] = async () => this.#do('rule gone');
  putTable: InspectionHost['putTable'] = async () => {
    this.#do('table');
    this.table = 'there';
    return true;
  };
  removeTable: InspectionHost['removeTable'] = async () => {
    const was = this.table !== undefined;
    this.table = undefined;
    this.#do('table gone');
    return was;
  };
  take(): string[] {
    return this.done.splice(0);
  }
}

function begin() {
  const machine = new Machine();
  const inspection = new GatewayInspection({
    host: machine,
    decider: 'file:///decider.js',
    names: { message: () => true, pairs: () => [{ name: 'a.test', address: '192.0.2.1', until: 7 }] },
    onDecided: () => {},
    log: silentLog(),
  });
  const apply = async (plan: GatewayPlan): Promise<void> => {
    await inspection.before(plan, undefined, ruleNumbers(Object.keys(plan.rules)), undefined);
    machine.done.push('rules that ask');
    await inspection.after(plan);
  };
  return { machine, inspection, apply };
}

t.test('nothing is there while nothing asks', async (t) => {
  const { machine, inspection, apply } = begin();
  await apply(planOf(PLAIN));
  t.same(machine.take(), ['rules that ask', 'table gone'], 'what an earlier run left');
  await apply(planOf(PLAIN));
  await apply(emptyGatewayPlan());
  t.same(machine.take(), ['rules that ask', 'rules that ask']);
  await inspection.mend();
  t.same(machine.take(), []);
  t.notOk(inspection.active);
  t.equal(inspection.degraded, undefined);
});

t.test('threads, then what feeds them, then rules that ask; and back', async (t) => {
  const { machine, inspection, apply } = begin();
  await apply(planOf(NAMED));
  t.same(machine.take(), ['raw', 'threads 7800+8 Drop', 'rule 7800+8', 'table', 'rules that ask']);
  t.ok(inspection.active);
  t.same(Object.keys(machine.data?.policy.rules ?? {}), [ID], 'the threads begin with the policy');
  t.same(
    machine.data?.numbers.map(([id]) => id),
    ['default-action', ID],
  );
  t.same([machine.data?.names.length, machine.data?.raw], [1, { 4: 4, 6: 6 }]);
  await apply(planOf(NAMED));
  t.same(machine.take(), ['rules that ask'], 'it is there');
  await inspection.mend();
  t.same(machine.take(), ['rule 7800+8', 'table'], 'looked at now and then');
  t.same(machine.posted, [], 'the same policy is not told again');
  await apply(planOf({ ...NAMED, names: ['b.test'] }));
  t.match(machine.posted, [{ kind: 'policy', delta: { set: { services: {} } }, gone: [] }]);
  machine.take();
  await apply(planOf(PLAIN));
  const gone = ['rules that ask', 'table gone', 'rule gone', 'threads end', 'raw closed'];
  t.same(machine.take(), gone);
  t.notOk(inspection.active);
  await apply(planOf(PLAIN));
  t.same(machine.take(), ['rules that ask']);
});

t.test('rules ask when threads have loaded what they run', async (t) => {
  const { machine, apply } = begin();
  let begun = (): void => {};
  machine.begun = new Promise((resolve) => {
    begun = resolve;
  });
  const applied = apply(planOf(NAMED));
  await setImmediate();
  t.same(machine.take(), ['raw', 'threads 7800+8 Drop']);
  begun();
  await applied;
  t.same(machine.take(), ['rule 7800+8', 'table', 'rules that ask']);
});

t.test('the pool says how many threads, and what becomes of what they cannot read', async (t) => {
  const { machine, apply } = begin();
  await apply(planOf(NAMED, { inspection: { workers: 2 } }));
  t.same(machine.take(), ['raw', 'threads 7800+2 Drop', 'rule 7800+2', 'table', 'rules that ask']);
  await apply(planOf(NAMED, { inspection: { workers: 3, onOverload: 'Accept' } }));
  const other = ['threads end', 'raw closed', 'raw', 'threads 7800+3 Accept', 'rule 7800+3 bypass', 'table'];
  t.same(machine.take(), [...other, 'rules that ask']);
});

t.test('resolvers teach although no rule asks; only while something has a name', async (t) => {
  const { machine, inspection, apply } = begin();
  const dns = { resolvers: ['192.0.2.53'] };
  const unused = planOf(PLAIN, { dns });
  await apply(unused);
  t.notOk(inspection.active);
  unused.services['billing/other'] = NAMED;
  await apply(unused);
  t.ok(inspection.active);
  t.ok(machine.take().includes('table'));
  await apply(planOf(PLAIN, { dns }));
  t.notOk(inspection.active);
});

t.test('what cannot be had is said, tried again, and keeps no plan out', async (t) => {
  const { machine, inspection, apply } = begin();
  machine.failing = new Set(['threads', 'rule']);
  await apply(planOf(NAMED));
  t.same(machine.take(), ['raw', 'threads 7800+8 Drop', 'raw closed', 'rule 7800+8', 'table', 'rules that ask']);
  t.equal(inspection.degraded, 'workers: no threads here; rule: no rule here');
  await inspection.mend();
  t.ok(machine.take().includes('threads 7800+8 Drop'));
  machine.failing.clear();
  await inspection.mend();
  t.equal(inspection.degraded, undefined);
  machine.state = 'waiting';
  t.equal(inspection.degraded, '8 queues without a worker');
  await inspection.close();
  t.same(machine.take().slice(-2), ['threads end', 'raw closed'], 'and nothing is taken out of the kernel');
});

t.test('a plan that does not come into force: threads decide by what they had', async (t) => {
  const { machine, inspection, apply } = begin();
  await apply(planOf(NAMED));
  const other = planOf({ ...NAMED, names: ['b.test'] });
  await inspection.before(other, undefined, ruleNumbers(Object.keys(other.rules)), undefined);
  inspection.undo();
  const told = machine.posted.map(
    (message) => message.kind === 'policy' && [message.generation, message.delta.set.services],
  );
  t.same(told, [
    [2, { 'billing/web': { ...NAMED, names: ['b.test'] } }],
    [3, { 'billing/web': NAMED }],
  ]);
});

t.test('flows are looked at again when the threads have the policy, or after a second', async (t) => {
  const { machine, inspection, apply } = begin();
  await apply(planOf(NAMED, { inspection: { workers: 2 } }));
  await inspection.inForce().then(() => t.equal(machine.data?.generation, 1), t.error);
  for (const queue of [7800, 7801]) machine.hear(queue, { kind: 'inForce', generation: 1 });
  const began = performance.now();
  await inspection.inForce();
  t.ok(performance.now() - began < 500, 'at once');
  await apply(planOf({ ...NAMED, names: ['b.test'] }, { inspection: { workers: 2 } }));
  let done = false;
  const waiting = inspection.inForce().then(() => {
    done = true;
  });
  machine.hear(7800, { kind: 'inForce', generation: 2 });
  await new Promise((resolve) => setTimeout(resolve, 60));
  t.notOk(done, 'one is behind');
  machine.hear(7801, { kind: 'inForce', generation: 2 });
  await waiting;
  t.ok(done);
  machine.state = 'starting';
  await apply(planOf({ ...NAMED, names: ['c.test'] }, { inspection: { workers: 2 } }));
  await inspection.inForce();
  t.pass('a thread that starts begins with it');
});
