//! Connections to one of the loop's own sockets. They are accepted, read and closed within limits, so that no local
//! process can keep the loop busy, whatever it sends or fails to send.

use crate::contract::control::PATIENCE;
use nix::poll::PollFlags;
use std::io::{self, Read};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

/// Pause after accepting has failed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(500);
/// Maximum number of open connections, and of connections accepted in one turn of the loop. Beyond that, the oldest is
/// closed.
const MOST: usize = 16;
/// The kernel's default maximum for a listener's backlog (net.core.somaxconn).
const LONGEST_QUEUE: usize = 4096;

/// A listening socket, and its connections that have not sent a complete request.
pub struct Peers {
    pub listener: UnixListener,
    pub connected: Vec<Peer>,
    /// Accepting has failed because no descriptor is free; the listener is ignored until then.
    closed_until: Option<Instant>,
    /// Maximum number of bytes per connection.
    limit: usize,
}

/// One connection that has not sent a complete request.
pub struct Peer {
    pub stream: UnixStream,
    said: Vec<u8>,
    until: Instant,
}

impl Peers {
    /// Takes over a listener, which must be non-blocking.
    pub fn new(listener: UnixListener, limit: usize) -> Peers {
        Peers {
            listener,
            connected: Vec::new(),
            closed_until: None,
            limit,
        }
    }

    /// Accepts new connections and reads available data. Returns the connections for which `understand` returns a
    /// value, with that value. Closes those that have hung up, sent too much or taken too long.
    pub fn hear<T>(
        &mut self,
        now: Instant,
        understand: impl Fn(&[u8]) -> Option<T>,
    ) -> Vec<(Peer, T)> {
        self.accept(now);
        let mut understood = Vec::new();
        for mut peer in std::mem::take(&mut self.connected) {
            let open = peer.read(self.limit);
            if let Some(meaning) = understand(&peer.said) {
                understood.push((peer, meaning));
            } else if open && peer.said.len() < self.limit && now < peer.until {
                self.connected.push(peer);
            }
        }
        let surplus = self.connected.len().saturating_sub(MOST);
        self.connected.drain(..surplus);
        understood
    }

    fn accept(&mut self, now: Instant) {
        self.closed_until = None;
        for _ in 0..MOST {
            match self.listener.accept() {
                Ok((stream, _)) => {
                    if stream.set_nonblocking(true).is_ok() {
                        self.connected.push(Peer {
                            stream,
                            said: Vec::new(),
                            until: now + PATIENCE,
                        });
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => {
                    // Polling it again would return at once, and the loop would spin.
                    self.closed_until = Some(now + ACCEPT_PAUSE);
                    return;
                }
            }
        }
    }

    /// Closes all connections, and discards what they have sent.
    pub fn forget(&mut self) {
        self.connected.clear();
        for _ in 0..LONGEST_QUEUE {
            if self.listener.accept().is_err() {
                return;
            }
        }
    }

    /// The events to poll the listener for.
    pub fn interest(&self, now: Instant) -> PollFlags {
        match self.closed_until {
            Some(until) if now < until => PollFlags::empty(),
            _ => PollFlags::POLLIN,
        }
    }

    /// When the next connection times out, or the listener is tried again.
    pub fn deadline(&self) -> Option<Instant> {
        let patience = self.connected.iter().map(|peer| peer.until);
        patience.chain(self.closed_until).min()
    }
}

impl Peer {
    /// Reads available data, up to `limit` bytes in total. Returns false if no more will come.
    fn read(&mut self, limit: usize) -> bool {
        let mut buffer = [0; 1024];
        while self.said.len() < limit {
            match self.stream.read(&mut buffer) {
                Ok(0) => return false,
                Ok(count) => self.said.extend_from_slice(&buffer[..count]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return error.kind() == io::ErrorKind::WouldBlock,
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    /// A socket whose peers say lines.
    struct Site {
        _folder: tempfile::TempDir,
        path: std::path::PathBuf,
        peers: Peers,
        start: Instant,
    }

    impl Site {
        #[expect(clippy::disallowed_methods, reason = "some time to begin with")]
        fn new() -> Site {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("it.sock");
            let listener = UnixListener::bind(&path).unwrap();
            listener.set_nonblocking(true).unwrap();
            Site {
                path,
                peers: Peers::new(listener, 8),
                start: Instant::now(),
                _folder: folder,
            }
        }

        fn say(&self, words: &str) -> UnixStream {
            let mut stream = UnixStream::connect(&self.path).unwrap();
            stream.write_all(words.as_bytes()).unwrap();
            stream
        }

        fn hear_after(&mut self, passed: Duration) -> Vec<String> {
            let heard = self.peers.hear(self.start + passed, |said| {
                let line = said.strip_suffix(b"\n")?;
                Some(String::from_utf8(line.to_vec()).unwrap())
            });
            heard.into_iter().map(|(_, line)| line).collect()
        }
    }

    #[test]
    fn who_has_said_half_is_waited_for_who_has_hung_up_is_not() {
        let mut site = Site::new();
        let mut half = site.say("ha");
        drop(site.say("no"));
        assert!(site.hear_after(Duration::ZERO).is_empty());
        assert_eq!(site.peers.connected.len(), 1);
        half.write_all(b"lf\n").unwrap();
        assert_eq!(site.hear_after(Duration::ZERO), ["half"]);
        assert!(site.peers.deadline().is_none());
    }

    #[test]
    fn who_says_too_much_or_takes_too_long_is_forgotten() {
        let mut site = Site::new();
        let _streams = [site.say("much too much"), site.say("slow")];
        assert!(site.hear_after(Duration::ZERO).is_empty());
        assert_eq!(site.peers.connected.len(), 1);
        assert_eq!(site.peers.deadline(), Some(site.start + PATIENCE));
        assert!(site.hear_after(PATIENCE).is_empty());
        assert!(site.peers.connected.is_empty() && site.peers.deadline().is_none());
    }

    #[test]
    fn those_who_are_silent_keep_nobody_out() {
        let mut site = Site::new();
        let silent: Vec<UnixStream> = (0..3 * MOST).map(|_| site.say("")).collect();
        let _asking = site.say("me\n");
        let mut heard = Vec::new();
        for _ in 0..4 {
            heard.extend(site.hear_after(Duration::ZERO));
            assert!(site.peers.connected.len() <= MOST);
        }
        assert_eq!(heard, ["me"]);
        drop(silent);
    }

    #[test]
    fn what_the_dead_said_does_not_count_for_their_successors() {
        let mut site = Site::new();
        drop(site.say("ready\n"));
        site.peers.forget();
        assert!(site.hear_after(Duration::ZERO).is_empty());
        drop(site.say("ready\n"));
        assert_eq!(site.hear_after(Duration::ZERO), ["ready"]);
    }
}
