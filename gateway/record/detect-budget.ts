/**
 * When first packets are looked for (detect-table.ts). On this machine that costs each forwarded packet some 0.2 µs, of whatever
 * flow it is: nothing on a gateway that is not busy, and on one that forwards a million a second too much. So it
 * goes on all the time up to a rate, and above it for so large a part of the time that the cost stays the same: flows that
 * begin while it is off are not in the sample. Pure.
 */

/** Packets a second that are looked at, on average: 1 % of a CPU. */
const RATE = 50_000;
/** What a quiet time may leave for a busy one, in seconds of that. */
const SAVED_SECONDS = 20;

export class DetectBudget {
  on = true;
  #left = RATE * SAVED_SECONDS;
  #forwarded: number | undefined;

  /** `forwarded`: packets since the machine came up, as the kernel counts them; `seconds` since this was asked last. */
  ask(forwarded: number, seconds: number): boolean {
    const packets = Math.max(0, forwarded - (this.#forwarded ?? forwarded));
    this.#forwarded = forwarded;
    this.#left = Math.min(RATE * SAVED_SECONDS, this.#left + RATE * seconds);
    if (this.on) this.#left -= packets;
    this.on = this.#left > 0;
    return this.on;
  }
}

/** `ForwDatagrams` of /proc/net/snmp and `Ip6OutForwDatagrams` of /proc/net/snmp6; what is not there counts nothing. */
export function forwardedPackets(snmp: string, snmp6: string): number {
  const [names = '', values = ''] = snmp.split('\n').filter((line) => line.startsWith('Ip: '));
  const at = names.split(' ').indexOf('ForwDatagrams');
  const four = at < 0 ? 0 : Number(values.split(' ')[at] ?? 0);
  const six = Number(/^Ip6OutForwDatagrams\s+(\d+)$/m.exec(snmp6)?.[1] ?? 0);
  return (Number.isFinite(four) ? four : 0) + six;
}
