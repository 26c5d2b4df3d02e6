/**
 * Which lists the ExternalServices ask for (`addressesFrom`), each once: services that name one place in one format
 * share what was read there.
 */
import { DEFAULT_REFRESH_SECONDS, type ExternalService, type ListSource } from '../../api/kinds.ts';
import { parseListUrl } from '../../api/list-url.ts';
import { must } from '../../api/result.ts';

/** So that one namespace cannot keep the fetcher busy for all. The oldest services' come first. */
export const URLS_PER_NAMESPACE = 64;

export interface WantedList {
  source: ListSource;
  /** One of those that ask. */
  service: ExternalService;
  /** The shortest that one asks for. */
  refreshSeconds: number;
}

type Root = (service: ExternalService) => string;

/** Two sources with one id are one list. */
export function listId(service: ExternalService, { configMapRef, file, url, format }: ListSource, root: Root): string {
  if (url !== undefined) return JSON.stringify(['url', must(parseListUrl(url)).href, format]);
  if (file !== undefined) return JSON.stringify(['file', root(service), file, format]);
  const { name = '', key = '' } = configMapRef ?? {};
  return JSON.stringify(['configMap', service.metadata.namespace ?? '', name, key, format]);
}

/** By id, in the order of the services; and those beyond a namespace's bound. */
export function wantedLists(
  services: readonly ExternalService[],
  root: Root,
): { wanted: Map<string, WantedList>; refused: Set<string> } {
  const wanted = new Map<string, WantedList>();
  const refused = new Set<string>();
  const perNamespace = new Map<string, Set<string>>();
  for (const service of services) {
    const { namespace = '' } = service.metadata;
    const urls = perNamespace.get(namespace) ?? new Set<string>();
    perNamespace.set(namespace, urls);
    for (const source of service.spec.addressesFrom ?? []) {
      const id = listId(service, source, root);
      const { url, refreshSeconds = DEFAULT_REFRESH_SECONDS } = source;
      const known = wanted.get(id);
      if (known !== undefined) known.refreshSeconds = Math.min(known.refreshSeconds, refreshSeconds);
      else if (url !== undefined && urls.size >= URLS_PER_NAMESPACE) refused.add(id);
      else {
        if (url !== undefined) urls.add(id);
        wanted.set(id, { source, service, refreshSeconds });
      }
    }
  }
  // Another namespace may have asked for it within its own bound.
  for (const id of wanted.keys()) refused.delete(id);
  return { wanted, refused };
}
