//! What the supervised sccache server answers: statistics, and compiles of clients that live where it lives.

use super::frame;
use super::{End, LONGEST_RESPONSE, RELAY, Talk};
use crate::gateway::peer::Peer;
use crate::gateway::warnings::ADVICE;
use std::io;
use tokio::io::{AsyncBufRead, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;

impl<R: AsyncBufRead + Unpin + Send, W: AsyncWrite + Unpin + Send> Talk<'_, R, W> {
    /// A client's statistics go to the server, if it is there. They are a courtesy: the client is thanked
    /// in any case.
    pub(super) async fn record_stats(&mut self, length: u32) -> Result<(&'static str, bool), End> {
        let relayed = if self.welcome {
            self.relay(length).await?
        } else {
            self.skip().await?;
            Ok(Vec::new())
        };
        if let Err(cause) = &relayed {
            let message = format!(
                "cannot relay RecordStats peer={}: the sccache server: {cause}",
                self.peer
            );
            self.gateway
                .refusals
                .warnings
                .warn(ADVICE, "RecordStats", &message);
        }
        self.send(&frame::stats_recorded()).await?;
        Ok((if relayed.is_ok() { "ok" } else { "error" }, true))
    }

    pub(super) async fn relay_stats(&mut self, length: u32) -> Result<(&'static str, bool), End> {
        match self.relay(length).await? {
            Ok(response) => {
                let length = u32::try_from(response.len()).unwrap_or(u32::MAX);
                self.send(&[&length.to_be_bytes()[..], &response].concat())
                    .await?;
                Ok(("ok", true))
            }
            Err(cause) => {
                let cause = format!("the sccache server does not answer: {cause}");
                self.gateway.refusals.refuse(
                    "relay",
                    &self.peer,
                    &"a request for statistics",
                    &cause,
                );
                Ok(("error", false))
            }
        }
    }

    /// Asks the sccache server what the client asked, on a connection of its own. The outer error is the client's, the
    /// inner one the server's.
    async fn relay(&mut self, length: u32) -> Result<io::Result<Vec<u8>>, End> {
        let mut server = match self.pass_on(length).await? {
            Ok(server) => server,
            Err(cause) => return Ok(Err(cause)),
        };
        let answer = async {
            let length = server.read_u32().await?;
            if length > LONGEST_RESPONSE {
                return Err(io::Error::other(format!(
                    "a response of {length} bytes is too long"
                )));
            }
            let mut response = vec![0; length as usize];
            server.read_exact(&mut response).await?;
            Ok(response)
        };
        Ok(in_time(answer).await)
    }

    /// Hands the frame to the sccache server as it arrives. Whatever goes wrong there, the frame is read to its end.
    async fn pass_on(&mut self, length: u32) -> Result<io::Result<UnixStream>, End> {
        let passed = self.copy_to_server(length).await?;
        if passed.is_err() {
            self.skip().await?;
        }
        Ok(passed)
    }

    async fn copy_to_server(&mut self, length: u32) -> Result<io::Result<UnixStream>, End> {
        let head = [&length.to_be_bytes()[..], &std::mem::take(&mut self.buffer)].concat();
        let connect = async {
            let mut server = UnixStream::connect(&self.gateway.config.server_socket).await?;
            server.write_all(&head).await?;
            Ok(server)
        };
        let mut server = match in_time(connect).await {
            Ok(server) => server,
            Err(cause) => return Ok(Err(cause)),
        };
        while self.unread > 0 {
            let piece = self.arrived().await?;
            let count = piece.len();
            if let Err(cause) = in_time(server.write_all(piece)).await {
                return Ok(Err(cause));
            }
            self.take(count);
        }
        Ok(Ok(server))
    }

    /// A client with default settings wants the server to compile for it.
    pub(super) async fn compile(&mut self, length: u32) -> Result<(&'static str, bool), End> {
        if is_beside_us(&self.peer) {
            match self.pass_on(length).await? {
                Ok(mut server) => {
                    let (mut answers, mut requests) = server.split();
                    let mut answered = false;
                    // The server watches the connection: when the client goes, its compile is ended.
                    let is_gone = tokio::select! {
                        _ = tokio::io::copy(&mut self.reader, &mut requests) => true,
                        _ = relay_responses(&mut answers, &mut self.writer, &mut answered) => false,
                    };
                    if is_gone || answered {
                        return Ok(("relayed", false));
                    }
                    // It has died, or it does not understand the request of another version.
                    self.server_is_silent(&"it hung up without an answer");
                }
                Err(cause) => self.server_is_silent(&cause),
            }
        } else if !self.welcome {
            self.advise_policy();
        } else {
            let message = format!(
                "client compiles without cache peer={}: it has sccache's default settings, which ask the server \
                 to compile; set SCCACHE_CLIENT_SIDE=1 (sccache 0.17 or newer) and unset SCCACHE_LOG there, or use \
                 what `sccache-dock client-env --lane webdav` prints, which every version knows",
                self.peer
            );
            let kind = format!("compile from {}", self.peer.origin());
            self.gateway.refusals.warnings.warn(ADVICE, &kind, &message);
        }
        self.skip().await?;
        self.send(&frame::unhandled_compile()).await?;
        Ok(("unhandled", true))
    }

    fn server_is_silent(&self, cause: &dyn std::fmt::Display) {
        let message = format!(
            "client compiles without cache peer={}: the sccache server does not answer: {cause}",
            self.peer
        );
        let kind = format!("server for {}", self.peer.origin());
        self.gateway.refusals.warnings.warn(ADVICE, &kind, &message);
    }
}

/// Passes the server's responses on, all but the early notices of a finished `.rmeta`. They are a courtesy to Cargo,
/// since the last response repeats them, and an older client takes one for an error and starts its own
/// compiler beside the server's, on the same files. `answered` tells whether anything was passed on.
async fn relay_responses(
    server: &mut (impl AsyncRead + Unpin),
    client: &mut (impl AsyncWrite + Unpin),
    answered: &mut bool,
) -> io::Result<()> {
    loop {
        let length = u64::from(server.read_u32().await?);
        let mut head = Vec::new();
        let tag = length.min(4);
        (&mut *server).take(tag).read_to_end(&mut head).await?;
        let mut rest = (&mut *server).take(length - tag);
        if frame::is_notice(&head) {
            tokio::io::copy(&mut rest, &mut tokio::io::sink()).await?;
        } else {
            *answered = true;
            client
                .write_u32(u32::try_from(length).unwrap_or(u32::MAX))
                .await?;
            client.write_all(&head).await?;
            tokio::io::copy(&mut rest, client).await?;
            client.flush().await?;
        }
    }
}

/// The sccache server has [`RELAY`] for each of its steps.
async fn in_time<T>(step: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    let step = timeout(RELAY, step).await;
    step.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// Does the client live where our sccache server lives, seeing the same files, as the same user? For another user,
/// root too, the server may lack the right to enter the folders, and a server that cannot look at the compiler
/// leaves the client waiting for ever.
fn is_beside_us(peer: &Peer) -> bool {
    match peer {
        Peer::Tcp { .. } => false,
        Peer::Unix { uid, pid } => *pid > 0 && *uid == nix::unistd::geteuid().as_raw(),
    }
}
