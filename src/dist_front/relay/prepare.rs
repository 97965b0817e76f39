//! Brings a toolchain to a builder and has it unpacked there, before any job that needs it.

use super::builder_client::{BuilderClient, Fault, read, short};
use super::dispatcher::ToolchainPush;
use super::job::{Failure, Slot};
use super::pool::Ended;
use super::spool::Outgoing;
use super::wire::{self, Submitted};
use super::{Front, Relay};
use crate::gateway::disk::Download;
use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::{Response, StatusCode};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, timeout};
use tracing::info;

/// How long a builder may take to send and unpack a toolchain.
const PREPARATION: Duration = Duration::from_secs(10 * 60);

impl Front {
    /// Brings a toolchain to a builder.
    pub(super) async fn prepare(self: &Arc<Front>, push: ToolchainPush) {
        let Some(relay) = self.relay() else { return };
        let ToolchainPush {
            builder,
            nonce,
            toolchain,
            ..
        } = &push;
        let (began, client) = (Instant::now(), relay.builder(builder));
        let client = client.filter(|client| client.nonce == *nonce);
        let prepared = match &client {
            Some(client) => {
                let work = self.bring(relay, client, &push);
                let outcome = tokio::select! {
                    outcome = timeout(PREPARATION, work) => outcome,
                    () = client.stands_still() => Ok(Err("it does not answer".to_owned())),
                };
                outcome.unwrap_or_else(|_| Err("it takes too long".to_owned()))
            }
            None => Err("another process has taken its place".to_owned()),
        };
        match prepared {
            Ok(sent) => {
                info!(
                    "toolchain {toolchain:.8} is ready on builder {builder} sent_bytes={sent} took_ms={}",
                    began.elapsed().as_millis()
                );
                let mut dispatcher = relay.dispatcher();
                dispatcher.pool.prepared(builder, *nonce, toolchain);
            }
            Err(cause) => {
                let message =
                    format!("cannot bring toolchain {toolchain:.8} to builder {builder}: {cause}");
                let died = match &client {
                    Some(client) => self.look_whether_it_died(relay, client).await.0,
                    None => true,
                };
                if died {
                    info!("{message}");
                } else {
                    self.refusals.warn("dist_toolchain", &message);
                }
                let (mut dispatcher, now) = (relay.dispatcher(), Instant::now());
                dispatcher.pool.unprepared(now, builder, *nonce, toolchain);
            }
        }
        self.provide();
    }

    /// Sends the toolchain where it is missing, and has it unpacked; how many bytes were sent.
    async fn bring(
        self: &Arc<Front>,
        relay: &Relay,
        client: &Arc<BuilderClient>,
        push: &ToolchainPush,
    ) -> Result<u64, String> {
        let number = relay.dispatcher().number();
        let toolchain = &push.toolchain;
        relay
            .dispatcher()
            .pool
            .begin(Instant::now(), number, &client.at);
        let mut slot = Slot::new(self, Arc::clone(client), number);
        let text = |fault: Fault| fault.to_string();
        let mut connection = client.connect(Some(number)).await.map_err(text)?;
        let body = short(wire::toolchain(toolchain));
        let assigned = connection.post("assign_job", number, body, true).await;
        let assigned = whole(assigned.map_err(text)?).await?;
        let is_needed = wire::assigned(&assigned).map_err(|cause| cause.to_string())?;
        let mut sent = 0;
        if is_needed {
            let archive = relay.archives.open(toolchain).await;
            let archive = archive.ok_or("the cache does not have it any more")?;
            sent = archive.length;
            let mut connection = client.connect(Some(number)).await.map_err(text)?;
            let body = (sent, outgoing(archive));
            let taken = connection
                .post("submit_toolchain", number, body, true)
                .await;
            let taken = whole(taken.map_err(text)?).await?;
            match wire::taken(&taken).map_err(|cause| cause.to_string())? {
                Submitted::Success => {}
                refused => return Err(format!("it does not take the archive: {refused:?}")),
            }
        }
        let mut connection = client.connect(Some(number)).await.map_err(text)?;
        let body = short(wire::unpacking_job(&push.executable));
        slot.send(toolchain);
        let ran = connection.post("run_job", number, body, true).await;
        let ran = ran.map_err(text)?;
        let outcome = match ran.status() {
            StatusCode::OK => Ok(sent),
            status => {
                let told = read(ran).await.unwrap_or_default();
                match Failure::of(status, &told) {
                    // The compiler ran, so it is unpacked.
                    Failure::Compiler => Ok(sent),
                    Failure::Limit | Failure::Inputs | Failure::Builder(_) => Err(format!(
                        "the job that unpacks it failed: {status} {:.300}",
                        String::from_utf8_lossy(&told)
                    )),
                }
            }
        };
        slot.end(Ended::Job);
        outcome
    }
}

/// The body of a short answer that must be a good one.
async fn whole(answer: Response<Incoming>) -> Result<Bytes, String> {
    let status = answer.status();
    let body = read(answer).await?;
    match status.is_success() {
        true => Ok(body),
        false => Err(format!("{status} {:.300}", String::from_utf8_lossy(&body))),
    }
}

fn outgoing(archive: Download) -> Outgoing {
    let pieces = stream::unfold(archive, |mut archive| async move {
        let piece = archive.next().await?;
        Some((piece.map(Frame::data), archive))
    });
    StreamBody::new(pieces).boxed_unsync()
}
