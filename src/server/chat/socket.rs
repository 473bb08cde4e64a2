//! One socket: what waits to be written to it, and reading without a buffer of its own.
//!
//! While idle a socket holds no buffer: reads go through one buffer per thread, writes are tried at once from the task
//! that has something to say. A busy socket that was written to within the last [`MERGE_WINDOW_MS`], or that the
//! kernel takes no more for, gets a queue; what gathers there goes out in one write.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{ErrorKind, IoSlice};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::net::TcpStream;
use tokio::sync::Notify;

use crate::protocol::websocket::{Decoder, Event, Violation};
use crate::runtime::{clock, net};
use crate::server::min_rate::{MinRate, SOCKET_STALL_MAX};

/// Writes to a busy connection within this time of the last are gathered.
pub(super) const MERGE_WINDOW_MS: u32 = 3;

/// A connection is busy that had so many frames within so long, until it has had fewer for as long. To another one each frame
/// is written at once: gathering would cost the window, and hardly ever save a write.
const BUSY_FRAMES: u8 = 6;
const BUSY_WINDOW_MS: u32 = 32;

/// Read buffer of a thread.
const READ_BYTES: usize = 64 * 1024;

/// Bytes that are gathered of several records for one connection; then they are written.
const GATHER_BYTES_MAX: usize = 64 * 1024;

/// Frames in one vectored write.
const SLICES_MAX: usize = 64;

/// How long a closing socket may take to hear the other end's close.
pub(super) const CLOSE_WAIT: Duration = Duration::from_secs(2);

thread_local! {
    static READ_BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ_BYTES].into_boxed_slice());
}

/// The other end of a [`Socket`].
enum Wire {
    Tcp(TcpStream),
    /// Requests that come now and then and fetch what is queued (see `poll`); told when there is something.
    Polled(Box<Notify>),
}

/// A connected socket, or what stands for one between two requests.
pub(super) struct Socket {
    wire: Wire,
    /// Written by whoever pushes, flushes or closes.
    out: Mutex<Outgoing>,
    /// When the last whole message came, on [`clock::now_ms_u32`]. Written by the reader.
    heard_ms: AtomicU32,
}

#[derive(Default)]
struct Outgoing {
    queue: VecDeque<Bytes>,
    /// Bytes of the first frame that are written already.
    front_written: usize,
    bytes: usize,
    last_write_ms: u32,
    /// When the window began in which frames are counted.
    window_ms: u32,
    /// Frames in it.
    frames: u8,
    /// Whether the window before had [`BUSY_FRAMES`].
    was_busy: bool,
    /// True while somebody has promised to flush.
    flush_promised: bool,
    /// True while that is somebody who gathers.
    is_gathered: bool,
    state: State,
}

#[derive(Default, PartialEq, Eq, Clone, Copy)]
enum State {
    #[default]
    Open,
    /// A close frame is queued or written; nothing follows it.
    Closing,
    /// The socket failed.
    Dead,
}

/// What became of a frame.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Pushed {
    /// In the kernel.
    Written,
    /// In the queue, and somebody else flushes it.
    Queued,
    /// In the queue: the caller must flush when it has gathered all.
    Gathered,
    /// In the queue, like much else: the caller must flush now.
    GatheredEnough,
    /// In the queue: the caller must have it flushed after the merge window.
    FlushSoon,
    /// In the queue: the caller must have it flushed when the socket is writable.
    FlushWhenWritable,
    /// Too much is waiting: the client reads too slowly.
    Full,
    /// The connection is closing or dead.
    Closed,
}

/// What a flush achieved.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Flushed {
    /// Nothing is waiting.
    Done,
    /// The kernel takes no more, after so many bytes: flush again when the socket is writable.
    Blocked(usize),
    /// The socket failed.
    Dead,
}

/// Why reading stopped.
#[derive(Debug)]
pub(super) enum ReadEnd {
    /// The other end closed its side, or the socket failed.
    Gone,
    /// The other end broke the protocol.
    Violation(Violation),
}

impl Socket {
    pub(super) fn new(stream: TcpStream) -> Self {
        Self::over(Wire::Tcp(stream))
    }

    /// One whose other end asks for what there is.
    pub(super) fn polled() -> Self {
        Self::over(Wire::Polled(Box::default()))
    }

    fn over(wire: Wire) -> Self {
        Self { wire, out: Mutex::default(), heard_ms: AtomicU32::new(clock::now_ms_u32()) }
    }

    /// Notes that the other end was heard.
    pub(super) fn heard(&self) {
        self.heard_ms.store(clock::now_ms_u32(), Ordering::Relaxed);
    }

    /// Takes what is queued, and whether nothing will follow. For sockets that are polled.
    pub(super) fn take(&self) -> (VecDeque<Bytes>, bool) {
        let mut out = self.out();
        out.bytes = 0;
        (std::mem::take(&mut out.queue), out.state != State::Open)
    }

    /// Waits until something is queued, or nothing will be. For sockets that are polled.
    pub(super) async fn news(&self) {
        let Wire::Polled(notify) = &self.wire else { return };
        loop {
            let told = notify.notified();
            {
                let out = self.out();
                if !out.queue.is_empty() || out.state != State::Open {
                    return;
                }
            }
            told.await;
        }
    }

    /// Waits until the socket has failed or was aborted. For sockets that are polled.
    pub(super) async fn dead(&self) {
        let Wire::Polled(notify) = &self.wire else { return };
        loop {
            let told = notify.notified();
            if self.out().state == State::Dead {
                return;
            }
            told.await;
        }
    }

    fn out(&self) -> std::sync::MutexGuard<'_, Outgoing> {
        self.out.lock().expect("no panic while held")
    }

    pub(super) fn heard_ms(&self) -> u32 {
        self.heard_ms.load(Ordering::Relaxed)
    }

    /// Bytes that wait to be written.
    pub(super) fn waiting_bytes(&self) -> usize {
        self.out().bytes
    }

    pub(super) fn is_open(&self) -> bool {
        self.out().state == State::Open
    }

    /// Writes a frame, or queues it. Never waits.
    pub(super) fn push(&self, frame: Bytes, bytes_max: usize) -> Pushed {
        let mut out = self.out();
        if out.state != State::Open {
            return Pushed::Closed;
        }
        let stream = match &self.wire {
            Wire::Tcp(stream) => stream,
            Wire::Polled(notify) => {
                if out.bytes + frame.len() > bytes_max {
                    return Pushed::Full;
                }
                out.bytes += frame.len();
                out.queue.push_back(frame);
                notify.notify_waiters();
                return Pushed::Queued;
            }
        };
        if !out.may_write_at_once() || !out.queue.is_empty() {
            if out.bytes + frame.len() > bytes_max {
                return Pushed::Full;
            }
            out.bytes += frame.len();
            out.queue.push_back(frame);
            if std::mem::replace(&mut out.flush_promised, true) {
                return Pushed::Queued;
            }
            return Pushed::FlushSoon;
        }
        out.last_write_ms = clock::now_ms_u32();
        match stream.try_write(&frame) {
            Ok(written) if written == frame.len() => return Pushed::Written,
            Ok(written) => out.front_written = written,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => {
                out.die();
                return Pushed::Closed;
            }
        }
        out.bytes += frame.len();
        out.queue.push_back(frame);
        if std::mem::replace(&mut out.flush_promised, true) { Pushed::Queued } else { Pushed::FlushWhenWritable }
    }

    /// Queues a frame of somebody who may have more for this connection. Never waits.
    pub(super) fn gather(&self, frame: Bytes, bytes_max: usize) -> Pushed {
        if matches!(self.wire, Wire::Polled(_)) {
            return self.push(frame, bytes_max);
        }
        let mut out = self.out();
        if out.state != State::Open {
            return Pushed::Closed;
        }
        if out.bytes + frame.len() > bytes_max {
            return Pushed::Full;
        }
        let is_at_once = out.may_write_at_once();
        out.bytes += frame.len();
        out.queue.push_back(frame);
        if out.flush_promised {
            let is_enough = out.is_gathered && out.bytes >= GATHER_BYTES_MAX;
            return if is_enough { Pushed::GatheredEnough } else { Pushed::Queued };
        }
        out.flush_promised = true;
        if is_at_once {
            out.is_gathered = true;
            return Pushed::Gathered;
        }
        Pushed::FlushSoon
    }

    /// Writes what was gathered, if it still waits for that: as much as the kernel takes.
    pub(super) fn flush_gathered(&self) -> Flushed {
        let mut out = self.out();
        if out.is_gathered { self.flush_locked(&mut out) } else { Flushed::Done }
    }

    /// Writes what is waiting, as much as the kernel takes.
    pub(super) fn flush(&self) -> Flushed {
        self.flush_locked(&mut self.out())
    }

    fn flush_locked(&self, out: &mut Outgoing) -> Flushed {
        out.is_gathered = false;
        if out.state == State::Dead {
            return Flushed::Dead;
        }
        let Wire::Tcp(stream) = &self.wire else { return Flushed::Done };
        let mut all = 0;
        while !out.queue.is_empty() {
            let result = {
                let front = out.front_written;
                let mut slices = [IoSlice::new(&[]); SLICES_MAX];
                let mut count = 0;
                for (slot, frame) in slices.iter_mut().zip(&out.queue) {
                    *slot = IoSlice::new(if count == 0 { &frame[front..] } else { frame });
                    count += 1;
                }
                stream.try_write_vectored(&slices[..count])
            };
            match result {
                Ok(written) => {
                    all += written;
                    out.advance(written);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Flushed::Blocked(all),
                Err(_) => {
                    out.die();
                    return Flushed::Dead;
                }
            }
        }
        out.queue = VecDeque::new();
        out.flush_promised = false;
        out.last_write_ms = clock::now_ms_u32();
        Flushed::Done
    }

    /// Writes what is waiting as the kernel takes it; returns false where the other end takes it too slowly.
    pub(super) async fn flush_all(&self) -> bool {
        let mut rate = MinRate::new(SOCKET_STALL_MAX);
        while let Flushed::Blocked(written) = self.flush() {
            if written > 0 {
                rate.took(written);
            }
            tokio::select! {
                writable = self.writable() => if writable.is_err() {
                    break;
                },
                () = rate.too_slow() => return false,
            }
        }
        true
    }

    /// Waits until the kernel takes more.
    async fn writable(&self) -> std::io::Result<()> {
        match &self.wire {
            Wire::Tcp(stream) => stream.writable().await,
            Wire::Polled(_) => Ok(()),
        }
    }

    /// Queues a close frame behind the frame that is half written, if any, and drops the rest of the queue when
    /// `drop_queue` is set. Returns false when the connection was closing already.
    pub(super) fn begin_close(&self, frame: Bytes, drop_queue: bool) -> bool {
        let mut out = self.out();
        if out.state != State::Open {
            return false;
        }
        out.state = State::Closing;
        if drop_queue {
            let keep = usize::from(out.front_written > 0);
            out.queue.truncate(keep);
        }
        out.queue.push_back(frame);
        out.flush_promised = true;
        if let Wire::Polled(notify) = &self.wire {
            notify.notify_waiters();
        }
        true
    }

    /// Ends the socket now, from any task.
    pub(super) fn abort(&self) {
        self.out().die();
        match &self.wire {
            Wire::Tcp(stream) => net::abort(stream),
            Wire::Polled(notify) => notify.notify_waiters(),
        }
    }

    /// Reads what there is and hands each message to `sink`. Returns when nothing is left for now.
    pub(super) async fn read(
        &self,
        decoder: &mut Decoder,
        sink: &mut (dyn FnMut(Event<'_>) + Send),
    ) -> Result<(), ReadEnd> {
        let Wire::Tcp(stream) = &self.wire else { return std::future::pending().await };
        // Not `readable()`: its future carries a place in a list of waiters, and this socket has one reader.
        std::future::poll_fn(|context| stream.poll_read_ready(context)).await.map_err(|_| ReadEnd::Gone)?;
        READ_BUFFER.with_borrow_mut(|buffer| match net::try_read(stream, buffer) {
            Ok(0) => Err(ReadEnd::Gone),
            Ok(read) => decoder
                .feed(&mut buffer[..read], &mut |event| {
                    self.heard_ms.store(clock::now_ms_u32(), Ordering::Relaxed);
                    sink(event);
                })
                .map_err(ReadEnd::Violation),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(()),
            Err(_) => Err(ReadEnd::Gone),
        })
    }

    /// Sends what is queued, then waits for the other end to close, at most [`CLOSE_WAIT`], so that a close frame is never
    /// lost to a reset.
    pub(super) async fn linger(&self) {
        let Wire::Tcp(stream) = &self.wire else { return self.abort() };
        let _ = tokio::time::timeout(CLOSE_WAIT, async {
            while matches!(self.flush(), Flushed::Blocked(_)) {
                if self.writable().await.is_err() {
                    return;
                }
            }
            net::finish_writing(stream);
            let mut scratch = [0_u8; 1024];
            while stream.readable().await.is_ok() {
                match stream.try_read(&mut scratch) {
                    Ok(0) => return,
                    Err(error) if error.kind() != ErrorKind::WouldBlock => return,
                    _ => {}
                }
            }
        })
        .await;
        self.abort();
    }
}

impl Outgoing {
    /// Counts a frame; returns whether it may be written in this moment.
    fn may_write_at_once(&mut self) -> bool {
        let now = clock::now_ms_u32();
        let age = now.wrapping_sub(self.window_ms);
        if age >= BUSY_WINDOW_MS {
            self.was_busy = self.frames >= BUSY_FRAMES && age < 2 * BUSY_WINDOW_MS;
            (self.window_ms, self.frames) = (now, 0);
        }
        self.frames = self.frames.saturating_add(1);
        let is_busy = self.was_busy || self.frames > BUSY_FRAMES;
        !is_busy || now.wrapping_sub(self.last_write_ms) >= MERGE_WINDOW_MS
    }

    fn advance(&mut self, mut written: usize) {
        while let Some(front) = self.queue.front() {
            let rest = front.len() - self.front_written;
            if written < rest {
                self.front_written += written;
                return;
            }
            written -= rest;
            self.bytes = self.bytes.saturating_sub(front.len());
            self.front_written = 0;
            self.queue.pop_front();
        }
    }

    fn die(&mut self) {
        self.state = State::Dead;
        self.queue = VecDeque::new();
        self.bytes = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn only_to_a_busy_connection_are_writes_gathered() {
        let mut out = Outgoing::default();
        // Whether each of some frames, `every_ms` apart, is written at once.
        let mut at_once = async |frames: u8, every_ms: u64| {
            let mut written = 0;
            for _ in 0..frames {
                if out.may_write_at_once() {
                    out.last_write_ms = clock::now_ms_u32();
                    written += 1;
                }
                tokio::time::advance(Duration::from_millis(every_ms)).await;
            }
            written
        };
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(at_once(40, 10).await, 40, "a hundred in a second");
        assert_eq!(at_once(BUSY_FRAMES, 0).await, BUSY_FRAMES, "some at once");
        tokio::time::advance(Duration::from_secs(1)).await;
        let written = at_once(120, 1).await;
        assert!((40..=50).contains(&written), "{written}: one in three milliseconds, once it is busy");
        tokio::time::advance(Duration::from_millis(2 * u64::from(BUSY_WINDOW_MS))).await;
        assert_eq!(at_once(BUSY_FRAMES, 1).await, BUSY_FRAMES, "it is not busy any more");
    }
}
