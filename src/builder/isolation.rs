//! Namespaces: entering them, and the trial that does what a job does before the first job comes.
//!
//! A process cannot leave a user namespace again, so each kind is tried by a process of its own.

use super::mounts::Procfs;
use crate::builder::guard::Guard;
use crate::builder::shim;
use crate::builder::shim::JobSpec;
use crate::config::settings::Isolation;
use crate::contract::builder_config::{Config, User};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{Gid, Uid};
use serde::{Deserialize, Serialize};
use std::fs;
use std::io;
use std::path::Path;
use std::process::Command;
use tracing::warn;

/// What was being done when it failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// Becoming the services' user.
    StepDown,
    /// Being root at all.
    BeRoot,
    UserNamespace,
    MapUser,
    MountNamespace,
    PrivateMounts,
    MountProc,
    Folder,
    MountOverlay,
    ChangeRoot,
    Sandbox,
}

impl Step {
    /// What could not be done, in words.
    pub fn as_str(self) -> &'static str {
        match self {
            Step::StepDown => "become the services' user",
            Step::BeRoot => "use root",
            Step::UserNamespace => "make a user namespace",
            Step::MapUser => "map the user into the namespace",
            Step::MountNamespace => "make a mount namespace",
            Step::PrivateMounts => "make the mounts private",
            Step::MountProc => "mount a new /proc",
            Step::Folder => "write to the builder's folder",
            Step::MountOverlay => "mount an overlay in the builder's folder",
            Step::ChangeRoot => "change the root folder",
            Step::Sandbox => "start bubblewrap",
        }
    }
}

/// Why jobs cannot be isolated in one way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("cannot {}: {cause}", step.as_str())]
pub struct Failure {
    pub step: Step,
    /// What the system said, or bubblewrap.
    pub cause: String,
}

impl Failure {
    fn at<E: std::fmt::Display>(step: Step) -> impl Fn(E) -> Failure {
        move |cause| Failure {
            step,
            cause: cause.to_string(),
        }
    }
}

/// Moves this process, which must have one thread only, into its namespaces.
///
/// # Errors
/// The step that the system refuses.
pub fn enter(isolation: Isolation, user: Option<User>) -> Result<(), Failure> {
    match isolation {
        Isolation::Root => enter_as_root(),
        Isolation::Auto | Isolation::Userns => enter_user_namespace(user),
    }
}

fn enter_user_namespace(user: Option<User>) -> Result<(), Failure> {
    if let Some(User { uid, gid }) = user.filter(|_| nix::unistd::geteuid().is_root()) {
        let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
        nix::unistd::setgroups(&[gid])
            .and_then(|()| nix::unistd::setgid(gid))
            .and_then(|()| nix::unistd::setuid(uid))
            // Another user's files in /proc/self would be root's, and the map could not be written.
            .and_then(|()| nix::sys::prctl::set_dumpable(true))
            .map_err(Failure::at(Step::StepDown))?;
    }
    let (uid, gid) = (nix::unistd::geteuid(), nix::unistd::getegid());
    unshare(CloneFlags::CLONE_NEWUSER).map_err(Failure::at(Step::UserNamespace))?;
    unshare(CloneFlags::CLONE_NEWNS).map_err(Failure::at(Step::MountNamespace))?;
    fs::write("/proc/self/setgroups", "deny")
        .and_then(|()| fs::write("/proc/self/uid_map", format!("0 {uid} 1")))
        .and_then(|()| fs::write("/proc/self/gid_map", format!("0 {gid} 1")))
        .map_err(Failure::at(Step::MapUser))
}

fn enter_as_root() -> Result<(), Failure> {
    if !nix::unistd::geteuid().is_root() {
        let cause = format!("we run as user {}", nix::unistd::geteuid());
        return Err(Failure {
            step: Step::BeRoot,
            cause,
        });
    }
    unshare(CloneFlags::CLONE_NEWNS).map_err(Failure::at(Step::MountNamespace))?;
    private_mounts()?;
    // Over the masked one, which would forbid the jobs' own.
    const NOTHING: Option<&str> = None;
    mount(
        Some("proc"),
        "/proc",
        Some("proc"),
        MsFlags::empty(),
        NOTHING,
    )
    .map_err(Failure::at(Step::MountProc))
}

fn private_mounts() -> Result<(), Failure> {
    const NOTHING: Option<&str> = None;
    let flags = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(NOTHING, "/", NOTHING, flags, NOTHING).map_err(Failure::at(Step::PrivateMounts))
}

/// Does what `sccache-dist` does for a job, on the folder where it will: gives the kind of `/proc` that jobs can have, and
/// how they can be guarded.
///
/// # Errors
/// The step that fails, as a job's would.
pub fn trial(config: &Config, terms: &JobSpec) -> Result<(Procfs, Guard), Failure> {
    let folder = config.dir.join(format!("trial-{}", std::process::id()));
    let outcome = try_job(&folder, terms);
    let _ = umount2(&folder.join("target"), MntFlags::MNT_DETACH);
    let cleaned = fs::remove_dir_all(&folder);
    let works = outcome?;
    cleaned.map_err(Failure::at(Step::Folder))?;
    Ok(works)
}

fn try_job(folder: &Path, terms: &JobSpec) -> Result<(Procfs, Guard), Failure> {
    unshare(CloneFlags::CLONE_NEWNS).map_err(Failure::at(Step::MountNamespace))?;
    private_mounts()?;
    let [lower, upper, work, target] =
        ["lower", "upper", "work", "target"].map(|name| folder.join(name));
    for path in [&lower, &upper, &work, &target] {
        fs::create_dir_all(path).map_err(Failure::at(Step::Folder))?;
    }
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        lower.display(),
        upper.display(),
        work.display()
    );
    mount(
        Some("overlay"),
        &target,
        Some("overlay"),
        MsFlags::empty(),
        Some(options.as_str()),
    )
    .map_err(Failure::at(Step::MountOverlay))?;
    write_below(&target).map_err(Failure::at(Step::ChangeRoot))?;
    let first = try_sandbox(&target, terms, Procfs::Fresh, None);
    let procfs = match first {
        Err(failure) if failure.cause.contains("proc") => {
            try_sandbox(&target, terms, Procfs::Bind, None).map(|()| Procfs::Bind)
        }
        other => other.map(|()| Procfs::Fresh),
    }?;
    let guard = match try_sandbox(&target, terms, procfs, Some(Guard::Watch)) {
        Ok(()) => Guard::Watch,
        Err(failure) => {
            warn!("cannot watch the jobs: {failure}");
            Guard::List
        }
    };
    Ok((procfs, guard))
}

/// Inputs are unpacked by a thread whose root is the job's.
fn write_below(root: &Path) -> io::Result<()> {
    std::thread::scope(|scope| {
        let inside = scope.spawn(|| {
            unshare(CloneFlags::CLONE_FS)?;
            std::os::unix::fs::chroot(root)?;
            std::env::set_current_dir("/")?;
            fs::write("/trial", "a job's input")
        });
        inside
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("its thread ended")))
    })
}

/// The arguments of `sccache-dist` (0.19.0, `src/bin/sccache-dist/build.rs`), through the shim, around our own program.
fn try_sandbox(
    target: &Path,
    terms: &JobSpec,
    procfs: Procfs,
    guard: Option<Guard>,
) -> Result<(), Failure> {
    let fail = |cause: String| Failure {
        step: Step::Sandbox,
        cause,
    };
    let said = |error: &dyn std::fmt::Display| fail(error.to_string());
    let program = std::env::current_exe().map_err(|error| said(&error))?;
    let terms = JobSpec {
        procfs,
        guard,
        jobs_socket: None,
        ..terms.clone()
    };
    let mut command = Command::new(&program);
    command
        .env(
            shim::VARIABLE,
            serde_json::to_string(&terms).map_err(|error| said(&error))?,
        )
        .args(["--die-with-parent", "--cap-drop", "ALL", "--unshare-user"])
        .args(["--unshare-cgroup", "--unshare-ipc", "--unshare-pid"])
        .args(["--unshare-net", "--unshare-uts", "--bind"])
        .arg(target)
        .args(["/", "--proc", "/proc", "--dev", "/dev", "--chdir", "/"]);
    for libraries in ["/usr", "/lib", "/lib64"] {
        command.args(["--ro-bind-try", libraries, libraries]);
    }
    command
        .arg("--ro-bind")
        .arg(&program)
        // By the name of one that is guarded.
        .args(["/clippy-driver", "--", "/clippy-driver"])
        .args(["builder", "--config", "none"])
        .args(["--part", "look"]);
    let output = command.output().map_err(|error| said(&error))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(fail(match said.is_empty() {
        true => output.status.to_string(),
        false => said,
    }))
}
