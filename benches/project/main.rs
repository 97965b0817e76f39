//! A real Rust project built through the cache, cold and warm, beside sccache on local disk, nginx and Redis:
//! `just bench-project`. At most ten minutes; nginx and redis-server are left out with a word where they are missing.
//!
//! In each round every way has its turn, and the first of them changes, so that whatever else the machine does meets
//! all of them. Cold: store and client are empty. Warm: the same client again. Elsewhere: a client with nothing on its
//! own disk, where the way has a level there. Ratios are those of a round, their median counts.
//!
//! ```text
//! --rounds N        the most; no round begins that would end after
//! --minutes N       this, 10 unless told
//! --ways A,B        their names in the table, "," and " " as "-": ours-socket
//! --packages A,B    of tests/fixtures/hundred, or `all`
//! --before PROGRAM  the sccache-dock of another build, with its other programs beside it: one way more
//! ```

mod ways;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;
use ways::{Servers, Way};

/// Some of the project, Rust and C.
const PACKAGES: &str = "anyhow,base64,bumpalo,bzip2-sys,data-encoding,hashbrown,indexmap,memchr,rustc-demangle,\
    semver,smallvec,tinyvec,unicode-segmentation,walkdir";
/// Below this a warm build measures nothing.
const LEAST_HITS: f64 = 0.95;

#[expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

#[expect(clippy::print_stdout, reason = "the table is the result")]
pub(crate) fn say(line: &str) {
    println!("{line}");
}

/// Ends the run with a word.
#[expect(clippy::exit, reason = "there are no figures")]
#[expect(clippy::print_stderr, reason = "and this is why")]
pub(crate) fn fail(message: &str) -> ! {
    eprintln!("error: {message}");
    ways::sweep();
    std::process::exit(2)
}

/// What one build took, and found.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Build {
    /// Seconds.
    wall: f64,
    /// Seconds of processor time of cargo, the compilers and sccache on the client's side.
    client_cpu: f64,
    /// Of the server.
    server_cpu: f64,
    hits: u64,
    misses: u64,
}

/// The builds of one way in one round.
#[derive(Debug, Clone, Copy)]
struct Round {
    cold: Build,
    warm: Build,
    elsewhere: Option<Build>,
}

/// The project and the programs that build it.
pub(crate) struct Project {
    folder: PathBuf,
    packages: Vec<String>,
    pub(crate) path: String,
}

impl Project {
    fn new(folder: &Path, packages: Vec<String>) -> Project {
        let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/hundred");
        let project = folder.join("project");
        let copied = Command::new("cp")
            .arg("-r")
            .arg(fixture)
            .arg(&project)
            .status();
        if !copied.is_ok_and(|status| status.success()) {
            fail("cannot copy tests/fixtures/hundred");
        }
        let sysroot = Command::new("rustc").args(["--print", "sysroot"]).output();
        let sysroot = sysroot.map_or_else(
            |cause| fail(&format!("cannot run rustc: {cause}")),
            |output| String::from_utf8_lossy(&output.stdout).trim().to_owned(),
        );
        let tools = ways::sccache();
        let tools = tools.parent().unwrap_or(Path::new("")).display();
        let path = std::env::var("PATH").unwrap_or_default();
        let project = Project {
            folder: project,
            packages,
            path: format!("{tools}:{sysroot}/bin:{path}"),
        };
        let fetched = project.shell(folder, "cargo fetch --locked").status();
        if !fetched.is_ok_and(|status| status.success()) {
            fail("cannot fetch the project's crates; the lines above say why");
        }
        project
    }

    /// A shell of a client with this home, in the project.
    pub(crate) fn shell(&self, home: &Path, script: &str) -> Command {
        let inherited = |name: &str, below: &str| {
            let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(below);
            std::env::var_os(name).map_or_else(home, PathBuf::from)
        };
        let mut command = Command::new("sh");
        command
            .args(["-ec", script])
            .current_dir(&self.folder)
            .stdin(Stdio::null())
            .env_clear()
            .env("PATH", &self.path)
            .env("HOME", home)
            .env("CARGO_HOME", inherited("CARGO_HOME", ".cargo"));
        for (name, value) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("SSL_CERT") {
                command.env(name, value);
            }
        }
        command
    }

    /// A clean build.
    pub(crate) fn build(&self, way: Way, servers: &Servers) -> Build {
        let target = self.folder.join("target");
        let _ = std::fs::remove_dir_all(&target);
        let packages: String = self
            .packages
            .iter()
            .map(|name| format!(" -p {name}"))
            .collect();
        let script = format!(
            "{}\nexec cargo build --locked --offline --quiet{packages}",
            servers.set(way)
        );
        let before = (servers.counts(self, way), servers.cpu(way));
        let began = now();
        let status = self.shell(&servers.home(way), &script).status();
        let wall = began.elapsed().as_secs_f64();
        let after = (servers.counts(self, way), servers.cpu(way));
        if !status.is_ok_and(|status| status.success()) {
            fail(&format!(
                "the build by {} failed; the lines above say why",
                way.name()
            ));
        }
        Build {
            wall,
            client_cpu: after.1.0 - before.1.0,
            server_cpu: after.1.1 - before.1.1,
            hits: after.0.0 - before.0.0,
            misses: after.0.1 - before.0.1,
        }
    }
}

fn round(project: &Project, servers: &Servers, way: Way) -> Round {
    servers.forget(project, way);
    servers.start_client(project, way);
    let cold = project.build(way, servers);
    servers.settle(way);
    let warm = project.build(way, servers);
    let elsewhere = way.has_disk().then(|| {
        servers.forget_client(project, way);
        servers.start_client(project, way);
        project.build(way, servers)
    });
    servers.forget_client(project, way);
    let round = Round {
        cold,
        warm,
        elsewhere,
    };
    for build in [Some(warm), elsewhere].into_iter().flatten() {
        let found = build.hits as f64 / (build.hits + build.misses) as f64;
        if found < LEAST_HITS {
            fail(&format!(
                "{}: a warm build hit {found:.2} only: {round:?}",
                way.name()
            ));
        }
    }
    round
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn report(all: &[(Way, Vec<Round>)]) {
    let disk = all
        .iter()
        .find(|(way, _)| *way == Way::Disk)
        .map(|(_, rounds)| rounds);
    say(
        "\n| build | way | wall s | / local disk | client CPU s | server CPU s | hits |\n\
         | --- | --- | --- | --- | --- | --- | --- |",
    );
    type Of = fn(&Round) -> Option<Build>;
    // Somewhere else local disk knows nothing: the measure is its warm build.
    let builds: [(&str, Of, Of); 3] = [
        ("cold", |it| Some(it.cold), |it| Some(it.cold)),
        ("warm", |it| Some(it.warm), |it| Some(it.warm)),
        ("elsewhere", |it| it.elsewhere, |it| Some(it.warm)),
    ];
    for (name, of, of_disk) in builds {
        for (way, rounds) in all {
            let found: Vec<Build> = rounds.iter().filter_map(of).collect();
            if found.is_empty() {
                continue;
            }
            let ratio = disk.map_or(f64::NAN, |disk| {
                let pairs = found.iter().zip(disk.iter().filter_map(of_disk));
                median(pairs.map(|(own, disk)| own.wall / disk.wall))
            });
            let of = |figure: fn(&Build) -> f64| median(found.iter().map(figure));
            let (hits, misses) = found.iter().fold((0, 0), |sum, build| {
                (sum.0 + build.hits, sum.1 + build.misses)
            });
            say(&format!(
                "| {name} | {} | {:.2} | {ratio:.3} | {:.2} | {:.2} | {hits} of {} |",
                way.name(),
                of(|build| build.wall),
                of(|build| build.client_cpu),
                of(|build| build.server_cpu),
                hits + misses,
            ));
        }
    }
}

fn main() {
    let (mut rounds, mut minutes, mut packages) = (9, 10.0, PACKAGES.to_owned());
    let (mut wanted, mut before) = (String::new(), None);
    let mut arguments = std::env::args()
        .skip(1)
        .filter(|argument| argument != "--bench");
    while let Some(argument) = arguments.next() {
        let value = arguments.next().unwrap_or_default();
        match argument.as_str() {
            "--rounds" => rounds = value.parse().unwrap_or(rounds),
            "--minutes" => minutes = value.parse().unwrap_or(minutes),
            "--ways" => wanted = value,
            "--packages" => packages = value,
            "--before" => before = Some(PathBuf::from(value)),
            _ => fail(&format!(
                "unknown option {argument}; benches/project/main.rs lists them"
            )),
        }
    }
    let began = now();
    let Ok(folder) = tempfile::Builder::new()
        .prefix("sccache-dock-bench-")
        .tempdir()
    else {
        fail("cannot make a folder for temporary files");
    };
    ways::sweep_when_ended(folder.path());
    let packages = if packages == "all" {
        Vec::new()
    } else {
        packages.split(',').map(str::to_owned).collect()
    };
    let project = Project::new(folder.path(), packages);
    let servers = Servers::start(folder.path(), before.as_deref());
    let is_wanted = |way: &Way| {
        wanted.is_empty()
            || wanted
                .split(',')
                .any(|name| name == way.name().replace(", ", "-").replace(' ', "-"))
    };
    let mut all: Vec<(Way, Vec<Round>)> = Way::ALL
        .into_iter()
        .filter(|way| servers.has(*way) && is_wanted(way))
        .map(|way| (way, Vec::new()))
        .collect();
    let mut longest = 0.0_f64;
    for number in 0..rounds {
        let passed = began.elapsed().as_secs_f64();
        if number > 0 && passed + longest > minutes * 60.0 {
            say(&format!("no time for more than {number} rounds"));
            break;
        }
        for turn in 0..all.len() {
            let place = (turn + number) % all.len();
            let (way, found) = &mut all[place];
            let round = round(&project, &servers, *way);
            say(&format!(
                "round {}, {:<24} cold {:>6.2} s  warm {:>6.2} s{}",
                number + 1,
                way.name(),
                round.cold.wall,
                round.warm.wall,
                round.elsewhere.map_or(String::new(), |it| format!(
                    "  elsewhere {:>6.2} s",
                    it.wall
                ))
            ));
            found.push(round);
        }
        longest = longest.max(began.elapsed().as_secs_f64() - passed);
    }
    report(&all);
    say(&format!(
        "\nthe whole run took {:.0} s",
        began.elapsed().as_secs_f64()
    ));
    ways::sweep();
}
