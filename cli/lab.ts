/** `sluice lab`: a whole network on one machine, from network namespaces, with the real programs in it (design §10). */
import { type Command, InvalidArgumentError } from 'commander';

const defaultLab = 'demo';
const faultNames = ['link', 'process', 'host'] as const;
type FaultName = (typeof faultNames)[number];

function labArgument(text: string): string {
  if (!/^[a-z0-9]{1,24}$/.test(text)) throw new InvalidArgumentError('expected 1 to 24 small letters and digits');
  return text;
}

function faultArgument(text: string): FaultName {
  const fault = faultNames.find((name) => name === text);
  if (fault === undefined) throw new InvalidArgumentError(`expected ${faultNames.join(', ')}`);
  return fault;
}

const say = (text: string): void => void process.stdout.write(`${text}\n`);

interface Name {
  name: string;
}

export function register(program: Command): void {
  const lab = program
    .command('lab')
    .description('a whole network on one machine, with the real programs in it (needs root)')
    .addHelpText(
      'after',
      `
Examples:
  sluice lab demo --once                                          what "npm start" shows, and out again
  sluice lab up && sluice lab status
  sluice lab exec pay-1 -- curl -s http://web.example.test/ip     prints 203.0.113.101
  sluice lab fail gw-a process && sluice lab heal gw-a process
  sluice lab flows -f
  sluice lab down`,
    );
  const verb = (spec: string, description: string): Command =>
    lab.command(spec).description(description).option('--name <name>', 'which lab', labArgument, defaultLab);

  verb('demo', 'lab up, who leaves with which address, live flow records until Ctrl-C, lab down')
    .option('--once', 'end after the table; exit code 0 only if all was as expected', false)
    .action(async ({ name, once }: Name & { once: boolean }) => {
      const { demo } = await import('../lab/demo.ts');
      process.exitCode = await demo({ name, once });
    });

  verb('up', 'build the network and start the programs')
    .option('--no-sluice', 'the network and its servers only, without controller, gateways and nodes')
    .action(async ({ name, sluice }: Name & { sluice: boolean }) => {
      const { up } = await import('../lab/up.ts');
      const { awaitReady } = await import('../lab/ready.ts');
      const world = await up({ name, sluice, progress: say });
      if (sluice) await awaitReady(world);
      say(`lab ${name} is up`);
    });

  verb('down', 'take everything down, also what a crash left').action(async ({ name }: Name) => {
    const { down } = await import('../lab/down.ts');
    say((await down(name)) ? `lab ${name} is down` : `there was no lab ${name}`);
  });

  verb('status', 'what runs and what is in force')
    .option('-o, --output <format>', 'text or json', 'text')
    .action(async ({ name, output }: Name & { output: string }) => {
      const { status, formatStatus } = await import('../lab/status.ts');
      const seen = await status(name);
      say(output === 'json' ? JSON.stringify(seen, null, 2) : formatStatus(seen));
    });

  verb('exec <host> <command...>', 'run a command in a host: sluice lab exec pay-1 -- ping 198.51.100.80').action(
    async (host: string, command: string[], { name }: Name) => {
      const { exec } = await import('../lab/exec.ts');
      process.exitCode = await exec(name, host, command);
    },
  );

  for (const [name, description] of [
    ['fail', 'cut a host’s links, kill its processes, or both'],
    ['heal', 'mend what was cut, start what was killed'],
  ] as const) {
    verb(
      `${name} <host> [what] [which]`,
      `${description} (what: ${faultNames.join(', ')}; which: one of them by name)`,
    ).action(async (host: string, what: string | undefined, which: string | undefined, flags: Name) => {
      const fault = await import('../lab/fault.ts');
      for (const line of await fault[name](flags.name, host, faultArgument(what ?? 'host'), which)) say(line);
    });
  }

  verb('flows', 'flow records of all gateways')
    .option('-f, --follow', 'go on as they come, until Ctrl-C', false)
    .option('-o, --output <format>', 'text or json', 'text')
    .action(async ({ name, follow, output }: Name & { follow: boolean; output: string }) => {
      const { flowFiles, followFlows, formatRecord, readFlows } = await import('../lab/flows.ts');
      const { mustLoadWorld } = await import('../lab/world.ts');
      const files = flowFiles(name, (await mustLoadWorld(name)).topology);
      const show = output === 'json' ? JSON.stringify : formatRecord;
      for (const record of await readFlows(files)) say(show(record));
      if (!follow) return;
      const follower = await followFlows(files, (record) => say(show(record)));
      await new Promise((resolve) => process.once('SIGINT', resolve));
      await follower.close();
    });
}
