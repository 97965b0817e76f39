use super::*;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use proptest::prelude::*;
use std::path::Path;
use std::sync::atomic::Ordering::Relaxed;

impl Access {
    fn caller(&self, authorization: Option<&[u8]>) -> Caller {
        self.caller_with(authorization.and_then(token).as_deref())
    }
}

fn access(anonymous_read: bool) -> Access {
    let config = Config {
        write_tokens: vec![Secret::new("writer"), Secret::new("writer2")],
        read_tokens: vec![Secret::new("reader")],
        anonymous_read,
        ..Config::in_folder(Path::new("/"))
    };
    Access::new(&config, None, [9; 32])
}

fn named(name: &str, token: &str, access: Grant, namespaces: Option<&[&str]>) -> Named {
    Named {
        name: name.to_owned(),
        proof: Proof::Token(Secret::new(token)),
        access,
        namespaces: namespaces.map(|list| list.iter().map(|&one| one.to_owned()).collect()),
        layers: None,
        replace: false,
        distribute: false,
    }
}

fn layers(read: &[&str], write: Option<&str>) -> Layers {
    Layers {
        read: read.iter().map(|&name| name.to_owned()).collect(),
        write: write.map(str::to_owned),
        replace: false,
    }
}

fn file(tokens: &[Named]) -> TokensFile {
    TokensFile {
        tokens: tokens.to_vec(),
        ..TokensFile::default()
    }
}

fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
}

#[test]
fn matrix_of_credentials_and_needs() {
    use Verdict::{Allowed, Forbidden, Unauthorized};
    let matrix = [
        (Some("Bearer writer".to_owned()), Allowed, Allowed),
        (Some("bearer  writer2".to_owned()), Allowed, Allowed),
        (Some(basic("any:one", "writer")), Unauthorized, Unauthorized),
        (Some(basic("anyone", "writer")), Allowed, Allowed),
        (Some(basic("", "reader")), Allowed, Forbidden),
        (Some("Bearer reader".to_owned()), Allowed, Forbidden),
        (Some("Bearer write".to_owned()), Unauthorized, Unauthorized),
        (Some("Bearer ".to_owned()), Unauthorized, Unauthorized),
        (Some("Basic !!".to_owned()), Unauthorized, Unauthorized),
        (Some("Digest writer".to_owned()), Unauthorized, Unauthorized),
        (None, Unauthorized, Unauthorized),
    ];
    for (header, read, write) in matrix {
        let bytes = header.as_deref().map(str::as_bytes);
        assert_eq!(
            access(false).caller(bytes).may(Need::Read),
            read,
            "{header:?} reads"
        );
        assert_eq!(
            access(false).caller(bytes).may(Need::Write),
            write,
            "{header:?} writes"
        );
        assert_eq!(
            access(true).caller(bytes).may(Need::Read),
            Allowed,
            "{header:?} reads anonymously"
        );
        assert_eq!(
            access(true).caller(bytes).may(Need::Write),
            write,
            "{header:?} writes"
        );
    }
}

#[test]
fn old_and_new_token_are_valid_together_and_the_old_one_ends() {
    let access = access(false);
    let caller = |token: &str| access.caller(Some(format!("Bearer {token}").as_bytes()));
    let old = named("ci-1", "old", Grant::Write, None);
    let new = named("ci-2", "new", Grant::Read, None);
    access.replace(&file(&[old.clone(), new.clone()])).unwrap();
    assert_eq!(caller("old").may(Need::Write), Verdict::Allowed);
    assert_eq!(caller("new").may(Need::Write), Verdict::Forbidden);
    caller("new").count(|uses| &uses.hits, 3);
    assert_eq!(
        access
            .replace(&file(&[named("x", "reader", Grant::Write, None)]))
            .unwrap_err(),
        "\"x\" is the same token as \"read\""
    );
    assert_eq!(
        caller("old").may(Need::Read),
        Verdict::Allowed,
        "a fault changes nothing"
    );
    access.replace(&file(&[new])).unwrap();
    assert_eq!(caller("old").may(Need::Read), Verdict::Unauthorized);
    let names: Vec<_> = access
        .uses()
        .into_iter()
        .map(|(name, uses)| (name, uses.hits.load(Relaxed)))
        .collect();
    assert_eq!(
        names,
        [
            ("auth".to_owned(), 0),
            ("read".to_owned(), 0),
            ("ci-2".to_owned(), 3)
        ]
    );
}

#[test]
fn token_of_a_namespace_ends_at_its_borders() {
    let access = access(false);
    access
        .replace(&file(&[
            named("team", "team", Grant::Write, Some(&["team", "docs/main"])),
            named("plain", "plain", Grant::Write, Some(&["default"])),
        ]))
        .unwrap();
    for (token, namespace, expected) in [
        ("team", "team", true),
        ("team", "team/x", true),
        ("team", "teams", false),
        ("team", "docs", false),
        ("team", "docs/main", true),
        ("team", "", false),
        ("plain", "", true),
        ("plain", "team", false),
        ("writer", "team", true),
        ("writer", "", true),
    ] {
        let caller = access.caller(Some(format!("Bearer {token}").as_bytes()));
        assert_eq!(
            caller.scope().reads(namespace),
            expected,
            "{token} {namespace:?}"
        );
    }
    let team = access.caller(Some(b"Bearer team"));
    assert_eq!(team.may_distribute(), Verdict::Forbidden);
}

#[test]
fn layers_are_of_tokens_of_strangers_and_of_local_users() {
    let access = access(true);
    let pr = Named {
        layers: Some(layers(&["pr/1", "main"], Some("pr/1"))),
        distribute: true,
        ..named("pr", "pr", Grant::Write, None)
    };
    let text = TokensFile {
        anonymous: Some(layers(&["main"], None)),
        local: vec![Local {
            uid: Some(7),
            layers: layers(&["main"], None),
        }],
        ..file(&[pr])
    };
    assert!(access.caller(None).scope().reads("pr/1"), "no file yet");
    access.replace(&text).unwrap();
    assert!(!access.caller(None).scope().reads("pr/1"));
    assert!(access.caller(None).is_restricted());
    let pr = access.caller(Some(b"Bearer pr"));
    assert!(pr.scope().reads("main") && !pr.scope().writes("main"));
    assert_eq!(pr.may_distribute(), Verdict::Allowed);
    assert_eq!(access.caller(None).may_distribute(), Verdict::Forbidden);
    assert_eq!(access.local(Some(7)), layers(&["main"], None));
    for other in [None, Some(8)] {
        assert_eq!(access.local(other), Layers::default_namespace());
    }
    access.replace(&TokensFile::default()).unwrap();
    assert!(
        access.caller(None).scope().reads("pr/1"),
        "the file is empty"
    );
}

#[test]
fn until_the_file_has_been_read_nobody_does_anything_without_a_token() {
    let config = Config {
        write_tokens: vec![Secret::new("writer")],
        anonymous_read: true,
        tokens_file: Some("tokens.toml".into()),
        ..Config::in_folder(Path::new("/"))
    };
    let access = Access::new(&config, None, [9; 32]);
    let nothing = |uid| {
        let layers = access.local(uid);
        assert_eq!((layers.read.len(), layers.write), (0, None), "{uid:?}");
    };
    nothing(None);
    nothing(Some(7));
    assert_eq!(access.caller(None).may(Need::Read), Verdict::Unauthorized);
    let writer = access.caller(Some(b"Bearer writer"));
    assert_eq!(writer.may(Need::Write), Verdict::Allowed);
    access.replace(&TokensFile::default()).unwrap();
    assert_eq!(access.caller(None).may(Need::Read), Verdict::Allowed);
    assert_eq!(access.local(None), Layers::default_namespace());
}

proptest! {
    #[test]
    fn any_header_is_judged(header in proptest::collection::vec(any::<u8>(), 0..64)) {
        let access = access(false);
        prop_assert_ne!(access.caller(Some(&header)).may_distribute(), Verdict::Allowed);
    }
}
