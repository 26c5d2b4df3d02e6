/**
 * Certificate requests (PKCS#10, RFC 2986) of P-256 keys. Of a request only the key counts, and that its sender has it:
 * who the sender is, the token or the old certificate says. Subject, extensions and attributes are not looked at.
 */
import { createHash, type webcrypto as WebCrypto, webcrypto } from 'node:crypto';
import { fail, ok, type Result } from '../api/result.ts';
import { algorithm, loadX509 } from './certs.ts';

export interface RequestedKey {
  key: WebCrypto.CryptoKey;
  /** SHA-256 of its SPKI, lower-case hexadecimal. */
  hash: string;
}

/** SEQUENCE of SEQUENCE id-ecPublicKey prime256v1 and BIT STRING of an uncompressed point (RFC 5480): all but the point. */
const P256_SPKI = Buffer.from('3059301306072a8648ce3d020106082a8648ce3d03010703420004', 'hex');
const P256_SPKI_LENGTH = 91;

export async function makeCsr(keys: WebCrypto.CryptoKeyPair): Promise<string> {
  const x509 = await loadX509();
  const csr = await x509.Pkcs10CertificateRequestGenerator.create({
    name: 'CN=sluice',
    keys,
    signingAlgorithm: algorithm,
  });
  return `${csr.toString('pem')}\n`;
}

/** `der` is anybody's; at most as long as a request may be. */
export async function readCsr(der: Uint8Array): Promise<Result<RequestedKey>> {
  const x509 = await loadX509();
  try {
    const csr = new x509.Pkcs10CertificateRequest(der);
    const spki = Buffer.from(csr.publicKey.rawData);
    if (spki.length !== P256_SPKI_LENGTH || !spki.subarray(0, P256_SPKI.length).equals(P256_SPKI)) {
      return fail('csr: expected a P-256 key');
    }
    if (!(await csr.verify())) return fail('csr: it is not signed by its own key');
    const key = await webcrypto.subtle.importKey('spki', spki, algorithm, true, ['verify']);
    return ok({ key, hash: createHash('sha256').update(spki).digest('hex') });
  } catch {
    // The library says in many words and classes that it is none.
    return fail('csr: no certificate request');
  }
}
