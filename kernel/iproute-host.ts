/**
 * iproute2 of this machine, or of one of its network namespaces: lists with `ip -j -d -N`, applies with `ip -batch -`.
 * A batch stops at its first error; the next list → diff → apply goes on from there.
 */
import { ROUTE_PROTOCOL } from '../api/names.ts';
import { type Family, families } from '../api/plan.ts';
import { KernelError } from './errors.ts';
import type { Ip, NetScope, NetState } from './iproute.ts';
import { parseAddresses, parseLinks, parseNeighbours, parseRoutes, parseRules } from './iproute-json.ts';
import type { HostOptions } from './nft-host.ts';
import { inNamespace, run } from './run.ts';

export class HostIp implements Ip {
  readonly #namespace: string | undefined;

  constructor(options: HostOptions = {}) {
    this.#namespace = options.namespace;
  }

  async list(scope: NetScope): Promise<NetState> {
    // Each is a command: one after the other they take seconds where processors are busy.
    const [devices, ...byFamily] = await Promise.all([
      this.#json(['addr', 'show']),
      ...families.map((family) => this.#listFamily(scope, family)),
    ]);
    return {
      links: parseLinks(devices).filter(({ name }) => scope.links.includes(name)),
      addresses: parseAddresses(devices).filter((address) => scope.managed(address)),
      routes: byFamily.flatMap(({ routes }) => routes),
      rules: byFamily.flatMap(({ rules }) => rules),
      neighbours: byFamily.flatMap(({ neighbours }) => neighbours),
    };
  }

  async #listFamily(
    { tables, rulePriorities, neighbourDevices }: NetScope,
    family: Family,
  ): Promise<Pick<NetState, 'routes' | 'rules' | 'neighbours'>> {
    const [routes, rules, ...neighbours] = await Promise.all([
      // All tables at once: a node has one for each shard.
      this.#json(['route', 'show', 'table', 'all', 'proto', String(ROUTE_PROTOCOL)], family),
      rulePriorities.length > 0 ? this.#json(['rule', 'show'], family) : '[]',
      ...neighbourDevices.map((dev) => this.#json(['neigh', 'show', 'dev', dev, 'nud', 'permanent'], family)),
    ]);
    const ours = (priority: number): boolean =>
      rulePriorities.some(([first, last]) => first <= priority && priority <= last);
    return {
      routes: parseRoutes(routes, family).filter(({ table }) => tables.includes(table)),
      rules: parseRules(rules, family).filter(({ priority }) => ours(priority)),
      neighbours: neighbourDevices.flatMap((dev, at) => parseNeighbours(neighbours[at] ?? '[]', dev)),
    };
  }

  async apply(lines: string[]): Promise<void> {
    // One batch per run of lines of one family.
    let start = 0;
    while (start < lines.length) {
      const family = lines[start]?.slice(0, 2) ?? '';
      let end = start;
      while (end < lines.length && lines[end]?.startsWith(`${family} `)) end++;
      if (family !== '-4' && family !== '-6') throw new TypeError(`line without a family: ${lines[start]}`);
      const batch = lines.slice(start, end).map((line) => `${line.slice(3)}\n`);
      await this.#run('ip apply', [family, '-batch', '-'], batch);
      start = end;
    }
  }

  async #run(op: string, args: string[], batch: string[] = []): Promise<string> {
    try {
      return await run(inNamespace(this.#namespace, ['ip', ...args]), { op, input: batch.join('') });
    } catch (error) {
      // `Command failed -:3` names the line only by its number.
      const line = error instanceof KernelError ? /Command failed -:(\d+)/.exec(error.message)?.[1] : undefined;
      if (!(error instanceof KernelError) || line === undefined) throw error;
      const text = error.message.slice(`${op}: ${error.code}: `.length).replace(/\s*Command failed -:\d+/, '');
      throw new KernelError(op, error.code, `${text} (${args[0]} ${batch[Number(line) - 1]?.trim()})`, error);
    }
  }

  /** A table without routes, or a device that is not there, has none of what was asked. */
  async #json(args: string[], family?: Family): Promise<string> {
    try {
      return await this.#run('ip list', ['-j', '-d', '-N', ...(family ? [`-${family}`] : []), ...args]);
    } catch (error) {
      if (error instanceof KernelError && (error.code === 'ENOENT' || error.code === 'ENODEV')) return '[]';
      throw error;
    }
  }
}
