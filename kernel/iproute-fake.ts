/**
 * iproute2 in memory: runs the lines that diffNet() writes, with the kernel's answers where they matter to us (a
 * device that is missing, a thing that is there already or not at all; a device that goes takes along what stood on
 * it), and keeps them. Devices that are not ours are given to the constructor.
 */
import { type Family, families } from '../api/plan.ts';
import { type KernelCode, KernelError } from './errors.ts';
import type { DesiredLink, Ip, NetScope, NetState, Route, Rule } from './iproute.ts';
import { emptyNetState } from './iproute-diff.ts';

const fail = (code: KernelCode, line: string): never => {
  throw new KernelError('ip apply', code, line);
};

export class FakeIp implements Ip {
  /** Every line that was run, oldest first. */
  readonly lines: string[] = [];
  readonly #devices: Set<string>;
  #state = emptyNetState();

  constructor(devices: string[] = []) {
    this.#devices = new Set(['lo', ...devices]);
  }

  async list(scope: NetScope): Promise<NetState> {
    const { links, addresses, routes, rules, neighbours } = structuredClone(this.#state);
    return {
      links: links.filter(({ name }) => scope.links.includes(name)),
      addresses: addresses.filter((address) => scope.managed(address)),
      routes: routes.filter(({ table }) => scope.tables.includes(table)),
      rules: rules.filter(({ priority }) =>
        scope.rulePriorities.some(([first, last]) => first <= priority && priority <= last),
      ),
      neighbours: neighbours.filter(({ dev }) => scope.neighbourDevices.includes(dev)),
    };
  }

  async apply(lines: string[]): Promise<void> {
    for (const line of lines) {
      this.#execute(line);
      this.lines.push(line);
    }
  }

  #execute(line: string): void {
    const [flag, object, verb, ...words] = line.split(' ');
    const family = families.find((each) => flag === `-${each}`) ?? fail('syntax', line);
    switch (`${object} ${verb}`) {
      case 'link add':
        this.#addLink(words, line);
        break;
      case 'link del':
        this.#deleteLink(words[0] ?? '', line);
        break;
      case 'link set':
        this.#setLink(words, line);
        break;
      case 'addr add':
      case 'addr del': {
        const item = { dev: this.#device(words, line), address: words[0] ?? '' };
        this.#change(this.#state.addresses, item, verb === 'add', line);
        break;
      }
      case 'neigh replace':
      case 'neigh del': {
        const dev = this.#device(words, line);
        const index = this.#state.neighbours.findIndex((each) => each.dev === dev && each.address === words[0]);
        if (index >= 0) this.#state.neighbours.splice(index, 1);
        else if (verb === 'del') fail('ENOENT', line);
        if (verb === 'replace')
          this.#state.neighbours.push({ dev, address: words[0] ?? '', mac: after(words, 'lladdr') });
        break;
      }
      case 'route replace':
      case 'route del': {
        const route = parseRoute(words, family);
        if (route.dev !== undefined) this.#device(words, line);
        const index = this.#state.routes.findIndex((each) => sameRoute(each, route));
        if (index >= 0) this.#state.routes.splice(index, 1);
        else if (verb === 'del') fail('ENOENT', line);
        if (verb === 'replace') this.#state.routes.push(route);
        break;
      }
      case 'rule add':
      case 'rule del':
        this.#change(this.#state.rules, parseRule(words, family), verb === 'add', line);
        break;
      default:
        fail('syntax', line);
    }
  }

  #change<T>(list: T[], item: T, add: boolean, line: string): void {
    const index = list.findIndex((each) => JSON.stringify(each) === JSON.stringify(item));
    if (add) {
      if (index >= 0) fail('EEXIST', line);
      list.push(item);
    } else {
      if (index < 0) fail('ENOENT', line);
      list.splice(index, 1);
    }
  }

  #device(words: string[], line: string): string {
    const dev = after(words, 'dev');
    return this.#devices.has(dev) ? dev : fail('ENODEV', line);
  }

  #addLink(words: string[], line: string): void {
    const name = words[0] ?? '';
    if (this.#devices.has(name)) fail('EEXIST', line);
    this.#devices.add(name);
    const link: DesiredLink = {
      name,
      kind: 'vxlan-external',
      port: Number(after(words, 'dstport')),
      mac: after(words, 'address'),
      mtu: Number(after(words, 'mtu')),
      up: false,
    };
    this.#state.links.push(link);
  }

  #deleteLink(name: string, line: string): void {
    if (!this.#devices.delete(name)) fail('ENODEV', line);
    const { links, addresses, routes, rules, neighbours } = this.#state;
    this.#state = {
      links: links.filter((each) => each.name !== name),
      addresses: addresses.filter(({ dev }) => dev !== name),
      routes: routes.filter(({ dev }) => dev !== name),
      rules,
      neighbours: neighbours.filter(({ dev }) => dev !== name),
    };
  }

  #setLink([name, what, value]: string[], line: string): void {
    const link = this.#state.links.find((each) => each.name === name) ?? fail('ENODEV', line);
    if (what === 'address') {
      link.mac = value ?? '';
      this.#state.neighbours = this.#state.neighbours.filter(({ dev }) => dev !== name);
    } else if (what === 'mtu') link.mtu = Number(value);
    else if (what === 'up' || what === 'down') link.up = what === 'up';
    else fail('syntax', line);
  }
}

/** The word after a keyword; '' if it is not there. */
const after = (words: string[], keyword: string): string => words[words.indexOf(keyword) + 1 || words.length] ?? '';
const has = (words: string[], keyword: string): boolean => words.includes(keyword);

const sameRoute = (a: Route, b: Route) =>
  a.family === b.family && a.table === b.table && a.destination === b.destination && a.metric === b.metric;

function parseRoute(words: string[], family: Family): Route {
  const id = Number(after(words, 'id'));
  return {
    family,
    table: Number(after(words, 'table')),
    type: words[0] as Route['type'],
    destination: words[1] ?? '',
    ...(has(words, 'via') && { via: after(words, 'via') }),
    ...(has(words, 'dev') && { dev: after(words, 'dev') }),
    ...(has(words, 'onlink') && { onlink: true }),
    ...(has(words, 'encap') && { encap: { id, destination: after(words, 'dst') } }),
    ...(has(words, 'metric') && { metric: Number(after(words, 'metric')) }),
  };
}

function parseRule(words: string[], family: Family): Rule {
  const [value, mask] = after(words, 'fwmark').split('/').map(Number);
  return {
    family,
    priority: Number(after(words, 'priority')),
    ...(has(words, 'table') && { table: Number(after(words, 'table')) }),
    ...(has(words, 'goto') && { goto: Number(after(words, 'goto')) }),
    ...(has(words, 'not') && { not: true as const }),
    ...(value !== undefined && mask !== undefined && { mark: { value, mask } }),
    ...(has(words, 'iif') && { iif: after(words, 'iif') }),
    ...(has(words, 'ipproto') && { protocol: Number(after(words, 'ipproto')) }),
    ...(after(words, 'from') !== 'all' && { from: after(words, 'from') }),
    ...(has(words, 'to') && { to: after(words, 'to') }),
  };
}
