/**
 * Runs one command: input by standard input, output collected up to a bound, killed at its time-out. A command that
 * fails becomes a KernelError that carries what it printed. No shell, so no quoting.
 */
import { spawn } from 'node:child_process';
import { KernelError } from './errors.ts';

export interface RunOptions {
  /** Named in errors. */
  op: string;
  input?: string;
  timeoutMs?: number;
  /** Bytes of output after which the command is killed. */
  outputLimit?: number;
  /** Told the process id, before the command can have done anything that this thread hears of. */
  onStart?(pid: number): void;
}

/** Loading 100,000 elements takes nft 1.4 s here; a machine under load is slower by far. */
const DEFAULT_TIMEOUT_MS = 60_000;
/** A table of 100,000 elements is 10 MB of JSON. */
const DEFAULT_OUTPUT_LIMIT = 256 * 1024 * 1024;

/** `command` inside a network namespace made by `ip netns add`. */
export function inNamespace(namespace: string | undefined, command: string[]): string[] {
  return namespace === undefined ? command : ['ip', 'netns', 'exec', namespace, ...command];
}

/** Standard output of a command that succeeded. */
export function run(command: string[], options: RunOptions): Promise<string> {
  const { op, input = '', timeoutMs = DEFAULT_TIMEOUT_MS, outputLimit = DEFAULT_OUTPUT_LIMIT } = options;
  const [program = '', ...args] = command;
  return new Promise((resolve, reject) => {
    const child = spawn(program, args, { stdio: ['pipe', 'pipe', 'pipe'] });
    if (child.pid !== undefined) options.onStart?.(child.pid);
    const output: Buffer[] = [];
    let outputBytes = 0;
    let errors = '';
    let killed: KernelError | undefined;
    const kill = (error: KernelError) => {
      killed ??= error;
      child.kill('SIGKILL');
    };
    const timer = setTimeout(
      () => kill(new KernelError(op, 'timeout', `${program} ran longer than ${timeoutMs} ms`)),
      timeoutMs,
    );
    child.stdout.on('data', (chunk: Buffer) => {
      outputBytes += chunk.length;
      if (outputBytes > outputLimit) kill(new KernelError(op, 'bad-answer', `more than ${outputLimit} bytes`));
      else output.push(chunk);
    });
    child.stderr.on('data', (chunk: Buffer) => {
      if (errors.length < 65_536) errors += chunk.toString('utf8');
    });
    child.on('error', (error: NodeJS.ErrnoException) => {
      clearTimeout(timer);
      reject(
        error.code === 'ENOENT'
          ? new KernelError(op, 'missing-command', `${program} is not installed`, error)
          : KernelError.from(op, error),
      );
    });
    child.on('close', (code) => {
      clearTimeout(timer);
      if (killed !== undefined) reject(killed);
      else if (code !== 0) reject(KernelError.fromOutput(op, errors));
      else resolve(Buffer.concat(output).toString('utf8'));
    });
    // A command that ends before it read its input closes the pipe: its exit code says more than EPIPE.
    child.stdin.on('error', () => {});
    child.stdin.end(input);
  });
}
