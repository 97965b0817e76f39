//! Whether anything listens at an address.

use super::Check;
use crate::client::endpoint::Endpoint;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::time::Duration;

/// Time limit for connecting.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// Whether anything accepts connections at `endpoint`.
pub(super) fn connect(what: &str, endpoint: &Endpoint, checks: &mut Vec<Check>) -> bool {
    let place = endpoint.place();
    let addresses: Vec<SocketAddr> = match (endpoint.host.as_str(), endpoint.port).to_socket_addrs()
    {
        Ok(addresses) => addresses.collect(),
        Err(error) => {
            let found = format!("cannot resolve {}: {error}", endpoint.host);
            let hint =
                "check the name, or use the address; in a container, join the gateway's network";
            checks.push(Check::fail(what, found, hint));
            return false;
        }
    };
    let mut last = None;
    for address in &addresses {
        match TcpStream::connect_timeout(address, CONNECT_TIMEOUT) {
            Ok(_) => {
                checks.push(Check::ok(what, format!("{place} accepts connections")));
                return true;
            }
            Err(error) => last = Some(error),
        }
    }
    let error = last.unwrap_or_else(|| ErrorKind::NotFound.into());
    let hint = match error.kind() {
        ErrorKind::ConnectionRefused => after_refusal(&addresses),
        ErrorKind::TimedOut => {
            "packets are dropped: check the address, the firewall and the published interface"
        }
        ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => {
            "there is no route: check the address and the network"
        }
        _ => "check the endpoint",
    };
    checks.push(Check::fail(
        what,
        format!("cannot connect to {place}: {error}"),
        hint,
    ));
    false
}

/// What to do if nothing listens.
pub(super) fn after_refusal(addresses: &[SocketAddr]) -> &'static str {
    if addresses.iter().all(|address| address.ip().is_loopback()) {
        "nothing listens there: start the container, and check the published port"
    } else {
        "nothing listens at this address: start the container; its port is published on loopback alone, unless it is \
         started with SCCACHE_BIND=0.0.0.0 or, for the containers of its host, with the bridge's address"
    }
}
