/**
 * A conversation for lab.test.ts to disturb: a datagram each 20 ms to an echo server, ADDRESS PORT SECONDS, from one socket, so
 * that it is one flow. Says at its end how many were sent and answered, which were not, and the longest time without an
 * answer.
 */
import { createSocket } from 'node:dgram';

const [address = '', port = '', seconds = ''] = process.argv.slice(2);
const EVERY_MS = 20;
const LAST_ANSWER_MS = 1_000;
const socket = createSocket('udp4');
let sent = 0;
const unanswered = new Set<number>();
let longest = 0;
let last: number | undefined;
socket.on('message', (text) => {
  const now = performance.now();
  if (last !== undefined) longest = Math.max(longest, now - last);
  last = now;
  unanswered.delete(Number(text.toString()));
});
const timer = setInterval(() => {
  unanswered.add(sent);
  socket.send(String(sent++), Number(port), address);
}, EVERY_MS);
setTimeout(() => {
  clearInterval(timer);
  setTimeout(() => {
    const lost = [...unanswered];
    process.stdout.write(`${JSON.stringify({ sent, lost, longestMs: Math.round(longest) })}\n`);
    socket.close();
  }, LAST_ANSWER_MS);
}, 1000 * Number(seconds));
