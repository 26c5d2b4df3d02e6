/**
 * A topology → the text that makes it: `ip -batch` lines and a shell script a host. Pure. Three stages, each for all
 * hosts at once: `prepare` (sysctls and nft, before there are links, so that these inherit), `wire` (bridges and veth
 * pairs, run in the host that has the bridge), `address`.
 */
import type { Host, Link, Topology } from './topology.ts';

/** No duplicate address detection, no advertisements, no redirects: a lab's addresses are there at once or never. */
const commonSysctls: Record<string, string> = Object.fromEntries(
  ['all', 'default'].flatMap((scope) => [
    [`ipv6.conf.${scope}.accept_dad`, '0'],
    [`ipv6.conf.${scope}.accept_ra`, '0'],
    [`ipv6.conf.${scope}.accept_redirects`, '0'],
    [`ipv4.conf.${scope}.accept_redirects`, '0'],
    [`ipv4.conf.${scope}.send_redirects`, '0'],
    [`ipv4.conf.${scope}.rp_filter`, '0'],
  ]),
);

const isV6 = (text: string): boolean => text.includes(':');

/** Names of interfaces hold 15 characters. */
export function portName(host: string, link: Link): string {
  const name = `${host}.${link.name}`;
  if (name.length > 15) throw new Error(`port name ${name} is longer than 15 characters`);
  return name;
}

/** For `sh -e` inside the namespace. Neither sysctls nor rules hold a quote or the here document's end. */
export function prepareScript(host: Host): string {
  const sysctls = { ...commonSysctls, ...host.sysctls };
  const lines = Object.entries(sysctls).map(
    ([key, value]) => `echo ${value} >/proc/sys/net/${key.replaceAll('.', '/')}`,
  );
  if (host.nft !== undefined) lines.push("nft -f - <<'END-OF-RULES'", host.nft, 'END-OF-RULES');
  return `${lines.join('\n')}\n`;
}

/** For `ip -batch` inside the namespace of a host with bridges; '' for another. */
export function wireBatch(topology: Topology, host: Host, namespace: (host: string) => string): string {
  const lines = (host.bridges ?? []).flatMap((bridge) => [
    `link add ${bridge.name} type bridge stp_state 0 forward_delay 0 mcast_snooping 0`,
    `link set ${bridge.name} up`,
    ...bridge.addresses.map((address) => addAddress(address, bridge.name)),
    ...topology.hosts.flatMap((other) =>
      (other.links ?? [])
        .filter((link) => link.to === host.name && link.bridge === bridge.name)
        .flatMap((link) => {
          const port = portName(other.name, link);
          return [
            `link add ${port} type veth peer name ${link.name} netns ${namespace(other.name)}`,
            `link set ${port} master ${bridge.name} up`,
            ...(bridge.isolated ? [`link set ${port} type bridge_slave isolated on`] : []),
          ];
        }),
    ),
  ]);
  return lines.length === 0 ? '' : `${lines.join('\n')}\n`;
}

/** For `ip -batch` inside the namespace, once its links are there. */
export function addressBatch(host: Host): string {
  const lines = [
    'link set lo up',
    ...(host.links ?? []).flatMap((link) => [
      `link set ${link.name} up`,
      ...link.addresses.map((address) => addAddress(address, link.name)),
    ]),
    // The family is read from the destination; `-6` is no word of a batch.
    ...(host.routes ?? []).map((route) => `route add ${route}`),
  ];
  return `${lines.join('\n')}\n`;
}

function addAddress(address: string, dev: string): string {
  return `address add ${address} dev ${dev}${isV6(address) ? ' nodad' : ''}`;
}
