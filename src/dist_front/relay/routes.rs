//! The requests of clients and builders as the relay answers them.

use super::job::{Fallback, Job, LONGEST};
use super::queue::{Tenant, Toolchain};
use super::spool::Spool;
use super::ticket::Ticket;
use super::wire::{self, Submitted};
use super::{Front, Relay};
use crate::dist_front::exchange::{Answer, Exchange, JSON, OCTETS, Refusal, reply};
use crate::dist_front::tunnels::PROTOCOL;
use crate::gateway::connection_limit::{self, owner};
use crate::gateway::http::Wire;
use crate::gateway::peer::Peer;
use bytes::Bytes;
use http_body_util::Either;
use hyper::body::Incoming;
use hyper::header::{self, HeaderValue};
use hyper::upgrade::OnUpgrade;
use hyper::{Response, StatusCode};
use hyper_util::rt::TokioIo;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::lookup_host;
use tokio::time::{Instant, timeout};
use tracing::{info, warn};

/// Longest job.
const LARGEST: u64 = 1 << 30;
/// How long a name may take to be resolved.
const LOOK_UP: Duration = Duration::from_secs(2);
/// Port of a URL that names none.
const PORTS: [(bool, u16); 2] = [(false, 80), (true, 443)];

impl From<Fallback> for Refusal {
    fn from(fallback: Fallback) -> Refusal {
        Refusal::passing("dist_relay", fallback.message)
    }
}

impl Exchange<'_> {
    /// A client asks for a builder: it gets us.
    pub(in crate::dist_front) async fn relay_allocates(
        &self,
        relay: &Relay,
        toolchain: &str,
    ) -> Result<Answer, Refusal> {
        let now = Instant::now();
        let toolchain: Toolchain = toolchain.into();
        let refusal = {
            let mut dispatcher = relay.dispatcher();
            if !dispatcher.pool.has_builders(now) {
                Some(("no_builder", "there is no builder".to_owned()))
            } else if let Err(full) = dispatcher.has_room() {
                Some(("queue_full", full.to_string()))
            } else if relay.settings.queue_time() == Duration::ZERO
                && !dispatcher.has_free_slot(now)
            {
                Some(("no_capacity", "every slot is taken".to_owned()))
            } else {
                None
            }
        };
        if let Some((outcome, message)) = refusal {
            relay.metrics.job(outcome);
            return Ok(self.no_capacity(outcome, &message));
        }
        let server = self.own_address(relay).await;
        relay.authority.announce(server.ip());
        let is_here = relay.archives.has(self.gateway, &toolchain).await;
        let needs_toolchain = !is_here && relay.archives.ask_for(&toolchain);
        let job = {
            let mut dispatcher = relay.dispatcher();
            let job = dispatcher.number();
            dispatcher.let_in(now, job);
            job
        };
        let token = self.parts.headers.get(header::AUTHORIZATION);
        let token = token.map_or(&b""[..], HeaderValue::as_bytes);
        let tenant = Tenant {
            token: relay.tickets.number(token),
            address: address(self.peer),
        };
        let ticket = relay.tickets.issue(job, &Ticket { toolchain, tenant });
        let digest = &relay.authority.digest;
        let body = wire::allocated(&ticket, job, server, needs_toolchain, digest);
        self.front.metrics.allocation("relayed");
        Ok(reply(OCTETS, body))
    }

    /// The address at which this client reaches us: sccache takes no name for a builder.
    async fn own_address(&self, relay: &Relay) -> SocketAddr {
        if let Some(set) = relay.settings.address {
            return set;
        }
        let local = match self.peer {
            Peer::Tcp { local, .. } => local.to_canonical(),
            Peer::Unix { .. } => IpAddr::V4(Ipv4Addr::LOCALHOST),
        };
        let host = self.parts.headers.get(header::HOST);
        let authority = host.and_then(|host| host.to_str().ok());
        let authority = authority.and_then(|text| text.parse::<hyper::http::uri::Authority>().ok());
        let Some(authority) = authority else {
            return SocketAddr::new(local, self.front.config.listen.port());
        };
        let usual = PORTS
            .iter()
            .find(|(tls, _)| *tls == matches!(self.wire, Wire::Tls(_)));
        let port = authority.port_u16();
        let port = port.or(usual.map(|(_, port)| *port)).unwrap_or_default();
        let host = authority.host().trim_matches(['[', ']']);
        if let Ok(ip) = host.parse() {
            return SocketAddr::new(ip, port);
        }
        let found = timeout(LOOK_UP, lookup_host((host, port))).await;
        let mut found: Vec<SocketAddr> = found
            .ok()
            .and_then(Result::ok)
            .map_or_else(Vec::new, Iterator::collect);
        // A name of ours may lead to loopback here, and not from where the client is.
        found.retain(|found| !found.ip().is_loopback() || local.is_loopback());
        found.sort_by_key(SocketAddr::is_ipv6);
        let first = found.first().copied();
        first.unwrap_or(SocketAddr::new(local, port))
    }

    /// The root that has signed our certificate, whatever address is asked for: there is no other server.
    pub(in crate::dist_front) fn relay_certificate(&self, relay: &Relay) -> Answer {
        connection_limit::admit_anonymous_reader();
        let (digest, pem) = (&relay.authority.digest, relay.authority.pem.as_bytes());
        if self.parts.headers.get(header::ACCEPT) == Some(&JSON) {
            let text = serde_json::json!({ "cert_digest": &digest[..], "cert_pem": pem });
            return reply(JSON, text.to_string());
        }
        reply(OCTETS, wire::certificate(digest, pem))
    }

    /// From memory, at once: a client that waits for it compiles nothing meanwhile.
    pub(in crate::dist_front) fn relay_status(&self, relay: &Relay) -> Answer {
        connection_limit::admit_anonymous_reader();
        let totals = relay.dispatcher().pool.totals(Instant::now());
        let (builders, cores, jobs) = (totals.builders, totals.cores, totals.jobs);
        if self.parts.headers.get(header::ACCEPT) == Some(&JSON) {
            let text = serde_json::json!({
                "num_servers": builders, "num_cpus": cores, "in_progress": jobs,
            });
            return reply(JSON, text.to_string());
        }
        reply(OCTETS, wire::status(builders, cores, jobs))
    }

    /// A client sends a toolchain.
    pub(in crate::dist_front) async fn relay_takes_toolchain(
        &self,
        relay: &Relay,
        job: u64,
        body: &mut Incoming,
    ) -> Result<Answer, Refusal> {
        let ticket = self.ticket(relay, job)?;
        let (toolchain, began) = (ticket.toolchain, Instant::now());
        let most = relay.settings.archive_bytes;
        let archives = &relay.archives;
        let taken = archives.take(self.gateway, &toolchain, body, most).await;
        let how = match taken {
            Ok(bytes) => {
                let millis = began.elapsed().as_millis();
                info!("toolchain {toolchain:.8} is here bytes={bytes} took_ms={millis}");
                Submitted::Success
            }
            Err(cause) => {
                warn!(
                    "cannot keep toolchain {toolchain:.8}: {cause} peer={}",
                    self.peer
                );
                Submitted::CannotCache
            }
        };
        Ok(reply(OCTETS, wire::submitted(how)))
    }

    /// A client sends a job, and waits for its result.
    pub(in crate::dist_front) async fn relay_runs(
        &self,
        relay: &Relay,
        job: u64,
        body: &mut Incoming,
    ) -> Result<Answer, Refusal> {
        let began = Instant::now();
        let ticket = self.ticket(relay, job)?;
        relay.dispatcher().came(job);
        let outcome = self.relay_runs_job(relay, job, ticket, body, began).await;
        match outcome {
            Ok(result) => {
                relay.metrics.job("done");
                relay.metrics.took(began.elapsed());
                let mut answer = Response::new(Either::Right(result.outgoing()));
                let headers = answer.headers_mut();
                headers.insert(header::CONTENT_TYPE, OCTETS);
                let length = HeaderValue::from(result.length);
                headers.insert(header::CONTENT_LENGTH, length);
                Ok(answer)
            }
            Err(fallback) => {
                relay.metrics.job(fallback.outcome);
                Err(fallback.into())
            }
        }
    }

    async fn relay_runs_job(
        &self,
        relay: &Relay,
        number: u64,
        ticket: Ticket,
        body: &mut Incoming,
        began: Instant,
    ) -> Result<Arc<Spool>, Fallback> {
        let toolchain = ticket.toolchain.clone();
        let length = hyper::body::Body::size_hint(body).exact();
        let length = length
            .filter(|length| *length <= LARGEST)
            .ok_or_else(|| Fallback::new("too_large", "a job has a length, and at most a GiB"))?;
        let _room = relay.reserve(length)?;
        let dir = &relay.settings.spool;
        let taken = Spool::fill(dir, body, length).await;
        let body = taken.map_err(|cause| Fallback::new("body", cause))?;
        let executable = executable(&body.head)?;
        let deadline = began + relay.settings.queue_time().max(LONGEST / 2);
        if !relay
            .archives
            .wait_for(self.gateway, &toolchain, deadline)
            .await
        {
            let message = "its toolchain did not come: its client, or another one, was to send it";
            return Err(Fallback::new("toolchain", message));
        }
        let now = Instant::now();
        let is_new = relay.dispatcher().learn(now, &toolchain, &executable);
        if is_new {
            self.front.provide(self.gateway);
        }
        let job = Job {
            number,
            ticket,
            body: Arc::new(body),
            began,
        };
        self.front.run(relay, job).await
    }

    /// A builder opens a connection for us to use.
    pub(in crate::dist_front) fn relay_takes_tunnel(
        &self,
        relay: &Relay,
        builder: SocketAddr,
        upgrade: OnUpgrade,
    ) -> Answer {
        let tunnels = Arc::clone(&relay.tunnels);
        tokio::spawn(async move {
            // A builder that has gone meanwhile opens another one.
            if let Ok(way) = upgrade.await {
                tunnels.add(builder, Box::new(TokioIo::new(way)));
            }
        });
        let mut answer = reply(OCTETS, Bytes::new());
        *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = answer.headers_mut();
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, PROTOCOL);
        answer
    }

    /// What a client of ours shows; 503 for anything else, because with 401 its build would fail: it may have been let in
    /// by the gateway before us.
    fn ticket(&self, relay: &Relay, job: u64) -> Result<Ticket, Refusal> {
        let text = crate::dist_front::exchange::credentials(&self.parts.headers);
        match text.and_then(|text| relay.tickets.check(job, text)) {
            Some(ticket) => {
                connection_limit::recognized();
                Ok(ticket)
            }
            None => {
                let message = "this job is none that the relay has let in";
                Err(Refusal::new(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "dist_ticket",
                    message,
                ))
            }
        }
    }
}

/// The program that a job runs.
fn executable(body: &[u8]) -> Result<String, Fallback> {
    let bad = |cause: &dyn std::fmt::Display| {
        Fallback::new("body", format!("the job cannot be understood: {cause}"))
    };
    let (length, rest) = body
        .split_first_chunk()
        .ok_or_else(|| bad(&"it is too short"))?;
    let command = &rest[..rest.len().min(wire::command_length(*length))];
    let command = wire::command(command).map_err(|cause| bad(&cause))?;
    Ok(command.executable)
}

/// Whose share of the slots it is.
fn address(peer: &Peer) -> IpAddr {
    match peer {
        Peer::Tcp { address, .. } => owner(address.ip()),
        Peer::Unix { .. } => IpAddr::V4(Ipv4Addr::LOCALHOST),
    }
}

impl Front {
    /// A builder says how far an attempt is, and its machine, how much memory is free.
    pub(in crate::dist_front) fn relay_progresses(
        &self,
        at: &SocketAddr,
        attempt: u64,
        is_over: bool,
        memory: Option<u64>,
    ) {
        let Some(relay) = self.relay() else { return };
        let mut dispatcher = relay.dispatcher();
        dispatcher.pool.sign(Instant::now(), at);
        dispatcher.pool.has_free_memory(at, memory);
        if is_over {
            dispatcher.pool.complete(attempt, at);
        }
    }
}
