/**
 * `sluice import FORMAT`: manifests of another product → ours, with a report of what became of each. Everything is read
 * and converted before anything is written. Here are reading, writing and the report; each format is a file of its
 * own, a pure function from objects to manifests and report (f5-ces.ts), and its subcommand is below.
 */
import { createHash } from 'node:crypto';
import { lstat, mkdir, readFile, rename, stat, writeFile } from 'node:fs/promises';
import { basename, dirname, join, resolve } from 'node:path';
import { type Command, InvalidArgumentError, Option } from 'commander';
import { type AnyObject, objectKey, parseObject, sluiceKinds } from '../../api/kinds.ts';
import { isRecord, sameJson } from '../../api/plan-delta.ts';
import { loadDirectory } from '../../controller/observe/directory.ts';
import { itemsOf, parseYaml } from '../../controller/observe/document.ts';
import { namesOf } from '../../policy/external-service.ts';
import { type Files, filesOf, MAX_FILE_BYTES } from '../files.ts';
import { Exit, json, print, printable, printError, yaml } from '../output.ts';
import { CES_CONTROLLER_NAMESPACE, type CesOptions, importF5Ces } from './f5-ces.ts';
import { importNetworkPolicies } from './networkpolicy.ts';
import { type Imported, type Input, keyOf, type Manifest, type Report, refusal, reportText } from './report.ts';

const MAX_TOTAL_BYTES = 256 * 1024 * 1024;

export interface Flags {
  output?: string;
  force?: boolean;
  report?: string;
  reportForm: 'text' | 'json';
  target?: string;
}

/** What the source does with a flow that no rule speaks of. */
type Default = 'Drop' | 'Accept';

export async function runImport(
  paths: readonly string[],
  flags: Flags,
  importer: (inputs: readonly Input[]) => Imported,
  assumes: Default,
  command: Command,
): Promise<void> {
  if (flags.report !== undefined && flags.output !== undefined && resolve(flags.report) === resolve(flags.output)) {
    throw new Exit(2, '--report: expected another file than --output');
  }
  const read = await readInputs(paths);
  const imported = read.errors.length > 0 ? refusal(read.errors) : importer(read.inputs);
  if (!imported.ok) {
    for (const error of imported.errors) printError(command, printable(error));
    throw new Exit(1, 'bad input; nothing was written');
  }
  const { manifests, report } = imported;
  if (flags.target !== undefined) await besideTarget(flags.target, manifests, report, assumes);
  const files = flags.output === undefined ? new Map<string, string>() : await layOut(flags.output, manifests);
  const text = flags.reportForm === 'json' ? json(report) : reportText(report);
  if (flags.report !== undefined) files.set(flags.report, text);
  await writeAll(files, flags.force === true);
  if (flags.output === undefined) print(command, documents(manifests));
  printError(command, flags.report === undefined ? text : (reportText(report).trimEnd().split('\n').at(-1) ?? ''));
  if (report.notCarried.length > 0) throw new Exit(3);
}

async function readInputs(paths: readonly string[]): Promise<{ inputs: Input[]; errors: string[] }> {
  const inputs: Input[] = [];
  const errors: string[] = [];
  const seen = new Set<string>();
  let total = 0;
  const add = (file: string, text: string): void => {
    const parsed = parseYaml(text);
    if (!parsed.ok) {
      errors.push(...parsed.errors.map((error) => `${file}: expected YAML, got ${error}`));
      return;
    }
    for (const [i, document] of parsed.documents.entries()) {
      const at = parsed.documents.length === 1 ? file : `${file} (document ${i + 1})`;
      const items = itemsOf(document);
      for (const [j, value] of items.entries()) {
        inputs.push({ value, at: items.length === 1 && items[0] === document ? at : `${at}: items[${j}]` });
      }
    }
  };
  const bounded = (file: string, bytes: number): boolean => {
    total += bytes;
    if (bytes <= MAX_FILE_BYTES && total <= MAX_TOTAL_BYTES) return true;
    errors.push(`${file}: expected at most ${MAX_FILE_BYTES} bytes a file and ${MAX_TOTAL_BYTES} in all, got more`);
    return false;
  };
  for (const path of paths) {
    const { files, unread }: Files = path === '-' ? { files: ['-'], unread: new Map() } : await filesOf(path);
    for (const [file, message] of unread) errors.push(`${file}: ${message}`);
    for (const file of files) {
      if (seen.has(resolve(file))) continue;
      seen.add(resolve(file));
      if (file === '-') {
        const text = await readStdin();
        if (text === undefined) bounded('standard input', MAX_FILE_BYTES + 1);
        else if (bounded('standard input', Buffer.byteLength(text))) add('standard input', text);
      } else if (bounded(file, (await stat(file)).size)) add(file, await readFile(file, 'utf8'));
    }
  }
  return { inputs, errors };
}

/** undefined: too long. */
async function readStdin(): Promise<string | undefined> {
  const parts: Buffer[] = [];
  let bytes = 0;
  for await (const part of process.stdin as AsyncIterable<Buffer>) {
    bytes += part.length;
    if (bytes > MAX_FILE_BYTES) return undefined;
    parts.push(part);
  }
  return Buffer.concat(parts).toString('utf8');
}

/** What is there already, where the manifests are to go. */
async function besideTarget(
  path: string,
  manifests: readonly Manifest[],
  report: Report,
  assumes: Default,
): Promise<void> {
  const { snapshot, errors } = await loadDirectory(path);
  const unreadable = errors.find(({ reason }) => reason === 'Unreadable');
  if (unreadable !== undefined) throw new Exit(1, `--target ${path}: ${unreadable.details.join('; ')}`);
  for (const [object, found] of snapshot) {
    if (found.kind !== 'GatewayPool' || found.spec.defaultAction === assumes) continue;
    const message = `is ${found.spec.defaultAction} in the target; what no rule speaks of met ${assumes} in the source`;
    const effect = assumes === 'Drop' ? 'permits more' : 'permits less';
    report.notCarried.push({
      object,
      path: 'spec.defaultAction',
      reason: 'DefaultAction',
      message,
      effect,
    });
  }
  const named = manifests.some((manifest) => {
    const own = parseObject(manifest);
    return own.ok && own.value.kind === 'ExternalService' && namesOf(own.value).length > 0;
  });
  const unasked = [...snapshot.values()].filter((one) => one.kind === 'GatewayPool' && one.spec.dns === undefined);
  if (named && unasked.length > 0) {
    const message = 'these pools of the target have no dns.resolvers, so no rule permits by a name there.';
    report.notes.push({ reason: 'NoResolvers', message, items: unasked.map(objectKey) });
  }
  const replaced = manifests.filter((manifest) => {
    const there: AnyObject | undefined = snapshot.get(keyOf(manifest));
    if (there === undefined) return false;
    const own = parseObject(manifest);
    return !(own.ok && 'spec' in own.value && 'spec' in there && sameJson(own.value.spec, there.spec));
  });
  if (replaced.length > 0) {
    const message = 'the target has other objects of these names, which the new ones would replace.';
    report.notes.push({ reason: 'Replaces', message, items: replaced.map(keyOf) });
  }
  if (errors.length > 0) {
    const message = 'documents of the target that were refused (sluice lint says why), and so not looked at.';
    const items = errors.map(({ file, object }) => (object === undefined ? file : `${file}: ${object}`));
    report.notes.push({ reason: 'TargetRefused', message, items });
  }
}

const documents = (manifests: readonly Manifest[]): string => manifests.map(yaml).join('---\n');

/** Longest name of a file that Linux takes, in bytes; an object's name may be as long, before `.yaml`. */
const MAX_FILE_NAME = 255;

/** Path → content: one file if the path ends like one, else a file an object: `externalservices/billing/web.yaml`. */
async function layOut(output: string, manifests: readonly Manifest[]): Promise<Map<string, string>> {
  const isDirectory = await stat(output).then(
    (found) => found.isDirectory(),
    () => false,
  );
  if (!isDirectory && /\.ya?ml$/.test(output)) return new Map([[output, documents(manifests)]]);
  const plurals = new Map(sluiceKinds.map(({ kind, plural }) => [kind as string, plural]));
  return new Map(
    manifests.map((manifest) => {
      const { name, namespace } = manifest.metadata;
      const long = name.length + '.yaml'.length > MAX_FILE_NAME;
      const digest = createHash('sha256').update(name).digest('hex').slice(0, 16);
      const file = `${long ? `${name.slice(0, 200)}-${digest}` : name}.yaml`;
      return [join(output, plurals.get(manifest.kind) ?? manifest.kind, namespace ?? '', file), yaml(manifest)];
    }),
  );
}

/** Nothing is written if anything would be overwritten, unless that is wanted. */
async function writeAll(files: ReadonlyMap<string, string>, force: boolean): Promise<void> {
  const there: string[] = [];
  if (!force) {
    for (const path of files.keys()) {
      const exists = await lstat(path).then(
        () => true,
        () => false,
      );
      if (exists) there.push(path);
    }
  }
  if (there.length > 0) {
    const more = there.length > 1 ? ` and ${there.length - 1} more` : '';
    throw new Exit(1, `${there[0]}${more}: expected no such file (--force overwrites), nothing was written`);
  }
  for (const [path, content] of files) {
    await mkdir(dirname(path), { recursive: true });
    if (!force) await writeFile(path, content, { flag: 'wx' });
    else {
      // A reader sees the old file or the new one; names that start with a dot are no manifests.
      const temporary = join(
        dirname(path),
        `.${createHash('sha256').update(basename(path)).digest('hex').slice(0, 16)}`,
      );
      await writeFile(temporary, content);
      await rename(temporary, path);
    }
  }
}

/** What of ces-conf.yaml matters: who is in a tenant, and the iRules. */
async function readCesConfig(path: string): Promise<NonNullable<CesOptions['config']>> {
  const bad = (at: string, expected: string): Exit =>
    new Exit(1, `${path}: ${at}: expected ${expected}; nothing was written`);
  if ((await stat(path)).size > MAX_FILE_BYTES) throw bad('(document)', `at most ${MAX_FILE_BYTES} bytes`);
  const parsed = parseYaml(await readFile(path, 'utf8'));
  if (!parsed.ok) throw bad('(document)', `YAML (${parsed.errors[0] ?? ''})`);
  const [config] = parsed.documents;
  if (parsed.documents.length !== 1 || !isRecord(config)) throw bad('(document)', 'one object');
  const { tenant, iRule = [] } = config;
  if (!Array.isArray(tenant)) throw bad('tenant', 'a list');
  const namespaces = tenant.flatMap((item: unknown, i) => {
    const text = isRecord(item) ? (item.namespaces ?? '') : undefined;
    if (typeof text !== 'string') throw bad(`tenant[${i}].namespaces`, 'text with commas');
    // As CES cuts it: a name after a comma and a space is one that it does not find.
    return text.split(',');
  });
  if (!Array.isArray(iRule) || !iRule.every((name) => typeof name === 'string')) throw bad('iRule', 'a list of names');
  return { namespaces: new Set(namespaces), iRules: iRule };
}

function namespaceArgument(text: string): string {
  if (text.length <= 63 && /^[a-z0-9]([-a-z0-9]*[a-z0-9])?$/.test(text)) return text;
  throw new InvalidArgumentError('expected a namespace');
}

/** The options of every format, and what all of them share in their help. */
function format(parent: Command, name: string, description: string): Command {
  return parent
    .command(name)
    .description(description)
    .argument('<path...>', 'files or directories of YAML; - is standard input')
    .option('--output <path>', 'FILE.yaml, or a directory that gets a file an object (default: standard output)')
    .option('--force', 'overwrite files')
    .option('--report <file>', 'report into a file (default: standard error)')
    .addOption(new Option('-o, --report-form <form>', 'form of the report').choices(['text', 'json']).default('text'))
    .option('--target <dir>', 'manifests that the result is to join: look for what it would replace, and at its pools');
}

const exitCodes = `
Exit codes: 0 all was carried over, 1 bad input or a file that is there (nothing is written), 2 used wrongly,
3 something could not be carried over: read the report.
`;

export function register(program: Command): void {
  const parent = program
    .command('import')
    .description("convert another product's manifests, and report what could not be carried over");
  format(parent, 'f5-ces', 'F5 Container Egress Service: ExternalServices and egress rules of kubeovn.io/v1alpha1')
    .option(
      '--controller-namespace <namespace>',
      "namespace of CES's controller, where its cluster rules look for ExternalServices",
      namespaceArgument,
      CES_CONTROLLER_NAMESPACE,
    )
    .option('--ces-config <file>', 'its ces-conf.yaml: report which namespaces CES ignored')
    .addHelpText(
      'after',
      `${exitCodes}
Examples:
  sluice import f5-ces ces/ --output manifests/ces.yaml            # one file; the report on the terminal
  sluice import f5-ces ces/ --output manifests/ --report report.json -o json
  for kind in externalservices clusteregressrules namespaceegressrules serviceegressrules; do
    kubectl get $kind.kubeovn.io -A -o yaml; echo ---
  done | sluice import f5-ces - > ces.yaml
  sluice import f5-ces ces/ --ces-config ces-conf.yaml --target manifests/ > ces.yaml`,
    )
    .action(
      async (paths: string[], flags: Flags & { controllerNamespace: string; cesConfig?: string }, command: Command) => {
        const { controllerNamespace, cesConfig } = flags;
        const config = cesConfig === undefined ? {} : { config: await readCesConfig(cesConfig) };
        const importer = (inputs: readonly Input[]) => importF5Ces(inputs, { controllerNamespace, ...config });
        await runImport(paths, flags, importer, 'Drop', command);
      },
    );
  format(parent, 'networkpolicy', 'Kubernetes NetworkPolicies: their egress, as far as it leaves the cluster')
    .addHelpText(
      'after',
      `${exitCodes}
Examples:
  sluice import networkpolicy policies/ --output manifests/policies.yaml
  kubectl get networkpolicies -A -o yaml | sluice import networkpolicy - --target manifests/ > policies.yaml`,
    )
    .action(async (paths: string[], flags: Flags, command: Command) => {
      await runImport(paths, flags, importNetworkPolicies, 'Accept', command);
    });
}
