use super::*;
use crate::contract::control::TroubleReport;
use crate::contract::gateway_status::{
    BuilderStatus, DistStatus, KeptBy, NamespaceStatus, RelayStatus, TokenStatus, Warning,
};

const EVIL: &str = "<script>alert(1)</script>\"'&";

fn empty() -> Status {
    serde_json::from_value(serde_json::json!({
        "version": "1.2.3", "sccache_version": null, "uptime_seconds": 61, "ready": true,
        "store": {
            "bytes": 1 << 20, "budget_bytes": 10 << 20, "entries": 7, "indexing": false, "evicted_entries": 0,
            "evicted_bytes": 0, "broken_entries": 0, "fault": null
        },
        "totals": {
            "hits": 0, "misses": 0, "writes": 0, "bytes_read": 0, "bytes_written": 0, "auth_failures": 0
        },
        "namespaces": {}, "protocols": {}, "refusals": {}, "recent_warnings": []
    }))
    .unwrap()
}

fn service(name: &str, state: &str) -> ServiceReport {
    ServiceReport {
        name: name.into(),
        state: state.into(),
        pid: Some(7),
        ready_seconds: (state == "ready").then_some(3700.0),
        restarts: 2,
        deaths_last_hour: 1,
        trouble: None,
        time_to_ready_seconds: None,
        away_seconds: None,
        last_exit: None,
        last_crash: None,
    }
}

fn report(services: Vec<ServiceReport>) -> Services {
    Services::Known(Report {
        version: "1.2.3".into(),
        mode: "persistent".into(),
        listen: "127.0.0.1:4226".into(),
        uptime_seconds: 61.0,
        stopping: false,
        services,
        orphans_reaped: 0,
    })
}

fn view(status: &Status) -> View<'_> {
    View {
        status,
        services: report(vec![service("gateway", "ready")]),
        traffic: None,
        lifetime: None,
        builds: None,
        viewer: "auth",
        logged_in: true,
        namespaces: None,
        host: "cache:4226",
        snippets: &[],
        now_unix: 1_000_000,
        nonce: "n0nce",
    }
}

#[test]
fn whatever_comes_from_outside_is_escaped() {
    let mut evil = empty();
    evil.version = EVIL.into();
    evil.sccache_version = Some(EVIL.into());
    evil.store.fault = Some(EVIL.into());
    evil.namespaces
        .insert(EVIL.into(), NamespaceStatus::default());
    evil.tokens
        .by_name
        .insert(EVIL.into(), TokenStatus::default());
    evil.tokens.fault = Some(EVIL.into());
    evil.recent_warnings.push(Warning {
        at_unix_seconds: u64::MAX,
        message: EVIL.into(),
    });
    evil.dist = Some(DistStatus {
        relay: None,
        scheduler_up: false,
        scheduler_outages: 0,
        replayed_heartbeats: 0,
        allocations: [(EVIL.to_owned(), 1)].into(),
        builders: Vec::new(),
        local_jobs: crate::contract::gateway_status::LocalJobs {
            limits: [(EVIL.to_owned(), 1)].into(),
            sent_home: vec![crate::contract::gateway_status::SentHomeCount {
                home: crate::contract::sent_home::SentHome {
                    crate_name: EVIL.into(),
                    reason: crate::contract::sent_home::Reason::File,
                    what: EVIL.into(),
                },
                jobs: 1,
            }],
            ..Default::default()
        },
    });
    let mut service = service(EVIL, EVIL);
    service.trouble = Some(TroubleReport {
        verdict: EVIL.into(),
        since_seconds: 1.0,
        failures: 2,
    });
    let snippets = [Snippet {
        title: "x",
        usage: "y",
        text: EVIL.into(),
    }];
    let html = status(&View {
        services: report(vec![service]),
        viewer: EVIL,
        namespaces: Some(&[EVIL.to_owned()]),
        host: EVIL,
        snippets: &snippets,
        ..view(&evil)
    });
    let everything = status(&View {
        services: Services::Silent,
        ..view(&evil)
    });
    for html in [html, everything, login(EVIL, Some(EVIL), "n0nce")] {
        assert!(!html.contains("<script>alert"), "{html}");
        assert!(
            html.contains("&lt;script&gt;alert(1)&lt;/script&gt;"),
            "{html}"
        );
        // Only our own script, and none at the login.
        assert!(html.matches("<script").count() <= 1);
        assert!(!html.contains("\"'&"), "a quote ends no attribute");
    }
}

#[test]
fn what_is_wrong_stands_first() {
    let fine = empty();
    assert!(status(&view(&fine)).contains("Everything is in order"));
    let mut wrong = empty();
    wrong.ready = false;
    wrong.store.fault = Some("no space left".into());
    wrong.dist = Some(DistStatus {
        relay: Some(RelayStatus {
            waiting: 3,
            running: 8,
            bytes: 0,
            slots: 9,
            slots_used: 8,
            oldest_seconds: 1,
            jobs: [("done".to_owned(), 40), ("compiler".to_owned(), 2)].into(),
            attempts: Default::default(),
        }),
        scheduler_up: true,
        scheduler_outages: 0,
        replayed_heartbeats: 0,
        allocations: Default::default(),
        builders: vec![BuilderStatus {
            token: None,
            version: None,
            address: "10.0.0.7:10501".parse().unwrap(),
            local: false,
            state: BuilderState::Lost,
            slots: 8,
            jobs: 0,
            done: 5,
            failed: 1,
            last_sign_seconds: 90,
        }],
        local_jobs: Default::default(),
    });
    let html = status(&View {
        services: report(vec![
            service("gateway", "ready"),
            service("server", "backoff"),
        ]),
        ..view(&wrong)
    });
    for part in [
        "3 things need attention",
        "The relay: 3 jobs wait, 8 run; 40 done by builders, 2 left to their clients.",
        "The service server is not ready (backoff).",
        "The store takes no writes: no space left",
        "The builder 10.0.0.7:10501 is lost: no sign of it for 1m 30s.",
        "<title>(3) cache:4226",
    ] {
        assert!(html.contains(part), "{part:?} is not in\n{html}");
    }
}

#[test]
fn lost_hits_are_shown() {
    let mut small = empty();
    small.lost_hits = LostHits {
        count: 1234,
        bytes: 3 << 30,
        by_quota: 2,
        kept_by: vec![KeptBy {
            budget_bytes: 20 << 30,
            share: 0.929,
        }],
    };
    let team = NamespaceStatus {
        bytes: 1 << 20,
        quota: Some(4 << 20),
        pinned: true,
        lost_hits: 2,
        ..NamespaceStatus::default()
    };
    small.namespaces.insert("team".into(), team);
    let html = status(&view(&small));
    for part in [
        "0 evicted, 1\u{a0}234 missed since",
        "Lost hits</dt><dd>1\u{a0}234, 3.0 GiB, 2 because of a quota</dd>",
        "20.0 GiB would have kept 92 % of the lost hits.",
        "<th scope=\"row\">team (pinned)</th>",
        "data-name=\"Lost hits\">2<",
        "data-name=\"Size\">1.0 MiB of 4.0 MiB<",
    ] {
        assert!(html.contains(part), "{part:?} is not in\n{html}");
    }
    let fine = status(&view(&empty()));
    assert!(!fine.contains("missed since") && !fine.contains("A larger budget"));
}

#[test]
fn plots_say_in_words_what_they_show() {
    let fine = empty();
    let traffic = |points: Vec<Option<Point>>| Traffic {
        range: Range::Minutes,
        recent: points.iter().copied().flatten().collect(),
        points,
    };
    let idle = status(&View {
        traffic: Some(traffic(vec![None, Some(Point::default())])),
        ..view(&fine)
    });
    assert!(idle.contains("Nothing was asked of the cache in the last 10 minutes."));
    let point = Point {
        hits: 3,
        misses: 1,
        writes: 2,
        bytes_read: 4096,
        bytes_written: 2048,
    };
    let busy = status(&View {
        traffic: Some(traffic([vec![None; 118], vec![Some(point); 2]].concat())),
        ..view(&fine)
    });
    for part in [
        "Hit rate over the last 10 minutes: 75.0 % altogether, 75.0 % at its lowest.",
        "6 hits, 2 misses, 4 writes.",
        "8.0 KiB served, 4.0 KiB stored.",
        "The same as a table",
    ] {
        assert!(busy.contains(part), "{part:?} is not in\n{busy}");
    }
    assert_eq!(busy.matches("role=\"img\"").count(), 3);
}

#[test]
fn connecting_lines_name_the_address_and_no_token() {
    let all = snippets("http://cache:4226", Some("team"), Some(10600));
    assert_eq!(all.len(), 5);
    for snippet in &all {
        assert!(snippet.text.contains("http://cache:4226"), "{snippet:?}");
        assert!(snippet.text.contains("YOUR-TOKEN"), "{snippet:?}");
        assert!(snippet.text.contains("team"), "{snippet:?}");
    }
    assert!(all[1].text.contains("http://cache:10600"));
    assert_eq!(snippets("http://cache:4226", None, None).len(), 4);
    assert_eq!(snippets("http://a b<c>", None, None), []);
}

#[test]
fn page_is_short_however_many_names_there_are() {
    let mut many = empty();
    for number in 0..200 {
        many.namespaces
            .insert(format!("n{number}"), NamespaceStatus::default());
        many.tokens
            .by_name
            .insert(format!("t{number}"), TokenStatus::default());
    }
    let html = status(&view(&many));
    assert_eq!(html.matches("and 150 more").count(), 2);
    assert!(html.len() < 64 << 10, "{} bytes", html.len());
}
