/**
 * The controller's end of the plan stream in the network namespace of a gateway (inspect-rig.ts) or a node: plans come as JSON
 * lines on stdin, what is said of them goes to stdout. Arguments: port, directory of the controller's certificate.
 */
import { createInterface } from 'node:readline';
import type { PlanOf, PlanRole } from '../../api/plan.ts';
import { silentLog } from '../../daemon/log.ts';
import { startPlanServer } from '../../daemon/stream-server.ts';

interface Fed {
  role?: PlanRole;
  name?: string;
  plan: PlanOf[PlanRole];
  generation: number;
}

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
  const { role = 'gateway', name = 'gw-a', plan, generation } = JSON.parse(line) as Fed;
  server.publish(role, name, plan, generation);
}
await server.close();
process.exit(0);
