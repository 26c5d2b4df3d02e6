/**
 * The thread that adds and removes addresses for the election. The kernel takes such requests one at a time from the
 * whole machine, and who asks waits for whoever is before: longer, at times, than others wait for an advertisement. So the
 * thread that advertises (election-worker.ts) asks this one. Requests are done in their order, each is answered.
 */

import { receiveMessageOnPort, workerData } from 'node:worker_threads';
import { AddressSocket } from '../kernel/address-socket.ts';
import * as libc from '../kernel/libc.ts';
import { type AddressAnswer, type AddressRequest, type AddressWorkerData, STOP } from './election-messages.ts';

const NICE = -10;
const THREAD_NAME = 'addresses';

function run({ namespace, wake, asker, port, control }: AddressWorkerData): void {
  const socket = AddressSocket.open(namespace);
  const poll = new libc.PollSet([wake]);
  const carryOut = ({ op, addresses, validSeconds }: AddressRequest): AddressAnswer => {
    try {
      return op === 'add' ? socket.add(addresses, validSeconds) : socket.remove(addresses);
    } catch (error) {
      return [(error as libc.SystemError).code ?? String(error)];
    }
  };
  try {
    for (;;) {
      // Asked before the last request is looked for: what was asked for before the end is done.
      const ending = Atomics.load(control, STOP) !== 0;
      let next = receiveMessageOnPort(port);
      for (; next !== undefined; next = receiveMessageOnPort(port)) {
        port.postMessage(carryOut(next.message as AddressRequest));
        libc.signal(asker);
      }
      if (ending) return;
      poll.wait(-1);
      if (poll.ready(0)) libc.drainEvent(wake);
    }
  } finally {
    socket.close();
    port.close();
  }
}

libc.setThreadName(THREAD_NAME);
libc.setThreadNice(NICE);
run(workerData as AddressWorkerData);
