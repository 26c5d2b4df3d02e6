/**
 * ADDRESS:PORT as the programs' flags take it: `10.0.0.10:7790`, `[fd00:10::10]:7790`. Port 0 lets the kernel choose.
 * Names are refused: what a program listens on must not depend on a resolver.
 */
import { type AddressInfo, isIP, type Server } from 'node:net';
import type { Result } from '../api/result.ts';

export interface Listen {
  host: string;
  port: number;
}

export function parseListen(text: string): Result<Listen> {
  const match = /^(?:\[([0-9a-fA-F:.]+)\]|([0-9.]+)):(\d{1,5})$/.exec(text);
  const host = match?.[1] ?? match?.[2] ?? '';
  const port = Number(match?.[3]);
  const family = match?.[1] === undefined ? 4 : 6;
  if (match === null || isIP(host) !== family || port > 65535) {
    return {
      ok: false,
      error: `expected ADDRESS:PORT ("10.0.0.10:7790", "[fd00::10]:7790"), got ${JSON.stringify(text)}`,
    };
  }
  return { ok: true, value: { host, port } };
}

export const formatListen = ({ host, port }: Listen): string =>
  host.includes(':') ? `[${host}]:${port}` : `${host}:${port}`;

/** Resolves to the port; rejects if the server cannot listen there. Errors that come later are the caller's. */
export function listening(server: Server, { host, port }: Listen): Promise<number> {
  return new Promise((resolve, reject) => {
    server.once('error', reject);
    server.listen(port, host, () => {
      server.off('error', reject);
      resolve((server.address() as AddressInfo).port);
    });
  });
}
