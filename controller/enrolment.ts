/**
 * Certificates for gateways and nodes, from a controller that holds the CA's key. By token, on a listener of its own
 * without client certificates: whoever has the secret gets one certificate, for the role and name that the token was made
 * for. By the certificate itself, on the plan stream's port: the same name, another key, while it is valid.
 *
 * A token gives one certificate: it is in the file that marks the token used (tokens.ts), on disk before it is given out,
 * and it is that same one which the same key gets again for RETRY_MS. So a lost answer, or a crash of either end at any
 * moment, needs no new token; and who has seen the token but not the key gains nothing. After that the answer is `used`.
 *
 * Times are the machine's, as those by which TLS judges certificates. Order of checks: rate, size, form, token, then the CSR: a stranger never gets as far as the parser of ASN.1.
 */
import { type webcrypto, X509Certificate } from 'node:crypto';
import { readFileSync } from 'node:fs';
import type { ServerHttp2Stream } from 'node:http2';
import { join } from 'node:path';
import type { Registry } from 'prom-client';
import { Counter } from 'prom-client';
import {
  isSecretOf,
  parseEnrolRequest,
  parseRenewRequest,
  sha256,
  type TokenRecord,
  type TokenUse,
} from '../api/enrolment.ts';
import { authorities, settle } from '../daemon/cert-files.ts';
import { certificateUri, clientsOf, type Issuer, openIssuer } from '../daemon/certs.ts';
import { readCsr } from '../daemon/csr.ts';
import type { Listen } from '../daemon/listen.ts';
import type { Logger } from '../daemon/log.ts';
import { type Renewal, startRenewal } from '../daemon/renewal.ts';
import { type EnrolmentListener, readBody, startListener, Tries } from './enrolment-listener.ts';
import { type Detail, type EnrolmentResult, enrolmentResults, type Outcome, refused } from './enrolment-outcome.ts';
import { EXPIRED, Revoked } from './revoked.ts';
import { TokenStore } from './tokens.ts';

export interface EnrolmentOptions {
  /** Directory of the CA; absent: nothing is issued. */
  ca?: string | undefined;
  /** Where tokens are taken; absent: nowhere. */
  enrol?: Listen | undefined;
  /** The controller's own. */
  certs: string;
  state: string;
  registry: Registry;
  log: Logger;
}

const RETRY_MS = 10 * 60 * 1000;

/** What the plan stream's port asks (stream-server.ts), and the listener; `own` is the controller's own certificate. */
export class Enrolment {
  readonly #options: EnrolmentOptions;
  readonly #issuer: Issuer | undefined;
  readonly #revoked: Revoked;
  readonly #tokens: TokenStore;
  /** Of clients, by name. */
  readonly #renewals = new Tries();
  readonly #count: Counter;
  #listener: EnrolmentListener | undefined;
  #own: Renewal | undefined;

  private constructor(options: EnrolmentOptions, issuer: Issuer | undefined) {
    this.#options = options;
    this.#issuer = issuer;
    this.#revoked = new Revoked(options.state, options.log);
    this.#tokens = new TokenStore(options.state);
    this.#count = new Counter({
      name: 'sluice_controller_enrolments_total',
      help: 'Requests for certificates, by what became of them',
      labelNames: ['result'],
      registers: [options.registry],
    });
    for (const result of Object.keys(enrolmentResults)) this.#count.inc({ result }, 0);
  }

  static async open(options: EnrolmentOptions): Promise<Enrolment> {
    const { ca, enrol, certs } = options;
    if (enrol !== undefined && ca === undefined) throw new Error('enrolment needs the directory of the CA');
    // Before anybody reads its files.
    await settle(certs);
    const issuer = ca === undefined ? undefined : await openIssuer(ca);
    if (issuer !== undefined && !believed(certs, issuer)) {
      throw new Error(`the CA in ${ca} is none of ${join(certs, 'ca.crt')}: nobody here would believe what it issues`);
    }
    const enrolment = new Enrolment(options, issuer);
    if (ca !== undefined) await enrolment.#tokens.prune(Date.now());
    return enrolment;
  }

  /** Takes tokens from now on, if it is to. */
  async listen(): Promise<void> {
    const { certs, enrol, log, state } = this.#options;
    const issuer = this.#issuer;
    if (enrol === undefined || issuer === undefined) return;
    const { ca, fingerprint } = issuer;
    this.#listener = await startListener({
      listen: enrol,
      certs,
      ca,
      log,
      enrol: (body) => this.#guard(() => this.enrol(body)),
      tell: (result, detail) => this.#tell(result, detail),
    });
    log.info({ fingerprint, state, port: this.#listener.port }, 'enrolment by token');
  }

  get port(): number | undefined {
    return this.#listener?.port;
  }

  /** Of what the plan stream's server asks. */
  get hooks(): {
    refusal(certificate: X509Certificate): string | undefined;
    onRenewal?(stream: ServerHttp2Stream, certificate: X509Certificate): void;
  } {
    const refusal = (certificate: X509Certificate): string | undefined =>
      this.#revoked.refusal(certificate, Date.now());
    if (this.#issuer === undefined) return { refusal };
    return { refusal, onRenewal: (stream, certificate) => void this.#serveRenewal(stream, certificate) };
  }

  /** Keeps the controller's own certificate; `reload` is the plan stream's. */
  async keepOwn(reload: () => void): Promise<void> {
    const { certs, registry, log } = this.#options;
    const issuer = this.#issuer;
    this.#own = await startRenewal({
      certs,
      uri: certificateUri('controller', ''),
      registry,
      log,
      ...(issuer !== undefined && {
        renew: async (keys, at) => {
          const subject = { role: 'controller' as const, name: 'controller', addresses: ownAddresses(certs) };
          return { certificate: await issuer.sign(keys.publicKey, subject, at), ca: issuer.ca };
        },
      }),
      onChange: () => {
        try {
          reload();
          this.#listener?.reload();
          log.info('new connections get the new certificate');
        } catch (error) {
          log.error({ reason: (error as Error).message }, 'the new certificate cannot be used, the old one serves');
        }
      },
    });
  }

  /** Of a stranger. */
  async enrol(body: string): Promise<Outcome> {
    const request = parseEnrolRequest(body);
    if (!request.ok) return refused('bad-request', request.error);
    const { id, secret, csr } = request.value;
    const found = await this.#tokens.find(id);
    if (found?.ok === false) this.#options.log.error({ token: id, reason: found.error }, 'a token that cannot be read');
    const record = found?.ok === true ? found.value : undefined;
    // As long as for one that there is.
    const right = isSecretOf(secret, record?.hash ?? sha256(''));
    if (record === undefined || !right) return refused('unknown-token', 'no such token', { token: id });
    const detail = { token: id, role: record.role, name: record.name };
    if (this.#revoked.name(record.role, record.name))
      return refused('revoked', `${record.role}/${record.name} is revoked`, detail);
    const used = await this.#tokens.useOf(id);
    if (used === undefined && Date.now() >= record.expires) return refused('expired', 'the token has expired', detail);
    const key = await readCsr(csr);
    if (!key.ok) return refused('bad-request', key.error, detail);
    if (used !== undefined) return this.#again(used.ok ? used.value : undefined, key.value.hash, detail);
    const certificate = await this.#sign(key.value.key, record);
    const won = await this.#tokens.use(id, { at: Date.now(), key: key.value.hash, certificate });
    if (!won) {
      const use = await this.#tokens.useOf(id);
      return this.#again(use?.ok === true ? use.value : undefined, key.value.hash, detail);
    }
    return this.#given('enrolled', certificate, detail);
  }

  #again(use: TokenUse | undefined, key: string, detail: Detail): Outcome {
    // A file that cannot be read says at least that it was used.
    const fresh = use !== undefined && Date.now() - use.at < RETRY_MS;
    if (!fresh || use.key !== key) return refused('used', 'the token was used already', detail);
    return this.#given('repeated', use.certificate, detail);
  }

  /** Of a client whose certificate TLS has verified. */
  async renew(body: string, certificate: X509Certificate): Promise<Outcome> {
    const [client, more] = clientsOf(certificate);
    if (client === undefined || more !== undefined)
      return refused('not-a-client', 'the certificate is not that of a gateway or node');
    const detail = { ...client, old: certificate.serialNumber };
    const refusal = this.#revoked.refusal(certificate, Date.now());
    if (refusal !== undefined) return refused(refusal === EXPIRED ? 'expired' : 'revoked', refusal, detail);
    if (!this.#renewals.take(`${client.role}/${client.name}`, performance.now())) {
      return refused('too-many', 'too many requests: wait a little', detail);
    }
    const csr = parseRenewRequest(body);
    if (!csr.ok) return refused('bad-request', csr.error, detail);
    const key = await readCsr(csr.value);
    if (!key.ok) return refused('bad-request', key.error, detail);
    if (key.value.hash === sha256(certificate.publicKey.export({ type: 'spki', format: 'der' }))) {
      return refused('bad-request', 'csr: expected another key than that of the certificate', detail);
    }
    return this.#given('renewed', await this.#sign(key.value.key, client), detail);
  }

  async #sign(key: webcrypto.CryptoKey, { role, name }: Pick<TokenRecord, 'role' | 'name'>): Promise<string> {
    if (this.#issuer === undefined) throw new Error('no CA');
    return this.#issuer.sign(key, { role, name, addresses: [] }, Date.now());
  }

  #given(result: EnrolmentResult, certificate: string, detail: Detail): Outcome {
    const { serialNumber, validTo } = new X509Certificate(certificate);
    return {
      result,
      detail: { ...detail, serial: serialNumber, expires: new Date(validTo).toISOString() },
      enrolled: { certificate, ca: this.#issuer?.ca ?? '' },
    };
  }

  async #serveRenewal(stream: ServerHttp2Stream, certificate: X509Certificate): Promise<void> {
    const remote = stream.session?.socket?.remoteAddress ?? '';
    const body = await readBody(stream);
    const outcome = typeof body === 'string' ? await this.#guard(() => this.renew(body, certificate)) : body;
    this.#tell(outcome.result, { ...outcome.detail, ...('error' in outcome && { reason: outcome.error }), remote });
    if (stream.destroyed) return;
    stream.respond({ ':status': enrolmentResults[outcome.result], 'content-type': 'application/json' });
    // Whoever goes on sending is not listened to.
    stream.end(JSON.stringify('enrolled' in outcome ? outcome.enrolled : { error: outcome.error }), () =>
      stream.close(),
    );
  }

  /** What must not happen (a full disk) is an outcome too. */
  async #guard(work: () => Promise<Outcome>): Promise<Outcome> {
    try {
      return await work();
    } catch (error) {
      return {
        ...refused('failed', 'the controller failed: see its log'),
        detail: { cause: (error as Error).message },
      };
    }
  }

  /** Without detail: counted only. */
  #tell(result: EnrolmentResult, detail?: Detail): void {
    this.#count.inc({ result });
    if (detail === undefined) return;
    const { log } = this.#options;
    const status = enrolmentResults[result];
    const level = status === 200 ? 'info' : status === 500 ? 'error' : 'warn';
    log[level](
      { result, ...detail },
      status === 200 ? 'a certificate was issued' : 'a request for a certificate was refused',
    );
  }

  async close(): Promise<void> {
    await this.#listener?.close();
    await this.#own?.close();
  }
}

const believed = (certs: string, { fingerprint }: Issuer): boolean =>
  authorities(readFileSync(join(certs, 'ca.crt'), 'utf8')).some(({ raw }) => sha256(raw) === fingerprint);

/** Of the certificate that is there: its successor names the same. */
function ownAddresses(certs: string): string[] {
  const { subjectAltName } = new X509Certificate(readFileSync(join(certs, 'tls.crt'), 'utf8'));
  const found = (subjectAltName ?? '').split(', ').filter((item) => item.startsWith('IP Address:'));
  return found.map((item) => item.slice('IP Address:'.length));
}
