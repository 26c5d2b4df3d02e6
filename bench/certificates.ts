/** Certificates of a benchmark's controller (`ctl`) and of the one gateway that it has (`gw-a`), each in a folder of its name. */
import { join } from 'node:path';
import { createCa, issueCertificate } from '../daemon/certs.ts';

export async function issueCertificates(state: string): Promise<void> {
  await createCa(join(state, 'ca'));
  for (const [role, name] of [
    ['controller', 'ctl'],
    ['gateway', 'gw-a'],
  ] as const) {
    const addresses = ['127.0.0.1'];
    await issueCertificate({ caDir: join(state, 'ca'), outDir: join(state, name), role, name, addresses });
  }
}
