/**
 * The first words of a real TLS 1.3 connection: what OpenSSL says as a client that asks for a name, and what it answers as
 * that server. Recorded on the loopback device of the network namespace that the calling thread is in.
 */
import { once } from 'node:events';
import { readFile } from 'node:fs/promises';
import { type AddressInfo, connect, createServer, type Server } from 'node:net';
import { join } from 'node:path';
import * as tls from 'node:tls';

const LOOPBACK = '127.0.0.1';

async function listening(server: Server): Promise<number> {
  server.listen(0, LOOPBACK);
  await once(server, 'listening');
  return (server.address() as AddressInfo).port;
}

/** The client's hello, with its record around it. */
export async function recordHello(name: string, options: tls.ConnectionOptions = {}): Promise<Uint8Array> {
  const server = createServer();
  const port = await listening(server);
  const client = tls.connect({ host: LOOPBACK, port, servername: name, ALPNProtocols: ['h2', 'http/1.1'], ...options });
  client.on('error', () => {});
  const [socket] = await once(server, 'connection');
  const [hello] = (await once(socket, 'data')) as [Buffer];
  client.destroy();
  socket.destroy();
  server.close();
  return Uint8Array.from(hello);
}

/** All that a server with the certificate of `dir` (createServerCertificate) answers to a hello before it waits for more. */
export async function recordAnswer(hello: Uint8Array, dir: string): Promise<Uint8Array> {
  const [cert, key] = await Promise.all(['tls.crt', 'tls.key'].map((file) => readFile(join(dir, file))));
  const server = tls.createServer({ cert, key, ALPNProtocols: ['h2', 'http/1.1'] });
  const socket = connect(await listening(server), LOOPBACK);
  const parts: Buffer[] = [];
  socket.on('data', (part) => parts.push(part));
  socket.write(hello);
  // OpenSSL writes its flight at once; a record after it would need the client's word.
  await once(socket, 'data');
  await new Promise((resolve) => setTimeout(resolve, 50));
  socket.destroy();
  server.close();
  return Uint8Array.from(Buffer.concat(parts));
}
