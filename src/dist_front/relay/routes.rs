//! The requests of clients and builders as the relay answers them.

use super::arrivals::Next;
use super::job::{Fallback, Job, LONGEST};
use super::queue::{Tenant, Toolchain};
use super::spool::Spool;
use super::ticket::{Ticket, Tickets};
use super::wire::{self, Submitted};
use super::{Front, Relay};
use crate::dist_front::auth::Shown;
use crate::dist_front::exchange::{Answer, Exchange, JSON, OCTETS, Refusal, credentials, reply};
use crate::dist_front::tunnels::PROTOCOL;
use crate::gateway::access::Verdict;
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
use tokio::time::Instant;
use tracing::{info, warn};

/// Longest job.
const LARGEST: u64 = 1 << 30;
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
        shown: Shown,
        toolchain: &str,
    ) -> Result<Answer, Refusal> {
        let now = Instant::now();
        let toolchain: Toolchain = toolchain.into();
        let client = address(self.peer);
        let tenant = Tenant {
            token: relay.tickets.number(shown.identity()),
            address: client,
        };
        let refusal = {
            let mut dispatcher = relay.dispatcher();
            if !dispatcher.pool.has_builders(now) {
                Some(("no_builder", "there is no builder".to_owned()))
            } else if let Err(full) = dispatcher.has_room(tenant) {
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
        if let Next::TurnAway { is_news } = relay.arrivals.lock().next(now, client) {
            let message = format!(
                "no job of the client at {client} arrives at {server}, the relay's address for it: it compiles locally \
                 (hint: set SCCACHE_RELAY_ADDRESS to the ip:port at which it reaches this port; jobs cannot go through an \
                 HTTP proxy)"
            );
            if is_news {
                self.front.refusals.warn("dist_unreached", &message);
            }
            relay.metrics.job("unreached");
            return Ok(self.no_capacity("unreached", &message));
        }
        let is_here = relay.archives.has(&toolchain).await;
        if !is_here && relay.archives.is_refused(&toolchain) {
            relay.metrics.job("toolchain");
            let message = format!(
                "toolchain {toolchain:.8} could not be kept: its jobs are compiled locally for a minute (hint: the log has the \
                 cause, in a line \"cannot keep toolchain\")"
            );
            return Ok(self.no_capacity("toolchain", &message));
        }
        let needs_toolchain = !is_here && relay.archives.ask_for(&toolchain);
        let job = {
            let mut dispatcher = relay.dispatcher();
            let job = dispatcher.number();
            dispatcher.let_in(now, job, tenant);
            job
        };
        let ticket = Ticket {
            toolchain,
            tenant,
            shown: Arc::new(shown),
        };
        let ticket = relay.tickets.issue(now, job, ticket);
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
        if is_localhost(host) {
            // The client's own machine, whose loopback leads here, perhaps by a published port.
            let ip = match local {
                IpAddr::V6(ip) if ip.is_loopback() => local,
                _ => IpAddr::V4(Ipv4Addr::LOCALHOST),
            };
            return SocketAddr::new(ip, port);
        }
        let found = relay.names.addresses(host).await;
        let address = best(found, relay.settings.public_ip, local);
        SocketAddr::new(address, port)
    }

    /// The address that this client would be sent to, for `doctor`.
    pub(in crate::dist_front) async fn relay_tells_address(&self, relay: &Relay) -> Answer {
        let server = self.own_address(relay).await;
        relay.authority.announce(server.ip());
        let text = serde_json::json!({ "address": server });
        reply(JSON, text.to_string())
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
        let ticket = self.ticket(relay, job, Tickets::check).await?;
        let (toolchain, began) = (ticket.toolchain, Instant::now());
        let most = relay.settings.archive_bytes;
        let taken = relay.archives.take(&toolchain, body, most).await;
        let how = match taken {
            Ok(bytes) => {
                let millis = began.elapsed().as_millis();
                info!("toolchain {toolchain:.8} is here bytes={bytes} took_ms={millis}");
                relay.dispatcher().arrived(&toolchain);
                self.front.provide();
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
        let ticket = self.ticket(relay, job, Tickets::use_up).await?;
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
        let _room = relay.reserve(ticket.tenant, length)?;
        let dir = &relay.settings.spool;
        let taken = Spool::fill(dir, body, length).await;
        let body = taken.map_err(|fault| Fallback::of(&fault, "the job"))?;
        let executable = executable(&body.head)?;
        let deadline = began + relay.settings.queue_time().max(LONGEST / 2);
        if !relay.archives.wait_for(&toolchain, deadline).await {
            let message = "its toolchain did not come: its client, or another one, was to send it";
            return Err(Fallback::new("toolchain", message));
        }
        let now = Instant::now();
        let is_new = relay.dispatcher().learn(now, &toolchain, &executable);
        if is_new {
            self.front.provide();
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

    /// What the ticket stands for that a client of ours shows, as `find` finds it; 503 for anything else, because with 401
    /// its build would fail: it may have been let in by the gateway before us, or its token may no longer be valid.
    async fn ticket(
        &self,
        relay: &Relay,
        job: u64,
        find: impl Fn(&Tickets, Instant, u64, &str) -> Option<Ticket>,
    ) -> Result<Ticket, Refusal> {
        let now = Instant::now();
        let text = credentials(&self.parts.headers);
        let ticket = text.and_then(|text| find(&relay.tickets, now, job, text));
        let refused = |message| Err(Refusal::passing("dist_ticket", message));
        let Some(ticket) = ticket else {
            return refused("the relay does not know this job");
        };
        if self.front.may_distribute(&ticket.shown).await.0 != Verdict::Allowed {
            return refused("the token of this job is no longer valid");
        }
        connection_limit::recognized();
        relay.arrivals.lock().arrived(now, ticket.tenant.address);
        Ok(ticket)
    }
}

/// Whether a name is the client's for its own machine (RFC 6761, 6.3).
fn is_localhost(host: &str) -> bool {
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    host == "localhost" || host.ends_with(".localhost")
}

/// The address for a client that came to `local` by a name which stands for these addresses here.
fn best(mut found: Vec<IpAddr>, public: Option<IpAddr>, local: IpAddr) -> IpAddr {
    // A name of ours may lead to loopback here, and not from where the client is.
    let leads_here = |ip: &IpAddr| !ip.is_loopback() || local.is_loopback();
    found.retain(leads_here);
    // It has come by one of the two, and may have no other.
    found.sort_by_key(|ip| ip.is_ipv6() != local.is_ipv6());
    let found = found.first().copied();
    found.or(public.filter(leads_here)).unwrap_or(local)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_of_the_clients_own_machine_is_known() {
        for host in ["localhost", "LOCALHOST", "localhost.", "cache.localhost"] {
            assert!(is_localhost(host), "{host}");
        }
        for host in ["localhost.example", "notlocalhost", "build-host", ""] {
            assert!(!is_localhost(host), "{host}");
        }
    }

    #[test]
    fn client_is_sent_where_its_name_leads_or_to_the_public_address() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let choose = |found: &[&str], public: Option<&str>, local: &str| {
            let found = found.iter().map(|one| ip(one)).collect();
            best(found, public.map(ip), ip(local)).to_string()
        };
        let container = "172.17.0.2";
        assert_eq!(choose(&["10.0.0.7"], None, container), "10.0.0.7");
        // It may have only one of the two.
        let both = ["10.0.0.7", "fd00::7"];
        assert_eq!(choose(&both, None, container), "10.0.0.7");
        assert_eq!(choose(&both, None, "fd00::2"), "fd00::7");
        // What is known here and nowhere else.
        let public = Some("192.168.1.7");
        assert_eq!(choose(&["127.0.1.1"], public, container), "192.168.1.7");
        assert_eq!(choose(&[], public, container), "192.168.1.7");
        assert_eq!(choose(&[], None, container), container);
        assert_eq!(choose(&[], Some("127.0.0.1"), container), container);
        assert_eq!(choose(&["127.0.1.1"], public, "127.0.0.1"), "127.0.1.1");
    }
}
