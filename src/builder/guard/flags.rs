//! Jobs that only their client can do right: their flags or variables mean something else on a builder. Decides without I/O.
//!
//! `native` is the CPU of the machine that compiles: what is compiled for a builder's may not run on the client. Where the
//! folder of `-B` is missing, gcc takes the next compiler proper and assembler that it finds, without a word. The files
//! that flags name are not sent either, and the compile would fail for that.
//!
//! `--sysroot`, `-I`, `-include` and the like have done their part when the client has preprocessed the source.

use super::Command;
use super::rules::{values_of, variables};
use crate::contract::sent_home::Reason;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

/// Options of rustc for the CPU, each a value of `-C`, `--codegen` or `-Z`.
const CPU: [&str; 2] = ["target-cpu=native", "tune-cpu=native"];
/// Options of gcc and clang that name a file to read after the preprocessor, and whose value follows the `=`.
const FILES: [&str; 18] = [
    "--specs",
    "--warning-suppression-mappings",
    "-fauto-profile",
    "-fmemory-profile-use",
    "-fpass-plugin",
    "-fplugin",
    "-fprofile-instr-use",
    "-fprofile-list",
    "-fprofile-remapping-file",
    "-fprofile-sample-use",
    "-fprofile-use",
    "-frandomize-layout-seed-file",
    "-fsanitize-blacklist",
    "-fsanitize-coverage-allowlist",
    "-fsanitize-coverage-ignorelist",
    "-fsanitize-ignorelist",
    "-fsanitize-system-ignorelist",
    "-specs",
];
/// Variables that tell gcc where its compiler proper and its assembler are.
const PROGRAMS: [&str; 2] = ["COMPILER_PATH", "GCC_EXEC_PREFIX"];

/// Why the job is its client's alone, and by which flag or variable.
pub(super) fn judge(command: &Command) -> Option<(Reason, String)> {
    match command.is_rust() {
        true => rust(command.compiler),
        false => c(command),
    }
}

fn rust(compiler: &[OsString]) -> Option<(Reason, String)> {
    let mut values = ["-C", "--codegen", "-Z"]
        .into_iter()
        .flat_map(|option| values_of(compiler, option));
    let native = values.find(|value| CPU.iter().any(|cpu| value == cpu))?;
    Some((Reason::Machine, native.to_string_lossy().into_owned()))
}

fn c(command: &Command) -> Option<(Reason, String)> {
    let text = |flag: &OsStr| flag.to_string_lossy().into_owned();
    // Clang has all in one program, unless told otherwise.
    let in_parts = !command.stem().contains("clang")
        || command
            .compiler
            .iter()
            .any(|flag| flag == "-fno-integrated-as");
    for flag in command.compiler {
        let (name, value) = split(flag);
        if name.starts_with(b"-m") && (value == b"native" || value.starts_with(b"native+")) {
            return Some((Reason::Machine, text(flag)));
        }
        let names_file = FILES.iter().any(|file| file.as_bytes() == name) && !value.is_empty();
        // sccache passes this option and its value on as one word.
        if names_file || in_parts && name.starts_with(b"-B") {
            return Some((Reason::File, text(flag)));
        }
    }
    let (name, _) = variables(command.sandbox).find(|(name, value)| {
        in_parts && PROGRAMS.iter().any(|program| name == program) && !value.is_empty()
    })?;
    Some((Reason::File, text(name)))
}

/// `NAME=VALUE`.
fn split(flag: &OsStr) -> (&[u8], &[u8]) {
    let bytes = flag.as_bytes();
    match bytes.iter().position(|byte| *byte == b'=') {
        Some(at) => (&bytes[..at], &bytes[at + 1..]),
        None => (bytes, &[]),
    }
}

#[cfg(test)]
mod tests {
    use super::super::clients_own;
    use super::*;

    fn home(words: &str) -> Option<(Reason, String)> {
        let call = format!("--bind /b/target / --chdir /w --setenv LANG C {words}");
        let words: Vec<OsString> = call.split(' ').map(OsString::from).collect();
        clients_own(&words).map(|home| (home.reason, home.what))
    }

    #[test]
    fn what_is_compiled_for_this_machine_goes_home() {
        for flag in ["-march=native", "-mtune=native", "-mcpu=native+nosve"] {
            let found = home(&format!("-- /usr/bin/gcc -c -O2 {flag} -o a.o a.c"));
            assert_eq!(found, Some((Reason::Machine, flag.to_owned())));
        }
        for flags in [
            "-C target-cpu=native",
            "-Ctarget-cpu=native",
            "--codegen target-cpu=native",
            "--codegen=target-cpu=native",
        ] {
            let found = home(&format!("-- /rust/bin/rustc --crate-name it {flags} it.rs"));
            assert_eq!(found, Some((Reason::Machine, CPU[0].to_owned())), "{flags}");
        }
        for call in [
            "-- /usr/bin/gcc -c -march=x86-64-v3 -DCPU=native -o native a.c",
            "-- /rust/bin/rustc --crate-name native -C target-cpu=x86-64-v3 --cfg cpu=native native.rs",
        ] {
            assert_eq!(home(call), None, "{call}");
        }
    }

    #[test]
    fn what_finds_other_programs_or_files_on_a_builder_goes_home() {
        let gcc = "-- /usr/bin/x86_64-linux-gnu-gcc-12 -c -o out/a.o a.c";
        for flag in ["-specs=/w/own.specs", "-B/opt/bin", "-fauto-profile=p"] {
            let found = home(&format!("{gcc} {flag}"));
            assert_eq!(found, Some((Reason::File, flag.to_owned())));
        }
        let found = home(&format!("--setenv COMPILER_PATH /opt/bin {gcc}"));
        assert_eq!(found, Some((Reason::File, "COMPILER_PATH".to_owned())));
        let clang = "-- /usr/lib/llvm-14/bin/clang -c -o a.o a.c";
        let list = "-fsanitize-ignorelist=list.txt";
        let found = home(&format!("{clang} {list}"));
        assert_eq!(found, Some((Reason::File, list.to_owned())));
        let apart = home(&format!("{clang} -B/opt/bin -fno-integrated-as"));
        assert_eq!(apart, Some((Reason::File, "-B/opt/bin".to_owned())));
        for call in [
            format!("{gcc} --sysroot /opt/root -isystem /opt/include -DB=-B"),
            format!("{clang} -B/opt/bin -fprofile-use="),
            format!("--setenv COMPILER_PATH  {gcc}"),
        ] {
            assert_eq!(home(&call), None, "{call}");
        }
    }

    #[test]
    fn job_is_known_by_its_crate_or_its_object() {
        let named = |call: &str| {
            let words: Vec<OsString> = call.split(' ').map(OsString::from).collect();
            clients_own(&words).unwrap().crate_name
        };
        let flag = "-march=native";
        assert_eq!(
            named(&format!("--x -- gcc -c {flag} -o out/a.o a.c")),
            "a.o"
        );
        let rustc = "--x -- rustc --crate-name it -Ctarget-cpu=native it.rs";
        assert_eq!(named(rustc), "it");
    }
}
