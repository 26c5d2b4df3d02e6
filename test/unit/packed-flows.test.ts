/** Flows as threads tell of them: what comes out is what went in, and what many have in common goes once. */
import t from 'tap';
import type { DecidedFlow } from '../../gateway/inspect/messages.ts';
import { FlowPacker, unpackFlows } from '../../gateway/inspect/packed-flows.ts';
import type { Decision } from '../../policy/decision.ts';

const accept: Decision = { verdict: 'accept', reason: 'service-accept', rule: 'service/shop/web' };
const deny: Decision = { verdict: 'drop', reason: 'rule', rule: 'cluster/no' };
const web = { application: 'TLS', name: 'web.example' } as const;
const mail = { application: 'TLS', name: 'mail.example' } as const;
const ends = {
  protocol: 6,
  source: '10.244.1.5',
  sourcePort: 40_000,
  destination: '198.51.100.80',
  destinationPort: 443,
};
const other = { ...ends, source: '10.244.1.6', sourcePort: 40_001, destinationPort: 8443 };
const portless = { protocol: 1, source: '10.244.1.5', destination: '198.51.100.80' };

const all: DecidedFlow[] = [
  { ...ends, decision: accept, reading: web },
  { ...other, decision: accept, reading: web },
  { ...ends, decision: accept, reading: mail },
  { ...other, decision: accept, reading: web, life: true },
  { ...ends, decision: accept, reading: web },
  { ...portless, decision: deny, reading: {}, delete: true },
  { ...ends, decision: undefined, reading: {}, reason: 'overlap', detail: 'bad-length' },
];

t.test('packed and unpacked', async (t) => {
  const packer = new FlowPacker();
  for (const flow of all) packer.add(flow);
  t.equal(packer.count, all.length);
  t.strictSame(unpackFlows(structuredClone(packer.take())), all);
  t.equal(packer.count, 0, 'the next begins anew');
  t.strictSame(unpackFlows(packer.take()), []);
  for (let times = 0; times < 100; times++)
    packer.add(
      times % 2 === 0 ? { ...ends, decision: accept, reading: web } : { ...other, decision: accept, reading: web },
    );
  t.equal(packer.take().said.length, 1, 'once for all');
});
