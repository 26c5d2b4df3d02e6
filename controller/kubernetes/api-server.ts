/**
 * Reading from an API server: one JSON answer, or a stream of lines (a watch), both within bounds of time and size. The
 * library says where the server is and who we are (KubeConfig: certificates, tokens, exec plugins, proxies); its own Watch
 * is not used, since it drops lines that are no JSON without a word, holds a line of any length, hides Retry-After and
 * makes a new pool of connections for each request.
 */
import type { KubeConfig, RequestContext } from '@kubernetes/client-node';
import { isRecord } from '../../api/plan-delta.ts';
import { type KubernetesTarget, loadKubeConfig, loadLibrary } from './client.ts';
import { ApiFailure } from './failure.ts';

type Dispatcher = NonNullable<ReturnType<RequestContext['getDispatcher']>>;
type Answer = Awaited<ReturnType<Dispatcher['request']>>;
export type Query = Readonly<Record<string, string | undefined>>;

export interface Bounds {
  signal: AbortSignal;
  /** Until the answer begins, and in it between two chunks. */
  idleMs: number;
  /** For all of it. */
  totalMs: number;
  /** Of an answer, or of one line. */
  maxBytes: number;
}

/** Certificates may be renewed in place: connections that are made later use the new ones. */
const DISPATCHER_AGE_MS = 300_000;
const MAX_ERROR_BYTES = 65_536;

export class ApiServer {
  readonly config: KubeConfig;
  readonly #library: Awaited<ReturnType<typeof loadLibrary>>;
  readonly #base: URL;
  #dispatcher: { value: Dispatcher; since: number } | undefined;

  private constructor(config: KubeConfig, library: Awaited<ReturnType<typeof loadLibrary>>) {
    this.config = config;
    this.#library = library;
    this.#base = new URL(config.getCurrentCluster()?.server ?? '');
  }

  static async open(target: KubernetesTarget): Promise<ApiServer> {
    const config = await loadKubeConfig(target);
    const cluster = config.getCurrentCluster();
    // What the library falls back to, without any file, is such a one.
    if (cluster?.server.startsWith('http:') && !cluster.skipTLSVerify) {
      throw new Error(`${cluster.server}: not without TLS (there may be no kubeconfig, and no service account)`);
    }
    return new ApiServer(config, await loadLibrary());
  }

  get url(): string {
    return this.#base.href;
  }

  /** Throws ApiFailure. */
  async get(path: string, query: Query, bounds: Bounds): Promise<unknown> {
    return this.#reading(bounds, async (signal) => {
      const body = await read(await this.#request(path, query, signal, bounds.idleMs), bounds.maxBytes);
      try {
        return JSON.parse(body.toString('utf8'));
      } catch {
        throw new ApiFailure('BadAnswer', `no JSON: ${body.toString('latin1', 0, 60)}`);
      }
    });
  }

  /**
   * Each line as it comes. `onOpen`: the server has answered that lines will follow. A stream that is still open when its
   * time is up is `Silent`.
   */
  async lines(
    path: string,
    query: Query,
    bounds: Bounds,
    onOpen: () => void,
    onLine: (line: string) => void,
  ): Promise<void> {
    await this.#reading(bounds, async (signal) => {
      const answer = await this.#request(path, query, signal, bounds.idleMs, 0);
      onOpen();
      let parts: Buffer[] = [];
      let length = 0;
      for await (const chunk of answer.body as AsyncIterable<Buffer>) {
        let from = 0;
        for (let end = chunk.indexOf(10); end >= 0; end = chunk.indexOf(10, from)) {
          const part = chunk.subarray(from, end);
          const line = parts.length === 0 ? part : Buffer.concat([...parts, part]);
          if (line.length > bounds.maxBytes) throw new ApiFailure('TooLarge', `a line of ${line.length} bytes`);
          from = end + 1;
          parts = [];
          length = 0;
          if (line.length > 0) onLine(line.toString('utf8'));
        }
        if (from === chunk.length) continue;
        parts.push(chunk.subarray(from));
        length += chunk.length - from;
        if (length > bounds.maxBytes) throw new ApiFailure('TooLarge', `a line of more than ${bounds.maxBytes} bytes`);
      }
    });
  }

  async #reading<T>({ signal, totalMs }: Bounds, work: (signal: AbortSignal) => Promise<T>): Promise<T> {
    const own = new AbortController();
    const stop = (): void => own.abort(signal.reason);
    let late = false;
    const timer = setTimeout(() => {
      late = true;
      own.abort();
    }, totalMs);
    signal.addEventListener('abort', stop);
    try {
      signal.throwIfAborted();
      return await work(own.signal);
    } catch (error) {
      if (error instanceof ApiFailure || !late) throw ApiFailure.from(error);
      throw new ApiFailure('Silent', `not over after ${Math.round(totalMs)} ms`);
    } finally {
      clearTimeout(timer);
      signal.removeEventListener('abort', stop);
    }
  }

  async #request(
    path: string,
    query: Query,
    signal: AbortSignal,
    idleMs: number,
    bodyIdleMs = idleMs,
  ): Promise<Answer> {
    const url = new URL(this.#base.pathname.replace(/\/$/, '') + path, this.#base);
    for (const [name, value] of Object.entries(query)) if (value !== undefined) url.searchParams.set(name, value);
    const { dispatcher, headers } = await this.#credentials(url);
    const answer = await dispatcher.request({
      origin: url.origin,
      path: url.pathname + url.search,
      method: 'GET',
      headers: { ...headers, accept: 'application/json' },
      signal,
      headersTimeout: idleMs,
      bodyTimeout: bodyIdleMs,
    });
    if (answer.statusCode === 200) return answer;
    if (answer.statusCode === 401) this.#forget();
    const retryAfter = answer.headers['retry-after'];
    const body = await read(answer, MAX_ERROR_BYTES).catch(() => Buffer.alloc(0));
    throw ApiFailure.ofStatus(answer.statusCode, status(body), String(retryAfter ?? ''));
  }

  /** Asked for each request: a token may be another by now. */
  async #credentials(url: URL): Promise<{ dispatcher: Dispatcher; headers: Record<string, string> }> {
    const { RequestContext, HttpMethod } = this.#library;
    const context = new RequestContext(url.href, HttpMethod.GET);
    await this.config.applySecurityAuthentication(context);
    const now = performance.now();
    if (this.#dispatcher === undefined || now - this.#dispatcher.since > DISPATCHER_AGE_MS) {
      this.#forget();
      this.#dispatcher = { value: context.getDispatcher() ?? this.#plainDispatcher(), since: now };
    }
    return { dispatcher: this.#dispatcher.value, headers: context.getHeaders() };
  }

  /** It ends when what is read through it has. */
  #forget(): void {
    this.#dispatcher?.value.close().catch(() => undefined);
    this.#dispatcher = undefined;
  }

  /** The library makes none where it has nothing to say of TLS; its way of making one is private to it. */
  #plainDispatcher(): Dispatcher {
    type Maker = { createDispatcher(cluster: unknown, options: object): Dispatcher };
    const maker = this.config as unknown as Maker;
    return maker.createDispatcher(this.config.getCurrentCluster(), { rejectUnauthorized: true });
  }

  async close(): Promise<void> {
    await this.#dispatcher?.value.destroy().catch(() => undefined);
  }
}

async function read(answer: Answer, maxBytes: number): Promise<Buffer> {
  const parts: Buffer[] = [];
  let length = 0;
  for await (const chunk of answer.body as AsyncIterable<Buffer>) {
    length += chunk.length;
    if (length > maxBytes) throw new ApiFailure('TooLarge', `more than ${maxBytes} bytes`);
    parts.push(chunk);
  }
  return Buffer.concat(parts);
}

function status(body: Buffer): unknown {
  try {
    const value: unknown = JSON.parse(body.toString('utf8'));
    if (isRecord(value)) return value;
  } catch {
    // A proxy's page: its first words.
  }
  return { message: body.toString('latin1', 0, 100) };
}
