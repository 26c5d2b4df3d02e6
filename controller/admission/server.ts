/**
 * The validating webhook (docs/admission.md): AdmissionReview over HTTPS, bounded in bytes, time and number. It decides
 * nothing that it cannot judge: where it cannot (no objects yet, too much at once, a mistake of its own) it answers with
 * an error of HTTP, and the failurePolicy of the ValidatingWebhookConfiguration (deploy/webhook.yaml) says what that
 * means. Left out: who asks. A verdict changes nothing, and tells of an object no more than its status does.
 */
import type { IncomingMessage, ServerResponse } from 'node:http';
import { createServer } from 'node:https';
import type { AddressInfo } from 'node:net';
import { Counter, Gauge, Histogram, type Registry } from 'prom-client';
import { sluiceKinds } from '../../api/kinds.ts';
import type { Listen } from '../../daemon/listen.ts';
import type { Logger } from '../../daemon/log.ts';
import { type CertificateFiles, readCertificate, watchCertificate } from './certificate.ts';
import { answerTo, type ReviewRequest, readReview } from './exchange.ts';
import { type AdmissionWorld, review } from './review.ts';

/** Of the URL, in deploy/webhook.yaml. */
export const ADMISSION_PATH = '/admission';

export interface AdmissionOptions {
  listen: Listen;
  certificate: CertificateFiles;
  /** As things are now; undefined: not known yet. */
  world(): AdmissionWorld | undefined;
  log: Logger;
  registry: Registry;
  limits?: Partial<typeof admissionLimits>;
}

export const admissionLimits = {
  /** An object of the API server's has at most 1.5 MiB, and an update has two. */
  bodyBytes: 3 * 1024 * 1024,
  /** Below timeoutSeconds of the configuration. */
  requestMs: 4000,
  /** Requests whose body is on its way. */
  concurrent: 32,
  connections: 256,
  certificateMs: 10_000,
};

type Outcome = 'allowed' | 'warned' | 'denied' | 'malformed' | 'busy' | 'unready' | 'failed';

export interface AdmissionServer {
  /** In use, for port 0. */
  port: number;
  close(): Promise<void>;
}

/** Throws if the certificate cannot be read, or the port is taken. */
export async function startAdmission(options: AdmissionOptions): Promise<AdmissionServer> {
  const { log, world } = options;
  const limits = { ...admissionLimits, ...options.limits };
  const metrics = admissionMetrics(options.registry);
  const first = await readCertificate(options.certificate);
  metrics.expiry.set(first.expires / 1000);
  let reading = 0;

  const server = createServer(
    {
      cert: first.cert,
      key: first.key,
      minVersion: 'TLSv1.2',
      handshakeTimeout: limits.requestMs,
      headersTimeout: limits.requestMs,
      requestTimeout: limits.requestMs,
      connectionsCheckingInterval: Math.min(1000, limits.requestMs),
      // Longer than the API server keeps an idle connection (Go: 90 s): it is the one that closes.
      keepAliveTimeout: 120_000,
    },
    (request, response) => {
      if (request.url?.split('?')[0] !== ADMISSION_PATH) return refuse(response, 404, 'not found');
      if (request.method !== 'POST') return refuse(response, 405, 'POST only');
      if (reading >= limits.concurrent) {
        metrics.count('busy');
        return refuse(response, 503, 'too many requests at once');
      }
      reading++;
      void readBody(request, limits.bodyBytes)
        .then((body) => {
          if (body === undefined) {
            metrics.count('malformed');
            refuse(response, 413, `expected at most ${limits.bodyBytes} bytes`);
          } else answer(body, response);
        })
        .catch((error: unknown) => {
          // Gone, or too slow: Node has answered.
          metrics.count('malformed');
          log.debug({ reason: String(error) }, 'an admission request ended early');
          response.destroy();
        })
        .finally(() => reading--);
    },
  );
  server.maxConnections = limits.connections;

  function answer(body: string, response: ServerResponse): void {
    const request = readReview(body);
    if (!request.ok) {
      metrics.count('malformed');
      refuse(response, 400, request.error);
      return;
    }
    const stop = metrics.duration.startTimer();
    try {
      const now = world();
      if (now === undefined) {
        metrics.count('unready', request.value);
        refuse(response, 503, 'the objects in force are not known yet');
        return;
      }
      const verdict = review(request.value, now);
      const text = answerTo(request.value.uid, verdict);
      const outcome = !verdict.allowed ? 'denied' : verdict.warnings.length > 0 ? 'warned' : 'allowed';
      metrics.count(outcome, request.value);
      response.writeHead(200, { 'content-type': 'application/json' });
      response.end(text);
    } catch (error) {
      metrics.count('failed', request.value);
      log.error({ reason: String(error), stack: error instanceof Error ? error.stack : undefined }, 'cannot review');
      refuse(response, 500, 'the review failed; the log of the controller says why');
    } finally {
      stop();
    }
  }

  await new Promise<void>((resolve, reject) => {
    server.once('error', reject);
    server.listen(options.listen.port, options.listen.host, resolve);
  });
  const unwatch = watchCertificate(
    options.certificate,
    first,
    ({ cert, key, expires }) => {
      server.setSecureContext({ cert, key, minVersion: 'TLSv1.2' });
      metrics.expiry.set(expires / 1000);
    },
    log,
    limits.certificateMs,
  );
  return {
    port: (server.address() as AddressInfo).port,
    close: () =>
      new Promise((resolve) => {
        unwatch();
        server.close(() => resolve());
        server.closeAllConnections();
      }),
  };
}

/** The connection ends with it: what the client still sends is not read. */
function refuse(response: ServerResponse, status: number, text: string): void {
  response.writeHead(status, { 'content-type': 'text/plain; charset=utf-8', connection: 'close' });
  response.end(`${text}\n`);
}

/** Undefined: it is longer. */
async function readBody(request: IncomingMessage, limit: number): Promise<string | undefined> {
  if (Number(request.headers['content-length'] ?? 0) > limit) return undefined;
  const chunks: Buffer[] = [];
  let length = 0;
  for await (const chunk of request.iterator({ destroyOnReturn: false }) as AsyncIterable<Buffer>) {
    length += chunk.length;
    if (length > limit) return undefined;
    chunks.push(chunk);
  }
  return Buffer.concat(chunks).toString('utf8');
}

const known = new Set<string>(sluiceKinds.map(({ kind }) => kind));

function admissionMetrics(registry: Registry) {
  const registers = [registry];
  const requests = new Counter({
    name: 'sluice_controller_admission_requests_total',
    help: 'Requests to the admission webhook',
    labelNames: ['kind', 'operation', 'outcome'],
    registers,
  });
  return {
    duration: new Histogram({
      name: 'sluice_controller_admission_duration_seconds',
      help: 'Time to review one request',
      buckets: [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3],
      registers,
    }),
    expiry: new Gauge({
      name: 'sluice_controller_admission_certificate_expiry_seconds',
      help: 'When the certificate of the admission webhook expires, in seconds since the epoch',
      registers,
    }),
    /** Kinds that others make up are one. */
    count(outcome: Outcome, request?: ReviewRequest): void {
      const kind = request !== undefined && known.has(request.kind) ? request.kind : '';
      requests.inc({ kind, operation: request?.operation ?? '', outcome });
    },
  };
}
