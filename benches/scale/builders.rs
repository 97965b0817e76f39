//! Simulated builders: their port, their heartbeats, their reports.

use crate::gateway::SERVER;
use crate::{Figures, Options, now};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::AbortHandle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

/// When everything began: jobs carry the time since then.
pub(crate) static BEGIN: std::sync::LazyLock<Instant> = std::sync::LazyLock::new(now);
/// Bytes of a job's result.
const RESULT: usize = 16 << 10;

/// What all builders share.
struct Shared {
    acceptor: TlsAcceptor,
    pem: String,
    slots: u64,
    job: u64,
    front: SocketAddr,
    figures: Arc<Figures>,
}

pub(crate) struct Builders {
    shared: Arc<Shared>,
    running: Mutex<Vec<(SocketAddr, AbortHandle)>>,
    next: AtomicUsize,
}

fn address(number: usize) -> SocketAddr {
    let number = u32::try_from(number).unwrap();
    SocketAddr::from((Ipv4Addr::from(0x7f4d_0001 + number), 10501))
}

impl Builders {
    pub(crate) async fn start(
        options: &Options,
        front: SocketAddr,
        figures: &Arc<Figures>,
    ) -> Builders {
        let names = (0..options.builders).map(|number| address(number).ip().to_string());
        let made = rcgen::generate_simple_self_signed(names.collect::<Vec<_>>()).unwrap();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        let shared = Arc::new(Shared {
            acceptor: TlsAcceptor::from(Arc::new(config)),
            pem: made.cert.pem(),
            slots: options.slots,
            job: options.job,
            front,
            figures: Arc::clone(figures),
        });
        let mut running = Vec::new();
        for number in 0..options.builders {
            let at = address(number);
            running.push((at, begin(&shared, at)));
        }
        let builders = Builders {
            shared,
            running: Mutex::new(running),
            next: AtomicUsize::new(0),
        };
        // Until all have heartbeat.
        tokio::time::sleep(Duration::from_secs(3)).await;
        builders
    }

    /// Kills one builder with its jobs, and starts another process in its place.
    pub(crate) fn replace_one(&self) {
        let mut running = self.running.lock().unwrap();
        let number = self.next.fetch_add(1, Relaxed) % running.len();
        let (at, task) = &mut running[number];
        task.abort();
        *task = begin(&self.shared, *at);
    }
}

/// A process of a builder.
fn begin(shared: &Arc<Shared>, at: SocketAddr) -> AbortHandle {
    let shared = Arc::clone(shared);
    let task = tokio::spawn(async move {
        // All of its connections end with it.
        let mut connections = tokio::task::JoinSet::new();
        let listener = loop {
            match TcpListener::bind(at).await {
                Ok(listener) => break listener,
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        };
        let beats = Arc::clone(&shared);
        connections.spawn(async move { heartbeats(&beats, at).await });
        loop {
            let Ok((stream, _)) = listener.accept().await else {
                continue;
            };
            while connections.try_join_next().is_some() {}
            let shared = Arc::clone(&shared);
            connections.spawn(async move { serve(&shared, at, stream).await });
        }
    });
    task.abort_handle()
}

async fn heartbeats(shared: &Shared, at: SocketAddr) {
    static NONCE: AtomicU64 = AtomicU64::new(1);
    let text = |bytes: &[u8]| [&(bytes.len() as u64).to_le_bytes(), bytes].concat();
    let nonce = NONCE.fetch_add(1, Relaxed);
    let body = [
        text(&[7; 32]),
        shared.slots.to_le_bytes().to_vec(),
        nonce.to_le_bytes().to_vec(),
        text(&[1; 32]),
        text(shared.pem.as_bytes()),
    ]
    .concat();
    loop {
        post(shared, at, "heartbeat_server", &body).await;
        tokio::time::sleep(Duration::from_secs(30)).await;
    }
}

async fn serve(shared: &Arc<Shared>, at: SocketAddr, stream: TcpStream) {
    let _ = stream.set_nodelay(true);
    // The relay's question whether somebody is awake ends here too.
    let Ok(stream) = shared.acceptor.accept(stream).await else {
        return;
    };
    let service = service_fn(|request| {
        let shared = Arc::clone(shared);
        async move { Ok::<_, Infallible>(answer(&shared, at, request).await) }
    });
    let _ = hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

async fn answer(
    shared: &Shared,
    at: SocketAddr,
    request: Request<Incoming>,
) -> Response<Full<Bytes>> {
    let path = request.uri().path().to_owned();
    let body = request.into_body().collect().await;
    let body = body.map(|body| body.to_bytes()).unwrap_or_default();
    if path.contains("/assign_job/") {
        // Ready, and it has the toolchain.
        return Response::new(Full::new(vec![1, 0, 0, 0, 0].into()));
    }
    let job = path.rsplit('/').next().unwrap_or_default();
    post(
        shared,
        at,
        &format!("job_state/{job}"),
        &2_u32.to_le_bytes(),
    )
    .await;
    // A job of a client ends with the time at which it was sent; that of the relay, which unpacks, does not.
    if let Some(sent) = crate::clients::sent_at(&body) {
        let took = BEGIN.elapsed().as_micros() as u64 - sent;
        shared.figures.was_assigned(sent, took);
        shared.figures.in_flight.fetch_add(1, Relaxed);
        let _running = Running(&shared.figures);
        // Between half and one and a half times the average.
        let share = (job.parse::<u64>().unwrap_or(0).wrapping_mul(2_654_435_761) >> 7) % 1000;
        tokio::time::sleep(Duration::from_millis(shared.job * (500 + share))).await;
    }
    post(
        shared,
        at,
        &format!("job_state/{job}"),
        &3_u32.to_le_bytes(),
    )
    .await;
    let mut result = vec![0; RESULT];
    result[0] = 1;
    Response::new(Full::new(result.into()))
}

/// Counts a job until it is over, or its builder.
struct Running<'a>(&'a Figures);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Relaxed);
    }
}

/// A report to the relay, on a connection of its own, as `sccache-dist` makes them.
async fn post(shared: &Shared, at: SocketAddr, what: &str, body: &[u8]) {
    let head = format!(
        "POST /api/v1/scheduler/{what} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\
         Content-Type: application/octet-stream\r\nAuthorization: Bearer {at} {SERVER}\r\n\
         Content-Length: {}\r\n\r\n",
        body.len()
    );
    let talk = async {
        let socket = TcpSocket::new_v4()?;
        socket.bind((at.ip(), 0).into())?;
        let mut stream = socket.connect(shared.front).await?;
        stream.write_all(&[head.as_bytes(), body].concat()).await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        Ok::<_, std::io::Error>(answer)
    };
    let _ = talk.await;
}
