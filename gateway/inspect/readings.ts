/**
 * What was read of flows that live, and by which names they were permitted (design §4.8): with it a flow is judged again when
 * the policy changes. Kept until the flow ends, and on disk, so that a program that starts anew knows it of those that
 * still live. Bounded: of more flows the oldest are forgotten, and judged as if nothing had been read.
 * While a flow is here the names that it uses stay in the pool's table.
 */
import { open, readFile, rename, stat } from 'node:fs/promises';
import { join } from 'node:path';
import type { Application } from '../../api/application.ts';
import { isRecord } from '../../api/plan-delta.ts';
import type { ApplicationReading } from '../../policy/application.ts';
import type { Known } from '../../policy/decision.ts';

/** A flow by its first packet; canonical text. */
export interface FlowEnds {
  protocol: number;
  source: string;
  sourcePort?: number | undefined;
  destination: string;
  destinationPort?: number | undefined;
}

export const keyOf = ({ protocol, source, sourcePort = 0, destination, destinationPort = 0 }: FlowEnds): string =>
  `${protocol} ${source} ${sourcePort} ${destination} ${destinationPort}`;
/** Whether the name that such bytes say is that of the host that they go to; a question's is not. */
const namesHost = (application: Application | undefined): boolean =>
  application === 'TLS' || application === 'HTTP' || application === 'QUIC';
const destinationOf = (key: string): string => key.split(' ')[3] ?? '';

/** Of names/service.ts. */
export interface NamesInUse {
  use(name: string, address: string): boolean;
  release(name: string, address: string): void;
  gives(name: string, address: string): boolean;
  namesOf(address: string): readonly string[];
}

interface Read {
  reading: ApplicationReading;
  /** Names whose address the destination was when the flow was permitted. */
  names: readonly string[];
  /** Of these: those that are to be released. */
  used: readonly string[];
  /** As performance.now(). */
  since: number;
}
type Saved = Pick<Read, 'reading' | 'names'>;

const FILE = 'readings.jsonl';
const MAX_BYTES = 256 * 1024 * 1024;
/** As many as a connection table has by default on a large machine. */
const MOST = 262_144;
/** Of an address that names none. */
const NAMES_MOST = 16;
const NONE: readonly string[] = [];
/** Lines that are written at once. */
const PART = 1_000;
const KINDS = 4_096;

/** Whether other flows say the same: no request nor question is in it. */
export const isCommon = ({ literal, http, dns }: ApplicationReading): boolean =>
  http === undefined && dns === undefined && literal === undefined;

export class Readings {
  readonly #state: string;
  readonly #names: NamesInUse;
  readonly #most: number;
  readonly #read = new Map<string, Read>();
  /** What was read of many, by what it says. */
  readonly #kinds = new Map<string, ApplicationReading>();
  #dirty = false;
  /** Of an earlier run, and nobody has said yet what of it still lives. */
  #loaded = false;

  private constructor(state: string, names: NamesInUse, most: number) {
    this.#state = state;
    this.#names = names;
    this.#most = most;
  }

  /** With what an earlier run saved; keep() says what of it still lives. */
  static async open(state: string, names: NamesInUse, most = MOST): Promise<Readings> {
    const readings = new Readings(state, names, most);
    for (const [key, read] of await savedIn(join(state, FILE))) readings.#put(key, read);
    readings.#loaded = true;
    return readings;
  }

  get size(): number {
    return this.#read.size;
  }

  get(key: string): ApplicationReading | undefined {
    return this.#read.get(key)?.reading;
  }

  /** The flow was permitted, and this was read of it. */
  set(key: string, reading: ApplicationReading, destination = destinationOf(key)): void {
    const { name, application } = reading;
    let names: readonly string[] = NONE;
    if (name === undefined || !namesHost(application)) names = this.#names.namesOf(destination).slice(0, NAMES_MOST);
    else if (this.#names.gives(name, destination)) names = [name];
    this.#put(key, { reading, names }, destination);
  }

  /** It has ended. */
  end(key: string): void {
    const read = this.#read.get(key);
    if (read === undefined) return;
    this.#read.delete(key);
    this.#dirty = true;
    if (read.used.length === 0) return;
    const destination = destinationOf(key);
    for (const name of read.used) this.#names.release(name, destination);
  }

  /** These lived at a time of performance.now(): of those that were here by then, all others have ended unheard. */
  keep(living: ReadonlySet<string>, asOf: number): void {
    for (const [key, { since }] of [...this.#read]) if (since < asOf && !living.has(key)) this.end(key);
    if (!this.#loaded) return;
    this.#loaded = false;
    // Not before: until there is a plan, no name has an address.
    for (const [key, read] of [...this.#read]) if (read.used.length === 0) this.#put(key, read);
  }

  /**
   * What is known of a flow: of the names by which it was permitted nobody asks whether they have expired. undefined: nothing
   * was read of it.
   */
  known(flow: FlowEnds): Known | undefined {
    const read = this.#read.get(keyOf(flow));
    if (read === undefined) return undefined;
    const names = this.#names;
    const own = (address: string): readonly string[] => (address === flow.destination ? read.names : []);
    return {
      reading: read.reading,
      gives: (name, address) => own(address).includes(name) || names.gives(name, address),
      namesOf: (address) => [...new Set([...names.namesOf(address), ...own(address)])],
    };
  }

  /** In parts: of many flows it would else keep all others waiting. */
  async save(): Promise<void> {
    if (!this.#dirty) return;
    this.#dirty = false;
    const file = join(this.#state, FILE);
    // Not synced: the kernel's connections die with the machine too.
    const handle = await open(`${file}.new`, 'w', 0o600);
    try {
      for (const part of this.#lines()) await handle.write(part);
    } finally {
      await handle.close();
    }
    await rename(`${file}.new`, file);
  }

  /** Each reading once, before the first flow of which it was read. */
  *#lines(): Generator<string> {
    const known = new Map<ApplicationReading, number>();
    let left = this.#read.size;
    let lines: string[] = [];
    for (const [key, { reading, names }] of this.#read) {
      // What comes meanwhile is for the next time.
      if (left-- === 0) break;
      let index = known.get(reading);
      if (index === undefined) {
        index = known.size;
        known.set(reading, index);
        lines.push(`${JSON.stringify(reading)}\n`);
      }
      lines.push(`${JSON.stringify([key, index, ...names])}\n`);
      if (lines.length < PART) continue;
      yield lines.join('');
      lines = [];
    }
    yield lines.join('');
  }

  /** Of most flows the same was read as of others: one object for all. What each says of its own is not looked for. */
  shared(reading: ApplicationReading): ApplicationReading {
    if (!isCommon(reading)) return reading;
    const { application, name, tls } = reading;
    const hello = tls && `${tls.version} ${tls.encryptedClientHello} ${tls.alpn.join()}`;
    const text = `${application} ${name} ${hello}`;
    const known = this.#kinds.get(text);
    if (known !== undefined) return known;
    if (this.#kinds.size >= KINDS) this.#kinds.clear();
    this.#kinds.set(text, reading);
    return reading;
  }

  #put(key: string, { reading, names }: Saved, destination = destinationOf(key)): void {
    this.end(key);
    // The longest that lives is the first.
    const [oldest] = this.#read.size >= this.#most ? this.#read.keys() : [];
    if (oldest !== undefined) this.end(oldest);
    const using = names.filter((name) => this.#names.use(name, destination));
    // Nearly always the same, of which there are many.
    const used = using.length === names.length ? names : using;
    this.#read.set(key, { reading: this.shared(reading), names, used, since: performance.now() });
    this.#dirty = true;
  }
}

/** Our own file; what is damaged in it is left out. */
async function savedIn(file: string): Promise<[key: string, read: Saved][]> {
  let text: string;
  try {
    if ((await stat(file)).size > MAX_BYTES) return [];
    text = await readFile(file, 'utf8');
  } catch {
    return [];
  }
  const readings: ApplicationReading[] = [];
  const flows: [string, Saved][] = [];
  for (const line of text.split('\n')) {
    const item = parsed(line);
    if (isRecord(item)) readings.push(item);
    if (!Array.isArray(item)) continue;
    const [key, index, ...names] = item;
    const reading = Number.isSafeInteger(index) ? readings[index] : undefined;
    if (typeof key !== 'string' || key.split(' ').length !== 5 || reading === undefined) continue;
    flows.push([key, { reading, names: names.filter((name) => typeof name === 'string') }]);
  }
  return flows;
}

function parsed(line: string): unknown {
  try {
    return JSON.parse(line);
  } catch {
    return undefined;
  }
}
