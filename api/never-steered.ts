/**
 * Destinations that never are off the cluster, whatever a plan says: unspecified, loopback, link-local, multicast,
 * broadcast (RFC 6890). Nodes do not steer them, so that no rule is asked. Data only.
 */
export const neverSteered = [
  '0.0.0.0/8',
  '127.0.0.0/8',
  '169.254.0.0/16',
  '224.0.0.0/4',
  '255.255.255.255/32',
  '::/127',
  'fe80::/10',
  'ff00::/8',
] as const;
