/**
 * One-time tokens on disk, `tokens/` of the controller's state directory, one file each: `ID.json` is written by
 * `sluice certs token` and never changed, `ID.used.json` by whoever uses the token. It comes into being by link(2), so of
 * several uses at once, by several controllers even, exactly one wins; and it is on disk before a certificate leaves.
 * Deleting `ID.json` takes a token back. Left out: who may use one (enrolment.ts).
 */
import { chown, link, mkdir, open, readdir, readFile, rm, stat } from 'node:fs/promises';
import { join } from 'node:path';
import {
  formatToken,
  newToken,
  parseTokenRecord,
  parseTokenUse,
  sha256,
  type TokenRecord,
  type TokenUse,
} from '../api/enrolment.ts';
import type { PlanRole } from '../api/plan.ts';
import { ok, type Result } from '../api/result.ts';
import { syncDirectory } from '../daemon/cert-files.ts';

const DIRECTORY = 'tokens';
/** Of tokens that are over: so long it can be said what became of them. */
const KEPT_MS = 30 * 24 * 3600 * 1000;
export const TTL_MIN_MS = 60 * 1000;
export const TTL_MAX_MS = 7 * 24 * 3600 * 1000;

export class TokenStore {
  readonly #directory: string;

  constructor(state: string) {
    this.#directory = join(state, DIRECTORY);
  }

  /** The token's text: it is nowhere else. */
  async make(role: PlanRole, name: string, fingerprint: string, ttlMs: number, now: number): Promise<string> {
    const state = await stat(join(this.#directory, '..'));
    await mkdir(this.#directory, { recursive: true, mode: 0o700 });
    const token = newToken(fingerprint);
    const record: TokenRecord = { role, name, hash: sha256(token.secret), made: now, expires: now + ttlMs };
    // The controller may run as another user than who makes tokens.
    const owner = process.getuid?.() === 0 ? state : undefined;
    if (owner !== undefined) await chown(this.#directory, owner.uid, owner.gid);
    await this.#create(`${token.id}.json`, record, owner);
    await this.prune(now);
    return formatToken(token);
  }

  /** Undefined: there is none. An error: its file cannot be read or is damaged. */
  async find(id: string): Promise<Result<TokenRecord> | undefined> {
    const text = await this.#read(`${id}.json`);
    return text === undefined ? undefined : parse(text, parseTokenRecord);
  }

  async useOf(id: string): Promise<Result<TokenUse> | undefined> {
    const text = await this.#read(`${id}.used.json`);
    return text === undefined ? undefined : parse(text, parseTokenUse);
  }

  /** True: it was not used, and is now, on disk. */
  async use(id: string, use: TokenUse): Promise<boolean> {
    return this.#create(`${id}.used.json`, use);
  }

  async #read(name: string): Promise<string | undefined> {
    try {
      return await readFile(join(this.#directory, name), 'utf8');
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined;
      throw error;
    }
  }

  /** Complete and on disk, or false where there is one of this name. */
  async #create(name: string, value: object, owner?: { uid: number; gid: number }): Promise<boolean> {
    const file = join(this.#directory, name);
    const temporary = `${file}.${process.pid}.${Math.random().toString(36).slice(2)}.part`;
    const handle = await open(temporary, 'wx', 0o600);
    try {
      if (owner !== undefined) await handle.chown(owner.uid, owner.gid);
      await handle.writeFile(JSON.stringify(value));
      await handle.sync();
    } finally {
      await handle.close();
    }
    try {
      await link(temporary, file);
      await syncDirectory(this.#directory);
      return true;
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'EEXIST') return false;
      throw error;
    } finally {
      await rm(temporary, { force: true });
    }
  }

  /** Takes away what is over for long. */
  async prune(now: number): Promise<void> {
    const names = await readdir(this.#directory).catch(() => []);
    for (const name of names) {
      const file = join(this.#directory, name);
      const { mtimeMs } = await stat(file).catch(() => ({ mtimeMs: now }));
      // A token's file is as old as the token, and that of its use younger; nothing lives longer than TTL_MAX_MS.
      if (now - mtimeMs > TTL_MAX_MS + KEPT_MS) await rm(file, { force: true });
    }
  }
}

function parse<T>(text: string, of: (value: unknown) => Result<T>): Result<T> {
  try {
    return of(JSON.parse(text));
  } catch {
    return { ok: false, error: 'no JSON' };
  }
}

/** `30m`, `1h`, `2d`: milliseconds. */
export function parseTtl(text: string): Result<number> {
  const match = /^(\d{1,5})([smhd])$/.exec(text);
  const units: Record<string, number> = { s: 1_000, m: 60_000, h: 3_600_000, d: 86_400_000 };
  const ms = Number(match?.[1]) * (units[match?.[2] ?? ''] ?? Number.NaN);
  if (!(ms >= TTL_MIN_MS && ms <= TTL_MAX_MS)) return { ok: false, error: 'expected a time from 1m to 7d, such as 1h' };
  return ok(ms);
}
