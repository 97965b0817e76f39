//! The way to a builder: its port, its certificate and its key, as its heartbeat names them.

use super::spool::Outgoing;
use super::tunnels::{Tunnels, Way};
use super::wire::{self, Credentials};
use crate::contract::builder_port;
use crate::dist_front::heartbeats::SILENCE;
use crate::dist_front::upstream::keep_alive;
use crate::gateway::socket::Prompt;
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{self, HeaderValue};
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

/// How long it may take to connect.
const CONNECT: Duration = Duration::from_secs(3);
/// How long the handshake may take: a builder shakes hands with one at a time.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long it may take for what it answers from memory; while it unpacks for somebody else, it answers nothing.
const QUICK: Duration = Duration::from_secs(60);
/// Longest answer that is no job's result.
const ANSWER: usize = 64 << 10;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    /// Nobody listens: its process is gone.
    #[error("nobody listens there: {0}")]
    Refused(io::Error),
    /// It cannot be reached, or does not answer.
    #[error("it cannot be reached: {0}")]
    Unreachable(io::Error),
    /// The connection ended.
    #[error("the connection ended: {0}")]
    Cut(String),
}

/// A process of a builder.
pub(super) struct BuilderClient {
    pub(super) at: SocketAddr,
    /// Where it is reached from here.
    port: SocketAddr,
    pub(super) nonce: u64,
    key: [u8; 32],
    connector: TlsConnector,
    tunnels: Arc<Tunnels>,
    /// It does not answer: whoever waits for it waits in vain.
    stands_still: watch::Sender<bool>,
    /// Questions in a row that it did not answer.
    unanswered: AtomicU32,
}

impl std::fmt::Debug for BuilderClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "BuilderClient({})", self.at)
    }
}

/// What the process behind a builder's port says when it is asked.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Says {
    /// Nothing: it stands still, or is not there.
    Nothing,
    /// That it is awake, as a stock one does.
    Awake,
    /// That, and the numbers of the attempts that it has.
    Has(Vec<u64>),
}

/// One connection to a builder. It ends when this is dropped.
pub(super) struct Connection {
    sender: SendRequest<Outgoing>,
    task: AbortHandle,
    host: HeaderValue,
    key: [u8; 32],
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl BuilderClient {
    /// The builder that calls itself `at`, in the process with this nonce; it is reached at `port`.
    ///
    /// # Errors
    /// Its certificate is none.
    pub(super) fn new(
        (at, port): (SocketAddr, SocketAddr),
        nonce: u64,
        credentials: &Credentials,
        tunnels: Arc<Tunnels>,
    ) -> Result<BuilderClient, String> {
        // It is its own authority, as for sccache's clients.
        let mut roots = RootCertStore::empty();
        let certificate = CertificateDer::from_pem_slice(&credentials.certificate)
            .map_err(|cause| format!("its certificate is no PEM: {cause}"))?;
        roots
            .add(certificate)
            .map_err(|cause| format!("its certificate cannot be understood: {cause}"))?;
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|cause| cause.to_string())?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(BuilderClient {
            at,
            port,
            nonce,
            key: credentials.key,
            connector: TlsConnector::from(Arc::new(config)),
            tunnels,
            stands_still: watch::Sender::new(false),
            unanswered: AtomicU32::new(0),
        })
    }

    /// It gave a sign of life.
    pub(super) fn answered(&self) {
        self.unanswered.store(0, Relaxed);
        self.stands_still.send_if_modified(std::mem::take);
    }

    /// It was asked, and did not answer; how often in a row.
    pub(super) fn asked_in_vain(&self) -> u32 {
        self.unanswered.fetch_add(1, Relaxed) + 1
    }

    /// Ends all that waits for it.
    pub(super) fn stand_still(&self) {
        self.stands_still.send_replace(true);
    }

    /// Ends when it does not answer any more.
    pub(super) async fn stands_still(&self) {
        // The sender lives as long as we do.
        let mut stands_still = self.stands_still.subscribe();
        let _ = stands_still.wait_for(|stands_still| *stands_still).await;
    }

    /// A connection to its port.
    async fn reach(&self) -> Result<Way, Fault> {
        if self.tunnels.has(&self.at) {
            let way = self.tunnels.take(&self.at).await;
            let none = || io::Error::other("it has no connection to us");
            return way.ok_or_else(|| Fault::Refused(none()));
        }
        let connected = timeout(CONNECT, TcpStream::connect(self.port)).await;
        let stream = match connected {
            Ok(Ok(stream)) => stream,
            Ok(Err(cause)) if cause.kind() == io::ErrorKind::ConnectionRefused => {
                return Err(Fault::Refused(cause));
            }
            Ok(Err(cause)) => return Err(Fault::Unreachable(cause)),
            Err(_) => return Err(Fault::Unreachable(io::ErrorKind::TimedOut.into())),
        };
        // What cannot be set is only slower.
        let _ = stream.set_nodelay(true);
        keep_alive(&stream);
        Ok(Box::new(Prompt(stream)))
    }

    /// Asks whether its process is awake: it ends a conversation that is no TLS. That a connection can be made says
    /// nothing, because the kernel does that for a process that stands still.
    pub(super) async fn ask(&self) -> Says {
        let talk = async {
            let mut stream = self.reach().await.ok()?;
            stream.write_all(builder_port::JOBS).await.ok()?;
            let (mut answer, mut buffer) = (Vec::new(), [0; 1 << 10]);
            loop {
                let length = match stream.read(&mut buffer).await {
                    Ok(length) => length,
                    Err(cause) if cause.kind() == io::ErrorKind::ConnectionReset => 0,
                    Err(_) => return None,
                };
                answer.extend_from_slice(&buffer[..length]);
                let is_one = answer.starts_with(builder_port::ANSWER);
                if length == 0 || !is_one || answer.len() > builder_port::LONGEST_ANSWER {
                    return Some(builder_port::jobs(&answer));
                }
            }
        };
        match timeout(SILENCE, talk).await {
            Ok(Some(Some(jobs))) => Says::Has(jobs),
            Ok(Some(None)) => Says::Awake,
            Ok(None) | Err(_) => Says::Nothing,
        }
    }

    /// Whether nobody is there any more, at the end of a conversation that broke off.
    pub(super) async fn is_gone(&self) -> bool {
        if self.tunnels.has(&self.at) {
            // Our end of a builder's connection stands as long as its machine does, and is used up by this.
            return matches!(
                self.connect(None).await,
                Err(Fault::Unreachable(cause)) if cause.kind() == io::ErrorKind::UnexpectedEof
            );
        }
        let reached = timeout(SILENCE, self.reach()).await;
        matches!(reached, Ok(Err(Fault::Refused(_))))
    }

    /// Connects, for an attempt with this number, of which a machine of ours takes note.
    ///
    /// # Errors
    /// It is gone, cannot be reached, or is somebody else.
    pub(super) async fn connect(&self, attempt: Option<u64>) -> Result<Connection, Fault> {
        let stream = self.reach().await?;
        let name = ServerName::from(self.at.ip());
        let attempt = attempt.map(builder_port::protocol);
        let protocols = attempt.map(|attempt| vec![b"http/1.1".to_vec(), attempt]);
        let connector = self.connector.with_alpn(protocols.unwrap_or_default());
        let shaken = timeout(HANDSHAKE, connector.connect(name, stream)).await;
        let stream = match shaken {
            Ok(Ok(stream)) => stream,
            Ok(Err(cause)) => return Err(Fault::Unreachable(cause)),
            Err(_) => return Err(Fault::Unreachable(io::ErrorKind::TimedOut.into())),
        };
        let (sender, connection) = handshake(TokioIo::new(stream))
            .await
            .map_err(|cause| Fault::Cut(cause.to_string()))?;
        let task = tokio::spawn(connection).abort_handle();
        // An address is a header's value.
        let host = HeaderValue::from_str(&self.at.to_string());
        Ok(Connection {
            sender,
            task,
            host: host.unwrap_or(HeaderValue::from_static("builder")),
            key: self.key,
        })
    }
}

impl Connection {
    /// Whether another request may be sent.
    pub(super) fn is_usable(&self) -> bool {
        !self.sender.is_closed()
    }

    /// Sends a job's request; the answer's body is still to come.
    ///
    /// # Errors
    /// The connection ended.
    pub(super) async fn post(
        &mut self,
        what: &str,
        job: u64,
        (length, body): (u64, Outgoing),
        is_last: bool,
    ) -> Result<Response<Incoming>, Fault> {
        let cut = |cause: hyper::Error| Fault::Cut(cause.to_string());
        self.sender.ready().await.map_err(cut)?;
        let mut request = Request::new(body);
        *request.method_mut() = Method::POST;
        let path = format!("/api/v1/distserver/{what}/{job}");
        *request.uri_mut() = path.parse().unwrap_or_default();
        let headers = request.headers_mut();
        headers.insert(header::HOST, self.host.clone());
        let octets = HeaderValue::from_static("application/octet-stream");
        headers.insert(header::CONTENT_TYPE, octets.clone());
        headers.insert(header::ACCEPT, octets);
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
        let token = format!("Bearer {}", wire::job_token(&self.key, job));
        if let Ok(mut token) = HeaderValue::from_str(&token) {
            token.set_sensitive(true);
            headers.insert(header::AUTHORIZATION, token);
        }
        if is_last {
            // sccache-dist keeps a thread for every connection that stays open.
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        self.sender.send_request(request).await.map_err(cut)
    }
}

/// The body of a short answer.
pub(super) async fn read(answer: Response<Incoming>) -> Result<Bytes, String> {
    let body = Limited::new(answer.into_body(), ANSWER).collect();
    match timeout(QUICK, body).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(cause)) => Err(cause.to_string()),
        Err(_) => Err("it does not answer".to_owned()),
    }
}

/// A short body.
pub(super) fn short(bytes: Vec<u8>) -> (u64, Outgoing) {
    let length = bytes.len() as u64;
    let body = Full::new(Bytes::from(bytes)).map_err(|never: Infallible| match never {});
    (length, body.boxed_unsync())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn question_whether_a_builder_is_gone_uses_one_of_its_connections() {
        let certified = rcgen::generate_simple_self_signed(["builder".to_owned()]).unwrap();
        let credentials = Credentials {
            key: [7; 32],
            certificate: certified.cert.pem().into_bytes(),
        };
        let (at, tunnels) = (SocketAddr::from(([127, 7, 7, 7], 10501)), Arc::default());
        let client = BuilderClient::new((at, at), 1, &credentials, Arc::clone(&tunnels)).unwrap();
        let (near, mut first) = tokio::io::duplex(BYTES);
        tunnels.add(at, Box::new(near));
        let (near, _second) = tokio::io::duplex(BYTES);
        tunnels.add(at, Box::new(near));
        let ends = async move {
            let read = first.read(&mut [0; BYTES]).await;
            drop(first);
            read.unwrap()
        };
        let (is_gone, length) = tokio::join!(client.is_gone(), ends);
        assert!(is_gone && length > 0, "{is_gone} {length}");
        assert!(
            tunnels.take(&at).await.is_some(),
            "the other one still waits"
        );
    }

    const BYTES: usize = 16 << 10;
}
