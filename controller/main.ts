/**
 * The controller, put together: observe → plan → publish. One plan at a time; whatever happens meanwhile (a manifest
 * changed, a gateway acknowledged) leads to one more. What must not be forgotten is kept first (memory.ts). Of several controllers
 * of a cluster one comes so far; the others stand by (standby.ts), with the streams of gateways and nodes that came to them.
 */
import { networkInterfaces } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { emptyGatewayPlan, emptyNodePlan, type GatewayPlan, type PlanRole } from '../api/plan.ts';
import { type Health, startHttp } from '../daemon/http.ts';
import type { Listen } from '../daemon/listen.ts';
import type { Logger } from '../daemon/log.ts';
import { startPlanServer } from '../daemon/stream-server.ts';
import type { AdmissionWorld } from './admission/review.ts';
import { startAdmission } from './admission/server.ts';
import { Alarm } from './alarm.ts';
import { Enrolment } from './enrolment.ts';
import { HeldPools, type Judged } from './held-pools.ts';
import { ControllerHits } from './hits.ts';
import { controllerMetrics } from './metrics.ts';
import { allowedHosts, type FetchPolicy } from './observe/fetch-policy.ts';
import type { HttpsWorld } from './observe/https.ts';
import { type Lists, openLists } from './observe/lists.ts';
import { PlanCache } from './plan/cache.ts';
import { forbiddenAddresses } from './plan/forbidden.ts';
import { type PlanResult, plan } from './plan/plan.ts';
import { heldAddresses } from './plan/resting.ts';
import { Pace } from './publish/pace.ts';
import { planTurns, Rhythm } from './publish/rhythm.ts';
import { withErrors } from './publish/status.ts';
import { Versions } from './publish/versions.ts';
import { postWebhook } from './publish/webhook-post.ts';
import { Settling } from './settling.ts';
import { Standby } from './standby.ts';
import { Webhooks } from './webhooks.ts';
import { worldOf } from './world.ts';

export interface ControllerOptions {
  /** `directory:PATH`, or `kubernetes`. */
  source: string;
  /** Of `kubernetes`: where the API server is (kubernetes/client.ts). */
  kubeconfig?: string;
  context?: string;
  state: string;
  listen: Listen;
  certs: string;
  metrics?: Listen;
  /** Directory of the CA whose certificates are renewed, and where tokens are taken. */
  ca?: string;
  enrol?: Listen;
  /** The validating webhook, and the directory of its certificate (`tls.crt`, `tls.key`). */
  admission?: { listen: Listen; certs: string };
  log: Logger;
  /** Another controller leads: nothing is published any more, and this one is to end. */
  onLost?: (reason: string) => void;
  /** The wall clock, milliseconds since the epoch (default: the machine's). */
  now?: () => number;
  /** For tests: another world to fetch lists from and post webhooks to, in which a second is shorter. */
  fetcher?: { world: HttpsWorld; secondMs: number };
}

export interface Controller {
  /** Ports in use, for port 0. */
  port: number;
  metricsPort?: number;
  enrolPort: number | undefined;
  close(): Promise<void>;
}

/** Of gateways and nodes that no plan speaks of any more. */
const noGatewayPlan = emptyGatewayPlan();
const noNodePlan = emptyNodePlan();

export async function runController(options: ControllerOptions): Promise<Controller> {
  const opened: { close(): unknown }[] = [];
  try {
    return await begin(options, opened);
  } catch (error) {
    for (const one of opened.reverse()) await one.close();
    throw error;
  }
}

/** `opened`: what is to be closed if it comes to nothing, in order. */
async function begin(options: ControllerOptions, opened: { close(): unknown }[]): Promise<Controller> {
  const { log, state, now = Date.now } = options;
  const metrics = controllerMetrics();
  const world = await worldOf(options, { state, log, now, registry: metrics.registry });
  const { statuses } = world;
  const versions = new Versions();
  const webhooks = new Webhooks({
    post: (request, stop) => postWebhook(request, fetchPolicy(), options.fetcher?.world ?? {}, stop),
    log,
    registry: metrics.registry,
    now,
    secondMs: options.fetcher?.secondMs,
  });
  const cache = new PlanCache();
  let generation = 0;
  let begun = false;
  /** Plans may go to clients: what their messages are for is there. */
  let serving = false;
  let standby: Standby | undefined;
  let dirty = false;
  let planning: Promise<void> | undefined;
  let failure: string | undefined;
  let warned = new Set<string>();
  /** What was planned last, for admission. */
  let admitted: Pick<AdmissionWorld, 'memory' | 'lists' | 'plans'> | undefined;
  let closed = false;

  const http =
    options.metrics === undefined
      ? undefined
      : await startHttp({
          listen: options.metrics,
          registry: metrics.registry,
          health: () => ({ ok: failure === undefined, detail: failure ?? (begun ? 'ok' : 'ok, not begun yet') }),
          ready: readiness,
        });
  opened.push(world);
  if (http !== undefined) opened.push(http);
  let lists: Lists | undefined;
  const source = await world.watch({ onChange: trigger, onLook: () => void lists?.look() });
  opened.push(source);
  const enrolment = await Enrolment.open({ ...options, registry: metrics.registry });
  opened.push(enrolment);
  const server = await startPlanServer({
    listen: options.listen,
    certs: options.certs,
    log,
    leads: () => serving && world.leads(),
    alone: !world.others,
    onHello(client) {
      versions.hello(client);
      settling.hello(client);
      trigger();
    },
    onHolds(gateway, addresses, more) {
      if (!settling.over) {
        const { EgressIPPool: pools } = cache.look(source.current().snapshot);
        if (kept.rest(heldAddresses(addresses, pools))) trigger();
      }
      if (!more) settling.heard(gateway);
    },
    onAck(client, acknowledged, error) {
      versions.ack(client, acknowledged, error);
      if (error !== undefined)
        log.error({ client: client.name, generation: acknowledged, error }, 'a plan was refused');
      // Nodes' acknowledgements release nothing.
      if (client.role === 'gateway') trigger();
    },
    onGone(client) {
      versions.gone(client);
      trigger();
    },
    onHits: (gateway, message) => hits.report(gateway, message),
    ...enrolment.hooks,
  });
  opened.push(server);
  metrics.countClients((role) => (serving ? versions.connected(role) : server.waiting(role)));
  await enrolment.keepOwn(server.reload);
  const admission =
    options.admission === undefined
      ? undefined
      : await startAdmission({
          listen: options.admission.listen,
          certificate: {
            cert: join(options.admission.certs, 'tls.crt'),
            key: join(options.admission.certs, 'tls.key'),
          },
          world() {
            const planned = admitted ?? standby?.planned;
            return planned && { ...planned, objects: cache.look(source.current().snapshot), now: now() };
          },
          log,
          registry: metrics.registry,
        });
  if (admission !== undefined) opened.push(admission);
  const leading = world.lead((reason) => {
    closed = true;
    options.onLost?.(reason);
  });
  if (world.others) {
    standby = await Standby.open({
      ...{ world, state, source, cache, log, now },
      onPlanned: ({ snapshot, errors }, result, lists) =>
        metrics.observe(cache.look(snapshot).counts, errors.length, generation, result.held, lists),
    });
    opened.push(standby);
  }
  await leading;
  await standby?.close();
  const kept = await world.memory();
  generation = kept.reserved;
  const hits = await ControllerHits.open({
    state,
    patch: (patches) => statuses.patch(patches),
    webhooks,
    log,
    now,
  });
  const alarm = new Alarm(trigger, now);
  const rhythm = new Rhythm(planTurns);
  const pace = new Pace((error) => log.error({ reason: String(error) }, 'cannot publish status'));
  const heldPools = await HeldPools.open({ state, log, now, onConfirmed: trigger });
  const known = await openLists({
    root: () => world.files,
    state,
    log,
    onChange() {
      settling.look();
      trigger();
    },
    fetcher: { ...options.fetcher, policy: fetchPolicy },
  });
  lists = known;
  const settling = new Settling(trigger);
  opened.push(known, settling);
  await enrolment.listen();
  serving = true;
  server.lead();
  metrics.leads.set(1);
  if (world.others) {
    await settling.gateways(
      () =>
        new Set(
          cache
            .look(source.current().snapshot)
            .GatewayPool.flatMap((pool) => pool.spec.gateways.map(({ name }) => name)),
        ),
      async () => {
        const { snapshot } = source.current();
        const all = [...(await known.update(snapshot, cache.look(snapshot))).values()].flat();
        return all.every(({ addresses, problem }) => addresses !== undefined || problem !== undefined);
      },
    );
  }
  begun = true;

  function readiness(): Health {
    if (!begun) {
      const leader = standby?.planned && world.leader();
      return { ok: leader !== undefined, detail: leader === undefined ? 'not begun yet' : `standby: ${leader} leads` };
    }
    return { ok: generation > 0 && failure === undefined, detail: `generation ${generation}` };
  }

  /** As things are now: asked again for every fetch and redirect. */
  function fetchPolicy(): FetchPolicy {
    const { snapshot } = source.current();
    const allowed = allowedHosts(cache.look(snapshot).GatewayPool);
    const own = Object.values(networkInterfaces()).flatMap((list) => (list ?? []).map(({ address }) => address));
    const gateways = Object.values(kept.memory.gatewayAddresses).flat();
    return {
      allows: (host, port) => allowed.has(`${host} ${port}`),
      forbidden: forbiddenAddresses(snapshot, own, gateways),
    };
  }

  function trigger(): void {
    dirty = true;
    if (!begun) standby?.trigger();
    if (closed || !begun) return;
    planning ??= new Promise<void>((done) => setImmediate(done))
      .then(run)
      .catch((error: unknown) => {
        failure = error instanceof Error ? error.message : String(error);
        log.error({ reason: failure, stack: error instanceof Error ? error.stack : undefined }, 'cannot plan');
      })
      .finally(() => {
        planning = undefined;
        if (dirty && failure === undefined) trigger();
      });
  }

  async function run(): Promise<void> {
    while (dirty && !closed) {
      const wait = rhythm.next(performance.now());
      if (wait > 0) await sleep(wait);
      if (closed) return;
      dirty = false;
      const { snapshot, errors } = source.current();
      const addresses = await known.update(snapshot, cache.look(snapshot));
      const stop = metrics.duration.startTimer();
      const plannedAt = now();
      const planned = plan(snapshot, kept.memory, versions.peers, plannedAt, addresses, cache);
      stop();
      const { result, frozen } = heldPools.judge(planned, kept.memory, (node) => versions.last('node', node));
      if (!(await kept.keep(result.memory, generation))) {
        dirty = true;
        continue;
      }
      if (!world.leads()) return;
      publish(result, frozen);
      admitted = { memory: kept.memory, lists: addresses, plans: result.pools };
      pace.run(() => {
        world.planned(cache.look(snapshot));
        statuses.publish(hits.publish(withErrors(result.statuses, errors), result.webhooks), errors, snapshot);
      });
      warn(result);
      metrics.observe(cache.look(snapshot).counts, errors.length, generation, result.held, known);
      metrics.heldPools.set(heldPools.count);
      alarm.set(plannedAt, result.wakeAt);
      failure = undefined;
    }
  }

  function publish(result: PlanResult, frozen: Judged['frozen']): void {
    const next = generation + 1;
    let changed = false;
    const clients = (role: PlanRole, planned: ReadonlyMap<string, unknown>): Set<string> =>
      versions.names(role, planned.keys(), (name) => server.forget(role, name));
    for (const name of clients('gateway', result.gateways)) {
      if (frozen.gateways.has(name)) continue;
      const gatewayPlan: GatewayPlan = result.pools.get(result.gateways.get(name) ?? '') ?? noGatewayPlan;
      const version = versions.offer('gateway', name, gatewayPlan, next);
      if (version === undefined) continue;
      changed = true;
      server.publish('gateway', name, version.plan, version.generation);
    }
    for (const name of clients('node', result.nodes)) {
      if (frozen.nodes.has(name) || settling.waits(name, result.held)) continue;
      const version = versions.offer('node', name, result.nodes.get(name) ?? noNodePlan, next);
      if (version === undefined) continue;
      changed = true;
      server.publish('node', name, version.plan, version.generation);
    }
    if (!changed) return;
    generation = next;
    log.info({ generation, held: result.held }, 'published');
  }

  function warn(result: PlanResult): void {
    const now = new Set<string>();
    for (const warning of result.warnings) {
      const text = JSON.stringify(warning);
      now.add(text);
      if (!warned.has(text)) log.warn(warning, 'an object is ignored in part');
    }
    warned = now;
  }

  trigger();
  return {
    port: server.port,
    ...(http === undefined ? {} : { metricsPort: http.port }),
    enrolPort: enrolment.port,
    async close() {
      closed = true;
      await http?.close();
      await admission?.close();
      await enrolment.close();
      await server.close();
      await source.close();
      await planning;
      await known.close();
      settling.close();
      alarm.close();
      pace.close();
      await heldPools.close();
      await kept.close();
      await webhooks.close();
      await hits.close();
      await statuses.close();
      await world.close();
    },
  };
}
