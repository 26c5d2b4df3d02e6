/**
 * Walks untrusted input along a TypeBox schema: returns a fresh copy of the known fields with defaults filled in, or
 * errors as (path, expected, got). TypeBox's own validator is not used, since it keeps the input object (prototype and
 * all) and its errors name neither what was expected of a union nor what was got; the property test holds this walk to
 * it. Understands only the keywords that the schemas in this folder use, and throws on others at once.
 */

export interface FieldError {
  /** `spec.gateways[1].name`; '' is the document itself. */
  path: string;
  expected: string;
  got: string;
}
