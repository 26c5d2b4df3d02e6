/**
 * A client that says given bytes and tells what came of it: for hellos that no installed program sends. Run in a pod's
 * network namespace: `node bytes-client.js` with an Order (JSON) on standard input; prints a Heard (JSON).
 */
import { createSocket } from 'node:dgram';
import { connect } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';

export interface Order {
  address: string;
  port: number;
  udp?: true;
  /** Base64, sent one after another: segments of their own, or datagrams. */
  pieces: string[];
  pauseMs?: number;
  waitMs: number;
}
export interface Heard {
  /** `bytes` of the server, its end without any (`closed`), nothing (`silent`), or an error's code. */
  how: string;
  /** From the last piece on. */
  ms: number;
}

async function tcp({ address, port, pieces, pauseMs = 20, waitMs }: Order): Promise<Heard> {
  const socket = connect({ host: address, port, noDelay: true });
  let since = performance.now();
  const heard = new Promise<string>((resolve) => {
    socket.on('error', (error: NodeJS.ErrnoException) => resolve(error.code ?? error.message));
    socket.on('data', () => resolve('bytes'));
    socket.on('end', () => resolve('closed'));
  });
  socket.on('connect', async () => {
    for (const [at, piece] of pieces.entries()) {
      if (at > 0) await sleep(pauseMs);
      since = performance.now();
      if (!socket.destroyed) socket.write(Buffer.from(piece, 'base64'));
    }
  });
  const how = await Promise.race([heard, sleep(waitMs, 'silent')]);
  socket.destroy();
  return { how, ms: performance.now() - since };
}

async function udp({ address, port, pieces, pauseMs = 20, waitMs }: Order): Promise<Heard> {
  const socket = createSocket(address.includes(':') ? 'udp6' : 'udp4');
  let since = performance.now();
  const heard = new Promise<string>((resolve) => {
    const failed = (error: NodeJS.ErrnoException | null): void => {
      if (error) resolve(error.code ?? error.message);
    };
    socket.on('error', failed);
    socket.on('message', () => resolve('bytes'));
    socket.connect(port, address, async () => {
      for (const [at, piece] of pieces.entries()) {
        if (at > 0) await sleep(pauseMs);
        since = performance.now();
        socket.send(Buffer.from(piece, 'base64'), failed);
      }
    });
  });
  const how = await Promise.race([heard, sleep(waitMs, 'silent')]);
  socket.close();
  return { how, ms: performance.now() - since };
}

if (process.argv[1] === import.meta.filename) {
  const parts: Buffer[] = [];
  for await (const part of process.stdin) parts.push(part as Buffer);
  const order = JSON.parse(Buffer.concat(parts).toString()) as Order;
  process.stdout.write(JSON.stringify(await (order.udp ? udp(order) : tcp(order))));
  process.exit(0);
}
