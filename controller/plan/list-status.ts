/**
 * What an ExternalService says of its lists (`addressesFrom`): whether each is known, how long it is, and, in the
 * condition Accepted, what keeps the newest from being in force. Of a list's content nothing but its length.
 */
import type { ExternalService } from '../../api/kinds.ts';
import { type KnownList, unreadLists } from '../../policy/external-service.ts';
import type { Condition } from './condition.ts';

/** The first problem gives the reason. Undefined: all lists are what they should be. */
export function listProblem(service: ExternalService, lists: readonly KnownList[] = []): Condition | undefined {
  const unread = unreadLists(service, lists);
  const problems = (service.spec.addressesFrom ?? []).flatMap((_, i) => {
    const known = lists[i]?.addresses;
    const problem = lists[i]?.problem ?? (known === undefined ? notYet : undefined);
    if (problem === undefined) return [];
    const effect = known === undefined ? 'no list yet' : `the last good list stays in force, ${countOf(known)}`;
    return [{ reason: problem.reason, message: `addressesFrom[${i}]: ${problem.message} (${effect})` }];
  });
  const [first] = problems;
  if (first === undefined) return undefined;
  return {
    type: 'Accepted',
    status: unread.length > 0 ? 'False' : 'True',
    reason: first.reason,
    message: problems.map(({ message }) => message).join('; '),
  };
}

const notYet = { reason: 'NotFetched', message: 'not fetched yet' };
const countOf = ({ length }: readonly string[]): string => (length === 1 ? '1 entry' : `${length} entries`);

export function listFacts(service: ExternalService, lists: readonly KnownList[] = []): Record<string, unknown> {
  const { addressesFrom } = service.spec;
  if (addressesFrom === undefined) return {};
  return {
    lists: addressesFrom.map(({ configMapRef, file, url }, i) => ({
      // Without the query, which may hold a token.
      from: configMapRef !== undefined ? `ConfigMap ${configMapRef.name}` : (file ?? url?.replace(/\?.*$/, '?…') ?? ''),
      ...(lists[i]?.addresses === undefined ? {} : { entries: lists[i].addresses.length }),
    })),
  };
}
