//! What a client gets for a job: it is good for that, once, while its token is.

use super::Cluster;
use crate::dock::eventually;
use crate::harness::Answer;
use std::io::Write;
use std::net::TcpStream;

const TOKEN: &str = "the-token-of-the-clients-in-rack-7";

/// A request to the scheduler's port.
fn post(front: u16, path: &str, token: &str, body: &[u8]) -> Answer {
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{front}\r\nConnection: close\r\nAuthorization: Bearer {token}\r\n\
         Content-Type: application/octet-stream\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    let mut stream = TcpStream::connect(("127.0.0.1", front)).unwrap();
    stream.write_all(&[head.as_bytes(), body].concat()).unwrap();
    Answer::read(&mut stream)
}

fn allocate(front: u16) -> Answer {
    let toolchain = [&64_u64.to_le_bytes()[..], &[b'a'; 64]].concat();
    post(front, "/api/v1/scheduler/alloc_job", TOKEN, &toolchain)
}

/// A ticket and its job's number.
fn ticket(answer: &Answer) -> (String, u64) {
    let body = &answer.body;
    assert_eq!((answer.code, &body[..4]), (200, &[0; 4][..]));
    let number = |at: usize| u64::from_le_bytes(body[at..at + 8].try_into().unwrap());
    let end = 12 + usize::try_from(number(4)).unwrap();
    let ticket = String::from_utf8(body[12..end].to_vec()).unwrap();
    (ticket, number(end))
}

/// What the relay says to a job that is none.
fn run(front: u16, job: u64, ticket: &str) -> String {
    let path = format!("/api/v1/distserver/run_job/{job}");
    let answer = post(front, &path, ticket, b"no job");
    assert_eq!(answer.code, 503, "with another one a build would fail");
    answer.text()
}

#[test]
fn ticket_is_good_once_and_while_its_clients_token_is() {
    const SPENT: &str = "the relay does not know this job";
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tokens.toml");
    let named = format!("[[token]]\nname = \"rack-7\"\ntoken = \"{TOKEN}\"\naccess = \"write\"\n");
    std::fs::write(&file, &named).unwrap();
    let setting = [("SCCACHE_TOKENS_FILE", file.to_str().unwrap())];
    let Some(cluster) = Cluster::start(0, &setting) else {
        return;
    };
    let front = cluster.front;
    let [(first, job), (other, _), (third, revoked)] = [(); 3].map(|()| ticket(&allocate(front)));
    // Neither what it is for nor whose it is can be read in it.
    assert!(!first.contains("aaaa"), "{first}");
    assert!(!first.contains("127.0.0.1"), "{first}");
    assert!(run(front, job, &other).contains(SPENT));
    assert!(run(front, job, &first).contains("cannot be understood"));
    assert!(run(front, job, &first).contains(SPENT));
    let path = format!("/api/v1/distserver/submit_toolchain/{job}");
    assert_eq!(post(front, &path, &first, b"archive").code, 503);
    std::fs::write(&file, "").unwrap();
    eventually("the token is no longer valid", || {
        (allocate(front).code == 401).then_some(())
    });
    let said = run(front, revoked, &third);
    assert!(said.contains("is no longer valid"), "{said}");
    // What comes back is not held against anybody.
    std::fs::write(&file, &named).unwrap();
    let again = eventually("the token is good again", || {
        Some(allocate(front)).filter(|answer| answer.code == 200)
    });
    let (again, job) = ticket(&again);
    assert!(run(front, job, &again).contains("cannot be understood"));
}
