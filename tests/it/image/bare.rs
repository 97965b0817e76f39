//! The first command of README on a bare machine: Debian's smallest root with Docker's client and the toolchain, nothing else.
//!
//! The root is a container of the base image, on the host's network and with the host's Docker. What others have compiled
//! is not compiled again: sccache comes as a release archive of a local server, and our programs are those that
//! `scripts/test` has compiled for this profile, which cargo itself finds to be up to date.

use crate::docker::{Container, LONG, PATIENCE, Ran, run};
use crate::guides::{Block, blocks, guide};
use crate::releases::Releases;
use crate::site::{Site, cargo_home, skip, sysroot};
use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

const TOOLCHAIN: &str = "/opt/rust";
const REGISTRY: &str = "/opt/cargo";

struct Bare<'a> {
    site: &'a Site,
    machine: Container<'a>,
    /// The home of every user of it, at the same place as on the host, where Docker looks for folders.
    home: tempfile::TempDir,
    image: String,
    releases: Releases,
    port: u16,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").arg(from).arg(to).status();
    assert!(copied.unwrap().success(), "{}", from.display());
}

impl<'a> Bare<'a> {
    fn new(site: &'a Site) -> Option<Bare<'a>> {
        let built = root().join("target/local");
        if !built.join("sccache-dock").exists() {
            return skip("our programs are not compiled: cargo build --profile local --bins");
        }
        let Some(base) = site.base() else {
            return skip("no base image");
        };
        let home = tempfile::tempdir().unwrap();
        copy(&built, &home.path().join("local"));
        let fixture = root().join("tests/fixtures/checkout/vendor/shapes");
        copy(&fixture, &home.path().join("checkout"));
        std::os::unix::fs::symlink(root().join("scripts"), home.path().join("checkout/scripts"))
            .unwrap();
        let machine = Container {
            docker: &site.docker,
            name: site.name("bare"),
        };
        let docker = run(
            Command::new("sh").args(["-c", "readlink -f \"$(command -v docker)\""]),
            PATIENCE,
        );
        let (repo, home_path) = (root().display(), home.path().display());
        let volumes = [
            "/var/run/docker.sock:/var/run/docker.sock".to_owned(),
            format!("{}:/usr/local/bin/docker:ro", docker.ok()),
            format!("{}:{TOOLCHAIN}:ro", sysroot().display()),
            format!("{}:{REGISTRY}:ro", cargo_home().display()),
            format!("{repo}:{repo}:ro"),
            // The same place as on the host: cargo compares it.
            format!("{home_path}:{home_path}"),
            format!("{home_path}/local:{repo}/target/local"),
        ];
        let mut args = vec![
            "run",
            "--detach",
            "--init",
            "--network=host",
            "--name",
            &machine.name,
        ];
        args.extend(volumes.iter().flat_map(|it| ["--volume", it]));
        args.extend([base, "sleep", "3600"]);
        site.docker.ok(&args);
        Some(Bare {
            site,
            image: format!("{}-bare", site.image.split(':').next().unwrap()),
            machine,
            home,
            releases: Releases::serve(),
            port: crate::site::free_port(),
        })
    }

    /// Types `text` in a checkout as `user` of Docker's group; `extra` are variables.
    fn types(&self, user: u32, path: &str, extra: &[(&str, &str)], text: &str) -> Ran {
        let group = fs::metadata("/var/run/docker.sock").unwrap().gid();
        let home = self.home.path().display();
        let mut command = self.site.docker.command();
        command.args(["exec", "--workdir"]);
        command.arg(self.home.path().join("checkout"));
        let port = self.port.to_string();
        let (image, base) = (
            format!("{}:{user}", self.image),
            format!("{}-base:{user}", self.image),
        );
        let home = home.to_string();
        let variables = [
            ("HOME", home.as_str()),
            ("PATH", path),
            ("CARGO_HOME", REGISTRY),
            ("CARGO_NET_OFFLINE", "true"),
            ("SCCACHE_CONTAINER_NAME", &self.site.name("first")),
            ("SCCACHE_IMAGE_NAME", &image),
            ("SCCACHE_BASE_IMAGE", &base),
            ("SCCACHE_DEFAULT_PORT", &port),
        ];
        for (name, value) in variables.iter().chain(extra) {
            command.arg(format!("--env={name}={value}"));
        }
        command.arg(&self.machine.name).args([
            "setpriv",
            &format!("--reuid={user}"),
            &format!("--regid={user}"),
            &format!("--groups={group}"),
            "sh",
            "-euxc",
            text,
        ]);
        run(&mut command, LONG)
    }

    fn path(&self) -> String {
        format!(
            "{}/.local/bin:{TOOLCHAIN}/bin:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
            self.home.path().display()
        )
    }

    /// What README's quick start tells, word by word, and one more command that asks what came of it.
    #[track_caller]
    fn quick_start(&self, user: u32) {
        for path in [
            self.home.path().to_owned(),
            self.home.path().join("checkout"),
        ] {
            chown(&path, Some(user), Some(user)).unwrap();
        }
        let own = format!("{user}:{user}");
        let mut give = Command::new("chown");
        give.args(["--recursive", &own]).arg(self.home.path());
        assert!(give.status().unwrap().success());
        let readme = blocks(&guide("README"));
        let quick: Vec<&Block> = readme.iter().filter(|it| it.is_typed()).take(2).collect();
        assert!(quick[0].text.contains("start ephemeral") && quick[1].text.contains("cargo build"));
        let url = self.releases.url();
        let sums = self.releases.sums();
        let release = [
            ("SCCACHE_RELEASES", url.as_str()),
            ("SCCACHE_SHA256", &sums),
        ];
        for block in quick {
            let start = crate::harness::now();
            let ran = self.types(user, &self.path(), &release, &block.text);
            assert_eq!(ran.code, Some(0), "{}\n{}", ran.stdout, ran.stderr);
            println!("user {user}, {:.1?}: {}", start.elapsed(), block.text);
        }
        let asked = self.types(
            user,
            &self.path(),
            &[],
            "./scripts/sccache-docker-manage.sh status --json; ./scripts/sccache-docker-manage.sh remove",
        );
        let text = asked.ok();
        let status = serde_json::from_str(&text).unwrap();
        let (_, misses, _) = crate::docker::counts(&status);
        assert!(misses > 0, "the build did not ask the cache: {text}");
    }
}

impl Drop for Bare<'_> {
    fn drop(&mut self) {
        let docker = &self.site.docker;
        docker.run(&["rm", "--force", "--volumes", &self.site.name("first")]);
        for user in [0, 1000] {
            docker.run(&["rmi", "--force", &format!("{}:{user}", self.image)]);
            docker.run(&["rmi", "--force", &format!("{}-base:{user}", self.image)]);
        }
    }
}

#[test]
fn first_command_works_or_says_all_that_is_missing() {
    let Some(site) = Site::open() else { return };
    if !nix::unistd::getuid().is_root() {
        return skip("only root can become another user").unwrap_or(());
    }
    let Some(bare) = Bare::new(&site) else { return };
    // Folders of root's may be above the checkout and its home.
    let mut above: Vec<PathBuf> = root().ancestors().map(Path::to_owned).collect();
    above.extend(bare.home.path().ancestors().map(Path::to_owned));
    for folder in above {
        bare.machine
            .exec(&["chmod", "a+x", &folder.display().to_string()]);
    }

    // No cargo, no C compiler, and nobody who may install one: all of it in one message, before anything is made.
    let started = crate::harness::now();
    let bare_path = "/usr/local/bin:/usr/bin:/bin";
    let start = "./scripts/sccache-docker-manage.sh start ephemeral";
    let refused = bare.types(1000, bare_path, &[("SCCACHE_FROM", "source")], start);
    refused.refused(
        1,
        &[
            "cargo, of Rust 1.95",
            "gcc",
            "pkg-config",
            "libssl-dev",
            "SCCACHE_DOCK_IMAGE",
        ],
    );
    println!("said after {:.1?}: {}", started.elapsed(), refused.stderr);
    assert!(
        !refused.stderr.contains("making a base"),
        "{}",
        refused.stderr
    );
    let made = site
        .docker
        .run(&["image", "inspect", &format!("{}-base:1000", bare.image)]);
    assert_ne!(made.code, Some(0), "a base was made for nothing");

    // Root installs what is missing; an ordinary user finds it there.
    bare.quick_start(0);
    bare.quick_start(1000);
}
