/**
 * Where a lab keeps its things and what they are called: `/run/sluice/labs/NAME`, namespaces `sluice-NAME-HOST`,
 * `/etc/netns/NAMESPACE`. A lab's name has no hyphen, so that a namespace's name says which lab it belongs to even
 * when lab.json is lost.
 */
import { existsSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

export const labsRoot = '/run/sluice/labs';
export const defaultLab = 'demo';

export interface Place {
  lab: string;
  dir: string;
  file: string;
  manifests: string;
  certs(program: string): string;
  state(program: string): string;
  log(host: string, program: string): string;
  flows(gateway: string): string;
  namespace(host: string): string;
  /** Every namespace that begins with this is the lab's. */
  prefix: string;
}

export function placeOf(lab: string): Place {
  if (!/^[a-z0-9]{1,24}$/.test(lab)) {
    throw new Error(`a lab's name is made of 1 to 24 small letters and digits, got ${JSON.stringify(lab)}`);
  }
  const dir = join(labsRoot, lab);
  const prefix = `sluice-${lab}-`;
  return {
    lab,
    dir,
    file: join(dir, 'lab.json'),
    manifests: join(dir, 'manifests'),
    certs: (program) => join(dir, 'certs', program),
    state: (program) => join(dir, 'state', program),
    log: (host, program) => join(dir, 'logs', `${host}.${program}.log`),
    flows: (gateway) => join(dir, 'logs', `${gateway}.flows.jsonl`),
    namespace: (host) => `${prefix}${host}`,
    prefix,
  };
}

/** The package's root and the folder of the compiled program that is running (dist/, or another build's). */
export function packageRoot(): string {
  let dir = compiledRoot();
  while (!existsSync(join(dir, 'package.json'))) {
    const parent = dirname(dir);
    if (parent === dir) throw new Error('no package.json above the compiled program');
    dir = parent;
  }
  return dir;
}
export const compiledRoot = (): string => dirname(dirname(fileURLToPath(import.meta.url)));
