/**
 * The names of a gateway, put together: its table, what the threads that read flows and the other gateways are told of it,
 * the disk, and the questions to resolvers. What is learned goes to the threads first and then to the other gateways; the
 * answer that taught it is let on when those have it (sharing.ts).
 */
import { parseAddress } from '../../api/address.ts';
import { PORT_NAMES } from '../../api/names.ts';
import { type Family, families, type GatewayPlan } from '../../api/plan.ts';
import type { PlanDelta } from '../../api/plan-delta.ts';
import { Peers } from '../../daemon/peers.ts';
import type { FromDecider } from '../inspect/messages.ts';
import { type NamedAddress, NameTable, type Teaching } from '../inspect/name-table.ts';
import { type Forbidden, forbiddenAddresses, isForbidden } from './forbidden.ts';
import { isCanonicalName, type ParsedPair } from './frame.ts';
import { Link } from './link.ts';
import { namesMetrics, type Teacher } from './metrics.ts';
import { Questions } from './questions.ts';
import { type Answer, PoolResolver } from './resolver.ts';
import { readNames, writeNames } from './saved-names.ts';
import type { Names, NamesOptions } from './service.ts';
import { Sharing } from './sharing.ts';
import { WarmNames } from './warm.ts';

/** Collections of the plan that say something to names. */
const read = ['settings', 'gateways', 'nodes', 'shards', 'services'] as const;
const EXPIRE_MS = 1_000;
/** Of pairs in use; several times in the half of a grace in which it has to happen. */
const RENEW_MS = 15_000;
/** And never more than a hundredth of the time. */
const SAVE_MS = 5_000;
const SAVE_SHARE = 100;
const WARM_MS = 200;
/** At one tick, and at once. */
const WARM_PER_TICK = 10;
const WARM_IN_FLIGHT = 32;
/** Questions in a row that no resolver answered. */
const FAILURES_SAID = 5;
const LATE_LOG_MS = 10_000;
const DNS_PORT = 53;

export async function startNames(options: NamesOptions): Promise<Names> {
  const service = new NameService(options);
  await service.load();
  return service;
}

class NameService implements Names {
  readonly #options: NamesOptions;
  readonly #now: () => number;
  #forbidden: Forbidden;
  readonly #table: NameTable;
  readonly #sharing: Sharing;
  readonly #peers: Peers<Link>;
  readonly #resolver: PoolResolver;
  readonly #questions: Questions;
  readonly #warm = new WarmNames();
  readonly #metrics: ReturnType<typeof namesMetrics>;
  #resolvers: readonly string[] = [];
  #others: ReadonlyMap<string, string> = new Map();
  /** From disk; until there is a plan nobody knows what may be learned. */
  #loaded: ParsedPair[] = [];
  #planned = false;
  /** When it was last said of a gateway that it is silent. */
  readonly #lateTold = new Map<string, number>();
  #warming = 0;
  #failures = 0;
  readonly #timers: NodeJS.Timeout[];
  #saveTimer: NodeJS.Timeout | undefined;
  #saving: Promise<void> = Promise.resolve();
  /** The table has changed since it was saved. */
  #unsaved = false;
  #saidUnsaved = false;
  #closed = false;

  constructor(options: NamesOptions) {
    this.#options = options;
    const { name, certs, log, port = PORT_NAMES, resolverPort = DNS_PORT, now = Date.now } = options;
    this.#now = now;
    this.#table = new NameTable((address) => isForbidden(this.#forbidden, address), options.limits);
    this.#sharing = new Sharing({
      onSkip: (gateway, reason) => {
        this.#metrics.skipped(gateway, reason);
        if (reason === 'late') this.#late(gateway);
      },
      onShared: (milliseconds) => this.#metrics.shared(milliseconds / 1000),
    });
    this.#peers = new Peers({
      name,
      certs,
      port,
      log,
      subject: 'names',
      whenDown: 'answers do not wait for it',
      link: (socket, events) =>
        new Link(
          socket,
          name,
          {
            ...events,
            onPairs: (_link, pairs) => this.#merge(pairs, 'gateway'),
            onAck: (link) => this.#sharing.acknowledged(link),
          },
          now,
        ),
      onOpen: (link, peer) => this.#sharing.open(peer, link, this.pairs()),
      onClose: (link) => this.#sharing.closed(link),
    });
    this.#resolver = new PoolResolver(resolverPort);
    this.#questions = new Questions((name, of) => this.#ask(name, of));
    this.#metrics = namesMetrics(options.registry, {
      table: this.#table,
      questions: this.#questions,
      warm: this.#warm,
      gateways: () => ({ expected: this.#others.size, connected: this.#sharing.connected }),
    });
    this.#timers = [
      setInterval(() => this.#table.expire(now()), EXPIRE_MS),
      setInterval(() => this.#tell(this.#table.renew(now())), options.renewMs ?? RENEW_MS),
      setInterval(() => this.#warmUp(), WARM_MS),
    ];
    this.#saveLater(options.saveMs ?? SAVE_MS);
  }

  async load(): Promise<void> {
    const { state, log } = this.#options;
    const found = await readNames(state);
    if (found === undefined) return;
    if (found.ok) this.#loaded = found.value;
    else log.warn({ reason: found.error }, 'saved names not usable: they are learned anew');
  }

  plan(plan: GatewayPlan, delta?: PlanDelta): void {
    if (this.#closed) return;
    const touched = (part: string): boolean => delta?.set[part] !== undefined || delta?.delete[part] !== undefined;
    if (delta !== undefined && this.#planned && !read.some(touched)) return;
    this.#planned = true;
    this.#forbid(forbiddenAddresses(plan));
    this.#place(plan);
    this.#useResolvers(plan);
    this.#warm.keep(exactNames(plan, this.#resolvers), this.#now());
    if (this.#forbidden !== undefined) this.#merge(this.#loaded, 'disk');
    this.#loaded = [];
  }

  #forbid(forbidden: Forbidden): void {
    const before = this.#forbidden;
    this.#forbidden = forbidden;
    if (String(before) === String(forbidden)) return;
    const gone = new Set<string>();
    for (const text of this.#table.addresses()) {
      const address = parseAddress(text);
      if (!address.ok || isForbidden(forbidden, address.value)) gone.add(text);
    }
    if (gone.size === 0) return;
    this.#table.forget((address) => gone.has(address));
    this.#unsaved = true;
    this.#options.post({ kind: 'forget', addresses: [...gone] });
  }

  #place({ gateways }: GatewayPlan): void {
    const { name } = this.#options;
    const others = new Map<string, string>();
    for (const [gateway, { internalAddress }] of Object.entries(gateways)) {
      if (gateway !== name) others.set(gateway, internalAddress);
    }
    for (const gateway of this.#others.keys()) if (!others.has(gateway)) this.#metrics.gone(gateway);
    // Where nobody's answers are believed, nothing is told.
    const believes = this.#forbidden !== undefined;
    this.#others = believes ? others : new Map();
    this.#sharing.expect([...this.#others.keys()]);
    this.#peers.place({ address: believes ? gateways[name]?.internalAddress : undefined, others: this.#others });
  }

  #useResolvers({ settings }: GatewayPlan): void {
    const resolvers = 'pool' in settings ? (settings.pool.dns?.resolvers ?? []) : [];
    if (resolvers.join() === this.#resolvers.join()) return;
    this.#resolvers = [...resolvers];
    this.#resolver.use(resolvers);
    this.#questions.forget();
    this.#warm.restart(this.#now());
  }

  message(queue: number, value: unknown): boolean {
    const message = value as FromDecider;
    if (message.kind === 'teach') this.#taught(queue, message);
    else if (message.kind === 'resolve') this.#resolve(queue, message);
    else return false;
    return true;
  }

  #taught(queue: number, message: Extract<FromDecider, { kind: 'teach' }>): void {
    const release = (): void => this.#options.post({ kind: 'release', id: message.id }, queue);
    // The plan may have changed since.
    if (this.#closed || !this.#resolvers.includes(message.resolver)) {
      release();
      return;
    }
    const addresses = message.addresses.flatMap(({ address, ttlSeconds }) => {
      const parsed = parseAddress(address);
      return parsed.ok ? [{ address: parsed.value, ttlSeconds }] : [];
    });
    const teaching = { names: message.names.filter(isCanonicalName), addresses };
    const news = this.#learn(teaching, 'answer');
    this.#sharing.share(news, () => this.#table.known(teaching, this.#now()), release);
  }

  /** Gives what is new, and has told it to the threads. */
  #learn(teaching: Teaching, by: Teacher): NamedAddress[] {
    const news = this.#table.learn(teaching, this.#now());
    this.#news(news, by);
    return news;
  }

  #merge(pairs: readonly ParsedPair[], by: Teacher): void {
    this.#news(this.#table.merge(pairs, this.#now()), by);
  }

  #news(pairs: NamedAddress[], by?: Teacher): void {
    if (pairs.length === 0) return;
    if (by !== undefined) this.#metrics.learned(by, pairs.length);
    this.#unsaved = true;
    this.#options.post({ kind: 'names', pairs });
  }

  /** Threads and gateways. */
  #tell(pairs: NamedAddress[]): void {
    this.#news(pairs);
    this.#sharing.tell(pairs);
  }

  #resolve(queue: number, { id, name, families: of }: Extract<FromDecider, { kind: 'resolve' }>): void {
    const resolved = (): void => this.#options.post({ kind: 'resolved', id }, queue);
    const wanted = families.filter((family) => of.includes(family));
    const may = !this.#closed && this.#resolvers.length > 0 && wanted.length > 0 && isCanonicalName(name);
    const question = may ? this.#questions.ask(name, wanted, this.#now()) : undefined;
    if (question === undefined) resolved();
    else void question.then(resolved);
  }

  /** What is found is learned and told when it resolves. Undefined: who was asked is not to be believed any more. */
  async #ask(name: string, of: readonly Family[]): Promise<Answer | undefined> {
    const began = performance.now();
    const asked = this.#resolvers;
    const answer = await this.#resolver.ask(name, of);
    if (this.#closed || this.#resolvers !== asked) return undefined;
    this.#metrics.answered(answer.outcome, (performance.now() - began) / 1000);
    this.#answered(answer);
    this.#sharing.tell(this.#learn({ names: [name], addresses: answer.addresses }, 'question'));
    return answer;
  }

  #answered({ outcome }: Answer): void {
    const { log } = this.#options;
    if (outcome !== 'failed') {
      if (this.#failures >= FAILURES_SAID) log.info('names: resolvers answer again');
      this.#failures = 0;
    } else if (++this.#failures === FAILURES_SAID) {
      log.warn({ resolvers: this.#resolvers }, 'names: no resolver answers this gateway');
    }
  }

  #warmUp(): void {
    if (this.#resolvers.length === 0) return;
    const most = Math.min(WARM_PER_TICK, WARM_IN_FLIGHT - this.#warming);
    for (const name of this.#warm.take(most, this.#now())) {
      this.#warming++;
      void this.#ask(name, families).then((answer) => {
        this.#warming--;
        if (answer === undefined) return;
        const { outcome, addresses } = answer;
        const ttl = Math.min(...addresses.map(({ ttlSeconds }) => ttlSeconds));
        this.#warm.answered(name, outcome, ttl, this.#now());
      });
    }
  }

  #late(gateway: string): void {
    const now = performance.now();
    if (now - (this.#lateTold.get(gateway) ?? Number.NEGATIVE_INFINITY) < LATE_LOG_MS) return;
    this.#lateTold.set(gateway, now);
    this.#options.log.warn({ peer: gateway }, 'names: a gateway is silent; answers do not wait for it');
  }

  use(name: string, address: string): boolean {
    return this.#table.use(name, address, this.#now());
  }

  release(name: string, address: string): void {
    this.#table.release(name, address, this.#now());
  }

  gives(name: string, address: string): boolean {
    return this.#table.gives(name, address, this.#now());
  }

  namesOf(address: string): readonly string[] {
    return this.#table.namesOf(address, this.#now());
  }

  pairs(): NamedAddress[] {
    return [...this.#table.pairs()];
  }

  #saveLater(wait: number): void {
    this.#saveTimer = setTimeout(() => {
      const began = performance.now();
      this.#saving = this.#save().then(() => {
        const took = performance.now() - began;
        if (!this.#closed) this.#saveLater(Math.max(this.#options.saveMs ?? SAVE_MS, took * SAVE_SHARE));
      });
    }, wait);
  }

  async #save(): Promise<void> {
    if (!this.#unsaved) return;
    this.#unsaved = false;
    try {
      await writeNames(this.#options.state, this.pairs());
      this.#saidUnsaved = false;
    } catch (error) {
      this.#unsaved = true;
      // Once, not every few seconds while a disk is full.
      if (!this.#saidUnsaved) this.#options.log.error({ reason: (error as Error).message }, 'names cannot be saved');
      this.#saidUnsaved = true;
    }
  }

  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    for (const timer of this.#timers) clearInterval(timer);
    clearTimeout(this.#saveTimer);
    this.#sharing.close();
    this.#peers.close();
    this.#resolver.close();
    await this.#saving;
    await this.#save();
  }
}

/** None where nobody could be asked. */
function exactNames({ services }: GatewayPlan, resolvers: readonly string[]): Set<string> {
  const exact = new Set<string>();
  if (resolvers.length === 0) return exact;
  for (const { names = [] } of Object.values(services)) {
    // Canonical (api/host-name.ts); there may be many, and this is done at every change of a service.
    for (const text of names) if (!text.startsWith('*')) exact.add(text);
  }
  return exact;
}
