//! An image registry of a test's own, on a port of this machine: Docker and Helm take it without a certificate.

use crate::docker::PATIENCE;
use crate::harness::{Process, clean, has_program, skip, tools, wait_for};
use crate::site::free_port;
use std::fs;
use std::net::TcpStream;

/// Gone, with what was pushed, at the end of its test.
pub(crate) struct Registry {
    _process: Process,
    _folder: tempfile::TempDir,
    /// `127.0.0.1:PORT`, with which its names begin.
    pub(crate) host: String,
}

impl Registry {
    /// `None`, and a line, where there is no such program; a failure there in CI.
    pub(crate) fn start() -> Option<Registry> {
        let program = tools().join("docker-registry/bin/docker-registry");
        if !program.exists() && !has_program("docker-registry") {
            skip("no image registry");
            return None;
        }
        let (folder, port) = (tempfile::tempdir().unwrap(), free_port());
        let config = folder.path().join("config.yml");
        let text = format!(
            "version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: 127.0.0.1:{port}\n",
            folder.path().join("images").display()
        );
        fs::write(&config, text).unwrap();
        let process = Process::start(clean(program).arg("serve").arg(&config));
        wait_for("the registry", PATIENCE, || {
            TcpStream::connect(("127.0.0.1", port)).ok()
        });
        Some(Registry {
            _process: process,
            _folder: folder,
            host: format!("127.0.0.1:{port}"),
        })
    }
}
