//! What connections do when the gateway is about to stop.

use std::time::Duration;
use tokio::sync::watch;
use tokio::time::sleep;

/// How long a connection without a request may still bring one once we are stopping.
pub(super) const LAST_WORDS: Duration = Duration::from_millis(250);

/// Ends when what a client has sent before we began to stop must have arrived. A connection whose greeting is not
/// answered fails the build of a client that speaks sccache's own protocol; one that was greeted survives its end.
pub(crate) async fn a_moment_after(stopping: &mut watch::Receiver<bool>) {
    // The sender lives as long as the gateway.
    let _ = stopping.wait_for(|stopping| *stopping).await;
    sleep(LAST_WORDS).await;
}
