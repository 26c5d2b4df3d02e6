/**
 * What the controller's planning costs in a large cluster: the first plan, then single changes, each from a snapshot in
 * which everything else is the same object, as a source gives it. Printed: milliseconds of a run of the controller
 * without disk, stream and status (lists, plan, and which plans are new), the same of status, and how many entries of
 * the gateways' plan changed. Each change is done `--rounds` times, there and back; between, gateways acknowledge.
 *   node dist/bench/planner.js [--namespaces 10000] [--pods 10] [--rules 10] [--rounds 5]
 */
import { mkdir, writeFile } from 'node:fs/promises';
import { cpus } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { type AnyObject, objectKey } from '../api/kinds.ts';
import type { GatewayPlan } from '../api/plan.ts';
import { diffPlan } from '../api/plan-delta.ts';
import { PlanCache } from '../controller/plan/cache.ts';
import { emptyMemory } from '../controller/plan/memory.ts';
import { type PlanResult, plan } from '../controller/plan/plan.ts';
import { Versions } from '../controller/publish/versions.ts';
import { clusterRule, generateCluster, podOf, ruleOf, valid } from './cluster.ts';
import { median } from './statistics.ts';

const { values } = parseArgs({
  options: {
    namespaces: { type: 'string', default: '10000' },
    pods: { type: 'string', default: '10' },
    rules: { type: 'string', default: '10' },
    rounds: { type: 'string', default: '5' },
    output: { type: 'string', default: 'bench/results/planner.json' },
  },
});
const size = { namespaces: Number(values.namespaces), pods: Number(values.pods), rules: Number(values.rules) };
const rounds = Number(values.rounds);
const NOW = Date.parse('2026-06-01T00:00:00Z');

interface Cost {
  what: string;
  milliseconds: number;
  statusMilliseconds: number;
  /** Of `milliseconds`, where a change is made more than once. */
  samples?: number[];
  /** Of the pool's plan, set and deleted. */
  entries: Record<string, number>;
  statuses: number;
}

/** The controller's run without its surroundings. */
class Bench {
  readonly #versions = new Versions();
  readonly #cache = new PlanCache();
  #memory = emptyMemory();
  #generation = 0;
  last: PlanResult | undefined;

  constructor() {
    for (const name of ['gw-a', 'gw-b', 'gw-c']) {
      this.#versions.hello({ role: 'gateway', name, addresses: [], generation: 0, hash: '' });
    }
  }

  run(snapshot: ReadonlyMap<string, AnyObject>): Cost {
    const before = this.last;
    const began = performance.now();
    const result = plan(snapshot, this.#memory, this.#versions.peers, NOW, new Map(), this.#cache);
    this.#memory = result.memory;
    this.#offer(result);
    const planned = performance.now();
    const statuses = result.statuses;
    const done = performance.now();
    this.last = result;
    const [from, to] = [before?.pools.get('edge'), result.pools.get('edge')];
    const known = before?.statuses;
    const changed = known === undefined ? statuses.size : [...statuses].filter(([k, s]) => known.get(k) !== s).length;
    return {
      what: '',
      milliseconds: planned - began,
      statusMilliseconds: done - planned,
      entries: from === undefined || to === undefined ? {} : entriesOf(from, to),
      statuses: changed,
    };
  }

  #offer(result: PlanResult): void {
    const next = ++this.#generation;
    for (const [name, pool] of result.gateways) {
      const wanted = result.pools.get(pool);
      if (wanted !== undefined) this.#versions.offer('gateway', name, wanted, next);
    }
    for (const [name, wanted] of result.nodes) this.#versions.offer('node', name, wanted, next);
  }

  acknowledge(): void {
    for (const name of ['gw-a', 'gw-b', 'gw-c']) {
      this.#versions.ack({ role: 'gateway', name, addresses: [], generation: 0, hash: '' }, this.#generation);
    }
  }
}

function entriesOf(from: GatewayPlan, to: GatewayPlan): Record<string, number> {
  const delta = diffPlan(from, to);
  const counts: Record<string, number> = {};
  for (const [name, set] of Object.entries(delta.set)) counts[name] = Object.keys(set).length;
  for (const [name, gone] of Object.entries(delta.delete)) counts[name] = (counts[name] ?? 0) + gone.length;
  return counts;
}

/** A snapshot with one object more, another or one less. */
function changed(snapshot: ReadonlyMap<string, AnyObject>, input: object): Map<string, AnyObject> {
  const object = valid(input);
  return new Map(snapshot).set(objectKey(object), object);
}

const generated = generateCluster(size);
const last = size.namespaces - 1;
const team = `team-${Math.floor(size.namespaces / 2)}`;
const found: Cost[] = [];
const bench = new Bench();
found.push({ ...bench.run(generated), what: 'first plan' });
bench.acknowledge();
found.push({ ...bench.run(generated), what: 'all gateways acknowledged it' });
bench.acknowledge();
found.push({ ...bench.run(generated), what: 'nothing changed' });
const edits: [what: string, input: object][] = [
  ['one pod', podOf(`team-${last}`, size.pods, size.namespaces * size.pods)],
  ['one rule of a namespace', ruleOf(team, size.rules)],
  ['one rule of a namespace changed', ruleOf(team, 0, { action: 'drop' })],
  ['one rule of the cluster', clusterRule('new', { action: 'drop', priority: 5, externalServices: ['list-3'] })],
  [
    'one EgressIP',
    {
      kind: 'EgressIP',
      metadata: { name: 'new' },
      spec: { pool: 'public', count: 1, namespaces: [team], priority: 5 },
    },
  ],
];
for (const [what, input] of edits) {
  const other = changed(generated, input);
  const costs: [Cost[], Cost[]] = [[], []];
  for (let round = 0; round < rounds; round++) {
    for (const [at, snapshot] of [other, generated].entries()) {
      costs[at]?.push(bench.run(snapshot));
      bench.acknowledge();
      bench.run(snapshot);
      bench.run(snapshot);
    }
  }
  for (const [at, suffix] of ['', ', undone'].entries()) {
    const list = costs[at as 0 | 1];
    const of = (pick: (cost: Cost) => number): number => median(list.map(pick));
    const [first] = list;
    if (first === undefined) continue;
    const milliseconds = of((cost) => cost.milliseconds);
    found.push({
      ...first,
      what: what + suffix,
      milliseconds,
      samples: list.map((cost) => cost.milliseconds),
      statusMilliseconds: of((cost) => cost.statusMilliseconds),
    });
  }
}
globalThis.gc?.();
const { heapUsed, rss } = process.memoryUsage();
for (const { what, milliseconds, statusMilliseconds, entries, statuses } of found) {
  const text = Object.entries(entries)
    .map(([name, count]) => `${count} ${name}`)
    .join(', ');
  console.log(
    `${what.padEnd(42)} ${milliseconds.toFixed(1).padStart(8)} ms, status ${statusMilliseconds.toFixed(1).padStart(7)} ms   ${text}; ${statuses} statuses`,
  );
}
const mib = (bytes: number): number => Math.round(bytes / 2 ** 20);
console.log(`heap ${mib(heapUsed)} MiB, resident ${mib(rss)} MiB`);
const machine = { cpu: cpus()[0]?.model, cores: cpus().length, node: process.version };
await mkdir(join(values.output, '..'), { recursive: true });
const report = { machine, ...size, rounds, heapMiB: mib(heapUsed), residentMiB: mib(rss), costs: found };
await writeFile(values.output, `${JSON.stringify(report, null, 2)}\n`);
console.log(`written: ${values.output}`);
