/** Layered snapshots against plain maps: the same entries, and the planner's index sees the same changes. */
import fc from 'fast-check';
import t from 'tap';
import { type AnyObject, objectKey } from '../../api/kinds.ts';
import { LayeredSnapshot } from '../../controller/plan/layered.ts';
import { ObjectIndex } from '../../controller/plan/objects.ts';

const namespace = (name: string, uid: string): AnyObject => ({
  apiVersion: 'v1',
  kind: 'Namespace',
  metadata: { name, uid },
});

t.test('any changes, in any portions', async (t) => {
  const change = fc.record({ name: fc.nat(30), gone: fc.boolean(), again: fc.boolean() });
  const portions = fc.array(fc.record({ changes: fc.array(change), many: fc.nat(9) }), { maxLength: 20 });
  fc.assert(
    fc.property(portions, (all) => {
      let layered = new LayeredSnapshot();
      const plain = new Map<string, AnyObject>();
      const indices = [new ObjectIndex(), new ObjectIndex()] as const;
      const earlier: [LayeredSnapshot, Map<string, AnyObject>][] = [];
      let made = 0;
      for (const { changes, many } of all) {
        const portion = new Map<string, AnyObject | undefined>();
        for (const { name, gone, again } of changes) {
          const object = namespace(`n-${name}`, `u-${made++}`);
          const key = objectKey(object);
          portion.set(key, gone ? undefined : again ? (plain.get(key) ?? object) : object);
        }
        // Now and then beyond what one base bears.
        if (many === 0) {
          for (let i = 0; i < 1_001; i++) portion.set(`Namespace/m-${i}`, namespace(`m-${i}`, `u-${made++}`));
        }
        earlier.push([layered, new Map(plain)]);
        layered = layered.with(portion);
        for (const [key, object] of portion) object === undefined ? plain.delete(key) : plain.set(key, object);
        const [a, b] = [indices[0].look(layered), indices[1].look(new Map(plain))];
        if (a.Namespace.length !== b.Namespace.length || a.Namespace.some((one, i) => one !== b.Namespace[i]))
          return false;
        if (a.counts.get('Namespace') !== b.counts.get('Namespace')) return false;
      }
      earlier.push([layered, plain]);
      return earlier.every(([one, other]) => {
        const entries = [...one];
        return (
          one.size === other.size &&
          entries.length === other.size &&
          entries.every(([key, object]) => other.get(key) === object && one.get(key) === object && one.has(key)) &&
          [...one.values()].length === other.size &&
          [...one.keys()].every((key) => other.has(key))
        );
      });
    }),
    { numRuns: 200 },
  );
  t.pass('200 runs');
});

t.test('what changed is known without a walk, until there is a new base', async (t) => {
  const objects = Array.from({ length: 3_000 }, (_, i) => namespace(`n-${i}`, `u-${i}`));
  const first = new LayeredSnapshot().with(new Map(objects.map((object) => [objectKey(object), object])));
  const second = first.with(new Map([['Namespace/n-1', undefined]]));
  const third = second.with(new Map([['Namespace/n-2', namespace('n-2', 'other')]]));
  t.same([...(LayeredSnapshot.keysBetween(first, third) ?? [])], ['Namespace/n-1', 'Namespace/n-2']);
  t.equal(LayeredSnapshot.keysBetween(new Map(), third), undefined);
  const fourth = third.with(new Map([...first.keys()].map((key) => [key, undefined])));
  t.equal(LayeredSnapshot.keysBetween(third, fourth), undefined);
  t.equal(fourth.size, 0);
  t.equal(first.size, 3_000);
});
