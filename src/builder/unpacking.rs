//! What a toolchain unpacks to, within a bound: `sccache-dist` unpacks whatever it is sent, a few MB of zeros to the end of
//! the disk.
//!
//! An archive that is cut short is a broken one to `sccache-dist`: it stops, removes what it has unpacked, and strikes the
//! toolchain off.

use crate::builder::folder::{Content, FILES};
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

/// Watches over the toolchains of the builder in this folder, by a thread that sleeps while nothing is unpacked. None has
/// more than so many bytes.
pub(super) fn watch(dir: &Path, most: u64) {
    let dir = dir.to_owned();
    std::thread::spawn(move || {
        if let Err(error) = keep_watching(&dir, most) {
            error!("cannot watch what toolchains unpack to: {error}");
        }
    });
}

fn keep_watching(dir: &Path, most: u64) -> io::Result<()> {
    let toolchains = dir.join("build/toolchains");
    let notify = Inotify::init(InitFlags::IN_CLOEXEC)?;
    // `sccache-dist` makes it when it starts.
    while let Err(error) = notify.add_watch(&toolchains, AddWatchFlags::IN_CREATE) {
        match error {
            Errno::ENOENT => std::thread::sleep(LOOK),
            other => return Err(other.into()),
        }
    }
    let mut seen = HashMap::new();
    loop {
        loop {
            let begin = now();
            if !look(&toolchains, most, &mut seen)? {
                break;
            }
            std::thread::sleep(LOOK.max(20 * (now() - begin)));
        }
        notify.read_events()?;
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
