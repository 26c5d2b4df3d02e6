/**
 * `sluice node` (design §6): steers the off-cluster packets of a node's workloads to their shards' next hops.
 * The composition root: saved plan, plan client, steering, hold queue, metrics. The kernel's state outlives this
 * process: closing stops neither steering nor what is dropped, and a start lists and mends instead of flushing.
 */
import { networkInterfaces } from 'node:os';
import { NFT_TABLE_NODE, TUNNEL_DEVICE } from '../api/names.ts';
import type { NodePlan } from '../api/plan.ts';
import { copyPlan } from '../api/plan-delta.ts';
import { ownSysctls } from '../daemon/cleanup.ts';
import { createRegistry, startHttp } from '../daemon/http.ts';
import { parseListen } from '../daemon/listen.ts';
import { createLog } from '../daemon/log.ts';
import { startReconciler } from '../daemon/reconciler.ts';
import { renewByController } from '../daemon/renewal.ts';
import { SavedPlanFile } from '../daemon/saved-plan.ts';
import { holdName } from '../daemon/sole.ts';
import { startPlanClient } from '../daemon/stream-client.ts';
import { Steering } from './apply.ts';
import { startHoldQueue } from './hold-queue.ts';
import { HostKernel } from './kernel.ts';
import { createNodeMetrics } from './metrics.ts';
import { keepPlaces, type PlaceKeeper } from './place-keeper.ts';
import { Places } from './places.ts';

export interface NodeOptions {
  name: string;
  /** URL of the controller's plan stream. */
  controller: string;
  /** Folder with ca.crt, tls.crt, tls.key. */
  certs: string;
  /** Folder of the saved plan. */
  state: string;
  /** Interfaces behind which workloads live: names, or patterns with a `*` at the end. */
  workloadInterfaces: string[];
  /** ADDRESS:PORT of metrics and health; absent: none. */
  metrics?: string;
}

/** Of the second in which flows of workloads that went are to end. */
const LEFT_MS = 400;

export interface RunningNode {
  close(): Promise<void>;
}

export async function runNode(options: NodeOptions): Promise<RunningNode> {
  for (const name of options.workloadInterfaces) {
    if (!/^[\w.@-]{1,15}\*?$/.test(name)) throw new Error(`not the name of an interface: ${JSON.stringify(name)}`);
  }
  const listen = options.metrics === undefined ? undefined : parseListen(options.metrics);
  if (listen?.ok === false) throw new Error(`metrics: ${listen.error}`);
  const log = createLog('node');
  const kernel = new HostKernel(undefined, ownSysctls(options.state));
  const name = holdName('node', log);
  const registry = createRegistry('node');
  const metrics = createNodeMetrics(registry, kernel.nft);
  const renewal = await renewByController({ role: 'node', ...options, url: options.controller, registry, log });
  const hold = startHoldQueue({ events: metrics.hold, log, onSource: (...source) => keeper?.sent(...source) });
  const places = new Places();
  let keeper: PlaceKeeper | undefined;
  const steering = new Steering(kernel, options.workloadInterfaces, {
    places,
    onLeft() {
      left ??= setTimeout(endLeft, LEFT_MS);
    },
  });
  let left: NodeJS.Timeout | undefined;
  let generation = 0;
  let failure: string | undefined = 'no plan yet';
  let connected = false;

  const apply = async (plan: NodePlan): Promise<void> => {
    try {
      const { known, workloads, endedFlows } = await steering.apply(plan);
      hold.release(known);
      metrics.workloads(workloads);
      countEnded(endedFlows);
      metrics.applied(true);
      failure = undefined;
    } catch (error) {
      failure = (error as Error).message;
      metrics.applied(false);
      throw error;
    }
  };
  const countEnded = (endedFlows: number): void => {
    metrics.endedFlows(endedFlows);
    if (endedFlows > 0) log.info({ endedFlows }, 'ended flows of withdrawn or newly assigned workloads');
  };
  const endLeft = (): void => {
    left = undefined;
    inTurn(async () => countEnded(await steering.endLeft())).catch((err: unknown) => {
      log.error({ err }, 'flows of workloads that went; trying again');
      left ??= setTimeout(endLeft, 2 * LEFT_MS);
    });
  };
  const applyAgain = async (): Promise<void> => {
    if (steering.plan !== undefined) await apply(steering.plan);
  };
  const reconcile = async (table: boolean): Promise<void> => {
    steering.forget(table);
    await applyAgain();
  };
  const { inTurn, ...reconciler } = startReconciler({
    table: NFT_TABLE_NODE,
    nft: kernel.nft,
    reconcile,
    look: () => steering.look(),
    devices: 'indifferent',
    log,
  });
  const { again } = reconciler;
  keeper = keepPlaces({ places, hold, inTurn, apply: applyAgain, again, log });

  const file = await SavedPlanFile.open(options.state, 'node', { log });
  const { saved, reason } = file;
  if (reason !== undefined) log.error({ reason }, 'the saved plan is not usable; waiting for the controller');
  let resumed = false;
  if (saved !== undefined) {
    steering.resume(copyPlan(saved.plan));
    try {
      await inTurn(() => apply(copyPlan(saved.plan)));
      generation = saved.generation;
      metrics.generation(generation);
      resumed = true;
      log.info({ generation, ageSeconds: Math.round(saved.ageSeconds) }, 'the saved plan is in force');
    } catch (error) {
      log.error({ error: (error as Error).message }, 'the saved plan could not be applied');
    }
  }

  const client = startPlanClient({
    role: 'node',
    name: options.name,
    url: options.controller,
    certs: options.certs,
    addresses: underlayAddresses(options.workloadInterfaces),
    ...(saved !== undefined && resumed ? { saved } : {}),
    inTurn,
    async onPlan(plan, next, delta, hash) {
      // It is compared with the plan before, which must stay as it was; a node's are small.
      await apply(copyPlan(plan));
      generation = next;
      metrics.generation(next);
      await file.save(plan, next, hash, delta);
      log.info({ generation: next, workloads: Object.keys(plan.workloads).length }, 'plan in force');
    },
    onState: (state) => {
      connected = state === 'connected';
      log.info({ state }, 'plan stream');
    },
    log,
  });

  const http = listen?.ok
    ? await startHttp({
        listen: listen.value,
        registry,
        health: () => ({ ok: hold.ready(), detail: hold.ready() ? 'ok' : 'the hold queue is not open' }),
        ready: () => ({
          ok: failure === undefined && hold.ready(),
          detail: failure ?? `generation ${generation}, controller ${connected ? 'connected' : 'away'}`,
        }),
      })
    : undefined;

  return {
    async close() {
      await http?.close();
      await client.close();
      await renewal.close();
      await file.close();
      await keeper?.close();
      // Whoever begins next finds in the table of whom there may be flows.
      clearTimeout(left);
      await reconciler.close();
      await hold.close();
      await name.close();
    },
  };
}

/** This machine's own addresses, from which tunnel packets may come: not those of its workloads' side. */
export function underlayAddresses(
  workloadInterfaces: readonly string[],
  interfaces: ReturnType<typeof networkInterfaces> = networkInterfaces(),
): string[] {
  const excluded = (device: string): boolean =>
    device === TUNNEL_DEVICE ||
    workloadInterfaces.some((name) => (name.endsWith('*') ? device.startsWith(name.slice(0, -1)) : device === name));
  return Object.entries(interfaces)
    .filter(([device]) => !excluded(device))
    .flatMap(([, addresses]) => addresses ?? [])
    .filter(({ internal, address }) => !internal && !address.startsWith('fe80:') && !address.startsWith('169.254.'))
    .map(({ address }) => address)
    .sort();
}
