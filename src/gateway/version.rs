//! The version of the supervised sccache.

use super::Gateway;
use std::io::{self, BufRead};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use tracing::warn;

/// Most bytes of a version's line.
const LONGEST_VERSION: u64 = 256;

impl Gateway {
    /// Runs the supervised sccache once; without an answer the version stays unknown.
    pub(super) fn ask_sccache_version(&self) {
        if let Some(version) = self.config.sccache.as_deref().and_then(version_of) {
            // Asked once, so set once.
            let _ = self.sccache_version.set(version);
        }
    }
}

/// The last word of the first line that `PROGRAM --version` prints.
fn version_of(program: &Path) -> Option<String> {
    let mut child = Command::new(program)
        .arg("--version")
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .inspect_err(|cause| warn!("cannot run \"{}\": {cause}", program.display()))
        .ok()?;
    let mut line = String::new();
    let mut output = io::BufReader::new(io::Read::take(child.stdout.take()?, LONGEST_VERSION));
    let read = output.read_line(&mut line);
    // It may go on printing for ever; a program that has ended cannot be killed, which is fine.
    drop(output);
    let _ = child.kill();
    reap(&mut child);
    read.ok()?;
    line.split_whitespace().last().map(str::to_owned)
}

#[expect(
    clippy::disallowed_methods,
    reason = "the gateway's own child, not a service"
)]
fn reap(child: &mut Child) {
    let _ = child.wait();
}
