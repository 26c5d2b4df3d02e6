/**
 * `sluice lab flows`: the gateways' flow records (JSON lines) as one stream of text lines, the new ones as they come.
 * Files are asked for growth ten times a second; a line is taken when its end is there.
 */
import { open } from 'node:fs/promises';
import type { FlowRecord } from '../gateway/record/flow-record.ts';
import { placeOf } from './place.ts';
import type { Topology } from './topology.ts';

const pollMs = 100;
const readMax = 1 << 20;

export const flowFiles = (lab: string, topology: Topology): string[] =>
  topology.hosts
    .filter((host) => host.programs?.some((program) => program.kind === 'gateway'))
    .map((host) => placeOf(lab).flows(host.name));

export function parseRecord(line: string): FlowRecord | null {
  try {
    const record: unknown = JSON.parse(line);
    const isRecord = typeof record === 'object' && record !== null && 'event' in record && 'source' in record;
    return isRecord ? (record as FlowRecord) : null;
  } catch {
    return null;
  }
}

const endpoint = (address: string, port?: number): string =>
  port === undefined ? address : `${address.includes(':') ? `[${address}]` : address}:${port}`;

/** `12:00:01 accept  start  TCP    billing/pay-1 → 198.51.100.80:80 as 203.0.113.101 (gw-b; service billing/x)` */
export function formatRecord(r: FlowRecord): string {
  const who = r.pod === undefined ? r.source : `${r.namespace}/${r.pod}`;
  const as = r.egressIP === undefined || r.verdict !== 'accept' ? '' : ` as ${r.egressIP}`;
  const via =
    r.redirectedTo === undefined
      ? ''
      : `, redirected to ${endpoint(r.redirectedTo, r.redirectedPort ?? r.destinationPort)}`;
  const by = r.rule === undefined ? r.reason : `${r.context} rule ${r.rule}`;
  const why = r.wouldHave === undefined ? by : `${by} would have said ${r.wouldHave}`;
  const type = r.icmpType === undefined ? '' : ` type ${r.icmpType}/${r.icmpCode}`;
  const bytes = r.bytes === undefined ? '' : `, ${r.bytes.egress} B out, ${r.bytes.ingress} B in`;
  const spoken = [r.application, r.destinationName].filter((part) => part !== undefined).join(' ');
  const columns = [
    String(r.time).slice(11, 19),
    r.verdict.padEnd(6),
    r.event.padEnd(5),
    String(r.protocol).padEnd(6),
    who.padEnd(17),
    '→',
    `${endpoint(r.destination, r.destinationPort)}${type}${as}${via}`,
  ];
  return `${columns.join(' ')} (${r.gateway}; ${why}${spoken === '' ? '' : `, ${spoken}`}${bytes})`;
}

/** Every complete line after `offset` of a file, and where the next one begins. */
async function readLines(file: string, offset: number): Promise<{ lines: string[]; next: number }> {
  const handle = await open(file, 'r').catch(() => null);
  if (handle === null) return { lines: [], next: offset };
  try {
    const { size } = await handle.stat();
    // Shorter than before: it was begun anew.
    const from = size < offset ? 0 : offset;
    const buffer = Buffer.alloc(Math.min(size - from, readMax));
    const { bytesRead } = await handle.read(buffer, 0, buffer.length, from);
    const end = buffer.subarray(0, bytesRead).lastIndexOf(0x0a) + 1;
    const lines = buffer.toString('utf8', 0, end).split('\n').filter(Boolean);
    return { lines, next: from + end };
  } finally {
    await handle.close();
  }
}

/** All records so far, in the order of their times. */
export async function readFlows(files: string[]): Promise<FlowRecord[]> {
  const records: FlowRecord[] = [];
  for (const file of files) {
    for (let offset = 0; ; ) {
      const { lines, next } = await readLines(file, offset);
      for (const line of lines) {
        const record = parseRecord(line);
        if (record !== null) records.push(record);
      }
      if (next === offset) break;
      offset = next;
    }
  }
  return records.sort((a, b) => (a.time < b.time ? -1 : a.time > b.time ? 1 : 0));
}

/** Records that are written from now on. */
export async function followFlows(
  files: string[],
  onRecord: (record: FlowRecord) => void,
): Promise<{ close(): Promise<void> }> {
  const offsets = new Map<string, number>();
  for (const file of files) {
    const handle = await open(file, 'r').catch(() => null);
    offsets.set(file, handle === null ? 0 : (await handle.stat()).size);
    await handle?.close();
  }
  let closed = false;
  let wake = (): void => {};
  const loop = (async () => {
    while (!closed) {
      for (const file of files) {
        const { lines, next } = await readLines(file, offsets.get(file) ?? 0);
        offsets.set(file, next);
        for (const line of lines) {
          const record = parseRecord(line);
          if (record !== null) onRecord(record);
        }
      }
      await new Promise<void>((resolve) => {
        wake = resolve;
        setTimeout(resolve, pollMs);
      });
    }
  })();
  return {
    async close() {
      closed = true;
      wake();
      await loop;
    },
  };
}
