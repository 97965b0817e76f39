//! A token that came while everything runs is as secret as those that were there at the start.

use crate::dock::{Dock, eventually};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;

const OLD: &str = "old-token-0123456789";
const NEW: &str = "new-token-9876543210";

fn write(file: &Path, tokens: &[&str]) {
    let table = |token: &&str| {
        format!(
            "[[token]]\nname = \"{}\"\ntoken = \"{token}\"\naccess = \"read\"\n",
            &token[..3]
        )
    };
    let text: String = tokens.iter().map(table).collect();
    let beside = file.with_extension("new");
    std::fs::write(&beside, text).unwrap();
    std::fs::rename(beside, file).unwrap();
}

/// A request of a careless client, which shows the token where the log shows it too.
fn show(address: SocketAddr, token: &str) -> u16 {
    let mut stream = TcpStream::connect(address).unwrap();
    let head = format!(
        "PUT /team/{token} HTTP/1.1\r\nAuthorization: Bearer {token}\r\nContent-Length: 0\r\n\
         Connection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    super::code(&answer)
}

#[test]
fn token_of_a_changed_file_is_hidden_in_the_log_as_soon_as_it_is_good() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tokens.toml");
    write(&file, &[OLD]);
    let dock = Dock::start(&[("SCCACHE_TOKENS_FILE", file.to_str().unwrap())]);
    let address = dock.address();
    assert_eq!(show(address, OLD), 403);
    dock.wait_log("PUT \"/team/***\"");
    write(&file, &[OLD, NEW]);
    dock.wait_log("named tokens in force: old, new");
    assert_eq!(show(address, NEW), 403);
    let hidden = || {
        let log = dock.log();
        let lines = log
            .lines()
            .filter(|line| line.contains("PUT \"/team/***\""));
        (lines.count() == 2).then_some(())
    };
    eventually("both to be hidden", || {
        let log = dock.log();
        assert!(!log.contains(NEW), "{log}");
        hidden()
    });
    // Also by a gateway that reads the file at its start, and after the token was taken back.
    assert!(dock.command(&["restart", "gateway"]).status.success());
    write(&file, &[OLD]);
    eventually("the token to be refused", || {
        (show(address, NEW) == 401).then_some(())
    });
    assert!(!dock.log().contains(NEW), "{}", dock.log());
}
