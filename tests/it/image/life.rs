//! Stop, kill and start again.

use crate::harness::now;
use crate::site::{FAILING_PROBES, Script, Site};
use std::path::Path;
use std::time::Duration;

/// What Docker gives a container before it kills it.
const GRACE: Duration = Duration::from_secs(10);

/// `docker stop`: exit code 0 within the grace, and nothing left.
fn stops_in_order(site: &Site, script: &Script) {
    let pids = site.docker.pids(&script.container);
    let start = now();
    site.docker.ok(&["stop", &script.container]);
    let took = start.elapsed();
    println!("{}: stopped in {took:.1?}", script.container);
    assert!(took < GRACE, "{took:?}");
    let exit = site.docker.inspect(
        &script.container,
        "{{.State.ExitCode}} {{.State.OOMKilled}}",
    );
    assert_eq!(exit, "0 false", "{}", site.docker.logs(&script.container));
    for pid in pids {
        assert!(
            !Path::new("/proc").join(&pid).exists(),
            "process {pid} is left"
        );
    }
}

#[test]
fn ephemeral_container_stops_in_order() {
    let Some(site) = Site::open() else { return };
    let script = site.script("stop");
    script.call(&["start", "ephemeral"]).ok();
    stops_in_order(&site, &script);
}

#[test]
fn persistent_cache_survives_a_stop_and_a_kill() {
    let Some(site) = Site::open() else { return };
    let (folder, stored) = site.warm_folder();
    site.install_client();
    let script = site.script("kill");
    script
        .call(&["start", "persistent", folder.path().to_str().unwrap()])
        .ok();
    let token = script.token();
    stops_in_order(&site, &script);
    site.docker.ok(&["start", &script.container]);
    site.docker.wait_healthy(&script.container);

    // In the middle of its work: a kill leaves whatever it was at.
    site.docker.ok(&["kill", &script.container]);
    site.docker.ok(&["start", &script.container]);
    site.docker.wait_healthy(&script.container);
    assert_eq!(script.token(), token);
    site.build(&script, &script.eval("--lane webdav"));
    assert_eq!(script.counts(), (stored, FAILING_PROBES, 0));
}
