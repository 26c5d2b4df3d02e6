/**
 * Key and certificate of a program, replaced so that a crash at any moment leaves a pair that fits. `tls.key.new` is the
 * key that a certificate was asked for with: it stays until there is one, so that whoever lost the answer asks again with
 * the same key. Then `tls.crt.new`, and the renames ca.crt, tls.key, tls.crt; `settle` completes what a crash cut short.
 */
import {
  createPrivateKey,
  createPublicKey,
  type KeyObject,
  type webcrypto as WebCrypto,
  webcrypto,
  X509Certificate,
} from 'node:crypto';
import { access, mkdir, open, readFile, rename, rm } from 'node:fs/promises';
import { join } from 'node:path';
import type { Enrolled } from '../api/enrolment.ts';
import { algorithm, hasUri, privateKeyPem } from './certs.ts';

const MODE = 0o600;

/** On disk when it returns, complete or not there at all; never readable by others. */
export async function writeDurably(directory: string, name: string, text: string): Promise<void> {
  const temporary = join(directory, `${name}.${process.pid}.part`);
  const handle = await open(temporary, 'w', MODE);
  try {
    await handle.chmod(MODE);
    await handle.writeFile(text);
    await handle.sync();
  } finally {
    await handle.close();
  }
  await rename(temporary, join(directory, name));
  await syncDirectory(directory);
}

export async function syncDirectory(directory: string): Promise<void> {
  const handle = await open(directory, 'r');
  try {
    await handle.sync();
  } finally {
    await handle.close();
  }
}

export async function hasCertificate(directory: string): Promise<boolean> {
  for (const name of ['tls.crt', 'tls.key']) {
    const found = await access(join(directory, name)).then(
      () => true,
      () => false,
    );
    if (found) return true;
  }
  return false;
}

/** The key to ask with: that of an attempt before, or a new one, which is on disk first. */
export async function pendingKey(directory: string): Promise<WebCrypto.CryptoKeyPair> {
  await mkdir(directory, { recursive: true, mode: 0o700 });
  const known = await readFile(join(directory, 'tls.key.new'), 'utf8').catch(() => undefined);
  const old = known === undefined ? undefined : await importKeys(known).catch(() => undefined);
  if (old !== undefined) return old;
  const keys = await webcrypto.subtle.generateKey(algorithm, true, ['sign', 'verify']);
  await writeDurably(directory, 'tls.key.new', await privateKeyPem(keys.privateKey));
  return keys;
}

async function importKeys(pem: string): Promise<WebCrypto.CryptoKeyPair> {
  const key = createPrivateKey(pem);
  const spki = createPublicKey(key).export({ type: 'spki', format: 'der' });
  return {
    privateKey: await webcrypto.subtle.importKey(
      'pkcs8',
      key.export({ type: 'pkcs8', format: 'der' }),
      algorithm,
      true,
      ['sign'],
    ),
    publicKey: await webcrypto.subtle.importKey('spki', spki, algorithm, true, ['verify']),
  };
}

/** Puts in place what was given for the pending key. Throws, and changes nothing, where it does not fit it or `uri`. */
export async function install(directory: string, { certificate, ca }: Enrolled, uri: string): Promise<void> {
  const parsed = new X509Certificate(certificate);
  if (!parsed.checkPrivateKey(await readKey(directory, 'tls.key.new')))
    throw new Error('the certificate is for another key');
  if (!hasUri(parsed, uri)) throw new Error(`the certificate is not for ${uri}`);
  const cas = authorities(ca);
  if (!cas.some((one) => one.ca && parsed.verify(one.publicKey))) throw new Error('the certificate is of another CA');
  await writeDurably(directory, 'ca.crt', cas.map(String).join(''));
  await writeDurably(directory, 'tls.crt.new', String(parsed));
  await settle(directory);
}

/** Every certificate of a PEM file, as text of our own making. */
export function authorities(pem: string): X509Certificate[] {
  const texts = pem.match(/-----BEGIN CERTIFICATE-----[^-]+-----END CERTIFICATE-----/g) ?? [];
  return texts.map((text) => new X509Certificate(text));
}

async function readKey(directory: string, name: string): Promise<KeyObject> {
  return createPrivateKey(await readFile(join(directory, name), 'utf8'));
}

/** At the start of a program, before it reads its files: completes a replacement that a crash cut short. */
export async function settle(directory: string): Promise<void> {
  const text = await readFile(join(directory, 'tls.crt.new'), 'utf8').catch(() => undefined);
  if (text === undefined) return;
  const fits = async (name: string): Promise<boolean> => {
    try {
      return new X509Certificate(text).checkPrivateKey(await readKey(directory, name));
    } catch {
      return false;
    }
  };
  if (await fits('tls.key.new')) await rename(join(directory, 'tls.key.new'), join(directory, 'tls.key'));
  if (await fits('tls.key')) {
    await rename(join(directory, 'tls.crt.new'), join(directory, 'tls.crt'));
    await syncDirectory(directory);
  } else await rm(join(directory, 'tls.crt.new'), { force: true });
}
