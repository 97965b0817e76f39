//! The headers of a file of C, as its own lines and those of its headers name them.
//!
//! No compiler is asked: that would cost as much as what a hit saves. So conditions and macros are not understood, and
//! those of the system are not looked for: the compiler's version stands for them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Headers of one file that are looked at.
const MOST: usize = 2000;
/// Longest file that is read.
const LONGEST: u64 = 16 << 20;

/// What files name, each read once.
#[derive(Debug, Default)]
pub(super) struct Headers {
    named: BTreeMap<PathBuf, Vec<Name>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Name {
    /// In quotes, so that it is looked for beside the file first.
    is_near: bool,
    path: String,
}

impl Headers {
    /// Those of `sources`, which are looked for in `folders` too.
    pub(super) fn of(&mut self, sources: &[PathBuf], folders: &[PathBuf]) -> BTreeSet<PathBuf> {
        let mut found = BTreeSet::new();
        let mut rest = sources.to_vec();
        while let Some(file) = rest.pop() {
            let beside = file.parent().unwrap_or(Path::new("/")).to_owned();
            for name in self.named(&file) {
                let beside = name.is_near.then_some(&beside);
                let mut places = beside.into_iter().chain(folders);
                let place = places.find_map(|folder| {
                    let path = folder.join(&name.path);
                    path.is_file().then_some(path)
                });
                if let Some(path) = place.filter(|_| found.len() < MOST)
                    && found.insert(path.clone())
                {
                    rest.push(path);
                }
            }
        }
        found
    }

    fn named(&mut self, file: &Path) -> &[Name] {
        self.named.entry(file.to_owned()).or_insert_with(|| {
            let is_short = fs::metadata(file).is_ok_and(|it| it.is_file() && it.len() <= LONGEST);
            let text = is_short.then(|| fs::read(file).ok()).flatten();
            let text = text.unwrap_or_default();
            String::from_utf8_lossy(&text)
                .lines()
                .filter_map(name)
                .collect()
        })
    }
}

/// What a line includes.
fn name(line: &str) -> Option<Name> {
    let rest = line.trim_start().strip_prefix('#')?.trim_start();
    let words = ["include_next", "include", "import"];
    let rest = words.iter().find_map(|word| rest.strip_prefix(word))?;
    let rest = rest.trim_start();
    let (is_near, rest, end) = match rest.strip_prefix('"') {
        Some(rest) => (true, rest, '"'),
        None => (false, rest.strip_prefix('<')?, '>'),
    };
    let (path, _) = rest.split_once(end)?;
    Some(Name {
        is_near,
        path: path.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_found_by_the_lines_that_name_them() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, text).unwrap();
            path
        };
        let source = write(
            "src/x.c",
            "#include \"x.h\"\n# include <deep/a.h>\n#include <stdio.h>\n#define include\n// #include \"no.h\"\n",
        );
        let near = write("src/x.h", "#include \"x.h\"\n#import \"gone.h\"\n");
        let deep = write("include/deep/a.h", "  #  include_next  \"b.h\" // it\n");
        let b = write("include/deep/b.h", "#include MACRO\n");
        write("include/x.h", "");
        write("src/no.h", "");
        let folders = [folder.path().join("include")];
        let found = Headers::default().of(&[source], &folders);
        assert_eq!(found, BTreeSet::from([near, deep, b]));
    }
}
