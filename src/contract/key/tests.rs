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

proptest! {
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
