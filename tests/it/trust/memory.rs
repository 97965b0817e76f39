//! What builds leave behind: whose builds are explained by it, and who is told what a build asked for.

use super::write_once::result;
use super::{FORK, MAIN, PR42, PR43, RELEASE, TEAM, asked, entry, found, gateway};
use crate::harness::{Gateway, READER, WRITER};
use sccache_dock::explain::print::Print;
use sccache_dock::explain::protocol::{Begun, End, Labels, Prefetch, Request, Unit};
use serde::Serialize;
use serde_json::Value;

fn post(gateway: &Gateway, token: &str, path: &str, value: &impl Serialize) -> Vec<u8> {
    let body = serde_json::to_vec(value).unwrap();
    let answer = asked(gateway, token, "POST", path, &body);
    assert_eq!(answer.code, 200, "{token} {path}: {}", answer.text());
    answer.body
}

fn begin(gateway: &Gateway, token: &str) -> String {
    let request = Request::Begin(Labels::default());
    let begun = post(gateway, token, "/api/builds", &request);
    serde_json::from_slice::<Begun>(&begun).unwrap().build
}

fn labels(job: &str) -> Labels {
    Labels {
        job: Some(job.to_owned()),
        ..Labels::default()
    }
}

fn end(gateway: &Gateway, token: &str, build: &str, units: Vec<Unit>) -> Value {
    let request = Request::End(Box::new(End {
        build: build.to_owned(),
        labels: labels("ci"),
        units,
        ..End::default()
    }));
    serde_json::from_slice(&post(gateway, token, "/api/builds", &request)).unwrap()
}

/// The compile of a crate of this number, with a flag that tells variants from each other.
fn unit(number: usize, flag: &str) -> Unit {
    Unit {
        name: format!("c{number}"),
        kind: "lib".into(),
        output: format!("c{number}-01"),
        took_ms: 1000,
        exit: Some(0),
        print: Print {
            flags: vec![flag.to_owned()],
            ..Print::default()
        },
        ..Unit::default()
    }
}

/// A build of these crates as sccache and a recorder have it: what is not there is compiled, and stored by those who may.
fn build(gateway: &Gateway, token: &str, crates: &[(usize, &str)]) -> Value {
    let build = begin(gateway, token);
    for (number, flag) in crates {
        // Another flag is another key.
        let path = path(*number, flag);
        if found(gateway, token, &path).is_none() {
            let name = format!("libc{number}-01.rlib");
            let body = result(&[(&name, flag.as_bytes())], 0o644);
            asked(gateway, token, "PUT", &path, &body);
        }
    }
    let units = crates.iter().map(|(number, flag)| unit(*number, flag));
    end(gateway, token, &build, units.collect())
}

fn path(number: usize, flag: &str) -> String {
    format!("/{}", entry(1000 * flag.len() + number))
}

/// By crate: hit, or why not.
fn told(report: &Value) -> Vec<&str> {
    let rows = report["rows"].as_array().unwrap().iter();
    let told = rows.map(|row| match row["outcome"].as_str().unwrap() {
        "miss" => row["why"]["reason"].as_str().unwrap(),
        outcome => outcome,
    });
    told.collect()
}

/// Names of the entries that a machine is brought before its build.
fn brought(gateway: &Gateway, token: &str) -> Vec<String> {
    let request = Prefetch {
        labels: labels("ci"),
        max_bytes: 1 << 20,
        listed: false,
    };
    // It comes in chunks.
    let mut answer = ureq::post(format!("{}/api/prefetch", gateway.url()))
        .header("Authorization", format!("Bearer {token}"))
        .send(serde_json::to_vec(&request).unwrap())
        .unwrap();
    let body = answer.body_mut().read_to_vec().unwrap();
    let (mut rest, mut names) = (&body[..], Vec::new());
    while let Some((length, after)) = rest.split_first_chunk::<2>() {
        let (name, after) = after.split_at(u16::from_be_bytes(*length).into());
        let (length, after) = after.split_first_chunk::<8>().unwrap();
        names.push(String::from_utf8(name.to_vec()).unwrap());
        rest = &after[usize::try_from(u64::from_be_bytes(*length)).unwrap()..];
    }
    names
}

fn named(namespace: &str, (number, flag): (usize, &str)) -> String {
    format!("{namespace}{}", path(number, flag))
}

#[test]
fn machine_is_brought_what_builds_of_its_layers_asked_for_and_it_may_read() {
    let (_folder, gateway) = gateway();
    build(&gateway, MAIN, &[(1, "-O"), (2, "-O")]);
    let of_main = [named("main", (1, "-O")), named("main", (2, "-O"))];
    for token in [MAIN, PR42, PR43, FORK] {
        assert_eq!(brought(&gateway, token), of_main, "{token}");
    }
    for token in [RELEASE, TEAM, READER, WRITER] {
        assert!(brought(&gateway, token).is_empty(), "{token}");
    }
    build(&gateway, PR42, &[(3, "-O"), (1, "-O")]);
    let mut of_pull = vec![named("pr/42", (3, "-O"))];
    // One build without an entry is no reason to do without it.
    of_pull.extend(of_main.clone());
    assert_eq!(brought(&gateway, PR42), of_pull, "its own comes first");
    for token in [MAIN, PR43, FORK] {
        assert_eq!(brought(&gateway, token), of_main, "{token}");
    }
    // A build of a fork stores nothing, so it says nothing of what the next one needs.
    build(&gateway, FORK, &[(2, "-O")]);
    for token in [MAIN, PR43, FORK] {
        assert_eq!(brought(&gateway, token), of_main, "{token}");
    }
    // What a report claims to have used is brought to those who may read it, and to nobody else.
    let open = begin(&gateway, PR43);
    found(&gateway, PR43, &path(1, "-O"));
    let claimed = [named("pr/42", (3, "-O")), named("release", (9, "-O"))];
    let request = Request::End(Box::new(End {
        build: open,
        labels: labels("ci"),
        prefetched: Some(sccache_dock::explain::protocol::Prefetched {
            used: claimed.to_vec(),
            ..Default::default()
        }),
        ..End::default()
    }));
    post(&gateway, PR43, "/api/builds", &request);
    assert_eq!(brought(&gateway, PR43), of_main);
}

#[test]
fn builds_are_explained_by_those_that_write_to_the_same_namespace_and_change_no_other() {
    let (_folder, gateway) = gateway();
    let of_main = || build(&gateway, MAIN, &[(1, "-O"), (2, "-O")]);
    assert_eq!(told(&of_main()), ["never_built", "never_built"]);
    // A pull request is told nothing of how main compiles.
    let pull = build(&gateway, PR42, &[(1, "-O2"), (2, "-O"), (3, "-O")]);
    assert_eq!(told(&pull), ["never_built", "hit", "never_built"]);
    let again = build(&gateway, PR42, &[(1, "-O -g"), (3, "-O")]);
    assert_eq!(told(&again), ["flags", "hit"], "but of its own");
    let other = build(&gateway, PR43, &[(3, "-O")]);
    assert_eq!(told(&other), ["never_built"]);
    let fork = || build(&gateway, FORK, &[(4, "-O"), (1, "-O -Z")]);
    assert_eq!(told(&fork()), ["never_built", "never_built"]);
    assert_eq!(told(&fork()), ["refused", "refused"]);
    // Nor is main told of them, and it still knows how long its own compiles took, though others have used them.
    let report = of_main();
    assert_eq!(told(&report), ["hit", "hit"]);
    assert_eq!(report["sums"]["saved_ms"], 2000);
    assert_eq!(report["sums"]["untimed"], 0);
    let new = build(&gateway, MAIN, &[(3, "-O"), (4, "-O")]);
    assert_eq!(told(&new), ["never_built", "never_built"]);
    let team = build(&gateway, RELEASE, &[(1, "-O")]);
    assert_eq!(told(&team), ["never_built"]);
}

/// Those whose path chooses the namespace are people: who may only read sees what those have built who may write.
#[test]
fn readers_of_all_are_told_of_writers_but_not_the_other_way_round() {
    let (_folder, gateway) = gateway();
    build(&gateway, WRITER, &[(1, "-O")]);
    let reader = build(&gateway, READER, &[(1, "-O2"), (2, "-O")]);
    assert_eq!(told(&reader), ["flags", "never_built"]);
    let writer = build(&gateway, WRITER, &[(2, "-O")]);
    assert_eq!(told(&writer), ["never_built"]);
}

#[test]
fn build_belongs_to_who_has_begun_it_and_only_administrators_see_others() {
    let (_folder, gateway) = gateway();
    let open = begin(&gateway, MAIN);
    found(&gateway, MAIN, &path(1, "-O"));
    // Neither ended by another nor pushed out.
    let stolen = end(&gateway, PR42, &open, vec![unit(1, "-O")]);
    assert_eq!(stolen["wire"]["misses"], 0);
    for _ in 0..300 {
        begin(&gateway, PR42);
    }
    let report = end(&gateway, MAIN, &open, vec![unit(1, "-O")]);
    assert_eq!(report["wire"]["misses"], 1);
    let list = |token| asked(&gateway, token, "GET", "/api/builds", b"");
    let page = format!("/api/builds/{open}");
    let front = |token| {
        let address = gateway.url();
        let mut curl = std::process::Command::new("curl");
        curl.args(["--silent", "--noproxy", "*", "--oauth2-bearer", token]);
        let output = curl
            .args(["--header", "Accept: text/html", &address])
            .output();
        String::from_utf8(output.unwrap().stdout).unwrap()
    };
    let seen = |token| -> Vec<Value> { serde_json::from_slice(&list(token).body).unwrap() };
    for token in [WRITER, READER, MAIN] {
        let builds = seen(token);
        assert_eq!(builds.len(), 1, "{token}");
        assert_eq!(builds[0]["build"], open.as_str(), "{token}");
        assert_eq!(builds[0]["token"], "main", "{token}");
        assert_eq!(asked(&gateway, token, "GET", &page, b"").code, 200);
        assert!(front(token).contains(&page), "{token}");
    }
    for token in [PR42, PR43, FORK, TEAM, RELEASE] {
        assert_eq!(seen(token), Vec::<Value>::new(), "{token}");
        // As if it did not exist.
        assert_eq!(asked(&gateway, token, "GET", &page, b"").code, 404);
        let front = front(token);
        assert!(!front.contains(&open), "{token}");
        assert!(front.contains("with this token yet"), "{token}: {front}");
    }
    // Guests have a list of their own too, and nobody else's is in it.
    let ids = [PR42, PR43, FORK, PR42].map(|token| {
        let build = begin(&gateway, token);
        end(&gateway, token, &build, vec![unit(2, "-O")]);
        (token, build)
    });
    for token in [PR42, PR43, FORK] {
        let own = ids.iter().filter(|(owner, _)| *owner == token);
        let mut own: Vec<&str> = own.map(|(_, build)| build.as_str()).collect();
        own.sort_unstable_by(|one, other| other.cmp(one));
        let seen = seen(token);
        let seen: Vec<&str> = seen
            .iter()
            .map(|it| it["build"].as_str().unwrap())
            .collect();
        assert_eq!(seen, own, "{token}");
        for (owner, build) in &ids {
            let code = asked(&gateway, token, "GET", &format!("/api/builds/{build}"), b"").code;
            assert_eq!(code, if *owner == token { 200 } else { 404 }, "{token}");
        }
    }
    assert_eq!(seen(WRITER).len(), 5);
    assert_eq!(seen(MAIN).len(), 1);
}

#[test]
fn own_builds_are_found_behind_many_of_others() {
    let (_folder, gateway) = gateway();
    let finish = |token| {
        let build = begin(&gateway, token);
        end(&gateway, token, &build, Vec::new());
        build
    };
    let own = finish(MAIN);
    for _ in 0..250 {
        finish(WRITER);
    }
    let list = asked(&gateway, MAIN, "GET", "/api/builds", b"");
    let seen: Vec<Value> = serde_json::from_slice(&list.body).unwrap();
    assert_eq!(seen.len(), 1);
    assert_eq!(seen[0]["build"], own.as_str());
}
