/**
 * Ports of an ExternalService: text such as `443,8000-8100` to inclusive ranges, and a port entry to the plan's form.
 */

import type { PortEntry } from './plan.ts';
import { fail, ok, type Result } from './result.ts';
import { portProtocols, protocolNumbers } from './schema/external-service.ts';

const maxRanges = 128;

/** Sorted inclusive ranges within 1 to 65535. Ranges that overlap are refused: one of them is a slip. */
export function parsePorts(text: string): Result<[number, number][]> {
  const parts = text.split(',', maxRanges + 1);
  if (parts.length > maxRanges) return fail(`at most ${maxRanges} ports and ranges`);
  const ranges: [number, number][] = [];
  for (const part of parts) {
    const match = /^([1-9][0-9]{0,4})(?:-([1-9][0-9]{0,4}))?$/.exec(part);
    if (match === null) return fail(`ports from 1 to 65535 as in 443,8000-8100`);
    const first = Number(match[1]);
    const last = match[2] === undefined ? first : Number(match[2]);
    if (last > 65_535 || first > 65_535) return fail('ports from 1 to 65535');
    if (first > last) return fail(`a range that ends after it begins, not ${part}`);
    ranges.push([first, last]);
  }
  ranges.sort((a, b) => a[0] - b[0]);
  for (const [i, range] of ranges.entries()) {
    const next = ranges[i + 1];
    if (next !== undefined && next[0] <= range[1]) return fail(`each port once, not ${next[0]} twice`);
  }
  return ok(ranges);
}

/** The number of a protocol that the schema let pass. */
export function protocolNumber(protocol: string | number): number {
  return typeof protocol === 'number' ? protocol : (protocolNumbers[protocol] ?? Number(protocol));
}

/** As the plan has it. Only for a port of a parsed ExternalService: anything else is a programmer's mistake. */
export function portEntry(port: { protocol: string | number; port?: string }): PortEntry {
  const protocol = protocolNumber(port.protocol);
  if (port.port === undefined) return { protocol, ports: null };
  const ports = parsePorts(port.port);
  if (!ports.ok || !portProtocols.has(protocol)) throw new Error(`not a parsed port: ${JSON.stringify(port)}`);
  return { protocol, ports: ports.value };
}
