//! Layers over every lane and every kind of client.

use super::{
    FORK, MAIN, PR42, PR43, RELEASE, TEAM, TOKENS, asked, at, digits, entry, found, gateway,
    gateway_with, place,
};
use crate::attacks::peer::{OwnProtocol, archive};
use crate::harness::{Answer, Gateway, WRITER, wait_for};
use nix::sys::signal::Signal;
use sccache_dock::base::secret::Secret;
use sccache_dock::contract::gateway_config::Upstream;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

const NAMESPACES: [&str; 5] = ["pr/42", "pr/43", "main", "release", "team"];

/// By token, then by namespace: whether it sees what is there (`r`), and whether it writes there (`w`).
const MATRIX: [(&str, [&str; 5]); 6] = [
    (PR42, ["rw", "-", "r", "-", "-"]),
    (PR43, ["-", "rw", "r", "-", "-"]),
    (MAIN, ["-", "-", "rw", "-", "-"]),
    (RELEASE, ["-", "-", "-", "rw", "-"]),
    (FORK, ["-", "-", "r", "-", "-"]),
    (TEAM, ["-", "-", "-", "-", "rw"]),
];

#[test]
fn every_token_does_in_every_namespace_what_it_may_and_no_more() {
    let (_folder, gateway) = gateway();
    let mut cases = 0;
    let mut check = |what: String, seen: bool, expected: bool| {
        cases += 1;
        assert_eq!(seen, expected, "{what}");
    };
    // The team's client names its namespace, which is how it was before there were layers.
    let spelt = |token: &str, entry: &str| match token {
        TEAM => format!("/team/{entry}"),
        _ => format!("/{entry}"),
    };
    for (place_number, namespace) in NAMESPACES.iter().enumerate() {
        place(
            &gateway,
            namespace,
            &entry(place_number),
            &archive(namespace.as_bytes()),
        );
    }
    for (token, may) in MATRIX {
        for (number, namespace) in NAMESPACES.iter().enumerate() {
            let path = spelt(token, &entry(number));
            let reads = may[number].contains('r');
            let who = |action: &str| format!("{token} {action} {namespace}");
            let answer = asked(&gateway, token, "GET", &path, b"");
            check(who("gets from"), answer.code == 200, reads);
            if reads {
                assert_eq!(answer.body, archive(namespace.as_bytes()));
            }
            let answer = asked(&gateway, token, "HEAD", &path, b"");
            check(who("asks for the size in"), answer.code == 200, reads);
            let answer = asked(&gateway, token, "PROPFIND", &path, b"");
            let is_file = answer.text().contains("getcontentlength");
            check(who("lists"), is_file, reads);
        }
    }
    for (number, (token, may)) in MATRIX.into_iter().enumerate() {
        let new = entry(100 + number);
        asked(
            &gateway,
            token,
            "PUT",
            &spelt(token, &new),
            &archive(b"new"),
        );
        for (place_number, namespace) in NAMESPACES.iter().enumerate() {
            let writes = may[place_number].contains('w');
            let is_there = at(&gateway, namespace, &new).is_some();
            check(format!("{token} puts into {namespace}"), is_there, writes);
        }
        for (place_number, namespace) in NAMESPACES.iter().enumerate() {
            let old = entry(200 + 10 * number + place_number);
            place(&gateway, namespace, &old, &archive(b"old"));
            asked(&gateway, token, "DELETE", &spelt(token, &old), b"");
            let is_gone = at(&gateway, namespace, &old).is_none();
            let writes = may[place_number].contains('w');
            check(format!("{token} deletes from {namespace}"), is_gone, writes);
            let purge = format!("{{\"namespace\":\"{namespace}\",\"dry_run\":true}}");
            let answer = asked(&gateway, token, "POST", "/api/purge", purge.as_bytes());
            check(
                format!("{token} purges {namespace}"),
                answer.code == 200,
                writes,
            );
        }
    }
    assert_eq!(cases, 6 * 5 * 6);
}

#[test]
fn first_layer_hides_the_next_and_other_pull_requests_see_neither() {
    let (_folder, gateway) = gateway();
    gateway
        .process
        .wait_for_line("\"pr-42\" writes to \"pr/42\", which has no quota");
    place(&gateway, "main", &entry(1), &archive(b"of main"));
    let path = format!("/{}", entry(1));
    assert_eq!(
        asked(&gateway, PR42, "PUT", &path, &archive(b"of 42")).code,
        201
    );
    assert_eq!(found(&gateway, PR42, &path), Some(archive(b"of 42")));
    for token in [PR43, MAIN, FORK] {
        assert_eq!(
            found(&gateway, token, &path),
            Some(archive(b"of main")),
            "{token}"
        );
    }
    assert_eq!(asked(&gateway, PR42, "DELETE", &path, b"").code, 204);
    assert_eq!(found(&gateway, PR42, &path), Some(archive(b"of main")));
    assert_eq!(
        asked(&gateway, PR42, "DELETE", &path, b"").code,
        404,
        "not main's"
    );
}

#[test]
fn check_at_a_clients_start_follows_the_token() {
    let (_folder, gateway) = gateway();
    for (token, path, get, put) in [
        (PR42, "/.sccache_check", 200, 201),
        (PR42, "/pr/42/.sccache_check", 200, 201),
        (PR42, "/main/.sccache_check", 403, 403),
        (FORK, "/.sccache_check", 200, 403),
        (FORK, "/main/.sccache_check", 200, 403),
        (RELEASE, "/main/.sccache_check", 403, 403),
    ] {
        assert_eq!(
            asked(&gateway, token, "GET", path, b"").code,
            get,
            "{token} {path}"
        );
        assert_eq!(
            asked(&gateway, token, "PUT", path, b"x").code,
            put,
            "{token} {path}"
        );
    }
    let refusal = asked(
        &gateway,
        PR42,
        "PUT",
        &format!("/main/{}", entry(1)),
        &archive(b"x"),
    );
    assert!(
        refusal.text().contains("leave the folder out"),
        "{refusal:?}"
    );
}

/// ccache, Bazel and Gradle have paths of their own, in which no namespace stands.
#[test]
fn other_clients_notice_nothing() {
    let (_folder, gateway) = gateway();
    for path in [
        "/ab/cdef0123456789".to_owned(),
        "/ccache/ab/cdef0123456789".to_owned(),
        format!("/cas/{}", digits(1)),
        "/gradle/0123456789abcdef".to_owned(),
        "/main/x".to_owned(),
    ] {
        assert_eq!(
            asked(&gateway, MAIN, "PUT", &path, b"of main").code,
            201,
            "{path}"
        );
        assert_eq!(found(&gateway, PR42, &path).unwrap(), b"of main");
        assert_eq!(
            asked(&gateway, PR42, "PUT", &path, b"of 42").code,
            201,
            "{path}"
        );
        assert_eq!(found(&gateway, PR42, &path).unwrap(), b"of 42");
        assert_eq!(found(&gateway, PR43, &path).unwrap(), b"of main");
        assert_eq!(found(&gateway, FORK, &path).unwrap(), b"of main");
        assert_eq!(found(&gateway, RELEASE, &path), None);
    }
    let mut gateway = gateway;
    gateway.process.signal(Signal::SIGTERM);
    gateway.process.exit();
    gateway.restart();
    gateway.process.wait_for_line("named tokens in force");
    let path = format!("/cas/{}", digits(1));
    assert_eq!(
        found(&gateway, PR42, &path).unwrap(),
        b"of 42",
        "after a restart"
    );
}

/// A result of Bazel's that main has, whose blobs are there too, and one of the pull request's of which one is not.
#[test]
fn results_of_bazel_are_whole_over_all_layers() {
    let (_folder, gateway) = gateway();
    let (blob, action) = ("a".repeat(64), "b".repeat(64));
    // One output file: field 2 of the result, whose digest (field 2) has the hash (field 1) and the size (field 2).
    let digest = [&[10, 64][..], blob.as_bytes(), &[16, 4]].concat();
    let name = [
        &[10, 1][..],
        b"o",
        &[18, u8::try_from(digest.len()).unwrap()],
        &digest,
    ]
    .concat();
    let result = [&[18, u8::try_from(name.len()).unwrap()][..], &name].concat();
    let (result_path, blob_path) = (format!("/ac/{action}"), format!("/cas/{blob}"));
    assert_eq!(
        asked(&gateway, MAIN, "PUT", &result_path, &result).code,
        201
    );
    assert_eq!(
        found(&gateway, MAIN, &result_path),
        None,
        "its blob is missing"
    );
    assert_eq!(asked(&gateway, PR42, "PUT", &blob_path, b"body").code, 201);
    assert_eq!(
        found(&gateway, MAIN, &result_path),
        None,
        "and is not main's"
    );
    assert_eq!(
        found(&gateway, PR42, &result_path),
        Some(result.clone()),
        "but the pull request's"
    );
    assert_eq!(asked(&gateway, PR42, "DELETE", &blob_path, b"").code, 204);
    assert_eq!(asked(&gateway, MAIN, "PUT", &blob_path, b"body").code, 201);
    assert_eq!(found(&gateway, PR43, &result_path), Some(result.clone()));
    // One of the pull request's own that is of no use does not hide main's.
    let broken = [&[18, 70][..], &[10, 1, b'o', 18, 65, 10, 63], &[b'c'; 63]].concat();
    assert_eq!(
        asked(&gateway, PR42, "PUT", &result_path, &broken).code,
        201
    );
    let seen = found(&gateway, PR42, &result_path);
    assert!(seen == Some(result) || seen == Some(broken), "{seen:?}");
}

#[test]
fn own_protocol_has_the_layers_of_the_local_policy() {
    let uid = nix::unistd::geteuid();
    let tokens = format!(
        "{TOKENS}\n[[local]]\nuid = {uid}\nread = [\"pr/42\", \"main\"]\nwrite = \"pr/42\"\n"
    );
    let (_folder, gateway) = gateway_with(&tokens);
    place(&gateway, "main", &entry(1), &archive(b"of main"));
    place(&gateway, "pr/43", &entry(2), &archive(b"of 43"));
    let socket = || OwnProtocol(UnixStream::connect(&gateway.config.socket).unwrap());
    let port = || OwnProtocol::connect(gateway.addr).unwrap();
    assert!(!port().may_write().unwrap(), "the port reads only");
    assert!(socket().may_write().unwrap());
    for number in [1, 2] {
        let expected = (number == 1).then(|| archive(b"of main"));
        assert_eq!(port().get(&digits(number)).unwrap(), expected, "{number}");
        assert_eq!(socket().get(&digits(number)).unwrap(), expected, "{number}");
    }
    assert!(!port().put(&digits(3), &archive(b"by the port")).unwrap());
    assert!(
        socket()
            .put(&digits(3), &archive(b"by the socket"))
            .unwrap()
    );
    for (namespace, is_there) in [("pr/42", true), ("main", false), ("default", false)] {
        assert_eq!(
            at(&gateway, namespace, &entry(3)).is_some(),
            is_there,
            "{namespace}"
        );
    }
    assert_eq!(port().get(&digits(3)).unwrap(), None);
    assert_eq!(
        found(&gateway, PR42, &format!("/{}", entry(3))),
        Some(archive(b"by the socket"))
    );
}

/// A client with a direct mode keeps lists of headers beside the objects. The cache gives out none, so that none can be
/// planted, by whatever path.
#[test]
fn lists_of_headers_are_given_to_nobody() {
    let (_folder, gateway) = gateway();
    let key = digits(7);
    for path in [
        format!("/preprocessor/{key}"),
        format!("/preprocessor/{}", entry(7)),
    ] {
        assert_eq!(
            asked(&gateway, WRITER, "PUT", &path, &archive(b"planted")).code,
            201
        );
    }
    let mut stream = UnixStream::connect(&gateway.config.socket).unwrap();
    let text = [&(key.len() as u64).to_le_bytes()[..], key.as_bytes()].concat();
    let request = [&9_u32.to_le_bytes()[..], &text].concat();
    let length = u32::try_from(request.len()).unwrap().to_be_bytes();
    stream.write_all(&[&length[..], &request].concat()).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    let mut answer = vec![0; 256];
    let read = stream.read(&mut answer).unwrap();
    let text = String::from_utf8_lossy(&answer[..read]).into_owned();
    assert!(!text.contains("planted"), "{text}");
}

/// Without a token nobody reads without a name of ours in `Host`; an address is one.
fn by_address(gateway: &Gateway, path: &str) -> u16 {
    let mut stream = gateway.connect();
    let head = format!(
        "GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n",
        gateway.addr
    );
    stream.write_all(head.as_bytes()).unwrap();
    Answer::read(&mut stream).code
}

#[test]
fn those_without_a_token_read_what_the_file_says() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tokens.toml");
    std::fs::write(&file, format!("{TOKENS}\n[anonymous]\nread = [\"main\"]\n")).unwrap();
    let gateway = Gateway::start_with(|config| {
        config.anonymous_read = true;
        config.tokens_file = Some(file);
    });
    gateway.process.wait_for_line("named tokens in force");
    place(&gateway, "main", &entry(1), &archive(b"of main"));
    place(&gateway, "pr/42", &entry(2), &archive(b"of 42"));
    let get_by_address = |path: String| by_address(&gateway, &path);
    assert_eq!(get_by_address(format!("/{}", entry(1))), 200);
    assert_eq!(get_by_address(format!("/main/{}", entry(1))), 200);
    assert_eq!(get_by_address(format!("/{}", entry(2))), 404);
    assert_eq!(get_by_address(format!("/pr/42/{}", entry(2))), 403);
}

/// A gateway that starts anew while the file is broken does not know what it says of those who need no token.
#[test]
fn broken_file_opens_nothing_at_a_restart_of_the_gateway() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tokens.toml");
    let good = format!("{TOKENS}\n[anonymous]\nread = [\"main\"]\n");
    std::fs::write(&file, &good).unwrap();
    let mut gateway = Gateway::start_with(|config| {
        config.anonymous_read = true;
        config.tokens_file = Some(file.clone());
    });
    gateway.process.wait_for_line("named tokens in force");
    place(&gateway, "main", &entry(1), &archive(b"of main"));
    place(&gateway, "default", &entry(2), &archive(b"of all"));
    fn has_nothing<S: Read + Write>(mut peer: OwnProtocol<S>) {
        assert!(!peer.may_write().unwrap());
        assert_eq!(peer.get(&digits(2)).unwrap(), None);
        assert!(!peer.put(&digits(3), &archive(b"planted")).unwrap());
    }
    let (of_main, of_all) = (format!("/{}", entry(1)), format!("/default/{}", entry(2)));
    for broken in ["[[token]\n", "[[token]]\nname = \"x\"\n", ""] {
        match broken {
            "" => std::fs::remove_file(&file).unwrap(),
            broken => std::fs::write(&file, broken).unwrap(),
        }
        gateway.process.signal(Signal::SIGTERM);
        gateway.process.exit();
        gateway.restart();
        let told = gateway.process.wait_for_line("cannot use the tokens in");
        let consequence = "nobody reads or writes without a token";
        assert!(told.contains(consequence), "{told}");
        for path in [&of_main, &of_all] {
            assert_eq!(by_address(&gateway, path), 401, "{broken} {path}");
        }
        let socket = UnixStream::connect(&gateway.config.socket).unwrap();
        has_nothing(OwnProtocol(socket));
        has_nothing(OwnProtocol::connect(gateway.addr).unwrap());
        assert_eq!(at(&gateway, "default", &entry(3)), None);
    }
    std::fs::write(&file, good).unwrap();
    wait_for("the file to be in force", Duration::from_secs(60), || {
        (by_address(&gateway, &of_main) == 200).then_some(())
    });
}

#[test]
fn second_level_knows_the_last_layer_alone() {
    let above = Gateway::start();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tokens.toml");
    std::fs::write(&file, TOKENS).unwrap();
    let gateway = Gateway::start_with(|config| {
        config.tokens_file = Some(file);
        config.upstream = Some(Upstream {
            ahead: None,
            url: Secret::new(&above.url()),
            token: Some(Secret::new(WRITER)),
            client_certificate: None,
            queue: config.socket.with_file_name("upstream-queue"),
        });
    });
    gateway.process.wait_for_line("named tokens in force");
    place(&above, "main", &entry(1), &archive(b"of main"));
    place(&above, "pr/42", &entry(2), &archive(b"planted"));
    let path = |number| format!("/{}", entry(number));
    let upstream = || gateway.status().upstream.unwrap();
    assert_eq!(found(&gateway, PR42, &path(1)), Some(archive(b"of main")));
    assert!(
        at(&gateway, "main", &entry(1)).is_some(),
        "it is here now, as main's"
    );
    assert_eq!(found(&gateway, PR42, &path(2)), None);
    let asked_once = upstream();
    assert_eq!((asked_once.hits, asked_once.misses), (1, 1));
    asked(&gateway, PR42, "PUT", &path(3), &archive(b"of 42"));
    asked(&gateway, PR42, "PUT", "/cas/x", b"of 42");
    asked(&gateway, MAIN, "PUT", &path(4), &archive(b"of main"));
    wait_for("main's blob above", Duration::from_secs(30), || {
        at(&above, "main", &entry(4))
    });
    for namespace in ["main", "pr/42", "default"] {
        assert_eq!(at(&above, namespace, &entry(3)), None, "{namespace}");
        assert_eq!(at(&above, namespace, "cas/x"), None, "{namespace}");
    }
    assert_eq!(upstream().uploaded, 1);
}

/// Many pull requests share a quota and a line in every table, cannot push main out, and each can be purged alone.
#[test]
fn branches_share_a_quota_and_leave_main_alone() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tokens.toml");
    let token = |number: usize| {
        format!(
            "[[token]]\nname = \"pr-{number}\"\ntoken = \"token-of-pull-number-{number}\"\n\
             read = [\"pr/{number}\", \"main\"]\nwrite = \"pr/{number}\"\n"
        )
    };
    let all: String = (0..40).map(token).collect();
    std::fs::write(&file, all).unwrap();
    let mut gateway = Gateway::start_with(|config| {
        config.tokens_file = Some(file);
        config.budget_bytes = 16 << 20;
        config.policies.quotas = [("pr/*".to_owned(), 4 << 20)].into();
        config.policies.pinned = ["main".to_owned()].into();
    });
    gateway.process.wait_for_line("named tokens in force");
    assert!(!gateway.process.log().contains("has no quota"));
    let body = archive(&vec![7; 64 << 10]);
    for number in 0..80 {
        place(&gateway, "main", &entry(number), &body);
    }
    for number in 0..40 {
        for blob in 0..4 {
            let path = format!("/{}", entry(1000 + 10 * number + blob));
            let token = format!("token-of-pull-number-{number}");
            assert_eq!(asked(&gateway, &token, "PUT", &path, &body).code, 201);
        }
    }
    let counts = |gateway: &Gateway| {
        let namespaces = gateway.status().namespaces;
        let names: Vec<String> = namespaces.keys().cloned().collect();
        (names, namespaces["main"].entries, namespaces["pr/*"].bytes)
    };
    let (names, of_main, of_branches) = counts(&gateway);
    assert_eq!(names, ["main", "pr/*"]);
    assert_eq!(of_main, 80, "main lost something");
    assert!((3 << 20..=4 << 20).contains(&of_branches), "{of_branches}");
    let metrics = gateway.request("GET", "/metrics", b"").text();
    assert!(metrics.contains("{namespace=\"pr/*\"}") && !metrics.contains("namespace=\"pr/3"));
    gateway.process.signal(Signal::SIGTERM);
    gateway.process.exit();
    gateway.restart();
    gateway.process.wait_for_line("indexed the store");
    let purge = |namespace: &str| {
        let request = format!("{{\"namespace\":\"{namespace}\"}}");
        gateway
            .request("POST", "/api/purge", request.as_bytes())
            .text()
    };
    assert!(
        purge("pr/39").contains("\"entries\":4,"),
        "those of one alone"
    );
    assert!(purge("pr/39").contains("\"entries\":0,"));
    let path = format!("/{}", entry(1000 + 10 * 38));
    assert!(found(&gateway, "token-of-pull-number-38", &path).is_some());
    purge("pr/*");
    let namespaces = gateway.status().namespaces;
    assert_eq!(
        (namespaces["pr/*"].entries, namespaces["main"].entries),
        (0, 80)
    );
}

/// What lies on the disk from before a group was there, or after it is gone, is not found under another name.
#[test]
fn blobs_of_another_grouping_are_removed() {
    let (_folder, mut gateway) = gateway();
    let path = format!("/{}", entry(1));
    asked(&gateway, PR42, "PUT", &path, &archive(b"of 42"));
    place(&gateway, "main", &entry(2), &archive(b"of main"));
    for quotas in [vec![("pr/*".to_owned(), 4 << 20)], Vec::new()] {
        gateway.config.policies.quotas = quotas.into_iter().collect();
        gateway.process.signal(Signal::SIGTERM);
        gateway.process.exit();
        gateway.restart();
        gateway.process.wait_for_line("indexed the store");
        gateway.process.wait_for_line("removed the blobs of \"pr/");
        assert_eq!(gateway.status().store.entries, 1);
        assert_eq!(found(&gateway, PR42, &path), None);
        assert_eq!(
            asked(&gateway, PR42, "PUT", &path, &archive(b"of 42")).code,
            201
        );
        assert_eq!(found(&gateway, PR42, &path), Some(archive(b"of 42")));
    }
}
