/**
 * The pods of churn.ts: one network namespace that has all their addresses. Each sends datagrams that say whose they are, from before
 * the API server shows it until it is deleted, and connects once when the API server shows it.
 *   node churn-pods.js SERVER4 SERVER6 UDP_PORT TCP_PORT     orders on stdin, a line each; what became of connections on stdout
 */
import { createSocket, type Socket } from 'node:dgram';
import { connect, isIPv6 } from 'node:net';
import { createInterface } from 'node:readline';

export type PodOrder =
  | { do: 'send'; address: string; uid: string; namespace: string }
  /** `since`: when the API server showed it, by the clock that all programs of a machine share. */
  | { do: 'connect'; address: string; uid: string; since: number }
  | { do: 'stop'; address: string };
export interface Connected {
  uid: string;
  address: string;
  /** From when the API server showed it. Absent: it did not come about as long as the pod was there. */
  milliseconds?: number;
}

/** Often at first, when it is not known yet or was somebody else's until now; to send as often all the time costs half a processor. */
const [FIRST_MS, FIRST] = [20, 10];
const EVERY_MS = 100;
const [server4 = '', server6 = '', udpPort = '', tcpPort = ''] = process.argv.slice(2);
const serverFor = (address: string): string => (isIPv6(address) ? server6 : server4);
/** Those that have not come about, by address. */
const connecting = new Map<string, () => void>();
const sending = new Map<string, { socket: Socket; timer: NodeJS.Timeout }>();

function send({ address, uid, namespace }: Extract<PodOrder, { do: 'send' }>): void {
  stop(address);
  const socket = createSocket(isIPv6(address) ? 'udp6' : 'udp4');
  socket.on('error', () => {});
  socket.bind(0, address, () => {
    let sequence = 0;
    const one = (): void => {
      socket.send(`${uid} ${namespace} ${sequence++}`, Number(udpPort), serverFor(address), () => {});
      sending.set(address, { socket, timer: setTimeout(one, sequence < FIRST ? FIRST_MS : EVERY_MS) });
    };
    one();
  });
}

function stop(address: string): void {
  connecting.get(address)?.();
  const one = sending.get(address);
  sending.delete(address);
  if (one === undefined) return;
  clearTimeout(one.timer);
  one.socket.close();
}

const now = (): number => Number(process.hrtime.bigint()) / 1e6;

function connectFrom(address: string, uid: string, since: number): void {
  const told = (milliseconds?: number): void => {
    const connected: Connected = { uid, address, ...(milliseconds !== undefined && { milliseconds }) };
    process.stdout.write(`${JSON.stringify(connected)}\n`);
    socket.destroy();
    connecting.delete(address);
  };
  const socket = connect({ host: serverFor(address), port: Number(tcpPort), localAddress: address });
  connecting.set(address, told);
  socket.once('connect', () => told(now() - since));
  socket.on('error', () => socket.destroy());
}

createInterface({ input: process.stdin }).on('line', (line) => {
  const order = JSON.parse(line) as PodOrder;
  if (order.do === 'send') send(order);
  else if (order.do === 'connect') connectFrom(order.address, order.uid, order.since);
  else stop(order.address);
});
process.stdin.on('end', () => process.exit(0));
