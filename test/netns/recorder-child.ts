/**
 * The recorder of flows in a network namespace of its own (test/netns/hits.test.ts starts it by `ip netns exec`): prints
 * what each flow carried; a line on stdin has it look at living flows. Argument: `lookedAt`.
 */
import { createInterface } from 'node:readline';
import { emptyGatewayPlan } from '../../api/plan.ts';
import { viewOf } from '../../gateway/record/flow-record.ts';
import { Recorder } from '../../gateway/record/recorder.ts';

const say = (line: object): void => void process.stdout.write(`${JSON.stringify(line)}\n`);
const recorder = new Recorder({
  view: viewOf('gw-a', emptyGatewayPlan(), new Map()),
  onRecord: () => undefined,
  onTraffic: (_, carried) => say(carried),
  lookedAt: Number(process.argv[2]),
  onError: (error) => say({ error: error.message }),
});
await recorder.start();
say({ ready: true });
for await (const line of createInterface({ input: process.stdin })) {
  if (line === 'look') await recorder.lookAtFlows();
  say({ done: line });
}
await recorder.close();
