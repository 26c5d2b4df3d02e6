/**
 * Egress IPs while the table is made for the first time. Both take seconds where there is much: for each IPv6 address the kernel
 * goes over all multicast groups of its interface (ipv6_mc_up(), net/ipv6/mcast.c), a millisecond with 3,000. So they are added
 * meanwhile. Nothing is led here by them yet; and until the table's own input chain is there, a small table in its
 * place keeps everybody from the sockets of this machine.
 */
import { NFT_TABLE_EARLY } from '../api/names.ts';
import { type Family, families, type GatewayPlan } from '../api/plan.ts';
import { type DeviceAddress, diffNet, type Ip, type NetScope } from '../kernel/iproute.ts';
import { diffRuleset, emptyState, type Nft, type Ruleset } from '../kernel/nft.ts';
import { addressType, header } from './destination-sets.ts';
import { familyOf } from './membership.ts';
import { textOf } from './owned-addresses.ts';

/** Fewer are added in a moment. */
const LEAST = 256;

export class EarlyAddresses {
  readonly #nft: Nft;
  readonly #ip: Ip;
  readonly #added = new Set<string>();
  #adding: Promise<void> | undefined;
  /** No table of ours is there, of another run that was killed neither. */
  #clean = false;

  constructor(nft: Nft, ip: Ip) {
    this.#nft = nft;
    this.#ip = ip;
  }

  /** `wanted`: all addresses of the plan. Returns once they are on their way, if there are many. */
  async begin({ settings }: GatewayPlan, wanted: readonly DeviceAddress[], scope: NetScope): Promise<void> {
    if (!('pool' in settings)) return;
    const { externalInterface } = settings.pool;
    const egress = wanted.filter(({ dev }) => dev === externalInterface);
    if (egress.length < LEAST) return;
    const current = await this.#ip.list(scope);
    const here = new Set(current.addresses.map(textOf));
    const missing = egress.filter((address) => !here.has(textOf(address)));
    if (missing.length < LEAST) return;
    await this.#adding;
    this.#clean = false;
    await this.#nft.drop(NFT_TABLE_EARLY);
    await this.#nft.run(diffRuleset(emptyState(), guard(missing)));
    for (const address of missing) this.#added.add(textOf(address));
    const lines = diffNet(current, { ...current, addresses: [...current.addresses, ...missing] });
    // What fails is done again, and told, with all else that a plan asks for.
    this.#adding = this.#ip.apply(lines).catch(() => {});
  }

  /** The table is in force. */
  async end(): Promise<void> {
    await this.#adding;
    this.#adding = undefined;
    if (!this.#clean) await this.#nft.drop(NFT_TABLE_EARLY);
    this.#clean = true;
  }

  /** Those that nobody has heard of yet. */
  take(): ReadonlySet<string> {
    const added = new Set(this.#added);
    this.#added.clear();
    return added;
  }
}

function guard(addresses: readonly DeviceAddress[]): Ruleset {
  const bare = addresses.map(({ address }) => address.slice(0, address.indexOf('/')));
  const elements = (family: Family) =>
    new Map(bare.filter((address) => familyOf(address) === family).map((address) => [address, ''] as const));
  return {
    family: 'inet',
    table: NFT_TABLE_EARLY,
    counters: [],
    sets: Object.fromEntries(
      families.map((family) => [`egress${family}`, { type: addressType[family], elements: elements(family) }]),
    ),
    chains: {
      input: {
        hook: 'type filter hook input priority filter; policy accept;',
        rules: families.map((family) => `${header[family]} daddr @egress${family} drop`),
      },
    },
  };
}
