/**
 * A decider of inspection without a kernel: packets of real bytes go in with the marks that the table sluice_inspect gives
 * them, and what becomes of each is written down in words. Beside it clients and servers of TCP that say what a test wants
 * them to, and a policy of one pod.
 */
import { equal, ok } from 'node:assert/strict';
import {
  CT_RULE_MASK,
  CT_RULE_SHIFT,
  GATEWAY_CHECKED_MARK,
  GATEWAY_PROHIBIT_MARK,
  GATEWAY_RESET_MARK,
  INSPECT_FIRST_MARK,
  INSPECT_LIFE_MARK,
  INSPECT_PASSED_MARK,
  INSPECT_QUEUE_MARK,
  INSPECT_REPLY_MARK,
  INSPECT_VERDICT_MARK,
  NUMBER_READ_BYTES,
} from '../api/names.ts';
import type { Action, Context, Policy, PoolDns, PoolSettings, RuleEntry, ServiceEntry } from '../api/plan.ts';
import { InspectDecider } from '../gateway/inspect/decider.ts';
import type { DecidedFlow, DeciderData, FromDecider, ToDecider } from '../gateway/inspect/messages.ts';
import { unpackFlows } from '../gateway/inspect/packed-flows.ts';
import { ACCEPT, DROP, HOLD, type QueueControl } from '../kernel/queue-loop.ts';
import { buildTcp, buildUdp, parsePacket, TCP_ACK, TCP_PSH, TCP_RST, TCP_SYN } from '../wire/ip.ts';
import { QueuePacket } from '../wire/nfqueue.ts';

export const POD = '10.1.0.5';
export const SERVER = '192.0.2.10';
export const TCP_PORT = 40_000;
const UNTIL = 4_000_000_000_000;
/** Now, at the clock of names. */
export const EPOCH = 1_800_000_000_000;

export interface RigRule {
  name: string;
  action?: Action;
  context?: Context;
  services: string[] | '*';
  mode?: 'Audit';
}

export interface RigPolicy {
  services?: Record<string, ServiceEntry>;
  rules?: RigRule[];
  names?: [name: string, address: string][];
  audit?: true;
  defaultAction?: 'Drop' | 'Accept';
  dns?: PoolDns;
  data?: Partial<DeciderData>;
}

export function policyOf({ services = {}, rules = [], audit, defaultAction = 'Drop', dns }: RigPolicy): Policy {
  const entries = rules.map(({ name, action = 'accept-decisively', context = 'cluster', services: to, mode }) => {
    const entry: RuleEntry = { context, name, action, priority: 1000, services: to, ...(mode && { mode }) };
    return [`${context}/${name}`, entry] as const;
  });
  const of = (context: Context): string[] => entries.filter(([, entry]) => entry.context === context).map(([id]) => id);
  const pool: PoolSettings = {
    pool: 'main',
    defaultAction,
    unassigned: 'Drop',
    internalInterface: 'in',
    externalInterface: 'out',
    externalGateway: {},
    steering: { mode: 'VXLAN', vni: 7, port: 4793, mtu: null },
    clusterCIDRs: [],
    excludedCIDRs: [],
    ...(dns && { dns }),
  };
  return {
    settings: { pool },
    workloads: {
      pod: {
        namespace: 'shop',
        name: 'pod',
        uid: 'pod',
        node: 'n1',
        services: [],
        addresses: [POD, 'fd00::5'],
        group: 'g',
        egress: {},
      },
    },
    groups: {
      g: {
        namespace: 'shop',
        rules: { cluster: of('cluster'), namespace: of('namespace'), service: of('service') },
        ...(audit && { audit }),
      },
    },
    rules: Object.fromEntries(entries),
    services,
  };
}

interface Waiting {
  id: number;
  mark: number;
}

/** What left, in order: `3 passed`. */
export class Rig {
  readonly left: string[] = [];
  readonly posted: FromDecider[] = [];
  readonly flows: DecidedFlow[] = [];
  /** Sent raw. */
  readonly resets: string[] = [];
  readonly decider: InspectDecider;
  readonly inbox: ToDecider[] = [];
  now = 1_000;
  alarmAt = Number.POSITIVE_INFINITY;
  readonly #held = new Map<number, Waiting>();
  readonly #rules = new Map<number, string>();
  readonly #packet = new QueuePacket();
  #id = 0;

  constructor(policy: RigPolicy) {
    const ids = [
      'default-action',
      ...(policy.rules ?? []).map(({ name, context = 'cluster' }) => `${context}/${name}`),
    ];
    for (const [at, id] of ids.entries()) this.#rules.set(at + 1, id);
    const control: QueueControl = {
      verdict: (id, decision, mark) => {
        if (!this.#held.has(id)) return false;
        const { mark: before } = this.#held.get(id)!;
        this.#held.delete(id);
        this.left.push(`${id} ${decision === ACCEPT ? this.word(mark ?? before, before) : 'dropped'}`);
        return true;
      },
      replace: (id, replacement, mark) => {
        if (!this.#held.delete(id)) return false;
        this.left.push(`${id} ${this.#replaced(replacement, mark)}`);
        return true;
      },
      readMessages: () => {
        for (const message of this.inbox.splice(0)) this.decider.message(message);
      },
      wakeAt: (time) => {
        this.alarmAt = Math.min(this.alarmAt, time);
      },
      post: (value) => {
        const message = structuredClone(value) as FromDecider;
        this.posted.push(message);
        if (message.kind === 'decided') this.flows.push(...unpackFlows(message.packed));
      },
    };
    const data: DeciderData = {
      policy: structuredClone(policyOf(policy)),
      generation: 1,
      numbers: ids.map((id, at) => [id, at + 1]),
      names: (policy.names ?? []).map(([name, address]) => ({ name, address, until: UNTIL })),
      raw: { 4: -1, 6: -1 },
      onOverload: 'Drop',
      epoch: EPOCH,
      ...policy.data,
    };
    this.decider = new InspectDecider(control, data, {
      clock: () => this.now,
      reset: (packet) => {
        this.resets.push(resetText(packet));
      },
    });
  }

  get holding(): number {
    return this.#held.size;
  }

  /** Times pass; alarms ring when they are due. */
  wait(milliseconds: number): void {
    const end = this.now + milliseconds;
    while (this.alarmAt <= end) {
      this.now = Math.max(this.now, this.alarmAt);
      this.alarmAt = Number.POSITIVE_INFINITY;
      this.decider.alarm(this.now);
    }
    this.now = end;
  }

  tell(message: ToDecider): void {
    this.decider.message(message);
  }

  /** The loop's own time of a packet is over. */
  expire(id: number): void {
    if (!this.#held.delete(id)) return;
    this.left.push(`${id} expired`);
    this.decider.expired(id);
  }

  /** What becomes of it at once; `held`, and later in `left`. */
  send(bytes: Uint8Array, marks = 0, info = 0): string {
    const packet = this.#packet;
    const id = ++this.#id;
    const mark = GATEWAY_CHECKED_MARK | INSPECT_QUEUE_MARK | marks;
    const around = new Uint8Array(bytes.length + 60).fill(0xa5);
    around.set(bytes, 29);
    Object.assign(packet, { id, mark, info, bytes: around, start: 29, end: 29 + bytes.length, replacement: undefined });
    const before = this.left.length;
    const decision = this.decider.decide(packet, this.now);
    // Nobody may keep a view of it.
    around.fill(0);
    if (decision === HOLD) {
      this.#held.set(id, { id, mark });
      equal(this.left.slice(before).filter((line) => line.startsWith(`${id} `)).length, 0);
      return 'held';
    }
    const word =
      decision === DROP
        ? 'dropped'
        : packet.replacement === undefined
          ? this.word(packet.mark, mark)
          : this.#replaced(packet.replacement, packet.mark);
    this.left.push(`${id} ${word}`);
    return word;
  }

  word(mark: number, before: number): string {
    if (mark === before) return 'as it came';
    if (mark === (GATEWAY_CHECKED_MARK | INSPECT_PASSED_MARK)) return 'passed';
    if (mark === GATEWAY_CHECKED_MARK) return 'as decided';
    if (mark === GATEWAY_RESET_MARK) return 'answered with a reset';
    if (mark === GATEWAY_PROHIBIT_MARK) return 'answered with an error';
    ok((mark & INSPECT_VERDICT_MARK) !== 0, `mark ${mark.toString(16)}`);
    const number = (mark & CT_RULE_MASK & ~INSPECT_VERDICT_MARK) >>> CT_RULE_SHIFT;
    const life = (mark & INSPECT_LIFE_MARK) !== 0 ? ' for life' : '';
    if (number === NUMBER_READ_BYTES) return 'to be read';
    return `${this.#rules.get(number) ?? `number ${number}`}${life}`;
  }

  #replaced(packet: Uint8Array, mark: number): string {
    equal(mark, GATEWAY_CHECKED_MARK | INSPECT_PASSED_MARK);
    return resetText(packet);
  }
}

/** `reset to server 8`: how far behind the beginning the sequence number is. */
function resetText(packet: Uint8Array): string {
  const parsed = parsePacket(packet);
  ok(parsed.ok);
  const { destination, tcpFlags = 0, sequence = 0 } = parsed.value;
  equal(tcpFlags, TCP_RST | TCP_ACK);
  const toServer = destination === SERVER || destination === '2001:db8::10';
  const from = toServer ? CLIENT_FIRST : SERVER_FIRST;
  return `reset to ${toServer ? 'server' : 'client'} ${(sequence - from) | 0}`;
}

/** First sequence numbers of payload. The client's wraps soon. */
export const CLIENT_FIRST = 0xffff_ffe0;
export const SERVER_FIRST = 5_000;

/** A client of a pod, and the server that it talks to. */
export class Talk {
  readonly rig: Rig;
  readonly port: number;
  readonly sourcePort: number;
  readonly ends: { source: string; destination: string };
  readonly marks: number;

  constructor(rig: Rig, port: number, { sourcePort = TCP_PORT, family = 4, marks = 0 } = {}) {
    this.rig = rig;
    this.port = port;
    this.sourcePort = sourcePort;
    this.marks = marks;
    this.ends =
      family === 4 ? { source: POD, destination: SERVER } : { source: 'fd00::5', destination: '2001:db8::10' };
  }

  packet(at: number, payload: Uint8Array | string, flags = TCP_ACK | TCP_PSH): Uint8Array {
    return buildTcp({
      ...this.ends,
      sourcePort: this.sourcePort,
      destinationPort: this.port,
      flags,
      sequence: (CLIENT_FIRST + at) >>> 0,
      acknowledgement: SERVER_FIRST,
      payload: typeof payload === 'string' ? Buffer.from(payload, 'latin1') : payload,
    });
  }

  /** The client's bytes at a place of its stream. The kernel marks what begins it. */
  say(at: number, payload: Uint8Array | string, flags?: number): string {
    return this.rig.send(this.packet(at, payload, flags), this.marks | (at === 0 ? INSPECT_FIRST_MARK : 0));
  }

  /** The server's SYN+ACK, which only comes where answers teach. */
  open(): string {
    return this.hear(-1, '', TCP_SYN | TCP_ACK);
  }

  /** The server's. */
  hear(at: number, payload: Uint8Array | string, flags = TCP_ACK | TCP_PSH): string {
    const { source, destination } = this.ends;
    const packet = buildTcp({
      source: destination,
      destination: source,
      sourcePort: this.port,
      destinationPort: this.sourcePort,
      flags,
      sequence: (SERVER_FIRST + at) >>> 0,
      acknowledgement: CLIENT_FIRST,
      payload: typeof payload === 'string' ? Buffer.from(payload, 'latin1') : payload,
    });
    return this.rig.send(packet, this.marks | INSPECT_REPLY_MARK);
  }
}

export const datagram = (payload: Uint8Array, destinationPort: number, sourcePort = 40_000, destination = SERVER) =>
  buildUdp({ source: POD, destination, sourcePort, destinationPort, payload });
export const answer = (payload: Uint8Array, sourcePort: number, destinationPort = 40_000, source = SERVER) =>
  buildUdp({ source, destination: POD, sourcePort, destinationPort, payload });
