/**
 * Keeps a program's certificate from expiring: with a third of its life left (and up to a tenth less, by chance, so that
 * machines made on one day do not come on one day) asks for another, for a new key; and again, ever more seldom, until it
 * gets one. How it asks is the program's: a gateway or node over the plan stream's port (enrol-client.ts), a controller
 * with the CA's key by itself. Files that somebody else replaced count as renewed. Metric: when it expires.
 */
import { type webcrypto as WebCrypto, X509Certificate } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { Gauge, type Registry } from 'prom-client';
import type { Enrolled } from '../api/enrolment.ts';
import type { PlanRole } from '../api/plan.ts';
import { install, pendingKey, settle } from './cert-files.ts';
import { certificateUri } from './certs.ts';
import { renew } from './enrol-client.ts';
import type { Logger } from './log.ts';

export interface RenewalOptions {
  /** Directory with `ca.crt`, `tls.crt`, `tls.key`. */
  certs: string;
  /** The URI that a new certificate has to name. */
  uri: string;
  registry: Registry;
  log: Logger;
  /** Asks for a certificate for these keys; absent: nobody renews, it is only told when it expires. */
  renew?(keys: WebCrypto.CryptoKeyPair, now: number, stop: AbortSignal): Promise<Enrolled>;
  /** The files are others than before. */
  onChange?(): void;
  now?(): number;
  /** 0 to 1. */
  random?(): number;
  /** For tests: milliseconds of a second. */
  secondMs?: number;
}

export interface Renewal {
  close(): Promise<void>;
}

/** Seconds. How often the files are looked at: peers.ts does it as often. */
const LOOK = 60;
const FIRST_LOOK = 5;
const BACKOFF_FIRST = 30;
const BACKOFF_LAST = 3_600;
/** Shares of the lifetime. */
const RENEW_AT = 1 / 3;
const JITTER = 1 / 10;
/** Less than this, and it is said once a day. */
const WARN_AT = 1 / 6;
const WARN_EVERY = 24 * 3_600;

/** When (milliseconds since the epoch) to ask for the successor of a certificate with this life. */
export function renewalTime(from: number, to: number, random: number): number {
  return to - (to - from) * RENEW_AT + (to - from) * RENEW_AT * JITTER * random;
}

/** Before anything reads the files: what a crash left half done is completed. */
export async function startRenewal(options: RenewalOptions): Promise<Renewal> {
  await settle(options.certs);
  return new Renewer(options);
}

export interface ByController {
  role: PlanRole;
  name: string;
  /** As the plan stream has them. */
  url: string;
  certs: string;
  registry: Registry;
  log: Logger;
}

/** Of a gateway or node. */
export function renewByController({ role, name, url, certs, registry, log }: ByController): Promise<Renewal> {
  const ask: RenewalOptions['renew'] = (keys, _now, stop) => renew(url, certs, keys, stop);
  return startRenewal({ certs, uri: certificateUri(role, name), registry, log, renew: ask });
}

class Renewer implements Renewal {
  readonly #options: RenewalOptions;
  readonly #now: () => number;
  readonly #random: () => number;
  readonly #expiry: Gauge;
  #timer: NodeJS.Timeout | undefined;
  #pem = '';
  #due = Number.POSITIVE_INFINITY;
  #wait = BACKOFF_FIRST;
  #warned = Number.NEGATIVE_INFINITY;
  #work: Promise<void> = Promise.resolve();
  readonly #stop = new AbortController();

  constructor(options: RenewalOptions) {
    this.#options = options;
    this.#now = options.now ?? Date.now;
    this.#random = options.random ?? Math.random;
    this.#expiry = new Gauge({
      name: 'sluice_certificate_expiry_timestamp_seconds',
      help: "When the program's certificate expires, seconds since the epoch; 0: it cannot be read",
      registers: [options.registry],
    });
    this.#look();
    // Soon: the machine may have been off for long.
    this.#later(FIRST_LOOK);
  }

  #later(seconds: number): void {
    if (this.#stop.signal.aborted) return;
    // Whoever cannot renew sees the files that a person brings within a minute all the same.
    const ms = seconds * (this.#options.secondMs ?? 1_000);
    this.#timer = setTimeout(() => {
      this.#work = this.#tick();
    }, ms).unref();
  }

  async #tick(): Promise<void> {
    const certificate = this.#look();
    if (certificate !== undefined && this.#options.renew !== undefined && this.#now() >= this.#due) await this.#ask();
    this.#later(LOOK);
  }

  /** Reads the certificate; its successor is due at a time of its own. */
  #look(): X509Certificate | undefined {
    const { certs, log, onChange } = this.#options;
    let certificate: X509Certificate;
    let pem: string;
    try {
      pem = readFileSync(join(certs, 'tls.crt'), 'utf8');
      certificate = new X509Certificate(pem);
    } catch (error) {
      if (this.#pem !== 'none') log.error({ reason: (error as Error).message }, 'the certificate cannot be read');
      this.#pem = 'none';
      this.#expiry.set(0);
      return undefined;
    }
    const [from, to] = [Date.parse(certificate.validFrom), Date.parse(certificate.validTo)];
    if (pem !== this.#pem) {
      const known = this.#pem !== '';
      this.#pem = pem;
      this.#due = renewalTime(from, to, this.#random());
      this.#wait = BACKOFF_FIRST;
      this.#warned = Number.NEGATIVE_INFINITY;
      this.#expiry.set(to / 1_000);
      if (known) onChange?.();
    }
    const now = this.#now();
    if (to - now < (to - from) * WARN_AT && now - this.#warned >= WARN_EVERY * 1_000) {
      this.#warned = now;
      const expires = new Date(to).toISOString();
      log.warn({ expires }, now < to ? 'the certificate expires soon' : 'the certificate has expired');
    }
    return certificate;
  }

  async #ask(): Promise<void> {
    const { certs, uri, log, renew } = this.#options;
    const now = this.#now();
    try {
      // First: a directory that cannot be written to shows before anybody is asked.
      const keys = await pendingKey(certs);
      const enrolled = await renew?.(keys, now, this.#stop.signal);
      if (enrolled === undefined || this.#stop.signal.aborted) return;
      await install(certs, enrolled, uri);
      this.#look();
      log.info({ expires: new X509Certificate(enrolled.certificate).validTo }, 'the certificate was renewed');
    } catch (error) {
      if (this.#stop.signal.aborted) return;
      const wait = this.#wait * (0.5 + this.#random());
      this.#wait = Math.min(this.#wait * 2, BACKOFF_LAST);
      this.#due = this.#now() + wait * (this.#options.secondMs ?? 1_000);
      log.warn(
        { reason: (error as Error).message, againInSeconds: Math.round(wait) },
        'the certificate was not renewed',
      );
    }
  }

  async close(): Promise<void> {
    this.#stop.abort();
    clearTimeout(this.#timer);
    await this.#work;
  }
}
