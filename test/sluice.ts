/**
 * The command `sluice`, run in the test's own process; and where what it reads lies.
 */
import { readdirSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { runCli } from '../cli/program.ts';

export interface Ran {
  code: number;
  out: string;
  err: string;
}

/** Compiled tests lie anywhere below the repository. */
function rootOf(directory: string): string {
  if (readdirSync(directory).includes('tsconfig.json')) return directory;
  if (dirname(directory) === directory) throw new Error('the repository is not above the test');
  return rootOf(dirname(directory));
}
/** The folder `examples`. */
export const examplesFolder = join(rootOf(import.meta.dirname), 'examples');

/** As it writes into a pipe. */
export const sluice = (...args: string[]): Promise<Ran> => runWith(false, args);
/** As it writes on a terminal with colours. */
export const sluiceInColours = (...args: string[]): Promise<Ran> => runWith(true, args);

async function runWith(colours: boolean, args: string[]): Promise<Ran> {
  let out = '';
  let err = '';
  const code = await runCli(args, {
    writeOut: (text) => {
      out += text;
    },
    writeErr: (text) => {
      err += text;
    },
    getOutHasColors: () => colours,
  });
  return { code, out, err };
}
