/** stub, see the next commit */
import type { SecureContextOptions } from 'node:tls';
import type { PlanRole } from '../api/plan.ts';

export type CertRole = PlanRole | 'controller';

export interface IssueOptions {
  /** Directory with `ca.crt` and `ca.key`. */
  caDir: string;
  /** Gets `ca.crt`, `tls.crt`, `tls.key`. */
  outDir: string;
  role: CertRole;
  /** Ignored in the URI of a controller. */
  name: string;
  addresses: string[];
}

export async function createCa(dir: string): Promise<void> {
  throw new Error(`not built yet: ${dir}`);
}
export async function issueCertificate(options: IssueOptions): Promise<void> {
  throw new Error(`not built yet: ${options.name}`);
}
/** Key, certificate and CA of a directory; both ends add `requestCert`/`rejectUnauthorized` themselves. */
export function tlsOptions(dir: string): SecureContextOptions {
  throw new Error(`not built yet: ${dir}`);
}
