use super::*;

fn rule(name: &str) -> Rule {
    Rule {
        name: name.to_owned(),
        issuer: "i".into(),
        claims: [("sub".to_owned(), vec!["x".to_owned()])].into(),
        layers: Layers::default_namespace(),
        distribute: false,
    }
}

fn begin(issued: &mut Issued, number: u64, rule: &Rule, build: &str) -> Result<(), NoSession> {
    let mut digest = [0; 32];
    digest[..8].copy_from_slice(&number.to_be_bytes());
    let begun = Begun {
        rule,
        layers: Layers::default_namespace(),
        build: build.to_owned(),
        subject: "x".into(),
        id_token: (digest, 1_000_000),
        ends: 5_000_000,
    };
    issued.begin(begun, digest, 100 + number)
}

#[test]
fn sessions_end_by_time_by_hand_and_with_their_rule() {
    let mut issued = Issued::default();
    let (one, other) = (rule("one"), rule("other"));
    for number in 0..4 {
        let rule = if number < 3 { &one } else { &other };
        begin(&mut issued, number, rule, &format!("run{number}")).unwrap();
    }
    assert_eq!(issued.revoke("run0", 0), 1);
    assert_eq!(issued.revoke("one:run1", 0), 1);
    assert_eq!(issued.revoke("", 0), 0);
    assert_eq!(issued.revoke("nobody", 0), 0);
    let names: Vec<String> = issued.list().into_iter().map(|one| one.name).collect();
    assert_eq!(names, ["other:run3", "one:run2"]);
    let mut changed = other.clone();
    changed.layers.write = None;
    assert!(issued.keep_to(&[one.clone(), changed]));
    assert_eq!(issued.list().len(), 1);
    assert!(issued.expire(5_000_000));
    assert!(issued.list().is_empty());
}

#[test]
fn token_is_exchanged_once_even_after_a_restart_until_it_is_over() {
    let mut issued = Issued::default();
    let rule = rule("one");
    begin(&mut issued, 1, &rule, "b").unwrap();
    assert_eq!(begin(&mut issued, 1, &rule, "b"), Err(NoSession::Replayed));
    let mut restarted = Issued::parse(&issued.text()).unwrap();
    assert_eq!(
        begin(&mut restarted, 1, &rule, "b"),
        Err(NoSession::Replayed)
    );
    restarted.expire(1_000_119);
    assert_eq!(
        begin(&mut restarted, 1, &rule, "b"),
        Err(NoSession::Replayed)
    );
    restarted.expire(1_000_120);
    assert!(begin(&mut restarted, 1, &rule, "b").is_ok());
    for broken in ["", "x", "{}", &issued.text()[1..]] {
        assert!(Issued::parse(broken).is_err());
    }
}

#[test]
fn revoked_build_begins_nothing_more_even_after_a_restart() {
    let mut issued = Issued::default();
    let (one, other) = (rule("one"), rule("other"));
    begin(&mut issued, 1, &one, "run").unwrap();
    assert_eq!(issued.revoke("one:run", 100), 1);
    // Before its first session.
    assert_eq!(issued.revoke("soon", 100), 0);
    // A rule's next builds go on, and so do builds of no name.
    assert_eq!(issued.revoke("other", 100), 0);
    let mut number = 1;
    for mut issued in [Issued::parse(&issued.text()).unwrap(), issued] {
        for (rule, build, expected) in [
            (&one, "run", Err(NoSession::Revoked)),
            (&other, "run", Ok(())),
            (&one, "soon", Err(NoSession::Revoked)),
            (&other, "soon", Err(NoSession::Revoked)),
            (&one, "ru", Ok(())),
            (&other, "next", Ok(())),
            (&other, "", Ok(())),
        ] {
            number += 1;
            let begun = begin(&mut issued, number, rule, build);
            assert_eq!(begun, expected, "{} {build}", rule.name);
        }
        issued.expire(100 + REVOKED_FOR);
        assert!(!issued.is_revoked("one", "run"));
    }
    let mut issued = Issued::default();
    for number in 0..2 * MOST_REVOKED {
        issued.revoke(&number.to_string(), 100);
        issued.revoke(&number.to_string(), 100);
    }
    assert_eq!(issued.revoked.len(), MOST_REVOKED);
}

/// As gateways wrote it before they remembered revoked builds, and by which rule and build a token was taken.
#[test]
fn sessions_of_an_earlier_version_go_on_and_their_tokens_are_not_taken_twice() {
    let text = |number: u64| {
        let mut digest = [0; 32];
        digest[..8].copy_from_slice(&number.to_be_bytes());
        URL_SAFE_NO_PAD.encode(digest)
    };
    let session = serde_json::json!({
        "digest": text(7),
        "rule": "one",
        // Of the same rule: an update that digests it otherwise ends its sessions.
        "rule_digest": "FVN_ewR57Qu7q1TiyKXlmcOGWaX11TegK8H0ZYS1mPw",
        "build": "run",
        "subject": "x",
        "layers": { "read": [""], "write": "", "replace": false },
        "distribute": false,
        "began": 100,
        "ends": 5_000_000,
    });
    let earlier = serde_json::json!({ "sessions": [session], "seen": [[text(1), 1_000_120]] });
    let mut issued = Issued::parse(&earlier.to_string()).unwrap();
    let one = rule("one");
    assert!(!issued.keep_to(std::slice::from_ref(&one)));
    assert_eq!(issued.list()[0].name, "one:run");
    let again = Issued::parse(&issued.text()).unwrap();
    for mut issued in [issued, again] {
        assert_eq!(begin(&mut issued, 1, &one, "b"), Err(NoSession::Replayed));
        assert!(begin(&mut issued, 2, &one, "b").is_ok());
        assert_eq!(issued.list().len(), 2);
    }
}

#[test]
fn neither_a_build_nor_a_rule_takes_the_room_of_others() {
    let mut issued = Issued::default();
    let (one, other) = (rule("one"), rule("other"));
    let mut number = 0;
    let mut storm = |issued: &mut Issued, rule: &Rule, build: &dyn Fn(u64) -> String| {
        loop {
            number += 1;
            if let Err(full) = begin(issued, number, rule, &build(number)) {
                return full;
            }
        }
    };
    // One run, whose first sessions make room for its last ones, until it has shown too many tokens.
    assert_eq!(
        storm(&mut issued, &one, &|_| "run".to_owned()),
        NoSession::Full
    );
    assert_eq!(issued.list().len(), MOST_OF_A_BUILD);
    assert_eq!(issued.seen.len(), MOST_SEEN_OF_A_BUILD);
    // Runs without end, and jobs of no known run.
    assert_eq!(
        storm(&mut issued, &one, &|number| number.to_string()),
        NoSession::Full
    );
    assert_eq!(issued.list().len(), MOST / 2);
    assert_eq!(
        storm(&mut issued, &other, &|_| String::new()),
        NoSession::Full
    );
    assert_eq!(issued.list().len(), MOST);
    assert!(issued.text().len() < usize::try_from(LONGEST_TEXT).unwrap());
}

#[test]
fn longest_that_can_be_kept_is_read_again() {
    let long = |length: usize| "x".repeat(length);
    let longest = Session {
        digest: [0; 32],
        rule: long(64),
        rule_digest: [0; 32],
        build: long(20),
        subject: readable(&"\u{1}\"".repeat(9000)),
        layers: Layers {
            read: (0..8).map(|_| long(200)).collect(),
            write: Some(long(200)),
            replace: true,
        },
        distribute: true,
        began: u64::MAX,
        ends: u64::MAX,
    };
    let mut issued = Issued::default();
    for number in 0..MOST_SEEN as u64 {
        let mut digest = [0; 32];
        digest[..8].copy_from_slice(&number.to_be_bytes());
        let seen = Seen {
            digest,
            rule: long(64),
            build: long(20),
            ends: u64::MAX,
        };
        issued.seen.insert(digest, seen);
        if issued.sessions.len() < MOST {
            let session = Session {
                digest,
                ..longest.clone()
            };
            issued.sessions.insert(digest, (session, None));
        }
    }
    let text = issued.text();
    assert!(
        text.len() < usize::try_from(LONGEST_TEXT).unwrap(),
        "{}",
        text.len()
    );
    let again = Issued::parse(&text).unwrap();
    assert_eq!((again.sessions.len(), again.seen.len()), (MOST, MOST_SEEN));
    assert!(!again.list()[0].subject.contains('\u{1}'));
}
