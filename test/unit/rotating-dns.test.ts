/** The lab's server of names whose addresses change with each answer, read by the reader that gateways have. */
import t from 'tap';
import { AddressPool, answer } from '../../lab/servers/rotating-dns.ts';
import { type DnsAnswer, DnsAnswerReader } from '../../wire/dns-answer.ts';
import { edns, message, question } from '../dns-build.ts';

const [A, AAAA, TXT] = [1, 28, 16];
const pools = [new AddressPool('198.51.100.254/31'), new AddressPool('2001:db8::1:0/126')];
const reader = new DnsAnswerReader();
const query = (name: string, type: number) =>
  message({ id: 9, questions: [question(name, type)], additionals: [edns()] });

function ask(name: string, type: number): DnsAnswer {
  const reading = reader.datagram(answer(query(name, type), 'rot.example.test', pools) ?? new Uint8Array(0));
  if (reading.state !== 'read') throw new Error(reading.state === 'refused' ? reading.reason : 'more');
  return reading.value;
}
const addresses = (name: string, type: number): string[] => ask(name, type).addresses.map(({ address }) => address);

t.test('each answer has the next two addresses, and the pool begins anew', (t) => {
  t.same(addresses('a.rot.example.test', A), ['198.51.100.254', '198.51.100.255']);
  t.same(addresses('a.rot.example.test', A), ['198.51.100.254', '198.51.100.255']);
  t.same(addresses('a.rot.example.test', AAAA), ['2001:db8::1:0', '2001:db8::1:1']);
  t.same(addresses('b.c.rot.example.test', AAAA), ['2001:db8::1:2', '2001:db8::1:3'], 'one pool for all names');
  t.same(addresses('ROT.example.test', AAAA), ['2001:db8::1:0', '2001:db8::1:1'], 'in any case of letters');
  t.end();
});

t.test('what a resolver looks at', (t) => {
  const { id, rcode, truncated, addresses: found } = ask('a.rot.example.test', A);
  t.same([id, rcode, truncated, found.map(({ ttl }) => ttl)], [9, 0, false, [1, 1]]);
  for (const [name, code] of [
    ['rot.example.test', 0],
    ['example.test', 3],
    ['brot.example.test', 3],
  ] as const) {
    t.same([ask(name, TXT).rcode, addresses(name, TXT)], [code, []], `${name} has no texts`);
    t.equal(ask(name, A).rcode, code, name);
  }
  t.equal(answer(new Uint8Array(11), 'rot.example.test', pools), undefined, 'what is no query has no answer');
  const response = message({ flags: 0x8180, questions: [question('rot.example.test', A)] });
  t.equal(answer(response, 'rot.example.test', pools), undefined, 'nor has an answer');
  const whole = message({ questions: [question('a.rot.example.test', A)] });
  for (let size = 0; size < whole.length; size++) {
    t.equal(answer(whole.subarray(0, size), 'rot.example.test', pools), undefined, `nor a query cut at ${size}`);
  }
  t.throws(() => new AddressPool('10.0.0.0/8'), /at most 16 bits/);
  t.end();
});
