/**
 * Which network devices there are, as one text to be compared: one that was made anew under its old name has another
 * index.
 */
import { readdir, readFile } from 'node:fs/promises';

const DIRECTORY = '/sys/class/net';

export async function deviceList(): Promise<string> {
  const names = await readdir(DIRECTORY).catch(() => []);
  const devices = await Promise.all(
    names.map(
      async (name) => `${name} ${(await readFile(`${DIRECTORY}/${name}/ifindex`, 'utf8').catch(() => '')).trim()}`,
    ),
  );
  return devices.sort().join('\n');
}
