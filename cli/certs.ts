/** `sluice certs`: a CA of the installation's own, and a certificate per program (daemon/certs.ts). */
import { X509Certificate } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { Argument, type Command, InvalidArgumentError, Option } from 'commander';
import { canonicalAddress } from '../api/address.ts';
import { sha256 } from '../api/enrolment.ts';
import type { PlanRole } from '../api/plan.ts';
import { parseTtl, TokenStore } from '../controller/tokens.ts';
import { type CertRole, createCa, issueCertificate } from '../daemon/certs.ts';
import { nameArgument } from './gateway.ts';
import { Exit, print, printError } from './output.ts';

const HOUR = 3600 * 1000;

function ttlArgument(text: string): number {
  const ttl = parseTtl(text);
  if (!ttl.ok) throw new InvalidArgumentError(ttl.error);
  return ttl.value;
}

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
  certs
    .command('token')
    .description(
      'make a token with which a gateway or node gets a certificate, once (sluice enrol): it is printed, and kept nowhere',
    )
    .addArgument(new Argument('<role>', 'what it is for').choices(['gateway', 'node']))
    .addArgument(new Argument('<name>', 'name of the gateway or node').argParser(nameArgument))
    .requiredOption('--dir <dir>', 'directory of the CA: the fingerprint of its ca.crt is part of the token')
    .requiredOption('--state <dir>', 'state directory of the controller, which may be running')
    .addOption(
      new Option('--ttl <time>', 'how long it may be used: 1m to 7d').argParser(ttlArgument).default(HOUR, '1h'),
    )
    .addHelpText(
      'after',
      `
Example:
  sluice certs token gateway gw-a --dir /etc/sluice/ca --state /var/lib/sluice/controller --ttl 30m`,
    )
    .action(
      async (
        role: PlanRole,
        name: string,
        { dir, state, ttl }: { dir: string; state: string; ttl: number },
        command: Command,
      ) => {
        // Its key is not needed for that.
        const fingerprint = sha256(new X509Certificate(await readFile(join(dir, 'ca.crt'))).raw);
        const now = Date.now();
        const token = await new TokenStore(state).make(role, name, fingerprint, ttl, now).catch((error: unknown) => {
          throw new Exit(1, `no token was made: ${(error as Error).message}`);
        });
        print(command, token);
        const until = new Date(now + ttl).toISOString();
        printError(
          command,
          `for ${role}/${name}, until ${until}: sluice enrol --controller https://ADDRESS:PORT --token - --certs DIR`,
        );
      },
    );
}
