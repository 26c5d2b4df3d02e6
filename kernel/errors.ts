/**
 * The one error class of this room: an operation on the kernel that failed. Match on `code`, never on the text.
 * Text reads `nft run: ENOENT: No such file or directory`. Codes are errno names where the kernel gave one,
 * else one of ours (KernelCode).
 */

export type KernelCode =
  | 'ENOENT'
  | 'EEXIST'
  | 'EBUSY'
  | 'EPERM'
  | 'EINVAL'
  | 'EOPNOTSUPP'
  | 'ENETUNREACH'
  | 'ENODEV'
  | 'ENOBUFS'
  /** The command's text does not parse. */
  | 'syntax'
  /** The command ran longer than its time-out and was killed. */
  | 'timeout'
  /** The command is not installed. */
  | 'missing-command'
  /** The command's answer is not what this version of it should say. */
  | 'bad-answer'
  | 'failed';

/** What iproute2 and nft print, to errno names; first match wins. */
const codeOfText: [RegExp, KernelCode][] = [
  [/syntax error|unknown identifier|is wrong|is expected|is invalid|invalid argument "|Unknown command/i, 'syntax'],
  [/No such device|Cannot find device|does not exist\./, 'ENODEV'],
  [/No such file or directory|No such process|FIB table does not exist|Cannot assign requested address/, 'ENOENT'],
  [/File exists|interval overlaps|conflicting intervals/, 'EEXIST'],
  [/Device or resource busy/, 'EBUSY'],
  [/Operation not permitted|Permission denied/, 'EPERM'],
  [/Invalid argument/, 'EINVAL'],
  [/not supported/, 'EOPNOTSUPP'],
  [/Network is unreachable|Nexthop has invalid gateway|No route to host/, 'ENETUNREACH'],
  [/No buffer space/, 'ENOBUFS'],
];

export class KernelError extends Error {
  readonly code: KernelCode;
  /** What was tried: `nft run`, `ip apply`. */
  readonly op: string;

  constructor(op: string, code: KernelCode, message: string, cause?: unknown) {
    super(`${op}: ${code}: ${message}`, cause === undefined ? undefined : { cause });
    this.name = 'KernelError';
    this.op = op;
    this.code = code;
  }

  /** From what a command printed on standard error. */
  static fromOutput(op: string, text: string): KernelError {
    const code = codeOfText.find(([pattern]) => pattern.test(text))?.[1] ?? 'failed';
    return new KernelError(op, code, text.trim().slice(0, 2000) || 'no message');
  }

  /** Anything caught, made typed. */
  static from(op: string, error: unknown): KernelError {
    if (error instanceof KernelError) return error;
    const message = error instanceof Error ? error.message : String(error);
    const errno = (error as { code?: unknown } | null)?.code;
    const known = codeOfText.find(([, code]) => code === errno)?.[1];
    return new KernelError(op, known ?? 'failed', message, error);
  }
}
