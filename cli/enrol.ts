/**
 * `sluice enrol`: gets a gateway or node its certificate by a one-time token. The key is made here and stays here; until
 * there is a certificate it lies in DIR as `tls.key.new`, so that the same token may be tried again if the answer was lost.
 */
import type { Command } from 'commander';
import { parseToken, type Token } from '../api/enrolment.ts';
import { urlArgument } from './gateway.ts';
import { Exit, print } from './output.ts';

interface Flags {
  controller: string;
  token: string;
  certs: string;
  force?: true;
}

export function register(program: Command): void {
  program
    .command('enrol')
    .description('get the certificate of this gateway or node by a one-time token (sluice certs token)')
    .requiredOption('--controller <url>', 'where the controller enrols: its --enrol', urlArgument)
    // Its form is checked below: commander would print what it refuses.
    .requiredOption('--token <token>', 'the token; - reads it from standard input, where other users cannot see it')
    .requiredOption('--certs <dir>', 'gets ca.crt, tls.crt, tls.key')
    .option('--force', 'replace the key and certificate that are there')
    .addHelpText(
      'after',
      `
Exit codes: 0 done, 1 refused or not reached (try the same token again within ten minutes), 2 used wrongly.

Examples:
  sluice enrol --controller https://10.0.0.10:7795 --token sluice1.… --certs /etc/sluice/certs
  ssh ctl sluice certs token node node-a --dir /etc/sluice/ca --state /var/lib/sluice/controller |
    sluice enrol --controller https://10.0.0.10:7795 --token - --certs /etc/sluice/certs`,
    )
    .action(async (flags: Flags, command: Command) => {
      const parsed = parseToken(flags.token === '-' ? await readLine() : flags.token.trim());
      if (!parsed.ok) throw new Exit(2, parsed.error);
      await enrolHere(flags, parsed.value, command);
    });
}

async function enrolHere({ controller, certs, force }: Flags, token: Token, command: Command): Promise<void> {
  const { hasCertificate, install, pendingKey, settle } = await import('../daemon/cert-files.ts');
  const { enrol } = await import('../daemon/enrol-client.ts');
  const { X509Certificate } = await import('node:crypto');
  // What a crash of this verb left half done.
  await settle(certs);
  if (!force && (await hasCertificate(certs))) {
    throw new Exit(1, `${certs} holds a certificate or key already; --force replaces it`);
  }
  const enrolled = await enrol(controller, token, await pendingKey(certs));
  const names = new X509Certificate(enrolled.certificate).subjectAltName ?? '';
  const uri = /^URI:(sluice:\/\/(?:gateway|node)\/[-.a-z0-9]+)$/.exec(names)?.[1];
  if (uri === undefined) throw new Exit(1, 'the controller gave a certificate that names no gateway or node');
  await install(certs, enrolled, uri);
  print(command, `${certs}: certificate of ${uri.slice('sluice://'.length)}`);
}

/** The first line; a terminal is not asked, what comes from it comes. */
async function readLine(): Promise<string> {
  let text = '';
  for await (const chunk of process.stdin.setEncoding('utf8')) {
    text += chunk;
    if (text.length > 1_000 || text.includes('\n')) break;
  }
  return text.split('\n')[0]?.trim() ?? '';
}
