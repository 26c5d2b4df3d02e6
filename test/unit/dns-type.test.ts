/** Types of DNS as texts: one for each number, and what is none. */

import t from 'tap';
import { dnsTypes, dnsTypeText, parseDnsType } from '../../api/dns-type.ts';

t.test('each number has one text, which is read as itself', (t) => {
  for (let type = 0; type <= 0xffff; type++) {
    const text = dnsTypeText(type);
    const read = parseDnsType(text);
    const plain = parseDnsType(`TYPE${type}`);
    if (!read.ok || read.value !== text || !plain.ok || plain.value !== text) t.fail(`${type}: ${text}`);
  }
  t.equal(dnsTypeText(28), 'AAAA');
  t.equal(dnsTypeText(65), 'HTTPS');
  t.equal(dnsTypeText(4242), 'TYPE4242');
  t.equal(new Set(Object.values(dnsTypes)).size, Object.keys(dnsTypes).length, 'no number has two names');
  t.end();
});

t.test('what is no type', (t) => {
  for (const text of ['', 'a', 'aaaa', 'AAAAA', 'TYPE', 'TYPE65536', 'TYPE01', 'TYPE-1', 'type28', 'toString', '28'])
    t.notOk(parseDnsType(text).ok, text);
  t.end();
});
