/** A rule's `webhook`: where the controller tells what the rule has permitted. What it tells: api/webhook.ts. */

import { Type } from 'typebox';
import { URL_MAX_LENGTH } from '../list-url.ts';
import { urlRule } from './common.ts';

export const webhookSchema = Type.Object(
  {
    url: Type.String({
      // Without a pattern: what breaks one is shown in the error, and a password may stand in it.
      maxLength: URL_MAX_LENGTH,
      expected: 'a URL that begins with https:// and a host',
      description: 'https; its host must be among fetch.allowedHosts of a GatewayPool',
    }),
  },
  {
    additionalProperties: false,
    cel: [urlRule('self.url')],
    description:
      'Only of a rule that permits: what it has permitted is posted there, some seconds later, by the controller',
  },
);
