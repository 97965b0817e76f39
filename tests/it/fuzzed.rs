//! Where the fuzzers start, and what they once found: through the same checks, without a fuzzer.

#[expect(unreachable_pub, reason = "the fuzzers' own crate exports them")]
#[path = "../../fuzz/src/lib.rs"]
mod targets;

use std::path::Path;

fn replay(target: &str, check: fn(&[u8])) {
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
    let files = std::fs::read_dir(fuzz.join("corpus").join(target)).unwrap();
    let mut count = 0;
    for file in files.map(Result::unwrap) {
        println!("{}", file.path().display());
        check(&std::fs::read(file.path()).unwrap());
        count += 1;
    }
    assert!(count >= 4, "{target} starts from {count} inputs");
    let known = std::fs::read_to_string(fuzz.join("Cargo.toml")).unwrap();
    assert!(known.contains(&format!("path = \"targets/{target}.rs\"")));
}

#[test]
fn whatever_is_sent_to_the_front_it_answers_or_hangs_up_and_stays_well() {
    replay("front", targets::front);
}

#[test]
fn frames_are_decoded_alike_however_they_arrive() {
    replay("frames", targets::frames);
}

#[test]
fn archives_are_judged_alike_however_they_arrive() {
    replay("zip", targets::zip);
}

#[test]
fn bodies_of_the_cluster_are_taken_whole_or_refused() {
    replay("wire", targets::wire);
}

#[test]
fn settings_make_a_plan_or_a_reason_and_show_no_secret() {
    replay("settings", targets::settings);
}

#[test]
fn requests_to_the_supervisor_are_understood_alike_however_they_arrive() {
    replay("control", targets::control);
}

#[test]
fn notifications_are_understood_alike_however_they_arrive() {
    replay("notify", targets::notify);
}

#[test]
fn lines_of_services_come_out_whole_tagged_and_without_a_secret() {
    replay("logs", targets::logs);
}

#[test]
fn tokens_of_the_file_are_unique_and_no_fault_shows_one() {
    replay("tokens", targets::tokens);
}
