//! Real clients: sccache 0.19.0 by each lane, and ccache.

use crate::attacks::peer::{OwnProtocol, archive};
use crate::harness::{Gateway, Outcome, Process, WRITER, clean, finish, now, sccache_bin};
use sccache_dock::contract::gateway_config::IpcPolicy;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::time::Duration;

/// How a client reaches the cache.
#[derive(Debug, Clone, Copy)]
enum Lane {
    /// WebDAV alone.
    WebDav,
    /// WebDAV behind a disk cache of the client's own, as `client-env` sets it.
    Chain,
    Port,
    Socket,
}

/// A client machine: its own folder, its own sccache settings, its own sources.
struct Client<'a> {
    gateway: &'a Gateway,
    lane: Lane,
    folder: Rc<tempfile::TempDir>,
}

impl<'a> Client<'a> {
    fn new(gateway: &'a Gateway, lane: Lane) -> Client<'a> {
        Client {
            gateway,
            lane,
            folder: Rc::new(tempfile::tempdir().unwrap()),
        }
    }

    /// The same machine by another lane.
    fn by(&self, lane: Lane) -> Client<'a> {
        Client {
            gateway: self.gateway,
            lane,
            folder: Rc::clone(&self.folder),
        }
    }

    fn sccache(&self) -> Command {
        let mut command = clean(sccache_bin());
        command.current_dir(self.folder.path());
        match self.lane {
            Lane::WebDav => command
                .env("SCCACHE_SERVER_UDS", self.folder.path().join("own.sock"))
                .env("SCCACHE_WEBDAV_ENDPOINT", self.gateway.url())
                .env("SCCACHE_WEBDAV_TOKEN", WRITER),
            Lane::Chain => command
                .env("SCCACHE_SERVER_UDS", self.folder.path().join("chain.sock"))
                .env("SCCACHE_DIR", self.folder.path().join("disk"))
                .env("SCCACHE_MULTILEVEL_CHAIN", "disk,webdav")
                .env("SCCACHE_SKIP_CACHE_CHECK", "1")
                .env("SCCACHE_WEBDAV_DISABLE_CREATE_DIR", "1")
                .env("SCCACHE_WEBDAV_ENDPOINT", self.gateway.url())
                .env("SCCACHE_WEBDAV_TOKEN", WRITER),
            Lane::Port => command
                .env("SCCACHE_SERVER_PORT", self.gateway.addr.port().to_string())
                .env("SCCACHE_CLIENT_SIDE", "1"),
            Lane::Socket => command
                .env("SCCACHE_SERVER_UDS", &self.gateway.config.socket)
                .env("SCCACHE_CLIENT_SIDE", "1"),
        };
        command
    }

    /// Compiles a crate whose text is `text`; it must succeed and leave its library.
    fn rustc(&self, text: &str) -> Outcome {
        let source = self.write("lib.rs", text);
        let mut command = self.sccache();
        command.args([
            "rustc",
            "--crate-name",
            "it",
            "--crate-type",
            "rlib",
            "--emit",
            "link",
        ]);
        // A fixed folder, as it is part of the key.
        let target = self.folder.path().join("target");
        let _ = std::fs::remove_dir_all(&target);
        std::fs::create_dir(&target).unwrap();
        let outcome = finish(
            command
                .arg("--out-dir")
                .arg(&target)
                .arg(source.file_name().unwrap()),
        );
        assert_eq!(outcome.code, Some(0), "{}", outcome.output);
        assert!(target.join("libit.rlib").exists());
        outcome
    }

    /// Compiles C; it must succeed and leave its object.
    fn gcc(&self, text: &str) -> Outcome {
        self.write("it.c", text);
        let object = self.folder.path().join("it.o");
        let _ = std::fs::remove_file(&object);
        let outcome = finish(self.sccache().args(["gcc", "-c", "it.c", "-o", "it.o"]));
        assert_eq!(outcome.code, Some(0), "{}", outcome.output);
        assert!(object.exists());
        outcome
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }
}

impl Drop for Client<'_> {
    fn drop(&mut self) {
        if matches!(self.lane, Lane::WebDav | Lane::Chain) {
            finish(self.sccache().arg("--stop-server"));
        }
    }
}

fn counts(gateway: &Gateway) -> (u64, u64, u64) {
    let namespace = gateway
        .status()
        .namespaces
        .remove("default")
        .unwrap_or_default();
    (namespace.hits, namespace.misses, namespace.writes)
}

fn cold_then_hit(lane: Lane) {
    let gateway = Gateway::start();
    let client = Client::new(&gateway, lane);
    client.rustc("pub fn one() -> u32 { 1 }");
    assert_eq!(counts(&gateway), (0, 1, 1), "{lane:?} rustc, cold");
    client.rustc("pub fn one() -> u32 { 1 }");
    assert_eq!(counts(&gateway), (1, 1, 1), "{lane:?} rustc, warm");
    client.gcc("int one(void) { return 1; }");
    assert_eq!(counts(&gateway), (1, 2, 2), "{lane:?} gcc, cold");
    client.gcc("int one(void) { return 1; }");
    assert_eq!(counts(&gateway), (2, 2, 2), "{lane:?} gcc, warm");
    assert_eq!(
        gateway.status().refusals.len(),
        0,
        "{}",
        gateway.process.log()
    );
}

#[test]
fn compiles_hit_over_webdav() {
    cold_then_hit(Lane::WebDav);
}

#[test]
fn compiles_hit_over_the_port() {
    cold_then_hit(Lane::Port);
}

#[test]
fn compiles_hit_over_the_socket() {
    cold_then_hit(Lane::Socket);
}

#[test]
fn rust_stored_by_one_lane_is_hit_by_the_others() {
    let gateway = Gateway::start();
    let text = "pub fn shared() -> u32 { 42 }";
    let client = Client::new(&gateway, Lane::WebDav);
    client.rustc(text);
    assert_eq!(counts(&gateway), (0, 1, 1));
    for (lane, hits) in [(Lane::Port, 1), (Lane::Socket, 2), (Lane::Chain, 3)] {
        client.by(lane).rustc(text);
        assert_eq!(counts(&gateway), (hits, 1, 1), "{lane:?}");
    }
}

/// Where the peer's kernel keeps the second write back until the first one is acknowledged, each put took 40 ms more.
#[test]
fn frame_in_two_writes_is_not_held_up() {
    const PUTS: u32 = 100;
    let gateway = Gateway::start();
    let body = archive(&[7; 14_000]);
    let mut took = [Duration::ZERO; 2];
    for (is_sent_at_once, took) in [true, false].into_iter().zip(&mut took) {
        let mut peer = OwnProtocol::connect(gateway.addr).unwrap();
        peer.0.set_nodelay(is_sent_at_once).unwrap();
        let begin = now();
        for number in 0..PUTS {
            let stored = peer.put_in_two_writes(&format!("{number:064x}"), &body);
            assert!(stored.unwrap());
        }
        *took = begin.elapsed();
    }
    // Half of what all of them would wait.
    let [at_once, held_back] = took;
    assert!(
        held_back < at_once + PUTS * Duration::from_millis(20),
        "{took:?}"
    );
}

#[test]
fn client_with_default_settings_compiles_without_cache() {
    let gateway = Gateway::start();
    let client = Client::new(&gateway, Lane::Port);
    client.write("it.c", "int one(void) { return 1; }");
    for _ in 0..2 {
        let outcome = finish(
            client
                .sccache()
                .env_remove("SCCACHE_CLIENT_SIDE")
                .args(["gcc", "-c", "it.c"]),
        );
        assert_eq!(outcome.code, Some(0), "{}", outcome.output);
        assert!(client.folder.path().join("it.o").exists());
    }
    let line = gateway
        .process
        .wait_for_line("client compiles without cache");
    assert!(
        line.contains("SCCACHE_CLIENT_SIDE=1") && line.contains("client-env"),
        "{line}"
    );
    let lines = gateway
        .process
        .log()
        .lines()
        .filter(|line| line.contains("compiles without cache"))
        .count();
    assert_eq!(lines, 1, "once per peer and minute");
}

#[test]
fn refused_peer_compiles_without_cache() {
    let gateway = Gateway::start_with(|config| config.ipc = IpcPolicy::Off);
    let client = Client::new(&gateway, Lane::Port);
    client.gcc("int one(void) { return 1; }");
    client.rustc("pub fn one() {}");
    let line = gateway
        .process
        .wait_for_line("client compiles without cache");
    assert!(line.contains("SCCACHE_IPC"), "{line}");
    assert_eq!(gateway.status().store.entries, 0);
}

#[test]
fn clients_cannot_stop_the_cache() {
    let gateway = Gateway::start();
    for lane in [Lane::Port, Lane::Socket] {
        let client = Client::new(&gateway, lane);
        let outcome = finish(client.sccache().arg("--stop-server"));
        assert_ne!(outcome.code, Some(0));
        assert!(
            outcome.output.contains("Unexpected server response!"),
            "{}",
            outcome.output
        );
    }
    let line = gateway.process.wait_for_line("refused Shutdown");
    assert!(
        line.contains("peer=") && line.contains("stop the container instead"),
        "{line}"
    );
    assert_eq!(gateway.request("GET", "/healthz", b"").code, 200);
}

/// The supervised sccache server, its storage the gateway.
fn server(gateway: &Gateway) -> Process {
    let mut command = clean(sccache_bin());
    command
        .env("SCCACHE_START_SERVER", "1")
        .env("SCCACHE_NO_DAEMON", "1")
        .env("SCCACHE_LOG", "info")
        .env("SCCACHE_SERVER_UDS", &gateway.config.server_socket)
        .env("SCCACHE_WEBDAV_ENDPOINT", gateway.url())
        .env("SCCACHE_WEBDAV_TOKEN", WRITER)
        .stdin(Stdio::null());
    let server = Process::start(&mut command);
    server.wait_for_line("server started");
    server
}

fn stats(client: &Client<'_>) -> serde_json::Value {
    let outcome = finish(
        client
            .sccache()
            .args(["--show-stats", "--stats-format", "json"]),
    );
    assert_eq!(outcome.code, Some(0), "{}", outcome.output);
    serde_json::from_str(&outcome.output).unwrap()
}

#[test]
fn statistics_are_those_of_the_server() {
    let gateway = Gateway::start();
    let server = server(&gateway);
    let client = Client::new(&gateway, Lane::Port);
    client.gcc("int one(void) { return 1; }");
    client.gcc("int one(void) { return 1; }");
    let found = stats(&client);
    assert_eq!(found["stats"]["requests_executed"], 2, "{found}");
    assert_eq!(
        found["stats"]["cache_hits"]["counts"]["C/C++"], 1,
        "{found}"
    );
    assert_eq!(found["effective_cache_mode"], "ReadWrite");
    assert_eq!(finish(client.sccache().arg("--dist-status")).code, Some(0));
    assert_eq!(finish(client.sccache().arg("--zero-stats")).code, Some(0));
    assert_eq!(stats(&client)["stats"]["requests_executed"], 0);
    drop(server);
    let outcome = finish(client.sccache().arg("--show-stats"));
    assert_ne!(outcome.code, Some(0), "{}", outcome.output);
    client.gcc("int one(void) { return 1; }");
    assert_eq!(counts(&gateway).0, 2);
    gateway.process.wait_for_line("cannot relay RecordStats");
}

#[test]
fn client_beside_the_server_is_served_by_it() {
    let gateway = Gateway::start();
    let _server = server(&gateway);
    let client = Client::new(&gateway, Lane::Socket);
    client.write("it.c", "int beside(void) { return 1; }");
    for hits in 0..2 {
        let outcome = finish(
            client
                .sccache()
                .env_remove("SCCACHE_CLIENT_SIDE")
                .args(["gcc", "-c", "it.c"]),
        );
        assert_eq!(outcome.code, Some(0), "{}", outcome.output);
        assert_eq!(counts(&gateway), (hits, 1, 1));
    }
    assert_eq!(stats(&client)["stats"]["compile_requests"], 2);
    assert!(
        !gateway.process.log().contains("without cache"),
        "{}",
        gateway.process.log()
    );
}

#[test]
fn ccache_hits_over_http() {
    if !crate::harness::has_program("ccache") {
        return;
    }
    let basic = |layout| format!("http://any:{WRITER}@ADDRESS|layout={layout}");
    for remote in [
        basic("subdirs"),
        basic("flat"),
        basic("bazel"),
        format!("http://ADDRESS/ccache|bearer-token={WRITER}"),
    ] {
        let gateway = Gateway::start_with(|config| config.anonymous_read = false);
        let work = tempfile::tempdir().unwrap();
        let compile = |own: &Path| {
            std::fs::write(work.path().join("it.c"), "int one(void) { return 1; }").unwrap();
            let remote = remote.replace("ADDRESS", &gateway.addr.to_string());
            let mut command = clean("ccache");
            command
                .args(["gcc", "-c", "it.c", "-o", "it.o"])
                .current_dir(work.path())
                .env("CCACHE_DIR", own)
                .env("CCACHE_CONFIGPATH", "/dev/null")
                .env("CCACHE_REMOTE_STORAGE", &remote)
                .env("CCACHE_SECONDARY_STORAGE", &remote);
            let outcome = finish(&mut command);
            assert_eq!(outcome.code, Some(0), "{}", outcome.output);
        };
        compile(tempfile::tempdir().unwrap().path());
        let cold = gateway.status().totals;
        assert!(cold.hits == 0 && cold.writes >= 2, "{remote}: {cold:?}");
        compile(tempfile::tempdir().unwrap().path());
        let warm = gateway.status().totals;
        assert!(
            warm.hits >= 2 && warm.writes == cold.writes,
            "{remote}: {warm:?}"
        );
    }
}
