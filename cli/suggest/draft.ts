/**
 * Rules and ExternalServices that permit what was seen (seen.ts), and no more than that can be said with them: of what was
 * read the name and the protocol, else the address and the port. Pure, and stable: the same flows give the same draft,
 * in whatever order they were seen. One ServiceEgressRule for each Service whose pods were seen, one NamespaceEgressRule for
 * the pods of no Service; an ExternalService for each name, or address where no name was read, which all of them share.
 */
import { compareAddresses, parseAddress } from '../../api/address.ts';
import type { Application } from '../../api/application.ts';
import { API_VERSION } from '../../api/names.ts';
import type { Manifest } from '../import/report.ts';
import { addTally, newTally, type Place, type Protocol, type Seen, type Tally } from './seen.ts';

/** What it is drawn from stands beside it. */
export interface Drafted {
  manifest: Manifest;
  tally: Tally;
  /** Of a rule. */
  pods?: string[];
  /** Of an ExternalService with names: the addresses that flows to them went to. */
  addresses?: string[];
}

/** Of one name, or of one address. */
interface Destination {
  text: string;
  isName: boolean;
  tally: Tally;
  addresses: Set<string>;
  /** `PROTOCOL APPLICATION` → ports. */
  ports: Map<string, Set<number>>;
  /** Keys into `sources`. */
  users: Map<string, Tally>;
}

/** Bounds of the schemas. */
const PORT_TEXT = 512;
const PORT_RANGES = 128;
const PORT_ENTRIES = 64;
const NAMES_IN_RULE = 256;

export function draft(seen: Seen, namespace: string, atLeast = 1): Drafted[] {
  const all = [...destinationsOf(seen).values()].sort(byKind);
  const services: Drafted[] = [];
  /** Key into `sources` → names of ExternalServices. */
  const used = new Map<string, { names: string[]; tally: Tally }>();
  const taken = new Set<string>();
  for (const destination of all) {
    const { tally, isName, text, addresses, users } = destination;
    const ports = portsOf(destination.ports);
    if (tally.flows < atLeast || ports === undefined) {
      seen.omit(ports === undefined ? 'ports' : 'rare', tally);
      continue;
    }
    const name = unused(objectNameOf(text, isName), taken);
    services.push({
      manifest: object('ExternalService', namespace, name, { addresses: [text], ports }),
      tally,
      ...(isName && { addresses: [...addresses].sort() }),
    });
    for (const [user, its] of users) {
      const rule = used.get(user) ?? { names: [], tally: newTally() };
      rule.names.push(name);
      addTally(rule.tally, its);
      used.set(user, rule);
    }
  }
  return [...rulesOf(seen, namespace, used), ...services];
}

function destinationsOf(seen: Seen): Map<string, Destination> {
  const destinations = new Map<string, Destination>();
  const read = readAt(seen);
  for (const [user, { places }] of seen.sources) {
    for (const place of places.values()) {
      // What was not read is taken to speak what others did there: rather those of the same Service.
      const at = endpointOf(place);
      const others = place.application === undefined ? (read.get(`${user} ${at}`) ?? read.get(at)) : undefined;
      for (const like of others ?? [place]) {
        const isName = like.name !== undefined;
        const text = like.name ?? place.destination;
        const key = `${isName} ${text}`;
        const destination = destinations.get(key) ?? {
          text,
          isName,
          tally: newTally(),
          addresses: new Set(),
          ports: new Map(),
          users: new Map(),
        };
        destinations.set(key, destination);
        addTally(destination.tally, place.tally);
        destination.addresses.add(place.destination);
        const entry = `${place.protocol} ${like.application ?? ''}`;
        destination.ports.set(entry, (destination.ports.get(entry) ?? new Set()).add(place.port));
        const its = destination.users.get(user) ?? newTally();
        addTally(its, place.tally);
        destination.users.set(user, its);
      }
    }
  }
  return destinations;
}

const endpointOf = ({ protocol, destination, port }: Place): string => `${protocol} ${destination} ${port}`;

/** What was read at an endpoint; of one user of it, and of all. */
function readAt(seen: Seen): Map<string, Place[]> {
  const read = new Map<string, Place[]>();
  for (const [user, { places }] of seen.sources) {
    for (const place of places.values()) {
      if (place.application === undefined) continue;
      for (const key of [`${user} ${endpointOf(place)}`, endpointOf(place)])
        read.set(key, [...(read.get(key) ?? []), place]);
    }
  }
  return read;
}

/** Names in their order, then addresses in theirs. */
function byKind(a: Destination, b: Destination): number {
  if (a.isName !== b.isName) return a.isName ? -1 : 1;
  const [first, second] = [parseAddress(a.text), parseAddress(b.text)];
  if (first.ok && second.ok) return compareAddresses(first.value, second.value);
  return a.text < b.text ? -1 : 1;
}

interface PortSpec {
  name: string;
  protocol: Protocol;
  port: string;
  appProtocol?: Application;
}

/** Undefined: they cannot be said. */
function portsOf(ports: Destination['ports']): PortSpec[] | undefined {
  const specs: PortSpec[] = [];
  for (const [entry, numbers] of [...ports].sort(([a], [b]) => (a < b ? -1 : 1))) {
    const [protocol = '', application = ''] = entry.split(' ');
    const base = (application === '' ? protocol : `${application}-${protocol}`).toLowerCase();
    portTexts(numbers).forEach((port, at) => {
      specs.push({
        name: at === 0 ? base : `${base}-${at + 1}`,
        protocol: protocol as Protocol,
        port,
        ...(application !== '' && { appProtocol: application as Application }),
      });
    });
  }
  return specs.length > PORT_ENTRIES ? undefined : specs;
}

/** `80,443,8000-8002`, in as many texts as are needed. */
function portTexts(numbers: ReadonlySet<number>): string[] {
  const ranges: [number, number][] = [];
  for (const port of [...numbers].sort((a, b) => a - b)) {
    const last = ranges.at(-1);
    if (last !== undefined && last[1] + 1 === port) last[1] = port;
    else ranges.push([port, port]);
  }
  const lists: string[][] = [];
  let length = 0;
  for (const [first, last] of ranges) {
    const range = first === last ? `${first}` : `${first}-${last}`;
    const list = lists.at(-1);
    length += range.length + 1;
    if (list !== undefined && length <= PORT_TEXT && list.length < PORT_RANGES) list.push(range);
    else {
      lists.push([range]);
      length = range.length;
    }
  }
  return lists.map((list) => list.join(','));
}

function rulesOf(seen: Seen, namespace: string, used: Map<string, { names: string[]; tally: Tally }>): Drafted[] {
  const rules: Drafted[] = [];
  for (const user of [...used.keys()].sort()) {
    const { names = [], tally = newTally() } = used.get(user) ?? {};
    const { service, pods } = seen.sources.get(user) ?? {};
    for (let at = 0; at < names.length; at += NAMES_IN_RULE) {
      const more = at === 0 ? '' : `-${at / NAMES_IN_RULE + 1}`;
      const externalServices = names.slice(at, at + NAMES_IN_RULE);
      const manifest =
        service === undefined
          ? object('NamespaceEgressRule', namespace, `suggested${more}`, {
              action: 'accept-decisively',
              externalServices,
            })
          : object('ServiceEgressRule', namespace, `suggested-${service}${more}`, {
              action: 'accept',
              service,
              externalServices,
            });
      rules.push({ manifest, tally, pods: [...(pods ?? [])].sort() });
    }
  }
  return rules;
}

const object = (kind: Manifest['kind'], namespace: string, name: string, spec: Manifest['spec']): Manifest => ({
  apiVersion: API_VERSION,
  kind,
  metadata: { name, namespace },
  spec,
});

/** `api.example.com`, `ip-198-51-100-80`: as Kubernetes has names of objects. */
function objectNameOf(text: string, isName: boolean): string {
  if (!isName) return `ip-${text.replaceAll(/[.:]/g, '-')}`.replace(/-$/, '-0');
  // Hosts may have an underscore, and a name as long as it gets leaves no room for what tells two apart.
  const labels = text.split('.').map((label) => label.replaceAll('_', '-').replace(/^-+|-+$/g, '') || 'x');
  return labels
    .join('.')
    .slice(0, 240)
    .replace(/[-.]+$/, '');
}

function unused(name: string, taken: Set<string>): string {
  let free = name;
  for (let n = 2; taken.has(free); n++) free = `${name}-${n}`;
  taken.add(free);
  return free;
}
