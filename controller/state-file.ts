/**
 * JSON files of the state directory: written beside, synced and renamed, so that a crash leaves the old or the new one.
 * A file that is absent or damaged is read as undefined: everything in it can be computed again, if less stably.
 */
import { mkdir, open, readFile, rename } from 'node:fs/promises';
import { join } from 'node:path';

export async function readJson(directory: string, name: string): Promise<unknown> {
  try {
    return JSON.parse(await readFile(join(directory, name), 'utf8'));
  } catch {
    return undefined;
  }
}

export async function writeJson(directory: string, name: string, value: unknown): Promise<void> {
  await writeParts(directory, name, [JSON.stringify(value)]);
}

/** Characters that are made before others have their turn: some milliseconds. */
const PART = 1 << 18;

/** The same of a text that is long to make: `parts` are asked for as they are written. */
export async function writeParts(directory: string, name: string, parts: Iterable<string>): Promise<void> {
  await mkdir(directory, { recursive: true, mode: 0o700 });
  const file = join(directory, name);
  const handle = await open(`${file}.new`, 'w', 0o600);
  try {
    let text = '';
    for (const part of parts) {
      text += part;
      if (text.length < PART) continue;
      await handle.write(text);
      text = '';
    }
    await handle.write(text);
    await handle.sync();
  } finally {
    await handle.close();
  }
  await rename(`${file}.new`, file);
}
