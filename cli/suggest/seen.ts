/**
 * What flow records of one namespace have shown, summed up for a draft of rules: who (by Service) went where, what it spoke
 * there, how often and when last. Pure. Records come from files that anybody may have written: what is no name, no application
 * and no port that a rule could have is not taken for one. Bounded in places that are told apart; what comes beyond
 * is counted.
 */
import { type Application, applications } from '../../api/application.ts';
import { parseHostName } from '../../api/host-name.ts';
import type { FlowRecord } from '../../gateway/record/flow-record.ts';

export const protocols = { tcp: 'TCP', udp: 'UDP', sctp: 'SCTP' } as const;
export type Protocol = (typeof protocols)[keyof typeof protocols];

/** Why flows are not in a draft. */
export const omissions = {
  denied: 'denied by policy, or only passed since policy is in audit (--denied takes them in)',
  redirected: 'redirected by a rule: what they need is that rule',
  protocol: 'of protocols without ports, as ICMP: write these rules by hand',
  rare: 'to destinations seen less often than --at-least',
  ports: 'to destinations with too many different ports',
  many: 'to more places than are told apart',
} as const;
export type Omission = keyof typeof omissions;

export interface Tally {
  flows: number;
  /** Flows of which something was read, and of those the ones in a sample. */
  read: number;
  sampled: number;
  /** Times as records have them. */
  first: string;
  last: string;
  /** `context rule`, or the reason: by what they passed. */
  by: Set<string>;
}

export const newTally = (): Tally => ({ flows: 0, read: 0, sampled: 0, first: '', last: '', by: new Set() });

export function addTally(to: Tally, from: Readonly<Tally>): void {
  to.flows += from.flows;
  to.read += from.read;
  to.sampled += from.sampled;
  if (to.first === '' || from.first < to.first) to.first = from.first;
  if (from.last > to.last) to.last = from.last;
  for (const by of from.by) if (to.by.size < SETS_MAX) to.by.add(by);
}

/** Flows that a rule could not tell apart. */
export interface Place {
  protocol: Protocol;
  destination: string;
  port: number;
  /** Absent: not read. */
  application?: Application;
  /** Of the host, canonical; of TLS, HTTP and QUIC only: a question of DNS names another one. */
  name?: string;
  tally: Tally;
}

/** Pods of one Service, or those of none. */
export interface Sources {
  service?: string;
  pods: Set<string>;
  /** By what they are. */
  places: Map<string, Place>;
}

const PLACES_MAX = 20_000;
/** Flows that have begun and not ended. */
const OPEN_MAX = 100_000;
/** Pods and rules that are named in comments are fewer. */
const SETS_MAX = 100;
const namesHosts: ReadonlySet<Application> = new Set(['TLS', 'HTTP', 'QUIC']);
const objectName = /^[a-z0-9]([-a-z0-9]*[a-z0-9])?$/;

export class Seen {
  /** By Service, '' for none. */
  readonly sources = new Map<string, Sources>();
  readonly omitted = new Map<Omission, Tally>();
  readonly all = newTally();
  readonly #namespace: string;
  readonly #denied: boolean;
  readonly #open = new Map<string, FlowRecord>();
  #places = 0;

  constructor(namespace: string, denied = false) {
    this.#namespace = namespace;
    this.#denied = denied;
  }

  add(record: FlowRecord): void {
    if (record.namespace !== this.#namespace) return;
    const { event } = record;
    if (event === 'deny') {
      // What is dropped for other reasons no rule would permit.
      if (record.reason === 'rule' || record.reason === 'default-action') this.#flow(record);
      return;
    }
    if (event !== 'start' && event !== 'end') return;
    const flow = [
      record.gateway,
      record.protocol,
      record.source,
      record.sourcePort,
      record.destination,
      record.destinationPort,
    ];
    const key = flow.join(' ');
    const before = this.#open.get(key);
    this.#open.delete(key);
    if (event === 'end') {
      this.#flow(record);
      return;
    }
    // Its end was not heard.
    if (before !== undefined) this.#flow(before);
    this.#open.set(key, record);
    const [oldest] = this.#open;
    if (this.#open.size <= OPEN_MAX || oldest === undefined) return;
    this.#open.delete(oldest[0]);
    this.#flow(oldest[1]);
  }

  /** There are no more: what has not ended still lives. */
  end(): void {
    for (const record of this.#open.values()) this.#flow(record);
    this.#open.clear();
  }

  #flow(record: FlowRecord): void {
    const place = placeOf(record);
    addTally(this.all, place.tally);
    const omission = this.#omission(record) ?? (place.port === 0 ? 'protocol' : undefined);
    if (omission !== undefined) {
      this.omit(omission, place.tally);
      return;
    }
    const service = (record.services ?? []).filter((name) => objectName.test(name)).sort()[0];
    const { protocol, destination, port, application, name } = place;
    const key = [protocol, destination, port, application, name].join(' ');
    const sources = this.sources.get(service ?? '') ?? {
      ...(service !== undefined && { service }),
      pods: new Set(),
      places: new Map(),
    };
    const known = sources.places.get(key);
    if (known === undefined && this.#places === PLACES_MAX) {
      this.omit('many', place.tally);
      return;
    }
    this.sources.set(service ?? '', sources);
    if (record.pod !== undefined && sources.pods.size < SETS_MAX) sources.pods.add(record.pod);
    if (known !== undefined) addTally(known.tally, place.tally);
    else {
      this.#places++;
      sources.places.set(key, place);
    }
  }

  omit(omission: Omission, tally: Readonly<Tally>): void {
    const omitted = this.omitted.get(omission) ?? newTally();
    addTally(omitted, tally);
    this.omitted.set(omission, omitted);
  }

  #omission({ event, wouldHave, redirectedTo }: FlowRecord): Omission | undefined {
    if ((event === 'deny' || wouldHave !== undefined) && !this.#denied) return 'denied';
    return redirectedTo === undefined ? undefined : 'redirected';
  }
}

/** Of one flow. Port 0: one of which a rule cannot speak by ports. */
function placeOf(record: FlowRecord): Place {
  const protocol = Object.hasOwn(protocols, record.protocol)
    ? protocols[record.protocol as keyof typeof protocols]
    : undefined;
  const application = applications.find((one) => one === record.application);
  const read = application !== undefined && protocol !== undefined && carries(protocol, application);
  const host = read && namesHosts.has(application) ? parseHostName(record.destinationName ?? '') : undefined;
  const by = record.rule === undefined ? record.reason : `${record.context} ${record.rule}`;
  return {
    protocol: protocol ?? 'TCP',
    destination: record.destination,
    port: protocol === undefined ? 0 : (record.destinationPort ?? 0),
    ...(read && { application }),
    ...(host?.ok && { name: host.value }),
    tally: {
      flows: 1,
      read: read ? 1 : 0,
      sampled: read && record.sampled ? 1 : 0,
      first: record.time,
      last: record.time,
      by: new Set([record.wouldHave === undefined ? by : `${by}, which would ${record.wouldHave}`]),
    },
  };
}

/** As a port's appProtocol may say (api/schema/service-port.ts). */
const carries = (protocol: Protocol, application: Application): boolean =>
  protocol === 'TCP' ? application !== 'QUIC' : protocol === 'UDP' && (application === 'QUIC' || application === 'DNS');
