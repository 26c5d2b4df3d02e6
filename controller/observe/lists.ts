/**
 * The lists that ExternalServices take from elsewhere (`addressesFrom`): ConfigMaps of the snapshot, files below the
 * manifests, https. Each list is known by where it comes from and its format, so that services share it. What fails or
 * is bad leaves the last good list, across restarts too (remembered-lists.ts); a ConfigMap, key or file that is gone
 * is gone like a manifest. A URL is fetched at once, then every `refreshSeconds`, a tenth more or less so that many do
 * not meet; after a failure sooner, slower with each. Without a fetcher (lint, explain) URLs are only remembered.
 */
import { createHash } from 'node:crypto';
import { setTimeout as pause } from 'node:timers/promises';
import { type ListFormat, parseList } from '../../api/address-list.ts';
import type { ExternalService } from '../../api/kinds.ts';
import { HTTPS_PORT, type ListUrl, parseListUrl } from '../../api/list-url.ts';
import { sameJson } from '../../api/plan-delta.ts';
import { must } from '../../api/result.ts';
import { type Logger, silentLog } from '../../daemon/log.ts';
import type { KnownList, KnownLists } from '../../policy/external-service.ts';
import { ObjectIndex, type Objects } from '../plan/objects.ts';
import type { Snapshot } from '../plan/snapshot.ts';
import { type FetchOutcome, fetchList } from './fetch.ts';
import { allowedHosts, type FetchPolicy } from './fetch-policy.ts';
import type { HttpsWorld } from './https.ts';
import { decode, fileSignature, readListFile } from './list-file.ts';
import { listId, URLS_PER_NAMESPACE, type WantedList, wantedLists } from './list-source.ts';
import { type GoodList, recallLists, rememberLists } from './remembered-lists.ts';

const FETCHES_AT_ONCE = 4;
const RETRY_SECONDS = 5;
/** A file that is written to just now is read when it has been quiet for so long, since half a list is valid too. */
const SETTLE_MS = 100;
/** So long a file may be missing while an editor replaces it. */
const GONE_GRACE_MS = 250;

export interface ListsOptions {
  /** Where `file` begins. */
  root(service: ExternalService): string;
  /** The last good lists; absent: none are remembered. */
  state?: string;
  log: Logger;
  /** Another list is in force, or there is something else to say of one. */
  onChange(): void;
  /** Absent: nothing is fetched. */
  fetcher?: { world?: HttpsWorld; policy(): FetchPolicy /** Of a second, for tests. */; secondMs?: number };
}

interface Entry extends WantedList {
  id: string;
  good?: GoodList;
  problem?: { reason: string; message: string } | undefined;
  /** What was read last: the data of a ConfigMap, the signature of a file, the hash of an answer. */
  input?: unknown;
  /** What was wrong with that answer. */
  verdict?: Entry['problem'];
  goneSince?: number;
  timer?: NodeJS.Timeout;
  dueAt?: number;
  fetching?: AbortController;
  failures: number;
}

export interface Lists {
  /** What is known of every list of the snapshot. Reads what changed; starts and stops fetches. */
  update(snapshot: Snapshot, objects?: Pick<Objects, 'listed' | 'GatewayPool'>): Promise<KnownLists>;
  /** Something happened below the manifests: calls `onChange` if it is the file of a list. */
  look(): Promise<void>;
  /** Lists by whether the newest version is in force, an older one, or none. */
  counts(): Record<'current' | 'stale' | 'missing', number>;
  close(): Promise<void>;
}

export async function openLists(options: ListsOptions): Promise<Lists> {
  const good = options.state === undefined ? new Map<string, GoodList>() : await recallLists(options.state);
  return new ListStore(options, good);
}

/** What can be known without a controller: ConfigMaps, files, and of URLs what a controller's `state` remembers. */
export async function readLists(
  snapshot: Snapshot,
  root: (service: ExternalService) => string,
  state?: string,
): Promise<KnownLists> {
  const remembered = state === undefined ? {} : { state };
  const lists = await openLists({ root, ...remembered, log: silentLog(), onChange: () => undefined });
  try {
    return await lists.update(snapshot);
  } finally {
    await lists.close();
  }
}

class ListStore implements Lists {
  readonly #options: ListsOptions;
  readonly #entries = new Map<string, Entry>();
  /** Remembered, until the first update says who wants it. */
  #recalled: Map<string, GoodList>;
  readonly #queue: Entry[] = [];
  #active = 0;
  #recheck: NodeJS.Timeout | undefined;
  #dirty = false;
  #saving: Promise<void> | undefined;
  #closed = false;

  constructor(options: ListsOptions, recalled: Map<string, GoodList>) {
    this.#options = options;
    this.#recalled = recalled;
  }

  async update(snapshot: Snapshot, objects = new ObjectIndex().look(snapshot)): Promise<KnownLists> {
    const { wanted, refused } = wantedLists(objects.listed, this.#options.root);
    for (const [id, entry] of this.#entries) {
      if (wanted.has(id)) continue;
      this.#stop(entry);
      this.#entries.delete(id);
      this.#dirty = true;
    }
    const allowed = allowedHosts(objects.GatewayPool);
    for (const [id, want] of wanted) {
      const entry = this.#entries.get(id) ?? this.#enter(id, want);
      Object.assign(entry, want);
      const { configMapRef, file, url } = entry.source;
      if (configMapRef !== undefined) this.#readConfigMap(entry, snapshot, configMapRef);
      else if (file !== undefined) await this.#readFile(entry, file);
      else if (url !== undefined) this.#schedule(entry, must(parseListUrl(url)), allowed);
    }
    if (this.#recalled.size > 0) this.#dirty = true;
    this.#recalled = new Map();
    this.#save();
    return new Map(
      objects.listed.map((service) => [
        `${service.metadata.namespace ?? ''}/${service.metadata.name}`,
        (service.spec.addressesFrom ?? []).map((source) => {
          const id = listId(service, source, this.#options.root);
          return refused.has(id) ? tooMany : knownOf(this.#entries.get(id));
        }),
      ]),
    );
  }

  #enter(id: string, wanted: WantedList): Entry {
    const good = this.#recalled.get(id);
    this.#recalled.delete(id);
    const entry: Entry = { ...wanted, id, failures: 0, ...(good === undefined ? {} : { good }) };
    this.#entries.set(id, entry);
    return entry;
  }

  #readConfigMap(entry: Entry, snapshot: Snapshot, { name, key }: { name: string; key?: string }): void {
    const { namespace = '' } = entry.service.metadata;
    const object = snapshot.get(`ConfigMap/${namespace}/${name}`);
    const data = object?.kind === 'ConfigMap' ? (object.data ?? {}) : undefined;
    if (data === undefined) {
      this.#gone(entry, 'ConfigMapNotFound', `there is no ConfigMap ${name} in namespace ${namespace}`);
      return;
    }
    if (entry.input === data) return;
    entry.input = data;
    const keys = key === undefined ? Object.keys(data).sort() : Object.hasOwn(data, key) ? [key] : [];
    if (keys.length === 0) {
      const message = `ConfigMap ${name} has no ${key === undefined ? 'data' : `key ${key}`}`;
      this.#gone(entry, 'ConfigMapNotFound', message, data);
      return;
    }
    const texts = keys.map((one) => ({ at: `key ${one}: `, text: data[one] ?? '' }));
    // Who wrote the service may read the ConfigMaps of its namespace.
    this.#parse(entry, texts, { quote: true });
  }

  async #readFile(entry: Entry, file: string): Promise<void> {
    const root = this.#options.root(entry.service);
    const signature = await fileSignature(root, file);
    const now = Date.now();
    if (signature === 'unreadable') {
      entry.input = signature;
      entry.problem = { reason: 'FileUnreadable', message: 'cannot read the file' };
      return;
    }
    if (signature === 'gone') {
      entry.goneSince ??= now;
      if (entry.good !== undefined && now - entry.goneSince < GONE_GRACE_MS) this.#again(GONE_GRACE_MS);
      else this.#gone(entry, 'FileNotFound', `there is no file ${file}`, signature);
      return;
    }
    delete entry.goneSince;
    if (entry.input === signature.text) return;
    const quiet = now - signature.mtime;
    if (entry.good !== undefined && entry.input !== undefined && quiet >= 0 && quiet < SETTLE_MS) {
      this.#again(SETTLE_MS - quiet);
      return;
    }
    entry.input = signature.text;
    const content = await readListFile(root, file);
    if (content.ok) this.#parse(entry, [{ at: '', text: content.text }], { quote: false });
    else if (content.reason === 'FileNotFound') this.#gone(entry, content.reason, content.message, 'gone');
    else entry.problem = { reason: content.reason, message: content.message };
  }

  #gone(entry: Entry, reason: string, message: string, input?: unknown): void {
    if (entry.good !== undefined) this.#dirty = true;
    delete entry.good;
    entry.input = input;
    entry.problem = { reason, message };
  }

  #parse(entry: Entry, texts: { at: string; text: string }[], options: { quote: boolean }, etag?: string): void {
    const format: ListFormat = entry.source.format;
    const all = new Set<string>();
    for (const { at, text } of texts) {
      const parsed = parseList(text, format, options);
      if (!parsed.ok) {
        entry.problem = { reason: 'ListInvalid', message: `${at}${parsed.error}` };
        return;
      }
      for (const address of parsed.value) all.add(address);
    }
    const addresses = [...all].sort();
    const next: GoodList = { addresses, ...(etag === undefined ? {} : { etag }) };
    if (!sameJson(entry.good, next)) {
      entry.good = next;
      this.#dirty = true;
    }
    delete entry.problem;
  }

  /** Fetches now what was never tried, or not allowed until now. */
  #schedule(entry: Entry, { host, port }: ListUrl, allowed: ReadonlySet<string>): void {
    if (!allowed.has(`${host} ${port}`)) {
      this.#stop(entry);
      const message = `host ${host}${port === HTTPS_PORT ? '' : `, port ${port},`} is not among fetch.allowedHosts of any GatewayPool`;
      entry.problem = { reason: 'HostNotAllowed', message };
      return;
    }
    if (this.#options.fetcher === undefined) {
      const message = 'only the controller fetches a url, and its state was not given';
      if (entry.good === undefined) entry.problem = { reason: 'NotFetched', message };
      return;
    }
    if (entry.problem?.reason === 'HostNotAllowed' && entry.dueAt === undefined) delete entry.problem;
    const seconds = this.#delayOf(entry);
    if (entry.dueAt === undefined) this.#fetchIn(entry, 0);
    // Another refreshSeconds.
    else if (entry.timer !== undefined && entry.dueAt > Date.now() + 1.1 * seconds) this.#fetchIn(entry, seconds);
  }

  /** Milliseconds to the next fetch, before they are spread. */
  #delayOf({ failures, refreshSeconds }: Entry): number {
    const seconds = failures === 0 ? refreshSeconds : Math.min(refreshSeconds, RETRY_SECONDS * 2 ** (failures - 1));
    return seconds * (this.#options.fetcher?.secondMs ?? 1000);
  }

  #fetchIn(entry: Entry, ms: number): void {
    clearTimeout(entry.timer);
    const delay = ms * (0.9 + 0.2 * Math.random());
    entry.dueAt = Date.now() + delay;
    entry.timer = setTimeout(() => {
      delete entry.timer;
      this.#queue.push(entry);
      this.#work();
    }, delay);
    entry.timer.unref();
  }

  #stop(entry: Entry): void {
    clearTimeout(entry.timer);
    delete entry.timer;
    delete entry.dueAt;
    entry.fetching?.abort();
    delete entry.fetching;
    const waiting = this.#queue.indexOf(entry);
    if (waiting >= 0) this.#queue.splice(waiting, 1);
  }

  #work(): void {
    while (this.#active < FETCHES_AT_ONCE && !this.#closed) {
      const entry = this.#queue.shift();
      if (entry === undefined) return;
      this.#active++;
      void this.#fetch(entry).finally(() => {
        this.#active--;
        this.#work();
      });
    }
  }

  async #fetch(entry: Entry): Promise<void> {
    const { fetcher } = this.#options;
    const { url = '' } = entry.source;
    if (fetcher === undefined) return;
    const stop = new AbortController();
    entry.fetching = stop;
    const before = { addresses: entry.good?.addresses, problem: entry.problem };
    const outcome = await fetchList(url, entry.good?.etag, fetcher.policy, fetcher.world ?? {}, stop.signal);
    // Not wanted any more, or not allowed: whatever came is of no use.
    if (stop.signal.aborted || this.#closed) return;
    delete entry.fetching;
    this.#take(entry, outcome);
    entry.failures = entry.problem === undefined ? 0 : entry.failures + 1;
    this.#fetchIn(entry, this.#delayOf(entry));
    const { problem } = entry;
    if (!sameJson(before.problem, problem) && problem !== undefined) {
      this.#options.log.warn(
        { url: withoutQuery(url), ...problem },
        'a list could not be fetched; what was in force stays',
      );
    }
    this.#save();
    if (before.addresses !== entry.good?.addresses || !sameJson(before.problem, problem)) this.#options.onChange();
  }

  #take(entry: Entry, outcome: FetchOutcome): void {
    if (!outcome.ok) {
      entry.problem = { reason: outcome.reason, message: outcome.message };
      return;
    }
    if (outcome.body === undefined) {
      delete entry.problem;
      return;
    }
    const { body, etag } = outcome;
    const hash = createHash('sha256').update(body).digest('base64');
    // Many servers send the same again and again; reading it takes longer than getting it.
    if (entry.input !== hash) {
      entry.input = hash;
      const content = decode(body);
      if (content.ok) this.#parse(entry, [{ at: '', text: content.text }], { quote: false }, etag);
      else entry.problem = { reason: 'ListInvalid', message: content.message };
      entry.verdict = entry.problem;
      return;
    }
    entry.problem = entry.verdict;
    if (entry.good === undefined || entry.verdict !== undefined || entry.good.etag === etag) return;
    entry.good = { addresses: entry.good.addresses, ...(etag === undefined ? {} : { etag }) };
    this.#dirty = true;
  }

  async look(): Promise<void> {
    for (const entry of this.#entries.values()) {
      const { file } = entry.source;
      if (file === undefined) continue;
      const signature = await fileSignature(this.#options.root(entry.service), file);
      if ((typeof signature === 'string' ? signature : signature.text) === entry.input || this.#closed) continue;
      this.#options.onChange();
      return;
    }
  }

  #again(ms: number): void {
    this.#recheck ??= setTimeout(() => {
      this.#recheck = undefined;
      if (!this.#closed) this.#options.onChange();
    }, ms + 5);
  }

  counts(): Record<'current' | 'stale' | 'missing', number> {
    const counts = { current: 0, stale: 0, missing: 0 };
    for (const { good, problem } of this.#entries.values()) {
      counts[good === undefined ? 'missing' : problem === undefined ? 'current' : 'stale']++;
    }
    return counts;
  }

  /** Behind; what changes while it is written is written after it. */
  #save(): void {
    const { state, log, fetcher } = this.#options;
    // Who only reads a controller's state does not write it.
    if (state === undefined || fetcher === undefined || !this.#dirty || this.#saving !== undefined) return;
    this.#dirty = false;
    const lists = new Map<string, GoodList>();
    for (const { id, good } of this.#entries.values()) if (good !== undefined) lists.set(id, good);
    this.#saving = rememberLists(state, lists)
      .catch((error: unknown) => log.error({ reason: String(error) }, 'cannot save the last good lists'))
      // A state that cannot be written is not tried again and again.
      .then(() => pause(50))
      .finally(() => {
        this.#saving = undefined;
        this.#save();
      });
  }

  async close(): Promise<void> {
    this.#closed = true;
    clearTimeout(this.#recheck);
    for (const entry of this.#entries.values()) this.#stop(entry);
    while (this.#saving !== undefined) await this.#saving;
  }
}

const tooMany: KnownList = {
  problem: { reason: 'TooManyLists', message: `more than ${URLS_PER_NAMESPACE} URLs in the namespace` },
};

function knownOf(entry: Entry | undefined): KnownList {
  return {
    ...(entry?.good === undefined ? {} : { addresses: entry.good.addresses }),
    ...(entry?.problem === undefined
      ? {}
      : { problem: { reason: entry.problem.reason, message: entry.problem.message } }),
  };
}

/** For logs: a query may hold a token. */
const withoutQuery = (url: string): string => url.replace(/\?.*$/, '?…');
