/**
 * `sluice gateway cleanup`: what a gateway put into the kernel (design §2), found and taken away: classes, addresses,
 * rules, routes and the tunnel first, so that nothing is led here any more, then what decides, then the flows that it
 * had translated. Addresses are those that the program has recorded; if its state directory is lost, host addresses
 * that its nftables table knows as egress IPs or next hops.
 */
import {
  INSPECT_QUEUE_MARK,
  NFT_TABLE_DETECT,
  NFT_TABLE_EARLY,
  NFT_TABLE_GATEWAY,
  NFT_TABLE_INSPECT,
  RULE_PRIORITY_EGRESS,
  RULE_PRIORITY_OTHERS,
  RULE_PRIORITY_OWN,
  RULE_PRIORITY_PROHIBIT,
  RULE_PRIORITY_RESET,
  RULE_PRIORITY_RETURN,
  RULE_PRIORITY_UNCHECKED,
  TABLE_GATEWAY_EGRESS,
  TABLE_GATEWAY_OWN,
  TABLE_GATEWAY_PROHIBIT,
  TABLE_GATEWAY_RESET,
  TABLE_GATEWAY_RETURN,
  TABLE_GATEWAY_UNCHECKED,
  TABLE_MAIN,
  TUNNEL_MAC_GATEWAY,
} from '../api/names.ts';
import { families } from '../api/plan.ts';
import {
  type Cleaning,
  inetTables,
  netSteps,
  ownSysctls,
  queueRuleSteps,
  type Step,
  sysctlSteps,
  tableSteps,
} from '../daemon/cleanup.ts';
import { endFlows } from '../kernel/conntrack.ts';
import type { DeviceAddress, NetState, Rule } from '../kernel/iproute.ts';
import { HostIp } from '../kernel/iproute-host.ts';
import { HostNft } from '../kernel/nft-host.ts';
import { QUEUE_TABLE } from '../kernel/queue-rule.ts';
import { run } from '../kernel/run.ts';
import { diffTc } from '../kernel/tc.ts';
import { HostTc } from '../kernel/tc-host.ts';
import { gatewayScope } from './compile-net.ts';
import { OwnedAddresses, textOf } from './owned-addresses.ts';

/** Where each rule of ours leads: one of another program may have a priority in our range. */
const ruleTables: Record<number, number[]> = {
  [RULE_PRIORITY_RETURN]: [TABLE_GATEWAY_RETURN],
  [RULE_PRIORITY_EGRESS]: [TABLE_GATEWAY_EGRESS, TABLE_MAIN],
  [RULE_PRIORITY_RESET]: [TABLE_GATEWAY_RESET],
  [RULE_PRIORITY_PROHIBIT]: [TABLE_GATEWAY_PROHIBIT],
  [RULE_PRIORITY_UNCHECKED]: [TABLE_GATEWAY_UNCHECKED],
  [RULE_PRIORITY_OWN]: [TABLE_GATEWAY_OWN],
};
/** All ask where a packet came in. */
const isRule = ({ priority, table, goto, iif }: Rule): boolean =>
  iif !== undefined &&
  (table === undefined
    ? priority === RULE_PRIORITY_OTHERS && goto === RULE_PRIORITY_UNCHECKED
    : ruleTables[priority]?.includes(table) === true);

export async function gatewayCleaning(state: string): Promise<Cleaning> {
  const [nft, ip, tc] = [new HostNft(), new HostIp(), new HostTc()];
  const tables = await inetTables();
  const owned = new OwnedAddresses(state);
  const recorded = await owned.recorded();
  const egress = tables.has(NFT_TABLE_GATEWAY) ? await addressesIn('egress') : new Set<string>();
  const ours = recorded ?? (await guessed(egress, tables.has(NFT_TABLE_GATEWAY)));
  const listed = await ip.list(gatewayScope((address) => ours.has(textOf(address))));
  const links = listed.links.filter(({ mac }) => mac === TUNNEL_MAC_GATEWAY);
  const net: NetState = {
    ...listed,
    links,
    rules: listed.rules.filter(isRule),
    neighbours: links.length > 0 ? listed.neighbours : [],
  };
  const sysctls = await sysctlSteps(ownSysctls(state), {});
  const shaped = diffTc(await tc.list(), new Map());
  const flows: Step = {
    what: 'flows that leave with an egress IP',
    run: () => endFlows(({ reply }) => egress.has(reply.destination)),
  };
  const steps = [
    ...shaped.map((line) => ({ what: `tc ${line}`, run: () => tc.apply([line]) })),
    ...netSteps(ip, net),
    ...(await queueRuleSteps('FORWARD', INSPECT_QUEUE_MARK, INSPECT_QUEUE_MARK)),
    // That which lets nothing pass comes last.
    ...tableSteps(nft, tables, [NFT_TABLE_DETECT, QUEUE_TABLE, NFT_TABLE_INSPECT, NFT_TABLE_GATEWAY, NFT_TABLE_EARLY]),
    ...sysctls.steps,
    ...(egress.size > 0 ? [flows] : []),
  ];
  const left = [...sysctls.left];
  if (recorded === undefined) {
    const why = tables.has(NFT_TABLE_GATEWAY)
      ? 'no record of them; taken for ours: host addresses that the nftables table knows, but for the first of a device'
      : 'neither a record of them nor the nftables table is there: look at `ip addr`';
    left.push({ what: 'addresses', why });
  }
  return { steps, left };
}

interface ListedDevice {
  ifname: string;
  addr_info?: { local?: string; prefixlen?: number; family?: string; nodad?: boolean; dynamic?: boolean }[];
}

/**
 * Host addresses of which our table says that they are egress IPs; or that they are next hops or the gateways' own, of
 * which those are ours that are not what a device was given first (IPv4), or without asking for duplicates (IPv6).
 */
async function guessed(egress: ReadonlySet<string>, hasTable: boolean): Promise<Set<string>> {
  const found = new Set<string>();
  if (!hasTable) return found;
  const inside = await addressesIn('hairpin');
  const devices = JSON.parse(await run(['ip', '-j', 'addr', 'show'], { op: 'ip list' })) as ListedDevice[];
  for (const { ifname, addr_info = [] } of devices) {
    const first = addr_info.find(({ family }) => family === 'inet')?.local;
    for (const { local = '', prefixlen, family, nodad, dynamic } of addr_info) {
      if (prefixlen !== (family === 'inet' ? 32 : 128) || dynamic) continue;
      const added = family === 'inet' ? local !== first : nodad === true;
      if (egress.has(local) || (inside.has(local) && added)) {
        found.add(textOf({ dev: ifname, address: `${local}/${prefixlen}` } satisfies DeviceAddress));
      }
    }
  }
  return found;
}

/** Of both families. */
async function addressesIn(set: 'egress' | 'hairpin'): Promise<Set<string>> {
  const found = new Set<string>();
  for (const family of families) {
    const command = ['nft', '-j', 'list', 'set', 'inet', NFT_TABLE_GATEWAY, `${set}${family}`];
    // An empty table has no such set.
    const text = await run(command, { op: 'nft list' }).catch(() => '{"nftables":[]}');
    const { nftables } = JSON.parse(text) as { nftables: { set?: { elem?: unknown[] } }[] };
    for (const element of nftables.flatMap(({ set: one }) => one?.elem ?? [])) {
      if (typeof element === 'string') found.add(element);
    }
  }
  return found;
}
