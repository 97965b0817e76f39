//! `doctor` inside the container, or beside a local supervisor: settings, folder, space, port, services.
//!
//! It changes nothing but a probe file that it writes and removes.

use super::{Check, Report, cluster, probe};
use crate::admin;
use crate::base::human::bytes;
use crate::base::mount;
use crate::config::settings::{Loaded, Problem, Problems, Settings};
use crate::contract::paths;
use crate::contract::sccache::SHIPPED;
use crate::supervisor::state_dir;
use nix::sys::statvfs::statvfs;
use std::net::TcpListener;

/// Looks at everything that a start needs, and at what runs.
pub fn inside(loaded: Result<Loaded, Problems>) -> Report {
    let mut checks = Vec::new();
    let loaded = match loaded {
        Ok(loaded) => loaded,
        Err(Problems(problems)) => {
            checks.extend(
                problems
                    .iter()
                    .map(|problem| from_problem(problem, Check::fail)),
            );
            return Report { checks };
        }
    };
    let settings = &loaded.settings;
    checks.push(Check::ok(
        "settings",
        format!("mode {}", settings.mode.as_str()),
    ));
    checks.extend(
        loaded
            .warnings
            .iter()
            .map(|warning| from_problem(warning, Check::warn)),
    );
    checks.push(folder(settings));
    checks.push(mount(settings));
    checks.push(space(settings));
    let running = admin::report(&settings.installation());
    match &running {
        Ok(report) => checks.extend(report.services.iter().map(|service| {
            let found = format!("{}, {} restarts", service.state, service.restarts);
            match (service.state.as_str(), service.restarts) {
                ("ready", 0) => Check::ok(&service.name, found),
                ("ready", _) => Check::warn(
                    &service.name,
                    format!(
                        "{found}, last {}",
                        service.last_exit.as_deref().unwrap_or("unknown")
                    ),
                    "look for its last lines before the restart in the log",
                ),
                ("waiting" | "starting", _) if service.trouble.is_none() => Check::warn(
                    &service.name,
                    found,
                    "it is on its way: look again in a moment",
                ),
                _ => Check::fail(&service.name, found, "its last lines in the log say why"),
            }
        })),
        Err(error) => {
            let error = error.to_string();
            let (cause, hint) = error.split_once("\nhint: ").unwrap_or((&error, ""));
            checks.push(Check::warn("supervisor", cause, hint));
            checks.push(port(settings));
        }
    }
    if running.is_ok() {
        let cache = admin::cache(&settings.installation());
        let dist = cache.as_ref().ok().and_then(|cache| cache.dist.as_ref());
        checks.extend(dist.and_then(|dist| cluster::sent_home(&dist.local_jobs)));
        checks.push(match cache {
            Ok(cache) => match &cache.store.fault {
                None => Check::ok(
                    "cache",
                    format!(
                        "{} in {} blobs",
                        bytes(cache.store.bytes),
                        cache.store.entries
                    ),
                ),
                Some(fault) => Check::fail(
                    "cache",
                    fault,
                    "fix the file system; the cache goes on by itself",
                ),
            },
            Err(error) => Check::fail(
                "cache",
                error.to_string(),
                "look at the gateway's lines in the log",
            ),
        });
    }
    if let Some(version) = probe::sccache_version(&settings.sccache, &mut checks) {
        checks.push(match version.untested_in_container() {
            None => Check::ok("sccache", version.to_string()),
            Some(found) => Check::warn(
                "sccache",
                found,
                format!("build the image with SCCACHE_VERSION={SHIPPED}, unless clients have this version too"),
            ),
        });
    }
    Report { checks }
}

fn from_problem(problem: &Problem, check: fn(&str, String, String) -> Check) -> Check {
    let hint = problem
        .hint
        .clone()
        .unwrap_or_else(|| "see \"sccache-dock config\"".into());
    check(&problem.subject, problem.message.clone(), hint)
}

fn folder(settings: &Settings) -> Check {
    match state_dir::try_folder(&settings.dir) {
        Ok(()) => Check::ok(
            "folder",
            format!("{} can be written", settings.dir.display()),
        ),
        Err(error) => {
            let error = error.to_string();
            let (cause, hint) = error.split_once("\nhint: ").unwrap_or((&error, ""));
            Check::fail("folder", cause, hint)
        }
    }
}

fn mount(settings: &Settings) -> Check {
    let dir = settings.dir.display();
    match (mount::lost(&settings.dir), settings.mode.persists()) {
        (None, _) => Check::ok("mount", format!("{dir} outlives the container")),
        (Some(why), false) => {
            Check::ok("mount", format!("the cache goes with the container: {why}"))
        }
        (Some(why), true) => Check::fail(
            "mount",
            why.to_string(),
            format!("add -v /absolute/path:{dir} to docker run"),
        ),
    }
}

/// The budget must fit, or the disk fills before anything is evicted.
fn space(settings: &Settings) -> Check {
    let stat = match statvfs(&settings.dir) {
        Ok(stat) => stat,
        Err(error) => {
            return Check::warn("space", format!("cannot ask: {error}"), "create the folder");
        }
    };
    let block = stat.fragment_size();
    let (free, total) = (stat.blocks_available() * block, stat.blocks() * block);
    let used = std::fs::read_dir(paths::cache(&settings.dir)).is_ok();
    let found = format!(
        "{} free of {}, budget {}{}",
        bytes(free),
        bytes(total),
        bytes(settings.cache_size_bytes),
        if used { " (part of it used)" } else { "" }
    );
    if settings.cache_size_bytes > total / 10 * 9 {
        return Check::fail(
            "space",
            found,
            "set SCCACHE_CACHE_SIZE to at most 90 % of the file system",
        );
    }
    if settings.cache_size_bytes > free && !used {
        return Check::warn(
            "space",
            found,
            "free some space, or lower SCCACHE_CACHE_SIZE",
        );
    }
    Check::ok("space", found)
}

fn port(settings: &Settings) -> Check {
    match TcpListener::bind(settings.listen) {
        Ok(_) => Check::ok("port", format!("{} is free", settings.listen)),
        Err(error) => Check::fail(
            "port",
            format!("cannot listen on {}: {error}", settings.listen),
            "end what listens there (an sccache server: \"sccache --stop-server\"), or set SCCACHE_LISTEN",
        ),
    }
}
