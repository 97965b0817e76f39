use super::*;
use crate::contract::sent_home::Reason;

#[test]
fn job_is_named_after_its_folder() {
    let words = |text: &str| -> Vec<OsString> { text.split(' ').map(Into::into).collect() };
    let call = "--unshare-net --bind /b/builds/0123456789abcdef-17/target / -- cc";
    assert_eq!(name(Folder::of(&words(call)).as_ref()), "01234567-17");
    assert_eq!(name(Folder::of(&words("--version")).as_ref()), "");
}

#[test]
fn files_are_limited_by_bytes_and_number() {
    let content = |bytes, files| Content {
        bytes,
        files,
        is_strange: false,
    };
    let limit = |content| too_much(10, content);
    assert_eq!(limit(content(10, FILES)), None);
    assert_eq!(limit(content(11, 1)), Some(Limit::Disk));
    assert_eq!(limit(content(1, FILES + 1)), Some(Limit::Files));
}

#[test]
fn job_that_is_refused_before_its_begin_has_passed_no_limit() {
    let terms = JobSpec {
        bwrap: PathBuf::new(),
        procfs: Procfs::Fresh,
        jobs_socket: None,
        guard: None,
        memory_bytes: 1 << 30,
        processes: 1,
        time_millis: 1,
        disk_bytes: 1 << 20,
    };
    // What a job shares by name has no folder before its begin.
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("upper")).unwrap();
    let folder = Folder::at(folder.path());
    let call = "--bind /b/target / -- gcc -c -march=native -o a.o a.c";
    let call: Vec<OsString> = call.split(' ').map(Into::into).collect();
    let end = End::before_its_begin(refused(&terms, &call).unwrap());
    let limit = end.limit(&terms, Some(&folder), 137, 0);
    assert_eq!((limit, end.signal(limit)), (None, Some(SENT_HOME)));
}

#[test]
fn commands_of_ours_are_no_jobs() {
    let text = |text: &'static str| Some(OsStr::new(text));
    assert!(is_called(text("{}"), text("--die-with-parent")));
    assert!(!is_called(text("{}"), text("builder")));
    assert!(!is_called(None, text("--version")));
}

#[test]
fn reports_are_as_the_gateway_reads_them() {
    let ended = Report::Ended {
        job: "a-1".into(),
        exit: 0,
        seconds: 1.5,
        cpu_seconds: 1.0,
        peak_rss_bytes: 1,
        limit: Some(Limit::Memory),
        home: Some(SentHome {
            crate_name: "it".into(),
            reason: Reason::Program,
            what: "git".into(),
        }),
    };
    assert_eq!(
        serde_json::to_string(&ended).unwrap(),
        r#"{"event":"ended","job":"a-1","exit":0,"seconds":1.5,"cpu_seconds":1.0,"peak_rss_bytes":1,"limit":"memory","home":{"crate":"it","reason":"program","what":"git"}}"#
    );
    let started = Report::Started {
        job: "a-1".into(),
        guard: Some(Guard::Watch),
    };
    assert_eq!(
        serde_json::to_string(&started).unwrap(),
        r#"{"event":"started","job":"a-1","guard":"watch"}"#
    );
}
