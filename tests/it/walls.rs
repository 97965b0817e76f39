//! The layers of the code, as ARCHITECTURE.md lists them, and what the programs may link.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use syn::visit::{self, Visit};
use syn::{ItemMod, ItemUse, UseTree, Visibility};

/// From the bottom up: a layer imports those before it.
const LAYERS: [&str; 15] = [
    "exit",
    "base",
    "contract",
    "explain",
    "config",
    "supervisor",
    "store",
    "client",
    "gateway",
    "dist_front",
    "serve",
    "builder",
    "admin",
    "doctor",
    "cli",
];

/// Most lines of a file: one that has more is about more than one subject.
const LONGEST: usize = 600;

/// What must not be in PID 1: it would double its memory.
const NOT_IN_PID_1: [&str; 7] = [
    "rustls", "ring", "hyper", "tokio", "reqwest", "opendal", "clap",
];

fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

fn files_of(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files_of(&path, found);
        } else if path.extension().is_some_and(|end| end == "rs") {
            found.push(path);
        }
    }
}

/// The files of each layer, those of tests left out.
fn layers() -> BTreeMap<String, Vec<PathBuf>> {
    let mut files = Vec::new();
    files_of(&source(), &mut files);
    let mut layers = BTreeMap::<String, Vec<PathBuf>>::new();
    for file in files {
        let path = file.strip_prefix(source()).unwrap().with_extension("");
        let parts: Vec<&str> = path.iter().map(|part| part.to_str().unwrap()).collect();
        let is_root = matches!(parts[..], ["lib" | "main"] | ["bin", ..]);
        if !is_root && !parts.contains(&"tests") {
            layers.entry(parts[0].to_owned()).or_default().push(file);
        }
    }
    layers
}

/// The code of a file: no comments, nothing from its tests on.
fn code(file: &Path) -> String {
    let text = fs::read_to_string(file).unwrap();
    let code = text.split("#[cfg(test)]\nmod ").next().unwrap();
    let lines = code.lines().map(|line| line.split("//").next().unwrap());
    lines.collect::<Vec<_>>().join("\n")
}

/// The paths that a file names, as they are written; its tests left out.
#[derive(Default)]
struct Named {
    used: Vec<Vec<String>>,
    /// What it imports, by the name under which it does.
    imported: BTreeMap<String, Vec<String>>,
    /// What it hands on by `pub use`, by the name under which it does.
    handed_on: BTreeMap<String, Vec<String>>,
}

impl Named {
    fn of(code: &str) -> Named {
        let mut named = Named::default();
        named.visit_file(&syn::parse_file(code).unwrap());
        named
    }

    /// All of both.
    fn all(self) -> impl Iterator<Item = Vec<String>> {
        self.used.into_iter().chain(self.handed_on.into_values())
    }

    fn flatten(&mut self, before: &[String], tree: &UseTree, is_public: bool) {
        let beside = |ident: &syn::Ident| [before, &[ident.to_string()]].concat();
        let (path, name) = match tree {
            UseTree::Name(name) if name.ident == "self" => {
                (before.to_vec(), before.last().cloned())
            }
            UseTree::Path(path) => {
                return self.flatten(&beside(&path.ident), &path.tree, is_public);
            }
            UseTree::Group(group) => {
                let trees = group.items.iter();
                return trees.for_each(|tree| self.flatten(before, tree, is_public));
            }
            UseTree::Name(name) => (beside(&name.ident), Some(name.ident.to_string())),
            UseTree::Rename(rename) => (beside(&rename.ident), Some(rename.rename.to_string())),
            UseTree::Glob(_) => (before.to_vec(), None),
        };
        match name {
            Some(name) if is_public => drop(self.handed_on.insert(name, path)),
            Some(name) => {
                self.imported.insert(name, path.clone());
                self.used.push(path);
            }
            None => self.used.push(path),
        }
    }
}

impl<'ast> Visit<'ast> for Named {
    fn visit_item_use(&mut self, item: &'ast ItemUse) {
        let is_public = !matches!(item.vis, Visibility::Inherited);
        self.flatten(&[], &item.tree, is_public);
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let segments = path.segments.iter();
        self.used
            .push(segments.map(|it| it.ident.to_string()).collect());
        visit::visit_path(self, path);
    }

    fn visit_item_mod(&mut self, item: &'ast ItemMod) {
        if !item.attrs.iter().any(|attr| attr.path().is_ident("cfg")) {
            visit::visit_item_mod(self, item);
        }
    }
}

/// All files but those of tests, by their paths as modules.
fn modules() -> BTreeMap<Vec<String>, Named> {
    let files = layers().into_values().flatten();
    files
        .map(|file| {
            let path = file.strip_prefix(source()).unwrap().with_extension("");
            let module = path.iter().map(|part| part.to_str().unwrap().to_owned());
            let text = fs::read_to_string(&file).unwrap();
            (module.collect(), Named::of(&text))
        })
        .collect()
}

/// The file that defines what `path`, written in `module`, leads to; `None` if it is another crate's.
fn owner(
    modules: &BTreeMap<Vec<String>, Named>,
    module: &[String],
    path: &[String],
) -> Option<Vec<String>> {
    let mut place = module.to_vec();
    let mut rest = path;
    match rest.first()?.as_str() {
        "crate" => {
            place.clear();
            rest = &rest[1..];
        }
        "self" => rest = &rest[1..],
        "super" => {
            while rest.first().is_some_and(|part| part == "super") {
                place.pop();
                rest = &rest[1..];
            }
        }
        first if modules.contains_key(&[module, &[first.to_owned()]].concat()) => {}
        first => {
            let imported = modules[module].imported.get(first)?;
            // Such as `use tracing;`: another crate.
            if imported[0] == first {
                return None;
            }
            return owner(modules, module, &[imported, &path[1..]].concat());
        }
    }
    while let Some(next) = rest.first() {
        let deeper = [&place[..], std::slice::from_ref(next)].concat();
        if modules.contains_key(&deeper) {
            place = deeper;
            rest = &rest[1..];
            continue;
        }
        let handed_on = modules.get(&place)?.handed_on.get(next);
        return match handed_on {
            Some(path) => owner(modules, &place, path),
            None => Some(place),
        };
    }
    // A module by itself: what is taken from it shows at the paths that begin with it.
    None
}

#[test]
fn no_layer_imports_one_above_it() {
    let layers = layers();
    let known: Vec<&str> = layers.keys().map(String::as_str).collect();
    let mut listed = LAYERS.to_vec();
    listed.sort_unstable();
    assert_eq!(known, listed, "the layers of src/ and those of this test");
    let height = |layer: &str| LAYERS.iter().position(|one| *one == layer);
    let mut upward = Vec::new();
    for (layer, files) in &layers {
        for file in files {
            for path in Named::of(&fs::read_to_string(file).unwrap()).all() {
                if path[0] == "crate" && path.len() > 1 && height(&path[1]) > height(layer) {
                    upward.push(format!("{} imports {}", file.display(), path.join("::")));
                }
            }
        }
    }
    assert_eq!(upward, [""; 0], "arrows that run up");
}

#[test]
fn no_files_import_each_other_in_a_cycle() {
    let modules = modules();
    let mut arrows: BTreeMap<&Vec<String>, BTreeSet<Vec<String>>> = BTreeMap::new();
    for (module, named) in &modules {
        let owners = named.used.iter();
        let owners = owners.filter_map(|path| owner(&modules, module, path));
        // A module and its submodules may know each other.
        let others =
            owners.filter(|owner| !owner.starts_with(module) && !module.starts_with(owner));
        arrows.insert(module, others.collect());
    }
    // Files that import none of those that are left are in no cycle.
    loop {
        let left: BTreeSet<Vec<String>> = arrows.keys().map(|it| (*it).clone()).collect();
        let before = arrows.len();
        arrows.retain(|_, owners| owners.iter().any(|owner| left.contains(owner)));
        let wanted: BTreeSet<Vec<String>> = arrows.values().flatten().cloned().collect();
        arrows.retain(|module, _| wanted.contains(*module));
        if arrows.len() == before {
            break;
        }
    }
    let cycles: Vec<String> = arrows
        .iter()
        .map(|(module, owners)| {
            let owners = owners.iter().filter(|owner| arrows.contains_key(owner));
            let owners: Vec<String> = owners.map(|owner| owner.join("/")).collect();
            format!("{} -> {}", module.join("/"), owners.join(", "))
        })
        .collect();
    assert_eq!(cycles, [""; 0], "files that import each other");
}

#[test]
fn paths_lead_to_the_files_that_define_their_ends() {
    let file = |module: &[&str], code: &str| {
        let module = module.iter().map(|part| (*part).to_owned());
        (module.collect(), Named::of(code))
    };
    let modules = BTreeMap::from([
        file(
            &["a"],
            "pub use self::b::{Of, Other as Name};\npub fn own() {}",
        ),
        file(
            &["a", "b"],
            "#[cfg(test)]\nmod tests { use crate::c::Never; }",
        ),
        file(&["c"], "use {crate::a::{Name, own}, std::io};"),
    ]);
    let owners = modules[&vec!["c".to_owned()]].used.iter();
    let owners = owners.filter_map(|path| owner(&modules, &["c".into()], path));
    let owners: Vec<String> = owners.map(|owner| owner.join("/")).collect();
    assert_eq!(owners, ["a/b", "a"]);
    assert!(
        modules[&vec!["a".to_owned(), "b".to_owned()]]
            .used
            .is_empty()
    );
}

#[test]
fn no_file_is_long() {
    let mut files = Vec::new();
    files_of(&source(), &mut files);
    let lines = |file: &PathBuf| fs::read_to_string(file).unwrap().lines().count();
    files.retain(|file| lines(file) > LONGEST);
    assert!(files.is_empty(), "more than {LONGEST} lines: {files:?}");
}

#[test]
fn store_needs_no_runtime_and_no_http() {
    for file in &layers()["store"] {
        let code = code(file);
        for library in ["tokio", "hyper"] {
            assert!(!code.contains(library), "{library} in {}", file.display());
        }
    }
}

/// What its port shares with the cache's is in `dist_front::Shared`.
#[test]
fn front_of_the_cluster_does_not_reach_into_the_gateway() {
    let mut reaches = Vec::new();
    for file in &layers()["dist_front"] {
        let named = Named::of(&fs::read_to_string(file).unwrap());
        let paths = named
            .all()
            .filter(|path| path.iter().any(|part| part == "Gateway"));
        reaches.extend(paths.map(|path| format!("{} names {}", file.display(), path.join("::"))));
    }
    assert_eq!(reaches, [""; 0]);
}

#[test]
fn pid_1_holds_no_http_no_tls_and_no_command_line() {
    let output = Command::new("nm")
        .arg("--demangle")
        .arg(env!("CARGO_BIN_EXE_sccache-dock-run"))
        .output()
        .unwrap();
    let symbols = String::from_utf8(output.stdout).unwrap();
    assert!(symbols.contains("sccache_dock::supervisor::"));
    for library in NOT_IN_PID_1 {
        let path = format!("{library}::");
        let is_its = |line: &&str| {
            line.match_indices(&path).any(|(at, _)| {
                !line[..at].ends_with(|one: char| one.is_alphanumeric() || one == '_')
            })
        };
        let found = symbols.lines().find(is_its);
        assert_eq!(found, None, "{library} is linked into sccache-dock-run");
    }
}
