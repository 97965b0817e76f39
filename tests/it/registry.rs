//! An image registry of a test's own, on a port of this machine: Docker and Helm take it without a certificate.

use crate::docker::PATIENCE;
use crate::harness::{Process, clean, has_program, skip, tools, wait_for};
use crate::site::free_port;
use std::fs;
use std::net::TcpStream;
use std::sync::Arc;

/// Gone, with what was pushed, at the end of its test.
pub(crate) struct Registry {
    _process: Process,
    folder: Arc<tempfile::TempDir>,
    /// `127.0.0.1:PORT`, with which its names begin.
    pub(crate) host: String,
}

impl Registry {
    /// `None`, and a line, where there is no such program; a failure there in CI.
    pub(crate) fn start() -> Option<Registry> {
        Registry::of(Arc::new(tempfile::tempdir().unwrap()), "")
    }

    /// Another one with the same images, which wants a token: any that a client gets from `realm`, a URL.
    pub(crate) fn with_tokens(&self, realm: &str) -> Option<Registry> {
        let auth = format!("auth:\n  silly:\n    realm: {realm}\n    service: images\n");
        Registry::of(Arc::clone(&self.folder), &auth)
    }

    fn of(folder: Arc<tempfile::TempDir>, auth: &str) -> Option<Registry> {
        let program = tools().join("docker-registry/bin/docker-registry");
        if !program.exists() && !has_program("docker-registry") {
            skip("no image registry");
            return None;
        }
        let port = free_port();
        let config = folder.path().join(format!("{port}.yml"));
        let text = format!(
            "version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: 127.0.0.1:{port}\n{auth}",
            folder.path().join("images").display()
        );
        fs::write(&config, text).unwrap();
        let process = Process::start(clean(program).arg("serve").arg(&config));
        wait_for("the registry", PATIENCE, || {
            TcpStream::connect(("127.0.0.1", port)).ok()
        });
        Some(Registry {
            _process: process,
            folder,
            host: format!("127.0.0.1:{port}"),
        })
    }
}
