//! Files of this machine that the host's script gives the container: certificates, authorities and secrets.

use crate::access::Authority;
use crate::dock::eventually;
use crate::docker::{LONG, PATIENCE, Ran, TOKEN, run};
use crate::image::script::host_of_bridge;
use crate::site::{Script, Site, free_port};
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::process::Command;

/// Whom a builder's container runs as, where root starts it, has these files.
fn give(folder: &Path) {
    if nix::unistd::getuid().is_root() {
        for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
            chown(entry.path(), Some(10426), Some(10426)).unwrap();
        }
    }
}

#[test]
fn builder_joins_by_its_certificate_in_a_folder_of_this_machine() {
    let Some(site) = Site::open() else { return };
    let (first, builder) = (site.script("certified"), site.script("rack"));
    let host = host_of_bridge(&site);
    let authority = Authority::new();
    let [server, rack] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    authority.certificate(server.path(), &host);
    authority.certificate(rack.path(), "rack-7.example");
    let tokens =
        "[[token]]\nname = \"rack-7\"\ncertificate = \"rack-7.example\"\naccess = \"build\"\n";
    fs::write(server.path().join("tokens.toml"), tokens).unwrap();
    [&server, &rack].iter().for_each(|it| give(it.path()));
    let port = free_port().to_string();
    let mut command = first.command();
    command
        .env("SCCACHE_BIND", "0.0.0.0")
        .env("SCCACHE_SCHEDULER_PORT", &port)
        .args(["start", "distributed-ephemeral"]);
    for (name, file) in [
        ("SCCACHE_TLS_CERT", "cert.pem"),
        ("SCCACHE_TLS_KEY", "key.pem"),
        ("SCCACHE_TLS_CLIENT_CA", "ca.pem"),
        ("SCCACHE_TOKENS_FILE", "tokens.toml"),
    ] {
        command.env(name, server.path().join(file));
    }
    run(&mut command, LONG).ok();
    let mut command = builder.command();
    command
        .env("SCCACHE_PUBLIC_ADDR", "none")
        .env("SCCACHE_TLS_CLIENT_CERT", rack.path().join("cert.pem"))
        .env("SCCACHE_TLS_CLIENT_KEY", rack.path().join("key.pem"))
        .env("SSL_CERT_FILE", rack.path().join("ca.pem"))
        .args(["start", "builder", &format!("https://{host}:{port}")]);
    run(&mut command, LONG).ok();
    eventually("both machines' builders are there", || {
        let status = first.status();
        (status["cache"]["dist"]["builders"].as_array()?.len() == 2).then_some(())
    });
}

#[test]
fn files_that_nobody_can_read_are_refused_before_an_image_is_made() {
    let Some(site) = Site::open() else { return };
    let folder = tempfile::tempdir().unwrap();
    let secret = folder.path().join("secret");
    fs::write(&secret, "a-token-of-a-test\n").unwrap();
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o000)).unwrap();
    let script = site
        .script("unreadable-files")
        .with_image("no-such-image-of-a-test");
    let refused = |set: &[(&str, &Path)], args: &[&str], parts: &[&str]| {
        let mut command: Command = script.command();
        let ran = run(command.args(args).envs(set.iter().copied()), PATIENCE);
        ran.refused(2, parts);
        assert!(!ran.stderr.contains("registry"), "{}", ran.stderr);
    };
    let names = "which SCCACHE_AUTH_TOKEN_FILE names";
    let ephemeral = ["start", "ephemeral"];
    let read = |file| [("SCCACHE_AUTH_TOKEN_FILE", file)];
    let is_folder = [names, "it is a folder, or no ordinary file", "hint: "];
    refused(&read(folder.path()), &ephemeral, &is_folder);
    let of_user = [names, ", as user ", " of the container", "hint: chown "];
    refused(&read(&secret), &ephemeral, &of_user);
    let gone = folder.path().join("gone");
    refused(&read(&gone), &ephemeral, &[names, "there is no such file"]);
    // Certificates of the cache's own folder, by their path in the container.
    let kept = folder.path().join("cache");
    fs::create_dir(&kept).unwrap();
    let cert = Path::new("/var/sccache/tls/cert.pem");
    let place = format!("{}/tls/cert.pem", kept.display());
    let persistent = ["start", "persistent", kept.to_str().unwrap()];
    let set = [("SCCACHE_TLS_CERT", cert)];
    refused(&set, &persistent, &[&place, "which SCCACHE_TLS_CERT names"]);
    let set = [
        ("SCCACHE_TLS_CLIENT_CERT", gone.as_path()),
        ("SSL_CERT_FILE", &secret),
    ];
    let builder = ["start", "builder", "https://build-cache:10600"];
    refused(&set, &builder, &["which SCCACHE_TLS_CLIENT_CERT names"]);
    fs::write(&gone, "").unwrap();
    refused(&set, &builder, &["which SSL_CERT_FILE names"]);
}

/// The code of the answer to a read with the token that these tests take away.
fn read(script: &Script) -> u16 {
    let answer = script
        .docker
        .request(&script.container, "GET", "/cas/none", b"");
    answer.code
}

fn start_with_tokens(script: &Script, file: &Path) -> Ran {
    let mut command = script.command();
    command.env("SCCACHE_TOKENS_FILE", file);
    let ran = run(command.args(["start", "ephemeral"]), LONG);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    ran
}

/// As `sed -i`, certbot and editors do it.
fn replace(file: &Path, text: &str) {
    let new = file.with_extension("new");
    fs::write(&new, text).unwrap();
    fs::rename(new, file).unwrap();
}

#[test]
fn token_that_a_new_file_lacks_is_refused_by_the_running_container_or_the_start_says_when() {
    let Some(site) = Site::open() else { return };
    let tokens = format!("[[token]]\nname = \"old\"\ntoken = \"{TOKEN}\"\naccess = \"read\"\n");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("named tokens.toml");
    fs::write(&file, &tokens).unwrap();
    let script = site.script("followed");
    let ran = start_with_tokens(&script, &file);
    assert!(!ran.stderr.contains("mounted alone"), "{}", ran.stderr);
    assert_eq!(read(&script), 404);
    replace(&file, "");
    eventually("the token is refused", || {
        (read(&script) == 401).then_some(())
    });
    script.call(&["remove"]).ok();

    // The container has no business with what else is there: then the file is mounted alone, and that has a price.
    fs::write(&file, &tokens).unwrap();
    fs::write(folder.path().join("id_rsa"), "").unwrap();
    let ran = start_with_tokens(&script, &file);
    let why =
        format!("{file:?} (SCCACHE_TOKENS_FILE) is mounted alone: its folder has \"id_rsa\" too");
    let price = "a token that is removed in that way stays valid";
    ran.refused(0, &[&why, price, "hint: the container follows files in"]);
    let seen = script
        .docker
        .ok(&["exec", &script.container, "ls", "/run/secrets"]);
    assert_eq!(seen, "SCCACHE_TOKENS");
    assert_eq!(read(&script), 404);
    replace(&file, "");
    script.call(&["stop"]).ok();
    start_with_tokens(&script, &file);
    assert_eq!(read(&script), 401);
}
