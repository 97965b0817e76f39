//! A whole project through a cluster in one locked-down container, beside the same build without any cache.

use crate::distributed::{CLIENT, client_file};
use crate::docker::{LONG, PATIENCE, TOKEN, run};
use crate::harness::{now, sccache_bin};
use crate::machine::Machine;
use crate::site::{Script, Site, free_port, project};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

/// The only compile that a builder cannot do: libc reads a file through a folder in which the compiler reads nothing,
/// and sccache packs no such folder. The client compiles it.
const ONLY_THE_CLIENT_CAN: &[&str] = &["libc"];
/// Their build scripts try what the compiler can do: one compile of each fails, wherever it is done.
const PROBING: &[&str] = &["anyhow", "proc_macro2"];

/// The two crates that compile C.
const WITH_C: &[&str] = &["bzip2", "lz4"];

/// An object of one of the two builds, without its debug information.
fn code(build: &str, name: &str) -> Vec<u8> {
    let file = tempfile::NamedTempFile::new().unwrap();
    let object = project().join(build).join("debug").join(name);
    let mut strip = Command::new("strip");
    strip.args(["-g", "-o"]).arg(file.path()).arg(object);
    run(&mut strip, PATIENCE).ok();
    fs::read(file.path()).unwrap()
}

/// What the compiler made, by its path below the build's folder.
fn results() -> BTreeMap<String, blake3::Hash> {
    let (target, mut found) = (project().join("target/debug"), BTreeMap::new());
    collect(&target, &target, &mut found);
    found
}

fn collect(root: &Path, folder: &Path, found: &mut BTreeMap<String, blake3::Hash>) {
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if entry.file_type().unwrap().is_dir() {
            collect(root, &path, found);
            continue;
        }
        let kind = path.extension().and_then(|kind| kind.to_str());
        if matches!(kind, Some("rlib" | "rmeta" | "so" | "o" | "a")) {
            let name = path.strip_prefix(root).unwrap().display().to_string();
            found.insert(name, blake3::hash(&fs::read(&path).unwrap()));
        }
    }
}

/// A crate whose own tests are two that pass and one that fails.
fn small_crate(folder: &Path) {
    let write = |name: &str, text: &str| {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    write(
        "Cargo.toml",
        "[package]\nname = \"small\"\nversion = \"1.0.0\"\nedition = \"2021\"\n[workspace]\n\
         [dependencies]\nmeaning = { path = \"meaning\" }\n",
    );
    write(
        "meaning/Cargo.toml",
        "[package]\nname = \"meaning\"\nversion = \"1.0.0\"\nedition = \"2021\"\n",
    );
    write("meaning/src/lib.rs", "pub fn meaning() -> u32 { 42 }\n");
    write(
        "src/lib.rs",
        "#[test] fn is_even() { assert_eq!(meaning::meaning() % 2, 0); }\n\
         #[test] fn is_odd() { assert_eq!(meaning::meaning() % 2, 1); }\n\
         #[test] #[should_panic] fn overflows() { let _ = meaning::meaning().checked_mul(u32::MAX).unwrap(); }\n",
    );
}

/// The lines of `cargo test` that say which test came out how, in order of their names.
fn outcomes(said: &str) -> Vec<&str> {
    let is_outcome = |line: &&str| line.starts_with("test ") && line.contains(" ... ");
    let mut lines: Vec<&str> = said.lines().filter(is_outcome).collect();
    lines.sort_unstable();
    lines
}

/// The client's daemon, as it counts now.
fn statistics(site: &Site, script: &Script, prepare: &str) -> Value {
    let ask = format!("{prepare} && sccache --show-stats --stats-format json");
    let shown = site.shell(script, &ask, PATIENCE).ok();
    serde_json::from_str::<Value>(&shown).unwrap()["stats"].take()
}

fn sum(counts: &Value) -> u64 {
    match counts {
        Value::Number(number) => number.as_u64().unwrap(),
        Value::Object(parts) => parts.values().map(sum).sum(),
        _ => 0,
    }
}

/// All that a builder can compile it has compiled. Gives how many compiles there were.
fn check_who_compiled(counted: &Value, complaints: &str) -> u64 {
    let (done, errors) = crate::distributed::distributed(counted);
    let compiles = counted["compilations"].as_u64().unwrap();
    let failed = sum(&counted["compile_fails"]);
    let mut taken_over: Vec<&str> = complaints
        .lines()
        .filter_map(|line| line.split_once("]: Could not perform distributed compile"))
        .filter_map(|(before, _)| before.rsplit_once('['))
        .map(|(_, name)| name)
        .collect();
    taken_over.sort_unstable();
    println!(
        "{compiles} compiles, {done} by the builder, {errors} by the client in its place, {failed} that fail \
         anywhere: {taken_over:?}; not cacheable: {}",
        counted["not_cached"]
    );
    let mut known = [ONLY_THE_CLIENT_CAN, PROBING].concat();
    known.sort_unstable();
    assert_eq!(taken_over, known, "{complaints}");
    let only = ONLY_THE_CLIENT_CAN.len() as u64;
    assert_eq!((compiles - done, errors), (only, only), "{counted:#}");
    assert!(done >= 100, "{done}");
    compiles
}

/// What differs from the build alone is C, and no Rust.
fn check_results(expected: &BTreeMap<String, blake3::Hash>) {
    let found = results();
    let same = |(name, hash): &(&String, &blake3::Hash)| found.get(*name) == Some(*hash);
    let (equal, other): (BTreeMap<_, _>, BTreeMap<_, _>) = expected.iter().partition(same);
    println!(
        "{} of {} results are byte by byte those of this machine",
        equal.len(),
        expected.len()
    );
    // A builder compiles what the client has preprocessed, which gcc notes in the debug information.
    let is_c = |name: &str| WITH_C.iter().any(|part| name.contains(part));
    assert!(other.iter().all(|(name, _)| is_c(name)), "{other:?}");
    let objects = other.keys().copied().filter(|name| name.ends_with(".o"));
    let (bare, not): (Vec<_>, Vec<_>) =
        objects.partition(|name| code("alone", name) == code("target", name));
    println!(
        "{} of {} other objects are the same without debug information",
        bare.len(),
        bare.len() + not.len()
    );
    assert_eq!(found.len(), expected.len());
}

/// By the host's script, which prints the client's steps; the container may do nothing.
fn start_locked(site: &Site, script: &Script) {
    let mut start = script.command();
    start
        .env("SCCACHE_USER", "1000:1000")
        .args(["start", "distributed-ephemeral"]);
    run(&mut start, LONG).ok();
    let format = "{{.Config.User}} {{.HostConfig.CapDrop}} {{.HostConfig.CapAdd}} \
                  {{.HostConfig.ReadonlyRootfs}} {{.HostConfig.Privileged}} {{.HostConfig.SecurityOpt}}";
    let rights = site.docker.inspect(&script.container, format);
    let expected = "1000:1000 [ALL] [] true false [no-new-privileges seccomp=";
    assert!(rights.starts_with(expected), "{rights}");
    script.call(&["install-client"]).ok();
}

#[test]
fn hundred_crates_are_built_by_a_locked_down_container_as_this_machine_builds_them() {
    let Some(site) = Site::open() else { return };
    let script = site.script("whole");
    start_locked(&site, &script);
    let small = site.home.path().join("small");
    small_crate(&small);

    // Without any cache.
    let time = now();
    let alone = "export CARGO_INCREMENTAL=0";
    let build = "cargo build --locked --offline --quiet";
    let printed = site.shell(
        &script,
        &format!("{alone} && {build} --jobs 2 && target/debug/hundred"),
        LONG,
    );
    let printed = printed.ok();
    println!("without a cache: {:.1?}", time.elapsed());
    let expected = results();
    let test = format!("cd '{}' && cargo test --offline --lib", small.display());
    let tested = site.shell(&script, &format!("{alone} && {test}"), LONG);
    fs::rename(project().join("target"), project().join("alone")).unwrap();
    fs::remove_dir_all(small.join("target")).unwrap();

    // By the cluster; the daemon tells which compiles it took over.
    let said = site.home.path().join("client.log");
    let client = format!(
        "{} && export SCCACHE_LOG=warn SCCACHE_ERROR_LOG='{}'",
        script.eval("--lane dist"),
        said.display()
    );
    let warm = format!("{client} && sccache-dock warm && sccache --zero-stats >/dev/null");
    let warmed = site.shell(&script, &warm, LONG).ok();
    println!("{warmed}");
    let jobs = warmed
        .rsplit_once("cargo build --jobs ")
        .and_then(|(_, rest)| rest.split_whitespace().next())
        .unwrap();
    let time = now();
    let again = format!("{client} && {build} --jobs {jobs} && target/debug/hundred");
    let built = site.shell(&script, &again, LONG);
    let log = site.docker.logs(&script.container);
    assert_eq!(built.code, Some(0), "{}\n{log}", built.stderr);
    println!("by the cluster, --jobs {jobs}: {:.1?}", time.elapsed());
    assert_eq!(built.stdout.trim_end(), printed);

    let counted = statistics(&site, &script, &client);
    let complaints = fs::read_to_string(&said).unwrap_or_default();
    let compiles = check_who_compiled(&counted, &complaints);
    check_results(&expected);

    let tested_there = site.shell(&script, &format!("{client} && {test}"), LONG);
    assert_eq!(tested_there.code, tested.code, "{}", tested_there.stderr);
    assert_eq!(outcomes(&tested_there.stdout), outcomes(&tested.stdout));
    assert_eq!(outcomes(&tested.stdout).len(), 3, "{tested:?}");

    script.settled();
    let forget = format!("{client} && sccache --zero-stats");
    site.shell(&script, &forget, PATIENCE).ok();
    site.build(&script, &client);
    let counted = statistics(&site, &script, &client);
    let count = |what: &str| sum(&counted[what]["counts"]);
    println!("again: {} hits", count("cache_hits"));
    assert_eq!(
        (count("cache_hits"), count("cache_misses")),
        (compiles, 0),
        "{counted:#}"
    );
}

/// Some crates of the project, with what they depend on.
const HANDFUL: &str = "cargo build --locked --offline --quiet -p indexmap -p anyhow -p memchr";

#[test]
fn builder_that_isolates_as_root_builds_for_another_container() {
    let Some(site) = Site::open() else { return };
    let network = site.name("net");
    site.docker.ok(&["network", "create", &network]);
    let profile = Path::new(env!("CARGO_MANIFEST_DIR")).join("images/seccomp/root.json");
    let container = site.container(
        "root-farm",
        &[
            "--user=root",
            "--cap-add=SYS_ADMIN",
            "--env=MODE=distributed-ephemeral",
            "--env=SCCACHE_BUILDER_ISOLATION=root",
            &format!("--security-opt=seccomp={}", profile.display()),
            &format!("--network={network}"),
        ],
    );
    container.wait_healthy();
    let endpoint = format!("http://{}:4226", container.name);
    let ask = ["client-env", "--lane", "dist", "--endpoint", &endpoint];
    let set = container.exec(&[&["sccache-dock"][..], &ask].concat()).ok();
    fs::write(site.home.path().join("set"), set).unwrap();

    let tools = [sccache_bin(), crate::dock::program()].map(|program| {
        let name = program.file_name().unwrap().to_str().unwrap();
        format!("--volume={}:/usr/local/bin/{name}:ro", program.display())
    });
    let script = format!(
        "eval \"$(cat /set)\" && sccache-dock warm rustc >&2 && {HANDFUL} --jobs 2 >&2 && \
         sccache --show-stats --stats-format json"
    );
    let mut client = Command::new("docker");
    client
        .args([
            "run",
            "--rm",
            "--name",
            &site.name("client"),
            "--env=HOME=/tmp",
        ])
        .arg(format!("--network={network}"))
        .arg(format!(
            "--volume={}/set:/set:ro",
            site.home.path().display()
        ))
        .args(tools)
        .args(site.toolchain_flags())
        .args([site.base().unwrap(), "sh", "-c", &script]);
    let built = run(&mut client, LONG);
    let log = site.docker.logs(&container.name);
    assert_eq!(built.code, Some(0), "{}\n{log}", built.stderr);
    let counted = serde_json::from_str::<Value>(&built.stdout).unwrap()["stats"].take();
    let (done, errors) = crate::distributed::distributed(&counted);
    println!(
        "{}{done} compiles by the builder, {errors} taken over",
        built.stderr
    );
    assert!(done >= 5 && errors == 0, "{counted:#}\n{log}");
    assert!(log.contains("Root with a Fresh procfs"), "{log}");
    drop(container);
    site.docker.ok(&["network", "rm", &network]);
}

#[test]
fn cluster_of_the_compose_file_builds_for_its_host() {
    let Some(site) = Site::open() else { return };
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("images/compose/distributed.yml");
    let project = site.name("compose-dist");
    for words in super::compose::composes() {
        let [cache, scheduler] = [free_port(), free_port()];
        let call = |args: &[&str]| {
            let mut command = super::compose::compose(words);
            command.arg("--file").arg(&file);
            command.args(["--project-name", &project]).args(args);
            // From here Compose finds the seccomp profile.
            command.current_dir(file.parent().unwrap());
            command
                .env("SCCACHE_IMAGE_NAME", &site.image)
                .env("SCCACHE_AUTH_TOKEN", TOKEN)
                .env("SCCACHE_DEFAULT_PORT", cache.to_string())
                .env("SCCACHE_SCHEDULER_PORT", scheduler.to_string());
            run(&mut command, PATIENCE).ok()
        };
        call(&["up", "--detach", "--no-build"]);
        let container = call(&["ps", "--quiet", "sccache"]);
        site.docker.wait_healthy(&container);
        let client = Machine::new();
        let front = format!("127.0.0.1:{scheduler}");
        client.write("dist.toml", &client_file(&front, TOKEN));
        client.write("a.c", "int main(void) { return 42; }\n");
        client.write("lib.rs", "pub fn meaning() -> u32 { 42 }\n");
        let script = format!(
            "{CLIENT}sccache cc -c a.c -o a.o && cc a.o -o a && {{ ./a; [ $? = 42 ]; }} && mkdir out && \
             sccache rustc --crate-name it --crate-type lib --emit=dep-info,metadata,link --out-dir out lib.rs"
        );
        let built = run(&mut client.command(&script), LONG);
        let log = site.docker.logs(&container);
        assert_eq!(built.code, Some(0), "{}\n{log}", built.stderr);
        let counted = crate::distributed::statistics(&client);
        assert_eq!(crate::distributed::distributed(&counted), (2, 0), "{log}");
        call(&["down", "--volumes"]);
    }
}
