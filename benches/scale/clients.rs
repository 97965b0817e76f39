//! Simulated clients, each with one job in flight.

use crate::builders::BEGIN;
use crate::gateway::{CLIENT, Gateway};
use crate::{Figures, Options};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

/// Bytes of a job.
const JOB: usize = 64 << 10;
/// Jobs in flight of one machine, each of which has an address.
const JOBS_OF_A_MACHINE: usize = 20;
/// Ends a job of ours, before the time at which it was sent.
const MARK: &[u8; 16] = b"sent by a client";

/// When a job was sent, in microseconds since the beginning.
pub(crate) fn sent_at(body: &[u8]) -> Option<u64> {
    let (rest, time) = body.split_last_chunk::<8>()?;
    rest.ends_with(MARK).then(|| u64::from_le_bytes(*time))
}

struct Shared {
    front: SocketAddr,
    toolchain: String,
    connector: TlsConnector,
    figures: Arc<Figures>,
}

/// Starts all clients, so many a second that each may have shaken hands.
pub(crate) async fn start(options: &Options, gateway: &Gateway, figures: &Arc<Figures>) {
    let archive = b"an archive".repeat(1000);
    let hash = blake3::hash(&archive);
    let name = hash.as_bytes().iter();
    let toolchain: String = name
        .map(|byte| format!("{:02x}", byte.rotate_left(4)))
        .collect();
    let path = format!("/api/v1/scheduler/server_certificate/{}", gateway.front);
    let stream = TcpStream::connect(gateway.front).await.unwrap();
    let answer = ask(stream, "GET", &path, CLIENT, b"").await.unwrap();
    let at = answer
        .windows(5)
        .position(|part| part == b"-----")
        .expect("a certificate");
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(&answer[at..]).unwrap())
        .unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let shared = Arc::new(Shared {
        front: gateway.front,
        toolchain,
        connector: TlsConnector::from(Arc::new(config)),
        figures: Arc::clone(figures),
    });
    let (ticket, job, needed) = shared.allocate(machine(0)).await.unwrap();
    if needed {
        let path = format!("/api/v1/distserver/submit_toolchain/{job}");
        let sent = shared.post(machine(0), &path, &ticket, &archive).await;
        sent.unwrap();
    }
    for number in 0..options.clients {
        let shared = Arc::clone(&shared);
        tokio::spawn(async move { shared.build(machine(number)).await });
        if number % 20 == 0 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

/// The address of the machine of a client.
fn machine(number: usize) -> Ipv4Addr {
    let number = u32::try_from(number / JOBS_OF_A_MACHINE).unwrap();
    Ipv4Addr::from(0x7f4e_0001 + number)
}

/// A connection from a machine to the front.
async fn connect(from: Ipv4Addr, front: SocketAddr) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((from, 0).into())?;
    let stream = socket.connect(front).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

impl Shared {
    async fn build(&self, from: Ipv4Addr) {
        loop {
            let done = self.job(from).await.unwrap_or(false);
            let figure = match done {
                true => &self.figures.done,
                false => &self.figures.fallen_back,
            };
            figure.fetch_add(1, Relaxed);
            if !done {
                // It compiles by itself.
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }

    async fn job(&self, from: Ipv4Addr) -> io::Result<bool> {
        let (ticket, job, _) = self.allocate(from).await?;
        let mut command = Vec::new();
        command.extend(11_u64.to_le_bytes());
        command.extend(b"/usr/bin/cc");
        let mut body = u32::try_from(command.len()).unwrap().to_be_bytes().to_vec();
        body.extend(command);
        body.resize(JOB, 0);
        body.extend(MARK);
        body.extend((BEGIN.elapsed().as_micros() as u64).to_le_bytes());
        let path = format!("/api/v1/distserver/run_job/{job}");
        let answer = self.post(from, &path, &ticket, &body).await?;
        Ok(answer.starts_with(b"HTTP/1.1 200"))
    }

    /// The ticket, the job, and whether the toolchain is wanted.
    async fn allocate(&self, from: Ipv4Addr) -> io::Result<(String, u64, bool)> {
        let body = [&64_u64.to_le_bytes(), self.toolchain.as_bytes()].concat();
        let stream = connect(from, self.front).await?;
        let path = "/api/v1/scheduler/alloc_job";
        let answer = ask(stream, "POST", path, CLIENT, &body).await?;
        let end = answer.windows(4).position(|four| four == b"\r\n\r\n");
        let body = &answer[end.ok_or(io::ErrorKind::InvalidData)? + 4..];
        if body.len() < 12 || body[..4] != [0; 4] {
            return Err(io::Error::other("no builder"));
        }
        let number = |at: usize| u64::from_le_bytes(body[at..at + 8].try_into().unwrap());
        let length = usize::try_from(number(4)).unwrap();
        let ticket = String::from_utf8_lossy(&body[12..12 + length]).into_owned();
        // The job, the kind of address, 4 bytes of it, the port.
        let needed = body[12 + length + 8 + 4 + 4 + 2] != 0;
        Ok((ticket, number(12 + length), needed))
    }

    async fn post(
        &self,
        from: Ipv4Addr,
        path: &str,
        bearer: &str,
        body: &[u8],
    ) -> io::Result<Vec<u8>> {
        let stream = connect(from, self.front).await?;
        let name = ServerName::from(self.front.ip());
        let stream = self.connector.connect(name, stream).await?;
        ask(stream, "POST", path, bearer, body).await
    }
}

async fn ask<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    method: &str,
    path: &str,
    bearer: &str,
    body: &[u8],
) -> io::Result<Vec<u8>> {
    let head = format!(
        "{method} {path} HTTP/1.1\r\nConnection: close\r\n\
         Content-Type: application/octet-stream\r\nAccept: application/octet-stream\r\n\
         Authorization: Bearer {bearer}\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(&[head.as_bytes(), body].concat()).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    Ok(answer)
}
