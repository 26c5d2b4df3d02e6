/**
 * Parts of external services against the sentences that define them: every destination lies in the part that matches
 * unread, in one that is open, or in none; boxes and tests of services take the parts as they are.
 */
import fc from 'fast-check';
import t from 'tap';
import { parseAddress } from '../../api/address.ts';
import type { PortCheck, PortEntry, ServiceEntry } from '../../api/plan.ts';
import { must } from '../../api/result.ts';
import { boxesOf } from '../../policy/boxes.ts';
import { compileService, type Destination } from '../../policy/destination.ts';
import { openParts, unreadPart } from '../../policy/parts.ts';

const https: PortCheck = { protocol: 6, ports: [[443, 443]], application: 'TLS', implied: true };
const everywhere = ['0.0.0.0/0', '::/0'];

t.test('parts drawn by hand', async (t) => {
  const plain: ServiceEntry = { addresses: ['10.0.0.1/32'], ports: [{ protocol: 6, ports: [[1, 9]] }] };
  t.equal(unreadPart(plain), plain, 'without names and checks a service is as it was');
  t.same(openParts(plain), []);
  t.equal(unreadPart({ ...plain, addresses: [] }), undefined);

  const checked: ServiceEntry = { ...plain, checks: [{ ...https, ports: [[3, 4]] }] };
  t.same(unreadPart(checked), {
    addresses: plain.addresses,
    ports: [
      {
        protocol: 6,
        ports: [
          [1, 2],
          [5, 9],
        ],
      },
    ],
  });
  t.same(openParts(checked), [
    { boxes: { addresses: plain.addresses, ports: [{ protocol: 6, ports: [[3, 4]] }] }, first: false },
  ]);

  const named: ServiceEntry = {
    addresses: [],
    names: ['a.test'],
    ports: [{ protocol: 6, ports: [[443, 444]] }],
    checks: [https],
  };
  t.equal(unreadPart(named), undefined);
  t.same(openParts(named), [
    { boxes: { addresses: everywhere, ports: [{ protocol: 6, ports: [[443, 443]] }] }, first: false },
    { boxes: { addresses: everywhere, ports: [{ protocol: 6, ports: [[444, 444]] }] }, first: true },
  ]);

  const whole = unreadPart({ addresses: ['10.0.0.1/32'], ports: null, checks: [https] });
  t.equal(whole?.ports?.length, 256, 'every other protocol is still whole');
  t.same(whole?.ports?.[6], {
    protocol: 6,
    ports: [
      [0, 442],
      [444, 65_535],
    ],
  });
  t.same(whole?.ports?.[1], { protocol: 1, ports: null });
  t.equal(unreadPart({ ...plain, checks: [{ ...https, ports: [[1, 9]] }] }), undefined, 'nothing is left');
  t.equal(
    unreadPart({ ...plain, ports: [{ protocol: 6, ports: null }], checks: [{ ...https, ports: null }] }),
    undefined,
  );
});

const LAST = 20;
const range = fc
  .tuple(fc.integer({ min: 0, max: LAST }), fc.integer({ min: 0, max: 6 }))
  .map(([first, more]): [number, number] => [first, first + more]);
const checkable = fc.constantFrom(6, 17);
const portEntry: fc.Arbitrary<PortEntry> = fc.record({
  protocol: fc.constantFrom(1, 6, 6, 6, 17, 47, 132),
  ports: fc.option(fc.array(range, { minLength: 1, maxLength: 3 })),
});
/** Checks are parts of ports (plan.ts): those that are drawn are cut down to them. */
const service: fc.Arbitrary<ServiceEntry> = fc
  .record({
    addresses: fc.subarray(['10.0.0.1/32', '10.0.0.2-10.0.0.3', '2001:db8::/127']),
    names: fc.constantFrom(undefined, ['a.test'], ['*.a.test', 'b.test']),
    ports: fc.option(fc.array(portEntry, { minLength: 1, maxLength: 4 })),
    checks: fc.array(
      fc.record({ protocol: checkable, ports: fc.option(fc.array(range, { minLength: 1, maxLength: 2 })) }),
      { maxLength: 3 },
    ),
  })
  .map(({ addresses, names, ports, checks }) => {
    const within = checks.flatMap(({ protocol, ports: wanted }): PortCheck[] => {
      const covers = (port: number): boolean =>
        ports === null || ports.some((entry) => entry.protocol === protocol && has(entry.ports, port));
      const whole = ports === null || ports.some((entry) => entry.protocol === protocol && entry.ports === null);
      if (wanted === null && whole) return [{ protocol, ports: null, application: 'TLS' }];
      const list = Array.from({ length: 2 * LAST }, (_, port) => port).filter(
        (port) => has(wanted, port) && covers(port),
      );
      return list.length === 0 ? [] : [{ protocol, ports: list.map((port) => [port, port]), application: 'TLS' }];
    });
    return { addresses, ...(names && { names: [...names] }), ports, ...(within.length > 0 && { checks: within }) };
  });
const has = (ports: PortEntry['ports'], port: number): boolean =>
  ports === null || ports.some(([first, last]) => first <= port && port <= last);

const destination: fc.Arbitrary<Destination> = fc
  .tuple(
    fc.constantFrom('10.0.0.1', '10.0.0.2', '10.0.0.9', '2001:db8::1', '2001:db8::9'),
    fc.constantFrom(1, 6, 6, 17, 47, 132, 255),
    fc.integer({ min: 0, max: LAST + 8 }),
  )
  .map(([address, protocol, port]) => ({
    address: must(parseAddress(address)),
    protocol,
    ...([6, 17, 132].includes(protocol) && { port }),
  }));

/** The sentences: ports, then checks, then addresses and names. */
function naive(
  { addresses, names, ports, checks = [] }: ServiceEntry,
  { address, protocol, port = -1 }: Destination,
): string {
  const lies = (entry: PortEntry): boolean => entry.protocol === protocol && (port < 0 || has(entry.ports, port));
  const inPorts =
    ports === null ||
    ports.some(
      (entry) =>
        entry.protocol === protocol &&
        (entry.ports === null || ![6, 17, 132, 1].includes(protocol) || (port >= 0 && has(entry.ports, port))),
    );
  if (!inPorts) return 'no';
  const here = compileService({ addresses, ports: null })({ address, protocol: 6 }) === 'match';
  if (checks.some(lies)) return here || names !== undefined ? 'bytes' : 'no';
  return here ? 'match' : names === undefined ? 'no' : 'name';
}

function inBoxes(entry: ServiceEntry, { address, protocol, port }: Destination): boolean {
  const boxes = boxesOf([entry], address.family);
  const inside = ({ range }: { range: { first: bigint; last: bigint } }): boolean =>
    range.first <= address.value && address.value <= range.last;
  return (
    boxes.addresses.some((range) => inside({ range })) ||
    boxes.protocols.some((box) => inside(box) && box.protocol === protocol) ||
    boxes.ports.some(
      (box) => inside(box) && box.protocol === protocol && port !== undefined && box.first <= port && port <= box.last,
    )
  );
}

t.test('each destination lies in one part, or in none', async (t) => {
  const reached = new Map<string, number>();
  fc.assert(
    fc.property(service, fc.array(destination, { minLength: 10, maxLength: 20 }), (entry, destinations) => {
      const unread = unreadPart(entry);
      const open = openParts(entry);
      for (const one of destinations) {
        const lies = (part: ServiceEntry): boolean => {
          const found = compileService(part)(one) === 'match';
          if (found !== inBoxes(part, one)) throw new Error(`boxes of ${JSON.stringify(part)}`);
          return found;
        };
        const bytes = open.filter(({ first }) => !first).some(({ boxes }) => lies(boxes));
        const name = open.filter(({ first }) => first).some(({ boxes }) => lies(boxes));
        if (bytes && name) throw new Error('open in two ways');
        const match = unread !== undefined && lies(unread);
        if (match && bytes) throw new Error('matched, and open');
        const said = match ? 'match' : bytes ? 'bytes' : name ? 'name' : 'no';
        const expected = naive(entry, one);
        if (said !== expected) throw new Error(`${said}, not ${expected}`);
        const kind = `${said} ${entry.ports === null} ${entry.checks !== undefined}`;
        reached.set(kind, (reached.get(kind) ?? 0) + 1);
      }
    }),
    { numRuns: 2000 },
  );
  t.equal(reached.size, 2 * 7, [...reached.keys()].sort().join(', '));
});
