/**
 * Texts of set elements, in the one form that compilers write and that listings are brought to (wire/nft-types.ts), so that
 * a diff compares plain strings: canonical addresses, `first-last` for every range and prefix, numeric protocols,
 * `0x%08x` marks, raw payload integers in lower-case hex.
 */

/** Canonical address text (api/address.ts) as it is. */
export const addressText = (canonical: string): string => canonical;

/** A range of anything; one value stands for itself. */
export const rangeText = (first: string, last: string): string => (first === last ? first : `${first}-${last}`);

export const markText = (mark: number): string => `0x${(mark >>> 0).toString(16).padStart(8, '0')}`;

export const protocolText = (protocol: number): string => String(protocol);

export const portsText = (low: number, high: number): string => rangeText(String(low), String(high));

/** A raw payload integer (`@th,336,32`). */
export const rawText = (value: bigint): string => `0x${value.toString(16)}`;

/** A bucket of one second's packets, full at first. */
export const rateLimitText = (perSecond: number): string =>
  `limit rate over ${perSecond}/second burst ${perSecond} packets`;

/** A bucket of one second's bytes and `burst` more, full at first. */
export const bytesLimitText = (bytesPerSecond: number, burst: number): string =>
  `limit rate over ${bytesPerSecond} bytes/second burst ${burst} bytes`;

/** A packet's priority, as `classid`: two hexadecimal numbers that are not 0, or 'none'. */
export const classText = (major: number, minor: number): string => `${major.toString(16)}:${minor.toString(16)}`;

/** Connections that live at once. */
export const connectionLimitText = (connections: number): string => `ct count over ${connections}`;

export const concat = (...parts: string[]): string => parts.join(' . ');
