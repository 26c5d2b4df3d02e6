/**
 * One program of a role in one network namespace, known by a name: an abstract socket (unix(7)), which belongs to the network
 * namespace and is gone with the process, however it ends. A cleanup asks for it, since what it took away a running program
 * would put back. A second program does not stop for it: it takes the name when it is free.
 */
import { createServer, type Server } from 'node:net';
import type { PlanRole } from '../api/plan.ts';
import type { Logger } from './log.ts';

const RETRY_MS = 2_000;
const nameOf = (role: PlanRole): string => `\0sluice-${role}`;

/** Undefined: another process has it. */
function claim(role: PlanRole): Promise<Server | undefined> {
  return new Promise((resolve, reject) => {
    const server = createServer((socket) => socket.destroy());
    server.once('error', (error: NodeJS.ErrnoException) => {
      if (error.code === 'EADDRINUSE') resolve(undefined);
      else reject(error);
    });
    server.listen(nameOf(role), () => resolve(server.unref()));
  });
}

const release = (server: Server): Promise<void> => new Promise((resolve) => server.close(() => resolve()));

export async function isRunning(role: PlanRole): Promise<boolean> {
  const server = await claim(role);
  if (server === undefined) return true;
  await release(server);
  return false;
}

/** Holds the name until close(). */
export function holdName(role: PlanRole, log: Logger): { close(): Promise<void> } {
  let held: Server | undefined;
  let timer: NodeJS.Timeout | undefined;
  let closed = false;
  let said = false;
  const attempt = async (): Promise<void> => {
    try {
      held = await claim(role);
    } catch (error) {
      log.warn({ err: error }, 'the name by which this program is known to run');
      return;
    }
    if (held !== undefined || closed) return;
    if (!said) log.warn({ role }, 'another program of this role runs in this network namespace');
    said = true;
    timer = setTimeout(() => void next(), RETRY_MS).unref();
  };
  let running = attempt();
  const next = (): Promise<void> => {
    running = attempt();
    return running;
  };
  return {
    async close() {
      closed = true;
      clearTimeout(timer);
      await running;
      if (held !== undefined) await release(held);
    },
  };
}
