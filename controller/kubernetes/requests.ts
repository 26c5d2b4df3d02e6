/**
 * Single requests to an API server, for what needs no watch: addresses, statuses, events, the lease. Nothing throws: what got no
 * answer has status 0, so that each caller decides by numbers. Credentials and TLS are the kubeconfig's, asked for anew
 * each minute, since tokens of service accounts change under a running pod; connections are kept.
 */
import { Agent as HttpAgent, request as httpRequest, type IncomingMessage } from 'node:http';
import { Agent, request as httpsRequest, type RequestOptions } from 'node:https';
import type { KubeConfig } from '@kubernetes/client-node';
import { isRecord } from '../../api/plan-delta.ts';

export type Json = Record<string, unknown>;

export interface Answer {
  /** 0: none, or none in time. */
  status: number;
  body: Json;
  /** What the API server says is wrong, or why there is no answer. */
  message: string;
  /** Of an API server that has too much to do. */
  retryAfterMs?: number;
}

export interface Question {
  method: 'GET' | 'POST' | 'PUT' | 'PATCH' | 'DELETE';
  /** With its query. */
  path: string;
  body?: Json;
  contentType?: string;
  /** Of the whole, answer included. */
  timeoutMs: number;
}

export interface Api {
  ask(question: Question): Promise<Answer>;
  /** What is under way gets no answer. */
  close(): void;
}

export const APPLY = 'application/apply-patch+yaml';
export const MERGE = 'application/merge-patch+json';
const CREDENTIALS_MS = 60_000;

/** Doubles with each failure, less up to a half by chance, so that not all come back at once. */
export function backOff(failures: number, fromMs: number, toMs: number, random: () => number = Math.random): number {
  return Math.min(toMs, fromMs * 2 ** Math.min(failures - 1, 30)) * (1 - random() / 2);
}

/** `items` of a list, `metadata` of an object, and so on: what is no record is an empty one. */
export const recordOf = (value: unknown): Json => (isRecord(value) ? value : {});

export function apiOf(config: KubeConfig): Api {
  const { server = '' } = config.getCurrentCluster() ?? {};
  const base = new URL(server);
  const plain = base.protocol === 'http:';
  const closing = new AbortController();
  const agents = new Set<{ destroy(): void }>();
  let known: { options: RequestOptions; at: number } | undefined;

  async function credentials(): Promise<RequestOptions> {
    if (known !== undefined && performance.now() - known.at < CREDENTIALS_MS) return known.options;
    const options: RequestOptions = {};
    await config.applyToHTTPSOptions(options);
    const { ca, cert, key, rejectUnauthorized, servername } = options;
    const before = known?.options;
    const same = before?.ca?.toString() === ca?.toString() && before?.cert?.toString() === cert?.toString();
    // Theirs keeps no connections, but knows the way through a proxy.
    if (plain || config.getCurrentCluster()?.proxyUrl === undefined) {
      if (before !== undefined && same) options.agent = before.agent;
      else if (plain) options.agent = new HttpAgent({ keepAlive: true });
      else options.agent = new Agent({ keepAlive: true, ca, cert, key, rejectUnauthorized, servername });
    }
    if (options.agent) agents.add(options.agent as Agent);
    known = { options, at: performance.now() };
    return options;
  }

  async function ask({ method, path, body, contentType, timeoutMs }: Question): Promise<Answer> {
    try {
      const signal = AbortSignal.any([closing.signal, AbortSignal.timeout(timeoutMs)]);
      const options = await credentials();
      const text = body === undefined ? undefined : JSON.stringify(body);
      const headers = {
        ...(options.headers as Record<string, string> | undefined),
        accept: 'application/json',
        ...(text !== undefined && {
          'content-type': contentType ?? 'application/json',
          'content-length': String(Buffer.byteLength(text)),
        }),
      };
      const url = new URL(base.pathname.replace(/\/$/, '') + path, base);
      const response = await new Promise<IncomingMessage>((resolve, reject) => {
        const request = (plain ? httpRequest : httpsRequest)(url, { ...options, method, headers, signal }, resolve);
        request.on('error', reject);
        request.end(text);
      });
      const chunks: Buffer[] = [];
      for await (const chunk of response) chunks.push(chunk as Buffer);
      const answer = readAnswer(response, Buffer.concat(chunks).toString());
      if (answer.status === 401) known = undefined;
      return answer;
    } catch (error) {
      const { name, message } = error instanceof Error ? error : new Error(String(error));
      const late = name === 'TimeoutError' || (name === 'AbortError' && !closing.signal.aborted);
      return { status: 0, body: {}, message: late ? `no answer within ${timeoutMs} ms` : message };
    }
  }

  return {
    ask,
    close() {
      closing.abort();
      for (const agent of agents) agent.destroy();
    },
  };
}

function readAnswer({ statusCode = 0, headers }: IncomingMessage, text: string): Answer {
  const seconds = Number(headers['retry-after']);
  const wait = headers['retry-after'] !== undefined && seconds >= 0 ? { retryAfterMs: seconds * 1000 } : {};
  try {
    const body = recordOf(JSON.parse(text));
    return { status: statusCode, body, message: typeof body.message === 'string' ? body.message : '', ...wait };
  } catch {
    // A proxy's page; what is half of an object counts for nothing.
    const status = statusCode >= 200 && statusCode < 300 ? 0 : statusCode;
    return { status, body: {}, message: text.slice(0, 200), ...wait };
  }
}
