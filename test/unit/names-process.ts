/** A gateway's names in a process of their own, so that a test can stop it: its world, name and plan come on stdin. */

import { join } from 'node:path';
import { createInterface } from 'node:readline';
import type { GatewayPlan } from '../../api/plan.ts';
import { startGateway, type World } from './names-world.ts';

for await (const line of createInterface(process.stdin)) {
  const { world, name, plan } = JSON.parse(line) as { world: World; name: string; plan: GatewayPlan };
  const { names } = await startGateway({ ...world, certs: (of) => join(world.dir, 'certs', of) }, name);
  names.plan(plan);
  process.stdout.write('ready\n');
}
