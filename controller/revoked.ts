/**
 * Certificates that are refused before they expire: the file `revoked` in the controller's state directory, a line each:
 * `gateway/gw-a` (whatever certificate it shows, and no new one), or a serial number in hexadecimal as
 * `openssl x509 -serial` prints it (that certificate only). Blank lines and `#` comments are skipped. It is read again when
 * it has changed. A line that is neither is told of, and what can be read of the others holds; a file that cannot be
 * read any more changes nothing. Connections among gateways do not ask it: they know the plan only.
 */
import type { X509Certificate } from 'node:crypto';
import { readFileSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { isPeerName } from '../api/plan-stream.ts';
import { clientsOf } from '../daemon/certs.ts';
import type { Logger } from '../daemon/log.ts';

/** Bytes; a name has at most 253. */
const MAX_FILE = 4 * 1024 * 1024;

export const EXPIRED = 'the certificate has expired';

export interface RevokedList {
  serials: ReadonlySet<string>;
  /** `role/name` */
  names: ReadonlySet<string>;
  /** Numbers of lines that are neither. */
  odd: number[];
}

export function parseRevoked(text: string): RevokedList {
  const [serials, names, odd] = [new Set<string>(), new Set<string>(), [] as number[]];
  for (const [at, raw] of text.split('\n').entries()) {
    const line = raw.replace(/#.*/, '').trim();
    if (line === '') continue;
    const [role, name] = line.split('/');
    if ((role === 'gateway' || role === 'node') && isPeerName(name) && line === `${role}/${name}`) names.add(line);
    else if (/^(serial=)?[0-9a-fA-F]{1,40}$/.test(line)) serials.add(canonicalSerial(line.replace('serial=', '')));
    else odd.push(at + 1);
  }
  return { serials, names, odd };
}

const canonicalSerial = (text: string): string => text.toUpperCase().replace(/^0+/, '');

export class Revoked {
  readonly #file: string;
  readonly #log: Logger;
  #list: RevokedList = { serials: new Set(), names: new Set(), odd: [] };
  #stamp = '';

  /** Throws if there is a list that cannot be read: nobody knows then who is on it. */
  constructor(state: string, log: Logger) {
    this.#file = join(state, 'revoked');
    this.#log = log;
    this.#read();
  }

  name(role: string, name: string): boolean {
    this.#look();
    return this.#list.names.has(`${role}/${name}`);
  }

  /** Why this certificate is refused, if it is: revoked, or not valid at this time. */
  refusal(certificate: X509Certificate, now: number): string | undefined {
    this.#look();
    const { serials, names } = this.#list;
    if (Date.parse(certificate.validTo) <= now) return EXPIRED;
    if (serials.has(canonicalSerial(certificate.serialNumber))) return 'the certificate is revoked';
    const revoked = clientsOf(certificate)
      .map(({ role, name }) => `${role}/${name}`)
      .find((one) => names.has(one));
    return revoked === undefined ? undefined : `${revoked} is revoked`;
  }

  #look(): void {
    try {
      this.#read();
    } catch (error) {
      this.#log.error(
        { reason: (error as Error).message },
        'the list of revoked certificates: what was read before holds',
      );
    }
  }

  #read(): void {
    const found = statSync(this.#file, { throwIfNoEntry: false });
    const stamp = found === undefined ? '' : `${found.mtimeMs} ${found.size} ${found.ino}`;
    if (stamp === this.#stamp) return;
    if (found !== undefined && found.size > MAX_FILE) throw new Error(`${this.#file} is longer than ${MAX_FILE} bytes`);
    this.#list = parseRevoked(found === undefined ? '' : readFileSync(this.#file, 'utf8'));
    this.#stamp = stamp;
    const { serials, names, odd } = this.#list;
    this.#log.info({ serials: serials.size, names: names.size }, 'revoked certificates');
    if (odd.length > 0)
      this.#log.error({ lines: odd.slice(0, 20) }, 'the list of revoked certificates: lines that say nothing');
  }
}
