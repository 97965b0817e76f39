//! sccache's own protocol has no tokens: whoever is not this container itself, or named, reads and writes nothing,
//! whatever stands between it and the port.

use super::peer::{OwnProtocol, archive};
use crate::docker::{Container, run};
use crate::harness::Process;
use crate::site::{Site, free_port, skip};
use std::fs::File;
use std::net::{IpAddr, SocketAddr};
use std::process::Command;
use std::time::Duration;

const KEY: &str = "7777777777777777777777777777777777777777777777777777777777777777";
const GOOD: &[u8] = b"what a builder compiled";
const BAD: &[u8] = b"what an attacker put";

/// Does something with the network of another process.
fn in_network_of<T: Send>(pid: u32, work: impl FnOnce() -> T + Send) -> T {
    let network = File::open(format!("/proc/{pid}/ns/net")).unwrap();
    std::thread::scope(|scope| {
        let there = scope.spawn(|| {
            nix::sched::setns(network, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            work()
        });
        there.join().unwrap()
    })
}

fn pid_of(container: &Container) -> u32 {
    let pid = container.docker.inspect(&container.name, "{{.State.Pid}}");
    pid.parse().unwrap()
}

/// Reads and writes, as whoever may.
fn works(address: SocketAddr) {
    let mut peer = OwnProtocol::connect(address).unwrap();
    assert!(peer.may_write().unwrap(), "{address}");
    assert!(peer.put(KEY, &archive(GOOD)).unwrap(), "{address}");
    assert_eq!(peer.get(KEY).unwrap(), Some(archive(GOOD)), "{address}");
}

/// Everything that a peer without rights can try.
fn refused(address: SocketAddr, who: &str) {
    let mut peer = OwnProtocol::connect(address).unwrap_or_else(|cause| panic!("{who}: {cause}"));
    assert!(
        !peer.may_write().unwrap(),
        "{who} is told that it may write"
    );
    assert_eq!(peer.get(KEY).unwrap(), None, "{who} reads");
    assert!(!peer.put(KEY, &archive(BAD)).unwrap(), "{who} writes");
    // Some would not even ask.
    let mut rude = OwnProtocol::connect(address).unwrap();
    assert!(!rude.put(KEY, &archive(BAD)).unwrap(), "{who} writes");
}

/// A machine of its own, one cable away from this one: a network namespace.
struct Neighbour {
    process: Process,
    /// This machine's addresses as it sees them.
    ours: [String; 2],
}

impl Neighbour {
    fn new() -> Neighbour {
        let process = Process::start(Command::new("unshare").args(["--net", "sleep", "120"]));
        let (pid, third) = (process.id(), std::process::id() % 250);
        // Its own network is there once it has become `sleep`.
        crate::dock::eventually("the neighbour", || {
            let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
            (name.trim() == "sleep").then_some(())
        });
        let ip = |text: String| {
            run(
                Command::new("sh").args(["-ec", &text]),
                Duration::from_secs(20),
            )
            .ok()
        };
        let (near, far) = (format!("sdn{pid}"), format!("sdf{pid}"));
        ip(format!(
            "ip link add {near} type veth peer name {far} netns {pid}
             ip addr add 10.76.{third}.1/24 dev {near}
             ip -6 addr add fd76:{third}::1/64 dev {near} nodad
             ip link set {near} up
             nsenter --net --target {pid} sh -ec '
                 ip addr add 10.76.{third}.2/24 dev {far}
                 ip -6 addr add fd76:{third}::2/64 dev {far} nodad
                 ip link set {far} up'"
        ));
        Neighbour {
            process,
            ours: [format!("10.76.{third}.1"), format!("[fd76:{third}::1]")],
        }
    }

    /// Tries every address of ours at which it reaches the port.
    fn tries(&self, port: u16, reached: [bool; 2]) {
        for (ours, reached) in self.ours.iter().zip(reached) {
            let address: SocketAddr = format!("{ours}:{port}").parse().unwrap();
            in_network_of(self.process.id(), || {
                if reached {
                    refused(address, &format!("a machine that asks {address}"));
                } else {
                    assert!(OwnProtocol::connect(address).is_err(), "{address}");
                }
            });
        }
    }
}

/// What Docker has given a container in its network: "Gateway", the bridge's address, or "IPAddress", its own.
fn given(container: &Container, what: &str) -> IpAddr {
    let format = format!("{{{{range .NetworkSettings.Networks}}}}{{{{.{what}}}}}{{{{end}}}}");
    let found = container.docker.inspect(&container.name, &format);
    found.parse().unwrap()
}

/// A container that has nothing to do with the cache.
fn other(site: &Site) -> Container<'_> {
    let name = site.name("other");
    let sleep = ["--entrypoint=sleep", &site.image, "300"];
    site.docker
        .ok(&[&["run", "--detach", "--name", &name], &sleep[..]].concat());
    Container {
        docker: &site.docker,
        name,
    }
}

fn root_only() -> bool {
    let is_root = nix::unistd::getuid().is_root();
    if !is_root {
        skip::<()>("only root can send from other networks");
    }
    is_root
}

#[test]
fn own_protocol_of_a_published_port_is_closed_to_whoever_comes_by_dockers_proxy() {
    let Some(site) = Site::open().filter(|_| root_only()) else {
        return;
    };
    let neighbour = Neighbour::new();
    let other = other(&site);
    for (published, reached) in [("0.0.0.0", [true, false]), ("[::]", [false, true])] {
        let port = free_port();
        let publish = format!("--publish={published}:{port}:4226");
        let cache = site.container("cache", &[&publish]);
        cache.wait_healthy();
        let inside = pid_of(&cache);
        in_network_of(inside, || works("127.0.0.1:4226".parse().unwrap()));
        neighbour.tries(port, reached);
        let host = if reached[0] { "127.0.0.1" } else { "[::1]" };
        refused(format!("{host}:{port}").parse().unwrap(), "the host");
        let (bridge, direct) = (given(&other, "Gateway"), given(&cache, "IPAddress"));
        in_network_of(pid_of(&other), || {
            if reached[0] {
                let who = "a container by the bridge's address";
                refused(SocketAddr::new(bridge, port), who);
            }
            let who = "a container of the same network";
            refused(SocketAddr::new(direct, 4226), who);
        });
        in_network_of(inside, || {
            let mut owner = OwnProtocol::connect("127.0.0.1:4226".parse().unwrap()).unwrap();
            assert_eq!(owner.get(KEY).unwrap(), Some(archive(GOOD)));
        });
    }
}

#[test]
fn own_protocol_in_the_network_of_the_host_is_for_the_host_alone() {
    let Some(site) = Site::open().filter(|_| root_only()) else {
        return;
    };
    let (neighbour, other, port) = (Neighbour::new(), other(&site), free_port());
    let listen = format!("--env=SCCACHE_LISTEN=[::]:{port}");
    let cache = site.container("cache", &["--network=host", &listen]);
    cache.wait_healthy();
    let bridge = SocketAddr::new(given(&other, "Gateway"), port);
    for ours in ["127.0.0.1", "[::1]"] {
        works(format!("{ours}:{port}").parse().unwrap());
    }
    neighbour.tries(port, [true, true]);
    in_network_of(pid_of(&other), || {
        refused(bridge, "a container by the bridge's address");
    });
    works(format!("127.0.0.1:{port}").parse().unwrap());
}

#[test]
fn script_lets_the_host_in_while_the_port_is_published_on_loopback_alone() {
    let Some(site) = Site::open() else { return };
    let script = site.script("own");
    let address: SocketAddr = format!("127.0.0.1:{}", script.port).parse().unwrap();
    let start = |variables: &[(&str, &str)]| {
        let mut command = script.command();
        command.envs(variables.iter().copied());
        run(
            command.args(["start", "ephemeral"]),
            Duration::from_secs(120),
        )
        .ok();
    };
    start(&[]);
    works(address);
    let log = script.docker.logs(&script.container);
    let container = Container {
        docker: &script.docker,
        name: script.container.clone(),
    };
    let told = format!("its default gateway {}", given(&container, "Gateway"));
    assert!(log.contains(&told), "{log}");
    drop(container);
    for variables in [
        &[("SCCACHE_BIND", "0.0.0.0")][..],
        &[("SCCACHE_IPC", "local")],
    ] {
        start(variables);
        refused(address, &format!("the host with {variables:?}"));
        script.call(&["remove"]).ok();
    }
}
