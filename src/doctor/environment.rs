//! Judges a client's environment. Pure.

use super::{Check, Environment};
use crate::client::cargo_config;
use crate::client::endpoint::{Endpoint, GATEWAY_PORT};
use crate::client::{Lane, NO_BASEDIRS, SOCKET_PATH_MAX};
use crate::config::variables::{SCCACHE_OWN, instead_of, suggest};
use crate::contract::sccache::{SAFE_BASEDIRS, Version};
use crate::explain::print::is_in_keys;
use std::collections::BTreeMap;
use std::path::Path;

const WHOLE_SET: &str = "use the whole set that sccache-dock client-env prints";

/// Names that belong to `scripts/sccache-docker-manage.sh`, to `at` and to other commands of ours.
const WRAPPER: &[&str] = &[
    "SCCACHE_BASE_IMAGE",
    "SCCACHE_BASE_KEYRING",
    "SCCACHE_BIND",
    "SCCACHE_CONTAINER_NAME",
    "SCCACHE_DEFAULT_PORT",
    "SCCACHE_DOCK_IMAGE",
    "SCCACHE_DOCK_PROGRAM",
    "SCCACHE_DOCK_OWN_RESULTS",
    "SCCACHE_DOCK_ROOT",
    "SCCACHE_DOCK_TOOLS",
    "SCCACHE_DOCK_WRAPPED",
    "SCCACHE_FROM",
    "SCCACHE_IMAGE_NAME",
    "SCCACHE_LTO",
    "SCCACHE_RELEASES",
    "SCCACHE_SHA256",
    "SCCACHE_SCHEDULER_PORT",
    "SCCACHE_SOCKET_DIR",
    "SCCACHE_TLS_CLIENT_CERT",
    "SCCACHE_TLS_CLIENT_KEY",
    "SCCACHE_USER",
];

/// Flags that sccache refuses to start with, if they are neither true nor false.
const FLAGS: &[&str] = &[
    "SCCACHE_CLIENT_SIDE",
    "SCCACHE_DIRECT",
    "SCCACHE_GHA_ENABLED",
    "SCCACHE_SKIP_CACHE_CHECK",
    "SCCACHE_WEBDAV_DISABLE_CREATE_DIR",
];

/// The lane that a client with this environment takes, and with this scheduler in its config file; none when it
/// shares nothing.
pub(super) fn lane(environment: &Environment, scheduler: Option<&str>) -> Option<Lane> {
    let has_endpoint = value(environment, "SCCACHE_WEBDAV_ENDPOINT").is_some();
    if scheduler.is_some() && (has_endpoint || !is_on(environment, "SCCACHE_CLIENT_SIDE")) {
        Some(Lane::Dist)
    } else if has_endpoint {
        Some(Lane::Webdav)
    } else if !is_on(environment, "SCCACHE_CLIENT_SIDE") {
        None
    } else if value(environment, "SCCACHE_SERVER_UDS").is_some() {
        Some(Lane::Socket)
    } else {
        Some(Lane::Ipc)
    }
}

/// All findings about the environment of a client of `endpoint`.
pub(super) fn judge(
    environment: &Environment,
    endpoint: &Endpoint,
    lane: Option<Lane>,
) -> Vec<Check> {
    let mut checks = Vec::new();
    wrapper(environment, &mut checks);
    cargo(environment, &mut checks);
    flags(environment, &mut checks);
    match lane {
        // The config file alone may say everything.
        Some(Lane::Dist) if value(environment, "SCCACHE_WEBDAV_ENDPOINT").is_none() => {}
        Some(Lane::Webdav | Lane::Dist) => webdav(environment, endpoint, &mut checks),
        Some(Lane::Ipc | Lane::Socket) => own_protocol(environment, &mut checks),
        None => checks.push(Check::fail(
            "lane",
            "neither SCCACHE_WEBDAV_ENDPOINT nor SCCACHE_CLIENT_SIDE is set: this client shares nothing",
            WHOLE_SET,
        )),
    }
    address(environment, endpoint, lane, &mut checks);
    names(environment, &mut checks);
    checks
}

/// What cargo's files set of that which matters here, file by file; names only, there may be a secret among the values.
pub(super) fn cargo_files(config: &cargo_config::Config, environment: &Environment) -> Vec<Check> {
    let what = "cargo's files";
    let mut checks = Vec::new();
    for file in &config.broken {
        let found = format!("{} is not TOML: cargo refuses to run", file.display());
        checks.push(Check::fail(what, found, "correct it, or move it away"));
    }
    let mut set: BTreeMap<&Path, Vec<&str>> = BTreeMap::new();
    if let Some((_, file)) = &config.wrapper {
        set.entry(file).or_default().push("build.rustc-wrapper");
    }
    for (name, variable) in &config.variables {
        if !["SCCACHE_", "CARGO_", "RUSTC_"]
            .iter()
            .any(|it| name.starts_with(it))
        {
            continue;
        }
        if name == cargo_config::WRAPPER {
            let file = variable.file.display();
            let found = format!("{file} sets it below [env], where cargo does not look for it");
            let hint = "write it below [build], as rustc-wrapper";
            checks.push(Check::warn(name, found, hint));
            continue;
        }
        set.entry(&variable.file).or_default().push(name);
        if variable.force
            && environment
                .get(name)
                .is_some_and(|it| *it != variable.value)
        {
            let found = format!(
                "{} sets it with force, so what the environment says has no effect",
                variable.file.display()
            );
            let hint = "remove the line or its force, or unset the variable";
            checks.push(Check::warn(name, found, hint));
        }
    }
    for (file, names) in set {
        let (beaten, mut found) = (
            names.iter().filter(|it| is_beaten(config, environment, it)),
            format!("{} sets {}", file.display(), names.join(", ")),
        );
        let beaten: Vec<&str> = beaten.copied().collect();
        if !beaten.is_empty() {
            found += &format!(
                "; the environment has other values, which win: {}",
                beaten.join(", ")
            );
        }
        checks.push(Check::ok(what, found));
    }
    checks
}

fn is_beaten(config: &cargo_config::Config, environment: &Environment, name: &str) -> bool {
    let differs = |variable: &cargo_config::Variable| {
        environment
            .get(name)
            .is_some_and(|it| *it != variable.value)
            && !variable.force
    };
    config.variables.get(name).is_some_and(differs)
}

pub(super) fn value<'a>(environment: &'a Environment, name: &str) -> Option<&'a str> {
    let value = environment.get(name)?;
    (!value.is_empty()).then_some(value)
}

pub(super) fn is_on(environment: &Environment, name: &str) -> bool {
    value(environment, name)
        .is_some_and(|it| ["1", "on", "true"].contains(&it.to_ascii_lowercase().as_str()))
}

pub(super) fn is_off(environment: &Environment, name: &str) -> bool {
    value(environment, name)
        .is_some_and(|it| ["0", "off", "false"].contains(&it.to_ascii_lowercase().as_str()))
}

/// Whether the first level of a client with this environment is a disk.
fn begins_with_disk(environment: &Environment, lane: Option<Lane>) -> bool {
    let first = match (value(environment, "SCCACHE_MULTILEVEL_CHAIN"), lane) {
        (_, Some(Lane::Ipc | Lane::Socket)) => return false,
        (Some(chain), _) => chain.split(',').next().unwrap_or_default(),
        (None, Some(Lane::Webdav | Lane::Dist)) => "webdav",
        // Sccache's own default.
        (None, None) => "disk",
    };
    first.trim().eq_ignore_ascii_case("disk")
}

/// Whether sccache may answer from entries of direct mode that it has on this machine's disk.
pub(super) fn has_direct_entries(environment: &Environment, lane: Option<Lane>) -> bool {
    let is_written = value(environment, "SCCACHE_LOCAL_RW_MODE")
        .is_none_or(|mode| !mode.eq_ignore_ascii_case("READ_ONLY"));
    begins_with_disk(environment, lane) && is_written && !is_off(environment, "SCCACHE_DIRECT")
}

/// Whether line markers are part of this client's keys of C and C++: with direct mode, whether it has entries or not.
/// `None` where the config file decides.
pub(super) fn has_line_markers(environment: &Environment, lane: Option<Lane>) -> Option<bool> {
    let own_protocol = matches!(lane, Some(Lane::Ipc | Lane::Socket));
    if !own_protocol && value(environment, "SCCACHE_WEBDAV_ENDPOINT").is_none() {
        return None;
    }
    let has_level = own_protocol || begins_with_disk(environment, lane);
    Some(has_level && !is_off(environment, "SCCACHE_DIRECT"))
}

/// The folders that sccache leaves out of the keys of C and C++, here or in its config file.
pub(super) fn basedirs(
    environment: &Environment,
    in_conf: bool,
    version: Option<Version>,
    lane: Option<Lane>,
) -> Option<Check> {
    let name = "SCCACHE_BASEDIRS";
    let (hint, is_set) = match environment.get(name).map(String::as_str) {
        Some("" | NO_BASEDIRS) => ("", false),
        Some(_) => ("unset SCCACHE_BASEDIRS", true),
        None => ("remove basedirs from sccache's config file", in_conf),
    };
    let is_old = version.is_none_or(|version| version < SAFE_BASEDIRS);
    (is_set && is_old && has_direct_entries(environment, lane)).then(|| {
        let found = format!(
            "with a level on disk, sccache before {SAFE_BASEDIRS} gives one checkout the object of another one with other \
             headers"
        );
        let hint = format!("{hint}, and use sccache-dock at for hits across checkouts");
        Check::fail(name, found, hint)
    })
}

fn wrapper(environment: &Environment, checks: &mut Vec<Check>) {
    let name = "RUSTC_WRAPPER";
    let stem = |path: &str| {
        let file = path.rsplit(['/', '\\']).next().unwrap_or(path);
        file.trim_end_matches(".exe") == "sccache"
    };
    checks.push(match value(environment, name) {
        Some(path) if stem(path) => Check::ok(name, path),
        Some(path) => Check::warn(
            name,
            format!("{path} is not sccache"),
            "export RUSTC_WRAPPER=sccache, unless it runs sccache in its turn",
        ),
        None => Check::warn(
            name,
            "not set: Cargo runs rustc without sccache",
            "export RUSTC_WRAPPER=sccache, or set build.rustc-wrapper in Cargo's configuration",
        ),
    });
    for name in ["CARGO_INCREMENTAL", "CARGO_BUILD_INCREMENTAL"] {
        match value(environment, name) {
            Some("1" | "true") => checks.push(Check::fail(
                name,
                "incremental compilation is on, and sccache refuses to run with it",
                "export CARGO_INCREMENTAL=0; unset CARGO_BUILD_INCREMENTAL",
            )),
            None if name == "CARGO_INCREMENTAL" => checks.push(Check::warn(
                name,
                "not set: what Cargo compiles incrementally (your own crates in debug builds) is not cached",
                "export CARGO_INCREMENTAL=0",
            )),
            _ => {}
        }
    }
}

/// What cargo hands on to rustc of its own settings. Names only: there may be a secret among the values.
fn cargo(environment: &Environment, checks: &mut Vec<Check>) {
    let is_usual = |name: &str, value: &str| match name {
        // In the set of `client-env`, or said about it already.
        "CARGO_INCREMENTAL" | "CARGO_BUILD_INCREMENTAL" => {
            ["1", "true"].contains(&value) || name == "CARGO_INCREMENTAL" && value == "0"
        }
        // rustup sets it for everybody.
        "CARGO_HOME" => true,
        _ => false,
    };
    for (name, value) in environment {
        if is_in_keys(name) && !is_usual(name, value) {
            let found = "part of the key of every Rust compile: no hits from machines where it differs or is not set";
            let hint = match name.as_str() {
                "CARGO_REGISTRY_TOKEN" => {
                    "set CARGO_REGISTRY_TOKEN for cargo publish alone, or use cargo login"
                        .to_owned()
                }
                _ => format!(
                    "unset {name}, and say the same in .cargo/config.toml, which is in no key; or set it alike everywhere"
                ),
            };
            checks.push(Check::warn(name, found, hint));
        }
    }
}

fn flags(environment: &Environment, checks: &mut Vec<Check>) {
    let known = ["true", "on", "1", "false", "off", "0"];
    for name in FLAGS {
        if let Some(text) = value(environment, name)
            && !known.contains(&text.to_ascii_lowercase().as_str())
        {
            let found = format!("\"{text}\" is neither true nor false: sccache refuses to run");
            checks.push(Check::fail(
                name,
                found,
                format!("export {name}=1, or unset it"),
            ));
        }
    }
    if value(environment, "SCCACHE_START_SERVER") == Some("1") {
        checks.push(Check::fail(
            "SCCACHE_START_SERVER",
            "sccache refuses to compile while it is 1",
            "unset SCCACHE_START_SERVER",
        ));
    }
}

fn webdav(environment: &Environment, endpoint: &Endpoint, checks: &mut Vec<Check>) {
    let name = "SCCACHE_WEBDAV_ENDPOINT";
    let set = value(environment, name).unwrap_or_default();
    checks.push(match Endpoint::parse(set) {
        Ok(parsed) if parsed == *endpoint => Check::ok(name, set),
        Ok(_) => Check::warn(
            name,
            format!(
                "{set} is not the endpoint that was checked, {}",
                endpoint.url
            ),
            format!("export {name}={}", endpoint.url),
        ),
        Err(error) => {
            let error = error.to_string();
            let (cause, hint) = error.split_once("\nhint: ").unwrap_or((&error, WHOLE_SET));
            Check::fail(name, cause, hint)
        }
    });
    chain(environment, checks);
    if !is_on(environment, "SCCACHE_SKIP_CACHE_CHECK") {
        checks.push(Check::warn(
            "SCCACHE_SKIP_CACHE_CHECK",
            "not set: puts are preceded by a check each, and while the gateway is away a build may fail",
            "export SCCACHE_SKIP_CACHE_CHECK=1 (sccache 0.19 or newer)",
        ));
    }
    if !is_on(environment, "SCCACHE_WEBDAV_DISABLE_CREATE_DIR") {
        checks.push(Check::warn(
            "SCCACHE_WEBDAV_DISABLE_CREATE_DIR",
            "not set: a needless request before each put",
            "export SCCACHE_WEBDAV_DISABLE_CREATE_DIR=1",
        ));
    }
    if value(environment, "SCCACHE_WEBDAV_RW_MODE")
        .is_some_and(|it| it.eq_ignore_ascii_case("READ_ONLY"))
    {
        checks.push(Check::warn(
            "SCCACHE_WEBDAV_RW_MODE",
            "READ_ONLY: this client gives nothing to the cache",
            "unset SCCACHE_WEBDAV_RW_MODE, unless that is meant",
        ));
    }
}

fn chain(environment: &Environment, checks: &mut Vec<Check>) {
    match value(environment, "SCCACHE_MULTILEVEL_CHAIN") {
        Some(chain) => {
            let levels: Vec<String> = chain
                .split(',')
                .map(|it| it.trim().to_lowercase())
                .collect();
            let has = |level: &str| levels.iter().any(|it| it == level);
            let disk = ["SCCACHE_DIR", "SCCACHE_CACHE_SIZE", "SCCACHE_LOCAL_RW_MODE"];
            if !has("webdav") {
                let found = format!("\"{chain}\" leaves the shared cache out");
                let hint = "export SCCACHE_MULTILEVEL_CHAIN=disk,webdav";
                checks.push(Check::fail("SCCACHE_MULTILEVEL_CHAIN", found, hint));
            }
            if has("disk") && !disk.iter().any(|it| value(environment, it).is_some()) {
                checks.push(Check::warn(
                    "SCCACHE_DIR",
                    "not set: a chain with \"disk\" in it starts only if sccache's config file has [cache.disk]",
                    "export SCCACHE_DIR=\"$HOME/.cache/sccache-dock/disk\"",
                ));
            }
        }
        None => checks.push(Check::warn(
            "SCCACHE_MULTILEVEL_CHAIN",
            "not set: each put is waited for, and nothing is kept on this machine",
            WHOLE_SET,
        )),
    }
}

fn own_protocol(environment: &Environment, checks: &mut Vec<Check>) {
    checks.push(Check::ok(
        "SCCACHE_CLIENT_SIDE",
        "on: sccache's own protocol",
    ));
    if environment.contains_key("SCCACHE_LOG") {
        checks.push(Check::fail(
            "SCCACHE_LOG",
            "set: turns client-side mode off without a word, so that nothing is shared",
            "unset SCCACHE_LOG",
        ));
    }
}

/// Where the client looks for its daemon.
fn address(
    environment: &Environment,
    endpoint: &Endpoint,
    lane: Option<Lane>,
    checks: &mut Vec<Check>,
) {
    if let Some(socket) = value(environment, "SCCACHE_SERVER_UDS") {
        checks.push(if socket.len() > SOCKET_PATH_MAX {
            let found = format!(
                "{} bytes long: a socket's path has at most {SOCKET_PATH_MAX}",
                socket.len()
            );
            Check::fail("SCCACHE_SERVER_UDS", found, "choose a shorter path")
        } else {
            Check::ok("SCCACHE_SERVER_UDS", socket)
        });
        return;
    }
    let name = "SCCACHE_SERVER_PORT";
    let port = match value(environment, name) {
        None => GATEWAY_PORT,
        Some(text) => text.parse().unwrap_or_else(|_| {
            let found =
                format!("\"{text}\" is no port: sccache takes {GATEWAY_PORT} without a word");
            checks.push(Check::fail(name, found, format!("export {name}=4227")));
            GATEWAY_PORT
        }),
    };
    let is_gateway = endpoint.is_loopback() && port == endpoint.port;
    match lane {
        Some(Lane::Webdav | Lane::Dist) if is_gateway => checks.push(Check::fail(
            name,
            format!("{port} is the gateway's own port: this client never starts the daemon that would share"),
            "export SCCACHE_SERVER_PORT=4227, or better SCCACHE_SERVER_UDS=\"$HOME/.cache/sccache.sock\"",
        )),
        Some(Lane::Ipc) if !is_gateway => checks.push(Check::fail(
            name,
            format!("this client talks to 127.0.0.1:{port}, and the gateway is at {}", endpoint.url),
            if endpoint.is_loopback() {
                format!("export {name}={}", endpoint.port)
            } else {
                "use the lane webdav: sccache's own protocol only ever talks to 127.0.0.1".to_owned()
            },
        )),
        _ => checks.push(Check::ok(name, port.to_string())),
    }
}

/// Names that do nothing.
fn names(environment: &Environment, checks: &mut Vec<Check>) {
    let known = checks.len();
    let endpoint = "SCCACHE_ENDPOINT";
    if let Some(text) = value(environment, endpoint)
        && value(environment, "SCCACHE_BUCKET").is_none()
    {
        checks.push(Check::warn(
            endpoint,
            format!(
                "{text} has no effect: it is the endpoint of S3, read only with SCCACHE_BUCKET"
            ),
            "unset SCCACHE_ENDPOINT and use SCCACHE_WEBDAV_ENDPOINT=http://HOST:4226",
        ));
    }
    let candidates = environment
        .keys()
        .filter(|name| name.starts_with("SCCACHE_"));
    for name in candidates {
        if let Some(instead) = instead_of(name) {
            let found = "sccache has no such variable: it has no effect";
            checks.push(Check::warn(
                name,
                found,
                format!("unset {name}; use {instead}"),
            ));
        } else if !SCCACHE_OWN.contains(&name.as_str()) && !WRAPPER.contains(&name.as_str()) {
            let hint = match suggest(name, SCCACHE_OWN.iter().copied()) {
                Some(near) => format!("did you mean {near}?"),
                None => format!("unset {name}"),
            };
            checks.push(Check::warn(name, "not a variable of sccache 0.19.0", hint));
        }
    }
    if checks.len() == known {
        checks.push(Check::ok("names", "no variable that does nothing"));
    }
}
