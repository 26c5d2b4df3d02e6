/**
 * Behind which interface a workload's address is, and whether that interface is still there (design §6): when it is gone,
 * so is the pod, before the API server says so, and the address may be given to the next at once. A pure machine: what
 * the kernel tells goes in (kernel/place-watch.ts), addresses that nobody is behind any more come out.
 *
 * An address is found by the route to it alone (ptp plugin, Calico), else by its neighbour entry and the bridge's
 * forwarding table (bridge plugin): the port behind which its MAC is. An owner is bound to the first interface that it is
 * seen behind, and let out from then on; where no pod can be seen, it is let out by the plan alone. An interface that is
 * down is there. A neighbour that is forgotten, or seen behind another port, says nothing: any pod of a bridge can bring
 * that about.
 *
 * Once gone, an owner has its address again when its own interface is found there again, or when the plan says that the
 * pod's network was made anew (its sandbox was): an interface alone may be the next pod's. A plan may also name a pod too
 * late, when another pod's interface is there: its network is older than that, by the one clock of node and kubelet.
 */
import { parseAddress, parsePrefix, prefixRange, type Range } from '../api/address.ts';
import type { NodePlan } from '../api/plan.ts';
import type { PlaceEvent } from '../wire/rtnetlink.ts';

interface Owner {
  uid: string;
  /** As the plan says. */
  networked: string | undefined;
  /** Its interface; undefined: not seen yet. */
  at: number | undefined;
  /** As who had the address before had it, and may still be: that this interface goes says nothing of this owner. */
  inherited: boolean;
  /** It was let out before places were looked at, so that it need not be seen. */
  trusted: boolean;
  gone: boolean;
}

interface Neighbour {
  device: number;
  mac: string;
}

/** What another program has left behind. */
export interface Before {
  /** Behind which interface it has seen an address. */
  seen: ReadonlyMap<string, number>;
  /** Whether it let an address out. */
  known(address: string): boolean;
}

/** A route was there and went, with its interface up. */
const NOWHERE = 0;
/** Of addresses that nobody is behind any more, and of neighbours that are forgotten, so many are remembered, the last. */
const REMEMBERED_MAX = 4_096;
/** The API server's times are cut to seconds, and what the kernel tells is heard later than it was, by a second at most as we hope. */
const TOLERANCE_MS = 2_000;

export class Places {
  /** By index; whether it is up, and since when it has been there on the wall clock, if that was seen. */
  readonly #links = new Map<number, { up: boolean; since: number }>();
  readonly #routes = new Map<string, number>();
  /** By prefix and index. */
  readonly #subnets = new Map<string, { index: number; range: Range }>();
  readonly #bridges = new Set<number>();
  readonly #neighbours = new Map<string, Neighbour>();
  /** Those that the kernel has forgotten: it forgets all when a bridge takes another MAC, and who sent then is there still. */
  readonly #forgotten = new Map<string, Neighbour>();
  /** By bridge and MAC. */
  readonly #ports = new Map<string, number>();
  #owners = new Map<string, Owner>();
  /** When somebody was behind an address last whose interface is gone, on the wall clock. */
  readonly #left = new Map<string, number>();
  /** What happened since settle() may say something of these; undefined: of any. */
  #touched: Set<string> | undefined;
  #listed = false;
  readonly #now: () => number;

  /** `now`: milliseconds of the wall clock, which the kubelet's times are of too. */
  constructor(now: () => number = Date.now) {
    this.#now = now;
  }

  /** All that is there, in place of what was told before. */
  list(places: readonly PlaceEvent[]): void {
    const told = [
      this.#links,
      this.#routes,
      this.#subnets,
      this.#bridges,
      this.#neighbours,
      this.#forgotten,
      this.#ports,
    ];
    for (const map of told) map.clear();
    this.#listed = false;
    for (const place of places) this.take(place);
    this.#listed = true;
    this.#touched = undefined;
  }

  /** Gives the addresses that were behind an interface which is gone now. */
  take(event: PlaceEvent): string[] {
    switch (event.kind) {
      case 'link':
        if (event.gone) return this.#leave(event.index);
        this.#link(event);
        return [];
      case 'route':
        this.#route(event);
        return [];
      case 'subnet':
        this.#subnet(event);
        return [];
      case 'neighbour':
        this.#neighbour(event);
        return [];
      case 'port':
        this.#port(event);
        return [];
    }
  }

  #link({ index, up }: Extract<PlaceEvent, { kind: 'link' }>): void {
    const known = this.#links.get(index);
    const since = known?.since ?? (this.#listed ? this.#now() : Number.NEGATIVE_INFINITY);
    this.#links.set(index, { up, since });
    // Whether it is up says nothing of anybody.
    if (known === undefined) this.#touched = undefined;
  }

  #neighbour({ gone, address, index, mac }: Extract<PlaceEvent, { kind: 'neighbour' }>): void {
    const known = this.#neighbours.get(address);
    // Most tell only that it was asked for again.
    if (gone ? known === undefined : known?.device === index && known.mac === mac) return;
    if (known !== undefined && gone) {
      this.#neighbours.delete(address);
      remember(this.#forgotten, address, known);
    } else {
      this.#neighbours.set(address, { device: index, mac });
      this.#forgotten.delete(address);
    }
    this.#touched?.add(address);
  }

  #port({ gone, bridge, index, mac }: Extract<PlaceEvent, { kind: 'port' }>): void {
    const key = `${bridge} ${mac}`;
    if (!this.#bridges.has(bridge)) this.#touched = undefined;
    this.#bridges.add(bridge);
    if (gone === (this.#ports.get(key) !== index)) return;
    if (gone) this.#ports.delete(key);
    else this.#ports.set(key, index);
    if (this.#touched === undefined) return;
    for (const neighbours of [this.#neighbours, this.#forgotten])
      for (const [address, neighbour] of neighbours)
        if (neighbour.device === bridge && neighbour.mac === mac) this.#touched.add(address);
  }

  #route({ gone, address, index }: Extract<PlaceEvent, { kind: 'route' }>): void {
    this.#touched?.add(address);
    if (!gone) this.#routes.set(address, index);
    // The kernel takes away IPv6 routes of an interface that goes down, and tells; those of IPv4 without a word.
    else if (this.#routes.get(address) === index && this.#links.get(index)?.up) this.#routes.set(address, NOWHERE);
  }

  #subnet({ gone, prefix, index }: Extract<PlaceEvent, { kind: 'subnet' }>): void {
    const parsed = parsePrefix(prefix);
    if (this.#bridges.has(index)) this.#touched = undefined;
    if (gone) this.#subnets.delete(`${prefix} ${index}`);
    else if (parsed.ok) this.#subnets.set(`${prefix} ${index}`, { index, range: prefixRange(parsed.value) });
  }

  #leave(index: number): string[] {
    const addresses = new Set([this.#routes, this.#neighbours, this.#forgotten].flatMap((map) => [...map.keys()]));
    const left = [...addresses].filter((address) => this.#of(address) === index);
    this.#touched = undefined;
    this.#links.delete(index);
    this.#bridges.delete(index);
    for (const [key, subnet] of this.#subnets) if (subnet.index === index) this.#subnets.delete(key);
    for (const [address, at] of this.#routes) if (at === index) this.#routes.delete(address);
    for (const [key, at] of this.#ports) if (at === index) this.#ports.delete(key);
    for (const address of left) {
      remember(this.#left, address, this.#now());
      this.#forgotten.delete(address);
    }
    return left;
  }

  /** Undefined: not known. */
  #of(address: string): number | undefined {
    const route = this.#routes.get(address);
    if (route !== undefined) return route;
    const neighbour = this.#neighbours.get(address) ?? this.#forgotten.get(address);
    return neighbour && this.#ports.get(`${neighbour.device} ${neighbour.mac}`);
  }

  /** From now on these have the addresses. */
  own({ workloads }: Pick<NodePlan, 'workloads'>, before?: Before): void {
    const owners = new Map<string, Owner>();
    for (const { uid, addresses, networked } of Object.values(workloads)) {
      for (const address of addresses) {
        const last = this.#owners.get(address);
        const anew = last?.gone && last.at !== undefined && networked !== undefined && networked !== last.networked;
        if (last?.uid === uid && !anew) {
          last.networked = networked ?? last.networked;
          owners.set(address, last);
          continue;
        }
        const at = before?.seen.get(address) ?? (last?.gone ? undefined : last?.at);
        const trusted = before?.known(address) === true;
        owners.set(address, { uid, networked, at, inherited: before === undefined, trusted, gone: false });
      }
    }
    this.#owners = owners;
    this.#touched = undefined;
    this.settle();
  }

  /** Binds owners that can be, and looks who is gone. Says what is not as it was. */
  settle(): { gone: boolean; seen: boolean } {
    const changed = { gone: false, seen: false };
    if (!this.#listed) return changed;
    const touched = this.#touched ?? this.#owners.keys();
    this.#touched = new Set();
    for (const address of touched) {
      const owner = this.#owners.get(address);
      if (owner === undefined) continue;
      const here = this.#of(address);
      if (owner.inherited && (owner.at !== here || !this.#isThere(owner.at))) {
        owner.at = undefined;
        owner.inherited = false;
      }
      if (owner.at === undefined && here !== undefined && this.#isThere(here) && !this.#isNewer(here, owner)) {
        owner.at = here;
        owner.inherited = false;
        changed.seen = true;
      }
      const gone = this.#isGone(owner, address);
      if (gone !== owner.gone) changed.gone = true;
      owner.gone = gone;
    }
    return changed;
  }

  #isThere(index: number | undefined): boolean {
    return index !== undefined && this.#links.has(index);
  }

  #isGone(owner: Owner, address: string): boolean {
    if (owner.at === undefined) return isBefore(owner, this.#left.get(address)) || this.#mustBeSeen(owner, address);
    const route = this.#routes.get(address);
    return !this.#links.has(owner.at) || (route !== undefined && route !== owner.at);
  }

  /** Where somebody was seen, or each that sends is, whoever is not seen may not be there any more. */
  #mustBeSeen({ trusted }: Owner, address: string): boolean {
    if (trusted) return false;
    if (this.#left.has(address) || this.#of(address) !== undefined) return true;
    const parsed = parseAddress(address);
    if (!parsed.ok) return false;
    const { family, value } = parsed.value;
    return [...this.#subnets.values()].some(
      ({ index, range }) =>
        this.#bridges.has(index) && range.family === family && range.first <= value && value <= range.last,
    );
  }

  /** Whether this interface is one of a later network than the owner's. */
  #isNewer(index: number, owner: Owner): boolean {
    return isBefore(owner, this.#links.get(index)?.since);
  }

  /** Whether this address's owner is no longer behind it. */
  gone(address: string): boolean {
    return this.#owners.get(address)?.gone === true;
  }

  /** By address: the interface behind which its owner is, or was. */
  seen(): Map<string, number> {
    return new Map(
      [...this.#owners].flatMap(([address, { at }]) => (at === undefined ? [] : [[address, at] as const])),
    );
  }
}

function remember<T>(map: Map<string, T>, address: string, value: T): void {
  map.delete(address);
  map.set(address, value);
  // The oldest is the first.
  const [oldest] = map.keys();
  if (map.size > REMEMBERED_MAX && oldest !== undefined) map.delete(oldest);
}

/** Whether the owner's network was made before that, as far as both are known. */
function isBefore({ networked }: Owner, time: number | undefined): boolean {
  if (networked === undefined || time === undefined) return false;
  return Date.parse(networked) < time - TOLERANCE_MS;
}
