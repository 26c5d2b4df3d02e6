/**
 * The CRDs' patterns and our own reading: what we take, the API server takes; and of what a pattern can say in full
 * (IPv4, single ports, single types and codes of ICMP, names in ASCII, types of DNS, paths) it refuses what we refuse. JavaScript reads the patterns as RE2
 * does: they use nothing in which the two differ. On a real API server: test/kube/crds.ts.
 */

import fc from 'fast-check';
import t from 'tap';
import { formatAddress, formatPrefix, formatRange, parseAddress, parsePrefix, parseRange } from '../../api/address.ts';
import { crdOf } from '../../api/crd.ts';
import { parseDnsType } from '../../api/dns-type.ts';
import { parseNamePattern } from '../../api/host-name.ts';
import { type ExternalService, parseObject, sluiceKinds } from '../../api/kinds.ts';
import { parseAuthority, parseListUrl } from '../../api/list-url.ts';
import { parseIcmpTypes, parsePorts } from '../../api/ports.ts';
import type { Result } from '../../api/result.ts';
import { addressText, nameText, placeText, prefixText, rangeText } from '../../api/schema/common.ts';
import { servicePort } from '../../api/schema/service-port.ts';
import { pathOf } from '../../wire/http1-target.ts';
import { objectOf } from '../kube/generated.ts';

const patternOf = (schema: object): RegExp => new RegExp((schema as { pattern: string }).pattern);
const address = patternOf(addressText());
const prefix = patternOf(prefixText());
const range = patternOf(rangeText());

/** The patterns in the CEL rules of a kind whose rule speaks of a field. */
function celPatterns(kind: string, field: string): RegExp[] {
  const info = sluiceKinds.find((one) => one.kind === kind);
  if (info === undefined) throw new Error(kind);
  const rules = [...JSON.stringify(crdOf(info)).matchAll(/"rule":("(?:[^"\\]|\\.)*")/g)].map(
    (match) => JSON.parse(match[1] ?? '""') as string,
  );
  const rule = rules.find((one) => one.includes(`${field}.matches(`));
  return [...(rule ?? '').matchAll(/'(\^[^']*\$)'/g)].map((match) => new RegExp(match[1] ?? ''));
}

/** Rules of a port without patterns, as JavaScript: they use nothing that CEL writes otherwise but `has`, `in` and `string`. */
function celRules(port: Record<string, unknown>): boolean {
  const rules = (servicePort as unknown as { cel: { rule: string }[] }).cel.filter(
    ({ rule }) => !rule.includes('matches'),
  );
  return rules.every(({ rule }) => {
    const script = rule
      .replaceAll(
        /has\(self\.([a-zA-Z.]+)\)/g,
        (_, path: string) => `(self?.${path.replaceAll('.', '?.')} !== undefined)`,
      )
      .replaceAll(/(string\(self\.protocol\)|self\.appProtocol) in (\[[^\]]*\])/g, '$2.includes($1)')
      .replaceAll('string(', 'String(');
    return new Function('self', `return ${script}`)(port) as boolean;
  });
}

const octet = fc.oneof(fc.nat(299).map(String), fc.constantFrom('', '00', '01', '255', '256', '1e1', '-1'));
const fourOctets = fc.array(octet, { minLength: 3, maxLength: 5 }).map((list) => list.join('.'));
const v4 = fc.nat(0xffffffff).map((value) => formatAddress({ family: 4, value: BigInt(value) }));
const v6 = fc.oneof(
  fc.bigInt(0n, (1n << 128n) - 1n).map((value) => formatAddress({ family: 6, value })),
  fc.ipV6().filter((text) => parseAddress(text).ok),
  fc.constantFrom('::', '::1', 'FD00::A', '64:ff9b::192.0.2.1', '1:2:3:4:5:6:7:8', '::2:3:4:5:6:7:8'),
);
const anyAddress = fc.oneof(v4, v6);
const length = fc.oneof(fc.nat(140).map(String), fc.constantFrom('', '00', '08', '032', '/', '-1'));

t.test('addresses, prefixes and ranges', async (t) => {
  const taken = { address: 0, prefix: 0, range: 0 };
  const check = (
    what: keyof typeof taken,
    pattern: RegExp,
    text: string,
    read: Result<unknown>,
    exact: boolean,
  ): void => {
    if (read.ok) taken[what]++;
    if (read.ok && !pattern.test(text)) throw new Error(`${what}: the pattern refuses ${text}`);
    if (exact && !read.ok && pattern.test(text)) throw new Error(`${what}: the pattern takes ${text}`);
  };
  fc.assert(
    fc.property(fc.oneof(anyAddress, fourOctets), anyAddress, length, (a, b, bits) => {
      const isV4 = !a.includes(':');
      check('address', address, a, parseAddress(a), isV4);
      check('range', range, a, parseRange(a), isV4);
      const cidr = `${a}/${bits}`;
      const read = parsePrefix(cidr);
      const hostBits = !read.ok && read.error.includes('bits after the prefix length');
      check('prefix', prefix, cidr, read, isV4 && !hostBits);
      check('range', range, cidr, parseRange(cidr), isV4 && !hostBits);
      const whole = parseAddress(a);
      if (whole.ok)
        check(
          'prefix',
          prefix,
          formatPrefix({ ...whole.value, length: isV4 ? 32 : 128 }),
          { ok: true, value: 0 },
          false,
        );
      const both = `${a}-${b}`;
      const ends = parseRange(both);
      check('range', range, both, ends, isV4 && !(!ends.ok && ends.error.includes('ends before it begins')));
      if (ends.ok) check('range', range, formatRange(ends.value), ends, false);
    }),
    { numRuns: 3000 },
  );
  for (const [what, count] of Object.entries(taken)) t.ok(count > 200, `${what}: ${count} taken`);
});

t.test('names', async (t) => {
  const [name, place] = [patternOf(nameText()), patternOf(placeText())];
  const piece = fc.constantFrom(...'a A 0 7 x X f g - _ 0x 0xg 7a 07 7- -7 com ü .'.split(' '), '');
  const label = fc.array(piece, { minLength: 1, maxLength: 4 }).map((list) => list.join(''));
  const text = fc
    .tuple(fc.constantFrom('', '', '*.', '**.', '*', '***.'), fc.array(label, { minLength: 1, maxLength: 3 }))
    .map(([before, labels]) => before + labels.join('.'));
  let taken = 0;
  fc.assert(
    fc.property(text, (one) => {
      const { ok } = parseNamePattern(one);
      if (ok) taken++;
      if (ok && !(name.test(one) && place.test(one))) throw new Error(`the pattern refuses ${one}`);
      if (!ok && name.test(one) && /^[!-~]*$/.test(one)) throw new Error(`the pattern takes ${one}`);
      // No text is both: what a service's addresses hold is told apart by reading them (policy/external-service.ts).
      if (ok && (parseRange(one).ok || range.test(one))) throw new Error(`${one} is an address, too`);
    }),
    { numRuns: 5000 },
  );
  t.ok(taken > 500, `${taken} taken`);
  for (const one of ['198.51.100.0/24', '2001:db8::1-2001:db8::9', '**.a.test.']) t.ok(place.test(one), one);
  for (const one of ['127.1', '1.2.3.4.5', 'a.test:443', '*']) t.notOk(place.test(one), one);
});

t.test('paths are those that a request may have in its normal form, and types of DNS', async (t) => {
  const { http, dns } = servicePort.properties;
  const path = patternOf(http.properties.paths.items);
  const piece = fc.constantFrom(
    ...'/ / / . .. ; * a B ~ - %20 %2F %2f %2E %41 %25 %5C %3B %00 %zz % \\ ? ä'.split(' '),
  );
  const text = fc.array(piece, { maxLength: 7 }).map((list) => `/${list.join('')}`);
  let taken = 0;
  fc.assert(
    fc.property(text, (one) => {
      if (!path.test(one)) return;
      taken++;
      const { normal, ambiguous } = pathOf(one.endsWith('/*') ? one.slice(0, -1) : one);
      if (ambiguous.length > 0 || (one.endsWith('/*') ? `${normal}*` : normal) !== one)
        throw new Error(`${one} is taken, and no request has it`);
    }),
    { numRuns: 20_000 },
  );
  t.ok(taken > 500, `${taken} taken`);
  const type = patternOf(dns.properties.types.items);
  const types = fc.constantFrom(...'A AAAA ANY TYPE TYPE0 TYPE01 TYPE65535 TYPE65536 TYPE99999 a B HTTPS'.split(' '));
  fc.assert(fc.property(types, (one) => parseDnsType(one).ok === type.test(one)));
});

t.test('what ports ask of bytes: the rules of CEL say what we say', async (t) => {
  const info = sluiceKinds.find((one) => one.kind === 'ExternalService');
  if (info === undefined) throw new Error('no ExternalService');
  const seen = { right: 0, wrong: 0 };
  const part = <T>(value: T) => fc.option(fc.constant(value), { nil: undefined, freq: 2 });
  const port = fc.record({
    name: fc.constant('a'),
    protocol: fc.constantFrom('TCP', 'UDP', 'SCTP', 'ICMP', 6, 17, '6', '17', 47),
    appProtocol: fc.option(fc.constantFrom('TLS', 'HTTP', 'QUIC', 'DNS', 'SSH', 'RDP'), { nil: undefined, freq: 8 }),
    tls: part({ alpn: ['h2'] }),
    http: part({ methods: ['GET'] }),
    dns: fc.constantFrom(undefined, undefined, { types: ['A'] }, { maxQuestionsPerSecond: 1 }),
    conformance: fc.constantFrom(undefined, undefined, 'Enforce', 'Audit', 'Off'),
  });
  fc.assert(
    fc.property(port, (one) => {
      const spec = JSON.parse(JSON.stringify({ addresses: ['a.test'], ports: [one] })) as ExternalService['spec'];
      const metadata = { name: 'a', namespace: 'b' };
      const { ok } = parseObject({ apiVersion: 'sluice.dev/v1alpha1', kind: 'ExternalService', metadata, spec });
      seen[ok ? 'right' : 'wrong']++;
      const cel = celRules(spec.ports?.[0] as Record<string, unknown>);
      if (ok !== cel) throw new Error(`${JSON.stringify(one)}: we say ${ok}, the rules ${cel}`);
    }),
    { numRuns: 20_000 },
  );
  t.ok(seen.right > 1000 && seen.wrong > 1000, JSON.stringify(seen));
});

t.test('ports, and types and codes of ICMP', async (t) => {
  const [icmp, ports] = celPatterns('ExternalService', 'self.port');
  if (icmp === undefined || ports === undefined) throw new Error('no rule of ExternalService reads the ports');
  const number = fc.oneof(fc.nat(300), fc.nat(70_000)).map(String);
  const strange = fc.constantFrom('', '0', '00', '08', '65535', '65536', '255', '256', ' 1', 'x', '-1');
  const one = fc.oneof({ weight: 5, arbitrary: number }, { weight: 1, arbitrary: strange });
  fc.assert(
    fc.property(fc.array(one, { minLength: 1, maxLength: 4 }), fc.constantFrom(',', '-', '/'), (numbers, between) => {
      const text = numbers.join(between);
      for (const [pattern, read] of [
        [ports, parsePorts(text)],
        [icmp, parseIcmpTypes(text)],
      ] as const) {
        if (read.ok && !pattern.test(text)) throw new Error(`the rule refuses ${text}`);
        // Order and overlaps are ours alone.
        const single = numbers.length === 1 || between === '/';
        if (!read.ok && single && pattern.test(text)) throw new Error(`the rule takes ${text}`);
      }
    }),
    { numRuns: 3000 },
  );
  t.ok(ports.test('443,8000-8100') && icmp.test('8,3/4') && !ports.test('8/0') && !icmp.test('3-4'));
});

t.test('hosts and URLs', async (t) => {
  const [url] = celPatterns('ExternalService', 'self.url');
  const [host] = celPatterns('GatewayPool', 'self');
  if (url === undefined || host === undefined) throw new Error('no rule reads URLs or hosts');
  const part = fc.constantFrom(
    'a',
    'lists',
    'A-b',
    'a_b',
    '7',
    'xn--4gbrim',
    '-a',
    'a-',
    '',
    'a b',
    'ä',
    '%2e',
    '@',
    'u:p@a',
  );
  const name = fc.oneof(
    fc.array(part, { minLength: 1, maxLength: 3 }).map((list) => list.join('.')),
    v4,
    v6.map((text) => `[${text}]`),
  );
  const port = fc.constantFrom('', ':443', ':65535', ':65536', ':0', ':0443', ':', ':x');
  const path = fc.constantFrom('', '/', '/a/b.txt?x=@&y=~', '?q', '/#f', '/a b', '/ä', 'x');
  let taken = 0;
  fc.assert(
    fc.property(name, port, path, (a, b, c) => {
      const authority = `${a}${b}`;
      if (parseAuthority(authority).ok && !host.test(authority)) throw new Error(`the rule refuses ${authority}`);
      const text = `https://${authority}${c}`;
      if (!parseListUrl(text).ok) return;
      taken++;
      if (!url.test(text)) throw new Error(`the rule refuses ${text}`);
    }),
    { numRuns: 3000 },
  );
  t.ok(taken > 200, `${taken} taken`);
  for (const bad of ['http://a.test/', 'https:///a', 'https://u:p@a.test/', 'https://a.test./', 'https://a.test:0/'])
    t.notOk(url.test(bad), bad);
  for (const bad of ['a.test.', 'a.test:99999', '*.a.test', 'https://a.test', '[a]', '']) t.notOk(host.test(bad), bad);
});

t.test('test/kube/crds.ts, which runs by hand, can make objects of every kind, and most are right', async (t) => {
  for (const kind of sluiceKinds) {
    const objects = fc.sample(objectOf(kind), { numRuns: 200, seed: 1 });
    const right = objects.filter((one) => parseObject(one).ok).length;
    t.ok(right > 20 && right < 200, `${kind.kind}: ${right} of 200 are right`);
  }
});
