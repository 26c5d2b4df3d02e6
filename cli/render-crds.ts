/**
 * Writes `deploy/crds/*.yaml` from the schemas: `npm run crds`, or with another folder as argument. Files of ours that
 * no kind renders to any more are removed. A unit test checks that what is committed equals what is rendered.
 */

import { mkdirSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { renderCrds } from '../api/crd.ts';
import { API_GROUP } from '../api/names.ts';

const folder = process.argv[2] ?? join('deploy', 'crds');
const files = renderCrds();
mkdirSync(folder, { recursive: true });
for (const name of readdirSync(folder)) {
  if (name.startsWith(`${API_GROUP}_`) && !Object.hasOwn(files, name)) rmSync(join(folder, name));
}
for (const [name, text] of Object.entries(files)) writeFileSync(join(folder, name), text);
process.stdout.write(`${Object.keys(files).length} CRDs in ${folder}\n`);
