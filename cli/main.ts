/** Entry of the command `sluice` (bin/sluice). Everything is in program.ts. */
import { runCli } from './program.ts';

// `sluice get … | head` closes our output early; that is no failure.
process.stdout.on('error', (error: NodeJS.ErrnoException) => {
  if (error.code === 'EPIPE') process.exit(0);
  throw error;
});
process.exit(await runCli(process.argv.slice(2)));
