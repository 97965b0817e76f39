//! Tells when files change: by inotify at once, and by a look every [`POLL`], because network file systems and the
//! shared folders of virtual machines tell nothing.
//!
//! What a path leads to can change at several places: in the file, in its folder (a new file renamed to its name), or
//! at a symbolic link on the way (Kubernetes swaps a link between two folders). All of them are watched. What has
//! changed, and whether anything has, is for the caller to see by reading.

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use std::ffi::OsString;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

/// How often to look where nothing is told.
const POLL: Duration = Duration::from_secs(30);
/// A change is mostly several: they are waited for this long.
const SETTLE: Duration = Duration::from_millis(100);
/// Steps that are followed on the way to one file; the kernel's own bound for links.
const STEPS: usize = 40;

/// Watches the files of its making.
#[derive(Debug)]
pub(super) struct Watch {
    paths: Vec<PathBuf>,
    watched: Option<Watched>,
}

#[derive(Debug)]
struct Watched {
    inotify: Inotify,
    /// Names in watched folders that matter.
    names: Vec<OsString>,
}

impl Watch {
    /// Begins to watch: every change from now on is told.
    pub(super) fn new(paths: Vec<PathBuf>) -> Watch {
        let watched = Watched::new(&paths).ok();
        Watch { paths, watched }
    }

    /// Blocks until a change was told (true), or nothing was for long enough to look. What changes after this
    /// returned is told by the next call.
    pub(super) fn changed(&mut self) -> bool {
        // Without inotify (its instances are limited) there is still the look every now and then.
        let told = match &self.watched {
            Some(watched) => watched.told().unwrap_or_else(|_| {
                sleep(POLL);
                false
            }),
            None => {
                sleep(POLL);
                false
            }
        };
        if told {
            sleep(SETTLE);
        }
        // The way to a file may be another one now.
        self.watched = Watched::new(&self.paths).ok();
        told
    }
}

impl Watched {
    fn new(paths: &[PathBuf]) -> nix::Result<Watched> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        let of_file = AddWatchFlags::IN_CLOSE_WRITE | AddWatchFlags::IN_ATTRIB;
        let of_folder = AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_DELETE;
        let mut names = Vec::new();
        for path in paths {
            for step in way(path) {
                if let (Some(folder), Some(name)) = (step.parent(), step.file_name()) {
                    // What is not there yet is seen when its folder changes, or by the look every now and then.
                    let _ = inotify.add_watch(folder, of_folder | AddWatchFlags::IN_ONLYDIR);
                    names.push(name.to_owned());
                }
            }
            // A file that was mounted alone is written by somebody who sees it in another folder.
            let _ = inotify.add_watch(path, of_file);
        }
        Ok(Watched { inotify, names })
    }

    /// Waits for news of one of the names, for as long as may pass without a look.
    fn told(&self) -> nix::Result<bool> {
        loop {
            let mut fds = [PollFd::new(self.inotify.as_fd(), PollFlags::POLLIN)];
            let patience = PollTimeout::try_from(POLL).unwrap_or(PollTimeout::MAX);
            if poll(&mut fds, patience)? == 0 {
                return Ok(false);
            }
            let matters = |name: &OsString| self.names.contains(name);
            let events = self.inotify.read_events()?;
            if events
                .iter()
                .any(|event| event.name.as_ref().is_none_or(matters))
            {
                return Ok(true);
            }
        }
    }
}

/// Every place that decides where `path` leads: itself, and each symbolic link on the way.
fn way(path: &Path) -> Vec<PathBuf> {
    let mut steps = vec![path.to_owned()];
    let mut at = 0;
    while at < steps.len() && steps.len() < STEPS {
        let mut prefixes: Vec<PathBuf> = steps[at].ancestors().map(Path::to_owned).collect();
        prefixes.reverse();
        for prefix in prefixes {
            if let Ok(target) = std::fs::read_link(&prefix) {
                let rest = steps[at].strip_prefix(&prefix).unwrap_or(Path::new(""));
                let folder = prefix.parent().unwrap_or(Path::new("/"));
                // A path with nothing after it would end in a slash, which a file cannot.
                let next: PathBuf = folder.join(target).join(rest).components().collect();
                if !steps.contains(&prefix) {
                    steps.push(prefix);
                }
                if !steps.contains(&next) {
                    steps.push(next);
                }
                break;
            }
        }
        at += 1;
    }
    steps
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    fn sees(watch: &mut Watch) {
        assert!(watch.changed(), "the change is told");
    }

    #[test]
    fn every_way_to_change_a_file_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("tokens.toml");
        let mut watch = Watch::new(vec![file.clone()]);
        fs::write(&file, "one").unwrap();
        sees(&mut watch);
        fs::write(&file, "in place").unwrap();
        sees(&mut watch);
        let new = dir.path().join("new");
        fs::write(&new, "renamed").unwrap();
        fs::rename(&new, &file).unwrap();
        sees(&mut watch);
        fs::remove_file(&file).unwrap();
        sees(&mut watch);
        // Written under another name, as a file that was mounted alone is.
        fs::write(&file, "linked").unwrap();
        sees(&mut watch);
        let elsewhere = tempfile::tempdir().unwrap();
        let other = elsewhere.path().join("other");
        fs::hard_link(&file, &other).unwrap();
        sees(&mut watch);
        fs::write(&other, "from elsewhere").unwrap();
        sees(&mut watch);
    }

    #[test]
    fn swap_of_a_link_between_folders_is_told() {
        let dir = tempfile::tempdir().unwrap();
        for (folder, text) in [("..1", "old"), ("..2", "new")] {
            fs::create_dir(dir.path().join(folder)).unwrap();
            fs::write(dir.path().join(folder).join("tokens.toml"), text).unwrap();
        }
        symlink("..1", dir.path().join("..data")).unwrap();
        let file = dir.path().join("tokens.toml");
        symlink("..data/tokens.toml", &file).unwrap();
        let mut watch = Watch::new(vec![file.clone()]);
        symlink("..2", dir.path().join("..tmp")).unwrap();
        fs::rename(dir.path().join("..tmp"), dir.path().join("..data")).unwrap();
        sees(&mut watch);
        assert_eq!(fs::read_to_string(&file).unwrap(), "new");
    }

    #[test]
    fn links_in_a_circle_end() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        symlink(&b, &a).unwrap();
        symlink(&a, &b).unwrap();
        assert_eq!(way(&a), [a, b]);
    }
}
