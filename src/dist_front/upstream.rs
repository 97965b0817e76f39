//! The way to the scheduler: one connection a request, bounded in time, and the knowledge whether it answers.
//!
//! An idle link does nothing. It looks after the scheduler only when a request went wrong or the supervisor
//! has started another one, and then until it answers.

use crate::contract::gateway_config::{ClientCertificate, Scheduler};
use crate::gateway::tls::presented::client_config;
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::handshake;
use hyper::header::{self, HeaderValue};
use hyper::upgrade::Upgraded;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::ServerName;
use tracing::warn;

/// Longest answer of a scheduler; certificates are the largest.
const ANSWER: usize = 1 << 20;
/// A request that is not answered within this time makes us look whether the scheduler lives.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long a live scheduler may take to say how it is.
const PROBE: Duration = Duration::from_secs(2);
/// First and longest pause between two looks at a scheduler that does not answer.
const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(250);
/// The longest pause where the scheduler is another machine's.
const LONGEST_REMOTE_PAUSE: Duration = Duration::from_secs(5);
/// The route that asks nothing of the scheduler but to be there.
pub(super) const STATUS: &str = "/api/v1/scheduler/status";

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// Nobody listens: its process is gone.
    #[error("the scheduler is not there: {0}")]
    Gone(io::Error),
    /// It closed the connection, or did not speak HTTP.
    #[error("the scheduler broke the connection off: {0}")]
    Broken(String),
    /// No TLS with it.
    #[error(
        "cannot speak TLS with the scheduler: {0}; does SSL_CERT_FILE name its authority, and is the name of SCCACHE_SCHEDULER_URL in its certificate?"
    )]
    Tls(String),
    /// It is there and does not answer.
    #[error("the scheduler does not answer")]
    Silent,
    /// It answers others, and not this request: the builder that it asks does not answer.
    #[error("the scheduler took longer than {0:?}; a builder may hang")]
    Slow(Duration),
}

/// Does the scheduler answer?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// The last time that anybody asked it did.
    Up,
    /// It does not.
    Down {
        /// From when on.
        since: Instant,
        /// Its process is gone, and what it knew with it.
        gone: bool,
    },
}

/// The link.
#[derive(Debug)]
pub struct UpstreamClient {
    scheduler: Scheduler,
    /// With a scheduler that is reached by `https://`.
    tls: Option<Result<(Arc<ClientConfig>, ServerName<'static>), String>>,
    health: watch::Sender<Health>,
    look_now: Notify,
    outages: AtomicU64,
}

impl UpstreamClient {
    /// Down until the first look.
    pub fn new(scheduler: Scheduler, certificate: Option<ClientCertificate>) -> UpstreamClient {
        let since = Instant::now();
        UpstreamClient {
            tls: match &scheduler {
                Scheduler::Remote(url) if url.starts_with("https://") => {
                    Some(tls(url, certificate))
                }
                Scheduler::Remote(_) | Scheduler::Local(_) => None,
            },
            scheduler,
            health: watch::Sender::new(Health::Down { since, gone: true }),
            look_now: Notify::new(),
            outages: AtomicU64::new(0),
        }
    }

    /// The scheduler is in this container.
    pub fn is_local(&self) -> bool {
        matches!(self.scheduler, Scheduler::Local(_))
    }

    /// Does it answer, as far as anybody knows?
    pub fn health(&self) -> Health {
        *self.health.borrow()
    }

    /// How often it stopped answering.
    pub fn outages(&self) -> u64 {
        self.outages.load(Relaxed)
    }

    /// Another scheduler was started, whatever became of the former.
    pub fn started(&self) {
        let since = Instant::now();
        let former = self.health.send_replace(Health::Down { since, gone: true });
        if former == Health::Up {
            self.outages.fetch_add(1, Relaxed);
        }
        self.look_now.notify_one();
    }

    /// The scheduler answers, and knows what it must know.
    pub fn up(&self) {
        self.health.send_replace(Health::Up);
    }

    /// Waits until it is up, at most until `deadline`.
    pub async fn wait_up(&self, deadline: Instant) -> bool {
        let mut health = self.health.subscribe();
        let up = health.wait_for(|health| *health == Health::Up);
        matches!(timeout_at(deadline, up).await, Ok(Ok(_)))
    }

    /// Waits until it is up or known to be gone, at most until `deadline`.
    pub async fn wait_known(&self, deadline: Instant) {
        let mut health = self.health.subscribe();
        let known = |health: &Health| !matches!(health, Health::Down { gone: false, .. });
        let _ = timeout_at(deadline, health.wait_for(known)).await;
    }

    /// Ends when the scheduler is down and answers again: at once after it came back.
    pub async fn returned(&self) {
        let mut health = self.health.subscribe();
        // The sender lives as long as we do.
        let _ = health.wait_for(|health| *health != Health::Up).await;
        let longest = if self.is_local() {
            LONGEST_PAUSE
        } else {
            LONGEST_REMOTE_PAUSE
        };
        let (mut pause, mut told) = (FIRST_PAUSE, false);
        while let Err(fault) = self.probe().await {
            // One of this container is PID 1's to speak of.
            if !self.is_local() && !std::mem::replace(&mut told, true) {
                warn!("cannot reach the scheduler, and try again until it answers: {fault}");
            }
            if matches!(fault, UpstreamError::Gone(_)) {
                self.down(true);
            }
            tokio::select! {
                () = sleep(pause) => pause = (pause * 2).min(longest),
                () = self.look_now.notified() => pause = FIRST_PAUSE,
            }
        }
    }

    /// Sends a request. A live scheduler may take `bound` for it; one that hangs is found out much sooner.
    pub async fn ask(
        &self,
        request: Request<Full<Bytes>>,
        bound: Duration,
    ) -> Result<Response<Bytes>, UpstreamError> {
        let deadline = Instant::now() + bound;
        let mut exchange = std::pin::pin!(self.exchange(request));
        let outcome = loop {
            let patience = deadline.min(Instant::now() + PATIENCE);
            if let Ok(outcome) = timeout_at(patience, &mut exchange).await {
                break outcome;
            }
            if self.probe().await.is_err() {
                break Err(UpstreamError::Silent);
            }
            if Instant::now() >= deadline {
                break Err(UpstreamError::Slow(bound));
            }
        };
        match &outcome {
            Ok(_) | Err(UpstreamError::Slow(_)) => {}
            Err(UpstreamError::Gone(_)) => self.down(true),
            Err(UpstreamError::Broken(_) | UpstreamError::Silent | UpstreamError::Tls(_)) => {
                self.down(false)
            }
        }
        outcome
    }

    fn down(&self, gone: bool) {
        self.health.send_if_modified(|health| match health {
            Health::Up => {
                let since = Instant::now();
                *health = Health::Down { since, gone };
                self.outages.fetch_add(1, Relaxed);
                true
            }
            Health::Down { gone: known, .. } => {
                let news = gone && !*known;
                *known |= gone;
                news
            }
        });
    }

    async fn probe(&self) -> Result<(), UpstreamError> {
        let mut request = Request::new(Full::default());
        *request.uri_mut() = hyper::Uri::from_static(STATUS);
        match timeout(PROBE, self.exchange(request)).await {
            Ok(Ok(answer)) if answer.status() == StatusCode::OK => Ok(()),
            Ok(Ok(answer)) => Err(UpstreamError::Broken(format!("status {}", answer.status()))),
            Ok(Err(fault)) => Err(fault),
            Err(_) => Err(UpstreamError::Silent),
        }
    }

    async fn exchange(
        &self,
        mut request: Request<Full<Bytes>>,
    ) -> Result<Response<Bytes>, UpstreamError> {
        // The scheduler's HTTP library keeps a thread for every connection that stays open.
        let close = HeaderValue::from_static("close");
        request.headers_mut().insert(header::CONNECTION, close);
        let stream = self.connect(&mut request).await?;
        let (mut sender, connection) = handshake(TokioIo::new(stream)).await.map_err(broken)?;
        let answer = async {
            let answer = sender.send_request(request).await.map_err(broken)?;
            let (parts, body) = answer.into_parts();
            let body = Limited::new(body, ANSWER).collect().await;
            let body = body.map_err(|cause| UpstreamError::Broken(cause.to_string()))?;
            Ok(Response::from_parts(parts, body.to_bytes()))
        };
        // The connection does the reading and writing for the other; how it ends, that one tells.
        let connection = async {
            let _ = connection.await;
            std::future::pending().await
        };
        tokio::select! {
            answer = answer => answer,
            never = connection => never,
        }
    }

    /// Asks for a connection that is the other side's to use from then on (RFC 9110, 7.8).
    pub(super) async fn upgrade(
        &self,
        mut request: Request<Full<Bytes>>,
    ) -> Result<Upgraded, UpstreamError> {
        let asked = async {
            let stream = self.connect(&mut request).await?;
            let (mut sender, connection) = handshake(TokioIo::new(stream)).await.map_err(broken)?;
            tokio::spawn(connection.with_upgrades());
            let answer = sender.send_request(request).await.map_err(broken)?;
            match answer.status() {
                StatusCode::SWITCHING_PROTOCOLS => hyper::upgrade::on(answer).await.map_err(broken),
                status => Err(UpstreamError::Broken(format!("status {status}"))),
            }
        };
        let late = |_| Err(UpstreamError::Silent);
        timeout(PATIENCE, asked).await.unwrap_or_else(late)
    }

    /// Connects, and names the other side in the request.
    async fn connect(
        &self,
        request: &mut Request<Full<Bytes>>,
    ) -> Result<Box<dyn Stream>, UpstreamError> {
        let connected = match &self.scheduler {
            Scheduler::Local(address) => TcpStream::connect(address).await,
            Scheduler::Remote(url) => TcpStream::connect(authority(url)).await,
        };
        let stream = connected.map_err(UpstreamError::Gone)?;
        // What cannot be set is only slower.
        let _ = stream.set_nodelay(true);
        let host = match &self.scheduler {
            Scheduler::Local(address) => HeaderValue::from_str(&address.to_string()),
            Scheduler::Remote(url) => HeaderValue::from_str(authority(url)),
        };
        let headers = request.headers_mut();
        if let Ok(host) = host {
            headers.insert(header::HOST, host);
        }
        keep_alive(&stream);
        match &self.tls {
            None => Ok(Box::new(stream)),
            Some(Ok((config, name))) => {
                let connector = TlsConnector::from(Arc::clone(config));
                let shaken = connector.connect(name.clone(), stream).await;
                let refused = |cause: io::Error| UpstreamError::Tls(cause.to_string());
                Ok(Box::new(shaken.map_err(refused)?))
            }
            Some(Err(cause)) => Err(UpstreamError::Tls(cause.clone())),
        }
    }
}

/// A connection, whatever is around it.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

fn broken(cause: hyper::Error) -> UpstreamError {
    UpstreamError::Broken(cause.to_string())
}

/// Has the system find out within two minutes that the other side is gone, and networks between keep the connection in
/// mind. What cannot be set is only slower.
pub(crate) fn keep_alive(stream: &TcpStream) {
    use rustix::net::sockopt;
    let _ = sockopt::set_socket_keepalive(stream, true);
    let _ = sockopt::set_tcp_keepidle(stream, Duration::from_secs(45));
    let _ = sockopt::set_tcp_keepintvl(stream, Duration::from_secs(15));
    let _ = sockopt::set_tcp_keepcnt(stream, 4);
}

/// `host:port` of `http://host:port` or `https://host:port`.
fn authority(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    rest.split('/').next().unwrap_or(rest)
}

/// What follows if the certificate's files cannot be used.
const BY_TOKEN_ONLY: &str =
    "without a certificate the scheduler takes this builder only by its token";

/// How TLS is spoken with a scheduler, and with which name.
fn tls(
    url: &str,
    certificate: Option<ClientCertificate>,
) -> Result<(Arc<ClientConfig>, ServerName<'static>), String> {
    let host = authority(url)
        .rsplit_once(':')
        .map_or(url, |(host, _)| host);
    let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned());
    let name = name.map_err(|cause| format!("\"{host}\" is no name of a server: {cause}"))?;
    let config = client_config(certificate, BY_TOKEN_ONLY)?;
    Ok((Arc::new(config), name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn authority_is_what_connect_takes() {
        assert_eq!(authority("http://build-host:10600"), "build-host:10600");
        assert_eq!(authority("http://[::1]:10600/"), "[::1]:10600");
        assert_eq!(authority("https://build-host:443"), "build-host:443");
    }

    #[tokio::test]
    async fn absent_scheduler_is_gone_and_counted_once() {
        let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = closed.local_addr().unwrap();
        drop(closed);
        let link = UpstreamClient::new(Scheduler::Local(address), None);
        link.up();
        for _ in 0..2 {
            let answer = link.ask(Request::default(), Duration::from_secs(5)).await;
            assert!(matches!(answer, Err(UpstreamError::Gone(_))), "{answer:?}");
        }
        assert!(matches!(link.health(), Health::Down { gone: true, .. }));
        assert_eq!(link.outages(), 1);
    }
}
