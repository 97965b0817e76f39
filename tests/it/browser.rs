//! A real Chromium without a window, driven over WebDriver by its own driver; both gone at the end of the test.

use crate::harness::{now, wait_for};
use base64::Engine;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// What a page may take on a busy machine.
const CEILING: Duration = Duration::from_secs(40);
const PROGRAMS: [&str; 2] = ["/usr/bin/chromium", "/usr/bin/chromedriver"];

pub(crate) struct Browser {
    driver: Child,
    agent: ureq::Agent,
    session: String,
}

impl Browser {
    /// `None`, and a line, where no browser is installed.
    pub(crate) fn start() -> Option<Browser> {
        Browser::start_with(json!({}))
    }

    /// The same, with preferences of the browser.
    pub(crate) fn start_with(preferences: Value) -> Option<Browser> {
        if let Some(missing) = PROGRAMS.into_iter().find(|it| !Path::new(it).exists()) {
            crate::harness::skip(&format!("{missing} is not installed"));
            return None;
        }
        let mut driver = Command::new(PROGRAMS[1])
            .arg("--port=0")
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(driver.stdout.take().unwrap()).lines();
        let line = lines.find_map(|line| line.ok().filter(|line| line.contains("started")));
        // It may go on printing.
        std::thread::spawn(move || lines.for_each(drop));
        let line = line.expect("the driver starts");
        let port = line.trim_end_matches('.').rsplit(' ').next().unwrap();
        let config = ureq::Agent::config_builder()
            .timeout_global(Some(CEILING))
            .http_status_as_error(false)
            .proxy(None);
        let mut browser = Browser {
            driver,
            agent: config.build().into(),
            session: format!("http://127.0.0.1:{port}/session"),
        };
        // Without a sandbox of its own, as root needs it; small containers have a small /dev/shm.
        let made = browser.call(
            "",
            &json!({ "capabilities": { "alwaysMatch": {
                "browserName": "chrome",
                "timeouts": { "script": 40_000 },
                "goog:chromeOptions": {
                    "binary": PROGRAMS[0],
                    "prefs": preferences,
                    "args": [
                        "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                        "--no-proxy-server", "--window-size=1280,1000",
                    ],
                },
            } } }),
        );
        let id = made["sessionId"].as_str().unwrap();
        browser.session = format!("{}/{id}", browser.session);
        Some(browser)
    }

    fn call(&self, path: &str, body: &Value) -> Value {
        self.try_call(path, body)
            .unwrap_or_else(|error| panic!("{path} {body}: {error}"))
    }

    fn try_call(&self, path: &str, body: &Value) -> Result<Value, Value> {
        let url = format!("{}{path}", self.session);
        let sent = self.agent.post(&url).content_type("application/json");
        let mut answer = sent.send(body.to_string()).unwrap();
        let text = answer.body_mut().read_to_string().unwrap();
        let mut value: Value = serde_json::from_str(&text).unwrap();
        match answer.status().as_u16() {
            200 => Ok(value["value"].take()),
            _ => Err(value),
        }
    }

    pub(crate) fn go(&self, url: &str) {
        self.call("/url", &json!({ "url": url }));
    }

    /// The page as it is now.
    pub(crate) fn source(&self) -> String {
        let url = format!("{}/source", self.session);
        let mut answer = self.agent.get(&url).call().unwrap();
        let text = answer.body_mut().read_to_string().unwrap();
        let value: Value = serde_json::from_str(&text).unwrap();
        value["value"].as_str().unwrap_or_default().to_owned()
    }

    fn find(&self, css: &str) -> Option<String> {
        let how = json!({ "using": "css selector", "value": css });
        let found = self.try_call("/element", &how).ok()?;
        let element = found.as_object()?.values().next()?;
        Some(element.as_str()?.to_owned())
    }

    /// Waits for an element.
    pub(crate) fn await_element(&self, css: &str) -> String {
        wait_for(&format!("{css} in {}", self.source()), CEILING, || {
            self.find(css)
        })
    }

    pub(crate) fn has(&self, css: &str) -> bool {
        self.find(css).is_some()
    }

    pub(crate) fn click(&self, css: &str) {
        let element = self.await_element(css);
        self.call(&format!("/element/{element}/click"), &json!({}));
    }

    /// Writes into a field.
    pub(crate) fn write(&self, css: &str, text: &str) {
        let element = self.await_element(css);
        self.call(
            &format!("/element/{element}/value"),
            &json!({ "text": text }),
        );
    }

    /// Presses keys, whatever has the focus. `\u{e004}` is Tab, `\u{e007}` Enter.
    pub(crate) fn press(&self, keys: &str) {
        let keys = keys.chars().flat_map(|key| {
            ["keyDown", "keyUp"].map(|kind| json!({ "type": kind, "value": key.to_string() }))
        });
        let keys: Vec<Value> = keys.collect();
        let keyboard = json!({ "type": "key", "id": "keyboard", "actions": keys });
        self.call("/actions", &json!({ "actions": [keyboard] }));
    }

    /// What a script returns; promises are waited for.
    pub(crate) fn script(&self, script: &str) -> Value {
        self.call("/execute/sync", &json!({ "script": script, "args": [] }))
    }

    /// Waits until a script returns true.
    pub(crate) fn await_script(&self, script: &str) {
        wait_for(script, CEILING, || {
            (self.script(script) == Value::Bool(true)).then_some(())
        });
    }

    /// A command of the browser's own protocol.
    pub(crate) fn command(&self, name: &str, parameters: Value) -> Value {
        let command = json!({ "cmd": name, "params": parameters });
        self.call("/goog/cdp/execute", &command)
    }

    /// The screen as PNG, or the whole page.
    pub(crate) fn picture(&self, is_whole: bool) -> Vec<u8> {
        let height = if is_whole {
            "document.documentElement.scrollHeight"
        } else {
            "innerHeight"
        };
        let height = self.script(&format!("return {height}"));
        let width = self.script("return innerWidth");
        let taken = self.command(
            "Page.captureScreenshot",
            json!({
                "captureBeyondViewport": is_whole,
                "clip": { "x": 0, "y": 0, "width": width, "height": height, "scale": 1 },
            }),
        );
        let taken = taken["data"].as_str().unwrap();
        base64::engine::general_purpose::STANDARD
            .decode(taken)
            .unwrap()
    }

    /// A screen of this many pixels; a narrow one is a phone's.
    pub(crate) fn resize(&self, width: u32, height: u32) {
        self.command(
            "Emulation.setDeviceMetricsOverride",
            json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600 }),
        );
    }

    /// `light` or `dark`.
    pub(crate) fn prefer(&self, colours: &str) {
        let feature = json!({ "name": "prefers-color-scheme", "value": colours });
        self.command(
            "Emulation.setEmulatedMedia",
            json!({ "features": [feature] }),
        );
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // The browser ends with its session, and takes its folder with it.
        let _ = self.agent.delete(&self.session).call();
        let group = nix::unistd::Pid::from_raw(i32::try_from(self.driver.id()).unwrap());
        let _ = nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGKILL);
        let start = now();
        while self.driver.try_wait().is_ok_and(|ended| ended.is_none()) && start.elapsed() < CEILING
        {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}
