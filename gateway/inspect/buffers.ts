/**
 * Buffers that streams borrow while they are undecided: sizes are powers of two, and a buffer that comes back is lent
 * again as it is. Nobody may keep a view of one past its stream's end. How many there are is bounded by the streams, of
 * which each has one, and none longer than it may keep; how many bytes wait to be lent again is bounded here.
 */

/** Holds what nearly every client says first. */
const SMALLEST = 2048;
/** Bytes that wait to be lent again; what comes back beyond is left to the garbage collector. */
const FREE_MAX = 8 * 1024 * 1024;

export class BufferPool {
  /** Free ones by size, the smallest first. */
  private readonly free: Uint8Array<ArrayBuffer>[][] = [];
  private freeBytes = 0;
  /** Bytes that are lent. */
  lent = 0;

  /** At least as long as is asked for, with whatever was in it before. */
  take(length: number): Uint8Array<ArrayBuffer> {
    let size = SMALLEST;
    let rank = 0;
    while (size < length) {
      size *= 2;
      rank++;
    }
    this.lent += size;
    const buffer = this.free[rank]?.pop();
    if (buffer === undefined) return new Uint8Array(size);
    this.freeBytes -= size;
    return buffer;
  }

  give(buffer: Uint8Array<ArrayBuffer>): void {
    this.lent -= buffer.length;
    if (this.freeBytes + buffer.length > FREE_MAX) return;
    this.freeBytes += buffer.length;
    let rank = 0;
    for (let size = SMALLEST; size < buffer.length; size *= 2) rank++;
    while (this.free.length <= rank) this.free.push([]);
    this.free[rank]!.push(buffer);
  }
}
