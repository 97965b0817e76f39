//! Who may speak sccache's own protocol on the port, by address. Pure but for two edges: [`default_gateways`], which reads
//! the kernel's routing table, and [`is_podmans`].

use crate::contract::gateway_config::IpcPolicy;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::LazyLock;

/// May the peer `peer`, connected to our address `local`, speak sccache's own protocol on the TCP port? `podmans` is
/// [`is_podmans`]. `gateways` is asked only when it matters.
pub fn may_speak_ipc(
    policy: &IpcPolicy,
    peer: IpAddr,
    local: IpAddr,
    podmans: bool,
    gateways: impl FnOnce() -> Vec<Ipv4Addr>,
) -> bool {
    let ourselves = is_ourselves(peer, local, podmans);
    let (peer, local) = (peer.to_canonical(), local.to_canonical());
    match policy {
        IpcPolicy::Off => false,
        IpcPolicy::Local => ourselves,
        IpcPolicy::Beyond { bridge, networks } => {
            ourselves
                || networks.iter().any(|network| network.contains(&peer))
                || *bridge
                    && (peer == local || gateways().into_iter().any(|gateway| peer == gateway))
        }
    }
}

/// Is `peer` this very machine (or container)? Its address is loopback or, but in a container of Podman's, the one that it
/// connected to.
pub fn is_ourselves(peer: IpAddr, local: IpAddr, podmans: bool) -> bool {
    let (peer, local) = (peer.to_canonical(), local.to_canonical());
    peer.is_loopback() || (peer == local && !podmans)
}

/// Whether Podman has made this container. Without root, its proxy for published ports connects from inside the
/// container, so that everybody has the container's own address.
pub fn is_podmans() -> bool {
    static FOUND: LazyLock<bool> = LazyLock::new(|| Path::new("/run/.containerenv").exists());
    *FOUND
}

/// Who may speak sccache's own protocol on the port, in words.
pub fn describe_ipc(policy: &IpcPolicy, gateways: impl FnOnce() -> Vec<Ipv4Addr>) -> String {
    let (bridge, networks) = match policy {
        IpcPolicy::Off => return "nobody (SCCACHE_IPC=off)".to_owned(),
        IpcPolicy::Local => (false, &[][..]),
        IpcPolicy::Beyond { bridge, networks } => (*bridge, networks.as_slice()),
    };
    let mut text = "this machine or container itself".to_owned();
    if bridge {
        let gateways: Vec<String> = gateways().iter().map(Ipv4Addr::to_string).collect();
        text += &format!(
            ", and whoever comes from its default gateway {}, which is the Docker host and everybody whom Docker's proxy \
             forwards (\"bridge\" in SCCACHE_IPC: right only where the port is published on loopback)",
            gateways.join(", ")
        );
    }
    for network in networks {
        text += &format!(", and {network}");
    }
    text
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

    #[test]
    fn local_peers_are_loopback_and_ourselves_and_others_must_be_named() {
        let speaks = |policy: &IpcPolicy, peer: &str, podmans| {
            may_speak_ipc(
                policy,
                peer.parse().unwrap(),
                "172.17.0.2".parse().unwrap(),
                podmans,
                || vec![Ipv4Addr::new(172, 17, 0, 1)],
            )
        };
        let check = |policy: &IpcPolicy, peer: &str| speaks(policy, peer, false);
        let bridge = IpcPolicy::Beyond {
            bridge: true,
            networks: Vec::new(),
        };
        let networks = IpcPolicy::Beyond {
            bridge: false,
            networks: vec!["10.0.0.0/8".parse().unwrap()],
        };
        for (peer, local, by_bridge, by_network) in [
            ("127.0.0.1", true, true, true),
            ("127.8.8.8", true, true, true),
            ("::1", true, true, true),
            ("::ffff:127.0.0.1", true, true, true),
            ("172.17.0.2", true, true, true),
            ("172.17.0.1", false, true, false),
            ("::ffff:172.17.0.1", false, true, false),
            ("172.17.0.3", false, false, false),
            ("2001:db8::1", false, false, false),
            ("10.1.2.3", false, false, true),
            ("::ffff:10.1.2.3", false, false, true),
        ] {
            assert_eq!(check(&IpcPolicy::Local, peer), local, "{peer}");
            assert_eq!(check(&bridge, peer), by_bridge, "{peer}");
            assert_eq!(check(&networks, peer), by_network, "{peer}");
            assert!(!check(&IpcPolicy::Off, peer), "{peer}");
        }
        // Everybody who comes through Podman's proxy, and the same where the port is for this machine only.
        for own in ["172.17.0.2", "::ffff:172.17.0.2"] {
            assert!(!speaks(&IpcPolicy::Local, own, true), "{own}");
            assert!(!speaks(&networks, own, true), "{own}");
            assert!(speaks(&bridge, own, true), "{own}");
        }
        assert!(speaks(&IpcPolicy::Local, "127.0.0.1", true));
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
        fn any_table_is_read(table in ".{0,200}") {
            let _ = parse_routes(&table);
        }
    }
}
