/**
 * Readers of a connection's first bytes. What real programs say was captured from OpenSSH 9.2, psql 15, MariaDB 10.11,
 * mosquitto_pub 2.0.11 and redis-cli 7.0 (Debian 12); greetings of mail servers are those of the RFCs and of servers as they
 * are known. Every reader is asked for every prefix of every sample: what it said of fewer bytes must hold for more.
 */
import { execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { chownSync, mkdtempSync, rmSync } from 'node:fs';
import { createServer, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import t from 'tap';
import { type Protocol, protocols, recognise, type Side } from '../../wire/greeting.ts';
import {
  type Greeting,
  type GreetingProtocol,
  type GreetingReader,
  type GreetingReason,
  greetingReasons,
  shown,
} from '../../wire/greeting-read.ts';

const text = (value: string): Uint8Array => Buffer.from(value, 'latin1');
const hex = (value: string): Uint8Array => Buffer.from(value.replaceAll(' ', ''), 'hex');

type Reader = `${GreetingProtocol} ${Side}`;
function readerOf(name: Reader): GreetingReader {
  const [protocol, side] = name.split(' ') as [GreetingProtocol, Side];
  const all: Record<GreetingProtocol, Protocol> = protocols;
  const reader = all[protocol][side];
  if (reader === undefined) throw new TypeError(`${name}: no reader`);
  return reader;
}

const CLIENT_HELLO = hex('16030102000100 01fc0303 46070faad95acc59a2dc2314c1f7f1e2ba69d4b2');
const HTTP_REQUEST = text('GET / HTTP/1.1\r\nHost: web.example.test\r\n\r\n');
const HTTP_ANSWER = text('HTTP/1.1 400 Bad Request\r\nServer: x\r\n\r\nSSH-2.0-not\r\n');

const MARIADB = hex(
  '640000000a352e352e352d31302e31312e31392d4d6172696144422d302b6465623132753100 03000000 386f464f3b756165 00 fef7 08 0200 ff81 15 000000000000 1d000000' +
    '576266586928 28315d5e4374006d7973716c5f6e61746976655f70617373776f726400',
);
const MARIADB_LOGIN = hex(
  '540000018ca2bf000000100021000000000000000000000000000000000000001d0000006a6f6500140666c5992aebbd8b2e644cf38ca8a41c97dceb4a' +
    '73686f70006d7973716c5f6e61746976655f70617373776f726400',
);
const MARIADB_SSL = hex('200000018caabf000000100021000000000000000000000000000000000000001d000000');

const postgresql = (major: number, minor: number, ...parameters: string[]): Uint8Array => {
  const rest = parameters.map((word) => `${word}\0`).join('');
  const bytes = Buffer.alloc(8 + rest.length, 0);
  bytes.writeUInt32BE(bytes.length, 0);
  bytes.writeUInt16BE(major, 4);
  bytes.writeUInt16BE(minor, 6);
  bytes.write(rest, 8, 'latin1');
  return bytes;
};

const MQTT_5 = hex('102700044d51545405c6003c03210014000470756231000001770004676f6e6500036a6f6500027077');
const mqttConnect = (flags: number, level: number, ...fields: string[]): Uint8Array => {
  const rest = fields.map((field) => `${String.fromCharCode(field.length >> 8, field.length & 255)}${field}`).join('');
  const body = Buffer.concat([hex('00044d515454'), Buffer.from([level, flags, 0, 60]), text(rest)]);
  const size = body.length < 128 ? [body.length] : [(body.length & 127) | 128, body.length >> 7];
  return Buffer.concat([Buffer.from([0x10, ...size]), body]);
};

const rdp = (variable: Uint8Array): Uint8Array =>
  Buffer.concat([Buffer.from([3, 0, 0, 11 + variable.length, 6 + variable.length, 0xe0, 0, 0, 0, 0, 0]), variable]);
const NEGOTIATE = hex('0100080003000000');

const bulk = (...words: string[]): Uint8Array =>
  text(`*${words.length}\r\n${words.map((word) => `$${word.length}\r\n${word}\r\n`).join('')}`);

/** What is read of whole samples; a field that a row does not name is not there. */
const understood: [
  what: string,
  reader: Reader,
  bytes: Uint8Array,
  Omit<Greeting, 'protocol' | 'end'>,
  end?: number,
][] = [
  [
    'OpenSSH',
    'ssh client',
    text('SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u10\r\n'),
    { message: 'identification', version: '2.0', software: 'OpenSSH_9.2p1 Debian-2+deb12u10' },
  ],
  [
    'an SSH server with a minus in its name, and a line feed alone',
    'ssh server',
    text('SSH-1.99-Cisco-1.25\n'),
    { message: 'identification', version: '1.99', software: 'Cisco-1.25' },
  ],
  [
    'an SSH server that says something before, in UTF-8',
    'ssh server',
    Buffer.from('Grüß Gott\r\n\r\nSSH-2.0-dropbear\r\n'),
    { message: 'identification', version: '2.0', software: 'dropbear' },
  ],
  [
    'an SSH server with as many lines before as may be',
    'ssh server',
    text(`${'x\n'.repeat(64)}SSH-2.0-x\n`),
    { message: 'identification', version: '2.0', software: 'x' },
  ],
  [
    'the key exchange after the identification is not part of it',
    'ssh client',
    Buffer.concat([text('SSH-2.0-Go\r\n'), hex('000001b4 04 14')]),
    { message: 'identification', version: '2.0', software: 'Go' },
    12,
  ],
  [
    'Postfix',
    'smtp server',
    text('220 mail.example.test ESMTP Postfix (Debian)\r\n'),
    { message: 'greeting', host: 'mail.example.test', software: 'ESMTP Postfix (Debian)' },
  ],
  [
    'a mail server with much to say',
    'smtp server',
    text('220-mx.example.test ESMTP\r\n220-No spam\r\n220 please\r\n'),
    { message: 'greeting', host: 'mx.example.test', software: 'ESMTP' },
  ],
  [
    'a mail server by its address',
    'smtp server',
    text('220 [IPv6:2001:db8::1]\r\n'),
    { message: 'greeting', host: '[IPv6:2001:db8::1]' },
  ],
  [
    'a mail server on a host that is called ftp',
    'smtp server',
    text('220 ftp.example.test ESMTP\r\n'),
    { message: 'greeting', host: 'ftp.example.test', software: 'ESMTP' },
  ],
  [
    'a mail server that takes no mail',
    'smtp server',
    text('554 no mail here\r\n'),
    { message: 'refusal', software: 'no mail here' },
  ],
  [
    'a mail client that does not wait',
    'smtp client',
    text('ehlo client.test\r\n'),
    { message: 'command', command: 'EHLO', host: 'client.test' },
  ],
  [
    'Dovecot, IMAP',
    'imap server',
    text('* OK [CAPABILITY IMAP4rev1 SASL-IR STARTTLS AUTH=PLAIN] Dovecot ready.\r\n'),
    { message: 'greeting', version: 'IMAP4rev1', tls: true, software: 'Dovecot ready.' },
  ],
  [
    'an IMAP server that knows the client already',
    'imap server',
    text('* PREAUTH hello\r\n'),
    { message: 'greeting', software: 'hello' },
  ],
  [
    'an IMAP server that is full',
    'imap server',
    text('* BYE too many\r\n'),
    { message: 'refusal', software: 'too many' },
  ],
  ['an IMAP client', 'imap client', text('a001 login joe secret\r\n'), { message: 'command', command: 'LOGIN' }],
  [
    'an IMAP client that wants TLS',
    'imap client',
    text('. STARTTLS\r\n'),
    { message: 'command', command: 'STARTTLS', tls: true },
  ],
  [
    'a POP3 server',
    'pop3 server',
    text('+OK <1896.6@dbc.test>\r\n'),
    { message: 'greeting', software: '<1896.6@dbc.test>' },
  ],
  ['a POP3 server of few words', 'pop3 server', text('+OK\r\n'), { message: 'greeting' }],
  ['a POP3 server that is busy', 'pop3 server', text('-ERR busy\r\n'), { message: 'refusal', software: 'busy' }],
  ['a POP3 client', 'pop3 client', text('USER joe\r\n'), { message: 'command', command: 'USER', user: 'joe' }],
  ['a POP3 client that wants TLS', 'pop3 client', text('STLS\r\n'), { message: 'command', command: 'STLS', tls: true }],
  [
    'MariaDB',
    'mysql server',
    MARIADB,
    { message: 'greeting', version: '10.11.19', software: '10.11.19-MariaDB-0+deb12u1', tls: false },
  ],
  [
    'MariaDB that has no connection to spare',
    'mysql server',
    Buffer.concat([hex('17000000 ff 1004'), text('Too many connections')]),
    { message: 'refusal', software: 'Too many connections' },
  ],
  ["MariaDB's client", 'mysql client', MARIADB_LOGIN, { message: 'login', user: 'joe', database: 'shop' }],
  [
    "MariaDB's client with TLS, and its ClientHello behind it",
    'mysql client',
    Buffer.concat([MARIADB_SSL, CLIENT_HELLO]),
    { message: 'ssl-request', tls: true },
    36,
  ],
  ['psql that tries TLS', 'postgresql client', hex('0000000804d2162f'), { message: 'ssl-request', tls: true }],
  ['psql that tries GSSAPI', 'postgresql client', hex('0000000804d21630'), { message: 'gss-request' }],
  [
    'psql',
    'postgresql client',
    hex('000000360003000075736572006a6f650064617461626173650073686f70006170706c69636174696f6e5f6e616d65007073716c0000'),
    { message: 'startup', version: '3.0', user: 'joe', database: 'shop' },
  ],
  [
    'a newer libpq that names no database',
    'postgresql client',
    postgresql(3, 2, 'user', 'joe', ''),
    { message: 'startup', version: '3.2', user: 'joe', database: 'joe' },
  ],
  ['psql that cancels', 'postgresql client', hex('0000001004d2162e0000000100000002'), { message: 'cancel-request' }],
  ['PostgreSQL has TLS', 'postgresql server', text('S'), { message: 'answer', tls: true }],
  ['PostgreSQL has none', 'postgresql server', text('N'), { message: 'answer' }],
  ['PostgreSQL asks for a password', 'postgresql server', hex('520000000c00000005a1b2c3d4'), { message: 'greeting' }],
  ['redis-cli', 'redis client', bulk('PING'), { message: 'command', command: 'PING' }],
  [
    'redis-cli with a user',
    'redis client',
    bulk('AUTH', 'joe', 'x'),
    { message: 'command', command: 'AUTH', user: 'joe' },
    23,
  ],
  ['redis-cli with a password only', 'redis client', bulk('auth', 'x'), { message: 'command', command: 'AUTH' }, 14],
  [
    'a Redis client of version 3',
    'redis client',
    bulk('HELLO', '3', 'AUTH', 'joe', 'secret', 'SETNAME', 'a'),
    { message: 'command', command: 'HELLO', version: '3', user: 'joe' },
    41,
  ],
  [
    'a Redis client that only names itself',
    'redis client',
    bulk('HELLO', '3', 'SETNAME', 'a'),
    { message: 'command', command: 'HELLO', version: '3' },
    35,
  ],
  ['Redis by hand', 'redis client', text('ping\n'), { message: 'command', command: 'PING' }],
  [
    'Redis by hand with a user',
    'redis client',
    text('AUTH joe x\r\n'),
    { message: 'command', command: 'AUTH', user: 'joe' },
  ],
  [
    'mosquitto_pub, MQTT 3.1',
    'mqtt client',
    hex('102400064d514973647003c6003c0004707562310001770004676f6e6500036a6f6500027077'),
    { message: 'connect', version: '3.1', clientId: 'pub1', user: 'joe' },
  ],
  [
    'mosquitto_pub, MQTT 3.1.1',
    'mqtt client',
    hex('102200044d51545404c6003c0004707562310001770004676f6e6500036a6f6500027077'),
    { message: 'connect', version: '3.1.1', clientId: 'pub1', user: 'joe' },
  ],
  [
    'mosquitto_pub, MQTT 5',
    'mqtt client',
    MQTT_5,
    { message: 'connect', version: '5.0', clientId: 'pub1', user: 'joe' },
  ],
  [
    "a bridge of mosquitto's without a user",
    'mqtt client',
    mqttConnect(2, 0x84, 'b\\1\x01'),
    { message: 'connect', version: '3.1.1', clientId: 'b\\x5c1\\x01' },
  ],
  [
    'an RDP client with a cookie',
    'rdp client',
    rdp(Buffer.concat([text('Cookie: mstshash=joe\r\n'), NEGOTIATE])),
    { message: 'connect', user: 'joe', tls: true },
  ],
  ['an RDP client with no more than its wishes', 'rdp client', rdp(NEGOTIATE), { message: 'connect', tls: true }],
  [
    'an RDP client that wants its old encryption',
    'rdp client',
    rdp(hex('0100080000000000')),
    { message: 'connect', tls: false },
  ],
  [
    'an RDP client of before the negotiation',
    'rdp client',
    rdp(text('Cookie: mstshash=joe\r\n')),
    { message: 'connect', user: 'joe' },
  ],
  [
    'an RDP client with a token',
    'rdp client',
    rdp(Buffer.concat([text('Cookie: msts=1.2.0\r\n'), NEGOTIATE])),
    { message: 'connect', tls: true },
  ],
  [
    'an RDP client that wants to be traced',
    'rdp client',
    rdp(Buffer.concat([hex('0108080001000000 06002400'), Buffer.alloc(32, 1)])),
    { message: 'connect', tls: true },
  ],
];

for (const [what, name, bytes, value, end] of understood) {
  const protocol = name.split(' ')[0] as GreetingProtocol;
  t.same(readerOf(name)(bytes), { state: 'read', value: { protocol, end: end ?? bytes.length, ...value } }, what);
}

const long = 'x'.repeat(257);
const unfit: [what: string, reader: Reader, bytes: Uint8Array, reason: GreetingReason][] = [
  ['SSH 1.5', 'ssh client', text('SSH-1.5-old\r\n'), 'old-version'],
  ['SSH of a version that there is not', 'ssh client', text('SSH-3.0-new\r\n'), 'bad-field'],
  ['SSH without software', 'ssh client', text('SSH-2.0- x\r\n'), 'bad-field'],
  ['SSH without a version', 'ssh client', text('SSH-2.0\r\n'), 'bad-field'],
  ['an identification of 256 bytes', 'ssh client', text(`SSH-2.0-${'x'.repeat(246)}\r\n`), 'too-long'],
  ['a client that says something before', 'ssh client', text('hello\r\nSSH-2.0-x\r\n'), 'other-protocol'],
  ['a server that never comes to the point', 'ssh server', text('x\r\n'.repeat(65)), 'too-many'],
  ['a server with one endless line', 'ssh server', text('x'.repeat(8192)), 'too-long'],
  ['a NUL in the identification', 'ssh server', text('SSH-2.0-x\0y\r\n'), 'control-byte'],
  ["a web server's answer that has an identification in it", 'ssh server', HTTP_ANSWER, 'other-protocol'],
  ['FTP', 'smtp server', text('220 (vsFTPd 3.0.3)\r\n'), 'other-protocol'],
  ['FTP with a name', 'smtp server', text('220-ftp.example.test\r\n220 ProFTPD\r\n'), 'other-protocol'],
  ['a line feed alone', 'smtp server', text('220 mail.test\n'), 'bad-line-end'],
  ['a carriage return alone', 'smtp server', text('220 mail.test\rx\r\n'), 'bad-line-end'],
  ['two codes', 'smtp server', text('220-mail.test\r\n554 x\r\n'), 'bad-field'],
  ['a greeting of many lines', 'smtp server', text('220-mail.test\r\n'.repeat(33)), 'too-many'],
  ['a long line', 'smtp server', text(`220 mail.test ${'x'.repeat(500)}`), 'too-long'],
  ['a host that is none', 'smtp client', text('EHLO a/b\r\n'), 'bad-field'],
  ['a mail client that starts with the mail', 'smtp client', text('MAIL FROM:<a@b>\r\n'), 'other-protocol'],
  ['an answer to a command that was not given', 'imap server', text('* CAPABILITY IMAP4rev1\r\n'), 'other-protocol'],
  ['HTTP for IMAP', 'imap client', HTTP_REQUEST, 'unknown-command'],
  ['mail before a login', 'imap client', text('a SELECT inbox\r\n'), 'unknown-command'],
  ['a word that is no command', 'imap client', text('hello\r\n'), 'other-protocol'],
  ["Redis' answer", 'pop3 server', text('+PONG\r\n'), 'other-protocol'],
  ['a word of its own', 'pop3 server', text('+OKAY\r\n'), 'other-protocol'],
  ["IRC's USER", 'pop3 client', text('USER joe 0 * :Joe\r\n'), 'bad-field'],
  ['mail before a login', 'pop3 client', text('LIST\r\n'), 'unknown-command'],
  ['MySQL 3.21', 'mysql server', hex('0b000000 09 332e3231 00 0000 0000'), 'old-version'],
  ['a version that is none', 'mysql server', Buffer.from(MARIADB).fill(0x78, 5, 37), 'bad-field'],
  ['a version without an end', 'mysql server', Buffer.concat([hex('c8000000 0a'), text('5'.repeat(200))]), 'too-long'],
  ['a handshake that is too short', 'mysql server', hex('08000000 0a 352e30 00 000000'), 'bad-length'],
  ['a filler that is not zero', 'mysql server', Buffer.from(MARIADB).fill(1, 50, 51), 'bad-field'],
  ['a login of before 2004', 'mysql client', hex('0c000001 8500 ffffff 6a6f6500'), 'old-version'],
  ['a login of nobody', 'mysql client', Buffer.from(MARIADB_SSL).fill(0xa2, 5, 6), 'no-user'],
  ['bytes where there are to be none', 'mysql client', Buffer.from(MARIADB_SSL).fill(1, 20, 21), 'bad-field'],
  ['a client that takes the first turn', 'mysql client', MARIADB, 'other-protocol'],
  ['PostgreSQL 2', 'postgresql client', postgresql(2, 0, 'x'.repeat(287)), 'old-version'],
  ['no user', 'postgresql client', postgresql(3, 0, 'database', 'shop', ''), 'no-user'],
  ['an empty user', 'postgresql client', postgresql(3, 0, 'user', '', ''), 'no-user'],
  ['two users', 'postgresql client', postgresql(3, 0, 'user', 'joe', 'user', 'root', ''), 'repeated-field'],
  [
    'two databases',
    'postgresql client',
    postgresql(3, 0, 'user', 'j', 'database', 'a', 'database', 'b', ''),
    'repeated-field',
  ],
  ['a long user', 'postgresql client', postgresql(3, 0, 'user', long, ''), 'too-long'],
  ['many parameters', 'postgresql client', postgresql(3, 0, ...Array(130).fill('a'), ''), 'too-many'],
  ['a list without an end', 'postgresql client', postgresql(3, 0, 'user', 'joe'), 'bad-length'],
  ['a list that ends before the message', 'postgresql client', postgresql(3, 0, 'user', 'joe', '', 'x'), 'bad-length'],
  ['a request with more behind it', 'postgresql client', hex('0000000904d2162f00'), 'bad-length'],
  ['a request of another number', 'postgresql client', hex('0000000804d20000'), 'other-protocol'],
  ['a server that says hello', 'postgresql server', text('hello'), 'other-protocol'],
  ['an error of the last century', 'postgresql server', text('Eno such'), 'other-protocol'],
  ['HTTP, which is a line to Redis', 'redis client', HTTP_REQUEST, 'other-protocol'],
  ['HTTP by PING', 'redis client', text('PINGER\r\n'), 'other-protocol'],
  ['bytes above ASCII', 'redis client', hex('80'), 'other-protocol'],
  ['an empty array', 'redis client', text('*0\r\n'), 'bad-length'],
  ['a negative array', 'redis client', text('*-1\r\n'), 'bad-length'],
  ['a huge array', 'redis client', text('*99999999\r\n'), 'too-many'],
  ['an endless number', 'redis client', text(`*${'1'.repeat(20)}`), 'too-long'],
  ['numbers for strings', 'redis client', text('*1\r\n:1\r\n'), 'other-protocol'],
  ['a string longer than it says', 'redis client', text('*1\r\n$4\r\nPINGER\r\n'), 'bad-length'],
  ['a line feed alone', 'redis client', text('*1\r$4'), 'bad-line-end'],
  ['a command of bytes', 'redis client', bulk('\x16\x03\x01'), 'bad-field'],
  ['a version of words', 'redis client', bulk('HELLO', 'x'), 'bad-field'],
  ['a long user', 'redis client', bulk('AUTH', long, 'x'), 'too-long'],
  ['MQTT 6', 'mqtt client', mqttConnect(2, 6, 'a'), 'bad-field'],
  ['a flag that is reserved', 'mqtt client', mqttConnect(3, 4, 'a'), 'bad-field'],
  ['a password of nobody', 'mqtt client', mqttConnect(0x42, 4, 'a', 'b'), 'bad-field'],
  ['a will of quality three', 'mqtt client', mqttConnect(0x1e, 4, 'a', 'b', 'c'), 'bad-field'],
  ['a quality without a will', 'mqtt client', mqttConnect(0x0a, 4, 'a'), 'bad-field'],
  ['a long client id', 'mqtt client', mqttConnect(2, 4, long), 'too-long'],
  ['a field past the end', 'mqtt client', hex('100e00044d5154540402003c0009 61 62'), 'bad-length'],
  ['properties past the end', 'mqtt client', hex('100e00044d5154540502003c7f 61 62 63'), 'bad-length'],
  ['a length of five bytes', 'mqtt client', hex('10ffffffff01'), 'bad-length'],
  ['a message of megabytes', 'mqtt client', hex('10ffffff01'), 'too-long'],
  [
    'something else over a byte of 16',
    'mqtt client',
    hex('100d00044d51545404'.replace('545404', '545804')),
    'other-protocol',
  ],
  ['S7, over TPKT as well', 'rdp client', rdp(hex('c0010ac1020100c2020102')), 'no-negotiation'],
  ['a request that asks for nothing', 'rdp client', rdp(hex('')), 'no-negotiation'],
  ['a cookie without an end', 'rdp client', rdp(text('Cookie: mstshash=joe')), 'bad-line-end'],
  ['a cookie of another kind', 'rdp client', rdp(text('Cookie: a=b\r\n')), 'bad-field'],
  ['protocols that there are not', 'rdp client', rdp(hex('0100080000010000')), 'bad-field'],
  ['bytes behind the request', 'rdp client', rdp(hex('010008000100000000')), 'bad-length'],
  ['two lengths', 'rdp client', hex('0300000b07e00000000000'), 'bad-length'],
  ['a long request', 'rdp client', hex('030001ff'), 'too-long'],
  ['another message of X.224', 'rdp client', hex('0300000b06d00000000000'), 'other-protocol'],
];

for (const [what, name, bytes, reason] of unfit) {
  t.same(readerOf(name)(bytes), { state: 'refused', reason }, `${name}: ${what}`);
}

const names = Object.entries(protocols as Record<string, Protocol>).flatMap(([name, protocol]) =>
  (['client', 'server'] as const).flatMap((side) => (side in protocol ? [`${name} ${side}` as Reader] : [])),
);

t.test('the tables are complete', async (t) => {
  t.same([...new Set(unfit.map(([, , , reason]) => reason))].sort(), Object.keys(greetingReasons).sort());
  for (const table of [understood, unfit])
    t.same([...new Set(table.map(([, name]) => name))].sort(), [...names].sort());
});

t.test('no reader takes TLS, HTTP, or what is of another protocol', async (t) => {
  // POP3's USER, and what PostgreSQL's server says in one byte, are told by who spoke before.
  const others: [what: string, bytes: Uint8Array][] = [
    ['TLS', CLIENT_HELLO],
    ['HTTP', HTTP_REQUEST],
    ["a web server's answer", HTTP_ANSWER],
    ['HTTP/2', text('PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n')],
    ['zeroes', new Uint8Array(64)],
    ['line ends', text('\r\n\r\n\r\n\r\n')],
    ['SOCKS', hex('05020002')],
    ['a proxy line', text('PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\n')],
  ];
  for (const name of names) {
    if (name === 'postgresql server') continue;
    for (const [what, bytes] of others) {
      // An SSH server may say any lines before its own; it is waited for, within bounds.
      const waits = name === 'ssh server' && ['HTTP', 'HTTP/2', 'line ends', 'a proxy line'].includes(what);
      t.equal(readerOf(name)(bytes).state, waits ? 'more' : 'refused', `${name}: ${what}`);
    }
  }
  for (const [what, of, bytes] of understood) {
    for (const name of names) {
      if (name === of || name === 'postgresql server' || of === 'postgresql server') continue;
      if (name.split(' ')[0] === of.split(' ')[0] && name.startsWith('ssh')) continue;
      t.not(readerOf(name)(bytes).state, 'read', `${what} is not ${name}`);
    }
  }
});

t.test(
  'what a reader says of fewer bytes holds for more, and it waits for no byte that it does not need',
  async (t) => {
    for (const [what, name, bytes] of [...understood, ...unfit]) {
      const reader = readerOf(name);
      let settled: unknown;
      for (let length = 0; length <= bytes.length; length++) {
        const reading = reader(bytes.subarray(0, length));
        if (settled !== undefined) t.same(reading, settled, `${name}: ${what}, after ${length} bytes`);
        else if (reading.state !== 'more') settled = reading;
      }
      t.ok(settled, `${name}: ${what}`);
      for (const more of ['\0', '\r\n', 'x']) {
        t.same(reader(Buffer.concat([bytes, text(more)])), settled, `${name}: ${what}, with more behind it`);
      }
    }
    t.end();
  },
);

t.test(
  'mutated samples: a reader never throws, never takes back what it said, and shows only what can be printed',
  (t) => {
    const samples = [...understood, ...unfit].map(([, , bytes]) => bytes);
    const mutated = fc
      .tuple(
        fc.constantFrom(...samples),
        fc.array(fc.tuple(fc.nat(400), fc.nat(255)), { maxLength: 4 }),
        fc.nat(400),
        fc.uint8Array({ maxLength: 16 }),
      )
      .map(([sample, edits, cut, tail]) => {
        const bytes = Uint8Array.from([...sample.subarray(0, Math.max(1, cut)), ...tail]);
        for (const [at, byte] of edits) bytes[at % bytes.length] = byte;
        return bytes;
      });
    fc.assert(
      fc.property(mutated, fc.nat(), (bytes, cut) => {
        const fewer = bytes.subarray(0, cut % (bytes.length + 1));
        for (const name of names) {
          const reader = readerOf(name);
          const before = reader(fewer);
          const after = reader(bytes);
          if (before.state !== 'more' && JSON.stringify(before) !== JSON.stringify(after)) {
            throw new Error(`${name}: ${JSON.stringify(before)}, then ${JSON.stringify(after)}`);
          }
          if (after.state !== 'read') continue;
          for (const value of Object.values(after.value)) {
            if (typeof value === 'string' && !/^[\x20-\x7e]{0,1100}$/.test(value))
              throw new Error(`${name} shows ${value}`);
          }
        }
      }),
      { numRuns: 3000 },
    );
    t.end();
  },
);

t.test('texts that differ are shown differently', async (t) => {
  t.equal(shown(text('a\\x00b'), 0, 6), 'a\\x5cx00b');
  t.equal(shown(text('a\0b\x7f\xff'), 0, 5), 'a\\x00b\\x7f\\xff');
});

t.test('where nothing is known of a port, the protocol is found by who speaks first', async (t) => {
  for (const [what, name, bytes] of understood) {
    const [protocol, side] = name.split(' ') as [GreetingProtocol, Side];
    const { first } = protocols[protocol];
    const reading = recognise(side, bytes);
    if (first === side || first === 'either') t.match(reading, { state: 'read', value: { protocol } }, what);
  }
  t.same(recognise('client', CLIENT_HELLO), { state: 'refused', reason: 'other-protocol' });
  t.same(recognise('server', HTTP_ANSWER), { state: 'refused', reason: 'other-protocol' });
  t.same(recognise('client', text('S')), { state: 'more' });
});

/** The first bytes that a program sends to a server that says nothing. */
async function firstBytesOf(command: string, args: (port: number) => string[]): Promise<Uint8Array> {
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as { port: number };
  const child = spawn(command, args(port), { stdio: 'ignore' });
  try {
    const [socket] = (await once(server, 'connection')) as [Socket];
    socket.on('error', () => {});
    const [bytes] = (await once(socket, 'data')) as [Uint8Array];
    socket.destroy();
    return bytes;
  } finally {
    child.kill('SIGKILL');
    server.close();
  }
}

t.test('ssh, as it is here', async (t) => {
  const bytes = await firstBytesOf('/usr/bin/ssh', (port) => [
    '-F',
    'none',
    '-o',
    'BatchMode=yes',
    '-p',
    String(port),
    'joe@127.0.0.1',
  ]);
  t.match(protocols.ssh.client(bytes), {
    state: 'read',
    value: { version: '2.0', software: /^OpenSSH_/, end: bytes.length },
  });
});

t.test('sshd, as it is here: behind an identification it takes nothing but SSH', async (t) => {
  const directory = mkdtempSync(join(tmpdir(), 'sluice-sshd-'));
  t.teardown(() => rmSync(directory, { recursive: true }));
  const key = join(directory, 'key');
  execFileSync('/usr/bin/ssh-keygen', ['-q', '-t', 'ed25519', '-N', '', '-f', key]);
  // As inetd would start it: the connection is its standard input and output. As root it would want a directory in /run.
  const nobody = 65534;
  const root = process.getuid?.() === 0;
  if (root) for (const path of [directory, key]) chownSync(path, nobody, nobody);
  const sshd = spawn('/usr/sbin/sshd', ['-i', '-f', '/dev/null', '-h', key], {
    stdio: ['pipe', 'pipe', 'ignore'],
    ...(root ? { uid: nobody, gid: nobody } : {}),
  });
  try {
    const ended = once(sshd, 'exit');
    let said = Buffer.alloc(0);
    for (;;) {
      const found = protocols.ssh.server(said);
      if (found.state === 'read') t.match(found.value, { version: '2.0', software: /^OpenSSH_/ });
      if (found.state !== 'more') break;
      const [more] = await Promise.race([once(sshd.stdout, 'data'), ended]);
      if (!(more instanceof Uint8Array)) throw new Error(`sshd ended with ${more}`);
      said = Buffer.concat([said, more]);
    }
    sshd.stdin.write(Buffer.concat([text('SSH-2.0-sluice\r\n'), CLIENT_HELLO]));
    t.same(await ended, [255, null], 'it hangs up');
  } finally {
    sshd.kill('SIGKILL');
  }
});
