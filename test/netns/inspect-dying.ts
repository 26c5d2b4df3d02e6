/** The gateway program with a decider that dies at a word (inspect-dying-decider.ts). Arguments: those of `sluice gateway`. */
import { parseArgs } from 'node:util';
import { runGateway } from '../../gateway/main.ts';

const text = { type: 'string', default: '' } as const;
const { values } = parseArgs({
  args: process.argv.slice(3),
  options: { name: text, controller: text, certs: text, state: text, 'flow-log': text, metrics: text, detect: text },
});
const { name, controller, certs, state, metrics } = values;
const decider = new URL('./inspect-dying-decider.js', import.meta.url).href;
const options = { name, controller, certs, state, metrics, flowLog: values['flow-log'], detect: false, decider };
const gateway = await runGateway(options);
process.once('SIGTERM', () => void gateway.close().then(() => process.exit(0)));
