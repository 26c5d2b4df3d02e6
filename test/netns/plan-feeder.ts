/**
 * The controller's end of the plan stream in a gateway's network namespace (inspect-rig.ts): plans come as JSON lines on stdin,
 * what the gateway says of them goes to stdout. Arguments: port, directory of the controller's certificate.
 */
import { createInterface } from 'node:readline';
import type { GatewayPlan } from '../../api/plan.ts';
import { silentLog } from '../../daemon/log.ts';
import { startPlanServer } from '../../daemon/stream-server.ts';

const say = (line: object): void => void process.stdout.write(`${JSON.stringify(line)}\n`);
const [port = '', certs = ''] = process.argv.slice(2);
const server = await startPlanServer({
  listen: { host: '127.0.0.1', port: Number(port) },
  certs,
  log: silentLog(),
  onHello: ({ name }) => say({ hello: name }),
  onAck: (_, generation, error) => say({ generation, ...(error !== undefined && { error }) }),
  onGone: ({ name }) => say({ gone: name }),
});
say({ ready: true });
for await (const line of createInterface({ input: process.stdin })) {
  const { plan, generation } = JSON.parse(line) as { plan: GatewayPlan; generation: number };
  server.publish('gateway', 'gw-a', plan, generation);
}
await server.close();
process.exit(0);
