//! What is to be seen where. Looks at files, changes none but for folders that a mount needs.

use super::{Args, Error, own};
use std::ffi::OsString;
use std::fs;
use std::path::{Component, Path, PathBuf};

/// How many folders deep a checkout is searched for manifests.
const DEEPEST_MANIFEST: usize = 6;

/// A folder, and where it is to be seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Bind {
    pub(super) from: PathBuf,
    pub(super) to: PathBuf,
}

/// Everything that the command will see elsewhere.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Layout {
    /// The checkout, where it really is.
    pub(super) root: PathBuf,
    /// The current folder as the command sees it.
    pub(super) cwd: PathBuf,
    /// `CARGO_HOME` as the command sees it.
    pub(super) cargo_home: PathBuf,
    /// Crates that the manifests of its workspaces name, see `own.rs`.
    pub(super) own_results: Vec<String>,
    /// In the order in which they are to be made. Empty where everything is in its place.
    pub(super) binds: Vec<Bind>,
}

impl Layout {
    /// `variable` reads the environment.
    pub(super) fn new(
        args: &Args,
        cwd: &Path,
        variable: impl Fn(&str) -> Option<OsString>,
    ) -> Result<Layout, Error> {
        let path = checked(&args.path)?;
        let cargo_home = checked(&args.cargo_home)?;
        if path.starts_with(&cargo_home) || cargo_home.starts_with(&path) {
            return Err(Error::Path {
                path: cargo_home,
                cause: "one of the two paths lies in the other",
                hint: "choose paths side by side, such as /work and /cargo".to_owned(),
            });
        }
        let around = Around::of(cwd);
        let root = match &args.root {
            Some(given) => named(given, cwd)?,
            None => around.root().ok_or_else(|| Error::NoRoot(cwd.into()))?,
        };
        let manifests = manifests(&root);
        let workspace = around
            .workspace
            .as_ref()
            .or_else(|| only_workspace(&manifests));
        let place = |real: &Path| real.strip_prefix(&root).map(|rest| joined(&path, rest));
        let mut binds = vec![Bind {
            from: root.clone(),
            to: path.clone(),
        }];
        binds.push(Bind {
            from: cargo_source(&variable)?,
            to: cargo_home.clone(),
        });
        let target = ["CARGO_TARGET_DIR", "CARGO_BUILD_TARGET_DIR"];
        let target = target.iter().find_map(|name| variable(name));
        if let (Some(target), Some(workspace)) = (target, workspace)
            && let Ok(to) = place(&workspace.join("target"))
        {
            // The folder that hides below the mount must be there.
            made(&workspace.join("target"))?;
            let from = made(&cwd.join(target))?;
            if place(&from).ok().as_ref() != Some(&to) {
                binds.push(Bind { from, to });
            }
        }
        binds.retain(|bind| bind.from != bind.to);
        for bind in &binds {
            free(&bind.to, &path, &root)?;
        }
        let texts = manifests.iter().map(|(_, text)| own::named_in(text));
        Ok(Layout {
            own_results: texts.flatten().collect(),
            cwd: place(cwd).unwrap_or_else(|_| path.clone()),
            root,
            cargo_home,
            binds,
        })
    }
}

/// `Path::join` with nothing would end in a slash.
fn joined(path: &Path, rest: &Path) -> PathBuf {
    path.components().chain(rest.components()).collect()
}

/// The checkout around a folder: the git checkout or the cargo workspace, whichever is the outer one.
pub(crate) fn checkout_around(cwd: &Path) -> Option<PathBuf> {
    Around::of(cwd).root()
}

/// What lies around a folder.
#[derive(Debug, Default)]
struct Around {
    git: Option<PathBuf>,
    workspace: Option<PathBuf>,
}

impl Around {
    fn of(cwd: &Path) -> Around {
        let mut around = Around::default();
        let mut package = None;
        for folder in cwd.ancestors() {
            if around.git.is_none() && folder.join(".git").exists() {
                around.git = Some(folder.into());
            }
            let Ok(manifest) = fs::read_to_string(folder.join("Cargo.toml")) else {
                continue;
            };
            package.get_or_insert_with(|| folder.to_owned());
            if around.workspace.is_none() && is_workspace(&manifest) {
                around.workspace = Some(folder.into());
            }
        }
        around.workspace = around.workspace.or(package);
        around
    }

    /// The outer one: what a build reads is in it, above all path dependencies.
    fn root(&self) -> Option<PathBuf> {
        let both = [&self.git, &self.workspace];
        let outer = both
            .into_iter()
            .flatten()
            .min_by_key(|path| path.components().count());
        outer.cloned()
    }
}

/// The manifests of a checkout, whose workspaces may lie below the folder in which a command runs, with their folders.
/// Not looked at are hidden folders and what can be made anew.
fn manifests(root: &Path) -> Vec<(PathBuf, String)> {
    let (mut found, mut folders) = (Vec::new(), vec![(root.to_owned(), 0)]);
    while let Some((folder, depth)) = folders.pop() {
        if let Ok(text) = fs::read_to_string(folder.join("Cargo.toml")) {
            found.push((folder.clone(), text));
        }
        if depth == DEEPEST_MANIFEST || folder.join(own::CACHE_TAG).exists() {
            continue;
        }
        let entries = fs::read_dir(&folder).into_iter().flatten().flatten();
        let below = entries.filter(|entry| {
            let is_folder = entry.file_type().is_ok_and(|it| it.is_dir());
            is_folder && !entry.file_name().as_encoded_bytes().starts_with(b".")
        });
        folders.extend(below.map(|entry| (entry.path(), depth + 1)));
    }
    found.sort();
    found
}

/// The folder of the workspace that a checkout has, if it has one.
fn only_workspace(manifests: &[(PathBuf, String)]) -> Option<&PathBuf> {
    let mut workspaces = manifests.iter().filter(|(_, text)| is_workspace(text));
    match (workspaces.next(), workspaces.next(), manifests) {
        (Some((folder, _)), None, _) => Some(folder),
        // A package alone is a workspace of its own.
        (None, _, [(folder, _)]) => Some(folder),
        _ => None,
    }
}

/// Broken manifests are cargo's to complain about.
fn is_workspace(manifest: &str) -> bool {
    let parsed = manifest.parse::<toml::Table>();
    parsed.is_ok_and(|table| table.contains_key("workspace"))
}

/// The folder that `--root` names.
fn named(given: &Path, cwd: &Path) -> Result<PathBuf, Error> {
    let refused = |cause: String| Error::Root {
        root: given.into(),
        cause,
        cwd: cwd.into(),
    };
    let root = given
        .canonicalize()
        .map_err(|error| refused(error.to_string()))?;
    if cwd.starts_with(&root) && root != Path::new("/") {
        Ok(root)
    } else {
        Err(refused("the current folder does not lie in it".to_owned()))
    }
}

/// A path that is the same text for everybody.
fn checked(path: &Path) -> Result<PathBuf, Error> {
    let refused = |cause| Error::Path {
        path: path.into(),
        cause,
        hint: "name an absolute path such as /work".to_owned(),
    };
    let plain = |part: Component| matches!(part, Component::RootDir | Component::Normal(_));
    if !path.is_absolute() {
        return Err(refused("it is not absolute"));
    }
    if !path.components().all(plain) {
        return Err(refused("it contains \"..\""));
    }
    if path.components().count() < 2 {
        return Err(refused("it is the root of everything"));
    }
    Ok(path.components().collect())
}

/// Where cargo keeps its downloads.
fn cargo_source(variable: impl Fn(&str) -> Option<OsString>) -> Result<PathBuf, Error> {
    let set = |name| variable(name).filter(|value| !value.is_empty());
    let folder = set("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| set("HOME").map(|home| Path::new(&home).join(".cargo")))
        .ok_or(Error::NoCargoHome)?;
    made(&folder)
}

/// The folder, made if it is missing, without links in its path.
fn made(folder: &Path) -> Result<PathBuf, Error> {
    let made = fs::create_dir_all(folder).and_then(|()| folder.canonicalize());
    made.map_err(|cause| Error::Source {
        path: folder.into(),
        cause,
    })
}

/// Nothing that somebody may need must hide below a mount: what is there must be missing or empty.
fn free(to: &Path, path: &Path, root: &Path) -> Result<(), Error> {
    let refused = |cause, hint: &str| Error::Path {
        path: to.into(),
        cause,
        hint: hint.to_owned(),
    };
    let elsewhere = "choose another path, the same for everybody who is to share";
    // A target folder is below the checkout, where it is hidden on purpose.
    if to != path && to.starts_with(path) {
        return Ok(());
    }
    if root.starts_with(to) {
        return Err(refused("the checkout lies in that folder", elsewhere));
    }
    match fs::read_dir(to).map(|mut entries| entries.next().is_none()) {
        Ok(true) => Ok(()),
        Ok(false) => Err(refused("there is a folder with something in it", elsewhere)),
        Err(_) if to.symlink_metadata().is_ok() => {
            Err(refused("there is something else", elsewhere))
        }
        Err(_) if top(to).symlink_metadata().is_ok() => Err(refused(
            "the folder does not exist, and only missing ones right below / can be made up",
            "make it, or choose one such as /work",
        )),
        Err(_) => Ok(()),
    }
}

/// `/a` of `/a/b/c`.
fn top(path: &Path) -> PathBuf {
    path.components().take(2).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder without links in its path, with these files in it.
    fn tree(files: &[(&str, &str)]) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        for (name, text) in files {
            let path = root.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        (dir, root)
    }

    fn args(path: &str) -> Args {
        Args {
            path: path.into(),
            root: None,
            cargo_home: "/no-such-cargo".into(),
            own_results: Vec::new(),
            command: vec!["true".into()],
        }
    }

    fn layout(args: &Args, root: &Path, cwd: &str, more: &[(&str, &str)]) -> Result<Layout, Error> {
        let home = root.join("home").into_os_string();
        Layout::new(args, &root.join(cwd), |name| {
            let given = more.iter().find(|(known, _)| *known == name);
            match given {
                Some((_, value)) => Some(value.into()),
                None => (name == "HOME").then(|| home.clone()),
            }
        })
    }

    const WORKSPACE: &str = "[workspace]\nmembers = ['crates/*']\n";

    #[test]
    fn the_outer_of_checkout_and_workspace_is_the_root() {
        let (_dir, root) = tree(&[
            ("a/.git/HEAD", ""),
            ("a/rust/Cargo.toml", WORKSPACE),
            ("a/rust/crates/one/Cargo.toml", "[package]"),
            ("b/Cargo.toml", WORKSPACE),
            ("b/sub/.git", "gitdir: elsewhere"),
            ("b/sub/Cargo.toml", "[package]"),
        ]);
        let found = layout(&args("/no-such-work"), &root, "a/rust/crates/one", &[]).unwrap();
        assert_eq!(found.root, root.join("a"));
        assert_eq!(found.cwd, Path::new("/no-such-work/rust/crates/one"));
        let found = layout(&args("/no-such-work"), &root, "b/sub", &[]).unwrap();
        assert_eq!(found.root, root.join("b"));
        let found = layout(&args("/no-such-work"), &root, "b", &[]).unwrap();
        assert_eq!(found.cwd, Path::new("/no-such-work"));
        let binds = [
            (root.join("b"), "/no-such-work"),
            (root.join("home/.cargo"), "/no-such-cargo"),
        ];
        let binds = binds.map(|(from, to)| Bind {
            from,
            to: to.into(),
        });
        assert_eq!(found.binds, binds);
    }

    #[test]
    fn what_is_in_its_place_already_is_left_there() {
        let (_dir, root) = tree(&[("a/Cargo.toml", WORKSPACE)]);
        let mut args = args(root.join("a").to_str().unwrap());
        args.cargo_home = root.join("home/.cargo");
        let found = layout(&args, &root, "a", &[]).unwrap();
        assert_eq!(found.binds, []);
        assert_eq!(found.cwd, root.join("a"));
    }

    #[test]
    fn target_folder_of_the_environment_is_seen_at_the_default_place() {
        let (_dir, root) = tree(&[("a/Cargo.toml", WORKSPACE), ("a/crates/one/Cargo.toml", "")]);
        let outside = root.join("elsewhere");
        let set = [("CARGO_TARGET_DIR", outside.to_str().unwrap())];
        let found = layout(&args("/no-such-work"), &root, "a/crates/one", &set).unwrap();
        let last = Bind {
            from: outside,
            to: "/no-such-work/target".into(),
        };
        assert_eq!(found.binds.last(), Some(&last));
        // Where the default is named, nothing is to be done.
        let set = [("CARGO_TARGET_DIR", "target")];
        let found = layout(&args("/no-such-work"), &root, "a", &set).unwrap();
        assert_eq!(found.binds.len(), 2, "{:?}", found.binds);
    }

    #[test]
    fn workspaces_below_the_current_folder_are_found() {
        let named = "[workspace]\n[workspace.metadata.sccache-dock]\nown-results = ['reads']\n";
        let (_dir, root) = tree(&[
            ("a/.git/HEAD", ""),
            ("a/rust/Cargo.toml", named),
            (
                "a/rust/one/Cargo.toml",
                "[package]\n[package.metadata.sccache-dock]\nown-results = ['one']",
            ),
            ("a/rust/target/CACHEDIR.TAG", ""),
            ("a/rust/target/package/x/Cargo.toml", named),
        ]);
        let outside = root.join("elsewhere");
        let set = [("CARGO_TARGET_DIR", outside.to_str().unwrap())];
        let found = layout(&args("/no-such-work"), &root, "a", &set).unwrap();
        assert_eq!(found.own_results, ["reads", "one"]);
        let target = found.binds.last().unwrap();
        assert_eq!(target.to, Path::new("/no-such-work/rust/target"));
        fs::create_dir_all(root.join("a/tools")).unwrap();
        fs::write(root.join("a/tools/Cargo.toml"), WORKSPACE).unwrap();
        let found = layout(&args("/no-such-work"), &root, "a", &set).unwrap();
        assert_eq!(found.own_results, ["reads", "one"]);
        assert_eq!(
            found.binds.len(),
            2,
            "nobody says whose target folder: {:?}",
            found.binds
        );
    }

    #[test]
    fn what_cannot_be_used_is_said_with_its_hint() {
        let (_dir, root) = tree(&[("a/Cargo.toml", WORKSPACE), ("full/file", ""), ("file", "")]);
        let refused = |args: &Args, cwd: &str, parts: &[&str]| {
            let text = layout(args, &root, cwd, &[]).unwrap_err().to_string();
            for part in parts {
                assert!(text.contains(part), "{part:?} is missing in: {text}");
            }
        };
        refused(&args("work"), "a", &["not absolute", "hint: "]);
        refused(&args("/"), "a", &["root of everything"]);
        refused(&args("/no-such/../work"), "a", &["\"..\""]);
        refused(&args("/no-such-cargo/in"), "a", &["lies in the other"]);
        let below = |name: &str| args(root.join(name).to_str().unwrap());
        refused(&below("full"), "a", &["something in it", "another path"]);
        refused(&below("file"), "a", &["something else"]);
        refused(&below("new"), "a", &["does not exist", "such as /work"]);
        refused(&below(""), "a", &["checkout lies in"]);
        let mut named = args("/no-such-work");
        named.root = Some(root.join("full"));
        refused(&named, "a", &["--root", "does not lie in it"]);
        let empty = tempfile::tempdir_in("/dev/shm").unwrap();
        let error = layout(&args("/no-such-work"), empty.path(), "", &[]).unwrap_err();
        assert!(error.to_string().contains("--root"), "{error}");
        let nothing = Layout::new(&args("/no-such-work"), &root.join("a"), |_| None);
        assert!(matches!(nothing, Err(Error::NoCargoHome)));
    }
}
