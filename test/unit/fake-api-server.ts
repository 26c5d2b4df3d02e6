/**
 * An API server for what a real one won't do on demand: lists in pages, watches with bookmarks, versions, and at any
 * request of a test's choice another answer instead. Plain HTTP on loopback; nothing is checked, nothing is stored but the
 * objects that a test puts in. Left out: selectors other than by name, writing, discovery.
 */
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';

export interface FakeObject {
  metadata: { name: string; namespace?: string; [field: string]: unknown };
  [field: string]: unknown;
}
export interface FakeRequest {
  /** As in `/api/v1/pods`. */
  path: string;
  query: URLSearchParams;
  watch: boolean;
  response: ServerResponse;
}
/** True: it has answered, or will. */
type Fault = (request: FakeRequest) => boolean;

interface Watch {
  path: string;
  name: string | undefined;
  response: ServerResponse;
}

export class FakeApiServer {
  readonly #server = createServer((request, response) => this.#serve(request, response));
  /** Path → name with namespace → object. Paths that are not there answer 404. */
  readonly #objects = new Map<string, Map<string, FakeObject>>();
  readonly #history: { path: string; version: number; type: string; object: FakeObject }[] = [];
  readonly #watches = new Set<Watch>();
  readonly faults: Fault[] = [];
  readonly requests: { path: string; query: URLSearchParams; watch: boolean; at: number }[] = [];
  version = 100;

  constructor(paths: readonly string[]) {
    for (const path of paths) this.#objects.set(path, new Map());
  }

  async listen(): Promise<string> {
    await new Promise<void>((resolve) => this.#server.listen(0, '127.0.0.1', resolve));
    return `http://127.0.0.1:${(this.#server.address() as AddressInfo).port}`;
  }

  async close(): Promise<void> {
    this.#server.closeAllConnections();
    await new Promise((resolve) => this.#server.close(resolve));
  }

  install(path: string): void {
    this.#objects.set(path, new Map());
  }

  uninstall(path: string): void {
    this.#objects.delete(path);
  }

  /** `quietly`: no watch is told. */
  put(path: string, object: FakeObject, quietly = false): void {
    const objects = this.#objects.get(path) ?? new Map<string, FakeObject>();
    const known = objects.has(keyOf(object));
    const metadata = {
      uid: `uid-${keyOf(object).replace('/', '-')}`,
      ...object.metadata,
      resourceVersion: String(++this.version),
    };
    const whole = { ...object, metadata };
    objects.set(keyOf(object), whole);
    if (!quietly) this.#tell(path, known ? 'MODIFIED' : 'ADDED', whole);
  }

  remove(path: string, object: FakeObject, quietly = false): void {
    const objects = this.#objects.get(path);
    const known = objects?.get(keyOf(object));
    if (known === undefined) return;
    objects?.delete(keyOf(object));
    const whole = { ...known, metadata: { ...known.metadata, resourceVersion: String(++this.version) } };
    if (!quietly) this.#tell(path, 'DELETED', whole);
  }

  /** To open watches of a path, as it stands. */
  send(path: string, text: string): void {
    for (const watch of this.#watches) if (watch.path === path) watch.response.write(text);
  }

  bookmark(path: string): void {
    this.send(path, event('BOOKMARK', { metadata: { resourceVersion: String(this.version) } }));
  }

  endWatches(path: string): void {
    for (const watch of this.#watches) if (watch.path === path) watch.response.end();
  }

  /** As a copy of etcd was: what happened since has never been. */
  restore(version: number): void {
    this.version = version;
    this.#history.length = 0;
  }

  breakWatches(path: string): void {
    for (const watch of this.#watches) if (watch.path === path) watch.response.destroy();
  }

  /** Whether a watch of a path is open. */
  watched(path: string): boolean {
    return [...this.#watches].some((watch) => watch.path === path);
  }

  /** Without looks at the version alone. */
  count(path: string, watch: boolean): number {
    const counts = ({ query }: { query: URLSearchParams }): boolean => query.get('limit') !== '1';
    return this.requests.filter((request) => request.path === path && request.watch === watch && counts(request))
      .length;
  }

  #tell(path: string, type: string, object: FakeObject): void {
    this.#history.push({ path, version: this.version, type, object });
    for (const watch of this.#watches) if (concerns(watch, path, object)) watch.response.write(event(type, object));
  }

  #serve(request: IncomingMessage, response: ServerResponse): void {
    const url = new URL(request.url ?? '/', 'http://fake');
    const query = url.searchParams;
    const watch = query.get('watch') === 'true';
    this.requests.push({ path: url.pathname, query, watch, at: performance.now() });
    const index = this.faults.findIndex((fault) => fault({ path: url.pathname, query, watch, response }));
    if (index >= 0) return;
    // As in `/api/v1/namespaces/NAMESPACE/configmaps`.
    const [, namespace] = /^\/api\/v1\/namespaces\/([^/]+)\/configmaps$/.exec(url.pathname) ?? [];
    const path = namespace === undefined ? url.pathname : '/api/v1/configmaps';
    const objects = this.#objects.get(path);
    if (objects === undefined) {
      refuse(response, 404, 'the server could not find the requested resource');
      return;
    }
    const [, name] = /^metadata\.name=(.+)$/.exec(query.get('fieldSelector') ?? '') ?? [];
    const selected = name === undefined ? undefined : `${namespace}/${name}`;
    if (watch) this.#watch({ path, name: selected, response }, Number(query.get('resourceVersion')), query);
    else
      this.#list(
        [...objects].filter(([key]) => selected === undefined || key === selected),
        query,
        response,
      );
  }

  #list(all: [string, FakeObject][], query: URLSearchParams, response: ServerResponse): void {
    const from = Number(query.get('continue') ?? 0);
    const limit = Number(query.get('limit') ?? all.length);
    const items = all.slice(from, from + limit).map(([, object]) => object);
    const more = from + limit < all.length ? { continue: String(from + limit) } : {};
    answer(response, { kind: 'List', metadata: { resourceVersion: String(this.version), ...more }, items });
  }

  #watch(watch: Watch, version: number, query: URLSearchParams): void {
    const { path, response } = watch;
    response.writeHead(200, { 'content-type': 'application/json' });
    response.flushHeaders();
    for (const past of this.#history) {
      if (past.version > version && concerns(watch, past.path, past.object))
        response.write(event(past.type, past.object));
    }
    this.#watches.add(watch);
    const end = setTimeout(
      () => {
        this.bookmark(path);
        response.end();
      },
      1000 * Number(query.get('timeoutSeconds') ?? 60),
    );
    response.on('close', () => {
      clearTimeout(end);
      this.#watches.delete(watch);
    });
  }
}

const keyOf = ({ metadata: { namespace, name } }: FakeObject): string =>
  namespace === undefined ? name : `${namespace}/${name}`;
const concerns = (watch: Watch, path: string, object: FakeObject): boolean =>
  watch.path === path && (watch.name === undefined || watch.name === keyOf(object));

export const event = (type: string, object: unknown): string => `${JSON.stringify({ type, object })}\n`;

export function answer(
  response: ServerResponse,
  body: unknown,
  code = 200,
  headers: Record<string, string> = {},
): void {
  response.writeHead(code, { 'content-type': 'application/json', ...headers });
  response.end(typeof body === 'string' ? body : JSON.stringify(body));
}

/** As API servers do, with a `Status`. */
export function refuse(
  response: ServerResponse,
  code: number,
  message: string,
  headers?: Record<string, string>,
): void {
  answer(response, { kind: 'Status', status: 'Failure', code, message }, code, headers);
}
