//! What the gateway receives at start: its listeners, and the socket to the supervisor, which tells it when to stop.

use crate::base::listeners;
use crate::contract::gateway_config::{Config, IpcPolicy};
use crate::contract::service::REREAD;
use crate::dist_front::SupervisorEnds;
use std::io;
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;
use tracing::{info, warn};

/// Sockets to which clients connect.
#[derive(Debug)]
pub struct Listeners {
    /// The cache port.
    pub tcp: TcpListener,
    /// The scheduler's reverse proxy, in the distributed modes.
    pub dist: Option<TcpListener>,
    /// The socket for clients on the same machine.
    pub unix: Option<UnixListener>,
}

/// Binds the configured listeners.
pub(super) fn bind(config: &Config) -> io::Result<Listeners> {
    let tcp = listeners::bind_tcp(config.listen)?;
    let dist = config.dist.as_ref();
    let dist = dist
        .map(|dist| listeners::bind_tcp(dist.listen))
        .transpose()?;
    let unix = match config.ipc {
        IpcPolicy::Off => None,
        IpcPolicy::Local | IpcPolicy::Beyond { .. } => {
            Some(listeners::bind_unix(&config.socket, 0o666)?)
        }
    };
    Ok(Listeners { tcp, dist, unix })
}

/// Receives the supervisor's listeners, and returns them with the socket to the supervisor.
pub(super) fn inherited(config: &Config) -> io::Result<(Listeners, UnixStream)> {
    let supervisor = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    let mut sockets = listeners::receive(&supervisor)?.into_iter();
    let missing = |which| io::Error::other(format!("cannot receive the listeners: {which}"));
    let tcp = sockets.next();
    let tcp = tcp.ok_or_else(|| missing("the message holds none"))?;
    let dist = match config.dist {
        None => None,
        Some(_) => Some(
            sockets
                .next()
                .ok_or_else(|| missing("that of the scheduler's front is not among them"))?,
        ),
    };
    let unix = sockets.next().map(UnixListener::from);
    Ok((
        Listeners {
            tcp: TcpListener::from(tcp),
            dist: dist.map(TcpListener::from),
            unix,
        },
        supervisor,
    ))
}

/// Completes when the gateway should stop. Reports readiness when it is first polled, by the accept loop. Until then it
/// passes bytes between the supervisor and the scheduler's reverse proxy, and notifies `asked` of each request to
/// reload files.
pub(super) fn shutdown(
    supervisor: Option<UnixStream>,
    mut ends: SupervisorEnds,
    asked: Arc<Notify>,
) -> io::Result<impl Future<Output = ()>> {
    let mut term = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let supervisor = match supervisor {
        None => None,
        Some(stream) => {
            stream.set_nonblocking(true)?;
            Some(tokio::net::UnixStream::from_std(stream)?)
        }
    };
    Ok(async move {
        let supervisor_gone = async {
            let Some(supervisor) = supervisor else {
                return std::future::pending().await;
            };
            let (mut hear, mut say) = supervisor.into_split();
            if let Err(cause) = say.write_all(b"R").await {
                warn!("cannot report readiness: {cause}");
            }
            let mut byte = [0];
            loop {
                tokio::select! {
                    read = hear.read(&mut byte) => match read {
                        Ok(1) if byte == [REREAD] => asked.notify_one(),
                        Ok(1) => { let _ = ends.hear.send(byte[0]); }
                        Ok(_) | Err(_) => return,
                    },
                    Some(word) = ends.said.recv() => {
                        if let Err(cause) = say.write_all(&[word]).await {
                            warn!("cannot report readiness: {cause}");
                        }
                    }
                }
            }
        };
        tokio::select! {
            _ = term.recv() => info!("stopping signal=TERM"),
            _ = interrupt.recv() => info!("stopping signal=INT"),
            () = supervisor_gone => info!("stopping because the supervisor is gone"),
        }
    })
}
