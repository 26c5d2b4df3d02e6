/**
 * Gateways that share names, on loopback addresses of this process's own: certificates, a plan that has them, and what their
 * threads would have heard. Also a resolver of the test's.
 */
import { createSocket } from 'node:dgram';
import { mkdirSync, mkdtempSync, rmSync } from 'node:fs';
import { createRequire } from 'node:module';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { Registry } from 'prom-client';
import type { Test } from 'tap';
import { emptyGatewayPlan, type GatewayPlan } from '../../api/plan.ts';
import { createCa, issueCertificate } from '../../daemon/certs.ts';
import { createLog, type Logger, silentLog } from '../../daemon/log.ts';
import type { FromDecider, ToDecider } from '../../gateway/inspect/messages.ts';
import { startNames } from '../../gateway/names/names.ts';
import type { Names, NamesOptions } from '../../gateway/names/service.ts';

export const log: Logger = process.env.NAMES_TEST_LOG === undefined ? silentLog() : createLog('test', 'debug');
export const RESOLVER = '192.0.2.53';

export interface World {
  dir: string;
  port: number;
  /** Inside addresses by name. */
  addresses: Record<string, string>;
  certs(name: string): string;
}

/** `block`: of 127.0.0.0/8, so that files of tests that run beside each other do not meet. */
export async function createWorld(t: Test, block: number, names: string[]): Promise<World> {
  const dir = mkdtempSync(join(tmpdir(), 'sluice-names-'));
  t.teardown(() => rmSync(dir, { recursive: true }));
  const certs = (name: string): string => join(dir, 'certs', name);
  mkdirSync(join(dir, 'certs'));
  await createCa(certs('ca'));
  const addresses: Record<string, string> = {};
  for (const [at, name] of names.entries()) {
    addresses[name] = `127.${block}.${process.pid % 250}.${at + 1}`;
    await issueCertificate({ caDir: certs('ca'), outDir: certs(name), role: 'gateway', name, addresses: [] });
  }
  return { dir, port: await freePort(`127.${block}.${process.pid % 250}.1`), addresses, certs };
}

const freePort = (host: string): Promise<number> =>
  new Promise((resolve) => {
    const server = createServer().listen(0, host, () => {
      const address = server.address();
      server.close(() => resolve(typeof address === 'object' && address !== null ? address.port : 0));
    });
  });

export interface PlanParts {
  gateways: Record<string, string>;
  /** Absent: RESOLVER. */
  resolvers?: string[] | undefined;
  names?: string[];
  egressIPs?: string[];
  clusterCIDRs?: string[];
}

export function planOf({ gateways, resolvers = [RESOLVER], names, egressIPs, clusterCIDRs }: PlanParts): GatewayPlan {
  const plan = emptyGatewayPlan();
  plan.settings = {
    pool: {
      pool: 'main',
      defaultAction: 'Drop',
      unassigned: 'Bypass',
      internalInterface: 'in0',
      externalInterface: 'out0',
      externalGateway: {},
      steering: { mode: 'Direct', vni: 1, port: 4793, mtu: null },
      clusterCIDRs: clusterCIDRs ?? ['10.0.0.0/8'],
      excludedCIDRs: [],
      ...(resolvers.length > 0 && { dns: { resolvers } }),
    },
  };
  for (const [name, internalAddress] of Object.entries(gateways)) {
    plan.gateways[name] = { internalAddress, addresses: [internalAddress] };
  }
  plan.shards['main/0'] = { index: 1, nextHops: {}, order: Object.keys(gateways), egressIPs: egressIPs ?? [] };
  if (names !== undefined) plan.services['billing/out'] = { addresses: [], names, ports: null };
  return plan;
}

export interface Gateway {
  names: Names;
  registry: Registry;
  /** All that was posted to threads. */
  posted: { message: ToDecider; queue?: number | undefined }[];
  /** As a thread of queue 0 does; resolves when the answer is let on, with how long it was held. */
  teach(names: string, addresses: string, ttlSeconds?: number, resolver?: string): Promise<number>;
  resolve(name: string, families?: (4 | 6)[]): Promise<number>;
  has(name: string, address: string): boolean;
  /** Value of a metric, of all its labels that match. */
  metric(name: string, labels?: Record<string, string>): Promise<number>;
}

export async function startGateway(world: World, name: string, options: Partial<NamesOptions> = {}): Promise<Gateway> {
  const posted: Gateway['posted'] = [];
  const waiting = new Map<string, () => void>();
  const registry = new Registry();
  const state = options.state ?? mkdtempSync(join(world.dir, 'state-'));
  const names = await startNames({
    name,
    certs: world.certs(name),
    log,
    registry,
    port: world.port,
    post(message, queue) {
      posted.push({ message, queue });
      if ('id' in message) waiting.get(`${message.kind} ${message.id}`)?.();
    },
    ...options,
    state,
  });
  let last = 0;
  const ask = (message: FromDecider & { id: number }, answer: string): Promise<number> =>
    new Promise((resolve) => {
      const began = performance.now();
      waiting.set(`${answer} ${message.id}`, () => resolve(performance.now() - began));
      names.message(0, message);
    });
  return {
    names,
    registry,
    posted,
    teach: (of, where, ttlSeconds = 60, resolver = RESOLVER) =>
      ask(
        {
          kind: 'teach',
          id: ++last,
          resolver,
          names: of.split(' '),
          addresses: where.split(' ').map((address) => ({ address, ttlSeconds })),
        },
        'release',
      ),
    resolve: (of, families = [4, 6]) => ask({ kind: 'resolve', id: ++last, name: of, families }, 'resolved'),
    has: (of, where) => names.pairs().some((pair) => pair.name === of && pair.address === where),
    async metric(of, labels = {}) {
      const metric = await registry.getSingleMetric(of)?.get();
      const values = (metric?.values ?? []) as { value: number; labels: Record<string, string>; metricName?: string }[];
      return values
        .filter(({ metricName }) => metricName === undefined || metricName.endsWith('_count'))
        .filter((value) => Object.entries(labels).every(([label, text]) => value.labels[label] === text))
        .reduce((sum, { value }) => sum + value, 0);
    },
  };
}

export async function until(done: () => boolean | Promise<boolean>, what: string, ms = 20_000): Promise<void> {
  const end = performance.now() + ms;
  while (!(await done())) {
    if (performance.now() > end) throw new Error(`never came: ${what}`);
    await delay(10);
  }
}

export const connected = (gateway: Gateway, count: number): Promise<void> =>
  until(
    async () => (await gateway.metric('sluice_gateway_names_gateways_connected')) === count,
    `${count} gateways connected`,
  );

const packet = createRequire(import.meta.url)('dns-packet') as {
  decode(bytes: Uint8Array): { id: number; questions: { name: string; type: string }[] };
  encode(message: object): Uint8Array;
};

export interface DnsAnswer {
  answers?: { name: string; type: string; ttl: number; data: string }[];
  /** NXDOMAIN 3, SERVFAIL 2. */
  rcode?: number;
  /** Another id or question than was asked. */
  id?: number;
  question?: string;
}

/** Answers as `answer` says; undefined: nothing. Questions are written down as `NAME TYPE`. */
export async function startDns(
  t: Test,
  address: string,
  port: number,
  answer: (name: string, type: string) => DnsAnswer | undefined,
): Promise<{ questions: string[]; port: number; close(): void }> {
  const questions: string[] = [];
  const socket = createSocket('udp4');
  socket.on('message', (bytes, from) => {
    const { id, questions: asked } = packet.decode(bytes);
    const { name = '', type = '' } = asked[0] ?? {};
    questions.push(`${name} ${type}`);
    const said = answer(name, type);
    if (said === undefined) return;
    const flags = 0x0180 | (said.rcode ?? 0);
    const about = asked.map((each) => ({ ...each, name: said.question ?? each.name }));
    const other = said.id === undefined ? id : (id + said.id) & 0xffff;
    const reply = packet.encode({ type: 'response', id: other, flags, questions: about, answers: said.answers ?? [] });
    socket.send(reply, from.port, from.address);
  });
  await new Promise<void>((resolve) => socket.bind(port, address, () => resolve()));
  let open = true;
  const close = (): void => {
    if (open) socket.close();
    open = false;
  };
  t.teardown(close);
  return { questions, port: socket.address().port, close };
}
