//! One job: it waits for a slot, runs on a builder, and again on another one where that comes to nothing.

use super::builder_client::{BuilderClient, Fault, read, short};
use super::pool::Ended;
use super::queue::{Full, Need, QueuedJob, Tenant, Toolchain};
use super::spool::{self, Spool};
use super::ticket::Ticket;
use super::wire::{self, RunResult};
use super::{Front, Relay, Verdict};
use crate::contract::job_end::{COMPILER_FAILED, KILLED, SENT_HOME};
use bytes::Bytes;
use hyper::StatusCode;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout, timeout_at};
use tracing::info;

/// In all: sccache's client gives up after 1,200 s.
pub(super) const LONGEST: Duration = Duration::from_secs(1150);
/// A job runs at most so many times: once, and three times again.
const RUNS: u32 = 4;
/// A job that so many builders died of goes home.
const KILLS: u32 = 2;
/// So often a builder may turn a job away before it ran.
const REFUSALS: u32 = 12;
/// How long a job waits at least for another builder, whatever the settings say: one that died is back by then.
const RETRY_WAIT: Duration = Duration::from_secs(30);
/// How long one waits that was let in because a slot was free.
const LET_IN_WAIT: Duration = Duration::from_secs(5);
/// How long a builder may take to take a job note of.
const ASSIGNMENT: Duration = Duration::from_secs(15);
/// Longest result of a job.
const RESULT: u64 = 4 << 30;

/// What `sccache-dist` says when it could not unpack the inputs of a job.
const UNPACKING: &[u8] = b"Failed to unpack inputs";

/// Why a client has to compile by itself.
#[derive(Debug)]
pub(super) struct Fallback {
    /// For metrics.
    pub(super) outcome: &'static str,
    pub(super) message: String,
}

impl Fallback {
    pub(super) fn new(outcome: &'static str, message: impl ToString) -> Fallback {
        let message = message.to_string();
        Fallback { outcome, message }
    }

    /// For a job or a result that could not be received or kept.
    pub(super) fn of(fault: &spool::Fault, what: &str) -> Fallback {
        let outcome = match fault {
            spool::Fault::TooLarge(_) => "too_large",
            spool::Fault::Disk(_) => "disk",
            spool::Fault::Slow | spool::Fault::Cut(_) => "body",
        };
        Fallback::new(outcome, format!("{what}: {fault}"))
    }
}

impl From<Full> for Fallback {
    fn from(full: Full) -> Fallback {
        Fallback::new("queue_full", full)
    }
}

/// Why a builder gave no result, by its own words.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// The compiler has failed, or looked for what was not sent: it would everywhere.
    Compiler,
    /// The job was killed: by a limit, or for memory.
    Limit,
    /// What the client has sent could not be unpacked: it is too large, or broken.
    Inputs,
    /// Anything else.
    Builder(String),
}

impl Failure {
    /// What an answer that is no result means. `sccache-dist` tells the signal by which its bubblewrap, our shim, ended.
    pub(super) fn of(status: StatusCode, body: &[u8]) -> Failure {
        let ended_by = |signal: i32| {
            let words = format!("signal {signal}");
            memchr::memmem::find_iter(body, words.as_bytes())
                .any(|at| !body.get(at + words.len()).is_some_and(u8::is_ascii_digit))
        };
        if ended_by(COMPILER_FAILED) || ended_by(SENT_HOME) {
            Failure::Compiler
        } else if ended_by(KILLED) {
            Failure::Limit
        } else if memchr::memmem::find(body, UNPACKING).is_some() {
            Failure::Inputs
        } else {
            Failure::Builder(format!("{status} {:.300}", String::from_utf8_lossy(body)))
        }
    }
}

/// A slot of a builder, for one attempt. Dropped before its end, it is free if the builder never got the job, and else
/// when the builder says that the job is complete, or that it has it no more.
#[derive(Debug)]
pub(super) struct Slot {
    front: Arc<Front>,
    pub(super) client: Arc<BuilderClient>,
    number: u64,
    sent: bool,
    over: bool,
}

impl Slot {
    /// The slot that an attempt with this number has in the pool.
    pub(super) fn new(front: &Arc<Front>, client: Arc<BuilderClient>, number: u64) -> Slot {
        Slot {
            front: Arc::clone(front),
            client,
            number,
            sent: false,
            over: false,
        }
    }

    /// The job is about to be sent.
    pub(super) fn send(&mut self, toolchain: &Toolchain) {
        self.sent = true;
        let (now, at) = (Instant::now(), self.client.at);
        let mut registry = self.front.registry();
        registry.assigned(now, self.number, at, toolchain, false);
    }

    /// The attempt has ended.
    pub(super) fn end(mut self, how: Ended) {
        self.over = true;
        if let Some(relay) = self.front.relay() {
            let mut dispatcher = relay.dispatcher();
            dispatcher
                .pool
                .end(Instant::now(), self.number, &self.client.at, how);
        }
        // Its builder may not have been able to say so.
        self.front.registry().over(self.number);
    }

    /// The builder may have gone on with it, and is at fault.
    fn blame(self) {
        if let Some(relay) = self.front.relay() {
            let mut dispatcher = relay.dispatcher();
            dispatcher.pool.blame(Instant::now(), &self.client.at);
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let Some(relay) = self.front.relay().filter(|_| !self.over) {
            let (mut dispatcher, at) = (relay.dispatcher(), &self.client.at);
            match self.sent {
                true => dispatcher.pool.abandon(Instant::now(), self.number, at),
                false => dispatcher.pool.complete(self.number, at),
            }
        }
    }
}

/// Bytes that a job may take, until this is dropped.
pub(super) struct Reservation<'a> {
    relay: &'a Relay,
    tenant: Tenant,
    bytes: u64,
}

impl Relay {
    /// Room for a job of this client, of so many bytes.
    ///
    /// # Errors
    /// There is none.
    pub(super) fn reserve(&self, tenant: Tenant, bytes: u64) -> Result<Reservation<'_>, Full> {
        self.dispatcher().queue.reserve(tenant, bytes)?;
        Ok(Reservation {
            relay: self,
            tenant,
            bytes,
        })
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        let mut dispatcher = self.relay.dispatcher();
        dispatcher.queue.release(self.tenant, self.bytes);
    }
}

/// The place of a job in the queue, which it leaves with its client.
struct Place<'a> {
    front: &'a Arc<Front>,
    relay: &'a Relay,
    job: u64,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.relay.waiting().remove(&self.job);
        self.relay.dispatcher().queue.remove(self.job);
        self.front.dispatch();
    }
}

/// What came of one attempt.
enum Attempt {
    Done(Arc<Spool>),
    Fallback(Fallback),
    /// The builder did not get as far as to run it.
    NotRun(&'static str, String),
    /// It ran, and not to its end.
    Lost {
        why: &'static str,
        message: String,
        killed: bool,
    },
}

/// A job as it came.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) number: u64,
    pub(super) ticket: Ticket,
    pub(super) body: Arc<Spool>,
    pub(super) began: Instant,
}

impl Front {
    /// Runs a job; gives the builder's answer.
    ///
    /// # Errors
    /// The client had better compile by itself.
    pub(super) async fn run(
        self: &Arc<Front>,
        relay: &Relay,
        job: Job,
    ) -> Result<Arc<Spool>, Fallback> {
        let info = QueuedJob {
            tenant: job.ticket.tenant,
            arrived: job.began,
            need: Need {
                toolchain: job.ticket.toolchain.clone(),
                avoid: Vec::new(),
            },
        };
        let (tell, mut told) = oneshot::channel();
        relay.waiting().insert(job.number, tell);
        relay.dispatcher().queue.push(job.number, info);
        let _place = Place {
            front: self,
            relay,
            job: job.number,
        };
        let (mut runs, mut kills, mut refusals) = (0, 0, 0);
        let mut patience = match relay.settings.queue_time() {
            Duration::ZERO => LET_IN_WAIT,
            time => time,
        };
        loop {
            self.dispatch();
            let slot = self.slot(&mut told, &job, patience).await?;
            let (builder, nonce) = (slot.client.at, slot.client.nonce);
            let avoid = match self.attempt(relay, slot, &job).await {
                Attempt::Done(result) => {
                    relay.metrics.attempt("done");
                    return Ok(result);
                }
                Attempt::Fallback(fallback) => {
                    relay.metrics.attempt(fallback.outcome);
                    return Err(fallback);
                }
                Attempt::NotRun(why, message) => {
                    relay.metrics.attempt(why);
                    info!("job {} was not run by {builder}: {message}", job.number);
                    refusals += 1;
                    if refusals >= REFUSALS {
                        return Err(Fallback::new("refused", message));
                    }
                    None
                }
                Attempt::Lost {
                    why,
                    message,
                    killed,
                } => {
                    relay.metrics.attempt(why);
                    info!("job {} was lost on {builder}: {message}", job.number);
                    runs += 1;
                    kills += u32::from(killed);
                    if runs >= RUNS || kills >= KILLS {
                        return Err(Fallback::new("given_up", message));
                    }
                    Some((builder, nonce))
                }
            };
            patience = patience.max(RETRY_WAIT);
            let (tell, next) = oneshot::channel();
            relay.waiting().insert(job.number, tell);
            relay.dispatcher().queue.again(job.number, avoid);
            told = next;
        }
    }

    /// Waits for a slot.
    async fn slot(
        &self,
        told: &mut oneshot::Receiver<Verdict>,
        job: &Job,
        patience: Duration,
    ) -> Result<Slot, Fallback> {
        let deadline = (Instant::now() + patience).min(job.began + LONGEST);
        let verdict = match timeout_at(deadline, &mut *told).await {
            Ok(verdict) => verdict.ok(),
            // It may have come in this moment.
            Err(_) => told.try_recv().ok(),
        };
        match verdict {
            Some(Verdict::Assigned(slot)) => Ok(slot),
            Some(Verdict::Fallback) => Err(Fallback::new(
                "no_builder",
                "no builder can take the job: none is there, or it came to nothing on all of them",
            )),
            None => Err(Fallback::new(
                "queue_time",
                "no slot was free in time (SCCACHE_QUEUE_TIME)",
            )),
        }
    }

    /// Tries a job on a builder.
    async fn attempt(&self, relay: &Relay, slot: Slot, job: &Job) -> Attempt {
        let client = Arc::clone(&slot.client);
        let left = (job.began + LONGEST).duration_since(Instant::now());
        let mut slot = Some(slot);
        let outcome = tokio::select! {
            outcome = timeout(left, self.try_on(relay, &client, &mut slot, job)) => outcome,
            () = client.stands_still() => {
                let message = "it does not answer any more".to_owned();
                Ok(Attempt::Lost { why: "silent", message, killed: false })
            }
        };
        // Not ended by a whole answer: it may go on there.
        if let Some(slot) = slot {
            slot.blame();
        }
        let late = |_| Attempt::Fallback(Fallback::new("late", "the job took too long"));
        outcome.unwrap_or_else(late)
    }

    async fn try_on(
        &self,
        relay: &Relay,
        client: &BuilderClient,
        slot: &mut Option<Slot>,
        job: &Job,
    ) -> Attempt {
        let end = |slot: &mut Option<Slot>, how: Ended| {
            if let Some(slot) = slot.take() {
                slot.end(how);
            }
        };
        let Some(number) = slot.as_ref().map(|slot| slot.number) else {
            return Attempt::NotRun("refused", "there is no slot".to_owned());
        };
        let toolchain = &job.ticket.toolchain;
        let not_run = |fault: Fault| match fault {
            Fault::Refused(_) => Attempt::NotRun("gone", fault.to_string()),
            Fault::Unreachable(_) => Attempt::NotRun("unreachable", fault.to_string()),
            Fault::Cut(_) => Attempt::NotRun("cut", fault.to_string()),
        };
        let asked = async {
            let mut connection = client.connect(Some(number)).await?;
            let body = short(wire::toolchain(toolchain));
            let answer = connection.post("assign_job", number, body, false).await?;
            Ok::<_, Fault>((connection, answer))
        };
        let asked = match timeout(ASSIGNMENT, asked).await {
            Ok(asked) => asked,
            Err(_) => Err(Fault::Unreachable(std::io::ErrorKind::TimedOut.into())),
        };
        let (mut connection, answer) = match asked {
            Ok(asked) => asked,
            Err(fault) => {
                end(slot, Ended::Fault);
                self.look_whether_it_died(relay, client).await;
                return not_run(fault);
            }
        };
        let status = answer.status();
        let needs_toolchain = match (status, read(answer).await) {
            (StatusCode::OK, Ok(body)) => wire::assigned(&body).map_err(|cause| cause.to_string()),
            (_, Ok(body)) => Err(format!("{status} {:.300}", String::from_utf8_lossy(&body))),
            (_, Err(cause)) => Err(cause),
        };
        match needs_toolchain {
            Ok(false) => {}
            Ok(true) => {
                end(slot, Ended::Job);
                let mut dispatcher = relay.dispatcher();
                let at = &client.at;
                dispatcher.pool.lost_toolchain(at, client.nonce, toolchain);
                return Attempt::NotRun("toolchain", "it has lost the toolchain".to_owned());
            }
            Err(message) => {
                end(slot, Ended::Fault);
                return Attempt::NotRun("refused", message);
            }
        }
        if !connection.is_usable() {
            connection = match client.connect(Some(number)).await {
                Ok(connection) => connection,
                Err(fault) => {
                    end(slot, Ended::Fault);
                    return not_run(fault);
                }
            };
        }
        if let Some(slot) = slot {
            slot.send(toolchain);
        }
        let began = Instant::now();
        let body = (job.body.length, job.body.outgoing());
        let answer = match connection.post("run_job", number, body, true).await {
            Ok(answer) => answer,
            Err(fault) => return self.lost(relay, client, &fault.to_string()).await,
        };
        let status = answer.status();
        if status != StatusCode::OK {
            let told = match read(answer).await {
                Ok(told) => told,
                Err(cause) => return self.lost(relay, client, &cause).await,
            };
            return failed(slot, status, &told, &end);
        }
        let mut body = answer.into_body();
        let result = match Spool::fill(&relay.settings.spool, &mut body, RESULT).await {
            Ok(result) => result,
            // The builder has done its part, and so would any other.
            Err(fault @ (spool::Fault::Disk(_) | spool::Fault::TooLarge(_))) => {
                end(slot, Ended::Job);
                return Attempt::Fallback(Fallback::of(&fault, "its result"));
            }
            Err(cause) => return self.lost(relay, client, &cause.to_string()).await,
        };
        let head = &result.head[..result.head.len().min(wire::RESULT_HEAD)];
        match wire::result(head) {
            Ok(RunResult::Complete(0)) => {
                end(slot, Ended::Well(began.elapsed()));
                Attempt::Done(Arc::new(result))
            }
            // The client would fail its build with it, and its own compiler may find what the builder has not.
            Ok(RunResult::Complete(code)) => {
                end(slot, Ended::Job);
                let message = format!("the compiler ended with {code} on {}", client.at);
                Attempt::Fallback(Fallback::new("compiler", message))
            }
            Ok(RunResult::JobNotFound) => {
                end(slot, Ended::Fault);
                Attempt::NotRun("refused", "it does not know the job any more".to_owned())
            }
            Err(cause) => {
                end(slot, Ended::Fault);
                let message = format!("its answer cannot be understood: {cause}");
                Attempt::Lost {
                    why: "fault",
                    message,
                    killed: false,
                }
            }
        }
    }

    /// The connection ended while a job ran. It counts as the job's doing if that was alone there: with others, any of
    /// them may have been the cause, or none.
    async fn lost(&self, relay: &Relay, client: &BuilderClient, cause: &str) -> Attempt {
        let (died, alone) = self.look_whether_it_died(relay, client).await;
        Attempt::Lost {
            why: if died { "died" } else { "cut" },
            message: cause.to_owned(),
            killed: alone,
        }
    }

    /// Whether nobody listens at the builder's port any more, and whether it had one job alone.
    pub(super) async fn look_whether_it_died(
        &self,
        relay: &Relay,
        client: &BuilderClient,
    ) -> (bool, bool) {
        if !client.is_gone().await {
            return (false, false);
        }
        let (mut dispatcher, now) = (relay.dispatcher(), Instant::now());
        let alone = dispatcher.pool.gone(now, &client.at, client.nonce);
        (true, alone)
    }
}

/// What an answer means that is no result.
fn failed(
    slot: &mut Option<Slot>,
    status: StatusCode,
    told: &Bytes,
    end: &impl Fn(&mut Option<Slot>, Ended),
) -> Attempt {
    match Failure::of(status, told) {
        Failure::Compiler => {
            end(slot, Ended::Job);
            let message = "the compiler failed there, or looked for what was not sent";
            Attempt::Fallback(Fallback::new("compiler", message))
        }
        Failure::Inputs => {
            end(slot, Ended::Job);
            let message = "its inputs could not be unpacked there: they are too large, or broken";
            Attempt::Fallback(Fallback::new("too_large", message))
        }
        Failure::Limit => {
            end(slot, Ended::Job);
            Attempt::Lost {
                why: "limit",
                message: "the job was killed there, by a limit or for memory".to_owned(),
                killed: false,
            }
        }
        Failure::Builder(message) => {
            end(slot, Ended::Fault);
            Attempt::Lost {
                why: "fault",
                message,
                killed: false,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shim_says_by_its_signal_why_a_job_ended() {
        let told = |signal: i32| {
            let text = format!(
                r#"{{"description":"run build failed","cause":{{"description":"Failed to convert","cause":"status signal {signal}"}}}}"#
            );
            Failure::of(StatusCode::INTERNAL_SERVER_ERROR, text.as_bytes())
        };
        assert_eq!(told(COMPILER_FAILED), Failure::Compiler);
        assert_eq!(told(SENT_HOME), Failure::Compiler);
        assert_eq!(told(KILLED), Failure::Limit);
        let broken = br#"{"description":"run build failed","cause":{"description":"Failed to unpack inputs to overlay"}}"#;
        let broken = Failure::of(StatusCode::INTERNAL_SERVER_ERROR, broken);
        assert_eq!(broken, Failure::Inputs);
        for other in [1, 99, 100, 120] {
            assert!(matches!(told(other), Failure::Builder(_)), "{other}");
        }
    }
}
