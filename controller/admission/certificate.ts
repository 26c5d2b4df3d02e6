/**
 * The webhook's certificate and key, read again when the files change: whoever renews them (cert-manager, a Secret in a
 * volume) tells nobody. Asked by time, since a volume of Kubernetes changes by swapping links, which watches miss.
 */
import { X509Certificate } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { createSecureContext } from 'node:tls';
import type { Logger } from '../../daemon/log.ts';

export interface CertificateFiles {
  /** PEM; a chain has the leaf first. */
  cert: string;
  key: string;
}

export interface Certificate {
  cert: Buffer;
  key: Buffer;
  /** Milliseconds since the epoch. */
  expires: number;
}

/** Throws what is the matter with them. */
export async function readCertificate(files: CertificateFiles): Promise<Certificate> {
  const [cert, key] = await Promise.all([readFile(files.cert), readFile(files.key)]);
  // Half of a renewal is refused here: the key must be the certificate's.
  createSecureContext({ cert, key });
  return { cert, key, expires: Date.parse(new X509Certificate(cert).validTo) };
}

/** `use` is called with every certificate after `first`. What cannot be read leaves the one before in use. */
export function watchCertificate(
  files: CertificateFiles,
  first: Certificate,
  use: (certificate: Certificate) => void,
  log: Logger,
  everyMs: number,
): () => void {
  let last = first;
  let failure: string | undefined;
  let reading = false;
  const look = async (): Promise<void> => {
    if (reading) return;
    reading = true;
    try {
      const now = await readCertificate(files);
      failure = undefined;
      if (now.cert.equals(last.cert) && now.key.equals(last.key)) return;
      use(now);
      last = now;
      log.info(
        { expires: new Date(now.expires).toISOString() },
        'the certificate of the admission webhook was renewed',
      );
    } catch (error) {
      const reason = String(error);
      // Once: it may stay so for long.
      if (reason !== failure)
        log.warn({ reason }, 'the certificate of the admission webhook cannot be read: the last one is used');
      failure = reason;
    } finally {
      reading = false;
    }
  };
  const timer = setInterval(() => void look(), everyMs);
  timer.unref();
  return () => clearInterval(timer);
}
