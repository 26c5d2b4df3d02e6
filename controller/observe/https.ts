/**
 * One https request of the controller's to a URL that a tenant wrote (design §3): a list is fetched, a webhook is
 * called. The host must be allowed, every address that its name resolves to is checked, and the connection goes to one
 * of exactly these: no second look-up in which a name could answer otherwise (DNS rebinding). No credentials, cookies,
 * proxies or compression; time and headers are bounded. Left out: redirects and what is done with an answer.
 */
import { lookup } from 'node:dns/promises';
import type { IncomingMessage } from 'node:http';
import { request } from 'node:https';
import { connect, isIP, type Socket } from 'node:net';
import { checkServerIdentity, connect as connectTls } from 'node:tls';
import { formatAuthority, type ListUrl } from '../../api/list-url.ts';
import { show } from '../../api/schema/describe.ts';
import { checkAddress, type FetchPolicy } from './fetch-policy.ts';

/** Of one request, with everything that belongs to it. */
export const HTTPS_TIMEOUT_MS = 10_000;
/** Of a name's addresses; the time is shared among them. */
const MAX_ADDRESSES = 4;

/** For tests, which have neither the world's names nor its certificates. No flag leads here. */
export interface HttpsWorld {
  ca?: string;
  timeoutMs?: number;
  lookup?(host: string): Promise<string[]>;
  /** Opens a connection to an address that was checked. */
  dial?(address: string, port: number): Socket;
}

export interface HttpsRequest {
  method: 'GET' | 'POST';
  headers: Record<string, string>;
  body?: string;
}

export class Refusal extends Error {
  readonly reason: 'HostNotAllowed' | 'AddressForbidden' | 'TooLarge' | 'Failed';
  constructor(reason: Refusal['reason'], message: string) {
    super(message);
    this.reason = reason;
  }
}

/**
 * Does `work` with a signal that comes after `timeoutMs`, or with `stop`. AbortSignal.any of stop and AbortSignal.timeout
 * says the same, but nobody holds the second: Node 20 collects it as garbage, and the time is no longer bounded.
 */
export async function withinTime<T>(
  timeoutMs: number,
  stop: AbortSignal,
  work: (signal: AbortSignal) => Promise<T>,
): Promise<T> {
  const bound = new AbortController();
  const abort = (): void => bound.abort();
  const timer = setTimeout(abort, timeoutMs);
  stop.addEventListener('abort', abort, { once: true });
  if (stop.aborted) abort();
  try {
    return await work(bound.signal);
  } finally {
    clearTimeout(timer);
    stop.removeEventListener('abort', abort);
  }
}

/** Of a host that is allowed, all that its name resolves to; refused if one of them may not be connected to. */
export async function checkedAddresses(
  { host, port }: ListUrl,
  policy: FetchPolicy,
  world: HttpsWorld,
  signal: AbortSignal,
): Promise<string[]> {
  const name = show(formatAuthority(host, port));
  if (!policy.allows(host, port)) {
    throw new Refusal('HostNotAllowed', `host ${name} is not among fetch.allowedHosts of any GatewayPool`);
  }
  const addresses = isIP(host) !== 0 ? [host] : await unlessAborted((world.lookup ?? systemLookup)(host), signal);
  if (addresses.length === 0) throw new Refusal('Failed', `host ${name} has no address`);
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

/** The answer, up to its headers, of the first address that answers. */
export async function ask(
  url: ListUrl,
  addresses: readonly string[],
  what: HttpsRequest,
  world: HttpsWorld,
  signal: AbortSignal,
  deadline: number,
): Promise<IncomingMessage> {
  let last: unknown;
  for (const [i, address] of addresses.entries()) {
    const share = Math.max(1, (deadline - Date.now()) / (addresses.length - i));
    try {
      return await askOne(url, address, what, world, signal, share);
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
  { method, headers, body }: HttpsRequest,
  { ca, dial = systemDial }: HttpsWorld,
  signal: AbortSignal,
  shareMs: number,
): Promise<IncomingMessage> {
  const { host, port } = url;
  const { pathname, search } = new URL(url.href);
  return new Promise((resolve, reject) => {
    const socket = dial(address, port);
    const sent = request({
      method,
      host,
      port,
      path: `${pathname}${search}`,
      signal,
      maxHeaderSize: 16_384,
      headers: {
        host: formatAuthority(host, port),
        'user-agent': 'sluice',
        'accept-encoding': 'identity',
        connection: 'close',
        ...headers,
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
    sent.end(body);
  });
}

/** An address is no name: nothing is looked up. */
function systemDial(address: string, port: number): Socket {
  return connect({ host: address, port });
}

/** A code of Node's or OpenSSL's own. Messages may quote the other side: names of a certificate, bytes of an answer. */
export function codeOf(error: unknown): string {
  const code = error instanceof Error ? (error as NodeJS.ErrnoException).code : undefined;
  return typeof code === 'string' && /^[A-Z][A-Z0-9_]{1,63}$/.test(code) ? code : 'the connection failed';
}
