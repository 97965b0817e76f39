//! What a reboot does, with a Docker daemon of the test's own: never the machine's.

use crate::docker::{Docker, PATIENCE, run};
use crate::harness::{now, wait_for};
use crate::image::restarts::builds_go_on;
use crate::site::{FAILING_PROBES, Script, Site, skip};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::cell::RefCell;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// A daemon with its own state, socket, bridge and containerd. Everything goes with it, in whatever state it is.
struct Daemon {
    folder: tempfile::TempDir,
    bridge: String,
    child: Option<Child>,
}

impl Daemon {
    fn start() -> Daemon {
        let number = std::process::id() % 250;
        let mut daemon = Daemon {
            folder: tempfile::tempdir().unwrap(),
            bridge: format!("sdit{number}"),
            child: None,
        };
        let driver = fs::read("/etc/docker/daemon.json").ok().and_then(|text| {
            let config: serde_json::Value = serde_json::from_slice(&text).ok()?;
            Some(config["storage-driver"].as_str()?.to_owned())
        });
        let config = match driver {
            Some(driver) => serde_json::json!({ "storage-driver": driver }),
            None => serde_json::json!({}),
        };
        fs::write(daemon.path("daemon.json"), config.to_string()).unwrap();
        let bridge = daemon.bridge.clone();
        ip(&["link", "add", "name", &bridge, "type", "bridge"]);
        ip(&[
            "address",
            "add",
            &format!("10.213.{number}.1/24"),
            "dev",
            &bridge,
        ]);
        ip(&["link", "set", &bridge, "up"]);
        daemon.boot();
        daemon
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn docker(&self) -> Docker {
        Docker {
            host: Some(format!("unix://{}", self.path("docker.sock").display())),
        }
    }

    fn boot(&mut self) {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.path("log"))
            .unwrap();
        let option = |name: &str, value: PathBuf| format!("--{name}={}", value.display());
        let child = Command::new("dockerd")
            .arg(option("data-root", self.path("data")))
            .arg(option("exec-root", self.path("exec")))
            .arg(option("pidfile", self.path("pid")))
            .arg(option("config-file", self.path("daemon.json")))
            .arg(format!(
                "--host=unix://{}",
                self.path("docker.sock").display()
            ))
            .arg(format!("--bridge={}", self.bridge))
            // The machine's own rules stay as they are; published ports go through docker-proxy.
            .args(["--iptables=false", "--ip-forward=false", "--ip-masq=false"])
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn();
        self.child = Some(child.unwrap());
        let docker = self.docker();
        wait_for("the daemon's answer", PATIENCE, || {
            let ended = self.child.as_mut().unwrap().try_wait().unwrap();
            assert!(
                ended.is_none(),
                "{}",
                fs::read_to_string(self.path("log")).unwrap()
            );
            (docker.run(&["version"]).code == Some(0)).then_some(())
        });
    }

    /// Daemon, containerd, shims, proxies and all processes of containers.
    fn processes(&self) -> Vec<Pid> {
        let marker = self.folder.path().as_os_str().as_encoded_bytes();
        let mut all = Vec::new();
        for entry in fs::read_dir("/proc").unwrap().filter_map(Result::ok) {
            let Some(pid) = entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse::<i32>().ok())
            else {
                continue;
            };
            let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
            let Some((_, rest)) = stat.rsplit_once(") ") else {
                continue;
            };
            let mut fields = rest.split(' ');
            let is_zombie = fields.next() == Some("Z");
            let parent: i32 = fields
                .next()
                .and_then(|text| text.parse().ok())
                .unwrap_or(0);
            let is_ours = command.windows(marker.len()).any(|part| part == marker);
            all.push((pid, parent, is_ours && !is_zombie));
        }
        let mut found: Vec<i32> = all.iter().filter(|it| it.2).map(|it| it.0).collect();
        let mut at = 0;
        while let Some(&parent) = found.get(at) {
            let children = all.iter().filter(|it| it.1 == parent).map(|it| it.0);
            let new: Vec<i32> = children.filter(|pid| !found.contains(pid)).collect();
            found.extend(new);
            at += 1;
        }
        found.into_iter().map(Pid::from_raw).collect()
    }

    /// The power goes: every process at once, then everything that lives in memory.
    fn crash(&mut self) -> usize {
        let killed = self.processes();
        for pid in &killed {
            let _ = kill(*pid, Signal::SIGKILL);
        }
        wait_for("the end of all processes", PATIENCE, || {
            if let Some(child) = &mut self.child {
                let _ = child.try_wait();
            }
            let left = self.processes();
            for pid in &left {
                let _ = kill(*pid, Signal::SIGKILL);
            }
            left.is_empty().then_some(())
        });
        self.child = None;
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let points: Vec<&str> = table
            .lines()
            .filter_map(|line| line.split(' ').nth(4))
            .collect();
        // The last mounted first.
        for point in points
            .iter()
            .rev()
            .filter(|point| Path::new(point).starts_with(self.folder.path()))
        {
            let _ = Command::new("umount").args(["--lazy", point]).output();
        }
        let _ = fs::remove_dir_all(self.path("exec"));
        let _ = fs::remove_file(self.path("pid"));
        killed.len()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.crash();
        let _ = Command::new("ip")
            .args(["link", "delete", &self.bridge])
            .output();
    }
}

fn ip(args: &[&str]) {
    run(Command::new("ip").args(args), PATIENCE).ok();
}

#[test]
fn container_comes_back_by_itself_with_its_token_and_its_cache() {
    if !nix::unistd::getuid().is_root() {
        return skip("a Docker daemon of its own needs root").unwrap_or(());
    }
    let Some(site) = Site::open() else { return };
    let (folder, stored) = site.warm_folder();
    site.install_client();
    let daemon = Daemon::start();
    let docker = daemon.docker();
    let archive = daemon.path("image.tar");
    let archive = archive.to_str().unwrap();
    site.docker.ok(&["save", "--output", archive, &site.image]);
    docker.ok(&["load", "--input", archive]);

    let mut script = site.script("reboot");
    script.docker = docker.clone();
    script
        .call(&["start", "persistent", folder.path().to_str().unwrap()])
        .ok();
    let entries = |script: &Script| script.status()["cache"]["store"]["entries"].as_u64();
    wait_for("the index", PATIENCE, || {
        (entries(&script)? == stored).then_some(())
    });
    let token = script.token();
    let started = docker.inspect(&script.container, "{{.State.StartedAt}}");

    // Builds of other machines go on meanwhile.
    let daemon = RefCell::new(daemon);
    builds_go_on(&site, &script, &|| {
        println!("killed {} processes", daemon.borrow_mut().crash());
        assert_ne!(docker.run(&["version"]).code, Some(0), "the daemon is gone");
        let start = now();
        daemon.borrow_mut().boot();
        wait_for("the container's return", PATIENCE, || {
            let check = docker.run(&["exec", &script.container, "sccache-dock", "healthcheck"]);
            (check.code == Some(0)).then_some(())
        });
        println!("healthy {:.1?} after the daemon's start", start.elapsed());
    });
    assert_ne!(
        docker.inspect(&script.container, "{{.State.StartedAt}}"),
        started
    );

    assert_eq!(script.token(), token);
    wait_for("the index", PATIENCE, || {
        (entries(&script)? >= stored).then_some(())
    });
    let before = script.counts();
    site.build(&script, &script.eval("--lane webdav"));
    let after = script.counts();
    assert_eq!(after.0 - before.0, stored, "hits, as before the reboot");
    assert_eq!(after.1 - before.1, FAILING_PROBES);
    script.call(&["remove"]).ok();
}
