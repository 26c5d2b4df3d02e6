/**
 * Servers of TLS that answered a hello at once, and did not ask for another (HelloRetryRequest, RFC 8446 §4.1.4): with the same
 * groups and name they will not ask the next client either, so its hello decides alone. What a server answers to a client
 * that resumes a session, or hides its hello (ECH), says nothing of others. Bounded in number and in time, as
 * servers are set up anew; of one that is not here the answer is read (first-bytes.ts).
 */

import type { ClientHello } from '../../wire/tls-hello.ts';
import { Aged } from './aged.ts';
import type { Ends } from './desk.ts';

const SERVERS_MAX = 16_384;
const KNOWN_MS = 600_000;

interface Known {
  until: number;
}

type Hello = Pick<ClientHello, 'serverName' | 'groups' | 'preSharedKey' | 'encryptedClientHello'>;

export class AnsweringServers {
  /** The longest known first. */
  readonly #known = new Aged<Known>();

  get size(): number {
    return this.#known.size;
  }

  knows(ends: Ends, hello: Hello, now: number): boolean {
    const known = this.#known.get(keyOf(ends, hello));
    return known !== undefined && known.until > now;
  }

  answered(ends: Ends, hello: Hello, now: number): void {
    if (hello.groups === undefined || hello.preSharedKey || hello.encryptedClientHello) return;
    this.#known.put(keyOf(ends, hello), { until: now + KNOWN_MS });
    if (this.#known.size > SERVERS_MAX) this.#known.deleteOldest();
  }

  expire(now: number): void {
    while ((this.#known.oldest?.until ?? now + 1) <= now) this.#known.deleteOldest();
  }
}

const keyOf = ({ flow }: Ends, { serverName, groups }: Hello): string =>
  `${flow.destination} ${flow.destinationPort} ${serverName} ${groups}`;
