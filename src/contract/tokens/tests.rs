use super::*;
use proptest::prelude::*;

const GOOD: &str = "
    [[token]]
    name = 'ci'
    token = '0123456789abcdef-ci'
    access = 'write'
    namespaces = ['team', '/docs/main/']
    [[token]]
    name = 'laptop'
    token = '0123456789abcdef-laptop'
    access = 'read'
";

#[test]
fn tokens_are_read_in_their_order() {
    let tokens = parse(GOOD).unwrap().tokens;
    assert_eq!(
        (tokens[0].name.as_str(), tokens[0].access),
        ("ci", Grant::Write)
    );
    assert_eq!(
        tokens[0].namespaces.as_deref(),
        Some(&["team".to_owned(), "docs/main".to_owned()][..])
    );
    assert_eq!(
        (tokens[1].access, &tokens[1].namespaces),
        (Grant::Read, &None)
    );
    assert_eq!(
        tokens[1].token().unwrap().reveal(),
        "0123456789abcdef-laptop"
    );
    assert_eq!(parse("").unwrap(), TokensFile::default());
}

#[test]
fn layers_stand_in_place_of_access_and_namespaces() {
    let file = parse(
        "[[token]]
        name = 'pr'
        token = '0123456789abcdef-pr'
        read = ['pr/42', 'main']
        write = 'pr/42'
        distribute = true
        [[token]]
        name = 'fork'
        token = '0123456789abcdef-fork'
        read = ['main']
        [[local]]
        uid = 1000
        read = ['default', 'main']
        write = 'default'
        [[local]]
        read = ['main']
        [anonymous]
        read = ['main']",
    );
    let file = file.unwrap();
    let layers = file.tokens[0].layers.as_ref().unwrap();
    assert_eq!(layers.write.as_deref(), Some("pr/42"));
    assert_eq!(file.tokens[0].access, Grant::Write);
    assert!(file.tokens[0].distribute && !file.tokens[0].replace);
    assert_eq!(file.tokens[1].access, Grant::Read);
    let uids: Vec<_> = file.local.iter().map(|one| one.uid).collect();
    assert_eq!(uids, [Some(1000), None]);
    assert_eq!(file.anonymous.unwrap().read, ["main"]);
}

#[test]
fn every_fault_is_named_and_no_value_is() {
    let entry = |rest: &str| format!("[[token]]\n{rest}");
    let whole = "name = 'a'\ntoken = 'hidden-hidden-hidden'\naccess = 'read'\n";
    for (text, word) in [
        (entry("name = 'hidden hidden'"), "token 1 has no name"),
        (entry("name = 'auth'"), "stands for something else"),
        (entry("name = 'a'\ntoken = 'hidden'"), "at least 16"),
        (
            entry("name = 'a'\naccess = 'hidden'"),
            "\"write\" or \"build\"",
        ),
        (entry(&format!("{whole}namespaces = 'hidden'")), "no list"),
        (
            entry(&format!("{whole}namespaces = ['../hidden']")),
            "no list",
        ),
        (
            entry(&format!("{whole}hidden = 1")),
            "a key that is none of",
        ),
        (entry(whole) + &entry(whole), "two tokens are called \"a\""),
        (entry(whole) + &entry(whole), "the same as another token"),
        (
            entry("name = 'hidden-hidden-hidden'\ntoken = 'ci'"),
            "(a name of 20 letters) has no \"token\"",
        ),
        (
            entry(&whole.replace("'a'", "'hidden-hidden-more'")).repeat(2),
            "two tokens are called a name of 18 letters",
        ),
        (
            entry(&format!("{whole}read = ['main']")),
            "an \"access\" beside",
        ),
        (
            entry(&format!("{whole}namespaces = ['a']\nread = ['main']")),
            "\"namespaces\" beside",
        ),
        (entry(&format!("{whole}replace = true")), "may not write"),
        (entry(&format!("{whole}distribute = 1")), "true or false"),
        (
            "[[local]]\nuid = 'hidden'".to_owned(),
            "local 1 has a \"uid\"",
        ),
        ("[[local]]\nuid = -1".to_owned(), "local 1 has a \"uid\""),
        ("[[local]]\nuid = 1".to_owned(), "local 1 has no \"read\""),
        (
            "[[local]]\nread = ['a']\nhidden = 1".to_owned(),
            "a key that is none of",
        ),
        ("[[local]]\nread = ['a']\n".repeat(2), "the same users"),
        ("[local]\nread = ['a']".to_owned(), "[[local]]"),
        (
            "[anonymous]\nread = ['a']\nwrite = 'a'".to_owned(),
            "takes a token",
        ),
        (
            entry(whole).replace("'a'", "'webdav'"),
            "stands for something else",
        ),
        ("hidden = 1".to_owned(), "a key beside"),
        ("token = 'hidden'".to_owned(), "[[token]]"),
        ("\n\ntoken = 'hidden".to_owned(), "line 3 is no TOML"),
    ] {
        let said = parse(&text).unwrap_err().to_string();
        assert!(said.contains(word), "{said}");
        assert!(!said.contains("hidden"), "{said}");
    }
}

/// Whoever chooses the value of a claim must get into no namespace that is somebody else's.
#[test]
fn no_rule_has_a_template_that_can_be_what_others_write() {
    let rule = |name: &str, read: &str, write: &str| {
        format!(
            "[[rule]]\nname = '{name}'\nissuer = 'i'\nclaims = {{ event_name = 'push', repository_id = 1 }}\n\
             read = ['{read}', 'main']\nwrite = '{write}'\n"
        )
    };
    let head = "[[issuer]]\nname = 'i'\nurl = 'https://i.example'\njwks = 'https://i.example/k'\naudience = 'c'\n";
    let fault = |others: &str| {
        let branches = rule("branches", "branch/${ref}", "branch/${ref}");
        let parsed = parse(&format!("{head}{branches}{others}"));
        parsed.err().map(|faults| faults.to_string())
    };
    let token = "[[token]]\nname = 'ci'\ntoken = 'hidden-hidden-hidden'\nread = ['branch/main']\n";
    for (others, owner) in [
        (rule("trunk", "branch/main", "branch/main"), "\"trunk\""),
        (
            rule("heads", "branch/${head}", "branch/${head}"),
            "\"heads\"",
        ),
        (format!("{token}write = 'branch/main'"), "\"ci\""),
        (
            "[[local]]\nread = ['branch/main']\nwrite = 'branch/main'".to_owned(),
            "[[local]]",
        ),
    ] {
        let said = fault(&others).unwrap_or_default();
        assert!(
            said.contains(&format!("a namespace that {owner} writes")),
            "{said}"
        );
    }
    // A private namespace must not be read either.
    let reader = rule("trunk", "team/main", "team/main") + &rule("reader", "team/${name}", "main");
    assert!(
        fault(&reader)
            .unwrap()
            .contains("\"reader\" has \"team/${name}\"")
    );
    for others in [
        token.to_owned(),
        rule("trunk", "base", "main"),
        rule("again", "branch/${ref}", "branch/${ref}"),
        rule("pulls", "pr/${ref_number}", "pr/${ref_number}"),
    ] {
        assert_eq!(fault(&others), None, "{others}");
    }
}

/// Numbers that a CI service gives are nobody's to choose, but may be the name of somebody's folder.
#[test]
fn ids_make_namespaces_beside_those_of_others() {
    let rule = |name: &str, claims: &str, namespace: &str| {
        format!(
            "[[rule]]\nname = '{name}'\nissuer = 'i'\nclaims = {{ {claims} }}\nread = ['{namespace}']\nwrite = '{namespace}'\n"
        )
    };
    let head = "[[issuer]]\nname = 'i'\nurl = 'https://i.example'\njwks = 'https://i.example/k'\naudience = 'c'\n";
    let push = "event_name = 'push', repository_owner_id = 7";
    let token =
        |rest: &str| format!("[[token]]\nname = 'ci'\ntoken = 'hidden-hidden-hidden'\n{rest}\n");
    let layers = |name: &str| token(&format!("read = ['{name}']\nwrite = '{name}'"));
    let below = |name: &str| token(&format!("access = 'write'\nnamespaces = ['{name}']"));
    let merge = "project_id = 7, pipeline_source = 'merge_request_event'";
    let own = rule("own", push, "${repository_id}/main");
    for (file, owner) in [
        (
            rule("own", push, "repo/${repository_id}") + &layers("repo/1001"),
            None,
        ),
        (own.clone() + &layers("main"), None),
        (own.clone() + &layers("team/main"), None),
        (own.clone() + &below("team"), None),
        (own.clone() + &below("1001/main/x"), None),
        (own.clone() + &layers("1001/main"), Some("ci")),
        (own.clone() + &below("1001"), Some("ci")),
        (own + &below("1001/main"), Some("ci")),
        // A merge request's branch may be called as one that is pushed.
        (
            rule("mr", merge, "mr/${ref}") + &rule("twin", merge, "mr/${ref}"),
            None,
        ),
        (
            rule("mr", merge, "branch/${ref}")
                + &rule(
                    "pushed",
                    "project_id = 7, pipeline_source = 'push'",
                    "branch/${ref}",
                ),
            Some("pushed"),
        ),
    ] {
        let said = parse(&format!("{head}{file}"))
            .err()
            .map(|faults| faults.to_string());
        match owner {
            None => assert_eq!(said, None, "{file}"),
            Some(owner) => {
                let said = said.unwrap_or_default();
                assert!(
                    said.contains(&format!("a namespace that \"{owner}\" writes")),
                    "{file}: {said}"
                );
            }
        }
    }
}

#[test]
fn rule_with_a_name_that_stands_for_something_else_is_told_so_and_an_issuer_may_have_it() {
    let file = |issuer: &str, rule: &str| {
        format!(
            "[[issuer]]\nname = '{issuer}'\nurl = 'https://i.example'\njwks = 'https://i.example/k'\naudience = 'c'\n\
             [[rule]]\nname = '{rule}'\nissuer = '{issuer}'\nclaims = {{ sub = 'x' }}\nread = ['main']\n"
        )
    };
    assert_eq!(
        parse(&file("local", "readers")).map(|file| file.rules.len()),
        Ok(1)
    );
    let said = parse(&file("github", "upstream")).unwrap_err().to_string();
    assert!(
        said.contains("rule 1 has a \"name\" that stands for something else"),
        "{said}"
    );
}

proptest! {
    #[test]
    fn any_text_is_judged(text in "\\PC{0,200}") {
        let _ = parse(&text);
    }
}
