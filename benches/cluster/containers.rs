//! The image, the network and the containers; all of them go with the run, after Ctrl-C too.

use crate::{Options, now, say};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// Made by images/bootstrap.sh, which trusts what this machine trusts.
const BASE: &str = "sccache-dock-base:debian";
const IMAGE: &str = "sccache-dock-bench-cluster:1";
/// What all containers run: the compiler and the peers. Sccache and sccache-dock are mounted.
const DOCKERFILE: &str = "FROM sccache-dock-base:debian\n\
    RUN apt-get update && \
        DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends g++ icecc distcc && \
        rm -rf /var/lib/apt/lists/* && install -d -m 1777 /var/sccache\n\
    VOLUME /var/sccache\n";
/// Value: the process that made it.
const LABEL: &str = "sccache-dock-bench-cluster";
/// No container and no answer takes longer.
const PATIENCE: Duration = Duration::from_secs(120);

/// Ends the run with a word, before anything was started.
#[expect(
    clippy::exit,
    reason = "nothing is there yet that would have to be removed"
)]
#[expect(clippy::print_stderr, reason = "why there are no figures")]
pub(crate) fn fail(message: &str) -> ! {
    eprintln!("error: {message}");
    std::process::exit(2)
}

/// All that Docker has of this run.
pub(crate) struct Site {
    prefix: String,
    /// The folder of another build's programs.
    before: Option<PathBuf>,
}

fn docker(arguments: &[&str]) -> Result<String, String> {
    let output = Command::new("docker")
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .map_err(|cause| format!("cannot run docker: {cause}"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().to_owned();
    if output.status.success() {
        return Ok(text(&output.stdout));
    }
    Err(format!(
        "docker {}: {}\n{}",
        arguments.join(" "),
        text(&output.stdout),
        text(&output.stderr)
    ))
}

fn tool(name: &str) -> PathBuf {
    let home = || {
        PathBuf::from(std::env::var_os("HOME").unwrap_or_default())
            .join(".cache/sccache-dock/tools")
    };
    let tools = std::env::var_os("SCCACHE_DOCK_TOOLS").map_or_else(home, PathBuf::from);
    tools.join("sccache-0.19.0/bin").join(name)
}

/// The programs that are mounted into the containers, ours from a folder.
fn programs(folder: &Path) -> Vec<PathBuf> {
    let ours = ["sccache-dock", "sccache-dock-run", "sccache-dock-gateway"];
    let programs: Vec<PathBuf> = ours
        .map(|name| folder.join(name))
        .into_iter()
        .chain([tool("sccache"), tool("sccache-dist")])
        .collect();
    for program in &programs {
        if !program.exists() {
            fail(&format!(
                "there is no {}: scripts/test makes it",
                program.display()
            ));
        }
    }
    programs
}

impl Site {
    /// Makes the image if need be, and the network. Removes what killed runs left.
    pub(crate) fn open(options: &Options) -> Site {
        if let Err(cause) = docker(&["version"]) {
            fail(&format!("this bench runs containers: {cause}"));
        }
        sweep(|process| !Path::new("/proc").join(process).exists());
        make_image();
        let site = Site {
            prefix: format!("sdbc-{}-", std::process::id()),
            before: options.before.clone(),
        };
        clean_up_when_ended();
        site.ok(&[
            "network",
            "create",
            "--label",
            &site.label(),
            &site.name("net"),
        ]);
        site.run("client", options.client_cpus, &[], &["sleep", "infinity"]);
        site
    }

    fn label(&self) -> String {
        format!("{LABEL}={}", std::process::id())
    }

    pub(crate) fn name(&self, what: &str) -> String {
        format!("{}{what}", self.prefix)
    }

    /// A docker command that must succeed.
    #[track_caller]
    fn ok(&self, arguments: &[&str]) -> String {
        docker(arguments).unwrap_or_else(|cause| panic!("{cause}"))
    }

    /// Starts a container with so many processors.
    pub(crate) fn run(&self, what: &str, cpus: f64, flags: &[&str], command: &[&str]) {
        let (name, label, cpus) = (self.name(what), self.label(), format!("--cpus={cpus}"));
        let network = format!("--network={}", self.name("net"));
        let ours = Path::new(env!("CARGO_BIN_EXE_sccache-dock"))
            .parent()
            .unwrap_or(Path::new("/"));
        let before = self.before.as_deref().unwrap_or(ours);
        let used = if what.starts_with("before") {
            before
        } else {
            ours
        };
        let mut mounts: Vec<String> = programs(used)
            .iter()
            .map(|program| {
                let name = program.file_name().unwrap_or_default().to_string_lossy();
                format!("--volume={}:/usr/local/bin/{name}:ro", program.display())
            })
            .collect();
        mounts.push(format!("--volume={}:/ours:ro", ours.display()));
        mounts.push(format!("--volume={}:/before:ro", before.display()));
        let mut arguments = vec![
            "run", "--detach", "--name", &name, "--label", &label, &cpus, &network,
        ];
        arguments.extend(mounts.iter().map(String::as_str));
        arguments.extend(flags);
        arguments.push(IMAGE);
        arguments.extend(command);
        self.ok(&arguments);
    }

    /// What a shell in the container prints; `None` when it fails.
    pub(crate) fn try_shell(&self, what: &str, script: &str) -> Result<String, String> {
        docker(&["exec", &self.name(what), "sh", "-ec", script])
    }

    #[track_caller]
    pub(crate) fn shell(&self, what: &str, script: &str) -> String {
        self.try_shell(what, script)
            .unwrap_or_else(|cause| panic!("{cause}\n{}", self.logs(what)))
    }

    /// The end of what its first process has said.
    fn logs(&self, what: &str) -> String {
        let output = Command::new("docker")
            .args(["logs", "--tail", "40", &self.name(what)])
            .output();
        output.map_or_else(
            |cause| cause.to_string(),
            |output| String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned(),
        )
    }

    /// Writes a file in the container.
    pub(crate) fn write(&self, what: &str, path: &str, text: &str) {
        let name = self.name(what);
        let mut child = Command::new("docker")
            .args(["exec", "--interactive", &name, "sh", "-ec"])
            .arg(format!("mkdir -p \"$(dirname {path})\"; cat >{path}"))
            .stdin(Stdio::piped())
            .spawn()
            .unwrap_or_else(|cause| panic!("cannot run docker: {cause}"));
        if let Some(mut stdin) = child.stdin.take() {
            let written = stdin.write_all(text.as_bytes());
            assert!(written.is_ok(), "{path}: {written:?}");
        }
        let ended = child.wait_with_output();
        assert!(
            ended.is_ok_and(|ended| ended.status.success()),
            "cannot write {path}"
        );
    }

    /// Gives containers another share of the processors.
    pub(crate) fn set_cpus(&self, what: &[String], cpus: f64) {
        let (names, cpus): (Vec<String>, _) = (
            what.iter().map(|what| self.name(what)).collect(),
            format!("--cpus={cpus}"),
        );
        let mut arguments = vec!["update", &cpus];
        arguments.extend(names.iter().map(String::as_str));
        self.ok(&arguments);
    }

    /// Waits until the script succeeds in the container.
    #[track_caller]
    pub(crate) fn wait(&self, what: &str, for_what: &str, script: &str) {
        let began = now();
        while let Err(cause) = self.try_shell(what, script) {
            if began.elapsed() > PATIENCE {
                panic!("{for_what}: {cause}\n{}", self.logs(what));
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        sweep(is_ours);
    }
}

fn is_ours(process: &str) -> bool {
    process == std::process::id().to_string()
}

/// Removes containers, with their volumes, and networks of processes that `which` chooses.
fn sweep(which: impl Fn(&str) -> bool) {
    let filter = format!("label={LABEL}");
    let format = format!("{{{{.ID}}}} {{{{.Label {LABEL:?}}}}}");
    let listed = |kind: &[&str]| {
        let arguments = [
            kind,
            &["--no-trunc", "--filter", &filter, "--format", &format],
        ]
        .concat();
        docker(&arguments).unwrap_or_default()
    };
    let remove = |listed: String, how: &[&str]| {
        for line in listed.lines() {
            if let Some((id, process)) = line.split_once(' ')
                && which(process)
            {
                let _ = docker(&[how, &[id]].concat());
            }
        }
    };
    remove(listed(&["ps", "--all"]), &["rm", "--force", "--volumes"]);
    remove(listed(&["network", "ls"]), &["network", "rm"]);
}

/// At a signal: removes everything, and ends.
fn clean_up_when_ended() {
    let Ok(mut signals) = Signals::new([SIGINT, SIGTERM, SIGHUP]) else {
        fail("cannot catch signals");
    };
    #[expect(
        clippy::exit,
        reason = "the other threads wait for containers that are gone"
    )]
    std::thread::spawn(move || {
        if let Some(signal) = signals.forever().next() {
            sweep(is_ours);
            // A container that Docker was just asked for.
            std::thread::sleep(Duration::from_secs(1));
            sweep(is_ours);
            std::process::exit(128 + signal);
        }
    });
}

fn make_image() {
    let has = |image: &str| docker(&["image", "inspect", image]).is_ok();
    if has(IMAGE) {
        return;
    }
    if !has(BASE) {
        say(&format!("making {BASE}"));
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("images/bootstrap.sh");
        let made = Command::new(script).arg("debian").status();
        if !made.is_ok_and(|status| status.success()) {
            fail("there is no base image; the lines above say why");
        }
    }
    say(&format!(
        "making {IMAGE}: {BASE} with g++, icecc and distcc"
    ));
    let child = Command::new("docker")
        .args(["build", "--quiet", "--tag", IMAGE, "-"])
        .stdin(Stdio::piped())
        .spawn();
    let built = child.and_then(|mut child| {
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(DOCKERFILE.as_bytes())?;
        }
        child.wait_with_output()
    });
    if !built.is_ok_and(|built| built.status.success()) {
        fail("there is no image with the peers; the lines above say why");
    }
}
