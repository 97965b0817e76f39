//! What sccache's daemon does with a packed compiler at this moment. It says nothing itself, but the kernel tells which
//! files it has open and how far it has read them.

use crate::base::human::{bytes, span};
use std::fs;
use std::path::Path;

/// The folders of packed compilers in the making, and of those that are whole.
const MAKING: &str = "toolchain_tmp";
const WHOLE: &str = "tc";

/// Packed compilers that are open.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Transfers {
    /// Bytes so far of the one that is being packed.
    pub(super) packed: Option<u64>,
    /// Uploads: bytes sent, of so many.
    pub(super) uploads: Vec<(u64, u64)>,
}

impl Transfers {
    /// Those of this user's daemons; none where the kernel does not tell.
    pub(super) fn now() -> Transfers {
        let mut found = Transfers::default();
        for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let process = process.path();
            if fs::read_to_string(process.join("comm")).is_ok_and(|name| name == "sccache\n") {
                found.add_those_of(&process);
            }
        }
        found
    }

    fn add_those_of(&mut self, process: &Path) {
        for entry in fs::read_dir(process.join("fd"))
            .into_iter()
            .flatten()
            .flatten()
        {
            let fd = entry.path();
            let (Ok(file), Ok(open)) = (fs::read_link(&fd), fs::metadata(&fd)) else {
                continue;
            };
            // toolchain_tmp/NAME, and tc/A/B/NAME.
            let is_in = |folder: &str, above: usize| {
                let folder_of_it = file.ancestors().nth(above);
                folder_of_it
                    .and_then(Path::file_name)
                    .is_some_and(|name| name == folder)
            };
            if !open.is_file() {
                continue;
            } else if is_in(MAKING, 1) {
                self.packed = self.packed.max(Some(open.len()));
            } else if is_in(WHOLE, 3) {
                let info = process.join("fdinfo").join(entry.file_name());
                let info = fs::read_to_string(info).unwrap_or_default();
                self.uploads
                    .extend(position(&info).map(|sent| (sent.min(open.len()), open.len())));
            }
        }
    }

    /// For whoever waits for `name` to be on `builders`, of which `done` have answered.
    pub(super) fn text(&self, name: &str, done: usize, builders: usize, seconds: f64) -> String {
        let work = match (self.packed, self.uploads.len()) {
            (Some(size), _) => format!("packing, {} so far", bytes(size)),
            (None, 0) => "waiting for the builders".to_owned(),
            (None, count) => {
                let sum = |field: fn(&(u64, u64)) -> u64| self.uploads.iter().map(field).sum();
                let (sent, size) = (bytes(sum(|it| it.0)), bytes(sum(|it| it.1)));
                let plural = if count == 1 { "" } else { "s" };
                format!("sent {sent} of {size} to {count} builder{plural}")
            }
        };
        format!(
            "{name}: {work}; {done} of {builders} done ({})",
            span(seconds)
        )
    }
}

/// Of a line such as `pos: 4096`.
fn position(fdinfo: &str) -> Option<u64> {
    fdinfo
        .lines()
        .find_map(|line| line.strip_prefix("pos:"))?
        .trim()
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    #[test]
    fn open_archives_of_a_process_are_found_with_how_far_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let (making, whole) = (dir.path().join(MAKING), dir.path().join("tc/a/b"));
        fs::create_dir_all(&making).unwrap();
        fs::create_dir_all(&whole).unwrap();
        let mut packed = fs::File::create(making.join("x")).unwrap();
        packed.write_all(&[1; 3000]).unwrap();
        fs::write(whole.join("ab"), [1; 5000]).unwrap();
        let mut sent = fs::File::open(whole.join("ab")).unwrap();
        sent.read_exact(&mut [0; 2000]).unwrap();
        let mut found = Transfers::default();
        found.add_those_of(Path::new("/proc/self"));
        let expected = Transfers {
            packed: Some(3000),
            uploads: vec![(2000, 5000)],
        };
        assert_eq!(found, expected);
    }

    #[test]
    fn text_says_what_is_waited_for() {
        let mut at = Transfers::default();
        assert_eq!(
            at.text("cc", 1, 3, 61.0),
            "cc: waiting for the builders; 1 of 3 done (1m 1s)"
        );
        at.uploads = vec![(1 << 20, 4 << 20), (2 << 20, 4 << 20)];
        assert_eq!(
            at.text("rustc", 0, 2, 9.9),
            "rustc: sent 3.0 MiB of 8.0 MiB to 2 builders; 0 of 2 done (9s)"
        );
        at.uploads.truncate(1);
        assert!(
            at.text("rustc", 0, 1, 9.9)
                .contains(" to 1 builder; 0 of 1 done")
        );
        at.packed = Some(1536);
        assert_eq!(
            at.text("rustc", 0, 2, 3.0),
            "rustc: packing, 1.5 KiB so far; 0 of 2 done (3s)"
        );
    }
}
