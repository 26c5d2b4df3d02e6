/**
 * The house (style.md §4) held by a walk over the sources: a room imports only from rooms above it, the pure rooms do no
 * I/O, each file opens with a comment, and none is longer than a person reads. The check is a pure function over texts,
 * so that the table below can show that each rule finds what it is there for. Import cycles are the linter's business.
 */

import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { builtinModules } from 'node:module';
import { dirname, join, posix } from 'node:path';
import type { Command } from 'commander';
import t from 'tap';
import { dropReasons, policyReasons } from '../../api/reasons.ts';
import { buildProgram } from '../../cli/program.ts';
import { gatewayFlags } from '../../daemon/heap.ts';
import { inspectReasons } from '../../gateway/inspect/reasons.ts';

/** Ground floor first. `cli` composes every program, the lab's verbs too; so it stands below `lab`. */
const rooms = 'api policy wire kernel daemon ha gateway node controller lab cli bench test'.split(' ');
const pure = new Set(['api', 'policy', 'wire']);
/** Modules of Node that compute and touch nothing. */
const harmless = new Set(['node:crypto']);
/** `node:net` opens sockets, but these of its exports only read a text. */
const harmlessNames: Record<string, ReadonlySet<string>> = { 'node:net': new Set(['isIP', 'isIPv4', 'isIPv6']) };
/** Tables of tests are long because they list cases; a program that is as long wants a split. */
const maxLines = (room: string): number => (room === 'test' ? 800 : 400);

interface Import {
  specifier: string;
  /** Names in braces; undefined: all of the module. */
  names?: string[];
}

/** Static, dynamic and type imports, re-exports, and files that a worker is started from. */
function importsOf(text: string): Import[] {
  const found: Import[] = [];
  const code = text.replaceAll(/\/\*[\s\S]*?\*\/|^\s*\/\/.*$/gm, '');
  for (const [, clause = '', specifier = ''] of code.matchAll(/^(?:import|export)\s([^;'"`]*?)from\s+'([^']+)'/gm)) {
    const names = /^(?:type\s+)?\{([^}]*)\}\s*$/.exec(clause)?.[1];
    if (names === undefined) found.push({ specifier });
    else {
      const list = names.split(',').map((name) => name.trim().replace(/^type\s+/, ''));
      found.push({ specifier, names: list.flatMap((name) => name.split(/\s+as\s/)[0] || []) });
    }
  }
  const others = [
    /^import\s+'([^']+)'/gm,
    /\bimport\(\s*['"`]([^'"`]+)['"`]/g,
    /\brequire\(\s*['"`]([^'"`]+)['"`]/g,
    /new URL\(\s*['"`](\.[^'"`]+)['"`],\s*import\.meta\.url/g,
  ];
  for (const pattern of others) for (const [, specifier = ''] of code.matchAll(pattern)) found.push({ specifier });
  return found;
}

function touchesTheWorld({ specifier, names }: Import): boolean {
  const module = specifier.startsWith('node:') ? specifier : `node:${specifier}`;
  const builtin = specifier.startsWith('node:') || builtinModules.includes(specifier.split('/')[0] ?? '');
  if (!builtin || harmless.has(module)) return false;
  return names === undefined || !names.every((name) => harmlessNames[module]?.has(name));
}

/** One sentence per violation, in the order of the files. */
function violations(files: ReadonlyMap<string, string>): string[] {
  const found: string[] = [];
  for (const [path, text] of files) {
    const room = path.split('/')[0] ?? '';
    const floor = rooms.indexOf(room);
    if (floor < 0) {
      found.push(`${path}: no room of the house`);
      continue;
    }
    if (!/^(#!.*\n)?\s*(\/\*\*?\s|\/\/)/.test(text)) found.push(`${path}: no opening comment`);
    const lines = text.trimEnd().split('\n').length;
    if (lines > maxLines(room)) found.push(`${path}: ${lines} lines, more than ${maxLines(room)}`);
    for (const item of importsOf(text)) {
      const { specifier } = item;
      if (specifier.startsWith('.')) {
        const target = posix.join(posix.dirname(path), specifier);
        const there = rooms.indexOf(target.split('/')[0] ?? '');
        if (there < 0) found.push(`${path}: imports ${target}, which is in no room`);
        else if (there > floor) found.push(`${path}: imports ${target}, from a room below`);
      } else if (pure.has(room) && touchesTheWorld(item)) found.push(`${path}: imports ${specifier}, and is pure`);
    }
  }
  return found;
}

const root = rootOf(import.meta.dirname);

/** Compiled tests lie anywhere below the repository. */
function rootOf(directory: string): string {
  if (existsSync(join(directory, 'package.json')) && existsSync(join(directory, 'tsconfig.json'))) return directory;
  const parent = dirname(directory);
  if (parent === directory) throw new Error('the repository is not above the test');
  return rootOf(parent);
}

function sources(): Map<string, string> {
  const notOurs = new Set(['node_modules', 'dist', 'build']);
  const files = new Map<string, string>();
  const read = (path: string): void => {
    if (path.endsWith('.ts') && !path.endsWith('.d.ts')) files.set(path, readFileSync(join(root, path), 'utf8'));
  };
  for (const entry of readdirSync(root, { withFileTypes: true })) {
    if (entry.name.startsWith('.') || notOurs.has(entry.name)) continue;
    if (!entry.isDirectory()) read(entry.name);
    else for (const path of readdirSync(join(root, entry.name), { recursive: true })) read(`${entry.name}/${path}`);
  }
  return new Map([...files].sort(([a], [b]) => (a < b ? -1 : 1)));
}

t.test('the check finds each kind of violation', async (t) => {
  const comment = '/** What it is. */\n';
  const rows: [name: string, path: string, text: string, found: RegExp | null][] = [
    ['a room above', 'gateway/x.ts', `${comment}import { a } from '../api/plan.ts';`, null],
    ['the same room', 'gateway/record/x.ts', `${comment}import { a } from '../marks.ts';`, null],
    ['a room below', 'api/x.ts', `${comment}import { a } from '../policy/bind.ts';`, /from a room below/],
    ['a type from below', 'wire/x.ts', `${comment}import type { A } from '../kernel/nft.ts';`, /from a room below/],
    ['over several lines', 'api/x.ts', `${comment}import {\n  a,\n  b,\n} from '../node/x.ts';`, /from a room below/],
    ['re-exported from below', 'api/x.ts', `${comment}export { a } from '../node/x.ts';`, /from a room below/],
    ['for its effects', 'api/x.ts', `${comment}import '../node/x.ts';`, /from a room below/],
    ['loaded late', 'daemon/x.ts', `${comment}const x = await import('../lab/up.ts');`, /from a room below/],
    ['run in a worker', 'kernel/x.ts', `${comment}new URL('../node/w.js', import.meta.url);`, /from a room below/],
    ['an import in a comment', 'api/x.ts', `${comment}// import { a } from '../node/x.ts';`, null],
    ['out of the house', 'api/x.ts', `${comment}import { a } from '../../x.ts';`, /in no room/],
    ['a product that imports a test', 'node/x.ts', `${comment}import { a } from '../test/x.ts';`, /from a room below/],
    ['the command starts the lab', 'cli/x.ts', `${comment}await import('../lab/up.ts');`, null],
    ['files in a pure room', 'policy/x.ts', `${comment}import { readFileSync } from 'node:fs';`, /and is pure/],
    ['files in another room', 'daemon/x.ts', `${comment}import { readFileSync } from 'node:fs';`, null],
    ['without the prefix', 'wire/x.ts', `${comment}import * as fs from 'fs/promises';`, /and is pure/],
    ['processes', 'api/x.ts', `${comment}import { spawn } from 'node:child_process';`, /and is pure/],
    ['threads, loaded late', 'wire/x.ts', `${comment}await import('node:worker_threads');`, /and is pure/],
    ['sockets', 'wire/x.ts', `${comment}import { isIP, connect } from 'node:net';`, /and is pure/],
    ['all of node:net', 'wire/x.ts', `${comment}import net from 'node:net';`, /and is pure/],
    ['only the reading of addresses', 'wire/x.ts', `${comment}import { isIPv4 as v4 } from 'node:net';`, null],
    ['hashes', 'policy/x.ts', `${comment}import { createHash } from 'node:crypto';`, null],
    ['no comment', 'api/x.ts', "import { a } from './b.ts';", /no opening comment/],
    ['a comment after a shebang', 'cli/x.ts', `#!/usr/bin/env node\n${comment}`, null],
    ['400 lines', 'api/x.ts', comment + 'a;\n'.repeat(399), null],
    ['401 lines', 'api/x.ts', comment + 'a;\n'.repeat(400), /401 lines/],
    ['a test of 800 lines', 'test/x.ts', comment + 'a;\n'.repeat(799), null],
    ['a test of 801 lines', 'test/x.ts', comment + 'a;\n'.repeat(800), /801 lines/],
    ['a folder that is no room', 'utils/x.ts', comment, /no room/],
  ];
  for (const [name, path, text, expected] of rows) {
    const found = violations(new Map([[path, text]]));
    if (expected === null) t.same(found, [], name);
    else t.match(found, [expected], name);
  }
});

t.test('the house stands', async (t) => {
  const files = sources();
  t.same(violations(files), []);
  // A walk that finds nothing would be content with everything.
  for (const room of [
    'api',
    'policy',
    'wire',
    'kernel',
    'daemon',
    'ha',
    'gateway',
    'node',
    'controller',
    'cli',
    'lab',
  ]) {
    t.ok(
      [...files.keys()].some((path) => path.startsWith(`${room}/`)),
      `${room} was looked at`,
    );
  }
  const edges = [...files.values()].flatMap((text) =>
    importsOf(text).filter(({ specifier }) => specifier.startsWith('.')),
  );
  t.ok(edges.length > files.size, 'imports were found');
});

/** Which of our files a program loads when it begins, and which packages: what is imported for its types alone is not there. */
function loadedBy(program: string, files: ReadonlyMap<string, string>): Set<string> {
  const loaded = new Set([program]);
  for (const path of loaded) {
    const text = (files.get(path) ?? '').replaceAll(/^(?:import|export) type [^;]*;/gm, '');
    for (const [, specifier = ''] of text.matchAll(/^(?:import|export)\s[^;'"`]*?'([^']+)'/gm)) {
      loaded.add(specifier.startsWith('.') ? posix.join(posix.dirname(path), specifier) : specifier);
    }
  }
  return loaded;
}

t.test('what begins on many machines, or in many threads, loads no schemas', async (t) => {
  const files = sources();
  const heavy = (program: string) => [...loadedBy(program, files)].filter((name) => name.startsWith('typebox'));
  for (const program of ['cli/main.ts', 'gateway/main.ts', 'gateway/inspect/decider.ts', 'node/main.ts']) {
    t.same(heavy(program), [], program);
  }
  t.ok(heavy('controller/main.ts').includes('typebox'), 'the controller does, which reads the kinds');
});

t.test('the documents speak of what is there', async (t) => {
  const read = (path: string): string => readFileSync(join(root, path), 'utf8');
  const operations = read('docs/operations.md');
  t.ok(
    read('bin/sluice').includes(`flags+=(${gatewayFlags.join(' ')})`),
    'bin/sluice starts a gateway as the lab does',
  );
  const troubleshooting = read('docs/troubleshooting.md');
  for (const reason of [dropReasons, policyReasons, inspectReasons].flatMap((reasons) => Object.keys(reasons))) {
    t.match(troubleshooting, new RegExp(`^\\| \`${reason}\``, 'm'), `troubleshooting.md has a row for ${reason}`);
  }

  const files = sources();
  const inCode = new Set<string>();
  for (const [path, text] of files) {
    if (path.startsWith('test/')) continue;
    for (const [name] of text.matchAll(
      /\bsluice_(?:gateway|node|controller|rule|inspection|certificate)_[a-z_]+[a-z]\b/g,
    ))
      inCode.add(name);
    if (path !== 'controller/metrics.ts') continue;
    for (const [, name = ''] of text.matchAll(/\bgauge\('(\w+)'/g)) inCode.add(`sluice_controller_${name}`);
  }
  const inText = new Set(
    [...operations.matchAll(/`(sluice_(?:gateway|node|controller|rule|inspection|certificate)_[a-z_]+)/g)].map(
      ([, name]) => name,
    ),
  );
  t.same([...inText].sort(), [...inCode].sort(), 'operations.md lists the metrics of the code, and no other');

  const options = new Set<string>(['--help']);
  const collect = (command: Command): void => {
    for (const { long } of command.options) if (long) options.add(long);
    command.commands.forEach(collect);
  };
  collect(await buildProgram());
  const others = new Set(['--all', '--mark', '--queue-num', '--once', '--no-sluice', '--from-file']);
  for (const name of readdirSync(join(root, 'docs'))) {
    // The benchmarks are scripts of their own.
    if (name === 'bench.md' || name === 'benchmarks.md' || !name.endsWith('.md')) continue;
    const flags = new Set([...read(`docs/${name}`).matchAll(/(?<![\w-])--[a-z][a-z-]*/g)].map(([flag]) => flag));
    t.same(
      [...flags].filter((flag) => !options.has(flag) && !others.has(flag)),
      [],
      `${name} names flags that exist`,
    );
    for (const [, target = ''] of read(`docs/${name}`).matchAll(/\]\(([^)#:]+)(?:#[^)]*)?\)/g)) {
      t.ok(existsSync(join(root, 'docs', target)), `${name}: ${target} exists`);
    }
  }
});
