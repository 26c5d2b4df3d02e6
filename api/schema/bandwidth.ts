/** A bandwidth as a field of the kinds (api/bandwidth.ts reads it). */
import { Type } from 'typebox';

/** What the kernel's arithmetic of byte limits can take (nanoseconds times bytes a second in 64 bits). */
const MAX = '100Gbit';
/** For the API server too. Each unit up to 100 Gbit. */
const pattern = '^([1-9][0-9]{0,7}kbit|[1-9][0-9]{0,4}Mbit|([1-9][0-9]?|100)Gbit)$';

export const bandwidthText = (options: object = {}) =>
  Type.String({
    pattern,
    maxLength: 16,
    expected: `a rate like 50Mbit: a whole number with kbit, Mbit or Gbit, up to ${MAX}`,
    ...options,
  });
