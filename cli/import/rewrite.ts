/**
 * What every importer does: which metadata goes along, a name where an object's own is taken, CIDRs as the source reads
 * them. Pure.
 */
import { addressBits, formatPrefix, parseAddress, parsePrefix } from '../../api/address.ts';
import type { ObjectMeta } from '../../api/kinds.ts';
import { printable } from '../output.ts';
import type { Manifest, Reporter } from './report.ts';

/** kubectl's copy of the whole object as it was. */
const LAST_APPLIED = 'kubectl.kubernetes.io/last-applied-configuration';
const MAX_NAME = 253;

/**
 * Labels and annotations go along, but for what the old controller or kubectl wrote; times, uids and versions do not:
 * an object that comes in now must not count as older than what is in force.
 */
export function metadataOf(
  meta: ObjectMeta,
  without: readonly string[],
  key: string,
  report: Reporter,
): Manifest['metadata'] {
  const { name, namespace } = meta;
  const kept = (map: Record<string, string> | undefined): Record<string, string> | undefined => {
    const entries = Object.entries(map ?? {}).filter(([field]) => field !== LAST_APPLIED && !without.includes(field));
    const clean = entries.filter(([, value]) => isPrintable(value));
    if (clean.length < entries.length) {
      const message = 'annotations with control characters are left out';
      report.changed({ object: key, path: 'metadata.annotations', reason: 'Unprintable', message });
    }
    return clean.length === 0 ? undefined : Object.fromEntries(clean);
  };
  const labels = kept(meta.labels);
  const annotations = kept(meta.annotations);
  return {
    name,
    ...(namespace === undefined ? {} : { namespace }),
    ...(labels === undefined ? {} : { labels }),
    ...(annotations === undefined ? {} : { annotations }),
  };
}

/** Goes to a terminal as YAML, which would not escape all of them. */
function isPrintable(value: string): boolean {
  const line = value.replace(/[\n\t]/g, ' ');
  return printable(line) === line;
}

/** Its own name if that is free (`own`: it is its), else with a number behind it. `take` answers whether it was free. */
export function nameBeside(name: string, own: boolean, take: (candidate: string) => boolean): string {
  if (own) return name;
  let candidate = name;
  for (let n = 2; !take(candidate); n++) {
    const suffix = `-${n}`;
    candidate = `${name.slice(0, MAX_NAME - suffix.length).replace(/[-.]+$/, '')}${suffix}`;
  }
  return candidate;
}

/** A CIDR with bits after its prefix, which Go's parser cuts off and ours refuses; undefined: not even that. */
export function withoutHostBits(text: string): string | undefined {
  const [head = '', length = '', ...rest] = text.split('/', 3);
  const address = parseAddress(head);
  if (!address.ok || rest.length > 0 || !/^(0|[1-9]\d{0,2})$/.test(length)) return undefined;
  const { family, value } = address.value;
  const host = BigInt(addressBits(family) - Number(length));
  if (host < 0n) return undefined;
  const prefix = formatPrefix({ family, value: (value >> host) << host, length: Number(length) });
  return parsePrefix(prefix).ok ? prefix : undefined;
}

export function chunks<T>(list: readonly T[], size: number): T[][] {
  const parts: T[][] = [];
  for (let i = 0; i < list.length; i += size) parts.push(list.slice(i, i + size));
  return parts;
}
