/**
 * How long a CPU of this machine may take to wake: a request to the kernel's power management (PM QoS,
 * Documentation/power/pm_qos_interface.rst), which lasts as long as its file is open, and of which the least of all holds.
 */
import { closeSync, openSync, readSync, writeSync } from 'node:fs';

const DEVICE = '/dev/cpu_dma_latency';
/** An int: microseconds. */
const VALUE_BYTES = 4;

/** 0: CPUs do not sleep at all. Gives what takes the request back. Throws an errno: there is no such device, or it may not be opened. */
export function holdCpuLatency(microseconds: number): () => void {
  const value = Buffer.alloc(VALUE_BYTES);
  value.writeInt32LE(microseconds);
  const device = openSync(DEVICE, 'w');
  try {
    writeSync(device, value);
  } catch (error) {
    closeSync(device);
    throw error;
  }
  return () => closeSync(device);
}

/** What holds now, of all requests; microseconds. */
export function cpuLatency(): number {
  const device = openSync(DEVICE, 'r');
  try {
    const value = Buffer.alloc(VALUE_BYTES);
    readSync(device, value);
    return value.readInt32LE();
  } finally {
    closeSync(device);
  }
}
