//! The services of the distributed modes: scheduler and builder.

use super::{Facts, paths};
use crate::base::secret::Secret;
use crate::config::settings::{Mode, Relay, Settings};
use crate::contract::address::loopback;
use crate::contract::builder_config::{self, Config, Limits, User};
use crate::contract::dist_config;
use crate::contract::gateway_config::{self, Dist, Scheduler};
use crate::contract::service::RunAs;
use crate::contract::service::{BUILDER_REGISTERED, SCHEDULER_ANSWERS};
use crate::contract::service::{File, ReadyBy, Service, StopBy};
use crate::contract::service::{Id, Rules};
use crate::exit;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Input of the plan for these services besides the settings.
#[derive(Debug, Clone)]
pub struct DistFacts {
    /// The address to which the scheduler's reverse proxy is actually bound.
    pub front: SocketAddr,
    /// The scheduler's own loopback address.
    pub scheduler: SocketAddr,
    /// The loopback address of the builder's `sccache-dist`.
    pub builder: SocketAddr,
    /// The token that the scheduler expects from clients.
    pub scheduler_token: Secret,
    pub builder_token: Secret,
    /// Address at which clients and the scheduler reach the builder.
    pub public_addr: SocketAddr,
    /// The real bubblewrap.
    pub bwrap: PathBuf,
    /// The user that the services run as, if different from the current one.
    pub run_as: Option<RunAs>,
}

/// Configuration of the scheduler's reverse proxy.
pub(super) fn front(settings: &Settings, facts: &DistFacts) -> Dist {
    Dist {
        listen: facts.front,
        scheduler: match &settings.dist.scheduler_url {
            Some(url) => Scheduler::Remote(url.clone()),
            None => Scheduler::Local(facts.scheduler),
        },
        scheduler_token: facts.scheduler_token.clone(),
        builder_token: facts.builder_token.clone(),
        wrong_token: settings.dist.wrong_token,
        local_builder: Some(facts.public_addr),
        local_builder_port: Some(match settings.dist.tunnelled {
            true => facts.public_addr,
            false => loopback(settings.dist.builder_listen),
        }),
        jobs_socket: paths::jobs_socket(&settings.run_dir),
        heartbeats: paths::heartbeats(&settings.dir),
        client_certificate: settings.client_certificate.clone(),
        builder_jwt_key: settings.dist.builder_jwt_key.clone(),
        plain: settings.dist.scheduler_plain,
        tunnels_to: settings.dist.tunnelled.then_some(facts.public_addr),
        relay: settings
            .dist
            .relay
            .as_ref()
            .filter(|_| settings.mode.schedules())
            .map(|relay| relay_config(settings, facts, relay)),
    }
}

fn relay_config(settings: &Settings, facts: &DistFacts, relay: &Relay) -> gateway_config::Relay {
    let address = relay.address.map(|address| {
        let port = address.port.unwrap_or(facts.front.port());
        SocketAddr::new(address.ip, port)
    });
    gateway_config::Relay {
        address,
        public_ip: settings.dist.public_addr.map(|public| public.ip),
        queue_millis: millis(relay.queue_time),
        queue_bytes: relay.queue_bytes,
        archive_bytes: settings.dist.toolchain_cache_bytes,
        spool: paths::relay_spool(&settings.dir),
        authority: paths::relay_authority(&settings.dir),
        machines: relay.machines.clone(),
    }
}

/// `sccache-dist scheduler`, reachable only through the gateway.
pub(super) fn scheduler(
    settings: &Settings,
    facts: &Facts,
    dist: &DistFacts,
    gateway: Id,
) -> Result<Service, toml::ser::Error> {
    let path = paths::scheduler_config(&settings.dir);
    let token = |token: &Secret| dist_config::Token {
        token: token.clone(),
    };
    let config = dist_config::Scheduler {
        public_addr: dist.scheduler,
        client_auth: token(&dist.scheduler_token),
        server_auth: token(&dist.builder_token),
    };
    let mut env = environment(settings, facts);
    // Without this, the scheduler would move to the background, out of our control.
    env.push(("SCCACHE_NO_DAEMON".into(), "1".into()));
    Ok(Service {
        name: "scheduler",
        program: settings.dist.program.clone(),
        args: vec![
            "scheduler".into(),
            "--config".into(),
            path.display().to_string(),
        ],
        env,
        ready_by: ReadyBy::Gateway(SCHEDULER_ANSWERS),
        keeps_root: false,
        stop_by: StopBy::Term,
        files: vec![File {
            path,
            text: toml::to_string(&config)?,
        }],
        rules: Rules {
            depends_on: vec![gateway],
            ready_timeout: Duration::from_secs(30),
            // It handles no signals and ends at once.
            grace: settings.stop_grace / 4,
            fatal_codes: &[],
        },
    })
}

/// `sccache-dist server`, started by our own program, which isolates it.
pub(super) fn builder(
    settings: &Settings,
    facts: &Facts,
    dist: &DistFacts,
    depends_on: Vec<Id>,
) -> Result<Service, toml::ser::Error> {
    let (dir, set) = (paths::builder(&settings.dir), &settings.dist);
    let server_config = paths::server_config(&settings.dir);
    let server = dist_config::Server {
        cache_dir: dir.join("cache"),
        toolchain_cache_size: set.toolchain_cache_bytes,
        public_addr: dist.public_addr,
        bind_address: dist.builder,
        scheduler_url: format!("http://{}", loopback(dist.front)),
        scheduler_auth: dist_config::Token {
            token: dist.builder_token.clone(),
        },
        builder: dist_config::Overlay {
            build_dir: dir.join("build"),
            bwrap_path: facts.program.clone(),
        },
    };
    let config = Config {
        mode: settings.mode.as_str().to_owned(),
        isolation: set.isolation,
        user: dist.run_as.map(|RunAs { uid, gid }| User { uid, gid }),
        slots: set.slots,
        dir,
        sccache_dist: set.program.clone(),
        server_config: server_config.clone(),
        bwrap: dist.bwrap.clone(),
        listen: match set.tunnelled {
            true => dist.public_addr,
            false => set.builder_listen,
        },
        server: dist.builder,
        jobs_socket: paths::jobs_socket(&settings.run_dir),
        grace_millis: millis(settings.stop_grace / 2),
        toolchain_cache_bytes: set.toolchain_cache_bytes,
        limits: Limits {
            memory_bytes: set.job_memory_bytes,
            processes: set.job_processes,
            disk_bytes: set.job_disk_bytes,
            toolchain_bytes: set.toolchain_bytes,
            time_millis: millis(set.job_time),
        },
    };
    let mut env = environment(settings, facts);
    env.push((builder_config::VARIABLE.into(), toml::to_string(&config)?));
    let waits_for_another_machine = settings.mode == Mode::Builder;
    Ok(Service {
        name: "builder",
        program: facts.program.clone(),
        args: vec!["builder".into()],
        env,
        ready_by: ReadyBy::Gateway(BUILDER_REGISTERED),
        // It drops its privileges itself, unless the isolation needs real root.
        keeps_root: true,
        stop_by: StopBy::Term,
        files: vec![File {
            path: server_config,
            text: toml::to_string(&server)?,
        }],
        rules: Rules {
            depends_on,
            ready_timeout: Duration::from_secs(match waits_for_another_machine {
                // An unreachable scheduler is not the builder's fault; the builder keeps trying.
                true => 24 * 3600,
                false => 60,
            }),
            grace: settings.stop_grace,
            fatal_codes: &[exit::USAGE as i32, exit::ISOLATION as i32],
        },
    })
}

/// Environment of both programs. With `CARGO_INCREMENTAL` and similar variables they would exit.
fn environment(settings: &Settings, facts: &Facts) -> Vec<(String, String)> {
    let tmp = paths::scratch(&settings.dir).display().to_string();
    vec![
        ("PATH".into(), facts.path.clone()),
        ("HOME".into(), tmp.clone()),
        ("TMPDIR".into(), tmp),
        ("SCCACHE_LOG".into(), settings.log.clone()),
    ]
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
