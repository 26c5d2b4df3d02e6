/**
 * Rules that redirect, as chains (design §4.7). The new destination is known when the policy is compiled, so the second
 * walk looks up no address: of each rule of the contexts above only the protocols and ports are left with which it
 * speaks of that address. All of them are asked before the packet is touched, and its translation ends the chain.
 */
import { formatAddress, parseRange } from '../api/address.ts';
import { digest } from '../api/digest.ts';
import type { GroupEntry, RuleEntry, ServiceEntry } from '../api/plan.ts';
import { portProtocols } from '../api/ports.ts';
import { PrefixSet } from '../api/prefix-set.ts';
import { must } from '../api/result.ts';
import { concat, markText, portsText, protocolText } from '../kernel/nft.ts';
import { boxesOf } from '../policy/boxes.ts';
import { openParts, unreadPart } from '../policy/parts.ts';
import { type CompiledRedirect, compileRedirect, redirectContexts } from '../policy/redirect.ts';
import { header, type PolicyView } from './destination-sets.ts';
import { REDIRECTS_NO_MORE } from './marks.ts';
import type { Scope } from './table.ts';

/** Set of the protocols that can be redirected. */
const REDIRECTABLE_SET = 'redirectable';

/** What becomes of a packet that a rule matches on its second walk, as statements. */
export interface RedirectVerdicts {
  /** In audit: counted, and on to the next rule. */
  audited(match: string, id: string): string[];
  denied(id: string, rule: RuleEntry): string;
  /** The redirect is forbidden, in the name of this rule. */
  forbidden(id: string): string;
  /** Permitted in the name of the rule that redirects; `translate` are the rules that do so. */
  permitted(id: string, translate: string[]): string;
}

/** Of a service: what matches before a flow is read, or what may (policy/parts.ts). */
type Part = 'unread' | 'open';

export class Redirects {
  readonly #policy: PolicyView;
  readonly #scope: Scope;
  readonly #asked: boolean;
  readonly #addresses = new Map<string, PrefixSet>();
  readonly #matches = new Map<string, { match: string | undefined }>();

  /** `asked`: of some flows it was asked before whether they are to be read. */
  constructor(policy: PolicyView, scope: Scope, asked: boolean) {
    this.#policy = policy;
    this.#scope = scope;
    this.#asked = asked;
  }

  /** What can be redirected there at all: a match before all others. */
  guard(redirect: CompiledRedirect): string {
    this.#scope.set(REDIRECTABLE_SET, {
      type: 'inet_proto',
      elements: new Map([...portProtocols].map((protocol) => [protocolText(protocol), ''])),
    });
    return `meta nfproto ipv${redirect.address.family} meta l4proto @${REDIRECTABLE_SET} `;
  }

  /** For what a rule of a group permits and redirects. */
  verdict(id: string, redirect: CompiledRedirect, group: GroupEntry, verdicts: RedirectVerdicts): string {
    if (redirect.forbidden !== undefined) return verdicts.forbidden(id);
    const permitted = verdicts.permitted(id, translations(redirect));
    const asked = redirectContexts.flatMap((context) => {
      const lines: string[] = [];
      for (const other of group.rules[context]) {
        const said = this.#lines(other, redirect, verdicts, permitted);
        lines.push(...said.lines);
        if (said.ends) break;
      }
      return lines.length === 0 ? [] : [`jump ${this.#scope.add(`${context}_again`, lines)}`];
    });
    const no = markText(REDIRECTS_NO_MORE);
    const unread = this.#asked ? [`ct mark and ${no} == ${no} ${verdicts.forbidden(id)}`] : [];
    const lines = [...unread, ...asked];
    return lines.length === 0 ? permitted : `goto ${this.#scope.add('redirect', [...lines, permitted])}`;
  }

  /** `ends`: no packet gets past them. */
  #lines(
    id: string,
    redirect: CompiledRedirect,
    verdicts: RedirectVerdicts,
    permitted: string,
  ): { lines: string[]; ends: boolean } {
    const rule = this.#policy.rules.get(id);
    if (rule === undefined) throw new TypeError(`the plan does not hold rule ${id}`);
    const own = rule.redirect && compileRedirect(rule.redirect);
    const denies = rule.action === 'drop' || rule.action === 'reject';
    const match = this.#match(rule.services, redirect, 'unread');
    // Whether it denies is not known before the flow is read, and then it can be redirected no more.
    const open = denies && rule.mode !== 'Audit' ? this.#match(rule.services, redirect, 'open') : undefined;
    const forbidden = open === undefined ? [] : [`${open}${verdicts.forbidden(id)}`];
    if (match === undefined) return { lines: forbidden, ends: open === '' };
    if (own !== undefined && own.address.family !== redirect.address.family) return { lines: [], ends: false };
    if (rule.mode === 'Audit') return { lines: denies ? verdicts.audited(match, id) : [], ends: false };
    const statements = denies
      ? [verdicts.denied(id, rule)]
      : rule.action === 'accept'
        ? ['return']
        : this.#decisively(id, own, redirect, verdicts, permitted);
    const lines = [...statements.map((statement) => `${match}${statement}`), ...forbidden];
    return { lines, ends: match === '' || open === '' };
  }

  /** With a redirect of its own, a rule lets go there only what it sends there itself: policy/redirect.ts. */
  #decisively(
    id: string,
    own: CompiledRedirect | undefined,
    { address, port }: CompiledRedirect,
    verdicts: RedirectVerdicts,
    permitted: string,
  ): string[] {
    if (own === undefined) return [permitted];
    const there = own.forbidden === undefined && own.address.value === address.value;
    if (there && (own.port === undefined || own.port === port)) return [permitted];
    const forbidden = verdicts.forbidden(id);
    return there && port === undefined ? [`th dport ${own.port} ${permitted}`, forbidden] : [forbidden];
  }

  /** What of a rule's destinations lies at the new one; the packet still has its own port. undefined: nothing. */
  #match(services: string[] | '*', redirect: CompiledRedirect, part: Part): string | undefined {
    if (services === '*') return part === 'unread' ? '' : undefined;
    const there = services.filter((name) => this.#addressesOf(name, part)?.has(redirect.address));
    if (there.length === 0) return undefined;
    // There may be many redirects and many rules about them, but few ports that these name.
    const key = `${part} ${redirect.port} ${there.join(',')}`;
    const known = this.#matches.get(key);
    if (known !== undefined) return known.match;
    const match = this.#ports(there, redirect, part);
    this.#matches.set(key, { match });
    return match;
  }

  #ports(services: string[], { address, port }: CompiledRedirect, part: Part): string | undefined {
    const addresses = [formatAddress(address)];
    const parts = services.flatMap((name) => this.#partsOf(name, part));
    const entries = parts.map((entry) => ({ ...entry, addresses }));
    const boxes = boxesOf(entries, address.family);
    if (boxes.addresses.length > 0) return '';
    const ports = boxes.ports
      .filter(({ protocol }) => portProtocols.has(protocol))
      .filter(({ first, last }) => port === undefined || (first <= port && port <= last));
    const whole = new Set(
      [...boxes.protocols, ...(port === undefined ? [] : ports)]
        .map(({ protocol }) => protocol)
        .filter((protocol) => portProtocols.has(protocol)),
    );
    const elements = [
      ...[...whole].map((protocol) => concat(protocolText(protocol), portsText(0, 65_535))),
      ...ports
        .filter(({ protocol }) => !whole.has(protocol))
        .map(({ protocol, first, last }) => concat(protocolText(protocol), portsText(first, last))),
    ];
    if (elements.length === 0) return undefined;
    if (whole.size === portProtocols.size) return '';
    const name = `at_${digest(elements.join(','))}`;
    const type = 'inet_proto . inet_service';
    this.#scope.set(name, { type, interval: true, elements: new Map(elements.map((element) => [element, ''])) });
    return `meta l4proto . th dport @${name} `;
  }

  #addressesOf(name: string, part: Part): PrefixSet | undefined {
    const key = `${part} ${name}`;
    let made = this.#addresses.get(key);
    const parts = made === undefined ? this.#partsOf(name, part) : [];
    if (parts.length > 0) {
      made = PrefixSet.of(parts.flatMap(({ addresses }) => addresses.map((text) => must(parseRange(text)))));
      this.#addresses.set(key, made);
    }
    return made;
  }

  #partsOf(name: string, part: Part): ServiceEntry[] {
    const entry = this.#policy.services.get(name);
    if (entry === undefined) return [];
    return part === 'open' ? openParts(entry).map(({ boxes }) => boxes) : [unreadPart(entry) ?? []].flat();
  }
}

/** A port can be given only where the rule itself says of which protocol. */
function translations({ address, port }: CompiledRedirect): string[] {
  const text = formatAddress(address);
  const dnat = `dnat ${header[address.family]} to`;
  if (port === undefined) return [`${dnat} ${text}`];
  const to = address.family === 6 ? `[${text}]:${port}` : `${text}:${port}`;
  return [...portProtocols].map((protocol) => `meta l4proto ${protocolText(protocol)} ${dnat} ${to}`);
}
