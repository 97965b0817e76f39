//! `build`, `explain` and `prefetch`: real builds of more than a hundred crates against a real gateway, by the real sccache.

mod causes;
mod cold;
mod helper;
mod history;

use crate::harness::{Gateway, Outcome, WRITER};
use crate::machine::Machine;
use serde_json::Value;
use std::path::Path;

/// Crates without dependencies beside those that the causes are about.
const LEAVES: usize = 100;

/// A client with a checkout of many crates.
struct Client {
    machine: Machine,
    token: String,
    endpoint: String,
    /// Variables of the client's own level.
    level: String,
}

impl Client {
    fn new(gateway: &Gateway) -> Client {
        Client {
            machine: Machine::new(),
            token: WRITER.to_owned(),
            endpoint: gateway.url(),
            level: String::new(),
        }
    }

    /// With a level on its own disk.
    fn with_disk(mut self) -> Client {
        let folder = self.machine.work().join("../own-level");
        self.level = format!(
            "export SCCACHE_MULTILEVEL_CHAIN=disk,webdav SCCACHE_DIR={}\n",
            folder.display()
        );
        self
    }

    /// Runs `script` in the checkout, with what client-env sets.
    fn sh(&self, script: &str) -> Outcome {
        self.machine.sh(&self.script(script))
    }

    fn script(&self, script: &str) -> String {
        let Client {
            machine,
            token,
            endpoint,
            level,
        } = self;
        let socket = machine.work().join("../s");
        format!(
            "export SCCACHE_WEBDAV_ENDPOINT={endpoint} SCCACHE_WEBDAV_TOKEN={token} SCCACHE_SKIP_CACHE_CHECK=1\n\
             export CARGO_INCREMENTAL=0 SCCACHE_WEBDAV_DISABLE_CREATE_DIR=1 SCCACHE_SERVER_UDS={} SCCACHE_CONF=/nonexistent\n\
             {level}{script}",
            socket.display()
        )
    }

    /// A build from nothing, after `before`; gives its report.
    #[track_caller]
    fn build(&self, before: &str, arguments: &str) -> Value {
        let outcome = self.sh(&format!(
            "rm -rf target; {before}\n\
             sccache-dock build --report json=report.json -- cargo check --offline --quiet --workspace {arguments}"
        ));
        assert_eq!(outcome.code, Some(0), "{}", outcome.output);
        read(&self.machine.work().join("report.json"))
    }

    fn stop_daemon(&self) {
        self.sh("sccache --stop-server");
    }
}

fn read(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// `base` <- `mid` <- `top`, a crate with a feature, a program, and many without dependencies.
fn checkout(machine: &Machine) {
    let library = |name: &str, more: &str, source: &str| {
        let manifest = format!(
            "[package]\nname = \"{name}\"\nversion = \"0.1.0\"\nedition = \"2021\"\n{more}"
        );
        machine.write(&format!("crates/{name}/Cargo.toml"), &manifest);
        machine.write(&format!("crates/{name}/src/lib.rs"), source);
    };
    machine.write(
        "Cargo.toml",
        "[workspace]\nmembers = [\"crates/*\"]\nresolver = \"2\"\n",
    );
    let on = |name: &str| format!("[dependencies]\n{name} = {{ path = \"../{name}\" }}\n");
    library("base", "", "mod other;\npub use other::base;\n");
    machine.write("crates/base/src/other.rs", "pub fn base() -> u32 { 1 }\n");
    library("mid", &on("base"), "pub fn mid() -> u32 { base::base() }\n");
    library("top", &on("mid"), "pub fn top() -> u32 { mid::mid() }\n");
    library(
        "featured",
        "[features]\nextra = []\n",
        "pub fn featured() {}\n",
    );
    library("program", "", "");
    machine.write("crates/program/src/main.rs", "fn main() {}\n");
    std::fs::remove_file(machine.work().join("crates/program/src/lib.rs")).unwrap();
    for number in 0..LEAVES {
        let source = format!("pub fn leaf() -> usize {{ {number} }}\n");
        library(&format!("leaf{number}"), "", &source);
    }
}

/// The outcome of a crate's compile, and the reason where it was no hit.
#[track_caller]
fn told<'a>(report: &'a Value, name: &str) -> (&'a str, &'a str) {
    let row = row(report, name);
    let why = row["why"]["reason"].as_str().unwrap_or_default();
    (row["outcome"].as_str().unwrap(), why)
}

#[track_caller]
fn row<'a>(report: &'a Value, name: &str) -> &'a Value {
    let rows = report["rows"].as_array().unwrap();
    let found = rows.iter().find(|row| row["name"] == name);
    found.unwrap_or_else(|| panic!("no {name} in {report:#}"))
}
