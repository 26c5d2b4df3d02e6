/**
 * A controller program with a CA, for tests of enrolment: started, killed and started again on the same ports; its log and
 * metrics; tokens; raw requests.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { webcrypto } from 'node:crypto';
import { once } from 'node:events';
import { mkdirSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { request } from 'node:https';
import { type AddressInfo, createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { ENROL_PATH, formatEnrolRequest, parseToken, type Token } from '../api/enrolment.ts';
import { must } from '../api/result.ts';
import { algorithm, createCa, issueCertificate } from '../daemon/certs.ts';
import { makeCsr } from '../daemon/csr.ts';
import { sluice } from './sluice.ts';

export const program = fileURLToPath(new URL('../cli/main.js', import.meta.url));

export async function freePort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;
  server.close();
  await once(server, 'close');
  return port;
}

export async function until(title: string, check: () => boolean | Promise<boolean>, ms = 30_000): Promise<void> {
  const end = performance.now() + ms;
  while (!(await check())) {
    if (performance.now() > end) throw new Error(`never came: ${title}`);
    await new Promise((done) => setTimeout(done, 20));
  }
}

export interface LogLine {
  msg: string;
  result?: string;
  [field: string]: unknown;
}

export class ControllerRig {
  readonly dir = mkdtempSync(join(tmpdir(), 'sluice-enrol-'));
  readonly ca = join(this.dir, 'ca');
  readonly certs = join(this.dir, 'ctl');
  readonly state = join(this.dir, 'state');
  port = 0;
  enrolPort = 0;
  metricsPort = 0;
  /** All that its runs have written. */
  said = '';
  #child: ChildProcess | undefined;

  /** `now`: of the controller's certificate. */
  static async open(now?: number): Promise<ControllerRig> {
    const rig = new ControllerRig();
    for (const directory of [rig.state, join(rig.dir, 'manifests')]) mkdirSync(directory);
    await createCa(rig.ca);
    const addresses = ['127.0.0.1'];
    await issueCertificate({ caDir: rig.ca, outDir: rig.certs, role: 'controller', name: 'ctl', addresses }, now);
    [rig.port, rig.enrolPort, rig.metricsPort] = [await freePort(), await freePort(), await freePort()];
    await rig.start();
    return rig;
  }

  get url(): string {
    return `https://127.0.0.1:${this.enrolPort}`;
  }
  get streamUrl(): string {
    return `https://127.0.0.1:${this.port}`;
  }

  async start(): Promise<void> {
    const at = (port: number): string => `127.0.0.1:${port}`;
    const child = spawn(
      process.execPath,
      // biome-ignore format: flag and value
      [program, 'controller', '--source', `directory:${join(this.dir, 'manifests')}`, '--state', this.state,
        '--listen', at(this.port), '--certs', this.certs, '--ca', this.ca, '--enrol', at(this.enrolPort),
        '--metrics', at(this.metricsPort)],
      { stdio: ['ignore', 'ignore', 'pipe'] },
    );
    this.#child = child;
    // A test that fails outside of its tests leaves no program behind.
    process.once('exit', () => child.kill('SIGKILL'));
    child.stderr?.on('data', (chunk: Buffer) => {
      this.said += chunk.toString();
    });
    await until('the controller answers', async () => {
      if (child.exitCode !== null) throw new Error(`the controller ended: ${this.said}`);
      return fetch(`http://127.0.0.1:${this.metricsPort}/healthz`).then(
        async (answer) => (await answer.text()) === 'ok\n',
        () => false,
      );
    });
  }

  async end(signal: 'SIGKILL' | 'SIGTERM' = 'SIGKILL'): Promise<void> {
    const child = this.#child;
    if (child === undefined || child.exitCode !== null || child.signalCode !== null) return;
    const gone = once(child, 'exit');
    child.kill(signal);
    await gone;
  }

  async close(): Promise<void> {
    await this.end('SIGTERM');
    rmSync(this.dir, { recursive: true });
  }

  get lines(): LogLine[] {
    return this.said
      .split('\n')
      .filter((line) => line.startsWith('{'))
      .map((line) => JSON.parse(line) as LogLine);
  }
  /** Of requests for certificates. */
  results(): string[] {
    return this.lines.flatMap(({ result }) => (result === undefined ? [] : [result]));
  }

  async metric(name: string): Promise<number> {
    const answer = await (await fetch(`http://127.0.0.1:${this.metricsPort}/metrics`)).text();
    const line = answer.split('\n').find((one) => one.startsWith(name));
    return Number(line?.split(' ').at(-1) ?? Number.NaN);
  }

  async token(role: 'gateway' | 'node', name: string, ...more: string[]): Promise<string> {
    const { code, out, err } = await sluice(
      'certs',
      'token',
      role,
      name,
      '--dir',
      this.ca,
      '--state',
      this.state,
      ...more,
    );
    if (code !== 0) throw new Error(err);
    return out.trim();
  }

  tokenFile(token: string, what = ''): string {
    return join(this.state, 'tokens', `${must(parseToken(token)).id}${what}.json`);
  }

  /** What the controller kept of the token's use. */
  useOf(token: string): { certificate: string } {
    return JSON.parse(readFileSync(this.tokenFile(token, '.used'), 'utf8')) as { certificate: string };
  }
}

export async function csr(): Promise<string> {
  return makeCsr(await webcrypto.subtle.generateKey(algorithm, true, ['sign', 'verify']));
}

export interface Said {
  status: number;
  body: string;
}

/** Without our client, and without looking at who answers. */
export function post(
  port: number,
  body: string,
  more: { path?: string; method?: string; slow?: boolean } = {},
): Promise<Said> {
  return new Promise((resolve, reject) => {
    const asked = request(
      {
        host: '127.0.0.1',
        port,
        agent: false,
        path: more.path ?? ENROL_PATH,
        method: more.method ?? 'POST',
        rejectUnauthorized: false,
      },
      (response) => {
        let said = '';
        response.on('data', (chunk: Buffer) => {
          said += chunk.toString();
        });
        response.on('end', () => resolve({ status: response.statusCode ?? 0, body: said }));
        response.on('error', reject);
      },
    );
    asked.on('error', reject);
    if (more.slow) asked.write(body);
    else asked.end(body);
  });
}

export async function tokenRequest(token: string | Token, request?: string): Promise<string> {
  return formatEnrolRequest(typeof token === 'string' ? must(parseToken(token)) : token, request ?? (await csr()));
}
