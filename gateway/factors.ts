/**
 * Services of many addresses with many ports. As boxes (policy/boxes.ts) they would be as many elements as the one times
 * the other, and a manifest of some kilobytes, which a tenant may write, more than a gateway's memory. So of them the
 * addresses are asked, and then the ports: two look-ups, and elements as many as the one and the other.
 */
import type { ServiceEntry } from '../api/plan.ts';

/** Boxes into which services are cut together, before those that overlap are merged. */
const MULTIPLIED = 1 << 16;
/** Ranges of all of them that are cut at those of all others: the time that it takes. */
const CUT = 1 << 22;
const anywhere = ['0.0.0.0/0', '::/0'];

export interface Factored {
  multiplied: ServiceEntry[];
  /** A packet goes to a service if it goes where the one says, and as the other says. */
  factors: [where: ServiceEntry, how: ServiceEntry][];
}

/** `most`: boxes. */
export function factored(services: ServiceEntry[], most = MULTIPLIED): Factored {
  let [addresses, ranges, boxes] = [0, 0, 0];
  for (const service of services) {
    addresses += service.addresses.length;
    ranges += rangesOf(service);
    boxes += service.addresses.length * rangesOf(service);
  }
  if (boxes <= most && addresses * ranges <= CUT) return { multiplied: services, factors: [] };
  const result: Factored = { multiplied: [], factors: [] };
  for (const service of services) {
    const { addresses, ports } = service;
    if (rangesOf(service) < 2) result.multiplied.push(service);
    else
      result.factors.push([
        { addresses, ports: null },
        { addresses: anywhere, ports },
      ]);
  }
  return result;
}

const rangesOf = ({ ports }: ServiceEntry): number =>
  ports === null ? 1 : ports.reduce((sum, { ports: ranges }) => sum + (ranges?.length ?? 1), 0);
