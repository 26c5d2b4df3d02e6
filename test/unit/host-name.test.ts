/** Names of hosts and patterns of them: each row is what a person or a packet wrote, and what it means. */
import fc from 'fast-check';
import t from 'tap';
import { formatNamePattern, NameSet, parseHostName, parseNamePattern } from '../../api/host-name.ts';
import { must } from '../../api/result.ts';

const nameOf = (text: string): string | undefined => {
  const name = parseHostName(text);
  return name.ok ? name.value : undefined;
};
const setOf = (...patterns: string[]): NameSet => new NameSet(patterns.map((text) => must(parseNamePattern(text))));

t.test('one form of each name', async (t) => {
  const rows: [string, string, string | undefined][] = [
    ['as it is', 'api.example.com', 'api.example.com'],
    ['in capitals', 'API.Example.COM', 'api.example.com'],
    ['with the dot of the root', 'api.example.com.', 'api.example.com'],
    ['with two of them', 'api.example.com..', undefined],
    ['of one label', 'localhost', 'localhost'],
    ['with an underscore', '_sip._tcp.example.com', '_sip._tcp.example.com'],
    ['in another script', 'Bücher.example', 'xn--bcher-kva.example'],
    ['whose sharp s is kept (IDNA 2008)', 'faß.de', 'xn--fa-hia.de'],
    ['with full-width letters and an ideographic dot', 'ＡＰＩ。example.com', 'api.example.com'],
    ['as an A-label', 'xn--bcher-kva.example', 'xn--bcher-kva.example'],
    ['of an empty text', '', undefined],
    ['of a dot', '.', undefined],
    ['with an empty label', 'api..example.com', undefined],
    ['that begins with a dot', '.example.com', undefined],
    ['with a space', 'api example.com', undefined],
    ['with a NUL', 'api.example.com\0.evil.test', undefined],
    ['with a newline', 'api.example.com\n', undefined],
    ['with a wildcard within', 'a*.example.com', undefined],
    ['with a port', 'example.com:443', undefined],
    ['with a user', 'user@example.com', undefined],
    ['with percent coding', 'ex%61mple.com', undefined],
    ['with percent coding beside another script', 'b%C3%BCcher.exämple', undefined],
    ['whose label begins with a hyphen', '-a.example.com', undefined],
    ['whose label ends with one', 'a-.example.com', undefined],
    ['whose label has 63 octets', `${'a'.repeat(63)}.com`, `${'a'.repeat(63)}.com`],
    ['whose label has 64', `${'a'.repeat(64)}.com`, undefined],
    ['that is an IPv4 address', '192.0.2.1', undefined],
    ['that a URL reads as one', '0x7f.1', undefined],
    ['that is one number', '3232235777', undefined],
    ['that ends in a hexadecimal number', 'example.0x', undefined],
    ['that is an IPv6 address', '2001:db8::1', undefined],
    ['that is one in brackets', '[2001:db8::1]', undefined],
    ['that ends in digits of another script', 'example.１', undefined],
    ['of soft hyphens alone', '\u00ad.com', undefined],
    ['of 253 octets', `${`${'a'.repeat(49)}.`.repeat(5)}abc`, `${`${'a'.repeat(49)}.`.repeat(5)}abc`],
    ['of 254 octets', `${`${'a'.repeat(49)}.`.repeat(5)}abcd`, undefined],
    ['of more octets as A-labels than letters', `${'ü'.repeat(62)}.`.repeat(4).slice(0, 250), undefined],
  ];
  for (const [what, text, name] of rows) t.equal(nameOf(text), name, `a name ${what}`);
});

t.test('patterns', async (t) => {
  const rows: [string, string, boolean][] = [
    ['example.com', 'example.com', true],
    ['example.com', 'www.example.com', false],
    ['*.example.com', 'www.example.com', true],
    ['*.example.com', 'example.com', false],
    ['*.example.com', 'a.b.example.com', false],
    ['*.example.com', 'badexample.com', false],
    ['**.example.com', 'www.example.com', true],
    ['**.example.com', 'a.b.c.example.com', true],
    ['**.example.com', 'example.com', false],
    ['**.example.com', 'badexample.com', false],
    ['*.Bücher.example.', 'www.xn--bcher-kva.example', true],
    ['*.com', 'example.com', true],
    ['**.com', 'com', false],
  ];
  for (const [pattern, name, has] of rows) t.equal(setOf(pattern).has(name), has, `${pattern} and ${name}`);
  t.equal(setOf('a.test', '*.b.test', '**.c.test').has('x.y.c.test'), true, 'any of several');
  t.equal(setOf().has('a.test'), false, 'none');
  for (const bad of ['*', '**', '*.', '**.', '***.a.test', '*.*.a.test', 'a.*.test', '*a.test', '*.192.0.2.1']) {
    t.equal(parseNamePattern(bad).ok, false, bad);
  }
  t.equal(formatNamePattern(must(parseNamePattern('**.A.test.'))), '**.a.test');
});

t.test('any text: never a throw, and what is canonical stays', async (t) => {
  const label = fc.stringMatching(/^[a-z0-9_][a-z0-9_-]{0,8}[a-z0-9_]$/);
  const anything = fc.oneof(
    fc.string({ unit: 'binary' }),
    fc.array(label, { minLength: 1 }).map((l) => l.join('.')),
  );
  fc.assert(
    fc.property(anything, (text) => {
      const name = nameOf(text);
      if (name === undefined) return true;
      return nameOf(name) === name && nameOf(`${name.toUpperCase()}.`) === name && /^[a-z0-9._-]+$/.test(name);
    }),
    { numRuns: 2_000 },
  );
  t.pass();
});

t.test('a set has what its patterns say one by one', async (t) => {
  const label = fc.constantFrom('a', 'b', 'c');
  const name = fc.array(label, { minLength: 1, maxLength: 4 }).map((labels) => labels.join('.'));
  const kind = fc.constantFrom('', '*.', '**.');
  fc.assert(
    fc.property(fc.array(fc.tuple(kind, name), { maxLength: 4 }), name, (patterns, asked) => {
      const matches = patterns.some(([prefix, base]) => {
        if (prefix === '') return asked === base;
        if (!asked.endsWith(`.${base}`)) return false;
        return prefix === '**.' || !asked.slice(0, -base.length - 1).includes('.');
      });
      return setOf(...patterns.map(([prefix, base]) => prefix + base)).has(asked) === matches;
    }),
    { numRuns: 1_000 },
  );
  t.pass();
});
