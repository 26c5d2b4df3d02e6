/** Where the controller of a cluster tells what became of objects: their statuses and events, over connections of their own. */
import type { KubeConfig } from '@kubernetes/client-node';
import type { Logger } from '../../daemon/log.ts';
import type { StatusSink } from '../publish/sink.ts';
import { KubernetesEvents } from './events.ts';
import { apiOf } from './requests.ts';
import { KubernetesStatus } from './status.ts';

export interface StatusesOptions {
  config: KubeConfig;
  log: Logger;
  now: () => number;
  /** A lease's isLeader: who does not lead writes nothing, and keeps what it would write until it does. */
  mayWrite?: () => boolean;
}

/** Closed before the lease is given back, since what waits is written then. */
export function clusterStatuses({ config, ...options }: StatusesOptions): StatusSink {
  const api = apiOf(config);
  const events = new KubernetesEvents({ api, ...options });
  const statuses = new KubernetesStatus({ api, events, ...options });
  return {
    publish: (...published) => statuses.publish(...published),
    patch: (patches) => statuses.patch(patches),
    async close() {
      await statuses.close();
      await events.close();
      api.close();
    },
  };
}
