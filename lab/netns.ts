/**
 * Commands on namespaces: run one to its end with a deadline, feed it text, and see what came. Everything goes by
 * `ip netns`, which also binds the namespace's own resolv.conf.
 */
import { spawn } from 'node:child_process';
import { readdir } from 'node:fs/promises';

export interface Outcome {
  /** Null when a signal ended it (the deadline). */
  code: number | null;
  stdout: string;
  stderr: string;
}

const outputMax = 4 << 20;

/** Never rejects for what the command does; it may have failed, see `code`. */
export function run(argv: string[], options: { input?: string; timeoutMs?: number } = {}): Promise<Outcome> {
  const [command = '', ...rest] = argv;
  return new Promise((resolve) => {
    const child = spawn(command, rest, { stdio: ['pipe', 'pipe', 'pipe'] });
    const text = { stdout: '', stderr: '' };
    const timer = setTimeout(() => child.kill('SIGKILL'), options.timeoutMs ?? 30_000);
    for (const stream of ['stdout', 'stderr'] as const) {
      child[stream].setEncoding('utf8');
      child[stream].on('data', (chunk: string) => {
        if (text[stream].length < outputMax) text[stream] += chunk;
      });
    }
    child.on('error', (error) => {
      clearTimeout(timer);
      resolve({ code: 127, stdout: text.stdout, stderr: `${text.stderr}${error.message}\n` });
    });
    child.on('close', (code) => {
      clearTimeout(timer);
      resolve({ code, ...text });
    });
    // A command may end without having read its input; its exit code says enough.
    child.stdin.on('error', () => {});
    child.stdin.end(options.input ?? '');
  });
}

/** As `run`, for commands that must succeed. */
export async function must(argv: string[], options: { input?: string; timeoutMs?: number } = {}): Promise<string> {
  const outcome = await run(argv, options);
  if (outcome.code !== 0) {
    const what = `${argv.slice(0, 6).join(' ')}${argv.length > 6 ? ' …' : ''}`;
    throw new Error(`${what}: exit code ${outcome.code}: ${outcome.stderr.trim() || outcome.stdout.trim()}`);
  }
  return outcome.stdout;
}

export const inNamespace = (namespace: string, argv: string[]): string[] => ['ip', 'netns', 'exec', namespace, ...argv];

/** One `ip -batch` in a namespace. */
export async function batch(namespace: string, lines: string): Promise<void> {
  if (lines !== '') await must(['ip', '-n', namespace, '-batch', '-'], { input: lines });
}

/** Names of the machine's namespaces that begin with `prefix`. */
export async function listNamespaces(prefix: string): Promise<string[]> {
  const names = await readdir('/run/netns').catch(() => [] as string[]);
  return names.filter((name) => name.startsWith(prefix)).sort();
}
