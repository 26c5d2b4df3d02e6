/**
 * F5 Container Egress Service → Sluice. The walk is the same in both (cluster, namespace, service; accept hands on, and
 * permits only in the service context; deny at the end), so rules keep their action; what differs is where a cluster
 * rule looks for ExternalServices, which are therefore moved to our controller's namespace, and CES's hazards, which
 * are not kept: a rule whose Service lists nobody has no source here, where CES gave it every source.
 * Pure: objects in, manifests and a report out. Order does not matter, but for the order of the report.
 */
import { parseRange } from '../../api/address.ts';
import { API_VERSION, CONTROLLER_NAMESPACE } from '../../api/names.ts';
import { portEntry } from '../../api/ports.ts';
import { show } from '../../api/schema/describe.ts';
import { type CesRule, type CesService, readCes } from './f5-ces-manifest.ts';
import { type ConvertedService, convertService, schemaTakes, type Takes } from './f5-ces-service.ts';
import { type Candidate, type Destinations, overlapsOf } from './overlap.ts';
import { type Effect, type Imported, type Input, type Manifest, Reporter, refusal } from './report.ts';
import { chunks, metadataOf, nameBeside } from './rewrite.ts';

export interface CesOptions {
  /** Where CES's cluster rules look for ExternalServices (its CES_NAMESPACE). */
  controllerNamespace: string;
  /** Of ces-conf.yaml, if it was given: namespaces of any tenant, and the names of its iRules. */
  config?: { namespaces: ReadonlySet<string>; iRules: readonly string[] };
  /** Tests only: what the schema takes otherwise decides. */
  takes?: Takes;
}

export const CES_CONTROLLER_NAMESPACE = 'kube-system';

/** Limits of our schema: beyond them an object is written as several. */
const MAX_ADDRESSES = 4096;
const MAX_NAMES = 256;
/** CES's own label on ExternalServices, and what it does not say. */
const CES_LABEL = 'cpaas.io/ruleType';

const DEFAULT_ACTION =
  'CES drops what no rule permits. So does Sluice where the GatewayPool has defaultAction: Drop, the default.';
const EGRESS_IP =
  'CES has no egress IP per namespace, Sluice does: rules apply to pods that an EgressIP selects. Other pods are not steered, and so meet no rule (GatewayPool, unassigned: Bypass), or are dropped (unassigned: Drop).';
const SOURCE =
  "their source is every pod of the namespace; in CES it was the namespace's CIDR (annotation ovn.kubernetes.io/cidr).";
const READY =
  'written with endpoints: Ready, since CES took ready endpoints only. (endpoints: All, our default, lets out a pod that must reach something to become ready.) A Service that lists no pod of the namespace is no source here; in CES it could make the rule match every source. Endpoints that are no pods, and host-network pods, are never a source.';
const ORDER =
  'these rules can match the same packet and say different things. Which comes first is undefined in CES; here it is the lower priority, then the older, then the name. Give one a priority.';
const IGNORED = 'these namespaces are in no tenant of ces-conf: CES ignored their rules, here they are in force.';

type Action = CesRule['spec']['action'];
/** Which rules name an ExternalService. */
interface Users {
  cluster: Set<Action>;
  local: Set<Action>;
}
/** What an ExternalService became in one namespace. */
interface Placed {
  names: string[];
  destinations: Destinations;
}

export function importF5Ces(inputs: readonly Input[], options: CesOptions): Imported {
  const read = readCes(inputs);
  if (read.errors.length > 0) return refusal(read.errors);
  return new Import(read.services, read.rules, options, new Reporter('f5-ces')).run(read);
}

class Import {
  readonly #services: readonly CesService[];
  readonly #rules: readonly CesRule[];
  readonly #options: CesOptions;
  readonly #report: Reporter;
  readonly #takes: Takes;
  /** `namespace/name` in the input → who names it. */
  readonly #users = new Map<string, Users>();
  /** The same, as cluster rules see them (controller's namespace only) and as rules of the namespace do. */
  readonly #forCluster = new Map<string, Placed>();
  readonly #forNamespace = new Map<string, Placed>();
  readonly #taken: Set<string>;
  readonly #candidates: Candidate[] = [];

  constructor(services: readonly CesService[], rules: readonly CesRule[], options: CesOptions, report: Reporter) {
    this.#services = services;
    this.#rules = rules;
    this.#options = options;
    this.#report = report;
    this.#takes = options.takes ?? schemaTakes();
    this.#taken = new Set([...services, ...rules].map(({ key }) => key));
  }

  run({ externalIPRules, passedOver }: Pick<ReturnType<typeof readCes>, 'externalIPRules' | 'passedOver'>): Imported {
    for (const service of this.#services) this.#users.set(placeOf(service), { cluster: new Set(), local: new Set() });
    for (const rule of this.#rules) {
      for (const name of rule.spec.externalServices) {
        const users = this.#users.get(this.#placeNamed(rule, name));
        users?.[rule.kind === 'ClusterEgressRule' ? 'cluster' : 'local'].add(rule.spec.action);
      }
    }
    for (const service of this.#services) this.#service(service);
    for (const rule of this.#rules) this.#rule(rule);
    for (const { key, at } of externalIPRules) {
      this.#report.read(key, at);
      const message = 'addresses of our own: an EgressIPPool and an EgressIP say who leaves with which; write them';
      this.#report.notCarried({ object: key, reason: 'ExternalIPRule', message });
    }
    this.#report.passedOver(passedOver);
    this.#notes();
    return this.#report.done();
  }

  /** Where CES looks for what a rule names. */
  #placeNamed(rule: CesRule, name: string): string {
    const cluster = rule.kind === 'ClusterEgressRule';
    return `${cluster ? this.#options.controllerNamespace : rule.metadata.namespace}/${name}`;
  }

  /** False: another object has that key. */
  #take(key: string): boolean {
    if (this.#taken.has(key)) return false;
    this.#taken.add(key);
    return true;
  }

  #unknown(object: CesService | CesRule): void {
    for (const path of object.unknown) {
      const message = 'is no field of CES, whose API server drops it';
      this.#report.changed({ object: object.key, path, reason: 'UnknownField', message });
    }
  }

  #service(service: CesService): void {
    const { key } = service;
    const place = placeOf(service);
    const users = this.#users.get(place) ?? { cluster: new Set(), local: new Set() };
    const effect = effectOf(new Set([...users.cluster, ...users.local]));
    this.#report.read(key, service.at);
    this.#unknown(service);
    const converted = convertService(service, this.#takes);
    for (const remark of converted.changed) this.#report.changed({ object: key, ...remark });
    for (const remark of converted.lost) this.#report.notCarried({ object: key, ...remark, effect });
    for (const remark of converted.unlimited) {
      const iRules = this.#options.config?.iRules.join(',');
      const known =
        iRules === undefined || iRules.includes(service.spec.ports?.at(portIndex(remark.path))?.bandwidth ?? '');
      const message = known ? remark.message : `${remark.message}; ces-conf has no such iRule, so CES did not sync it`;
      this.#report.notCarried({ object: key, ...remark, message });
    }
    if (converted.addresses.length + converted.names.length === 0) {
      const message = service.spec.addresses.length === 0 ? 'it has no addresses' : 'nothing is left of it';
      this.#report.notCarried({ object: key, reason: 'NothingLeft', message: `${message}; not written`, effect });
      return;
    }
    const { namespace = '' } = service.metadata;
    const moves = namespace === this.#options.controllerNamespace && namespace !== CONTROLLER_NAMESPACE;
    const moved = moves && (users.cluster.size > 0 || users.local.size === 0);
    const placed = moved ? this.#place(service, converted, CONTROLLER_NAMESPACE, effectOf(users.cluster)) : undefined;
    if (moved && placed !== undefined) this.#forCluster.set(place, placed);
    if (moves && users.local.size === 0) {
      const message = `is in ${CONTROLLER_NAMESPACE} now, where our cluster rules look`;
      this.#report.changed({ object: key, reason: 'MovedNamespace', message });
      return;
    }
    if (moved) {
      const message = `is in ${CONTROLLER_NAMESPACE} too, where our cluster rules look`;
      this.#report.changed({ object: key, reason: 'CopiedNamespace', message });
    }
    const local = this.#place(service, converted, namespace, effectOf(users.local));
    if (local === undefined) return;
    this.#forNamespace.set(place, local);
    if (!moves && namespace === this.#options.controllerNamespace) this.#forCluster.set(place, local);
  }

  #place(
    service: CesService,
    { addresses, names: hosts, ports }: ConvertedService,
    namespace: string,
    effect: Effect,
  ): Placed | undefined {
    const names: string[] = [];
    const parts = [...chunks(addresses, MAX_ADDRESSES), ...chunks(hosts, MAX_ADDRESSES)];
    const apart = addresses.length === 0 ? 0 : chunks(addresses, MAX_ADDRESSES).length;
    for (const [part, list] of parts.entries()) {
      const home = namespace === service.metadata.namespace;
      const name = nameBeside(service.metadata.name, home && part === 0, (candidate) =>
        this.#take(`ExternalService/${namespace}/${candidate}`),
      );
      const metadata = metadataOf({ ...service.metadata, name, namespace }, [CES_LABEL], service.key, this.#report);
      const spec = { addresses: list, ...(ports === undefined ? {} : { ports }) };
      const manifest: Manifest = { apiVersion: API_VERSION, kind: 'ExternalService', metadata, spec };
      if (!this.#report.write(service.key, manifest, effect)) return undefined;
      if (name !== service.metadata.name) {
        const message =
          part === 0
            ? `is called ${name}: ${namespace} has another of its name`
            : part === apart
              ? `its names are in ${name}: an ExternalService with names asks more of ports 443 and 80`
              : `goes on in ${name}: ${MAX_ADDRESSES} addresses at most`;
        this.#report.changed({ object: service.key, reason: part === 0 ? 'Renamed' : 'Split', message });
      }
      names.push(name);
    }
    const ranges = addresses.flatMap((text) => {
      const range = parseRange(text);
      return range.ok ? [range.value] : [];
    });
    return {
      names,
      destinations: {
        ranges,
        ports: ports?.map(({ protocol, port }) => portEntry({ protocol, ...(port !== undefined && { port }) })) ?? null,
      },
    };
  }

  #rule(rule: CesRule): void {
    const { key, spec, metadata, kind } = rule;
    const effect = effectOf(new Set([spec.action]));
    this.#report.read(key, rule.at);
    this.#unknown(rule);
    const found = kind === 'ClusterEgressRule' ? this.#forCluster : this.#forNamespace;
    const names: string[] = [];
    const destinations: Destinations[] = [];
    const seen = new Set<string>();
    for (const [i, name] of spec.externalServices.entries()) {
      if (seen.has(name)) continue;
      seen.add(name);
      const place = this.#placeNamed(rule, name);
      const placed = found.get(place);
      if (placed !== undefined) {
        names.push(...placed.names);
        destinations.push(placed.destinations);
        continue;
      }
      const path = `spec.externalServices[${i}]`;
      const missing = !this.#users.has(place);
      const reason = missing ? 'ExternalServiceNotFound' : 'ExternalServiceLost';
      const message = missing
        ? `${show(name)}: not in what was read (CES leaves it out, too); left out`
        : `${show(name)}: was not carried over; left out`;
      this.#report.notCarried({ object: key, path, reason, message, effect });
    }
    if (names.length === 0) {
      if (spec.externalServices.length === 0) {
        const message = 'names no ExternalService and does nothing in CES; not written';
        this.#report.changed({ object: key, reason: 'NoExternalService', message });
      } else {
        const message = 'none of its ExternalServices is left; not written';
        this.#report.notCarried({ object: key, reason: 'NothingLeft', message, effect });
      }
      return;
    }
    let written = true;
    for (const [part, list] of chunks(names, MAX_NAMES).entries()) {
      const name = nameBeside(metadata.name, part === 0, (candidate) =>
        this.#take(key.slice(0, -metadata.name.length) + candidate),
      );
      if (part > 0) {
        const message = `goes on in ${name}: ${MAX_NAMES} ExternalServices at most`;
        this.#report.changed({ object: key, reason: 'Split', message });
      }
      const manifest: Manifest = {
        apiVersion: API_VERSION,
        kind,
        metadata: metadataOf({ ...metadata, name }, [CES_LABEL], key, this.#report),
        spec: {
          action: spec.action,
          externalServices: list,
          ...(spec.service === undefined ? {} : { service: spec.service, endpoints: 'Ready' }),
          ...(spec.logging === undefined ? {} : { logging: spec.logging ? 'All' : 'None' }),
        },
      };
      written = this.#report.write(key, manifest, effect) && written;
    }
    if (!written) return;
    // A ServiceEgressRule's accept-decisively says what its accept says.
    const action = kind === 'ServiceEgressRule' && spec.action === 'accept-decisively' ? 'accept' : spec.action;
    const group = `${kind}/${metadata.namespace ?? ''}/${spec.service ?? ''}`;
    this.#candidates.push({ group, name: key, action, destinations });
  }

  #notes(): void {
    const note = this.#report.note.bind(this.#report);
    if (this.#rules.length > 0) {
      note('DefaultAction', DEFAULT_ACTION);
      note('EgressIP', EGRESS_IP);
    }
    const count = (kind: CesRule['kind']): number => this.#rules.filter((rule) => rule.kind === kind).length;
    const [ofNamespaces, ofServices] = [count('NamespaceEgressRule'), count('ServiceEgressRule')];
    if (ofNamespaces > 0) {
      note('Source', `${ofNamespaces} NamespaceEgressRules: ${SOURCE}`);
    }
    if (ofServices > 0) {
      note('Ready', `${ofServices} ServiceEgressRules: ${READY}`);
    }
    const { overlaps, complete } = overlapsOf(this.#candidates);
    if (overlaps.length > 0) {
      const items = overlaps.map(
        ({ first, second }) => `${first.name} (${first.action}), ${second.name} (${second.action})`,
      );
      if (!complete) items.push('and perhaps more: not all were compared');
      note('Order', ORDER, items);
    }
    const known = this.#options.config?.namespaces;
    const ignored = new Map<string, number>();
    for (const { metadata } of known === undefined ? [] : this.#rules) {
      const { namespace } = metadata;
      if (namespace === undefined || known?.has(namespace)) continue;
      ignored.set(namespace, (ignored.get(namespace) ?? 0) + 1);
    }
    if (ignored.size > 0)
      note(
        'IgnoredNamespace',
        IGNORED,
        [...ignored].map(([namespace, number]) => `${namespace} (${number} rules)`),
      );
  }
}

const placeOf = ({ metadata }: CesService): string => `${metadata.namespace}/${metadata.name}`;
const portIndex = (path: string): number => Number(/\[(\d+)\]/.exec(path)?.[1]);

function effectOf(actions: ReadonlySet<Action>): Effect {
  const denies = actions.has('drop') || actions.has('reject');
  const accepts = actions.has('accept') || actions.has('accept-decisively');
  if (denies) return accepts ? 'permits less here and more there' : 'permits more';
  return accepts ? 'permits less' : 'none';
}
