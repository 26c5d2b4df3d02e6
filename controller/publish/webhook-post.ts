/**
 * One delivery to a webhook: a POST through the checked https request (observe/https.ts). No redirect is followed, and of
 * the answer nothing but its status is read. Nothing of what a server said stands in a message, and no URL: a path or
 * a query may be the receiver's secret.
 */
import { parseListUrl } from '../../api/list-url.ts';
import { IDEMPOTENCY_HEADER } from '../../api/webhook.ts';
import type { FetchPolicy } from '../observe/fetch-policy.ts';
import {
  ask,
  checkedAddresses,
  codeOf,
  HTTPS_TIMEOUT_MS,
  type HttpsWorld,
  Refusal,
  withinTime,
} from '../observe/https.ts';
import type { DeliveryOutcome } from './webhook-queue.ts';

/** Never rejects. `stop` ends it at once; its outcome is then of no interest. */
export function postWebhook(
  { url: href, body, key }: { url: string; body: string; key: string },
  policy: FetchPolicy,
  world: HttpsWorld,
  stop: AbortSignal,
): Promise<DeliveryOutcome> {
  const timeoutMs = world.timeoutMs ?? HTTPS_TIMEOUT_MS;
  const deadline = Date.now() + timeoutMs;
  const failed = (message: string): DeliveryOutcome => ({ ok: false, reason: 'DeliveryFailed', message });
  return withinTime(timeoutMs, stop, async (signal): Promise<DeliveryOutcome> => {
    const url = parseListUrl(href);
    if (!url.ok) return failed(`url: expected ${url.error}`);
    try {
      const addresses = await checkedAddresses(url.value, policy, world, signal);
      const headers = {
        'content-type': 'application/json',
        'content-length': String(Buffer.byteLength(body)),
        [IDEMPOTENCY_HEADER]: key,
      };
      const response = await ask(url.value, addresses, { method: 'POST', headers, body }, world, signal, deadline);
      const status = response.statusCode ?? 0;
      response.destroy();
      if (status >= 200 && status < 300) return { ok: true };
      if (status >= 300 && status < 400)
        return failed(`expected status 200 to 299, got ${status}: no redirect is followed`);
      return failed(`expected status 200 to 299, got ${status}`);
    } catch (error) {
      if (error instanceof Refusal) {
        const { reason, message } = error;
        return {
          ok: false,
          reason: reason === 'HostNotAllowed' || reason === 'AddressForbidden' ? reason : 'DeliveryFailed',
          message,
        };
      }
      const late = signal.aborted && !stop.aborted;
      return failed(late ? `took longer than ${timeoutMs / 1000} s` : `cannot deliver: ${codeOf(error)}`);
    }
  });
}
