/**
 * rtnetlink (<linux/rtnetlink.h>, <linux/neighbour.h>, <linux/if_link.h>), as far as it says behind which interface an
 * address is: links, routes to single addresses, neighbours, and the forwarding tables of bridges. Decodes events and
 * dumps, which are the same messages; encodes the dumps. Routes that do more than to lead to an interface are left out.
 */

import { ipv4Text, ipv6Text, macText } from './address-text.ts';
import { AttributeCursor, messageType, NLM_F_DUMP, NLM_F_REQUEST, NLMSG_HEADER } from './nlattr.ts';

const RTM_NEWLINK = 16;
const RTM_DELLINK = 17;
const RTM_GETLINK = 18;
const RTM_NEWROUTE = 24;
const RTM_DELROUTE = 25;
const RTM_GETROUTE = 26;
const RTM_NEWNEIGH = 28;
const RTM_DELNEIGH = 29;
const RTM_GETNEIGH = 30;

/** RTNLGRP_LINK, RTNLGRP_NEIGH, RTNLGRP_IPV4_ROUTE, RTNLGRP_IPV6_ROUTE, as bits. */
export const PLACE_GROUPS = [1, 3, 7, 11].reduce((bits, group) => bits | (1 << (group - 1)), 0);

const AF_UNSPEC = 0;
const AF_BRIDGE = 7;
const AF_INET = 2;
const AF_INET6 = 10;
const familyOf: Record<number, 4 | 6> = { [AF_INET]: 4, [AF_INET6]: 6 };
const addressBytes = { 4: 4, 6: 16 } as const;

/** struct ifinfomsg, rtmsg, ndmsg. */
const LINK_BODY = 16;
const ROUTE_BODY = 12;
const NEIGHBOUR_BODY = 12;

const IFF_UP = 1;
const RT_TABLE_MAIN = 254;
const RTN_UNICAST = 1;
const RTA_DST = 1;
const RTA_OIF = 4;
const RTA_GATEWAY = 5;
const RTA_VIA = 18;
const NDA_DST = 1;
const NDA_LLADDR = 2;
const NDA_MASTER = 9;

/** What came (or is there), or went; interfaces by their index. */
export type PlaceEvent =
  | { kind: 'link'; gone: boolean; index: number; up: boolean }
  /** Of the main table, to one address. */
  | { kind: 'route'; gone: boolean; address: string; index: number }
  /** Of the main table, to several addresses that are all on that link. */
  | { kind: 'subnet'; gone: boolean; prefix: string; index: number }
  | { kind: 'neighbour'; gone: boolean; address: string; index: number; mac: string }
  /** A bridge has learned behind which of its ports a MAC is. */
  | { kind: 'port'; gone: boolean; bridge: number; index: number; mac: string };

/** Undefined: a message about something else. */
export function decodePlace(message: Uint8Array): PlaceEvent | undefined {
  switch (messageType(message)) {
    case RTM_NEWLINK:
    case RTM_DELLINK:
      return decodeLink(message, messageType(message) === RTM_DELLINK);
    case RTM_NEWROUTE:
    case RTM_DELROUTE:
      return decodeRoute(message, messageType(message) === RTM_DELROUTE);
    case RTM_NEWNEIGH:
    case RTM_DELNEIGH:
      return decodeNeighbour(message, messageType(message) === RTM_DELNEIGH);
    default:
      return undefined;
  }
}

const int32 = (message: Uint8Array, at: number): number =>
  new DataView(message.buffer, message.byteOffset).getInt32(at, true);

function decodeLink(message: Uint8Array, gone: boolean): PlaceEvent | undefined {
  // Of AF_BRIDGE: a port joined or left a bridge, the interface itself is there all the same.
  if (message.length < NLMSG_HEADER + LINK_BODY || message[NLMSG_HEADER] !== AF_UNSPEC) return undefined;
  const up = (int32(message, NLMSG_HEADER + 8) & IFF_UP) !== 0;
  return { kind: 'link', gone, index: int32(message, NLMSG_HEADER + 4), up };
}

function decodeRoute(message: Uint8Array, gone: boolean): PlaceEvent | undefined {
  const body = message.subarray(NLMSG_HEADER, NLMSG_HEADER + ROUTE_BODY);
  const family = familyOf[body[0] ?? 0];
  if (body.length < ROUTE_BODY || family === undefined) return undefined;
  const [length, table, type] = [body[1], body[4], body[7]];
  if (table !== RT_TABLE_MAIN || type !== RTN_UNICAST) return undefined;
  let address: string | undefined;
  let index: number | undefined;
  const cursor = new AttributeCursor(message, NLMSG_HEADER + ROUTE_BODY);
  while (cursor.next()) {
    if (cursor.type === RTA_DST) address = addressText(cursor, family);
    else if (cursor.type === RTA_OIF && cursor.length === 4) index = int32(message, cursor.start);
    else if (cursor.type === RTA_GATEWAY || cursor.type === RTA_VIA) return undefined;
  }
  if (address === undefined || index === undefined) return undefined;
  if (length === 8 * addressBytes[family]) return { kind: 'route', gone, address, index };
  return { kind: 'subnet', gone, prefix: `${address}/${length}`, index };
}

function decodeNeighbour(message: Uint8Array, gone: boolean): PlaceEvent | undefined {
  const body = message.subarray(NLMSG_HEADER, NLMSG_HEADER + NEIGHBOUR_BODY);
  if (body.length < NEIGHBOUR_BODY) return undefined;
  const family = familyOf[body[0] ?? 0];
  const index = int32(message, NLMSG_HEADER + 4);
  let address: string | undefined;
  let mac: string | undefined;
  let bridge: number | undefined;
  const cursor = new AttributeCursor(message, NLMSG_HEADER + NEIGHBOUR_BODY);
  while (cursor.next()) {
    if (cursor.type === NDA_LLADDR && cursor.length === 6) mac = macText(message, cursor.start);
    else if (cursor.type === NDA_DST && family !== undefined) address = addressText(cursor, family);
    else if (cursor.type === NDA_MASTER && cursor.length === 4) bridge = int32(message, cursor.start);
  }
  // Of one that is being asked for, or does not answer.
  if (mac === undefined) return undefined;
  if (body[0] === AF_BRIDGE) return bridge === undefined ? undefined : { kind: 'port', gone, bridge, index, mac };
  return address === undefined ? undefined : { kind: 'neighbour', gone, address, index, mac };
}

function addressText(cursor: AttributeCursor, family: 4 | 6): string | undefined {
  if (cursor.length !== addressBytes[family]) return undefined;
  return (family === 4 ? ipv4Text : ipv6Text)(cursor.bytes(), 0);
}

/** Requests, to be made one after the other: links, routes of both families, neighbours, what bridges have learned. */
export function encodePlaceDumps(): Uint8Array[] {
  return [
    request(RTM_GETLINK, AF_UNSPEC, LINK_BODY),
    request(RTM_GETROUTE, AF_INET, ROUTE_BODY),
    request(RTM_GETROUTE, AF_INET6, ROUTE_BODY),
    request(RTM_GETNEIGH, AF_UNSPEC, NEIGHBOUR_BODY),
    request(RTM_GETNEIGH, AF_BRIDGE, NEIGHBOUR_BODY),
  ];
}

function request(type: number, family: number, body: number): Uint8Array {
  const bytes = new Uint8Array(NLMSG_HEADER + body);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, bytes.length, true);
  view.setUint16(4, type, true);
  view.setUint16(6, NLM_F_REQUEST | NLM_F_DUMP, true);
  bytes[NLMSG_HEADER] = family;
  return bytes;
}
