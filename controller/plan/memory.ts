/**
 * What the planner must remember from one run to the next, and across restarts, because it cannot be computed from the
 * objects: who was given which address, when it was given back, shard numbers, which pods are released, and
 * the last lists that drop and reject rules enforced. Plain JSON; a file that does not hold it is read as empty.
 */
import { parseRange } from '../../api/address.ts';
import { applications } from '../../api/application.ts';
import { parseNamePattern } from '../../api/host-name.ts';
import type { NodePlan, NodeWorkloadEntry, ServiceEntry } from '../../api/plan.ts';
import { isRecord } from '../../api/plan-delta.ts';

/** An address that is given out, or was and is in quarantine. Keyed by canonical address. */
export interface Allocation {
  /** EgressIPPool and EgressIP by name. */
  pool: string;
  owner: string;
  /** Milliseconds since the epoch; absent while in use. */
  releasedAt?: number;
}

/** Who has an address to himself, of an EgressIP that gives each its own (owners.ts). Keyed by canonical address. */
export interface AddressOwner {
  /** By which he has it. */
  egressIP: string;
  /** `namespace`, or `namespace/pod`. */
  owner: string;
  /** Milliseconds since the epoch; absent while he is there. */
  goneAt?: number;
}

/** A pod that its node may steer: what was acknowledged, and what the node does with it. */
export interface Release {
  fingerprint: string;
  node: string;
  entry: NodeWorkloadEntry;
}

/** What the entries of released pods name: as nodes have it. */
export type Shared = Pick<NodePlan, 'egressIPs' | 'destinations'>;

export interface PlannerMemory {
  allocations: Record<string, Allocation>;
  owners: Record<string, AddressOwner>;
  /** `pool/shard` → 1 to 253. Shards that are gone keep their number until it is needed. */
  shardIndices: Record<string, number>;
  /** By node and uid, so that a change at one node is a small part of it all. */
  released: Record<string, Record<string, Release>>;
  shared: Shared;
  lastServices: Record<string, ServiceEntry>;
  /** Own addresses that a gateway or node last reported, so that plans do not change when it disconnects. */
  gatewayAddresses: Record<string, string[]>;
}

export const emptyMemory = (): PlannerMemory => ({
  allocations: {},
  owners: {},
  shardIndices: {},
  released: {},
  shared: { egressIPs: {}, destinations: {} },
  lastServices: {},
  gatewayAddresses: {},
});

/** Shape check of our own file: enough that a damaged one cannot crash the planner. */
export function readMemory(input: unknown): PlannerMemory | undefined {
  if (!isRecord(input)) return undefined;
  // Of before there was anything to share.
  input.shared ??= emptyMemory().shared;
  input.owners ??= {};
  const names = Object.keys(emptyMemory()) as (keyof PlannerMemory)[];
  if (!names.every((name) => isRecord(input[name]))) return undefined;
  const memory = input as unknown as PlannerMemory;
  const sound =
    Object.values(memory.allocations).every((a) => isRecord(a) && typeof a.owner === 'string') &&
    Object.values(memory.owners).every((o) => isRecord(o) && [o.egressIP, o.owner].every(isText)) &&
    Object.values(memory.shardIndices).every((index) => Number.isInteger(index)) &&
    isReleased(memory.released) &&
    Object.values(memory.lastServices).every(isServiceEntry) &&
    isRecord(memory.shared.egressIPs) &&
    isRecord(memory.shared.destinations) &&
    Object.values(memory.gatewayAddresses).every(Array.isArray);
  return sound ? memory : undefined;
}

/** The same of the releases alone; damaged ones are none. */
export const readReleased = (input: unknown): PlannerMemory['released'] => (isReleased(input) ? input : {});

const isReleased = (input: unknown): input is PlannerMemory['released'] =>
  isRecord(input) && Object.values(input).every((pods) => isRecord(pods) && Object.values(pods).every(isRelease));

const isRelease = (release: unknown): boolean =>
  isRecord(release) && isRecord(release.entry) && isRecord(release.entry.steer);

const isText = (input: unknown): boolean => typeof input === 'string';
const isListOf = (input: unknown, is: (item: unknown) => boolean): boolean => Array.isArray(input) && input.every(is);
const isOptional = (input: unknown, is: (item: unknown) => boolean): boolean => input === undefined || is(input);
const isRange = (text: unknown): boolean => typeof text === 'string' && parseRange(text).ok;
const isPattern = (text: unknown): boolean => typeof text === 'string' && parseNamePattern(text).ok;
const arePatterns = (input: unknown): boolean => isOptional(input, (list) => isListOf(list, isPattern));
const areTexts = (input: unknown): boolean => isOptional(input, (list) => isListOf(list, isText));

/** Texts that the evaluator and the gateways read without asking whether they can be read. */
const isServiceEntry = (entry: unknown): boolean =>
  isRecord(entry) &&
  isListOf(entry.addresses, isRange) &&
  arePatterns(entry.names) &&
  (entry.ports === null || isListOf(entry.ports, isPort)) &&
  isOptional(entry.checks, (checks) => isListOf(checks, isCheck)) &&
  isOptional(entry.limits, (limits) => isListOf(limits, isPort));

const isPort = (port: unknown): boolean =>
  isRecord(port) &&
  Number.isInteger(port.protocol) &&
  (port.ports === null || isListOf(port.ports, (range) => isListOf(range, Number.isInteger)));

function isCheck(check: unknown): boolean {
  if (!isRecord(check) || !isPort(check)) return false;
  const { application, tls = {}, http = {}, dns = {} } = check;
  return (
    applications.some((one) => one === application) &&
    isRecord(tls) &&
    isRecord(http) &&
    isRecord(dns) &&
    [tls.serverNames, http.hosts, dns.names].every(arePatterns) &&
    [tls.alpn, http.methods, http.paths, dns.types].every(areTexts)
  );
}
