//! Which certificate a connection to the scheduler's port gets: the operator's by its name, ours by an address.

use super::Relay;
use crate::base::time::unix_seconds;
use crate::gateway::tls::{Tls, failed};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::server::Acceptor;
use tokio_rustls::server::TlsStream;

/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Puts TLS around a new connection; else the words for the log.
///
/// A client that wants the URL's server asks by its name (SNI). One that asks for none wants an address: the relay's,
/// unless the operator's certificate is for addresses too.
pub(in crate::dist_front) async fn shake_hands(
    operators: Option<&Tls>,
    relay: Option<&Relay>,
    stream: TcpStream,
    local: IpAddr,
) -> Result<TlsStream<TcpStream>, String> {
    let handshake = async {
        let start = LazyConfigAcceptor::new(Acceptor::default(), stream).await;
        let start = start.map_err(|cause| cause.to_string())?;
        let is_named = start.client_hello().server_name().is_some();
        let config = choose(operators, relay, is_named, local.to_canonical())?;
        let shaken = start.into_stream(config).await;
        shaken.map_err(|cause| failed(&cause))
    };
    match timeout(HANDSHAKE, handshake).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(cause)) => Err(cause),
        Err(_) => Err("the handshake took too long".to_owned()),
    }
}

fn choose(
    operators: Option<&Tls>,
    relay: Option<&Relay>,
    is_named: bool,
    local: IpAddr,
) -> Result<Arc<ServerConfig>, String> {
    let operators = operators.and_then(Tls::current);
    let is_for_it = operators.as_ref().is_some_and(|certificate| {
        let addresses = &certificate.addresses;
        is_named || addresses.contains(&local) || (!addresses.is_empty() && !local.is_loopback())
    });
    match (operators, relay) {
        (Some(certificate), _) if is_for_it => Ok(certificate.config()),
        (_, Some(relay)) if !is_named => {
            relay.authority.announce(local);
            let config = relay.authority.config(unix_seconds());
            config.map_err(|cause| format!("no certificate can be made: {cause}"))
        }
        (Some(certificate), None) => Ok(certificate.config()),
        (_, _) => Err(
            "the client asks for TLS by a name, and there is no usable certificate (hint: set SCCACHE_TLS_CERT; the \
             status says what is wrong with the one that is set)"
                .to_owned(),
        ),
    }
}
