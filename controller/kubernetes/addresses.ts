/**
 * Addresses that are given out, as objects at the API server (api/schema/egress-address.ts). Each is written before anybody hears of
 * it, and only as the version that was read last: whoever else wrote one meanwhile is noticed, and nothing of ours comes of it.
 */
import { formatAddress, parseAddress } from '../../api/address.ts';
import { API_VERSION } from '../../api/names.ts';
import { isRecord, sameJson } from '../../api/plan-delta.ts';
import { addressOfName, EGRESS_ADDRESS_PLURAL, egressAddressName } from '../../api/schema/egress-address.ts';
import type { AddressOwner, Allocation, PlannerMemory } from '../plan/memory.ts';
import { obtain, obtainAll, Refused } from './obtain.ts';
import type { Api, Json, Question } from './requests.ts';

type Given = Pick<PlannerMemory, 'allocations' | 'owners'>;

/** What one object says. */
interface Said {
  allocation: Allocation;
  owner?: AddressOwner;
}

interface Known {
  name: string;
  uid: string;
  resourceVersion: string;
  said: Said;
}

/** Somebody else has written what we were about to. */
export class Conflict extends Error {}

/** Requests at a time. */
const AT_ONCE = 16;
const PATH = `/apis/${API_VERSION}/${EGRESS_ADDRESS_PLURAL}`;

export class AddressObjects {
  readonly #api: Api;
  /** By canonical address. */
  #known = new Map<string, Known>();

  constructor(api: Api) {
    this.#api = api;
  }

  get given(): Given {
    const given: Given = { allocations: {}, owners: {} };
    for (const [address, { said }] of this.#known) {
      given.allocations[address] = said.allocation;
      if (said.owner !== undefined) given.owners[address] = said.owner;
    }
    return given;
  }

  /** All of them, as they are now. */
  async read(): Promise<void> {
    const known = new Map<string, Known>();
    for await (const item of obtainAll(this.#api, PATH)) {
      const read = parse(item);
      if (read !== undefined) known.set(...read);
    }
    this.#known = known;
  }

  /** Afterwards they are these. Throws Conflict, or what kept the API server from it: then some may be written. */
  async write({ allocations, owners }: Given): Promise<void> {
    const work: (() => Promise<void>)[] = [];
    for (const [address, allocation] of Object.entries(allocations)) {
      const known = this.#known.get(address);
      const owner = owners[address];
      const said = { allocation, ...(owner?.egressIP === allocation.owner && { owner }) };
      if (known === undefined) work.push(() => this.#create(address, said));
      else if (!sameJson(known.said, said)) work.push(() => this.#replace(address, known, said));
    }
    for (const [address, known] of this.#known) {
      if (!Object.hasOwn(allocations, address)) work.push(() => this.#delete(address, known));
    }
    const failures: unknown[] = [];
    const turn = async (): Promise<void> => {
      for (let job = work.shift(); job !== undefined && failures.length === 0; job = work.shift())
        await job().catch((error: unknown) => failures.push(error));
    };
    await Promise.all(Array.from({ length: Math.min(AT_ONCE, work.length) }, turn));
    const conflict = failures.find((failure) => failure instanceof Conflict);
    if (failures.length > 0) throw conflict ?? failures[0];
  }

  async #create(address: string, said: Said): Promise<void> {
    const body = bodyOf(address, said);
    this.#learn(address, await this.#ask(address, { method: 'POST', path: PATH, body }));
  }

  async #replace(address: string, { name, resourceVersion }: Known, said: Said): Promise<void> {
    const body = bodyOf(address, said, resourceVersion);
    this.#learn(address, await this.#ask(address, { method: 'PUT', path: `${PATH}/${name}`, body }));
  }

  async #delete(address: string, { name, uid, resourceVersion }: Known): Promise<void> {
    const body = { preconditions: { uid, resourceVersion } };
    try {
      await this.#ask(address, { method: 'DELETE', path: `${PATH}/${name}`, body });
    } catch (error) {
      // Gone is what it was to be.
      if (!(error instanceof Refused && error.status === 404)) throw error;
    }
    this.#known.delete(address);
  }

  #learn(address: string, made: unknown): void {
    const read = parse(made);
    if (read?.[0] !== address)
      throw new Error(`EgressAddress of ${address}: the API server answers with another object`);
    this.#known.set(...read);
  }

  async #ask(address: string, question: Omit<Question, 'timeoutMs'>): Promise<Json> {
    try {
      return await obtain(this.#api, question);
    } catch (error) {
      if (error instanceof Refused && error.status === 409)
        throw new Conflict(`EgressAddress of ${address}: somebody else has written it`);
      throw error;
    }
  }
}

function bodyOf(address: string, { allocation, owner: own }: Said, resourceVersion?: string): Json {
  const { pool, owner, releasedAt } = allocation;
  const parsed = parseAddress(address);
  if (!parsed.ok) throw new Error(`no address: ${address}`);
  return {
    apiVersion: API_VERSION,
    kind: 'EgressAddress',
    metadata: { name: egressAddressName(parsed.value), ...(resourceVersion !== undefined && { resourceVersion }) },
    spec: {
      address: formatAddress(parsed.value),
      pool,
      ...(owner !== '' && { egressIP: owner }),
      ...(own !== undefined && { owner: own.owner }),
      ...(own?.goneAt !== undefined && { ownerGoneAt: new Date(own.goneAt).toISOString() }),
      ...(releasedAt !== undefined && { releasedAt: new Date(releasedAt).toISOString() }),
    },
  };
}

/** Undefined: none that we wrote. Its name counts, which nobody can have twice. */
function parse(item: unknown): [string, Known] | undefined {
  if (!isRecord(item) || !isRecord(item.metadata) || !isRecord(item.spec)) return undefined;
  const { name, uid, resourceVersion } = item.metadata;
  const { pool, egressIP = '', owner } = item.spec;
  if (typeof name !== 'string' || typeof uid !== 'string' || typeof resourceVersion !== 'string') return undefined;
  const address = addressOfName(name);
  if (address === undefined || typeof pool !== 'string' || typeof egressIP !== 'string') return undefined;
  const [releasedAt, goneAt] = [timeOf(item.spec.releasedAt), timeOf(item.spec.ownerGoneAt)];
  const said: Said = { allocation: { pool, owner: egressIP, ...(releasedAt !== undefined && { releasedAt }) } };
  if (typeof owner === 'string') said.owner = { egressIP, owner, ...(goneAt !== undefined && { goneAt }) };
  return [address, { name, uid, resourceVersion, said }];
}

function timeOf(text: unknown): number | undefined {
  const time = typeof text === 'string' ? Date.parse(text) : Number.NaN;
  return Number.isNaN(time) ? undefined : time;
}
