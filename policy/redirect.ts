/**
 * Redirects (design §3, §4.7): the destination of a flow that a rule permits is another than the pod asked for. Which
 * flows a rule with one is about, where they go, and where a later rule would send them. The second walk, for the new
 * destination, is evaluate.ts's; which addresses are forbidden the planner says (Redirect.forbidden).
 */

import type { Address } from '../api/address.ts';
import { parseAddress } from '../api/address.ts';
import type { Context, Redirect } from '../api/plan.ts';
import { portProtocols } from '../api/ports.ts';
import { must } from '../api/result.ts';
import type { Destination } from './destination.ts';

/** Contexts that are walked again: those of the teams above the one whose rule permits. */
export const redirectContexts: readonly Context[] = ['cluster', 'namespace'];

export interface CompiledRedirect {
  address: Address;
  port?: number;
  forbidden?: string;
}

export const compileRedirect = ({ address, ...rest }: Redirect): CompiledRedirect => ({
  address: must(parseAddress(address)),
  ...rest,
});

/** What cannot be sent there the rule does not match: the other family, and protocols without ports. */
export function canRedirect({ address }: CompiledRedirect, destination: Destination): boolean {
  return address.family === destination.address.family && portProtocols.has(destination.protocol);
}

export function redirected({ address, port }: CompiledRedirect, destination: Destination): Destination {
  return { ...destination, address, ...(port !== undefined && { port }) };
}

/**
 * Whether a rule that permits the new destination would itself send the flow to yet another. It says that nobody goes
 * there but by its own redirect, and a flow is redirected once: so that it forbids.
 */
export function sendsElsewhere(redirect: CompiledRedirect | undefined, to: Destination): boolean {
  if (redirect === undefined) return false;
  const next = redirected(redirect, to);
  return redirect.forbidden !== undefined || next.address.value !== to.address.value || next.port !== to.port;
}
