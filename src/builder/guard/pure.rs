//! Where nothing can be watched: macros that are known to look for nothing.

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
    "document_features",
    "enum_dispatch",
    "enumflags2_derive",
    "futures_macro",
    "jiff_static",
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
    "wasm_bindgen_macro",
    "yoke_derive",
    "zerocopy_derive",
    "zerofrom_derive",
    "zeroize_derive",
    "zerovec_derive",
];

/// The name of a library in `folder` that may have macros and is not known to be pure.
pub(super) fn unknown_macro_in(folder: &Path) -> Option<String> {
    // A folder of -L need not be there.
    let entries = std::fs::read_dir(folder).ok()?;
    let names = entries.flatten().map(|entry| entry.file_name());
    let macros = names.filter_map(|file| macro_name(&file.to_string_lossy()));
    let unknown = macros.filter(|name| PURE.binary_search(&name.as_str()).is_err());
    // The same one each time.
    unknown.min()
}

/// The crate's name in `libNAME-HASH.so`.
fn macro_name(file: &str) -> Option<String> {
    let name = file.strip_prefix("lib")?.strip_suffix(".so")?;
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
    fn unknown_macro_is_found_among_those_that_are_known() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(unknown_macro_in(&folder.path().join("none")), None);
        for file in ["libserde_derive-0f.so", "libserde-1e.rlib", "libx.rmeta"] {
            std::fs::write(folder.path().join(file), "").unwrap();
        }
        assert_eq!(unknown_macro_in(folder.path()), None);
        std::fs::write(folder.path().join("libsqlx_macros-2d.so"), "").unwrap();
        assert_eq!(unknown_macro_in(folder.path()), Some("sqlx_macros".into()));
    }
}
