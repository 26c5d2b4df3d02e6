/**
 * What is said at enrolment and renewal: the token that a person pastes, and the JSON of requests and answers.
 * A token is `sluice1.ID.SECRET.FINGERPRINT`: 8 random bytes by which files and logs name it, 32 that are secret, and the
 * SHA-256 of the CA's certificate (the whole of it, as `openssl x509 -fingerprint -sha256` prints it: of a certificate
 * with the same key but another name or validity nothing would be noticed by a hash of the key). base64url without
 * padding, so that one token has one text. Left out: who may do what (controller/enrolment.ts).
 */
import { createHash, randomBytes, timingSafeEqual } from 'node:crypto';
import type { PlanRole } from './plan.ts';
import { isPeerName } from './plan-stream.ts';
import { fail, ok, type Result } from './result.ts';

export const CA_PATH = '/v1/ca';
export const ENROL_PATH = '/v1/enrol';
/** On the plan stream's port, by whoever has a certificate already. */
export const RENEW_PATH = '/v1/renew';

/** Bytes of a request: a CSR of a P-256 key has 500 or so. */
export const MAX_REQUEST = 8 * 1024;
/** Bytes of an answer: a certificate, and CAs. */
export const MAX_ANSWER = 64 * 1024;
const MAX_REASON = 300;

export interface Token {
  /** 16 hexadecimal digits; not secret. */
  id: string;
  secret: Uint8Array;
  /** SHA-256 of the CA's certificate (DER), lower-case hexadecimal. */
  fingerprint: string;
}

const PREFIX = 'sluice1';
const ID_BYTES = 8;
const SECRET_BYTES = 32;
const HASH_BYTES = 32;

export const sha256 = (bytes: Uint8Array | string): string => createHash('sha256').update(bytes).digest('hex');

export function newToken(fingerprint: string): Token {
  return { id: randomBytes(ID_BYTES).toString('hex'), secret: randomBytes(SECRET_BYTES), fingerprint };
}

export function formatToken({ id, secret, fingerprint }: Token): string {
  const parts = [Buffer.from(id, 'hex'), Buffer.from(secret), Buffer.from(fingerprint, 'hex')];
  return [PREFIX, ...parts.map((part) => part.toString('base64url'))].join('.');
}

/** The error says what is wrong, and nothing of the token. */
export function parseToken(text: string): Result<Token> {
  const parts = text.length > 200 ? [] : text.split('.');
  const [prefix, id, secret, fingerprint] = parts;
  if (parts.length !== 4 || prefix !== PREFIX)
    return fail(`expected a token, ${PREFIX}.…, as sluice certs token prints it`);
  const bytes = [bytesOf(id, ID_BYTES), bytesOf(secret, SECRET_BYTES), bytesOf(fingerprint, HASH_BYTES)] as const;
  if (bytes[0] === undefined || bytes[1] === undefined || bytes[2] === undefined) {
    return fail('the token is damaged: was all of it copied?');
  }
  return ok({ id: bytes[0].toString('hex'), secret: bytes[1], fingerprint: bytes[2].toString('hex') });
}

/** Of the one text that these bytes have: Node's decoder takes many. */
function bytesOf(text: unknown, length: number): Buffer | undefined {
  if (typeof text !== 'string' || text.length !== Math.ceil((length * 4) / 3)) return undefined;
  const bytes = Buffer.from(text, 'base64url');
  return bytes.length === length && bytes.toString('base64url') === text ? bytes : undefined;
}

/** The hash under which a secret is kept, compared in the same time whatever it is. */
export function isSecretOf(secret: Uint8Array, hash: string): boolean {
  const known = Buffer.from(hash, 'hex');
  const told = createHash('sha256').update(secret).digest();
  return known.length === told.length && timingSafeEqual(known, told);
}

/** What the controller keeps of a token. */
export interface TokenRecord {
  role: PlanRole;
  name: string;
  /** SHA-256 of the secret. */
  hash: string;
  /** Milliseconds since the epoch. */
  made: number;
  expires: number;
}

/** That a token was used: by which key, and what it was given. */
export interface TokenUse {
  at: number;
  /** SHA-256 of the public key (SPKI). */
  key: string;
  certificate: string;
}

const isTime = (value: unknown): value is number => Number.isSafeInteger(value) && (value as number) >= 0;
const isHash = (value: unknown): value is string => typeof value === 'string' && /^[0-9a-f]{64}$/.test(value);

export function parseTokenRecord(value: unknown): Result<TokenRecord> {
  if (!isObject(value)) return fail('expected an object');
  const { role, name, hash, made, expires } = value;
  if (role !== 'gateway' && role !== 'node') return fail('expected role "gateway" or "node"');
  if (!isPeerName(name) || !isHash(hash) || !isTime(made) || !isTime(expires)) {
    return fail('expected name, hash, made, expires');
  }
  return ok({ role, name, hash, made, expires });
}

export function parseTokenUse(value: unknown): Result<TokenUse> {
  if (!isObject(value)) return fail('expected an object');
  const { at, key, certificate } = value;
  if (!isTime(at) || !isHash(key) || typeof certificate !== 'string') return fail('expected at, key, certificate');
  return ok({ at, key, certificate });
}

export interface EnrolRequest {
  id: string;
  secret: Uint8Array;
  /** DER of a PKCS#10 request; not looked at. */
  csr: Uint8Array;
}

/** `{"id": …, "secret": …, "csr": PEM}`: the fingerprint is the client's own business. */
export function formatEnrolRequest({ id, secret }: Token, csr: string): string {
  return JSON.stringify({ id, secret: Buffer.from(secret).toString('base64url'), csr });
}

export function parseEnrolRequest(text: string): Result<EnrolRequest> {
  const body = parseObject(text);
  if (!body.ok) return body;
  const { id } = body.value;
  const secret = bytesOf(body.value.secret, SECRET_BYTES);
  if (typeof id !== 'string' || !/^[0-9a-f]{16}$/.test(id)) return fail('expected id, 16 hexadecimal digits');
  if (secret === undefined) return fail('expected secret, 32 bytes in base64url');
  const csr = parsePem(body.value.csr);
  return csr.ok ? ok({ id, secret, csr: csr.value }) : csr;
}

export function parseRenewRequest(text: string): Result<Uint8Array> {
  const body = parseObject(text);
  return body.ok ? parsePem(body.value.csr) : body;
}

function parsePem(text: unknown): Result<Uint8Array> {
  const match =
    typeof text === 'string'
      ? /^-----BEGIN CERTIFICATE REQUEST-----\r?\n([A-Za-z0-9+/=\r\n]+)-----END CERTIFICATE REQUEST-----\s*$/.exec(text)
      : null;
  if (match === null) return fail('expected csr, a PEM certificate request');
  return ok(Uint8Array.from(Buffer.from(match[1] ?? '', 'base64')));
}

/** What a program gets: its certificate and the CAs that it is to believe, both PEM. */
export interface Enrolled {
  certificate: string;
  ca: string;
}

/** An answer that is no success carries `{"error": …}`. */
export function parseAnswer(text: string): Result<Enrolled> {
  const body = parseObject(text);
  if (!body.ok) return body;
  const { certificate, ca } = body.value;
  if (typeof certificate !== 'string' || typeof ca !== 'string') return fail('expected certificate and ca');
  return ok({ certificate, ca });
}

/** For a person to read: of a stranger's answer no more than fits in a line. */
export function errorOf(text: string): string | undefined {
  const body = parseObject(text);
  const error = body.ok ? body.value.error : undefined;
  return typeof error === 'string' ? error.slice(0, MAX_REASON) : undefined;
}

function parseObject(text: string): Result<Record<string, unknown>> {
  try {
    const value: unknown = JSON.parse(text);
    if (isObject(value)) return ok(value);
  } catch {
    // Said below.
  }
  return fail('expected a JSON object');
}

const isObject = (value: unknown): value is Record<string, unknown> =>
  typeof value === 'object' && value !== null && !Array.isArray(value);
