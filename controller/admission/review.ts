/**
 * Whether a change of an object of ours is taken, and what its author is told (docs/admission.md). What the API server
 * cannot say itself: everything that parseObject refuses, what the planner would not carry out, and what would take from
 * another object or strand workloads. What an object in force suffers from already is a warning only, so that it can
 * still be changed. Nothing in force rests on this: the planner looks at everything again. Pure.
 */
import {
  type AnyObject,
  immutableFields,
  objectKey,
  parseObject,
  type SluiceObject,
  sluiceKinds,
} from '../../api/kinds.ts';
import { isRecord, sameJson } from '../../api/plan-delta.ts';
import { errorTexts } from '../observe/document.ts';
import { changed, type Objects } from '../plan/objects.ts';
import { type Carrying, refusedDeletion } from './deletion.ts';
import { heldServices } from './finalizers.ts';
import { effectsOn, problemsOf, rulesNaming, type Surroundings } from './problems.ts';

/** `objects`: those in force. */
export interface AdmissionWorld extends Carrying, Surroundings {}

export interface AdmissionRequest {
  operation: 'CREATE' | 'UPDATE' | 'DELETE' | 'CONNECT';
  subResource?: string;
  /** As the API server has them, defaults filled in. */
  object?: unknown;
  oldObject?: unknown;
}

export interface Verdict {
  allowed: boolean;
  /** Of what is denied. */
  status?: { code: number; reason: 'Invalid' | 'Forbidden'; message: string };
  warnings: string[];
}

/** More than a person reads at once. */
const MAX_PROBLEMS = 20;

export function review(request: AdmissionRequest, world: AdmissionWorld): Verdict {
  const { operation, subResource = '', object, oldObject } = request;
  if (subResource !== '' || operation === 'CONNECT' || isBeingDeleted(oldObject)) return allowed;
  if (operation === 'DELETE') return isOurs(oldObject) ? reviewDeletion(oldObject, world) : allowed;
  if (!isOurs(object)) return allowed;
  if (operation === 'UPDATE' && sameSpec(object, oldObject)) return allowed;
  const parsed = parseObject(dated(object, world.now));
  if (!parsed.ok) return invalid(errorTexts(parsed.errors));
  const old = operation === 'UPDATE' ? parseObject(oldObject) : undefined;
  return reviewChange(parsed.value as SluiceObject, old?.ok ? (old.value as SluiceObject) : undefined, world);
}

function reviewChange(object: SluiceObject, old: SluiceObject | undefined, world: AdmissionWorld): Verdict {
  const unchangeable = old === undefined ? [] : immutable(object, old);
  if (unchangeable.length > 0) return invalid(unchangeable);
  const inForce = objectInForce(world.objects, object);
  // The API server is ahead of what was observed.
  const same = old === undefined || (inForce !== undefined && sameJson(inForce.spec, old.spec));
  const before = same ? world.objects : changed(world.objects, inForce, old);
  const was = same ? inForce : old;
  const after = changed(before, was, object);
  // What an object that is there says already is no news; one that is made anew has said nothing.
  const known = new Set(old === undefined || was === undefined ? [] : textsOf(was, before, world));
  const own = problemsOf(object, after, world);
  const denied = own.filter((problem) => problem.denied && !known.has(problem.text)).map(({ text }) => text);
  const warnings = own.filter((problem) => !problem.denied || known.has(problem.text)).map(({ text }) => text);
  for (const { key, problem } of effectsOn(object, before, after, world)) {
    if (problem.denied) denied.push(`spec: it would take from ${key} what that has (${problem.text})`);
    else warnings.push(`then ${key}: ${problem.text}`);
  }
  return denied.length > 0 ? invalid(denied, warnings) : { allowed: true, warnings };
}

const textsOf = (object: SluiceObject, objects: Objects, world: AdmissionWorld): string[] =>
  problemsOf(object, objects, world).map(({ text }) => text);

function reviewDeletion(input: Record<string, unknown>, world: AdmissionWorld): Verdict {
  const parsed = parseObject(input);
  // What cannot be read is not in force as it is there.
  const object = parsed.ok ? (parsed.value as SluiceObject) : undefined;
  const there = objectInForce(world.objects, object ?? input) ?? object;
  if (there === undefined) return allowed;
  const message = refusedDeletion({ ...there, metadata: { ...there.metadata, ...annotationsOf(input) } }, world);
  if (message !== undefined)
    return { allowed: false, status: { code: 403, reason: 'Forbidden', message }, warnings: [] };
  const warnings: string[] = [];
  if (there.kind === 'ExternalService') {
    const holders = heldServices(world.objects).get(objectKey(there)) ?? [];
    if (holders.length > 0) {
      warnings.push(`it stays until no drop or reject rule names it: ${listed(holders)}`);
    }
    const others = rulesNaming(there, world.objects)
      .map(objectKey)
      .filter((key) => !holders.includes(key));
    if (others.length > 0) warnings.push(`named by ${listed(others)}`);
  }
  const inForce = objectInForce(world.objects, there);
  if (inForce !== undefined && there.kind !== 'ExternalService') {
    const after = changed(world.objects, inForce, undefined);
    for (const { key, problem } of effectsOn(there, world.objects, after, world)) {
      warnings.push(`then ${key}: ${problem.text}`);
    }
  }
  return { allowed: true, warnings };
}

const allowed: Verdict = { allowed: true, warnings: [] };

/** The API server says which object; messages only what of it. */
const invalid = (problems: readonly string[], warnings: string[] = []): Verdict => ({
  allowed: false,
  status: { code: 422, reason: 'Invalid', message: listed(problems, '; ') },
  warnings,
});

function listed(items: readonly string[], between = ', '): string {
  const more = items.length - MAX_PROBLEMS;
  return more > 0 ? `${items.slice(0, MAX_PROBLEMS).join(between)}${between}and ${more} more` : items.join(between);
}

const kinds = new Map<unknown, (typeof sluiceKinds)[number]>(sluiceKinds.map((info) => [info.kind, info]));
const isOurs = (input: unknown): input is Record<string, unknown> => isRecord(input) && kinds.has(input.kind);

const metadataOf = (input: unknown): Record<string, unknown> =>
  isRecord(input) && isRecord(input.metadata) ? input.metadata : {};
const isBeingDeleted = (input: unknown): boolean => typeof metadataOf(input).deletionTimestamp === 'string';

function annotationsOf(input: unknown): { annotations?: Record<string, string> } {
  const { annotations } = metadataOf(input);
  return isRecord(annotations) ? { annotations: annotations as Record<string, string> } : {};
}

function sameSpec(object: Record<string, unknown>, old: unknown): boolean {
  try {
    return isRecord(old) && sameJson(object.spec, old.spec);
  } catch {
    // Nested deeper than the stack: parseObject says so.
    return false;
  }
}

/** With what the API server fills in after it has asked, so that the object is the youngest. */
function dated(object: Record<string, unknown>, now: number): Record<string, unknown> {
  const metadata = metadataOf(object);
  const { creationTimestamp, name, generateName } = metadata;
  if (typeof creationTimestamp === 'string' && typeof name === 'string') return object;
  return {
    ...object,
    metadata: {
      ...metadata,
      ...(typeof creationTimestamp === 'string'
        ? {}
        : { creationTimestamp: `${new Date(now).toISOString().slice(0, 19)}Z` }),
      ...(typeof name !== 'string' && typeof generateName === 'string' ? { name: `${generateName}0` } : {}),
    },
  };
}

function immutable(object: SluiceObject, old: SluiceObject): string[] {
  const info = kinds.get(object.kind);
  const [is, was] = [object.spec, old.spec] as unknown as Record<string, unknown>[];
  return (info === undefined ? [] : immutableFields(info)).flatMap((field) =>
    sameJson(is?.[field], was?.[field])
      ? []
      : [`spec.${field}: cannot be changed (it is ${JSON.stringify(was?.[field])}); make another object instead`],
  );
}

/** The same object as it was observed. */
function objectInForce(objects: Objects, object: { kind?: unknown; metadata?: unknown }): SluiceObject | undefined {
  const { name, namespace } = metadataOf(object);
  const place = typeof namespace === 'string' ? objects.namespaces.get(namespace) : undefined;
  const list: readonly AnyObject[] = {
    GatewayPool: objects.GatewayPool,
    EgressIPPool: objects.EgressIPPool,
    EgressIP: objects.EgressIP,
    ClusterEgressRule: objects.ClusterEgressRule,
    ExternalService: place?.externalServices ?? [],
    NamespaceEgressRule: place?.namespaceRules ?? [],
    ServiceEgressRule: place?.serviceRules ?? [],
  }[object.kind as SluiceObject['kind']];
  return list.find(({ metadata }) => metadata.name === name) as SluiceObject | undefined;
}
