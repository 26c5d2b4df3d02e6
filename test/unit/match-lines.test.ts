/** gateway/match-lines.ts: which lines a rule's destinations are. That packets meet them so: test/netns/gateway.test.ts. */
import t from 'tap';
import type { ServiceEntry } from '../../api/plan.ts';
import { DestinationSets } from '../../gateway/destination-sets.ts';
import { matchesOf, matchLines } from '../../gateway/match-lines.ts';
import { Scope, Table } from '../../gateway/table.ts';
import { tailGuard } from '../../gateway/tail-guard.ts';

const tcp = (...ports: number[]): ServiceEntry['ports'] => [{ protocol: 6, ports: ports.map((port) => [port, port]) }];
const two = ['198.51.100.80/32', '2001:db8:100::80/128'];

function compiled(services: ServiceEntry[], ends = true): { lines: string[]; chains: Record<string, string[]> } {
  const table = new Table('sluice');
  const named = new Map(services.map((service, at) => [`s${at}`, service]));
  const found = new DestinationSets({ rules: new Map(), services: named }).find([...named.keys()]);
  const lines = matchLines(matchesOf(found), 'goto verdict', ends, new Scope(table));
  const chains = Object.entries(table.ruleset().chains).map(([name, { rules }]) => [name, rules]);
  return { lines, chains: Object.fromEntries(chains) };
}

t.test('ports that several addresses share are compared behind them, once', async (t) => {
  const { lines, chains } = compiled([{ addresses: two, ports: tcp(80, 443) }]);
  const [name = ''] = Object.keys(chains);
  t.same(lines, [`ip daddr 198.51.100.80 jump ${name}`, `ip6 daddr 2001:db8:100::80 jump ${name}`]);
  t.same(chains, {
    [name]: ['meta l4proto 6 th dport 80 goto verdict', 'meta l4proto 6 th dport 443 goto verdict'],
  });
});

t.test('in one line each, where a chain would save nothing or not lead back', async (t) => {
  const flat = (services: ServiceEntry[], ends?: boolean): number => {
    const { lines, chains } = compiled(services, ends);
    t.same(chains, {});
    t.notMatch(lines.join('\n'), /jump/);
    return lines.length;
  };
  t.equal(flat([{ addresses: two, ports: tcp(80, 443) }], false), 4, 'the walk goes on after the verdict');
  t.equal(flat([{ addresses: two, ports: tcp(80) }]), 2, 'one port');
  t.equal(flat([{ addresses: two.slice(0, 1), ports: tcp(80, 443) }]), 2, 'one address');
  t.equal(flat([{ addresses: two, ports: null }]), 2, 'any port');
  const [four = '', six = ''] = two;
  const others = [
    { addresses: [four], ports: tcp(80, 443) },
    { addresses: [six], ports: tcp(80, 8443) },
  ];
  t.equal(flat(others), 4, 'other ports');
});

t.test('many addresses with many ports are as many elements as the one and the other', async (t) => {
  const many = {
    addresses: Array.from({ length: 1000 }, (_, at) => `198.51.${at >> 7}.${2 * (at & 127)}/32`),
    ports: tcp(...Array.from({ length: 100 }, (_, at) => 1 + 2 * at)),
  };
  const sizes = (services: ServiceEntry[]): number[] => {
    const found = new DestinationSets({
      rules: new Map(),
      services: new Map(services.map((one, at) => [`s${at}`, one])),
    }).find(services.map((_, at) => `s${at}`));
    return found[4].sets.map(([, { elements }]) => elements.size);
  };
  t.same(sizes([many]), [1000, 100]);
  const small = { addresses: many.addresses.slice(0, 20), ports: tcp(9) };
  t.same(sizes([small, many]), [20, 1000, 100]);
  t.same(sizes([{ ...many, addresses: many.addresses.slice(0, 10) }, small]), [1000 + 10], 'few of them are pairs');
});

t.test('every address of both families is one line', async (t) => {
  const all = ['0.0.0.0/0', '::/0'];
  t.same(compiled([{ addresses: all, ports: tcp(25) }]).lines, ['meta l4proto 6 th dport 25 goto verdict']);
  t.same(compiled([{ addresses: all, ports: null }]).lines, ['goto verdict']);
  t.same(compiled([{ addresses: all.slice(1), ports: null }]).lines, ['meta nfproto ipv6 goto verdict']);
  const mixed = [
    { addresses: all, ports: tcp(25) },
    { addresses: ['0.0.0.0/0'], ports: [{ protocol: 17, ports: null }] },
  ];
  t.same(compiled(mixed).lines, [
    'meta l4proto 6 th dport 25 goto verdict',
    'meta nfproto ipv4 meta l4proto 17 goto verdict',
  ]);
});

t.test('what the last rules of a list cannot be about leaves before them', async (t) => {
  const guard = (...rules: (string[] | undefined)[]) => {
    const services = new Map<string, ServiceEntry>();
    for (const [at, addresses] of rules.entries()) {
      if (addresses !== undefined) services.set(`s/${at}`, { addresses, ports: null });
    }
    const sets = new DestinationSets({ rules: new Map(), services });
    return tailGuard(rules.map((addresses, at) => (addresses === undefined ? undefined : sets.find([`s/${at}`]))));
  };
  const near = [1, 2, 3, 4].map((host) => [`10.1.2.${host}/32`]);
  t.same(guard(...near), { at: 0, lines: ['ip daddr != 10.1.2.0/29 return'] }, 'the prefix that covers all');
  t.same(guard(...near.slice(1)), undefined, 'three comparisons are not worth one more');
  t.same(guard(undefined, ...near)?.at, 1, 'behind a rule for any destination');
  t.same(guard(...near, undefined), undefined, 'not before one');
  t.same(guard(['192.0.2.1/32'], ...near)?.at, 1, 'nor before one that lies far away');
  t.same(guard(['0.0.0.0/0'], ...near)?.at, 1);
  t.same(
    guard(...near.map((addresses, at) => [...addresses, `2001:db8::${at}/128`])),
    { at: 0, lines: ['ip daddr != 10.1.2.0/29 return', 'ip6 daddr != 2001:db8::/126 return'] },
    'each family by itself',
  );
  t.same(guard(...near, ['2001:db8::/32'])?.lines, ['ip daddr != 10.1.2.0/29 return'], 'or one of them');
  const list = [...Array(20).keys()].map((at) => `10.1.2.${2 * at}/32`);
  t.same(guard(list), undefined, 'a list has a set, and its changes are elements');
  t.same(guard(list, ...near)?.at, 1);
  t.same(guard(...near, list), undefined);
});
