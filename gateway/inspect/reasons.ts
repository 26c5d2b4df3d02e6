/**
 * Why inspection itself ends a flow, drops a packet or refuses a request, where no rule does: one union of words, which are
 * metric labels and fields of records.
 */
import { type AssemblyReason, assemblyReasons } from './stream.ts';

export const inspectReasons = {
  ...assemblyReasons,
  'bad-request': 'a request of HTTP that servers may read in different ways, or not at all',
  'bad-body': 'a body of HTTP of which servers may take different places for its end',
  upgrade: 'a request after which something else than HTTP may be spoken, where each request is to be decided',
  'bad-question': 'a message to a DNS server that is not one plain question',
  'question-rate': 'more questions of one source than a port of a service lets through in a second',
  tunnel: 'a question whose name carries more data than names do',
  'changed-bytes': 'other bytes for a place in the stream that was let on already',
  'fast-open': 'a SYN with data (RFC 7413): dropped, and sent again without',
  waiting: 'more packets wait for a verdict than may',
  'no-policy': 'the rule that decided has no number yet, or policy could not be read',
} as const satisfies Record<AssemblyReason | string, string>;
export type InspectReason = keyof typeof inspectReasons;
