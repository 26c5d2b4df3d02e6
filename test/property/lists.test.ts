/**
 * Properties of what reads lists from elsewhere: a list that was written by the rules is read as what it says, whatever
 * its comments and line ends; bad content gives an error that is short and tells nothing of it; and nothing that a
 * stranger can write makes a reader throw, or makes a URL mean two hosts.
 */
import fc from 'fast-check';
import t from 'tap';
import { addressBits, formatAddress, formatRange, parseRange } from '../../api/address.ts';
import { LIST_MAX_ENTRIES, parseList } from '../../api/address-list.ts';
import { formatAuthority, parseAuthority, parseListUrl } from '../../api/list-url.ts';
import type { Family } from '../../api/plan.ts';
import { must } from '../../api/result.ts';

const quiet = { quote: false };
const entry = fc
  .constantFrom<Family>(4, 6)
  .chain((family) => {
    // Nothing that is IPv4 mapped into IPv6.
    const low = family === 6 ? 0x2000n << 112n : 0n;
    return fc.tuple(
      fc.constant(family),
      fc.bigInt(low, (1n << BigInt(addressBits(family))) - 300n),
      fc.bigInt(0n, 255n),
      fc.boolean(),
    );
  })
  .map(([family, first, more, single]) => {
    const text = formatAddress({ family, value: first });
    return single ? text : `${text}-${formatAddress({ family, value: first + more })}`;
  });
const canonical = (entries: readonly string[]) =>
  [...new Set(entries.map((text) => formatRange(must(parseRange(text)))))].sort();
const space = fc.constantFrom('', ' ', '\t', '  ');
const line = fc.oneof(
  fc
    .tuple(space, entry, space, fc.constantFrom('', '#', '# 192.0.2.1', '#é'))
    .map(([a, e, b, c]) => ({ e, text: a + e + b + c })),
  fc.constantFrom('', '#', '  # a comment', '\t').map((text) => ({ e: undefined, text })),
);

t.test('what was written is read', async (t) => {
  fc.assert(
    fc.property(fc.array(line, { minLength: 1, maxLength: 40 }), fc.constantFrom('\n', '\r\n'), (lines, end) => {
      const text = `# list${end}${lines.map((one) => one.text).join(end)}`;
      const entries = lines.flatMap(({ e }) => e ?? []);
      t.same(parseList(text, 'Text', quiet), { ok: true, value: canonical(entries) });
    }),
  );
  fc.assert(
    fc.property(fc.array(entry, { maxLength: 40 }), fc.boolean(), fc.jsonValue(), (entries, wrapped, other) => {
      const text = JSON.stringify(wrapped ? { name: other, addresses: entries } : entries);
      t.same(parseList(text, 'JSON', quiet), { ok: true, value: canonical(entries) });
    }),
  );
});

t.test('anything at all: a list or a short error, which tells nothing of it', async (t) => {
  const secret = 'Zq9';
  const bad = fc.oneof(
    fc.string(),
    fc.json(),
    fc.string({ unit: 'binary' }),
    line.map((one) => one.text),
  );
  fc.assert(
    fc.property(
      fc.array(bad, { maxLength: 20 }),
      fc.constantFrom('Text' as const, 'JSON' as const),
      (parts, format) => {
        const text = parts.map((part) => `${part}${secret}`).join('\n');
        const parsed = parseList(text, format, quiet);
        if (parsed.ok) t.ok(parsed.value.every((range) => formatRange(must(parseRange(range))) === range));
        else {
          t.ok(parsed.error.length < 400, parsed.error);
          t.notOk(parsed.error.includes(secret), parsed.error);
          t.ok(parseList(text, format, { quote: true }).ok === false, 'quoted or not, it is the same list');
        }
      },
    ),
    { numRuns: 500 },
  );
  fc.assert(fc.property(fc.string({ unit: 'binary' }), (text) => parseList(text, 'JSON', quiet).ok !== undefined));
});

t.test('one bad entry spoils the list, and is named', async (t) => {
  const spoiler = fc.constantFrom(
    'x',
    '192.0.2.1/24',
    '192.0.2.256',
    '::ffff:192.0.2.1',
    'a.example',
    '192.0.2.1 192.0.2.2',
  );
  fc.assert(
    fc.property(
      fc.array(entry, { maxLength: 20 }),
      spoiler,
      fc.array(entry, { maxLength: 20 }),
      (before, wrong, after) => {
        const all = [...before, wrong, ...after];
        const inText = parseList(all.join('\n'), 'Text', quiet);
        t.ok(!inText.ok && inText.error.startsWith(`line ${before.length + 1}: expected `));
        const inJson = parseList(JSON.stringify(all), 'JSON', quiet);
        t.ok(!inJson.ok && inJson.error.startsWith(`[${before.length}]: expected `));
      },
    ),
  );
});

t.test('bounds and shapes', async (t) => {
  const many = Array.from({ length: LIST_MAX_ENTRIES + 1 }, (_, i) => `10.${i >> 16}.${(i >> 8) & 255}.${i & 255}`);
  const rows: [string, string, 'Text' | 'JSON', RegExp | number][] = [
    ['as many entries as may be', many.slice(1).join('\n'), 'Text', LIST_MAX_ENTRIES],
    ['one more', many.join('\n'), 'Text', /^line 50001: expected at most 50000 entries, got one more$/],
    ['as many in JSON', JSON.stringify(many.slice(1)), 'JSON', LIST_MAX_ENTRIES],
    [
      'one more in JSON',
      JSON.stringify({ addresses: many }),
      'JSON',
      /^addresses: expected at most 50000 entries, got 50001/,
    ],
    ['comments are no entries', '#\n'.repeat(200_000), 'Text', 0],
    ['a line without end', 'x'.repeat(1_000_000), 'Text', /^line 1: expected at most 4096 characters, got 1000000/],
    ['an empty list in JSON', '[]', 'JSON', 0],
    ['nothing', '', 'Text', /^expected a list .* got nothing$/],
    ['blanks', ' \r\n\t', 'JSON', /^expected a list .* got nothing$/],
    ['JSON read as text', '["192.0.2.1"]', 'Text', /^line 1: expected an address/],
    ['text read as JSON', '192.0.2.1\n192.0.2.2', 'JSON', /^(line 1: )?expected JSON, got text that is none$/],
    ['an object without addresses', '{"cidrs": ["192.0.2.1"]}', 'JSON', /^addresses: expected an array, got nothing$/],
    ['from a prototype', '{"__proto__": {"addresses": ["192.0.2.1"]}}', 'JSON', /^addresses: expected an array/],
    ['a text', '"192.0.2.1"', 'JSON', /^expected an array, or an object with addresses/],
    ['null', 'null', 'JSON', /^expected an array, or an object with addresses, got null$/],
    ['a number in it', '[1]', 'JSON', /^\[0\]: expected text, got a number$/],
    ['a nest', `${'['.repeat(100_000)}${']'.repeat(100_000)}`, 'JSON', /expected/],
    ['many errors', 'x\n'.repeat(10), 'Text', /; and 7 more$/],
  ];
  for (const [title, text, format, wanted] of rows) {
    const parsed = parseList(text, format, quiet);
    if (typeof wanted === 'number') t.equal(parsed.ok ? parsed.value.length : parsed.error, wanted, title);
    else t.match(parsed.ok ? parsed.value : parsed.error, wanted, title);
  }
});

t.test('a URL has one host, and every reader sees the same', async (t) => {
  const piece = fc.constantFrom(
    'https://',
    'http://',
    '@',
    ':',
    '/',
    '\\',
    '?',
    '#',
    '[',
    ']',
    '.',
    '%2e',
    '0x7f',
    '1',
    '127.0.0.1',
    '::1',
    'a.test',
    'A.TEST',
    ':443',
    ':8443',
    '\t',
    ' ',
    'é',
    '..',
    '-',
  );
  const anything = fc.oneof(
    fc.array(piece, { maxLength: 8 }).map((parts) => `https://${parts.join('')}`),
    fc.array(piece, { maxLength: 8 }).map((parts) => parts.join('')),
    fc.webUrl(),
    fc.string(),
  );
  let read = 0;
  fc.assert(
    fc.property(anything, (text) => {
      const parsed = parseListUrl(text);
      if (!parsed.ok) return;
      read++;
      const { href, host, port } = parsed.value;
      const url = new URL(text);
      t.equal(url.href, href, text);
      t.equal(url.protocol, 'https:');
      t.equal(`${url.username}${url.password}${url.hash}`, '');
      t.equal(url.hostname.replace(/^\[|\]$/g, ''), host, text);
      t.equal(url.port === '' ? 443 : Number(url.port), port, text);
      t.same(parseListUrl(href), parsed, 'read again: the same');
      t.same(parseAuthority(formatAuthority(host, port)), { ok: true, value: { host, port } });
    }),
    { numRuns: 3000 },
  );
  t.ok(read > 50, `${read} of them are URLs`);
});
