/**
 * One list over https, for a URL that a tenant wrote (design §3). The host must be allowed, every address that its name
 * resolves to is checked, and the connection goes to one of exactly these: no second look-up in which a name could
 * answer otherwise (DNS rebinding). The same again for every redirect. No credentials, cookies, proxies or compression;
 * bytes, time and redirects are bounded. What a server said never stands in a message, but for its status.
 */
import type { IncomingMessage } from 'node:http';
import { LIST_MAX_BYTES } from '../../api/address-list.ts';
import { type ListUrl, parseListUrl } from '../../api/list-url.ts';
import { fail, type Result } from '../../api/result.ts';
import type { FetchPolicy } from './fetch-policy.ts';
import {
  ask,
  checkedAddresses,
  codeOf,
  HTTPS_TIMEOUT_MS,
  type HttpsRequest,
  type HttpsWorld,
  Refusal,
  withinTime,
} from './https.ts';

export const MAX_REDIRECTS = 3;

export type FetchReason = 'HostNotAllowed' | 'AddressForbidden' | 'FetchFailed' | 'ListTooLarge';
export type FetchOutcome =
  | { ok: true; body: Uint8Array; etag?: string }
  /** As it was when it had this ETag. */
  | { ok: true; body?: undefined }
  | { ok: false; reason: FetchReason; message: string };

const reasons: Record<Refusal['reason'], FetchReason> = {
  HostNotAllowed: 'HostNotAllowed',
  AddressForbidden: 'AddressForbidden',
  TooLarge: 'ListTooLarge',
  Failed: 'FetchFailed',
};

const getIfChanged = (etag: string | undefined): HttpsRequest => ({
  method: 'GET',
  headers: {
    accept: 'text/plain, application/json, */*;q=0.1',
    ...(etag === undefined ? {} : { 'if-none-match': etag }),
  },
});

/** Never rejects. `stop` ends it at once; its outcome is then of no interest. */
export function fetchList(
  href: string,
  etag: string | undefined,
  policy: () => FetchPolicy,
  world: HttpsWorld,
  stop: AbortSignal,
): Promise<FetchOutcome> {
  const timeoutMs = world.timeoutMs ?? HTTPS_TIMEOUT_MS;
  const deadline = Date.now() + timeoutMs;
  return withinTime(timeoutMs, stop, async (signal): Promise<FetchOutcome> => {
    try {
      let url = parsed(parseListUrl(href), 'url');
      for (let redirects = 0; ; redirects++) {
        const addresses = await checkedAddresses(url, policy(), world, signal);
        const response = await ask(url, addresses, getIfChanged(etag), world, signal, deadline);
        const status = response.statusCode ?? 0;
        if (status === 200) return await read(response, signal);
        response.destroy();
        if (status === 304 && etag !== undefined) return { ok: true };
        if (![301, 302, 303, 307, 308].includes(status))
          throw new Refusal('Failed', `expected status 200, got ${status}`);
        if (redirects === MAX_REDIRECTS) throw new Refusal('Failed', `more than ${MAX_REDIRECTS} redirects`);
        url = parsed(redirectTarget(response.headers.location, url), 'redirect');
      }
    } catch (error) {
      if (error instanceof Refusal) return { ok: false, reason: reasons[error.reason], message: error.message };
      const late = signal.aborted && !stop.aborted;
      const message = late ? `took longer than ${timeoutMs / 1000} s` : `cannot fetch: ${codeOf(error)}`;
      return { ok: false, reason: 'FetchFailed', message };
    }
  });
}

function parsed(url: Result<ListUrl>, what: string): ListUrl {
  if (url.ok) return url.value;
  throw new Refusal('Failed', `${what}: expected ${url.error}`);
}

/** A location with a scheme or a host is read as strictly as a URL in a manifest. */
function redirectTarget(location: string | undefined, base: ListUrl): Result<ListUrl> {
  if (location === undefined) return fail('a location');
  const text = location.replace(/#.*$/, '');
  if (/^[A-Za-z][A-Za-z0-9+.-]*:/.test(text)) return parseListUrl(text);
  if (/^[/\\]{2}/.test(text)) return parseListUrl(`https:${text}`);
  return URL.canParse(text, base.href) ? parseListUrl(new URL(text, base.href).href) : fail('a location');
}

async function read(response: IncomingMessage, signal: AbortSignal): Promise<FetchOutcome> {
  const { 'content-encoding': encoding, 'content-length': length, etag } = response.headers;
  try {
    if (encoding !== undefined && encoding !== 'identity') {
      throw new Refusal('Failed', 'expected no Content-Encoding, got one');
    }
    const tooLarge = (): never => {
      throw new Refusal('TooLarge', `expected at most ${LIST_MAX_BYTES} bytes, got more`);
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
    if (!response.complete) throw new Refusal('Failed', 'the answer ended before its end');
    const tagged = etag !== undefined && /^(W\/)?"[\x21\x23-\x7e]{0,256}"$/.test(etag);
    return { ok: true, body: Buffer.concat(chunks), ...(tagged ? { etag } : {}) };
  } finally {
    response.destroy();
  }
}
