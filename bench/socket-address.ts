/** Socket addresses as bytes, for the generators' own system calls (bind, connect, sendto). */
import { parseAddress } from '../api/address.ts';
import { AF_INET6 } from '../kernel/libc.ts';

export const AF_INET = 2;
export const SOCK_STREAM = 1;
export const SOCK_DGRAM = 2;

/** struct sockaddr_in or sockaddr_in6. */
export function socketAddress(text: string, port: number): Uint8Array {
  const parsed = parseAddress(text);
  if (!parsed.ok) throw new TypeError(parsed.error);
  const { family, value } = parsed.value;
  const bytes = new Uint8Array(family === 4 ? 16 : 28);
  const view = new DataView(bytes.buffer);
  view.setUint16(0, family === 4 ? AF_INET : AF_INET6, true);
  view.setUint16(2, port);
  if (family === 4) view.setUint32(4, Number(value));
  else {
    view.setBigUint64(8, value >> 64n);
    view.setBigUint64(16, value & 0xffff_ffff_ffff_ffffn);
  }
  return bytes;
}
