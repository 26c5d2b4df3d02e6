/** The product's recorder of flows in a gateway's network namespace (recorder-child.ts), and what it said. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import type { FlowRecord } from '../../gateway/record/flow-record.ts';

export interface Said {
  record?: FlowRecord;
  carried?: { packets: number; bytes: number };
}

export interface RecorderRig {
  /** `look` has it look at living flows, a plan as JSON be the one in force, any other word nothing: what it said until then. */
  ask(line: string): Promise<Said[]>;
  close(): Promise<void>;
}

/** `detect`: it samples flows, too. */
export async function startRecorder(namespace: string, lookedAt = 0, detect = false): Promise<RecorderRig> {
  const script = join(import.meta.dirname, 'recorder-child.js');
  const child = spawn(
    'ip',
    ['netns', 'exec', namespace, process.execPath, script, String(lookedAt), detect ? 'detect' : ''],
    {
      stdio: ['pipe', 'pipe', 'inherit'],
    },
  );
  const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
  const until = async (word: string): Promise<Said[]> => {
    const all: Said[] = [];
    for (;;) {
      const { value, done } = await lines.next();
      if (done) throw new Error('the recorder ended');
      const said = JSON.parse(value) as Said & { error?: string };
      if (said.error !== undefined) throw new Error(said.error);
      if (word in said) return all;
      all.push(said);
    }
  };
  await until('ready');
  return {
    ask(line) {
      child.stdin.write(`${line}\n`);
      return until('done');
    },
    async close() {
      child.stdin.end();
      await once(child, 'close');
    },
  };
}
