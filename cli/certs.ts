/** `sluice certs`: a CA of the installation's own, and a certificate per program (daemon/certs.ts). */
import { join } from 'node:path';
import { Argument, type Command, InvalidArgumentError } from 'commander';
import { canonicalAddress } from '../api/address.ts';
import { type CertRole, createCa, issueCertificate } from '../daemon/certs.ts';
import { nameArgument } from './gateway.ts';
import { print } from './output.ts';

function addressArgument(text: string, before: string[] = []): string[] {
  const address = canonicalAddress(text);
  if (!address.ok) throw new InvalidArgumentError(address.error);
  return [...before, address.value];
}

export function register(program: Command): void {
  const certs = program.command('certs').description('make the certificates of the plan stream (mutual TLS)');
  certs
    .command('ca')
    .description('make a certificate authority: DIR/ca.crt and DIR/ca.key, valid for ten years')
    .requiredOption('--dir <dir>', 'where to')
    .addHelpText('after', '\nExample:\n  sluice certs ca --dir /etc/sluice/ca')
    .action(async ({ dir }: { dir: string }, command: Command) => {
      await createCa(dir);
      print(command, `${join(dir, 'ca.crt')} (keep ca.key where no gateway or node can read it)`);
    });
  certs
    .command('issue')
    .description('issue a certificate for a program, valid for a year: OUT/tls.crt, OUT/tls.key, OUT/ca.crt')
    .addArgument(new Argument('<role>', 'what runs with it').choices(['controller', 'gateway', 'node']))
    .addArgument(new Argument('<name>', 'name of the gateway or node').argParser(nameArgument))
    .requiredOption('--dir <dir>', 'directory of the CA')
    .option('--out <dir>', 'where to (default: DIR/ROLE-NAME)')
    .option('--address <ip>', 'address of the machine; may be given again', addressArgument)
    .addHelpText(
      'after',
      `
Examples:
  sluice certs issue controller ctl --dir /etc/sluice/ca --out /etc/sluice/certs --address 10.0.0.10
  sluice certs issue gateway gw-a --dir /etc/sluice/ca`,
    )
    .action(
      async (
        role: CertRole,
        name: string,
        flags: { dir: string; out?: string; address?: string[] },
        command: Command,
      ) => {
        const outDir = flags.out ?? join(flags.dir, `${role}-${name}`);
        await issueCertificate({ caDir: flags.dir, outDir, role, name, addresses: flags.address ?? [] });
        print(command, outDir);
      },
    );
}
