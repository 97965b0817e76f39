//! What must hold of any bytes: one function a target, each of which panics where it does not.
//!
//! libFuzzer calls them with what it makes up; the ordinary tests call them with every file of `corpus/`.

use sccache_dock::base::secret::Secret;
use sccache_dock::base::terminal::Screen;
use sccache_dock::config::plan;
use sccache_dock::config::plan::Facts;
use sccache_dock::config::settings as all_settings;
use sccache_dock::config::settings::LogFormat;
use sccache_dock::contract::control::Response;
use sccache_dock::contract::gateway_config::{Config, IpcPolicy};
use sccache_dock::contract::tokens as tokens_file;
use sccache_dock::dist_front::wire;
use sccache_dock::gateway::ipc::frame::{self, Request};
use sccache_dock::gateway::zip::ZipCheck;
use sccache_dock::serve;
use sccache_dock::supervisor::control as control_socket;
use sccache_dock::supervisor::control::Request as Asked;
use sccache_dock::supervisor::logs::{Log, Source};
use sccache_dock::supervisor::peers::Peers;
use sccache_dock::supervisor::probe;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::io::{self, ErrorKind, Read, Seek, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// A secret that no message may show, unless the input had it too.
const CANARY: &str = "canary-of-the-mine-0451";
/// The token in requests of `corpus/front`.
const TOKEN: &str = "writer-token-of-16";
/// Longer than every wait of the gateway for a client that has gone.
const PATIENCE: Duration = Duration::from_secs(30);

/// One whole connection to a real gateway, with a real store: all that its ports can be sent. The first byte chooses
/// HTTP or sccache's own protocol, as ever.
pub fn front(data: &[u8]) {
    static SOCKET: OnceLock<PathBuf> = OnceLock::new();
    let socket = SOCKET.get_or_init(start_gateway);
    let answer = talk(socket, data);
    if data.first().is_some_and(u8::is_ascii_alphabetic) && !answer.is_empty() {
        assert!(
            answer.starts_with(b"HTTP/1."),
            "{:?}",
            String::from_utf8_lossy(&answer)
        );
    }
    let health = talk(
        socket,
        b"GET /healthz HTTP/1.1\r\nconnection: close\r\n\r\n",
    );
    assert!(
        health.starts_with(b"HTTP/1.1 200 OK\r\n") && health.ends_with(b"ok\n"),
        "it is not well: {:?}",
        String::from_utf8_lossy(&health)
    );
}

/// Runs in this process, so that its coverage is seen; ends with it.
fn start_gateway() -> PathBuf {
    let panics = std::panic::take_hook();
    // The runtime would catch it, and the connection only be closed.
    std::panic::set_hook(Box::new(move |info| {
        panics(info);
        std::process::abort();
    }));
    let folder = tempfile::tempdir().expect("a folder").keep();
    let config = Config {
        budget_bytes: 4 << 20,
        ipc: IpcPolicy::Local,
        write_tokens: vec![Secret::new(TOKEN)],
        anonymous_read: true,
        ..Config::in_folder(&folder)
    };
    let (file, socket) = (folder.join("gateway.toml"), config.socket.clone());
    std::fs::write(&file, toml::to_string(&config).expect("TOML")).expect("a file");
    std::thread::spawn(move || {
        let ended = serve::serve(&file, false);
        panic!("the gateway has ended: {ended:?}");
    });
    for _ in 0..1000 {
        if UnixStream::connect(&socket).is_ok() {
            return socket;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("the gateway does not listen");
}

/// Sends all of `data` and no more, and reads the answer to its end.
fn talk(socket: &Path, data: &[u8]) -> Vec<u8> {
    let mut stream = UnixStream::connect(socket).expect("it accepts");
    stream.set_read_timeout(Some(PATIENCE)).expect("a time");
    stream.set_write_timeout(Some(PATIENCE)).expect("a time");
    let is_hang = |cause: &io::Error| cause.kind() == ErrorKind::WouldBlock;
    // It may hang up on us in the middle of it.
    if let Err(cause) = stream.write_all(data) {
        assert!(!is_hang(&cause), "it takes nothing more");
    }
    let _ = stream.shutdown(Shutdown::Write);
    let mut answer = Vec::new();
    if let Err(cause) = stream.read_to_end(&mut answer) {
        assert!(!is_hang(&cause), "it neither answers nor hangs up");
    }
    answer
}

/// The head of a frame of sccache's own protocol: its length, then what has arrived of it.
pub fn frames(data: &[u8]) {
    let Some((length, bytes)) = data.split_first_chunk::<4>() else {
        return;
    };
    let length = u32::from_be_bytes(*length);
    let bytes = &bytes[..bytes.len().min(length as usize)];
    match frame::decode(length, bytes) {
        Ok(Some((request, taken))) => {
            assert!(taken <= bytes.len());
            if let Request::Put { length: data, .. } = request {
                assert_eq!(taken as u64 + data, u64::from(length), "{request:?}");
            }
            for arrived in 0..taken {
                let early = frame::decode(length, &bytes[..arrived]);
                assert_eq!(early, Ok(None), "{request:?} after {arrived} of {taken}");
            }
        }
        Ok(None) => assert!((bytes.len() as u64) < u64::from(length)),
        Err(cause) => assert!(!cause.to_string().is_empty()),
    }
}

/// The check of compile results: the first byte says in which pieces the rest arrives.
pub fn zip(data: &[u8]) {
    let Some((piece, body)) = data.split_first() else {
        return;
    };
    let whole = |piece: usize| {
        let mut check = ZipCheck::default();
        body.chunks(piece).for_each(|piece| check.update(piece));
        check.is_whole()
    };
    let at_once = whole(body.len().max(1));
    assert_eq!(
        whole(usize::from(*piece).max(1)),
        at_once,
        "in pieces of {piece}"
    );
    if at_once {
        assert!(body.len() > 22 && body.starts_with(b"PK\x03\x04"));
        assert!(body[body.len() - 22..].starts_with(b"PK\x05\x06"));
    }
}

/// A body of the cluster's protocol: the first byte says whose. What is accepted is so as a whole: one byte more or
/// fewer is refused.
pub fn wire(data: &[u8]) {
    let Some((whose, body)) = data.split_first() else {
        return;
    };
    let judge = |body: &[u8]| match whose % 4 {
        0 => wire::toolchain(body).map(|name| {
            let is_digit = |byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
            assert!(name.len() == 64 && name.bytes().all(is_digit), "{name}");
        }),
        1 => wire::heartbeat(body).map(|heartbeat| assert!(heartbeat.cores > 0)),
        2 => wire::job_state(body).map(|_| ()),
        _ => wire::allocation(body).map(|_| ()),
    };
    if judge(body).is_ok() {
        assert!(judge(&[body, &[0]].concat()).is_err(), "one byte more");
        assert!(judge(&body[..body.len() - 1]).is_err(), "one byte fewer");
    }
}

/// Lines `NAME=VALUE` of the environment and, after a line `---`, the TOML file.
pub fn settings(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let (lines, file) = text.split_once("---\n").unwrap_or((text, ""));
    let pairs = lines.lines().filter_map(|line| line.split_once('='));
    let mut environment: BTreeMap<String, String> = pairs
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    for name in ["SCCACHE_AUTH_TOKEN", "SCCACHE_SERVER_TOKEN"] {
        environment.insert(name.to_owned(), format!("{CANARY}-{name}"));
    }
    let read = |path: &Path| match path.to_str() {
        Some(all_settings::DEFAULT_FILE | "/file") => Ok(file.to_owned()),
        _ => Err(io::Error::from(ErrorKind::NotFound)),
    };
    let mut shown = Vec::new();
    match all_settings::check(&environment, &read) {
        Ok(loaded) => {
            sccache_dock::admin::config::print(&loaded, Screen::of_stdout(), &mut shown)
                .expect("memory takes it");
            let facts = Facts {
                program: "/sccache-dock".into(),
                gateway: "/sccache-dock-gateway".into(),
                listen: loaded.settings.listen,
                auth_token: Secret::new(CANARY),
                path: String::new(),
                dist: None,
            };
            let plan = plan::plan(&loaded.settings, &facts).expect("checked settings make a plan");
            let config = &plan.services[0].files[0].text;
            let config = toml::from_str::<Config>(config);
            assert!(config.is_ok(), "the gateway cannot read it: {config:?}");
        }
        Err(problems) => {
            assert!(!problems.0.is_empty(), "refused without a reason");
            shown.extend(problems.to_string().bytes());
        }
    }
    let shown = String::from_utf8(shown).expect("text");
    assert!(
        text.contains("canary") || !shown.contains(CANARY),
        "{shown}"
    );
}

/// The tokens' file.
pub fn tokens(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let text = text.replace("CANARY", CANARY);
    match tokens_file::parse(&text) {
        Ok(file) => {
            let tokens = file.tokens;
            let names: BTreeSet<&str> = tokens.iter().map(|one| one.name.as_str()).collect();
            assert_eq!(names.len(), tokens.len(), "names are unique");
            for one in &tokens {
                assert!(one.token().is_none_or(|token| token.reveal().len() >= 16));
                let folders = one.namespaces.iter().flatten();
                assert!(folders.into_iter().all(|name| !name.is_empty()));
            }
        }
        Err(faults) => {
            assert!(!faults.0.is_empty(), "refused without a reason");
            let shown = faults.to_string();
            assert!(!shown.contains(CANARY), "{shown}");
        }
    }
}

/// One connection to the control socket: the first byte says in which pieces the rest arrives. Whatever it is, it is
/// understood alike, at most once, and answered, or forgotten when it hangs up.
pub fn control(data: &[u8]) {
    let limit = control_socket::LINE_LIMIT;
    if let Some(Asked::Garbage(text)) = heard(data, limit, Asked::understand) {
        let answer = Response::Error(text);
        assert!(!format!("{answer:?}").contains(CANARY));
    }
}

/// The same, of the socket over which a server says that it is ready.
pub fn notify(data: &[u8]) {
    heard(data, probe::NOTIFICATION_LIMIT, probe::notification);
}

#[expect(clippy::disallowed_methods, reason = "some time to begin with")]
fn heard<T: PartialEq + Debug>(
    data: &[u8],
    limit: usize,
    understand: fn(&[u8]) -> Option<T>,
) -> Option<T> {
    let (piece, words) = data.split_first()?;
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("socket");
    let listener = UnixListener::bind(&path).expect("a socket");
    listener.set_nonblocking(true).expect("a socket");
    let mut peers = Peers::new(listener, limit);
    let now = Instant::now();
    let mut say = |piece: usize| {
        let mut stream = UnixStream::connect(&path).expect("a place in the queue");
        let mut understood = Vec::new();
        for piece in words.chunks(piece) {
            // It may have been understood by now, or have said too much.
            let _ = stream.write_all(piece);
            // Let go of at once, as the loop does: nobody reads on, and the next write would wait for ever.
            let heard = peers.hear(now, understand).into_iter();
            understood.extend(heard.map(|(_, meaning)| meaning));
        }
        drop(stream);
        let heard = peers.hear(now, understand).into_iter();
        understood.extend(heard.map(|(_, meaning)| meaning));
        assert!(peers.connected.is_empty() && peers.deadline().is_none());
        assert!(understood.len() <= 1, "understood more than once");
        understood.pop()
    };
    let at_once = say(words.len().max(1));
    assert_eq!(
        say(usize::from(*piece).max(1)),
        at_once,
        "in pieces of {piece}"
    );
    at_once
}

/// What a service writes: the first byte chooses the format and says in which pieces the rest arrives. Every line comes
/// out as one, with its tag and without the secret.
pub fn logs(data: &[u8]) {
    let Some((first, words)) = data.split_first() else {
        return;
    };
    let (format, piece) = match first % 2 {
        0 => (LogFormat::Text, usize::from(*first) + 1),
        _ => (LogFormat::Json, usize::from(*first)),
    };
    // A fuzzer does not find it by itself.
    let words = replaced(words, b"CANARY", CANARY.as_bytes());
    let mut written = tempfile::tempfile().expect("a file");
    let out = written.try_clone().expect("a file");
    let secrets = [Secret::new(CANARY)];
    let mut log = Log::start(out, format, &secrets, PATIENCE, None).expect("a log");
    let (pipe, mut end) = io::pipe().expect("a pipe");
    let mut source = Source::new("fuzz", pipe);
    for piece in words.chunks(piece) {
        // It is all there, so that the reader does not wait.
        end.write_all(piece).expect("room in the pipe");
        assert!(log.read(&mut source));
    }
    drop(end);
    assert!(!log.read(&mut source), "the end is seen");
    log.close(PATIENCE);
    let mut text = Vec::new();
    written.rewind().expect("a file");
    written.read_to_end(&mut text).expect("a file");
    let shown = String::from_utf8_lossy(&text);
    assert!(!shown.contains(CANARY), "{shown}");
    let ends = words.iter().filter(|byte| **byte == b'\n').count();
    let rest = words.last().is_some_and(|last| *last != b'\n');
    let lines: Vec<&[u8]> = text.split_inclusive(|byte| *byte == b'\n').collect();
    assert_eq!(lines.len(), ends + usize::from(rest), "{shown}");
    for line in lines {
        let tagged = match format {
            LogFormat::Text => line.starts_with(b"fuzz "),
            LogFormat::Json => line.starts_with(b"{") && line.ends_with(b"}\n"),
        };
        assert!(tagged, "{}", String::from_utf8_lossy(line));
    }
}

fn replaced(text: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let (mut out, mut rest) = (Vec::new(), text);
    while let Some(at) = rest.windows(from.len()).position(|window| window == from) {
        out.extend_from_slice(&rest[..at]);
        out.extend_from_slice(to);
        rest = &rest[at + from.len()..];
    }
    out.extend_from_slice(rest);
    out
}
