/**
 * Who hears the pods of churn.ts, outside: counts datagrams by whom they say to be from and by their source.
 *   node churn-server.js UDP_PORT TCP_PORT       at SIGTERM prints [uid, namespace, source, datagrams] a line
 */
import { createSocket } from 'node:dgram';
import { createServer } from 'node:net';

const [udpPort = '', tcpPort = ''] = process.argv.slice(2);
const heard = new Map<string, number>();
for (const type of ['udp4', 'udp6'] as const) {
  const socket = createSocket({ type, ipv6Only: type === 'udp6', recvBufferSize: 8 << 20 });
  socket.on('message', (message, { address }) => {
    const [uid, namespace] = message.toString('latin1').split(' ');
    const key = `${uid} ${namespace} ${address}`;
    heard.set(key, (heard.get(key) ?? 0) + 1);
  });
  socket.bind(Number(udpPort));
}
createServer((socket) => socket.on('error', () => socket.destroy()).end()).listen(Number(tcpPort), '::');
process.on('SIGTERM', () => {
  for (const [key, count] of heard) process.stdout.write(`${JSON.stringify([...key.split(' '), count])}\n`);
  process.exit(0);
});
process.stdout.write('ready\n');
