/**
 * The ClientHello message (RFC 8446 §4.1.2; RFC 5246 §7.4.1.2 for older clients) without the layer that carries it: TLS
 * records for TCP (tls.ts), CRYPTO frames for QUIC (quic.ts). Read are server_name (RFC 6066), ALPN (RFC 7301),
 * supported_versions, supported_groups, key_share (which groups), pre_shared_key and early_data (RFC 8446 §4.2),
 * encrypted_client_hello (RFC 9849); reserved values (GREASE, RFC 8701) are skipped. Each length must fill what holds it:
 * bytes that one parser skips are where another finds a second name. Left out: cipher suites, and whether a server would
 * like the offer.
 */

import { u8, u16 } from './bytes.ts';
import { MORE, type Reading, read, refused } from './reading.ts';
import { remembered } from './remembered.ts';
import { latin1, nameReasons, readServerName } from './tls-name.ts';

export const helloReasons = {
  ...nameReasons,
  'not-client-hello': 'a handshake that begins with another message',
  'hello-too-long': 'a ClientHello of more bytes than are read',
  'bytes-after-hello': 'bytes of the handshake right after the ClientHello, where a client waits for the server',
  'bad-version': 'a ClientHello of no version of SSL 3 or TLS',
  'bad-length': 'a length in the ClientHello that does not fit what holds it',
  'too-many-extensions': 'more extensions than are read',
  'duplicate-extension': 'two extensions of one type',
  'bad-name-type': 'a server name of another type than host name',
  'several-names': 'more than one server name',
  'too-many-protocols': 'more ALPN protocols than are read',
} as const satisfies Record<string, string>;
export type HelloReason = keyof typeof helloReasons;

/** Bounds of ours. The specification's are in the lengths of its fields. */
export interface HelloLimits {
  /** Bytes of the message without its header. With post-quantum key shares and ECH, browsers send under 4,000. */
  readonly helloBytes: number;
  /** Browsers send about 20. */
  readonly extensions: number;
  readonly protocols: number;
}

export const helloLimits: HelloLimits = { helloBytes: 16_384, extensions: 64, protocols: 32 };

export interface ClientHello {
  /** Lower case, no trailing dot. Undefined: the client named no server. With ECH, the outer name. */
  readonly serverName: string | undefined;
  /** In the client's order; bytes that are not printable, and `%`, as %XX. Empty: no such extension. */
  readonly alpn: readonly string[];
  /** Offered, in the client's order; without the extension `legacyVersion` alone, and the client may take a lower one. */
  readonly versions: readonly number[];
  /** client_version: at most 0x0303 in honest clients. */
  readonly legacyVersion: number;
  /** The name in clear may not be the real one. Clients that only pretend (GREASE) look the same, by design. */
  readonly encryptedClientHello: boolean;
  /**
   * Of TLS 1.3: the groups that the client supports, and those of which it has shares, by which a server decides whether it
   * asks for another hello (RFC 8446 §4.1.4). Undefined: no server has reason to.
   */
  readonly groups: string | undefined;
  readonly preSharedKey: boolean;
  /** Data of the application may follow before the server has answered. */
  readonly earlyData: boolean;
  /** Bytes that the hello took, with the headers of the records that carried it. */
  readonly length: number;
}

export const HANDSHAKE_HEADER = 4;
export const CLIENT_HELLO = 1;
const HOST_NAME = 0;
const RANDOM = 32;
const SESSION_ID_MAX = 32;

const EXTENSION_SERVER_NAME = 0;
const EXTENSION_SUPPORTED_GROUPS = 10;
const EXTENSION_ALPN = 16;
const EXTENSION_PRE_SHARED_KEY = 41;
const EXTENSION_EARLY_DATA = 42;
export const EXTENSION_SUPPORTED_VERSIONS = 43;
const EXTENSION_KEY_SHARE = 51;
const TLS_1_3 = 0x0304;

/** RFC 9849, its drafts 8 to 12, and encrypted_server_name before them: all of them hide a name. */
function isEncryptedHello(type: number): boolean {
  return type === 0xfe0d || (type >= 0xfe08 && type <= 0xfe0c) || type === 0xffce;
}

/** 0x0a0a, 0x1a1a … 0xfafa (RFC 8701 §2). */
function isGrease(value: number): boolean {
  return (value & 0x0f0f) === 0x0a0a && value >>> 8 === (value & 0xff);
}

/** A message from its header on, as far as it has come; what follows it is refused. */
export function readHelloMessage(bytes: Uint8Array, limits: HelloLimits): Reading<ClientHello, HelloReason> {
  if (bytes.length === 0) return MORE;
  if (u8(bytes, 0) !== CLIENT_HELLO) return refused('not-client-hello');
  if (bytes.length < HANDSHAKE_HEADER) return MORE;
  const size = (u8(bytes, 1) << 16) | u16(bytes, 2);
  if (size > limits.helloBytes) return refused('hello-too-long');
  const end = HANDSHAKE_HEADER + size;
  if (bytes.length > end) return refused('bytes-after-hello');
  return bytes.length < end ? MORE : readHelloBody(bytes, HANDSHAKE_HEADER, end, end, limits);
}

/** A whole message without its header: never `more`. `length` is what the answer says. */
export function readHelloBody(
  bytes: Uint8Array,
  start: number,
  end: number,
  length: number,
  limits: HelloLimits,
): Reading<ClientHello, HelloReason> {
  const sessionId = start + 2 + RANDOM;
  if (sessionId >= end) return refused('bad-length');
  const legacyVersion = u16(bytes, start);
  if (legacyVersion >>> 8 !== 3) return refused('bad-version');
  const suites = sessionId + 1 + u8(bytes, sessionId);
  if (u8(bytes, sessionId) > SESSION_ID_MAX || suites + 2 > end) return refused('bad-length');
  const suitesSize = u16(bytes, suites);
  const compression = suites + 2 + suitesSize;
  if (suitesSize === 0 || suitesSize % 2 !== 0 || compression >= end) return refused('bad-length');
  const extensions = compression + 1 + u8(bytes, compression);
  if (u8(bytes, compression) === 0 || extensions > end) return refused('bad-length');
  // Before TLS 1.2 a hello could end here.
  const there = extensions < end;
  if (there && (extensions + 2 > end || extensions + 2 + u16(bytes, extensions) !== end)) return refused('bad-length');

  let serverName: string | undefined;
  let alpn: readonly string[] = [];
  let versions: readonly number[] | undefined;
  let supported = '';
  let shares: string | undefined;
  let encryptedClientHello = false;
  let preSharedKey = false;
  let earlyData = false;
  let count = 0;
  /** Types below 32, as bits: most are, and what came before need not be looked through for them. */
  let seen = 0;
  const first = there ? extensions + 2 : end;
  for (let at = first; at < end; ) {
    if (at + 4 > end) return refused('bad-length');
    const type = u16(bytes, at);
    const from = at + 4;
    at = from + u16(bytes, at + 2);
    if (at > end) return refused('bad-length');
    if (count++ === limits.extensions) return refused('too-many-extensions');
    if (type < 32) {
      if ((seen & (1 << type)) !== 0) return refused('duplicate-extension');
      seen |= 1 << type;
    } else {
      for (let before = first; before < from - 4; before += 4 + u16(bytes, before + 2)) {
        if (u16(bytes, before) === type) return refused('duplicate-extension');
      }
    }
    if (type === EXTENSION_SERVER_NAME) {
      const name = readNameList(bytes, from, at);
      if (name.state !== 'read') return name;
      serverName = name.value;
    } else if (type === EXTENSION_ALPN) {
      const list = readProtocols(bytes, from, at, limits.protocols);
      if (list.state !== 'read') return list;
      alpn = list.value;
    } else if (type === EXTENSION_SUPPORTED_VERSIONS) {
      versions = readVersions(bytes, from, at);
      if (versions === undefined) return refused('bad-length');
    } else if (type === EXTENSION_SUPPORTED_GROUPS) supported = groupsText(bytes, from, at);
    else if (type === EXTENSION_KEY_SHARE) {
      shares = sharesText(bytes, from, at);
      if (shares === undefined) return refused('bad-length');
    } else if (type === EXTENSION_PRE_SHARED_KEY) preSharedKey = true;
    else if (type === EXTENSION_EARLY_DATA) {
      if (from !== at) return refused('bad-length');
      earlyData = true;
    } else if (isEncryptedHello(type)) encryptedClientHello = true;
  }
  versions ??= [legacyVersion];
  const groups = shares !== undefined && versions.includes(TLS_1_3) ? `${supported}/${shares}` : undefined;
  return read({
    serverName,
    alpn,
    versions,
    legacyVersion,
    encryptedClientHello,
    groups,
    preSharedKey,
    earlyData,
    length,
  });
}

/** Of a list with its length before it. */
const groupsText = remembered((bytes, start, end): string => {
  let text = '';
  for (let at = start + 2; at + 2 <= end; at += 2) {
    const group = u16(bytes, at);
    if (!isGrease(group)) text += ` ${group}`;
  }
  return text;
});

/** The groups of a list of shares. */
function sharesText(bytes: Uint8Array, start: number, end: number): string | undefined {
  if (start + 2 > end || start + 2 + u16(bytes, start) !== end) return undefined;
  let text = '';
  for (let at = start + 2; at < end; ) {
    if (at + 4 > end) return undefined;
    const group = u16(bytes, at);
    at += 4 + u16(bytes, at + 2);
    if (at > end) return undefined;
    if (!isGrease(group)) text += ` ${group}`;
  }
  return text;
}

/** A list of one name: RFC 6066 allows one of each type, and has one type. */
function readNameList(bytes: Uint8Array, start: number, end: number): Reading<string, HelloReason> {
  const name = start + 5;
  if (name > end || start + 2 + u16(bytes, start) !== end) return refused('bad-length');
  if (u8(bytes, start + 2) !== HOST_NAME) return refused('bad-name-type');
  const nameEnd = name + u16(bytes, start + 3);
  if (nameEnd > end) return refused('bad-length');
  if (nameEnd < end) return refused('several-names');
  return readServerName(bytes, name, nameEnd);
}

function readProtocols(
  bytes: Uint8Array,
  start: number,
  end: number,
  max: number,
): Reading<readonly string[], HelloReason> {
  if (start + 3 > end || start + 2 + u16(bytes, start) !== end) return refused('bad-length');
  const list: string[] = [];
  let count = 0;
  for (let at = start + 2; at < end; count++) {
    if (count === max) return refused('too-many-protocols');
    const from = at + 1;
    at = from + u8(bytes, at);
    if (at === from || at > end) return refused('bad-length');
    if (at - from !== 2 || !isGrease(u16(bytes, from))) list.push(protocolText(bytes, from, at));
  }
  return read(list);
}

const protocolText = remembered((bytes, start, end): string => {
  const text = latin1(bytes, start, end);
  if (!/[^!-~]|%/.test(text)) return text;
  return text.replaceAll(/[^!-~]|%/g, (octet) => `%${octet.charCodeAt(0).toString(16).padStart(2, '0').toUpperCase()}`);
});

function readVersions(bytes: Uint8Array, start: number, end: number): readonly number[] | undefined {
  const size = end - start - 1;
  if (size < 2 || size % 2 !== 0 || u8(bytes, start) !== size) return undefined;
  const versions: number[] = [];
  for (let at = start + 1; at < end; at += 2) {
    const version = u16(bytes, at);
    if (!isGrease(version)) versions.push(version);
  }
  return versions;
}
