//! Settings of the scheduler and the builder.

use super::public_addr::{PublicAddr, Reached, reached};
use super::relay::{Relay, scheduler_plain};
use super::values::{ValueError, address, duration, file, optional, size, token};
use super::{Lookup, Mode};
use crate::base::secret::Secret;
use crate::contract::builder_config::Isolation;
use crate::contract::gateway_config::{ClientCertificate, JwtKey, WrongToken};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Default port of a scheduler.
const SCHEDULER_PORT: u16 = 10600;

/// Validated settings of the scheduler and the builder.
#[derive(Debug, Clone, PartialEq)]
pub struct Distribution {
    /// Token of the builders; generated and kept if `None`.
    pub builder_token: Option<Secret>,
    /// Defaults to the container's own address.
    pub public_addr: Option<PublicAddr>,
    /// Key for builders that join with a JWT.
    pub builder_jwt_key: Option<JwtKey>,
    /// The builder is not reachable from outside: it keeps connections to the scheduler's relay open, in
    /// `MODE=builder`.
    pub tunnelled: bool,
    /// `http://host:port` or `https://host:port` of the scheduler, in `MODE=builder`.
    pub scheduler_url: Option<String>,
    /// Address of the scheduler's port.
    pub scheduler_listen: SocketAddr,
    /// With TLS, other machines may use the scheduler's port without it.
    pub scheduler_plain: bool,
    /// The relay, if it is on.
    pub relay: Option<Relay>,
    /// Address of the builder's port.
    pub builder_listen: SocketAddr,
    pub isolation: Isolation,
    /// Number of processors that jobs may use.
    pub slots: Option<usize>,
    /// Disk budget of the packed toolchains.
    pub toolchain_cache_bytes: u64,
    /// Maximum unpacked size of a toolchain.
    pub toolchain_bytes: Option<u64>,
    pub wrong_token: WrongToken,
    /// Limits of one job.
    pub job_memory_bytes: Option<u64>,
    pub job_processes: Option<u64>,
    pub job_disk_bytes: Option<u64>,
    pub job_time: Duration,
    /// Program of the services `scheduler` and `builder`.
    pub program: PathBuf,
}

impl Lookup<'_> {
    pub(super) fn distribution(
        &mut self,
        mode: Option<Mode>,
        has_certificate: bool,
    ) -> Option<Distribution> {
        let builder_token = self.parsed("SCCACHE_SERVER_TOKEN", optional(builder_token));
        let builder_jwt_key = self.parsed("SCCACHE_SERVER_JWT_KEY", optional(jwt_key));
        let reached = self.parsed("SCCACHE_PUBLIC_ADDR", optional(reached));
        let scheduler_url = self.parsed("SCCACHE_SCHEDULER_URL", optional(scheduler_url));
        let scheduler_listen = self.parsed("SCCACHE_SCHEDULER_LISTEN", address);
        let scheduler_plain = self.parsed("SCCACHE_SCHEDULER_PLAIN", scheduler_plain);
        let relay = self.relay();
        let builder_listen = self.parsed("SCCACHE_BUILDER_LISTEN", address);
        let isolation = self.parsed("SCCACHE_BUILDER_ISOLATION", isolation);
        let slots = self.parsed("SCCACHE_BUILDER_SLOTS", optional(count));
        let toolchain_cache_bytes = self.parsed("SCCACHE_TOOLCHAIN_CACHE_SIZE", size);
        let toolchain_bytes = self.parsed("SCCACHE_TOOLCHAIN_SIZE", optional(toolchain));
        let wrong_token = self.parsed("SCCACHE_DIST_WRONG_TOKEN", wrong_token);
        let job_memory_bytes = self.parsed("SCCACHE_JOB_MEMORY", optional(job_memory));
        let job_processes = self.parsed("SCCACHE_JOB_PROCESSES", optional(count));
        let job_disk_bytes = self.parsed("SCCACHE_JOB_DISK", optional(job_disk));
        let job_time = self.parsed("SCCACHE_JOB_TIME", job_time);
        let program = self.parsed("SCCACHE_DIST_BINARY", |text| Ok(PathBuf::from(text)));
        let (builder_token, scheduler_url) = (builder_token?, scheduler_url?);
        match mode {
            Some(Mode::Builder) => {
                if scheduler_url.is_none() {
                    self.problem(
                        "SCCACHE_SCHEDULER_URL",
                        "is required in MODE=builder: a builder needs a scheduler".into(),
                        Some("set it to http://host:10600 of the machine that runs MODE=distributed-...".into()),
                    );
                }
                if builder_token.is_none() && !has_certificate {
                    self.problem(
                        "SCCACHE_SERVER_TOKEN",
                        "is required in MODE=builder: the scheduler accepts no builder without it".into(),
                        Some("set it, or SCCACHE_SERVER_TOKEN_FILE, to the content of state/server-token on the scheduler's machine".into()),
                    );
                }
            }
            Some(_) if scheduler_url.is_some() => self.problem(
                "SCCACHE_SCHEDULER_URL",
                "has no effect in this mode, which joins no scheduler of another machine".into(),
                Some("use MODE=builder to add this machine to that scheduler, or unset it".into()),
            ),
            Some(_) | None => {}
        }
        if mode != Some(Mode::Builder)
            && matches!(reached, Some(Some(Reached::ByItsOwnConnections)))
        {
            self.problem(
                "SCCACHE_PUBLIC_ADDR",
                "\"none\" is for MODE=builder: a builder that keeps connections to the relay of another machine".into(),
                Some("write the address that clients reach this machine at, or leave it unset".into()),
            );
        }
        Some(Distribution {
            builder_token,
            public_addr: match reached? {
                Some(Reached::At(address)) => Some(address),
                Some(Reached::ByItsOwnConnections) | None => None,
            },
            builder_jwt_key: builder_jwt_key?,
            tunnelled: matches!(reached?, Some(Reached::ByItsOwnConnections)),
            scheduler_url,
            scheduler_listen: scheduler_listen?,
            scheduler_plain: scheduler_plain?,
            relay: relay?,
            builder_listen: builder_listen?,
            isolation: isolation?,
            slots: slots?.map(|slots| usize::try_from(slots).unwrap_or(usize::MAX)),
            toolchain_cache_bytes: toolchain_cache_bytes?,
            toolchain_bytes: toolchain_bytes?,
            wrong_token: wrong_token?,
            job_memory_bytes: job_memory_bytes?,
            job_processes: job_processes?,
            job_disk_bytes: job_disk_bytes?,
            job_time: job_time?,
            program: program?,
        })
    }
}

impl Lookup<'_> {
    /// Certificate and key must be set together.
    pub(super) fn client_certificate(&mut self) -> Option<ClientCertificate> {
        let cert = self.parsed("SCCACHE_TLS_CLIENT_CERT", optional(file))?;
        let key = self.parsed("SCCACHE_TLS_CLIENT_KEY", optional(file))?;
        let (missing, there) = match (cert, key) {
            (Some(cert), Some(key)) => return Some(ClientCertificate { cert, key }),
            (None, None) => return None,
            (Some(_), None) => ("SCCACHE_TLS_CLIENT_KEY", "SCCACHE_TLS_CLIENT_CERT"),
            (None, Some(_)) => ("SCCACHE_TLS_CLIENT_CERT", "SCCACHE_TLS_CLIENT_KEY"),
        };
        let hint = "set both, or none".to_owned();
        self.problem(missing, format!("is not set, but {there} is"), Some(hint));
        None
    }
}

fn builder_token(text: &str) -> Result<Secret, ValueError> {
    if text == "anonymous" {
        return Err(ValueError::hint(
            "without a token, anyone could pose as a builder",
            "leave it unset to have one generated",
        ));
    }
    token(text)
}

fn jwt_key(text: &str) -> Result<JwtKey, ValueError> {
    JwtKey::parse(text).ok_or_else(|| {
        ValueError::hint(
            "is no key of 32 bytes in base64url",
            "make one with sccache-dist auth generate-jwt-hs256-key",
        )
    })
}

/// Completes `http://host[:port]`, `https://host[:port]` or `host[:port]`.
fn scheduler_url(text: &str) -> Result<String, ValueError> {
    let fault = |message: &str| ValueError::hint(message, "write it as http://build-host:10600");
    let (scheme, host) = text.split_once("://").unwrap_or(("http", text));
    if !matches!(scheme, "http" | "https") {
        return Err(fault("is not the address of a scheduler"));
    }
    let host = host.strip_suffix('/').unwrap_or(host);
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-._:[]".contains(c);
    if host.is_empty() || host.starts_with(':') || !host.chars().all(allowed) {
        return Err(fault("is not the address of a scheduler"));
    }
    // Colons inside the brackets of an IPv6 address do not separate the port.
    let after = host.rfind(']').map_or(0, |at| at + 1);
    match host[after..].split_once(':') {
        None => Ok(format!("{scheme}://{host}:{SCHEDULER_PORT}")),
        Some((_, port)) if port.parse::<u16>().is_ok_and(|port| port > 0) => {
            Ok(format!("{scheme}://{host}"))
        }
        Some(_) => Err(fault("has an invalid port")),
    }
}

fn isolation(text: &str) -> Result<Isolation, ValueError> {
    match text {
        "auto" => Ok(Isolation::Auto),
        "userns" => Ok(Isolation::Userns),
        "root" => Ok(Isolation::Root),
        other => Err(ValueError::hint(
            format!("\"{other}\" is not a kind of isolation"),
            "use auto, userns or root",
        )),
    }
}

fn wrong_token(text: &str) -> Result<WrongToken, ValueError> {
    match text {
        "fail" => Ok(WrongToken::Fail),
        "fallback" => Ok(WrongToken::Fallback),
        other => Err(ValueError::hint(
            format!("\"{other}\" is not an answer to a wrong token"),
            "use fail or fallback",
        )),
    }
}

fn count(text: &str) -> Result<u64, ValueError> {
    match text.parse() {
        Ok(0) | Err(_) => Err(ValueError::hint(
            "is not a number of 1 or more",
            "leave it unset for the default",
        )),
        Ok(count) => Ok(count),
    }
}

fn job_memory(text: &str) -> Result<u64, ValueError> {
    at_least_64_mib(text, "is less than 64M, in which no compiler runs")
}

fn job_disk(text: &str) -> Result<u64, ValueError> {
    at_least_64_mib(text, "is less than 64M, which some inputs alone exceed")
}

fn toolchain(text: &str) -> Result<u64, ValueError> {
    at_least_64_mib(text, "is less than 64M, which most compilers exceed")
}

fn at_least_64_mib(text: &str, fault: &'static str) -> Result<u64, ValueError> {
    const LEAST: u64 = 64 << 20;
    match size(text)? {
        bytes if bytes < LEAST => Err(ValueError::hint(fault, "write it as 4G, or leave it unset")),
        bytes => Ok(bytes),
    }
}

fn job_time(text: &str) -> Result<Duration, ValueError> {
    match duration(text)? {
        time if time < Duration::from_secs(1) => Err(ValueError::hint(
            "is less than a second",
            "write it as 20m or 300s",
        )),
        time => Ok(time),
    }
}
