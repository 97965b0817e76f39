//! `build --prefetch`: a gateway of the build's own stands in for one that is far away.

use super::{Client, checkout, read};
use crate::gateway::zip;
use crate::harness::{Answer, Gateway, Outcome, READER, WRITER, wait_for};
use nix::sys::signal::{Signal, killpg};
use sccache_dock::base::secret::Secret;
use sccache_dock::contract::gateway_config::{Ahead, Upstream};
use serde_json::Value;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::sync::mpsc;
use std::time::Duration;

const COMPILES: u64 = 104;

fn sh(client: &Client, options: &str, command: &str) -> (Outcome, Value) {
    let outcome = client.sh(&format!(
        "rm -rf target; sccache-dock build {options} --report json=report.json -- {command}"
    ));
    let report = read(&client.machine.work().join("report.json"));
    (outcome, report)
}

#[track_caller]
fn build(client: &Client, options: &str) -> Value {
    let (outcome, report) = sh(client, options, "cargo check --offline --quiet --workspace");
    assert_eq!(outcome.code, Some(0), "{}", outcome.output);
    assert!(!outcome.output.contains("warning"), "{}", outcome.output);
    report
}

#[test]
fn build_has_the_same_hits_and_leaves_the_same_results() {
    let gateway = Gateway::start();
    let client = Client::new(&gateway);
    checkout(&client.machine);
    // This user's own daemon: it is asked for nothing, and stays.
    client.sh("sccache --start-server");
    let report = build(&client, "--prefetch");
    assert_eq!(report["sums"]["misses"], COMPILES, "{:#}", report["sums"]);
    assert!(report["prefetched"].is_null(), "{:#}", report["prefetched"]);
    assert_eq!(gateway.status().store.entries, COMPILES);

    let report = build(&client, "--prefetch");
    assert_eq!(report["sums"]["misses"], 0, "{:#}", report["sums"]);
    assert_eq!(report["daemon"]["hits"], COMPILES);
    let prefetched = &report["prefetched"];
    let by_itself = report["wire"]["hits"].as_u64().unwrap();
    let ahead = prefetched[1].as_u64().unwrap();
    assert_eq!(ahead + by_itself, COMPILES, "{report:#}");
    assert!(ahead > COMPILES / 2, "{prefetched:#}");

    // What is new comes to its place in the list, and what is not needed any more goes after some builds.
    for number in 0..50 {
        let folder = client.machine.work().join(format!("crates/leaf{number}"));
        std::fs::remove_dir_all(folder).unwrap();
    }
    client
        .machine
        .write("crates/base/src/other.rs", "pub fn base() -> u32 { 2 }\n");
    let report = build(&client, "--prefetch");
    assert_eq!(report["sums"]["misses"], 3, "{:#}", report["sums"]);
    for _ in 0..4 {
        let report = build(&client, "--prefetch");
        assert_eq!(report["sums"]["misses"], 0, "{:#}", report["sums"]);
        let used = &report["prefetched"][1];
        let all = used.as_u64().unwrap() + report["wire"]["hits"].as_u64().unwrap();
        assert_eq!(all, COMPILES - 50, "{report:#}");
    }
    let report = build(&client, "--prefetch");
    let all = report["prefetched"][0].as_u64().unwrap() + report["wire"]["hits"].as_u64().unwrap();
    assert_eq!(all, COMPILES - 50, "{report:#}");

    let stats = client.sh("sccache --show-stats --stats-format json").output;
    let stats: Value = serde_json::from_str(&stats).unwrap();
    assert_eq!(stats["stats"]["compile_requests"], 0);
    client.stop_daemon();
    assert_eq!(left_over(&client), [""; 0]);
}

/// Processes of this client, and folders of helpers.
fn left_over(client: &Client) -> Vec<String> {
    let home = client.machine.work().parent().unwrap().to_owned();
    let marker = format!("HOME={}", home.display());
    let processes = || {
        let all = std::fs::read_dir("/proc").unwrap().filter_map(Result::ok);
        let ours = all.filter(|entry| {
            let environment = std::fs::read(entry.path().join("environ")).unwrap_or_default();
            environment
                .split(|byte| *byte == 0)
                .any(|line| line == marker.as_bytes())
        });
        ours.map(|it| std::fs::read_to_string(it.path().join("comm")).unwrap_or_default())
            .collect::<Vec<String>>()
    };
    // The daemon answers before it goes.
    let end = std::time::Duration::from_secs(20);
    wait_for("the end of all processes", end, || {
        processes().is_empty().then_some(())
    });
    let folders = std::fs::read_dir(home.join(".cache/sccache-dock")).unwrap();
    let names = folders
        .flatten()
        .map(|it| it.file_name().to_string_lossy().into_owned());
    names.filter(|name| name.starts_with("helper")).collect()
}

#[test]
fn others_on_this_machine_need_its_token() {
    let gateway = Gateway::start();
    let client = Client::new(&gateway);
    let ask = "curl -s -o /dev/null -w '%{http_code}\\n'";
    client.machine.write(
        "ask",
        &format!(
            "echo $SCCACHE_WEBDAV_ENDPOINT; {ask} $SCCACHE_WEBDAV_ENDPOINT/cas/x\n\
             {ask} -H 'Authorization: Bearer {WRITER}' $SCCACHE_WEBDAV_ENDPOINT/cas/x\n\
             {ask} -H \"Authorization: Bearer $SCCACHE_WEBDAV_TOKEN\" $SCCACHE_WEBDAV_ENDPOINT/cas/x\n\
             {ask} -T ask -H \"Authorization: Bearer $SCCACHE_WEBDAV_TOKEN\" $SCCACHE_WEBDAV_ENDPOINT/cas/x\nexit 7\n"
        ),
    );
    let (outcome, _) = sh(&client, "--prefetch", "sh ask");
    assert_eq!(outcome.code, Some(7), "{}", outcome.output);
    let lines: Vec<&str> = outcome.output.lines().collect();
    assert!(lines[0].starts_with("http://127.0.0.1:"), "{lines:?}");
    assert_ne!(lines[0], gateway.url());
    assert_eq!(lines[1..5], ["401", "401", "404", "201"], "{lines:?}");
    // What was written has arrived when the build ends.
    assert_eq!(gateway.request("GET", "/cas/x", b"").code, 200);

    // A token that only reads does not become one that writes.
    let reader = Client {
        token: READER.to_owned(),
        ..client
    };
    let (outcome, _) = sh(&reader, "--prefetch", "sh ask");
    let lines: Vec<&str> = outcome.output.lines().collect();
    assert_eq!(lines[1..5], ["401", "401", "200", "403"], "{lines:?}");
    assert!(!outcome.output.contains("warning"), "{}", outcome.output);
}

#[test]
fn thousand_entries_come_ahead() {
    let gateway = Gateway::start();
    let client = Client::new(&gateway);
    client.machine.write("entry", "");
    std::fs::write(client.machine.work().join("entry"), zip(b"result")).unwrap();
    let path = |number: usize| format!("0/0/0/{number:064x}");
    let transfers = |of_each: &str| {
        let all = (0..1000).map(|number| {
            format!(
                "url = \"@{}\"\noutput = \"out/{number}\"\n{of_each}",
                path(number)
            )
        });
        all.collect::<String>()
    };
    client
        .machine
        .write("put", &transfers("upload-file = \"entry\"\n"));
    client.machine.write("get", &transfers(""));
    client.machine.write(
        "transfer",
        "mkdir -p out; sed \"s,@,$SCCACHE_WEBDAV_ENDPOINT/,\" $1 > config\n\
         exec curl -sSf -H \"Authorization: Bearer $SCCACHE_WEBDAV_TOKEN\" -K config\n",
    );
    let (outcome, _) = sh(&client, "--prefetch", "sh transfer put");
    assert_eq!(outcome.code, Some(0), "{}", outcome.output);
    assert_eq!(gateway.status().store.entries, 1000);
    let (outcome, report) = sh(&client, "--prefetch", "sh transfer get");
    assert_eq!(outcome.code, Some(0), "{}", outcome.output);
    let by_itself = report["wire"]["hits"].as_u64().unwrap();
    let ahead = report["prefetched"][1].as_u64().unwrap();
    assert_eq!(ahead + by_itself, 1000, "{report:#}");
    assert!(ahead > 500, "{:#}", report["prefetched"]);
}

#[test]
fn build_goes_on_when_the_cache_dies() {
    let gateway = Gateway::start();
    let client = Client::new(&gateway);
    checkout(&client.machine);
    let killer = std::thread::scope(|scope| {
        let builds = scope.spawn(|| {
            sh(
                &client,
                "--prefetch",
                "cargo check --offline --quiet --workspace",
            )
        });
        wait_for("some misses", Duration::from_secs(60), || {
            (gateway.status().totals.misses > 20).then_some(())
        });
        gateway.process.signal(Signal::SIGKILL);
        builds.join().unwrap()
    });
    let (outcome, report) = killer;
    assert_eq!(outcome.code, Some(0), "{}", outcome.output);
    assert!(
        outcome
            .output
            .contains("results were not sent to the cache: "),
        "{}",
        outcome.output
    );
    assert_eq!(
        report["daemon"]["misses"], COMPILES,
        "{:#}",
        report["daemon"]
    );
    assert_eq!(report["daemon"]["write_errors"], 0);
    assert_eq!(left_over(&client), [""; 0]);
}

#[test]
fn interrupt_ends_the_build_and_then_the_helper() {
    let gateway = Gateway::start();
    let client = Client::new(&gateway);
    checkout(&client.machine);
    client.machine.write(
        "build",
        "cargo check --offline --quiet --package top && touch compiled && sleep 60\n",
    );
    let script = client.script("exec sccache-dock build --prefetch -- sh build");
    let mut process = client
        .machine
        .command(&script)
        .process_group(0)
        .spawn()
        .unwrap();
    wait_for("the compiles", Duration::from_secs(60), || {
        client
            .machine
            .work()
            .join("compiled")
            .exists()
            .then_some(())
    });
    let group = nix::unistd::Pid::from_raw(i32::try_from(process.id()).unwrap());
    // As a terminal does.
    killpg(group, Signal::SIGINT).unwrap();
    let status = wait_for("its end", Duration::from_secs(30), || {
        process.try_wait().unwrap()
    });
    assert_eq!(status.code(), Some(130));
    assert_eq!(gateway.status().store.entries, 3);
    assert_eq!(left_over(&client), [""; 0]);
}

#[test]
fn what_makes_it_useless_is_said_and_the_build_goes_on() {
    let gateway = Gateway::start();
    let client = Client::new(&gateway);
    let said = |before: &str, what: &str| {
        let outcome = client.sh(&format!("{before}; sccache-dock build --prefetch -- true"));
        assert_eq!(outcome.code, Some(0), "{}", outcome.output);
        assert!(outcome.output.contains(what), "{}", outcome.output);
    };
    said("export SCCACHE_WEBDAV_TOKEN=wrong", "cannot prefetch: ");
    said("export SCCACHE_CLIENT_SIDE=1", "sccache's own protocol");
    client.machine.write(
        ".cargo/config.toml",
        "[env]\nSCCACHE_WEBDAV_TOKEN = { value = 'writer-token', force = true }\n",
    );
    said("true", "sets SCCACHE_WEBDAV_TOKEN with force");
}

/// An upstream that sends what the test wants, when it wants.
struct Scripted {
    listener: TcpListener,
}

impl Scripted {
    /// The next request: its first line, and the connection, which must answer.
    fn request(&self) -> (String, TcpStream) {
        let (stream, _) = self.listener.accept().unwrap();
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let (mut first, mut length) = (String::new(), 0);
        reader.read_line(&mut first).unwrap();
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).unwrap();
            if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
            if line == "\r\n" {
                break;
            }
        }
        reader.read_exact(&mut vec![0; length]).unwrap();
        (first, stream)
    }
}

fn framed(name: &str, body: &[u8]) -> Vec<u8> {
    let length = u16::try_from(name.len()).unwrap().to_be_bytes();
    [
        &length[..],
        name.as_bytes(),
        &(body.len() as u64).to_be_bytes(),
        body,
    ]
    .concat()
}

#[test]
fn key_on_its_way_is_waited_for_and_a_later_one_is_fetched_once() {
    let scripted = Scripted {
        listener: TcpListener::bind("127.0.0.1:0").unwrap(),
    };
    let url = format!("http://{}", scripted.listener.local_addr().unwrap());
    let gateway = Gateway::start_with(|config| {
        config.upstream = Some(Upstream {
            url: Secret::new(&url),
            token: None,
            client_certificate: None,
            queue: config.socket.with_file_name("queue"),
            ahead: Some(Ahead {
                request: "{}".to_owned(),
                folder: "team".to_owned(),
                unsent_bytes: 1,
                farewell: Duration::from_secs(5),
            }),
        });
    });
    let digits = |number: usize| format!("{number:064x}");
    let path = |number: usize| format!("/team/0/0/0/{}", digits(number));
    let names: Vec<String> = (0..100)
        .map(|number| format!("main/0/0/0/{}", digits(number)))
        .collect();
    let bodies: Vec<Vec<u8>> = (0..100).map(|number| zip(&[number; 20])).collect();

    let (first, mut stream) = scripted.request();
    assert!(first.starts_with("POST /api/prefetch "), "{first}");
    stream
        .write_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n")
        .unwrap();
    stream
        .write_all(&framed("", names.join("\n").as_bytes()))
        .unwrap();
    let entry = framed(&names[0], &bodies[0]);
    stream.write_all(&entry[..100]).unwrap();

    std::thread::scope(|scope| {
        let get = |number: usize| {
            let (gateway, path) = (&gateway, path(number));
            let (say, hear) = mpsc::channel::<Answer>();
            scope.spawn(move || say.send(gateway.request("GET", &path, b"")));
            hear
        };
        // Two for the one that comes now, one for the next, and one for the last.
        let waiting = [get(0), get(0), get(1)];
        let last = get(99);
        let (first, mut single) = scripted.request();
        assert!(first.starts_with(&format!("GET {} ", path(99))), "{first}");
        let head = format!(
            "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
            bodies[99].len()
        );
        single.write_all(head.as_bytes()).unwrap();
        single.write_all(&bodies[99]).unwrap();
        assert_eq!(last.recv().unwrap().body, bodies[99]);
        for hear in &waiting {
            assert!(hear.try_recv().is_err(), "it has not come yet");
        }
        stream.write_all(&entry[100..]).unwrap();
        stream.write_all(&framed(&names[1], &bodies[1])).unwrap();
        // What a request has fetched comes once more, and is not taken.
        stream
            .write_all(&framed(&names[99], &zip(b"another")))
            .unwrap();
        for (hear, number) in waiting.iter().zip([0, 0, 1]) {
            assert_eq!(hear.recv().unwrap().body, bodies[number]);
        }
        drop(stream);
        // The rest does not come; it is asked for.
        let second = get(2);
        let (first, mut single) = scripted.request();
        assert!(first.starts_with(&format!("GET {} ", path(2))), "{first}");
        single
            .write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")
            .unwrap();
        assert_eq!(second.recv().unwrap().code, 404);
    });
    assert_eq!(gateway.request("GET", &path(99), b"").body, bodies[99]);
    let status = gateway.status().upstream.unwrap();
    assert_eq!((status.hits, status.misses), (1, 1), "{status:?}");
}
