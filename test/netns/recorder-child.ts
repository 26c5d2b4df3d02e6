/**
 * The recorder of flows in a network namespace of its own (recorder-rig.ts starts it by `ip netns exec`): prints its
 * records and what each flow carried; a line on stdin has it look at living flows, or is the plan that is in force.
 * Argument: `lookedAt`. With another one, `detect`, it samples flows, too.
 */
import { createInterface } from 'node:readline';
import { emptyGatewayPlan, type GatewayPlan } from '../../api/plan.ts';
import { compileGateway } from '../../gateway/compile.ts';
import { ruleNumbers } from '../../gateway/marks.ts';
import { Detection } from '../../gateway/record/detection.ts';
import { viewOf } from '../../gateway/record/flow-record.ts';
import { Recorder } from '../../gateway/record/recorder.ts';
import { HostNft } from '../../kernel/nft-host.ts';

const say = (line: object): void => void process.stdout.write(`${JSON.stringify(line)}\n`);
const recorder = new Recorder({
  view: viewOf('gw-a', emptyGatewayPlan(), ruleNumbers()),
  onRecord: (record) => say({ record }),
  onTraffic: (_, carried) => say({ carried }),
  lookedAt: Number(process.argv[2]),
  samples: process.argv[3] === 'detect',
  onError: (error) => say({ error: error.message }),
});
await recorder.start();
const nft = new HostNft();
const detection = new Detection({
  runScript: (script) => nft.runScript(script),
  onReading: (flow, reading) => recorder.sampled(flow, reading),
  onError: (error) => say({ error: error.message }),
});
if (process.argv[3] === 'detect') await detection.start();
say({ ready: true });
for await (const line of createInterface({ input: process.stdin })) {
  if (line === 'look') await recorder.lookAtFlows();
  if (line.startsWith('{')) {
    const plan = JSON.parse(line) as GatewayPlan;
    recorder.view = viewOf('gw-a', plan, compileGateway(plan).ruleNumbers);
  }
  say({ done: line });
}
if (process.argv[3] === 'detect') await detection.close();
await recorder.close();
