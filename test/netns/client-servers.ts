/**
 * Servers that the real clients of clients.test.ts talk to, beside the lab's own: a PostgreSQL server as far as a session of
 * psql goes (SSLRequest, TLS, start, one answer to any query), and a UDP listener on 443 that prints of each datagram
 * which name its QUIC hello asks for, and answers once it knows. `node client-servers.js CERTIFICATES`, in the server's network namespace.
 */
import { createSocket } from 'node:dgram';
import { readFileSync } from 'node:fs';
import { createServer, type Socket } from 'node:net';
import { join } from 'node:path';
import { createSecureContext, TLSSocket } from 'node:tls';
import { QuicHelloReader } from '../../wire/quic.ts';
import { QuicKeyCache } from '../../wire/quic-keys.ts';

export const POSTGRESQL_PORTS = [5432, 5433];
const SSL_REQUEST = 80_877_103;

const frame = (type: string, ...parts: Buffer[]): Buffer => {
  const body = Buffer.concat(parts);
  const head = Buffer.alloc(5);
  head.write(type);
  head.writeUInt32BE(body.length + 4, 1);
  return Buffer.concat([head, body]);
};
const u16 = (value: number): Buffer => Buffer.from([value >> 8, value & 255]);
const u32 = (value: number): Buffer =>
  Buffer.from([value >>> 24, (value >> 16) & 255, (value >> 8) & 255, value & 255]);
const READY = frame('Z', Buffer.from('I'));
/** One text column with one row. */
const ROW = Buffer.concat([
  frame('T', u16(1), Buffer.from('said\0'), u32(0), u16(0), u32(25), u16(0xffff), u32(0xffffffff), u16(0)),
  frame('D', u16(1), u32(5), Buffer.from('hello')),
  frame('C', Buffer.from('SELECT 1\0')),
  READY,
]);

function session(socket: Socket, secure?: (from: Socket) => TLSSocket): void {
  let kept = Buffer.alloc(0);
  let started = false;
  socket.on('error', () => socket.destroy());
  const onData = (chunk: Buffer): void => {
    kept = Buffer.concat([kept, chunk]);
    for (;;) {
      const head = started ? 1 : 0;
      if (kept.length < head + 4) return;
      const size = head + kept.readUInt32BE(head);
      if (kept.length < size) return;
      const message = kept.subarray(0, size);
      kept = kept.subarray(size);
      if (!started && message.readUInt32BE(4) === SSL_REQUEST && secure !== undefined) {
        socket.off('data', onData);
        socket.write('S');
        session(secure(socket));
        return;
      }
      if (!started) {
        started = true;
        socket.write(Buffer.concat([frame('R', u32(0)), READY]));
      } else if (message[0] === 0x51) socket.write(ROW);
      else if (message[0] === 0x58) socket.end();
    }
  };
  socket.on('data', onData);
}

function quic(type: 'udp4' | 'udp6'): void {
  const keys = new QuicKeyCache();
  const readers = new Map<string, QuicHelloReader>();
  const socket = createSocket({ type, ipv6Only: type === 'udp6' });
  socket.on('message', (datagram, from) => {
    const of = `${from.address} ${from.port}`;
    const reader = readers.get(of) ?? new QuicHelloReader();
    readers.set(of, reader);
    const reading = reader.take(datagram, keys);
    const what =
      reading.state === 'read' ? `v${reading.value.version} ${reading.value.hello.serverName}` : reading.state;
    process.stdout.write(`${type} ${datagram.length} ${what}\n`);
    if (reading.state !== 'more') socket.send('seen', from.port, from.address, () => {});
  });
  socket.bind(443);
}

if (process.argv[1] === import.meta.filename) {
  const [dir = ''] = process.argv.slice(2);
  const file = (name: string): Buffer => readFileSync(join(dir, name));
  const secureContext = createSecureContext({ cert: file('tls.crt'), key: file('tls.key') });
  for (const port of POSTGRESQL_PORTS) {
    createServer((socket) => session(socket, (from) => new TLSSocket(from, { isServer: true, secureContext }))).listen(
      port,
      '::',
    );
  }
  quic('udp4');
  quic('udp6');
}
