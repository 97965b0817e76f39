//! The container tools of today: Docker 28 and Podman 5, both also without root, and systemd 262, in a Debian that is booted in
//! namespaces of its own.
//!
//! `scripts/test` makes its root once. One test boots it and goes through all that runs there, one after the other: a boot
//! takes seconds, and the images are loaded once. At the end it prints which runtime ran which mode.

use crate::docker::{LONG, PATIENCE, Ran, run};
use crate::harness::{clean, now, sccache_bin, skip, tools, wait_for};
use crate::site::Site;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// The ordinary user of the machine.
const DEV: u32 = 1000;

/// A booted machine; all of it ends with this.
struct Machine {
    boot: Child,
    first: String,
    kit: tempfile::TempDir,
    _layer: tempfile::TempDir,
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/today")
}

impl Machine {
    /// `None`, and a line, where there is no root to boot.
    fn boot(site: &Site) -> Option<Machine> {
        let root = tools().join("today/root");
        if !root.exists() || !nix::unistd::getuid().is_root() {
            skip("no system of today, which takes root and scripts/test");
            return None;
        }
        // Where overlays may lie, which is not in memory.
        let [kit, layer] = [(); 2].map(|()| tempfile::tempdir_in("/var/tmp").unwrap());
        fs::set_permissions(kit.path(), fs::Permissions::from_mode(0o755)).unwrap();
        site.docker.ok(&[
            "save",
            "--output",
            kit.path().join("image.tar").to_str().unwrap(),
            &site.image,
        ]);
        let image = kit.path().join("image.tar");
        fs::set_permissions(image, fs::Permissions::from_mode(0o644)).unwrap();
        let bin = kit.path().join("bin");
        fs::create_dir(&bin).unwrap();
        let sccache = sccache_bin();
        for program in [
            crate::dock::program(),
            crate::dock::supervisor_program(),
            crate::dock::gateway_program(),
            sccache.with_file_name("sccache-dist"),
            sccache,
        ] {
            fs::copy(&program, bin.join(program.file_name().unwrap())).unwrap();
        }
        let boot = Command::new(fixtures().join("boot.sh"))
            .arg(root)
            .args([
                layer.path(),
                kit.path(),
                Path::new(env!("CARGO_MANIFEST_DIR")),
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let first = wait_for("the first process", PATIENCE, || {
            let (pid, _) = *crate::dock::children_of(i32::try_from(boot.id()).unwrap()).first()?;
            let is_systemd = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
            (is_systemd.trim() == "systemd").then(|| pid.to_string())
        });
        let machine = Machine {
            boot,
            first,
            kit,
            _layer: layer,
        };
        wait_for("the machine", PATIENCE * 2, || {
            let asked = machine.root("systemctl is-system-running");
            asked.stdout.contains("running").then_some(())
        });
        Some(machine)
    }

    /// A command in its namespaces.
    fn enter(&self) -> Command {
        let mut command = clean("nsenter");
        command.args(["-t", &self.first]);
        command.args(["-m", "-p", "-n", "-i", "-u", "-C", "-r", "-w"]);
        command
    }

    /// Runs shell text as root.
    fn root(&self, text: &str) -> Ran {
        let mut command = self.enter();
        command.args(["env", "-i", "HOME=/root", "TERM=dumb", "LANG=C.UTF-8"]);
        command.arg("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        run(command.args(["bash", "-euc", text]), LONG)
    }

    /// Runs shell text as the ordinary user, in a session of theirs.
    fn dev(&self, text: &str) -> Ran {
        let mut command = self.enter();
        command.args([
            "env",
            "-i",
            "TERM=dumb",
            "PATH=/usr/sbin:/usr/bin:/sbin:/bin",
        ]);
        command.args(["systemd-run", "--quiet", "--pipe", "--wait", "--collect"]);
        command.arg(format!("--uid={DEV}"));
        command.arg(format!("--slice=user-{DEV}.slice"));
        for (option, value) in [
            ("-p", "PAMName=login"),
            ("-p", "WorkingDirectory=/home/dev"),
        ] {
            command.args([option, value]);
        }
        for variable in [
            "HOME=/home/dev",
            "LANG=C.UTF-8",
            "PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
            &format!("XDG_RUNTIME_DIR=/run/user/{DEV}"),
            &format!("DBUS_SESSION_BUS_ADDRESS=unix:path=/run/user/{DEV}/bus"),
        ] {
            command.arg(format!("--setenv={variable}"));
        }
        run(command.args(["bash", "-euc", text]), LONG)
    }

    fn by(&self, who: Who, text: &str) -> Ran {
        match who {
            Who::Root => self.root(text),
            Who::Dev => self.dev(text),
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // The first process of the namespaces ends with its parent, and all others with it.
        let _ = self.boot.kill();
        wait(&mut self.boot);
        let group = format!("today.{}", self.boot.id());
        for hierarchy in ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"] {
            let group = Path::new(hierarchy).join(&group);
            wait_for("the end of the machine", PATIENCE, || {
                remove_group(&group).then_some(())
            });
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the test's own child, not a service"
)]
fn wait(child: &mut Child) {
    let _ = child.wait();
}

/// Removes a cgroup with all below it; false while something lives there.
fn remove_group(group: &Path) -> bool {
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            remove_group(&entry.path());
        }
    }
    !group.exists() || fs::remove_dir(group).is_ok()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Who {
    Root,
    Dev,
}

/// What gives the script its containers.
struct Runtime {
    name: &'static str,
    modes: &'static [&'static str],
    who: Who,
    /// Shell text before each command.
    prepare: &'static str,
}

/// A PATH without Docker, as on a machine where Podman is all there is.
const PODMAN_ALONE: &str = "mkdir -p /tmp/$UID; for f in /usr/bin/*; do case $f in */docker*) ;; *) \
    ln -sf \"$f\" /tmp/$UID/;; esac; done; export PATH=/tmp/$UID:/usr/sbin";

const ALL: &[&str] = &[
    "ephemeral",
    "persistent",
    "distributed-ephemeral",
    "distributed-persistent",
];

const RUNTIMES: [Runtime; 6] = [
    Runtime {
        name: "Docker",
        modes: ALL,
        who: Who::Root,
        prepare: "",
    },
    Runtime {
        name: "Docker, rootless",
        modes: ALL,
        who: Who::Dev,
        prepare: ROOTLESS_DOCKER,
    },
    Runtime {
        name: "Podman",
        modes: ALL,
        who: Who::Root,
        prepare: PODMAN_ALONE,
    },
    Runtime {
        name: "Podman, rootless",
        modes: ALL,
        who: Who::Dev,
        prepare: PODMAN_ALONE,
    },
    Runtime {
        name: "Podman by its socket",
        modes: ALL,
        who: Who::Root,
        prepare: "systemctl start podman.socket; export DOCKER_HOST=unix:///run/podman/podman.sock",
    },
    Runtime {
        name: "Podman by its socket, rootless",
        modes: &["distributed-persistent"],
        who: Who::Dev,
        prepare: "systemctl --user start podman.socket\n\
            export DOCKER_HOST=unix:///run/user/$UID/podman/podman.sock",
    },
];

/// The daemon of the ordinary user, without what its tool for setting it up asks of the kernel's modules: there are none here.
const ROOTLESS_DOCKER: &str = "export DOCKER_HOST=unix:///run/user/$UID/docker.sock\n\
    systemctl --user --quiet is-active docker-of-dev || systemd-run --user --quiet --unit=docker-of-dev -p Type=notify \
    -p NotifyAccess=all -p Delegate=yes --setenv=PATH=$PATH /usr/share/docker.io/contrib/dockerd-rootless.sh";

/// Which runtime ran which mode, as a table.
#[derive(Default)]
struct Table(Vec<(String, String, String)>);

impl Table {
    fn note(&mut self, runtime: &str, mode: &str, how: String) {
        println!("{runtime}: {mode}: {how}");
        self.0.push((runtime.to_owned(), mode.to_owned(), how));
    }

    fn print(&self) {
        println!("| runtime | mode | |\n| --- | --- | --- |");
        for (runtime, mode, how) in &self.0 {
            println!("| {runtime} | {mode} | {how} |");
        }
    }
}

#[test]
fn every_mode_runs_by_the_runtimes_of_today() {
    let Some(site) = Site::open() else { return };
    let start = now();
    let Some(machine) = Machine::boot(&site) else {
        return;
    };
    println!("booted after {:.1?}", start.elapsed());
    let mut table = Table::default();
    let versions = machine.root("docker version --format '{{.Server.Version}}'; podman --version; systemctl --version | head -n 1");
    println!("{}", versions.ok());
    for load in ["docker load", "podman load"] {
        machine
            .root(&format!("{load} --quiet --input /kit/image.tar"))
            .ok();
    }
    for load in ["podman load", &format!("{ROOTLESS_DOCKER}\ndocker load")] {
        machine
            .dev(&format!("{load} --quiet --input /kit/image.tar"))
            .ok();
    }

    package_of_arch(&machine);
    unit(&machine, &mut table);
    quadlets(&machine, &site, &mut table);
    for runtime in &RUNTIMES {
        script(&machine, &site, runtime, &mut table);
    }
    compose(&machine, &site, &mut table);
    table.print();
    println!("all of it took {:.1?}", start.elapsed());
}

/// The host's script, every mode, to a cache that takes a blob and a builder that is ready.
fn script(machine: &Machine, site: &Site, runtime: &Runtime, table: &mut Table) {
    let me = "/repository/scripts/sccache-docker-manage.sh";
    let kept = ["persistent", "distributed-persistent"].map(|mode| {
        let folder = format!("cache-{}-{mode}", table.0.len());
        // Root's is made by the script, with the user that the mode takes.
        if runtime.who == Who::Dev {
            let own = machine.kit.path().join(&folder);
            fs::create_dir(&own).unwrap();
            chown(&own, Some(DEV), Some(DEV)).unwrap();
        }
        (format!("{mode} /kit/{folder}"), folder)
    });
    let call = |text: &str| {
        let prepare = format!(
            "{}\nexport SCCACHE_IMAGE_NAME={} SCCACHE_CACHE_SIZE=1G\nme={me}",
            runtime.prepare, site.image
        );
        machine.by(runtime.who, &format!("{prepare}\n{text}"))
    };
    // What the client has, from the image; by a real client a blob is written and comes back.
    call("$me install-client").ok();
    let words = ["ephemeral", &kept[0].0, "distributed-ephemeral", &kept[1].0];
    for (mode, words) in ALL.iter().copied().zip(words) {
        if !runtime.modes.contains(&mode) {
            continue;
        }
        let begin = now();
        let started = call(&format!("$me start {words}"));
        assert_eq!(
            started.code,
            Some(0),
            "{}: {mode}: {}",
            runtime.name,
            started.stderr
        );
        let took = begin.elapsed();
        // Docker starts it after a reboot by itself.
        let after_reboot = started.stderr.contains("enable podman-restart.service");
        let is_podman = runtime.name.starts_with("Podman");
        assert_eq!(
            after_reboot, is_podman,
            "{}: {}",
            runtime.name, started.stderr
        );
        let used = call(
            "$me doctor; eval \"$($me env)\"; export PATH=$HOME/.local/bin:$PATH\n\
             curl --silent --fail --header \"Authorization: Bearer $SCCACHE_WEBDAV_TOKEN\" --upload-file /etc/os-release \
                 $SCCACHE_WEBDAV_ENDPOINT/a/b/c/abc\n\
             curl --silent --fail --header \"Authorization: Bearer $SCCACHE_WEBDAV_TOKEN\" \
                 $SCCACHE_WEBDAV_ENDPOINT/a/b/c/abc | cmp - /etc/os-release\n\
             sccache-dock doctor\n$me status --json",
        );
        let said = format!("{}\n{}", used.stdout, used.stderr);
        assert_eq!(used.code, Some(0), "{}: {mode}: {said}", runtime.name);
        if mode.starts_with("distributed") {
            // Clients of this machine reach it too.
            let reach = call("eval \"$($me env --lane dist)\"; export PATH=$HOME/.local/bin:$PATH; sccache-dock doctor").ok();
            for part in ["takes jobs at 127.0.0.1:", "the relay reaches it"] {
                assert!(reach.contains(part), "{}: {reach}", runtime.name);
            }
            assert!(!reach.contains("FAIL"), "{}: {reach}", runtime.name);
        }
        call("$me restart").ok();
        if runtime.who == Who::Dev && mode == "ephemeral" {
            // The port is this machine's, though the containers' host network may be the daemon's own.
            let back = call(
                "$me stop; export PATH=$HOME/.local/bin:$PATH\n\
                 SCCACHE_CONF=/dev/null SCCACHE_SERVER_PORT=4226 sccache --start-server\n\
                 SCCACHE_CONTAINER_NAME=second $me start ephemeral && exit 9\n$me start ephemeral",
            );
            let name = runtime.name;
            assert_eq!(back.code, Some(0), "{name}: {}", back.stderr);
            for part in [
                "cannot publish port 4226: it is in use",
                "it is told to end",
            ] {
                assert!(back.stderr.contains(part), "{name}: {}", back.stderr);
            }
        }
        call("$me remove").ok();
        table.note(runtime.name, mode, format!("healthy after {took:.1?}"));
    }
    // What a rootless container has written is its caller's.
    for (_, folder) in kept.iter().filter(|(words, _)| {
        let is_used = runtime.modes.iter().any(|mode| words.starts_with(mode));
        runtime.who == Who::Dev && is_used
    }) {
        let token = machine.kit.path().join(folder).join("state/auth-token");
        assert_eq!(fs::metadata(token).unwrap().uid(), DEV);
    }
}

/// What pacman's own tool makes of the PKGBUILD; to build it takes an Arch Linux.
fn package_of_arch(machine: &Machine) {
    let text = "mkdir -p ~/arch\ncp /repository/images/packages/PKGBUILD ~/arch/\ncd ~/arch\nPACMAN=true makepkg --printsrcinfo";
    let printed = machine.dev(text).ok();
    let version = format!("\tpkgver = {}\n", env!("CARGO_PKG_VERSION"));
    for part in [
        "pkgbase = sccache-dock\n",
        "pkgname = sccache-dock-client\n",
        &version,
        "\tdepends = bubblewrap\n",
    ] {
        assert!(printed.contains(part), "{part:?} is missing in: {printed}");
    }
}

/// The systemd unit, without and with the builder's drop-in.
fn unit(machine: &Machine, table: &mut Table) {
    let ready = |services: &str| {
        wait_for("the services of the unit", PATIENCE, || {
            let asked = machine.root("SCCACHE_DIR=/var/lib/sccache sccache-dock status --json");
            let status: serde_json::Value = serde_json::from_str(&asked.stdout).ok()?;
            let all = status["services"].as_array()?.iter();
            let ready = all.filter(|service| service["state"] == "ready");
            let names: Vec<&str> = ready
                .filter_map(|service| service["name"].as_str())
                .collect();
            (names.join(" ") == services).then_some(())
        });
    };
    machine
        .root(
            "install -m 755 /kit/bin/* /usr/local/bin/\n\
             cp /repository/images/systemd/sccache-dock.service /etc/systemd/system/\n\
             systemctl daemon-reload\nsystemctl start sccache-dock",
        )
        .ok();
    ready("gateway server");
    let token = machine.root("cat /var/lib/sccache/state/auth-token").ok();
    table.note("systemd", "persistent", "ready".to_owned());
    let text = "systemctl stop sccache-dock\n\
        install -D -m 644 /repository/images/systemd/sccache-dock.sysusers /etc/sysusers.d/sccache-dock.conf\n\
        systemd-sysusers\n\
        install -D -m 644 /repository/images/systemd/builder.conf /etc/systemd/system/sccache-dock.service.d/builder.conf\n\
        systemctl daemon-reload\nsystemctl start sccache-dock";
    machine.root(text).ok();
    ready("gateway server scheduler builder");
    // The folder has come along from the user that systemd had made up.
    assert_eq!(
        machine.root("cat /var/lib/sccache/state/auth-token").ok(),
        token
    );
    table.note("systemd", "distributed-persistent", "ready".to_owned());
    pure_builder(machine, &ready);
    table.note("systemd", "builder", "ready".to_owned());
    // As it was before: what DynamicUser forbids is named.
    let text = "systemctl stop sccache-dock\n\
        sed -i /RestrictSUIDSGID/d /etc/systemd/system/sccache-dock.service.d/builder.conf\n\
        systemctl daemon-reload; systemctl start sccache-dock || true; sleep 1\n\
        until [ \"$(systemctl is-active sccache-dock)\" = failed ]; do sleep 0.2; done\n\
        journalctl --unit sccache-dock --output cat --since -20s; systemctl reset-failed sccache-dock";
    let log = machine.root(text).ok();
    for part in [
        "cannot isolate the jobs",
        "RestrictSUIDSGID=",
        "builder.conf",
    ] {
        assert!(log.contains(part), "{part:?} is missing in: {log}");
    }
}

/// The unit as a builder for the scheduler of another one, which is the same unit under another name with other ports. Afterwards
/// all is as it was.
fn pure_builder(machine: &Machine, ready: &dyn Fn(&str)) {
    let text = "systemctl stop sccache-dock\ncd /etc/systemd/system\n\
        sed 's|^StateDirectory=.*|StateDirectory=first|; s|/var/lib/sccache|/var/lib/first|; /^EnvironmentFile=/d' \
            sccache-dock.service >first.service\n\
        mkdir -p first.service.d\ncp sccache-dock.service.d/builder.conf first.service.d/\n\
        printf '[Service]\\nEnvironment=SCCACHE_LISTEN=127.0.0.1:14226 SCCACHE_BUILDER_LISTEN=127.0.0.1:10511\\n' \
            >first.service.d/ports.conf\n\
        systemctl daemon-reload\nsystemctl start first\n\
        until [ -s /var/lib/first/state/server-token ]; do sleep 0.2; done\n\
        install -m 644 /repository/images/systemd/pure-builder.conf sccache-dock.service.d/\n\
        umask 077\n\
        printf 'SCCACHE_SCHEDULER_URL=http://127.0.0.1:10600\\nSCCACHE_PUBLIC_ADDR=127.0.0.1\\n\
        SCCACHE_SCHEDULER_LISTEN=127.0.0.1:10620\\nSCCACHE_SERVER_TOKEN=%s\\n' \
            \"$(cat /var/lib/first/state/server-token)\" >/etc/default/sccache-dock\n\
        systemctl daemon-reload\nsystemctl start sccache-dock";
    machine.root(text).ok();
    ready("gateway builder");
    wait_for("both builders to join", PATIENCE, || {
        let asked = machine.root("SCCACHE_DIR=/var/lib/first sccache-dock status --json");
        let status: serde_json::Value = serde_json::from_str(&asked.stdout).ok()?;
        let builders = status["cache"]["dist"]["builders"].as_array()?;
        let ready = builders.iter().filter(|one| one["state"] == "ready");
        (ready.count() == 2).then_some(())
    });
    let text = "systemctl stop sccache-dock first\ncd /etc/systemd/system\n\
        rm -r first.service first.service.d sccache-dock.service.d/pure-builder.conf /etc/default/sccache-dock\n\
        systemctl daemon-reload\nsystemctl start sccache-dock";
    machine.root(text).ok();
    ready("gateway server scheduler builder");
}

/// The units that Podman makes of its own files.
fn quadlets(machine: &Machine, site: &Site, table: &mut Table) {
    for (who, folder, user) in [
        (Who::Root, "/etc/containers/systemd", ""),
        (Who::Dev, "/home/dev/.config/containers/systemd", "--user"),
    ] {
        let text = format!(
            "mkdir -p {folder}\ncp /repository/images/systemd/sccache.container /repository/images/systemd/sccache.volume {folder}/\n\
             sed -i 's|^Image=.*|Image=localhost/{}|' {folder}/sccache.container\n\
             systemctl {user} daemon-reload\nsystemctl {user} start sccache\n\
             podman ps --format '{{{{.Status}}}}'\npodman exec sccache-server sccache-dock healthcheck",
            site.image
        );
        let begin = now();
        let said = machine.by(who, &text).ok();
        // The unit has waited for it, though the image may have no check of its own.
        assert!(said.contains("(healthy)"), "{said}");
        let took = begin.elapsed();
        assert!(took < Duration::from_secs(20), "{took:?}");
        let text = format!(
            "t=$(podman exec sccache-server cat /var/sccache/state/auth-token)\nsystemctl {user} restart sccache\n\
             [ \"$t\" = \"$(podman exec sccache-server cat /var/sccache/state/auth-token)\" ]\n\
             systemctl {user} stop sccache\nrm {folder}/sccache.*\nsystemctl {user} daemon-reload\n\
             podman volume rm systemd-sccache"
        );
        machine.by(who, &text).ok();
        let name = format!("quadlet {user}");
        table.note(
            name.trim(),
            "persistent",
            format!("healthy after {took:.1?}"),
        );
    }
}

/// Every Compose file, by Docker and at Podman's socket.
fn compose(machine: &Machine, site: &Site, table: &mut Table) {
    let podman = "systemctl start podman.socket; export DOCKER_HOST=unix:///run/podman/podman.sock";
    let image = &site.image;
    for (name, prepare, image, more) in [
        ("Compose 2 and Docker", "", image.clone(), ["", ""]),
        (
            "Compose 2 and Podman",
            podman,
            format!("localhost/{image}"),
            ["--file podman.yml", "--file podman-builders.yml"],
        ),
    ] {
        for file in ["ephemeral", "persistent", "distributed", "cluster"] {
            let files = match file {
                "distributed" => more[..1].join(" "),
                "cluster" => more.join(" "),
                _ => String::new(),
            };
            let scale = if file == "cluster" {
                "--scale builder=2"
            } else {
                ""
            };
            let begin = now();
            let text = format!(
                "{prepare}\ncd /repository/images/compose\n\
                 export SCCACHE_IMAGE_NAME={image} SCCACHE_SERVER_TOKEN=0123456789abcdef0123456789abcdef SCCACHE_CACHE_SIZE=1G\n\
                 c='docker compose --file {file}.yml {files}'\n\
                 $c up --detach --no-build --wait {scale}\n$c exec -T sccache sccache-dock status"
            );
            let said = machine.root(&text);
            assert_eq!(said.code, Some(0), "{name}: {file}: {said:?}");
            let ready = said
                .stdout
                .lines()
                .filter(|line| line.contains(":10501"))
                .count();
            let expected = match file {
                "distributed" => 1,
                "cluster" => 3,
                _ => 0,
            };
            assert!(
                ready <= expected && (expected == 0) == (ready == 0),
                "{}",
                said.stdout
            );
            let took = begin.elapsed();
            let down = format!(
                "{prepare}\ncd /repository/images/compose\nSCCACHE_SERVER_TOKEN=x docker compose --file {file}.yml down --volumes\n\
                docker volume ls --quiet | wc -l"
            );
            let left = machine.root(&down).ok();
            assert_eq!(
                left.lines().last(),
                Some("0"),
                "{name}: {file}: volumes are left"
            );
            table.note(name, file, format!("healthy after {took:.1?}"));
        }
    }
}
