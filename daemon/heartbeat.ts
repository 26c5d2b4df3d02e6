/**
 * Notices that the other end of an HTTP/2 session is dead although TCP has not: PING frames (RFC 9113 §6.7).
 * Ticks are counted, not seconds: a program that was itself busy or stopped must not blame its peer.
 */
import type { Http2Session } from 'node:http2';

const TICK = 1_000;
/** So many ticks without an answer, and the session is destroyed. */
const TICKS_LOST = 4;

export function watchPeer(session: Http2Session): void {
  let waiting = 0;
  const timer = setInterval(() => {
    // 'close' comes some time after it, and a ping in between would throw.
    if (session.destroyed) return;
    if (waiting > 0) {
      waiting++;
      if (waiting > TICKS_LOST) session.destroy(new Error('no answer to a ping'));
      return;
    }
    waiting = 1;
    session.ping((error) => {
      if (error === null) waiting = 0;
    });
  }, TICK);
  session.once('close', () => clearInterval(timer));
}
