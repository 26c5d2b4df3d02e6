/**
 * What programs do otherwise because they are confined: in a container /proc/sys is read-only, and without CAP_SYS_ADMIN
 * nobody makes a network namespace as it is. Each child is a process of its own, in namespaces of its own. All of the
 * programs, confined as units and chart do it: test/kube/capabilities.ts, by hand.
 */
import { execFile } from 'node:child_process';
import { join } from 'node:path';
import { promisify } from 'node:util';
import t from 'tap';
import { probeQueueRule } from '../../kernel/queue-rule.ts';

const exec = promisify(execFile);
const compiled = (path: string): string => join(import.meta.dirname, '..', '..', path);

/** Standard output of a script that imports a module of ours as `m`. */
async function run(wrapper: readonly string[], module: string, script: string): Promise<string> {
  const code = `const m = await import(${JSON.stringify(compiled(module))}); ${script}`;
  const [command = '', ...args] = [...wrapper, process.execPath, '--input-type=module', '-e', code];
  return (await exec(command, args)).stdout.trim();
}

t.test('parameters where /proc/sys is read-only', async (t) => {
  const folder = t.testdir({ net: {} });
  const script = `
    const wanted = { 'net/ipv4/ip_forward': '1', 'net/ipv6/conf/lo/disable_ipv6': '1' };
    const said = await m.applySysctls(wanted, OPTIONS).then(String, (error) => /EROFS/.exec(error.message)?.[0]);
    console.log(said, await m.readSysctl('net/ipv4/ip_forward'));`;
  const readOnly = 'mount --bind /proc/sys /proc/sys; mount -o remount,bind,ro /proc/sys; exec "$@"';
  const inContainer = (first: string): string[] => ['unshare', '--net', '--mount', 'sh', '-ec', first + readOnly, 'sh'];
  const options = `{ hostRoot: ${JSON.stringify(folder)} }`;
  const elsewhere = inContainer(`mount --bind /proc/sys/net '${folder}/net'; `);
  const said = await run(elsewhere, 'kernel/sysctl.js', script.replace('OPTIONS', options));
  t.equal(said, 'net/ipv4/ip_forward,net/ipv6/conf/lo/disable_ipv6 1', 'those of the machine, mounted elsewhere');
  t.equal(await run(inContainer(''), 'kernel/sysctl.js', script.replace('OPTIONS', '{}')), 'EROFS 0', 'nothing there');
});

t.test('the queue rule is tried without CAP_SYS_ADMIN', async (t) => {
  const caps = '-all,+net_admin,+setfcap';
  const confined = ['setpriv', '--no-new-privs', `--inh-caps=${caps}`, `--bounding-set=${caps}`];
  const kind = await run(confined, 'kernel/queue-rule.js', 'console.log((await m.probeQueueRule()).kind)');
  t.equal(kind, (await probeQueueRule()).kind, 'with the same answer');
});
