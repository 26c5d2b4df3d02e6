/**
 * Chains of the gateway's table that are named by what they hold, so that none is ever edited: a change makes a new
 * chain and points to it. A base chain keeps a fixed name and jumps, since two base chains cannot be swapped
 * without a gap (kernel/nft.ts).
 */
import { createHash } from 'node:crypto';
import type { NftChain } from '../kernel/nft.ts';

export class Chains {
  readonly all: Record<string, NftChain> = {};

  /** A chain of these rules; equal rules give the same chain. `also`: what else its name tells. */
  add(noun: string, rules: string[], also: string[] = []): string {
    const content = [...also, ...rules].join('\n');
    const name = `${noun}_${createHash('sha256').update(content).digest('hex').slice(0, 12)}`;
    this.all[name] = { rules };
    return name;
  }

  /** `first`: rules for nearly every packet, which a jump would cost more than they do; the jump's name tells them. */
  base(name: string, hook: string, rules: string[], first: string[] = []): void {
    this.all[name] = { hook, rules: [...first, `jump ${this.add(name, rules, first)}`] };
  }

  /**
   * A chain on one interface, before all other hooks. It holds its rules itself, under a name of their own: while one
   * takes the place of another a packet may pass neither, which the rules must allow for.
   */
  ingress(noun: string, device: string, rules: string[]): void {
    const hook = `type filter hook ingress device "${device}" priority filter; policy accept;`;
    const name = this.add(noun, [hook, ...rules]);
    this.all[name] = { hook, rules };
  }
}
