//! The services as the supervisor sees them, for the status page.

use crate::contract::control;
use crate::contract::control::Response;
use crate::gateway::page;
use std::path::PathBuf;
use std::time::Duration;
use tokio::sync::Mutex;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, timeout};

/// How long an answer is good: however many look at the page, the supervisor is asked once in this time.
const FRESH: Duration = Duration::from_secs(1);
/// How long a page waits for an answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// Asks the supervisor, over the socket on which it takes questions.
#[derive(Debug)]
pub(super) struct Services {
    socket: Option<PathBuf>,
    // Held while somebody asks; the others wait for that answer.
    last: Mutex<Option<(Instant, page::Services)>>,
}

impl Services {
    /// Without a socket there is no supervisor.
    pub(super) fn new(socket: Option<PathBuf>) -> Services {
        Services {
            socket,
            last: Mutex::default(),
        }
    }

    /// What it says now, or has said just before.
    pub(super) async fn ask(&self) -> page::Services {
        let Some(socket) = self.socket.clone() else {
            return page::Services::Unsupervised;
        };
        let mut last = self.last.lock().await;
        if let Some((at, services)) = last.as_ref()
            && at.elapsed() < FRESH
        {
            return services.clone();
        }
        let asked = timeout(
            PATIENCE,
            spawn_blocking(move || control::ask(&socket, "status")),
        )
        .await;
        let services = match asked {
            Ok(Ok(Ok(Response::Status(report)))) => page::Services::Known(report),
            _ => page::Services::Silent,
        };
        *last = Some((Instant::now(), services.clone()));
        services
    }
}
