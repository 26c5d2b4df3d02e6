/**
 * Protocols that are told apart by what a flow's first bytes say, and what a port of an ExternalService may ask of those
 * bytes (design §3, checks per port), as the plan has it. Words only: what they mean is policy/application.ts.
 */

/** Protocols that are told apart by their first bytes. */
export const applications = [
  'TLS',
  'HTTP',
  'QUIC',
  'DNS',
  'SSH',
  'SMTP',
  'IMAP',
  'POP3',
  'MySQL',
  'PostgreSQL',
  'Redis',
  'MQTT',
  'RDP',
] as const;
export type Application = (typeof applications)[number];

export const tlsVersions = { '1.0': 0x0301, '1.1': 0x0302, '1.2': 0x0303, '1.3': 0x0304 } as const;
export type TlsVersion = keyof typeof tlsVersions;

/** What a port asks of the bytes; every part that is there must hold. Names are canonical patterns (host-name.ts). */
export interface ApplicationCheck {
  application: Application;
  tls?: {
    /** What the client may ask for. */
    serverNames?: readonly string[];
    minVersion?: TlsVersion;
    /** All that the client offers must be of these, and it must offer some: the server's choice is not seen in TLS 1.3. */
    alpn?: readonly string[];
    rejectEncryptedClientHello?: true;
  };
  http?: {
    hosts?: readonly string[];
    methods?: readonly string[];
    /** `/exact`, or `/below/*`: `/below/` and all that begins so. */
    paths?: readonly string[];
  };
  dns?: {
    names?: readonly string[];
    types?: readonly string[];
    /** Of one source; what is over it is dropped. */
    maxQuestionsPerSecond?: number;
  };
  /** Whether other bytes than the protocol's may pass: counted, or not even that. Absent: they may not. */
  conformance?: 'Audit' | 'Off';
}
