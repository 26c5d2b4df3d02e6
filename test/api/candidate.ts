/**
 * A candidate for a lease, for status.test.ts to kill: NAMESPACE NAME IDENTITY. Says each 10 ms whether it leads, for as long
 * as it lives, and once that it knows of the lease.
 */
import { loadKubeConfig } from '../../controller/kubernetes/client.ts';
import { startLease } from '../../controller/kubernetes/lease.ts';
import { createLog } from '../../daemon/log.ts';

const [namespace = '', name = '', identity = ''] = process.argv.slice(2);
const say = (word: string): boolean => process.stdout.write(`${Date.now()} ${word}\n`);
const lease = startLease({
  config: await loadKubeConfig({}),
  name,
  namespace,
  identity,
  log: createLog(identity, 'warn'),
  onStarted: () => say('starts'),
  onStopped: () => say('stops'),
});
let knows = false;
const timer = setInterval(() => {
  if (lease.isLeader()) say('leads');
  if (!knows && lease.holder() !== undefined) say('knows');
  knows ||= lease.holder() !== undefined;
}, 10);
process.once('SIGTERM', async () => {
  await lease.close();
  clearInterval(timer);
});
