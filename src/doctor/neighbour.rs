//! Whose daemon answers at this client's address: one of another user, or of another container, compiles other files with
//! other rights.

use super::environment::value;
use super::{Check, Environment};
use crate::client::Lane;
use nix::errno::Errno;
use nix::sys::socket::{getsockopt, sockopt};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixStream;

const HINT: &str = "eval what sccache-dock client-env prints in this shell, which gives the daemon an address of its own, or \
                    export SCCACHE_SERVER_UDS with a path in a folder that only this user and this container have";

/// Nothing where no daemon runs, or where it is this client's own.
pub(super) fn judge(environment: &Environment, lane: Option<Lane>) -> Option<Check> {
    if matches!(lane, Some(Lane::Ipc | Lane::Socket)) {
        return None;
    }
    if let Some(path) = value(environment, "SCCACHE_SERVER_UDS") {
        let found = behind(path)?;
        return Some(Check::fail("SCCACHE_SERVER_UDS", found, HINT));
    }
    let name = "SCCACHE_SERVER_PORT";
    let port = value(environment, name)?.parse().ok()?;
    let table = fs::read_to_string("/proc/net/tcp").ok()?;
    let user = listener(&table, port).filter(|user| *user != nix::unistd::geteuid().as_raw())?;
    let found = format!("the daemon at port {port} is that of user {user}");
    Some(Check::fail(name, found, HINT))
}

/// Whose daemon listens at this socket, if it is not ours.
fn behind(path: &str) -> Option<String> {
    let stream = match UnixStream::connect(path) {
        Ok(stream) => stream,
        Err(cause) if cause.kind() == io::ErrorKind::PermissionDenied => {
            let user = fs::metadata(path).map(|it| format!("user {}", it.uid()));
            let user = user.unwrap_or_else(|_| "another user".to_owned());
            return Some(format!("{path} is the socket of {user}"));
        }
        Err(_) => return None,
    };
    let peer = getsockopt(&stream, sockopt::PeerCredentials).ok()?;
    if peer.uid() != nix::unistd::geteuid().as_raw() {
        return Some(format!(
            "the daemon at {path} is that of user {}",
            peer.uid()
        ));
    }
    // The kernel gives no number for a process that this container does not see.
    let sees = |process: &str| fs::read_link(format!("/proc/{process}/ns/mnt"));
    let is_other = match (peer.pid(), sees("self"), sees(&peer.pid().to_string())) {
        (0, ..) => true,
        (_, Ok(ours), Ok(theirs)) => ours != theirs,
        (_, _, Err(cause)) => cause.raw_os_error() == Some(Errno::ENOENT as i32),
        (_, Err(_), _) => false,
    };
    is_other
        .then(|| format!("the daemon at {path} runs in another container, and sees other files"))
}

/// The user who listens at this port of this machine, from the kernel's table.
fn listener(table: &str, port: u16) -> Option<u32> {
    const LISTENS: &str = "0A";
    let mut lines = table.lines().skip(1).map(|line| line.split_whitespace());
    lines.find_map(|mut words| {
        let (_, local, _, state) = (words.next()?, words.next()?, words.next()?, words.next()?);
        let (_, digits) = local.split_once(':')?;
        let is_it = state == LISTENS && u16::from_str_radix(digits, 16) == Ok(port);
        is_it.then(|| words.nth(3)?.parse().ok()).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;
    use std::os::unix::net::UnixListener;
    use std::process::Command;

    #[test]
    fn own_daemon_has_no_finding_and_the_listener_of_a_port_is_found() {
        let port = TcpListener::bind("127.0.0.1:0").unwrap();
        let number = port.local_addr().unwrap().port();
        let table = fs::read_to_string("/proc/net/tcp").unwrap();
        let us = nix::unistd::geteuid().as_raw();
        assert_eq!(listener(&table, number), Some(us));
        let line = table
            .lines()
            .find(|line| line.contains(&format!(":{number:04X} 00000000:0000 0A")));
        let theirs = line.unwrap().replacen(&format!(" {us} "), " 4711 ", 2);
        assert_eq!(listener(&format!("head\n{theirs}"), number), Some(4711));

        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let _own = UnixListener::bind(&path).unwrap();
        assert_eq!(behind(path.to_str().unwrap()), None);
        assert_eq!(behind("/nonexistent"), None);
    }

    #[test]
    fn daemon_that_sees_other_files_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let script = "import socket,sys,time\ns=socket.socket(socket.AF_UNIX)\ns.bind(sys.argv[1])\ns.listen()\n\
                      print('', flush=True)\ntime.sleep(60)";
        let mut elsewhere = Command::new("unshare")
            .args([
                "--user",
                "--map-current-user",
                "--mount",
                "--kill-child",
                "python3",
                "-c",
                script,
            ])
            .arg(&path)
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let out = elsewhere.stdout.take().unwrap();
        io::BufRead::read_line(&mut io::BufReader::new(out), &mut line).unwrap();
        let found = behind(path.to_str().unwrap());
        elsewhere.kill().unwrap();
        let _ = elsewhere.try_wait();
        assert!(
            found
                .as_deref()
                .is_some_and(|it| it.contains("another container")),
            "{found:?}"
        );
    }
}
