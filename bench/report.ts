/** Writes what was measured: JSON with every sample, a Markdown table, SVG plots; and the document that is made of them. */
import { mkdir, readFile, writeFile } from 'node:fs/promises';
import { dirname, join, relative } from 'node:path';
import { documentText } from './document.ts';
import { machineText, resultText } from './markdown.ts';
import { plotsOf } from './plots.ts';
import type { Result } from './result.ts';
import { besideSources } from './topology.ts';

const NAME = 'bench';

export async function writeReport(folder: string, result: Result): Promise<{ table: string; files: string[] }> {
  await mkdir(folder, { recursive: true });
  const table = `${resultText(result, () => undefined)}\n`;
  const files: [name: string, content: string][] = [
    [`${NAME}.json`, `${JSON.stringify(result, null, 1)}\n`],
    [`${NAME}.md`, `${machineText(result)}\n\n${table}`],
    ...plotsOf(result),
  ];
  const paths = files.map(([name]) => join(folder, name));
  for (const [at, [, content]] of files.entries()) await writeFile(paths[at] ?? '', content);
  return { table, files: paths };
}

/** A file of the harness, or a folder that has it. */
export async function readResult(path: string): Promise<Result> {
  const file = path.endsWith('.json') ? path : join(path, `${NAME}.json`);
  const result = JSON.parse(await readFile(file, 'utf8')) as Partial<Result>;
  if (result.version !== 1 || !Array.isArray(result.scenarios))
    throw new Error(`${file} is no report of this benchmark`);
  return result as Result;
}

/** Tables and plots again, of the JSON in `folder`; and docs/benchmarks.md, which names the plots. */
export async function writeDocument(folder: string): Promise<void> {
  const result = await readResult(folder);
  const { files } = await writeReport(folder, result);
  const document = join(dirname(besideSources('docs/bench.md')), 'benchmarks.md');
  await writeFile(document, documentText(result, relative(dirname(document), folder)));
  console.log(`written: ${[document, ...files].join(', ')}`);
}
