/** What the tests of real clients write for `billing` in the lab: names and protocols that its pods may speak; all else is rejected. */
import { serverAddresses } from '../../lab/topology.ts';

const { web, odd } = serverAddresses;
const kind = (name: string, kind: string, spec: string): string =>
  `---\napiVersion: sluice.dev/v1alpha1\nkind: ${kind}\nmetadata: { name: ${name}, namespace: billing }\nspec: ${spec}\n`;
const of = (server: { 4: string; 6: string }): string => `["${server[4]}", "${server[6]}"]`;

export const clientManifests = [
  // Without appProtocol: 443 is TLS, 80 HTTP, 443/UDP QUIC, since the service has names.
  kind(
    'web',
    'ExternalService',
    `{ addresses: [web.example.test], ports: [{ name: tls, protocol: TCP, port: "443" }, { name: http, protocol: TCP, port: "80" }, { name: quic, protocol: UDP, port: "443" }] }`,
  ),
  kind(
    'api',
    'ExternalService',
    '{ addresses: [api.example.test], ports: [{ name: tls, protocol: TCP, port: "443", appProtocol: TLS, tls: { rejectEncryptedClientHello: true } }] }',
  ),
  kind(
    'protocols',
    'ExternalService',
    `{ addresses: ${of(web)}, ports: [{ name: ssh, protocol: TCP, port: "22", appProtocol: SSH }, { name: postgresql, protocol: TCP, port: "5432", appProtocol: PostgreSQL }, { name: tls, protocol: TCP, port: "5433", appProtocol: TLS }] }`,
  ),
  kind(
    'odd',
    'ExternalService',
    `{ addresses: ${of(odd)}, ports: [{ name: ssh, protocol: TCP, port: "22", appProtocol: SSH }, { name: tls, protocol: TCP, port: "443", appProtocol: TLS }, { name: dns, protocol: UDP, port: "53", appProtocol: DNS }] }`,
  ),
  kind(
    'dns',
    'ExternalService',
    `{ addresses: ${of(web)}, ports: [${['UDP', 'TCP'].map((protocol) => `{ name: ${protocol.toLowerCase()}, protocol: ${protocol}, port: "53", appProtocol: DNS, dns: { names: [web.example.test, "*.rot.example.test"], types: [A, AAAA] } }`).join(', ')}] }`,
  ),
  // A rule by rule: this one has what the race's pods may say.
  kind(
    'rotating',
    'ExternalService',
    '{ addresses: ["*.ok.rot.example.test"], ports: [{ name: tls, protocol: TCP, port: "443" }] }',
  ),
  kind(
    'allowed',
    'NamespaceEgressRule',
    '{ action: accept-decisively, externalServices: [web, api, protocols, odd, dns, rotating] }',
  ),
  kind('nothing-else', 'NamespaceEgressRule', '{ action: reject, priority: 2000, externalServices: ["*"] }'),
].join('');
