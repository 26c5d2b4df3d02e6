/**
 * Of EgressIPs with `allocation: PerNamespace` or `PerPod`: which namespace, or pod by its name, has which of their
 * addresses to itself. An owner keeps its address for as long as it is there, whatever becomes of its uid and node; of
 * one that is gone the address rests for its pool's quarantine, and is its own again if it comes back, then or later,
 * unless another has it by then. Who comes when none is left has none, and is let out nowhere. Never two of one address.
 * Which addresses an EgressIP has at all: allocate.ts. From what was found last where that still holds.
 */
import { type EgressIP, objectKey, type Pod } from '../../api/kinds.ts';
import { type Egress, type Family, families, type PerFamily } from '../../api/plan.ts';
import { sameJson } from '../../api/plan-delta.ts';
import { type AllocationResult, quarantineOf } from './allocate.ts';
import { type Assigner, chosenOf } from './assign.ts';
import { Findings } from './condition.ts';
import { changedKeys, sameItems, sameRecord } from './memo.ts';
import type { AddressOwner, PlannerMemory } from './memory.ts';
import type { Objects } from './objects.ts';
import { compareText, createdAt } from './snapshot.ts';

/** What one EgressIP gave out. A value. */
export interface Given {
  /** By `namespace`, or `namespace/pod`. */
  addresses: ReadonlyMap<string, PerFamily<string>>;
  /** The same by namespace: what its pods, or those that the EgressIP selects, leave with. */
  namespaces: ReadonlyMap<string, OwnAddresses>;
  /** How many may have one. */
  room: number;
}

/** Of one namespace. A value. */
export interface OwnAddresses {
  /** Of all its pods; absent: each has its own. */
  all?: PerFamily<Egress[]>;
  /** By the pod's name. */
  pods?: ReadonlyMap<string, PerFamily<Egress[]>>;
}

export interface PlannedOwners {
  /** To be remembered. */
  owners: PlannerMemory['owners'];
  /** By EgressIP; those whose workloads all have the same are absent. */
  given: ReadonlyMap<string, Given>;
  findings: Findings;
  /** When the first quarantine that somebody waits for ends. */
  wakeAt: number;
}

export interface OwnersInput {
  objects: Objects;
  assign: Assigner;
  allocation: AllocationResult;
  placed: ReadonlyMap<string, PerFamily<Egress[]>>;
  owners: PlannerMemory['owners'];
  now: number;
}

/** Who is to have an address: since when it is there. */
type Wanted = ReadonlyMap<string, number>;

interface Known {
  from: readonly unknown[];
  /** Of its addresses. */
  owners: Readonly<Record<string, AddressOwner>>;
  given: Given;
  missing: PerFamily<string[]>;
  until: number;
}

export const isPerOwner = ({ spec }: EgressIP): boolean => spec.allocation !== 'Shared';

/** As many as a person reads. */
const MAX_SHOWN = 3;

export class OwnerPlanner {
  readonly #wanted = new Map<string, WantedIndex>();
  readonly #known = new Map<string, Known>();
  #last: { from: readonly unknown[]; result: PlannedOwners } | undefined;
  #namespaces: Objects['namespaces'] = new Map();

  look(input: OwnersInput): PlannedOwners {
    const { objects, assign, allocation, placed, owners, now } = input;
    const { EgressIP: egressIPs, EgressIPPool: pools, namespaces } = objects;
    const { addresses, allocations } = allocation;
    const from = [egressIPs, pools, namespaces, assign, addresses, allocations, placed, owners];
    const last = this.#last;
    if (last !== undefined && sameItems(last.from, from) && now < last.result.wakeAt) return last.result;
    const own = last?.result.owners === owners;
    const giving = egressIPs.filter(isPerOwner);
    const changed = changedKeys(this.#namespaces, namespaces);
    this.#namespaces = namespaces;
    const given = new Map<string, Given>();
    const findings = new Findings();
    let wakeAt = Number.POSITIVE_INFINITY;
    let same = own && last.from[5] === allocations && last.from[0] === egressIPs;
    for (const egressIP of giving) {
      const { name } = egressIP.metadata;
      const known = own ? this.#known.get(name) : undefined;
      const next = this.#give(egressIP, input, changed, known);
      same &&= next === known;
      this.#known.set(name, next);
      given.set(name, next.given);
      wakeAt = Math.min(wakeAt, next.until);
      for (const family of families) tell(egressIP, family, next, findings);
    }
    for (const name of this.#known.keys()) {
      if (given.has(name)) continue;
      this.#known.delete(name);
      this.#wanted.delete(name);
    }
    const sameGiven = last !== undefined && sameItems([...last.result.given].flat(), [...given].flat());
    const result = {
      owners: same ? owners : sameRecord(owners, this.#all(input, given)),
      given: sameGiven ? last.result.given : given,
      findings,
      wakeAt,
    };
    this.#last = { from, result };
    return result;
  }

  /** `changed`: namespaces that are not what they were. */
  #give(egressIP: EgressIP, input: OwnersInput, changed: ReadonlySet<string>, known: Known | undefined): Known {
    const { objects, assign, allocation, placed, owners, now } = input;
    const { name } = egressIP.metadata;
    const index = this.#wanted.get(name) ?? new WantedIndex();
    this.#wanted.set(name, index);
    const wanted = index.look(egressIP, assign, objects.namespaces, changed);
    const quarantine = quarantineOf(objects.EgressIPPool.find(({ metadata }) => metadata.name === egressIP.spec.pool));
    const own = allocation.addresses.get(name);
    const from = [wanted, own, placed.get(name), quarantine, egressIP.spec.allocation];
    if (known !== undefined && sameItems(known.from, from) && now < known.until) return known;
    const made: Record<string, AddressOwner> = {};
    const addresses = new Map<string, PerFamily<string>>();
    const missing: PerFamily<string[]> = {};
    let [until, room] = [Number.POSITIVE_INFINITY, Number.POSITIVE_INFINITY];
    for (const family of families) {
      const list = own?.[family] ?? [];
      if (list.length === 0) continue;
      room = Math.min(room, list.length);
      const dealt = deal(list, wanted, (address) => ownerOf(owners, address, name), now, quarantine);
      for (const [address, { owner, goneAt }] of dealt.owners) {
        made[address] = { egressIP: name, owner, ...(goneAt !== undefined && { goneAt }) };
        if (goneAt === undefined) addresses.set(owner, { ...addresses.get(owner), [family]: address });
      }
      if (dealt.missing.length > 0) missing[family] = dealt.missing;
      until = Math.min(until, dealt.freeAt);
    }
    const egress = new Map(
      families.flatMap((family) => (placed.get(name)?.[family] ?? []).map((one) => [one.address, one] as const)),
    );
    return {
      from,
      owners: made,
      given: givenOf(egressIP, addresses, egress, Number.isFinite(room) ? room : 0, known?.given),
      missing,
      until,
    };
  }

  /** With those of addresses that rest, or whose EgressIP is gone or Shared now, for as long as they may come back. */
  #all({ owners, allocation, now }: OwnersInput, given: ReadonlyMap<string, Given>) {
    const all: Record<string, AddressOwner> = {};
    for (const [address, owner] of Object.entries(owners)) {
      const allocated = allocation.allocations[address];
      if (allocated?.owner !== owner.egressIP) continue;
      // What its EgressIP has now is said below.
      if (allocated.releasedAt === undefined && given.has(owner.egressIP)) continue;
      all[address] = owner.goneAt === undefined ? { ...owner, goneAt: now } : owner;
    }
    for (const name of given.keys()) Object.assign(all, this.#known.get(name)?.owners);
    return all;
  }
}

function ownerOf(owners: PlannerMemory['owners'], address: string, egressIP: string): AddressOwner | undefined {
  const owner = owners[address];
  return owner?.egressIP === egressIP ? owner : undefined;
}

interface Dealt {
  owners: Map<string, Pick<AddressOwner, 'owner' | 'goneAt'>>;
  /** Oldest first. */
  missing: string[];
  /** When the first of those that rest may be given, if somebody waits. */
  freeAt: number;
}

/** Addresses of one family among those who want one. `list` in order. */
export function deal(
  list: readonly string[],
  wanted: Wanted,
  before: (address: string) => Pick<AddressOwner, 'owner' | 'goneAt'> | undefined,
  now: number,
  quarantine: number,
): Dealt {
  const owners: Dealt['owners'] = new Map();
  const holder = new Set<string>();
  // Of two that one owner had, that which it has now.
  for (const gone of [false, true]) {
    for (const address of list) {
      const last = before(address);
      if (last === undefined || (last.goneAt !== undefined) !== gone) continue;
      if (!wanted.has(last.owner) || holder.has(last.owner)) continue;
      holder.add(last.owner);
      owners.set(address, { owner: last.owner });
    }
  }
  const free: { address: string; since: number }[] = [];
  let freeAt = Number.POSITIVE_INFINITY;
  for (const address of list) {
    if (owners.has(address)) continue;
    const last = before(address);
    if (last === undefined) {
      free.push({ address, since: Number.NEGATIVE_INFINITY });
      continue;
    }
    const goneAt = last.goneAt ?? now;
    owners.set(address, { owner: last.owner, goneAt });
    if (goneAt + quarantine <= now) free.push({ address, since: goneAt });
    else freeAt = Math.min(freeAt, goneAt + quarantine);
  }
  const waiting = [...wanted]
    .filter(([owner]) => !holder.has(owner))
    .sort(([a, since], [b, other]) => since - other || compareText(a, b));
  // Those that nobody had first, then those that were left longest ago: whoever had them may still come back.
  free.sort((a, b) => (a.since === b.since ? 0 : a.since - b.since));
  for (const [at, [owner]] of waiting.slice(0, free.length).entries()) owners.set(free[at]?.address ?? '', { owner });
  const missing = waiting.slice(free.length).map(([owner]) => owner);
  return { owners, missing, freeAt: missing.length > 0 ? freeAt : Number.POSITIVE_INFINITY };
}

/** Equal parts are those of `last`. */
function givenOf(
  { spec }: EgressIP,
  addresses: ReadonlyMap<string, PerFamily<string>>,
  egress: ReadonlyMap<string, Egress>,
  room: number,
  last: Given | undefined,
): Given {
  const found = new Map<string, { all?: PerFamily<Egress[]>; pods?: Map<string, PerFamily<Egress[]>> }>();
  for (const [owner, own] of addresses) {
    const placed: PerFamily<Egress[]> = {};
    for (const family of families) {
      const one = egress.get(own[family] ?? '');
      if (one !== undefined) placed[family] = [one];
    }
    const slash = owner.indexOf('/');
    if (spec.allocation === 'PerNamespace') {
      const was = last?.namespaces.get(owner)?.all;
      found.set(owner, { all: was !== undefined && sameJson(was, placed) ? was : placed });
      continue;
    }
    const [namespace, pod] = [owner.slice(0, slash), owner.slice(slash + 1)];
    const ofNamespace = found.get(namespace) ?? { pods: new Map() };
    found.set(namespace, ofNamespace);
    const was = last?.namespaces.get(namespace)?.pods?.get(pod);
    ofNamespace.pods?.set(pod, was !== undefined && sameJson(was, placed) ? was : placed);
  }
  const namespaces = new Map<string, OwnAddresses>();
  for (const [namespace, own] of found) {
    const was = last?.namespaces.get(namespace);
    namespaces.set(namespace, was !== undefined && sameOwn(was, own) ? was : own);
  }
  return { addresses, namespaces, room };
}

function sameOwn(a: OwnAddresses, b: OwnAddresses): boolean {
  if (a.all !== b.all || a.pods?.size !== b.pods?.size) return false;
  for (const [pod, own] of a.pods ?? []) if (b.pods?.get(pod) !== own) return false;
  return true;
}

function tell(egressIP: EgressIP, family: Family, { missing, given }: Known, findings: Findings): void {
  const list = missing[family] ?? [];
  if (list.length === 0) return;
  const what = egressIP.spec.allocation === 'PerPod' ? 'pod' : 'namespace';
  const [shown, more] = [list.slice(0, MAX_SHOWN).join(', '), list.length - MAX_SHOWN];
  const who = `${what}${list.length === 1 ? '' : 's'} ${shown}${more > 0 ? ` and ${more} more` : ''}`;
  const message = `${who}: no IPv${family} address is left (${given.room} in all, of which some may rest), and nothing of theirs is let out`;
  findings.add(objectKey(egressIP), 'Programmed', 'False', 'AddressesExhausted', message);
}

/** Whom one EgressIP serves, kept up to date namespace by namespace. */
class WantedIndex {
  readonly #parts = new Map<string, { from: readonly unknown[]; owners: Wanted }>();
  #assign: Assigner | undefined;
  #egressIP: EgressIP | undefined;
  #result: Wanted = new Map();

  /** The same map if nobody came or went. */
  look(egressIP: EgressIP, assign: Assigner, namespaces: Objects['namespaces'], touched: ReadonlySet<string>): Wanted {
    const perPod = egressIP.spec.allocation === 'PerPod';
    if (this.#assign === assign && this.#egressIP === egressIP) {
      if (!perPod || ![...touched].some((name) => this.#parts.has(name))) return this.#result;
    }
    if (this.#egressIP?.spec.allocation !== egressIP.spec.allocation) {
      this.#parts.clear();
      this.#result = new Map();
    }
    [this.#assign, this.#egressIP] = [assign, egressIP];
    const served = assign.served(egressIP.metadata.name);
    if (!perPod) {
      const result = new Map(served.map((namespace) => [namespace.metadata.name, createdAt(namespace)]));
      if (!sameWanted(this.#result, result)) this.#result = result;
      return this.#result;
    }
    let changed = false;
    const seen = new Set<string>();
    for (const { metadata } of served) {
      const { name } = metadata;
      seen.add(name);
      const from = [namespaces.get(name)?.pods, assign.candidates(name)];
      const last = this.#parts.get(name);
      if (last !== undefined && sameItems(last.from, from)) continue;
      const owners = podsOf(egressIP, name, namespaces.get(name)?.pods ?? [], assign);
      const same = last !== undefined && sameWanted(last.owners, owners);
      this.#parts.set(name, { from, owners: same ? last.owners : owners });
      changed ||= !same;
    }
    for (const name of this.#parts.keys()) if (!seen.has(name)) changed = this.#parts.delete(name);
    if (changed) this.#result = new Map([...this.#parts.values()].flatMap(({ owners }) => [...owners]));
    return this.#result;
  }
}

/** Pods that may send, or will: one that has no node or address yet finds its egress IP ready. */
function podsOf(egressIP: EgressIP, namespace: string, pods: readonly Pod[], assign: Assigner): Wanted {
  const candidates = assign.candidates(namespace);
  const owners = new Map<string, number>();
  for (const pod of pods) {
    const { phase } = pod.status ?? {};
    if (pod.spec?.hostNetwork === true || phase === 'Succeeded' || phase === 'Failed') continue;
    const { otherwise, destinations } = chosenOf(candidates, pod);
    if (otherwise?.egressIP !== egressIP && !destinations.some((one) => one.egressIP === egressIP)) continue;
    owners.set(`${namespace}/${pod.metadata.name}`, createdAt(pod));
  }
  return owners;
}

function sameWanted(a: Wanted, b: Wanted): boolean {
  if (a.size !== b.size) return false;
  for (const [owner, since] of a) if (b.get(owner) !== since) return false;
  return true;
}

const placedBy = new WeakMap<Given, PerFamily<Egress[]>>();

/** What is given, rather than all that might be. */
export function placedOf(given: Given): PerFamily<Egress[]> {
  const known = placedBy.get(given);
  if (known !== undefined) return known;
  const own = [...given.namespaces.values()];
  const lists = own.flatMap(({ all, pods }) => [...(all ? [all] : []), ...(pods?.values() ?? [])]);
  const placed: PerFamily<Egress[]> = {};
  for (const family of families) {
    const list = lists.flatMap((ways) => ways[family] ?? []);
    if (list.length > 0) placed[family] = list;
  }
  placedBy.set(given, placed);
  return placed;
}
