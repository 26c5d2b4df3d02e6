/**
 * Asks the pool's resolvers from the gateway itself, for the addresses of one name. Every question has sockets of its own,
 * so that its source port is one that nobody could have learned from the last. The resolver that answered last is asked
 * first; the next one as soon as that failed, or has been silent for a moment. Aliases are followed by the resolver; a TTL
 * is the least on the way. Left out: how often may be asked, and for what (questions.ts).
 */
import { Resolver } from 'node:dns/promises';
import { type Address, parseAddress } from '../../api/address.ts';
import { type Family, families } from '../../api/plan.ts';

/** A flow waits for 500 ms: the answer has to be here, and told, before. */
export const ANSWER_MS = 450;
/** Of one resolver. */
const SERVER_MS = 400;
/** Another one is asked beside it. */
const HEDGE_MS = 150;

export const outcomes = {
  found: 'it has addresses',
  none: 'there is no such name, or it has no address',
  failed: 'no resolver answered in time, or all refused',
} as const;
export type Outcome = keyof typeof outcomes;

export interface Answer {
  outcome: Outcome;
  addresses: { address: Address; ttlSeconds: number }[];
}

/** What says that there is nothing; every other error is one of the resolver or of the way to it. */
const nothing = new Set(['ENODATA', 'ENOTFOUND']);
const FAILED: Answer = { outcome: 'failed', addresses: [] };

/** The text that `setServers` wants. */
const serverText = (address: string, port: number): string =>
  address.includes(':') ? `[${address}]:${port}` : `${address}:${port}`;

export class PoolResolver {
  readonly #port: number;
  /** That which answered last is the first. */
  #servers: string[] = [];
  readonly #running = new Set<Resolver>();
  #closed = false;

  constructor(port: number) {
    this.#port = port;
  }

  /** Canonical addresses. */
  use(servers: readonly string[]): void {
    const kept = this.#servers.filter((server) => servers.includes(server));
    this.#servers = [...kept, ...servers.filter((server) => !kept.includes(server))];
  }

  ask(name: string, of: readonly Family[] = families): Promise<Answer> {
    const servers = [...this.#servers];
    return new Promise((resolve) => {
      const mine: Resolver[] = [];
      let next = 0;
      let failures = 0;
      let hedge: NodeJS.Timeout | undefined;
      const settle = (answer: Answer): void => {
        clearTimeout(bound);
        clearTimeout(hedge);
        resolve(answer);
        for (const resolver of mine) {
          this.#running.delete(resolver);
          resolver.cancel();
        }
      };
      const bound = setTimeout(() => settle(FAILED), ANSWER_MS);
      const askNext = (): void => {
        clearTimeout(hedge);
        const server = servers[next++];
        if (server === undefined) return;
        if (next < servers.length) hedge = setTimeout(askNext, HEDGE_MS);
        const resolver = new Resolver({ timeout: SERVER_MS, tries: 1 });
        mine.push(resolver);
        this.#running.add(resolver);
        resolver.setServers([serverText(server, this.#port)]);
        void askServer(resolver, name, of).then((answer) => {
          if (answer.outcome !== 'failed') {
            this.#prefer(server);
            settle(answer);
          } else if (++failures === servers.length || this.#closed) settle(FAILED);
          else askNext();
        });
      };
      if (servers.length === 0) settle(FAILED);
      else askNext();
    });
  }

  #prefer(server: string): void {
    const at = this.#servers.indexOf(server);
    if (at > 0) this.#servers.unshift(...this.#servers.splice(at, 1));
  }

  close(): void {
    this.#closed = true;
    for (const resolver of this.#running) resolver.cancel();
    this.#running.clear();
    this.#servers = [];
  }
}

/** Never rejects. */
async function askServer(resolver: Resolver, name: string, of: readonly Family[]): Promise<Answer> {
  const answers = await Promise.all(of.map((family) => askFamily(resolver, name, family)));
  const addresses = answers.flatMap((answer) => answer.addresses);
  if (addresses.length > 0) return { outcome: 'found', addresses };
  return answers.every(({ outcome }) => outcome === 'none') ? { outcome: 'none', addresses } : FAILED;
}

async function askFamily(resolver: Resolver, name: string, family: Family): Promise<Answer> {
  try {
    const records = await (family === 4
      ? resolver.resolve4(name, { ttl: true })
      : resolver.resolve6(name, { ttl: true }));
    const addresses = records.flatMap(({ address, ttl }) => {
      const parsed = parseAddress(address);
      return parsed.ok ? [{ address: parsed.value, ttlSeconds: ttl }] : [];
    });
    return { outcome: addresses.length > 0 ? 'found' : 'none', addresses };
  } catch (error) {
    const code = (error as NodeJS.ErrnoException).code ?? '';
    return nothing.has(code) ? { outcome: 'none', addresses: [] } : FAILED;
  }
}
