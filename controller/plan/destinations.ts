/**
 * EgressIPs with `destinations`: which prefixes each serves. A CIDR is one; of an ExternalService it is those of its
 * addresses and lists, whatever its ports say, since an address outside belongs to a peer and not to a port. Who may
 * be named is as in a cluster rule: else a namespace's owners could draw others' traffic to an address.
 * A service that does not exist, or a list that was never read, is no destination, and the status says so: what would
 * go there leaves as if nothing named it. One with names is refused: a node chooses the egress IP at a flow's first
 * packet, which names none.
 */
import { formatPrefix, parseRange, rangeToPrefixes } from '../../api/address.ts';
import { isPrefixText } from '../../api/checks.ts';
import { type EgressIP, type ExternalService, objectKey } from '../../api/kinds.ts';
import { CONTROLLER_NAMESPACE, LABEL_TRUSTED_SERVICES } from '../../api/names.ts';
import { must } from '../../api/result.ts';
import { type KnownLists, namesOf, serviceEntryOf, unreadLists } from '../../policy/external-service.ts';
import { isLender } from './cluster-rules.ts';
import { Findings } from './condition.ts';
import { sameItems } from './memo.ts';
import { type Objects, serviceNamed } from './objects.ts';
import { compareText } from './snapshot.ts';

/** Prefixes that the EgressIPs with destinations may serve, all together: what nodes and gateways keep in the kernel. */
const MAX_PREFIXES = 65_536;

/** EgressIP name → canonical prefixes, sorted. Those that serve every destination are absent; null: it is refused. */
export type Destinations = ReadonlyMap<string, readonly string[] | null>;

interface Remark {
  status: 'True' | 'False';
  reason: string;
  message: string;
}
interface Resolved {
  from: readonly unknown[];
  prefixes: readonly string[] | null;
  remarks: Remark[];
}

/** From what was found last where that still holds: lists are long, and plans are made far more often than one changes. */
export class DestinationIndex {
  #known = new Map<string, Resolved>();
  #result: { from: readonly unknown[]; destinations: Destinations; findings: Findings } | undefined;

  look(objects: Objects, lists: KnownLists): { destinations: Destinations; findings: Findings } {
    const all = objects.EgressIP.filter(({ spec }) => spec.destinations !== undefined);
    const known = new Map(all.map((egressIP) => [egressIP.metadata.name, this.#resolve(egressIP, objects, lists)]));
    const from = [...all, ...known.values()];
    this.#known = known;
    if (this.#result !== undefined && sameItems(this.#result.from, from)) return this.#result;
    const destinations = new Map<string, readonly string[] | null>();
    const findings = new Findings();
    let total = 0;
    for (const egressIP of all) {
      const key = objectKey(egressIP);
      const { prefixes, remarks } = known.get(egressIP.metadata.name) as Resolved;
      const size = prefixes?.length ?? 0;
      const tooMany = total + size > MAX_PREFIXES;
      if (tooMany) {
        const message = `destinations: ${size} prefixes; all EgressIPs together may have ${MAX_PREFIXES}, those of older ones included`;
        findings.refuse(key, 'TooManyDestinations', message);
      } else total += size;
      for (const { status, reason, message } of remarks) findings.add(key, 'Accepted', status, reason, message);
      destinations.set(egressIP.metadata.name, tooMany ? null : prefixes);
    }
    this.#result = { from, destinations, findings };
    return this.#result;
  }

  #resolve(egressIP: EgressIP, { namespaces }: Objects, lists: KnownLists): Resolved {
    const names = (egressIP.spec.destinations ?? []).filter((text) => !isPrefixText(text));
    const trusts = (name: string): boolean => name === CONTROLLER_NAMESPACE || isLender(namespaces, name);
    const services = names.map((name) => serviceNamed(namespaces, name));
    const from = [
      egressIP,
      ...names.map((name) => trusts(name.slice(0, name.indexOf('/')))),
      ...services,
      ...names.flatMap((name) => (lists.get(name) ?? []).map(({ addresses }) => addresses)),
    ];
    const last = this.#known.get(egressIP.metadata.name);
    if (last !== undefined && sameItems(last.from, from)) return last;
    return { from, ...resolve(egressIP, names, services, trusts, lists) };
  }
}

function resolve(
  { spec }: EgressIP,
  names: readonly string[],
  services: readonly (ExternalService | undefined)[],
  trusts: (namespace: string) => boolean,
  lists: KnownLists,
): Omit<Resolved, 'from'> {
  const namespaceOf = (name: string): string => name.slice(0, name.indexOf('/'));
  const untrusted = names.find((name) => !trusts(namespaceOf(name)));
  if (untrusted !== undefined) {
    const message = `destinations: "${untrusted}": namespace ${namespaceOf(untrusted)} is not labelled ${LABEL_TRUSTED_SERVICES}: "true"`;
    return { prefixes: null, remarks: [{ status: 'False', reason: 'UntrustedNamespace', message }] };
  }
  const named = names.filter((_, at) => {
    const service = services[at];
    return service !== undefined && namesOf(service).length > 0;
  });
  if (named.length > 0) {
    const message = `destinations: external service ${named.join(', ')} has names, and where a flow leaves must be known at its first packet; name services of addresses alone`;
    return { prefixes: null, remarks: [{ status: 'False', reason: 'DestinationNeedsAddresses', message }] };
  }
  const remarks: Remark[] = [];
  const missing = names.filter((_, at) => services[at] === undefined);
  if (missing.length > 0) {
    const message = `destinations: external service ${missing.join(', ')} not found (it does not exist, or was refused): it is no destination`;
    remarks.push({ status: 'True', reason: 'ExternalServiceNotFound', message });
  }
  const prefixes = new Set((spec.destinations ?? []).filter(isPrefixText));
  for (const [at, service] of services.entries()) {
    if (service === undefined) continue;
    const name = names[at] ?? '';
    const unread = unreadLists(service, lists.get(name));
    if (unread.length > 0) {
      const message = `destinations: a list of external service ${name} (addressesFrom[${unread.join('], [')}]) was never read: what it names is no destination`;
      remarks.push({ status: 'True', reason: 'ListNotRead', message });
    }
    for (const text of serviceEntryOf(service, lists.get(name)).addresses) {
      for (const prefix of rangeToPrefixes(must(parseRange(text)))) prefixes.add(formatPrefix(prefix));
    }
  }
  return { prefixes: [...prefixes].sort(compareText), remarks };
}
