/**
 * Certificates of the plan stream: a small CA of the installation's own, and one certificate per program whose URI
 * subject alternative name says who it is (`sluice://gateway/gw-a`). EC P-256, RFC 5280. A certificate directory holds
 * `ca.crt`, `tls.crt`, `tls.key`; that of the CA `ca.crt` and `ca.key`. A gateway or node reads its files at every
 * connection. Beside it: how a program asks for a certificate (csr.ts), where it puts it (cert-files.ts), and how it keeps
 * it from expiring (renewal.ts). Left out: revocation lists as X.509 has them (controller/revoked.ts has one of its own).
 */
import { createPrivateKey, type webcrypto as WebCrypto, webcrypto, X509Certificate } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { mkdir, open, readFile, rename } from 'node:fs/promises';
import { isIP } from 'node:net';
import { join } from 'node:path';
import type { PeerCertificate, SecureContextOptions } from 'node:tls';
import { sha256 } from '../api/enrolment.ts';
import { ADMISSION_SERVICE, CERT_URI_PREFIX, CONTROLLER_NAMESPACE } from '../api/names.ts';
import type { PlanRole } from '../api/plan.ts';
import { isPeerName } from '../api/plan-stream.ts';

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

export const algorithm = { name: 'ECDSA', namedCurve: 'P-256', hash: 'SHA-256' };
const ADMISSION_HOST = `${ADMISSION_SERVICE}.${CONTROLLER_NAMESPACE}.svc`;
const DAY = 24 * 3600 * 1000;
const CA_DAYS = 3650;
const LEAF_DAYS = 365;
/** Certificates are valid from a little earlier, for machines whose clock is behind. */
const CLOCK_SKEW = 5 * 60 * 1000;

/** Loaded on use: it takes 0.1 s, and few programs make certificates. It wants reflect-metadata first. */
export async function loadX509(): Promise<typeof import('@peculiar/x509')> {
  await import('reflect-metadata');
  return import('@peculiar/x509');
}

const serial = (): string => {
  const bytes = Buffer.from(webcrypto.getRandomValues(new Uint8Array(16)));
  // RFC 5280 §4.1.2.2: positive.
  bytes[0] = (bytes[0] ?? 0) & 0x7f;
  return bytes.toString('hex');
};

/** Complete or not there at all; a key is never readable by others, not even for a moment. */
async function writeFile(file: string, text: string, mode: number): Promise<void> {
  const temporary = `${file}.${process.pid}.new`;
  const handle = await open(temporary, 'w', mode);
  try {
    await handle.chmod(mode);
    await handle.writeFile(text);
  } finally {
    await handle.close();
  }
  await rename(temporary, file);
}

function pem(label: string, der: ArrayBuffer): string {
  const lines =
    Buffer.from(der)
      .toString('base64')
      .match(/.{1,64}/g) ?? [];
  return `-----BEGIN ${label}-----\n${lines.join('\n')}\n-----END ${label}-----\n`;
}
export async function privateKeyPem(key: WebCrypto.CryptoKey): Promise<string> {
  return pem('PRIVATE KEY', await webcrypto.subtle.exportKey('pkcs8', key));
}

export function certificateUri(role: CertRole, name: string): string {
  return role === 'controller' ? `${CERT_URI_PREFIX}controller` : `${CERT_URI_PREFIX}${role}/${name}`;
}

/** Refuses to replace a CA: every certificate that it issued would be worthless. */
export async function createCa(dir: string, now: number = Date.now()): Promise<void> {
  const x509 = await loadX509();
  await mkdir(dir, { recursive: true, mode: 0o700 });
  const exists = await open(join(dir, 'ca.key'), 'r').catch(() => undefined);
  if (exists !== undefined) {
    await exists.close();
    throw new Error(`${join(dir, 'ca.key')} exists already`);
  }
  const keys = await webcrypto.subtle.generateKey(algorithm, true, ['sign', 'verify']);
  const certificate = await x509.X509CertificateGenerator.createSelfSigned({
    serialNumber: serial(),
    name: 'CN=Sluice CA',
    notBefore: new Date(now - CLOCK_SKEW),
    notAfter: new Date(now + CA_DAYS * DAY),
    signingAlgorithm: algorithm,
    keys,
    extensions: [
      new x509.BasicConstraintsExtension(true, 0, true),
      new x509.KeyUsagesExtension(x509.KeyUsageFlags.keyCertSign | x509.KeyUsageFlags.cRLSign, true),
      await x509.SubjectKeyIdentifierExtension.create(keys.publicKey),
    ],
  });
  await writeFile(join(dir, 'ca.key'), await privateKeyPem(keys.privateKey), 0o600);
  await writeFile(join(dir, 'ca.crt'), `${certificate.toString('pem')}\n`, 0o644);
}

/** A CA whose key this program holds. */
export interface Issuer {
  /** `ca.crt`, PEM: the CA's certificate first; others that programs are to believe may follow. */
  ca: string;
  /** SHA-256 of the CA's certificate, lower-case hexadecimal. */
  fingerprint: string;
  /** A certificate (PEM) that says that the holder of this key is (role, name). */
  sign(key: WebCrypto.CryptoKey, subject: Subject, now?: number): Promise<string>;
}

export type Subject = Pick<IssueOptions, 'role' | 'name' | 'addresses'>;

export async function openIssuer(caDir: string): Promise<Issuer> {
  const x509 = await loadX509();
  const caText = await readFile(join(caDir, 'ca.crt'), 'utf8');
  const own = new X509Certificate(caText);
  const ca = new x509.X509Certificate(own.raw);
  const keyText = await readFile(join(caDir, 'ca.key'), 'utf8');
  if (!own.checkPrivateKey(createPrivateKey(keyText))) {
    throw new Error(`${join(caDir, 'ca.key')} is not the key of the first certificate of ca.crt`);
  }
  const keyDer = Buffer.from(keyText.replace(/-----[^-]+-----|\s/g, ''), 'base64');
  const caKey = await webcrypto.subtle.importKey('pkcs8', keyDer, algorithm, false, ['sign']);
  return {
    ca: caText,
    fingerprint: sha256(own.raw),
    async sign(publicKey, { role, name, addresses }, now = Date.now()) {
      check(name, addresses);
      const certificate = await x509.X509CertificateGenerator.create({
        serialNumber: serial(),
        subject: `CN=${role} ${name}`,
        issuer: ca.subject,
        notBefore: new Date(now - CLOCK_SKEW),
        // No longer than the CA itself, or verifiers would only see it fail one day with a puzzling reason.
        notAfter: new Date(Math.min(now + LEAF_DAYS * DAY, ca.notAfter.getTime())),
        signingAlgorithm: algorithm,
        publicKey,
        signingKey: caKey,
        extensions: [
          new x509.BasicConstraintsExtension(false, undefined, true),
          new x509.KeyUsagesExtension(x509.KeyUsageFlags.digitalSignature, true),
          new x509.ExtendedKeyUsageExtension([x509.ExtendedKeyUsage.serverAuth, x509.ExtendedKeyUsage.clientAuth]),
          new x509.SubjectAlternativeNameExtension([
            { type: 'url', value: certificateUri(role, name) },
            // So that a controller can serve the webhook with it.
            ...(role === 'controller' ? [{ type: 'dns' as const, value: ADMISSION_HOST }] : []),
            ...addresses.map((value) => ({ type: 'ip' as const, value })),
          ]),
          await x509.AuthorityKeyIdentifierExtension.create(ca.publicKey),
        ],
      });
      return `${certificate.toString('pem')}\n`;
    },
  };
}

function check(name: string, addresses: readonly string[]): void {
  if (!isPeerName(name)) throw new Error(`expected a name of lower-case letters, digits, "-" and ".", got "${name}"`);
  for (const address of addresses) {
    if (isIP(address) === 0 || address.includes('%')) throw new Error(`expected an IP address, got "${address}"`);
  }
}

export async function issueCertificate(options: IssueOptions, now: number = Date.now()): Promise<void> {
  const { caDir, outDir } = options;
  check(options.name, options.addresses);
  const issuer = await openIssuer(caDir);
  const keys = await webcrypto.subtle.generateKey(algorithm, true, ['sign', 'verify']);
  const certificate = await issuer.sign(keys.publicKey, options, now);
  await mkdir(outDir, { recursive: true, mode: 0o700 });
  await writeFile(join(outDir, 'tls.key'), await privateKeyPem(keys.privateKey), 0o600);
  await writeFile(join(outDir, 'tls.crt'), certificate, 0o644);
  await writeFile(join(outDir, 'ca.crt'), issuer.ca, 0o644);
}

/** Key, certificate and CA of a directory; both ends add `requestCert` and `rejectUnauthorized` themselves. */
export function tlsOptions(dir: string): SecureContextOptions {
  const file = (name: string): Buffer => readFileSync(join(dir, name));
  return { ca: file('ca.crt'), cert: file('tls.crt'), key: file('tls.key'), minVersion: 'TLSv1.3' };
}

/**
 * Whether a verified peer certificate names this URI. Node prints names as `URI:x, IP Address:y` and puts a name that
 * holds a comma or quote in JSON quotes; those are taken out first, so that the split at ", " cannot be fooled by one.
 */
export function hasUri(certificate: X509Certificate | PeerCertificate, uri: string): boolean {
  return alternativeNames(certificate).includes(`URI:${uri}`);
}

function alternativeNames(certificate: X509Certificate | PeerCertificate): string[] {
  const names = certificate instanceof X509Certificate ? certificate.subjectAltName : certificate.subjectaltname;
  return (names ?? '').replaceAll(/"(?:[^"\\]|\\.)*"/g, '""').split(', ');
}

/** Every gateway and node that it names: mostly one. */
export function clientsOf(certificate: X509Certificate): { role: PlanRole; name: string }[] {
  const found: { role: PlanRole; name: string }[] = [];
  for (const item of alternativeNames(certificate)) {
    for (const role of ['gateway', 'node'] as const) {
      const prefix = `URI:${certificateUri(role, '')}`;
      const name = item.slice(prefix.length);
      if (item.startsWith(prefix) && isPeerName(name)) found.push({ role, name });
    }
  }
  return found;
}
