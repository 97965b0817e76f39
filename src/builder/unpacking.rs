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
use std::collections::{HashMap, HashSet};
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

/// Between two looks at a job that seems to unpack too much, and how many of them there are.
const SOON: Duration = Duration::from_millis(20);
const LOOKS_AGAIN: u32 = 10;

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
        let (mut seen, mut begun) = (HashMap::new(), HashSet::new());
        loop {
            loop {
                let begin = now();
                let grows = look(&toolchains, self.toolchain_bytes, &mut seen)?;
                if !(self.look_at_inputs(&builds, &mut begun)? | grows) {
                    break;
                }
                std::thread::sleep(LOOK.max(20 * (now() - begin)));
            }
            notify.read_events()?;
        }
    }

    /// Looks at the jobs whose inputs are being unpacked, and ends those that have too many; gives whether there are any.
    /// `begun` are those that have all of theirs.
    fn look_at_inputs(&self, builds: &Path, begun: &mut HashSet<PathBuf>) -> io::Result<bool> {
        let mut any = false;
        begun.retain(|job| job.exists());
        for entry in fs::read_dir(builds)?.flatten() {
            let job = entry.path();
            if begun.contains(&job) {
                continue;
            }
            if Folder::is_unpacked(&job) {
                begun.insert(job);
                continue;
            }
            any = true;
            if let Some(limit) = self.unpacks_too_much(&job) {
                self.refuse(&job, limit);
            }
        }
        Ok(any)
    }

    /// The limit that the inputs of a job exceed. What a short job has written may exceed it too, and nothing in its folder
    /// says any more whose that is while the folder is being removed; but then it shrinks.
    fn unpacks_too_much(&self, job: &Path) -> Option<Limit> {
        let (before, mut limit) = self.exceeded(job)?;
        for _ in 0..LOOKS_AGAIN {
            std::thread::sleep(SOON);
            if Folder::is_unpacked(job) {
                return None;
            }
            let (now, exceeded) = self.exceeded(job)?;
            limit = exceeded;
            match grows(before, now) {
                Some(false) => return None,
                Some(true) => break,
                None => {}
            }
        }
        Some(limit)
    }

    fn exceeded(&self, job: &Path) -> Option<(Content, Limit)> {
        let content = Content::of([job.join("upper")], u64::MAX);
        let limit = match content {
            Content { bytes, .. } if bytes > self.job_bytes => Limit::Disk,
            Content { files, .. } if files > FILES => Limit::Files,
            _ => return None,
        };
        Some((content, limit))
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

/// Whether a folder with this content before and now is being filled; `None` where it stands still.
fn grows(before: Content, now: Content) -> Option<bool> {
    let shrinks = now.bytes < before.bytes || now.files < before.files;
    (now != before).then_some(!shrinks)
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixDatagram;

    const MOST: u64 = 1 << 20;
    const FULL: usize = 40;

    /// Inputs, or results, of more than there may be.
    fn fill(job: &Path) {
        for number in 0..FULL {
            fs::write(job.join(format!("upper/{number}")), [7; 64 << 10]).unwrap();
        }
    }

    #[test]
    fn job_that_is_being_removed_does_not_count_as_one_that_unpacks() {
        let dir = tempfile::tempdir().unwrap();
        let socket = UnixDatagram::bind(dir.path().join("jobs")).unwrap();
        socket.set_nonblocking(true).unwrap();
        let bounds = Bounds {
            dir: dir.path().to_owned(),
            toolchain_bytes: MOST,
            job_bytes: MOST,
            jobs_socket: dir.path().join("jobs"),
        };
        let job = dir.path().join("builds/one");
        let look = |begun: &mut HashSet<PathBuf>| {
            let any = bounds.look_at_inputs(&dir.path().join("builds"), begun);
            (any.unwrap(), socket.recv(&mut [0; 4096]).is_ok())
        };
        let mut begun = HashSet::new();
        fs::create_dir_all(job.join("upper")).unwrap();
        assert_eq!(look(&mut begun), (true, false), "nothing is unpacked yet");
        // It has begun and ended, and its folder goes, in any order.
        fs::create_dir(job.join("shm")).unwrap();
        fill(&job);
        assert_eq!(look(&mut begun), (false, false));
        fs::remove_dir(job.join("shm")).unwrap();
        assert_eq!(look(&mut begun), (false, false));
        // Nobody has looked at it meanwhile, and it stays.
        assert_eq!(look(&mut HashSet::new()), (true, true));
        assert!(!job.join("upper").exists());
    }

    #[test]
    fn what_shrinks_is_being_removed() {
        let content = |bytes, files| Content {
            bytes,
            files,
            is_strange: false,
        };
        for (bytes, files, expected) in [
            (10, 5, None),
            (11, 5, Some(true)),
            (10, 6, Some(true)),
            (9, 5, Some(false)),
            (10, 4, Some(false)),
            (9, 6, Some(false)),
        ] {
            assert_eq!(grows(content(10, 5), content(bytes, files)), expected);
        }
    }
}
