/**
 * A process that opens and closes TCP connections as fast as it can, one at a time, from many pods: socket, bind,
 * connect, accept at the other end, close at both. Both ends are in one thread, since on veth a connection is made when
 * connect() returns; so nobody waits for anybody, and the whole cost is in this process's CPU time. Each connection has
 * a port of its own, so that no gateway has to find another one for it. It lives as long as its topology.
 *   node connector.js CLIENT_NAMESPACE SERVER_NAMESPACE DESTINATION PORT SOURCE...
 * then, by IPC: {seconds} → {connections, seconds}
 */
import { isIPv6 } from 'node:net';
import koffi from 'koffi';
import { AF_INET6, enterNamespace, SOL_SOCKET, setOption, socket, withNamespace } from '../kernel/libc.ts';
import { AF_INET, SOCK_STREAM, socketAddress } from './socket-address.ts';

const SO_REUSEADDR = 2;
const SO_SNDTIMEO = 21;
const BACKLOG = 64;
/** None is used twice in less than some seconds; a round forgets its flows before. */
const [FIRST_PORT, LAST_PORT] = [1_024, 65_535];

const libc = koffi.load('libc.so.6');
const bind = libc.func('int bind(int, void*, uint32_t)');
const connect = libc.func('int connect(int, void*, uint32_t)');
const listen = libc.func('int listen(int, int)');
const accept = libc.func('int accept(int, void*, void*)');
const close = libc.func('int close(int)');

function must(result: unknown, call: string): number {
  if (Number(result) < 0) throw new Error(`${call}: errno ${koffi.errno()}`);
  return Number(result);
}

const [client = '', server = '', destination = '', portText = '', ...sources] = process.argv.slice(2);
const port = Number(portText);
const family = isIPv6(destination) ? AF_INET6 : AF_INET;
const to = socketAddress(destination, port);
enterNamespace(client);
const froms = sources
  .map((source) => socketAddress(source, 0))
  .map((bytes) => ({ bytes, view: new DataView(bytes.buffer) }));
/** struct timeval: a SYN that is dropped fails instead of being sent again for minutes. */
const timeout = new Uint8Array(BigInt64Array.of(2n, 0n).buffer);
let count = 0;

/** Nobody listens between measurements: other generators use the port as well, which rules permit. */
function listening(): number {
  const fd = withNamespace(server, () => socket(family, SOCK_STREAM, 0));
  setOption(fd, SOL_SOCKET, SO_REUSEADDR, 1);
  must(bind(fd, to, to.length), `bind ${destination}`);
  must(listen(fd, BACKLOG), 'listen');
  return fd;
}

function connection(listener: number): void {
  const from = froms[count % froms.length];
  if (from === undefined) throw new TypeError('no sources');
  from.view.setUint16(2, FIRST_PORT + (count % (LAST_PORT - FIRST_PORT)));
  count++;
  const fd = socket(family, SOCK_STREAM, 0);
  setOption(fd, SOL_SOCKET, SO_REUSEADDR, 1);
  setOption(fd, SOL_SOCKET, SO_SNDTIMEO, timeout);
  must(bind(fd, from.bytes, from.bytes.length), 'bind');
  must(connect(fd, to, to.length), 'connect');
  // The server closes first, so that it is the one to remember the connection.
  close(must(accept(listener, null, null), 'accept'));
  close(fd);
}

function connections(seconds: number): { connections: number; seconds: number } {
  const listener = listening();
  const start = process.hrtime.bigint();
  const end = start + BigInt(Math.round(seconds * 1e9));
  let [made, now] = [0, start];
  while (now < end) {
    connection(listener);
    made++;
    now = process.hrtime.bigint();
  }
  close(listener);
  return { connections: made, seconds: Number(now - start) / 1e9 };
}

process.on('message', ({ seconds }: { seconds: number }) => process.send?.(connections(seconds)));
process.on('disconnect', () => process.exit(0));
process.send?.('ready');
