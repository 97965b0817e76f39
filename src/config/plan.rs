//! Turns settings into the plan: which services run, with their programs, files, environment and order. Pure.

mod dist;

pub use self::dist::DistFacts;
pub use crate::contract::service::{BUILDER_REGISTERED, SCHEDULER_ANSWERS};

use super::settings::{Mode, Settings};
use super::variables::PROXIES;
use crate::base::secret::Secret;
use crate::contract::address::loopback;
use crate::contract::gateway_config::{Config, IpcPolicy, Upstream};
use crate::contract::paths;
use crate::contract::service::{File, Plan, ReadyBy, Service, StopBy};
use crate::contract::service::{Id, Rules};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Input of the plan besides the settings.
#[derive(Debug, Clone)]
pub struct Facts {
    /// Our own program with the commands.
    pub program: PathBuf,
    /// The gateway's program.
    pub gateway: PathBuf,
    /// The address to which the cache port is actually bound.
    pub listen: SocketAddr,
    pub auth_token: Secret,
    pub path: String,
    /// Present in the distributed modes.
    pub dist: Option<DistFacts>,
}

/// A function that makes a plan: [`plan`], or a benchmark's replacement.
pub type Planner = fn(&Settings, &Facts) -> Result<Plan, toml::ser::Error>;

/// Makes the plan for these settings.
///
/// # Errors
/// A configuration cannot be written as TOML (a path that is not UTF-8).
pub fn plan(settings: &Settings, facts: &Facts) -> Result<Plan, toml::ser::Error> {
    let config = gateway_config(settings, facts);
    let mut secrets = config.write_tokens.clone();
    secrets.extend(config.read_tokens.iter().cloned());
    secrets.extend(settings.upstream.iter().flat_map(secrets_of_url));
    secrets.extend(settings.upstream_token.iter().cloned());
    let keys = settings.aws.iter();
    secrets.extend(
        keys.filter(|(name, _)| name.contains("SECRET") || name.contains("TOKEN"))
            .map(|(_, value)| value.clone()),
    );
    let proxies = settings
        .aws
        .iter()
        .filter(|(name, _)| PROXIES.contains(&name.as_str()));
    secrets.extend(proxies.flat_map(|(_, url)| secrets_of_url(url)));
    let aws = settings.aws.iter();
    let aws = aws.map(|(name, value)| (name.clone(), value.reveal().to_owned()));
    let config_path = paths::gateway_config(&settings.dir);
    let gateway = Service {
        name: "gateway",
        program: facts.gateway.clone(),
        args: vec![
            "--inherit".into(),
            "--config".into(),
            config_path.display().to_string(),
        ],
        env: [
            ("SCCACHE_LOG".into(), settings.log.clone()),
            ("PATH".into(), facts.path.clone()),
        ]
        .into_iter()
        .chain(aws)
        .collect(),
        ready_by: ReadyBy::Handover,
        keeps_root: false,
        stop_by: StopBy::Term,
        files: vec![File {
            path: config_path,
            text: toml::to_string(&config)?,
        }],
        rules: Rules {
            depends_on: Vec::new(),
            ready_timeout: Duration::from_secs(30),
            grace: settings.stop_grace,
            fatal_codes: &[2],
        },
    };
    let mut services = vec![gateway];
    // A machine with only a builder has no clients.
    if settings.mode != Mode::Builder {
        services.push(server(settings, facts, Id(0)));
    }
    if let Some(dist) = &facts.dist {
        secrets.extend([dist.builder_token.clone(), dist.scheduler_token.clone()]);
        let key = settings.dist.builder_jwt_key.as_ref();
        secrets.extend(key.map(|key| key.text().clone()));
        let mut needs = vec![Id(0)];
        if settings.mode.schedules() {
            needs.push(Id(services.len()));
            services.push(dist::scheduler(settings, facts, dist, Id(0))?);
        }
        services.push(dist::builder(settings, facts, dist, needs)?);
    }
    Ok(Plan { services, secrets })
}

/// The parts of a URL that must be redacted: its password, and the keys in its query.
fn secrets_of_url(url: &Secret) -> Vec<Secret> {
    let text = url.reveal();
    let (bare, query) = text.split_once('?').unwrap_or((text, ""));
    let host = bare.split_once("://").map_or(bare, |(_, rest)| rest);
    let user = host
        .split('/')
        .next()
        .and_then(|host| host.rsplit_once('@'));
    let password = user
        .and_then(|(user, _)| user.split_once(':'))
        .map(|(_, word)| word);
    let keys = query
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .filter(|(name, _)| name.contains("key") || name.contains("token"))
        .map(|(_, value)| value);
    let secrets = password.into_iter().chain(keys);
    secrets
        .filter(|word| !word.is_empty())
        .map(Secret::new)
        .collect()
}

fn gateway_config(settings: &Settings, facts: &Facts) -> Config {
    Config {
        listen: facts.listen,
        socket: paths::client_socket(&settings.run_dir),
        store_dir: paths::cache(&settings.dir),
        budget_bytes: settings.cache_size_bytes,
        policies: settings.policies.clone(),
        ipc: settings.ipc.clone(),
        server_socket: paths::server_socket(&settings.run_dir),
        sccache: Some(settings.sccache.clone()),
        control_socket: Some(paths::control_socket(&settings.run_dir)),
        write_tokens: vec![facts.auth_token.clone()],
        read_tokens: settings.read_token.iter().cloned().collect(),
        anonymous_read: settings.anonymous_read,
        hosts: settings.hosts.clone(),
        tokens_file: settings.tokens_file.clone(),
        tls: settings.tls.clone(),
        // The server, which stops first, uses the other half of the grace period.
        drain: settings.stop_grace / 2,
        dist: facts.dist.as_ref().map(|dist| dist::front(settings, dist)),
        upstream: settings.upstream.clone().map(|url| Upstream {
            ahead: None,
            // Shown to other caches only, not to a bucket.
            client_certificate: (settings.client_certificate.clone())
                .filter(|_| url.reveal().starts_with("https://")),
            url,
            token: settings.upstream_token.clone(),
            queue: paths::upstream_queue(&settings.dir),
        }),
    }
}

/// The real sccache in the foreground, with the gateway as its storage.
///
/// It has a disk level in front of the storage, because only a disk level turns on direct mode, which affects the keys
/// of C and C++: without it, the server would share none of them with the clients that `client-env` configures. That
/// level is read-only, so that no entry of direct mode is kept.
fn server(settings: &Settings, facts: &Facts, gateway: Id) -> Service {
    let socket = paths::server_socket(&settings.run_dir);
    let tmp = paths::scratch(&settings.dir).display().to_string();
    let env = [
        ("PATH", facts.path.clone()),
        ("HOME", tmp.clone()),
        ("TMPDIR", tmp),
        ("SCCACHE_START_SERVER", "1".into()),
        ("SCCACHE_NO_DAEMON", "1".into()),
        ("SCCACHE_SERVER_UDS", socket.display().to_string()),
        (
            "SCCACHE_STARTUP_NOTIFY",
            paths::notify_socket(&settings.run_dir)
                .display()
                .to_string(),
        ),
        ("SCCACHE_IDLE_TIMEOUT", "0".into()),
        // With the default of 8 MiB, a client that reads a larger entry hangs.
        ("SCCACHE_MAX_FRAME_LENGTH", "2147483647".into()),
        (
            "SCCACHE_WEBDAV_ENDPOINT",
            format!("http://{}", loopback(facts.listen)),
        ),
        ("SCCACHE_WEBDAV_TOKEN", facts.auth_token.reveal().to_owned()),
        ("SCCACHE_WEBDAV_DISABLE_CREATE_DIR", "1".into()),
        // Without this, a gateway that restarts at this moment would disable writes for the server's whole life.
        ("SCCACHE_SKIP_CACHE_CHECK", "1".into()),
        ("SCCACHE_MULTILEVEL_CHAIN", "disk,webdav".into()),
        (
            "SCCACHE_DIR",
            paths::server_level(&settings.dir).display().to_string(),
        ),
        ("SCCACHE_LOCAL_RW_MODE", "READ_ONLY".into()),
        ("SCCACHE_LOG", server_log(&settings.log)),
    ];
    Service {
        name: "server",
        program: settings.sccache.clone(),
        args: Vec::new(),
        env: env
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value))
            .collect(),
        ready_by: ReadyBy::Notify,
        keeps_root: false,
        stop_by: StopBy::SccacheShutdown(socket),
        files: Vec::new(),
        rules: Rules {
            depends_on: vec![gateway],
            ready_timeout: Duration::from_secs(30),
            grace: settings.stop_grace / 2,
            fatal_codes: &[],
        },
    }
}

/// Modules that log a warning for every compile: the storage library at each miss, and the chain of levels at each
/// direct-mode entry that the first level does not accept. The gateway logs what matters.
const NOISY: [&str; 2] = ["opendal", "sccache::cache::multilevel"];

fn server_log(log: &str) -> String {
    if log == "off" {
        return log.to_owned();
    }
    let quiet = NOISY.iter().filter(|module| !log.contains(**module));
    quiet.fold(log.to_owned(), |log, module| {
        format!("{log},{module}=error")
    })
}

/// The socket for clients, if they may use it.
pub fn client_socket(settings: &Settings) -> Option<PathBuf> {
    let off = matches!(settings.ipc, IpcPolicy::Off);
    (!off).then(|| paths::client_socket(Path::new(&settings.run_dir)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::settings;
    use std::collections::BTreeMap;
    use std::io;

    fn planned(pairs: &[(&str, &str)]) -> Plan {
        let environment: BTreeMap<String, String> = pairs
            .iter()
            .map(|(n, v)| ((*n).to_owned(), (*v).to_owned()))
            .collect();
        let loaded =
            settings::check(&environment, &|_| Err(io::ErrorKind::NotFound.into())).unwrap();
        let facts = Facts {
            program: "/usr/local/bin/sccache-dock".into(),
            gateway: "/usr/local/bin/sccache-dock-gateway".into(),
            listen: "0.0.0.0:4226".parse().unwrap(),
            auth_token: Secret::new("the-token"),
            path: "/usr/bin".into(),
            dist: loaded.settings.mode.builds().then(|| DistFacts {
                front: "0.0.0.0:10600".parse().unwrap(),
                scheduler: "127.0.0.1:10599".parse().unwrap(),
                builder: "127.0.0.1:10502".parse().unwrap(),
                scheduler_token: Secret::new("the-scheduler-token"),
                builder_token: Secret::new("the-server-token"),
                public_addr: "172.17.0.2:10501".parse().unwrap(),
                bwrap: "/usr/bin/bwrap".into(),
                run_as: None,
            }),
        };
        plan(&loaded.settings, &facts).unwrap()
    }

    fn env_of(plan: &Plan, service: usize, name: &str) -> Option<String> {
        plan.services[service]
            .env
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, value)| value.clone())
    }

    #[test]
    fn gateway_starts_before_the_server() {
        let plan = planned(&[]);
        assert_eq!(
            plan.services
                .iter()
                .map(|service| service.name)
                .collect::<Vec<_>>(),
            ["gateway", "server"]
        );
        assert!(plan.services[0].rules.depends_on.is_empty());
        assert_eq!(plan.services[1].rules.depends_on, [Id(0)]);
    }

    #[test]
    fn builder_waits_for_the_scheduler_of_its_mode() {
        let needs = |plan: &Plan| -> Vec<(&'static str, Vec<Id>)> {
            let services = plan.services.iter();
            services
                .map(|service| (service.name, service.rules.depends_on.clone()))
                .collect()
        };
        assert_eq!(
            needs(&planned(&[("MODE", "distributed-ephemeral")])),
            [
                ("gateway", vec![]),
                ("server", vec![Id(0)]),
                ("scheduler", vec![Id(0)]),
                ("builder", vec![Id(0), Id(2)]),
            ]
        );
        let builder = planned(&[
            ("MODE", "builder"),
            ("SCCACHE_SCHEDULER_URL", "build-host"),
            ("SCCACHE_SERVER_TOKEN", "the-server-token"),
        ]);
        assert_eq!(
            needs(&builder),
            [("gateway", vec![]), ("builder", vec![Id(0)])]
        );
        let config: Config = toml::from_str(&builder.services[0].files[0].text).unwrap();
        assert_eq!(
            config.dist.unwrap().scheduler,
            crate::contract::gateway_config::Scheduler::Remote("http://build-host:10600".into())
        );
    }

    #[test]
    fn builder_reaches_its_scheduler_through_the_front_on_loopback() {
        let plan = planned(&[("MODE", "distributed-ephemeral")]);
        let server: toml::Table = plan.services[3].files[0].text.parse().unwrap();
        assert_eq!(
            server["scheduler_url"].as_str(),
            Some("http://127.0.0.1:10600")
        );
        assert_eq!(server["public_addr"].as_str(), Some("172.17.0.2:10501"));
        assert_eq!(plan.secrets.len(), 3, "all tokens are hidden from the log");
    }

    /// It is root when it reads what to run, and the folder of files is the services' user's.
    #[test]
    fn builder_that_keeps_root_is_told_by_the_supervisor_alone_what_to_run() {
        let plan = planned(&[("MODE", "distributed-ephemeral")]);
        assert!(plan.services[3].keeps_root);
        assert_eq!(plan.services[3].args, ["builder"]);
        let text = env_of(&plan, 3, "SCCACHE_DOCK_BUILDER").unwrap();
        let config: crate::contract::builder_config::Config = toml::from_str(&text).unwrap();
        assert_eq!(config.bwrap, Path::new("/usr/bin/bwrap"));
        assert!(!text.contains("-token"), "jobs' processes have it too");
    }

    #[test]
    fn gateway_file_reads_back_as_what_was_planned() {
        let plan = planned(&[
            ("SCCACHE_IPC", "10.0.0.0/8"),
            ("SCCACHE_READ_TOKEN", "read-only-token"),
        ]);
        let config: Config = toml::from_str(&plan.services[0].files[0].text).unwrap();
        assert_eq!(config.budget_bytes, 10 << 30);
        assert_eq!(
            config.ipc,
            IpcPolicy::Beyond {
                bridge: false,
                networks: vec!["10.0.0.0/8".parse().unwrap()]
            }
        );
        assert_eq!(config.write_tokens[0].reveal(), "the-token");
        assert_eq!(plan.secrets.len(), 2, "both tokens are hidden from the log");
    }

    #[test]
    fn server_reaches_the_gateway_over_loopback_and_inherits_nothing_else() {
        let plan = planned(&[]);
        assert_eq!(
            env_of(&plan, 1, "SCCACHE_WEBDAV_ENDPOINT").as_deref(),
            Some("http://127.0.0.1:4226")
        );
        assert_eq!(
            env_of(&plan, 1, "SCCACHE_SERVER_UDS").as_deref(),
            Some("/var/sccache/run/server.sock")
        );
        assert_eq!(env_of(&plan, 1, "MODE"), None);
    }

    #[test]
    fn only_what_changed_restarts() {
        let names = |pairs: &[(&str, &str)]| planned(pairs).changed_since(&planned(&[]));
        assert_eq!(names(&[]), []);
        assert_eq!(names(&[("SCCACHE_CACHE_SIZE", "5G")]), [Id(0)]);
        assert_eq!(names(&[("SCCACHE_READ_TOKEN", "read-only-token")]), [Id(0)]);
        assert_eq!(names(&[("SCCACHE_LOG", "warn")]), [Id(0), Id(1)]);
    }

    #[test]
    fn misses_of_the_server_are_no_warnings_unless_they_are_asked_for() {
        for (set, expected) in [
            (
                "debug",
                "debug,opendal=error,sccache::cache::multilevel=error",
            ),
            (
                "info,sccache=trace",
                "info,sccache=trace,opendal=error,sccache::cache::multilevel=error",
            ),
            ("off", "off"),
            (
                "info,opendal=debug",
                "info,opendal=debug,sccache::cache::multilevel=error",
            ),
        ] {
            let plan = planned(&[("SCCACHE_LOG", set)]);
            assert_eq!(env_of(&plan, 1, "SCCACHE_LOG").as_deref(), Some(expected));
        }
    }

    #[test]
    fn no_argument_shows_a_token() {
        let plan = planned(&[("MODE", "distributed-ephemeral")]);
        assert!(
            plan.services
                .iter()
                .flat_map(|service| &service.args)
                .all(|arg| !arg.contains("-token"))
        );
    }
}
