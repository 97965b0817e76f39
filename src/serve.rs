//! The gateway's process: the cache port and, in the distributed modes, the cluster port.
//!
//! Runs as a supervised service: `sccache-dock-gateway --config FILE`. The supervisor writes the file and passes the
//! listeners, which it keeps open across restarts of the gateway.

pub mod handover;

use crate::base::config_file;
use crate::contract::gateway_config::Config;
use crate::dist_front::{self, Front, SupervisorChannel};
use crate::explain::protocol::Served;
use crate::gateway::{Gateway, accept, access, disk, files, upstream};
use crate::store::{self, Store};
use handover::Listeners;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, Semaphore, watch};
use tokio::time::timeout;
use tracing::{info, warn};

/// Why the gateway cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration file.
    #[error(transparent)]
    Config(#[from] config_file::Error),
    /// The store's folder cannot be used.
    #[error("cannot open the store in \"{}\": {cause}", path.display())]
    Store {
        /// The folder.
        path: PathBuf,
        /// The cause.
        cause: store::Error,
    },
    /// A file that the gateway reads while it runs is not readable for its user.
    #[error("cannot read \"{}\": {cause}\nhint: the gateway runs as uid {uid}, which must be allowed to read it", path.display())]
    Forbidden {
        /// The file.
        path: PathBuf,
        /// The system's error.
        cause: io::Error,
        /// Our user.
        uid: u32,
    },
    /// The listeners are missing.
    #[error("{0}")]
    Listen(io::Error),
    /// The upstream's configuration is not usable.
    #[error("{0}")]
    Upstream(upstream::Error),
    /// The runtime or its signal handlers could not be set up.
    #[error("cannot start the gateway: {0}")]
    Start(io::Error),
}

impl Error {
    /// Whether another try with the same configuration file would fail too.
    pub fn is_in_the_file(&self) -> bool {
        matches!(
            self,
            Error::Config(_) | Error::Forbidden { .. } | Error::Upstream(_)
        )
    }
}

/// Serves the cache until SIGTERM, SIGINT or, with `inherit`, the end of the supervisor.
///
/// With `inherit`, the listeners come from the Unix socket on standard input. The byte `R` is sent back over it as soon
/// as connections are accepted.
pub fn serve(config: &Path, inherit: bool) -> Result<(), Error> {
    crate::base::log::to_stderr();
    let config: Config = config_file::read(config)?;
    files::check_rights(&config).map_err(|(path, cause)| Error::Forbidden {
        path,
        cause,
        uid: nix::unistd::geteuid().as_raw(),
    })?;
    let (listeners, supervisor) = if inherit {
        let (listeners, supervisor) = handover::inherited(&config).map_err(Error::Listen)?;
        (listeners, Some(supervisor))
    } else {
        (handover::bind(&config).map_err(Error::Listen)?, None)
    };
    if let Some(config) = &config.upstream {
        upstream::operator(config).map_err(Error::Upstream)?;
    }
    let options = store::Options {
        dir: config.store_dir.clone(),
        budget_bytes: config.budget_bytes,
        policies: config.policies.clone(),
    };
    let store = Store::open(options).map_err(|cause| Error::Store {
        path: config.store_dir.clone(),
        cause,
    })?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(disk::threads())
        .enable_all()
        .build()
        .map_err(Error::Start)?;
    let served = runtime.block_on(async {
        let (talk, ends) = dist_front::talk();
        let asked = Arc::<Notify>::default();
        let shutdown =
            handover::shutdown(supervisor, ends, Arc::clone(&asked)).map_err(Error::Start)?;
        run(listeners, config, store, (talk, asked), shutdown)
            .await
            .map_err(Error::Start)
    });
    // A store call on a disk that hangs must not delay the stop.
    runtime.shutdown_timeout(Duration::from_secs(1));
    served
}

/// Tells the build how it was served, and leaves nothing behind: nobody is there to do it if the build was killed.
fn say(served: &Served, config: &Config) {
    let said = serde_json::to_string(served).unwrap_or_default();
    let _ = writeln!(io::stdout(), "{said}");
    let _ = fs::remove_dir_all(&config.store_dir);
    if let Some(upstream) = &config.upstream {
        let _ = fs::remove_file(&upstream.queue);
        let _ = fs::remove_dir(upstream.queue.parent().unwrap_or(Path::new("")));
    }
}

/// Serves `store` on `listeners` until `shutdown` completes, then lets requests in flight finish within the configured
/// `drain` time. Files are reloaded when `asked` is notified. An error means that the listeners cannot be used at all.
pub async fn run(
    listeners: Listeners,
    config: Config,
    store: Store,
    (supervisor, asked): (SupervisorChannel, Arc<Notify>),
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    listeners.tcp.set_nonblocking(true)?;
    let tcp = tokio::net::TcpListener::from_std(listeners.tcp)?;
    let unix = match listeners.unix {
        None => None,
        Some(unix) => {
            unix.set_nonblocking(true)?;
            Some(tokio::net::UnixListener::from_std(unix)?)
        }
    };
    info!("listening on {}", tcp.local_addr()?);
    if let Some(path) = unix.as_ref().and_then(|unix| unix.local_addr().ok()) {
        info!(
            "listening on {}",
            path.as_pathname()
                .unwrap_or(Path::new("an unnamed socket"))
                .display()
        );
    }
    info!(
        "sccache's own protocol, which has no tokens, is for {}",
        access::describe_ipc(&config.ipc, access::default_gateways)
    );
    let drain = config.drain;
    let limits = accept::limits(config.dist.is_some());
    store.keep_files(limits.kept_files);
    let most = limits.connections;
    let dist = config.dist.clone();
    let gateway = Gateway::new(config, store, asked, most)?;
    let shared = dist_front::Shared {
        identity: Arc::clone(&gateway.identity),
        refusals: Arc::clone(&gateway.refusals),
        disk: gateway.disk.clone(),
    };
    let front = dist.map(|dist| {
        let front = Front::new(dist, supervisor.say, limits.cluster_connections, shared);
        front.map(Arc::new)
    });
    let front = front.transpose()?;
    let gateway = match &front {
        Some(front) => gateway.with_cluster(front.collector(), {
            let front = Arc::clone(front);
            Box::new(move || front.status())
        }),
        None => gateway,
    };
    let gateway = Arc::new(gateway);
    gateway.start();
    let slots = Arc::new(Semaphore::new(most));
    let (stop, stopping) = watch::channel(false);
    let fronting = match (listeners.dist, front) {
        (Some(listener), Some(front)) => {
            listener.set_nonblocking(true)?;
            let listener = tokio::net::TcpListener::from_std(listener)?;
            info!("scheduler's front on {}", listener.local_addr()?);
            let heard = supervisor.heard;
            let serving = dist_front::serve(front, listener, heard, stopping.clone());
            Some(tokio::spawn(serving))
        }
        (None, _) | (_, None) => None,
    };
    let unix = unix.as_ref();
    accept::accept_until(shutdown, &gateway, &tcp, unix, &slots, &stopping).await;
    accept::accept_waiting(&gateway, &tcp, unix, &slots, &stopping).await;
    drop((tcp, unix));
    stop.send_replace(true);
    let all = u32::try_from(most).unwrap_or(u32::MAX);
    let drained = async {
        // Neither fails: the semaphore is never closed, and a panicked task has nothing to drain.
        let _ = slots.acquire_many(all).await;
        if let Some(fronting) = fronting {
            let _ = fronting.await;
        }
    };
    let drained = timeout(drain, drained).await;
    if let Some(served) = gateway.end().await {
        say(&served, &gateway.config);
    }
    match drained {
        Ok(()) => info!("drained"),
        Err(_) => warn!(
            "stopped with {} connections still busy after {drain:?}",
            most - slots.available_permits()
        ),
    }
    Ok(())
}
