//! What a Rust compile looks for of itself, and what therefore does not count. Decides without I/O.
//!
//! Measured with strace on the 134 crates of `tests/fixtures/hundred` and 45 with macros (rustc 1.95): about 700 look-ups a
//! compile, of which half are `readlink` of the folders above libraries. Before rustc makes its first thread only the
//! loader and the allocator look around. After it, each folder of `-L` is listed once, and what is missing is: candidates
//! for libraries in these folders, `lib64/rustlib` in the sysroot and the standard library's source there, and one of
//! `name.rs` and `name/mod.rs`. No compile of a library runs a program, opens a socket, asks for the machine's name or
//! writes outside its output folder.

use super::calls::Access;
use crate::contract::sent_home::Reason;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

/// What is to be done about a look-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing, however it ends.
    Fine,
    /// It counts if nothing is found, or a folder.
    Await,
    Counts(Reason),
}

/// Files in a library folder that rustc and the loader ask for by name.
const LIBRARY: [&str; 9] = [
    "rlib",
    "rmeta",
    "so",
    "a",
    "lib",
    "dylib",
    "dll",
    "rmeta-full",
    "o",
];
/// Devices that are the same on every machine, or whose size a message is fitted to.
const DEVICES: [&str; 9] = [
    "null", "zero", "full", "random", "urandom", "stdin", "stdout", "stderr", "tty",
];
/// What runtimes ask of `/proc` and `/sys`: how much memory, how many processors.
const RUNTIME: [&str; 7] = [
    "/proc/sys/vm",
    "/proc/meminfo",
    "/proc/cpuinfo",
    "/proc/stat",
    "/sys/fs/cgroup",
    "/sys/devices/system/cpu",
    "/sys/kernel/mm",
];

/// The folders of one compile.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Rules {
    sysroots: Vec<PathBuf>,
    /// Of `-L`.
    libraries: Vec<PathBuf>,
    /// Those that rustc has not listed yet: it does so once for each `-L`, before any macro runs.
    unlisted: Vec<PathBuf>,
    /// Of `--out-dir`.
    outputs: Vec<PathBuf>,
    /// How names of outputs begin, with and without `lib`.
    crate_name: Vec<u8>,
    /// The folder of the crate's package.
    package: Option<PathBuf>,
    /// For temporary files.
    temporary: Vec<PathBuf>,
    /// The pipe of make, on the client.
    jobserver: Vec<PathBuf>,
}

impl Rules {
    /// From bubblewrap's own arguments, the compiler's path and its arguments.
    pub(super) fn new(sandbox: &[OsString], program: &Path, compiler: &[OsString]) -> Rules {
        let cwd = sandbox
            .windows(2)
            .find(|pair| pair[0] == "--chdir")
            .map_or(Path::new("/"), |pair| Path::new(&pair[1]));
        let absolute = |path: &OsStr| tidy(&cwd.join(path));
        let libraries: Vec<_> = values_of(compiler, "-L")
            .map(|value| absolute(after_kind(value)))
            .collect();
        let mut rules = Rules {
            sysroots: values_of(compiler, "--sysroot")
                .map(absolute)
                .chain(sysroot_of(program))
                .collect(),
            unlisted: libraries.clone(),
            libraries,
            outputs: values_of(compiler, "--out-dir").map(absolute).collect(),
            crate_name: value_of(compiler, "--crate-name")
                .map_or(Vec::new(), |name| name.as_bytes().to_vec()),
            package: None,
            temporary: vec!["/tmp".into()],
            jobserver: Vec::new(),
        };
        for (name, value) in variables(sandbox) {
            match name.to_str() {
                Some("CARGO_MANIFEST_DIR") => rules.package = Some(absolute(value)),
                Some("TMPDIR") if !value.is_empty() => rules.temporary.push(absolute(value)),
                Some("MAKEFLAGS" | "MFLAGS" | "CARGO_MAKEFLAGS") => {
                    let words = value.as_bytes().split(|byte| *byte == b' ');
                    let pipes = words.filter_map(|word| {
                        let at = word.windows(5).position(|part| part == b"fifo:")?;
                        word.get(at + 5..)
                    });
                    let pipes = pipes.map(|path| absolute(OsStr::from_bytes(path)));
                    rules.jobserver.extend(pipes);
                }
                _ => {}
            }
        }
        rules
    }

    /// The folders of `-L`.
    pub(super) fn libraries(&self) -> impl Iterator<Item = &Path> {
        self.libraries.iter().map(PathBuf::as_path)
    }

    /// The compiler turned out to lie here, behind all links.
    pub(super) fn compiler_is(&mut self, program: &Path) {
        self.sysroots.extend(sysroot_of(program));
    }

    /// Judges a look-up of an absolute path.
    pub(super) fn judge(&mut self, path: &Path, access: Access) -> Verdict {
        let path = &tidy(path);
        if let Some(verdict) = of_the_machine(path) {
            return verdict;
        }
        let in_sysroot = self.sysroots.iter().any(|root| {
            // The client packs all of them; of the rest only the compiler.
            path.starts_with(root.join("lib")) || path.starts_with(root.join("lib64"))
        });
        let in_outputs = self.outputs.iter().any(|folder| path.starts_with(folder));
        let is_temporary = self.temporary.iter().any(|folder| path.starts_with(folder));
        let is_library_folder = self.libraries.iter().any(|folder| path == folder);
        match access {
            Access::Write if in_outputs || is_temporary => Verdict::Fine,
            Access::Write => Verdict::Counts(Reason::Write),
            // Of the folder of outputs itself, too, only a part was sent.
            Access::List if in_sysroot || in_outputs && !self.outputs.contains(path) => {
                Verdict::Fine
            }
            Access::List if self.is_first_listing(path) => Verdict::Fine,
            Access::List => Verdict::Counts(Reason::Folder),
            Access::Look | Access::Read if in_sysroot || self.jobserver.contains(path) => {
                Verdict::Fine
            }
            Access::Look if is_library_folder || self.leads_to_a_folder_of_ours(path) => {
                Verdict::Fine
            }
            Access::Look | Access::Read if self.is_library(path) || self.is_output(path) => {
                Verdict::Fine
            }
            Access::Look | Access::Read if self.is_foreign_source(path) => Verdict::Fine,
            Access::Look | Access::Read => Verdict::Await,
        }
    }

    /// Whether rustc itself lists this folder of libraries.
    fn is_first_listing(&mut self, path: &Path) -> bool {
        let at = self.unlisted.iter().position(|folder| folder == path);
        at.map(|at| self.unlisted.swap_remove(at)).is_some()
    }

    /// Above folders that are here: rustc asks of each whether it is a link.
    fn leads_to_a_folder_of_ours(&self, path: &Path) -> bool {
        let ours = self.libraries.iter().chain(&self.outputs);
        ours.chain(&self.sysroots)
            .any(|folder| folder.starts_with(path))
    }

    /// What an earlier compile may have left for rustc to remove.
    fn is_output(&self, path: &Path) -> bool {
        let name = path.file_name().unwrap_or_default().as_bytes();
        let name = name.strip_prefix(b"lib").unwrap_or(name);
        let mut folders = self.outputs.iter();
        !self.crate_name.is_empty()
            && name.starts_with(&self.crate_name)
            && folders.any(|folder| path.parent() == Some(folder))
    }

    /// The source of a crate from a registry or of git that this one uses: for messages, rustc looks where macros came from.
    fn is_foreign_source(&self, path: &Path) -> bool {
        let parts: Vec<_> = path.components().map(|part| part.as_os_str()).collect();
        let mut pairs = parts.windows(2);
        let is_fetched = pairs.any(|pair| {
            pair == ["registry", "src"].map(OsStr::new)
                || pair == ["git", "checkouts"].map(OsStr::new)
        });
        let package = self.package.as_ref();
        is_fetched
            && path.extension().is_some_and(|extension| extension == "rs")
            && !package.is_some_and(|package| path.starts_with(package))
    }

    /// A name that rustc makes up and looks for where libraries are.
    fn is_library(&self, path: &Path) -> bool {
        let is_named = |extension: &OsStr| LIBRARY.iter().any(|one| extension == *one);
        let mut folders = self.libraries.iter().chain(&self.outputs);
        path.extension().is_some_and(is_named)
            && folders.any(|folder| path.parent() == Some(folder))
    }
}

/// A verdict on what the kernel makes up; `None` for files.
fn of_the_machine(path: &Path) -> Option<Verdict> {
    // Where the standard library was compiled; what a message points to would be there.
    if path.starts_with("/rustc") {
        return Some(Verdict::Fine);
    }
    if let Ok(device) = path.strip_prefix("/dev") {
        // Descriptors that were open on the client are numbers here.
        let is_fine = DEVICES.iter().any(|one| device == *one) || device.starts_with("fd");
        return is_fine.then_some(Verdict::Fine);
    }
    if let Ok(entry) = path
        .strip_prefix("/proc/self")
        .or_else(|_| path.strip_prefix("/proc/thread-self"))
    {
        let leads_out = entry.starts_with("cwd") || entry.starts_with("root");
        return (!leads_out).then_some(Verdict::Fine);
    }
    if !path.starts_with("/proc") && !path.starts_with("/sys") {
        return None;
    }
    let is_fine = RUNTIME.iter().any(|one| path.starts_with(one));
    Some(match is_fine {
        true => Verdict::Fine,
        false => Verdict::Counts(Reason::Machine),
    })
}

/// Where the same module of Rust lies if not at `path`: rustc asks for both.
pub(super) fn other_module(path: &Path) -> Option<PathBuf> {
    let path = tidy(path);
    if path.extension()? != "rs" {
        return None;
    }
    Some(match path.file_name()? == "mod.rs" {
        true => path.parent()?.with_added_extension("rs"),
        false => path.with_extension("").join("mod.rs"),
    })
}

/// Without `.` and `..`.
fn tidy(path: &Path) -> PathBuf {
    let mut tidied = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => {
                tidied.pop();
            }
            Component::CurDir => {}
            other => tidied.push(other),
        }
    }
    tidied
}

/// `<sysroot>/bin/rustc`; at any other place its arguments would have to tell.
fn sysroot_of(program: &Path) -> Option<PathBuf> {
    let folder = program.parent().filter(|folder| folder.ends_with("bin"))?;
    let sysroot = folder.parent().filter(|root| *root != Path::new("/"))?;
    Some(tidy(sysroot))
}

/// `-L` takes `KIND=PATH` or `PATH`.
fn after_kind(value: &OsStr) -> &OsStr {
    const KINDS: [&str; 5] = ["dependency", "crate", "native", "framework", "all"];
    let bytes = value.as_bytes();
    let at = bytes.iter().position(|byte| *byte == b'=');
    match at.map(|at| bytes.split_at(at)) {
        Some((kind, path)) if KINDS.iter().any(|one| one.as_bytes() == kind) => {
            OsStr::from_bytes(&path[1..])
        }
        _ => value,
    }
}

/// The variables that bubblewrap sets for the job, and their values.
pub(super) fn variables(sandbox: &[OsString]) -> impl Iterator<Item = (&OsStr, &OsStr)> {
    let set = sandbox.windows(3).filter(|three| three[0] == "--setenv");
    set.map(|three| (three[1].as_os_str(), three[2].as_os_str()))
}

/// The values of an option, as `--option VALUE`, `--option=VALUE` or, of one letter, `-oVALUE`.
pub(super) fn values_of<'a>(
    arguments: &'a [OsString],
    option: &str,
) -> impl Iterator<Item = &'a OsStr> {
    let joiner: &[u8] = if option.starts_with("--") { b"=" } else { b"" };
    arguments.iter().enumerate().filter_map(move |(at, one)| {
        if one == option {
            return arguments.get(at + 1).map(OsString::as_os_str);
        }
        let rest = one.as_bytes().strip_prefix(option.as_bytes())?;
        rest.strip_prefix(joiner).map(OsStr::from_bytes)
    })
}

/// The first value of an option.
pub(super) fn value_of<'a>(arguments: &'a [OsString], option: &str) -> Option<&'a OsStr> {
    values_of(arguments, option).next()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<OsString> {
        text.split_ascii_whitespace().map(OsString::from).collect()
    }

    fn rules() -> Rules {
        let sandbox = words(
            "--bind /b/target / --chdir /home/me/proj --setenv TMPDIR /scratch \
             --setenv CARGO_MANIFEST_DIR /home/me/.cargo/registry/src/index/it-1.0.0 --setenv \
             CARGO_MAKEFLAGS -j=--jobserver-auth=fifo:/run/make.7",
        );
        let compiler = words(
            "--crate-name it src/lib.rs --out-dir target/debug/deps -L dependency=target/debug/deps \
             -Lnative=/home/me/proj/target/debug/build/it-1/out --extern serde=libserde.rlib",
        );
        Rules::new(
            &sandbox,
            Path::new("/home/me/.rustup/toolchains/stable/bin/rustc"),
            &compiler,
        )
    }

    fn judge(path: &str, access: Access) -> Verdict {
        rules().judge(Path::new(path), access)
    }

    #[test]
    fn what_a_compile_looks_for_of_itself_does_not_count() {
        for path in [
            "/home/me/.rustup/toolchains/stable/lib64/rustlib",
            "/home/me/.rustup/toolchains/stable/bin/../lib/rustlib/src/rust/library/std/src/lib.rs",
            "/home/me/proj/target/debug/deps/libserde-0123.rmeta",
            "/home/me/proj/target/debug/deps/it-0123.d",
            "/home/me/proj/target/debug",
            "/home/me",
            "/proc/self/maps",
            "/proc/meminfo",
            "/dev/fd/9",
            "/dev/urandom",
            "/rustc/59807616e1fa/library/core/src/panic.rs",
            "/home/me/.cargo/registry/src/index/tokio-1.0.0/src/macros.rs",
            "/run/make.7",
        ] {
            assert_eq!(judge(path, Access::Look), Verdict::Fine, "{path}");
        }
        for path in [
            "/home/me/proj/target/debug/deps/rmetaX/full.rmeta",
            "/scratch/x",
            "/tmp/x",
        ] {
            assert_eq!(judge(path, Access::Write), Verdict::Fine, "{path}");
        }
        for path in [
            "/home/me/proj/target/debug/deps",
            "/home/me/proj/target/debug/deps/rmetaX",
            "/home/me/.rustup/toolchains/stable/lib/rustlib/x86_64-unknown-linux-gnu/lib",
            "/home/me/proj/target/debug/build/it-1/out",
        ] {
            assert_eq!(judge(path, Access::List), Verdict::Fine, "{path}");
        }
    }

    #[test]
    fn anything_else_counts_if_it_is_missing() {
        for path in [
            "/home/me/proj/conf/app.toml",
            "/home/me/proj/src/lib.rs",
            "/etc/os-release",
            "/home/me/.cargo/registry/src/index/it-1.0.0/src/more.rs",
            "/home/me/.cargo/registry/src/index/tokio-1.0.0/Cargo.toml",
            "/home/me/.netrc",
            // Generated by a build script, and not among libraries by its name.
            "/home/me/proj/target/debug/build/it-1/out/table.bin",
            "/home/me/proj/target/debug/deps/notes.json",
            "/home/me/.rustup/toolchains/stable/bin/rustfmt",
            "/dev/shm/x",
            "/proc/self/cwd/conf/app.toml",
        ] {
            assert_eq!(judge(path, Access::Read), Verdict::Await, "{path}");
        }
    }

    #[test]
    fn folders_the_machine_and_files_that_stay_behind_count_at_once() {
        let folder = Verdict::Counts(Reason::Folder);
        for path in ["/home/me/proj/assets", "/home/me/proj", "/", "/tmp"] {
            assert_eq!(judge(path, Access::List), folder, "{path}");
        }
        let machine = Verdict::Counts(Reason::Machine);
        assert_eq!(judge("/proc/sys/kernel/hostname", Access::Read), machine);
        assert_eq!(judge("/sys/class/net", Access::List), machine);
        let write = Verdict::Counts(Reason::Write);
        assert_eq!(
            judge("/home/me/proj/src/generated.rs", Access::Write),
            write
        );
        assert_eq!(
            judge("/home/me/proj/target/debug/deps/../x", Access::Write),
            write
        );
    }

    /// A macro lists what was sent of a folder, be it one of libraries.
    #[test]
    fn folder_of_libraries_is_listed_once_by_the_compiler() {
        let mut rules = rules();
        for folder in [
            "/home/me/proj/target/debug/deps",
            "/home/me/proj/target/debug/build/it-1/out",
        ] {
            let mut list = || rules.judge(Path::new(folder), Access::List);
            assert_eq!(list(), Verdict::Fine, "{folder}");
            assert_eq!(list(), Verdict::Counts(Reason::Folder), "{folder}");
        }
        let sysroot = "/home/me/.rustup/toolchains/stable/lib";
        for _ in 0..2 {
            let verdict = rules.judge(Path::new(sysroot), Access::List);
            assert_eq!(verdict, Verdict::Fine, "all of it was sent");
        }
    }

    #[test]
    fn compiler_at_the_root_does_not_make_everything_its_sysroot() {
        for program in ["/rustc", "/bin/rustc", "rustc"] {
            let mut rules = Rules::new(&[], Path::new(program), &[]);
            assert!(rules.sysroots.is_empty(), "{program}");
            let verdict = rules.judge(Path::new("/lib/x"), Access::Read);
            assert_eq!(verdict, Verdict::Await, "{program}");
        }
    }

    #[test]
    fn module_lies_in_one_of_two_places() {
        let other = |path: &str| other_module(Path::new(path));
        assert_eq!(other("/a/x.rs"), Some("/a/x/mod.rs".into()));
        assert_eq!(other("/a/x/mod.rs"), Some("/a/x.rs".into()));
        assert_eq!(other("/a/x.toml"), None);
    }
}
