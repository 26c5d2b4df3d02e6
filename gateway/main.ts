/**
 * The gateway program, put together: saved plan → apply; plan stream → apply → acknowledge → save; records and
 * metrics beside it. Ending it, however, leaves everything in the kernel in force; but where another gateway is elected
 * instead, shards go to that.
 */
import { mkdir, readFile } from 'node:fs/promises';
import { networkInterfaces } from 'node:os';
import { NFT_TABLE_GATEWAY } from '../api/names.ts';
import { emptyGatewayPlan, type GatewayPlan } from '../api/plan.ts';
import type { PlanDelta } from '../api/plan-delta.ts';
import { hitsMessage } from '../api/plan-stream.ts';
import { ownSysctls } from '../daemon/cleanup.ts';
import { tightenHeap } from '../daemon/heap.ts';
import { createRegistry, startHttp } from '../daemon/http.ts';
import { type Listen, parseListen } from '../daemon/listen.ts';
import { createLog } from '../daemon/log.ts';
import { startReconciler } from '../daemon/reconciler.ts';
import { renewByController } from '../daemon/renewal.ts';
import { SavedPlanFile } from '../daemon/saved-plan.ts';
import { holdName } from '../daemon/sole.ts';
import { type PlanClient, startPlanClient } from '../daemon/stream-client.ts';
import { announce } from '../kernel/announce.ts';
import { changeFlows, endFlows, endTuples } from '../kernel/conntrack.ts';
import { HostIp } from '../kernel/iproute-host.ts';
import { listCounts } from '../kernel/nft-counts.ts';
import { HostNft } from '../kernel/nft-host.ts';
import { readSysctl } from '../kernel/sysctl.ts';
import type { SysctlMemory } from '../kernel/sysctl-memory.ts';
import { HostTc } from '../kernel/tc-host.ts';
import { GatewayApply, type GatewayKernel } from './apply.ts';
import { heldShards } from './compile-net.ts';
import { FlowReading } from './flow-reading.ts';
import { GatewayHits } from './hits.ts';
import { GatewayInspection } from './inspect/inspection.ts';
import { InspectionKeeper, inspectionHost } from './inspect/inspection-host.ts';
import { Readings } from './inspect/readings.ts';
import { decidedBy, decidedMark, readMark, ruleNumbers } from './marks.ts';
import { gatewayMetrics } from './metrics.ts';
import { bandwidthMetrics } from './metrics-bandwidth.ts';
import { detectMetrics } from './metrics-detect.ts';
import { electionMetrics } from './metrics-election.ts';
import { hitsMetrics } from './metrics-hits.ts';
import { inspectionMetrics } from './metrics-inspection.ts';
import { startNames } from './names/names.ts';
import { noDetectTable } from './record/detect-table.ts';
import { Detection } from './record/detection.ts';
import { FlowLog } from './record/flow-log.ts';
import { viewOf } from './record/flow-record.ts';
import { Recorder } from './record/recorder.ts';
import { Succession } from './succession.ts';
import { HITS_SET } from './verdict.ts';

export interface GatewayOptions {
  name: string;
  /** URL of the controller's plan stream. */
  controller: string;
  /** Directory with `ca.crt`, `tls.crt`, `tls.key`. */
  certs: string;
  /** Directory for what must outlive the process. */
  state: string;
  /** File of flow records; absent: none are written. */
  flowLog?: string;
  /** Whether samples of flows that no rule asks about are read, for their records (default). */
  detect?: boolean;
  /** Microseconds that CPUs may take to wake while flows are read; absent: as the machine has it. */
  cpuLatency?: number;
  /** `address:port` of metrics and health. */
  metrics?: string;
  /** URL of the module that decides flows that are read, of tests; absent: the program's own. */
  decider?: string;
}

/** Of the second in which they are to end. */
const DEPARTED_MS = 400;
/** A controller that is there has told the plan by then. */
const UNINFORMED_MS = 15_000;

export async function runGateway(options: GatewayOptions): Promise<{ close(): Promise<void> }> {
  const log = createLog('gateway').child({ gateway: options.name });
  await mkdir(options.state, { recursive: true });
  const kernel = hostKernel(log.warn.bind(log), ownSysctls(options.state));
  const held = holdName('gateway', log);
  const gateway = new GatewayApply(options.name, kernel, options.state, {
    watch: {
      before(numbers) {
        // The plan is compiled; what is made of it for the kernel is soon garbage.
        tightenHeap();
        return hits.before(numbers);
      },
    },
    readers: {
      before: (...plan) => reading.before(...plan),
      undo: () => reading.undo(),
      inForce: () => reading.inForce(),
      review: (...plan) => reading.review(...plan),
      after: (plan) => reading.after(plan),
      known: (flow) => reading.known(flow),
    },
    onDeparted() {
      departed ??= setTimeout(endDeparted, DEPARTED_MS);
    },
    elected: () => succession.elected,
  });
  const succession = new Succession({
    ...options,
    log,
    onChange: () => void inTurn(followElection).catch(() => undefined),
  });
  let departed: NodeJS.Timeout | undefined;
  function endDeparted(): void {
    departed = undefined;
    inTurn(async () => metrics.flowsEnded(await gateway.endDeparted())).catch((err: unknown) => {
      log.error({ err }, 'flows of workloads that went; trying again');
      departed ??= setTimeout(endDeparted, 2 * DEPARTED_MS);
    });
  }
  const flowLog = options.flowLog === undefined ? undefined : new FlowLog(options.flowLog);
  const registry = createRegistry('gateway');
  const renewal = await renewByController({ role: 'gateway', ...options, url: options.controller, registry, log });
  let client: PlanClient | undefined;
  const hits = await GatewayHits.open({
    state: options.state,
    boot: (await readSysctl('kernel/random/boot_id')) ?? '',
    counts: (marks) => listCounts(NFT_TABLE_GATEWAY, HITS_SET, marks && { marks }),
    lookAtFlows: () => recorder.lookAtFlows(),
    report: (epoch, rules) => client?.report(hitsMessage(epoch, rules)) ?? false,
    onError: (error) => log.error({ err: error }, 'hits of rules'),
  });
  const detects = flowLog !== undefined && options.detect !== false;
  const recorder = new Recorder({
    view: viewOf(options.name, emptyGatewayPlan(), ruleNumbers()),
    onRecord: (record) => {
      metrics.record(record);
      flowLog?.write(record);
    },
    onTraffic: (started, carried) => hits.traffic(started, carried),
    onHits: (found) => hits.matched(found),
    heard: (message, event) => succession.heard(message, event),
    isOwn: (flow) => succession.isOwn(flow),
    onPermitted(flow, rule) {
      const number = gateway.compiled.numbers.get(rule);
      if (number !== undefined) succession.marked(flow, decidedBy(flow.mark, number));
    },
    onOverrun: () => succession.overrun(),
    onReadEnd: (flow) => readings.end(flow),
    onReadLiving: (flows, asOf) => readings.keep(flows, asOf),
    readingOf: (flow) => readings.get(flow),
    reads: () => inspection.active || readings.size > 0,
    samples: detects,
    lookedAt: hits.lookedAt,
    onError: (error) => log.error({ err: error }, 'records: kernel events'),
  });
  const metrics = gatewayMetrics(registry, kernel.nft, () => recorder, flowLog);
  hitsMetrics(registry, hits);
  electionMetrics(registry, succession);
  const names = await startNames({
    name: options.name,
    certs: options.certs,
    state: options.state,
    log,
    registry,
    post: (message, queue) => inspection.post(message, queue),
  });
  const inspection = new GatewayInspection({
    host: inspectionHost({ nft: kernel.nft, log, cpuLatency: options.cpuLatency }),
    decider: options.decider ?? new URL('./inspect/decider.js', import.meta.url).href,
    names,
    onDecided(flows) {
      for (const flow of flows) countDecided(flow);
      reading.decided(flows);
    },
    log,
  });
  const readings = await Readings.open(options.state, names);
  const countDecided = inspectionMetrics(registry, inspection, readings);
  const reading = new FlowReading({
    inspection,
    readings,
    names,
    record: (flow, again, key) => recorder.decided(flow, again, key),
    endTuples,
    changeFlows: (change) => changeFlows(change, { mark: readMark }),
    onError: (error) => log.error({ err: error }, 'flows that are read'),
  });
  const detection = detects
    ? new Detection({
        runScript: (script) => kernel.nft.runScript(script),
        onReading: (flow, reading) => recorder.sampled(flow, reading),
        onError: (error) => log.error({ err: error }, 'samples of flows'),
      })
    : undefined;
  detectMetrics(registry, detection?.detector);
  const countUnshaped = bandwidthMetrics(registry, kernel.tc);
  let inForce: number | undefined;
  let connected = false;
  let saidUnshaped = '[]';
  let saidContested = '[]';
  let current: GatewayPlan | undefined;
  const reconcile = async (table: boolean): Promise<void> => {
    if (current === undefined || inForce === undefined) return;
    gateway.forget(table);
    await apply(current, inForce, { set: {}, delete: {} });
    // Whoever took away ours may have taken all. Not before: nothing is forwarded until ours is back.
    if (table) await detection?.load().catch((err: unknown) => log.warn({ err }, 'samples of flows'));
  };
  /** Of several shards that change hands at once, once. */
  let followed = '';
  async function followElection(): Promise<void> {
    if (current === undefined || inForce === undefined || [...succession.elected].join() === followed) return;
    await apply(current, inForce, { set: {}, delete: {} });
    await recorder.lookAgain();
  }
  const { inTurn, ...reconciler } = startReconciler({
    table: NFT_TABLE_GATEWAY,
    nft: kernel.nft,
    reconcile,
    look: () => gateway.look(),
    log,
  });

  const keeper = new InspectionKeeper(inspection, kernel.nft, inTurn, log);

  async function apply(plan: GatewayPlan, generation: number, delta?: PlanDelta): Promise<void> {
    const began = performance.now();
    try {
      await succession.before(plan);
      followed = [...succession.elected].join();
      const { flowsEnded, nftChanges, numbers, unshaped } = await gateway.apply(plan, delta);
      await succession.follow(plan);
      const { compiled } = gateway;
      recorder.view = viewOf(options.name, plan, compiled.numbers, (address) => compiled.workloadOf(address));
      hits.inForce(plan, compiled.numbers, numbers);
      countUnshaped(unshaped);
      const said = JSON.stringify(unshaped);
      if (said !== saidUnshaped)
        log.warn({ unshaped }, 'interfaces on which limits of bandwidth are kept by dropping alone');
      saidUnshaped = said;
      const contested = JSON.stringify(compiled.contested);
      if (contested !== saidContested)
        log.warn({ contested: compiled.contested }, 'addresses that several workloads claim: none has them');
      saidContested = contested;
      const seconds = (performance.now() - began) / 1000;
      const shards = heldShards(plan, options.name, succession.elected);
      // Not while the first plan is brought: a big table's counters, all zero, are slow to read while it is made.
      if (inForce === undefined) hits.start();
      inForce = generation;
      current = plan;
      metrics.applied(seconds, generation, compiled.workloads, shards.length);
      metrics.flowsEnded(flowsEnded);
      log.info({ generation, seconds, shards, flowsEnded, nftChanges }, 'plan in force');
    } catch (error) {
      metrics.refused();
      log.error({ err: error, generation }, 'plan refused: what was in force stays');
      throw error;
    } finally {
      succession.applied();
      keeper.look();
    }
  }

  const file = await SavedPlanFile.open(options.state, 'gateway', { log });
  const { saved, reason } = file;
  if (reason !== undefined) log.warn({ reason }, 'saved plan not usable: waiting for the controller');
  if (saved !== undefined) {
    log.info({ generation: saved.generation, ageSeconds: saved.ageSeconds }, 'starting with the saved plan');
    await inTurn(() => apply(saved.plan, saved.generation)).catch(() => undefined);
  }
  await recorder.start();
  reading.start();
  // Names in records are no reason not to start.
  await (detection === undefined ? kernel.nft.runScript(noDetectTable) : detection.start()).catch((err: unknown) =>
    log.error({ err }, 'samples of flows'),
  );
  // With a plan of yesterday it takes no shard from a gateway that may have today's; unless nobody tells of any.
  const uninformed = setTimeout(() => succession.informed(), UNINFORMED_MS);
  client = startPlanClient({
    role: 'gateway',
    name: options.name,
    url: options.controller,
    certs: options.certs,
    addresses: ownAddresses(),
    ...(saved === undefined || inForce === undefined ? {} : { saved }),
    inTurn,
    async onPlan(plan, generation, delta, hash) {
      await apply(plan, generation, delta);
      succession.informed();
      await file.save(plan, generation, hash, delta);
    },
    onState(state) {
      connected = state === 'connected';
      metrics.connected(connected);
      if (connected) hits.connected();
    },
    log,
  });
  const http =
    options.metrics === undefined
      ? undefined
      : await startHttp({
          listen: listenOf(options.metrics),
          registry,
          health: () => ({ ok: true, detail: connected ? 'ok' : 'ok, without the controller' }),
          ready: () => ({
            ok: inForce !== undefined,
            detail: readiness(inForce, inspection.degraded),
          }),
        });
  return {
    async close() {
      await http?.close();
      await client?.close();
      // Whoever begins next looks at all flows.
      clearTimeout(departed);
      clearTimeout(uninformed);
      await renewal.close();
      await file.close();
      await reconciler.close();
      await succession.close();
      await keeper.close();
      await reading.close();
      await names.close();
      await hits.close();
      await detection?.close();
      await recorder.close();
      flowLog?.close();
      await held.close();
    },
  };
}

/** A gateway without inspection is one all the same: what nobody reads goes nowhere. */
const readiness = (inForce: number | undefined, degraded: string | undefined): string => {
  const plan = inForce === undefined ? 'no plan in force yet' : `plan ${inForce} in force`;
  return degraded === undefined ? plan : `${plan}, inspection degraded: ${degraded}`;
};

function listenOf(text: string): Listen {
  const parsed = parseListen(text);
  if (!parsed.ok) throw new Error(`--metrics: ${parsed.error}`);
  return parsed.value;
}

function hostKernel(
  warn: (fields: object, message: string) => void,
  sysctls: SysctlMemory,
): GatewayKernel & { nft: HostNft } {
  return {
    nft: new HostNft(),
    ip: new HostIp(),
    tc: new HostTc(),
    sysctl: (desired) => sysctls.apply(desired),
    async reversePathFilter(device) {
      const values = await Promise.all([device, 'all'].map((name) => readSysctl(`net/ipv4/conf/${name}/rp_filter`)));
      return values.some((value) => value !== '0');
    },
    mtu: async (device) => Number.parseInt(await readFile(`/sys/class/net/${device}/mtu`, 'utf8'), 10),
    announce(device, addresses) {
      try {
        announce({ device, addresses });
      } catch (error) {
        warn({ err: error, device, addresses }, 'neighbours were not told of new addresses');
      }
    },
    endFlows: (match) => endFlows(match, { mark: decidedMark }),
  };
}

/** The machine's addresses without those that Sluice manages (host prefixes) or that nobody can send to. */
function ownAddresses(): string[] {
  const full = { IPv4: '255.255.255.255', IPv6: 'ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff' } as const;
  return Object.values(networkInterfaces()).flatMap((list) =>
    (list ?? [])
      .filter(
        ({ internal, netmask, family, address }) =>
          !internal && netmask !== full[family] && !address.startsWith('fe80:'),
      )
      .map(({ address }) => address),
  );
}
