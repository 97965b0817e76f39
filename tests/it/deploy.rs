//! What carries the program to where it runs: manifests, units, workflows, the crate and its manual.

use crate::dock::program;
use crate::harness::{clean, skip, tools};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|cause| panic!("{}: {cause}", path.display()))
}

/// A tool of `scripts/test` or of the machine; `None`, and a line, where it is not.
pub(crate) fn tool(name: &str, ask: &str) -> Option<PathBuf> {
    let kept = [format!("python/bin/{name}"), format!("{name}/bin/{name}")];
    let kept = kept.map(|path| tools().join(path)).into_iter();
    let found = kept.chain([PathBuf::from(name)]).find(|path| {
        let asked = Command::new(path).args(ask.split(' ')).output();
        asked.is_ok_and(|output| output.status.success())
    });
    if found.is_none() {
        skip(&format!("{name} is not installed"));
    }
    found
}

fn said(output: &Output) -> String {
    let text = [&output.stdout[..], &output.stderr].concat();
    String::from_utf8_lossy(&text).into_owned()
}

#[track_caller]
pub(crate) fn passes(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}\n{}", said(&output));
    said(&output)
}

const MANIFESTS: [&str; 5] = [
    "namespace.yaml",
    "cache.yaml",
    "builders.yaml",
    "network.yaml",
    "seccomp/profile.yaml",
];

fn manifests() -> PathBuf {
    root().join("images/kubernetes")
}

#[test]
fn manifests_are_what_kubernetes_takes() {
    let Some(validate) = tool("kubernetes-validate", "--version") else {
        return;
    };
    let check = |version: &str, files: &[PathBuf]| {
        let mut command = Command::new(&validate);
        command.args(["--strict", "--quiet", "--kubernetes-version", version]);
        passes(command.args(files));
    };
    let plain = MANIFESTS.map(|name| manifests().join(name));
    for version in ["1.28", "1.37"] {
        check(version, &plain);
    }
    let folder = tempfile::tempdir().unwrap();
    let broken = folder.path().join("broken.yaml");
    let text = read("images/kubernetes/cache.yaml").replace("runAsNonRoot", "runAsNobody");
    std::fs::write(&broken, text).unwrap();
    let refused = Command::new(&validate).arg("--strict").arg(broken).output();
    assert!(!refused.unwrap().status.success(), "the tool sees mistakes");
    let Some(kubectl) = tool("kubectl", "version --client") else {
        return;
    };
    // With the component for AppArmor, as a user would lay it over.
    let copy = folder.path().join("base");
    passes(Command::new("cp").arg("-r").arg(manifests()).arg(&copy));
    let overlay = "resources: [base]\ncomponents: [base/apparmor]\n";
    std::fs::write(folder.path().join("kustomization.yaml"), overlay).unwrap();
    for kustomization in [
        manifests(),
        manifests().join("seccomp"),
        folder.path().into(),
    ] {
        let rendered = passes(Command::new(&kubectl).arg("kustomize").arg(&kustomization));
        assert!(
            rendered.contains("image: sccache-arch:latest"),
            "{rendered}"
        );
        assert_eq!(
            rendered.matches("appArmorProfile:").count(),
            if kustomization == folder.path() { 2 } else { 0 }
        );
        // A profile of our own, and so no namespace without enforced standards.
        let is_ours = rendered.matches("localhostProfile: sccache-dock\n").count();
        assert_eq!(is_ours, rendered.matches("appArmorProfile:").count());
        assert!(!rendered.contains("Unconfined"), "{rendered}");
        let file = folder.path().join("rendered.yaml");
        std::fs::write(&file, rendered).unwrap();
        check("1.37", &[file]);
    }
}

#[test]
fn builders_by_demand_are_asked_for_by_a_figure_that_there_is() {
    let figure = "sccache_dock_dist_demand_jobs";
    let metrics = read("src/dist_front/relay/metrics.rs");
    assert!(metrics.contains("\"dist_demand_jobs\""));
    for component in ["keda", "hpa"] {
        let text = read(manifests().join(component).join("scaler.yaml"));
        assert!(text.contains(figure), "{component}");
    }
    let Some(kubectl) = tool("kubectl", "version --client") else {
        return;
    };
    let Some(validate) = tool("kubernetes-validate", "--version") else {
        return;
    };
    for (component, kind) in [("keda", "ScaledObject"), ("hpa", "HorizontalPodAutoscaler")] {
        let folder = tempfile::tempdir().unwrap();
        let copy = folder.path().join("base");
        passes(Command::new("cp").arg("-r").arg(manifests()).arg(&copy));
        let overlay = format!("resources: [base]\ncomponents: [base/{component}]\n");
        std::fs::write(folder.path().join("kustomization.yaml"), overlay).unwrap();
        let rendered = passes(Command::new(&kubectl).arg("kustomize").arg(folder.path()));
        assert!(rendered.contains(&format!("kind: {kind}\n")), "{rendered}");
        // The relay, whose jobs wait for builders that are yet to come, is the default.
        assert!(!rendered.contains("SCCACHE_RELAY"), "{rendered}");
        assert!(!rendered.contains("replicas: 2\n"), "{rendered}");
        // What is not Kubernetes' own has no schema there.
        let own = rendered
            .split("\n---\n")
            .filter(|one| !one.contains("keda.sh/"));
        let file = folder.path().join("rendered.yaml");
        std::fs::write(&file, own.collect::<Vec<_>>().join("\n---\n")).unwrap();
        let mut command = Command::new(&validate);
        command.args(["--strict", "--quiet", "--kubernetes-version", "1.37"]);
        passes(command.arg(file));
    }
}

#[test]
fn no_pod_of_the_cluster_has_a_privilege() {
    for name in MANIFESTS {
        let text = read(manifests().join(name));
        let containers = text.matches("          image: ").count();
        for line in [
            "            allowPrivilegeEscalation: false\n",
            "            readOnlyRootFilesystem: true\n",
            "            capabilities:\n              drop:\n                - ALL\n",
        ] {
            assert_eq!(text.matches(line).count(), containers, "{name}: {line}");
        }
        for word in ["privileged: true", "hostNetwork", "hostPID", "add:\n"] {
            assert!(!text.contains(word), "{name}: {word}");
        }
        if name.starts_with("seccomp") {
            continue;
        }
        assert!(!text.contains("hostPath"), "{name}");
        assert_eq!(text.matches("runAsNonRoot: true").count(), containers);
        let profile = "type: Localhost\n          localhostProfile: sccache-dock.json\n";
        assert_eq!(text.matches(profile).count(), containers, "{name}");
    }
    let installs = read(manifests().join("seccomp/profile.yaml"));
    assert!(installs.contains("sccache-dock seccomp kubernetes >"));
    assert!(installs.contains("/seccomp/sccache-dock.json\n"));
}

#[test]
fn settings_of_the_manifests_are_the_programs() {
    let folder = tempfile::tempdir().unwrap();
    for (name, mode) in [
        ("cache.yaml", "distributed-persistent"),
        ("builders.yaml", "builder"),
    ] {
        let text = read(manifests().join(name));
        let mut command = Command::new(program());
        command.arg("config").env_clear().env("HOME", folder.path());
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        let mut names = Vec::new();
        for pair in lines.windows(2) {
            let Some(name) = pair[0].strip_prefix("- name: ") else {
                continue;
            };
            let value = match (name, pair[1].strip_prefix("value: ")) {
                ("SCCACHE_PUBLIC_ADDR", _) => "10.1.2.3".to_owned(),
                ("SCCACHE_BUILDER_SLOTS", _) => "4".to_owned(),
                (_, Some(mounted)) if name.ends_with("_FILE") => {
                    let key = mounted.strip_prefix("/run/secrets/sccache/").unwrap();
                    let file = folder.path().join(key);
                    std::fs::write(&file, format!("{key}-0123456789abcdef")).unwrap();
                    file.display().to_string()
                }
                (_, Some(value)) => value.to_owned(),
                (_, None) => continue,
            };
            command.env(name, value);
            names.push(name);
        }
        assert!(names.len() >= 6, "{name}: {names:?}");
        let shown = passes(&mut command);
        assert!(!shown.contains("\nwarning:"), "{name}: {shown}");
        assert!(shown.contains(&format!("{mode} ")), "{name}: {shown}");
        for name in names {
            let name = name.trim_end_matches("_FILE");
            let row = shown.lines().find(|line| line.starts_with(name));
            assert!(!row.unwrap().contains(" default "), "{name}: {shown}");
        }
    }
}

#[test]
fn unit_is_one_for_systemd() {
    let Some(analyze) = tool("systemd-analyze", "--version") else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let unit = read("images/systemd/sccache-dock.service");
    let installed = "/usr/local/bin/sccache-dock run";
    assert!(unit.contains(installed));
    let here = format!("{} run", program().display());
    let file = folder.path().join("sccache-dock.service");
    std::fs::write(&file, unit.replace(installed, &here)).unwrap();
    let drop_in = folder.path().join("sccache-dock.service.d");
    // Of 100, as systemd counts what a service may do; ten times what it prints.
    std::fs::create_dir(&drop_in).unwrap();
    for (added, exposure) in [
        (None, 20),
        (Some("builder.conf"), 40),
        (Some("pure-builder.conf"), 40),
    ] {
        if let Some(name) = added {
            let text = read(format!("images/systemd/{name}"));
            std::fs::write(drop_in.join(name), text).unwrap();
        }
        let analyze = |args: &[&str]| {
            let mut command = Command::new(&analyze);
            command.args(args).arg(&file);
            command.env("SYSTEMD_UNIT_PATH", format!("{}:", folder.path().display()));
            passes(&mut command)
        };
        let text = analyze(&["verify", "--man=no"]);
        assert_eq!(text, "", "not a word of warning");
        let threshold = format!("--threshold={exposure}");
        analyze(&["security", "--offline=yes", "--no-pager", &threshold]);
    }
}

/// The keys that podman-systemd.unit(5) of 5.0 has for a container: its generator refuses others.
const QUADLET: &str = "AddCapability AddDevice Annotation ContainerName DropCapability Environment EnvironmentFile \
    EnvironmentHost Exec ExposeHostPort Group HealthCmd HealthInterval HealthRetries HealthStartPeriod HealthStartupCmd \
    HealthStartupInterval HealthTimeout IP \
    IP6 Image Label LogDriver Mount Network NoNewPrivileges Notify PodmanArgs PublishPort Pull ReadOnly RunInit \
    SeccompProfile Secret SecurityLabelDisable SecurityLabelFileType SecurityLabelLevel SecurityLabelNested \
    SecurityLabelType Timezone Tmpfs User UserNS VolatileTmp Volume";

#[test]
fn quadlet_has_keys_that_podman_knows() {
    let known: BTreeSet<&str> = QUADLET.split(' ').collect();
    let text = read("images/systemd/sccache.container");
    let section = text.split("[Container]\n").nth(1).unwrap();
    let section = section.split("\n[").next().unwrap();
    let mut seen = 0;
    for line in section.lines() {
        // Those that wait behind a "#" to be used, too.
        let line = line.trim_start_matches("# ");
        if let Some((key, _)) = line.split_once('=').filter(|(key, _)| !key.contains(' ')) {
            assert!(known.contains(key), "{key}");
            seen += 1;
        }
    }
    assert!(seen > 10, "{seen} keys");
    let volume = text.split("Volume=").nth(1).unwrap().split(':').next();
    assert!(root().join("images/systemd").join(volume.unwrap()).exists());
}

#[test]
fn workflows_pin_what_they_use_and_pass_their_linters() {
    let folder = root().join(".github/workflows");
    let mut files = Vec::new();
    for entry in std::fs::read_dir(&folder).unwrap().map(Result::unwrap) {
        let text = read(entry.path());
        for line in text.lines().filter_map(|line| line.split_once("uses: ")) {
            let local = line.1.starts_with("./");
            let pinned = line.1.split_once('@').is_some_and(|(_, pin)| {
                let (sha, version) = pin.split_once(" # v").unwrap_or_default();
                sha.len() == 40 && sha.bytes().all(|b| b.is_ascii_hexdigit()) && !version.is_empty()
            });
            assert!(local || pinned, "{}: {}", entry.path().display(), line.1);
        }
        files.push(entry.path());
    }
    assert!(files.len() >= 2);
    if let Some(schema) = tool("check-jsonschema", "--version") {
        let mut check = Command::new(schema);
        passes(
            check
                .args(["--builtin-schema", "vendor.github-workflows"])
                .args(&files),
        );
    }
    if let Some(actionlint) = tool("actionlint", "--version") {
        passes(Command::new(actionlint).arg("-no-color").args(&files));
    }
    if let Some(zizmor) = tool("zizmor", "--version") {
        let mut audit = Command::new(zizmor);
        audit.args(["--offline", "--no-progress", "--min-severity", "medium"]);
        passes(audit.args(&files));
    }
}

#[test]
fn version_stands_in_one_place() {
    let version = passes(&mut Command::new(root().join("scripts/release-version")));
    assert_eq!(version.trim(), env!("CARGO_PKG_VERSION"));
    let shown = passes(clean(program()).arg("--version"));
    assert_eq!(shown.trim(), format!("sccache-dock {}", version.trim()));
    let other = Command::new(root().join("scripts/release-version"))
        .arg("v0.0.999")
        .output()
        .unwrap();
    assert!(!other.status.success());
    assert!(said(&other).contains("hint: "), "{}", said(&other));
    // Nor may a file for deployment repeat it.
    for name in ["images/Dockerfile", "images/kubernetes/kustomization.yaml"] {
        let quoted = format!("\"{}\"", version.trim());
        assert!(!read(name).contains(&quoted), "{name}");
    }
}

#[test]
fn crate_is_whole_and_holds_only_what_is_compiled_or_read() {
    let list = |extra: &[&str]| {
        let mut cargo = clean(env!("CARGO"));
        cargo.args([
            "package",
            "--locked",
            "--offline",
            "--allow-dirty",
            "--list",
        ]);
        passes(cargo.args(extra).current_dir(root()))
    };
    let files = list(&[]);
    let files: BTreeSet<&str> = files.lines().collect();
    for name in [
        "Cargo.lock",
        "README.md",
        "CHANGELOG.md",
        "LICENSE-MIT",
        "LICENSE-APACHE",
    ] {
        assert!(files.contains(name), "{name} is missing: {files:?}");
    }
    for prefix in ["tests/", "fuzz/", ".github/", ".ci/"] {
        let stray = files.iter().find(|file| file.starts_with(prefix));
        assert_eq!(stray, None);
    }
    for (source, included) in included() {
        assert!(files.contains(included.as_str()), "{source}: {included}");
    }
}

/// Files outside of `src` that the compiler puts into the program, with what names them.
fn included() -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut folders = vec![root().join("src")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
            if entry.file_type().unwrap().is_dir() {
                folders.push(entry.path());
                continue;
            }
            let text = read(entry.path());
            for part in text.split("include_str!(\"").skip(1) {
                let path = entry.path().with_file_name(part.split('"').next().unwrap());
                let path = path.canonicalize().unwrap();
                let path = path.strip_prefix(root().canonicalize().unwrap()).unwrap();
                let path = path.display().to_string();
                found.push((entry.path().display().to_string(), path));
            }
        }
    }
    assert!(found.len() >= 3, "{found:?}");
    found
}

#[test]
fn docker_is_sent_every_file_that_the_compiler_reads() {
    let ignored = read(".dockerignore");
    let sent: Vec<&str> = ignored
        .lines()
        .filter_map(|line| line.strip_prefix('!'))
        .collect();
    for (source, included) in included() {
        let is_sent = sent.iter().any(|rule| match rule.split_once('*') {
            Some((start, end)) => included.starts_with(start) && included.ends_with(end),
            None => included == *rule || included.starts_with(&format!("{rule}/")),
        });
        assert!(
            is_sent,
            "{source} includes {included}, which .dockerignore keeps back"
        );
    }
}

#[test]
fn manual_has_a_page_for_every_command() {
    let folder = tempfile::tempdir().unwrap();
    passes(clean(program()).arg("man").arg(folder.path()));
    let page = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap();
    assert!(page("sccache-dock.1").contains(".TH sccache-dock 1"));
    for (name, option) in [
        ("sccache-dock-purge.1", "older\\-than"),
        ("sccache-dock-client-env.1", "lane"),
        ("sccache-dock-status.1", "json"),
    ] {
        assert!(page(name).contains(option), "{name}: {}", page(name));
    }
    let nowhere = folder.path().join("nowhere");
    let failed = clean(program()).arg("man").arg(&nowhere).output().unwrap();
    assert_eq!(failed.status.code(), Some(1));
    assert!(said(&failed).contains("nowhere"), "{}", said(&failed));
}
