/**
 * What the controller may fetch from (design §3): hosts that a GatewayPool allows, and never a forbidden address
 * (plan/forbidden.ts), whatever a name resolves to. A tenant who can name a URL must not reach with the controller's
 * eyes what he cannot reach himself. Private addresses of elsewhere are not forbidden: a list may well be served inside
 * a company, by a host that the network team has allowed.
 */
import { parseAddress } from '../../api/address.ts';
import type { GatewayPool } from '../../api/kinds.ts';
import { parseAuthority } from '../../api/list-url.ts';
import { must } from '../../api/result.ts';
import type { Forbidden } from '../plan/forbidden.ts';

export interface FetchPolicy {
  allows(host: string, port: number): boolean;
  forbidden: Forbidden;
}

/** Of all pools together: `host port`. */
export function allowedHosts(pools: readonly GatewayPool[]): Set<string> {
  const texts = pools.flatMap(({ spec }) => spec.fetch.allowedHosts);
  return new Set(
    texts.map((text) => {
      const { host, port } = must(parseAuthority(text));
      return `${host} ${port}`;
    }),
  );
}

/** Text that cannot be read is no address to connect to. */
export function checkAddress(text: string, forbidden: Forbidden): string | undefined {
  const address = parseAddress(text);
  return address.ok ? forbidden(address.value) : 'unreadable';
}
