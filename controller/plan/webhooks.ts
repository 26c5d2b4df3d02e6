/**
 * Which rules have a webhook, and which of these are refused: its host is not allowed, or there are too many URLs. A rule
 * in audit permits nothing, so it has nothing to tell. Pure.
 */
import { hitsIdOfObject } from '../../api/hits.ts';
import { type EgressRule, objectKey } from '../../api/kinds.ts';
import { formatAuthority, parseListUrl } from '../../api/list-url.ts';
import type { Context } from '../../api/plan.ts';
import { must } from '../../api/result.ts';
import type { WebhookRule } from '../../api/webhook.ts';
import { allowedHosts } from '../observe/fetch-policy.ts';
import type { Condition } from './condition.ts';
import type { Objects } from './objects.ts';

/** So that one namespace cannot keep the deliverer busy for all; cluster rules together have as many. */
export const WEBHOOK_URLS_PER_NAMESPACE = 16;
/** Of all namespaces: what the memory for batches is bounded by. */
export const WEBHOOK_URLS = 1024;

export interface WebhookTarget {
  url: string;
  /** With its port. */
  host: string;
  rule: WebhookRule;
}

export interface PlannedWebhooks {
  /** By the rule's id (api/hits.ts). */
  targets: Map<string, WebhookTarget>;
  /** By the rule's key. */
  refused: Map<string, Condition>;
}

const contextOf = {
  ClusterEgressRule: 'cluster',
  NamespaceEgressRule: 'namespace',
  ServiceEgressRule: 'service',
} as const satisfies Record<EgressRule['kind'], Context>;

export function webhooksOf({
  webhookRules,
  GatewayPool,
}: Pick<Objects, 'webhookRules' | 'GatewayPool'>): PlannedWebhooks {
  const targets: PlannedWebhooks['targets'] = new Map();
  const refused: PlannedWebhooks['refused'] = new Map();
  const urls = new Set<string>();
  const perNamespace = new Map<string, Set<string>>();
  const asking = webhookRules.filter(asks);
  if (asking.length === 0) return { targets, refused };
  const allowed = allowedHosts(GatewayPool);
  // The oldest rules' come first, those of the cluster before others.
  for (const rule of Object.keys(contextOf).flatMap((kind) => asking.filter((one) => one.kind === kind))) {
    const { webhook, action } = rule.spec;
    if (webhook === undefined) continue;
    const key = objectKey(rule);
    const { href, host, port } = must(parseListUrl(webhook.url));
    const refuse = (reason: string, message: string): void => void refused.set(key, failing(reason, message));
    if (!allowed.has(`${host} ${port}`)) {
      refuse(
        'HostNotAllowed',
        `host ${formatAuthority(host, port)} is not among fetch.allowedHosts of any GatewayPool`,
      );
      continue;
    }
    const { name, namespace = '', generation } = rule.metadata;
    const own = perNamespace.get(namespace) ?? new Set<string>();
    perNamespace.set(namespace, own);
    if (!own.has(href) && own.size >= WEBHOOK_URLS_PER_NAMESPACE) {
      const of = namespace === '' ? 'of cluster rules' : 'in the namespace';
      refuse('TooManyWebhooks', `more than ${WEBHOOK_URLS_PER_NAMESPACE} webhook URLs ${of}`);
      continue;
    }
    if (!urls.has(href) && urls.size >= WEBHOOK_URLS) {
      refuse('TooManyWebhooks', `more than ${WEBHOOK_URLS} webhook URLs in all`);
      continue;
    }
    own.add(href);
    urls.add(href);
    targets.set(hitsIdOfObject(key) ?? key, {
      url: href,
      host: formatAuthority(host, port),
      rule: {
        context: contextOf[rule.kind],
        ...(namespace === '' ? {} : { namespace }),
        rule: name,
        action,
        ...(generation === undefined ? {} : { generation }),
      },
    });
  }
  return { targets, refused };
}

const asks = ({ spec }: EgressRule): boolean => spec.webhook !== undefined && spec.mode !== 'Audit';

export const failing = (reason: string, message: string): Condition => ({
  type: 'WebhookFailing',
  status: 'True',
  reason,
  message,
});
