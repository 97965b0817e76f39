//! `status` and `status --watch` on a terminal and elsewhere.

use crate::dock::{Dock, eventually};
use crate::harness::wait_for;
use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

/// A terminal with a program in it.
struct Terminal {
    child: Child,
    keyboard: File,
    shown: Arc<Mutex<Vec<u8>>>,
    reader: Option<JoinHandle<()>>,
}

impl Terminal {
    fn start(columns: u16, rows: u16, command: &mut Command) -> Terminal {
        let master =
            openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let path = ptsname(&master, Vec::new()).unwrap();
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let slave = rustix::fs::open(path, flags, Mode::empty()).unwrap();
        let size = Winsize {
            ws_col: columns,
            ws_row: rows,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(&slave, size).unwrap();
        let end = |slave: &OwnedFd| Stdio::from(slave.try_clone().unwrap());
        let child = command
            .stdin(end(&slave))
            .stdout(end(&slave))
            .stderr(end(&slave))
            .spawn()
            .unwrap();
        let shown = Arc::<Mutex<Vec<u8>>>::default();
        let (mut screen, into) = (File::from(master), Arc::clone(&shown));
        let keyboard = screen.try_clone().unwrap();
        let reader = std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            // It ends with an error when the last program on the terminal has ended.
            while let Ok(count @ 1..) = screen.read(&mut buffer) {
                into.lock().unwrap().extend_from_slice(&buffer[..count]);
            }
        });
        Terminal {
            child,
            keyboard,
            shown,
            reader: Some(reader),
        }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.shown.lock().unwrap()).into_owned()
    }

    fn exit_code(&mut self) -> Option<i32> {
        let ended = eventually("the program ends", || self.child.try_wait().unwrap());
        // Now all that it wrote can be read.
        if let Some(reader) = self.reader.take() {
            reader.join().unwrap();
        }
        ended.code()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.try_wait();
    }
}

/// Our program with the environment of `dock`, on a terminal of its own that Ctrl-C works on.
fn on_terminal(dock: &Dock, columns: u16, more: &[(&str, &str)], args: &[&str]) -> Terminal {
    let mut command = Command::new("setsid");
    command
        .args(["--ctty", "--wait"])
        .arg(crate::dock::program());
    command.args(args).env_clear().envs(dock.env());
    command.env("TERM", "xterm").envs(more.iter().copied());
    Terminal::start(columns, 24, &mut command)
}

/// The lines as a terminal shows them, without what colours and moves.
fn plain_lines(text: &str) -> Vec<String> {
    let mut plain = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('\u{1b}') {
        plain.push_str(before);
        let end = after.find(|c: char| c.is_ascii_alphabetic()).unwrap();
        rest = &after[end + 1..];
    }
    plain.push_str(rest);
    plain
        .lines()
        .map(|line| line.trim_end().to_owned())
        .collect()
}

/// A dock with names that are too long.
fn dock_with_long_names() -> Dock {
    let dock = Dock::start(&[]);
    let listen = dock.address();
    // The second one is 名前.
    let long = "a-namespace-with-a-name-that-no-narrow-terminal-can-show/below";
    for namespace in [long, "%E5%90%8D%E5%89%8D"] {
        let put = ureq::put(format!("http://{listen}/{namespace}/x"));
        let put = put.header("Authorization", format!("Bearer {}", dock.token()));
        assert_eq!(put.send("x").unwrap().status(), 201);
    }
    dock
}

#[test]
fn status_fits_any_terminal_and_colours_it_unless_told_not_to() {
    let dock = dock_with_long_names();
    for columns in [200, 80, 40] {
        let mut terminal = on_terminal(&dock, columns, &[], &["status"]);
        assert_eq!(terminal.exit_code(), Some(0), "{}", terminal.text());
        let text = terminal.text();
        assert!(text.contains("\u{1b}[32mready\u{1b}[0m"), "{text}");
        let lines = plain_lines(&text);
        for line in &lines {
            let width = sccache_dock::base::human::width(line);
            assert!(
                width <= usize::from(columns),
                "{width} of {columns}: {line:?}"
            );
        }
        let cut = lines
            .iter()
            .any(|line| line.contains("a-namespace-wit") && line.contains('…'));
        assert_eq!(cut, columns < 200, "{lines:#?}");
        assert!(lines.iter().any(|line| line.contains("名前")), "{lines:#?}");
    }
    for more in [("NO_COLOR", "1"), ("TERM", "dumb")] {
        let mut terminal = on_terminal(&dock, 80, &[more], &["status"]);
        assert_eq!(terminal.exit_code(), Some(0));
        assert!(
            !terminal.text().contains('\u{1b}'),
            "{more:?}: {}",
            terminal.text()
        );
    }
    let piped = String::from_utf8(dock.command(&["status"]).stdout).unwrap();
    assert!(!piped.contains('\u{1b}') && !piped.contains('…'), "{piped}");
}

#[test]
fn watch_draws_in_place_and_gives_the_terminal_back() {
    let dock = Dock::start(&[]);
    let mut terminal = on_terminal(&dock, 80, &[], &["status", "--watch", "1"]);
    let frames = |terminal: &Terminal| terminal.text().matches("\u{1b}[H").count();
    eventually("three frames", || (frames(&terminal) >= 3).then_some(()));
    terminal.keyboard.write_all(b"\x03").unwrap();
    assert_eq!(terminal.exit_code(), Some(0));
    let text = terminal.text();
    assert!(
        text.starts_with("\u{1b}[?1049h\u{1b}[?25l\u{1b}[H"),
        "{text:?}"
    );
    assert!(text.ends_with("\u{1b}[?25h\u{1b}[?1049l"), "{text:?}");
    assert!(text.contains("gateway"), "{text:?}");
    assert!(
        !text.contains("\u{1b}[2J"),
        "a screen that is wiped flickers"
    );
}

#[test]
fn watch_without_a_terminal_prints_one_after_the_other() {
    let dock = Dock::start(&[]);
    let mut child = Command::new(crate::dock::program())
        .args(["status", "--watch", "1"])
        .env_clear()
        .envs(dock.env())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = child.stdout.take().unwrap();
    let mut text = String::new();
    let mut buffer = [0; 4096];
    while text.matches("SERVICE").count() < 2 {
        let count = output.read(&mut buffer).unwrap();
        assert!(count > 0, "it ended: {text}");
        text += &String::from_utf8_lossy(&buffer[..count]);
    }
    assert!(!text.contains('\u{1b}'), "{text:?}");
    // Whoever reads it goes away, as `head` does.
    drop(output);
    let ended = wait_for("an end without an error", Duration::from_secs(20), || {
        child.try_wait().unwrap()
    });
    assert_eq!(ended.code(), Some(0));
    let wrong = dock.command(&["status", "--watch", "0"]);
    assert_eq!(wrong.status.code(), Some(2));
}
