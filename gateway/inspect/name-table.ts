/**
 * Which addresses a name has, as answers of trusted resolvers said (design §4.6): a pool has one table, which its gateways
 * share. A pair of name and address holds from its answer on for its TTL (between a floor and a ceiling) and a grace, and as
 * long as a flow uses it, and a grace after that. Bounded per name and in all: over it the pairs that have been out of use
 * longest go first, never one that a flow uses. Pure: time is passed in, as milliseconds since the epoch, since entries
 * outlive the program (on disk) and travel (to the other gateways).
 * Left out: whose answers are believed, and whether a name in a flow's bytes is what a rule permits.
 */
import { type Address, formatAddress } from '../../api/address.ts';

export interface NameTableLimits {
  /** TTLs are taken as at least so long: an answer with TTL 0 is used by whoever asked. Seconds. */
  ttlFloor: number;
  /** And at most so long. Seconds. */
  ttlCeiling: number;
  /** Seconds after the TTL, or after the last flow. */
  grace: number;
  addressesPerName: number;
  /** Pairs in all. */
  pairs: number;
}

export const defaultNameTableLimits: NameTableLimits = {
  ttlFloor: 30,
  ttlCeiling: 86_400,
  grace: 300,
  // A round-robin name of a large service gives some hundred over a day.
  addressesPerName: 1_024,
  pairs: 100_000,
};

/** What one answer says: each of `names` (the question's and those that it is an alias of) has each of the addresses. */
export interface Teaching {
  /** Canonical (api/host-name.ts). */
  names: readonly string[];
  addresses: readonly { address: Address; ttlSeconds: number }[];
}

/** A pair as it is written down and told to other gateways. */
export interface NamedAddress {
  name: string;
  /** Canonical text. */
  address: string;
  /** Until when it holds without a flow, grace included. */
  until: number;
}

/** Why a pair was not learned, or is no more. */
export const nameTableReasons = {
  forbidden: 'its address lies where no outside name may lead: cluster, loopback, link-local, multicast, egress ranges',
  expired: 'its time is over and no flow uses it',
  evicted: 'it made room for a newer one',
  full: 'flows use all pairs that it could take the place of',
} as const;
export type NameTableReason = keyof typeof nameTableReasons;

interface Pair extends NamedAddress {
  /** Flows that use it. */
  users: number;
  /** The last `until` that learn(), merge() or renew() gave. */
  told: number;
  /** Its place among those that fall due, in seconds since the epoch. */
  due: number;
}

export class NameTable {
  readonly #limits: NameTableLimits;
  readonly #forbidden: (address: Address) => boolean;
  /** Name → address → pair, the longest unused address of a name first. */
  readonly #names = new Map<string, Map<string, Pair>>();
  readonly #addresses = new Map<string, Set<Pair>>();
  /** That no flow uses, the longest unused first. */
  readonly #idle = new Set<Pair>();
  /** That flows use. */
  readonly #used = new Set<Pair>();
  /** By the second at which a pair is looked at again. A pair that lives longer by then is filed anew, not before. */
  readonly #due = new Map<number, Set<Pair>>();
  /** Up to this second all that fell due has been looked at. */
  #looked: number | undefined;
  #size = 0;
  readonly counts: Record<NameTableReason, number> = { forbidden: 0, expired: 0, evicted: 0, full: 0 };

  /** `forbidden`: of addresses that are never learned; asked at each answer. */
  constructor(forbidden: (address: Address) => boolean, limits: NameTableLimits = defaultNameTableLimits) {
    this.#forbidden = forbidden;
    this.#limits = limits;
  }

  /** Pairs. */
  get size(): number {
    return this.#size;
  }

  /**
   * Gives what the other gateways have to hear: pairs that are new, or hold so much longer than they were told that it is
   * worth it (a tenth of the grace): a name that is asked for all the time is not told all the time.
   */
  learn({ names, addresses }: Teaching, now: number): NamedAddress[] {
    const told: NamedAddress[] = [];
    const { ttlFloor, ttlCeiling, grace } = this.#limits;
    for (const { address, ttlSeconds } of addresses) {
      if (this.#forbidden(address)) {
        this.counts.forbidden += names.length;
        continue;
      }
      const until = now + (Math.min(Math.max(ttlSeconds, ttlFloor), ttlCeiling) + grace) * 1000;
      const text = formatAddress(address);
      for (const name of names) this.#tell(this.#put(name, text, until, now), told);
    }
    return told;
  }

  /**
   * Of another gateway, or from disk: pairs as they were told. Nobody is believed about a time beyond the ceiling, nor an
   * address that must not be learned. `address`: of the pair's text, parsed by whoever read it. Gives what learn() gives.
   */
  merge(pairs: Iterable<NamedAddress & { parsed: Address }>, now: number): NamedAddress[] {
    const told: NamedAddress[] = [];
    const latest = now + (this.#limits.ttlCeiling + this.#limits.grace) * 1000;
    for (const { name, parsed, until } of pairs) {
      if (until <= now) continue;
      if (this.#forbidden(parsed)) this.counts.forbidden++;
      else this.#tell(this.#put(name, formatAddress(parsed), Math.min(until, latest), now), told);
    }
    return told;
  }

  /**
   * Pairs that flows use and that others, who do not know of the flows, would not hold for a grace from now on: they hold
   * for a grace and a half, and are given, so that they can be told. To be called a few times in a grace; costs what is in use.
   */
  renew(now: number): NamedAddress[] {
    const told: NamedAddress[] = [];
    const grace = this.#limits.grace * 1000;
    for (const pair of this.#used) {
      if (pair.told > now + grace) continue;
      pair.until = Math.max(pair.until, now + 1.5 * grace);
      this.#tell(pair, told);
    }
    return told;
  }

  /** Whether the name has the address. `name` is canonical, `address` canonical text. */
  gives(name: string, address: string, now: number): boolean {
    const pair = this.#names.get(name)?.get(address);
    return pair !== undefined && holds(pair, now);
  }

  /** Of pairs among these, those that hold. */
  known({ names, addresses }: Teaching, now: number): NamedAddress[] {
    const texts = addresses.map(({ address }) => formatAddress(address));
    return names.flatMap((name) => {
      const own = this.#names.get(name);
      return texts.flatMap((address) => {
        const pair = own?.get(address);
        return pair !== undefined && holds(pair, now) ? [{ name, address, until: pair.until }] : [];
      });
    });
  }

  /** The names that an address has: of a flow whose bytes say none. */
  namesOf(address: string, now: number): string[] {
    return [...(this.#addresses.get(address) ?? [])].filter((pair) => holds(pair, now)).map(({ name }) => name);
  }

  /** A flow that was permitted by this pair lives. Each call asks for one of release(); false: there is no such pair. */
  use(name: string, address: string, now: number): boolean {
    const pair = this.#names.get(name)?.get(address);
    if (pair === undefined || !holds(pair, now)) return false;
    pair.users++;
    this.#idle.delete(pair);
    this.#used.add(pair);
    return true;
  }

  /** The flow has ended. */
  release(name: string, address: string, now: number): void {
    const pair = this.#names.get(name)?.get(address);
    if (pair === undefined || pair.users === 0) return;
    pair.users--;
    if (pair.users > 0) return;
    this.#used.delete(pair);
    this.#idle.add(pair);
    pair.until = Math.max(pair.until, now + this.#limits.grace * 1000);
  }

  /** Forgets what is over; costs what falls due. To be called every second or so. Gives how many went. */
  expire(now: number): number {
    const second = Math.floor(now / 1000);
    let gone = 0;
    const look = (due: Set<Pair> | undefined): void => {
      for (const pair of due ?? []) {
        if (holds(pair, now)) this.#file(pair, now);
        else {
          this.#remove(pair);
          gone++;
        }
      }
    };
    // At the first look all that is over fell due before; after a leap of the clock there are fewer places than seconds.
    const from = this.#looked ?? Number.NEGATIVE_INFINITY;
    if (second - from > this.#due.size) {
      for (const at of [...this.#due.keys()]) if (at <= second) look(this.#take(at));
    } else for (let at = from; at <= second; at++) look(this.#take(at));
    this.#looked = second;
    this.counts.expired += gone;
    return gone;
  }

  /** For the disk, and for a gateway that has just come. */
  *pairs(): Generator<NamedAddress> {
    for (const addresses of this.#names.values()) {
      for (const { name, address, until } of addresses.values()) yield { name, address, until };
    }
  }

  /** Canonical texts. */
  addresses(): Iterable<string> {
    return this.#addresses.keys();
  }

  /** Forgets all pairs whose address must not be learned any more: the plan has changed. */
  forget(forbidden: (address: string) => boolean): number {
    const gone = [...this.#addresses].flatMap(([address, pairs]) => (forbidden(address) ? [...pairs] : []));
    for (const pair of gone) {
      this.#take(pair.due, pair);
      this.#remove(pair);
    }
    this.counts.forbidden += gone.length;
    return gone.length;
  }

  #tell(pair: Pair | undefined, told: NamedAddress[]): void {
    if (pair === undefined || pair.until < pair.told + this.#limits.grace * 100) return;
    pair.told = pair.until;
    told.push({ name: pair.name, address: pair.address, until: pair.until });
  }

  /** Undefined: nothing is new, or there is no room. */
  #put(name: string, address: string, until: number, now: number): Pair | undefined {
    const addresses = this.#names.get(name);
    const known = addresses?.get(address);
    if (addresses !== undefined && known !== undefined) {
      this.#touch(addresses, known);
      if (until <= known.until) return undefined;
      known.until = until;
      return known;
    }
    if (!this.#makeRoom(addresses)) {
      this.counts.full++;
      return undefined;
    }
    const pair: Pair = { name, address, until, users: 0, told: Number.NEGATIVE_INFINITY, due: 0 };
    // Asked for anew: whom room was made at the cost of may have been the name's last.
    const own = this.#names.get(name) ?? new Map<string, Pair>();
    this.#names.set(name, own.set(address, pair));
    const others = this.#addresses.get(address) ?? new Set<Pair>();
    this.#addresses.set(address, others.add(pair));
    this.#idle.add(pair);
    this.#size++;
    this.#file(pair, now);
    return pair;
  }

  #touch(addresses: Map<string, Pair>, pair: Pair): void {
    addresses.delete(pair.address);
    addresses.set(pair.address, pair);
    if (this.#idle.delete(pair)) this.#idle.add(pair);
  }

  #makeRoom(addresses: Map<string, Pair> | undefined): boolean {
    let old: Pair | undefined;
    if (addresses !== undefined && addresses.size >= this.#limits.addressesPerName) {
      old = firstIdle(addresses.values());
      if (old === undefined) return false;
    } else if (this.#size >= this.#limits.pairs) {
      [old] = this.#idle;
      if (old === undefined) return false;
    }
    if (old === undefined) return true;
    this.#take(old.due, old);
    this.#remove(old);
    this.counts.evicted++;
    return true;
  }

  #file(pair: Pair, now: number): void {
    // One in use is looked at again after a grace: its end may come at any time.
    const at = pair.users > 0 ? Math.max(pair.until, now + this.#limits.grace * 1000) : pair.until;
    pair.due = Math.floor(at / 1000) + 1;
    const place = this.#due.get(pair.due) ?? new Set<Pair>();
    this.#due.set(pair.due, place.add(pair));
  }

  /** What falls due then, or that pair of it, out of its place. */
  #take(second: number, pair?: Pair): Set<Pair> | undefined {
    const place = this.#due.get(second);
    if (pair !== undefined) place?.delete(pair);
    if (pair === undefined || place?.size === 0) this.#due.delete(second);
    return place;
  }

  #remove(pair: Pair): void {
    const own = this.#names.get(pair.name);
    own?.delete(pair.address);
    if (own?.size === 0) this.#names.delete(pair.name);
    const others = this.#addresses.get(pair.address);
    others?.delete(pair);
    if (others?.size === 0) this.#addresses.delete(pair.address);
    this.#idle.delete(pair);
    this.#used.delete(pair);
    this.#size--;
  }
}

const holds = (pair: Pair, now: number): boolean => pair.users > 0 || pair.until > now;

function firstIdle(pairs: Iterable<Pair>): Pair | undefined {
  for (const pair of pairs) if (pair.users === 0) return pair;
  return undefined;
}
