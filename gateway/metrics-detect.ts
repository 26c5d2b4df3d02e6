/**
 * Metrics of detection (record/detect.ts): what became of the copies of first packets.
 */
import { Counter, type Registry } from 'prom-client';
import type { Detector } from './record/detect.ts';

/** Without a detector all are zero. */
export function detectMetrics(registry: Registry, detector: Pick<Detector, 'counts'> | undefined): void {
  new Counter({
    name: 'sluice_gateway_sampled_total',
    help: 'Flows of which first packets were copied, by whether they said what they are; copies that were of no use',
    labelNames: ['result'],
    registers: [registry],
    collect() {
      this.reset();
      const { read = 0, unread = 0, useless = 0 } = detector?.counts ?? {};
      this.inc({ result: 'read' }, read);
      this.inc({ result: 'unread' }, unread);
      this.inc({ result: 'useless' }, useless);
    },
  });
}
