/**
 * The difference between two states of one table as an nft script, which the kernel runs as one transaction.
 */
import type { NftState, Ruleset } from './nft.ts';

/** The script that leads from `current` to `desired`; '' if there is nothing to do. */
export function diffRuleset(_current: NftState, _desired: Ruleset): string {
  throw new Error('not yet');
}
