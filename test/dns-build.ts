/** DNS messages out of parts, right ones and wrong ones: nothing is checked here. */

const u16 = (value: number): number[] => [value >> 8, value & 255];

/** Labels and the root; characters above 255 are a mistake of the test. */
export function nameBytes(text: string): number[] {
  const labels = text === '' || text === '.' ? [] : text.split('.');
  return [...labels.flatMap((label) => [label.length, ...Buffer.from(label, 'latin1')]), 0];
}

/** Labels, and the rest of the name where a pointer leads: to an offset of the message. */
export function pointer(offset: number, ...labels: string[]): number[] {
  return [...labels.flatMap((label) => [label.length, ...Buffer.from(label, 'latin1')]), ...u16(0xc000 | offset)];
}

export const QUESTION = 12;

export function question(name: string | number[], type: number, cls = 1): number[] {
  return [...(typeof name === 'string' ? nameBytes(name) : name), ...u16(type), ...u16(cls)];
}

export function record(name: string | number[], type: number, data: number[], ttl = 60, cls = 1): number[] {
  const seconds = [ttl >>> 24, (ttl >>> 16) & 255, (ttl >>> 8) & 255, ttl & 255];
  const owner = typeof name === 'string' ? nameBytes(name) : name;
  return [...owner, ...u16(type), ...u16(cls), ...seconds, ...u16(data.length), ...data];
}

/** OPT: the class is the size of datagrams, the TTL has the upper rcode, the version, flags. */
export const edns = (options: number[] = [], ttl = 0, name: string | number[] = ''): number[] =>
  record(name, 41, options, ttl, 1232);

export interface Parts {
  id?: number;
  flags?: number;
  questions?: number[][];
  answers?: number[][];
  authorities?: number[][];
  additionals?: number[][];
  /** Other than there are, in the header. */
  counts?: [number, number, number, number];
  trailing?: number[];
}

export function message(parts: Parts): Uint8Array {
  const { id = 7, flags = 0x0100, trailing = [] } = parts;
  const sections = [parts.questions, parts.answers, parts.authorities, parts.additionals].map(
    (section) => section ?? [],
  );
  const counts = parts.counts ?? sections.map((section) => section.length);
  return Uint8Array.from([...u16(id), ...u16(flags), ...counts.flatMap(u16), ...sections.flat(2), ...trailing]);
}

/** Over TCP. */
export function framed(bytes: Uint8Array): Uint8Array {
  return Uint8Array.from([...u16(bytes.length), ...bytes]);
}
