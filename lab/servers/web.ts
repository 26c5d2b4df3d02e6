/**
 * The lab's outside server: HTTP (plain and TLS) with `/ip` (the client's address as text) and `/bytes/N` (content.ts),
 * POST anywhere (answers number and SHA-256 of the bytes that came), echo on 7 and sink on 9 over TCP and UDP.
 * A program of its own: `node web.js --http 80,8080 --tls 443 --certs DIR`. Over TLS also HTTP/2, as the client offers (ALPN).
 */
import { createHash } from 'node:crypto';
import { createSocket } from 'node:dgram';
import { readFileSync } from 'node:fs';
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import { createSecureServer } from 'node:http2';
import { createServer as createTcpServer, type Server, type Socket } from 'node:net';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { chunkSize, contentBytes } from './content.ts';

const bytesMax = 8 * 2 ** 30;
const echoPort = 7;
const sinkPort = 9;

/** One socket for both families shows IPv4 clients as mapped. */
export const plainAddress = (address: string | undefined): string => (address ?? '').replace(/^::ffff:(?=\d)/, '');

function answer(response: ServerResponse, code: number, text: string): void {
  response.writeHead(code, { 'content-type': 'text/plain', 'content-length': Buffer.byteLength(text) });
  response.end(text);
}

function sendBytes(response: ServerResponse, length: number): void {
  response.writeHead(200, { 'content-type': 'application/octet-stream', 'content-length': length });
  let offset = 0;
  const more = (): void => {
    while (offset < length) {
      const chunk = contentBytes(offset, Math.min(chunkSize, length - offset));
      offset += chunk.length;
      if (!response.write(chunk)) {
        response.once('drain', more);
        return;
      }
    }
    response.end();
  };
  more();
}

export function handle(request: IncomingMessage, response: ServerResponse): void {
  request.on('error', () => {});
  response.on('error', () => {});
  if (request.method === 'POST' || request.method === 'PUT') {
    const hash = createHash('sha256');
    let bytes = 0;
    request.on('data', (chunk: Buffer) => {
      hash.update(chunk);
      bytes += chunk.length;
    });
    request.on('end', () => answer(response, 200, `${bytes} ${hash.digest('hex')}\n`));
    return;
  }
  const path = request.url ?? '/';
  const length = /^\/bytes\/(\d{1,11})$/.exec(path)?.[1];
  if (path === '/ip') answer(response, 200, `${plainAddress(request.socket.remoteAddress)}\n`);
  else if (length !== undefined && Number(length) <= bytesMax) sendBytes(response, Number(length));
  else if (path === '/')
    answer(response, 200, `${request.headers[':authority'] ?? request.headers.host ?? 'no host'}\n`);
  else answer(response, 404, 'not found\n');
}

function listen(server: Server, port: number): void {
  // What a fault of the lab does to a server's sockets is no reason for it to end.
  server.on('error', (error) => fatal(`port ${port}: ${error.message}`));
  server.listen({ port, host: '::' });
}

function tcpService(port: number, onConnection: (socket: Socket) => void): void {
  listen(
    createTcpServer({ noDelay: true }, (socket) => {
      socket.on('error', () => socket.destroy());
      onConnection(socket);
    }),
    port,
  );
}

function udpService(port: number, echo: boolean): void {
  for (const type of ['udp4', 'udp6'] as const) {
    const socket = createSocket({ type, ipv6Only: type === 'udp6' });
    socket.on('error', (error) => console.error(`udp ${port}: ${error.message}`));
    if (echo) socket.on('message', (message, from) => socket.send(message, from.port, from.address, () => {}));
    socket.bind(port);
  }
}

function fatal(text: string): never {
  console.error(text);
  process.exit(1);
}

function main(): void {
  const { values } = parseArgs({
    options: { http: { type: 'string' }, tls: { type: 'string' }, certs: { type: 'string' } },
  });
  for (const port of (values.http ?? '80').split(',')) listen(createServer(handle), Number(port));
  if (values.certs !== undefined) {
    const file = (name: string) => readFileSync(join(values.certs ?? '', name));
    const server = createSecureServer({ allowHTTP1: true, cert: file('tls.crt'), key: file('tls.key') });
    // What HTTP/2 gives has all of HTTP/1's that is used here.
    server.on('request', (request, response) =>
      handle(request as unknown as IncomingMessage, response as unknown as ServerResponse),
    );
    server.on('sessionError', () => {});
    listen(server, Number(values.tls ?? 443));
  }
  tcpService(echoPort, (socket) => socket.pipe(socket));
  tcpService(sinkPort, (socket) => socket.resume());
  udpService(echoPort, true);
  udpService(sinkPort, false);
}

if (process.argv[1] === import.meta.filename) main();
