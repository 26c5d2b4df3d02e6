/**
 * One line that says what is measured, how far it is and how long it may take: rewritten on a terminal, and in a log one
 * line a round.
 */

export interface Step {
  /** Of the scenarios, the first is 1. */
  scenario: number;
  scenarios: number;
  title: string;
  round: number;
  rounds: number;
  subject: string;
  /** The last figure of the subject, in words. */
  figure?: string;
}

export function stepText(
  { scenario, scenarios, title, round, rounds, subject, figure }: Step,
  seconds: number,
): string {
  const at = round < 0 ? 'warming up' : `round ${round + 1}/${rounds}`;
  const minutes = `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, '0')}`;
  return `[${scenario}/${scenarios} ${minutes}] ${title}: ${at}, ${subject}${figure === undefined ? '' : ` ${figure}`}`;
}

export class Progress {
  readonly #out: NodeJS.WriteStream;
  readonly #began = performance.now();
  #said = '';

  constructor(out: NodeJS.WriteStream) {
    this.#out = out;
  }

  get seconds(): number {
    return (performance.now() - this.#began) / 1000;
  }

  step(step: Step): void {
    const text = stepText(step, this.seconds);
    if (this.#out.isTTY) {
      this.#out.write(`\r\u001b[K${text.slice(0, (this.#out.columns ?? 120) - 1)}`);
      return;
    }
    // In a log, whose turn it is within a round is too much.
    const key = `${step.scenario}/${step.round}`;
    if (key !== this.#said) this.#out.write(`${text}\n`);
    this.#said = key;
  }

  /** A line that stays. */
  say(text: string): void {
    this.#out.write(`${this.#out.isTTY ? '\r\u001b[K' : ''}${text}\n`);
  }
}
