use super::*;
use crate::explain::protocol::Labels;

/// Of those who may do everything.
fn all() -> Partition {
    Partition {
        name: String::new(),
        is_guest: false,
    }
}

fn asked<'a>(labels: &'a Labels, keys: &'a [String]) -> Asked<'a> {
    Asked {
        labels,
        keys,
        is_whole: true,
        lists: &[],
    }
}

fn open(folder: &Path) -> Database {
    Database::open(folder, 0).unwrap()
}

fn learned(name: &str, flag: &str, result: Option<u8>) -> Learned {
    Learned {
        identity: name.into(),
        print: Print {
            flags: vec![flag.into()],
            ..Print::default()
        },
        result: result.map(|number| [number; 16]),
        compile_ms: Some(100),
        refused: None,
        is_own: true,
    }
}

fn build(id: &str, at: u64) -> Report {
    Report {
        build: id.into(),
        ended_unix_seconds: at,
        ..Report::default()
    }
}

#[test]
fn everything_is_there_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let point = Point {
        hits: 3,
        bytes_written: 1 << 40,
        ..Point::default()
    };
    let lifetime = Lifetime {
        since_unix_seconds: 7,
        sums: point,
    };
    let labels = Labels {
        job: Some("test".into()),
        branch: Some("main".into()),
        ..Labels::default()
    };
    let keys = ["a/b/c/x".to_owned()];
    let secret = {
        let database = open(folder.path());
        let points = [
            (Range::Day, vec![(5, point)]),
            (Range::Quarter, vec![(6, point)]),
        ];
        database.write_points(&points, &lifetime).unwrap();
        let one = learned("x", "-O", Some(1));
        database
            .learn(
                &all(),
                vec![one],
                &build("b1", 10),
                Some(asked(&labels, &keys)),
            )
            .unwrap();
        database.secret().unwrap()
    };
    let database = open(folder.path());
    assert_eq!(database.secret().unwrap(), secret);
    assert_eq!(database.points(Range::Day).unwrap(), [(5, point)]);
    assert_eq!(database.points(Range::Quarter).unwrap(), [(6, point)]);
    assert_eq!(database.lifetime().unwrap(), Some(lifetime));
    let print = learned("x", "-O", None).print;
    let (earlier, took) = database.earlier(&all(), "x", &print).unwrap();
    let print = print.id("x");
    assert_eq!((earlier.len(), took), (1, Some(100)));
    assert_eq!(database.result(&[1; 16]).unwrap(), Some((Some(100), print)));
    assert_eq!(
        database.builds(Whose::Anybodys, 5).unwrap(),
        [build("b1", 10)]
    );
    assert_eq!(
        database.build(Whose::Anybodys, "b1").unwrap(),
        Some(build("b1", 10))
    );
    let order = database.order(&all(), &labels).unwrap();
    let order = order.unwrap();
    assert_eq!((order.unix_seconds, &order.keys[..]), (10, &keys[..]));
    let other = Labels {
        branch: Some("other".into()),
        ..labels.clone()
    };
    assert_eq!(database.order(&all(), &other).unwrap(), Some(order));
    let team = Partition {
        name: "team".into(),
        is_guest: false,
    };
    assert_eq!(database.order(&team, &labels).unwrap(), None);
    assert_eq!(database.order(&all(), &Labels::default()).unwrap(), None);
}

#[test]
fn fate_of_a_result_is_remembered_until_it_is_stored_again() {
    let folder = tempfile::tempdir().unwrap();
    let database = open(folder.path());
    let learn = |one: Learned| {
        let report = build("b", 10);
        database.learn(&all(), vec![one], &report, None).unwrap();
    };
    let fate = || {
        let (mut earlier, _) = database.earlier(&all(), "x", &Print::default()).unwrap();
        earlier.pop().unwrap().fate
    };
    let removed = |cause| {
        let removal = Removal {
            id: [1; 16],
            unix_seconds: 20,
            cause,
        };
        let unknown = Removal {
            id: [9; 16],
            ..removal
        };
        database.note_removals(&[unknown, removal], 77).unwrap();
    };
    learn(learned("x", "-O", Some(1)));
    assert_eq!(fate(), Fate::Unknown);
    removed(RemovalCause::Budget);
    assert_eq!(fate(), Fate::Evicted { at: 20, budget: 77 });
    learn(learned("x", "-O", Some(1)));
    assert_eq!(fate(), Fate::Unknown);
    for (cause, expected) in [
        (RemovalCause::Quota, Fate::Quota { at: 20 }),
        (RemovalCause::Age, Fate::Age { at: 20 }),
        (RemovalCause::Purge, Fate::Purged { at: 20 }),
        (RemovalCause::Broken, Fate::Broken { at: 20 }),
    ] {
        removed(cause);
        assert_eq!(fate(), expected);
    }
    let refused = Learned {
        refused: Some("it may only read".into()),
        ..learned("y", "-O", None)
    };
    learn(refused);
    let (earlier, _) = database.earlier(&all(), "y", &Print::default()).unwrap();
    let cause = "it may only read".to_owned();
    assert_eq!(earlier[0].fate, Fate::NotStored { cause });
}

#[test]
fn variants_and_fingerprints_are_bounded_and_the_oldest_go() {
    let folder = tempfile::tempdir().unwrap();
    let mut database = open(folder.path());
    database.prints = 20;
    for number in 0..30_u8 {
        let one = learned("x", &format!("-C x={number}"), Some(number));
        let report = build(&format!("{number:02}"), u64::from(number));
        database.learn(&all(), vec![one], &report, None).unwrap();
    }
    let (earlier, _) = database.earlier(&all(), "x", &Print::default()).unwrap();
    assert_eq!(earlier.len(), VARIANTS);
    assert_eq!(earlier[0].print.flags, ["-C x=29"]);
    assert_eq!(database.result(&[9; 16]).unwrap(), None);
    assert!(database.result(&[10; 16]).unwrap().is_some());
    for number in 0..20_u8 {
        let one = learned("y", &format!("-C y={number}"), None);
        database
            .learn(&all(), vec![one], &build("z", 99), None)
            .unwrap();
    }
    assert!(
        database
            .earlier(&all(), "x", &Print::default())
            .unwrap()
            .0
            .is_empty()
    );
}

#[test]
fn stretches_that_are_too_old_are_forgotten() {
    let folder = tempfile::tempdir().unwrap();
    let database = open(folder.path());
    let write = |at: u64| {
        let points = [(Range::Quarter, vec![(at, Point::default())])];
        database
            .write_points(&points, &Lifetime::default())
            .unwrap();
    };
    write(1000);
    write(1000 + 2160);
    assert_eq!(database.points(Range::Quarter).unwrap().len(), 2);
    write(1001 + 2160);
    let kept = database.points(Range::Quarter).unwrap();
    assert_eq!(kept.iter().map(|it| it.0).collect::<Vec<_>>(), [3160, 3161]);
}

#[test]
fn file_that_cannot_be_read_is_kept_aside() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(FILE);
    std::fs::write(&path, "no database, but longer than nothing".repeat(100)).unwrap();
    let database = open(folder.path());
    assert!(database.builds(Whose::Anybodys, 1).unwrap().is_empty());
    assert!(path.with_extension("redb.broken").exists());
}

#[test]
fn guests_change_nothing_that_others_remember() {
    let folder = tempfile::tempdir().unwrap();
    let mut database = open(folder.path());
    database.prints = 20;
    let guest = Partition {
        name: "pr/42".into(),
        is_guest: true,
    };
    let labels = Labels::default();
    let keys = ["a/b/c/x".to_owned()];
    let own = learned("x", "-O", Some(1));
    let report = build("0", 1);
    database
        .learn(&all(), vec![own], &report, Some(asked(&labels, &keys)))
        .unwrap();
    for number in 0..DETAILS_KEPT + 20 {
        // It has hit the same entry, which it does not write.
        let mut one = learned("x", &format!("-C x={number}"), Some(1));
        (one.is_own, one.compile_ms) = (false, None);
        let labels = Labels {
            job: Some(number.to_string()),
            ..Labels::default()
        };
        let report = build(&format!("1{number:03}"), number + 10);
        let asked = Some(asked(&labels, &keys));
        database.learn(&guest, vec![one], &report, asked).unwrap();
    }
    let print = learned("x", "-O", None).print;
    let known = |partition: &Partition| database.earlier(partition, "x", &print).unwrap();
    let (earlier, took) = known(&all());
    assert_eq!((earlier.len(), took), (1, Some(100)));
    assert_eq!(known(&guest).0.len(), VARIANTS);
    let stored = database.result(&[1; 16]).unwrap();
    assert_eq!(stored, Some((Some(100), print.id("x"))));
    let order = database.order(&all(), &labels).unwrap().unwrap();
    assert_eq!(order.unix_seconds, 1);
    assert_eq!(database.order(&guest, &labels).unwrap(), None);
    assert_eq!(database.build(Whose::Anybodys, "0").unwrap(), Some(report));
    let listed = database.builds(Whose::Anybodys, 500).unwrap();
    assert_eq!(listed.len() as u64, DETAILS_KEPT + 21);
    assert_eq!(listed.last().unwrap().build, "0");
}

#[test]
fn branch_goes_on_with_the_list_that_it_was_given() {
    let folder = tempfile::tempdir().unwrap();
    let database = open(folder.path());
    let branch = |name: &str| Labels {
        branch: Some(name.into()),
        ..Labels::default()
    };
    let keys = ["a/b/c/x", "a/b/c/y", "a/b/c/z"].map(str::to_owned);
    let guest = Partition {
        name: "pr/42".into(),
        is_guest: true,
    };
    let learn = |partition: &Partition, name: &str, keys: &[String]| {
        let labels = branch(name);
        let asked = Asked {
            lists: &[all()],
            ..asked(&labels, keys)
        };
        let report = build(name, 10);
        database
            .learn(partition, Vec::new(), &report, Some(asked))
            .unwrap();
        let order = database.order(partition, &labels).unwrap();
        order.unwrap().keys
    };
    learn(&all(), "main", &keys);
    // The first build of a branch, or of a pull request, is one of a single crate.
    let expected = [2, 0, 1].map(|at| keys[at].clone());
    assert_eq!(learn(&all(), "other", &keys[2..]), expected);
    assert_eq!(learn(&guest, "main", &keys[2..]), expected);
    let main = database.order(&all(), &branch("main")).unwrap();
    assert_eq!(main.unwrap().keys, keys);
}
