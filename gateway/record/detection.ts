/**
 * The kernel's side of detection: puts its table in force while there is budget for it, and hears the copies (detect.ts reads
 * them). A gateway goes on without: what fails here is told and costs names in records, nothing else.
 */
import { readFile } from 'node:fs/promises';
import { NFLOG_DETECT_GROUP } from '../../api/names.ts';
import { type EventSocket, startEventSocket } from '../../kernel/event-socket.ts';
import type { ApplicationReading } from '../../policy/application.ts';
import { decodeNflog } from '../../wire/nflog.ts';
import { Detector } from './detect.ts';
import { DetectBudget, forwardedPackets } from './detect-budget.ts';
import { asleep, detectTable, flowOf, noDetectTable, SERVER, SNAPLEN } from './detect-table.ts';

const BUDGET_MS = 1_000;

export interface DetectionOptions {
  /** Runs a script of nft. */
  runScript(script: string): Promise<void>;
  /** What was read of a flow, by the kernel's identity of it. */
  onReading(flow: number, reading: ApplicationReading): void;
  onError(error: Error): void;
}

export class Detection {
  readonly detector = new Detector();
  readonly #options: DetectionOptions;
  readonly #budget = new DetectBudget();
  #socket: EventSocket | undefined;
  #timer: NodeJS.Timeout | undefined;
  #askedAt = performance.now();
  #closed = false;
  /** Scripts run one after another. */
  #last: Promise<unknown> = Promise.resolve();

  constructor(options: DetectionOptions) {
    this.#options = options;
  }

  async start(): Promise<void> {
    this.#socket = startEventSocket({
      kind: 'nflog',
      group: NFLOG_DETECT_GROUP,
      copyRange: SNAPLEN,
      onBatch: (messages) => this.#take(messages),
      onError: this.#options.onError,
    });
    await this.load();
    this.#timer = setInterval(() => void this.#ask().catch(this.#options.onError), BUDGET_MS).unref();
  }

  /** Anew, whatever has become of it. */
  async load(): Promise<void> {
    if (!this.#closed) await this.#run(() => (this.#budget.on ? detectTable : `${detectTable}${asleep}`));
  }

  /** Takes the table away: nobody hears it any more. */
  async close(): Promise<void> {
    clearInterval(this.#timer);
    this.#closed = true;
    await this.#run(() => noDetectTable).catch(this.#options.onError);
    await this.#socket?.close();
    this.#socket = undefined;
  }

  async #ask(): Promise<void> {
    const [snmp, snmp6] = await Promise.all(
      ['snmp', 'snmp6'].map((name) => readFile(`/proc/net/${name}`, 'utf8').catch(() => '')),
    );
    const now = performance.now();
    const [before, seconds] = [this.#budget.on, (now - this.#askedAt) / 1000];
    this.#askedAt = now;
    if (this.#budget.ask(forwardedPackets(snmp ?? '', snmp6 ?? ''), seconds) !== before) {
      await this.load();
    }
  }

  #run(script: () => string): Promise<void> {
    const mine = this.#last.then(() => this.#options.runScript(script()));
    this.#last = mine.catch(() => undefined);
    return mine;
  }

  #take(messages: Uint8Array[]): void {
    const now = performance.now();
    for (const message of messages) {
      const decoded = decodeNflog(message);
      if (!decoded.ok) {
        this.detector.counts.useless++;
        continue;
      }
      const { mark, prefix, payload } = decoded.value;
      const id = flowOf(mark);
      const reading = this.detector.take({ id, reply: prefix === SERVER }, payload, now);
      if (reading !== undefined) this.#options.onReading(id, reading);
    }
  }
}
