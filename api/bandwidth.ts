/**
 * Bandwidths as people write them (design §3): `50Mbit`, in bits per second, decimal. No other form is read, since 50MB,
 * 50Mi and 50 mean other things to other people.
 */
const units = { kbit: 1e3, Mbit: 1e6, Gbit: 1e9 } as const;

/** Bits per second of a text that has passed validation; any other is our own mistake, and throws. */
export function parseBandwidth(text: string): number {
  const [, number = '', unit = ''] = /^(\d+)(kbit|Mbit|Gbit)$/.exec(text) ?? [];
  const size = units[unit as keyof typeof units];
  if (size === undefined) throw new TypeError(`not a bandwidth: ${JSON.stringify(text)}`);
  return Number(number) * size;
}

/** `50 Mbit/s`; of what no unit divides, three digits after the point. */
export function formatBandwidth(bits: number): string {
  const [unit, size] = bits >= 1e9 ? (['Gbit', 1e9] as const) : bits >= 1e6 ? (['Mbit', 1e6] as const) : ['kbit', 1e3];
  return `${Math.round((bits / size) * 1000) / 1000} ${unit}/s`;
}
