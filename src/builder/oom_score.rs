//! Whom the kernel ends when memory runs out: jobs before `sccache-dist`, and that before all else in the container.

use std::fs;

const SCORE: &str = "/proc/self/oom_score_adj";
/// The most there is: first of all.
const FIRST: i32 = 1000;
/// After the jobs; it holds what they say and what clients send.
const SERVER: i32 = 500;

/// Starts something that is to be ended first; this process stays what it was.
pub(super) fn first_to_go<T>(start: impl FnOnce() -> T) -> T {
    let before = read();
    // Children have their parent's from the start. Nobody needs a privilege to raise his own, and to take that back.
    write(FIRST);
    let started = start();
    write(before);
    started
}

/// Makes this process, and what it becomes, go before the rest of the container.
pub(super) fn go_before_others() {
    write(read().max(SERVER));
}

fn read() -> i32 {
    let text = fs::read_to_string(SCORE).unwrap_or_default();
    text.trim().parse().unwrap_or(0)
}

/// Where `/proc` cannot be written, the kernel goes by size alone.
fn write(score: i32) {
    let _ = fs::write(SCORE, score.to_string());
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn only_what_is_started_goes_first() {
        let before = read();
        let output = first_to_go(|| Command::new("cat").arg(SCORE).output()).unwrap();
        assert_eq!(output.stdout, b"1000\n");
        assert_eq!(read(), before);
    }
}
