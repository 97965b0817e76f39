//! The status page as people meet it: each scene is caused for real and looked at in light and dark, on a desk and on a
//! phone. Each look is checked for faults of access, and kept as a picture for those who want to see it with their own
//! eyes (`just screenshots`).

use crate::browser::Browser;
use crate::distributed::{CLIENT, client_file};
use crate::dock::{Dock, eventually};
use crate::harness::{Outcome, skip, tools, wait_for};
use crate::machine::Machine;
use crate::site::free_port;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::Duration;

const ENTER: &str = "\u{e007}";
const BUILDERS_TOKEN: &str = "token-of-the-builders";
/// Widths and heights of a phone and of a window on a desk.
const SCREENS: [(&str, u32, u32); 2] = [("phone", 390, 844), ("desk", 1280, 800)];

/// Somebody who opens the page, and keeps what there is to see.
struct Viewer {
    browser: Browser,
    checker: Option<String>,
    folder: PathBuf,
}

impl Viewer {
    /// `None`, and a line, where no browser is installed.
    fn open() -> Option<Viewer> {
        let checker = tools().join("axe/axe_playwright_python/axe.min.js");
        let checker = std::fs::read_to_string(&checker).ok();
        if checker.is_none() {
            skip("axe is not installed: run scripts/test");
        }
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("screens");
        std::fs::create_dir_all(&folder).unwrap();
        Some(Viewer {
            browser: Browser::start()?,
            checker,
            folder,
        })
    }

    fn log_in(&self, dock: &Dock) {
        self.browser.go(&url(dock));
        self.browser.write("#token", &dock.token());
        self.browser.press(ENTER);
        self.browser.await_element("main[data-live]");
    }

    /// Looks at what is open, in both colours and on both screens.
    fn look(&self, scene: &str) {
        for (screen, width, height) in SCREENS {
            self.browser.resize(width, height);
            for colours in ["light", "dark"] {
                self.browser.prefer(colours);
                self.check(&format!("{scene}, {colours}, {screen}"));
                let file = self.folder.join(format!("{scene}-{colours}-{screen}.png"));
                std::fs::write(file, self.browser.picture(true)).unwrap();
            }
        }
        let cost = "const all = ['navigation', 'resource'].flatMap((it) => performance.getEntriesByType(it));
            const sum = (of) => all.reduce((bytes, it) => bytes + it[of], 0);
            const paint = performance.getEntriesByName('first-contentful-paint')[0];
            return `${sum('decodedBodySize')} bytes in ${all.length} files (${sum('transferSize')} over the wire with heads), `
                + `first paint after ${Math.round(paint.startTime)} ms`";
        println!("{scene}: {}", self.browser.script(cost).as_str().unwrap());
    }

    /// Nothing is cut off at the side, and axe finds nothing.
    fn check(&self, what: &str) {
        let too_wide = "return [...document.querySelectorAll('body *')].filter((it) => !it.closest('.quiet, pre')
            && it.getBoundingClientRect().right > innerWidth).map((it) => it.outerHTML.slice(0, 80))";
        assert_eq!(self.browser.script(too_wide), json!([]), "{what}");
        let Some(checker) = &self.checker else { return };
        self.browser.script(checker);
        let found = self.browser.script(
            "return axe.run().then((it) => [it.violations.map((one) => one.id + ': ' + one.nodes.map((node) => node.html).join(' ')), it.passes.length])",
        );
        assert_eq!(found[0], json!([]), "{what}");
        assert!(found[1].as_u64() > Some(10), "{what}: {found}");
    }
}

fn url(dock: &Dock) -> String {
    let status = dock.status().unwrap();
    format!("http://{}", status["listen"].as_str().unwrap())
}

/// The answer's code to a request with a token.
fn ask(url: &str, token: &str, method: &str, path: &str, body: &[u8]) -> u16 {
    let agent = ureq::Agent::config_builder().http_status_as_error(false);
    let request = ureq::http::Request::builder()
        .method(method)
        .uri(format!("{url}/{path}"))
        .header("Authorization", format!("Bearer {token}"))
        .body(body)
        .unwrap();
    let agent: ureq::Agent = agent.build().into();
    agent.run(request).unwrap().status().as_u16()
}

#[test]
fn page_is_sound_before_and_after_the_login_and_while_nothing_happens() {
    let Some(viewer) = Viewer::open() else { return };
    let dock = Dock::start(&[]);
    let browser = &viewer.browser;
    browser.go(&url(&dock));
    browser.await_element("#token");
    viewer.look("login");
    browser.press(&format!("wrong{ENTER}"));
    browser.await_element("#trouble");
    viewer.look("login-refused");
    viewer.log_in(&dock);
    assert!(browser.source().contains("Everything is in order"));
    viewer.look("idle");
}

#[test]
fn page_is_sound_when_the_cache_is_full() {
    let Some(viewer) = Viewer::open() else { return };
    let tokens = tempfile::NamedTempFile::new().unwrap();
    let entry = |name: &str, access: &str| {
        format!(
            "[[token]]\nname = \"{name}\"\ntoken = \"{name}-0123456789abcdef\"\naccess = \"{access}\"\n"
        )
    };
    let layers = "[[token]]\nname = \"pull-request-42\"\ntoken = \"pulls-0123456789abcdef\"\n\
        read = [\"pr/42\", \"main\"]\nwrite = \"pr/42\"\n";
    let text = [
        entry("ci", "write"),
        entry("laptops", "read"),
        layers.into(),
    ]
    .concat();
    std::fs::write(&tokens, text).unwrap();
    let dock = Dock::start(&[
        ("SCCACHE_CACHE_SIZE", "8M"),
        ("SCCACHE_TOKENS_FILE", tokens.path().to_str().unwrap()),
    ]);
    let url = url(&dock);
    let (ci, laptop) = ("ci-0123456789abcdef", "laptops-0123456789abcdef");
    for number in 0..40 {
        let namespace = ["cas", "ccache", "team/backend/linux-x86_64"][number % 3];
        let path = format!("{namespace}/{number:064x}");
        assert_eq!(ask(&url, ci, "GET", &path, b""), 404);
        assert_eq!(ask(&url, ci, "PUT", &path, &vec![7; 600_000]), 201);
        assert_eq!(ask(&url, laptop, "GET", &path, b""), 200);
    }
    // Evicted by now, each of them: a lost hit.
    for number in 0..5 {
        let namespace = ["cas", "ccache", "team/backend/linux-x86_64"][number % 3];
        let path = format!("{namespace}/{number:064x}");
        assert_eq!(ask(&url, laptop, "GET", &path, b""), 404);
    }
    assert_eq!(ask(&url, laptop, "PUT", "cas/x", b"x"), 403);
    assert_eq!(ask(&url, "of-nobody", "GET", "cas/x", b""), 401);
    let store = &dock.status().unwrap()["cache"]["store"];
    assert!(store["evicted_entries"].as_u64() > Some(20), "{store}");
    viewer.log_in(&dock);
    viewer.look("full");
}

/// A cluster of one scheduler and two builders on loopback, and a client of it.
struct Farm {
    dock: Dock,
    client: Machine,
}

impl Farm {
    /// With the other builder, which can be lost.
    fn start() -> (Farm, Dock) {
        let front = format!("127.0.0.1:{}", free_port());
        let builder = || format!("127.0.0.1:{}", free_port());
        let dock = Dock::start(&[
            ("MODE", "distributed-ephemeral"),
            ("SCCACHE_SCHEDULER_LISTEN", &front),
            ("SCCACHE_BUILDER_LISTEN", &builder()),
            ("SCCACHE_PUBLIC_ADDR", "127.0.0.1"),
            ("SCCACHE_SERVER_TOKEN", BUILDERS_TOKEN),
            ("SCCACHE_BUILDER_SLOTS", "1"),
        ]);
        let other = Dock::start(&[
            ("MODE", "builder"),
            ("SCCACHE_SCHEDULER_URL", &format!("http://{front}")),
            ("SCCACHE_BUILDER_LISTEN", &builder()),
            ("SCCACHE_PUBLIC_ADDR", "127.0.0.1"),
            ("SCCACHE_SERVER_TOKEN", BUILDERS_TOKEN),
            ("SCCACHE_BUILDER_SLOTS", "2"),
        ]);
        let client = Machine::new();
        client.write("dist.toml", &client_file(&front, &dock.token()));
        client.write(
            "it.cpp",
            "#include <regex>\n#include <map>\n#include <string>\nint main(int c, char **v) {\n\
             std::map<std::string, std::regex> m; for (int i = 0; i < c; i++) m[v[i]] = std::regex(v[i]);\n\
             return m.size() + N; }\n",
        );
        (Farm { dock, client }, other)
    }

    /// A build of some files, and again with more of them: those of before come from the cache.
    fn build(&self) -> Outcome {
        let printed = self
            .dock
            .command(&["client-env", "--no-disk", "--lane", "webdav"]);
        self.client
            .write("env", &String::from_utf8(printed.stdout).unwrap());
        // The cluster's file stands beside the cache's variables.
        let script = format!(
            ". ./env\n{CLIENT}for files in 8 24; do\n\
             seq $files | xargs -P 3 -I {{}} sccache c++ -O1 -DN={{}} -c it.cpp -o {{}}.o || exit 1\n\
             done"
        );
        self.client.sh(&script)
    }

    fn builders(&self) -> Vec<Value> {
        let status = self.dock.status().unwrap();
        let builders = status["cache"]["dist"]["builders"].as_array().cloned();
        builders.unwrap_or_default()
    }
}

#[test]
fn page_is_sound_during_a_build_and_when_a_builder_is_lost() {
    if !Path::new("/usr/bin/bwrap").exists() {
        return skip("bubblewrap is not installed");
    }
    let Some(viewer) = Viewer::open() else { return };
    let (farm, other) = Farm::start();
    eventually("both builders", || {
        (farm.builders().len() == 2).then_some(())
    });
    viewer.log_in(&farm.dock);
    std::thread::scope(|scope| {
        let build = scope.spawn(|| farm.build());
        wait_for("hits and jobs of a build", Duration::from_secs(240), || {
            // A look is a process of its own, and the build wants the machine.
            std::thread::sleep(Duration::from_millis(200));
            assert!(!build.is_finished(), "{:?}", farm.builders());
            let hits = farm.dock.status()?["cache"]["totals"]["hits"].as_u64();
            let mut jobs = farm.builders().into_iter().map(|it| it["jobs"].as_u64());
            (hits >= Some(8) && jobs.any(|it| it > Some(0))).then_some(())
        });
        viewer.browser.go(&url(&farm.dock));
        viewer.browser.await_element("main[data-live]");
        viewer.look("build");
        let built = build.join().unwrap();
        assert_eq!(built.code, Some(0), "{}", built.output);
    });
    drop(other);
    wait_for("the loss", Duration::from_secs(150), || {
        std::thread::sleep(Duration::from_secs(1));
        let lost = |builder: &Value| builder["state"] == "lost";
        farm.builders().iter().any(lost).then_some(())
    });
    viewer.browser.go(&url(&farm.dock));
    viewer.browser.await_element(".verdict:not(.well)");
    viewer.look("lost");
    // What docs/operating.md shows.
    viewer.browser.prefer("light");
    viewer.browser.resize(1280, 655);
    viewer
        .browser
        .command("Emulation.setScrollbarsHidden", json!({ "hidden": true }));
    let shown = viewer.folder.join("status-page.png");
    std::fs::write(shown, viewer.browser.picture(false)).unwrap();
}
