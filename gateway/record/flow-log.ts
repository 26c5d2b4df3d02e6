/**
 * A file of JSON lines, rotated by size: FILE, FILE.1 (newest) … FILE.5. Writing is batched and never waits: what a
 * slow disk cannot take is dropped and counted (design §8: a slow sink costs records, never packets).
 */
import { closeSync, fstatSync, mkdirSync, openSync, renameSync, writeSync } from 'node:fs';
import { dirname } from 'node:path';

const MAX_BYTES = 64 * 1024 * 1024;
const KEPT = 5;
const BUFFER_BYTES = 8 * 1024 * 1024;
/** Long enough to gather a batch, short enough that `flows -f` looks live. */
const FLUSH_MS = 50;

export class FlowLog {
  /** Records that could not be written. */
  lost = 0;
  readonly #file: string;
  readonly #maxBytes: number;
  #descriptor: number;
  #size: number;
  #buffer: string[] = [];
  #buffered = 0;
  #timer: NodeJS.Timeout | undefined;

  constructor(file: string, maxBytes = MAX_BYTES) {
    mkdirSync(dirname(file), { recursive: true });
    this.#file = file;
    this.#maxBytes = maxBytes;
    this.#descriptor = openSync(file, 'a', 0o640);
    this.#size = fstatSync(this.#descriptor).size;
  }

  write(record: object): void {
    if (this.#buffered > BUFFER_BYTES) {
      this.lost++;
      return;
    }
    const line = `${JSON.stringify(record)}\n`;
    this.#buffer.push(line);
    this.#buffered += line.length;
    this.#timer ??= setTimeout(() => this.flush(), FLUSH_MS);
  }

  flush(): void {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    if (this.#buffer.length === 0) return;
    const lines = this.#buffer;
    this.#buffer = [];
    this.#buffered = 0;
    try {
      if (this.#size > this.#maxBytes) this.#rotate();
      const bytes = Buffer.from(lines.join(''));
      for (let at = 0; at < bytes.length; ) at += writeSync(this.#descriptor, bytes, at);
      this.#size += bytes.length;
    } catch {
      this.lost += lines.length;
    }
  }

  close(): void {
    this.flush();
    closeSync(this.#descriptor);
  }

  #rotate(): void {
    for (let n = KEPT - 1; n >= 0; n--) {
      try {
        renameSync(n === 0 ? this.#file : `${this.#file}.${n}`, `${this.#file}.${n + 1}`);
      } catch {
        // Not there yet.
      }
    }
    // Open before close: if it cannot be opened, the old one is written on.
    const descriptor = openSync(this.#file, 'a', 0o640);
    closeSync(this.#descriptor);
    this.#descriptor = descriptor;
    this.#size = 0;
  }
}
