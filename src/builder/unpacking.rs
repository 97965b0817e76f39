//! What toolchains and the inputs of jobs unpack to, within bounds: `sccache-dist` unpacks whatever it is sent, a few MB of
//! zeros to the end of the disk.
//!
//! An archive that is cut short is a broken one to `sccache-dist`: it stops, removes what it has unpacked, and strikes the
//! toolchain off. Inputs it unpacks as they come, where a layer of the job's overlay takes them: without that layer there
//! is no place for the next one, and the job ends with an error. No single file is larger than what `sccache-dist` may
//! write.

use crate::builder::folder::{Content, FILES, Folder};
use crate::builder::shim::{Limit, Report, Reports};
use crate::builder::toolchain;
use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use std::collections::HashMap;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tracing::{error, warn};

/// Between two looks at what is being unpacked.
const LOOK: Duration = Duration::from_millis(250);
/// What has not grown for so long is unpacked.
const STILL: Duration = Duration::from_secs(30);

/// How often the layer of a job is tried to be removed while it fills.
const TRIES: u32 = 200;

/// How much may be unpacked where.
#[derive(Debug)]
pub(super) struct Bounds {
    /// The builder's folder.
    pub(super) dir: PathBuf,
    pub(super) toolchain_bytes: u64,
    /// Of the inputs of one job.
    pub(super) job_bytes: u64,
    /// Where jobs that are refused are reported.
    pub(super) jobs_socket: PathBuf,
}

/// Watches over what is unpacked, by a thread that sleeps while nothing is.
pub(super) fn watch(bounds: Bounds) {
    std::thread::spawn(move || {
        if let Err(error) = bounds.keep_watching() {
            error!("cannot watch what toolchains and jobs unpack to: {error}");
        }
    });
}

impl Bounds {
    fn keep_watching(&self) -> io::Result<()> {
        let folders = ["toolchains", "builds"].map(|name| self.dir.join("build").join(name));
        let notify = Inotify::init(InitFlags::IN_CLOEXEC)?;
        for folder in &folders {
            // `sccache-dist` makes them when it starts.
            while let Err(error) = notify.add_watch(folder, AddWatchFlags::IN_CREATE) {
                match error {
                    Errno::ENOENT => std::thread::sleep(LOOK),
                    other => return Err(other.into()),
                }
            }
        }
        let [toolchains, builds] = folders;
        let mut seen = HashMap::new();
        loop {
            loop {
                let begin = now();
                let grows = look(&toolchains, self.toolchain_bytes, &mut seen)?;
                if !(self.look_at_inputs(&builds)? | grows) {
                    break;
                }
                std::thread::sleep(LOOK.max(20 * (now() - begin)));
            }
            notify.read_events()?;
        }
    }

    /// Looks at the jobs whose inputs are being unpacked, and ends those that have too many; gives whether there are any.
    fn look_at_inputs(&self, builds: &Path) -> io::Result<bool> {
        let mut any = false;
        for entry in fs::read_dir(builds)?.flatten() {
            let job = entry.path();
            if Folder::is_unpacked(&job) {
                continue;
            }
            any = true;
            let content = Content::of([job.join("upper")], self.job_bytes);
            let limit = match content {
                Content { bytes, .. } if bytes > self.job_bytes => Limit::Disk,
                Content { files, .. } if files > FILES => Limit::Files,
                _ => continue,
            };
            self.refuse(&job, limit);
        }
        Ok(any)
    }

    fn refuse(&self, job: &Path, limit: Limit) {
        let why = format!(
            "its inputs unpack to more than {} MiB or {FILES} files, which is the limit (SCCACHE_JOB_DISK)",
            self.job_bytes >> 20
        );
        let removed = [job.join("upper"), job.join("work")]
            .iter()
            .try_for_each(|folder| remove(folder));
        if let Err(error) = removed {
            warn!("cannot end a job: {error}");
        }
        let limit = Some(limit);
        Reports::to(Some(&self.jobs_socket)).send(&Report::Refused { why, limit });
    }
}

/// Removes a folder in which another process makes files.
fn remove(folder: &Path) -> io::Result<()> {
    let mut tries = 0;
    loop {
        tries += 1;
        match fs::remove_dir_all(folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) if error.kind() != io::ErrorKind::DirectoryNotEmpty || tries > TRIES => {
                return Err(error);
            }
            Err(_) => {}
            Ok(()) => return Ok(()),
        }
    }
}

/// A toolchain as it was seen first at this size.
struct Seen {
    bytes: u64,
    at: Instant,
}

/// Looks at all that may grow, and cuts the archives of those that are too large; gives whether any may still grow.
fn look(toolchains: &Path, most: u64, seen: &mut HashMap<OsString, Seen>) -> io::Result<bool> {
    let (mut may_grow, now) = (false, now());
    let entries: Vec<PathBuf> = fs::read_dir(toolchains)?
        .flatten()
        .map(|entry| entry.path())
        .collect();
    seen.retain(|name, _| toolchains.join(name).exists());
    for path in entries {
        let Some(name) = path.file_name() else {
            continue;
        };
        let before = seen.get(name);
        if before.is_some_and(|before| now - before.at > STILL) {
            continue;
        }
        may_grow = true;
        let content = Content::of([&path], most);
        if content.bytes > most || content.files > FILES {
            warn!(
                "a toolchain unpacks to more than {} MiB or {FILES} files, which is the limit: it is refused (SCCACHE_TOOLCHAIN_SIZE)",
                most >> 20
            );
            if let Some(packed) = name
                .to_str()
                .and_then(|name| toolchain::packed(toolchains, name))
            {
                cut(&packed)?;
            }
        }
        if before.is_none_or(|before| before.bytes != content.bytes) {
            let bytes = content.bytes;
            seen.insert(name.to_owned(), Seen { bytes, at: now });
        }
    }
    Ok(may_grow)
}

fn cut(archive: &Path) -> io::Result<()> {
    match fs::File::options().write(true).open(archive) {
        Ok(file) => file.set_len(0),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "a process of its own, which looks at what another does"
)]
fn now() -> Instant {
    Instant::now()
}
