/**
 * nftables events (<linux/netfilter/nf_tables.h>), as far as Sluice asks: which table was deleted. `nft flush ruleset`
 * deletes each. Leaves out everything else that a transaction tells.
 */
import { AttributeCursor, messageType, NFNL_HEADER, NFNL_SUBSYS_NFTABLES } from './nlattr.ts';

const NFT_MSG_DELTABLE = 2;
const NFTA_TABLE_NAME = 1;
/** NFT_TABLE_MAXNAMELEN of older kernels; ours are shorter. */
const NAME_MAX = 256;

/** Name of the table whose deletion the message tells; undefined for any other message. */
export function deletedTable(message: Uint8Array): string | undefined {
  if (message.length < NFNL_HEADER) return undefined;
  if (messageType(message) !== ((NFNL_SUBSYS_NFTABLES << 8) | NFT_MSG_DELTABLE)) return undefined;
  const cursor = new AttributeCursor(message, NFNL_HEADER, message.length);
  while (cursor.next()) {
    if (cursor.type !== NFTA_TABLE_NAME || cursor.length > NAME_MAX) continue;
    const bytes = cursor.bytes();
    const end = bytes.indexOf(0);
    return new TextDecoder().decode(end < 0 ? bytes : bytes.subarray(0, end));
  }
  return undefined;
}
