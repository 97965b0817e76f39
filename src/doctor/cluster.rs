//! The distributed lane: the config file that it needs, the scheduler, and each builder as this client reaches it.
//!
//! Sccache itself hides all of this: whatever fails is compiled here, slowly and without a word, except a wrong token,
//! which fails the build.

use super::connect::CONNECT_TIMEOUT;
use super::http::{Http, refused_certificate};
use super::{Check, Environment, Verdict};
use crate::base::secret::Secret;
use crate::client::endpoint::Endpoint;
use crate::client::sccache_file::Conf;
use crate::contract::gateway_status::LocalJobs;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt as _;

/// What it says about the cluster, in the modes that distribute.
#[derive(Default, Deserialize)]
pub(super) struct Cluster {
    #[serde(default)]
    pub(super) builders: Vec<Builder>,
    /// Requests for a builder, by outcome.
    #[serde(default)]
    pub(super) allocations: BTreeMap<String, u64>,
    /// Present if clients need not reach builders.
    #[serde(default)]
    pub(super) relay: Option<Relay>,
    #[serde(default)]
    pub(super) local_jobs: LocalJobs,
}

/// What the relay has counted.
#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct Relay {
    /// Jobs handed to builders, by what became of that.
    #[serde(default)]
    pub(super) attempts: BTreeMap<String, u64>,
}

#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct Builder {
    /// Where clients and the scheduler find it.
    pub(super) address: String,
    #[serde(default)]
    pub(super) state: String,
    /// Jobs that were assigned and never finished.
    #[serde(default)]
    pub(super) failed: u64,
    #[serde(default)]
    pub(super) last_sign_seconds: u64,
}

/// Where a scheduler says how much it has, to everybody.
const STATUS: &str = "/api/v1/scheduler/status";

const WHOLE_FILE: &str =
    "eval the output of sccache-dock client-env --lane dist, which writes the whole file";

/// The config file of a client that distributes.
pub(super) fn judge_conf(conf: &Conf, environment: &Environment) -> Vec<Check> {
    let what = "config file";
    let path = conf.path.display();
    let mut checks = Vec::new();
    let mode = std::fs::metadata(&conf.path).map_or(0, |it| it.permissions().mode());
    if mode & 0o077 != 0 {
        let found = format!("{path} has the token in it, and others can read it");
        checks.push(Check::warn(what, found, format!("chmod 600 {path}")));
    }
    let Some(token) = &conf.token else {
        let found = format!(
            "{path} names a scheduler and no token: every compile that misses the cache fails"
        );
        checks.push(Check::fail(what, found, WHOLE_FILE));
        return checks;
    };
    let cache = environment.get("SCCACHE_WEBDAV_TOKEN");
    let cache = cache
        .map(|it| Secret::new(it))
        .or(conf.webdav_token.clone());
    if cache.is_some_and(|cache| cache != *token) {
        let found =
            format!("{path} has another token for the scheduler than the one for the cache");
        checks.push(Check::warn(what, found, WHOLE_FILE));
    }
    if conf.webdav.is_none() && !environment.contains_key("SCCACHE_WEBDAV_ENDPOINT") {
        let found =
            format!("{path} names a scheduler and no cache: the same is compiled again and again");
        checks.push(Check::warn(what, found, WHOLE_FILE));
    }
    if checks.is_empty() {
        checks.push(Check::ok(what, format!("{path} has scheduler and token")));
    }
    checks
}

/// What `sccache` sends to a scheduler, at least.
#[derive(Deserialize)]
struct Capacity {
    num_servers: u64,
    num_cpus: u64,
}

/// Asks the scheduler as sccache does, then looks for each builder.
pub(super) fn examine(
    conf: &Conf,
    url: &str,
    cluster: Option<&Cluster>,
    environment: &Environment,
    checks: &mut Vec<Check>,
) {
    let what = "scheduler";
    let endpoint = match Endpoint::parse(url) {
        Ok(endpoint) if !endpoint.has_path() => endpoint,
        _ => {
            let found = format!("\"{url}\" is no URL that sccache takes for a scheduler");
            checks.push(Check::fail(what, found, "write it as http://HOST:10600"));
            return;
        }
    };
    let page = format!("{}{STATUS}", endpoint.url);
    super::proxy::judge(environment, &endpoint, &[page], checks);
    if !super::connect::connect(what, &endpoint, checks) {
        return;
    }
    let http = Http::new(&endpoint.url, conf.token.as_ref());
    if let Some(capacity) = status(&http, &endpoint, checks) {
        token(&http, checks);
        checks.extend(relay(&http, &endpoint));
        if capacity.num_servers > 0 && cluster.is_none() {
            let hint =
                "give the token of the cache too, so that this command learns where they are";
            let found = "not looked for: the gateway does not say where they are";
            checks.push(Check::warn("builders", found, hint));
        }
    }
    let Some(cluster) = cluster else { return };
    checks.extend(
        cluster
            .builders
            .iter()
            .map(|it| judge_builder(it, cluster.relay.is_none().then_some(&endpoint))),
    );
    checks.extend(handing_over(cluster));
    checks.extend(sent_home(&cluster.local_jobs));
}

/// What the gateway knows about a builder, then what this client sees if it has to reach it.
pub(super) fn judge_builder(builder: &Builder, scheduler: Option<&Endpoint>) -> Check {
    let address = &builder.address;
    if builder.state == "lost" {
        let found = format!(
            "{address} has given the scheduler no sign for {} s",
            builder.last_sign_seconds
        );
        let hint = "look whether it runs, and at its log: it must reach the scheduler's port 10600";
        return Check::fail("builder", found, hint);
    }
    let Some(scheduler) = scheduler else {
        let found = format!(
            "{address} is {}; the relay reaches it, no client has to",
            builder.state
        );
        return Check::ok("builder", found);
    };
    let check = reach(address, scheduler);
    if check.verdict == Verdict::Ok && builder.failed > 0 {
        let found = format!(
            "{address} answers, but {} jobs for it were never finished",
            builder.failed
        );
        let hint = "look for clients that do not reach it (this command, there), and at its log";
        return Check::warn("builder", found, hint);
    }
    check
}

/// Whether the scheduler reaches the builders: it hands every job over itself, at the address that clients use too.
pub(super) fn handing_over(cluster: &Cluster) -> Option<Check> {
    let what = "scheduler to builders";
    let (counts, of_failures) = match &cluster.relay {
        Some(relay) => (&relay.attempts, &["unreachable", "refused"][..]),
        None => (&cluster.allocations, &["failed"][..]),
    };
    let count = |outcome: &str| counts.get(outcome).copied().unwrap_or(0);
    let failed: u64 = of_failures.iter().copied().map(count).sum();
    let assigned = match &cluster.relay {
        Some(_) => counts.values().sum::<u64>() - failed,
        None => count("assigned"),
    };
    if failed > 0 {
        let found = format!("{failed} jobs could not be handed to a builder, {assigned} could");
        let hint = "the scheduler's container must reach each builder's public address: publish 10501 on that address \
                    and not on 127.0.0.1, and let the firewall of that machine take connections from its own containers";
        return Some(Check::warn(what, found, hint));
    }
    (assigned > 0).then(|| Check::ok(what, format!("{assigned} jobs handed over")))
}

/// Where the relay sends this client's jobs, and whether it can be reached there. Nothing without a relay.
fn relay(http: &Http, endpoint: &Endpoint) -> Option<Check> {
    #[derive(Deserialize)]
    struct Told {
        address: SocketAddr,
    }
    let answer = http.get("/api/v1/dock/relay").ok()?;
    let told: Told = serde_json::from_str(&answer.body).ok()?;
    Some(judge_relay(
        told.address,
        greet(told.address),
        &endpoint.url,
    ))
}

/// What came of the greeting of a relay at `at`, whose scheduler has this URL.
pub(super) fn judge_relay(at: SocketAddr, greeted: io::Result<u8>, url: &str) -> Check {
    let what = "relay";
    let found = match greeted {
        Ok(0x15 | 0x16) => return Check::ok(what, format!("takes jobs at {at}")),
        Ok(_) => format!("{at}, to which it sends this client's jobs, does not speak TLS"),
        Err(error) => format!("cannot reach {at}, to which it sends this client's jobs: {error}"),
    };
    let hint = format!(
        "set SCCACHE_RELAY_ADDRESS in the scheduler's container to the ip:port at which clients reach {url}; an HTTP proxy \
         cannot be in between"
    );
    Check::fail(what, found, hint)
}

fn status(http: &Http, endpoint: &Endpoint, checks: &mut Vec<Check>) -> Option<Capacity> {
    let what = "scheduler";
    let capacity = match http.get(STATUS) {
        Ok(answer) if answer.code == 200 => serde_json::from_str::<Capacity>(&answer.body).ok(),
        Ok(answer) => {
            let found = format!("{} answers {}", endpoint.url, answer.code);
            let hint = if answer.code >= 500 {
                "the scheduler is away or restarting: look at sccache-dock status and the container's log"
            } else {
                "this is no scheduler: it is at port 10600, the cache at 4226"
            };
            checks.push(Check::fail(what, found, hint));
            return None;
        }
        Err(error) => {
            let found = format!("{} does not answer: {error}", endpoint.url);
            let hint = match endpoint.tls {
                true => {
                    "does its container have SCCACHE_TLS_CERT? If not, the scheduler speaks no TLS: write http://"
                }
                false => "look at sccache-dock status and the container's log",
            };
            let check = refused_certificate(&error, endpoint);
            checks.push(check.unwrap_or_else(|| Check::fail(what, found, hint)));
            return None;
        }
    };
    let Some(capacity) = capacity else {
        let found = format!("{} answers, but not as a scheduler does", endpoint.url);
        checks.push(Check::fail(
            what,
            found,
            "check scheduler_url in the config file",
        ));
        return None;
    };
    checks.push(if capacity.num_servers == 0 {
        Check::fail(
            what,
            "no builder is registered: everything is compiled here",
            "look at the builder's lines in its container's log, and at sccache-dock status there",
        )
    } else {
        let found = format!(
            "{} builders with {} slots at {}",
            capacity.num_servers, capacity.num_cpus, endpoint.url
        );
        Check::ok(what, found)
    });
    Some(capacity)
}

/// By a request for a job that says nothing about the job: refused before or after the token is looked at.
fn token(http: &Http, checks: &mut Vec<Check>) {
    let what = "scheduler token";
    checks.push(match http.post("/api/v1/scheduler/alloc_job", "") {
        Ok((401 | 403, _)) => Check::fail(
            what,
            "wrong: every compile that misses the cache fails",
            WHOLE_FILE,
        ),
        // SCCACHE_DIST_WRONG_TOKEN=fallback.
        Ok((503, why)) if why.contains("token") => Check::fail(
            what,
            "wrong: every compile that misses the cache is compiled here",
            WHOLE_FILE,
        ),
        Ok(_) => Check::ok(what, "accepted"),
        Err(error) => Check::fail(
            what,
            format!("cannot be tried: {error}"),
            "look at the container's log",
        ),
    });
}

/// A greeting of TLS 1.2, of which any TLS server understands enough to answer.
const CLIENT_HELLO: [u8; 50] = {
    let mut hello = [0; 50];
    // A record of 45 bytes, in it a ClientHello of 41.
    [hello[0], hello[1], hello[2], hello[4]] = [0x16, 3, 1, 45];
    [hello[5], hello[8], hello[9], hello[10]] = [1, 41, 3, 3];
    // After 32 bytes of randomness and no session: one cipher, no compression.
    [hello[45], hello[47], hello[48]] = [2, 0x9c, 1];
    hello
};

/// The first byte of the answer to a greeting by TLS.
fn greet(at: SocketAddr) -> io::Result<u8> {
    let mut stream = TcpStream::connect_timeout(&at, CONNECT_TIMEOUT)?;
    stream.set_read_timeout(Some(CONNECT_TIMEOUT))?;
    stream.set_write_timeout(Some(CONNECT_TIMEOUT))?;
    stream.write_all(&CLIENT_HELLO)?;
    let mut first = [0];
    stream.read_exact(&mut first)?;
    Ok(first[0])
}

/// Whether a builder can be reached from here: sccache hands it the job itself.
pub(super) fn reach(address: &str, scheduler: &Endpoint) -> Check {
    let what = "builder";
    let Ok(at) = address.parse::<SocketAddr>() else {
        let found = format!("\"{address}\" is no address");
        return Check::fail(what, found, "set SCCACHE_PUBLIC_ADDR there");
    };
    match greet(at) {
        // A handshake or an alert.
        Ok(0x15 | 0x16) => Check::ok(what, format!("{at} answers")),
        Ok(_) => Check::fail(
            what,
            format!("{at} is something else: it does not speak TLS"),
            "check SCCACHE_PUBLIC_ADDR of the builder and the port that is published for 10501",
        ),
        Err(error) => {
            let found = format!("cannot reach {at} from here: {error}");
            Check::fail(what, found, hint(at.ip(), error.kind(), scheduler))
        }
    }
}

/// Why a builder that the scheduler reaches cannot be reached from here.
fn hint(builder: IpAddr, error: ErrorKind, scheduler: &Endpoint) -> String {
    if builder.is_loopback() && !scheduler.is_loopback() {
        return "its public address is loopback: set SCCACHE_PUBLIC_ADDR=ADDRESS_OF_ITS_MACHINE:10501 there".into();
    }
    match error {
        ErrorKind::ConnectionRefused | ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset => {
            "nothing answers there: publish the builder's port 10501 on that address, and see whether it runs".into()
        }
        _ if is_private(builder) && !scheduler.is_loopback() => format!(
            "{builder} looks like the container's own address, which only its machine reaches: set \
             SCCACHE_PUBLIC_ADDR=ADDRESS_OF_ITS_MACHINE:10501 there and publish 10501"
        ),
        _ => "packets are dropped: check the firewall between here and there, and SCCACHE_PUBLIC_ADDR of the builder"
            .into(),
    }
}

/// Where Docker takes the addresses of containers from.
fn is_private(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_private(),
        IpAddr::V6(address) => address.is_unique_local(),
    }
}

/// What `sccache --dist-status` prints.
pub(super) fn judge_daemon(printed: &str) -> Check {
    let what = "daemon's cluster";
    let stop = "sccache --stop-server, then build again";
    let value: serde_json::Value = match serde_json::from_str(printed) {
        Ok(value) => value,
        Err(_) => return Check::warn(what, "sccache --dist-status prints no JSON", stop),
    };
    if value.get("SchedulerStatus").is_some() {
        Check::ok(what, "connected")
    } else if let Some(told) = value.get("NotConnected") {
        let why = told[1].as_str().unwrap_or_default();
        let hint = "fix the scheduler (see above): sccache tries again by itself";
        Check::fail(what, format!("not connected: {why}"), hint)
    } else {
        let found = "the daemon that runs was started without a scheduler";
        Check::fail(what, found, stop)
    }
}

/// Number of jobs of one crate from which on it is no coincidence that they were sent home.
const KEEPS_COMING: u64 = 3;

/// Names the crates that the builder in the container cannot compile: their jobs are started there, ended, and compiled
/// by the client.
pub(super) fn sent_home(jobs: &LocalJobs) -> Option<Check> {
    let crates = jobs.sent_home.iter();
    let crates = crates.filter(|one| one.jobs >= KEEPS_COMING);
    let named: Vec<_> = crates
        .map(|one| {
            format!(
                "{} ({} times; the last {})",
                one.home.crate_name, one.jobs, one.home
            )
        })
        .collect();
    (!named.is_empty()).then(|| {
        Check::warn(
            "crates",
            format!("keep coming home from the builder in the container: {}", named.join(", ")),
            "results are right, and take longer: let their macros take what they need from the source, from a build script \
             or by include_str!",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::gateway_status::SentHomeCount;
    use crate::contract::sent_home::{Reason, SentHome};

    #[test]
    fn crates_that_keep_coming_home_are_named() {
        let went = |crate_name: &str, what: &str, jobs| SentHomeCount {
            home: SentHome {
                crate_name: crate_name.into(),
                reason: Reason::Program,
                what: what.into(),
            },
            jobs,
        };
        let mut jobs = LocalJobs::default();
        jobs.sent_home.push(went("once", "git", 2));
        assert!(sent_home(&jobs).is_none());
        jobs.sent_home.push(went("often", "git", 3));
        let check = sent_home(&jobs).unwrap();
        let found =
            "keep coming home from the builder in the container: often (3 times; the last ran git)";
        assert_eq!(check.found, found);
    }
}
