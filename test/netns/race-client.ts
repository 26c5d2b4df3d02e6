/**
 * Looks names up and connects to what it is told at once, as fast as it can: for the test that no connection is ahead of
 * the gateway's knowledge. Run in a pod's network namespace, where resolv.conf names the cluster's resolver: `node
 * race-client.js` with an Order (JSON) on standard input; prints a Told (JSON).
 */
import { Resolver } from 'node:dns/promises';
import { readFileSync } from 'node:fs';
import { connect } from 'node:tls';

export interface Order {
  count: number;
  /** Connections at a time. */
  concurrency: number;
  family: 4 | 6;
  /** `#` is replaced by a number below `names`: fewer names than connections are asked for again, often from a cache. */
  name: string;
  names: number;
  /** What the hello asks for, instead of the name that was looked up. */
  serverName?: string;
}
export interface Told {
  connected: number;
  refused: number;
  /** Neither within the limit. */
  silent: number;
  /** Names that could not be looked up. */
  unknown: number;
  /** Different addresses connected to. */
  addresses: number;
  /** The first few that were not connected, in words. */
  examples: string[];
  /** Of refusals, in ms, the median. */
  refusedMs: number;
  seconds: number;
}

const LIMIT_MS = 10_000;
const EXAMPLES = 5;

async function main(order: Order): Promise<Told> {
  const { count, concurrency, family, name, names } = order;
  const nameservers = [...readFileSync('/etc/resolv.conf', 'utf8').matchAll(/^nameserver (\S+)$/gm)].map(
    ([, a = '']) => a,
  );
  const resolver = new Resolver({ timeout: 2_000, tries: 4 });
  resolver.setServers(nameservers.filter((address) => address.includes(':') === (family === 6)));
  const told: Told = {
    ...{ connected: 0, refused: 0, silent: 0, unknown: 0, addresses: 0, refusedMs: 0, seconds: 0 },
    examples: [],
  };
  const addresses = new Set<string>();
  const refusals: number[] = [];
  const began = performance.now();
  let next = 0;
  const one = async (at: number): Promise<void> => {
    const asked = name.replace('#', String(at % names));
    let found: string[];
    try {
      found = await (family === 4 ? resolver.resolve4(asked) : resolver.resolve6(asked));
    } catch (error) {
      told.unknown++;
      if (told.examples.length < EXAMPLES) told.examples.push(`${asked}: ${(error as Error).message}`);
      return;
    }
    const address = found[at % found.length] ?? '';
    addresses.add(address);
    const since = performance.now();
    const how = await secured(address, order.serverName ?? asked);
    if (how === 'connected') told.connected++;
    else if (how === 'silent') told.silent++;
    else {
      told.refused++;
      refusals.push(performance.now() - since);
    }
    if (how !== 'connected' && told.examples.length < EXAMPLES) told.examples.push(`${asked} at ${address}: ${how}`);
  };
  const worker = async (): Promise<void> => {
    while (next < count) await one(next++);
  };
  await Promise.all(Array.from({ length: concurrency }, worker));
  refusals.sort((a, b) => a - b);
  told.addresses = addresses.size;
  told.refusedMs = refusals[refusals.length >> 1] ?? 0;
  told.seconds = (performance.now() - began) / 1000;
  return told;
}

function secured(host: string, servername: string): Promise<string> {
  return new Promise((resolve) => {
    const socket = connect({ host, port: 443, servername, rejectUnauthorized: false });
    const timer = setTimeout(() => end('silent'), LIMIT_MS);
    const end = (how: string): void => {
      clearTimeout(timer);
      socket.destroy();
      resolve(how);
    };
    socket.on('secureConnect', () => end('connected'));
    socket.on('error', (error: NodeJS.ErrnoException) => end(error.code ?? error.message));
    socket.on('end', () => end('ended'));
  });
}

if (process.argv[1] === import.meta.filename) {
  const parts: Buffer[] = [];
  for await (const part of process.stdin) parts.push(part as Buffer);
  process.stdout.write(JSON.stringify(await main(JSON.parse(Buffer.concat(parts).toString()) as Order)));
  process.exit(0);
}
