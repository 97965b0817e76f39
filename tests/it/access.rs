//! Who may use the cache, by which token.

mod strangers;
mod tls;

pub(crate) use self::tls::{Authority, Identity, curl_over_tls, sccache_over_tls, with_tls};

use crate::dock::Dock;
use crate::harness::{
    Gateway, Process, WRITER, clean, command, config, sccache_bin, skip, wait_for,
};
use rcgen::KeyPair;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const OLD: &str = "old-token-0123456789";
const NEW: &str = "new-token-0123456789";

/// What a condition may take on a busy machine.
const CEILING: Duration = Duration::from_secs(30);

fn token(name: &str, token: &str, rest: &str) -> String {
    format!("[[token]]\nname = \"{name}\"\ntoken = \"{token}\"\n{rest}\n")
}

/// Reads one head, byte by byte, and gives its status; none when the connection is cut instead.
fn head_or_cut(stream: &mut impl Read) -> Option<u16> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).ok()?;
        head.push(byte[0]);
    }
    let text = String::from_utf8(head).unwrap();
    text.split(' ').nth(1).unwrap().parse().ok()
}

fn head(stream: &mut impl Read) -> u16 {
    head_or_cut(stream).expect("an answer")
}

/// Asks on a connection that stays open, for something without a body.
fn ask(stream: &mut (impl Read + Write), token: &str) -> u16 {
    let request = format!("HEAD /.sccache_check HTTP/1.1\r\nAuthorization: Bearer {token}\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    head(stream)
}

/// The same by whatever is not a token.
pub(crate) fn ask_without_token(stream: &mut (impl Read + Write)) -> u16 {
    stream
        .write_all(b"HEAD /.sccache_check HTTP/1.1\r\n\r\n")
        .unwrap();
    head(stream)
}

/// Writes `text` to a new file that then takes the place of `path`.
fn replace(path: &Path, text: &str) {
    let new = path.with_extension("new");
    std::fs::write(&new, text).unwrap();
    std::fs::rename(&new, path).unwrap();
}

pub(crate) fn with_tokens(folder: &Path, text: &str) -> (PathBuf, Gateway) {
    let file = folder.join("tokens.toml");
    std::fs::write(&file, text).unwrap();
    let named = file.clone();
    let gateway = Gateway::start_with(|config| config.tokens_file = Some(named));
    (file, gateway)
}

/// A connection to `to` that comes from another address than loopback.
pub(crate) fn from_outside(to: SocketAddr) -> TcpStream {
    use rustix::net::{AddressFamily, SocketType, bind, connect, socket};
    let probe = UdpSocket::bind("0.0.0.0:0").unwrap();
    probe
        .connect("192.0.2.77:9")
        .expect("this machine has a network");
    let own: IpAddr = probe.local_addr().unwrap().ip();
    let outside = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    bind(&outside, &SocketAddr::new(own, 0)).unwrap();
    connect(&outside, &to).unwrap();
    let stream = TcpStream::from(outside);
    stream.set_read_timeout(Some(CEILING)).unwrap();
    stream
}

#[test]
fn token_is_rotated_without_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let write = "access = \"write\"";
    let (file, gateway) = with_tokens(folder.path(), &token("ci-1", OLD, write));
    let code = |token| gateway.request_as(Some(token), "PUT", "/cas/x", b"x").code;
    assert_eq!((code(OLD), code(NEW), code(WRITER)), (201, 401, 204));
    let both = token("ci-1", OLD, write) + &token("ci-2", NEW, write);
    replace(&file, &both);
    wait_for("the new token", CEILING, || {
        (code(NEW) == 204).then_some(())
    });
    assert_eq!(code(OLD), 204, "both are valid at once");
    std::fs::write(&file, format!("{both}\ntoken = {NEW}")).unwrap();
    let fault = || gateway.status().tokens.fault;
    let said = wait_for("the fault to be told", CEILING, fault);
    assert!(
        said.contains("cannot use the tokens in") && said.contains("line "),
        "{said}"
    );
    assert_eq!(
        (code(OLD), code(NEW)),
        (204, 204),
        "a fault changes nothing"
    );
    std::fs::write(&file, token("ci-2", NEW, write)).unwrap();
    wait_for("the old token's end", CEILING, || {
        (code(OLD) == 401).then_some(())
    });
    assert_eq!((code(NEW), fault()), (204, None));
    let log = gateway.process.log();
    assert!(
        !log.contains(OLD) && !log.contains(NEW),
        "a token is in the log"
    );
}

#[test]
fn token_that_stays_is_taken_at_every_moment_while_others_change() {
    let folder = tempfile::tempdir().unwrap();
    let write = "access = \"write\"";
    let stays = token("stays", NEW, write);
    let (file, gateway) = with_tokens(folder.path(), &stays);
    let code = |token, path: &str| gateway.request_as(Some(token), "PUT", path, b"x").code;
    wait_for("the token", CEILING, || {
        (code(NEW, "/cas/first") == 201).then_some(())
    });
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..4)
            .map(|client| {
                let code = &code;
                scope.spawn(move || {
                    for number in 0..150 {
                        assert_eq!(code(NEW, &format!("/cas/{client}-{number}")), 201);
                    }
                })
            })
            .collect();
        let mut turns = 0;
        while clients.iter().any(|client| !client.is_finished()) {
            turns += 1;
            let comes = token(&format!("comes-{turns}"), OLD, write);
            replace(&file, &(comes + &stays));
            wait_for("the one that comes", CEILING, || {
                matches!(code(OLD, "/cas/old"), 201 | 204).then_some(())
            });
            replace(&file, &stays);
            wait_for("its end", CEILING, || {
                matches!(code(OLD, "/cas/old"), 401 | 429).then_some(())
            });
        }
        assert!(turns > 1, "nothing changed meanwhile");
    });
    assert_eq!(gateway.status().tokens.by_name["stays"].requests, 601);
}

#[test]
fn faulty_tokens_at_the_start_leave_the_others_in_force() {
    let folder = tempfile::tempdir().unwrap();
    let (file, gateway) = with_tokens(folder.path(), "token = 1");
    assert_eq!(gateway.request("PUT", "/cas/x", b"x").code, 201);
    assert!(gateway.status().tokens.fault.is_some());
    replace(&file, &token("ci", NEW, "access = \"read\""));
    let code = || gateway.request_as(Some(NEW), "GET", "/cas/x", b"").code;
    wait_for("the mended file", CEILING, || (code() == 200).then_some(()));
}

#[test]
fn uses_of_each_token_are_counted() {
    let folder = tempfile::tempdir().unwrap();
    let (_, gateway) = with_tokens(folder.path(), &token("laptop", NEW, "access = \"read\""));
    gateway.request("PUT", "/cas/x", b"12345");
    for (method, path) in [("GET", "/cas/x"), ("GET", "/cas/y"), ("PUT", "/cas/y")] {
        gateway.request_as(Some(NEW), method, path, b"");
    }
    let text = gateway.request("GET", "/metrics", b"").text();
    for line in [
        "sccache_dock_token_requests_total{token=\"laptop\"} 3",
        "sccache_dock_token_hits_total{token=\"laptop\"} 1",
        "sccache_dock_token_misses_total{token=\"laptop\"} 1",
        "sccache_dock_token_refusals_total{token=\"laptop\"} 1",
        "sccache_dock_token_sent_bytes_total{token=\"laptop\"} 5",
        "sccache_dock_token_received_bytes_total{token=\"auth\"} 5",
        "sccache_dock_token_requests_total{token=\"read\"} 0",
    ] {
        assert!(
            text.lines().any(|found| found == line),
            "{line}\nis not in\n{text}"
        );
    }
    assert_eq!(gateway.status().tokens.by_name["laptop"].hits, 1);
}

#[test]
fn token_of_a_namespace_is_refused_elsewhere() {
    let folder = tempfile::tempdir().unwrap();
    let rest = "access = \"write\"\nnamespaces = [\"team\"]";
    let (_, gateway) = with_tokens(folder.path(), &token("team", NEW, rest));
    assert_eq!(gateway.request("PUT", "/cas/x", b"x").code, 201);
    for (method, path, body, code) in [
        ("PUT", "/team/x", "x", 201),
        ("GET", "/team/x", "", 200),
        ("GET", "//team/./x", "", 400),
        ("PUT", "/team/.sccache_check", "x", 201),
        ("GET", "/cas/x", "", 403),
        ("HEAD", "/cas/x", "", 403),
        ("PUT", "/cas/x", "x", 403),
        ("DELETE", "/cas/x", "", 403),
        ("PROPFIND", "/cas/x", "", 403),
        ("PUT", "/.sccache_check", "x", 403),
        ("POST", "/api/purge", "{}", 403),
        ("POST", "/api/purge", "{\"namespace\":\"cas\"}", 403),
        ("POST", "/api/purge", "{\"namespace\":\"team\"}", 200),
        ("GET", "/team/x", "", 404),
    ] {
        let answer = gateway.request_as(Some(NEW), method, path, body.as_bytes());
        assert_eq!(
            answer.code,
            code,
            "{method} {path} {body}: {}",
            answer.text()
        );
    }
    assert_eq!(gateway.request("GET", "/cas/x", b"").code, 200);
    let line = gateway.process.wait_for_line("reason=namespace");
    assert!(
        line.contains("token \"team\" may not use the namespace"),
        "{line}"
    );
}

#[test]
fn reload_takes_new_tokens_and_refuses_faulty_ones() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tokens.toml");
    std::fs::write(
        &file,
        token("ci", OLD, "access = \"read\"\nnamespaces = [\"team\"]"),
    )
    .unwrap();
    let dock = Dock::start(&[("SCCACHE_TOKENS_FILE", file.to_str().unwrap())]);
    let gateway = dock.pid_of("gateway");
    let printed = |args: &[&str]| {
        let output = dock.command(&[&["client-env", "--token-name"], args].concat());
        String::from_utf8([output.stdout, output.stderr].concat()).unwrap()
    };
    assert!(printed(&["ci", "--namespace", "team"]).contains(OLD));
    assert!(printed(&["ci"]).contains("hint: add --namespace team"));
    assert!(printed(&["gone"]).contains("hint: the file has: ci"));
    assert!(printed(&["auth"]).contains(&dock.token()));
    replace(&file, "token = 1");
    let output = dock.command(&["reload"]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(said.contains("cannot use the tokens in"), "{said}");
    replace(&file, &token("ci-2", NEW, "access = \"read\""));
    assert!(dock.command(&["reload"]).status.success());
    dock.wait_log("named tokens in force: ci-2");
    assert_eq!(dock.pid_of("gateway"), gateway, "nothing was restarted");
    assert!(!dock.log().contains(NEW));
}

#[test]
fn wrong_files_are_told_before_anything_starts() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tokens.toml");
    std::fs::write(&file, "[[token]]\nname = \"a\"").unwrap();
    let file = file.to_str().unwrap();
    let authority = Authority::new();
    let tls = authority.certificate(folder.path(), "localhost");
    let cert = tls.cert.to_str().unwrap();
    let other = folder.path().join("other.pem");
    std::fs::write(&other, KeyPair::generate().unwrap().serialize_pem()).unwrap();
    let other = other.to_str().unwrap();
    for (env, word) in [
        (
            &[("SCCACHE_TOKENS_FILE", file)][..],
            "has no \"token\" of at least",
        ),
        (
            &[("SCCACHE_TLS_CERT", cert), ("SCCACHE_TLS_KEY", other)],
            "is not the key of",
        ),
        (
            &[("SCCACHE_TLS_CERT", cert), ("SCCACHE_TLS_KEY", "/gone")],
            "cannot read \"/gone\"",
        ),
    ] {
        let output = clean(crate::dock::program())
            .arg("run")
            .env("SCCACHE_DIR", folder.path())
            .env("SCCACHE_LISTEN", "127.0.0.1:0")
            .env("SCCACHE_BINARY", sccache_bin())
            .envs(env.iter().copied())
            .output()
            .unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains(word) && said.contains("hint: "), "{said}");
    }
}

#[test]
fn file_that_the_gateway_may_not_read_ends_it_with_a_word() {
    if !nix::unistd::geteuid().is_root() {
        return skip("only root can become another user");
    }
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(folder.path());
    let file = folder.path().join("tokens.toml");
    std::fs::write(&file, "").unwrap();
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).unwrap();
    std::os::unix::fs::chown(&file, Some(12345), None).unwrap();
    config.tokens_file = Some(file);
    let gateway = command(folder.path(), &config);
    // Root that has to ask for leave, as every other user has.
    let mut humble = Command::new("setpriv");
    humble.arg("--bounding-set=-dac_override,-dac_read_search");
    humble.arg(gateway.get_program()).args(gateway.get_args());
    let mut process = Process::start(&mut humble);
    assert_eq!(process.exit().code(), Some(2));
    process.wait_for_line("hint: the gateway runs as uid 0");
}
