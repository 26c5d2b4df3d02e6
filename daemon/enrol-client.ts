/**
 * A program's side of enrolment and renewal. Enrolment talks to a stranger first: it asks for the CA's certificate, which
 * is no secret, and believes it if it has the token's fingerprint; only then, over a second connection that is verified by
 * that CA and to a controller, does it send the token. Renewal is one request on the plan stream's port, with the
 * certificate that it is about to replace. Answers are bounded in bytes and time; the keys never leave.
 */
import type { webcrypto as WebCrypto, X509Certificate } from 'node:crypto';
import { connect } from 'node:http2';
import { request } from 'node:https';
import { type ConnectionOptions, connect as connectTls, type PeerCertificate } from 'node:tls';
import {
  CA_PATH,
  ENROL_PATH,
  type Enrolled,
  errorOf,
  formatEnrolRequest,
  MAX_ANSWER,
  parseAnswer,
  RENEW_PATH,
  sha256,
  type Token,
} from '../api/enrolment.ts';
import { CERT_URI_PREFIX, PORT_ENROLMENT, PORT_PLAN_STREAM } from '../api/names.ts';
import { authorities } from './cert-files.ts';
import { hasUri, tlsOptions } from './certs.ts';
import { makeCsr } from './csr.ts';

const TIMEOUT = 10_000;

/** What the other end said no to; `code` is the HTTP status. */
export class Refused extends Error {
  readonly status: number;
  constructor(status: number, reason: string) {
    super(`the controller refused: ${reason}`);
    this.status = status;
  }
}

/** The URI says who it is, and the CA is the installation's alone, so the address does not matter. */
const isController = (_host: string, certificate: PeerCertificate): Error | undefined =>
  hasUri(certificate, `${CERT_URI_PREFIX}controller`) ? undefined : new Error('the server is no controller');

export async function enrol(url: string, token: Token, keys: WebCrypto.CryptoKeyPair): Promise<Enrolled> {
  const csr = await makeCsr(keys);
  const ca = await fetchCa(url, token.fingerprint);
  const body = formatEnrolRequest(token, csr);
  return answerOf(await send(url, { ca, checkServerIdentity: isController, minVersion: 'TLSv1.3' }, ENROL_PATH, body));
}

/** PEM of the CA with this fingerprint. Nothing secret is said on this connection, so anybody may be at its other end. */
async function fetchCa(url: string, fingerprint: string): Promise<string> {
  const { status, text } = await send(url, { rejectUnauthorized: false }, CA_PATH);
  if (status !== 200) throw new Refused(status, errorOf(text) ?? `status ${status}`);
  let found: X509Certificate[] = [];
  try {
    found = authorities(text);
  } catch {
    // None, then.
  }
  const ca = found.find((one) => sha256(one.raw) === fingerprint);
  if (ca === undefined) {
    throw new Error(
      `whoever answers at ${url} has another CA than the token says: the token was not sent. Is it the right controller?`,
    );
  }
  return String(ca);
}

interface Answer {
  status: number;
  text: string;
}

function answerOf({ status, text }: Answer): Enrolled {
  if (status !== 200) throw new Refused(status, errorOf(text) ?? `status ${status}`);
  const parsed = parseAnswer(text);
  if (!parsed.ok) throw new Error(`an answer that makes no sense: ${parsed.error}`);
  return parsed.value;
}

/** GET, or POST of a body. */
function send(url: string, tls: ConnectionOptions, path: string, body?: string): Promise<Answer> {
  const { hostname, port } = new URL(url);
  return new Promise((resolve, reject) => {
    const asked = request({
      ...tls,
      agent: false,
      host: hostname.replace(/^\[(.*)\]$/, '$1'),
      port: Number(port || PORT_ENROLMENT),
      path,
      method: body === undefined ? 'GET' : 'POST',
      ...(body !== undefined && {
        headers: { 'content-type': 'application/json', 'content-length': Buffer.byteLength(body) },
      }),
      signal: AbortSignal.timeout(TIMEOUT),
    });
    asked.on('error', (error) => reject(error.name === 'AbortError' ? new Error('no answer in time') : error));
    asked.on('response', (response) => {
      let text = '';
      response.setEncoding('latin1');
      response.on('data', (chunk: string) => {
        text += chunk;
        if (text.length > MAX_ANSWER) asked.destroy(new Error('an answer that does not end'));
      });
      response.on('error', reject);
      response.on('end', () => resolve({ status: response.statusCode ?? 0, text }));
    });
    asked.end(body);
  });
}

/** `url` and `certs` as the plan stream has them. */
export async function renew(
  url: string,
  certs: string,
  keys: WebCrypto.CryptoKeyPair,
  stop: AbortSignal,
): Promise<Enrolled> {
  const body = JSON.stringify({ csr: await makeCsr(keys) });
  const { hostname, port } = new URL(url);
  const socket = connectTls({
    ...tlsOptions(certs),
    host: hostname.replace(/^\[(.*)\]$/, '$1'),
    port: Number(port || PORT_PLAN_STREAM),
    ALPNProtocols: ['h2'],
    checkServerIdentity: isController,
  });
  const session = connect(url, { createConnection: () => socket, settings: { enablePush: false } });
  let timer: NodeJS.Timeout | undefined;
  try {
    return answerOf(
      await new Promise<Answer>((resolve, reject) => {
        timer = setTimeout(() => reject(new Error('no answer in time')), TIMEOUT);
        stop.addEventListener('abort', () => reject(new Error('stopped')), { once: true });
        // As stream-client.ts says, Node 20 does not tell on all of them that it is over.
        for (const part of [socket, session]) {
          part.on('error', reject);
          part.once('close', () => reject(new Error('closed')));
        }
        const stream = session.request({ ':method': 'POST', ':path': RENEW_PATH });
        let status = 0;
        let text = '';
        stream.on('error', reject);
        stream.on('response', (headers) => {
          status = Number(headers[':status']);
        });
        stream.setEncoding('latin1');
        stream.on('data', (chunk: string) => {
          text += chunk;
          if (text.length > MAX_ANSWER) reject(new Error('an answer that does not end'));
        });
        stream.on('end', () => resolve({ status, text }));
        stream.end(body);
      }),
    );
  } finally {
    clearTimeout(timer);
    session.destroy();
    socket.destroy();
  }
}
