/**
 * Whole packets of IPv4 and IPv6, with their headers, sent as if they came from whoever they say (raw(7), IP_HDRINCL;
 * ipv6(7), IPV6_HDRINCL): the resets of connections that policy ends. Routed by the machine like its own, with a mark of
 * ours. Only sends. The thread that opens a socket need not be the one that sends: a descriptor is the process's.
 */
import { GATEWAY_CHECKED_MARK, INSPECT_PASSED_MARK } from '../api/names.ts';
import type { Family } from '../api/plan.ts';
import * as libc from './libc.ts';

const IPPROTO_IP = 0;
const IP_HDRINCL = 3;
const IPPROTO_IPV6 = 41;
const IPV6_HDRINCL = 36;
/** A socket of this protocol receives nothing. */
const IPPROTO_RAW = 255;

export interface RawSockets {
  readonly fds: Readonly<Record<Family, number>>;
  close(): void;
}

/** One of each family. `namespace`: `/run/netns/NAME`; absent: the thread's own. Throws SystemError. */
export function openRawSockets(namespace?: string): RawSockets {
  const open = () => {
    const four = openRaw(libc.AF_INET, IPPROTO_IP, IP_HDRINCL);
    try {
      return { 4: four, 6: openRaw(libc.AF_INET6, IPPROTO_IPV6, IPV6_HDRINCL) };
    } catch (error) {
      libc.close(four);
      throw error;
    }
  };
  const fds = namespace === undefined ? open() : libc.withNamespace(namespace, open);
  let closed = false;
  return {
    fds,
    close() {
      if (closed) return;
      closed = true;
      libc.close(fds[4]);
      libc.close(fds[6]);
    },
  };
}

function openRaw(family: number, level: number, option: number): number {
  const fd = libc.socket(family, libc.SOCK_RAW, IPPROTO_RAW);
  try {
    libc.setOption(fd, level, option, 1);
    libc.setOption(fd, libc.SOL_SOCKET, libc.SO_MARK, GATEWAY_CHECKED_MARK | INSPECT_PASSED_MARK);
    return fd;
  } catch (error) {
    libc.close(fd);
    throw error;
  }
}

const IPV4_DESTINATION = 16;
const IPV6_DESTINATION = 24;

/** Sends one packet; false if the kernel would not, for want of a route or room: there is nobody to tell. */
export function sendRaw(fds: RawSockets['fds'], packet: Uint8Array): boolean {
  const four = (packet[0] ?? 0) >>> 4 === 4;
  // struct sockaddr_in and sockaddr_in6, without ports.
  const address = new Uint8Array(four ? 16 : 28);
  address[0] = four ? libc.AF_INET : libc.AF_INET6;
  if (four) address.set(packet.subarray(IPV4_DESTINATION, IPV4_DESTINATION + 4), 4);
  else address.set(packet.subarray(IPV6_DESTINATION, IPV6_DESTINATION + 16), 8);
  try {
    return libc.sendTo(fds[four ? 4 : 6], packet, address, libc.MSG_DONTWAIT) === packet.length;
  } catch (error) {
    if (error instanceof libc.SystemError) return false;
    throw error;
  }
}
