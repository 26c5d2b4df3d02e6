/**
 * Tells the neighbours of a link that addresses are here: gratuitous ARP (request and reply) for IPv4, unsolicited
 * neighbour advertisements with the override flag for IPv6. Sends once; repeating it is the caller's.
 */

import { isIPv6 } from 'node:net';
import { gratuitousArp } from '../wire/arp.ts';
import { unsolicitedAdvertisement } from '../wire/ndp.ts';
import { PacketSocket } from './packet-socket.ts';

export interface Announcement {
  device: string;
  /** Default: the device's own. */
  mac?: string;
  addresses: readonly string[];
  /** Network namespace `/run/netns/NAME`; absent: the thread's own. */
  namespace?: string;
}

/** Sends the frames; throws SystemError when the device is gone or down. */
export function announce(announcement: Announcement): void {
  const { device, addresses, namespace } = announcement;
  if (addresses.length === 0) return;
  const socket = PacketSocket.open({ device, etherType: 0, ...(namespace === undefined ? {} : { namespace }) });
  try {
    const mac = announcement.mac ?? socket.mac();
    for (const address of addresses) {
      const frames = isIPv6(address) ? [unsolicitedAdvertisement(mac, address)] : gratuitousArp(mac, address);
      for (const frame of frames) socket.send(frame);
    }
  } finally {
    socket.close();
  }
}
