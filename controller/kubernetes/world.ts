/**
 * A controller of a cluster: everything is at its API server. Of several controllers one leads, by a Lease; the others stand by
 * (standby.ts). Who leads no more publishes nothing, and its process is to end: the next one begins as a standby.
 */
import { randomBytes } from 'node:crypto';
import { mkdir } from 'node:fs/promises';
import { hostname } from 'node:os';
import { join } from 'node:path';
import type { Registry } from 'prom-client';
import { CONTROLLER_NAMESPACE } from '../../api/names.ts';
import type { Logger } from '../../daemon/log.ts';
import { finalizersOf } from '../admission/finalizers.ts';
import type { World } from '../world.ts';
import { type KubernetesTarget, loadKubeConfig } from './client.ts';
import { FinalizerWriter } from './finalizers.ts';
import { type Lease, startLease } from './lease.ts';
import { ClusterMemory } from './memory.ts';
import { apiOf } from './requests.ts';
import { watchKubernetes } from './source.ts';
import { clusterStatuses } from './statuses.ts';

export interface ClusterOptions extends KubernetesTarget {
  state: string;
  log: Logger;
  registry: Registry;
  now: () => number;
}

const LEASE = 'sluice-controller';

export async function clusterWorld(options: ClusterOptions): Promise<World> {
  const { state, log, registry, now, ...target } = options;
  const config = await loadKubeConfig(target);
  const api = apiOf(config);
  let lease: Lease | undefined;
  const leads = (): boolean => lease?.isLeader() === true;
  const statuses = clusterStatuses({ config, log, now, mayWrite: leads });
  const finalizers = new FinalizerWriter({ api, log, mayWrite: leads });
  // Nobody's `file` is below it: files are for manifests in a directory.
  const files = join(state, 'no-files');
  await mkdir(files, { recursive: true, mode: 0o700 });
  return {
    watch: ({ onChange }) => watchKubernetes({ target, state, log, registry, onChange }),
    lead: (onLost) =>
      new Promise((resolve) => {
        lease = startLease({
          config,
          name: LEASE,
          namespace: CONTROLLER_NAMESPACE,
          identity: `${hostname()}_${randomBytes(4).toString('hex')}`,
          log,
          onStarted: resolve,
          onStopped: () => onLost(`the lease ${CONTROLLER_NAMESPACE}/${LEASE} could not be renewed in time`),
        });
      }),
    leads,
    leader: () => lease?.holder(),
    memory: () => ClusterMemory.open({ config, namespace: CONTROLLER_NAMESPACE, state, log, now }),
    statuses,
    files,
    others: true,
    planned: (objects) => finalizers.want(finalizersOf(objects)),
    async close() {
      await finalizers.close();
      await lease?.close();
      api.close();
    },
  };
}
