/** Messages of a child process by IPC, for benchmarks that wait for one of them at a time. */
import type { ChildProcess } from 'node:child_process';

/** Each message is heard once, whenever somebody asks. */
export class Talk<T> {
  readonly child: ChildProcess;
  readonly #said: T[] = [];
  #wake = (): void => undefined;

  constructor(child: ChildProcess) {
    this.child = child;
    child.on('message', (message) => {
      this.#said.push(message as T);
      this.#wake();
    });
  }

  /** The first message that `pick` takes; those before it are of no use any more. */
  async heard<U>(pick: (message: T) => U | false, limitMs: number): Promise<U> {
    const end = performance.now() + limitMs;
    for (;;) {
      for (let message = this.#said.shift(); message !== undefined; message = this.#said.shift()) {
        const picked = pick(message);
        if (picked !== false) return picked;
      }
      const { exitCode, signalCode } = this.child;
      if (performance.now() > end || exitCode !== null || signalCode !== null)
        throw new Error(`nothing heard in ${limitMs} ms`);
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
        setTimeout(resolve, 100);
      });
    }
  }
}
