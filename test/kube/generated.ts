/** Objects of our kinds as their schemas ask for them, and beside it: what the API server and we are to agree about (crds.ts). */
import fc from 'fast-check';
import { kindScopes, type sluiceKinds } from '../../api/kinds.ts';
import { API_VERSION } from '../../api/names.ts';
import { type Keywords, labelKeyPattern } from '../../api/schema/walk.ts';
import { samples } from '../unit/samples.ts';

type Json = Record<string, unknown>;
export type Manifest = Json & { kind: string; metadata: { name: string; namespace?: string }; spec: Json };

/** Texts for any field: those that fit its pattern, and a few others, are tried. */
const texts = [
  ...['', 'a b', 'ä', 'a\n', '10.0.0.1 - 10.0.0.4', 'x'.repeat(70)],
  ...'x a-b a.b A - a..b a/b a/b/c * in0 pay billing example.com/team UTC Europe/Berlin Europe/Nowhere +01:00'.split(
    ' ',
  ),
  ...'10.0.0.1 10.0.0.7 010.0.0.1 10.0.0.256 127.0.0.1 203.0.113.9 ::1 fd00::7 FD00::7 :: 1:2:3 fe80::1%eth0'.split(
    ' ',
  ),
  ...'2001:db8:0:0::7 2001:db8::7 ::ffff:10.0.0.1 10.1 64:ff9b::192.0.2.1 10.0.0.0/24 10.0.0.1/24 10.0.0.0/33'.split(
    ' ',
  ),
  ...'::/0 fd00::/64 fd00::/129 10.0.0.0/024 /8 10.0.0.1-10.0.0.4 10.0.0.4-10.0.0.1 fd00::1-fd00::4 ::-::9'.split(' '),
  ...'10.0.0.1-fd00::1 443 0 65535 65536 443,80-90 90-80 80-90,85 8,3/4 3/4,3 256 0443 1-2-3 443, , 1/2/3'.split(' '),
  ...'TCP tcp SCTP ICMP ICMPv6 6 58 255 300 00:00 23:59 24:00 7:00 24:01 lists/a.txt ../a /etc a/.b'.split(' '),
  ...'https://a.test/l https://a.test:8443/ http://a.test https://u:p@a.test https:// https://a.test/#x'.split(' '),
  ...'50Mbit 512kbit 100Gbit 101Gbit 0Mbit 1kbit 50mbit 050Mbit 50M'.split(' '),
  ...'api.example.com API.example.com. *.example.com **.example.com *. **.a ***.a a.*.b *a.b 1.2.3 0x7f a.0x7f'.split(
    ' ',
  ),
  ...'a.0xfg a.0- -a.b a-.b a_b.c _a.b 7.a a.7 a.7b a.7-b bücher.example *.bücher.example b\u00fc*.a xn--bcher-kva.example'.split(
    ' ',
  ),
  ...'/ /* /a /a/ /a/b /a/* /a* /a//b /./a /../a /.a /..a /..;x /.;a /a%20b /a%2Fb /a%2fb /%41 /a?b a/b /a;b=c'.split(
    ' ',
  ),
  ...'GET get PROPFIND G-T G,T h2 http/1.1 AAAA aaaa TXT TYPE65 TYPE28 TYPE65536 TYPE012 TYPE0'.split(' '),
  ...'https://127.1/ https://[::1]/x a.test a.test:8443 [fd00::1]:443 127.1 a.test:0 *.a.test a.test.'.split(' '),
];
const junk = [
  null,
  '',
  'x',
  '7',
  0,
  -1,
  1,
  1.5,
  70_000,
  2 ** 31,
  true,
  [],
  {},
  ['a', 'a'],
  [null],
  { a: null },
  { a: 1 },
];

/** Mostly what the schema asks for, sometimes what is beside it. */
function mostly(schema: Keywords): fc.Arbitrary<unknown> {
  const right = fitting(schema);
  return fc.oneof({ weight: 60, arbitrary: right }, { weight: 1, arbitrary: fc.constantFrom<unknown>(...junk) });
}

function fitting(schema: Keywords): fc.Arbitrary<unknown> {
  if (schema.intOrString === true) return fc.oneof(...(schema.anyOf ?? []).map(fitting));
  if (schema.enum !== undefined) {
    const others = schema.enum.flatMap((word) => [word.toLowerCase(), `${word}s`]);
    return fc.oneof(
      { weight: 40, arbitrary: fc.constantFrom(...schema.enum) },
      { weight: 1, arbitrary: fc.constantFrom(...others) },
    );
  }
  switch (schema.type) {
    case 'boolean':
      return fc.boolean();
    case 'integer': {
      const { minimum = 0, maximum = 2 ** 31 } = schema;
      const inside = fc.integer({ min: minimum, max: maximum });
      const edges = fc.constantFrom(minimum, maximum, minimum - 1, maximum + 1);
      return fc.oneof({ weight: 20, arbitrary: inside }, { weight: 3, arbitrary: edges });
    }
    case 'string': {
      const pattern = new RegExp(schema.pattern ?? '');
      const matching = texts.filter((text) => pattern.test(text) && text.length >= (schema.minLength ?? 0));
      const long = 'a'.repeat((schema.maxLength ?? 0) + 1);
      return fc.oneof(
        { weight: 60, arbitrary: fc.constantFrom(...matching) },
        { weight: 1, arbitrary: fc.constantFrom(...texts, long, long.slice(1)) },
      );
    }
    case 'array': {
      const { minItems = 0, maxItems = 0 } = schema;
      const items = mostly(schema.items ?? {});
      const usual = fc.array(items, { minLength: minItems, maxLength: Math.min(maxItems, 3) });
      // One item too many, all different where texts can be.
      const long = Array.from({ length: maxItems + 1 }, (_, i) =>
        schema.items?.type === 'string' ? `10.0.${i >> 8}.${i & 255}` : {},
      );
      return fc.oneof({ weight: 40, arbitrary: usual }, { weight: 1, arbitrary: fc.constantFrom([], long) });
    }
    default: {
      const [values] = Object.values(schema.patternProperties ?? {});
      if (values !== undefined) {
        const keys = texts.filter((text) => new RegExp(labelKeyPattern).test(text));
        const key = fc.oneof(
          { weight: 20, arbitrary: fc.constantFrom(...keys) },
          { weight: 1, arbitrary: fc.constantFrom(...texts) },
        );
        return fc.dictionary(key, mostly(values), { maxKeys: 2 });
      }
      const properties = Object.entries(schema.properties ?? {});
      const fields = properties.map(([name, property]) => {
        const needed = schema.required?.includes(name) === true && property.default === undefined;
        return fc.option(mostly(property), { nil: undefined, freq: needed ? 60 : 2 }).map((value) => [name, value]);
      });
      return fc.tuple(fc.integer({ min: 0, max: 150 }), ...fields).map(([n, ...all]) => ({
        ...Object.fromEntries(all.filter((field) => field[1] !== undefined)),
        ...(n === 0 ? { unknown: 1 } : {}),
      }));
    }
  }
}

/** A wholly generated spec, or a sample's with some of its fields, at the top or one level below, generated. */
export function objectOf(kind: (typeof sluiceKinds)[number]): fc.Arbitrary<Manifest> {
  const sample = samples.find((one) => one.kind === kind.kind) as unknown as { spec: Json };
  const schema = kind.schema as Keywords;
  const metadata = { name: 'tried', ...(kindScopes[kind.kind] === 'namespaced' ? { namespace: 'billing' } : {}) };
  const names = Object.keys(schema.properties ?? {});
  const changed = fc.subarray(names, { minLength: 1, maxLength: 2 }).chain((chosen) =>
    fc
      .tuple(...chosen.map((name) => fc.option(mostly(schema.properties?.[name] ?? {}), { nil: undefined, freq: 5 })))
      .map((values) => {
        const spec = structuredClone(sample.spec);
        for (const [i, name] of chosen.entries()) {
          if (values[i] === undefined) delete spec[name];
          else spec[name] = values[i];
        }
        return spec;
      }),
  );
  return fc
    .oneof({ weight: 3, arbitrary: changed }, { weight: 1, arbitrary: mostly(schema) })
    .map(
      (spec) => JSON.parse(JSON.stringify({ apiVersion: API_VERSION, kind: kind.kind, metadata, spec })) as Manifest,
    );
}
