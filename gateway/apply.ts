/**
 * Brings a gateway from what is in force to a plan: one nft transaction; list → diff → apply for links, addresses,
 * routes, rules; flows that the plan ends, and then a lighter guard at the last hook. The nft rules come first, so that no packet is forwarded without them; a node
 * releases a workload only when all of it is acknowledged. Applying the same plan twice changes nothing, and the
 * first apply after a start compares with the kernel, so that a restart flushes nothing.
 */
import { readFile, rename, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import {
  CT_DECIDED,
  NFT_TABLE_GATEWAY,
  RULE_PRIORITY_RESET,
  RULE_PRIORITY_UNCHECKED,
  TABLE_GATEWAY_EGRESS,
  TABLE_GATEWAY_PROHIBIT,
  TABLE_GATEWAY_RESET,
  TABLE_GATEWAY_RETURN,
  TABLE_GATEWAY_UNCHECKED,
  TUNNEL_DEVICE,
} from '../api/names.ts';
import { emptyGatewayPlan, type GatewayPlan } from '../api/plan.ts';
import { type DeviceAddress, diffNet, type Ip, type NetScope, type NetState } from '../kernel/iproute.ts';
import { changeSize, diffRuleset, type Nft, type NftState, type Ruleset, stateOf } from '../kernel/nft.ts';
import type { ConntrackEntry } from '../wire/conntrack.ts';
import { compileGateway } from './compile.ts';
import { compileNet, deviceSysctls, heldShards, sysctls } from './compile-net.ts';
import { endedBy, touchesFlows } from './recheck.ts';

export interface GatewayKernel {
  nft: Nft;
  ip: Ip;
  sysctl(desired: Record<string, string>): Promise<unknown>;
  mtu(device: string): Promise<number>;
  /** Whether `rp_filter` is on for a device: the higher of its own value and that of `all`. */
  reversePathFilter(device: string): Promise<boolean>;
  announce(device: string, addresses: string[]): void;
  endFlows(match: (flow: ConntrackEntry) => boolean): Promise<number>;
}

export interface Applied {
  /** Rule numbers of the ruleset in force (marks.ts). */
  ruleNumbers: Map<string, number>;
  flowsEnded: number;
  /** changeSize() of what nftables was asked for. */
  nftChanges: number;
}

export class GatewayApply {
  readonly #self: string;
  readonly #kernel: GatewayKernel;
  readonly #owned: OwnedAddresses;
  #plan: GatewayPlan = emptyGatewayPlan();
  /** What is in force as last applied; undefined: ask the kernel. */
  #nft: NftState | undefined;
  #net: NetState | undefined;
  #reversePathFilter = true;
  /** Settings of devices, as last written. */
  #settled = '';

  constructor(self: string, kernel: GatewayKernel, stateDirectory: string) {
    this.#self = self;
    this.#kernel = kernel;
    this.#owned = new OwnedAddresses(join(stateDirectory, 'addresses.json'));
  }

  async apply(plan: GatewayPlan): Promise<Applied> {
    try {
      return await this.#apply(plan);
    } catch (error) {
      this.forget();
      throw error;
    }
  }

  /** The next apply() lists the kernel's state anew, and so undoes what others changed of ours. */
  forget(): void {
    this.#nft = undefined;
    this.#net = undefined;
  }

  async #apply(plan: GatewayPlan): Promise<Applied> {
    const listed = this.#nft === undefined || this.#net === undefined;
    const { ruleset, settled, ruleNumbers } = compileGateway(plan, {
      reversePathFilter: await this.#filtersReversePath(plan, listed),
      heldShards: heldShards(plan, this.#self),
    });
    const touches = listed || touchesFlows(this.#plan, plan);
    let nftChanges = 0;
    const rules = async (): Promise<void> => {
      nftChanges = await this.#applyRules(touches ? ruleset : settled);
    };
    const net = (): Promise<void> => this.#applyNet(plan, listed);
    // A machine that forwards what comes from workloads must never be without the rules, at either end of its service.
    const steps = 'pool' in plan.settings ? [rules, net] : [net, rules];
    for (const step of steps) await step();

    const ended = touches ? await this.#kernel.endFlows(endedBy(plan)) : 0;
    // Every flow that is left now, or was made since, has its own translation.
    if (touches) nftChanges += await this.#applyRules(settled);
    this.#plan = plan;
    return { ruleNumbers, flowsEnded: ended, nftChanges };
  }

  /** Asked anew whenever the kernel is listed: a packet should not pay for a filter that is off. */
  async #filtersReversePath(plan: GatewayPlan, listed: boolean): Promise<boolean> {
    if (listed && 'pool' in plan.settings) {
      this.#reversePathFilter = await this.#kernel.reversePathFilter(plan.settings.pool.externalInterface);
    }
    return this.#reversePathFilter;
  }

  async #applyRules(ruleset: Ruleset): Promise<number> {
    const { nft } = this.#kernel;
    this.#nft ??= await nft.list('inet', NFT_TABLE_GATEWAY);
    const change = diffRuleset(this.#nft, ruleset);
    await nft.run(change);
    this.#nft = stateOf(ruleset);
    return changeSize(change);
  }

  async #applyNet(plan: GatewayPlan, listed: boolean): Promise<void> {
    const { ip, sysctl, announce } = this.#kernel;
    const desired = await this.#desired(plan);
    if (listed && 'pool' in plan.settings) await sysctl(sysctls);
    const scope = await this.#scope(desired.addresses);
    const current = this.#net ?? (await ip.list(scope));
    const lines = diffNet(current, desired);
    if (lines.length > 0) await ip.apply(lines);
    const settings = 'pool' in plan.settings ? deviceSysctls(plan.settings.pool) : {};
    const settled = JSON.stringify(settings);
    // A device that was made just now has none of them.
    const renewed = listed || settled !== this.#settled || lines.some((line) => line.includes(' link add '));
    if (renewed && 'pool' in plan.settings) await sysctl(settings);
    this.#settled = settled;
    this.#net = desired;
    await this.#owned.write(desired.addresses);
    const here = new Set(current.addresses.map(textOf));
    const added = desired.addresses.filter((address) => !here.has(textOf(address)));
    for (const [device, addresses] of byDevice(added)) announce(device, addresses);
  }

  async #desired(plan: GatewayPlan): Promise<NetState> {
    const mtu = 'pool' in plan.settings ? await this.#kernel.mtu(plan.settings.pool.internalInterface) : 1500;
    return compileNet(plan, this.#self, mtu);
  }

  async #scope(desired: DeviceAddress[]): Promise<NetScope> {
    const ours = await this.#owned.add(desired);
    return {
      links: [TUNNEL_DEVICE],
      managed: (address) => ours.has(textOf(address)),
      tables: [
        TABLE_GATEWAY_RETURN,
        TABLE_GATEWAY_EGRESS,
        TABLE_GATEWAY_UNCHECKED,
        TABLE_GATEWAY_RESET,
        TABLE_GATEWAY_PROHIBIT,
      ],
      rulePriorities: [[RULE_PRIORITY_RESET, RULE_PRIORITY_UNCHECKED]],
      neighbourDevices: [TUNNEL_DEVICE],
    };
  }
}

/** Only flows that policy decided are ours to end. */
export const decidedMark = { value: CT_DECIDED, mask: CT_DECIDED };

/**
 * Addresses that this program has put on the machine, on disk before they are put there: after a crash they can be
 * told from those of others, since the kernel does not say who added an address (IFA_PROTO needs iproute2 6.3).
 */
class OwnedAddresses {
  readonly #file: string;
  #known: Set<string> | undefined;

  constructor(file: string) {
    this.#file = file;
  }

  async add(addresses: DeviceAddress[]): Promise<Set<string>> {
    this.#known ??= await this.#read();
    const before = this.#known.size;
    for (const address of addresses) this.#known.add(textOf(address));
    if (this.#known.size !== before) await this.#save(this.#known);
    return this.#known;
  }

  async write(addresses: DeviceAddress[]): Promise<void> {
    const next = new Set(addresses.map(textOf));
    if (next.size === this.#known?.size) return;
    this.#known = next;
    await this.#save(next);
  }

  async #save(known: Set<string>): Promise<void> {
    await writeFile(`${this.#file}.new`, JSON.stringify([...known]));
    await rename(`${this.#file}.new`, this.#file);
  }

  async #read(): Promise<Set<string>> {
    try {
      const parsed: unknown = JSON.parse(await readFile(this.#file, 'utf8'));
      return new Set(Array.isArray(parsed) ? parsed.filter((text) => typeof text === 'string') : []);
    } catch {
      return new Set();
    }
  }
}

const textOf = ({ dev, address }: DeviceAddress): string => `${dev} ${address}`;

function byDevice(addresses: DeviceAddress[]): Map<string, string[]> {
  const found = new Map<string, string[]>();
  for (const { dev, address } of addresses) {
    const list = found.get(dev) ?? [];
    list.push(address.slice(0, address.indexOf('/')));
    found.set(dev, list);
  }
  return found;
}
