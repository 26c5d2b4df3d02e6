/**
 * Protocols that are told by the first bytes of a TCP stream, other than TLS and HTTP: who speaks first, the ports at which
 * they are usual (only to be shown: a rule says which protocol a port carries), and a reader for each side.
 */
import type { GreetingProtocol, GreetingReader, GreetingReading } from './greeting-read.ts';
import {
  readImapClient,
  readImapServer,
  readPop3Client,
  readPop3Server,
  readSmtpClient,
  readSmtpServer,
} from './mail.ts';
import { readMqttClient } from './mqtt.ts';
import { readMysqlClient, readMysqlServer } from './mysql.ts';
import { readPostgresqlClient, readPostgresqlServer } from './postgresql.ts';
import { readRdpClient } from './rdp.ts';
import { MORE, refused } from './reading.ts';
import { readRedisClient } from './redis.ts';
import { readSshClient, readSshServer } from './ssh.ts';

export type Side = 'client' | 'server';

export interface Protocol {
  title: string;
  /** Whose bytes come without waiting for the other's. */
  first: Side | 'either';
  ports: readonly number[];
  client: GreetingReader;
  /** Of protocols in which the server only answers, and says nothing that is needed, there is none. */
  server?: GreetingReader;
}

export const protocols = {
  ssh: {
    title: 'SSH',
    first: 'either',
    ports: [22],
    client: readSshClient,
    server: readSshServer,
  },
  smtp: { title: 'SMTP', first: 'server', ports: [25, 587], client: readSmtpClient, server: readSmtpServer },
  imap: { title: 'IMAP', first: 'server', ports: [143], client: readImapClient, server: readImapServer },
  pop3: { title: 'POP3', first: 'server', ports: [110], client: readPop3Client, server: readPop3Server },
  mysql: { title: 'MySQL', first: 'server', ports: [3306], client: readMysqlClient, server: readMysqlServer },
  postgresql: {
    title: 'PostgreSQL',
    first: 'client',
    ports: [5432],
    client: readPostgresqlClient,
    server: readPostgresqlServer,
  },
  redis: { title: 'Redis', first: 'client', ports: [6379], client: readRedisClient },
  mqtt: { title: 'MQTT', first: 'client', ports: [1883], client: readMqttClient },
  rdp: { title: 'RDP', first: 'client', ports: [3389], client: readRdpClient },
} as const satisfies Record<GreetingProtocol, Protocol>;

const byFirst: Record<Side, readonly GreetingReader[]> = { client: readersOf('client'), server: readersOf('server') };

function readersOf(side: Side): GreetingReader[] {
  const all: Protocol[] = Object.values(protocols);
  const first = all.filter((protocol) => protocol.first === side || protocol.first === 'either');
  return first.flatMap((protocol) => protocol[side] ?? []);
}

/**
 * Which protocol it is, where no rule says which it ought to be: asks those in which this side speaks first. No two of them
 * take the same bytes.
 */
export function recognise(side: Side, bytes: Uint8Array): GreetingReading {
  let undecided = false;
  for (const reader of byFirst[side]) {
    const reading = reader(bytes);
    if (reading.state === 'read') return reading;
    if (reading.state === 'more') undecided = true;
  }
  return undecided ? MORE : refused('other-protocol');
}
