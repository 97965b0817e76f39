//! A cold CI runner far away from its cache: `just bench-runner`.
//!
//! Every request passes a relay that adds a delay and limits the bandwidth, as a network between a runner and a cache does. The
//! runner's checkout is always at the same path and its own disk is empty, but for the first way.
//!
//! ```text
//! local disk   warm, without a network: what the others are compared with
//! helper       sccache-dock build --prefetch: a gateway of the build's own takes what it needs while it runs
//! prefetch     sccache-dock prefetch, then sccache-dock build
//! webdav       the same without it
//! tar          the whole level on disk as one file, as actions/cache does it
//! s3           bare sccache on S3 (s3s-fs)
//! recorder     local disk with the recorder in front of sccache: processor time only
//!
//! --ways A,B   their names, "," between them [default: all]
//! --crates N   crates of the project [default: 1000]
//! --rounds N   [default: 3]
//! --delay MS   there and back [default: 50]
//! --mbit N     [default: 100]
//! ```

mod relay;

use relay::Relay;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const TOKEN: &str = "a-token-for-the-bench";
const PATIENCE: Duration = Duration::from_secs(30);

#[expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

#[expect(clippy::print_stdout, reason = "the table is the result")]
fn say(line: &str) {
    println!("{line}");
}

/// Ends the run.
#[expect(clippy::exit, reason = "there are no figures")]
#[expect(clippy::print_stderr, reason = "and this is why")]
fn fail(message: &str) -> ! {
    eprintln!("error: {message}");
    std::process::exit(2)
}

fn tools() -> PathBuf {
    let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_default());
    let set = std::env::var_os("SCCACHE_DOCK_TOOLS").map(PathBuf::from);
    set.unwrap_or_else(|| home().join(".cache/sccache-dock/tools"))
}

/// A server that ends with the value.
struct Server {
    child: Child,
    addr: SocketAddr,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.try_wait();
    }
}

fn free_address() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    listener.unwrap_or_else(|cause| fail(&format!("cannot find a free port: {cause}")))
}

fn start(command: &mut Command, addr: SocketAddr) -> Server {
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let child = child.unwrap_or_else(|cause| fail(&format!("cannot run {command:?}: {cause}")));
    let began = now();
    while TcpStream::connect(addr).is_err() {
        if began.elapsed() > PATIENCE {
            fail(&format!("{command:?} does not listen"));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Server { child, addr }
}

fn gateway(folder: &Path) -> Server {
    let addr = free_address();
    let file = folder.join("gateway.toml");
    let config = format!(
        "listen = \"{addr}\"\nsocket = \"{0}/gateway.sock\"\nstore_dir = \"{0}/cache\"\nbudget_bytes = 10000000000\n\
         ipc = \"off\"\nserver_socket = \"{0}/server.sock\"\nwrite_tokens = [\"{TOKEN}\"]\nread_tokens = []\n\
         anonymous_read = false\ndrain = 1000\n",
        folder.display()
    );
    std::fs::write(&file, config).unwrap_or_else(|cause| fail(&cause.to_string()));
    let program = env!("CARGO_BIN_EXE_sccache-dock-gateway");
    start(Command::new(program).arg("--config").arg(file), addr)
}

fn s3(folder: &Path) -> Option<Server> {
    let program = tools().join("cargo/bin/s3s-fs");
    if !program.exists() {
        say("without s3: s3s-fs is not installed");
        return None;
    }
    let addr = free_address();
    let bucket = folder.join("s3");
    std::fs::create_dir_all(bucket.join("bucket")).unwrap_or_else(|cause| fail(&cause.to_string()));
    let mut command = Command::new(program);
    command
        .args(["--host", "127.0.0.1", "--port", &addr.port().to_string()])
        .args(["--access-key", "the-key", "--secret-key", "the-secret"])
        .arg(bucket);
    Some(start(&mut command, addr))
}

/// The runner: one folder for its home, its checkout and its disk.
struct Runner {
    home: PathBuf,
}

impl Runner {
    fn new(folder: &Path, crates: usize) -> Runner {
        let runner = Runner {
            home: folder.join("home"),
        };
        let write = |name: &str, text: &str| {
            let path = runner.home.join("work").join(name);
            let made = path.parent().map_or(Ok(()), std::fs::create_dir_all);
            let written = made.and_then(|()| std::fs::write(&path, text));
            written.unwrap_or_else(|cause| fail(&cause.to_string()));
        };
        write(
            "Cargo.toml",
            "[workspace]\nmembers = [\"crates/*\"]\nresolver = \"2\"\n",
        );
        for number in 0..crates {
            // Every tenth stands on the one before, so that the build has some depth.
            let on = match number % 10 {
                0 => String::new(),
                _ => format!(
                    "[dependencies]\nc{0} = {{ path = \"../c{0}\" }}\n",
                    number - 1
                ),
            };
            let manifest = format!(
                "[package]\nname = \"c{number}\"\nversion = \"0.1.0\"\nedition = \"2021\"\n{on}"
            );
            write(&format!("crates/c{number}/Cargo.toml"), &manifest);
            let body: String = (0..40)
                .map(|it| format!("pub fn f{it}(x: &[u64]) -> Vec<String> {{ x.iter().map(|y| format!(\"{{y}}{it}\")).collect() }}\n"))
                .collect();
            write(&format!("crates/c{number}/src/lib.rs"), &body);
        }
        runner
    }

    /// Runs a script; gives wall time and the processor time of everything that ended in it.
    fn sh(&self, script: &str) -> (f64, f64) {
        use nix::sys::resource::{UsageWho, getrusage};
        let processor = || {
            let usage = getrusage(UsageWho::RUSAGE_CHILDREN);
            let usage = usage.unwrap_or_else(|cause| fail(&cause.to_string()));
            let seconds =
                |it: nix::sys::time::TimeVal| it.tv_sec() as f64 + it.tv_usec() as f64 / 1e6;
            seconds(usage.user_time()) + seconds(usage.system_time())
        };
        let path = std::env::var("PATH").unwrap_or_default();
        let ours = Path::new(env!("CARGO_BIN_EXE_sccache-dock"))
            .parent()
            .unwrap_or(Path::new("/"));
        let sccache = tools().join("sccache-0.19.0/bin");
        let (began, before) = (now(), processor());
        let inherited = |name: &str, below: &str| {
            let home = PathBuf::from(std::env::var_os("HOME").unwrap_or_default());
            std::env::var_os(name).map_or_else(|| home.join(below), PathBuf::from)
        };
        let output = Command::new("sh")
            .args(["-ec", script])
            .current_dir(self.home.join("work"))
            .env_clear()
            .env(
                "PATH",
                format!("{}:{}:{path}", sccache.display(), ours.display()),
            )
            .env("HOME", &self.home)
            .env("CARGO_HOME", inherited("CARGO_HOME", ".cargo"))
            .env("RUSTUP_HOME", inherited("RUSTUP_HOME", ".rustup"))
            .env("CARGO_INCREMENTAL", "0")
            .env("SCCACHE_CONF", "/nonexistent")
            .env("SCCACHE_SERVER_UDS", self.home.join("s"))
            .env("SCCACHE_IDLE_TIMEOUT", "0")
            .stdin(Stdio::null())
            .output();
        let output = output.unwrap_or_else(|cause| fail(&cause.to_string()));
        if !output.status.success() {
            fail(&format!(
                "{script}\n{}",
                String::from_utf8_lossy(&output.stderr)
            ));
        }
        (began.elapsed().as_secs_f64(), processor() - before)
    }

    /// A machine that has nothing but the checkout.
    fn clean(&self, keeps_disk: bool) {
        let disk = if keeps_disk { "" } else { "$HOME/disk" };
        self.sh(&format!(
            "sccache --stop-server >/dev/null 2>&1 || true; rm -rf target {disk} $HOME/.cache"
        ));
    }

    /// The report of the last build, which must have missed nothing.
    fn has_hits(&self, way: &str) -> serde_json::Value {
        let report = std::fs::read(self.home.join("report.json")).unwrap_or_default();
        let report: serde_json::Value = serde_json::from_slice(&report).unwrap_or_default();
        if report["sums"]["misses"] != 0 {
            fail(&format!("a build with {way} missed: {:#}", report["sums"]));
        }
        report
    }

    fn build(&self, settings: &str, wrapper: &str) -> (f64, f64) {
        self.sh(&format!(
            "{settings}\nexport RUSTC_WRAPPER=sccache\n{wrapper} cargo build --offline --quiet"
        ))
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let number = |name: &str, default: u64| {
        let place = arguments.iter().position(|it| it == name);
        let given = place.and_then(|place| arguments.get(place + 1)?.parse().ok());
        given.unwrap_or(default)
    };
    let (crates, rounds) = (number("--crates", 1000), number("--rounds", 3));
    let (delay, mbit) = (
        Duration::from_millis(number("--delay", 50)),
        number("--mbit", 100),
    );
    let folder = tempfile::tempdir().unwrap_or_else(|cause| fail(&cause.to_string()));
    let folder = folder.path();
    let runner = Runner::new(folder, usize::try_from(crates).unwrap_or(1000));
    let gateway = gateway(folder);
    let given = arguments.iter().position(|it| it == "--ways");
    let given = given.and_then(|place| arguments.get(place + 1)).cloned();
    let wants = |name: &str| {
        given
            .as_ref()
            .is_none_or(|given| given.split(',').any(|it| it == name))
    };
    let s3 = wants("s3").then(|| s3(folder)).flatten();
    let relay = |to: SocketAddr| Relay::start(to, delay, mbit * 1_000_000 / 8);
    let near = relay(gateway.addr);
    let near_s3 = s3.as_ref().map(|server| relay(server.addr));
    let disk = "export SCCACHE_DIR=$HOME/disk";
    let chain = |addr: SocketAddr| {
        format!(
            "{disk} SCCACHE_MULTILEVEL_CHAIN=disk,webdav SCCACHE_WEBDAV_ENDPOINT=http://{addr} SCCACHE_WEBDAV_TOKEN={TOKEN} \
             SCCACHE_SKIP_CACHE_CHECK=1 SCCACHE_WEBDAV_DISABLE_CREATE_DIR=1"
        )
    };
    let bare = |addr: SocketAddr| chain(addr).replace("disk,webdav", "webdav");
    let bucket = |addr: SocketAddr| {
        format!(
            "export SCCACHE_BUCKET=bucket SCCACHE_REGION=us-east-1 SCCACHE_ENDPOINT=http://{addr} SCCACHE_S3_USE_SSL=off \
             AWS_ACCESS_KEY_ID=the-key AWS_SECRET_ACCESS_KEY=the-secret"
        )
    };
    let dock = "sccache-dock build --report json=$HOME/report.json --";
    say("filling the caches, without a delay");
    runner.clean(false);
    runner.build(&chain(gateway.addr), dock);
    runner.clean(true);
    let archive = "tar -C $HOME -cf - disk | gzip -1 > $HOME/disk.tar.gz";
    runner.sh(archive);
    let put = format!(
        "curl -sf -T $HOME/disk.tar.gz -H 'Authorization: Bearer {TOKEN}' http://{}/tar/disk",
        gateway.addr
    );
    runner.sh(&put);
    if s3.is_some() {
        // The same entries by the same names, one folder deeper: a build that fills it takes as long as a cold one.
        let copy = "cd $HOME/disk; for entry in ?/?/*; do key=${entry##*/}; rest=${key#??}; \
                    to=$HOME/../s3/bucket/${entry%/*}/${rest%\"${rest#?}\"}; mkdir -p $to; cp $entry $to/; done";
        runner.sh(copy);
    }
    let names = [
        "local disk",
        "recorder",
        "prefetch",
        "webdav",
        "tar",
        "s3",
        "helper",
    ];
    let mut walls = vec![Vec::new(); names.len()];
    let mut processors = vec![Vec::new(); names.len()];
    let mut note = |way: usize, (wall, processor): (f64, f64)| {
        walls[way].push(wall);
        processors[way].push(processor);
    };
    for _ in 0..rounds {
        // The archive is what every round begins with.
        let unpack = "rm -rf $HOME/disk; tar -C $HOME -xzf $HOME/disk.tar.gz";
        for (way, wrapper) in [(0, ""), (1, dock)] {
            if way == 0 || wants(names[way]) {
                runner.clean(false);
                runner.sh(unpack);
                note(way, runner.build(disk, wrapper));
            }
        }
        if wants("prefetch") {
            runner.clean(false);
            let fetched = runner.sh(&format!(
                "{}; sccache-dock prefetch > $HOME/said",
                chain(near.addr)
            ));
            let (wall, processor) = runner.build(&chain(near.addr), dock);
            note(2, (wall + fetched.0, processor + fetched.1));
            say(std::fs::read_to_string(runner.home.join("said"))
                .unwrap_or_default()
                .trim());
            runner.has_hits("prefetch");
        }
        if wants("helper") {
            runner.clean(false);
            let dock = dock.replace("--report", "--prefetch --report");
            note(6, runner.build(&bare(near.addr), &dock));
            let report = runner.has_hits("helper");
            say(&format!(
                "helper: {} of {} that came ahead were used, {} asked for",
                report["prefetched"][1], report["prefetched"][0], report["wire"]["hits"]
            ));
        }
        if wants("webdav") {
            runner.clean(false);
            note(3, runner.build(&chain(near.addr), ""));
        }
        if wants("tar") {
            runner.clean(false);
            let fetch = format!(
                "curl -sf -H 'Authorization: Bearer {TOKEN}' http://{}/tar/disk | tar -C $HOME -xzf -\n{disk}",
                near.addr
            );
            note(4, runner.build(&fetch, ""));
        }
        if let Some(near) = &near_s3 {
            runner.clean(false);
            note(5, runner.build(&bucket(near.addr), ""));
        }
    }
    runner.clean(false);
    let base = median(walls[0].clone());
    say(&format!(
        "{crates} crates, {rounds} rounds, {delay:?} there and back, {mbit} Mbit/s"
    ));
    say("| way | wall, s | of local disk | processor, s |\n| --- | ---: | ---: | ---: |");
    for ((name, walls), processors) in names.iter().zip(walls).zip(processors) {
        if !walls.is_empty() {
            let (wall, processor) = (median(walls), median(processors));
            say(&format!(
                "| {name} | {wall:.1} | {:.2} | {processor:.1} |",
                wall / base
            ));
        }
    }
}
