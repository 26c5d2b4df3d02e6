/**
 * The way to an API server: the pod's own service account, or a kubeconfig file. The library is loaded on use: it takes
 * most of a second and 70 MB, which a controller of a directory does not need.
 */
import type { KubeConfig } from '@kubernetes/client-node';

export interface KubernetesTarget {
  /** Absent: $KUBECONFIG, ~/.kube/config or the pod's service account, in this order, as kubectl finds it. */
  kubeconfig?: string;
  /** Of that file; absent: its current one. */
  context?: string;
}

export const loadLibrary = (): Promise<typeof import('@kubernetes/client-node')> => import('@kubernetes/client-node');

/** Throws what says which file is missing or wrong. */
export async function loadKubeConfig({ kubeconfig, context }: KubernetesTarget): Promise<KubeConfig> {
  const { KubeConfig } = await loadLibrary();
  const config = new KubeConfig();
  if (kubeconfig === undefined) config.loadFromDefault();
  else config.loadFromFile(kubeconfig);
  if (context !== undefined) {
    if (config.getContextObject(context) === null)
      throw new Error(`${kubeconfig ?? 'kubeconfig'}: no context ${context}`);
    config.setCurrentContext(context);
  }
  if (config.getCurrentCluster() === null) throw new Error(`${kubeconfig ?? 'kubeconfig'}: names no cluster`);
  return config;
}
