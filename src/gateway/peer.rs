//! Who is at the other end of a connection.

use super::access;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

/// Who is at the other end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// Over the port: its address and ours.
    Tcp {
        /// The peer's.
        address: SocketAddr,
        /// Ours, as the peer named it.
        local: IpAddr,
    },
    /// Over the socket.
    Unix {
        /// Its user.
        uid: u32,
        /// Its process, 0 when it lives in another process namespace (outside this container).
        pid: i32,
    },
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Peer::Tcp { address, .. } => write!(f, "{address}"),
            Peer::Unix { uid, pid: 0 } => {
                write!(f, "socket uid={uid} of another container or the host")
            }
            Peer::Unix { uid, pid } => write!(f, "socket uid={uid} pid={pid}"),
        }
    }
}

impl Peer {
    /// Is it this machine, or this container?
    pub(crate) fn is_ourselves(&self) -> bool {
        match self {
            Peer::Unix { .. } => true,
            Peer::Tcp { address, local } => {
                access::is_ourselves(address.ip(), *local, access::is_podmans())
            }
        }
    }

    /// The same for all connections of one client machine (or user): what advice is limited by.
    pub fn origin(&self) -> String {
        match self {
            Peer::Tcp { address, .. } => address.ip().to_canonical().to_string(),
            Peer::Unix { uid, .. } => format!("socket uid={uid}"),
        }
    }
}
