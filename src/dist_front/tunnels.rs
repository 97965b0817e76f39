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
use parking_lot::Mutex;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep};
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
        let kept = Arc::<Kept>::default();
        side_by_side(WAITING, |turn| {
            let (front, kept) = (Arc::clone(self), Arc::clone(&kept));
            async move { front.keep_tunnel(builder, turn, &kept).await }
        })
        .await;
    }

    /// Opens a connection, and uses it when the relay does; the turn is over as soon as it does not wait for that any more.
    async fn keep_tunnel(&self, builder: SocketAddr, turn: OwnedSemaphorePermit, kept: &Kept) {
        let mut request = self.builders_request(builder, TUNNEL, Bytes::new());
        let headers = request.headers_mut();
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, PROTOCOL);
        let tunnel = match self.link.upgrade(request).await {
            Ok(tunnel) => tunnel,
            Err(cause) => {
                let words = words(&cause);
                if kept.fault.lock().replace(words.clone()).as_ref() != Some(&words) {
                    warn!("cannot keep connections to the relay open: {words}");
                }
                return sleep(PAUSE).await;
            }
        };
        if kept.fault.lock().take().is_some() {
            info!("connections to the relay are open again");
        }
        let mut tunnel = TokioIo::new(tunnel);
        let mut first = [0; 4 << 10];
        let opened = Instant::now();
        kept.waits();
        let read = tunnel.read(&mut first).await;
        let was_last = kept.waits_no_more();
        let Ok(length @ 1..) = read else {
            if was_last {
                // The relay has ended, and the next one does not know the builder.
                self.link.started();
            }
            // The next relay needs one at once. The others let the last one be seen.
            if !was_last || opened.elapsed() < PAUSE {
                sleep(PAUSE).await;
            }
            return;
        };
        drop(turn);
        // How a conversation ends, its two sides know.
        let _ = lead(&mut tunnel, builder, &first[..length]).await;
    }
}

/// What is known of all connections.
#[derive(Debug, Default)]
struct Kept {
    /// Why there is none.
    fault: Mutex<Option<String>>,
    /// How many wait for the relay.
    waiting: AtomicUsize,
}

impl Kept {
    fn waits(&self) {
        self.waiting.fetch_add(1, Relaxed);
    }

    /// True where no other waits any more: one alone may have been let go, by the relay or on the way to it.
    fn waits_no_more(&self) -> bool {
        self.waiting.fetch_sub(1, Relaxed) == 1
    }
}

/// Does one thing again and again for ever, so many at a time: one that takes long delays no others.
async fn side_by_side<F>(most: usize, one: impl Fn(OwnedSemaphorePermit) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    let turns = Arc::new(Semaphore::new(most));
    // It fails only when the semaphore is closed, which nobody does.
    while let Ok(turn) = Arc::clone(&turns).acquire_owned().await {
        tokio::spawn(one(turn));
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

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::Notify;
    use tokio::time::timeout;

    #[tokio::test]
    async fn slow_connection_delays_no_other_and_there_are_so_many_at_most() {
        let (begun, now, most) = (
            Arc::new(AtomicUsize::new(0)),
            Arc::new(AtomicUsize::new(0)),
            Arc::new(AtomicUsize::new(0)),
        );
        let enough = Arc::new(Notify::new());
        let one = |turn: OwnedSemaphorePermit| {
            let number = begun.fetch_add(1, Relaxed);
            let (now, most, enough) = (Arc::clone(&now), Arc::clone(&most), Arc::clone(&enough));
            async move {
                most.fetch_max(now.fetch_add(1, Relaxed) + 1, Relaxed);
                match number {
                    0 => std::future::pending().await,
                    20 => enough.notify_one(),
                    _ => tokio::task::yield_now().await,
                }
                now.fetch_sub(1, Relaxed);
                drop(turn);
            }
        };
        let minute = Duration::from_secs(60);
        tokio::select! {
            () = side_by_side(3, one) => {}
            enough = timeout(minute, enough.notified()) => enough.unwrap(),
        }
        assert_eq!(most.load(Relaxed), 3);
    }

    #[test]
    fn relay_has_ended_only_when_all_connections_have() {
        let kept = Kept::default();
        (0..3).for_each(|_| kept.waits());
        assert!(!kept.waits_no_more());
        kept.waits();
        let ends = [(); 3].map(|()| kept.waits_no_more());
        assert_eq!(ends, [false, false, true]);
    }
}
