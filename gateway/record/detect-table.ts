/**
 * The table that copies first packets of some flows to nfnetlink_log, so that flow records tell which applications and names
 * a namespace speaks before any rule asks for that (design §4.6). Nothing here decides anything or waits for anybody: a
 * copy that nobody takes is lost. Only of flows that a rule or the default action permitted, and that no worker reads.
 * What it costs is one chain for every forwarded packet, of which all but the first eight of a flow meet one rule; so it
 * can be put to sleep (detect-budget.ts). What is copied is bounded for each workload, so that one that opens thousands does not hide the others, and in all.
 * Leaves out: other protocols than TCP and UDP.
 */
import {
  CT_READ,
  CT_RULE_MASK,
  GATEWAY_CHECKED_MARK,
  INSPECT_PASSED_MARK,
  NFLOG_DETECT_GROUP,
  NFT_TABLE_DETECT,
} from '../../api/names.ts';
import { markText } from '../../kernel/nft.ts';

/** A hello with post-quantum keys, as one packet where the kernel has joined its segments. */
export const SNAPLEN = 4_096;
/** Copies a second: of one workload, and in all. Reading one costs the main thread 10 µs, of QUIC 60. */
const EACH = { rate: 20, burst: 40 };
const ALL = { rate: 200, burst: 400 };

const nothing = `add table inet ${NFT_TABLE_DETECT}\ndelete table inet ${NFT_TABLE_DETECT}\n`;

/** Prefixes of copies: who sent it. */
export const CLIENT = 'client';
export const SERVER = 'server';

/**
 * A copy has the kernel's identity of its flow for a mark, and the packet its own again: one of these, or else it is
 * not copied; what may teach names was at a queue before. (nfnetlink_log can say which flow it is only where the kernel was
 * built for that.)
 */
const marks = [GATEWAY_CHECKED_MARK, GATEWAY_CHECKED_MARK | INSPECT_PASSED_MARK, 0].map(markText);
const copies = marks.flatMap((mark) =>
  ([CLIENT, SERVER] as const).map(
    (prefix) =>
      `meta mark ${mark} ct direction ${prefix === CLIENT ? 'original' : 'reply'} meta mark set ct id log prefix "${prefix}" group ${NFLOG_DETECT_GROUP} snaplen ${SNAPLEN} meta mark set ${mark} return`,
  ),
);

/** The identity of a flow from the mark of a copy: the bytes are those of the machine, in connection events of the network. */
export function flowOf(mark: number): number {
  return ((mark << 24) | ((mark & 0xff00) << 8) | ((mark >>> 8) & 0xff00) | (mark >>> 24)) >>> 0;
}

/** For `nft -f`, whatever is there: one transaction. */
export const detectTable = `${nothing}table inet ${NFT_TABLE_DETECT} {
	set sources4 { type ipv4_addr; size 65536; flags dynamic,timeout; timeout 10s; }
	set sources6 { type ipv6_addr; size 65536; flags dynamic,timeout; timeout 10s; }

	chain copied {
		${copies.join('\n\t\t')}
	}

	chain sampled {
		meta nfproto ipv4 update @sources4 { ct original ip saddr limit rate over ${EACH.rate}/second burst ${EACH.burst} packets } return
		meta nfproto ipv6 update @sources6 { ct original ip6 saddr limit rate over ${EACH.rate}/second burst ${EACH.burst} packets } return
		limit rate ${ALL.rate}/second burst ${ALL.burst} packets goto copied
	}

	chain first {
		ct mark & ${markText(CT_RULE_MASK)} == 0x00000000 return
		ct mark & ${markText(CT_READ)} != 0x00000000 return
		meta l4proto udp ct direction original ct original packets <= 3 goto sampled
		meta l4proto != tcp return
		tcp flags & (syn | rst) != 0 return
		ip length <= 52 return
		ip6 length <= 32 return
		ct direction original goto sampled
		ct original packets <= 2 goto sampled
	}

	chain forward {
		type filter hook forward priority -100; policy accept;
		ct packets > 8 accept
		goto first
	}
}
`;

/** While it sleeps its hook is not there. */
export const asleep = `add table inet ${NFT_TABLE_DETECT} { flags dormant; }\n`;

/** Without it: what a run before may have left. */
export const noDetectTable = nothing;
