/**
 * One list over https, for a URL that a tenant wrote (design §3). The host must be allowed, every address that its name
 * resolves to is checked, and the connection goes to one of exactly these: no second look-up in which a name could
 * answer otherwise (DNS rebinding). The same again for every redirect. No credentials, cookies, proxies or compression;
 * bytes, time and redirects are bounded. What a server said never stands in a message, but for its status.
 */
import { lookup } from 'node:dns/promises';
import type { IncomingMessage } from 'node:http';
import { request } from 'node:https';
import { connect, isIP, type Socket } from 'node:net';
import { checkServerIdentity, connect as connectTls } from 'node:tls';
import { LIST_MAX_BYTES } from '../../api/address-list.ts';
import { formatAuthority, type ListUrl, parseListUrl } from '../../api/list-url.ts';
import { fail, type Result } from '../../api/result.ts';
import { show } from '../../api/schema/describe.ts';
import { checkAddress, type FetchPolicy } from './fetch-policy.ts';

export const FETCH_TIMEOUT_MS = 10_000;
export const MAX_REDIRECTS = 3;
/** Of a name's addresses; the time is shared among them. */
const MAX_ADDRESSES = 4;

/** For tests, which have neither the world's names nor its certificates. No flag leads here. */
export interface FetchWorld {
  ca?: string;
  timeoutMs?: number;
  lookup?(host: string): Promise<string[]>;
  /** Opens a connection to an address that was checked. */
  dial?(address: string, port: number): Socket;
}

export type FetchReason = 'HostNotAllowed' | 'AddressForbidden' | 'FetchFailed' | 'ListTooLarge';
export type FetchOutcome =
  | { ok: true; body: Uint8Array; etag?: string }
  /** As it was when it had this ETag. */
  | { ok: true; body?: undefined }
  | { ok: false; reason: FetchReason; message: string };

class Refusal extends Error {
  readonly reason: FetchReason;
  constructor(reason: FetchReason, message: string) {
    super(message);
    this.reason = reason;
  }
}

/** Never rejects. `stop` ends it at once; its outcome is then of no interest. */
export async function fetchList(
  href: string,
  etag: string | undefined,
  policy: () => FetchPolicy,
  world: FetchWorld,
  stop: AbortSignal,
): Promise<FetchOutcome> {
  const timeoutMs = world.timeoutMs ?? FETCH_TIMEOUT_MS;
  const deadline = Date.now() + timeoutMs;
  const signal = AbortSignal.any([stop, AbortSignal.timeout(timeoutMs)]);
  try {
    let url = parsed(parseListUrl(href), 'url');
    for (let redirects = 0; ; redirects++) {
      const addresses = await resolve(url, policy(), world, signal);
      const response = await ask(url, addresses, etag, world, signal, deadline);
      const status = response.statusCode ?? 0;
      if (status === 200) return await read(response, signal);
      response.destroy();
      if (status === 304 && etag !== undefined) return { ok: true };
      if (![301, 302, 303, 307, 308].includes(status))
        throw new Refusal('FetchFailed', `expected status 200, got ${status}`);
      if (redirects === MAX_REDIRECTS) throw new Refusal('FetchFailed', `more than ${MAX_REDIRECTS} redirects`);
      url = parsed(redirectTarget(response.headers.location, url), 'redirect');
    }
  } catch (error) {
    if (error instanceof Refusal) return { ok: false, reason: error.reason, message: error.message };
    const late = signal.aborted && !stop.aborted;
    const message = late ? `took longer than ${timeoutMs / 1000} s` : `cannot fetch: ${codeOf(error)}`;
    return { ok: false, reason: 'FetchFailed', message };
  }
}

function parsed(url: Result<ListUrl>, what: string): ListUrl {
  if (url.ok) return url.value;
  throw new Refusal('FetchFailed', `${what}: expected ${url.error}`);
}

/** A location with a scheme or a host is read as strictly as a URL in a manifest. */
function redirectTarget(location: string | undefined, base: ListUrl): Result<ListUrl> {
  if (location === undefined) return fail('a location');
  const text = location.replace(/#.*$/, '');
  if (/^[A-Za-z][A-Za-z0-9+.-]*:/.test(text)) return parseListUrl(text);
  if (/^[/\\]{2}/.test(text)) return parseListUrl(`https:${text}`);
  return URL.canParse(text, base.href) ? parseListUrl(new URL(text, base.href).href) : fail('a location');
}

async function resolve(url: ListUrl, policy: FetchPolicy, world: FetchWorld, signal: AbortSignal): Promise<string[]> {
  const { host, port } = url;
  const name = show(formatAuthority(host, port));
  if (!policy.allows(host, port)) {
    throw new Refusal('HostNotAllowed', `host ${name} is not among fetch.allowedHosts of any GatewayPool`);
  }
  const addresses = isIP(host) !== 0 ? [host] : await unlessAborted((world.lookup ?? systemLookup)(host), signal);
  if (addresses.length === 0) throw new Refusal('FetchFailed', `host ${name} has no address`);
  for (const address of addresses) {
    const range = checkAddress(address, policy.forbidden);
    // One is enough: a name that mixes them is misconfigured, or an attempt.
    if (range !== undefined) throw new Refusal('AddressForbidden', `host ${name} has a forbidden address (${range})`);
  }
  return addresses.slice(0, MAX_ADDRESSES);
}

async function systemLookup(host: string): Promise<string[]> {
  return (await lookup(host, { all: true, verbatim: true })).map(({ address }) => address);
}

/** getaddrinfo cannot be called off; nobody waits for it any more. */
function unlessAborted<T>(promise: Promise<T>, signal: AbortSignal): Promise<T> {
  return new Promise((resolve, reject) => {
    const abort = (): void => reject(signal.reason);
    if (signal.aborted) abort();
    signal.addEventListener('abort', abort, { once: true });
    promise.then(resolve, reject).finally(() => signal.removeEventListener('abort', abort));
  });
}

/** The first address that answers. */
async function ask(
  url: ListUrl,
  addresses: readonly string[],
  etag: string | undefined,
  world: FetchWorld,
  signal: AbortSignal,
  deadline: number,
): Promise<IncomingMessage> {
  let last: unknown;
  for (const [i, address] of addresses.entries()) {
    const share = Math.max(1, (deadline - Date.now()) / (addresses.length - i));
    try {
      return await askOne(url, address, etag, world, signal, share);
    } catch (error) {
      if (signal.aborted) throw error;
      last = error;
    }
  }
  throw last;
}

function askOne(
  url: ListUrl,
  address: string,
  etag: string | undefined,
  { ca, dial = systemDial }: FetchWorld,
  signal: AbortSignal,
  shareMs: number,
): Promise<IncomingMessage> {
  const { host, port } = url;
  const { pathname, search } = new URL(url.href);
  return new Promise((resolve, reject) => {
    const socket = dial(address, port);
    const sent = request({
      method: 'GET',
      host,
      port,
      path: `${pathname}${search}`,
      signal,
      maxHeaderSize: 16_384,
      headers: {
        host: formatAuthority(host, port),
        'user-agent': 'sluice',
        accept: 'text/plain, application/json, */*;q=0.1',
        'accept-encoding': 'identity',
        connection: 'close',
        ...(etag === undefined ? {} : { 'if-none-match': etag }),
      },
      // With this there is no agent, no pool of connections, and no look-up but ours.
      createConnection: () =>
        connectTls({
          socket,
          ...(ca === undefined ? {} : { ca }),
          // RFC 6066: no address as a server name.
          servername: isIP(host) === 0 ? host : '',
          minVersion: 'TLSv1.2',
          rejectUnauthorized: true,
          checkServerIdentity: (_, certificate) => checkServerIdentity(host, certificate),
        }),
    });
    const timer = setTimeout(() => sent.destroy(Object.assign(new Error(), { code: 'ETIMEDOUT' })), shareMs);
    sent.once('response', (response) => {
      clearTimeout(timer);
      response.once('close', () => socket.destroy());
      resolve(response);
    });
    sent.on('error', (error) => {
      clearTimeout(timer);
      socket.destroy();
      reject(error);
    });
    socket.on('error', (error) => sent.destroy(error));
    sent.end();
  });
}

/** An address is no name: nothing is looked up. */
function systemDial(address: string, port: number): Socket {
  return connect({ host: address, port });
}

async function read(response: IncomingMessage, signal: AbortSignal): Promise<FetchOutcome> {
  const { 'content-encoding': encoding, 'content-length': length, etag } = response.headers;
  try {
    if (encoding !== undefined && encoding !== 'identity') {
      throw new Refusal('FetchFailed', 'expected no Content-Encoding, got one');
    }
    const tooLarge = (): never => {
      throw new Refusal('ListTooLarge', `expected at most ${LIST_MAX_BYTES} bytes, got more`);
    };
    if (Number(length) > LIST_MAX_BYTES) tooLarge();
    const chunks: Buffer[] = [];
    let size = 0;
    for await (const chunk of response as AsyncIterable<Buffer>) {
      size += chunk.length;
      if (size > LIST_MAX_BYTES) tooLarge();
      chunks.push(chunk);
    }
    signal.throwIfAborted();
    if (!response.complete) throw new Refusal('FetchFailed', 'the answer ended before its end');
    const tagged = etag !== undefined && /^(W\/)?"[\x21\x23-\x7e]{0,256}"$/.test(etag);
    return { ok: true, body: Buffer.concat(chunks), ...(tagged ? { etag } : {}) };
  } finally {
    response.destroy();
  }
}

/** A code of Node's or OpenSSL's own. Messages may quote the other side: names of a certificate, bytes of an answer. */
function codeOf(error: unknown): string {
  const code = error instanceof Error ? (error as NodeJS.ErrnoException).code : undefined;
  return typeof code === 'string' && /^[A-Z][A-Z0-9_]{1,63}$/.test(code) ? code : 'the connection failed';
}
