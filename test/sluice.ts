/**
 * The command `sluice`, run in the test's own process.
 */
import { runCli } from '../cli/program.ts';

export interface Ran {
  code: number;
  out: string;
  err: string;
}

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
