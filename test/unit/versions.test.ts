/** controller/publish/versions.ts: who is given plans, and who is forgotten. */
import t from 'tap';
import { emptyNodePlan } from '../../api/plan.ts';
import { Versions } from '../../controller/publish/versions.ts';

t.test('a client that is away, and of which no plan speaks, is forgotten', async (t) => {
  const versions = new Versions();
  const peer = (name: string) => ({ role: 'node' as const, name, addresses: [], generation: 0, hash: '' });
  const forgotten: string[] = [];
  const names = (...planned: string[]): string[] => [
    ...versions.names('node', planned, (name) => forgotten.push(name)),
  ];
  for (const name of ['a', 'b', 'c']) {
    versions.hello(peer(name));
    versions.offer('node', name, emptyNodePlan(), 1);
  }
  versions.gone(peer('a'));
  versions.gone(peer('b'));
  t.same(names('a', 'd'), ['a', 'd', 'c'], 'planned or connected');
  t.same(forgotten, ['b']);
  t.same([...versions.peers.nodes.keys()], ['a', 'c']);
  t.equal(versions.last('node', 'b'), undefined);
  versions.hello(peer('b'));
  t.same(names(), ['c', 'b'], 'until it comes back');
  t.same(forgotten, ['b', 'a']);
});
