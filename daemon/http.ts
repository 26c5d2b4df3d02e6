/**
 * Metrics, health and readiness of a program, over plain HTTP: GET /metrics (Prometheus text), /healthz, /readyz.
 * Left out: authentication; it listens where the operator says (`--metrics ADDRESS:PORT`), and not at all without that.
 */
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { collectDefaultMetrics, Registry } from 'prom-client';
import type { Listen } from './listen.ts';

export interface Health {
  ok: boolean;
  detail: string;
}

export interface HttpOptions {
  listen: Listen;
  registry: Registry;
  health(): Health;
  ready(): Health;
}

/** A registry of its own per program (never prom-client's global one), with the label `program` on every sample. */
export function createRegistry(program: string): Registry {
  const registry = new Registry();
  registry.setDefaultLabels({ program });
  collectDefaultMetrics({ register: registry });
  return registry;
}

export async function startHttp(options: HttpOptions): Promise<{ port: number; close(): Promise<void> }> {
  const server = createServer({ requestTimeout: 5_000, headersTimeout: 5_000 }, (request, response) => {
    const answer = (status: number, type: string, body: string): void => {
      response.writeHead(status, { 'content-type': type });
      response.end(request.method === 'HEAD' ? undefined : body);
    };
    const health = ({ ok, detail }: Health): void => answer(ok ? 200 : 503, 'text/plain; charset=utf-8', `${detail}\n`);
    if (request.method !== 'GET' && request.method !== 'HEAD') return answer(405, 'text/plain', 'GET only\n');
    switch (request.url?.split('?')[0]) {
      case '/metrics':
        options.registry.metrics().then(
          (text) => answer(200, options.registry.contentType, text),
          (error: unknown) => answer(500, 'text/plain', `${String(error)}\n`),
        );
        return;
      case '/healthz':
        return health(options.health());
      case '/readyz':
        return health(options.ready());
      default:
        return answer(404, 'text/plain', 'not found\n');
    }
  });
  await new Promise<void>((resolve, reject) => {
    server.once('error', reject);
    server.listen(options.listen.port, options.listen.host, resolve);
  });
  return {
    port: (server.address() as AddressInfo).port,
    close: () =>
      new Promise((resolve) => {
        server.close(() => resolve());
        server.closeAllConnections();
      }),
  };
}
