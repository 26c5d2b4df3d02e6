/**
 * Greetings of mail servers: SMTP (RFC 5321 §3.1, §4.2), IMAP (RFC 9051 §7.1, RFC 3501), POP3 (RFC 1939 §4); and the first
 * command of their clients, who have to wait for it and do not always. A greeting with 220 alone does not tell SMTP from FTP:
 * one that speaks of FTP and not of SMTP is refused, and the client's EHLO settles it, as the server's +OK does where a client says USER.
 * Leaves out what follows, STARTTLS among it; and TLS from the first byte (ports 465, 993, 995), which is TLS.
 */
import { couldBegin, type GreetingReading, type Line, readLine, shown, TEXT_MAX } from './greeting-read.ts';
import { MORE, read, refused } from './reading.ts';

/** RFC 5321 §4.5.3.1.5, RFC 1939 §3. */
const LINE_MAX = 512;
/** Ours: a capability list comes with IMAP's greeting. */
const IMAP_LINE_MAX = 4096;
const GREETING_LINES_MAX = 32;

export function readSmtpServer(bytes: Uint8Array): GreetingReading {
  if (!couldBegin(['220 ', '220-', '554 ', '554-', '421 ', '421-'], bytes)) return refused('other-protocol');
  let from = 0;
  let first: Line | undefined;
  let last = false;
  for (let lines = 0; !last; lines++) {
    if (lines === GREETING_LINES_MAX) return refused('too-many');
    const line = readLine(bytes, from, LINE_MAX);
    if ('state' in line) return line;
    // Every line has the code of the first.
    for (let at = 0; at < 3; at++) if (bytes[from + at] !== bytes[at]) return refused('bad-field');
    const mark = from + 3 === line.end ? ' ' : shown(bytes, from + 3, from + 4);
    if (mark !== ' ' && mark !== '-') return refused('bad-field');
    last = mark === ' ';
    first ??= line;
    from = line.next;
  }
  const end = from;
  const all = shown(bytes, 0, end);
  if (/ftp/i.test(all) && !/smtp/i.test(all)) return refused('other-protocol');
  const text = first === undefined ? '' : shown(bytes, 4, first.end);
  if (bytes[0] !== 0x32) return read({ protocol: 'smtp', message: 'refusal', end, software: text.slice(0, TEXT_MAX) });
  const [host = '', ...rest] = text.split(' ');
  if (!isMailHost(host)) return refused('bad-field');
  const software = rest.join(' ').trim().slice(0, TEXT_MAX);
  return read({ protocol: 'smtp', message: 'greeting', end, host, ...(software === '' ? {} : { software }) });
}

export function readSmtpClient(bytes: Uint8Array): GreetingReading {
  if (!couldBegin(['EHLO ', 'HELO '], bytes)) return refused('other-protocol');
  const line = readLine(bytes, 0, LINE_MAX);
  if ('state' in line) return line;
  const host = shown(bytes, 5, line.end).trim();
  if (!isMailHost(host)) return refused('bad-field');
  const command = shown(bytes, 0, 4).toUpperCase();
  return read({ protocol: 'smtp', message: 'command', end: line.next, command, host });
}

/** A domain or an address in brackets; clients on small machines give a name with an underscore. */
function isMailHost(text: string): boolean {
  return text.length <= TEXT_MAX && /^(?:[a-z0-9](?:[a-z0-9._-]*[a-z0-9])?\.?|\[[a-z0-9:.]+\])$/i.test(text);
}

export function readImapServer(bytes: Uint8Array): GreetingReading {
  if (!couldBegin(['* OK ', '* PREAUTH ', '* BYE '], bytes)) return refused('other-protocol');
  const line = readLine(bytes, 0, IMAP_LINE_MAX);
  if ('state' in line) return line;
  const [, word = '', list = '', text = ''] =
    /^\* (\w+) (?:\[CAPABILITY ([^\]]*)\] ?)?(.*)$/i.exec(shown(bytes, 0, line.end)) ?? [];
  if (word === '') return refused('bad-field');
  const capabilities = list.toUpperCase().split(' ');
  const version = ['IMAP4REV2', 'IMAP4REV1'].find((name) => capabilities.includes(name))?.replace('REV', 'rev');
  return read({
    protocol: 'imap',
    message: word.toUpperCase() === 'BYE' ? 'refusal' : 'greeting',
    end: line.next,
    ...(capabilities.includes('STARTTLS') ? { tls: true } : {}),
    ...(version === undefined ? {} : { version }),
    ...(text === '' ? {} : { software: text.slice(0, TEXT_MAX) }),
  });
}

/** Those that are allowed before a login. */
const imapCommands = new Set(['CAPABILITY', 'NOOP', 'LOGOUT', 'STARTTLS', 'AUTHENTICATE', 'LOGIN', 'ID']);
const TAG_MAX = 32;
const COMMAND_MAX = 12;

export function readImapClient(bytes: Uint8Array): GreetingReading {
  // A tag, a space, a command: both are short, so that other lines are refused before they end.
  const head = shown(bytes, 0, Math.min(bytes.length, TAG_MAX + 1 + COMMAND_MAX + 1)).replace(/\\x0[ad].*$/, '');
  const [tag = '', command] = head.split(' ');
  if (tag.length > TAG_MAX || !/^[a-z0-9.,:;/_-]*$/i.test(tag)) return refused('other-protocol');
  const upper = command?.toUpperCase();
  if (upper !== undefined && ![...imapCommands].some((name) => name.startsWith(upper)))
    return refused('unknown-command');
  const line = readLine(bytes, 0, IMAP_LINE_MAX);
  if ('state' in line) return line;
  if (tag === '' || upper === undefined) return refused('other-protocol');
  if (!imapCommands.has(upper)) return refused('unknown-command');
  return read({
    protocol: 'imap',
    message: 'command',
    end: line.next,
    command: upper,
    ...(upper === 'STARTTLS' ? { tls: true } : {}),
  });
}

export function readPop3Server(bytes: Uint8Array): GreetingReading {
  if (!couldBegin(['+OK', '-ERR'], bytes)) return refused('other-protocol');
  const line = readLine(bytes, 0, LINE_MAX);
  if ('state' in line) return line;
  const [, word = '', text] = /^(\+OK|-ERR)(?: (.*))?$/i.exec(shown(bytes, 0, line.end)) ?? [];
  if (word === '') return refused('other-protocol');
  return read({
    protocol: 'pop3',
    message: word.startsWith('+') ? 'greeting' : 'refusal',
    end: line.next,
    ...(text ? { software: text.slice(0, TEXT_MAX) } : {}),
  });
}

/** What IANA's list has of what is used (RFC 4422), and Microsoft's and Google's. */
const MECHANISM =
  /^(?:PLAIN|LOGIN|EXTERNAL|ANONYMOUS|CRAM-MD5|DIGEST-MD5|SCRAM-[A-Z0-9-]+|GSSAPI|GS2-[A-Z0-9-]+|NTLM|OAUTHBEARER|XOAUTH2)$/i;

/** Commands before a login, with how many words may follow (RFC 1939, 2449, 2595, 5034). */
const pop3Commands: Record<string, readonly [least: number, most: number]> = {
  USER: [1, 1],
  APOP: [2, 2],
  CAPA: [0, 0],
  STLS: [0, 0],
  AUTH: [0, 2],
  QUIT: [0, 0],
};

export function readPop3Client(bytes: Uint8Array): GreetingReading {
  if (bytes.length < 4) return couldBegin(Object.keys(pop3Commands), bytes) ? MORE : refused('unknown-command');
  const command = shown(bytes, 0, 4).toUpperCase();
  const words = Object.hasOwn(pop3Commands, command) ? pop3Commands[command] : undefined;
  if (words === undefined) return refused('unknown-command');
  const line = readLine(bytes, 0, LINE_MAX);
  if ('state' in line) return line;
  const [first, ...rest] = shown(bytes, 0, line.end).trimEnd().split(' ');
  if (first?.length !== 4 || rest.length < words[0] || rest.length > words[1]) return refused('bad-field');
  // Redis has an AUTH too, with a user and a password.
  if (command === 'AUTH' && rest[0] !== undefined && !MECHANISM.test(rest[0])) return refused('bad-field');
  const user = command === 'USER' || command === 'APOP' ? rest[0] : undefined;
  if (user !== undefined && user.length > TEXT_MAX) return refused('too-long');
  return read({
    protocol: 'pop3',
    message: 'command',
    end: line.next,
    command,
    ...(command === 'STLS' ? { tls: true } : {}),
    ...(user === undefined ? {} : { user }),
  });
}
