/**
 * As much of an API server as the controller's statuses, events and lease need, on loopback: objects with versions,
 * paged lists, server-side apply of a status, optimistic locking, and faults on request. The real one: test/api/status.test.ts.
 */
import { once } from 'node:events';
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { KubeConfig } from '@kubernetes/client-node';
import { recordOf } from '../../controller/kubernetes/requests.ts';

type Json = Record<string, unknown>;
interface Stored extends Json {
  metadata: { name: string; namespace?: string; uid: string; resourceVersion: string };
}
export interface Seen {
  at: number;
  method: string;
  path: string;
  query: URLSearchParams;
  type: string;
  body: Json;
}
/** Before it is done; `lost`: it is done and nobody hears of it; `silent`: no answer at all. */
export type Fault = { status: number; retryAfter?: number; message?: string } | 'lost' | 'silent' | undefined;

export interface FakeApi {
  config: KubeConfig;
  url: string;
  /** By path of the object. */
  objects: Map<string, Stored>;
  seen: Seen[];
  writes(): Seen[];
  fault: (seen: Seen) => Fault;
  /** At a time; the most there were. */
  most: number;
  latencyMs: number;
  put(path: string, object: Json): Stored;
  close(): Promise<void>;
}

export async function fakeApi(): Promise<FakeApi> {
  let version = 100;
  let active = 0;
  const server = createServer((request, response) => void answer(request, response));
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  const config = new KubeConfig();
  config.loadFromClusterAndUser({ name: 'fake', server: url, skipTLSVerify: true }, { name: 'me', token: 'secret' });
  const api: FakeApi = {
    config,
    url,
    objects: new Map(),
    seen: [],
    writes: () => api.seen.filter(({ method, path }) => method !== 'GET' && !path.includes('/events')),
    fault: () => undefined,
    most: 0,
    latencyMs: 0,
    put(path, object) {
      const parts = path.split('/');
      const name = parts.at(-1) ?? '';
      const at = parts.indexOf('namespaces');
      const uid = api.objects.get(path)?.metadata.uid ?? `uid-${++version}`;
      const metadata = { ...recordOf(object.metadata), name, uid, resourceVersion: String(++version) };
      const stored = { ...object, metadata: at < 0 ? metadata : { ...metadata, namespace: parts[at + 1] } } as Stored;
      api.objects.set(path, stored);
      return stored;
    },
    async close() {
      server.closeAllConnections();
      server.close();
      await once(server, 'close');
    },
  };

  async function answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const chunks: Buffer[] = [];
    for await (const chunk of request) chunks.push(chunk as Buffer);
    const { pathname, searchParams } = new URL(request.url ?? '', url);
    const body = chunks.length === 0 ? {} : (JSON.parse(Buffer.concat(chunks).toString()) as Json);
    const seen: Seen = {
      at: performance.now(),
      method: request.method ?? '',
      path: pathname,
      query: searchParams,
      type: request.headers['content-type'] ?? '',
      body,
    };
    api.seen.push(seen);
    api.most = Math.max(api.most, ++active);
    if (api.latencyMs > 0) await new Promise((resolve) => setTimeout(resolve, api.latencyMs));
    active--;
    const fault = api.fault(seen);
    if (fault === 'silent') return;
    if (typeof fault === 'object') {
      if (fault.retryAfter !== undefined) response.setHeader('retry-after', String(fault.retryAfter));
      send(response, fault.status, { kind: 'Status', message: fault.message ?? 'a fault' });
      return;
    }
    const authorized = request.headers.authorization === 'Bearer secret';
    const [status, object] = authorized ? done(seen) : [401, { message: 'who are you?' }];
    if (fault === 'lost') response.destroy();
    else send(response, status, object);
  }

  function done({ method, path, query, type, body }: Seen): [number, Json] {
    const { name = '', uid, resourceVersion } = recordOf(body.metadata) as Record<string, string>;
    if (method === 'POST') {
      if (api.objects.has(`${path}/${name}`)) return [409, { message: 'it exists' }];
      return [201, api.put(`${path}/${name}`, body)];
    }
    const place = path.replace(/\/status$/, '');
    const stored = api.objects.get(place);
    if (method === 'GET' && stored === undefined && place.split('/').length < 6) return listed(place, query);
    if (stored === undefined) return [404, { message: 'not found' }];
    if (method === 'GET') return [200, stored];
    if (method === 'PUT') {
      if (resourceVersion !== stored.metadata.resourceVersion) return [409, { message: 'it has been modified' }];
      return [200, api.put(place, body)];
    }
    if (type === 'application/merge-patch+json') return [200, api.put(place, { ...stored, ...body })];
    if (type !== 'application/apply-patch+yaml' || query.get('force') !== 'true' || !query.has('fieldManager'))
      return [415, { message: 'not an apply' }];
    if (uid !== undefined && uid !== stored.metadata.uid) return [409, { message: 'Precondition failed: UID' }];
    return [200, api.put(place, { ...stored, status: body.status })];
  }

  function listed(place: string, query: URLSearchParams): [number, Json] {
    const [group, plural = ''] = [place.slice(0, place.lastIndexOf('/')), place.split('/').at(-1)];
    const all = [...api.objects].filter(([path]) => path.startsWith(`${group}/`) && path.split('/').at(-2) === plural);
    const from = Number(query.get('continue') ?? 0);
    const to = from + Number(query.get('limit') ?? all.length);
    const more = to < all.length ? { continue: String(to) } : {};
    return [200, { items: all.slice(from, to).map(([, object]) => object), metadata: more }];
  }

  return api;
}

function send(response: ServerResponse, status: number, body: Json): void {
  response.writeHead(status, { 'content-type': 'application/json' });
  response.end(JSON.stringify(body));
}

/** Until it holds; fails with what it waited for. */
export async function until(what: string, holds: () => boolean, withinMs = 10_000): Promise<void> {
  const end = performance.now() + withinMs;
  while (!holds()) {
    if (performance.now() > end) throw new Error(`within ${withinMs} ms: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}
