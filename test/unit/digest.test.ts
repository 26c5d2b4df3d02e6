/** api/digest.ts: names of what tenants write are too long for two things to be made that share one. */
import t from 'tap';
import { digest } from '../../api/digest.ts';
import type { ServiceEntry } from '../../api/plan.ts';
import { DestinationSets } from '../../gateway/destination-sets.ts';

// Found in 80 seconds: the SHA-256 of both begin with 8430f1324def, 48 bits.
const ALIKE = ['billing/s2877474', 'billing/s7171711'] as const;

t.test('services whose digests begin alike have sets of their own', async (t) => {
  const [first, second] = ALIKE;
  t.equal(digest(first).slice(0, 12), digest(second).slice(0, 12), 'they do');
  const many = (network: string): ServiceEntry => ({
    addresses: Array.from({ length: 20 }, (_, at) => `${network}.${2 * at}/32`),
    ports: null,
  });
  const services = new Map([
    [first, many('198.51.100')],
    [second, many('203.0.113')],
  ]);
  const sets = new DestinationSets({ rules: new Map(), services });
  const nameOf = (service: string): string | undefined => sets.find([service])[4].sets[0]?.[0];
  t.type(nameOf(first), 'string');
  t.not(nameOf(first), nameOf(second));
});
