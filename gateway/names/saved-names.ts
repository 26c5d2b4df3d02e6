/**
 * The name table on disk: DIR/names.saved, a line that says what follows with its CRC-32, then a pair a line. Written beside
 * and renamed, so that a crash leaves the table before or after; not waited for: what the last seconds taught is also with
 * the other gateways. A file that cannot be read as a whole is reported and otherwise treated as absent.
 */
import { open, readFile, rename, rm, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { crc32 } from 'node:zlib';
import { fail, ok, type Result } from '../../api/result.ts';
import type { NamedAddress } from '../inspect/name-table.ts';
import { type ParsedPair, parsePair } from './frame.ts';

const FILE = 'names.saved';
/** Of a file that is read: pairs of the longest names. */
const MAX_BYTES = 64 * 1024 * 1024;
const MAX_PAIRS = 1_000_000;
/** Pairs that are written between two looks at what else there is to do. */
const SLICE = 2_000;

const headOf = (pairs: number, crc: number): string => JSON.stringify({ type: 'names', version: 1, pairs, crc });

/** Undefined: there is no file. */
export async function readNames(directory: string): Promise<Result<ParsedPair[]> | undefined> {
  const path = join(directory, FILE);
  try {
    const { size } = await stat(path);
    if (size > MAX_BYTES) return fail(`it is longer than ${MAX_BYTES} bytes`);
    return parseNames(await readFile(path));
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined;
    return fail((error as Error).message);
  }
}

export function parseNames(bytes: Uint8Array): Result<ParsedPair[]> {
  const end = bytes.indexOf(10);
  const body = bytes.subarray(end + 1);
  const lines = Buffer.from(body.buffer, body.byteOffset, body.length).toString('utf8').split('\n');
  const count = lines.length - 1;
  const head = Buffer.from(bytes.buffer, bytes.byteOffset, Math.max(end, 0)).toString('utf8');
  if (end < 0 || head !== headOf(count, crc32(body))) return fail('its first line does not fit what follows');
  if (count > MAX_PAIRS) return fail(`it has more than ${MAX_PAIRS} pairs`);
  const pairs: ParsedPair[] = [];
  for (const line of lines.slice(0, count)) {
    let item: unknown;
    try {
      item = JSON.parse(line);
    } catch {
      return fail('a line is no JSON');
    }
    const pair = parsePair(item);
    if (!pair.ok) return fail(`a line: ${pair.error}`);
    pairs.push(pair.value);
  }
  return ok(pairs);
}

export async function writeNames(directory: string, pairs: readonly NamedAddress[]): Promise<void> {
  const path = join(directory, FILE);
  const temporary = `${path}.new`;
  const chunks: Buffer[] = [];
  let crc = 0;
  for (let at = 0; at < pairs.length; at += SLICE) {
    const lines = pairs
      .slice(at, at + SLICE)
      .map(({ name, address, until }) => `${JSON.stringify([name, address, Math.ceil(until)])}\n`);
    const chunk = Buffer.from(lines.join(''));
    crc = crc32(chunk, crc);
    chunks.push(chunk);
    await new Promise(setImmediate);
  }
  try {
    const handle = await open(temporary, 'w', 0o600);
    try {
      await handle.writeFile(`${headOf(pairs.length, crc)}\n`);
      for (const chunk of chunks) await handle.writeFile(chunk);
    } finally {
      await handle.close();
    }
    await rename(temporary, path);
  } catch (error) {
    await rm(temporary, { force: true }).catch(() => undefined);
    throw error;
  }
}
