//! Connections that a builder keeps open to the relay of another machine, which nobody else can reach: behind NAT, or in a
//! pod without a port. The relay uses each for one conversation with the builder's port.
//!
//! ```text
//! relay <--POST, Upgrade-- our front (here) --first byte--> the builder's port
//! ```

use super::Front;
use super::exchange::TUNNEL;
use super::upstream::UpstreamError;
use bytes::Bytes;
use hyper::header::{self, HeaderValue};
use hyper_util::rt::TokioIo;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::sleep;
use tracing::{info, warn};

/// Connections that wait for the relay at one time.
const WAITING: usize = 8;
/// Pause after one could not be made.
const PAUSE: Duration = Duration::from_secs(2);
/// What the connection is to become.
pub(super) const PROTOCOL: HeaderValue = HeaderValue::from_static("sccache-dock-builder");

impl Front {
    /// Keeps connections open, for ever.
    pub(super) async fn keep_tunnels(self: &Arc<Front>) {
        let Some(builder) = self.config.tunnels_to else {
            return std::future::pending().await;
        };
        let waiting = Arc::new(Semaphore::new(WAITING));
        let mut fault = None;
        loop {
            // It fails only when the semaphore is closed, which nobody does.
            let Ok(turn) = Arc::clone(&waiting).acquire_owned().await else {
                return;
            };
            let mut request = self.builders_request(builder, TUNNEL, Bytes::new());
            let headers = request.headers_mut();
            headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
            headers.insert(header::UPGRADE, PROTOCOL);
            let tunnel = match self.link.upgrade(request).await {
                Ok(tunnel) => tunnel,
                Err(cause) => {
                    let words = words(&cause);
                    if fault.as_ref() != Some(&words) {
                        warn!("cannot keep connections to the relay open: {words}");
                    }
                    fault = Some(words);
                    drop(turn);
                    sleep(PAUSE).await;
                    continue;
                }
            };
            if fault.take().is_some() {
                info!("connections to the relay are open again");
            }
            tokio::spawn(async move {
                let mut tunnel = TokioIo::new(tunnel);
                let mut first = [0; 4 << 10];
                // How a conversation ends, its two sides know.
                let Ok(length @ 1..) = tunnel.read(&mut first).await else {
                    return drop(turn);
                };
                drop(turn);
                let _ = lead(&mut tunnel, builder, &first[..length]).await;
            });
        }
    }
}

async fn lead(
    tunnel: &mut (impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin),
    builder: SocketAddr,
    first: &[u8],
) -> std::io::Result<()> {
    let mut stream = TcpStream::connect(builder).await?;
    // What cannot be set is only slower.
    let _ = stream.set_nodelay(true);
    stream.write_all(first).await?;
    copy_bidirectional(tunnel, &mut stream).await?;
    Ok(())
}

fn words(cause: &UpstreamError) -> String {
    match cause {
        UpstreamError::Broken(cause) if cause.contains("404") || cause.contains("503") => {
            "the scheduler's machine has no relay, so nobody reaches this builder (hint: SCCACHE_RELAY=on there, or \
             an address in SCCACHE_PUBLIC_ADDR here)"
                .to_owned()
        }
        cause => cause.to_string(),
    }
}
