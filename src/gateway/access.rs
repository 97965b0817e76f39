//! Who may do what: tokens of HTTP requests and peers of sccache's own protocol. Pure but for one edge,
//! [`default_gateways`], which reads the kernel's routing table.

use crate::gateway::config::{Config, IpcPolicy};
use crate::secret::Secret;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use std::net::{IpAddr, Ipv4Addr};
use subtle::{Choice, ConstantTimeEq};

/// What an HTTP request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Reads blobs, metrics or the status.
    Read,
    /// Changes the store.
    Write,
}

/// The answer to a request with given credentials.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Go on.
    Allowed,
    /// No token, or one that nobody handed out: 401.
    Unauthorized,
    /// A token that may only read asked to write: 403.
    Forbidden,
}

/// The tokens, as digests of one length: comparing them leaks neither a token's text nor its length.
#[derive(Debug)]
pub struct Access {
    writers: Vec<[u8; 32]>,
    readers: Vec<[u8; 32]>,
    anonymous_read: bool,
}

impl Access {
    /// Takes over the tokens of `config`.
    pub fn new(config: &Config) -> Access {
        let digests = |tokens: &[Secret]| {
            tokens
                .iter()
                .map(|token| digest(token.reveal().as_bytes()))
                .collect()
        };
        Access {
            writers: digests(&config.write_tokens),
            readers: digests(&config.read_tokens),
            anonymous_read: config.anonymous_read,
        }
    }

    /// Judges an `Authorization` header: `Bearer TOKEN`, or `Basic` with any user name and the token as password.
    pub fn check(&self, authorization: Option<&[u8]>, need: Need) -> Verdict {
        let token = authorization.and_then(token).map(|token| digest(&token));
        let listed = |digests: &[[u8; 32]]| {
            token.is_some_and(|token| {
                // Every digest is compared, so that the time says nothing about which one matched.
                let found = digests
                    .iter()
                    .fold(Choice::from(0), |found, one| found | one.ct_eq(&token));
                bool::from(found)
            })
        };
        let (writer, reader) = (listed(&self.writers), listed(&self.readers));
        match need {
            _ if writer => Verdict::Allowed,
            Need::Read if reader || self.anonymous_read => Verdict::Allowed,
            Need::Write if reader => Verdict::Forbidden,
            Need::Read | Need::Write => Verdict::Unauthorized,
        }
    }
}

fn digest(token: &[u8]) -> [u8; 32] {
    *blake3::hash(token).as_bytes()
}

/// The token of an `Authorization` header.
fn token(header: &[u8]) -> Option<Vec<u8>> {
    let space = header.iter().position(|&byte| byte == b' ')?;
    let (scheme, rest) = (&header[..space], header[space..].trim_ascii());
    if scheme.eq_ignore_ascii_case(b"bearer") {
        return Some(rest.to_vec());
    }
    if !scheme.eq_ignore_ascii_case(b"basic") {
        return None;
    }
    let decoded = STANDARD.decode(rest).ok()?;
    let colon = decoded.iter().position(|&byte| byte == b':')?;
    Some(decoded[colon + 1..].to_vec())
}

/// May the peer `peer`, connected to our address `local`, speak sccache's own protocol on the TCP port?
/// `gateways` is asked only when it matters.
pub fn may_speak_ipc(
    policy: &IpcPolicy,
    peer: IpAddr,
    local: IpAddr,
    gateways: impl FnOnce() -> Vec<Ipv4Addr>,
) -> bool {
    let (peer, local) = (peer.to_canonical(), local.to_canonical());
    // A peer with the address that it connected to is this very machine (or container).
    let ourselves = peer.is_loopback() || peer == local;
    match policy {
        IpcPolicy::Off => false,
        IpcPolicy::Local => {
            ourselves
                || gateways()
                    .iter()
                    .any(|gateway| peer == IpAddr::V4(*gateway))
        }
        IpcPolicy::Networks(networks) => {
            ourselves || networks.iter().any(|network| network.contains(&peer))
        }
    }
}

/// The default gateways of this network namespace: a published port shows the host under that address.
pub fn default_gateways() -> Vec<Ipv4Addr> {
    std::fs::read_to_string("/proc/net/route")
        .map(|table| parse_routes(&table))
        .unwrap_or_default()
}

/// The gateways of the default routes in the text of `/proc/net/route`.
pub fn parse_routes(table: &str) -> Vec<Ipv4Addr> {
    const FLAG_GATEWAY: u32 = 0x2;
    let mut gateways = Vec::new();
    for line in table.lines().skip(1) {
        let columns: Vec<&str> = line.split_ascii_whitespace().collect();
        let (Some(destination), Some(gateway), Some(flags), Some(mask)) = (
            hex(&columns, 1),
            hex(&columns, 2),
            hex(&columns, 3),
            hex(&columns, 7),
        ) else {
            continue;
        };
        if destination == 0 && mask == 0 && flags & FLAG_GATEWAY != 0 && gateway != 0 {
            // The kernel prints the address's bytes as one number of the machine's own byte order.
            gateways.push(Ipv4Addr::from(gateway.to_ne_bytes()));
        }
    }
    gateways
}

fn hex(columns: &[&str], index: usize) -> Option<u32> {
    u32::from_str_radix(columns.get(index)?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn access(anonymous_read: bool) -> Access {
        Access {
            writers: vec![digest(b"writer"), digest(b"writer2")],
            readers: vec![digest(b"reader")],
            anonymous_read,
        }
    }

    fn basic(user: &str, password: &str) -> String {
        format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
    }

    #[test]
    fn matrix_of_credentials_and_needs() {
        use Verdict::{Allowed, Forbidden, Unauthorized};
        let matrix = [
            (Some("Bearer writer".to_owned()), Allowed, Allowed),
            (Some("bearer  writer2".to_owned()), Allowed, Allowed),
            (Some(basic("any:one", "writer")), Unauthorized, Unauthorized),
            (Some(basic("anyone", "writer")), Allowed, Allowed),
            (Some(basic("", "reader")), Allowed, Forbidden),
            (Some("Bearer reader".to_owned()), Allowed, Forbidden),
            (Some("Bearer write".to_owned()), Unauthorized, Unauthorized),
            (Some("Bearer ".to_owned()), Unauthorized, Unauthorized),
            (Some("Basic !!".to_owned()), Unauthorized, Unauthorized),
            (Some("Digest writer".to_owned()), Unauthorized, Unauthorized),
            (None, Unauthorized, Unauthorized),
        ];
        for (header, read, write) in matrix {
            let bytes = header.as_deref().map(str::as_bytes);
            assert_eq!(
                access(false).check(bytes, Need::Read),
                read,
                "{header:?} reads"
            );
            assert_eq!(
                access(false).check(bytes, Need::Write),
                write,
                "{header:?} writes"
            );
            assert_eq!(
                access(true).check(bytes, Need::Read),
                Allowed,
                "{header:?} reads anonymously"
            );
            assert_eq!(
                access(true).check(bytes, Need::Write),
                write,
                "{header:?} writes"
            );
        }
    }

    #[test]
    fn local_peers_are_loopback_ourselves_and_the_default_gateway() {
        let gateways = || vec![Ipv4Addr::new(172, 17, 0, 1)];
        let check = |policy: &IpcPolicy, peer: &str| {
            may_speak_ipc(
                policy,
                peer.parse().unwrap(),
                "172.17.0.2".parse().unwrap(),
                gateways,
            )
        };
        let local = IpcPolicy::Local;
        for peer in [
            "127.0.0.1",
            "127.8.8.8",
            "::1",
            "::ffff:127.0.0.1",
            "172.17.0.1",
            "::ffff:172.17.0.1",
            "172.17.0.2",
        ] {
            assert!(check(&local, peer), "{peer}");
            assert!(!check(&IpcPolicy::Off, peer), "{peer}");
        }
        for peer in ["172.17.0.3", "10.0.0.1", "::ffff:10.0.0.1", "2001:db8::1"] {
            assert!(!check(&local, peer), "{peer}");
        }
        let networks = IpcPolicy::Networks(vec!["10.0.0.0/8".parse().unwrap()]);
        assert!(
            check(&networks, "10.1.2.3")
                && check(&networks, "::ffff:10.1.2.3")
                && check(&networks, "127.0.0.1")
        );
        assert!(!check(&networks, "172.17.0.1"));
    }

    #[test]
    fn default_gateway_is_read_from_the_routing_table() {
        let table = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
            eth0\t00000000\t010011AC\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
            eth0\t000011AC\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0\n\
            eth0\t00000000\t00000000\t0001\t0\t0\t0\t00000000\t0\t0\t0\n";
        let expected = u32::from_str_radix("010011AC", 16).unwrap().to_ne_bytes();
        assert_eq!(parse_routes(table), [Ipv4Addr::from(expected)]);
    }

    proptest! {
        #[test]
        fn any_header_and_any_table_are_judged(header in proptest::collection::vec(any::<u8>(), 0..64), table in ".{0,200}") {
            let _ = parse_routes(&table);
            prop_assert_ne!(access(false).check(Some(&header), Need::Write), Verdict::Allowed);
        }
    }
}
