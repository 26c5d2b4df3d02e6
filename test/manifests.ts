/**
 * The plain manifests of deploy/manifests, rendered from the chart with its default values: `npm run manifests` writes
 * them, and a unit test checks that what is committed equals what is rendered.
 */
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { CONTROLLER_NAMESPACE } from '../api/names.ts';
import { defaultValues, renderChart, withValues } from './chart.ts';

export const MANIFESTS = join('deploy', 'manifests', 'sluice.yaml');
const HEADER = '# Rendered from deploy/chart by `npm run manifests`; a change belongs there. docs/kubernetes.md\n';

export function renderManifests(root: string): string {
  const folder = join(root, 'deploy', 'chart');
  const values = withValues(defaultValues(folder), { namespace: { create: true } });
  const files = renderChart(folder, { name: 'sluice', namespace: CONTROLLER_NAMESPACE, values });
  const texts = [...files].map(([file, text]) => `# ${file}\n${text.replaceAll(/^.*managed-by: "Helm"\n/gm, '')}`);
  return `${HEADER}---\n${texts.join('---\n')}`;
}

if (process.argv[1] === import.meta.filename) {
  const root = process.argv[2] ?? '.';
  writeFileSync(join(root, MANIFESTS), renderManifests(root));
  process.stdout.write(`${MANIFESTS}\n`);
}
