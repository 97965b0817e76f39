//! The turn of one test: the image, the host's script, and real builds of a project of a hundred crates.
//!
//! The tests take turns, by a lock: they share the image, the project's folder and the machine's two or more cores.
//! Whatever they make carries the prefix of this checkout in its name, and a later test removes what a killed one left.

use crate::docker::{Container, Docker, LONG, PATIENCE, Ran, TOKEN, counts, run};
use crate::harness::{clean, now, sccache_bin, wait_for};
use crate::machine::kill_daemons;
use nix::fcntl::{Flock, FlockArg};
use serde_json::Value;
use std::fs::{self, File};
use std::net::TcpListener;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::time::Duration;

/// Build scripts that try what the compiler can do compile things that fail, and a failure is never cached.
pub(crate) const FAILING_PROBES: u64 = 2;

/// The turn of one test: the image, and a home and a project of its own.
pub(crate) struct Site {
    _turn: Flock<File>,
    pub(crate) docker: Docker,
    pub(crate) image: String,
    pub(crate) home: tempfile::TempDir,
    /// Begins the name of every container of this checkout.
    prefix: String,
    key: String,
}

impl Site {
    /// Waits for its turn and builds the image if need be. `None`, and a line, where there is no Docker; a failure
    /// there in CI.
    pub(crate) fn open() -> Option<Site> {
        let docker = Docker::default();
        let answers = Command::new("docker").arg("version").output();
        if !answers.is_ok_and(|output| output.status.success()) {
            return skip("no Docker daemon");
        }
        fs::create_dir_all(shared()).unwrap();
        let lock = File::create(shared().join("lock")).unwrap();
        let turn = Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, error)| error);
        let checkout =
            blake3::hash(shared().as_os_str().as_encoded_bytes()).to_hex()[..8].to_owned();
        let key = key_of_image();
        let site = Site {
            _turn: turn.unwrap(),
            docker,
            image: format!("sccache-dock-it-{checkout}:{key}"),
            home: tempfile::tempdir().unwrap(),
            prefix: format!("sdit-{checkout}-"),
            key,
        };
        site.sweep();
        site.build_image();
        site.make_project();
        Some(site)
    }

    /// Removes what killed tests left.
    fn sweep(&self) {
        let name = format!("name=^/?{}", self.prefix);
        let left = self
            .docker
            .ok(&["ps", "--all", "--quiet", "--filter", &name]);
        for container in left.lines() {
            self.docker.run(&["rm", "--force", "--volumes", container]);
        }
        let left = self.docker.ok(&[
            "network",
            "ls",
            "--quiet",
            "--filter",
            &format!("name={}", self.prefix),
        ]);
        for network in left.lines() {
            self.docker.run(&["network", "rm", network]);
        }
    }

    /// By the host's script, from this very program, once for all tests; images of earlier programs go.
    fn build_image(&self) {
        if self.has_image(&self.image) && self.base().is_some() {
            return;
        }
        let name = self.image.split(':').next().unwrap();
        let old = self
            .docker
            .ok(&["images", "--format", "{{.Repository}}:{{.Tag}}", name]);
        for image in old.lines() {
            self.docker.run(&["rmi", image]);
        }
        let start = now();
        let program = self.home.path().join("sccache-dock");
        for built in [
            crate::dock::program(),
            crate::dock::supervisor_program(),
            crate::dock::gateway_program(),
        ] {
            let copy = self.home.path().join(built.file_name().unwrap());
            // Debug information is nine tenths of the file.
            let mut strip = Command::new("strip");
            let stripped = strip.arg("-g").arg("-o").arg(&copy).arg(&built).status();
            if !stripped.is_ok_and(|status| status.success()) {
                fs::copy(&built, &copy).unwrap();
            }
        }
        let mut command = self.script("build").command();
        let ran = run(
            command
                .env("SCCACHE_DOCK_PROGRAM", program)
                .args(["build", "debian"]),
            LONG,
        );
        assert_eq!(ran.code, Some(0), "{}", ran.stderr);
        println!("the image took {:.1?}", start.elapsed());
    }

    fn has_image(&self, image: &str) -> bool {
        self.docker.run(&["image", "inspect", image]).code == Some(0)
    }

    /// An image without anything of ours: the one that the image under test was made from.
    pub(crate) fn base(&self) -> Option<&'static str> {
        let bases = Path::new(env!("CARGO_MANIFEST_DIR")).join("images/bases.txt");
        let bases = fs::read_to_string(bases).unwrap();
        let pinned = bases.lines().find_map(|line| line.strip_prefix("debian "));
        let known = ["sccache-dock-base:debian", pinned.unwrap()];
        let found = known.into_iter().find(|image| self.has_image(image));
        found.map(|image| &*image.to_owned().leak())
    }

    /// The hundred crates, always at one path, because it is part of the keys.
    fn make_project(&self) {
        let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/hundred");
        let _ = fs::remove_dir_all(project());
        let copied = Command::new("cp")
            .arg("-r")
            .arg(fixture)
            .arg(project())
            .status();
        assert!(copied.unwrap().success());
        // The builds are offline, in containers too.
        let fetched = clean("cargo")
            .args(["fetch", "--locked", "--quiet"])
            .current_dir(project())
            .status();
        assert!(fetched.unwrap().success());
    }

    /// A name for a container or a network, free after the last test's sweep.
    pub(crate) fn name(&self, what: &str) -> String {
        format!("{}{what}", self.prefix)
    }

    /// The host's script for a container of the test's own, on a free port, for a user with a home of its own.
    pub(crate) fn script(&self, what: &str) -> Script<'_> {
        Script {
            site: self,
            docker: self.docker.clone(),
            container: self.name(what),
            port: free_port(),
            image: None,
            user: None,
        }
    }

    /// A container by plain `docker run --detach`, not waited for.
    pub(crate) fn container(&self, what: &str, flags: &[&str]) -> Container<'_> {
        let container = Container {
            docker: &self.docker,
            name: self.name(what),
        };
        let token = format!("SCCACHE_AUTH_TOKEN={TOKEN}");
        let mut args = vec![
            "run",
            "--detach",
            "--name",
            &container.name,
            "--env",
            &token,
        ];
        args.extend(["--publish", "127.0.0.1::4226"]);
        args.extend(flags);
        args.push(&self.image);
        self.docker.ok(&args);
        container
    }

    /// Puts the machine's sccache where `install-client` would.
    pub(crate) fn install_client(&self) {
        let bin = self.home.path().join(".local/bin");
        fs::create_dir_all(&bin).unwrap();
        // A daemon of an earlier build may run the one that is there: it is replaced, not written to.
        let fresh = bin.join("sccache.new");
        fs::copy(sccache_bin(), &fresh).unwrap();
        fs::rename(fresh, bin.join("sccache")).unwrap();
    }

    /// A shell of the user, in the project's folder, with the toolchain itself instead of rustup's proxies: what
    /// containers can have too.
    pub(crate) fn shell(&self, script: &Script, text: &str, ceiling: Duration) -> Ran {
        let mut command = script.environment(clean("sh"));
        command.arg("-c").arg(text).current_dir(project());
        command
            .env_remove("SCCACHE_CONF")
            .env_remove("LD_LIBRARY_PATH");
        run(&mut command, ceiling)
    }

    /// A clean build by the user on the host, after the shell text `prepare`.
    #[track_caller]
    pub(crate) fn build(&self, script: &Script, prepare: &str) {
        let _ = fs::remove_dir_all(project().join("target"));
        let text = format!("{prepare} && cargo build --locked --offline --quiet");
        self.shell(script, &text, LONG).ok();
    }

    /// Flags of `docker run` with which a container compiles as the host does: the same programs and paths.
    pub(crate) fn toolchain_flags(&self) -> Vec<String> {
        let mut flags: Vec<String> = ["/usr/bin", "/usr/lib", "/usr/include", "/etc/alternatives"]
            .map(PathBuf::from)
            .into_iter()
            .chain([sysroot(), cargo_home()])
            .map(|path| format!("--volume={0}:{0}:ro", path.display()))
            .collect();
        flags.push(format!("--volume={0}:{0}", project().display()));
        flags.push(format!("--workdir={}", project().display()));
        flags.push(format!("--env=CARGO_HOME={}", cargo_home().display()));
        flags.push(format!(
            "--env=PATH={}/bin:/usr/local/bin:/usr/bin:/bin",
            sysroot().display()
        ));
        flags
    }

    /// A folder of the host with the blobs of a cold build, for a cache that starts warm; how many there are.
    pub(crate) fn warm_folder(&self) -> (tempfile::TempDir, u64) {
        let kept = self.kept_blobs();
        if !kept.exists() {
            self.install_client();
            let script = self.script("cold");
            script.call(&["start", "ephemeral"]).ok();
            // The recommended lane: C objects of others have keys of their own.
            self.build(&script, &script.eval("--lane webdav"));
            script.settled();
            self.keep_blobs(&script);
        }
        let folder = tempfile::tempdir().unwrap();
        let copied = Command::new("cp")
            .arg("-r")
            .arg(&kept)
            .arg(folder.path().join("cache"))
            .status();
        assert!(copied.unwrap().success());
        let stored = fs::read_to_string(kept.with_extension("count")).unwrap();
        (folder, stored.parse().unwrap())
    }

    /// Copies the blobs of a running container, for [`Site::warm_folder`] of later tests.
    pub(crate) fn keep_blobs(&self, script: &Script) {
        let (kept, (.., stored)) = (self.kept_blobs(), script.counts());
        for old in fs::read_dir(shared()).unwrap().filter_map(Result::ok) {
            if old.file_name().to_string_lossy().starts_with("blobs-") {
                let _ = fs::remove_dir_all(old.path());
            }
        }
        fs::write(kept.with_extension("count"), stored.to_string()).unwrap();
        let from = format!("{}:/var/sccache/cache", script.container);
        self.docker.ok(&["cp", &from, kept.to_str().unwrap()]);
    }

    fn kept_blobs(&self) -> PathBuf {
        shared().join(format!("blobs-{}", self.key))
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        kill_daemons(self.home.path());
        self.sweep();
    }
}

/// Says why a test does nothing; in CI that is a failure.
pub(crate) fn skip<T>(why: &str) -> Option<T> {
    crate::harness::skip(why);
    None
}

/// What the tests of this checkout share.
fn shared() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("docker")
}

/// The folder of the hundred crates.
pub(crate) fn project() -> PathBuf {
    shared().join("project")
}

/// Changes with everything that is in the image or that the blobs depend on.
fn key_of_image() -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut hasher = blake3::Hasher::new();
    for file in [
        crate::dock::program(),
        crate::dock::supervisor_program(),
        crate::dock::gateway_program(),
        root.join("images/Dockerfile"),
        root.join("images/binaries.sh"),
        root.join("images/common.sh"),
        root.join("tests/fixtures/hundred/Cargo.lock"),
    ] {
        hasher.update(&fs::read(file).unwrap());
    }
    hasher.update(sysroot().as_os_str().as_encoded_bytes());
    hasher.finalize().to_hex()[..16].to_owned()
}

/// The toolchain that compiles these tests.
pub(crate) fn sysroot() -> PathBuf {
    let mut command = clean("rustc");
    command.current_dir(env!("CARGO_MANIFEST_DIR"));
    run(command.args(["--print", "sysroot"]), PATIENCE)
        .ok()
        .into()
}

pub(crate) fn cargo_home() -> PathBuf {
    std::env::var_os("CARGO_HOME").map_or_else(
        || PathBuf::from(std::env::var_os("HOME").unwrap()).join(".cargo"),
        PathBuf::from,
    )
}

/// A port of this test's own until its process ends. None of those that the kernel gives away, which any connection of
/// any program may take between two containers of a test; and locked, because other checkouts have tests as well.
pub(crate) fn free_port() -> u16 {
    static MINE: Mutex<Vec<Flock<File>>> = Mutex::new(Vec::new());
    let range = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap();
    let given_away: u16 = range.split_whitespace().next().unwrap().parse().unwrap();
    let ours = 10_000..given_away;
    let folder = std::env::temp_dir().join(format!("sccache-dock-ports-{}", nix::unistd::getuid()));
    fs::create_dir_all(&folder).unwrap();
    // Tests begin at different places, or each would try what all before it have.
    let first = std::process::id().wrapping_mul(97) as usize % ours.len();
    for port in ours.clone().cycle().skip(first).take(ours.len()) {
        let file = File::create(folder.join(port.to_string())).unwrap();
        let Ok(lock) = Flock::lock(file, FlockArg::LockExclusiveNonblock) else {
            continue;
        };
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            MINE.lock().unwrap().push(lock);
            return port;
        }
    }
    panic!("no port of {ours:?} is free");
}

/// The host's script, with the variables of one user and one container. The container goes with it.
pub(crate) struct Script<'a> {
    site: &'a Site,
    pub(crate) docker: Docker,
    pub(crate) container: String,
    pub(crate) port: u16,
    /// Another image than the site's.
    pub(crate) image: Option<String>,
    /// An unprivileged user to run as, and its home.
    pub(crate) user: Option<(u32, PathBuf)>,
}

impl<'a> Script<'a> {
    /// The same container, which a start makes from another image.
    pub(crate) fn with_image(&self, image: &str) -> Script<'a> {
        Script {
            site: self.site,
            docker: self.docker.clone(),
            container: self.container.clone(),
            port: self.port,
            image: Some(image.to_owned()),
            user: self.user.clone(),
        }
    }

    pub(crate) fn path() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/sccache-docker-manage.sh")
    }

    /// The user's variables, and those that name the container.
    pub(crate) fn environment(&self, mut command: Command) -> Command {
        let home = self
            .user
            .as_ref()
            .map_or(self.site.home.path(), |(_, home)| home);
        // Next to tools, where the machine has the compiled sccache.
        let tools = sccache_bin().ancestors().nth(3).unwrap().to_owned();
        let path = std::env::var("PATH").unwrap();
        command
            .env("HOME", home)
            .env(
                "PATH",
                format!(
                    "{}/.local/bin:{}/bin:{path}",
                    home.display(),
                    sysroot().display()
                ),
            )
            .env("CARGO_HOME", cargo_home())
            .env("SCCACHE_DOCK_TOOLS", tools)
            .env("SCCACHE_DOCK_PROGRAM", crate::dock::program())
            .env("SCCACHE_CONTAINER_NAME", &self.container)
            .env(
                "SCCACHE_IMAGE_NAME",
                self.image.as_ref().unwrap_or(&self.site.image),
            )
            .env("SCCACHE_DEFAULT_PORT", self.port.to_string())
            // Docker chooses one that is free.
            .env("SCCACHE_SCHEDULER_PORT", "0");
        for name in [
            "XDG_CACHE_HOME",
            "XDG_DATA_HOME",
            "XDG_STATE_HOME",
            "XDG_RUNTIME_DIR",
            "MODE",
        ] {
            command.env_remove(name);
        }
        if let Some(host) = &self.docker.host {
            command.env("DOCKER_HOST", host);
        }
        command
    }

    pub(crate) fn command(&self) -> Command {
        let Some((uid, _)) = &self.user else {
            return self.environment(clean(Script::path()));
        };
        // In Docker's group, as its documentation has it.
        let group = fs::metadata("/var/run/docker.sock").unwrap().gid();
        let mut command = self.environment(clean("setpriv"));
        command.args([
            format!("--reuid={uid}"),
            format!("--regid={uid}"),
            format!("--groups={group}"),
        ]);
        command.arg(Script::path());
        command
    }

    pub(crate) fn call(&self, args: &[&str]) -> Ran {
        run(self.command().args(args), PATIENCE * 2)
    }

    /// Shell text that takes over what `env` prints.
    pub(crate) fn eval(&self, args: &str) -> String {
        format!("eval \"$('{}' env {args})\"", Script::path().display())
    }

    pub(crate) fn status(&self) -> Value {
        serde_json::from_str(&self.call(&["status", "--json"]).ok()).unwrap()
    }

    /// Hits, misses and writes of compile results since the gateway started.
    pub(crate) fn counts(&self) -> (u64, u64, u64) {
        counts(&self.status())
    }

    /// Waits until clients have written what they write in the background; gives how many blobs there are.
    pub(crate) fn settled(&self) -> u64 {
        let mut last = 0;
        wait_for("the writes in the background", PATIENCE, || {
            std::thread::sleep(Duration::from_millis(500));
            let (.., writes) = self.counts();
            (std::mem::replace(&mut last, writes) == writes && writes >= 100).then_some(writes)
        })
    }

    pub(crate) fn token(&self) -> String {
        let text = self.call(&["env", "--format", "docker"]).ok();
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix("SCCACHE_WEBDAV_TOKEN="));
        line.unwrap().to_owned()
    }
}

impl Drop for Script<'_> {
    fn drop(&mut self) {
        self.docker
            .run(&["rm", "--force", "--volumes", &self.container]);
    }
}
