/**
 * EgressAddress (design §3): one object for each address that is given out, written by the controller only. Its name is the address's,
 * and the API server has each name once: so no address has two owners, whoever else believes to lead.
 */
import { Type } from 'typebox';
import { type Address, formatAddress, parseAddress } from '../address.ts';
import { addressText, objectName } from './common.ts';

/** An address as a name: decimal and dots, or all eight groups of four digits, with `-` between them. */
export function egressAddressName(address: Address): string {
  if (address.family === 4) return formatAddress(address);
  const digits = address.value.toString(16).padStart(32, '0');
  return (digits.match(/.{4}/g) ?? []).join('-');
}

/** Canonical text; undefined: the name is no address's. */
export function addressOfName(name: string): string | undefined {
  const parsed = parseAddress(name.replaceAll('-', ':'));
  return parsed.ok && egressAddressName(parsed.value) === name ? formatAddress(parsed.value) : undefined;
}

export const egressAddressSpec = Type.Object(
  {
    address: addressText({
      description: 'The address; its name is made of it',
      cel: [{ rule: 'self == oldSelf', message: 'address cannot be changed' }],
    }),
    pool: objectName({ description: 'EgressIPPool that it was given out from' }),
    egressIP: Type.Optional(
      objectName({ description: 'Who has it, or had it last; absent: a gateway had it, for nobody that is known' }),
    ),
    owner: Type.Optional(
      Type.String({
        maxLength: 317,
        description:
          'NAMESPACE or NAMESPACE/POD to which alone the EgressIP gives it, or gave it last; absent: to nobody, or to all that it selects',
      }),
    ),
    ownerGoneAt: Type.Optional(
      Type.String({
        maxLength: 64,
        description:
          'Since when the owner is no more: the address rests for the quarantine of its pool, before another owner',
      }),
    ),
    releasedAt: Type.Optional(
      Type.String({
        maxLength: 64,
        description: 'Since when nobody has it: it rests for the quarantine of its pool. Absent: it is in use',
      }),
    ),
  },
  { additionalProperties: false },
);

export const EGRESS_ADDRESS_PLURAL = 'egressaddresses';
