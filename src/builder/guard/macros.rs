//! The macros of a job, and those that are known to look for nothing: that decides where nothing can be watched.

use super::rules::{Rules, values_of};
use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Names of libraries with procedural macros that read nothing but their input and the environment.
const PURE: &[&str] = &[
    "async_recursion",
    "async_stream_impl",
    "async_trait",
    "bitfield_struct",
    "bytemuck_derive",
    "clap_derive",
    "const_random_macro",
    "darling_macro",
    "derivative",
    "derive_builder_macro",
    "derive_more",
    "derive_more_impl",
    "derive_utils",
    "displaydoc",
    "enum_dispatch",
    "enumflags2_derive",
    "futures_macro",
    "maud_macros",
    "monostate_impl",
    "num_derive",
    "ouroboros_macro",
    "paste",
    "pin_project_internal",
    "proc_macro_error_attr",
    "proc_macro_error_attr2",
    "ref_cast_impl",
    "rustversion",
    "schemars_derive",
    "serde_derive",
    "serde_repr",
    "serde_with_macros",
    "strum_macros",
    "thiserror_impl",
    "time_macros",
    "tokio_macros",
    "tracing_attributes",
    "typed_builder_macro",
    "yoke_derive",
    "zerocopy_derive",
    "zerofrom_derive",
    "zeroize_derive",
    "zerovec_derive",
];

/// Whether a macro of this crate reads nothing but its input and the environment.
pub(super) fn is_pure(name: &str) -> bool {
    PURE.binary_search(&name).is_ok()
}

/// Names of the libraries that the compiler may load into itself, in the job's root folder.
pub(super) fn loaded(root: &Path, rules: &Rules, compiler: &[OsString]) -> BTreeSet<String> {
    let inside = |folder: &Path| root.join(folder.strip_prefix("/").unwrap_or(folder));
    // A folder of -L need not be there.
    let found = rules
        .libraries()
        .filter_map(|folder| inside(folder).read_dir().ok());
    let found = found.flat_map(|entries| entries.flatten().map(|entry| entry.file_name()));
    // `NAME=PATH`, of a library that need not lie in such a folder.
    let named = values_of(compiler, "--extern").filter_map(|value| {
        let path = value.as_bytes().rsplit(|byte| *byte == b'=').next()?;
        Some(Path::new(OsStr::from_bytes(path)).file_name()?.to_owned())
    });
    let files = found.chain(named);
    files
        .filter_map(|file| name_in(&file.to_string_lossy()))
        .collect()
}

/// The crate's name in `libNAME-HASH.so`.
fn name_in(file: &str) -> Option<String> {
    let name = file.strip_suffix(".so")?;
    let name = name.strip_prefix("lib").unwrap_or(name);
    let name = name.rsplit_once('-').map_or(name, |(name, _)| name);
    Some(name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn list_is_sorted() {
        assert!(PURE.is_sorted());
    }

    #[test]
    fn libraries_with_code_for_the_compiler_are_found_by_folder_and_by_name() {
        let root = tempfile::tempdir().unwrap();
        let deps = root.path().join("w/deps");
        std::fs::create_dir_all(&deps).unwrap();
        for file in ["libserde_derive-0f.so", "libserde-1e.rlib", "libx.rmeta"] {
            std::fs::write(deps.join(file), "").unwrap();
        }
        let loaded = |text: &str| {
            let words: Vec<_> = text.split(' ').map(OsString::from).collect();
            let rules = Rules::new(&[], Path::new("rustc"), &words);
            let names = super::loaded(root.path(), &rules, &words);
            names.into_iter().collect::<Vec<_>>().join(" ")
        };
        assert_eq!(loaded("-L dependency=/w/deps -L /none"), "serde_derive");
        let named = "-L /w/deps --extern priv:m=/o/libsqlx_macros-2d.so --extern=n=libn.rlib";
        assert_eq!(loaded(named), "serde_derive sqlx_macros");
        assert_eq!(loaded("--extern core"), "");
    }
}
