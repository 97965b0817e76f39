//! A restart of the cache while builds run: none fails, and it is back.

use crate::dock::eventually;
use crate::docker::{LONG, Ran};
use crate::site::{Script, Site};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

/// A client that sccache's own variables do not reach, but for its address.
fn default_settings(script: &Script) -> String {
    format!("export SCCACHE_SERVER_PORT={}", script.port)
}

/// Files of C that nobody has compiled before, one after the other or two at a time; its last line is how many objects
/// there are. What a daemon of the client's own has kept goes with it.
pub(crate) fn build(site: &Site, script: &Script, prepare: &str, files: usize) -> Ran {
    let text = format!(
        "{prepare}; work=$(mktemp -d) && export SCCACHE_DIR=$work/disk && cd $work || exit 9
        for i in $(seq {files}); do echo \"int f$i(void) {{ return $$$i; }}\" >a$i.c; done
        seq {files} | xargs -P 2 -I @ sccache cc -c a@.c -o a@.o; code=$?
        ls *.o | wc -l; rm -rf $work; exit $code"
    );
    site.shell(script, &text, LONG)
}

/// Whether the container runs, and what Docker has against it.
fn state(script: &Script) -> String {
    let format = "{{.State.Status}} {{.State.Error}}";
    script.docker.inspect(&script.container, format)
}

#[test]
fn restart_by_the_script_lets_go_of_no_port_and_fails_no_build() {
    let Some(site) = Site::open() else { return };
    site.install_client();
    let script = site.script("in-place");
    script.call(&["start", "ephemeral"]).ok();
    let pids = script.docker.pids(&script.container);
    let (done, refused) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(SeqCst) {
                let connected = TcpStream::connect(("127.0.0.1", script.port));
                refused.fetch_add(usize::from(connected.is_err()), SeqCst);
                // Not so often that this machine has no port left to connect from.
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        let ipc = script.eval("--lane ipc");
        let socket = script.eval("--lane socket");
        for prepare in [default_settings(&script), ipc, socket] {
            let building = scope.spawn({
                let (site, script, prepare) = (&site, &script, prepare.clone());
                move || build(site, script, &prepare, 100)
            });
            script.call(&["restart"]).ok();
            let built = building.join().unwrap();
            assert!(built.stdout.ends_with("100\n"), "{prepare}: {built:?}");
            built.ok();
        }
        done.store(true, SeqCst);
    });
    assert_eq!(refused.load(SeqCst), 0, "connections were refused");
    assert_ne!(script.docker.pids(&script.container), pids);
}

#[test]
fn container_comes_back_where_a_client_has_taken_its_port() {
    let Some(site) = Site::open() else { return };
    site.install_client();
    let script = site.script("taken");
    script.call(&["start", "ephemeral"]).ok();
    for prepare in [default_settings(&script), script.eval("--lane ipc")] {
        script.docker.ok(&["stop", &script.container]);
        // It finds nothing there, and starts a daemon.
        build(&site, &script, &default_settings(&script), 1).ok();
        let by_hand = script.docker.run(&["start", &script.container]);
        assert_ne!(by_hand.code, Some(0), "the port is free: {by_hand:?}");
        let restarted = script.call(&["restart"]);
        assert!(
            restarted.stderr.contains("it is told to end"),
            "{restarted:?}"
        );
        restarted.ok();
        assert_eq!(state(&script), "running");
        build(&site, &script, &prepare, 3).ok();
    }
}

/// What people type who do not know better.
#[test]
fn socket_is_shared_again_after_a_restart_by_docker() {
    let Some(site) = Site::open() else { return };
    site.install_client();
    let script = site.script("by-hand");
    script.call(&["start", "ephemeral"]).ok();
    let prepare = script.eval("--lane socket");
    for _ in 0..2 {
        script.docker.ok(&["restart", &script.container]);
        script.docker.wait_healthy(&script.container);
        assert_eq!(state(&script), "running");
        build(&site, &script, &prepare, 3).ok();
        eventually("its results", || (script.counts().2 >= 3).then_some(()));
    }
}

/// A stop and a start by hand, and an update: a new container from a new image, with the old one's folder.
#[test]
fn builds_by_webdav_go_on_while_the_container_is_stopped_and_while_it_is_updated() {
    let Some(site) = Site::open() else { return };
    site.install_client();
    let folder = tempfile::tempdir().unwrap();
    let script = site.script("away");
    let start = ["start", "persistent", folder.path().to_str().unwrap()];
    script.call(&start).ok();
    let token = script.token();
    let newer = Newer::of(&site);
    let updated = script.with_image(&newer.0);

    let by_hand = || {
        script.docker.ok(&["stop", &script.container]);
        script.docker.ok(&["start", &script.container]);
    };
    let update = || {
        let told = updated.call(&start);
        assert!(told.stderr.contains("an older image"), "{told:?}");
        updated.call(&["remove"]).ok();
        updated.call(&start).ok();
    };
    let actions: [&dyn Fn(); 2] = [&by_hand, &update];
    for action in actions {
        builds_go_on(&site, &script, action);
        script.docker.wait_healthy(&script.container);
        assert_eq!(script.token(), token);
        let before = script.counts().2;
        build(&site, &script, &script.eval("--lane webdav"), 3).ok();
        eventually("its results", || {
            (script.counts().2 >= before + 3).then_some(())
        });
    }
    let used = "{{.Config.Image}}";
    assert_eq!(script.docker.inspect(&script.container, used), newer.0);
}

/// No compile of builds by the lane `webdav` fails while `action` takes the cache away and brings it back: neither those
/// of a daemon that has seen the cache nor those of one that starts meanwhile.
pub(crate) fn builds_go_on(site: &Site, script: &Script, action: &dyn Fn()) {
    // Asked while the container is there.
    let same_daemon = script.call(&["env", "--lane", "webdav"]).ok();
    let new_daemon = format!("{same_daemon}\nsccache --stop-server >&2 || true");
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let building = scope.spawn(|| {
            for prepare in [&same_daemon, &new_daemon].into_iter().cycle() {
                let built = build(site, script, prepare, 30);
                assert!(built.stdout.ends_with("30\n"), "{built:?}");
                built.ok();
                if is_over.load(SeqCst) {
                    return;
                }
            }
        });
        action();
        is_over.store(true, SeqCst);
        building.join().unwrap();
    });
}

/// The image under test with one label more, as a new version is.
struct Newer(String);

impl Newer {
    fn of(site: &Site) -> Newer {
        let name = format!("{}-newer", site.image);
        let text = format!("FROM {}\nLABEL newer=yes\n", site.image);
        let context = tempfile::tempdir().unwrap();
        std::fs::write(context.path().join("Dockerfile"), text).unwrap();
        let path = context.path().to_str().unwrap();
        site.docker.ok(&["build", "--quiet", "--tag", &name, path]);
        Newer(name)
    }
}

impl Drop for Newer {
    fn drop(&mut self) {
        let _ = std::process::Command::new("docker")
            .args(["rmi", &self.0])
            .output();
    }
}
