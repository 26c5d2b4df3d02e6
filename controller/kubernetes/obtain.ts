/** Requests to an API server for those to whom anything but what they asked for is an error: it is thrown, with its code. */
import { type Answer, type Api, type Json, type Question, recordOf } from './requests.ts';

const CALL_MS = 10_000;
const PAGE = 500;

/** What the API server refused; status 0: it did not answer. What was asked for may be done all the same. */
export class Refused extends Error {
  readonly status: number;

  constructor({ method, path }: Pick<Question, 'method' | 'path'>, { status, message }: Answer) {
    super(`${method} ${path}: ${status === 0 ? '' : `${status} `}${message}`);
    this.status = status;
  }
}

/** The object that it answers with. Throws Refused, also if there is no answer within ten seconds. */
export async function obtain(api: Api, question: Omit<Question, 'timeoutMs'>): Promise<Json> {
  const answer = await api.ask({ ...question, timeoutMs: CALL_MS });
  if (answer.status < 200 || answer.status > 299) throw new Refused(question, answer);
  return answer.body;
}

/** All objects below a path, page by page. Throws Refused. */
export async function* obtainAll(api: Api, path: string): AsyncGenerator<Json> {
  let rest = '';
  do {
    const from = rest === '' ? '' : `&continue=${encodeURIComponent(rest)}`;
    const page = await obtain(api, { method: 'GET', path: `${path}?limit=${PAGE}${from}` });
    // Else a server that is none had given nothing out.
    if (!Array.isArray(page.items)) throw new Error(`GET ${path}: the answer is no list`);
    for (const item of page.items) yield recordOf(item);
    rest = String(recordOf(page.metadata).continue ?? '');
  } while (rest !== '');
}
