/**
 * Tables that others would write for the same pods: a map of pods to egress IPs, and a list with one rule a pod. Only
 * the names of interfaces and the addresses are the benchmark's.
 */
import { type Family, families, type GatewayPlan } from '../api/plan.ts';

/** Coprime to the numbers of pods that plans have: the first pods, of which the load is, lie evenly over the list. */
const STRIDE = 7_919;

interface Pair {
  pod: string;
  egress: string;
}

function pairsOf(plan: GatewayPlan, family: Family): Pair[] {
  return Object.values(plan.workloads).flatMap(({ addresses, egress }) => {
    const pod = addresses.find((address) => address.includes(':') === (family === 6));
    const to = egress[family]?.address;
    return pod === undefined || to === undefined ? [] : [{ pod, egress: to }];
  });
}

/** What an expert writes by hand: two look-ups for a new connection, none for the packets of one that stands. */
export function mapTable(plan: GatewayPlan): string {
  const type = { 4: 'ipv4_addr', 6: 'ipv6_addr' } as const;
  const word = { 4: 'ip', 6: 'ip6' } as const;
  const pairs = { 4: pairsOf(plan, 4), 6: pairsOf(plan, 6) };
  const list = (family: Family, text: (pair: Pair) => string): string => pairs[family].map(text).join(',\n');
  return `table inet by-map {
${families
  .map(
    (family) => `  set pods${family} { type ${type[family]}; elements = { ${list(family, ({ pod }) => pod)} } }
  map egress${family} { type ${type[family]} : ${type[family]}; elements = { ${list(family, ({ pod, egress }) => `${pod} : ${egress}`)} } }`,
  )
  .join('\n')}
  chain forward {
    type filter hook forward priority filter; policy drop;
    ct state established,related accept
${families.map((family) => `    ${word[family]} saddr @pods${family} accept`).join('\n')}
  }
  chain postrouting {
    type nat hook postrouting priority srcnat; policy accept;
${families.map((family) => `    oifname "outside" snat ${word[family]} to ${word[family]} saddr map @egress${family}`).join('\n')}
  }
}
`;
}

/** One rule a pod, in a table a family: a packet of the other family asks nothing of it. */
export function naiveTable(plan: GatewayPlan): string {
  return families
    .map((family) => {
      const word = family === 4 ? 'ip' : 'ip6';
      const pairs = pairsOf(plan, family);
      const spread: Pair[] = [];
      for (const [at, pair] of pairs.entries()) spread[(at * STRIDE) % pairs.length] = pair;
      const rules = spread.map(({ pod, egress }) => `${word} saddr ${pod} snat to ${egress}\n`);
      return `table ${word} naive {
  chain postrouting {
    type nat hook postrouting priority srcnat; policy accept;
${rules.join('')}  }
}
`;
    })
    .join('');
}
