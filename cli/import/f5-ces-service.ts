/**
 * One ExternalService of CES as ours: which addresses and ports it means, and what of them we cannot say. CES takes an
 * address or CIDR for what it is and all else for a name; it ignores a port entry without `port`, and a service without
 * any usable one means every protocol. An entry that we cannot carry must never leave the list empty for that reason:
 * then nothing is left, rather than everything. Pure.
 */
import { formatRange, parseRange } from '../../api/address.ts';
import { parseObject } from '../../api/kinds.ts';
import { API_VERSION } from '../../api/names.ts';
import { parsePorts } from '../../api/ports.ts';
import { show } from '../../api/schema/describe.ts';
import type { CesPort, CesService } from './f5-ces-manifest.ts';
import { type Entry, mergeRanges, type Port, type PortProtocol, portsOf, type Ranges } from './ports.ts';
import { withoutHostBits } from './rewrite.ts';

/** What our schema carries out of what CES can say: asked of the schema, so that there is one place that knows. */
export interface Takes {
  names: boolean;
}

export function schemaTakes(): Takes {
  const metadata = { name: 'probe', namespace: 'probe' };
  const takes = (kind: string, spec: object): boolean =>
    parseObject({ apiVersion: API_VERSION, kind, metadata, spec }).ok;
  return {
    names: takes('ExternalService', { addresses: ['api.example.com'] }),
  };
}

export interface FieldRemark {
  path: string;
  reason: string;
  message: string;
}

export interface ConvertedService {
  /** Both empty: nothing is left of it. */
  addresses: string[];
  /** Apart, since names say more of a port than addresses beside them had to keep to (docs/rules.md). */
  names: string[];
  /** Absent: every protocol. */
  ports?: Port[];
  changed: FieldRemark[];
  /** Destinations that are not in the result. */
  lost: FieldRemark[];
  /** Limits that are not in the result: all that was permitted still is, and more quickly. */
  unlimited: FieldRemark[];
}

export function convertService({ spec }: CesService, takes: Takes): ConvertedService {
  const result: ConvertedService = { addresses: [], names: [], changed: [], lost: [], unlimited: [] };
  const seen = new Set<string>();
  for (const [i, text] of spec.addresses.entries()) {
    const path = `spec.addresses[${i}]`;
    const read = readAddress(text, takes);
    if ('reason' in read) {
      result.lost.push({ path, ...read });
      continue;
    }
    if (read.name === true) {
      if (!seen.has(read.canonical)) result.names.push(read.address);
      seen.add(read.canonical);
      continue;
    }
    if (read.address !== text) {
      const message = `${show(text)} has bits after its prefix; written as ${read.address}, as CES reads it`;
      result.changed.push({ path, reason: 'HostBits', message });
    }
    if (!seen.has(read.canonical)) result.addresses.push(read.address);
    seen.add(read.canonical);
  }
  if (result.names.length > 0) {
    const message =
      'its names are told by what TLS, HTTP and QUIC say on ports 443 and 80, where other bytes are refused; on other ports by what dns.resolvers of the GatewayPool answered';
    result.changed.push({ path: 'spec.addresses', reason: 'NameByBytes', message });
  }
  const ports = convertPorts(spec.ports ?? [], result);
  if (ports === 'nothing') result.addresses = result.names = [];
  else if (ports !== 'any') result.ports = ports;
  if (result.names.length > 0 && result.addresses.length > 0 && result.ports?.some(({ bandwidth }) => bandwidth)) {
    const message = 'its names are an ExternalService of their own, which has the whole bandwidth for itself';
    result.changed.push({ path: 'spec.ports', reason: 'BandwidthSplit', message });
  }
  return result;
}

type ReadAddress = { address: string; canonical: string; name?: true } | { reason: string; message: string };

const unreadable = (text: string, why: string): ReadAddress => ({
  reason: 'AddressUnreadable',
  message: `${show(text)}: ${why}`,
});

function readAddress(text: string, takes: Takes): ReadAddress {
  const range = parseRange(text);
  if (range.ok && /^[^-]*-/.test(text)) {
    return unreadable(text, 'CES takes FIRST-LAST for a name; write it yourself if it is meant');
  }
  if (range.ok && (text === '0.0.0.0' || range.value.last === 0n)) {
    return unreadable(text, 'a BIG-IP may read this as every address; write 0.0.0.0/0 or ::/0 if it is meant');
  }
  if (range.ok && range.value.family === 6 && range.value.first >> 32n === 0xffffn) {
    return unreadable(text, 'IPv4 mapped into IPv6, which no packet carries');
  }
  if (range.ok) return { address: text, canonical: formatRange(range.value) };
  const masked = withoutHostBits(text);
  if (masked !== undefined) return { address: masked, canonical: masked };
  if (!isName(text)) return unreadable(text, 'no address and no CIDR; CES takes it for a name');
  const metadata = { name: 'probe', namespace: 'probe' };
  const taken =
    takes.names &&
    parseObject({ apiVersion: API_VERSION, kind: 'ExternalService', metadata, spec: { addresses: [text] } }).ok;
  if (taken) return { address: text, canonical: text.toLowerCase().replace(/[.]$/, ''), name: true };
  if (takes.names) return unreadable(text, 'a name that our schema does not take');
  return { reason: 'NameAddress', message: `${show(text)}: a name is not carried out yet; only addresses are` };
}

const isName = (text: string): boolean =>
  text.length <= 253 &&
  /^(\*\.)?[A-Za-z0-9_]([-A-Za-z0-9_.]*[A-Za-z0-9_])?\.?$/.test(text) &&
  /[A-Za-z]\.?$/.test(text);

const protocols: Readonly<Record<string, PortProtocol>> = { tcp: 'TCP', udp: 'UDP', sctp: 'SCTP' };
function convertPorts(ports: readonly CesPort[], result: ConvertedService): Port[] | 'any' | 'nothing' {
  const entries: Entry[] = [];
  let ignored = 0;
  for (const [i, port] of ports.entries()) {
    const path = `spec.ports[${i}]`;
    if (port.port === undefined || port.port === '') {
      ignored++;
      const message = 'an entry without port is ignored, as CES does';
      result.changed.push({ path, reason: 'EmptyPort', message });
      continue;
    }
    const protocol = Object.hasOwn(protocols, (port.protocol ?? '').toLowerCase())
      ? protocols[(port.protocol ?? '').toLowerCase()]
      : undefined;
    if (protocol === undefined) {
      const got = port.protocol === undefined || port.protocol === '' ? 'no protocol' : show(port.protocol);
      const message = `port ${show(port.port)} of ${got}: only TCP, UDP and SCTP have ports, and what CES makes of it depends on its version`;
      result.lost.push({ path: `${path}.protocol`, reason: 'ProtocolWithoutPorts', message });
      continue;
    }
    const ranges = readPorts(port.port);
    if (ranges === null) {
      const message = `${show(port.port)}: expected ports from 1 to 65535 and ranges that end after they begin`;
      result.lost.push({ path: `${path}.port`, reason: 'PortUnreadable', message });
      continue;
    }
    const bandwidth = bandwidthOf(port.bandwidth, `${path}.bandwidth`, result);
    entries.push({
      ...(port.name === undefined ? {} : { name: port.name }),
      protocol,
      ranges,
      ...(bandwidth === undefined ? {} : { bandwidth }),
    });
  }
  if (entries.length === 0) {
    if (ports.length > ignored) return 'nothing';
    if (ignored > 0) {
      const message = 'no entry has a port, so it means every protocol, as in CES: more than it may look';
      result.changed.push({ path: 'spec.ports', reason: 'AnyProtocol', message });
    }
    return 'any';
  }
  const { ports: own, merged, renamed } = portsOf(entries);
  if (merged) {
    const message = `${entries.length} entries are written as ${own.length}, the same ports together`;
    result.changed.push({ path: 'spec.ports', reason: 'PortsMerged', message });
  }
  const limits = (list: readonly { bandwidth?: string }[]): number => list.filter((one) => one.bandwidth).length;
  if (limits(own) > limits(entries)) {
    const message = `an entry with many ports is written as several, each with the whole bandwidth for itself`;
    result.changed.push({ path: 'spec.ports', reason: 'BandwidthSplit', message });
  }
  if (renamed > 0) {
    const message = `${renamed} of ${own.length} entries got a name: each needs one of its own, of lower-case letters, digits and -`;
    result.changed.push({ path: 'spec.ports', reason: 'PortNames', message });
  }
  return own;
}

/** Sorted and disjoint; null: not all of it can be read. */
function readPorts(text: string): Ranges | null {
  const ranges: Ranges = [];
  for (const part of text.split(',')) {
    const read = parsePorts(part.replace(/^0+(?=\d)/, '').replace(/-0+(?=\d)/, '-'));
    if (!read.ok) return null;
    ranges.push(...read.value);
  }
  return mergeRanges(ranges);
}

/** The name of an iRule; those of CES's own configuration say their rate. */
function bandwidthOf(text: string | undefined, path: string, result: ConvertedService): string | undefined {
  if (text === undefined || text === '') return undefined;
  const rate = /^bwc-([1-9]\d{0,5})mbps-irule$/.exec(text)?.[1];
  if (rate !== undefined && Number(rate) <= 99_999) return `${rate}Mbit`;
  const why = rate === undefined ? 'an iRule that only the BIG-IP knows' : 'more than can be limited here';
  result.unlimited.push({ path, reason: 'Bandwidth', message: `${show(text)}: ${why}` });
  return undefined;
}
