//! The cache behind nginx, by the configuration that we hand out.

use crate::access::{Authority, curl_over_tls, sccache_over_tls};
use crate::dice::Dice;
use crate::harness::{Gateway, Process, WRITER, finish, has_program, skip, tools, wait_for};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(20);

fn nginx() -> Option<PathBuf> {
    let kept = tools().join("nginx/bin/nginx");
    if kept.exists() {
        return Some(kept);
    }
    has_program("nginx").then(|| "nginx".into())
}

/// nginx with our file and nothing else, but for paths, addresses and the user.
fn start(program: &Path, folder: &Path, gateway: &Gateway, port: u16) -> Process {
    let ours = Path::new(env!("CARGO_MANIFEST_DIR")).join("images/proxy/nginx.conf");
    let mut text = std::fs::read_to_string(ours).unwrap();
    let (cert, key) = (folder.join("cert.pem"), folder.join("key.pem"));
    for (ours, its) in [
        ("127.0.0.1:4226", gateway.addr.to_string()),
        ("listen 443 ssl", format!("listen 127.0.0.1:{port} ssl")),
        (
            "/etc/letsencrypt/live/build-cache.example.com/fullchain.pem",
            cert.display().to_string(),
        ),
        (
            "/etc/letsencrypt/live/build-cache.example.com/privkey.pem",
            key.display().to_string(),
        ),
    ] {
        assert!(text.contains(ours), "{ours}");
        text = text.replace(ours, &its);
    }
    let at = folder.display();
    let user = if nix::unistd::getuid().is_root() {
        "user root;"
    } else {
        ""
    };
    let file = folder.join("nginx.conf");
    let bodies = folder.join("bodies");
    std::fs::create_dir(&bodies).unwrap();
    let whole = format!(
        "{user} daemon off; pid {at}/pid; error_log stderr;\nevents {{}}\n\
         http {{ access_log off; client_body_temp_path {at}/bodies; proxy_temp_path {at}/proxied;\n\
         fastcgi_temp_path {at}/f; uwsgi_temp_path {at}/u; scgi_temp_path {at}/s;\n{text} }}\n"
    );
    std::fs::write(&file, whole).unwrap();
    let mut command = Command::new(program);
    let process = Process::start(command.args(["-e", "stderr", "-c"]).arg(&file));
    wait_for("nginx", PATIENCE, || {
        TcpStream::connect(("127.0.0.1", port)).ok()
    });
    process
}

#[test]
fn cache_is_reached_over_the_tls_of_nginx() {
    let Some(program) = nginx() else {
        return skip("no nginx");
    };
    let (authority, folder) = (Authority::new(), tempfile::tempdir().unwrap());
    authority.certificate(folder.path(), "localhost");
    let gateway = Gateway::start();
    let port = crate::site::free_port();
    let _nginx = start(&program, folder.path(), &gateway, port);

    let curl = |args: &[&str]| curl_over_tls(folder.path(), port, "/cas/x", args);
    let code = ["--output", "/dev/null", "--write-out", "%{http_code}"];
    // More than nginx would hold in memory, and than its own bound for a body.
    let blob = folder.path().join("blob");
    std::fs::write(&blob, Dice::new(1).bytes(8 << 20)).unwrap();
    let body = blob.to_str().unwrap();
    // A short one: of a long body that the cache refuses to read, nginx makes 502.
    let refused = [&code[..], &["--request", "PUT", "--data", "x"]].concat();
    assert_eq!(curl(&refused), "401");
    let token = ["--oauth2-bearer", WRITER];
    let put = [&code[..], &token, &["--upload-file", body]].concat();
    assert_eq!(curl(&put), "201");
    let back = folder.path().join("back");
    let got = [&token[..], &["--output", back.to_str().unwrap()]].concat();
    assert_eq!(curl(&got), "");
    assert_eq!(std::fs::read(&back).unwrap(), std::fs::read(&blob).unwrap());
    let on_its_disk = std::fs::read_dir(folder.path().join("bodies")).unwrap();
    assert_eq!(on_its_disk.count(), 0);

    let sccache = || sccache_over_tls(folder.path(), port);
    std::fs::write(
        folder.path().join("it.c"),
        "int proxied(void) { return 1; }",
    )
    .unwrap();
    for hits in [0, 1] {
        let outcome = finish(sccache().args(["gcc", "-c", "it.c", "-o", "it.o"]));
        assert_eq!(outcome.code, Some(0), "{}", outcome.output);
        assert_eq!(gateway.status().totals.hits, 1 + hits);
    }
    finish(sccache().arg("--stop-server"));
}
