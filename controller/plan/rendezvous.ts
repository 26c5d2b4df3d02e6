/**
 * Rendezvous (highest random weight) hashing: every (key, member) pair has a score, the order of the scores is the
 * order of the members. Taking a member away moves only what it held. Weights after Schindelhauer and Schomaker:
 * score = -weight / ln(u), u in (0, 1) from the first 48 bits of SHA-256, the same on every machine and version.
 */
import { createHash } from 'node:crypto';
import { compareText } from './snapshot.ts';

/**
 * Separates our scores from any other use of the hash; changing it moves every shard and address. The number is one
 * for which the lab's eight egress IPs, six shards and three gateways are spread as its topology says (design §10).
 */
const SEED = 'sluice 9356';

export interface Member {
  name: string;
  weight: number;
}

function score(key: string, member: Member): number {
  const bits = createHash('sha256').update(`${SEED}\0${key}\0${member.name}`).digest().readUIntBE(0, 6);
  const uniform = (bits + 0.5) / 2 ** 48;
  return -member.weight / Math.log(uniform);
}

/** All members, the holder first. Weight 0: last, and only by score 0; callers leave out who may never hold. */
export function rendezvousOrder(key: string, members: readonly Member[]): string[] {
  return members
    .map((member) => ({ name: member.name, score: score(key, member) }))
    .sort((a, b) => b.score - a.score || compareText(a.name, b.name))
    .map(({ name }) => name);
}

export function rendezvousPick(key: string, names: readonly string[]): string | undefined {
  let best: string | undefined;
  let bestScore = -1;
  for (const name of names) {
    const value = score(key, { name, weight: 1 });
    if (value > bestScore || (value === bestScore && best !== undefined && name < best)) {
      best = name;
      bestScore = value;
    }
  }
  return best;
}
