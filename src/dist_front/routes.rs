//! The requests of clients and builders, one function each.

use super::admission::AdmissionPermit;
use super::exchange::{Answer, Exchange, JSON, OCTETS, Refusal, TEXT, TUNNEL, passed_on, reply};
use super::registry::{Assignment, Known};
use super::relay::Told;
use super::relay::wire::heartbeat_taken;
use super::upstream::{Health, STATUS, UpstreamError};
use super::wire::{self, Allocation, JobState};
use super::{Front, jwt, registry, relay};
use crate::base::memory;
use crate::dist_front::admission::WAIT;
use crate::gateway::body::read_left_over;
use crate::gateway::connection_limit;
use crate::gateway::http::Wire;
use crate::gateway::peer::Peer;
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{self, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, timeout};
use tracing::info;

/// How long an allocation may take. The scheduler waits up to 30 s for the builder that it chose, and shuns it after
/// that; its client need not wait so long.
const ALLOCATION: Duration = Duration::from_secs(15);
/// How long everything else may take that the scheduler answers from memory.
pub(super) const QUICK: Duration = Duration::from_secs(10);

/// How long a builder's report waits for it: its own patience is 30 s.
const REPORT_WAIT: Duration = Duration::from_secs(10);
/// How long a body may take.
const BODY_TIME: Duration = Duration::from_secs(5);
/// Longest body of a client's request and of a job's new state; both have less than 80 bytes.
const SMALL: usize = 4 << 10;
/// Longest heartbeat; its certificate has about 1,100 bytes.
const LARGE: usize = 64 << 10;

const ALLOCATE: &str = "/api/v1/scheduler/alloc_job";
pub(super) const HEARTBEAT: &str = "/api/v1/scheduler/heartbeat_server";
const CERTIFICATE: &str = "/api/v1/scheduler/server_certificate/";
const JOB_STATE: &str = "/api/v1/scheduler/job_state/";
const SUBMIT_TOOLCHAIN: &str = "/api/v1/distserver/submit_toolchain/";
const RUN_JOB: &str = "/api/v1/distserver/run_job/";
/// What machines of ours call themselves.
const AGENT: &str = concat!("sccache-dock/", env!("CARGO_PKG_VERSION"));
/// Their kind of processor, as ELF numbers it.
const MACHINE: &str = "sccache-dock-machine";
/// Bytes of memory that are free there.
const MEMORY: &str = "sccache-dock-memory";
/// Ours: a builder's machine says that it leaves.
pub(super) const LEAVING: &str = "/api/v1/dock/leaving";
/// Ours: a client asks where jobs would go.
const RELAY: &str = "/api/v1/dock/relay";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Route {
    Allocate,
    Certificate(SocketAddr),
    Heartbeat,
    JobState(u64),
    Status,
    Leaving,
    Tunnel,
    Relay,
    /// Of a builder, which the relay is to its clients.
    SubmitToolchain(u64),
    RunJob(u64),
    Unknown,
}

impl Route {
    fn find(method: &Method, path: &str) -> Route {
        match (method.as_str(), path) {
            ("POST", ALLOCATE) => Route::Allocate,
            ("POST", HEARTBEAT) => Route::Heartbeat,
            ("POST", LEAVING) => Route::Leaving,
            ("POST", TUNNEL) => Route::Tunnel,
            ("GET", STATUS) => Route::Status,
            ("GET", RELAY) => Route::Relay,
            ("POST", _) => {
                let job_in = |prefix| path.strip_prefix(prefix)?.parse().ok();
                let found = job_in(JOB_STATE).map(Route::JobState);
                let found = found.or_else(|| job_in(SUBMIT_TOOLCHAIN).map(Route::SubmitToolchain));
                let found = found.or_else(|| job_in(RUN_JOB).map(Route::RunJob));
                found.unwrap_or(Route::Unknown)
            }
            ("GET", _) => path
                .strip_prefix(CERTIFICATE)
                .and_then(|builder| builder.parse().ok())
                .map_or(Route::Unknown, Route::Certificate),
            _ => Route::Unknown,
        }
    }

    /// For metrics.
    fn label(self) -> &'static str {
        match self {
            Route::Allocate => "alloc_job",
            Route::Certificate(_) => "server_certificate",
            Route::Heartbeat => "heartbeat_server",
            Route::JobState(_) => "job_state",
            Route::Status => "status",
            Route::Leaving => "leaving",
            Route::Tunnel => "tunnel",
            Route::Relay => "relay",
            Route::SubmitToolchain(_) => "submit_toolchain",
            Route::RunJob(_) => "run_job",
            Route::Unknown => "unknown",
        }
    }
}

/// Answers one request, in bounded time.
pub(super) async fn answer(
    front: &Arc<Front>,
    (peer, wire): (&Peer, &Wire),
    mut request: Request<Incoming>,
) -> Answer {
    let upgrade = hyper::upgrade::on(&mut request);
    let (started, _in_flight) = (Instant::now(), front.metrics.in_flight());
    let _working = connection_limit::works();
    let (parts, mut body) = request.into_parts();
    let route = Route::find(&parts.method, parts.uri.path());
    let exchange = Exchange {
        front,
        peer,
        wire,
        parts: &parts,
    };
    let outcome = match route {
        Route::Allocate => exchange.allocate(&mut body).await,
        Route::Certificate(builder) => exchange.certificate(builder).await,
        Route::Heartbeat => exchange.heartbeat(&mut body).await,
        Route::JobState(job) => exchange.job_state(job, &mut body).await,
        Route::Status => exchange.status().await,
        Route::Leaving => exchange.leaving().await,
        Route::Tunnel if let Some(relay) = front.relay() => exchange
            .check_builder()
            .map(|builder| exchange.relay_takes_tunnel(relay, builder, upgrade)),
        Route::SubmitToolchain(job) if let Some(relay) = front.relay() => {
            exchange.relay_takes_toolchain(relay, job, &mut body).await
        }
        Route::RunJob(job) if let Some(relay) = front.relay() => {
            exchange.relay_runs(relay, job, &mut body).await
        }
        Route::Relay if let Some(relay) = front.relay() => match exchange.check_client().await {
            Ok(_) => Ok(exchange.relay_tells_address(relay).await),
            Err(refusal) => Err(refusal),
        },
        Route::SubmitToolchain(_) | Route::RunJob(_) | Route::Tunnel | Route::Relay => {
            Err(Refusal::passing(
                "dist_route",
                "this port takes no jobs: SCCACHE_RELAY is off",
            ))
        }
        Route::Unknown => Err(Refusal::new(
            StatusCode::NOT_FOUND,
            "dist_route",
            "this request does not exist",
        )),
    };
    let answer = outcome.unwrap_or_else(|refusal| exchange.refused(&refusal));
    read_left_over(&parts, body).await;
    connection_limit::answered();
    let code = answer.status();
    front
        .metrics
        .answered(route.label(), code.as_str(), started.elapsed());
    answer
}

impl Exchange<'_> {
    async fn allocate(&self, body: &mut Incoming) -> Result<Answer, Refusal> {
        let shown = self.check_client().await?;
        let body = whole(body, SMALL).await?;
        let toolchain =
            wire::toolchain(&body).map_err(|cause| Refusal::passing("dist_body", cause))?;
        let front = self.front;
        if !front.link.is_local() {
            let message = "this machine only builds; clients ask the one that schedules";
            return Err(Refusal::passing("dist_route", message));
        }
        if let Some(relay) = front.relay() {
            return self.relay_allocates(relay, shown, &toolchain).await;
        }
        self.await_scheduler().await?;
        let Some(AdmissionPermit { thread, single }) = front.admit(&toolchain).await else {
            return Ok(self.no_capacity("busy", "the builders are busy with a toolchain"));
        };
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = hyper::Uri::from_static(ALLOCATE);
        let headers = request.headers_mut();
        headers.insert(header::CONTENT_TYPE, OCTETS);
        headers.insert(header::ACCEPT, OCTETS);
        headers.insert(
            header::AUTHORIZATION,
            bearer(front.config.scheduler_token.reveal()),
        );
        // It holds its thread of the scheduler for as long as it takes, also when its client has gone home.
        let asking = Arc::clone(front);
        let asking = tokio::spawn(async move {
            let _thread = thread;
            asking.link.ask(request, ALLOCATION).await
        });
        let answer = tokio::select! {
            answer = asking => answer.unwrap_or_else(|cause| Err(UpstreamError::Broken(cause.to_string()))),
            builder = front.silent_builder() => {
                let message = format!("builder {builder} does not answer");
                return Ok(self.no_capacity("silent", &message));
            }
        };
        let answer = answer.inspect_err(|_| front.metrics.allocation("failed"))?;
        let outcome = self.allocated(&toolchain, answer);
        drop(single);
        front.changed.notify_waiters();
        outcome
    }

    /// Learns from the scheduler's answer what it decided.
    fn allocated(&self, toolchain: &str, answer: Response<Bytes>) -> Result<Answer, Refusal> {
        let front = self.front;
        let status = answer.status();
        if !status.is_success() {
            front.metrics.allocation("failed");
            let told = String::from_utf8_lossy(answer.body()).into_owned();
            if status.is_client_error() {
                let message = format!("the scheduler refused what the front sent: {status} {told}");
                return Err(Refusal::passing("dist_scheduler", message));
            }
            let message = format!("the scheduler could not place a job: {told}");
            self.front.refusals.warn("dist_assign", &message);
            return Ok(passed_on(answer));
        }
        match wire::allocation(answer.body()) {
            Ok(Allocation::Assigned {
                job,
                builder,
                needs_toolchain,
            }) => {
                let now = Instant::now();
                let assignment =
                    front
                        .registry()
                        .assigned(now, job, builder, toolchain, needs_toolchain);
                if assignment == Assignment::Leaving {
                    let message = format!("builder {builder} is about to stop");
                    return Ok(self.no_capacity("leaving", &message));
                }
                front.metrics.allocation("assigned");
            }
            Ok(Allocation::Refused(_)) => front.metrics.allocation("no_capacity"),
            Err(cause) => {
                front.metrics.allocation("failed");
                let message = format!("cannot understand the scheduler's answer: {cause}");
                return Err(Refusal::passing("dist_scheduler", message));
            }
        }
        Ok(passed_on(answer))
    }

    async fn certificate(&self, builder: SocketAddr) -> Result<Answer, Refusal> {
        if let Some(relay) = self.front.relay() {
            return Ok(self.relay_certificate(relay));
        }
        connection_limit::admit_anonymous_reader();
        self.await_scheduler().await?;
        self.pass_on(&format!("{CERTIFICATE}{builder}")).await
    }

    async fn status(&self) -> Result<Answer, Refusal> {
        if let Some(relay) = self.front.relay() {
            return Ok(self.relay_status(relay));
        }
        connection_limit::admit_anonymous_reader();
        self.await_scheduler().await?;
        self.pass_on(STATUS).await
    }

    async fn pass_on(&self, path: &str) -> Result<Answer, Refusal> {
        let mut request = Request::new(Full::default());
        *request.uri_mut() = uri(path);
        let wants_json = self.parts.headers.get(header::ACCEPT) == Some(&JSON);
        let accept = if wants_json { JSON } else { OCTETS };
        request.headers_mut().insert(header::ACCEPT, accept);
        let answer = self.front.link.ask(request, QUICK).await?;
        if answer.status().is_client_error() {
            let message = format!("the scheduler answered {}", answer.status());
            return Err(Refusal::passing("dist_scheduler", message));
        }
        Ok(passed_on(answer))
    }

    async fn heartbeat(&self, body: &mut Incoming) -> Result<Answer, Refusal> {
        let (builder, proof) = self.builder_and_proof()?;
        let body = whole(body, LARGE).await?;
        let bad = |cause| Refusal::new(StatusCode::BAD_REQUEST, "dist_body", cause);
        let heartbeat = wire::heartbeat(&body).map_err(bad)?;
        let front = self.front;
        let noted = front
            .registry()
            .heartbeat(Instant::now(), builder, heartbeat, body.clone());
        let is_new = noted.map_err(|stale| {
            let reason = match stale {
                registry::Stale::Retired => "dist_replay",
                registry::Stale::Full => "dist_builders",
            };
            let message = format!("a heartbeat of builder {builder}: {stale}");
            Refusal::new(StatusCode::UNAUTHORIZED, reason, message)
        })?;
        front.joined(builder, proof);
        front.registry().runs_version(&builder, self.version());
        front.news.notify_one();
        if is_new {
            let cores = heartbeat.cores;
            info!("builder {builder} reports slots={cores} peer={}", self.peer);
            front.changed.notify_waiters();
        }
        if front.relay().is_some() {
            let told = Told {
                machine: self.told(MACHINE),
                memory: self.free_memory(builder),
            };
            front.introduce(builder, (heartbeat, told), &body);
            front.registered(builder, heartbeat.nonce);
            return Ok(reply(OCTETS, heartbeat_taken(is_new)));
        }
        let answer = self.report(builder, HEARTBEAT, body).await?;
        if answer.status().is_success() {
            front.registered(builder, heartbeat.nonce);
        } else {
            let message = format!(
                "the scheduler did not take a heartbeat of builder {builder}: {}",
                answer.status()
            );
            self.front.refusals.warn("dist_heartbeat", &message);
        }
        Ok(passed_on(answer))
    }

    async fn job_state(&self, job: u64, body: &mut Incoming) -> Result<Answer, Refusal> {
        let builder = self.check_builder()?;
        let body = whole(body, SMALL).await?;
        let bad = |cause| Refusal::new(StatusCode::BAD_REQUEST, "dist_body", cause);
        let state = wire::job_state(&body).map_err(bad)?;
        let front = self.front;
        if front.relay().is_some() {
            let now = Instant::now();
            front.registry().progressed(now, job, builder, state);
            let memory = self.free_memory(builder);
            front.relay_progresses(&builder, job, state == JobState::Complete, memory);
            front.dispatch();
            return Ok(reply(OCTETS, wire::STATE_TAKEN.to_vec()));
        }
        let known = front.registry().known(job, &builder);
        let path = format!("{JOB_STATE}{job}");
        let answer = match known {
            Known::Lost => None,
            Known::Yes if front.link.is_local() => {
                self.report_of_known_job(builder, &path, body).await?
            }
            Known::Yes | Known::No => Some(self.report(builder, &path, body).await?),
        };
        let taken = answer
            .as_ref()
            .is_none_or(|answer| answer.status().is_success());
        if taken {
            front
                .registry()
                .progressed(Instant::now(), job, builder, state);
            front.changed.notify_waiters();
        }
        // The scheduler that knew the job is gone, or gave it up. The job is well, so it may go on.
        Ok(answer.map_or_else(|| reply(OCTETS, wire::STATE_TAKEN.to_vec()), passed_on))
    }

    /// A number that a machine of ours tells beside what its builder says.
    fn told<T: FromStr>(&self, name: &str) -> Option<T> {
        self.parts.headers.get(name)?.to_str().ok()?.parse().ok()
    }

    /// Bytes of memory that are free where the builder is: on this machine, or as its own tells.
    fn free_memory(&self, builder: SocketAddr) -> Option<u64> {
        match self.front.config.local_builder == Some(builder) {
            true => memory::free(),
            false => self.told(MEMORY),
        }
    }

    /// Passes on what a builder says of a job that the front knows; `None`: the scheduler does not know it.
    async fn report_of_known_job(
        &self,
        builder: SocketAddr,
        path: &str,
        body: Bytes,
    ) -> Result<Option<Response<Bytes>>, Refusal> {
        let link = &self.front.link;
        let gone = || matches!(link.health(), Health::Down { gone: true, .. });
        if gone() {
            return Ok(None);
        }
        let answer = match self.report(builder, path, body.clone()).await {
            Ok(answer) => answer,
            Err(refusal) => {
                // It may have died over this request.
                link.wait_known(Instant::now() + WAIT).await;
                if gone() {
                    return Ok(None);
                }
                if link.health() != Health::Up {
                    return Err(refusal);
                }
                self.report(builder, path, body).await?
            }
        };
        Ok(Some(answer).filter(|answer| !is_forgotten(answer)))
    }

    async fn leaving(&self) -> Result<Answer, Refusal> {
        let builder = self.check_builder()?;
        let front = self.front;
        if front.link.is_local() {
            let known = front.registry().leave(&builder);
            front.relay_leaves(&builder);
            info!("builder {builder} leaves known={known} peer={}", self.peer);
            front.changed.notify_waiters();
            front.news.notify_one();
            return Ok(reply(TEXT, "noted\n"));
        }
        Ok(passed_on(
            self.report(builder, LEAVING, Bytes::new()).await?,
        ))
    }

    /// Passes on what a builder says. A scheduler that is away is waited for: the builder can wait.
    async fn report(
        &self,
        builder: SocketAddr,
        path: &str,
        body: Bytes,
    ) -> Result<Response<Bytes>, Refusal> {
        let front = self.front;
        if !front.link.wait_up(Instant::now() + REPORT_WAIT).await {
            let message = "the scheduler does not answer";
            return Err(Refusal::passing("dist_scheduler", message));
        }
        let request = front.builders_request(builder, path, body);
        Ok(front.link.ask(request, QUICK).await?)
    }

    /// Waits for a scheduler whose process ended a moment ago, not for one that stays away or hangs.
    async fn await_scheduler(&self) -> Result<(), Refusal> {
        let link = &self.front.link;
        let up = match link.health() {
            Health::Up => true,
            Health::Down { since, gone: true } => link.wait_up(since + WAIT).await,
            Health::Down { gone: false, .. } => false,
        };
        if up {
            return Ok(());
        }
        let message = "the scheduler does not answer; it is being looked after";
        Err(Refusal::passing("dist_scheduler", message))
    }
}

impl Front {
    /// A request of a builder as the scheduler, or the next front, takes it.
    pub(super) fn builders_request(
        &self,
        builder: SocketAddr,
        path: &str,
        body: Bytes,
    ) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = uri(path);
        let headers = request.headers_mut();
        headers.insert(header::CONTENT_TYPE, OCTETS);
        headers.insert(header::ACCEPT, OCTETS);
        let token = match self.config.builder_token.reveal() {
            // It names the builder itself.
            token if jwt::is_one(token) => token.to_owned(),
            token => format!("{builder} {token}"),
        };
        headers.insert(header::AUTHORIZATION, bearer(&token));
        headers.insert(header::USER_AGENT, HeaderValue::from_static(AGENT));
        headers.insert(MACHINE, HeaderValue::from(relay::OWN_MACHINE));
        if let Some(free) = memory::free() {
            headers.insert(MEMORY, HeaderValue::from(free));
        }
        // It must be the address that the builder names, wherever its request came from.
        if let Ok(ip) = HeaderValue::from_str(&builder.ip().to_string()) {
            headers.insert("x-real-ip", ip);
        }
        request
    }
}

fn bearer(token: &str) -> HeaderValue {
    let mut value = HeaderValue::from_str(&format!("Bearer {token}"))
        // The settings refuse tokens that do not fit a header; an empty one is refused by the scheduler.
        .unwrap_or(HeaderValue::from_static(""));
    value.set_sensitive(true);
    value
}

/// Paths are ours, with numbers and addresses in them.
fn uri(path: &str) -> hyper::Uri {
    path.parse().unwrap_or_default()
}

/// The scheduler does not know the job, or not its builder: it is new, or it gave the job up.
fn is_forgotten(answer: &Response<Bytes>) -> bool {
    let says = |words: &[u8]| memchr::memmem::find(answer.body(), words).is_some();
    answer.status() == StatusCode::INTERNAL_SERVER_ERROR
        && (says(b"Unknown job") || says(b"server is not known to scheduler"))
}

async fn whole(body: &mut Incoming, most: usize) -> Result<Bytes, Refusal> {
    let collected = timeout(BODY_TIME, Limited::new(body, most).collect()).await;
    match collected {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(cause)) => Err(Refusal::passing("dist_body", cause)),
        Err(_) => Err(Refusal::passing("dist_slow", "the body took too long")),
    }
}
