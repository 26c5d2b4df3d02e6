/** What a node's chains are written with. */
import { hash } from 'node:crypto';
import type { Ruleset } from '../kernel/nft.ts';

/** nft's words per family. */
export const words = {
  4: { ip: 'ip', type: 'ipv4_addr', nfproto: 'ipv4' },
  6: { ip: 'ip6', type: 'ipv6_addr', nfproto: 'ipv6' },
} as const;

/** Chains under construction; a chain's name is its noun and a hash of its rules. */
export class Chains {
  readonly chains: Ruleset['chains'] = {};

  add(noun: string, rules: string[]): string {
    const name = `${noun}_${hash('sha256', rules.join('\n')).slice(0, 10)}`;
    this.chains[name] = { rules };
    return name;
  }

  base(name: string, hook: string, target: string): void {
    this.chains[name] = { hook: `${hook}; policy accept;`, rules: [`jump ${target}`] };
  }
}
