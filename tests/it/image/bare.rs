//! README's quick start on a bare machine: Debian's smallest root with Docker's client and the toolchain, nothing else.
//!
//! The root is a container of the base image, on the host's network and with the host's Docker. What others have compiled
//! is not compiled again: sccache comes as a release archive of a local server, and our programs are those that
//! `scripts/test` has compiled for this profile, which cargo itself finds to be up to date.

use crate::docker::{Container, LONG, PATIENCE, Ran, counts, run};
use crate::guides::{Block, blocks, guide};
use crate::harness::now;
use crate::releases::Releases;
use crate::site::{Site, cargo_home, free_port, skip, sysroot};
use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

const TOOLCHAIN: &str = "/opt/rust";
const START: &str = "./scripts/sccache-docker-manage.sh start ephemeral";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn group_of_docker() -> u32 {
    fs::metadata("/var/run/docker.sock").unwrap().gid()
}

#[track_caller]
fn does(program: &str, args: &[&str]) {
    run(Command::new(program).args(args), LONG).ok();
}

fn give(folder: &Path, user: u32) {
    let owner = format!("{user}:{user}");
    let folder = folder.to_str().unwrap();
    does(
        "chown",
        &["--recursive", "--no-dereference", &owner, folder],
    );
}

struct Bare<'a> {
    site: &'a Site,
    machine: Container<'a>,
    /// Homes and what cargo has compiled, at the same place as on the host, where Docker looks for folders.
    folder: tempfile::TempDir,
    image: String,
    releases: Releases,
    port: u16,
}

impl<'a> Bare<'a> {
    fn new(site: &'a Site) -> Option<Bare<'a>> {
        // Programs of this machine's kind, and beside them what their compilation needs on it.
        let triple = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
        let [host, programs] = ["local".to_owned(), format!("{triple}/local")];
        let target = root().join("target");
        if !target.join(&programs).join("sccache-dock").exists() {
            return skip("our programs are not compiled: images/binaries.sh dock FOLDER");
        }
        let Some(base) = site.base() else {
            return skip("no base image");
        };
        let folder = tempfile::tempdir().unwrap();
        let inside = folder.path().display().to_string();
        does("chmod", &["755", &inside]);
        let copy = format!("{inside}/target");
        fs::create_dir_all(Path::new(&copy).join(triple)).unwrap();
        for kept in [host, programs] {
            let from = target.join(&kept);
            does(
                "cp",
                &["-a", from.to_str().unwrap(), &format!("{copy}/{kept}")],
            );
        }
        let machine = Container {
            docker: &site.docker,
            name: site.name("bare"),
        };
        let mut find = Command::new("sh");
        find.args(["-c", "readlink -f \"$(command -v docker)\""]);
        let repo = root().display();
        let volumes = [
            "/var/run/docker.sock:/var/run/docker.sock".to_owned(),
            format!("{}:/usr/local/bin/docker:ro", run(&mut find, PATIENCE).ok()),
            format!("{}:{TOOLCHAIN}:ro", sysroot().display()),
            // At the same places as on the host: cargo compares them.
            format!("{0}:{0}:ro", cargo_home().display()),
            format!("{repo}:{repo}:ro"),
            format!("{copy}:{repo}/target"),
            format!("{inside}:{inside}"),
        ];
        let mut args = vec!["run", "--detach", "--init", "--network=host"];
        args.extend(["--name", &machine.name]);
        args.extend(volumes.iter().flat_map(|it| ["--volume", it]));
        args.extend([base, "sleep", "3600"]);
        site.docker.ok(&args);
        // An ordinary user comes by folders that are root's alone on this host.
        for above in cargo_home().ancestors().skip(1) {
            machine
                .exec(&["chmod", "a+x", above.to_str().unwrap()])
                .ok();
        }
        Some(Bare {
            site,
            image: format!("{}-bare", site.image.split(':').next().unwrap()),
            machine,
            folder,
            releases: Releases::serve(),
            port: free_port(),
        })
    }

    /// A user with a home of its own, and in it a checkout of a small project beside our scripts.
    fn home(&self, user: u32) -> PathBuf {
        let home = self.folder.path().join(user.to_string());
        if !home.exists() {
            fs::create_dir(&home).unwrap();
            let fixture = root().join("tests/fixtures/checkout/vendor/shapes");
            let checkout = home.join("checkout");
            does(
                "cp",
                &["-r", fixture.to_str().unwrap(), checkout.to_str().unwrap()],
            );
            symlink(root().join("scripts"), checkout.join("scripts")).unwrap();
            give(&home, user);
        }
        home
    }

    /// Types `text` in the checkout as `user` of Docker's group, with these variables; what is not in `path` is not there.
    fn types(&self, user: u32, path: &str, set: &[(&str, &str)], text: &str) -> Ran {
        let home = self.home(user);
        let mut command = self.site.docker.command();
        command.args(["exec", "--workdir"]);
        command.arg(home.join("checkout"));
        let home = home.display().to_string();
        let (port, cargo_home) = (self.port.to_string(), cargo_home().display().to_string());
        let image = format!("{}:{user}", self.image);
        let base = format!("{}-base:{user}", self.image);
        let variables = [
            ("HOME", home.as_str()),
            ("PATH", path),
            ("CARGO_HOME", &cargo_home),
            ("CARGO_NET_OFFLINE", "true"),
            ("SCCACHE_CONTAINER_NAME", &self.site.name("first")),
            ("SCCACHE_IMAGE_NAME", &image),
            ("SCCACHE_BASE_IMAGE", &base),
            ("SCCACHE_DEFAULT_PORT", &port),
        ];
        for (name, value) in variables.iter().chain(set) {
            command.arg(format!("--env={name}={value}"));
        }
        let group = format!("--groups={}", group_of_docker());
        let (uid, gid) = (format!("--reuid={user}"), format!("--regid={user}"));
        let words = ["setpriv", &uid, &gid, &group, "sh", "-euxc", text];
        command.arg(&self.machine.name).args(words);
        run(&mut command, LONG)
    }

    /// What README's quick start tells, word by word, and one more command that asks what came of it.
    #[track_caller]
    fn quick_start(&self, user: u32) {
        give(&self.folder.path().join("target"), user);
        let readme = blocks(&guide("README"));
        let quick: Vec<&Block> = readme.iter().filter(|it| it.is_typed()).take(2).collect();
        assert!(quick[0].text.contains(START) && quick[1].text.contains("cargo build"));
        let path = format!("{TOOLCHAIN}/bin:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin");
        let (url, sums) = (self.releases.url(), self.releases.sums());
        let release = [
            ("SCCACHE_RELEASES", url.as_str()),
            ("SCCACHE_SHA256", &sums),
        ];
        for block in quick {
            let start = now();
            let lines = block.text.lines();
            let text: String = lines
                .map(|it| format!("date '+at %T' >&2\n{it}\n"))
                .collect();
            let ran = self.types(user, &path, &release, &text);
            assert_eq!(ran.code, Some(0), "{}\n{}", ran.stdout, ran.stderr);
            println!("user {user}, {:.1?}:", start.elapsed());
            println!("{}", ran.stderr);
        }
        let ask = "./scripts/sccache-docker-manage.sh status --json; ./scripts/sccache-docker-manage.sh remove";
        let text = self.types(user, &path, &[], ask).ok();
        let (_, misses, _) = counts(&serde_json::from_str(&text).unwrap());
        assert!(misses > 0, "the build did not ask the cache: {text}");
    }

    fn has_image(&self, image: &str) -> bool {
        self.site.docker.run(&["image", "inspect", image]).code == Some(0)
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

    // No cargo, no C compiler, and nobody who may install one: all of it in one message, before anything is made.
    let start = now();
    let path = "/usr/local/bin:/usr/bin:/bin";
    let refused = bare.types(1000, path, &[("SCCACHE_FROM", "source")], START);
    let packages = "packages, by their names in Debian: gcc libc6-dev libssl-dev pkg-config";
    refused.refused(1, &["cargo, of Rust 1.95", packages, "SCCACHE_DOCK_IMAGE"]);
    println!("said after {:.1?}: {}", start.elapsed(), refused.stderr);
    assert!(!bare.has_image(&format!("{}-base:1000", bare.image)));

    // Root installs what is missing; an ordinary user finds it there.
    bare.quick_start(0);
    bare.quick_start(1000);
}
