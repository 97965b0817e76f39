//! The supervisors: how each is given its children, started, asked to stop.

use crate::Outcome;
use crate::measure::{self, Reports, now};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::Pid;
use sccache_dock::config::plan::Facts;
use sccache_dock::config::settings;
use sccache_dock::config::settings::Settings;
use sccache_dock::contract::service::Rules;
use sccache_dock::contract::service::{Plan, ReadyBy, Service, StopBy};
use sccache_dock::supervisor;
use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

/// First argument of this program when it is to be our supervisor.
pub(crate) const OURS_ROLE: &str = "supervise";
/// Names the folder in which our supervisor finds its children.
const SERVICES: &str = "BENCH_SERVICES";

/// Who is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Peer {
    Ours,
    S6,
    Runit,
    Tini,
    DumbInit,
    Catatonit,
    Supervisord,
}

impl Peer {
    pub(crate) const ALL: [Peer; 7] = [
        Peer::Ours,
        Peer::S6,
        Peer::Runit,
        Peer::Tini,
        Peer::DumbInit,
        Peer::Catatonit,
        Peer::Supervisord,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Peer::Ours => "ours",
            Peer::S6 => "s6",
            Peer::Runit => "runit",
            Peer::Tini => "tini",
            Peer::DumbInit => "dumb-init",
            Peer::Catatonit => "catatonit",
            Peer::Supervisord => "supervisord",
        }
    }

    pub(crate) fn label(self) -> String {
        let few = if self.takes_one() { " (1 child)" } else { "" };
        format!("{}{few}", self.name())
    }

    /// Where it is installed.
    pub(crate) fn program(self) -> Option<PathBuf> {
        let name = match self {
            Peer::Ours => return std::env::current_exe().ok(),
            Peer::S6 => "s6-svscan",
            Peer::Runit => "runsvdir",
            Peer::Tini | Peer::DumbInit | Peer::Catatonit | Peer::Supervisord => self.name(),
        };
        let path = std::env::var_os("PATH")?;
        std::env::split_paths(&path)
            .map(|dir| dir.join(name))
            .find(|path| path.is_file())
    }

    fn takes_one(self) -> bool {
        matches!(self, Peer::Tini | Peer::DumbInit | Peer::Catatonit)
    }

    pub(crate) fn restarts(self) -> bool {
        !self.takes_one()
    }

    /// Its start takes more than a second: fewer rounds do.
    pub(crate) fn is_slow(self) -> bool {
        self == Peer::Supervisord
    }

    /// Kills a child that ignores SIGTERM after a time that can be set.
    pub(crate) fn kills_the_stubborn(self) -> bool {
        matches!(self, Peer::Ours | Peer::S6 | Peer::Supervisord)
    }

    /// supervisord reaps a hundred a second: nobody waits for it.
    pub(crate) fn reaps_in_time(self) -> bool {
        self != Peer::Supervisord
    }

    /// runsvdir leaves its services behind on SIGTERM.
    fn stop_signal(self) -> Signal {
        match self {
            Peer::Runit => Signal::SIGHUP,
            _ => Signal::SIGTERM,
        }
    }
}

/// A private folder with a folder for each service, each with a script `run`, and the FIFO of the reports.
pub(crate) struct Site {
    pub(crate) dir: tempfile::TempDir,
    grace: Duration,
    stubborn: bool,
}

impl Site {
    pub(crate) fn new(grace: Duration) -> Outcome<Site> {
        let dir = tempfile::tempdir()?;
        nix::unistd::mkfifo(&dir.path().join("reports"), Mode::S_IRWXU)?;
        fs::create_dir(dir.path().join("services"))?;
        Ok(Site {
            dir,
            grace,
            stubborn: false,
        })
    }

    /// The last child ignores SIGTERM.
    pub(crate) fn with_a_stubborn_child(self) -> Outcome<Site> {
        Ok(Site {
            stubborn: true,
            ..self
        })
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Adds a service whose program is this shell script.
    pub(crate) fn add(&self, name: &str, script: &str) -> Outcome<()> {
        let dir = self.path("services").join(name);
        fs::create_dir(&dir)?;
        fs::write(dir.join("run"), format!("#!/bin/sh\n{script}\n"))?;
        fs::set_permissions(dir.join("run"), fs::Permissions::from_mode(0o755))?;
        fs::write(dir.join("timeout-kill"), self.grace.as_millis().to_string())?;
        Ok(())
    }

    fn add_children(&self, count: usize) -> Outcome<()> {
        let reports = self.path("reports");
        for index in 0..count {
            let trap = match self.stubborn && index + 1 == count {
                true => "trap '' TERM\n",
                false => "",
            };
            let script = format!("{trap}echo $$ >'{}'\nexec sleep 1000000", reports.display());
            self.add(&format!("child{index}"), &script)?;
        }
        Ok(())
    }

    /// The command that runs this supervisor with all services of the site.
    pub(crate) fn command(&self, peer: Peer) -> Outcome<Command> {
        let program = peer
            .program()
            .ok_or(format!("{} is not installed", peer.name()))?;
        let services = self.path("services");
        let mut command = Command::new(program);
        match peer {
            Peer::Ours => {
                command
                    .arg(OURS_ROLE)
                    .env(SERVICES, &services)
                    .env("SCCACHE_DIR", self.path("state"))
                    .env("SCCACHE_LISTEN", "127.0.0.1:0")
                    .env("SCCACHE_BINARY", "/bin/true")
                    // As at every start but the first, which makes a token and waits for the disk to have it.
                    .env("SCCACHE_AUTH_TOKEN", "token-of-the-bench")
                    .env(
                        "SCCACHE_STOP_GRACE",
                        format!("{}ms", self.grace.as_millis()),
                    );
            }
            Peer::S6 | Peer::Runit => {
                command.arg(&services);
            }
            Peer::Tini | Peer::DumbInit | Peer::Catatonit => {
                let first = fs::read_dir(&services)?.next().ok_or("no service")??;
                command.arg("--").arg(first.path().join("run"));
            }
            Peer::Supervisord => {
                command.arg("-c").arg(self.supervisord_file(&services)?);
            }
        }
        command.stdin(Stdio::null()).stdout(Stdio::null());
        Ok(command)
    }

    /// Makes the folder look old: runsvdir waits for a second where it has just changed.
    pub(crate) fn rest(&self) -> Outcome<()> {
        let old = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        Ok(File::open(self.path("services"))?.set_modified(old)?)
    }

    fn supervisord_file(&self, services: &Path) -> Outcome<PathBuf> {
        let mut text = format!(
            "[supervisord]\nnodaemon=true\nuser=root\nlogfile=/dev/null\nlogfile_maxbytes=0\npidfile={}\n",
            self.path("pid").display()
        );
        for entry in fs::read_dir(services)? {
            let entry = entry?;
            text += &format!(
                "[program:{}]\ncommand={}\nautorestart=true\nstartsecs=0\nstopwaitsecs={}\n",
                entry.file_name().display(),
                entry.path().join("run").display(),
                self.grace.as_secs()
            );
        }
        let path = self.path("supervisord.conf");
        fs::write(&path, text)?;
        Ok(path)
    }
}

/// Opened for both, a FIFO never ends and never blocks a writer.
pub(crate) fn open_both(path: &Path) -> std::io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(nix::libc::O_CLOEXEC)
        .open(path)
}

/// A supervisor with its children, gone with all of them on drop.
pub(crate) struct Running {
    peer: Peer,
    _site: Site,
    reports: Reports,
    child: Child,
    begin: Instant,
    expected: usize,
    pids: Vec<i32>,
}

impl Running {
    /// Starts it and waits for nothing.
    pub(crate) fn start(peer: Peer, site: Site, children: usize) -> Outcome<Running> {
        let expected = if peer.takes_one() { 1 } else { children };
        site.add_children(expected)?;
        site.rest()?;
        let reports = Reports::new(open_both(&site.path("reports"))?);
        let mut command = site.command(peer)?;
        // Whoever holds it is still there: every process of the peers inherits it.
        command.stderr(Stdio::piped());
        let begin = now();
        let child = command.spawn()?;
        Ok(Running {
            peer,
            _site: site,
            reports,
            child,
            begin,
            expected,
            pids: Vec::new(),
        })
    }

    /// Waits until every child runs; gives the time since the start.
    pub(crate) fn wait_children(&mut self) -> Outcome<Duration> {
        while self.pids.len() < self.expected {
            let pid = self.reports.next()?;
            self.pids.push(pid);
        }
        Ok(self.begin.elapsed())
    }

    fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// The supervisor's processes without the children.
    pub(crate) fn own_processes(&self) -> Vec<i32> {
        let mut pids = measure::tree(self.pid());
        pids.retain(|pid| !self.pids.contains(pid));
        pids
    }

    /// Kills each child once; gives the times until its successor runs.
    pub(crate) fn restart_each(&mut self) -> Outcome<Vec<Duration>> {
        let mut times = Vec::new();
        for index in 0..self.pids.len() {
            let begin = now();
            kill(Pid::from_raw(self.pids[index]), Signal::SIGKILL)?;
            self.pids[index] = self.reports.next()?;
            times.push(begin.elapsed());
        }
        Ok(times)
    }

    /// Asks it to stop; gives the time until all of its processes and children are gone.
    pub(crate) fn stop(&mut self) -> Outcome<Duration> {
        let mut stderr = self.child.stderr.take().ok_or("stopped twice")?;
        let begin = now();
        kill(Pid::from_raw(self.pid()), self.peer.stop_signal())?;
        let mut said = [0; 4096];
        loop {
            measure::wait_readable(&stderr, "the end of a supervisor")?;
            if stderr.read(&mut said)? == 0 {
                break;
            }
        }
        measure::wait(&mut self.child)?;
        let took = begin.elapsed();
        match self
            .pids
            .iter()
            .find(|pid| Path::new(&format!("/proc/{pid}")).exists())
        {
            Some(pid) => Err(format!("{} left child {pid} behind", self.peer.name()).into()),
            None => Ok(took),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|ended| ended.is_some()) {
            return;
        }
        for pid in measure::tree(self.pid()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        let _ = measure::wait(&mut self.child);
    }
}

/// Our supervisor with the services of a site.
pub(crate) fn be_ours() -> Outcome<u8> {
    let loaded = settings::load().map_err(|problems| problems.to_string())?;
    Ok(supervisor::run_plan(loaded, plan_of_site)?)
}

/// Names of services live as long as the program; sites have no more than these.
const NAMES: [&str; 5] = ["child0", "child1", "child2", "child3", "maker"];

fn plan_of_site(settings: &Settings, _: &Facts) -> Result<Plan, toml::ser::Error> {
    let folder = PathBuf::from(std::env::var_os(SERVICES).unwrap_or_default());
    let service = |name: &'static str| {
        let program = folder.join(name).join("run");
        program.is_file().then(|| Service {
            name,
            program,
            args: Vec::new(),
            env: vec![("PATH".into(), "/usr/bin:/bin".into())],
            ready_by: ReadyBy::Spawn,
            keeps_root: false,
            stop_by: StopBy::Term,
            files: Vec::new(),
            rules: Rules {
                depends_on: Vec::new(),
                ready_timeout: Duration::from_secs(30),
                grace: settings.stop_grace,
                fatal_codes: &[],
            },
        })
    };
    Ok(Plan {
        services: NAMES.into_iter().filter_map(service).collect(),
        secrets: Vec::new(),
    })
}
