/**
 * What the election hears and says on one link, through AF_PACKET sockets. Not through raw sockets of protocol 112: there
 * IPv6 hides hop limit and destination, routes and the machine's own firewall (ours too) decide what comes in and
 * goes out, and the source would be what the kernel chooses. A filter in the kernel hands over protocol 112 only: the
 * price is one look at each packet that the link receives. Groups are joined by IP, since switches listen to that.
 */

import * as libc from '../kernel/libc.ts';
import { PacketSocket } from '../kernel/packet-socket.ts';
import { addressBytes } from '../wire/address-text.ts';
import { ETHERNET_HEADER, ETHERTYPE_IPV4, ETHERTYPE_IPV6 } from '../wire/ethernet.ts';
import { PROTOCOL_VRRP, VRRP_GROUP } from '../wire/vrrp.ts';

const IPPROTO_IP = 0;
const IP_ADD_MEMBERSHIP = 35;
const IPPROTO_IPV6 = 41;
const IPV6_ADD_MEMBERSHIP = 20;
/** Where the protocol is in an IPv4 header, and in an IPv6 header. */
const protocolAt = { 4: ETHERNET_HEADER + 9, 6: ETHERNET_HEADER + 6 } as const;
const etherTypes = { 4: ETHERTYPE_IPV4, 6: ETHERTYPE_IPV6 } as const;
const families = [4, 6] as const;

export interface LinkSocket {
  readonly device: string;
  readonly index: number;
  readonly mac: string;
  /** To poll. */
  readonly fds: readonly number[];
  /** A frame that waits, valid until the next call; undefined: none. */
  take(): Uint8Array | undefined;
  /** Never waits; the name of the error, if the frame did not go out. */
  send(frame: Uint8Array): string | undefined;
  /** Whether the device is the one that was opened, by index and MAC. */
  isSame(): boolean;
  /** Whether the device is up and has a carrier. */
  isRunning(): boolean;
  close(): void;
}

/** Throws SystemError: there is no such device, or no right to it. */
export function openLink(device: string, namespace?: string): LinkSocket {
  return namespace === undefined ? open(device) : libc.withNamespace(namespace, () => open(device, namespace));
}

function open(device: string, namespace?: string): LinkSocket {
  const ears: PacketSocket[] = [];
  const members: number[] = [];
  let mouth: PacketSocket | undefined;
  const close = (): void => {
    for (const socket of [...ears, ...(mouth === undefined ? [] : [mouth])]) socket.close();
    for (const fd of members.splice(0)) libc.close(fd);
  };
  try {
    for (const family of families) {
      const only = { at: protocolAt[family], byte: PROTOCOL_VRRP };
      ears.push(PacketSocket.open({ device, etherType: etherTypes[family], only }));
    }
    mouth = PacketSocket.open({ device, etherType: 0 });
    const index = libc.interfaceIndex(device);
    for (const family of families) joinGroup(family, index, members);
    const mac = mouth.mac();
    return linkOf({ device, index, mac, ears, mouth, close, ...(namespace === undefined ? {} : { namespace }) });
  } catch (error) {
    close();
    throw error;
  }
}

/** A link may have one family only: what is not heard by a group is heard by whoever sees all, as on veth. */
function joinGroup(family: 4 | 6, index: number, members: number[]): void {
  const fd = libc.socket(family === 4 ? libc.AF_INET : libc.AF_INET6, libc.SOCK_DGRAM, 0);
  members.push(fd);
  const group = addressBytes(VRRP_GROUP[family]);
  // struct ip_mreqn: group, own address, index. struct ipv6_mreq: group, index.
  const at = family === 4 ? 8 : 16;
  const request = new Uint8Array(at + 4);
  request.set(group);
  new DataView(request.buffer).setInt32(at, index, true);
  try {
    if (family === 4) libc.setOption(fd, IPPROTO_IP, IP_ADD_MEMBERSHIP, request);
    else libc.setOption(fd, IPPROTO_IPV6, IPV6_ADD_MEMBERSHIP, request);
  } catch (error) {
    if (!(error instanceof libc.SystemError)) throw error;
  }
}

function linkOf(link: {
  device: string;
  namespace?: string;
  index: number;
  mac: string;
  ears: PacketSocket[];
  mouth: PacketSocket;
  close(): void;
}): LinkSocket {
  const { device, namespace, index, mac, ears, mouth, close } = link;
  const indexNow = () => libc.interfaceIndex(device);
  return {
    device,
    index,
    mac,
    fds: ears.map(({ fd }) => fd),
    take() {
      for (const ear of ears) {
        const frame = ear.take();
        if (frame !== undefined) return frame;
      }
      return undefined;
    },
    send: (frame) => mouth.trySend(frame),
    isSame() {
      try {
        const now = namespace === undefined ? indexNow() : libc.withNamespace(namespace, indexNow);
        return now === index && mouth.mac() === mac;
      } catch {
        return false;
      }
    },
    isRunning() {
      try {
        return mouth.running();
      } catch {
        return false;
      }
    },
    close,
  };
}
