/**
 * tc in memory: runs the lines that diffTc() writes, with the kernel's answers where they matter to us (a class that is
 * there already or not at all, one with children that is to go), and keeps them. Interfaces are given to the constructor.
 */
import { TC_MAJOR } from '../api/names.ts';
import { type KernelCode, KernelError } from './errors.ts';
import type { Tc, TcClass, TcRoot, TcState } from './tc.ts';

const fail = (code: KernelCode, line: string): never => {
  throw new KernelError('tc apply', code, line);
};
const own = `${TC_MAJOR.toString(16)}:`;
const minorOf = (handle: string): number => Number.parseInt(handle.slice(own.length), 16);

export class FakeTc implements Tc {
  /** Every line that was run, oldest first. */
  readonly lines: string[] = [];
  readonly #devices: TcState;

  constructor(devices: Record<string, TcRoot> = {}) {
    this.#devices = new Map(Object.entries(devices).map(([dev, root]) => [dev, { root, classes: [] }]));
  }

  async list(): Promise<TcState> {
    return structuredClone(this.#devices);
  }

  async apply(lines: string[]): Promise<void> {
    for (const line of lines) {
      this.#execute(line);
      this.lines.push(line);
    }
  }

  /** Nothing is ever sent. */
  async dropped(): Promise<Record<string, number>> {
    return Object.fromEntries([...this.#devices].flatMap(([dev, { root }]) => (root === 'ours' ? [[dev, 0]] : [])));
  }

  #execute(line: string): void {
    const [object, verb, , dev = '', ...words] = line.split(' ');
    const device = this.#devices.get(dev) ?? fail('ENODEV', line);
    const after = (word: string): string => words[words.indexOf(word) + 1] ?? '';
    if (object === 'qdisc' && words[0] === 'root') {
      if (after('handle') !== `${own}0`) fail('EINVAL', line);
      if (device.root !== (verb === 'add' ? 'free' : 'ours')) fail(verb === 'add' ? 'EEXIST' : 'ENOENT', line);
      Object.assign(device, { root: verb === 'add' ? 'ours' : 'free', classes: [] });
      return;
    }
    if (device.root !== 'ours') fail('ENOENT', line);
    const minor = minorOf(after(object === 'qdisc' ? 'parent' : 'classid'));
    const found = device.classes.find((one) => one.minor === minor);
    switch (`${object} ${verb}`) {
      case 'class add': {
        const parent = minorOf(after('parent'));
        if (found !== undefined) fail('EEXIST', line);
        if (parent !== 0 && !device.classes.some((one) => one.minor === parent)) fail('ENOENT', line);
        const bits = Number.parseInt(after('ceil'), 10);
        device.classes.push({ minor, ...(parent !== 0 && { parent }), bits, leaf: false } satisfies TcClass);
        return;
      }
      case 'class change':
        (found ?? fail('ENOENT', line)).bits = Number.parseInt(after('ceil'), 10);
        return;
      case 'class del':
        if (found === undefined) fail('ENOENT', line);
        if (device.classes.some(({ parent }) => parent === minor)) fail('EBUSY', line);
        device.classes = device.classes.filter((one) => one !== found);
        return;
      case 'qdisc add':
      case 'qdisc change':
        if ((found ?? fail('ENOENT', line)).leaf !== (verb === 'change'))
          fail(verb === 'add' ? 'EEXIST' : 'ENOENT', line);
        (found ?? fail('ENOENT', line)).leaf = true;
        return;
      default:
        fail('syntax', line);
    }
  }
}
