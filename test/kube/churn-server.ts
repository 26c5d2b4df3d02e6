/**
 * Who hears the pods of churn.ts, outside: counts datagrams by whom they say to be from and by their source.
 *   node churn-server.js UDP_PORT TCP_PORT       at SIGTERM prints [pod, namespace, source, datagrams, number of the first, of the last] a line
 */
import { createSocket } from 'node:dgram';
import { createServer } from 'node:net';

const [udpPort = '', tcpPort = ''] = process.argv.slice(2);
const heard = new Map<string, { count: number; first: number; last: number }>();
for (const type of ['udp4', 'udp6'] as const) {
  const socket = createSocket({ type, ipv6Only: type === 'udp6', recvBufferSize: 8 << 20 });
  socket.on('message', (message, { address }) => {
    const [pod, namespace, sequence] = message.toString('latin1').split(' ');
    const key = `${pod} ${namespace} ${address}`;
    const number = Number(sequence);
    const known = heard.get(key) ?? { count: 0, first: number, last: number };
    heard.set(key, {
      count: known.count + 1,
      first: Math.min(known.first, number),
      last: Math.max(known.last, number),
    });
  });
  socket.bind(Number(udpPort));
}
createServer((socket) => socket.on('error', () => socket.destroy()).end()).listen(Number(tcpPort), '::');
process.on('SIGTERM', () => {
  for (const [key, { count, first, last }] of heard)
    process.stdout.write(`${JSON.stringify([...key.split(' '), count, first, last])}\n`);
  process.exit(0);
});
process.stdout.write('ready\n');
