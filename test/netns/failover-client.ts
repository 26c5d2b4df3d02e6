/**
 * A pod's traffic while gateways fail: TCP connections and a datagram stream to the echo servers of `web`, over both families, all
 * of them saying something every 50 ms. `node failover-client.js COUNT`, in the pod's namespace. A line comes out once all
 * connections have had an answer; each line that goes in is answered by what was seen since the one before.
 */

import { createSocket } from 'node:dgram';
import { connect, type Socket } from 'node:net';
import { createInterface } from 'node:readline';

export interface Seen {
  /** Connections, and why those that ended did. */
  living: number;
  ended: string[];
  /** Longest that any connection, or stream of datagrams, was without an answer. */
  silenceMs: number;
  datagramSilenceMs: number;
  /** Local ports of the streams of datagrams, by family. */
  ports: Record<string, number>;
}

const EVERY_MS = 50;
const PORT = 7;
const web = { 4: '198.51.100.80', 6: '2001:db8:100::80' } as const;
const count = Number(process.argv[2] ?? 1);

interface Talk {
  lastAt: number;
  silence: number;
  answers: number;
}
const now = (): number => performance.now();
const begun = (): Talk => ({ lastAt: now(), silence: 0, answers: 0 });
const heard = (talk: Talk): void => {
  talk.silence = Math.max(talk.silence, now() - talk.lastAt);
  talk.lastAt = now();
  talk.answers++;
};

const living = new Map<Socket, Talk>();
const ended: string[] = [];
const streams = ([4, 6] as const).map((family) => {
  const socket = createSocket(family === 4 ? 'udp4' : 'udp6');
  const talk = begun();
  socket.on('message', () => heard(talk));
  socket.on('error', () => {});
  socket.bind();
  return { family, socket, talk };
});
for (const host of Object.values(web)) {
  for (let i = 0; i < count; i++) {
    const socket = connect({ host, port: PORT, noDelay: true });
    const talk = begun();
    living.set(socket, talk);
    socket.on('data', () => heard(talk));
    socket.on('error', ({ message }) => ended.push(message));
    socket.on('close', () => {
      living.delete(socket);
      ended.push(`closed ${host}`);
    });
  }
}
setInterval(() => {
  for (const socket of living.keys()) if (!socket.connecting) socket.write('x');
  for (const { family, socket } of streams) socket.send('x', PORT, web[family]);
}, EVERY_MS);

const talks = (): Talk[] => [...living.values(), ...streams.map(({ talk }) => talk)];
const starting = setInterval(() => {
  if (talks().some(({ answers }) => answers === 0)) return;
  clearInterval(starting);
  process.stdout.write('{"ready":true}\n');
}, EVERY_MS);

/** Silence that goes on counts, too. */
const worst = (talk: Talk): number => Math.round(Math.max(talk.silence, now() - talk.lastAt));
for await (const _ of createInterface({ input: process.stdin })) {
  const seen: Seen = {
    living: living.size,
    ended: ended.splice(0),
    silenceMs: Math.max(0, ...[...living.values()].map(worst)),
    datagramSilenceMs: Math.max(...streams.map(({ talk }) => worst(talk))),
    ports: Object.fromEntries(streams.map(({ family, socket }) => [family, socket.address().port])),
  };
  for (const talk of talks()) talk.silence = 0;
  process.stdout.write(`${JSON.stringify(seen)}\n`);
}
process.exit(0);
