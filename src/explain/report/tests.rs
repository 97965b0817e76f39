use super::super::print::Print;
use super::super::protocol::Level;
use super::*;

fn unit(name: &str, took_ms: u64) -> Unit {
    Unit {
        name: name.into(),
        version: "1.0.0".into(),
        kind: "lib".into(),
        took_ms,
        exit: Some(0),
        ..Unit::default()
    }
}

fn seen(seen: Seen) -> Facts {
    Facts {
        seen,
        bytes: 10,
        compile_ms: Some(500),
        ..Facts::default()
    }
}

/// One of each kind.
pub(crate) fn report() -> Report {
    let end = End {
        build: "b1".into(),
        command: "cargo".into(),
        wall_ms: 2000,
        units: vec![
            unit("hit", 5),
            unit("miss", 400),
            unit("own", 4),
            Unit {
                not_cached: Some("crate-type, bin".into()),
                ..unit("program", 300)
            },
            Unit {
                exit: Some(1),
                ..unit("broken", 20)
            },
        ],
        ..End::default()
    };
    let facts = [
        Seen::Hit,
        Seen::Miss,
        Seen::Nothing,
        Seen::Nothing,
        Seen::Nothing,
    ];
    let wire = Wire {
        hits: 1,
        misses: 1,
        writes: 1,
        read_bytes: 10,
        written_bytes: 10,
        ..Wire::default()
    };
    assess(&end, facts.map(seen).into(), wire, 1_790_000_000)
}

#[test]
fn each_compile_is_told_and_summed() {
    let report = report();
    let outcomes: Vec<_> = report.rows.iter().map(|row| row.outcome).collect();
    use Outcome::*;
    assert_eq!(outcomes, [Hit, Miss, OwnDisk, NotCached, Failed]);
    let sums = &report.sums;
    assert_eq!((sums.hits, sums.own_disk, sums.misses), (1, 1, 1));
    assert_eq!((sums.not_cached, sums.failed, sums.saved_ms), (1, 1, 1000));
    assert_eq!(sums.reasons["never_built"], 1);
    assert_eq!(report.hit_percent().map(f64::round), Some(67.0));
    assert_eq!(report.slowest()[0].name, "miss");
    let json = serde_json::to_string(&report).unwrap();
    assert_eq!(serde_json::from_str::<Report>(&json).unwrap(), report);
}

#[test]
fn what_the_compiler_says_itself_is_certain() {
    let failed = Unit {
        exit: Some(1),
        ..unit("x.c", 5)
    };
    let end = End {
        units: vec![unit("y.c", 5), failed],
        ..End::default()
    };
    let facts = Facts {
        probably: true,
        ..seen(Seen::Miss)
    };
    let report = assess(&end, vec![facts; 2], Wire::default(), 1);
    assert_eq!(report.rows[1].outcome, Outcome::Failed);
    assert!(report.rows[0].probably && !report.rows[1].probably);
}

#[test]
fn path_is_the_last_reason_of_c() {
    let mut end = End {
        units: vec![unit("x.c", 5)],
        ..End::default()
    };
    end.units[0].print.root = Some("/a".into());
    let mut before = end.units[0].print.clone();
    before.root = Some("/b".into());
    let label = |end: &End, before: &Print| {
        let mut facts = seen(Seen::Miss);
        facts.earlier = vec![Earlier {
            print: before.clone(),
            ..Earlier::default()
        }];
        let report = assess(end, vec![facts], Wire::default(), 1);
        report.rows[0].why.as_ref().unwrap().label()
    };
    end.units[0].kind = "c".into();
    assert_eq!(label(&end, &before), "path");
    before.sources = [("x.h".to_owned(), "old".to_owned())].into();
    assert_eq!(label(&end, &before), "source");
    end.units[0].kind = "lib".into();
    assert_eq!(label(&end, &before), "path");
}

#[test]
fn two_versions_of_a_crate_are_told_apart() {
    let base = |version: &str, output: &str| Unit {
        version: version.into(),
        output: output.into(),
        ..unit("base", 5)
    };
    let mut top = unit("top", 5);
    top.needs.insert("base".into(), vec!["base-02".to_owned()]);
    top.print.dependencies = [("base".to_owned(), "new".to_owned())].into();
    let mut before = top.print.clone();
    before.dependencies = [("base".to_owned(), "old".to_owned())].into();
    let end = End {
        units: vec![base("1.0.0", "base-01"), base("2.0.0", "base-02"), top],
        ..End::default()
    };
    let mut facts = vec![seen(Seen::Miss); 3];
    facts[2].earlier = vec![Earlier {
        print: before,
        ..Earlier::default()
    }];
    // Only the second one has changed.
    let mut print = end.units[1].print.clone();
    print.sources = [("src/lib.rs".to_owned(), "old".to_owned())].into();
    facts[1].earlier = vec![Earlier {
        print,
        ..Earlier::default()
    }];
    let report = assess(&end, facts, Wire::default(), 1);
    let why = report.rows[2].why.as_ref().unwrap().text();
    assert_eq!(why, "follows base 2.0.0: source changed: src/lib.rs");
}

#[test]
fn what_nobody_asked_for_is_a_hit_only_if_the_daemon_says_so() {
    let mut end = End {
        units: vec![unit("slow", 900), unit("fast", 3)],
        daemon: Some(Daemon {
            hits: 1,
            misses: 1,
            errors: 1,
            ..Daemon::default()
        }),
        ..End::default()
    };
    let outcomes = |end: &End| {
        let report = assess(end, vec![Facts::default(); 2], Wire::default(), 1);
        let rows = report.rows.into_iter();
        rows.map(|row| (row.outcome, row.why)).collect::<Vec<_>>()
    };
    let away = |cause: &str| {
        let cause = cause.to_owned();
        (Outcome::Miss, Some(Reason::Away { cause }))
    };
    let own = (Outcome::OwnDisk, None);
    assert_eq!(outcomes(&end), [away("1 look-ups failed"), own.clone()]);
    end.daemon = None;
    assert_eq!(outcomes(&end), [own.clone(), own]);
    end.away = Some("gone".into());
    assert_eq!(outcomes(&end), [away("gone"), away("gone")]);
}

#[test]
fn what_the_cache_has_forgotten_is_told_by_the_daemon_alone() {
    let level = |name: &str, hits| Level {
        name: name.into(),
        hits,
    };
    let mut end = End {
        units: vec![unit("slow", 900), unit("fast", 3), unit("faster", 2)],
        daemon: Some(Daemon {
            hits: 2,
            misses: 1,
            levels: vec![level("L0 (disk)", 1), level("L1 (webdav)", 1)],
            ..Daemon::default()
        }),
        ..End::default()
    };
    let outcomes = |end: &End| {
        let report = assess(end, vec![seen(Seen::Forgotten); 3], Wire::default(), 1);
        let rows = report.rows.into_iter();
        rows.map(|row| row.outcome).collect::<Vec<_>>()
    };
    use Outcome::*;
    assert_eq!(outcomes(&end), [Miss, Hit, OwnDisk]);
    let daemon = end.daemon.as_mut().unwrap();
    daemon.levels.clear();
    assert_eq!(outcomes(&end), [Miss, Hit, Hit]);
    end.daemon = None;
    assert_eq!(outcomes(&end), [Miss, Miss, Miss]);
}
