//! TLS on the scheduler's port: the real client, the real builder, and our own.

use super::{BUILDERS_TOKEN, builder, launched_builder, scheduler};
use crate::access::{Authority, from_outside};
use crate::distributed::{CLIENT, client_file, distributed, is_possible, statistics};
use crate::dock::{Dock, eventually};
use crate::harness::{Answer, Process, clean, sccache_bin};
use crate::machine::Machine;
use crate::site::free_port;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};

/// A scheduler's container with a certificate for `localhost` of a private authority, and the folder with `ca.pem`.
struct Secured {
    authority: Authority,
    folder: tempfile::TempDir,
    front: u16,
    dock: Dock,
}

impl Secured {
    fn start(more: &[(&str, &str)]) -> Option<Secured> {
        if !is_possible() {
            return None;
        }
        let (authority, folder) = (Authority::new(), tempfile::tempdir().unwrap());
        let files = authority.certificate(folder.path(), "localhost");
        let front = free_port();
        let tls = [
            ("SCCACHE_TLS_CERT", files.cert.to_str().unwrap()),
            ("SCCACHE_TLS_KEY", files.key.to_str().unwrap()),
        ];
        let dock = scheduler(front, &[&tls[..], more].concat());
        Some(Secured {
            authority,
            folder,
            front,
            dock,
        })
    }

    fn url(&self) -> String {
        format!("https://localhost:{}", self.front)
    }

    fn ca(&self) -> String {
        self.folder.path().join("ca.pem").display().to_string()
    }

    /// A client that trusts the authority.
    fn client(&self) -> Machine {
        let client = Machine::new();
        let file = client_file("FRONT", &self.dock.token()).replace("http://FRONT", &self.url());
        client.write("dist.toml", &file);
        client
    }

    fn compile(&self, client: &Machine, name: &str) {
        client.write(
            &format!("{name}.c"),
            &format!("int {name}(void) {{ return 1; }}\n"),
        );
        let built = client.sh(&format!(
            "{CLIENT}export SSL_CERT_FILE={}\nsccache cc -c {name}.c -o {name}.o",
            self.ca()
        ));
        assert_eq!(built.code, Some(0), "{}", built.output);
    }

    fn builders(&self) -> Vec<(String, String)> {
        let status = self.dock.status().unwrap();
        let builders = status["cache"]["dist"]["builders"].as_array().unwrap();
        let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
        let builders = builders.iter();
        builders
            .map(|one| (text(&one["address"]), text(&one["state"])))
            .collect()
    }
}

/// The real `sccache-dist server`, with this scheduler.
fn stock_builder(folder: &Path, address: &str, url: &str, ca: &str) -> Process {
    let file = folder.join("server.toml");
    let text = format!(
        "cache_dir = \"{0}/cache\"\npublic_addr = \"{address}\"\nscheduler_url = \"{url}\"\n\
         [scheduler_auth]\ntype = \"token\"\ntoken = \"{BUILDERS_TOKEN}\"\n\
         [builder]\ntype = \"overlay\"\nbuild_dir = \"{0}/build\"\nbwrap_path = \"/usr/bin/bwrap\"\n",
        folder.display()
    );
    std::fs::write(&file, text).unwrap();
    let mut command = clean(sccache_bin().with_file_name("sccache-dist"));
    command.args(["server", "--config"]).arg(file);
    command.env("SCCACHE_LOG", "info").env("SSL_CERT_FILE", ca);
    Process::start(&mut command)
}

#[test]
fn clients_and_builders_reach_the_scheduler_by_tls_with_a_private_authority() {
    for relay in ["off", "on"] {
        let Some(secured) = Secured::start(&[("SCCACHE_RELAY", relay)]) else {
            return;
        };
        let client = secured.client();
        secured.compile(&client, "one");
        assert_eq!(distributed(&statistics(&client)), (1, 0), "relay {relay}");
        let ours = builder(&secured.url(), &[("SSL_CERT_FILE", &secured.ca())]);
        let folder = tempfile::tempdir().unwrap();
        let at = format!("127.0.0.1:{}", free_port());
        let stock = stock_builder(folder.path(), &at, &secured.url(), &secured.ca());
        eventually("three builders", || {
            (secured.builders().len() == 3).then_some(())
        });
        secured.compile(&client, "two");
        assert_eq!(distributed(&statistics(&client)), (2, 0), "relay {relay}");
        // A new certificate is taken up.
        let before = secured.dock.log().matches("certificate in force").count();
        secured
            .authority
            .certificate(secured.folder.path(), "localhost");
        eventually("the new certificate", || {
            let now = secured.dock.log().matches("certificate in force").count();
            (now > before).then_some(())
        });
        secured.compile(&client, "three");
        assert_eq!(distributed(&statistics(&client)), (3, 0), "relay {relay}");
        drop((ours, stock));
    }
}

#[test]
fn builder_joins_by_a_certificate_until_its_table_or_its_authority_is_taken_out() {
    if !is_possible() {
        return;
    }
    for relay in ["off", "on"] {
        let racks = Authority::new();
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name).display().to_string();
        std::fs::write(at("racks.pem"), racks.pem()).unwrap();
        let table =
            "[[token]]\nname = \"rack-7\"\ncertificate = \"rack-7.example\"\naccess = \"build\"\n";
        std::fs::write(at("tokens.toml"), table).unwrap();
        let secured = Secured::start(&[
            ("SCCACHE_RELAY", relay),
            ("SCCACHE_TOKENS_FILE", &at("tokens.toml")),
            ("SCCACHE_TLS_CLIENT_CA", &at("racks.pem")),
        ]);
        let secured = secured.unwrap();
        let issue = |name: &str| {
            let params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
            let identity = racks.issue(params);
            std::fs::write(at("rack.key"), identity.key).unwrap();
            std::fs::write(at("rack.pem"), identity.cert).unwrap();
        };
        issue("rack-8.example");
        let joined = launched_builder(
            &secured.url(),
            &[
                ("SSL_CERT_FILE", &secured.ca()),
                ("SCCACHE_SERVER_TOKEN", ""),
                ("SCCACHE_TLS_CLIENT_CERT", &at("rack.pem")),
                ("SCCACHE_TLS_CLIENT_KEY", &at("rack.key")),
            ],
        );
        secured
            .dock
            .wait_log("no table of SCCACHE_TOKENS_FILE has certificate = \"rack-8.example\"");
        let named = || {
            let status = secured.dock.status()?;
            let builders = status["cache"]["dist"]["builders"].as_array()?.clone();
            let found = builders.into_iter().find(|one| one["token"] == "rack-7");
            found.map(|one| one["state"].as_str().unwrap().to_owned())
        };
        // It is asked for its files at each connection.
        issue("rack-7.example");
        eventually("the builder", || (named()? == "ready").then_some(()));
        // A real job, on either builder.
        let client = secured.client();
        secured.compile(&client, "one");
        assert_eq!(distributed(&statistics(&client)), (1, 0), "relay {relay}");
        match relay {
            "on" => std::fs::write(at("tokens.toml"), "").unwrap(),
            _ => std::fs::write(at("racks.pem"), Authority::new().pem()).unwrap(),
        }
        eventually("it gets no more jobs", || {
            (named()? == "leaving").then_some(())
        });
        secured.compile(&client, "two");
        // Without the relay, the scheduler may still choose it, and its client compiles.
        if relay == "on" {
            assert_eq!(distributed(&statistics(&client)), (2, 0));
        }
        drop(joined);
    }
}

#[test]
fn builder_says_why_it_does_not_trust_the_scheduler() {
    let Some(secured) = Secured::start(&[]) else {
        return;
    };
    let front = format!("127.0.0.1:{}", free_port());
    let at = format!("127.0.0.1:{}", free_port());
    let stranger = Dock::launch(&[
        ("MODE", "builder"),
        ("SCCACHE_SCHEDULER_URL", &secured.url()),
        ("SCCACHE_SCHEDULER_LISTEN", &front),
        ("SCCACHE_BUILDER_LISTEN", &at),
        ("SCCACHE_PUBLIC_ADDR", "127.0.0.1"),
        ("SCCACHE_SERVER_TOKEN", BUILDERS_TOKEN),
    ]);
    let line = stranger.wait_log("cannot speak TLS with the scheduler");
    assert!(line.contains("SSL_CERT_FILE"), "{line}");
}

#[test]
fn peer_of_another_machine_that_speaks_without_tls_is_sent_home_unless_it_is_allowed() {
    for (allowed, code) in [("local", 503), ("any", 200)] {
        let Some(secured) = Secured::start(&[("SCCACHE_SCHEDULER_PLAIN", allowed)]) else {
            return;
        };
        let mut stream = from_outside(SocketAddr::from(([127, 0, 0, 1], secured.front)));
        let request =
            "GET /api/v1/scheduler/status HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        stream.write_all(request.as_bytes()).unwrap();
        let answer = Answer::read(&mut stream);
        assert_eq!(answer.code, code, "{}", answer.text());
        let refused = answer.text().contains("use https://");
        assert_eq!(refused, code == 503, "{}", answer.text());
    }
}

#[test]
fn client_env_names_the_scheduler_as_it_is_reached() {
    let Some(secured) = Secured::start(&[]) else {
        return;
    };
    let printed = secured.dock.command(&["client-env", "--lane", "dist"]);
    let text = String::from_utf8(printed.stdout).unwrap();
    let expected = format!("scheduler_url = \"https://localhost:{}", secured.front);
    assert!(text.contains(&expected), "{text}");
}

/// A wire on which everything is read along.
struct Wire {
    port: u16,
    seen: Arc<Mutex<Vec<u8>>>,
}

impl Wire {
    fn to(port: u16) -> Wire {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let wire = Wire {
            port: listener.local_addr().unwrap().port(),
            seen: Arc::default(),
        };
        let seen = Arc::clone(&wire.seen);
        std::thread::spawn(move || {
            while let Ok((near, _)) = listener.accept() {
                let far = TcpStream::connect(("127.0.0.1", port)).unwrap();
                for (from, to) in [(&near, &far), (&far, &near)] {
                    let ends = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    let seen = Arc::clone(&seen);
                    std::thread::spawn(move || read_along(ends, &seen));
                }
            }
        });
        wire
    }
}

fn read_along((mut from, mut to): (TcpStream, TcpStream), seen: &Mutex<Vec<u8>>) {
    let mut piece = [0; 16 << 10];
    while let Ok(length @ 1..) = from.read(&mut piece) {
        seen.lock().unwrap().extend(&piece[..length]);
        if to.write_all(&piece[..length]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}

#[test]
fn no_token_and_no_job_crosses_the_network_in_clear() {
    let Some(secured) = Secured::start(&[]) else {
        return;
    };
    let (of_client, of_builder) = (Wire::to(secured.front), Wire::to(secured.front));
    // By its own connections: whatever the relay sends to it is on the wire, too.
    let url = format!("https://localhost:{}", of_builder.port);
    let set = [
        ("SSL_CERT_FILE", secured.ca()),
        ("SCCACHE_PUBLIC_ADDR", "none".to_owned()),
    ];
    let set: Vec<(&str, &str)> = set.iter().map(|(name, value)| (*name, &**value)).collect();
    let _hidden = builder(&url, &set);
    let client = Machine::new();
    let file = client_file("FRONT", &secured.dock.token());
    let url = format!("https://localhost:{}", of_client.port);
    client.write("dist.toml", &file.replace("http://FRONT", &url));
    for name in ["one", "two", "three", "four", "five", "six"] {
        secured.compile(&client, name);
    }
    assert_eq!(distributed(&statistics(&client)), (6, 0));
    eventually("the hidden builder has the compiler", || {
        let log = secured.dock.log();
        (log.matches(" is ready on builder ").count() == 2).then_some(())
    });
    for (wire, token) in [
        (&of_client, secured.dock.token()),
        (&of_builder, BUILDERS_TOKEN.to_owned()),
    ] {
        let seen = wire.seen.lock().unwrap();
        assert!(seen.len() > 20 << 20, "{} bytes were seen", seen.len());
        for word in [&*token, "Bearer", "/api/v1/", "HTTP/1.1", "return 1;"] {
            let found = memchr::memmem::find(&seen, word.as_bytes());
            assert_eq!(found, None, "{word:?} was seen");
        }
    }
}
