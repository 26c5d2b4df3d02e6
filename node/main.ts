/**
 * `sluice node` (design §6): steers the off-cluster packets of a node's workloads to their shards' next hops.
 * Saved plan, plan client, apply, hold queue, metrics. The kernel's state outlives this process.
 */

export interface NodeOptions {
  name: string;
  /** URL of the controller's plan stream. */
  controller: string;
  /** Folder with ca.crt, tls.crt, tls.key. */
  certs: string;
  /** Folder of the saved plan. */
  state: string;
  workloadInterfaces: string[];
  /** ADDRESS:PORT of metrics and health; absent: none. */
  metrics?: string;
}

export interface RunningNode {
  close(): Promise<void>;
}

export async function runNode(options: NodeOptions): Promise<RunningNode> {
  throw new Error(`not there yet: ${options.name}`);
}
