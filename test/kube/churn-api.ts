/**
 * What makes and deletes the Pod objects of churn.ts, in the network namespace of the API server. As cheap as may be, since what is
 * measured runs on the same processors: a few connections that are kept, and nothing in an object that nobody reads.
 *   node churn-api.js KUBECONFIG       orders on stdin, a line each; an answer for each on stdout, when the API server has it
 */
import { readFileSync } from 'node:fs';
import type { IncomingMessage } from 'node:http';
import { Agent, request } from 'node:https';
import { createInterface } from 'node:readline';
import { setTimeout as sleep } from 'node:timers/promises';

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
  /** When the API server had answered, by the clock that all programs of a machine share. */
  at: number;
  error?: string;
}

/** As test/kube/api-server.ts writes it. */
const { clusters, users } = JSON.parse(readFileSync(process.argv[2] ?? '', 'utf8')) as {
  clusters: [{ cluster: { server: string } }];
  users: [{ user: { token: string } }];
};
const server = new URL(clusters[0].cluster.server);
const agent = new Agent({ keepAlive: true, maxSockets: 32, rejectUnauthorized: false });
const headers = {
  authorization: `Bearer ${users[0].user.token}`,
  'content-type': 'application/json',
  // Of what was written nothing is asked but whose it is.
  accept: 'application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json',
};

const AGAIN_MS = 500;
const PATIENCE_MS = 10_000;

interface Answer {
  /** 0: none. */
  code: number;
  text: string;
}

function ask(method: string, path: string, body?: object): Promise<Answer> {
  return new Promise((resolve) => {
    const none = (error: Error): void => resolve({ code: 0, text: error.message });
    const { hostname: host, port } = server;
    const asked = request({ host, port, method, path, headers, agent, timeout: PATIENCE_MS }, (answer) => {
      read(answer).then((text) => resolve({ code: answer.statusCode ?? 0, text }), none);
    });
    asked.on('timeout', () => asked.destroy(new Error('no answer')));
    asked.on('error', none);
    asked.end(body === undefined ? undefined : JSON.stringify(body));
  });
}

async function read(answer: IncomingMessage): Promise<string> {
  let text = '';
  for await (const chunk of answer.setEncoding('latin1')) text += chunk;
  return text;
}

/**
 * As a kubelet does: until the API server has it, however long it is away. `done`: what it says if it had it from a try that it
 * did not answer.
 */
async function insist(work: () => Promise<Answer>, done: number): Promise<Answer> {
  for (let tries = 1; ; tries++) {
    const answer = await work();
    const { code, text } = answer;
    if (code >= 200 && code < 300) return answer;
    if (tries > 1 && code === done) return answer;
    if (code !== 0 && code < 500 && code !== 429) throw new Error(`${code} ${text}`);
    await sleep(AGAIN_MS);
  }
}

const now = (): number => Number(process.hrtime.bigint()) / 1e6;

async function obey(order: ApiOrder): Promise<ApiAnswer> {
  const { id, name, namespace } = order;
  const all = `/api/v1/namespaces/${namespace}/pods`;
  if (order.do === 'delete') {
    await insist(() => ask('DELETE', `${all}/${name}?gracePeriodSeconds=0`), 404);
    return { id, at: now() };
  }
  const pod = { apiVersion: 'v1', kind: 'Pod', metadata: { name } };
  const spec = { nodeName: order.node, containers: [{ name: 'app', image: 'none' }] };
  await insist(() => ask('POST', all, { ...pod, spec }), 409);
  const [podIP = ''] = order.addresses;
  const status = {
    phase: 'Running',
    podIP,
    podIPs: order.addresses.map((ip) => ({ ip })),
    // As a kubelet of 1.29 says when the sandbox was made.
    conditions: [
      { type: 'PodReadyToStartContainers', status: 'True', lastTransitionTime: new Date(order.networkedMs) },
    ],
  };
  const { text } = await insist(() => ask('PUT', `${all}/${name}/status`, { ...pod, spec, status }), 409);
  const at = now();
  const { metadata } = JSON.parse(text) as { metadata?: { uid?: string } };
  return { id, at, ...(metadata?.uid !== undefined && { uid: metadata.uid }) };
}

createInterface({ input: process.stdin }).on('line', (line) => {
  const order = JSON.parse(line) as ApiOrder;
  obey(order)
    .catch((error: Error): ApiAnswer => ({ id: order.id, at: now(), error: error.message.slice(0, 300) }))
    .then((answer) => process.stdout.write(`${JSON.stringify(answer)}\n`));
});
process.stdin.on('end', () => process.exit(0));
