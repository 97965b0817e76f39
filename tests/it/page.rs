//! The status page: who may see what, and how it works in a real browser.

use crate::browser::Browser;
use crate::dock::{Dock, eventually};
use crate::harness::{Answer, Gateway, READER, WRITER, finish, wait_for};
use nix::sys::signal::{Signal, kill};
use sccache_dock::contract::gateway_config::TlsFiles;
use serde_json::{Value, json};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::Duration;

const CEILING: Duration = Duration::from_secs(40);
const TAB: &str = "\u{e004}";
const ENTER: &str = "\u{e007}";
const TEAM: &str = "team-token-0123456789";

/// A request as browsers send it.
fn browse(gateway: &Gateway, method: &str, path: &str, fields: &[&str], body: &str) -> Answer {
    let mut head = format!(
        "{method} {path} HTTP/1.1\r\nHost: {}\r\nAccept: text/html\r\nConnection: close\r\nContent-Length: {}\r\n",
        gateway.addr,
        body.len()
    );
    for field in fields {
        head += &format!("{field}\r\n");
    }
    let mut stream = gateway.connect();
    write!(stream, "{head}\r\n{body}").unwrap();
    Answer::read(&mut stream)
}

/// The value of a field of the answer; its case is as it was sent, unlike in `head`.
fn log_in(gateway: &Gateway, token: &str) -> (Answer, String) {
    let body = format!("token={token}");
    let mut stream = gateway.connect();
    write!(
        stream,
        "POST /api/login HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        gateway.addr,
        body.len()
    )
    .unwrap();
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut stream, &mut bytes).unwrap();
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let cookie = text
        .lines()
        .find_map(|line| line.strip_prefix("set-cookie: "))
        .unwrap_or_default();
    (Answer::read(&mut &bytes[..]), cookie.to_owned())
}

/// The field with which a browser sends a cookie back.
fn sent_back(cookie: &str) -> String {
    format!("Cookie: other=1; {}", cookie.split(';').next().unwrap())
}

fn shows_status(answer: &Answer) -> bool {
    assert_eq!(answer.code, 200, "{}", answer.text());
    answer.text().contains("data-live")
}

#[test]
fn login_gives_a_cookie_that_is_no_token_and_opens_the_status_only() {
    let gateway = Gateway::start();
    assert_eq!(gateway.request("PUT", "/cas/x", b"x").code, 201);
    assert!(!shows_status(&browse(&gateway, "GET", "/", &[], "")));
    let (answer, cookie) = log_in(&gateway, WRITER);
    assert_eq!(answer.code, 303);
    assert!(
        answer.head.contains("\r\nlocation: /\r\n"),
        "{}",
        answer.head
    );
    let attributes: Vec<&str> = cookie.split("; ").skip(1).collect();
    assert_eq!(
        attributes,
        ["Path=/", "Max-Age=43200", "HttpOnly", "SameSite=Strict"]
    );
    assert!(!cookie.contains(WRITER));
    let field = sent_back(&cookie);
    let with_cookie = |method, path| browse(&gateway, method, path, &[&field], "").code;
    assert!(shows_status(&browse(&gateway, "GET", "/", &[&field], "")));
    assert_eq!(with_cookie("GET", "/api/status"), 200);
    for (method, path) in [
        ("GET", "/cas/x"),
        ("HEAD", "/cas/x"),
        ("PUT", "/cas/y"),
        ("DELETE", "/cas/x"),
        ("GET", "/metrics"),
        ("POST", "/api/purge"),
    ] {
        assert_eq!(with_cookie(method, path), 401, "{method} {path}");
    }
    let out = browse(&gateway, "POST", "/api/logout", &[&field], "");
    assert_eq!(out.code, 303);
    assert!(out.head.contains("max-age=0"), "{}", out.head);
    assert!(!shows_status(&browse(&gateway, "GET", "/", &[&field], "")));
    assert_eq!(with_cookie("GET", "/api/status"), 401);
    assert!(!gateway.process.log().contains(WRITER));
}

#[test]
fn page_forbids_all_but_its_own_script_and_style() {
    let gateway = Gateway::start_with(|config| config.anonymous_read = true);
    let answer = browse(&gateway, "GET", "/", &[], "");
    assert!(shows_status(&answer));
    let policy = answer
        .head
        .lines()
        .find_map(|line| line.strip_prefix("content-security-policy: "))
        .unwrap()
        .to_owned();
    assert!(
        policy.contains("default-src 'none'") && !policy.contains("unsafe"),
        "{policy}"
    );
    let again = browse(&gateway, "GET", "/", &[], "");
    assert!(!again.head.contains(&policy), "a nonce is for one answer");
    for path in ["/api/page.css", "/api/page.js"] {
        let asset = browse(&gateway, "GET", path, &[], "");
        assert_eq!(asset.code, 200);
        assert!(asset.head.contains("nosniff") && asset.head.contains("immutable"));
        assert!(
            !asset.text().contains("http"),
            "{path} asks for nothing outside"
        );
    }
    // Programs get words instead.
    assert!(
        gateway
            .request("GET", "/", b"")
            .text()
            .starts_with("sccache-dock ")
    );
    // What everybody may read is no reason to take any token for a login.
    assert_eq!(log_in(&gateway, "wrong").0.code, 401);
}

#[test]
fn wrong_tokens_at_the_login_are_limited_like_all_others() {
    let gateway = Gateway::start();
    let codes: Vec<u16> = (0..40).map(|_| log_in(&gateway, "wrong").0.code).collect();
    assert_eq!(codes[..20], [401; 20]);
    assert_eq!(codes[39], 429);
    assert_eq!(
        log_in(&gateway, READER).0.code,
        303,
        "the right one is served"
    );
    let status = gateway.status();
    assert!(status.totals.auth_failures >= 40, "{status:?}");
    assert!(status.refusals["auth_flood"] > 0, "{status:?}");
    // The limit is on the address, whichever way it tries.
    let refused = gateway.request_as(Some("wrong"), "GET", "/cas/x", b"");
    assert_eq!(refused.code, 429);
}

#[test]
fn form_of_another_site_is_refused() {
    let gateway = Gateway::start();
    let (_, cookie) = log_in(&gateway, WRITER);
    let field = sent_back(&cookie);
    for foreign in ["Origin: http://evil.example", "Sec-Fetch-Site: cross-site"] {
        for path in ["/api/login", "/api/logout"] {
            let body = format!("token={WRITER}");
            let answer = browse(&gateway, "POST", path, &[&field, foreign], &body);
            assert_eq!(answer.code, 403, "{path} {foreign}");
            assert!(!answer.head.contains("set-cookie"));
        }
    }
    assert!(shows_status(&browse(&gateway, "GET", "/", &[&field], "")));
}

#[test]
fn cookie_dies_with_its_token_and_survives_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tokens.toml");
    let named =
        |token: &str| format!("[[token]]\nname = \"ci\"\ntoken = \"{token}\"\naccess = \"read\"\n");
    std::fs::write(&file, named(TEAM)).unwrap();
    let mut gateway = Gateway::start_with(|config| config.tokens_file = Some(file.clone()));
    wait_for("the named token", CEILING, || {
        gateway
            .status()
            .tokens
            .by_name
            .contains_key("ci")
            .then_some(())
    });
    let (answer, cookie) = log_in(&gateway, TEAM);
    assert_eq!(answer.code, 303);
    let field = sent_back(&cookie);
    let (_, own) = log_in(&gateway, WRITER);
    let (_, given_back) = log_in(&gateway, WRITER);
    let given_back = sent_back(&given_back);
    let shows =
        |gateway: &Gateway, field: &str| shows_status(&browse(gateway, "GET", "/", &[field], ""));
    assert!(shows(&gateway, &given_back));
    browse(&gateway, "POST", "/api/logout", &[&given_back], "");
    gateway.config.listen = gateway.addr;
    gateway.process.signal(Signal::SIGKILL);
    gateway.process.exit();
    gateway.restart();
    wait_for("the cookie to be good again", CEILING, || {
        shows_status(&browse(&gateway, "GET", "/", &[&field], "")).then_some(())
    });
    assert!(!shows(&gateway, &given_back), "a log-out holds");
    std::fs::write(&file, named("another-token-0123456789")).unwrap();
    wait_for("the cookie to die", CEILING, || {
        (!shows_status(&browse(&gateway, "GET", "/", &[&field], ""))).then_some(())
    });
    let field = sent_back(&own);
    assert!(shows(&gateway, &field));
    // With the list of log-outs all logins are gone: a container made anew with the same tokens.
    let kept = gateway.config.store_dir.join("logins");
    let mode = std::fs::metadata(&kept).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    gateway.process.signal(Signal::SIGKILL);
    gateway.process.exit();
    std::fs::remove_file(kept).unwrap();
    gateway.restart();
    for field in [&field, &given_back] {
        assert!(!shows(&gateway, field));
    }
}

#[test]
fn token_of_a_namespace_sees_its_own_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tokens.toml");
    let named = format!(
        "[[token]]\nname = \"crew\"\ntoken = \"{TEAM}\"\naccess = \"write\"\nnamespaces = [\"team\"]\n"
    );
    std::fs::write(&file, named).unwrap();
    let gateway = Gateway::start_with(|config| config.tokens_file = Some(file));
    wait_for("the named token", CEILING, || {
        (gateway.request_as(Some(TEAM), "PUT", "/team/x", b"x").code == 201).then_some(())
    });
    assert_eq!(gateway.request("PUT", "/secret-project/x", b"x").code, 201);
    // A warning names it.
    assert_eq!(
        gateway
            .request_as(Some(TEAM), "GET", "/secret-project/x", b"")
            .code,
        403
    );
    let status = gateway.request_as(Some(TEAM), "GET", "/api/status", b"");
    assert_eq!(status.code, 200);
    let parsed: Value = serde_json::from_slice(&status.body).unwrap();
    assert_eq!(parsed["totals"]["writes"], 1);
    assert_eq!(parsed["namespaces"].as_object().unwrap().len(), 1);
    let (_, cookie) = log_in(&gateway, TEAM);
    let page = browse(&gateway, "GET", "/", &[&sent_back(&cookie)], "");
    assert!(shows_status(&page));
    for text in [status.text(), page.text()] {
        assert!(text.contains("team") && text.contains("crew"), "{text}");
        for hidden in ["secret-project", "\"auth\"", ">auth<", "peer="] {
            assert!(!text.contains(hidden), "{hidden} in {text}");
        }
    }
    assert_eq!(
        gateway.request_as(Some(TEAM), "GET", "/metrics", b"").code,
        403
    );
    assert!(
        gateway
            .request("GET", "/api/status", b"")
            .text()
            .contains("secret-project")
    );
}

#[test]
fn grants_are_shown_as_they_were_understood_to_those_who_may_see_all() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tokens.toml");
    let named = format!(
        "[[token]]\nname = \"crew\"\ntoken = \"{TEAM}\"\nread = [\"pr/1\", \"main\"]\nwrite = \"pr/1\"\n\
         [[token]]\nname = \"rack\"\ncertificate = \"rack-7.example\"\naccess = \"build\"\n\
         [[issuer]]\nname = \"github\"\nurl = \"http://127.0.0.1:9\"\njwks = \"http://127.0.0.1:9/keys\"\n\
         audience = \"cache\"\n\
         [[rule]]\nname = \"pulls\"\nissuer = \"github\"\n\
         claims = {{ repository_id = \"7\", event_name = [\"push\", \"schedule\"] }}\n\
         read = [\"pr/${{ref_number}}\", \"main\"]\nwrite = \"pr/${{ref_number}}\"\ndistribute = true\n"
    );
    std::fs::write(&file, named).unwrap();
    let gateway = Gateway::start_with(|config| config.tokens_file = Some(file));
    gateway.process.wait_for_line("named tokens in force");
    let status = gateway.status().tokens.by_name;
    let expected = [
        (
            "auth",
            "a token",
            "reads and writes every namespace that its path names; uses the cluster",
        ),
        (
            "read",
            "a token",
            "reads every namespace that its path names",
        ),
        ("crew", "a token", "reads pr/1, main; writes pr/1"),
        (
            "rack",
            "the certificate rack-7.example",
            "is a builder of the cluster",
        ),
        (
            "pulls",
            "an ID token of github with event_name = push or schedule, repository_id = 7",
            "reads pr/${ref_number}, main; writes pr/${ref_number}; uses the cluster",
        ),
    ];
    assert_eq!(status.len(), expected.len());
    let (_, cookie) = log_in(&gateway, WRITER);
    let page = browse(&gateway, "GET", "/", &[&sent_back(&cookie)], "").text();
    let page = page.split("Grants, as the server has").nth(1).unwrap();
    for (name, proof, grants) in expected {
        assert_eq!(
            (&*status[name].proof, &*status[name].grants),
            (proof, grants)
        );
        let row = format!("<th scope=\"row\">{name}</th>");
        let row = page
            .split(&row)
            .nth(1)
            .unwrap()
            .split("</tr>")
            .next()
            .unwrap();
        assert!(row.contains(proof) && row.contains(grants), "{row}");
    }
    assert!(!page.contains(TEAM) && !page.contains(WRITER));
    // Whose token is good for some namespaces only sees what that may do.
    let own = gateway
        .request_as(Some(TEAM), "GET", "/api/status", b"")
        .text();
    assert!(
        own.contains("reads pr/1, main") && !own.contains("rack-7"),
        "{own}"
    );
    let (_, cookie) = log_in(&gateway, TEAM);
    let page = browse(&gateway, "GET", "/", &[&sent_back(&cookie)], "").text();
    assert!(
        page.contains("reads pr/1, main") && !page.contains("rack-7"),
        "{page}"
    );
}

#[test]
fn strangers_who_may_read_are_not_told_what_others_may() {
    let gateway = Gateway::start_with(|config| config.anonymous_read = true);
    let status = gateway.request_as(None, "GET", "/api/status", b"").text();
    assert!(
        status.contains("\"anonymous\"") && !status.contains("every namespace"),
        "{status}"
    );
    assert!(
        gateway.status().tokens.by_name["anonymous"]
            .grants
            .contains("reads every namespace")
    );
}

#[test]
fn services_are_shown_with_their_restarts_and_the_last_crash() {
    let dock = Dock::start(&[]);
    let listen = dock.address();
    let page = || {
        let asked = ureq::get(format!("http://{listen}/")).header("Accept", "text/html");
        let asked = asked.header("Authorization", format!("Bearer {}", dock.token()));
        asked.call().unwrap().body_mut().read_to_string().unwrap()
    };
    assert!(page().contains("Everything is in order"));
    assert_eq!(page().matches("class=\"state good\"").count(), 2);
    kill(dock.pid_of("server"), Signal::SIGKILL).unwrap();
    let row = eventually("the restart on the page", || {
        let page = page();
        let row = page.split("<th scope=\"row\">server</th>").nth(1)?;
        let row = row.split("</tr>").next()?;
        row.contains("data-name=\"Restarts\">1<")
            .then(|| row.to_owned())
    });
    let exit = dock.service("server")["last_crash"]["exit"]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(row.contains(&exit), "{exit:?} is not in {row}");
}

#[test]
fn cookie_over_tls_is_for_tls_only() {
    let folder = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let files = TlsFiles {
        cert: folder.path().join("cert.pem"),
        key: folder.path().join("key.pem"),
        min_version: Default::default(),
        client_ca: None,
    };
    std::fs::write(&files.cert, made.cert.pem()).unwrap();
    std::fs::write(&files.key, made.signing_key.serialize_pem()).unwrap();
    let gateway = Gateway::start_with(|config| config.tls = Some(files));
    let port = gateway.addr.port();
    let curl = |args: &[&str], path: &str| {
        let mut command = Command::new("curl");
        command.args(["--silent", "--insecure", "--include", "--noproxy", "*"]);
        command.args(["--max-time", "20", "--retry", "10", "--retry-all-errors"]);
        command.args(["--header", "Accept: text/html"]).args(args);
        finish(command.arg(format!("https://localhost:{port}{path}"))).output
    };
    let answer = curl(&["--data", &format!("token={READER}")], "/api/login");
    let cookie = answer
        .lines()
        .find_map(|line| line.strip_prefix("set-cookie: "))
        .unwrap_or_else(|| panic!("no cookie: {answer}"));
    assert!(
        cookie.starts_with(&format!("__Host-sccache-dock-{port}=")),
        "{cookie}"
    );
    assert!(cookie.trim_end().ends_with("; Secure"), "{cookie}");
    let page = curl(&["--header", &sent_back(cookie)], "/");
    assert!(page.contains("data-live"), "{page}");
    assert!(
        page.contains(&format!("https://localhost:{port}")),
        "clients use TLS too"
    );
}

/// Some use of the cache, with names that could do harm.
fn use_the_cache(gateway: &Gateway) {
    let evil = "%3Cimg%20src=x%20onerror=%22document.title='taken'%22%3E";
    for path in [
        "/cas/x",
        "/team/a-very-long-name-of-a-namespace-that-goes-on-and-on-without-any-gap/x",
        &format!("/{evil}/x"),
    ] {
        assert_eq!(gateway.request("GET", path, b"").code, 404);
        assert_eq!(gateway.request("PUT", path, &[7; 5000]).code, 201, "{path}");
        assert_eq!(gateway.request("GET", path, b"").code, 200);
    }
    assert_eq!(
        gateway
            .request_as(Some("wrong"), "GET", &format!("/{evil}"), b"")
            .code,
        401
    );
}

/// Logs in as people do.
fn enter(browser: &Browser, gateway: &Gateway) {
    browser.go(&gateway.url());
    browser.write("#token", WRITER);
    browser.press(ENTER);
    browser.await_element("main[data-live]");
}

/// What has the focus.
fn focus(browser: &Browser) -> String {
    let script =
        "const it = document.activeElement; return it.id || it.textContent.trim().slice(0, 30)";
    browser
        .script(script)
        .as_str()
        .unwrap_or_default()
        .to_owned()
}

#[test]
fn browser_logs_in_and_out_with_the_keyboard_alone() {
    let gateway = Gateway::start();
    use_the_cache(&gateway);
    let Some(browser) = Browser::start() else {
        return;
    };
    browser.go(&gateway.url());
    browser.await_element("#token");
    assert_eq!(focus(&browser), "token");
    browser.press(&format!("wrong{ENTER}"));
    browser.await_element("#trouble[role=alert]");
    assert_eq!(focus(&browser), "token");
    browser.press(&format!("{WRITER}{ENTER}"));
    browser.await_element("main[data-live]");
    assert_eq!(
        browser.script("return document.cookie"),
        "",
        "scripts see no cookie"
    );
    let mut order = Vec::new();
    for _ in 0..10 {
        browser.press(TAB);
        order.push(focus(&browser));
        let outline = "return getComputedStyle(document.activeElement).outlineStyle";
        assert_eq!(browser.script(outline), "solid", "{order:?}");
    }
    assert_eq!(
        order,
        [
            "Skip to the content",
            "pause",
            "Log out",
            "Connect a client",
            "10 minutes",
            "24 hours",
            "90 days",
            "The same as a table",
            "What each may do",
            "Shell"
        ]
    );
    let harmed =
        browser.script("return document.title.includes('taken') || document.images.length > 0");
    assert_eq!(harmed, false);
    assert!(
        browser.source().contains("&lt;img src=x onerror="),
        "the name is shown as it is"
    );
    browser.click("header form button");
    browser.await_element("#token");
    browser.go(&gateway.url());
    assert!(browser.has("#token"));
}

#[test]
fn page_refreshes_itself_and_comes_back_after_a_restart_of_the_gateway() {
    let mut gateway = Gateway::start();
    use_the_cache(&gateway);
    let Some(browser) = Browser::start() else {
        return;
    };
    enter(&browser, &gateway);
    browser.click("section[aria-labelledby=connect] details:last-of-type summary");
    browser.script("window.sameDocument = true; document.querySelector('#pause').focus()");
    let writes = "document.querySelector('section[aria-labelledby=namespaces]').textContent";
    assert_eq!(gateway.request("PUT", "/new-namespace/x", b"x").code, 201);
    browser.await_script(&format!("return {writes}.includes('new-namespace')"));
    let kept = "return window.sameDocument === true && document.activeElement.id === 'pause'
        && document.querySelector('section[aria-labelledby=connect] details:last-of-type').open";
    assert_eq!(
        browser.script(kept),
        true,
        "nothing but the figures changed"
    );

    gateway.config.listen = gateway.addr;
    gateway.process.signal(Signal::SIGKILL);
    gateway.process.exit();
    browser.await_script(
        "return document.querySelector('#away').textContent.startsWith('No answer since')",
    );
    gateway.restart();
    assert_eq!(
        gateway.request("PUT", "/after-the-restart/x", b"x").code,
        201
    );
    browser.await_script(&format!("return {writes}.includes('after-the-restart')"));
    assert_eq!(
        browser.script("return document.querySelector('#away').textContent"),
        ""
    );
    assert_eq!(browser.script(kept), true, "the login holds");

    browser.click("#pause");
    let paused = "return document.querySelector('#pause').textContent + document.querySelector('#away').textContent";
    assert_eq!(browser.script(paused), "Refresh againPaused");
    // A session that is over leads to the login.
    browser.command("Network.clearBrowserCookies", json!({}));
    browser.click("#pause");
    browser.await_element("#token");
}

#[test]
fn page_is_whole_without_javascript() {
    let gateway = Gateway::start();
    use_the_cache(&gateway);
    let off = json!({ "profile.managed_default_content_settings.javascript": 2 });
    let Some(browser) = Browser::start_with(off) else {
        return;
    };
    enter(&browser, &gateway);
    let page = browser.source();
    for part in [
        "Everything is in order",
        "Hit rate",
        "<path class=\"hits\"",
        "Namespaces",
        "Last warnings",
        "SCCACHE_WEBDAV_ENDPOINT",
    ] {
        assert!(page.contains(part), "{part:?} is not in\n{page}");
    }
    assert!(page.contains("http-equiv=\"refresh\""), "{page}");
    assert_eq!(gateway.request("PUT", "/new-namespace/x", b"x").code, 201);
    wait_for("the page to load itself again", CEILING, || {
        browser.source().contains("new-namespace").then_some(())
    });
    browser.click(".ranges a:last-child");
    browser.await_element(".ranges a:last-child[aria-current]");
}

#[test]
fn page_fits_a_phone_and_follows_light_and_dark() {
    let gateway = Gateway::start();
    use_the_cache(&gateway);
    let Some(browser) = Browser::start() else {
        return;
    };
    browser.go(&gateway.url());
    browser.await_element("#token");
    let too_wide = "return document.documentElement.scrollWidth > innerWidth";
    browser.resize(360, 740);
    assert_eq!(browser.script(too_wide), false, "the login");
    enter(&browser, &gateway);
    browser.script("document.querySelectorAll('details').forEach((it) => (it.open = true))");
    for width in [320, 360, 700, 1280] {
        browser.resize(width, 740);
        let widest = "return [...document.querySelectorAll('body *')].filter((it) => it.scrollWidth > innerWidth
            && !it.closest('.quiet')).map((it) => it.outerHTML.slice(0, 80)).join('\\n')";
        assert_eq!(
            browser.script(too_wide),
            false,
            "{width}: {}",
            browser.script(widest)
        );
    }
    let colours =
        "const it = getComputedStyle(document.body); return it.backgroundColor + ' ' + it.color";
    browser.prefer("light");
    let light = browser.script(colours);
    browser.prefer("dark");
    assert_ne!(browser.script(colours), light);
    browser.go(&gateway.url());
    browser.await_element("main[data-live]");
    let figures = "const all = [...performance.getEntriesByType('navigation'), ...performance.getEntriesByType('resource')];
        const paint = performance.getEntriesByName('first-contentful-paint')[0];
        return `${all.map((it) => `${new URL(it.name).pathname} ${it.decodedBodySize} bytes`).join(', ')}; first paint after ${paint?.startTime} ms`";
    println!("{}", browser.script(figures));
    let elsewhere = "return performance.getEntriesByType('resource').filter((it) => !it.name.startsWith(location.origin)).length";
    assert_eq!(browser.script(elsewhere), 0, "nothing is asked for outside");
}
