/**
 * `sluice explain` of flows that names and application checks decide: what its flags say of a flow's first bytes, over
 * the examples.
 */
import t from 'tap';
import { saidOf } from '../../cli/said.ts';
import { parseNamedTarget, parseTarget } from '../../cli/target.ts';
import { examplesFolder, sluice } from '../sluice.ts';

const explain = (from: string, ...args: string[]) =>
  sluice('explain', '--source', `directory:${examplesFolder}`, '--from', from, ...args);
const grafana = 'monitoring/grafana-1';
const https = ['--to', '198.51.100.81:443'];

t.test('what is said of a flow decides', async (t) => {
  const catalogue = ['--to', '198.51.100.66:8080'];
  const dns = ['--to', '198.51.100.153:53', '--protocol', 'udp'];
  const rows: [from: string, args: string[], expected: object][] = [
    [grafana, https, { verdict: 'accept', provisional: true, reason: 'unread', said: undefined }],
    [grafana, [...https, '--sni', 'API.example.com.'], { verdict: 'accept', provisional: undefined, reason: 'rule' }],
    [grafana, [...https, '--sni', 'x.status.example.com'], { verdict: 'accept', reason: 'rule' }],
    [grafana, [...https, '--sni', 'other.example.com'], { verdict: 'drop', reason: 'default-action' }],
    [
      grafana,
      [...https, '--sni', 'a.paste.example'],
      { verdict: 'reject', policy: { decision: { rule: 'cluster/no-paste-sites' } } },
    ],
    [grafana, [...https, '--application', 'SSH'], { verdict: 'drop' }],
    [grafana, [...https, '--application', 'other'], { verdict: 'drop', said: { reading: {}, names: [] } }],
    [grafana, [...https, '--application', 'TLS'], { verdict: 'drop', said: { reading: { application: 'TLS' } } }],
    [
      grafana,
      ['--to', 'api.example.com:443', '--address', '198.51.100.81'],
      { verdict: 'accept', reason: 'rule', to: '198.51.100.81:443', said: { names: ['api.example.com'] } },
    ],
    [
      grafana,
      ['--to', 'api.example.com:443', '--address', '2001:DB8:100::81'],
      {
        verdict: 'accept',
        to: '[2001:db8:100::81]:443',
        said: { reading: { application: 'TLS', name: 'api.example.com' } },
      },
    ],
    [
      grafana,
      ['--to', 'api.example.com:443', '--address', '198.51.100.81', '--sni', 'a.paste.example'],
      { verdict: 'reject', said: { names: ['a.paste.example', 'api.example.com'] } },
    ],
    [
      grafana,
      ['--to', 'paste.example:443', '--address', '198.51.100.81', '--application', 'SSH'],
      { verdict: 'reject', reason: 'rule' },
    ],
    [
      grafana,
      ['--to', 'api.example.com:443', '--address', '198.51.100.81', '--protocol', 'udp'],
      { verdict: 'drop', said: { reading: { application: 'QUIC', tls: { alpn: ['h3'] } } } },
    ],
    [
      grafana,
      ['--to', 'api.example.com:5432', '--address', '198.51.100.81'],
      { verdict: 'drop', said: { reading: undefined, names: ['api.example.com'] } },
    ],
    ['reviews/reviews-1', catalogue, { provisional: true }],
    [
      'reviews/reviews-1',
      [...catalogue, '--host', 'catalogue.example.com', '--path', '/v1/./x?y'],
      { verdict: 'accept', said: { reading: { http: { method: 'GET', path: '/v1/x' } } } },
    ],
    ['reviews/reviews-1', [...catalogue, '--host', 'catalogue.example.com', '--path', '/v2'], { verdict: 'drop' }],
    [
      'reviews/reviews-1',
      [...catalogue, '--host', 'catalogue.example.com', '--path', '/v1/x', '--method', 'PUT'],
      { verdict: 'drop' },
    ],
    [
      'reviews/reviews-1',
      [...catalogue, '--path', '/v1/x'],
      { verdict: 'drop', said: { reading: { literal: '198.51.100.66' } } },
    ],
    [
      'monitoring/blackbox-1',
      [...dns, '--qname', 'a.partner.example'],
      { verdict: 'accept', policy: { decision: { questionsPerSecond: { 'monitoring/partner-dns': 20 } } } },
    ],
    [
      'monitoring/blackbox-1',
      [...dns, '--qname', 'a.partner.example', '--qtype', 'TYPE28'],
      { verdict: 'accept', said: { reading: { dns: { type: 'AAAA' } } } },
    ],
    ['monitoring/blackbox-1', [...dns, '--qname', 'a.partner.example', '--qtype', 'TXT'], { verdict: 'drop' }],
    [
      'monitoring/blackbox-1',
      ['--to', '198.51.100.153:22', '--application', 'other'],
      { verdict: 'accept', policy: { decision: { unconforming: ['monitoring/partner-dns'] } } },
    ],
  ];
  for (const [from, args, expected] of rows) {
    const { code, out, err } = await explain(from, ...args, '-o', 'json');
    t.equal(code, 0, `${args.join(' ')} ${err}`);
    t.match(JSON.parse(out), expected, args.join(' '));
  }
});

t.test('and is told', async (t) => {
  const open = await explain(grafana, ...https);
  t.match(open.out, /^namespace: open\. what its first bytes say decides/m);
  t.match(
    open.out,
    /^ {2}\? {2}namespace\/monitoring\/grafana-may-ask-vendor +accept-decisively +its first bytes decide: TLS for/m,
  );
  t.match(open.out, /^accept, until it is read \(unread\)\nIts first bytes decide/m);
  const said = await explain(
    grafana,
    '--to',
    'api.example.com:443',
    '--address',
    '198.51.100.81',
    '--alpn',
    'h2',
    '--ech',
  );
  t.match(
    said.out,
    /^Taken as given: its first bytes are TLS for api\.example\.com \(with Encrypted Client Hello\) \(TLS 1\.3, ALPN h2\); the name table has that address for api\.example\.com\.$/m,
  );
  const named = await explain(grafana, '--to', 'api.example.com:5432', '--address', '198.51.100.81');
  t.match(named.out, /^Taken as given: the name table has that address for api\.example\.com\.$/m);
});

t.test('used wrongly', async (t) => {
  const rows: [string[], RegExp][] = [
    [['--to', 'api.example.com:443'], /api\.example\.com needs --address/],
    [[...https, '--address', '198.51.100.81'], /--to says an address already/],
    [['--to', 'api.example.com:443', '--address', 'x'], /expected an address/],
    [['--to', 'api.example.com'], /expected ADDRESS/],
    [['--to', 'api.example.com:0', '--address', '198.51.100.81'], /expected ADDRESS/],
    [[...https, '--sni', 'a', '--host', 'b'], /a flow says one thing, not TLS and HTTP/],
    [[...https, '--application', 'SSH', '--qname', 'b'], /not SSH and DNS/],
    [[...https, '--application', 'FTP'], /Allowed choices/],
    [[...https, '--sni', '1.2.3.4'], /expected a name/],
    [[...https, '--host', 'a_b/c'], /expected a name/],
    [[...https, '--host', 'a', '--path', 'x'], /begins with \//],
    [[...https, '--qtype', 'aaaa'], /upper case/],
    [['--to', '198.51.100.81', '--sni', 'a.example.com'], /of TCP and UDP only/],
  ];
  for (const [args, message] of rows) {
    const { code, err } = await explain(grafana, ...args);
    t.equal(code, 2, args.join(' '));
    t.match(err, message);
  }
  t.same(parseNamedTarget('API.Example.com.:443'), { name: 'api.example.com', port: 443 });
  for (const text of ['a.test', 'a.test:', 'a.test:65536', '1.2.3.4:1', ':443', 'a b:1']) {
    t.equal(parseNamedTarget(text), undefined, text);
  }
  const address = parseTarget('[2001:db8::1]:80');
  t.same(address && saidOf({ host: { literal: '2001:db8::1' } }, address, 6), {
    reading: { application: 'HTTP', literal: '2001:db8::1', http: { method: 'GET', path: '/' } },
    names: [],
  });
});
