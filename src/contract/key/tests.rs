use super::*;
use proptest::prelude::*;

fn hex(start: &str) -> String {
    format!("{start:0<64}")
}

/// Parses `path` and compares the canonical text, the namespace and whether it is an sccache entry.
fn check(path: &str, text: &str, namespace: &str, is_entry: bool) {
    let key = Key::parse(path).unwrap();
    assert_eq!(
        (key.as_str(), key.namespace(), key.is_sccache_entry()),
        (text, namespace, is_entry),
        "{path}"
    );
}

#[test]
fn slashes_collapse() {
    check("//x///y//", "x/y", "x", false);
    check("x", "x", "", false);
}

#[test]
fn default_namespace_may_be_called_by_its_name() {
    let digits = hex("abc");
    for path in [
        format!("default/a/b/c/{digits}"),
        "default/x/y".to_owned(),
        format!("a/b/c/{digits}"),
    ] {
        assert_eq!(Key::parse(&path).unwrap().namespace(), "", "{path}");
    }
    check("defaults/x", "defaults/x", "defaults", false);
    let entry = format!("a/b/c/{digits}");
    check(&format!("default/{entry}"), &entry, "", true);
}

#[test]
fn namespace_is_what_stands_before_an_sccache_entry() {
    let digits = hex("abc");
    let entry = format!("a/b/c/{digits}");
    check(&format!("//{entry}"), &entry, "", true);
    check(
        &format!("/team/{entry}"),
        &format!("team/{entry}"),
        "team",
        true,
    );
    check(
        &format!("/team//x/{entry}"),
        &format!("team/x/{entry}"),
        "team/x",
        true,
    );
}

#[test]
fn near_misses_are_no_sccache_entries() {
    let digits = hex("abc");
    check(
        &format!("/a/b/d/{digits}"),
        &format!("a/b/d/{digits}"),
        "a",
        false,
    );
    check(
        &format!("/a/b/c/{}", digits.to_uppercase()),
        &format!("a/b/c/{}", digits.to_uppercase()),
        "a",
        false,
    );
    check(
        &format!("/xa/b/c/{digits}"),
        &format!("xa/b/c/{digits}"),
        "xa",
        false,
    );
    check(
        &format!("/a/b/c/0{digits}"),
        &format!("a/b/c/0{digits}"),
        "a",
        false,
    );
    check(&format!("/{digits}"), &digits, "", false);
}

#[test]
fn other_clients_have_their_leading_folder() {
    let digits = hex("0");
    check(
        &format!("/ac/{digits}"),
        &format!("ac/{digits}"),
        "ac",
        false,
    );
    check(
        &format!("/cas/{digits}"),
        &format!("cas/{digits}"),
        "cas",
        false,
    );
    check(
        "/cache/0123456789abcdef",
        "cache/0123456789abcdef",
        "cache",
        false,
    );
}

#[test]
fn folders_that_ccache_spreads_over_are_no_namespaces() {
    check(
        "/ac/ed1rk8g0d8oc1ncb0p6jrb3fm4epcmm",
        "ac/ed1rk8g0d8oc1ncb0p6jrb3fm4epcmm",
        "",
        false,
    );
    check("/mine/ac/ed1rk8g", "mine/ac/ed1rk8g", "mine", false);
}

#[test]
fn both_protocols_name_the_same_blob() {
    let digits = hex("0f7");
    let webdav = Key::parse(&format!("/0/f/7/{digits}")).unwrap();
    assert_eq!(Key::for_sccache(&digits), Ok(webdav));
}

#[test]
fn keys_of_the_protocol_are_checked() {
    for wrong in [
        "",
        "abc",
        "../../../../etc/passwd",
        &hex("ABC"),
        &hex("g"),
        &format!("{}0", hex("a")),
        &"é".repeat(32),
    ] {
        assert_eq!(Key::for_sccache(wrong), Err(KeyError::NotHex), "{wrong}");
    }
}

#[test]
fn wrong_paths_are_refused() {
    let long = "x".repeat(MAX_KEY_BYTES + 1);
    let long_namespace = format!("{}/x", "y".repeat(MAX_NAMESPACE_BYTES + 1));
    let escaped_namespace = format!("{}/x", "é".repeat(MAX_NAMESPACE_BYTES / 6 + 1));
    for (path, error) in [
        ("", KeyError::Empty),
        ("///", KeyError::Empty),
        ("/a/../b", KeyError::Dots),
        ("/./a", KeyError::Dots),
        ("..", KeyError::Dots),
        ("/a\0b", KeyError::Control),
        ("/a\nb", KeyError::Control),
        ("/a\u{7f}", KeyError::Control),
        (&long, KeyError::TooLong),
        (&long_namespace, KeyError::NamespaceTooLong),
        (&escaped_namespace, KeyError::NamespaceTooLong),
    ] {
        assert_eq!(Key::parse(path), Err(error), "{path:?}");
    }
    assert!(Key::parse(&"x".repeat(MAX_KEY_BYTES)).is_ok());
}

#[test]
fn folders_that_nobody_made_are_no_namespaces() {
    for foreign in ["lost+found", "@other", "%2e%2", "%41", "a%2fb", "", "a b"] {
        assert_eq!(namespace_of_folder(foreign), None, "{foreign}");
    }
    assert_eq!(namespace_of_folder("team%2Fx").as_deref(), Some("team/x"));
}

#[test]
fn token_chooses_the_namespace_of_every_kind_of_entry() {
    let digits = hex("abc");
    let entry = format!("a/b/c/{digits}");
    let action = format!("ac/{digits}");
    for (layer, path, text) in [
        ("main", entry.clone(), format!("main/{entry}")),
        ("pr/42", entry.clone(), format!("pr/42/{entry}")),
        ("", entry.clone(), entry.clone()),
        ("main", action.clone(), format!("main/{action}")),
        ("pr/42", action.clone(), format!("pr/42//{action}")),
        ("", action.clone(), format!("//{action}")),
        ("", "ab/cdef".to_owned(), "ab/cdef".to_owned()),
        ("ab", "cd".to_owned(), "ab//cd".to_owned()),
        ("main", "pr/42/x".to_owned(), "main/pr/42/x".to_owned()),
        ("", "default/x".to_owned(), "//default/x".to_owned()),
    ] {
        let key = Key::in_layer(layer, &path).unwrap();
        assert_eq!(
            (key.as_str(), key.namespace()),
            (text.as_str(), layer),
            "{layer} {path}"
        );
        assert_eq!(Key::from_canonical(&text), Ok(key.clone()), "{text}");
        assert_eq!(key.is_path(), !text.contains("//"), "{text}");
    }
    let parsed = Key::parse(&format!("team/{entry}")).unwrap();
    for layer in [
        "",
        "main",
        "pr/42",
        "default",
        "default/x",
        &"x".repeat(250),
    ] {
        let by_path = Key::in_layer(layer, &entry);
        assert_eq!(parsed.entry_in_layer(layer), by_path, "{layer}");
    }
    assert!(parsed.entry_in_layer(&"x".repeat(256)).is_err());
    let result = Key::in_layer("pr/42", &action).unwrap();
    let blob = result.beside(&action, "cas/x").unwrap();
    assert_eq!(blob, Key::in_layer("pr/42", "cas/x").unwrap());
    assert_eq!(result.beside("ac/other", "cas/x"), None);
}

proptest! {
    #[test]
    fn no_two_namespaces_share_a_key(
        layers in ["(|ab|main|pr|pr/42|42)", "(|ab|main|pr|pr/42|42)"],
        paths in ["[ab/]{0,3}(pr/|42/|main/|ac/|default/){0,3}[ab]{1,3}", "[ab/]{0,3}(pr/|42/|main/|ac/|default/){0,3}[ab]{1,3}"],
    ) {
        let keys = [0, 1].map(|at| Key::in_layer(&layers[at], &paths[at]).unwrap());
        prop_assert_eq!(keys[0].namespace(), &layers[0]);
        prop_assert_eq!(Key::from_canonical(keys[0].as_str()), Ok(keys[0].clone()));
        let entries = [0, 1].map(|at| Key::parse(&paths[at]).unwrap().as_str().to_owned());
        let is_same = layers[0] == layers[1] && entries[0] == entries[1];
        prop_assert_eq!(keys[0].as_str() == keys[1].as_str(), is_same);
        // What a path names by itself is in the namespace that everybody sees.
        let path = Key::parse(&paths[1]).unwrap();
        if path.as_str() == keys[0].as_str() {
            prop_assert_eq!(path.namespace(), keys[0].namespace());
        }
    }

    #[test]
    fn parsing_is_idempotent_and_never_leaves_the_store(path in "[a-c./%@ é\\x00-\\x20]{0,40}") {
        if let Ok(key) = Key::parse(&path) {
            prop_assert_eq!(Key::parse(key.as_str()), Ok(key.clone()));
            prop_assert!(key.as_str().split('/').all(|part| !matches!(part, "" | "." | "..")));
            let folder = folder_name(key.namespace());
            prop_assert!(!folder.contains('/') && !matches!(&*folder, "" | "." | ".."));
            prop_assert_eq!(namespace_of_folder(&folder), Some(key.namespace().to_owned()));
        }
    }

    #[test]
    fn any_text_is_a_key_or_an_error(path in ".*") {
        let _ = Key::parse(&path);
        let _ = Key::for_sccache(&path);
    }
}
