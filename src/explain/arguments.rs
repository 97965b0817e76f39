//! The command line of a compile, as far as it matters for its key. Pure.
//!
//! Source: `parse_arguments` and `generate_hash_key` in `src/compiler/rust.rs` of sccache 0.19.0.

use std::path::Path;

/// What a command line of rustc says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rust {
    /// The crate.
    pub crate_name: String,
    /// `-C extra-filename`: with the crate's name it names the outputs, and so the members of the cache's entry.
    pub extra_filename: String,
    /// The kinds of crate, as they were given.
    pub crate_types: Vec<String>,
    /// What is part of the key: flags with their values, the source; without `--cfg`.
    pub flags: Vec<String>,
    /// Values of `--cfg`, sorted.
    pub features: Vec<String>,
    /// Files named by `--extern`.
    pub externs: Vec<String>,
    /// The source file.
    pub source: String,
    /// Where the outputs go.
    pub out_dir: String,
    /// Why sccache does not cache it, in its own words.
    pub not_cached: Option<String>,
}

impl Rust {
    /// The name of the outputs: `serde-0123456789abcdef`.
    pub fn output(&self) -> String {
        format!("{}{}", self.crate_name, self.extra_filename)
    }
}

/// Flags whose value is the next word.
const WITH_VALUE: [&str; 22] = [
    "--allow",
    "--cap-lints",
    "--cfg",
    "--check-cfg",
    "--codegen",
    "--color",
    "--crate-name",
    "--crate-type",
    "--deny",
    "--diagnostic-width",
    "--edition",
    "--emit",
    "--error-format",
    "--extern",
    "--forbid",
    "--json",
    "--out-dir",
    "--print",
    "--remap-path-prefix",
    "--sysroot",
    "--target",
    "--warn",
];
/// The same for short ones, which may also have it attached.
const SHORT: [&str; 10] = ["-A", "-C", "-D", "-F", "-L", "-W", "-Z", "-l", "-o", "-a"];

/// Reads the words after the compiler's name; `None` for what is no compile (`-vV`, `--print`, a source on standard input).
pub fn rust(words: &[String]) -> Option<Rust> {
    let mut found = Rust::default();
    let mut emit: Option<Vec<&str>> = None;
    let mut inputs = 0;
    let mut rest = words.iter().map(String::as_str);
    let mut refuse = |why: &str| {
        found.not_cached.get_or_insert_with(|| why.to_owned());
    };
    let mut flags = Vec::new();
    let mut features = Vec::new();
    let (mut name, mut extra, mut out_dir, mut source) = ("", "", "", "");
    let (mut types, mut externs) = (Vec::new(), Vec::new());
    while let Some(word) = rest.next() {
        if word == "-" || word == "-vV" || word == "--version" || word.starts_with("--print") {
            return None;
        }
        if word.starts_with('@') {
            refuse("a response file");
            continue;
        }
        let Some((flag, value)) = split(word, &mut rest) else {
            // clippy-driver is told the compiler's name first.
            if flags.is_empty()
                && inputs == 0
                && Path::new(word).file_stem() == Some("rustc".as_ref())
            {
                continue;
            }
            if word.starts_with('-') {
                flags.push(word.to_owned());
            } else {
                inputs += 1;
                source = word;
            }
            continue;
        };
        match (flag, value) {
            ("--crate-name", value) => name = value,
            ("--crate-type", value) => {
                types.extend(value.split(',').map(str::to_owned));
                flags.push(format!("{flag} {value}"));
            }
            ("--out-dir", value) => out_dir = value,
            ("--emit", value) => {
                emit = Some(value.split(',').collect());
                flags.push(format!("{flag} {value}"));
            }
            ("--cfg", value) => features.push(value.to_owned()),
            ("--extern", value) => {
                let path = value.split_once('=').map(|(_, path)| path);
                externs.extend(path.map(str::to_owned));
            }
            ("-L" | "--check-cfg" | "--color" | "--diagnostic-width", _) => {}
            ("-C", value) => match value.split_once('=') {
                Some(("extra-filename", value)) => extra = value,
                Some(("metadata", _)) => {}
                Some(("incremental", _)) => refuse("incremental"),
                _ => flags.push(format!("-C {value}")),
            },
            ("-o", _) => refuse("-o"),
            (flag, value) => flags.push(format!("{flag} {value}")),
        }
    }
    let emit = emit.unwrap_or_default();
    if !emit.is_empty() && !emit.contains(&"link") && !emit.contains(&"metadata") {
        return None;
    }
    let is_cached = |kind: &String| matches!(kind.as_str(), "lib" | "rlib" | "staticlib");
    let mut others: Vec<&str> = types
        .iter()
        .filter(|kind| !is_cached(kind))
        .map(String::as_str)
        .collect();
    others.sort_unstable();
    if !others.is_empty() {
        refuse(&format!("crate-type, {}", others.join(",")));
    } else if types.is_empty() {
        refuse("crate-type, none");
    }
    if inputs != 1 {
        refuse(if inputs == 0 {
            "missing input"
        } else {
            "multiple input files"
        });
    }
    for (missing, what) in [
        (name.is_empty(), "missing crate_name"),
        (out_dir.is_empty(), "missing output_dir"),
        (emit.is_empty(), "missing emit"),
        (
            emit.iter()
                .any(|it| !matches!(*it, "link" | "metadata" | "dep-info")),
            "unsupported --emit",
        ),
    ] {
        if missing {
            refuse(what);
        }
    }
    features.sort();
    Some(Rust {
        crate_name: name.to_owned(),
        extra_filename: extra.to_owned(),
        crate_types: types,
        flags: flags.into_iter().chain([source.to_owned()]).collect(),
        features,
        externs,
        source: source.to_owned(),
        out_dir: out_dir.to_owned(),
        not_cached: found.not_cached,
    })
}

/// A flag and its value, however the two are written.
fn split<'a>(
    word: &'a str,
    rest: &mut impl Iterator<Item = &'a str>,
) -> Option<(&'a str, &'a str)> {
    if let Some((flag, value)) = word.split_once('=')
        && WITH_VALUE.contains(&flag)
    {
        return Some((long(flag), value));
    }
    if WITH_VALUE.contains(&word) || SHORT.contains(&word) {
        return Some((long(word), rest.next().unwrap_or_default()));
    }
    let (flag, value) = word.split_at_checked(2)?;
    SHORT.contains(&flag).then_some((flag, value))
}

/// The one spelling of what has two.
fn long(flag: &str) -> &str {
    match flag {
        "--codegen" => "-C",
        "--allow" => "-A",
        "--warn" => "-W",
        "--deny" => "-D",
        "--forbid" => "-F",
        other => other,
    }
}

/// What a command line of a C or C++ compiler says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct C {
    /// The source file.
    pub source: String,
    /// The object's file name.
    pub output: String,
    /// What is part of the key.
    pub flags: Vec<String>,
    /// Folders in which headers are looked for, in their order.
    pub folders: Vec<String>,
    /// Headers that the command line names.
    pub included: Vec<String>,
    /// Why sccache does not cache it.
    pub not_cached: Option<String>,
}

/// Reads the words after the name of a compiler of C; `None` for what is no compile.
pub fn c(words: &[String]) -> Option<C> {
    let mut found = C::default();
    let mut compiles = false;
    let mut sources = 0;
    let mut rest = words.iter().map(String::as_str);
    while let Some(word) = rest.next() {
        match word {
            "-c" => compiles = true,
            "-o" => {
                let path = Path::new(rest.next().unwrap_or_default());
                let name = path.file_name().unwrap_or_default();
                found.output = name.to_string_lossy().into_owned();
            }
            // They count by their results.
            "-I" | "-isystem" | "-iquote" | "-idirafter" => {
                found.folders.extend(rest.next().map(str::to_owned));
            }
            "-include" => found.included.extend(rest.next().map(str::to_owned)),
            "-MF" | "-MT" | "-MQ" => drop(rest.next()),
            "-MD" | "-MMD" | "-MP" | "-pipe" => {}
            "-E" | "-M" | "-MM" => return None,
            _ if word.starts_with("-I") => found.folders.push(word[2..].to_owned()),
            _ if word.starts_with('-') => found.flags.push(word.to_owned()),
            _ => {
                let end = Path::new(word).extension().unwrap_or_default();
                let is_source = ["c", "cc", "cpp", "cxx", "C", "m", "mm", "S", "s"]
                    .iter()
                    .any(|known| end == *known);
                if is_source {
                    sources += 1;
                    found.source = word.to_owned();
                } else {
                    found.flags.push(word.to_owned());
                }
            }
        }
    }
    if !compiles || sources == 0 {
        return None;
    }
    if sources > 1 {
        found.not_cached = Some("multiple input files".to_owned());
    }
    if found.source.ends_with(".s") {
        found.not_cached = Some("unknown source language".to_owned());
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn line_of_cargo_is_taken_apart() {
        let line = "--crate-name serde --edition=2021 /cargo/registry/src/x/serde-1.0.0/src/lib.rs --error-format=json \
                    --crate-type lib --emit=dep-info,metadata,link -C opt-level=3 -Cdebuginfo=2 -C metadata=00ff \
                    -C extra-filename=-0123 --cfg feature=\"std\" --cfg feature=\"derive\" --check-cfg cfg(x) --out-dir \
                    /w/target/debug/deps -L dependency=/w/target/debug/deps --extern \
                    serde_derive=/w/target/debug/deps/libserde_derive-77.so --cap-lints allow -l static=z";
        let found = rust(&words(line)).unwrap();
        assert_eq!(found.output(), "serde-0123");
        assert_eq!(found.features, ["feature=\"derive\"", "feature=\"std\""]);
        assert_eq!(
            found.externs,
            ["/w/target/debug/deps/libserde_derive-77.so"]
        );
        assert_eq!(
            found.flags,
            [
                "--edition 2021",
                "--error-format json",
                "--crate-type lib",
                "--emit dep-info,metadata,link",
                "-C opt-level=3",
                "-C debuginfo=2",
                "--cap-lints allow",
                "-l static=z",
                "/cargo/registry/src/x/serde-1.0.0/src/lib.rs",
            ]
        );
        assert_eq!(found.not_cached, None);
        assert_eq!(found.out_dir, "/w/target/debug/deps");
    }

    #[test]
    fn what_sccache_does_not_cache_is_told_in_its_words() {
        let line = |more: &str| {
            let line = format!("--crate-name x --emit=link --out-dir o src/x.rs {more}");
            rust(&words(&line)).unwrap().not_cached
        };
        let why = |text: &str| Some(text.to_owned());
        assert_eq!(line("--crate-type rlib"), None);
        assert_eq!(line("--crate-type bin"), why("crate-type, bin"));
        assert_eq!(line("--crate-type=lib,cdylib"), why("crate-type, cdylib"));
        assert_eq!(line("--test"), why("crate-type, none"));
        assert_eq!(
            line("--crate-type lib -C incremental=i"),
            why("incremental")
        );
        assert_eq!(
            line("--crate-type lib other.rs"),
            why("multiple input files")
        );
        assert_eq!(
            line("--crate-type lib --emit=asm,link"),
            why("unsupported --emit")
        );
    }

    #[test]
    fn questions_are_no_compiles() {
        for line in [
            "-vV",
            "- --print=cfg",
            "--crate-name ___ --print=file-names",
            "--emit=dep-info x.rs",
        ] {
            assert_eq!(rust(&words(line)), None, "{line}");
        }
        assert!(
            rust(&words(
                "rustc --crate-name x --crate-type lib --emit=metadata --out-dir o x.rs"
            ))
            .is_some()
        );
    }

    #[test]
    fn line_of_the_crate_cc_is_taken_apart() {
        let found = c(&words(
            "-O2 -I include -Iother -DX=1 -g -o /t/out/12-util.o -c vendor/util.c",
        ))
        .unwrap();
        assert_eq!(found.source, "vendor/util.c");
        assert_eq!(found.output, "12-util.o");
        assert_eq!(found.flags, ["-O2", "-DX=1", "-g"]);
        assert_eq!(found.folders, ["include", "other"]);
        for line in ["-E x.c", "x.o -o x", "--version"] {
            assert_eq!(c(&words(line)), None, "{line}");
        }
    }
}
