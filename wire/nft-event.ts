/**
 * nftables events (<linux/netfilter/nf_tables.h>), as far as Sluice asks: whose table a message is about, whether it goes,
 * and who asked for the change. `nft flush ruleset` deletes each table. Leaves out what exactly changed.
 */

import { NFT_MSG_DELTABLE, NFT_MSG_NEWGEN } from './nft-names.ts';
import { AttributeCursor, messagePort, messageType, NFNL_HEADER, NFNL_SUBSYS_NFTABLES } from './nlattr.ts';

/** Of every message but the one that ends a transaction. */
const TABLE_ATTRIBUTE = 1;
/** NFT_TABLE_MAXNAMELEN of older kernels; ours are shorter. */
const NAME_MAX = 256;

export interface TableEvent {
  /** As NFPROTO_INET: the low byte of what nfnetlink's header says. */
  family: number;
  table: string;
  /** Netlink port of who asked for it: a program's process id, or what its further sockets got. */
  port: number;
  deleted: boolean;
}

/** undefined: a message about something else. */
export function tableEvent(message: Uint8Array): TableEvent | undefined {
  if (message.length < NFNL_HEADER) return undefined;
  const type = messageType(message);
  if (type >>> 8 !== NFNL_SUBSYS_NFTABLES || (type & 0xff) === NFT_MSG_NEWGEN) return undefined;
  const cursor = new AttributeCursor(message, NFNL_HEADER, message.length);
  while (cursor.next()) {
    if (cursor.type !== TABLE_ATTRIBUTE || cursor.length > NAME_MAX) continue;
    const bytes = cursor.bytes();
    const end = bytes.indexOf(0);
    const table = new TextDecoder().decode(end < 0 ? bytes : bytes.subarray(0, end));
    return { family: message[16] ?? 0, table, port: messagePort(message), deleted: (type & 0xff) === NFT_MSG_DELTABLE };
  }
  return undefined;
}
