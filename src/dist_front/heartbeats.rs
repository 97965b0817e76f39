//! The builders' last heartbeats in a file. Without it, builders of other machines would be away for up to 30 s after
//! gateway and scheduler ended together: each knows of them by what they said last, and so could tell the other.
//!
//! A heartbeat holds the key with which a builder's jobs are proven: the file has mode 0600.

use super::{Front, wire};
use crate::base::private_file;
use crate::contract::builder_port::AWAKE;
use crate::dist_front::registry::SavedHeartbeat;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use std::io;
use std::net::SocketAddr;
use std::time::Duration;
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};

/// Between two writes: heartbeats come every 30 s from each of many.
const PAUSE: Duration = Duration::from_secs(5);
/// How long a builder's port may stay silent.
pub(super) const SILENCE: Duration = Duration::from_secs(2);

/// One in the file.
#[derive(Serialize, Deserialize)]
struct Line {
    builder: SocketAddr,
    /// When the builder gave its last sign of life, in milliseconds since 1970.
    unix_millis: u64,
    /// In Base64.
    body: String,
}

/// The file's text; `unix` is the time since 1970.
fn text(kept: &[SavedHeartbeat], unix: Duration) -> String {
    let lines: Vec<Line> = kept
        .iter()
        .map(|one| Line {
            builder: one.builder,
            unix_millis: millis(unix.saturating_sub(one.age)),
            body: STANDARD.encode(&one.body),
        })
        .collect();
    serde_json::to_string(&lines).unwrap_or_default()
}

/// What is in a file's text; how old each is, is told by a clock that may have been set meanwhile: one that comes from
/// the future is left out.
fn read(text: &str, unix: Duration) -> serde_json::Result<Vec<SavedHeartbeat>> {
    let lines: Vec<Line> = serde_json::from_str(text)?;
    let kept = lines.into_iter().filter_map(|line| {
        let age = millis(unix).checked_sub(line.unix_millis)?;
        Some(SavedHeartbeat {
            builder: line.builder,
            age: Duration::from_millis(age),
            body: STANDARD.decode(line.body).ok()?.into(),
        })
    });
    Ok(kept.collect())
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[expect(
    clippy::disallowed_methods,
    reason = "no other clock goes on from one process to the next"
)]
fn unix_time() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}

/// Whether the process behind a builder's port is awake: it ends a conversation that is no TLS. That the port takes a
/// connection says nothing, because the kernel does that for a paused process too.
pub(super) async fn answers(builder: SocketAddr) -> bool {
    let talk = async {
        let mut stream = TcpStream::connect(builder).await?;
        stream.write_all(AWAKE).await?;
        stream.read(&mut [0]).await
    };
    match timeout(SILENCE, talk).await {
        Ok(Ok(_)) => true,
        Ok(Err(cause)) => cause.kind() == io::ErrorKind::ConnectionReset,
        Err(_) => false,
    }
}

impl Front {
    /// Writes the file whenever there is news, but not all the time.
    pub(super) async fn keep_heartbeats(&self) {
        if !self.link.is_local() {
            return std::future::pending().await;
        }
        let mut works = true;
        loop {
            self.news.notified().await;
            let kept = self.registry().heartbeats(Instant::now());
            let (path, text) = (self.config.heartbeats.clone(), text(&kept, unix_time()));
            let written = tokio::task::spawn_blocking(move || private_file::write(&path, &text));
            let written = written
                .await
                .unwrap_or_else(|cause| Err(io::Error::other(cause)));
            match &written {
                Err(cause) if works => {
                    let path = self.config.heartbeats.display();
                    warn!(
                        "cannot keep the builders' heartbeats in \"{path}\": {cause}; after a restart of this \
                         container its builders of other machines will be back within 30 s"
                    );
                }
                Ok(()) | Err(_) => {}
            }
            works = written.is_ok();
            sleep(PAUSE).await;
        }
    }

    /// Takes up what the gateway before us has kept, as far as it is fresh and its builder answers.
    pub(super) async fn recall_heartbeats(&self) {
        if !self.link.is_local() {
            return;
        }
        let path = self.config.heartbeats.clone();
        let found = tokio::task::spawn_blocking(move || std::fs::read_to_string(path)).await;
        let Ok(Ok(found)) = found else {
            // The first start of all, or a folder whose trouble the next write tells.
            return;
        };
        let kept = read(&found, unix_time()).unwrap_or_else(|cause| {
            let path = self.config.heartbeats.display();
            warn!("cannot understand \"{path}\", which is made anew: {cause}");
            Vec::new()
        });
        let fresh = kept.into_iter().filter(super::registry::is_fresh);
        let asked = fresh.map(|one| async {
            let port = self.port_of(one.builder);
            answers(port).await.then_some(one)
        });
        let there = futures_util::future::join_all(asked).await;
        let mut recalled = 0;
        for one in there.into_iter().flatten() {
            if let Ok(heartbeat) = wire::heartbeat(&one.body) {
                recalled += usize::from(self.registry().recall(Instant::now(), one, heartbeat));
            }
        }
        if recalled > 0 {
            info!("{recalled} builders are known from the gateway before this one");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    fn kept(age: u64) -> SavedHeartbeat {
        SavedHeartbeat {
            builder: SocketAddr::from(([10, 0, 0, 1], 10501)),
            age: Duration::from_secs(age),
            body: Bytes::from_static(b"\x00\xff body"),
        }
    }

    #[test]
    fn what_is_written_is_read_and_has_aged() {
        let written = text(&[kept(3)], Duration::from_secs(100));
        let later = read(&written, Duration::from_secs(110)).unwrap();
        assert_eq!(later, [kept(13)]);
    }

    #[test]
    fn heartbeat_from_the_future_is_left_out() {
        let written = text(&[kept(3)], Duration::from_secs(100));
        assert_eq!(read(&written, Duration::from_secs(96)).unwrap(), []);
    }

    #[test]
    fn other_text_is_refused() {
        for other in ["", "{}", "[{\"builder\":\"x\"}]", "[1]"] {
            assert!(read(other, Duration::ZERO).is_err(), "{other}");
        }
    }

    #[tokio::test]
    async fn port_of_a_process_that_does_not_read_is_silent() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        assert!(!answers(address).await);
        // What it would do when it wakes.
        let waiting = listener.accept().unwrap();
        drop(waiting);
        let awake = std::thread::spawn(move || listener.accept().map(drop));
        assert!(answers(address).await);
        awake.join().unwrap().unwrap();
        assert!(!answers(address).await, "nobody listens");
    }
}
