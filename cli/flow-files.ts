/**
 * Lines of flow logs, as a gateway writes and rotates them (gateway/record/flow-log.ts: FILE, FILE.1 the newest old one,
 * FILE.2 …): from the oldest on, of several logs in the order of their times, and those that come from now on. Files are
 * read in pieces, and a line that is longer than any record is passed over, so that any file can be read in bounded memory.
 */
import { type FileHandle, open, readdir } from 'node:fs/promises';
import { basename, dirname } from 'node:path';
import type { Readable } from 'node:stream';
import { setTimeout } from 'node:timers/promises';
import type { FlowRecord } from '../gateway/record/flow-record.ts';
import { RECORD_MAX, readRecord } from '../gateway/record/read-record.ts';
import { Exit } from './output.ts';

const PIECE = 256 * 1024;
/** So that what is followed looks live. */
const POLL_MS = 100;
const LF = 0x0a;

/** Of one or more logs: what was read, and what was no record. */
export class FlowReading {
  /** Lines that are no flow records, and where the first of them is. */
  bad = 0;
  firstBad: string | undefined;

  noRecord(where: string): void {
    this.bad++;
    this.firstBad ??= where;
  }
}

/** Pieces of a file → its records. */
class Lines {
  readonly #name: string;
  readonly #reading: FlowReading;
  #rest: Buffer = Buffer.alloc(0);
  /** Within a line that is too long. */
  #skipping = false;
  #line = 0;

  constructor(name: string, reading: FlowReading) {
    this.#name = name;
    this.#reading = reading;
  }

  *take(piece: Buffer): Generator<FlowRecord> {
    let from = 0;
    for (let end = piece.indexOf(LF); end >= 0; end = piece.indexOf(LF, from)) {
      const line = Buffer.concat([this.#rest, piece.subarray(from, end)]);
      from = end + 1;
      this.#rest = Buffer.alloc(0);
      this.#line++;
      if (!this.#skipping) yield* this.#record(line);
      this.#skipping = false;
    }
    if (this.#skipping) return;
    // A copy: the piece is used again.
    this.#rest = Buffer.concat([this.#rest, piece.subarray(from)]);
    if (this.#rest.length <= RECORD_MAX) return;
    this.#reading.noRecord(`${this.#name}:${this.#line + 1}`);
    this.#skipping = true;
    this.#rest = Buffer.alloc(0);
  }

  /** What stands behind the last line's end: a record whose line is just being written is none yet. */
  *end(): Generator<FlowRecord> {
    const record = readRecord(this.#rest.toString('utf8'));
    if (record !== undefined) yield record;
  }

  *#record(line: Buffer): Generator<FlowRecord> {
    const text = line.toString('utf8');
    if (text.trim() === '') return;
    const record = readRecord(text);
    if (record === undefined) this.#reading.noRecord(`${this.#name}:${this.#line}`);
    else yield record;
  }
}

/** A file that is open, whatever it is called by now. */
class Part {
  readonly name: string;
  /** Tells it from all others, also from one that has its number after it is gone. */
  readonly id: string;
  readonly #handle: FileHandle;
  readonly #lines: Lines;
  readonly #piece = Buffer.alloc(PIECE);
  #at = 0;

  private constructor(name: string, id: string, handle: FileHandle, reading: FlowReading) {
    this.name = name;
    this.id = id;
    this.#handle = handle;
    this.#lines = new Lines(name, reading);
  }

  static async open(name: string, reading: FlowReading): Promise<Part> {
    const handle = await open(name, 'r').catch((error: NodeJS.ErrnoException) => {
      const why = error.code === 'ENOENT' ? 'there is no such file' : (error.code ?? error.message);
      throw new Exit(1, `${name}: ${why}`);
    });
    const stat = await handle.stat({ bigint: true });
    if (stat.isFile()) return new Part(name, `${stat.dev}:${stat.ino}:${stat.birthtimeNs}`, handle, reading);
    await handle.close();
    throw new Exit(1, `${name}: expected a file of flow records`);
  }

  /** Records of whole lines that are there and were not read. */
  async *records(): AsyncGenerator<FlowRecord> {
    // Begun anew in place.
    if ((await this.#handle.stat()).size < this.#at) this.#at = 0;
    for (;;) {
      const { bytesRead } = await this.#handle.read(this.#piece, 0, PIECE, this.#at);
      if (bytesRead === 0) return;
      this.#at += bytesRead;
      yield* this.#lines.take(this.#piece.subarray(0, bytesRead));
    }
  }

  last(): Generator<FlowRecord> {
    return this.#lines.end();
  }

  close(): Promise<void> {
    return this.#handle.close();
  }
}

/** FILE.1, FILE.2 …, as far as there are any, and one more: while one is looked for it may get the next number. */
async function numbered(file: string): Promise<string[]> {
  const prefix = `${basename(file)}.`;
  const names = await readdir(dirname(file)).catch(() => []);
  const numbers = names.flatMap((name) => {
    const number = name.startsWith(prefix) ? name.slice(prefix.length) : '';
    return /^[1-9]\d{0,2}$/.test(number) ? [Number(number)] : [];
  });
  const most = Math.max(0, ...numbers);
  return Array.from({ length: most === 0 ? 0 : most + 1 }, (_, at) => `${file}.${at + 1}`);
}

const absent = (): undefined => undefined;

/** A log, whatever its parts are called by now. */
class Log {
  readonly #file: string;
  readonly #reading: FlowReading;
  /** In the order in which they were written; of a log that is followed only the last is kept. */
  #parts: Part[] = [];

  constructor(file: string, reading: FlowReading) {
    this.#file = file;
    this.#reading = reading;
  }

  /** `taken`: parts that another log has. */
  async open(taken: Set<string>): Promise<void> {
    const now = await Part.open(this.#file, this.#reading);
    this.#parts = [];
    for (const part of [...(await this.#before(now, undefined)), now]) {
      if (taken.has(part.id)) await part.close();
      else this.#parts.push(part);
      taken.add(part.id);
    }
  }

  async *records(follow: boolean): AsyncGenerator<FlowRecord> {
    for (const part of this.#parts) {
      yield* part.records();
      if (!follow) yield* part.last();
    }
  }

  /** What has come since. */
  async *more(): AsyncGenerator<FlowRecord> {
    const last = this.#parts.pop();
    for (const part of this.#parts) await part.close();
    const now = await Part.open(this.#file, this.#reading).catch(absent);
    this.#parts = last === undefined ? [] : [last];
    if (last !== undefined && (now === undefined || now.id === last.id)) {
      await now?.close();
      yield* last.records();
      return;
    }
    if (now === undefined) return;
    // It has a successor already, so nobody writes to it any more.
    if (last !== undefined) yield* last.records();
    this.#parts = [...this.#parts, ...(await this.#before(now, last?.id)), now];
    for (const part of this.#parts) if (part !== last) yield* part.records();
  }

  async close(): Promise<void> {
    for (const part of this.#parts) await part.close();
    this.#parts = [];
  }

  /** Parts between one that was read and the one that is written to now, in the order in which they were written. */
  async #before(now: Part, read: string | undefined): Promise<Part[]> {
    let found: Part[] = [];
    // The newest first: one that gets the next number meanwhile is met twice, and none is missed.
    for (const name of await numbered(this.#file)) {
      const part = await Part.open(name, this.#reading).catch(absent);
      if (part === undefined) continue;
      if (part.id === read) {
        await part.close();
        break;
      }
      if (part.id === now.id) {
        // It is an old one itself by now: what is newer comes when it is its turn.
        for (const newer of [part, ...found]) await newer.close();
        found = [];
      } else if (found.some(({ id }) => id === part.id)) await part.close();
      else found.push(part);
    }
    return found.reverse();
  }
}

/** Of standard input: until its end. */
async function* recordsOf(input: Readable, reading: FlowReading): AsyncGenerator<FlowRecord> {
  const lines = new Lines('-', reading);
  for await (const piece of input) yield* lines.take(Buffer.from(piece));
  yield* lines.end();
}

/** The earliest first, each log taken to be in order. */
async function* merged(sources: AsyncGenerator<FlowRecord>[]): AsyncGenerator<FlowRecord> {
  const heads: { source: AsyncGenerator<FlowRecord>; record: FlowRecord; at: number }[] = [];
  const next = async (source: AsyncGenerator<FlowRecord>): Promise<void> => {
    const { value, done } = await source.next();
    if (done !== true) heads.push({ source, record: value, at: Date.parse(value.time) });
  };
  for (const source of sources) await next(source);
  while (heads.length > 0) {
    let first = 0;
    for (let i = 1; i < heads.length; i++) if ((heads[i]?.at ?? 0) < (heads[first]?.at ?? 0)) first = i;
    const [head] = heads.splice(first, 1);
    if (head === undefined) return;
    yield head.record;
    await next(head.source);
  }
}

export interface FlowFiles {
  /** What is there. */
  records(): AsyncGenerator<FlowRecord>;
  /** What comes from then on, until the signal; all of it at hand, then nothing for a while, and so on. */
  follow(signal: AbortSignal): AsyncGenerator<FlowRecord>;
  close(): Promise<void>;
}

/** `-` is the standard input. A file that is not there is an error. `follow`: a last line without an end is not taken. */
export async function openFlows(
  files: readonly string[],
  reading: FlowReading,
  { input = process.stdin, follow = false }: { input?: Readable; follow?: boolean } = {},
): Promise<FlowFiles> {
  const logs = [...new Set(files)].filter((file) => file !== '-').map((file) => new Log(file, reading));
  const taken = new Set<string>();
  const close = async (): Promise<void> => {
    for (const log of logs) await log.close();
  };
  try {
    for (const log of logs) await log.open(taken);
  } catch (error) {
    await close();
    throw error;
  }
  return {
    records: () =>
      merged([...logs.map((log) => log.records(follow)), ...(files.includes('-') ? [recordsOf(input, reading)] : [])]),
    async *follow(signal) {
      while (!signal.aborted) {
        for (const log of logs) yield* log.more();
        await setTimeout(POLL_MS, undefined, { signal }).catch(absent);
      }
    },
    close,
  };
}
