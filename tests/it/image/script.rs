//! Every command of the host's script, and everything that people do wrong with it.

use crate::access::Authority;
use crate::dock::eventually;
use crate::docker::{LONG, Ran, run};
use crate::harness::{Process, now};
use crate::site::{Script, Site, free_port, skip};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

fn entries(script: &Script) -> u64 {
    script.status()["cache"]["store"]["entries"]
        .as_u64()
        .unwrap()
}

#[test]
fn every_command_does_what_it_says() {
    let Some(site) = Site::open() else { return };
    let (folder, stored) = site.warm_folder();
    let script = site.script("commands");
    let folder = folder.path().to_str().unwrap();
    script.call(&["start", "persistent", folder]).ok();
    eventually("the index", || (entries(&script) == stored).then_some(()));

    let again = script.call(&["start", "persistent", folder]);
    assert!(
        again.stderr.contains("runs already") && again.stdout.contains("cargo build"),
        "{again:?}"
    );
    script
        .call(&["start", "ephemeral"])
        .refused(1, &["exists with mode persistent", "hint: ", "remove"]);

    let table = script.call(&["status"]).ok();
    for part in ["gateway", "server", "ready", "NAMESPACE"] {
        assert!(table.contains(part), "{table}");
    }
    assert_eq!(script.status()["services"].as_array().unwrap().len(), 2);
    let logs = script.call(&["logs", "--tail", "1000"]).ok();
    assert!(logs.contains("gateway ready"), "{logs}");
    let doctor = script.call(&["doctor"]);
    assert_eq!(doctor.code, Some(0), "{doctor:?}");

    for (format, part) in [
        ("sh", "export RUSTC_WRAPPER='sccache';"),
        ("fish", "set -gx RUSTC_WRAPPER 'sccache';"),
        ("toml", "[cache.webdav]"),
        ("docker", "RUSTC_WRAPPER=sccache\n"),
        ("github", "RUSTC_WRAPPER=sccache\n"),
        ("cargo", "rustc-wrapper = \"sccache\""),
    ] {
        let text = script.call(&["env", "--format", format]).ok();
        assert!(text.contains(part), "{format}: {text}");
        assert!(
            text.contains(&format!("127.0.0.1:{}", script.port)),
            "{format}: {text}"
        );
    }
    let socket = site
        .home
        .path()
        .join(".local/state/sccache-dock")
        .join(&script.container)
        .join("sccache.sock");
    let text = script.call(&["env", "--lane", "socket"]).ok();
    assert!(
        text.contains(&format!("SCCACHE_SERVER_UDS='{}'", socket.display())),
        "{text}"
    );

    // Whoever empties their cache folder takes the container nothing that it needs.
    let _ = std::fs::remove_dir_all(site.home.path().join(".cache"));
    script.call(&["status"]).ok();
    script.call(&["restart"]).ok();
    eventually("the index", || (entries(&script) == stored).then_some(()));
    let purged = script.call(&["purge"]).ok();
    assert!(
        purged.contains(&format!("purged {stored} blobs")),
        "{purged}"
    );
    assert_eq!(entries(&script), 0);

    script.call(&["stop"]).ok();
    script
        .call(&["status"])
        .refused(1, &["is not running", "hint: start it"]);
    script.call(&["start", "persistent", folder]).ok();
    script.call(&["remove"]).ok();
    script
        .call(&["status"])
        .refused(1, &["there is no container", "hint: start it"]);
    script
        .call(&["remove"])
        .refused(1, &["there is no container"]);
    assert!(
        Path::new(folder).join("state/auth-token").exists(),
        "the folder stays"
    );
}

#[test]
fn mistakes_are_named_with_their_hint() {
    let Some(site) = Site::open() else { return };
    let script = site.script("mistakes");
    let call = |args: &[&str]| script.call(args);
    call(&["start", "persistent", "some/where"])
        .refused(2, &["the path is relative", "hint: give it whole: "]);
    call(&["start", "persistent"]).refused(2, &["needs a folder", "hint: for example: "]);
    call(&["start", "ephemeral", "/tmp"]).refused(2, &["takes no folder", "persistent /tmp"]);
    call(&["start", "volatile"]).refused(
        2,
        &["cannot start mode \"volatile\"", "hint: choose ephemeral"],
    );
    call(&["start"]).refused(2, &["start needs a mode"]);
    call(&["start", "builder"]).refused(2, &["needs the URL of a scheduler", "http://"]);
    for url in ["http://build-cache:10600", "https://build-cache:10600"] {
        call(&["start", "builder", url])
            .refused(2, &["needs SCCACHE_SERVER_TOKEN", "server-token"]);
    }
    call(&["env", "--lane", "dist", "--write"])
        .refused(2, &["from inside the container", "--format toml"]);
    call(&["frobnicate"]).refused(2, &["there is no command \"frobnicate\"", "help"]);
    call(&["build", "gentoo"]).refused(2, &["gentoo", "hint: choose arch, ubuntu or debian"]);
    let bad_size = run(
        script
            .command()
            .env("SCCACHE_CACHE_SIZE", "lots")
            .args(["start", "ephemeral"]),
        Duration::from_secs(60),
    );
    bad_size.refused(2, &["SCCACHE_CACHE_SIZE", "lots", "hint: "]);

    let no_file = run(
        script
            .command()
            .env("SCCACHE_AUTH_TOKEN_FILE", "/no/such/file")
            .args(["start", "ephemeral"]),
        Duration::from_secs(60),
    );
    no_file.refused(
        2,
        &[
            "cannot read \"/no/such/file\"",
            "SCCACHE_AUTH_TOKEN_FILE",
            "hint: ",
        ],
    );

    let taken = TcpListener::bind(("127.0.0.1", script.port)).unwrap();
    let refused = call(&["start", "ephemeral"]);
    refused.refused(1, &["it is in use", "SCCACHE_DEFAULT_PORT="]);
    drop(taken);
    script.call(&["start", "ephemeral"]).ok();

    let mut lost = site.script("unreachable");
    lost.docker.host = Some(format!("unix://{}/none.sock", site.home.path().display()));
    for args in [
        &["start", "ephemeral"][..],
        &["stop"],
        &["status"],
        &["logs"],
    ] {
        lost.call(args)
            .refused(1, &["cannot reach the Docker daemon", "hint: start it"]);
    }
}

#[test]
fn settings_files_and_keys_of_the_caller_reach_the_container() {
    let Some(site) = Site::open() else { return };
    let script = site.script("settings");
    let secret = site.home.path().join("auth token");
    std::fs::write(&secret, "a-token-in-a-file\n").unwrap();
    let start = |upstream: Option<&str>| {
        let mut command = script.command();
        command
            .env("SCCACHE_AUTH_TOKEN_FILE", &secret)
            .env("SCCACHE_QUOTAS", "ci=1G")
            .env("AWS_ACCESS_KEY_ID", "a-key")
            .env("AWS_SECRET_ACCESS_KEY", "a-secret-key")
            .args(["start", "ephemeral"]);
        command.envs(upstream.map(|url| ("SCCACHE_UPSTREAM", url)));
        run(&mut command, Duration::from_secs(120)).ok();
    };
    let of_container = || script.docker.inspect(&script.container, "{{.Config.Env}}");
    start(None);
    assert!(!of_container().contains("AWS_"), "{}", of_container());
    script.call(&["remove"]).ok();

    start(Some(
        "s3://bucket?region=eu-central-1&endpoint=http://127.0.0.1:9",
    ));
    let env = of_container();
    for part in [
        "AWS_ACCESS_KEY_ID=a-key",
        "AWS_SECRET_ACCESS_KEY=a-secret-key",
    ] {
        assert!(env.contains(part), "{env}");
    }
    assert!(!env.contains("a-token-in-a-file"), "{env}");
    let config = script
        .docker
        .ok(&["exec", &script.container, "sccache-dock", "config"]);
    for part in ["ci=1G", "/run/secrets/SCCACHE_AUTH_TOKEN"] {
        assert!(config.contains(part), "{config}");
    }
    let printed = script.call(&["env"]).ok();
    assert!(
        printed.contains("SCCACHE_WEBDAV_TOKEN='a-token-in-a-file'"),
        "{printed}"
    );
}

#[test]
fn cache_with_a_certificate_is_named_as_clients_reach_it() {
    let Some(site) = Site::open() else { return };
    let script = site.script("tls");
    let folder = tempfile::tempdir().unwrap();
    let tls = folder.path().join("tls");
    std::fs::create_dir(&tls).unwrap();
    Authority::new().certificate(&tls, "localhost");
    let mut command = script.command();
    command
        .env("SCCACHE_TLS_CERT", "/var/sccache/tls/cert.pem")
        .env("SCCACHE_TLS_KEY", "/var/sccache/tls/key.pem")
        .args(["start", "persistent", folder.path().to_str().unwrap()]);
    let started = run(&mut command, Duration::from_secs(120)).ok();
    let url = format!("https://localhost:{}", script.port);
    assert!(
        started.contains(&format!("the cache is at {url}.")),
        "{started}"
    );
    let printed = script.call(&["env"]).ok();
    assert!(
        printed.contains(&format!("SCCACHE_WEBDAV_ENDPOINT='{url}'")),
        "{printed}"
    );
    // These know no TLS, and need none: they go no further than this machine.
    for lane in ["--lane=ipc", "--lane=socket"] {
        script.call(&["env", lane]).ok();
    }
}

/// This host, as containers of Docker's own network reach it.
pub(crate) fn host_of_bridge(site: &Site) -> String {
    let route = [
        "--rm",
        "--entrypoint",
        "cat",
        &site.image,
        "/proc/net/route",
    ];
    let route = site.docker.ok(&[&["run"], &route[..]].concat());
    let gateway = route.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        (fields[1] == "00000000").then(|| u32::from_str_radix(fields[2], 16).unwrap())
    });
    Ipv4Addr::from(gateway.unwrap().swap_bytes()).to_string()
}

#[test]
fn builder_joins_by_tls_of_a_private_authority_and_publishes_no_port() {
    let Some(site) = Site::open() else { return };
    let (first, builder) = (site.script("first"), site.script("builder"));
    let host = host_of_bridge(&site);
    let folder = tempfile::tempdir().unwrap();
    let tls = folder.path().join("tls");
    std::fs::create_dir(&tls).unwrap();
    Authority::new().certificate(&tls, &host);
    let started = |command: &mut Command| {
        let command = command.args(["start", "distributed-persistent"]);
        run(command.arg(folder.path()), LONG)
    };
    let whose = run(Command::new("id").arg("-u"), LONG).ok();
    if whose.trim() == "0" {
        // Whom a builder's container runs as, where root starts it.
        let user = Some(10426);
        started(&mut first.command()).refused(1, &["root owns it", "chown -R 10426:10426"]);
        for path in ["", "tls", "tls/cert.pem", "tls/key.pem", "tls/ca.pem"] {
            chown(folder.path().join(path), user, user).unwrap();
        }
    }
    let port = free_port().to_string();
    let token = "the-token-of-builders";
    let mut command = first.command();
    command
        .env("SCCACHE_BIND", "0.0.0.0")
        .env("SCCACHE_SCHEDULER_PORT", &port)
        .env("SCCACHE_SERVER_TOKEN", token)
        .env("SCCACHE_TLS_CERT", "/var/sccache/tls/cert.pem")
        .env("SCCACHE_TLS_KEY", "/var/sccache/tls/key.pem");
    started(&mut command).ok();
    let mut command = builder.command();
    command
        .env("SCCACHE_PUBLIC_ADDR", "none")
        .env("SCCACHE_SERVER_TOKEN", token)
        .env("SSL_CERT_FILE", tls.join("ca.pem"))
        .args(["start", "builder", &format!("https://{host}:{port}")]);
    run(&mut command, LONG).ok();
    let published = builder.docker.ok(&["port", &builder.container]);
    assert_eq!(published.trim(), "");
    eventually("both machines' builders are there", || {
        let status = first.call(&["status", "--json"]).ok();
        let status: serde_json::Value = serde_json::from_str(&status).unwrap();
        (status["cache"]["dist"]["builders"].as_array()?.len() == 2).then_some(())
    });
}

#[test]
fn unprivileged_caller_owns_what_the_container_writes() {
    let Some(site) = Site::open() else { return };
    if !nix::unistd::getuid().is_root() {
        return skip("only root can become another user").unwrap_or(());
    }
    let (uid, home) = (1000, tempfile::tempdir().unwrap());
    chown(home.path(), Some(uid), Some(uid)).unwrap();
    let mut script = site.script("owner");
    script.user = Some((uid, home.path().to_owned()));
    let folder = home.path().join("cache");
    script
        .call(&["start", "persistent", folder.to_str().unwrap()])
        .ok();
    let mut found = vec![folder.clone()];
    let mut at = 0;
    while let Some(path) = found.get(at).cloned() {
        assert_eq!(
            path.symlink_metadata().unwrap().uid(),
            uid,
            "{}",
            path.display()
        );
        if path.is_dir() {
            found.extend(
                std::fs::read_dir(&path)
                    .unwrap()
                    .map(|entry| entry.unwrap().path()),
            );
        }
        at += 1;
    }
    assert!(
        found.contains(&folder.join("state/auth-token")),
        "{found:?}"
    );
    let text = script.call(&["env"]).ok();
    assert!(text.contains("SCCACHE_WEBDAV_TOKEN="), "{text}");
    script.call(&["install-client"]).ok();
    for program in ["sccache", "sccache-dock", "sccache-dock-gateway"] {
        let client = home.path().join(".local/bin").join(program);
        assert_eq!(client.metadata().unwrap().uid(), uid, "{program}");
    }
}

#[test]
fn the_same_cache_runs_without_docker() {
    let Some(site) = Site::open() else { return };
    let mut script = site.script("local");
    script.docker.host = Some("unix:///nonexistent".to_owned());
    let folder: PathBuf = site.home.path().join("cache");
    let mut process = Process::start(
        script
            .command()
            .args(["run-local", "persistent"])
            .arg(&folder),
    );
    process.wait_for_line("In another terminal");
    eventually("it is ready", || {
        let status = script.call(&["status", "--json"]);
        (status.code == Some(0) && status.stdout.matches("\"ready\"").count() >= 2).then_some(())
    });
    let text = script.call(&["env"]).ok();
    assert!(
        text.contains(&format!("http://127.0.0.1:{}", script.port)),
        "{text}"
    );
    let doctor = script.call(&["doctor"]);
    assert_eq!(doctor.code, Some(0), "{doctor:?}");
    let start = now();
    process.signal(nix::sys::signal::Signal::SIGINT);
    assert_eq!(process.exit().code(), Some(0), "{}", process.log());
    println!("ended in {:.1?}", start.elapsed());
    let after: Ran = script.call(&["status"]);
    assert_eq!(after.code, Some(1), "{after:?}");
}
