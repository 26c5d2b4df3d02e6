/**
 * What makes and deletes the Pod objects of churn.ts, in the network namespace of the API server.
 *   node churn-api.js KUBECONFIG       orders on stdin, a line each; an answer for each on stdout, when the API server has it
 */
import { createInterface } from 'node:readline';
import { CoreV1Api } from '@kubernetes/client-node';
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

async function obey(order: ApiOrder): Promise<ApiAnswer> {
  const { id, name, namespace } = order;
  if (order.do === 'delete') {
    await core.deleteNamespacedPod({ name, namespace, gracePeriodSeconds: 0 });
    return { id };
  }
  const spec = { nodeName: order.node, containers: [{ name: 'app', image: 'none' }] };
  const made = await core.createNamespacedPod({ namespace, body: { metadata: { name }, spec } });
  const [podIP = ''] = order.addresses;
  // As a kubelet of 1.29 says when the sandbox was made.
  const conditions = [
    { type: 'PodReadyToStartContainers', status: 'True', lastTransitionTime: new Date(order.networkedMs) },
  ];
  const status = { phase: 'Running', podIP, podIPs: order.addresses.map((ip) => ({ ip })), conditions };
  await core.replaceNamespacedPodStatus({ namespace, name, body: { ...made, status } });
  return { id, ...(made.metadata?.uid !== undefined && { uid: made.metadata.uid }) };
}

createInterface({ input: process.stdin }).on('line', (line) => {
  const order = JSON.parse(line) as ApiOrder;
  obey(order)
    .catch((error: Error): ApiAnswer => ({ id: order.id, error: error.message.slice(0, 300) }))
    .then((answer) => process.stdout.write(`${JSON.stringify(answer)}\n`));
});
process.stdin.on('end', () => process.exit(0));
