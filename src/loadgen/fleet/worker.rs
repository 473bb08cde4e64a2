//! A worker: waits for a coordinator, runs its part, reports, waits for the next.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot, watch};

use super::wire::{self, FromWorker, Job, Reader, Secret, ToWorker, WireError, Writer};
use crate::loadgen::control::StackControl;
use crate::loadgen::engine::{self, Gate, RunError, RunOptions};
use crate::protocol::Fault;
use crate::runtime::{Tasks, clock, machine, net};
use crate::telemetry::{LiveSnapshot, RunPhase};

/// Values that wait to be written.
const OUTGOING_MAX: usize = 64;

/// Serves coordinators, one at a time, until stopped. `note` is told about each.
pub async fn serve(listener: TcpListener, secret: Secret, stop: Tasks, note: impl Fn(String)) {
    let is_busy = AtomicBool::new(false);
    // Not tasks: a run's own future is one of these, and there are rarely two.
    let mut served = FuturesUnordered::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(()) = served.next() => continue,
            () = stop.stopped() => return,
        };
        let (stream, from) = match accepted {
            Ok(accepted) => accepted,
            Err(error) if net::is_transient_accept_error(&error) => {
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
            Err(error) => return note(format!("no more connections are taken: {error}")),
        };
        let (is_busy, secret, note, stop) = (&is_busy, &secret, &note, &stop);
        served.push(async move {
            let served = serve_one(stream, secret, is_busy, stop, || note(format!("{from}: a run begins"))).await;
            match served {
                Ok(()) => note(format!("{from}: the run is over")),
                Err(error) => note(format!("{from}: {error}")),
            }
        });
    }
}

async fn serve_one(
    stream: TcpStream,
    secret: &Secret,
    is_busy: &AtomicBool,
    stop: &Tasks,
    begins: impl FnOnce(),
) -> Result<(), WireError> {
    net::set_options(&stream);
    let (read, write) = stream.into_split();
    let (mut reader, mut writer) = (Reader::new(Box::new(read)), Writer::new(Box::new(write)));
    wire::answer(&mut reader, &mut writer, secret, is_busy.load(Ordering::Acquire)).await?;
    // Only who has proved to know the secret takes the worker; two at once are told apart here.
    if is_busy.swap(true, Ordering::AcqRel) {
        let message = "the worker is busy with another run".to_owned();
        return writer.send(&FromWorker::Failed { usage: false, message }).await;
    }
    begins();
    let served = work(reader, writer, stop).await;
    is_busy.store(false, Ordering::Release);
    served
}

/// Serves the coordinator at the other end of standard input and output, for one run.
pub async fn serve_pipe(stop: Tasks) -> Result<(), WireError> {
    work(Reader::new(Box::new(tokio::io::stdin())), Writer::new(Box::new(tokio::io::stdout())), &stop).await
}

/// The doors that the coordinator opens while a part runs.
#[derive(Default)]
struct Doors {
    start: Mutex<Option<oneshot::Sender<u64>>>,
    faults: Mutex<HashMap<String, FaultDoor>>,
}

/// Faults of one name: those that are over and not asked for yet, and who waits for the next.
#[derive(Default)]
struct FaultDoor {
    over: VecDeque<Option<String>>,
    waiting: VecDeque<oneshot::Sender<Option<String>>>,
}

/// The coordinator's hands on the stack, as a part sees them.
struct Relayed(Arc<Doors>);

#[async_trait]
impl StackControl for Relayed {
    async fn check(&self, _fault: &Fault) -> Result<(), String> {
        // The coordinator has.
        Ok(())
    }

    async fn do_fault(&self, fault: &Fault) -> Result<(), String> {
        let over = {
            let mut faults = self.0.faults.lock().expect("no panic while held");
            let door = faults.entry(fault.to_string()).or_default();
            if let Some(error) = door.over.pop_front() {
                return error.map_or(Ok(()), Err);
            }
            let (tell, over) = oneshot::channel();
            door.waiting.push_back(tell);
            over
        };
        match over.await {
            Ok(error) => error.map_or(Ok(()), Err),
            Err(_) => Err("the coordinator is gone".to_owned()),
        }
    }
}

/// Waits for the coordinator's word to begin.
struct StartGate {
    outgoing: mpsc::Sender<FromWorker>,
    start: tokio::sync::Mutex<Option<oneshot::Receiver<u64>>>,
}

#[async_trait]
impl Gate for StartGate {
    async fn ready(&self) -> Option<u64> {
        let start = self.start.lock().await.take()?;
        self.outgoing.send(FromWorker::Ready).await.ok()?;
        start.await.ok()
    }
}

/// Runs one job. Inputs: what the coordinator says; snapshots of the run; its end.
async fn work(mut reader: Reader, mut writer: Writer, stop: &Tasks) -> Result<(), WireError> {
    let job = loop {
        match reader.next().await? {
            ToWorker::Ping => {
                let resident_bytes = machine::resident_bytes().unwrap_or(0);
                let pong = FromWorker::Pong { now_us: clock::now_us(), unix_us: clock::unix_us(), resident_bytes };
                writer.send(&pong).await?;
            }
            ToWorker::Job(job) => break job,
            ToWorker::Interrupt => return Ok(()),
            ToWorker::Start { .. } | ToWorker::FaultOver { .. } => {
                return Err(WireError::Broken("a start without a job".to_owned()));
            }
        }
    };
    let tasks = Tasks::new();
    let (outgoing, mut to_write) = mpsc::channel::<FromWorker>(OUTGOING_MAX);
    let doors = Arc::new(Doors::default());
    let interrupt = Tasks::new();
    let (is_written, written) = oneshot::channel();
    tasks.spawn("worker.write", async move {
        let mut result = Ok(());
        while let Some(value) = to_write.recv().await {
            result = writer.send(&value).await;
            if result.is_err() {
                break;
            }
        }
        // Nobody listens any more when the work was dropped.
        let _ = is_written.send(result);
    });
    let running = run(*job, &doors, outgoing, &interrupt);
    let listening = listen(&mut reader, &doors, &interrupt);
    tokio::pin!(running, listening);
    let lost = tokio::select! {
        () = &mut running => None,
        error = &mut listening => Some(error),
        () = stop.stopped() => Some(WireError::Lost("stopped".to_owned())),
    };
    if let Some(error) = lost {
        // Nobody wants the result: what is connected is dropped with the run.
        return Err(error);
    }
    written.await.unwrap_or_else(|_| Err(WireError::Lost("stopped".to_owned())))
}

/// Hears the coordinator until it is gone.
async fn listen(reader: &mut Reader, doors: &Doors, interrupt: &Tasks) -> WireError {
    loop {
        match reader.next().await {
            Ok(ToWorker::Start { at_us }) => {
                if let Some(start) = doors.start.lock().expect("no panic while held").take() {
                    // The run may have failed meanwhile, which it says itself.
                    let _ = start.send(at_us);
                }
            }
            Ok(ToWorker::FaultOver { what, error }) => {
                let mut faults = doors.faults.lock().expect("no panic while held");
                let door = faults.entry(what).or_default();
                match door.waiting.pop_front() {
                    Some(waiting) => _ = waiting.send(error),
                    None => door.over.push_back(error),
                }
            }
            Ok(ToWorker::Interrupt) => interrupt.stop(),
            Ok(ToWorker::Ping | ToWorker::Job(_)) => {
                return WireError::Broken("a second job in one run".to_owned());
            }
            Err(error) => return error,
        }
    }
}

/// The interval that was told last, by its end.
#[derive(Default)]
struct Told(f64);

impl Told {
    /// Takes the latencies out of a snapshot whose interval was told before: the end of a run shows the last one again.
    /// Where the last one was not told, since snapshots came faster than they could be, they stay.
    fn take(&mut self, snapshot: &mut LiveSnapshot) {
        let ended_s = std::mem::replace(&mut self.0, snapshot.elapsed_s);
        if snapshot.phase == RunPhase::Done && ended_s.to_bits() == snapshot.elapsed_s.to_bits() {
            snapshot.histograms.clear();
            snapshot.unmeasured.clear();
        }
    }
}

/// Runs the part and says what came of it.
async fn run(job: Job, doors: &Arc<Doors>, outgoing: mpsc::Sender<FromWorker>, interrupt: &Tasks) {
    let (live, mut shown) = watch::channel(LiveSnapshot::default());
    let (start, started) = oneshot::channel();
    *doors.start.lock().expect("no panic while held") = Some(start);
    let gate = StartGate { outgoing: outgoing.clone(), start: tokio::sync::Mutex::new(Some(started)) };
    let options = RunOptions {
        target: job.target,
        control: Some(Arc::new(Relayed(Arc::clone(doors)))),
        history: job.history,
        live,
        interrupt: interrupt.clone(),
        stack_threads: None,
        sources: job.sources,
        part: Some(engine::Part { index: job.part.0, of: job.part.1, gate: Box::new(gate) }),
    };
    let report = async {
        let mut told = Told::default();
        while shown.changed().await.is_ok() {
            let mut snapshot = Box::new(shown.borrow_and_update().clone());
            told.take(&mut snapshot);
            let histograms = std::mem::take(&mut snapshot.histograms);
            let unmeasured = std::mem::take(&mut snapshot.unmeasured);
            if outgoing.send(FromWorker::Snapshot { snapshot, histograms, unmeasured }).await.is_err() {
                return;
            }
        }
    };
    // The reports end with the run, which drops the sender of snapshots.
    let (result, ()) = tokio::join!(engine::run(&job.scenario, options), report);
    let last = match result {
        Ok(result) => FromWorker::Done { tallied: result.tallied, result: Box::new(result) },
        Err(RunError::Usage(message)) => FromWorker::Failed { usage: true, message },
        Err(RunError::Environment(message)) => FromWorker::Failed { usage: false, message },
    };
    // Nobody to tell when the coordinator is gone.
    let _ = outgoing.send(last).await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::{ByPath, Latency, LatencyPath};

    #[test]
    fn each_interval_is_told_once() {
        let snapshot = |elapsed_s, phase| {
            let histograms = ByPath::from([(LatencyPath::Ack, Latency::default())]);
            LiveSnapshot { elapsed_s, phase, unmeasured: histograms.clone(), histograms, ..LiveSnapshot::default() }
        };
        let told = |snapshots: &[LiveSnapshot]| {
            let mut told = Told::default();
            let lengths = snapshots.iter().cloned().map(|mut snapshot| {
                told.take(&mut snapshot);
                (snapshot.histograms.len(), snapshot.unmeasured.len())
            });
            lengths.collect::<Vec<_>>()
        };
        let (setup, last, end) =
            (snapshot(0.0, RunPhase::Setup), snapshot(9.0, RunPhase::Audit), snapshot(9.0, RunPhase::Done));
        let all = [setup.clone(), setup.clone(), last, end.clone()];
        assert_eq!(told(&all), [(1, 1), (1, 1), (1, 1), (0, 0)]);
        assert_eq!(told(&[setup, end]), [(1, 1), (1, 1)], "the last one was not told before");
    }
}
