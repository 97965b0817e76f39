use super::*;
use crate::explain::print::Print;
use crate::explain::protocol::{Daemon, Prefetched};
use crate::explain::report::Outcome;

fn key(number: u8) -> Key {
    Key::for_sccache(&format!("{number:02x}").repeat(32)).unwrap()
}

fn sender(origin: &str, token: Option<&str>) -> Sender {
    Sender {
        origin: origin.into(),
        token: token.map(str::to_owned),
    }
}

fn unit(output: &str, start_ms: u64, took_ms: u64) -> Unit {
    Unit {
        name: output.split('-').next().unwrap().into(),
        kind: "lib".into(),
        output: output.into(),
        start_ms,
        took_ms,
        exit: Some(0),
        print: Print {
            sources: [("src/lib.rs".to_owned(), output.to_owned())].into(),
            ..Print::default()
        },
        ..Unit::default()
    }
}

fn names(outputs: &[&str]) -> Vec<Vec<String>> {
    let members = |output: &&str| {
        vec![
            format!("lib{output}.rlib"),
            format!("lib{output}.rmeta"),
            "stdout".into(),
        ]
    };
    outputs.iter().map(members).collect()
}

/// Of those who may do everything.
fn all() -> Partition {
    Partition {
        name: String::new(),
        is_guest: false,
    }
}

fn memory() -> Memory {
    Memory {
        own: all(),
        others: Vec::new(),
        lists: Vec::new(),
    }
}

struct Scene {
    journal: Journal,
    _folder: tempfile::TempDir,
}

impl Scene {
    fn new() -> Scene {
        let folder = tempfile::tempdir().unwrap();
        let journal = Journal::open(folder.path(), 1000);
        Scene {
            journal,
            _folder: folder,
        }
    }

    /// A build with these requests and compiles; `outputs` are those of the entries that are there.
    fn build(&self, did: &[(u8, Did)], units: Vec<Unit>, outputs: &[&str]) -> Report {
        let client = sender("10.0.0.1", Some("auth"));
        let begun = self.journal.begin(client.clone(), true);
        for (number, did) in did {
            self.journal.note(|| client.clone(), &key(*number), *did);
        }
        let end = End {
            build: begun.build,
            units,
            ..End::default()
        };
        let taken = self.journal.take(&end.build, &client, &Scope::All);
        let names = names(outputs);
        self.journal.explain(&memory(), end, taken, &names, &[])
    }
}

#[tokio::test]
async fn compiles_and_keys_are_joined_by_the_names_of_members() {
    let scene = Scene::new();
    let did = [(1, Did::Miss), (2, Did::Hit(20)), (1, Did::Write(10))];
    let units = || vec![unit("one-01", 0, 400), unit("two-02", 0, 3)];
    let report = scene.build(&did, units(), &["two-02", "one-01"]);
    let outcomes: Vec<_> = report.rows.iter().map(|row| row.outcome).collect();
    assert_eq!(outcomes, [Outcome::Miss, Outcome::Hit]);
    assert_eq!(report.rows[0].why.as_ref().unwrap().label(), "never_built");
    assert_eq!(report.rows[0].bytes, 10);
    assert_eq!((report.wire.hits, report.wire.writes), (1, 1));
    let again = [(1, Did::Hit(10)), (2, Did::Hit(20))];
    let report = scene.build(&again, units(), &["one-01", "two-02"]);
    assert_eq!(report.sums.hits, 2);
    assert_eq!(report.sums.saved_ms, 400, "what it took when it was made");
    assert_eq!(report.sums.untimed, 1);
}

#[tokio::test]
async fn what_has_no_name_is_joined_by_time_and_said_to_be_probable() {
    let scene = Scene::new();
    let mut c = unit("util.o", 0, 10);
    c.kind = "c".into();
    let units = vec![unit("one-01", 0, 400), c];
    let report = scene.build(&[(1, Did::Hit(5)), (3, Did::Miss)], units, &["one-01"]);
    assert_eq!(report.rows[1].outcome, Outcome::Miss);
    assert!(report.rows[1].probably && !report.rows[0].probably);
}

#[tokio::test]
async fn requests_of_others_are_not_of_this_build() {
    let scene = Scene::new();
    let client = sender("10.0.0.1", Some("auth"));
    let begun = scene.journal.begin(client.clone(), true);
    let own_protocol = sender("10.0.0.1", None);
    for other in [
        sender("10.0.0.2", Some("auth")),
        sender("10.0.0.1", Some("ci")),
    ] {
        scene.journal.note(|| other, &key(1), Did::Miss);
    }
    scene.journal.note(|| own_protocol, &key(2), Did::Miss);
    assert!(
        scene
            .journal
            .take(&begun.build, &sender("10.0.0.9", None), &Scope::All)
            .events
            .is_empty()
    );
    let taken = scene.journal.take(&begun.build, &client, &Scope::All);
    assert_eq!(taken.wire().misses, 1);
    assert!(!scene.journal.is_watching());
    assert!(scene.journal.state().events == 0);
}

#[tokio::test]
async fn nothing_is_noted_while_nobody_asks() {
    let scene = Scene::new();
    scene.journal.note(|| unreachable!(), &key(1), Did::Miss);
    assert!(scene.journal.state().events == 0);
}

#[tokio::test]
async fn builds_that_nobody_ends_are_given_up() {
    let scene = Scene::new();
    for number in 0..OPEN + 5 {
        let origin = (number / OPEN_OF_ONE).to_string();
        scene.journal.begin(sender(&origin, None), true);
    }
    assert_eq!(scene.journal.state().open.len(), OPEN);
    for _ in 0..EVENTS + 5 {
        scene.journal.note(|| sender("9", None), &key(1), Did::Miss);
    }
    let all: usize = (scene.journal.state().open.iter())
        .map(|open| open.events.len())
        .sum();
    assert_eq!(scene.journal.state().events, all);
    assert!((EVENTS / 2..=EVENTS).contains(&all), "{all}");
    scene.journal.tidy();
    assert!(scene.journal.is_watching());
    scene.journal.forget_older(Duration::ZERO, SILENT);
    assert!(!scene.journal.is_watching());
    assert!(scene.journal.state().events == 0);
}

#[tokio::test]
async fn order_of_keys_is_that_of_the_build() {
    let scene = Scene::new();
    let did = [
        (3, Did::Hit(1)),
        (1, Did::Miss),
        (1, Did::Write(1)),
        (3, Did::Hit(1)),
        (2, Did::Miss),
    ];
    scene.build(&did, vec![unit("one-01", 0, 1)], &["x-1", "y-1"]);
    let order = scene
        .journal
        .database()
        .unwrap()
        .order(&all(), &Default::default());
    let expected = [key(3), key(1)].map(|key| key.as_str().to_owned());
    assert_eq!(order.unwrap().unwrap().keys, expected);
}

#[test]
fn what_came_ahead_keeps_the_place_at_which_it_was_asked_for() {
    let requests = [
        (10, 1, Did::Miss),
        (20, 2, Did::Hit(1)),
        (30, 1, Did::Write(1)),
    ];
    let taken = Taken {
        events: requests
            .map(|(at_ms, number, did)| Request {
                at_ms,
                key: key(number),
                did,
                lost: None,
                is_own: true,
            })
            .into(),
        ..Taken::default()
    };
    let name = |number| key(number).as_str().to_owned();
    let end = |used_ms: &[u64]| End {
        prefetched: Some(Prefetched {
            used: vec![name(3), name(4)],
            used_ms: used_ms.to_vec(),
            unused: vec![name(5)],
            bytes: 3,
        }),
        ..End::default()
    };
    let keys = |used_ms: &[u64]| taken.order(&end(used_ms));
    assert_eq!(keys(&[15, 40]), [1, 3, 2, 4].map(name));
    // Nobody knows: it was there before the build.
    assert_eq!(keys(&[]), [3, 4, 1, 2].map(name));
}

#[tokio::test]
async fn evicted_key_is_told_even_if_nobody_recorded_its_compile() {
    let scene = Scene::new();
    let client = sender("10.0.0.1", None);
    let begun = scene.journal.begin(client.clone(), true);
    let lost = store::Lost {
        bytes: 5,
        kept_by: Some(1500),
    };
    scene.journal.note_lost(&key(1), Some(lost));
    for did in [Did::Miss, Did::Write(5)] {
        scene.journal.note(|| client.clone(), &key(1), did);
    }
    let end = End {
        build: begun.build,
        units: vec![unit("one-01", 0, 5)],
        ..End::default()
    };
    let taken = scene.journal.take(&end.build, &client, &Scope::All);
    let names = names(&["one-01"]);
    let report = scene.journal.explain(&memory(), end, taken, &names, &[]);
    let why = report.rows[0].why.as_ref().unwrap();
    assert_eq!(
        why.text(),
        "evicted lately at a budget of 1000 B; 1.5 KiB would have kept it"
    );
}

#[tokio::test]
async fn nobody_can_make_the_build_of_another_forget() {
    let scene = Scene::new();
    let (main, pull) = (
        sender("10.0.0.1", Some("main")),
        sender("10.0.0.1", Some("pull")),
    );
    let begun = scene.journal.begin(main.clone(), true);
    scene.journal.note(|| main.clone(), &key(1), Did::Miss);
    for number in 0..OPEN + 5 {
        let origin = format!("10.0.1.{}", number / OPEN_OF_ONE);
        let other = sender(&origin, Some("pull"));
        scene.journal.begin(other, true);
    }
    scene.journal.begin(pull.clone(), true);
    for _ in 0..EVENTS {
        scene.journal.note(|| pull.clone(), &key(2), Did::Miss);
    }
    scene.journal.note(|| main.clone(), &key(1), Did::Write(9));
    assert_eq!(scene.journal.state().open.len(), OPEN);
    assert!(scene.journal.state().events <= EVENTS);
    let taken = scene.journal.take(&begun.build, &main, &Scope::All);
    assert_eq!((taken.wire().misses, taken.wire().writes), (1, 1));
}

#[tokio::test]
async fn what_is_not_the_callers_to_see_is_no_part_of_its_build() {
    let scene = Scene::new();
    let client = sender("10.0.0.1", Some("pull"));
    let begun = scene.journal.begin(client.clone(), true);
    let scope = Scope::Layers(crate::contract::tokens::Layers {
        read: vec!["pr/42".into(), String::new()],
        write: Some("pr/42".into()),
        replace: false,
    });
    // Of one machine, by sccache's own protocol, which tells no names.
    let own_protocol = sender("10.0.0.1", None);
    for layer in ["main", "pr/42", ""] {
        let key = Key::in_layer(layer, key(1).as_str()).unwrap();
        let did = Did::Hit(1);
        scene.journal.note(|| own_protocol.clone(), &key, did);
    }
    let taken = scene.journal.take(&begun.build, &client, &scope);
    let seen: Vec<(&str, bool)> = (taken.events.iter())
        .map(|event| (event.key.namespace(), event.is_own))
        .collect();
    assert_eq!(seen, [("pr/42", true), ("", false)]);
}

/// Ends a build whose entries have these outputs.
fn end(scene: &Scene, begun: Begun, units: Vec<Unit>, outputs: &[&str]) -> Report {
    let client = sender("10.0.0.1", Some("auth"));
    let end = End {
        build: begun.build,
        units,
        ..End::default()
    };
    let taken = scene.journal.take(&end.build, &client, &Scope::All);
    let names = names(outputs);
    scene.journal.explain(&memory(), end, taken, &names, &[])
}

#[tokio::test]
async fn builds_at_the_same_time_do_not_claim_each_others_requests() {
    let scene = Scene::new();
    let client = sender("10.0.0.1", Some("auth"));
    let (one, two) = (
        scene.journal.begin(client.clone(), true),
        scene.journal.begin(client.clone(), true),
    );
    let stranger = scene.journal.begin(sender("10.0.0.2", Some("auth")), true);
    for (number, did) in [
        (1, Did::Hit(5)),
        (2, Did::Miss),
        (2, Did::Write(9)),
        // Both compile it.
        (3, Did::Miss),
        (3, Did::Write(7)),
        (3, Did::Hit(7)),
    ] {
        scene.journal.note(|| client.clone(), &key(number), did);
    }
    let outputs = ["one-01", "two-02", "both-03"];
    let units = vec![unit("one-01", 0, 5), unit("both-03", 0, 5)];
    let report = end(&scene, one, units, &outputs);
    assert_eq!(report.shared, 1);
    assert_eq!((report.wire.hits, report.wire.misses), (2, 1));
    assert!(!report.rows[0].probably && report.rows[1].probably);
    let units = vec![unit("two-02", 0, 5), unit("both-03", 0, 5)];
    let report = end(&scene, two, units, &outputs);
    assert_eq!(report.shared, 1, "it has ended meanwhile");
    assert_eq!((report.wire.hits, report.wire.misses), (1, 2));
    assert_eq!(report.rows[0].outcome, Outcome::Miss);
    let taken = (scene.journal).take(
        &stranger.build,
        &sender("10.0.0.2", Some("auth")),
        &Scope::All,
    );
    assert_eq!(taken.shared, 0);
    let alone = scene.journal.begin(client, true);
    assert_eq!(end(&scene, alone, Vec::new(), &[]).shared, 0);
}

#[tokio::test]
async fn build_whose_client_was_killed_is_given_up() {
    let scene = Scene::new();
    let client = sender("10.0.0.1", Some("auth"));
    let begin = || scene.journal.begin(client.clone(), true);
    let ago = |begun: &Begun, time: Duration| {
        let mut state = scene.journal.state();
        let mut all = state.open.iter_mut();
        let open = all.find(|open| open.id == begun.build).unwrap();
        (open.began, open.heard) = (open.began - time, open.heard - time);
    };
    let (killed, other, silent) = (begin(), begin(), begin());
    for begun in [&killed, &other] {
        scene.journal.beat(&begun.build, &client);
        ago(begun, SILENT);
    }
    ago(&silent, SILENT);
    scene.journal.beat(&other.build, &client);
    // A client that does not say that it goes on is known by its requests.
    scene.journal.note(|| client.clone(), &key(1), Did::Miss);
    let short = begin();
    let take = |begun: &Begun| scene.journal.take(&begun.build, &client, &Scope::All);
    assert_eq!(
        take(&short).shared,
        2,
        "the killed one does not count any more"
    );
    assert!(!take(&killed).known, "taking one has tidied up");
    assert!(take(&other).known && take(&silent).known);
    assert!(!scene.journal.is_watching());
}

#[tokio::test]
async fn build_that_was_begun_with_another_gateway_is_told_by_its_daemon() {
    let scene = Scene::new();
    let end = End {
        build: "before".into(),
        units: vec![unit("slow-01", 0, 900), unit("fast-02", 0, 3)],
        daemon: Some(Daemon {
            hits: 1,
            misses: 1,
            ..Daemon::default()
        }),
        ..End::default()
    };
    let client = sender("10.0.0.1", Some("auth"));
    let taken = scene.journal.take(&end.build, &client, &Scope::All);
    let report = scene.journal.explain(&memory(), end, taken, &[], &[]);
    let outcomes: Vec<_> = report.rows.iter().map(|row| row.outcome).collect();
    assert_eq!(outcomes, [Outcome::Miss, Outcome::Hit]);
    let why = report.rows[0].why.as_ref().unwrap().text();
    assert!(why.contains("it was restarted during the build"), "{why}");
}
