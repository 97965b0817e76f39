//! How each tool is started with four children of the bench and one pipe to its reader.

use crate::{CHILDREN, ours};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::fmt::Write as _;
use std::io::{PipeReader, PipeWriter, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long a tool may take to start its children.
const START: Duration = Duration::from_secs(20);
/// Between two looks whether it has ended instead.
const LOOK_MILLIS: u16 = 100;
/// The tool that the others are compared with.
pub(crate) const ANCHOR: &str = "s6-log, tagged, one for each child";
pub(crate) const OURS: &str = "sccache-dock";

pub(crate) struct Tool {
    pub(crate) name: &'static str,
    pub(crate) start: fn(&Path, u64) -> Running,
}

/// A tool and its children, ready to write.
pub(crate) struct Running {
    pub(crate) output: PipeReader,
    gates: Vec<UnixStream>,
    /// The processes of the tool, which live until their input ends or they are told to stop.
    tool: Vec<Child>,
    /// Children that are the bench's own.
    children: Vec<Child>,
    held: Vec<PipeWriter>,
}

impl Running {
    pub(crate) fn open_gate(&self) {
        for mut gate in &self.gates {
            gate.write_all(b"g").unwrap();
        }
    }

    pub(crate) fn children_ended(&self) -> bool {
        self.gates.iter().all(|gate| {
            gate.set_nonblocking(true).unwrap();
            matches!((&mut &*gate).read(&mut [0]), Ok(0))
        })
    }

    /// Processor time of all threads of the tool's processes, without their children's.
    pub(crate) fn cpu_seconds(&self) -> f64 {
        let threads = self.tool.iter().flat_map(|process| {
            let tasks = std::fs::read_dir(format!("/proc/{}/task", process.id())).unwrap();
            tasks.filter_map(Result::ok)
        });
        let nanoseconds = threads.filter_map(|task| {
            let text = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
            text.split(' ').next()?.parse::<u64>().ok()
        });
        nanoseconds.sum::<u64>() as f64 / 1e9
    }

    /// Ends everything, and the bench with what the tool has said.
    fn abandon(mut self, tool: &str, trouble: &str) -> ! {
        for process in self.tool.iter_mut().chain(&mut self.children) {
            process.kill().unwrap();
            process.wait().unwrap();
        }
        let mut said = vec![0; 64 << 10];
        let mut output = [PollFd::new(self.output.as_fd(), PollFlags::POLLIN)];
        let has_said = poll(&mut output, PollTimeout::ZERO).unwrap_or(0) > 0;
        let length = if has_said {
            self.output.read(&mut said).unwrap()
        } else {
            0
        };
        panic!(
            "{tool} did not start its {CHILDREN} children: {trouble}; it said:\n{}",
            String::from_utf8_lossy(&said[..length])
        );
    }

    pub(crate) fn stop(mut self) {
        for process in &mut self.tool {
            let pid = nix::unistd::Pid::from_raw(i32::try_from(process.id()).unwrap());
            nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
            drop(process.stdin.take());
        }
        // The children end with their gates, and what reads from them then.
        drop((self.gates, self.held));
        for process in self.tool.iter_mut().chain(&mut self.children) {
            process.wait().unwrap();
        }
    }
}

/// Every tool that can run here, and the names of those that cannot.
pub(crate) fn installed(dir: &Path) -> (Vec<Tool>, Vec<&'static str>) {
    let mut tools = vec![
        Tool {
            name: "children alone",
            start: alone,
        },
        Tool {
            name: ANCHOR,
            start: s6,
        },
        Tool {
            name: "supervisord, untagged",
            start: supervisord,
        },
        Tool {
            name: "bare C multiplexer, tagged",
            start: mux,
        },
        Tool {
            name: OURS,
            start: |dir, lines| ours("text", dir, lines),
        },
        Tool {
            name: "sccache-dock, json",
            start: |dir, lines| ours("json", dir, lines),
        },
    ];
    let mut missing = Vec::new();
    tools.retain(|tool| {
        let usable = match tool.name {
            ANCHOR => on_path("s6-log"),
            "supervisord, untagged" => on_path("supervisord"),
            "bare C multiplexer, tagged" => compile_mux(dir),
            _ => true,
        };
        if !usable {
            missing.push(tool.name);
        }
        usable
    });
    (tools, missing)
}

fn on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}

fn compile_mux(dir: &Path) -> bool {
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/logs/mux.c");
    let status = Command::new("cc")
        .args(["-O2", "-Wall", "-Wextra", "-o"])
        .arg(dir.join("mux"))
        .arg(source)
        .status();
    status.is_ok_and(|status| status.success())
}

fn this_program() -> PathBuf {
    std::env::current_exe().unwrap()
}

fn writer(gate: &Gate, lines: u64) -> Vec<String> {
    let program = this_program().display().to_string();
    vec![
        program,
        "writer".into(),
        gate.path.clone(),
        lines.to_string(),
    ]
}

/// Where the children report that they are ready to write.
struct Gate {
    tool: &'static str,
    listener: UnixListener,
    path: String,
}

impl Gate {
    fn new(dir: &Path, tool: &'static str) -> Gate {
        let path = dir.join("gate");
        let _ = std::fs::remove_file(&path);
        Gate {
            tool,
            listener: UnixListener::bind(&path).unwrap(),
            path: path.display().to_string(),
        }
    }

    fn wait(
        self,
        output: PipeReader,
        tool: Vec<Child>,
        children: Vec<Child>,
        held: Vec<PipeWriter>,
    ) -> Running {
        let mut running = Running {
            output,
            gates: Vec::new(),
            tool,
            children,
            held,
        };
        let until = Instant::now() + START;
        while running.gates.len() < CHILDREN {
            let mut listener = [PollFd::new(self.listener.as_fd(), PollFlags::POLLIN)];
            if poll(&mut listener, PollTimeout::from(LOOK_MILLIS)).unwrap_or(0) > 0 {
                running.gates.push(self.listener.accept().unwrap().0);
                continue;
            }
            let ended = running
                .tool
                .iter_mut()
                .find_map(|it| it.try_wait().unwrap());
            let trouble = match ended {
                Some(status) => format!("it ended with {status}"),
                None if Instant::now() > until => format!("it took longer than {START:?}"),
                None => continue,
            };
            running.abandon(self.tool, &trouble);
        }
        running
    }
}

fn own_child(gate: &Gate, lines: u64, number: usize, out: PipeWriter) -> Child {
    let words = writer(gate, lines);
    Command::new(&words[0])
        .args(&words[1..])
        .arg(number.to_string())
        .stdout(out)
        .spawn()
        .unwrap()
}

fn alone(dir: &Path, lines: u64) -> Running {
    let gate = Gate::new(dir, "no tool");
    let (output, input) = std::io::pipe().unwrap();
    let child = |number| own_child(&gate, lines, number, input.try_clone().unwrap());
    let children = (0..CHILDREN).map(child).collect();
    gate.wait(output, Vec::new(), children, Vec::new())
}

fn s6(dir: &Path, lines: u64) -> Running {
    let gate = Gate::new(dir, "s6-log");
    let (output, input) = std::io::pipe().unwrap();
    let (mut tool, mut children, mut held) = (Vec::new(), Vec::new(), Vec::new());
    for number in 0..CHILDREN {
        let (read, write) = std::io::pipe().unwrap();
        let mut log = Command::new("s6-log");
        log.arg(format!("pchild{number}   :"))
            .arg("1")
            .stdin(read)
            .stdout(input.try_clone().unwrap());
        tool.push(log.spawn().unwrap());
        children.push(own_child(&gate, lines, number, write.try_clone().unwrap()));
        held.push(write);
    }
    gate.wait(output, tool, children, held)
}

fn supervisord(dir: &Path, lines: u64) -> Running {
    let gate = Gate::new(dir, "supervisord");
    let mut text = format!(
        "[supervisord]\nnodaemon=true\nsilent=true\nlogfile=/dev/null\nlogfile_maxbytes=0\npidfile={}\n",
        dir.join("supervisord.pid").display()
    );
    for number in 0..CHILDREN {
        let command = writer(&gate, lines).join(" ");
        let _ = write!(
            text,
            "[program:child{number}]\ncommand={command} {number}\nautorestart=false\nstartsecs=0\n\
             stdout_logfile=/dev/fd/1\nstdout_logfile_maxbytes=0\n"
        );
    }
    let path = dir.join("supervisord.conf");
    std::fs::write(&path, text).unwrap();
    let mut command = Command::new("supervisord");
    command.arg("-c").arg(path);
    one_process(gate, command)
}

fn mux(dir: &Path, lines: u64) -> Running {
    let gate = Gate::new(dir, "the multiplexer");
    let mut command = Command::new(dir.join("mux"));
    command.arg(CHILDREN.to_string()).args(writer(&gate, lines));
    one_process(gate, command)
}

fn ours(format: &str, dir: &Path, lines: u64) -> Running {
    let gate = Gate::new(dir, OURS);
    let command = ours::command(format, &writer(&gate, lines), dir);
    one_process(gate, command)
}

/// A tool that starts the children itself.
fn one_process(gate: Gate, mut command: Command) -> Running {
    let (output, input) = std::io::pipe().unwrap();
    let tool = command.stdin(Stdio::piped()).stdout(input).spawn().unwrap();
    // The command holds the other end of the pipe.
    drop(command);
    gate.wait(output, vec![tool], Vec::new(), Vec::new())
}
