/** A node's plan that is only to be told from another, for tests of streams: with pods of one namespace. */
import { emptyNodePlan, type NodePlan } from '../api/plan.ts';

export function planOf(...pods: string[]): NodePlan {
  const plan = emptyNodePlan();
  for (const pod of pods) {
    plan.workloads[`uid-${pod}`] = {
      namespace: 'billing',
      name: pod,
      uid: `uid-${pod}`,
      addresses: ['10.244.1.2'],
      steer: { 4: { shard: 'main/0' } },
    };
  }
  return plan;
}
