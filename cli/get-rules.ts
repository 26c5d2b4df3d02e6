/**
 * `sluice get rules`: the rules of all three contexts in the order in which they are walked, then the pools' default
 * actions, with what each has met. The counters are those of the objects' status, rounded; with the controller's state
 * directory they are its own, as of its last save.
 */
import { hitsIdOfObject, noHits, type RuleHits, type StatusCounters, statusCounters } from '../api/hits.ts';
import { type AnyObject, type EgressRule, type GatewayPool, objectKey } from '../api/kinds.ts';
import { isRecord } from '../api/plan-delta.ts';
import { HITS_FILE } from '../controller/hits.ts';
import { ofKind } from '../controller/plan/snapshot.ts';
import { readSums } from '../controller/publish/hits.ts';
import { readJson } from '../controller/state-file.ts';
import { compareRules } from '../policy/order.ts';
import { Exit, type Paint, stateDress, table } from './output.ts';
import { conditionsOf, type Source, statusOf } from './source.ts';

type Counted = (EgressRule | GatewayPool) & { status?: Record<string, unknown> };

export interface RulesQuery {
  name?: string | undefined;
  namespace?: string | undefined;
  /** The controller's state directory. */
  state?: string | undefined;
}

/** In walking order; those of a namespace or service context by namespace. */
export async function countedObjects(source: Source, query: RulesQuery): Promise<Counted[]> {
  const sums = query.state === undefined ? undefined : await sumsOf(query.state);
  const { snapshot } = source;
  const all = [
    ...ofKind(snapshot, 'ClusterEgressRule').sort(compareRules),
    ...(['NamespaceEgressRule', 'ServiceEgressRule'] as const).flatMap((kind) =>
      ofKind(snapshot, kind).sort((a, b) => compareNamespaces(a, b) || compareRules(a, b)),
    ),
    ...ofKind(snapshot, 'GatewayPool').sort((a, b) => (a.metadata.name < b.metadata.name ? -1 : 1)),
  ];
  const objects: Counted[] = [];
  for (const aged of all) {
    const object = (source.unaged.get(objectKey(aged)) as typeof aged | undefined) ?? aged;
    const { name, namespace } = object.metadata;
    if (query.name !== undefined && name !== query.name) continue;
    if (query.namespace !== undefined && namespace !== query.namespace) continue;
    const status = await statusOf(source.path, object);
    const exact = sums?.get(hitsIdOfObject(objectKey(object)) ?? '') ?? noHits();
    objects.push({
      ...object,
      ...(status === undefined ? {} : { status }),
      ...(sums === undefined ? {} : { status: { ...status, [fieldOf(object)]: statusCounters(exact) } }),
    });
  }
  return objects;
}

/** `age` of a time as text; `problem`: what is wrong with an object. */
interface Texts {
  age(time: string): string;
  problem(object: Counted): string;
}

export function rulesTable(objects: readonly Counted[], wide: boolean, paint: Paint, { age, problem }: Texts): string {
  const headers = 'Context,Namespace,Name,Priority,Action,Mode,To,Accepted,Programmed,Schedule,Hits,Last-Hit'.split(
    ',',
  );
  if (wide) headers.push('Flows', 'Packets', 'Bytes', 'NextChange', 'Problem');
  const rows = objects.map((object) => {
    const { status } = object;
    const counters = countersOf(object);
    const condition = (name: string) => conditionsOf(status).find(({ type }) => type === name)?.status ?? '';
    const text = (value: unknown): string => String(value ?? '');
    const { flows, packets, bytes } = counters;
    const { name, namespace = '' } = object.metadata;
    return [
      (hitsIdOfObject(objectKey(object)) ?? '').split('/')[0] ?? '',
      namespace,
      name,
      ...(object.kind === 'GatewayPool'
        ? ['', object.spec.defaultAction.toLowerCase(), object.spec.mode, '*']
        : [text(object.spec.priority), object.spec.action, object.spec.mode, object.spec.externalServices.join(',')]),
      condition('Accepted'),
      condition('Programmed'),
      text(status?.schedule),
      text(counters.hits),
      counters.lastHit === undefined ? '' : age(text(counters.lastHit)),
      ...(wide ? [...[flows, packets, bytes, status?.nextChange].map(text), problem(object)] : []),
    ];
  });
  return table(headers, rows, stateDress(paint));
}

const fieldOf = ({ kind }: Pick<AnyObject, 'kind'>): string =>
  kind === 'GatewayPool' ? 'defaultActionCounters' : 'counters';

/** Nothing is known of a status but that it came from a file. */
function countersOf(object: Counted): Partial<StatusCounters> {
  const counters = object.status?.[fieldOf(object)];
  return isRecord(counters) ? (counters as Partial<StatusCounters>) : {};
}

async function sumsOf(state: string): Promise<Map<string, RuleHits>> {
  const [hits, planner] = [await readJson(state, HITS_FILE), await readJson(state, 'planner.json')];
  if (hits === undefined && planner === undefined) throw new Exit(1, `${state} holds no state of a controller`);
  return readSums(hits);
}

function compareNamespaces(a: EgressRule, b: EgressRule): number {
  const [first, second] = [a.metadata.namespace ?? '', b.metadata.namespace ?? ''];
  return first === second ? 0 : first < second ? -1 : 1;
}
