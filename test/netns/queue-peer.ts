/**
 * A host of the queue test: a process in a network namespace that sends what it is told to, and tells what came.
 *   node queue-peer.js NAMESPACE        then, by IPC: PeerOrder → PeerReport
 */
import { createSocket, type Socket } from 'node:dgram';
import { connect, createServer } from 'node:net';
import { enterNamespace } from '../../kernel/libc.ts';
import { PORT_OPEN } from './queue-decider.ts';

export type PeerOrder = { id: number } & (
  | { do: 'listen'; addresses: string[]; ports: number[] }
  /** Datagrams, one after the other, of one flow. */
  | { do: 'udp'; from: string; fromPort: number; to: string; port: number; texts: string[] }
  /** One connection: text there, text back. */
  | { do: 'tcp'; from: string; to: string; port: number; text: string }
);
export type PeerReport =
  | { seen: string; from: string; fromPort: number; port: number }
  | { id: number; answer?: string; error?: string };

/** The kernel doubles it: some 550 datagrams, which a verdict may let on all at once. */
const RECEIVE_BUFFER = 212_992;

const sockets = new Map<string, Promise<Socket>>();

function bound(address: string, port: number, heard?: (socket: Socket) => void): Promise<Socket> {
  const key = `${address} ${port}`;
  const opened =
    sockets.get(key) ??
    new Promise<Socket>((resolve) => {
      const type = address.includes(':') ? 'udp6' : 'udp4';
      const socket = createSocket({ type, recvBufferSize: RECEIVE_BUFFER });
      socket.bind(port, address, () => {
        heard?.(socket);
        resolve(socket);
      });
    });
  sockets.set(key, opened);
  return opened;
}

async function listen(addresses: string[], ports: number[]): Promise<void> {
  for (const address of addresses) {
    for (const port of ports) {
      await bound(address, port, (socket) =>
        socket.on('message', (bytes, { address: from, port: fromPort }) => {
          process.send?.({ seen: bytes.toString('latin1', 0, 32), from, fromPort, port } satisfies PeerReport);
          if (port === PORT_OPEN) socket.send(bytes, fromPort, from);
        }),
      );
      const server = createServer((connection) => {
        connection.on('error', () => {});
        connection.pipe(connection);
      });
      await new Promise<void>((resolve) => server.listen(port, address, resolve));
    }
  }
}

async function udp(from: string, fromPort: number, to: string, port: number, texts: string[]): Promise<void> {
  const socket = await bound(from, fromPort);
  for (const text of texts) await new Promise((resolve) => socket.send(text, port, to, resolve));
}

function tcp(from: string, to: string, port: number, text: string): Promise<string> {
  return new Promise((resolve, reject) => {
    const connection = connect({ localAddress: from, host: to, port, timeout: 15_000 });
    let answer = '';
    connection.on('connect', () => connection.end(text));
    connection.on('data', (bytes) => {
      answer += bytes.toString('latin1');
    });
    connection.on('error', reject);
    connection.on('timeout', () => connection.destroy(new Error('no answer')));
    connection.on('close', () => resolve(answer));
  });
}

async function perform(order: PeerOrder): Promise<string | undefined> {
  switch (order.do) {
    case 'listen':
      await listen(order.addresses, order.ports);
      return undefined;
    case 'udp':
      await udp(order.from, order.fromPort, order.to, order.port, order.texts);
      return undefined;
    case 'tcp':
      return await tcp(order.from, order.to, order.port, order.text);
  }
}

enterNamespace(process.argv[2] ?? '');
process.on('message', (order: PeerOrder) => {
  perform(order).then(
    (answer) => process.send?.({ id: order.id, ...(answer === undefined ? {} : { answer }) }),
    (error: Error) => process.send?.({ id: order.id, error: error.message }),
  );
});
process.on('disconnect', () => process.exit(0));
