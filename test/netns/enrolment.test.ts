/**
 * The real programs, in one namespace with nothing but loopback: a controller that holds the CA's key, and
 *   gateway gw-a (by token) and node node-a (by token): enrolled, started, connected, their plan in force
 *   the same with certificates of which two months are left: renewed by the programs themselves, and connected with them
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { X509Certificate } from 'node:crypto';
import { once } from 'node:events';
import { mkdirSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import { createCa, issueCertificate } from '../../daemon/certs.ts';
import { inNamespace, must } from '../../lab/netns.ts';
import { program, until } from '../enrolment-rig.ts';
import { sluice } from '../sluice.ts';

t.setTimeout(240_000);
const DAY = 24 * 3600 * 1000;
const namespace = `t-enrol-${process.pid}`;
const root = mkdtempSync(join(tmpdir(), 'sluice-enrol-'));
const at = (...path: string[]): string => join(root, ...path);
const children: ChildProcess[] = [];

await must(['ip', 'netns', 'add', namespace]);
t.teardown(async () => {
  for (const child of children) await end(child);
  await must(['ip', 'netns', 'del', namespace]);
  rmSync(root, { recursive: true });
});
await must(inNamespace(namespace, ['ip', 'link', 'set', 'lo', 'up']));
for (const name of ['manifests', 'state']) mkdirSync(at(name));
await createCa(at('ca'));
const addresses = ['127.0.0.1'];
await issueCertificate({ caDir: at('ca'), outDir: at('ctl'), role: 'controller', name: 'ctl', addresses });

interface Started {
  child: ChildProcess;
  said(): string;
}

function start(...args: string[]): Started {
  const [command = '', ...rest] = inNamespace(namespace, [process.execPath, program, ...args]);
  const child = spawn(command, rest, { stdio: ['ignore', 'ignore', 'pipe'] });
  let said = '';
  child.stderr.on('data', (chunk: Buffer) => {
    said += chunk.toString();
  });
  children.push(child);
  return { child, said: () => said };
}

async function end(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return;
  const gone = once(child, 'exit');
  child.kill('SIGTERM');
  await gone;
}

const controller = start(
  // biome-ignore format: flag and value
  ...['controller', '--source', `directory:${at('manifests')}`, '--state', at('state'), '--listen', '127.0.0.1:7790',
    '--certs', at('ctl'), '--ca', at('ca'), '--enrol', '127.0.0.1:7795'],
);
await until('the controller enrols', () => controller.said().includes('enrolment by token'));

const roles = [
  ['gateway', 'gw-a', []],
  ['node', 'node-a', ['--workload-interface', 'lo']],
] as const;
const run = (role: string, name: string, certs: string, flags: readonly string[]): Started =>
  // biome-ignore format: flag and value
  start(role, '--name', name, '--controller', 'https://127.0.0.1:7790', '--certs', certs, '--state', at(`state-${name}`), ...flags);
const certificateOf = (certs: string): X509Certificate => new X509Certificate(readFileSync(join(certs, 'tls.crt')));

for (const [role, name, flags] of roles) {
  t.test(`a ${role} by token`, async (t) => {
    const made = await sluice('certs', 'token', role, name, '--dir', at('ca'), '--state', at('state'));
    t.equal(made.code, 0);
    const enrol = start(
      'enrol',
      '--controller',
      'https://127.0.0.1:7795',
      '--token',
      made.out.trim(),
      '--certs',
      at(name),
    );
    t.same(await once(enrol.child, 'exit'), [0, null], enrol.said());
    const started = run(role, name, at(name), flags);
    await until(`the plan is in force: ${started.said()}`, () => started.said().includes('plan in force'));
    await end(started.child);
  });

  t.test(`a ${role} whose certificate is old`, async (t) => {
    const certs = at(`${name}-old`);
    await issueCertificate({ caDir: at('ca'), outDir: certs, role, name, addresses: [] }, Date.now() - 300 * DAY);
    const before = certificateOf(certs).serialNumber;
    const started = run(role, name, certs, flags);
    await until('renewed', () => started.said().includes('the certificate was renewed'));
    const after = certificateOf(certs);
    t.not(after.serialNumber, before);
    t.ok(Date.parse(after.validTo) > Date.now() + 364 * DAY);
    await end(started.child);
    const again = run(role, name, certs, flags);
    await until('it connects with the new one', () => again.said().includes('"connected"'));
    await end(again.child);
    t.notMatch(again.said(), 'refused');
  });
}
