//! Addresses at which others reach this machine.

use super::values::ValueError;
use std::net::{IpAddr, SocketAddr};

/// Address at which clients and the scheduler reach the builder; sccache accepts no host name here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PublicAddr {
    /// Its address.
    pub ip: IpAddr,
    /// Defaults to the builder's own port.
    pub port: Option<u16>,
}

/// How others come to a builder.
#[derive(Debug, Clone, Copy)]
pub(super) enum Reached {
    At(PublicAddr),
    ByItsOwnConnections,
}

/// `none`, or an address.
pub(super) fn reached(text: &str) -> Result<Reached, ValueError> {
    match text {
        "none" => Ok(Reached::ByItsOwnConnections),
        text => public_addr(text).map(Reached::At),
    }
}

/// `IP` or `IP:PORT`.
pub(super) fn public_addr(text: &str) -> Result<PublicAddr, ValueError> {
    let parsed = match text.parse::<SocketAddr>() {
        Ok(address) => Some(PublicAddr {
            ip: address.ip(),
            port: Some(address.port()),
        }),
        Err(_) => text.parse().ok().map(|ip| PublicAddr { ip, port: None }),
    };
    match parsed {
        Some(address) if address.ip.is_unspecified() || address.port == Some(0) => {
            Err(ValueError::hint(
                "is not an address that others could connect to",
                "write the address that clients reach this machine at, 192.168.1.7:10501",
            ))
        }
        Some(address) => Ok(address),
        None => Err(ValueError::hint(
            "is not an IP address: a builder's certificate holds an address, never a name",
            "write the address that the name stands for, such as 192.168.1.7 or 192.168.1.7:10501",
        )),
    }
}
