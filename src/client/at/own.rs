//! Crates whose results are this checkout's own.
//!
//! A procedural macro may read a file without telling rustc. sccache cannot know of it, so that where `at` makes two
//! checkouts lie at one path, the key of the crate that uses the macro is the same though the file differs. For the
//! crates that are named, a variable goes into the key that says what is in the checkout: sccache puts every `CARGO_*`
//! variable into the keys of Rust.
//!
//! This program stands before sccache for that, by the name of `sccache`: the crate `cc` has C compiled through
//! `RUSTC_WRAPPER` only where it has that name.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The wrapper that was set before, by which this program knows that it is called as one.
const WRAPPED: &str = "SCCACHE_DOCK_WRAPPED";
/// Names of crates and packages, between commas.
const NAMES: &str = "SCCACHE_DOCK_OWN_RESULTS";
/// The checkout as the command sees it.
const ROOT: &str = "SCCACHE_DOCK_ROOT";
/// Part of the keys of the crates that are named.
const IDENTITY: &str = "CARGO_SCCACHE_DOCK_ID";
/// Marks folders that anybody may remove, such as cargo's target folders.
pub(super) const CACHE_TAG: &str = "CACHEDIR.TAG";

/// What puts this program before `wrapped`: a link in `folder`, and variables.
pub(super) fn install(
    folder: &Path,
    wrapped: OsString,
    names: &[String],
    root: &Path,
) -> io::Result<[(&'static str, OsString); 4]> {
    let link = folder.join("sccache");
    symlink(std::env::current_exe()?, &link)?;
    Ok([
        ("RUSTC_WRAPPER", link.into_os_string()),
        (WRAPPED, wrapped),
        (NAMES, names.join(",").into()),
        (ROOT, root.into()),
    ])
}

/// Names in the workspace's manifest: `own-results` of `[workspace.metadata.sccache-dock]` or of the package's.
pub(super) fn named_in(manifest: &str) -> Vec<String> {
    let manifest: toml::Table = manifest.parse().unwrap_or_default();
    let tables = ["workspace", "package"].into_iter().filter_map(|table| {
        let ours = manifest.get(table)?.get("metadata")?.get("sccache-dock")?;
        ours.get("own-results")?.as_array()
    });
    let names = tables.flatten().filter_map(toml::Value::as_str);
    names.map(str::to_owned).collect()
}

/// The wrapper that another `at` around this one has put this program before.
pub(super) fn before() -> Option<OsString> {
    std::env::var_os(WRAPPED)
}

/// The wrapper that this program was called as, if it was.
pub fn wrapped() -> Option<OsString> {
    let called = std::env::args_os().next()?;
    let is_sccache = Path::new(&called).file_stem() == Some(OsStr::new("sccache"));
    std::env::var_os(WRAPPED).filter(|_| is_sccache)
}

/// Becomes `wrapped` with this program's arguments; gives why it could not.
pub fn wrap(wrapped: &OsStr) -> io::Error {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let mut command = Command::new(wrapped);
    command.args(&arguments);
    let names = std::env::var(NAMES).unwrap_or_default();
    let package = std::env::var_os("CARGO_PKG_NAME");
    if is_named(&names, &arguments, package.as_deref())
        && let Some(root) = std::env::var_os(ROOT)
    {
        let generated = std::env::var_os("OUT_DIR").map(PathBuf::from);
        command.env(IDENTITY, identity(Path::new(&root), generated.as_deref()));
    }
    command.exec()
}

/// Whether rustc is told to compile one of `names`, the crate's or its package's.
fn is_named(names: &str, arguments: &[OsString], package: Option<&OsStr>) -> bool {
    let mut words = arguments.iter().skip_while(|it| *it != "--crate-name");
    let Some(name) = words.nth(1) else {
        return false;
    };
    let same = |one: &OsStr, other: &str| {
        one.to_str()
            .is_some_and(|one| one.replace('-', "_") == other.replace('-', "_"))
    };
    names
        .split(',')
        .any(|wanted| same(name, wanted) || package.is_some_and(|package| same(package, wanted)))
}

/// Says what is in the checkout at `root`, by the names, sizes and times of its files: it changes when one of them is
/// written, and no two checkouts have it in common. What can be made anew is not looked at but for the content of what the
/// crate's build script has `generated`, and of git only what it says about the checkout: macros ask it for the commit, for
/// tags, and whether anything is changed.
fn identity(root: &Path, generated: Option<&Path>) -> String {
    let mut hasher = blake3::Hasher::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        let mut entries: Vec<PathBuf> = match fs::read_dir(&folder) {
            Ok(entries) => entries.flatten().map(|entry| entry.path()).collect(),
            // Nor can a macro read it.
            Err(_) => continue,
        };
        if entries.iter().any(|path| path.ends_with(CACHE_TAG)) {
            continue;
        }
        // One without files is seen as well.
        note(&mut hasher, &folder, [0; 5]);
        entries.sort_unstable();
        if let Some(at) = entries.iter().position(|path| path.ends_with(".git")) {
            let git = entries.remove(at);
            entries.extend(of_git(&git));
        }
        for path in entries {
            let Ok(metadata) = path.symlink_metadata() else {
                continue;
            };
            let kind = metadata.file_type();
            if kind.is_dir() {
                folders.push(path);
            } else if kind.is_file() || kind.is_symlink() {
                let numbers = [
                    metadata.size().cast_signed(),
                    metadata.mtime(),
                    metadata.mtime_nsec(),
                    metadata.ctime(),
                    metadata.ctime_nsec(),
                ];
                note(&mut hasher, &path, numbers);
            }
        }
    }
    if let Some(folder) = generated {
        note_content(&mut hasher, folder);
    }
    hasher.finalize().to_hex()[..32].to_owned()
}

/// The names and contents of all files in a folder that is written anew by each clean build.
fn note_content(hasher: &mut blake3::Hasher, folder: &Path) {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    paths.sort_unstable();
    for path in paths {
        note(hasher, &path, [0; 5]);
        let is_folder = path.symlink_metadata().is_ok_and(|it| it.is_dir());
        if is_folder {
            note_content(hasher, &path);
        } else if let Ok(metadata) = path.metadata()
            && metadata.is_file()
            && let Ok(file) = fs::File::open(&path)
        {
            hasher.update(&metadata.size().to_le_bytes());
            // What cannot be read here, a macro cannot read either.
            let _ = hasher.update_reader(file);
        }
    }
}

fn note(hasher: &mut blake3::Hasher, path: &Path, numbers: [i64; 5]) {
    let name = path.as_os_str().as_bytes();
    hasher.update(&(name.len() as u64).to_le_bytes());
    hasher.update(name);
    for number in numbers {
        hasher.update(&number.to_le_bytes());
    }
}

/// Where git keeps what it says about the checkout with this `.git`, be it there or not.
fn of_git(path: &Path) -> Vec<PathBuf> {
    let named_in = |file: &Path, key: &str| {
        let text = fs::read_to_string(file).ok()?;
        Some(file.parent()?.join(text.trim_end().strip_prefix(key)?))
    };
    // That of a worktree or a submodule is a file.
    let folder = named_in(path, "gitdir: ").unwrap_or_else(|| path.to_owned());
    let mut folders = vec![folder.clone()];
    folders.extend(named_in(&folder.join("commondir"), ""));
    let parts = ["HEAD", "config", "index", "packed-refs", "refs", "reftable"];
    let all = folders.iter();
    all.flat_map(|folder| parts.map(|part| folder.join(part)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crate_is_known_by_its_name_or_that_of_its_package() {
        let compile = |name: &str| -> Vec<OsString> {
            let words = [
                "rustc",
                "--crate-name",
                name,
                "--edition=2021",
                "src/lib.rs",
            ];
            words.map(OsString::from).to_vec()
        };
        let package = Some(OsStr::new("assets-lib"));
        assert!(is_named("one,assets-lib", &compile("assets_lib"), None));
        assert!(is_named("assets_lib", &compile("assets_lib"), package));
        assert!(is_named("assets-lib", &compile("shown"), package));
        assert!(!is_named("assets", &compile("assets_lib"), package));
        assert!(!is_named("", &compile("assets_lib"), package));
        assert!(!is_named("rustc", &["rustc".into(), "-vV".into()], package));
        assert!(!is_named("cc", &["cc".into(), "--crate-name".into()], None));
    }

    /// Writes a file, later than all that was before.
    fn write(folder: &Path, name: &str, text: &str) {
        // The clock of the file system may stand still for some milliseconds.
        std::thread::sleep(std::time::Duration::from_millis(20));
        let path = folder.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    #[test]
    fn identity_changes_with_a_file_and_not_with_what_can_be_made_anew() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        write(root, "src/lib.rs", "");
        let first = identity(root, None);
        for name in [
            "target/CACHEDIR.TAG",
            "target/debug/x",
            ".git/FETCH_HEAD",
            ".git/objects/0a/1b",
        ] {
            write(root, name, "");
        }
        assert_eq!(identity(root, None), first);
        for name in [
            "assets/b.txt",
            "src/lib.rs",
            ".git/HEAD",
            ".git/index",
            ".git/refs/tags/v1",
        ] {
            let before = identity(root, None);
            write(root, name, "");
            assert_ne!(identity(root, None), before, "{name}");
        }
        let before = identity(root, None);
        fs::create_dir(root.join("assets/empty")).unwrap();
        assert_ne!(identity(root, None), before, "a folder that a macro lists");
    }

    #[test]
    fn identity_has_the_content_of_what_is_generated_and_not_its_times() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        for tag in ["target", "target/out/sub"] {
            write(root, &format!("{tag}/CACHEDIR.TAG"), "");
        }
        let out = root.join("target/out");
        let made = |text: &str| {
            write(root, "target/out/sub/made.rs", text);
            identity(root, Some(&out))
        };
        let first = made("one");
        assert_eq!(made("one"), first);
        assert_ne!(made("two"), first);
        assert_eq!(made("one"), first);
    }

    #[test]
    fn identity_changes_with_what_git_has_elsewhere() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("checkout");
        write(&root, ".git", "gitdir: ../own/.git/worktrees/checkout\n");
        let worktree = "own/.git/worktrees/checkout";
        write(folder.path(), &format!("{worktree}/commondir"), "../..\n");
        for name in [
            format!("{worktree}/HEAD"),
            format!("{worktree}/index"),
            "own/.git/refs/heads/main".to_owned(),
            "own/.git/packed-refs".to_owned(),
        ] {
            let before = identity(&root, None);
            write(folder.path(), &name, "");
            assert_ne!(identity(&root, None), before, "{name}");
        }
    }

    #[test]
    fn names_are_read_from_the_manifest() {
        let text = "[workspace.metadata.sccache-dock]\nown-results = ['a', 'b-c']\n";
        assert_eq!(named_in(text), ["a", "b-c"]);
        let text = "[package]\nname = 'x'\n[package.metadata.sccache-dock]\nown-results = ['x']\n";
        assert_eq!(named_in(text), ["x"]);
        assert!(named_in("[package]\nname = 'x'\n").is_empty());
        assert!(named_in("no toml").is_empty());
    }
}
