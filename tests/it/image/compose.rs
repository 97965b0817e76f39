//! The Compose files, by Compose 1 and 2: up, restart, scale, down, and what is left behind.

use super::restarts::{build, builds_go_on};
use crate::docker::{LONG, PATIENCE, Ran, run};
use crate::harness::{skip, tools, wait_for};
use crate::site::{Site, free_port};
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

/// How it is called: version 1, a program of its own, and version 2, Docker's plugin.
pub(super) type Words = &'static [&'static str];

const ONE: Words = &["docker-compose"];
const TWO: Words = &["docker", "compose"];

/// A command of Docker's that finds the plugins of `scripts/test`.
pub(crate) fn docker_with_plugins(program: &str) -> Command {
    let mut command = Command::new(program);
    let plugins = tools().join("docker");
    if plugins.exists() {
        command.env("DOCKER_CONFIG", plugins);
    }
    command
}

pub(super) fn compose(words: Words) -> Command {
    let mut command = docker_with_plugins(words[0]);
    command.args(&words[1..]);
    command
}

/// Both that answer; a failure in CI for one that does not.
pub(super) fn composes() -> Vec<Words> {
    let answers = |words: &Words| {
        let asked = compose(words).arg("version").output();
        let answers = asked.is_ok_and(|output| output.status.success());
        if !answers {
            skip(&format!("no {}", words.join(" ")));
        }
        answers
    };
    [ONE, TWO].into_iter().filter(answers).collect()
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("images/compose")
}

/// One project, gone with its test.
struct Project<'a> {
    site: &'a Site,
    words: Words,
    name: String,
    file: PathBuf,
    port: u16,
    volumes: RefCell<BTreeSet<String>>,
}

impl<'a> Project<'a> {
    fn new(site: &'a Site, words: Words, file: &str) -> Project<'a> {
        Project {
            site,
            words,
            name: site.name(&format!("v{}-{}", words.len(), file.replace('.', "-"))),
            file: folder().join(file),
            port: free_port(),
            volumes: RefCell::default(),
        }
    }

    fn run(&self, args: &[&str]) -> Ran {
        let mut command = compose(self.words);
        command
            .arg("--file")
            .arg(&self.file)
            .args(["--project-name", &self.name])
            .args(args)
            // From here every Compose finds the seccomp profile.
            .current_dir(folder())
            .env("SCCACHE_IMAGE_NAME", &self.site.image)
            .env("SCCACHE_SERVER_TOKEN", "0123456789abcdef0123456789abcdef")
            .env("SCCACHE_DEFAULT_PORT", self.port.to_string())
            // Docker chooses ones that are free.
            .env("SCCACHE_SCHEDULER_PORT", "0")
            .env("SCCACHE_BUILDER_PORT", "0");
        run(&mut command, LONG)
    }

    #[track_caller]
    fn call(&self, args: &[&str]) -> String {
        self.run(args).ok()
    }

    /// Up, and healthy: by Compose 2's own `--wait`, for which Docker's check must pass.
    #[track_caller]
    fn up(&self, extra: &[&str]) -> String {
        let mut args = vec!["up", "--detach", "--no-build"];
        if self.words == TWO {
            args.push("--wait");
        }
        self.call(&[&args, extra].concat());
        let container = self.call(&["ps", "--quiet", "sccache"]);
        self.site.docker.wait_healthy(&container);
        for one in self.left("ps").lines() {
            let format = "{{range .Mounts}}{{.Name}}\n{{end}}";
            let names = self.site.docker.inspect(one, format);
            let names = names.lines().filter(|name| !name.is_empty());
            self.volumes.borrow_mut().extend(names.map(str::to_owned));
        }
        container
    }

    /// Those of all volumes that its containers ever had which are there still. Other checkouts' tests have some as well.
    fn left_volumes(&self) -> BTreeSet<String> {
        let listed = self.site.docker.ok(&["volume", "ls", "--quiet"]);
        let listed: BTreeSet<String> = listed.lines().map(str::to_owned).collect();
        self.volumes
            .borrow()
            .intersection(&listed)
            .cloned()
            .collect()
    }

    fn token(&self, container: &str) -> String {
        let file = "/var/sccache/state/auth-token";
        self.site.docker.ok(&["exec", container, "cat", file])
    }

    /// What Docker has of this project.
    fn left(&self, kind: &str) -> String {
        let label = format!("label=com.docker.compose.project={}", self.name);
        let args: &[&str] = match kind {
            "ps" => &["ps", "--all", "--quiet", "--filter", &label],
            kind => &[kind, "ls", "--quiet", "--filter", &label],
        };
        self.site.docker.ok(args)
    }
}

impl Drop for Project<'_> {
    fn drop(&mut self) {
        self.run(&["down", "--volumes", "--timeout", "1"]);
    }
}

#[test]
fn files_for_a_cache_bring_it_up_and_keep_what_they_say() {
    let Some(site) = Site::open() else { return };
    for words in composes() {
        for mode in ["ephemeral", "persistent"] {
            let project = Project::new(&site, words, &format!("{mode}.yml"));
            project.call(&["config", "--quiet"]);
            let container = project.up(&[]);
            let restart = "{{.HostConfig.RestartPolicy.Name}}";
            assert_eq!(site.docker.inspect(&container, restart), "unless-stopped");
            let first = project.token(&container);
            project.call(&["restart"]);
            site.docker.wait_healthy(&container);
            assert_eq!(project.token(&container), first, "{words:?} {mode}");
            // As the file says at its top.
            match mode {
                "ephemeral" => project.call(&["down", "--volumes"]),
                _ => project.call(&["down"]),
            };
            let second = project.token(&project.up(&[]));
            assert_eq!(first == second, mode == "persistent", "{words:?} {mode}");
            project.call(&["down", "--volumes"]);
            assert_eq!(project.left_volumes(), BTreeSet::new(), "{words:?} {mode}");
            assert_eq!(project.left("ps") + &project.left("network"), "");
        }
    }
}

/// As `up` does after a change of the file or of the image.
#[test]
fn builds_by_webdav_go_on_while_compose_makes_the_container_anew() {
    let Some(site) = Site::open() else { return };
    site.install_client();
    for words in composes() {
        let project = Project::new(&site, words, "persistent.yml");
        let first = project.up(&[]);
        let token = project.token(&first);
        let mut client = site.script("client");
        // Whom the script asks for the variables.
        client.container = site.docker.inspect(&first, "{{.Name}}").replace('/', "");
        builds_go_on(&site, &client, &|| {
            let second = project.up(&["--force-recreate"]);
            assert_ne!(second, first);
            assert_eq!(project.token(&second), token, "{words:?}");
        });
        let container = project.call(&["ps", "--quiet", "sccache"]);
        client.container = site
            .docker
            .inspect(&container, "{{.Name}}")
            .replace('/', "");
        let written = || client.counts().2;
        let before = written();
        build(&site, &client, &client.eval("--lane webdav"), 3).ok();
        wait_for("its results", PATIENCE, || {
            (written() >= before + 3).then_some(())
        });
    }
}

#[test]
fn builders_come_and_go_and_leave_no_volume() {
    let Some(site) = Site::open() else { return };
    for words in composes() {
        let project = Project::new(&site, words, "cluster.yml");
        let ready = |container: &str| {
            let args = ["exec", container, "sccache-dock", "status"];
            let table = site.docker.run(&args).stdout;
            let builders = table.lines().filter(|line| line.contains(":10501"));
            builders.filter(|line| line.contains(" ready ")).count()
        };
        let container = project.up(&["--scale", "builder=3"]);
        for (count, expected) in [("3", 4), ("1", 2), ("2", 3)] {
            project.up(&["--scale", &format!("builder={count}")]);
            // One of them is the cache's own.
            wait_for(&format!("{expected} builders"), PATIENCE, || {
                (ready(&container) == expected).then_some(())
            });
        }
        project.call(&["down"]);
        assert_eq!(
            project.left_volumes(),
            BTreeSet::from([format!("{}_cache", project.name)])
        );
        project.call(&["down", "--volumes"]);
        assert_eq!(project.left_volumes(), BTreeSet::new(), "{words:?}");
    }
}

#[test]
fn one_container_with_a_builder_isolates_jobs_by_the_profile_of_its_file() {
    let Some(site) = Site::open() else { return };
    for words in composes() {
        let project = Project::new(&site, words, "distributed.yml");
        let container = project.up(&[]);
        let status = site
            .docker
            .ok(&["exec", &container, "sccache-dock", "status"]);
        assert!(status.contains("builder    ready"), "{words:?}: {status}");
    }
}

#[test]
fn project_has_a_name_of_its_own_and_not_that_of_its_folder() {
    for words in composes() {
        for from in [folder(), PathBuf::from("/")] {
            let mut command = compose(words);
            command.arg("--file").arg(folder().join("persistent.yml"));
            command.args(["--verbose", "config"]).current_dir(from);
            if words == TWO {
                let shown = run(&mut command, PATIENCE).ok();
                assert!(shown.contains("name: sccache-dock\n"), "{shown}");
            } else {
                // The first version says it with what it calls its networks.
                let mut command = compose(words);
                command.arg("--file").arg(folder().join("persistent.yml"));
                let asked = run(command.args(["--verbose", "ps", "--quiet"]), PATIENCE);
                let said = asked.stdout + &asked.stderr;
                assert!(
                    said.contains("com.docker.compose.project=sccache-dock"),
                    "{said}"
                );
            }
        }
    }
}

#[test]
fn files_for_a_cluster_are_what_every_compose_reads_from_their_folder_and_from_elsewhere() {
    // A repository of its own, with a profile that no container is started with.
    let root = tempfile::tempdir().unwrap();
    let profile = root.path().join("seccomp/userns.json");
    std::fs::create_dir(root.path().join("seccomp")).unwrap();
    std::fs::write(&profile, "{}").unwrap();
    let copied = Command::new("cp")
        .arg("-r")
        .arg(folder())
        .arg(root.path())
        .status();
    assert!(copied.unwrap().success());
    for words in composes() {
        for name in ["distributed", "cluster"] {
            let file = root.path().join("compose").join(format!("{name}.yml"));
            let token = ("SCCACHE_SERVER_TOKEN", Path::new("token"));
            let config = |folder: &Path, variables: &[(&str, &Path)]| {
                let mut command = compose(words);
                command.arg("--file").arg(&file);
                command.envs(variables.iter().copied());
                run(command.arg("config").current_dir(folder), PATIENCE)
            };
            let beside = config(file.parent().unwrap(), &[token]).ok();
            let away = [token, ("SCCACHE_SECCOMP", &profile)];
            let elsewhere = config(Path::new("/"), &away).ok();
            assert!(beside.contains("userns.json"), "{beside}");
            assert_eq!(
                beside.contains("MODE: builder"),
                name == "cluster",
                "{beside}"
            );
            assert!(!elsewhere.contains("container_name"), "{elsewhere}");
            let without_token = config(Path::new("/"), &away[1..]);
            if name == "cluster" {
                assert_ne!(without_token.code, Some(0));
                assert!(
                    without_token.stderr.contains("SCCACHE_SERVER_TOKEN"),
                    "{without_token:?}"
                );
            }
        }
    }
}
