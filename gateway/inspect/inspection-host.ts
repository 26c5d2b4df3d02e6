/**
 * What inspection does to this machine, or to one of its network namespaces: threads at queues, the rule that feeds them, the
 * table that marks; and who changes them beside us. How rules reach a queue here is found out when it is needed first.
 */
import { availableParallelism } from 'node:os';
import { NFT_TABLE_INSPECT } from '../../api/names.ts';
import type { Logger } from '../../daemon/log.ts';
import { holdCpuLatency } from '../../kernel/cpu-latency.ts';
import type { HostNft } from '../../kernel/nft-host.ts';
import { TextTable } from '../../kernel/nft-text.ts';
import {
  probeQueueRule,
  putQueueRule,
  QUEUE_TABLE,
  type QueueCapability,
  removeQueueRule,
  XT_TABLE,
} from '../../kernel/queue-rule.ts';
import { openRawSockets } from '../../kernel/raw-socket.ts';
import type { GatewayInspection, InspectionHost } from './inspection.ts';
import { inspectTable } from './table.ts';
import { type Inspection, startInspection } from './workers.ts';

const HOLD_MS = 7_000;

export interface InspectionHostOptions {
  nft: HostNft;
  log: Logger;
  /** Microseconds that CPUs may take to wake while threads run; absent: as the machine has it. */
  cpuLatency?: number | undefined;
}

export function inspectionHost({ nft, log, cpuLatency }: InspectionHostOptions): InspectionHost {
  const table = new TextTable(NFT_TABLE_INSPECT, nft);
  let probed: Promise<QueueCapability> | undefined;
  /** What is found once stays; of a machine that cannot, it is asked again. */
  const capability = async (): Promise<QueueCapability> => {
    probed ??= probeQueueRule();
    const found = await probed;
    if (found.kind === 'none') probed = undefined;
    return found;
  };
  return {
    processors: availableParallelism(),
    // Longer than any flow may take to say what it is: what is held is let go by its thread.
    start: (options) => {
      const inspection = startInspection({ ...options, log, limits: { holdMs: HOLD_MS } });
      return cpuLatency === undefined ? inspection : awake(inspection, cpuLatency, log);
    },
    openRaw: () => openRawSockets(),
    putRule: async (rule) => putQueueRule(await capability(), rule),
    removeRule: async (rule) => removeQueueRule(await capability(), rule),
    putTable: (settings, quic) => table.put(inspectTable(settings, quic)),
    removeTable: () => table.remove(),
  };
}

/** A machine without power management reads all the same. */
function awake(inspection: Inspection, microseconds: number, log: Logger): Inspection {
  let release: () => void;
  try {
    release = holdCpuLatency(microseconds);
  } catch (error) {
    log.warn({ reason: (error as Error).message }, 'inspection: CPUs may sleep as this machine has it');
    return inspection;
  }
  return {
    ...inspection,
    async close() {
      release();
      await inspection.close();
    },
  };
}

/** Where iptables-nft keeps its rules, and our own tables. */
const watched = new Set([NFT_TABLE_INSPECT, QUEUE_TABLE, XT_TABLE]);
/** Several changes of one program come together; two programs that undo each other's changes should not be busy with it. */
const [SOON_MS, APART_MS] = [20, 1_000];
/** iptables-legacy tells nobody, and what failed is to be tried again. */
const LOOK_MS = 30_000;
const RETRY_MS = 1_000;

/**
 * Has inspection mended soon after somebody changed a table that it lives in, and now and then. `inTurn`: one at a time with
 * plans. Changes of our own are among the events: that costs a look.
 */
export class InspectionKeeper {
  readonly #inspection: Pick<GatewayInspection, 'active' | 'degraded' | 'mend'>;
  readonly #nft: Pick<HostNft, 'watch'>;
  readonly #inTurn: (work: () => Promise<void>) => Promise<void>;
  readonly #log: Logger;
  #watch: { close(): Promise<void> } | undefined;
  #timer: NodeJS.Timeout | undefined;
  #due = Number.POSITIVE_INFINITY;
  #mendedAt = Number.NEGATIVE_INFINITY;

  constructor(
    inspection: Pick<GatewayInspection, 'active' | 'degraded' | 'mend'>,
    nft: Pick<HostNft, 'watch'>,
    inTurn: (work: () => Promise<void>) => Promise<void>,
    log: Logger,
  ) {
    this.#inspection = inspection;
    this.#nft = nft;
    this.#inTurn = inTurn;
    this.#log = log;
  }

  /** A plan was applied, or failed to be: nothing is watched while there is no inspection. */
  look(): void {
    if (!this.#inspection.active) {
      void this.close();
      return;
    }
    const changed = (): void => this.#at(Math.max(SOON_MS, this.#mendedAt + APART_MS - performance.now()));
    this.#watch ??= this.#nft.watch(({ table }) => watched.has(table), {
      onChanged: changed,
      onDeleted: changed,
      onError: (error) => this.#log.error({ err: error }, 'inspection: nftables events'),
    });
    this.#at(this.#inspection.degraded === undefined ? LOOK_MS : RETRY_MS);
  }

  async close(): Promise<void> {
    clearTimeout(this.#timer);
    this.#due = Number.POSITIVE_INFINITY;
    const watch = this.#watch;
    this.#watch = undefined;
    await watch?.close();
  }

  #at(wait: number): void {
    const then = performance.now() + wait;
    if (this.#watch === undefined || then >= this.#due) return;
    clearTimeout(this.#timer);
    this.#due = then;
    this.#timer = setTimeout(() => this.#mend(), wait);
  }

  #mend(): void {
    this.#due = Number.POSITIVE_INFINITY;
    this.#mendedAt = performance.now();
    void this.#inTurn(() => this.#inspection.mend())
      .catch((error) => this.#log.error({ err: error }, 'inspection: not mended'))
      .finally(() => this.#at(this.#inspection.degraded === undefined ? LOOK_MS : RETRY_MS));
  }
}
