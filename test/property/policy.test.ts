/**
 * The evaluator against a naive one written from design §4.1–4.4 alone (plain loops over text, no code of policy/),
 * explain against decide, and boxes against the services that they stand for: same union, disjoint, merged.
 * Small pools of addresses and ports on purpose, so that most draws meet.
 */

import fc from 'fast-check';
import t from 'tap';
import { parseAddress, parseRange } from '../../api/address.ts';
import type { Action, Context, Family, Policy, PortEntry, Redirect, RuleEntry, ServiceEntry } from '../../api/plan.ts';
import { contexts, families } from '../../api/plan.ts';
import type { Boxes } from '../../policy/boxes.ts';
import { boxesOf } from '../../policy/boxes.ts';
import type { AuditHit, Decision, Flow, RedirectTarget } from '../../policy/evaluate.ts';
import { compilePolicy } from '../../policy/evaluate.ts';

const prefix = { 4: '198.51.100.', 6: '2001:db8::' } as const;
const sources = { 4: ['10.244.1.1', '10.244.1.2', '10.244.1.3'], 6: ['fd00::1', 'fd00::2', 'fd00::3'] } as const;
const host = (family: Family, n: number): string => `${prefix[family]}${family === 4 ? n : n.toString(16)}`;
const SPAN = 24;

const familyOf = fc.constantFrom(...families);
const addressText = fc
  .tuple(
    familyOf,
    fc.integer({ min: 1, max: SPAN }),
    fc.integer({ min: 0, max: 6 }),
    fc.constantFrom('one', 'range', 'net'),
  )
  .map(([family, n, more, form]) => {
    if (form === 'one') return `${host(family, n)}/${family === 4 ? 32 : 128}`;
    if (form === 'range') return `${host(family, n)}-${host(family, n + more)}`;
    return `${host(family, n - (n % 4))}/${family === 4 ? 30 : 126}`.replace('::0/', '::/');
  });
const protocol = fc.constantFrom(1, 6, 17, 47, 58, 132);
/** Of ICMP 256 to a type: 8/0, 8/3, 9/0, 128/0. */
const portRange = fc
  .tuple(
    fc.constantFrom(1, 7, 79, 80, 81, 443, 0x0800, 0x0803, 0x0900, 0x8000, 65535),
    fc.constantFrom(0, 0, 1, 3, 255, 600),
  )
  .map(([first, more]): [number, number] => [first, Math.min(65535, first + more)]);
const portEntry: fc.Arbitrary<PortEntry> = fc.record({
  protocol,
  ports: fc.option(fc.array(portRange, { maxLength: 3 })),
});
const service: fc.Arbitrary<ServiceEntry> = fc.record({
  addresses: fc.array(addressText, { maxLength: 5 }),
  ports: fc.option(fc.array(portEntry, { maxLength: 3 })),
});
const action = fc.constantFrom<Action>('accept', 'accept', 'accept', 'accept-decisively', 'drop', 'reject');
const serviceNames = ['a/1', 'a/2', 'a/3', 'a/gone'];

const LAST_TARGET = 12;
const redirect: fc.Arbitrary<Redirect> = fc
  .record({
    family: familyOf,
    n: fc.integer({ min: 1, max: LAST_TARGET }),
    port: fc.constantFrom(undefined, 80, 443),
    forbidden: fc.constantFrom(undefined, undefined, undefined, 'it is the address of a pod'),
  })
  .map(({ family, n, port, forbidden }) => ({
    address: host(family, n),
    ...(port !== undefined && { port }),
    ...(forbidden !== undefined && { forbidden }),
  }));

const rule = fc.record({
  context: fc.constantFrom<Context>(...contexts),
  action,
  audit: fc.constantFrom(false, false, true),
  redirect: fc.option(redirect, { freq: 3 }),
  limited: fc.boolean(),
  names: fc.oneof(
    { weight: 3, arbitrary: fc.subarray(serviceNames) },
    { weight: 1, arbitrary: fc.constant('*' as const) },
  ),
});
/** What lets go there by a redirect of its own to the same address, perhaps with another port, or forbidden to it. */
const sibling = fc.constantFrom(undefined, undefined, {}, { port: 80 }, { port: 443 }, { forbidden: 'it is a pod' });
/** Of one group: words from above on some places, and a redirect of all that gets past them. */
const ledAway = fc.tuple(rule, rule, redirect, sibling).map(([first, second, to, other]) => [
  { ...first, context: 'cluster' as const, names: ['a/there'] },
  other === undefined
    ? { ...second, context: 'namespace' as const }
    : {
        context: 'namespace' as const,
        action: 'accept-decisively' as const,
        audit: false,
        redirect: { address: to.address, ...(to.port !== undefined && { port: to.port }), ...other },
        limited: false,
        names: ['a/there'],
      },
  {
    context: 'service' as const,
    action: 'accept' as const,
    audit: false,
    redirect: to,
    limited: true,
    names: '*' as const,
  },
]);
/** Where redirects lead. */
const there: ServiceEntry = { addresses: families.map((f) => `${host(f, 1)}-${host(f, LAST_TARGET)}`), ports: null };

const policy: fc.Arbitrary<Policy> = fc
  .record({
    services: fc.tuple(service, service, service),
    rules: fc.array(rule, { maxLength: 7 }),
    led: fc.oneof(fc.constant([]), ledAway),
    applies: fc.array(fc.subarray([0, 1, 2, 3, 4, 5, 6]), { minLength: 2, maxLength: 2 }),
    audited: fc.tuple(fc.boolean(), fc.boolean()),
    defaultAction: fc.constantFrom('Drop', 'Accept', undefined),
  })
  .map(({ services, rules, led, applies: drawn, audited, defaultAction }) => {
    const applies = drawn.map((group, n) => (n === 0 ? [...group, ...[0, 1, 2].map((i) => rules.length + i)] : group));
    const entries = [...rules, ...led].map(
      ({ context, action, audit, redirect, limited, names }, index): RuleEntry => ({
        context,
        name: `r${index}`,
        action,
        ...(audit && { mode: 'Audit' }),
        priority: 0,
        services: names,
        ...(redirect && action.startsWith('accept') && { redirect }),
        ...(limited && action.startsWith('accept') && { limits: { maxConnections: 1 } }),
      }),
    );
    const idsOf = (group: number[], context: Context): string[] =>
      group.filter((index) => entries[index]?.context === context).map((index) => `${context}/r${index}`);
    const groups = applies.map((group, index) => ({
      namespace: 'a',
      ...(audited[index] && { audit: true }),
      rules: {
        cluster: idsOf(group, 'cluster'),
        namespace: idsOf(group, 'namespace'),
        service: idsOf(group, 'service'),
      },
    }));
    const workload = (n: number) => ({
      namespace: 'a',
      name: `p${n}`,
      uid: `u${n}`,
      node: 'n',
      services: [],
      addresses: [sources[4][n] ?? '', sources[6][n] ?? ''],
      group: `g${n}`,
      egress: {},
    });
    const settings = defaultAction === undefined ? {} : { pool: { defaultAction } };
    return {
      settings,
      services: {
        ...Object.fromEntries(services.map((entry, index) => [`a/${index + 1}`, entry])),
        'a/there': there,
      },
      rules: Object.fromEntries(entries.map((entry) => [`${entry.context}/${entry.name}`, entry])),
      groups: Object.fromEntries(groups.map((group, index) => [`g${index}`, group])),
      workloads: { u0: workload(0), u1: workload(1) },
    } as Policy;
  });

const flow: fc.Arbitrary<Flow> = fc
  .tuple(
    familyOf,
    fc.integer({ min: 0, max: 2 }),
    fc.integer({ min: 1, max: SPAN + 8 }),
    protocol,
    portRange,
    fc.boolean(),
  )
  .map(([family, source, destination, number, [port], shown]) => ({
    source: sources[family][source] ?? '',
    destination: host(family, destination),
    protocol: number,
    ...(shown && { destinationPort: port, icmpType: Math.floor(port / 256), icmpCode: port % 256 }),
  }));

/** Design §3, mode, and §4.7: what the policy would say if rules in audit were not there, and which of those would have come in. */
function naive(p: Policy, f: Flow): Decision {
  const workload = Object.values(p.workloads).find((w) => w.addresses.includes(f.source));
  if (!workload) return { verdict: 'drop', reason: 'unknown-source' };
  const group = p.groups[workload.group];
  const without = (id: string): boolean => p.rules[id]?.mode !== 'Audit';
  const rules = { cluster: [], namespace: [], service: [], ...group?.rules } as Record<Context, string[]>;
  const audited: AuditHit[] = [];
  for (const context of contexts) {
    const said = naiveWalk({ ...rules, [context]: rules[context].filter(without) }, p, f);
    // The walk ended before this context.
    const ended = said.reason === 'rule' && contexts.indexOf(said.context as Context) < contexts.indexOf(context);
    if (ended) break;
    for (const rule of rules[context]) {
      const entry = p.rules[rule] as RuleEntry;
      if (!matches(entry, p, f)) continue;
      if (without(rule)) break;
      audited.push({ context, rule, action: entry.action });
    }
    rules[context] = rules[context].filter(without);
  }
  const said = naiveWalk(rules, p, f);
  const target = said.verdict === 'accept' ? targetOf(p.rules[said.rule ?? ''], said.rule ?? '', f) : undefined;
  const enforced = target === undefined ? said : again(said, target, group?.rules, p, f, audited);
  // Those that decided their context, up to where the walk ended.
  const end = said.reason === 'rule' ? contexts.indexOf(said.context as Context) : contexts.length;
  const limits = contexts
    .filter((_, at) => at <= end)
    .map((context) => rules[context].find((id) => matches(p.rules[id] as RuleEntry, p, f)) ?? '')
    .filter((id) => p.rules[id]?.limits !== undefined);
  const passes = group?.audit === true && enforced.verdict !== 'accept';
  const { redirect, ...rest } = enforced;
  return {
    ...rest,
    ...(limits.length > 0 && { limits }),
    ...(redirect && (group?.audit ? { wouldRedirect: redirect } : { redirect })),
    ...(passes && { verdict: 'accept', wouldHave: enforced.verdict as 'drop' | 'reject' }),
    ...(audited.length > 0 && { audited }),
  };
}

/** Where a rule that permits sends a flow. */
function targetOf(rule: RuleEntry | undefined, by: string, { destinationPort }: Flow): RedirectTarget | undefined {
  if (rule?.redirect === undefined) return undefined;
  const port = rule.redirect.port ?? destinationPort;
  return { by, address: rule.redirect.address, ...(port !== undefined && { port }) };
}

/**
 * Design §4.7: the cluster and namespace contexts for the new destination. Nothing in them forbids it: it is permitted.
 * Where a rule that permits it decisively would send it elsewhere, or to where it may not: it is not.
 */
function again(
  said: Decision,
  target: RedirectTarget,
  rules: Record<Context, string[]> | undefined,
  p: Policy,
  f: Flow,
  audited: AuditHit[],
): Decision {
  const refused = { verdict: 'drop', reason: 'redirect', wouldRedirect: target } as const;
  if (p.rules[target.by]?.redirect?.forbidden !== undefined) return { ...said, ...refused };
  const to: Flow = { ...f, destination: target.address };
  if (target.port !== undefined) to.destinationPort = target.port;
  for (const context of ['cluster', 'namespace'] as const) {
    const speak = (rules?.[context] ?? []).filter((id) => matches(p.rules[id] as RuleEntry, p, to));
    const id = speak.find((candidate) => p.rules[candidate]?.mode !== 'Audit');
    for (const rule of id === undefined ? speak : speak.slice(0, speak.indexOf(id))) {
      const action = p.rules[rule]?.action;
      if (action === 'drop' || action === 'reject') audited.push({ context, rule, action });
    }
    const rule = p.rules[id ?? ''];
    if (id === undefined || rule?.action === 'accept') continue;
    if (rule?.action === 'drop' || rule?.action === 'reject') {
      return { verdict: rule.action, reason: 'rule', context, rule: id, wouldRedirect: target };
    }
    const next = targetOf(rule, id, to);
    const elsewhere = next !== undefined && (next.address !== target.address || next.port !== target.port);
    if (elsewhere || rule?.redirect?.forbidden !== undefined) return { ...said, ...refused, context, rule: id };
    break;
  }
  return { ...said, redirect: target };
}

/** A rule that redirects speaks of what can be redirected: the family of its address, and protocols with ports. */
function matches({ services, redirect }: RuleEntry, p: Policy, f: Flow): boolean {
  const there = redirect?.address.includes(':');
  if (there !== undefined && (there !== f.destination.includes(':') || ![6, 17, 132].includes(f.protocol)))
    return false;
  return services === '*' || services.some((name) => lies(f, p.services[name]));
}

/** Design §4.1–4.4, sentence by sentence. */
function naiveWalk(rules: Record<Context, string[]>, p: Policy, f: Flow): Decision {
  let accepted = '';
  for (const context of contexts) {
    const id = rules[context].find((candidate) => matches(p.rules[candidate] as RuleEntry, p, f));
    if (id === undefined) continue;
    const what = p.rules[id]?.action;
    if (what === 'drop' || what === 'reject') return { verdict: what, reason: 'rule', context, rule: id };
    if (what === 'accept-decisively') return { verdict: 'accept', reason: 'rule', context, rule: id };
    if (context === 'service') accepted = id;
  }
  if (accepted !== '') return { verdict: 'accept', reason: 'service-accept', context: 'service', rule: accepted };
  const verdict = 'pool' in p.settings && p.settings.pool.defaultAction === 'Accept' ? 'accept' : 'drop';
  return { verdict, reason: 'default-action' };
}

/** Every test address is `prefix` and a number, so text is enough. */
function lies(f: Flow, entry: ServiceEntry | undefined): boolean {
  if (!entry) return false;
  const family: Family = f.destination.includes(':') ? 6 : 4;
  const number = (text: string): number =>
    Number.parseInt(text.slice(prefix[family].length) || '0', family === 4 ? 10 : 16);
  const inAddresses = entry.addresses.some((text) => {
    if (!text.startsWith(prefix[family])) return false;
    const n = number(f.destination);
    const [first = '', last] = text.split('-');
    if (last !== undefined) return number(first) <= n && n <= number(last);
    const [base = '', length] = text.split('/');
    return number(base) <= n && n < number(base) + 2 ** ((family === 4 ? 32 : 128) - Number(length));
  });
  if (!inAddresses) return false;
  if (entry.ports === null) return true;
  return entry.ports.some(({ protocol: number, ports }) => {
    if (number !== f.protocol) return false;
    if (ports === null || ![1, 6, 17, 58, 132].includes(number)) return true;
    const port = shownBy(f);
    return port !== undefined && ports.some(([first, last]) => port >= first && port <= last);
  });
}

/** Port, or type and code of the family's own ICMP. */
function shownBy({ destination, protocol: number, destinationPort, icmpType = -1, icmpCode = 0 }: Flow) {
  if ([6, 17, 132].includes(number)) return destinationPort;
  return number === (destination.includes(':') ? 58 : 1) && icmpType >= 0 ? 256 * icmpType + icmpCode : undefined;
}

t.test('decide is what the design says, and explain tells the same walk', async (t) => {
  const reasons = new Set<string>();
  const property = fc.property(policy, fc.array(flow, { minLength: 5, maxLength: 20 }), (p, flows) => {
    const evaluator = compilePolicy(p);
    for (const f of flows) {
      const expected = naive(p, f);
      const decision = evaluator.decide(f);
      assertSame(decision, expected);
      const explanation = evaluator.explain(f);
      assertSame(explanation.decision, expected);
      const { steps, again: second = [] } = explanation;
      const deciding = steps.filter((step) => step.matched && !step.audit).map((step) => step.rule);
      const vetoes = second.filter(({ action }) => action === 'drop' || action === 'reject');
      const skipped = [...steps, ...vetoes].filter((step) => step.matched && step.audit).map((step) => step.rule);
      assertSame(
        skipped,
        (decision.audited ?? []).map(({ rule }) => rule),
      );
      const last = second.filter((step) => step.matched && !step.audit).at(-1)?.rule;
      const decidedAgain = decision.rule !== undefined && decision.rule !== deciding.at(-1);
      if (decidedAgain) assertSame(last, decision.rule);
      if ([...steps, ...second].some(({ why }) => why === '') || explanation.summary === '')
        throw new Error('no words');
      if (decision.redirect !== undefined) reasons.add('redirected');
      if (decidedAgain) reasons.add(`the second walk: ${decision.reason}`);
      const other = p.rules[decision.rule ?? '']?.redirect;
      if (decidedAgain && other?.address === decision.wouldRedirect?.address) {
        reasons.add(other?.forbidden === undefined ? 'there by another port' : 'there, where it may not');
      }
      reasons.add(`${decision.reason} ${decision.wouldHave ?? decision.verdict} ${decision.context}`);
      if (decision.wouldHave !== undefined) reasons.add('the policy in audit');
      if (decision.audited !== undefined) reasons.add('a rule in audit');
      if (decision.limits !== undefined) reasons.add('limits');
    }
  });
  t.doesNotThrow(() => fc.assert(property, { numRuns: 1500 }));
  // The draws reach every outcome that there is.
  t.equal(reasons.size, 1 + 3 * 3 + 1 + 2 + 2 + 3 + 3 + 1 + 2, [...reasons].join(', '));
});

t.test('boxes: the union is exact, each list is disjoint, neighbours are merged', async (t) => {
  const probes = fc.array(flow, { minLength: 40, maxLength: 40 });
  const property = fc.property(fc.array(service, { maxLength: 6 }), probes, (services, flows) => {
    for (const family of families) {
      const boxes = boxesOf(services, family);
      assertDisjoint(boxes);
      for (const f of flows) {
        if (f.destination.includes(':') !== (family === 6)) continue;
        assertSame(
          boxed(boxes, f),
          services.some((entry) => lies(f, entry)),
        );
      }
    }
  });
  t.doesNotThrow(() => fc.assert(property, { numRuns: 1000 }));
});

t.test('boxes: cutting a service up changes nothing', async (t) => {
  const property = fc.property(
    fc.array(service, { maxLength: 4 }),
    fc.infiniteStream(fc.boolean()),
    (services, coin) => {
      const pieces = services.flatMap((entry) =>
        entry.addresses.flatMap((text) => cut(text, coin)).map((text) => ({ ...entry, addresses: [text] })),
      );
      for (const family of families) assertSame(boxesOf(pieces.toReversed(), family), boxesOf(services, family));
    },
  );
  t.doesNotThrow(() => fc.assert(property, { numRuns: 300 }));
});

t.test('boxes: some thousand addresses with many ports in well under a second each', async (t) => {
  const address = (n: number): string => `10.${(n >> 16) & 255}.${(n >> 8) & 255}.${n & 255}/32`;
  const shapes: Record<string, ServiceEntry[]> = {
    'neighbours in one service': [
      { addresses: Array.from({ length: 6000 }, (_, n) => address(n)), ports: [{ protocol: 6, ports: [[443, 443]] }] },
    ],
    'a service per address': Array.from({ length: 4000 }, (_, n) => ({
      addresses: [address(2 * n)],
      ports: [{ protocol: 6, ports: [[n % 50, n % 50]] }],
    })),
    'a pyramid, wider ports further in': Array.from({ length: 1500 }, (_, n) => ({
      addresses: [`${address(n).slice(0, -3)}-${address(5000 - n).slice(0, -3)}`],
      ports: [{ protocol: 6, ports: [[2000 - n, 2000 + n]] }],
    })),
  };
  for (const [shape, services] of Object.entries(shapes)) {
    const before = performance.now();
    const boxes = boxesOf(services, 4);
    const took = performance.now() - before;
    t.ok(took < 3000, `${shape}: ${took.toFixed(0)} ms, ${boxes.ports.length} boxes`);
  }
  t.equal(boxesOf(shapes['neighbours in one service'] ?? [], 4).ports.length, 1);
  t.equal(boxesOf(shapes['a pyramid, wider ports further in'] ?? [], 4).ports.length, 2 * 1500 - 1);
});

function assertSame(actual: unknown, expected: unknown): void {
  const text = (value: unknown): string => JSON.stringify(value, (_, v) => (typeof v === 'bigint' ? `${v}` : v));
  const sorted = (value: unknown): unknown =>
    value !== null && typeof value === 'object' && !Array.isArray(value)
      ? Object.fromEntries(Object.entries(value).sort())
      : value;
  if (text(sorted(actual)) !== text(sorted(expected))) throw new Error(`${text(actual)}, expected ${text(expected)}`);
}

function boxed(boxes: Boxes, f: Flow): boolean {
  const parsed = parseAddress(f.destination);
  if (!parsed.ok) throw new Error(parsed.error);
  const n = parsed.value.value;
  const inside = (range: { first: bigint; last: bigint }): boolean => range.first <= n && n <= range.last;
  const port = shownBy(f);
  return (
    boxes.addresses.some(inside) ||
    boxes.protocols.some((box) => inside(box.range) && box.protocol === f.protocol) ||
    boxes.ports.some(
      (box) =>
        inside(box.range) && box.protocol === f.protocol && port !== undefined && box.first <= port && port <= box.last,
    )
  );
}

function assertDisjoint(boxes: Boxes): void {
  const rectangles = {
    addresses: boxes.addresses.map((range) => ({ range, protocol: 0, first: 0, last: 0 })),
    protocols: boxes.protocols.map((box) => ({ ...box, first: 0, last: 0 })),
    ports: boxes.ports,
  };
  for (const [list, boxesOfList] of Object.entries(rectangles)) {
    boxesOfList.forEach((a, index) => {
      if (a.range.first > a.range.last || a.first > a.last) throw new Error(`empty box in ${list}`);
      for (const b of boxesOfList.slice(index + 1)) {
        if (a.protocol !== b.protocol) continue;
        const apart = a.range.last < b.range.first || b.range.last < a.range.first;
        const portsApart = a.last < b.first || b.last < a.first;
        if (!apart && !portsApart) throw new Error(`overlap in ${list}`);
        // Side by side with the same other side: they should be one.
        const touch = a.range.last + 1n === b.range.first || b.range.last + 1n === a.range.first;
        if (touch && a.first === b.first && a.last === b.last) throw new Error(`not merged in ${list}`);
        const sameRange = a.range.first === b.range.first && a.range.last === b.range.last;
        if (sameRange && (a.last + 1 === b.first || b.last + 1 === a.first)) throw new Error(`not merged in ${list}`);
      }
    });
  }
}

/** One address text as one or two that together are the same. */
function cut(text: string, coin: fc.Stream<boolean>): string[] {
  const parsed = parseRange(text);
  if (!parsed.ok) throw new Error(parsed.error);
  const { family, first, last } = parsed.value;
  const [heads] = coin.take(1);
  if (first === last || !heads) return [text];
  const base = parseRange(host(family, 1));
  if (!base.ok) throw new Error(base.error);
  const nth = (value: bigint): string => host(family, Number(value - base.value.first) + 1);
  return [`${nth(first)}-${nth(first)}`, `${nth(first + 1n)}-${nth(last)}`];
}
