/** A change of plan, as the gateway's tests ask about it. */
import type { GatewayPlan } from '../api/plan.ts';
import { GatewayCompiler } from '../gateway/compile.ts';
import { touchesFlows } from '../gateway/recheck.ts';

/** Whether a change of plan could end flows. */
export function touches(before: GatewayPlan, after: GatewayPlan): boolean {
  const compiler = new GatewayCompiler();
  compiler.update(before, undefined);
  return touchesFlows(compiler.update(after, undefined));
}
