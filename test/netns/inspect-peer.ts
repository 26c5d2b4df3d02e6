/**
 * One end of the connections of inspect-rig.ts, in a network namespace of its own: reads orders as JSON lines on stdin, writes
 * what came of them on stdout. As a server it also says every byte that it received, which is what must not have been sent.
 */
import { createSocket } from 'node:dgram';
import { Resolver } from 'node:dns/promises';
import { readFileSync } from 'node:fs';
import { connect as connectTcp, createServer, type Socket } from 'node:net';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { type ConnectionOptions, connect as connectTls, createServer as createTlsServer } from 'node:tls';

export type PeerOrder = { id: number } & (
  | { do: 'serve'; certs: string; addresses: string[]; dns: string[]; answer: string[] }
  /** A handshake of TLS; then `GET /` where it is to be kept for `keep`. */
  | { do: 'tls'; from: string; to: string; port: number; name?: string; keep?: string }
  /** Connects, sends the texts one after another, each when the one before was answered (or after a while). */
  | { do: 'tcp'; from: string; to: string; port: number; texts: string[]; keep?: string }
  /** Connects, sends the text, and resets the connection, so that it is not sent again. */
  | { do: 'toss'; from: string; to: string; port: number; text: string }
  /** Over a connection that was kept. */
  | { do: 'send'; keep: string; text: string }
  | { do: 'end'; keep: string }
  | { do: 'ask'; from: string; server: string; name: string; family: 4 | 6 }
  /** Over TCP, with the question in two segments. */
  | { do: 'askStream'; from: string; server: string; name: string; family: 4 | 6 }
  | { do: 'received' }
);

/** What a client saw: what came back, and how it ended. */
export interface PeerAnswer {
  id: number;
  /** 'connected', 'answered', or the error's code; `silence` after a while. */
  outcome: string;
  text?: string;
  /** Milliseconds from the first byte sent (or the first SYN) to the outcome. */
  took?: number;
  received?: { port: number; from: string; text: string }[];
}

const SILENCE_MS = 4_000;
const PIECE_MS = 20;
const say = (answer: PeerAnswer): void => void process.stdout.write(`${JSON.stringify(answer)}\n`);
const kept = new Map<string, Socket>();
const received: NonNullable<PeerAnswer['received']> = [];

const codeOf = (error: unknown): string => (error as NodeJS.ErrnoException).code ?? String(error);

function serve({ certs, addresses, dns, answer }: PeerOrder & { do: 'serve' }): Promise<unknown> {
  const tls = { key: readFileSync(join(certs, 'tls.key')), cert: readFileSync(join(certs, 'tls.crt')) };
  const listening: Promise<unknown>[] = [];
  const remember = (port: number, socket: Socket): ((chunk: Buffer) => void) => {
    socket.on('error', () => {});
    const from = `${socket.remoteAddress} ${socket.remotePort}`;
    return (chunk) => received.push({ port, from, text: chunk.toString('latin1') });
  };
  for (const host of addresses) {
    for (const [port, maxVersion] of [
      [443, 'TLSv1.3'],
      [8443, 'TLSv1.2'],
    ] as const) {
      const server = createTlsServer({ ...tls, maxVersion, ALPNProtocols: ['http/1.1', 'h2'] }, (socket) => {
        const see = remember(port, socket);
        socket.on('data', (chunk: Buffer) => {
          see(chunk);
          socket.write(`over TLS: ${chunk.length}`);
        });
      });
      server.on('tlsClientError', () => {});
      listening.push(new Promise((resolve) => server.listen(port, host, () => resolve(undefined))));
      server.on('connection', (socket: Socket) => {
        const from = `${socket.remoteAddress} ${socket.remotePort}`;
        socket.once('close', () => {
          if (socket.bytesRead > 0) received.push({ port, from, text: `${socket.bytesRead} bytes of a stream` });
        });
      });
    }
    // One answer to each that it reads: a request of HTTP, or a line.
    for (const port of [22, 80, 2222]) {
      const server = createServer((socket) => {
        const see = remember(port, socket);
        if (port === 22) socket.write('SSH-2.0-test\r\n');
        socket.on('data', (chunk: Buffer) => {
          see(chunk);
          const body = `${chunk.toString('latin1').split('\r\n', 1)[0]}`;
          socket.write(`HTTP/1.1 200 OK\r\nContent-Length: ${body.length}\r\n\r\n${body}`);
        });
      });
      listening.push(new Promise((resolve) => server.listen(port, host, () => resolve(undefined))));
    }
  }
  for (const host of dns) {
    const socket = createSocket(host.includes(':') ? 'udp6' : 'udp4');
    socket.on('message', (query, { port, address }) => socket.send(answerTo(query, answer), port, address));
    listening.push(new Promise((resolve) => socket.bind(53, host, () => resolve(undefined))));
    const server = createServer({ noDelay: true }, (stream) => serveStream(stream, answer));
    listening.push(new Promise((resolve) => server.listen(53, host, () => resolve(undefined))));
  }
  return Promise.all(listening);
}

/** Of one question, which it answers in segments of a few bytes. */
function serveStream(stream: Socket, answer: string[]): void {
  let asked = Buffer.alloc(0);
  stream.on('error', () => {});
  stream.on('data', (chunk: Buffer) => {
    asked = Buffer.concat([asked, chunk]);
    if (asked.length < 2 || asked.length < 2 + asked.readUInt16BE(0)) return;
    const whole = framed(answerTo(asked.subarray(2), answer));
    void inPieces(stream, [whole.subarray(0, 1), whole.subarray(1, 30), whole.subarray(30)]);
  });
}

const framed = (message: Buffer): Buffer =>
  Buffer.concat([Buffer.from([message.length >> 8, message.length & 255]), message]);

/** Each in a segment of its own. */
async function inPieces(socket: Socket, pieces: Buffer[]): Promise<void> {
  for (const piece of pieces) {
    await new Promise((resolve) => socket.write(piece, resolve));
    await new Promise((resolve) => setTimeout(resolve, PIECE_MS));
  }
}

/** Every name has the addresses of the question's family. */
function answerTo(query: Buffer, addresses: string[]): Buffer {
  let end = 12;
  while ((query[end] ?? 0) !== 0) end += (query[end] ?? 0) + 1;
  const type = query.readUInt16BE(end + 1);
  const question = query.subarray(12, end + 5);
  const records = addresses
    .filter((address) => (type === 1 && !address.includes(':')) || (type === 28 && address.includes(':')))
    .map((address) => {
      const bytes = address.includes(':')
        ? Buffer.from(expand(address), 'hex')
        : Buffer.from(address.split('.').map(Number));
      const head = Buffer.from([0xc0, 12, 0, type, 0, 1, 0, 0, 0, 60, 0, bytes.length]);
      return Buffer.concat([head, bytes]);
    });
  const header = Buffer.from(query.subarray(0, 12));
  header.writeUInt16BE(0x8180, 2);
  header.writeUInt16BE(1, 4);
  header.writeUInt16BE(records.length, 6);
  header.writeUInt32BE(0, 8);
  return Buffer.concat([header, question, ...records]);
}

function expand(address: string): string {
  const [head = '', tail = ''] = address.split('::');
  const groups = (text: string) => (text === '' ? [] : text.split(':'));
  const missing = 8 - groups(head).length - groups(tail).length;
  const all = [...groups(head), ...Array<string>(missing).fill('0'), ...groups(tail)];
  return all.map((group) => group.padStart(4, '0')).join('');
}

/** Resolves when something comes back, or the connection ends, or after a while. */
function answerOf(socket: Socket): Promise<{ outcome: string; text?: string }> {
  return new Promise((resolve) => {
    const done = (outcome: string, text?: string): void => {
      clearTimeout(timer);
      socket.off('data', onData).off('error', onError).off('close', onClose);
      socket.on('error', () => {});
      resolve({ outcome, ...(text !== undefined && { text }) });
    };
    const onData = (chunk: Buffer): void => done('answered', chunk.toString('latin1'));
    const onError = (error: Error): void => done(codeOf(error));
    const onClose = (): void => done('closed');
    const timer = setTimeout(() => done('silence'), SILENCE_MS);
    socket.once('data', onData).once('error', onError).once('close', onClose);
  });
}

function connected(socket: Socket, event: 'connect' | 'secureConnect'): Promise<string> {
  return new Promise((resolve) => {
    const timer = setTimeout(() => resolve('silence'), SILENCE_MS);
    const done = (outcome: string): void => {
      clearTimeout(timer);
      resolve(outcome);
    };
    socket.once(event, () => done('connected'));
    socket.once('error', (error) => done(codeOf(error)));
    socket.once('close', () => done('closed'));
    socket.on('error', () => {});
  });
}

async function obey(order: PeerOrder): Promise<Omit<PeerAnswer, 'id'>> {
  const began = performance.now();
  const took = (): { took: number } => ({ took: Math.round(performance.now() - began) });
  switch (order.do) {
    case 'serve':
      await serve(order);
      return { outcome: 'serving' };
    case 'received':
      return { outcome: 'received', received: received.splice(0) };
    case 'tls': {
      const { from, to, port, name, keep } = order;
      // Node passes on what net.connect() takes; its types do not say so.
      const options: ConnectionOptions & { localAddress: string } = {
        host: to,
        port,
        localAddress: from,
        rejectUnauthorized: false,
        ...(name !== undefined && { servername: name }),
      };
      const socket = connectTls(options);
      const outcome = await connected(socket, 'secureConnect');
      if (outcome !== 'connected') {
        socket.destroy();
        return { outcome, ...took() };
      }
      socket.write('hello');
      const answer = await answerOf(socket);
      if (keep === undefined) socket.destroy();
      else kept.set(keep, socket);
      return { ...answer, ...took() };
    }
    case 'tcp': {
      const { from, to, port, texts, keep } = order;
      const socket = connectTcp({ host: to, port, localAddress: from });
      const outcome = await connected(socket, 'connect');
      if (outcome !== 'connected') {
        socket.destroy();
        return { outcome, ...took() };
      }
      let answer: { outcome: string; text?: string } = { outcome };
      for (const text of texts) {
        socket.write(Buffer.from(text, 'latin1'));
        answer = await answerOf(socket);
        if (answer.outcome !== 'answered') break;
      }
      if (keep === undefined) socket.destroy();
      else kept.set(keep, socket);
      return { ...answer, ...took() };
    }
    case 'toss': {
      const { from, to, port, text } = order;
      const socket = connectTcp({ host: to, port, localAddress: from });
      const outcome = await connected(socket, 'connect');
      await new Promise((resolve) => socket.write(Buffer.from(text, 'latin1'), resolve));
      socket.resetAndDestroy();
      return { outcome, ...took() };
    }
    case 'send': {
      const socket = kept.get(order.keep);
      if (socket === undefined) return { outcome: 'not kept' };
      if (socket.destroyed) return { outcome: 'ended before' };
      const answer = answerOf(socket);
      socket.write(Buffer.from(order.text, 'latin1'));
      return { ...(await answer), ...took() };
    }
    case 'end':
      kept.get(order.keep)?.destroy();
      kept.delete(order.keep);
      return { outcome: 'ended' };
    case 'askStream': {
      const { from, server, name, family } = order;
      const socket = connectTcp({ host: server, port: 53, localAddress: from, noDelay: true });
      const outcome = await connected(socket, 'connect');
      if (outcome !== 'connected') return { outcome, ...took() };
      const labels = name.split('.').map((label) => Buffer.from([label.length, ...Buffer.from(label)]));
      const header = Buffer.from([0, 9, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
      const question = framed(Buffer.concat([header, ...labels, Buffer.from([0, 0, family === 4 ? 1 : 28, 0, 1])]));
      let heard = Buffer.alloc(0);
      const whole = new Promise<void>((resolve) => {
        socket.on('data', (chunk: Buffer) => {
          heard = Buffer.concat([heard, chunk]);
          if (heard.length >= 2 && heard.length >= 2 + heard.readUInt16BE(0)) resolve();
        });
        socket.once('close', resolve);
      });
      await inPieces(socket, [question.subarray(0, 1), question.subarray(1)]);
      await Promise.race([whole, new Promise((resolve) => setTimeout(resolve, SILENCE_MS))]);
      socket.destroy();
      return { outcome: heard.length > 2 ? 'answered' : 'silence', text: `${heard.length} bytes`, ...took() };
    }
    case 'ask': {
      const resolver = new Resolver({ timeout: 1_000, tries: 2 });
      resolver.setServers([order.server]);
      if (order.from.includes(':')) resolver.setLocalAddress('0.0.0.0', order.from);
      else resolver.setLocalAddress(order.from);
      const found = await (order.family === 4 ? resolver.resolve4(order.name) : resolver.resolve6(order.name));
      return { outcome: 'answered', text: found.join(), ...took() };
    }
  }
}

for await (const line of createInterface({ input: process.stdin })) {
  const order = JSON.parse(line) as PeerOrder;
  void obey(order)
    .catch((error) => ({ outcome: codeOf(error) }))
    .then((answer) => say({ id: order.id, ...answer }));
}
process.exit(0);
