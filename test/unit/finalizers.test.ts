/** Finalizers as they are written to an API server that is a map of objects; on a real one: test/api/lab.test.ts. */
import { setTimeout as sleep } from 'node:timers/promises';
import t from 'tap';
import { FINALIZER_FORBIDDING_RULE } from '../../api/names.ts';
import { FinalizerWriter } from '../../controller/kubernetes/finalizers.ts';
import type { Answer, Api, Json } from '../../controller/kubernetes/requests.ts';
import { silentLog } from '../../daemon/log.ts';

const OURS = FINALIZER_FORBIDDING_RULE;

class Server implements Api {
  /** `namespace/name` → its finalizers, and its version. */
  readonly objects = new Map<string, { finalizers: string[]; version: number; deleted?: true }>();
  readonly asked: string[] = [];
  failing = false;

  async ask({ method, path, body }: Parameters<Api['ask']>[0]): Promise<Answer> {
    this.asked.push(method);
    const answer = (status: number, body: Json = {}): Answer => ({ status, body, message: '' });
    if (this.failing) return answer(500);
    const metadataOf = (key: string): Json => {
      const { finalizers = [], version = 0, deleted } = this.objects.get(key) ?? {};
      const [namespace, name] = key.split('/');
      return {
        namespace,
        name,
        finalizers,
        resourceVersion: String(version),
        ...(deleted && { deletionTimestamp: 'x' }),
      };
    };
    if (path.includes('?limit='))
      return answer(200, {
        items: [...this.objects.keys()].map((key) => ({ metadata: metadataOf(key) })),
        metadata: {},
      });
    const [, namespace = '', name = ''] = /namespaces\/([^/]+)\/externalservices\/([^/]+)$/.exec(path) ?? [];
    const key = `${namespace}/${name}`;
    const object = this.objects.get(key);
    if (object === undefined) return answer(404);
    if (method === 'GET') return answer(200, { metadata: metadataOf(key) });
    const { finalizers, resourceVersion } = (body as { metadata: { finalizers: string[]; resourceVersion: string } })
      .metadata;
    if (resourceVersion !== String(object.version)) return answer(409);
    Object.assign(object, { finalizers, version: object.version + 1 });
    return answer(200);
  }
  close(): void {}
  put(key: string, ...finalizers: string[]): void {
    this.objects.set(key, { finalizers, version: 1 });
  }
  has = (key: string): string[] | undefined => this.objects.get(key)?.finalizers;
}

function begin() {
  const server = new Server();
  const state = { leads: true };
  const writer = new FinalizerWriter({ api: server, log: silentLog(), mayWrite: () => state.leads });
  const want = async (...keys: string[]): Promise<void> => {
    writer.want(new Map(keys.map((key) => [`ExternalService/${key}`, [OURS]])));
    await sleep(20);
  };
  return { server, state, writer, want };
}

t.test('what is wanted has it, what is not loses it, and others’ stay', async (t) => {
  const { server, writer, want } = begin();
  t.teardown(() => writer.close());
  server.put('a/held', 'other.example/x');
  server.put('a/free', OURS, 'other.example/x');
  server.put('a/none');
  await want('a/held', 'a/gone');
  t.same(
    ['a/held', 'a/free', 'a/none'].map(server.has),
    [['other.example/x', OURS], ['other.example/x'], []],
    'also what an earlier controller wrote goes',
  );
  const asked = server.asked.length;
  await want('a/held', 'a/gone');
  t.equal(server.asked.length, asked, 'nothing is asked of what is as it should be');
  await want();
  t.same(server.has('a/held'), ['other.example/x']);
});

t.test('what is being deleted gets none, and is let go', async (t) => {
  const { server, writer, want } = begin();
  t.teardown(() => writer.close());
  server.put('a/late');
  Object.assign(server.objects.get('a/late') ?? {}, { deleted: true });
  server.put('a/held', OURS);
  Object.assign(server.objects.get('a/held') ?? {}, { deleted: true });
  await want('a/late', 'a/held');
  t.same([server.has('a/late'), server.has('a/held')], [[], [OURS]]);
  await want();
  t.same(server.has('a/held'), []);
});

t.test('who does not lead writes nothing; what fails keeps nobody from the next', async (t) => {
  const { server, state, writer, want } = begin();
  t.teardown(() => writer.close());
  server.put('a/held');
  state.leads = false;
  await want('a/held');
  t.same(server.asked, []);
  state.leads = true;
  server.failing = true;
  await want('a/held');
  t.same(server.has('a/held'), []);
  server.failing = false;
  await want('a/held');
  t.same(server.has('a/held'), [OURS]);
});
