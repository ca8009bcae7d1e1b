//! Waiting for the network while the user can still cancel.
//!
//! Blocking calls run on a thread of their own. The waiting one checks for cancellation at short intervals,
//! and gives up after a limit; the other thread then ends at the time-out of its connection.

use std::io::Read;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use super::HubError;
use super::http::connection;

/// How often cancellation is checked.
const MOMENT: Duration = Duration::from_millis(100);
const BUFFER: usize = 128 * 1024;
/// The slowest body that is waited for, in bytes a second.
const SLOWEST: f64 = 1024.0;

/// Checks for cancellation: an error stops the work.
pub(super) type Ask<'a> = dyn FnMut() -> Result<(), HubError> + 'a;

/// The result of work that blocks.
pub(super) fn wait<T: Send + 'static>(
    url: &str,
    limit: Duration,
    ask: &mut Ask<'_>,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, HubError> {
    let (sender, receiver) = mpsc::sync_channel(1);
    start(url, move || {
        let _ = sender.send(work()); // Nobody may wait any more.
    })?;
    match next(&receiver, limit, ask)? {
        Some(result) => Ok(result),
        None => Err(stalled(url, limit)),
    }
}

/// Sleeps, unless the user cancels.
pub(super) fn sleep(duration: Duration, ask: &mut Ask<'_>) -> Result<(), HubError> {
    let end = Instant::now() + duration;
    loop {
        ask()?;
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        std::thread::sleep(left.min(MOMENT));
    }
}

/// Receives a chunk of a body, or `None` after a while without one.
type OnPiece<'a> = dyn FnMut(Option<&[u8]>) -> Result<(), HubError> + 'a;

/// Passes on a body chunk by chunk. A body that stalls for `limit`, or trickles for twice as
/// long, is given up.
pub(super) fn pieces(
    url: &str,
    body: impl Read + Send + 'static,
    limit: Duration,
    on_piece: &mut OnPiece<'_>,
) -> Result<(), HubError> {
    // Two pieces ahead at most.
    let (sender, receiver) = mpsc::sync_channel(2);
    let mut body = body;
    start(url, move || {
        loop {
            let mut piece = vec![0; BUFFER];
            let read = body.read(&mut piece).map(|count| {
                piece.truncate(count);
                piece
            });
            let is_last = !matches!(&read, Ok(piece) if !piece.is_empty());
            if sender.send(read).is_err() || is_last {
                return;
            }
        }
    })?;
    let (mut since, mut bytes) = (Instant::now(), 0);
    loop {
        let piece = next(&receiver, limit, &mut || on_piece(None))?;
        let piece = piece.ok_or_else(|| stalled(url, limit))?;
        let piece = piece.map_err(|error| connection(url, error))?;
        if piece.is_empty() {
            return Ok(());
        }
        on_piece(Some(&piece))?;
        bytes += piece.len() as u64;
        if since.elapsed() > 2 * limit {
            let seconds = since.elapsed().as_secs_f64();
            if (bytes as f64) < SLOWEST * seconds {
                return Err(HubError::Slow {
                    url: url.into(),
                    bytes,
                    seconds,
                });
            }
            (since, bytes) = (Instant::now(), 0);
        }
    }
}

/// What comes next, or nothing within `limit`.
fn next<T>(
    receiver: &Receiver<T>,
    limit: Duration,
    ask: &mut Ask<'_>,
) -> Result<Option<T>, HubError> {
    let begin = Instant::now();
    loop {
        ask()?;
        match receiver.recv_timeout(MOMENT) {
            Ok(found) => return Ok(Some(found)),
            Err(RecvTimeoutError::Timeout) if begin.elapsed() < limit => {}
            Err(_) => return Ok(None),
        }
    }
}

fn start(url: &str, work: impl FnOnce() + Send + 'static) -> Result<(), HubError> {
    let thread = std::thread::Builder::new().name("hub".into()).spawn(work);
    thread.map(drop).map_err(|error| connection(url, error))
}

fn stalled(url: &str, limit: Duration) -> HubError {
    connection(url, format!("no answer for {} s", limit.as_secs_f32()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_millis(300);

    /// Gives single bytes, so many, with a pause in front of each.
    struct Trickle(usize, Duration);

    impl Read for Trickle {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            if self.0 == 0 {
                return Ok(0);
            }
            std::thread::sleep(self.1);
            self.0 -= 1;
            buffer[0] = 7;
            Ok(1)
        }
    }

    fn read(body: Trickle) -> Result<usize, HubError> {
        let mut bytes = 0;
        pieces("u", body, LIMIT, &mut |piece| {
            bytes += piece.map_or(0, <[u8]>::len);
            Ok(())
        })?;
        Ok(bytes)
    }

    #[test]
    fn a_body_comes_in_pieces() {
        assert_eq!(read(Trickle(9, Duration::ZERO)).expect("whole"), 9);
    }

    #[test]
    fn a_body_that_stands_still_is_given_up() {
        let error = read(Trickle(1, Duration::from_secs(5))).expect_err("still");
        assert_eq!(error.to_string(), "u: no answer for 0.3 s");
    }

    #[test]
    fn a_body_that_trickles_is_given_up() {
        let error = read(Trickle(999, Duration::from_millis(20))).expect_err("slow");
        assert!(matches!(error, HubError::Slow { .. }), "{error}");
    }

    #[test]
    fn the_user_is_asked_while_nothing_comes() {
        let mut asked = 0;
        let mut ask = || {
            asked += 1;
            match asked {
                3 => Err(connection("u", "stopped")),
                _ => Ok(()),
            }
        };
        let slow = || std::thread::sleep(Duration::from_secs(5));
        let error = wait("u", Duration::from_secs(9), &mut ask, slow).expect_err("stopped");
        assert_eq!(error.to_string(), "u: stopped");
        let done = wait("u", LIMIT, &mut || Ok(()), || 5).expect("done");
        assert_eq!(done, 5);
    }
}
