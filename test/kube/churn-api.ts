/**
 * What makes and deletes the Pod objects of churn.ts, in the network namespace of the API server.
 *   node churn-api.js KUBECONFIG       orders on stdin, a line each; an answer for each on stdout, when the API server has it
 */
import { createInterface } from 'node:readline';
import { setTimeout as sleep } from 'node:timers/promises';
import { ApiException, CoreV1Api } from '@kubernetes/client-node';
import { loadKubeConfig } from '../../controller/kubernetes/client.ts';

export type ApiOrder =
  | {
      do: 'create';
      id: number;
      name: string;
      namespace: string;
      node: string;
      addresses: string[];
      networkedMs: number;
    }
  | { do: 'delete'; id: number; name: string; namespace: string };
export interface ApiAnswer {
  id: number;
  uid?: string;
  error?: string;
}

const core = (await loadKubeConfig({ kubeconfig: process.argv[2] ?? '' })).makeApiClient(CoreV1Api);

const AGAIN_MS = 500;

/** As a kubelet does: until the API server has it, however long it is away. `done`: what it says if it had it from a try that it did not answer. */
async function insist<T>(work: () => Promise<T>, done: { code: number; read(): Promise<T> }): Promise<T> {
  for (let tries = 1; ; tries++) {
    try {
      return await work();
    } catch (error) {
      const code = error instanceof ApiException ? error.code : undefined;
      if (tries > 1 && code === done.code) return done.read();
      if (code !== undefined && code < 500 && code !== 429) throw error;
    }
    await sleep(AGAIN_MS);
  }
}

async function obey(order: ApiOrder): Promise<ApiAnswer> {
  const { id, name, namespace } = order;
  if (order.do === 'delete') {
    const gone = { code: 404, read: async () => undefined };
    await insist(async () => void (await core.deleteNamespacedPod({ name, namespace, gracePeriodSeconds: 0 })), gone);
    return { id };
  }
  const spec = { nodeName: order.node, containers: [{ name: 'app', image: 'none' }] };
  const there = { code: 409, read: () => core.readNamespacedPod({ namespace, name }) };
  const made = await insist(() => core.createNamespacedPod({ namespace, body: { metadata: { name }, spec } }), there);
  const [podIP = ''] = order.addresses;
  // As a kubelet of 1.29 says when the sandbox was made.
  const conditions = [
    { type: 'PodReadyToStartContainers', status: 'True', lastTransitionTime: new Date(order.networkedMs) },
  ];
  const status = { phase: 'Running', podIP, podIPs: order.addresses.map((ip) => ({ ip })), conditions };
  const written = { code: 409, read: () => core.readNamespacedPod({ namespace, name }) };
  await insist(() => core.replaceNamespacedPodStatus({ namespace, name, body: { ...made, status } }), written);
  return { id, ...(made.metadata?.uid !== undefined && { uid: made.metadata.uid }) };
}

createInterface({ input: process.stdin }).on('line', (line) => {
  const order = JSON.parse(line) as ApiOrder;
  obey(order)
    .catch((error: Error): ApiAnswer => ({ id: order.id, error: error.message.slice(0, 300) }))
    .then((answer) => process.stdout.write(`${JSON.stringify(answer)}\n`));
});
process.stdin.on('end', () => process.exit(0));
