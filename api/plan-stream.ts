/**
 * The messages of the plan stream: one JSON object a line, over one HTTP/2 stream per gateway or node (design §2).
 * The client says hello and acknowledges; the server sends a snapshot, then deltas (both in parts: plan-parts.ts), or
 * `keep` where the client has the plan already. A controller that stands by sends none of these; when it leads it asks for
 * another hello (`lead`). Parsers are bounded and return a reason; unknown fields are ignored, unknown types refused.
 * Left out: the transport (daemon/stream-*.ts) and what a plan's values mean.
 */
import { isIP } from 'node:net';
import { canonicalAddress } from './address.ts';
import { type HitsTuple, hitsTuple, isHitId, type RuleHits, readHits } from './hits.ts';
import { emptyGatewayPlan, emptyNodePlan, type GatewayPlan, type PlanRole } from './plan.ts';
import { isRecord, type PlanDelta } from './plan-delta.ts';
import { isPlanHash } from './plan-hash.ts';
import type { Result } from './result.ts';

export const PLAN_STREAM_VERSION = 2;
export const PLAN_STREAM_PATH = '/v1/plan';

/** Of the answer to a client: what the controller is at that time. Absent: `alone`. */
export const STANDING_HEADER = 'x-sluice-standing';
/** `alone`: leads, and there is no other to look for. */
export type Standing = 'leads' | 'alone' | 'stands-by';
export const standingOf = (header: unknown): Standing =>
  header === 'leads' || header === 'stands-by' ? header : 'alone';
/** The status of the answer to a client that has a connection to this controller already. */
export const CONNECTED_ALREADY = 409;

/** Longest line from a client, and from the server: the largest entry of a plan (lists of addresses) must fit. */
export const MAX_CLIENT_LINE = 256 * 1024;
export const MAX_SERVER_LINE = 64 * 1024 * 1024;
/** All lines of an update together: a snapshot of a million workloads. */
export const MAX_UPDATE = 512 * 1024 * 1024;
export const MAX_ADDRESSES = 1024;
/** Connections of a client to as many controllers. */
export const MAX_LINKS = 8;
/** An error text is cut to this many characters before it is sent, and refused beyond twice as many. */
export const MAX_ERROR = 4096;

/** Addresses of one message that are taken, and as many as surely fit into a line. */
export const MAX_HOLDS = 500;
export const HOLDS_AT_ONCE = 400;
/** Rules of one message, so that it fits into a line whatever their names. */
export const MAX_HITS_RULES = 400;

export interface HelloMessage {
  type: 'hello';
  version: number;
  role: PlanRole;
  name: string;
  addresses: string[];
  /** Of the plan that the client holds, as the server told them; 0 and '' if it holds none. */
  generation: number;
  hash: string;
  /** Of this connection, by chance; absent: a client that has one only, and that no controller can keep waiting. */
  link?: string;
  /** Its other connections that are up, as far as it knows. */
  others?: string[];
}
export type ClientMessage =
  | HelloMessage
  | { type: 'ack'; generation: number }
  | { type: 'nack'; generation: number; error: string }
  /** The last message did not fit: send a snapshot. */
  | { type: 'resync' }
  | HoldsMessage
  | HitsMessage;

/** After a gateway's hello: which egress IPs it has, and whose they are, by its plan. In parts; the last has no `more`. */
export interface HoldsMessage {
  type: 'holds';
  /** Address → EgressIP, `EgressIP/NAMESPACE` or `EgressIP/NAMESPACE/POD` that has it to itself; empty: not known. */
  addresses: Record<string, string>;
  more: boolean;
}

/** A gateway's totals of some rules, by id. Not answered; after a new connection all are told again. */
export interface HitsMessage {
  type: 'hits';
  /** Of these totals: another epoch began at zero. */
  epoch: string;
  rules: Record<string, HitsTuple>;
}

/** `hash`: of the plan that this leads to (plan-hash.ts); the client says it when it comes back. */
export type ServerMessage =
  /** Names of the plan's collections; what is in them follows. */
  | { type: 'snapshot'; generation: number; hash: string; collections: string[] }
  | { type: 'delta'; from: number; generation: number; hash: string }
  | { type: 'part'; delta: PlanDelta }
  | { type: 'end' }
  /** What you hold is right, and has this generation now. */
  | { type: 'keep'; generation: number }
  /** Of a controller that stood by: it leads now. Say hello again. */
  | { type: 'lead' };

const isGeneration = (value: unknown): value is number => Number.isSafeInteger(value) && (value as number) >= 0;
const isRole = (value: unknown): value is PlanRole => value === 'gateway' || value === 'node';
const fail = (error: string): { ok: false; error: string } => ({ ok: false, error });

/** A DNS subdomain as Kubernetes names nodes; also what a certificate's URI can carry without escapes. */
export function isPeerName(value: unknown): value is string {
  return typeof value === 'string' && value.length <= 253 && /^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$/.test(value);
}

function parseLine(line: string): Result<Record<string, unknown>> {
  let value: unknown;
  try {
    value = JSON.parse(line);
  } catch {
    return fail('is no JSON');
  }
  if (!isRecord(value)) return fail('is no object');
  return { ok: true, value };
}

const isLink = (value: unknown): value is string => typeof value === 'string' && /^[0-9a-f]{1,32}$/.test(value);

function parseHello(message: Record<string, unknown>): Result<HelloMessage> {
  const { version, role, name, addresses, generation, hash, link, others = [] } = message;
  if (version !== PLAN_STREAM_VERSION) return fail(`hello: expected version ${PLAN_STREAM_VERSION}`);
  if (!isRole(role)) return fail('hello: expected role "gateway" or "node"');
  if (!isPeerName(name)) return fail('hello: expected a name of lower-case letters, digits, "-" and "."');
  if (!Array.isArray(addresses) || addresses.length > MAX_ADDRESSES) {
    return fail(`hello: expected at most ${MAX_ADDRESSES} addresses`);
  }
  // A zone id (`fe80::1%eth0`) means nothing on another machine.
  if (!addresses.every((item): item is string => typeof item === 'string' && !item.includes('%') && isIP(item) !== 0)) {
    return fail('hello: expected addresses without prefix length or zone');
  }
  if (!isGeneration(generation)) return fail('hello: expected a generation');
  if (hash !== '' && !isPlanHash(hash)) return fail('hello: expected a hash or ""');
  if (link !== undefined && !isLink(link)) return fail('hello: expected the name of a connection');
  if (!Array.isArray(others) || others.length > MAX_LINKS || !others.every(isLink)) {
    return fail(`hello: expected the names of at most ${MAX_LINKS} other connections`);
  }
  const links = link === undefined ? {} : { link, others };
  return { ok: true, value: { type: 'hello', version, role, name, addresses, generation, hash, ...links } };
}

function parseHolds({ addresses, more }: Record<string, unknown>): Result<HoldsMessage> {
  if (!isRecord(addresses)) return fail('holds: expected addresses');
  const entries = Object.entries(addresses);
  if (entries.length > MAX_HOLDS) return fail(`holds: expected at most ${MAX_HOLDS} addresses`);
  const held: Record<string, string> = {};
  for (const [text, owner] of entries) {
    const address = canonicalAddress(text);
    if (!address.ok) return fail('holds: expected addresses without prefix length or zone');
    if (owner !== '' && !isOwner(owner)) return fail('holds: expected names of EgressIPs');
    held[address.value] = owner as string;
  }
  return { ok: true, value: { type: 'holds', addresses: held, more: more === true } };
}

/** Names of Kubernetes all have this form. */
function isOwner(value: unknown): boolean {
  const names = typeof value === 'string' ? value.split('/') : [];
  return names.length > 0 && names.length <= 3 && names.every(isPeerName);
}

/** What a gateway with this plan says after its hello. */
export function holdsMessages(plan: Pick<GatewayPlan, 'shards' | 'workloads' | 'egressIPs'>): HoldsMessage[] {
  const own = ownersIn(plan);
  const held = Object.values(plan.shards).flatMap(({ egressIPs, owners = {} }) =>
    egressIPs.map((address) => {
      const egressIP = owners[address] ?? '';
      return [address, own.get(`${egressIP} ${address}`) ?? egressIP] as const;
    }),
  );
  const messages: HoldsMessage[] = [];
  do {
    const addresses = Object.fromEntries(held.splice(0, HOLDS_AT_ONCE));
    messages.push({ type: 'holds', addresses, more: held.length > 0 });
  } while (held.length > 0);
  return messages;
}

/** Of EgressIPs that give each its own address: EgressIP and address → whose it is, as workloads leave with it. */
function ownersIn({ shards, workloads, egressIPs }: Pick<GatewayPlan, 'shards' | 'workloads' | 'egressIPs'>) {
  const found = new Map<string, string>();
  if (!Object.values(egressIPs).some(({ allocation }) => allocation !== undefined)) return found;
  for (const { namespace, name, egress, elsewhere = {} } of Object.values(workloads)) {
    for (const { address, shard } of [egress, ...Object.values(elsewhere)].flatMap((ways) => Object.values(ways))) {
      const egressIP = shards[shard]?.owners?.[address] ?? '';
      const allocation = egressIPs[egressIP]?.allocation;
      if (allocation === undefined) continue;
      const owner = allocation === 'PerPod' ? `${namespace}/${name}` : namespace;
      found.set(`${egressIP} ${address}`, `${egressIP}/${owner}`);
    }
  }
  return found;
}

function parseHits({ epoch, rules }: Record<string, unknown>): Result<HitsMessage> {
  if (typeof epoch !== 'string' || !/^[-0-9a-f]{1,64}$/.test(epoch)) return fail('hits: expected an epoch');
  if (!isRecord(rules)) return fail('hits: expected rules');
  const entries = Object.entries(rules);
  if (entries.length > MAX_HITS_RULES) return fail(`hits: expected at most ${MAX_HITS_RULES} rules`);
  for (const [id, tuple] of entries) {
    if (!isHitId(id)) return fail('hits: expected ids of rules');
    if (readHits(tuple) === undefined) return fail('hits: expected five counts a rule');
  }
  return { ok: true, value: { type: 'hits', epoch, rules: rules as Record<string, HitsTuple> } };
}

export const hitsMessage = (epoch: string, rules: readonly [id: string, hits: RuleHits][]): HitsMessage => ({
  type: 'hits',
  epoch,
  rules: Object.fromEntries(rules.map(([id, hits]) => [id, hitsTuple(hits)])),
});

export function parseClientMessage(line: string): Result<ClientMessage> {
  if (line.length > MAX_CLIENT_LINE) return fail('is too long');
  const parsed = parseLine(line);
  if (!parsed.ok) return parsed;
  const { type, generation, error } = parsed.value;
  switch (type) {
    case 'hello':
      return parseHello(parsed.value);
    case 'ack':
      return isGeneration(generation) ? { ok: true, value: { type, generation } } : fail('ack: expected a generation');
    case 'nack':
      if (!isGeneration(generation)) return fail('nack: expected a generation');
      if (typeof error !== 'string' || error.length > 2 * MAX_ERROR) return fail('nack: expected a short error text');
      return { ok: true, value: { type, generation, error } };
    case 'resync':
      return { ok: true, value: { type } };
    case 'holds':
      return parseHolds(parsed.value);
    case 'hits':
      return parseHits(parsed.value);
    default:
      return fail('has an unknown type');
  }
}

/** Collections that a plan of the role has; one of a newer controller may have others, which mean nothing here. */
export const collectionsOf = (role: PlanRole): string[] =>
  Object.keys(role === 'gateway' ? emptyGatewayPlan() : emptyNodePlan());

const MAX_COLLECTIONS = 64;

const areCollections = (value: unknown): value is string[] =>
  Array.isArray(value) &&
  value.length <= MAX_COLLECTIONS &&
  value.every((name) => typeof name === 'string' && name !== '__proto__');

export function parseServerMessage(line: string): Result<ServerMessage> {
  const parsed = parseLine(line);
  if (!parsed.ok) return parsed;
  const { type, generation, from, hash, collections, delta } = parsed.value;
  switch (type) {
    case 'part':
      // Its inside is checked where it is applied (checkDelta).
      return isRecord(delta)
        ? { ok: true, value: { type, delta: delta as unknown as PlanDelta } }
        : fail('part: expected a delta');
    case 'end':
    case 'lead':
      return { ok: true, value: { type } };
  }
  if (!isGeneration(generation)) return fail('expected a generation');
  if (type === 'keep') return { ok: true, value: { type, generation } };
  if (type !== 'snapshot' && type !== 'delta') return fail('has an unknown type');
  if (!isPlanHash(hash)) return fail(`${type}: expected a hash`);
  if (type === 'delta') {
    return isGeneration(from) ? { ok: true, value: { type, from, generation, hash } } : fail('delta: expected "from"');
  }
  if (!areCollections(collections)) return fail('snapshot: expected names of collections');
  return { ok: true, value: { type, generation, hash, collections } };
}

export const formatMessage = (message: ClientMessage | ServerMessage): string => `${JSON.stringify(message)}\n`;

/** Cuts a stream of bytes into lines. Holds at most `limit` bytes of an unfinished line. */
export class LineReader {
  readonly #limit: number;
  #parts: Uint8Array[] = [];
  #size = 0;

  constructor(limit: number) {
    this.#limit = limit;
  }

  /** The lines that this chunk completes; an error if one is longer than the limit: the stream is then useless. */
  push(chunk: Uint8Array): Result<string[]> {
    const lines: string[] = [];
    let start = 0;
    for (;;) {
      const end = chunk.indexOf(10, start);
      const part = chunk.subarray(start, end < 0 ? chunk.length : end);
      if (this.#size + part.length > this.#limit) {
        this.#parts = [];
        return fail(`a line is longer than ${this.#limit} bytes`);
      }
      if (part.length > 0) this.#parts.push(part);
      this.#size += part.length;
      if (end < 0) return { ok: true, value: lines };
      if (this.#size > 0) lines.push(Buffer.concat(this.#parts, this.#size).toString('utf8'));
      this.#parts = [];
      this.#size = 0;
      start = end + 1;
    }
  }
}
