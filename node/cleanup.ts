/**
 * `sluice node cleanup`: what a node's program put into the kernel (design §2), found and taken away; pods leave as their CNI
 * lets them after it. Rules and tables of routing go first: what still carries a mark meets the guard of the nftables table,
 * until that goes too. Flows that were steered are ended at last, since nothing would translate what follows of them.
 */
import {
  NFT_TABLE_NODE,
  NODE_MARK_HELD,
  NODE_MARK_MASK,
  NODE_TABLE_BASE,
  RULE_PRIORITY_NODE,
  TUNNEL_MAC_NODE,
} from '../api/names.ts';
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
import type { NetState, Rule } from '../kernel/iproute.ts';
import { HostIp } from '../kernel/iproute-host.ts';
import { HostNft } from '../kernel/nft-host.ts';
import { nodeScope } from './compile.ts';

const pods = 'pods of this node need it, with Sluice or without';
const kept = { 'net/ipv4/ip_forward': pods, 'net/ipv6/conf/all/forwarding': pods };

/** Of one shard; one of another program may have a priority in our range. */
const isRule = ({ priority, table, mark }: Rule): boolean =>
  mark?.mask === NODE_MARK_MASK &&
  priority === RULE_PRIORITY_NODE + mark.value &&
  table === NODE_TABLE_BASE + mark.value;

export async function nodeCleaning(state: string): Promise<Cleaning> {
  const [nft, ip] = [new HostNft(), new HostIp()];
  const listed = await ip.list(nodeScope);
  const links = listed.links.filter(({ mac }) => mac === TUNNEL_MAC_NODE);
  const rules = listed.rules.filter(isRule);
  const net: NetState = { ...listed, links, rules, neighbours: links.length > 0 ? listed.neighbours : [] };
  const sysctls = await sysctlSteps(ownSysctls(state), kept);
  const shards = new Set(rules.flatMap(({ mark }) => mark?.value ?? []));
  const flows: Step = {
    what: 'flows that were steered',
    run: () => endFlows(({ mark }) => shards.has((mark ?? 0) & NODE_MARK_MASK)),
  };
  return {
    steps: [
      ...netSteps(ip, net),
      ...(await queueRuleSteps('PREROUTING', NODE_MARK_HELD, NODE_MARK_MASK)),
      ...tableSteps(nft, await inetTables(), [NFT_TABLE_NODE]),
      ...sysctls.steps,
      ...(shards.size > 0 ? [flows] : []),
    ],
    left: sysctls.left,
  };
}
