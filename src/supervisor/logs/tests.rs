mod stalled;

use super::*;
use proptest::prelude::*;
use std::io::{PipeReader, PipeWriter, Write};
use std::thread;

const STALL: Duration = Duration::from_secs(5);
const TOKEN: &str = "the-secret-token";

#[expect(clippy::disallowed_methods, reason = "tests start from some moment")]
fn now() -> Instant {
    Instant::now()
}

/// A log whose reader is the test's.
struct Stage {
    log: Log,
    output: PipeReader,
    source: Source,
    _pipe: PipeWriter,
    clock: Instant,
}

impl Stage {
    fn new(format: LogFormat, error_file: Option<File>) -> Stage {
        let (output, out) = io::pipe().unwrap();
        // One page, which is less than any chunk of `fill`: the thread stands still in its first write, however late it
        // comes to that. What fits into a larger pipe counts as read, and makes room again at some later moment.
        fcntl(&out, FcntlArg::F_SETPIPE_SZ(1)).unwrap();
        let (pipe, write_end) = io::pipe().unwrap();
        rustix::io::ioctl_fionbio(&pipe, true).unwrap();
        let out = File::from(std::os::fd::OwnedFd::from(out));
        Stage {
            log: Log::start(out, format, &[Secret::new(TOKEN)], STALL, error_file).unwrap(),
            output,
            source: Source::new("server", pipe),
            _pipe: write_end,
            clock: now(),
        }
    }

    /// A chunk as one read would bring it, when there is room.
    fn feed(&mut self, chunk: &[u8]) {
        let freed = self
            .log
            .shared
            .wait_while(Duration::from_secs(30), |pending| {
                pending.used() >= CAPACITY
            });
        assert!(freed, "the reader reads");
        self.log.take(&mut self.source, chunk);
    }

    /// All that was printed, after the source's end.
    fn end(self) -> Vec<u8> {
        let Stage {
            mut log,
            mut output,
            mut source,
            ..
        } = self;
        let reader = thread::spawn(move || {
            let mut all = Vec::new();
            output.read_to_end(&mut all).map(|_| all)
        });
        log.flush(&mut source);
        log.close(Duration::from_secs(30));
        reader.join().unwrap().unwrap()
    }
}

/// What is printed of these reads.
fn printed(format: LogFormat, chunks: &[&[u8]]) -> Vec<u8> {
    let mut stage = Stage::new(format, None);
    for chunk in chunks {
        stage.log.take(&mut stage.source, chunk);
    }
    stage.end()
}

fn text(chunks: &[&[u8]]) -> String {
    String::from_utf8_lossy(&printed(LogFormat::Text, chunks)).into_owned()
}

/// The messages of a JSON log; each line must be an object of the one schema.
fn messages(log: &[u8]) -> Vec<String> {
    let lines = log
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty());
    lines
        .map(|line| {
            let value: serde_json::Value = serde_json::from_slice(line).unwrap();
            let keys: Vec<&String> = value.as_object().unwrap().keys().collect();
            assert_eq!(keys, ["level", "message", "service", "ts"]);
            value["message"].as_str().unwrap().to_owned()
        })
        .collect()
}

#[test]
fn lines_are_whole_tagged_and_without_carriage_returns() {
    let cases: &[(&[&[u8]], &str)] = &[
        (&[b"hello\n"], "server   hello\n"),
        (&[b"a", b"", b"b", b"c\nd\n"], "server   abc\nserver   d\n"),
        (&[b"\n\n"], "server   \nserver   \n"),
        (
            &[b"dos\r\n\r\nmid\rdle\r", b"\nx"],
            "server   dos\nserver   \nserver   mid\rdle\nserver   x\n",
        ),
        (&[b"no end\r"], "server   no end\n"),
        (&[b"nul\0 and \x1b[1m\n"], "server   nul\0 and \x1b[1m\n"),
        (&[], ""),
    ];
    for (chunks, expected) in cases {
        assert_eq!(text(chunks), *expected, "{chunks:?}");
    }
    assert_eq!(
        printed(LogFormat::Text, &[b"\xff\xfe", b"\x80\n"]),
        b"server   \xff\xfe\x80\n"
    );
}

#[test]
fn json_line_is_one_object_whatever_it_holds() {
    let log = printed(
        LogFormat::Json,
        &[b"[T WARN sccache] \xff\"", b"\\\0\n\nplain\r\n", b"last"],
    );
    assert_eq!(
        messages(&log),
        ["[T WARN sccache] \u{fffd}\"\\\0", "", "plain", "last"]
    );
    let first: serde_json::Value =
        serde_json::from_slice(log.split(|it| *it == b'\n').next().unwrap()).unwrap();
    assert_eq!(
        (&first["service"], &first["level"]),
        (&"server".into(), &"warn".into())
    );
}

#[test]
fn long_line_comes_in_pieces_that_are_the_line() {
    for size in [
        CHUNK - 1,
        CHUNK,
        CHUNK + 1,
        LINE_LIMIT - 1,
        LINE_LIMIT,
        LINE_LIMIT + 1,
        3 * LINE_LIMIT,
    ] {
        let mut line: Vec<u8> = (0..size)
            .map(|at| b'a' + u8::try_from(at % 23).unwrap())
            .collect();
        line.push(b'\n');
        let mut stage = Stage::new(LogFormat::Text, None);
        let mut output = stage.output.try_clone().unwrap();
        let reader = thread::spawn(move || {
            let mut all = Vec::new();
            output.read_to_end(&mut all).map(|_| all)
        });
        for chunk in line.chunks(CHUNK) {
            stage.feed(chunk);
        }
        stage.feed(b"next\n");
        // Two read the one pipe: what the last bytes are is known, not who has them.
        let Stage {
            log,
            source,
            output,
            ..
        } = stage;
        drop((source, output));
        log.close(Duration::from_secs(30));
        let all = reader.join().unwrap().unwrap();
        let pieces: Vec<&[u8]> = all
            .split(|byte| *byte == b'\n')
            .map(|it| it.get(9..).unwrap_or(&[]))
            .collect();
        let (joined, rest) = (pieces.concat(), all.len());
        assert_eq!(joined, [&line[..size], b"next"].concat(), "{size}: {rest}");
        assert!(
            pieces.iter().all(|piece| piece.len() < LINE_LIMIT + CHUNK),
            "{size}"
        );
        assert_eq!(
            pieces.len() - 2 > 1,
            size >= LINE_LIMIT,
            "{size}: only long lines are cut"
        );
    }
}

#[test]
fn character_is_not_cut_in_two() {
    for shift in 0..3 {
        let mut line = vec![b'x'; shift];
        line.extend("\u{20ac}".bytes().cycle().take(3 * (LINE_LIMIT / 3 + 1)));
        let mut stage = Stage::new(LogFormat::Text, None);
        stage.log.take(&mut stage.source, &line[..line.len() / 2]);
        stage.log.take(&mut stage.source, &line[line.len() / 2..]);
        let log = stage.end();
        assert_eq!(log.iter().filter(|byte| **byte == b'\n').count(), 2);
        assert!(String::from_utf8(log).is_ok(), "{shift}");
    }
}

#[test]
fn secret_split_across_reads_is_hidden_everywhere() {
    let line = format!("ERROR auth {TOKEN}!\n");
    for format in [LogFormat::Text, LogFormat::Json] {
        for at in 0..line.len() {
            let file = tempfile::NamedTempFile::new().unwrap();
            let mut stage = Stage::new(format, Some(file.reopen().unwrap()));
            let (first, second) = line.as_bytes().split_at(at);
            stage.log.take(&mut stage.source, first);
            let half = stage.log.last_lines(&stage.source);
            stage.log.take(&mut stage.source, second);
            let last = stage.log.last_lines(&stage.source);
            let log = String::from_utf8(stage.end()).unwrap();
            let errors = std::fs::read_to_string(file.path()).unwrap();
            assert_eq!(last, ["ERROR auth ***!"], "{at}");
            assert!(!half.concat().contains(&TOKEN[..4]), "{at}: {half:?}");
            for text in [log, errors] {
                assert!(
                    text.contains("ERROR auth ***!") && !text.contains("secret"),
                    "{at}: {text}"
                );
            }
        }
    }
}

#[test]
fn secret_across_the_cut_of_a_long_line_is_hidden() {
    for before in LINE_LIMIT - 20..LINE_LIMIT + 2 {
        let mut line = vec![b'x'; before];
        line.extend_from_slice(TOKEN.as_bytes());
        line.resize(LINE_LIMIT + 40, b'y');
        // The cut is decided at the end of a chunk.
        let (first, second) = line.split_at(LINE_LIMIT);
        let log = text(&[first, second, b"\n"]);
        assert!(
            !log.contains("secret") && !log.contains("token"),
            "{before}"
        );
        assert_eq!(log.matches("***").count(), 1, "{before}");
    }
}

#[test]
fn beginning_of_a_secret_at_an_unfinished_end_is_hidden() {
    assert_eq!(
        text(&[b"dies with the-secret-to"]),
        "server   dies with ***\n"
    );
    assert_eq!(text(&[b"dies with the"]), "server   dies with the\n");
}

#[test]
fn secret_among_thousands_of_lines_of_a_chunk_is_hidden() {
    let lines: String = (0..2000)
        .map(|it| {
            if it % 500 == 7 {
                format!("a {TOKEN} b\n")
            } else {
                format!("line {it}\n")
            }
        })
        .collect();
    let log = text(&[lines.as_bytes()]);
    assert_eq!(
        (
            log.matches("***").count(),
            log.matches("token").count(),
            log.lines().count()
        ),
        (4, 0, 2000)
    );
}

#[test]
fn overlapping_secrets_are_all_hidden() {
    let redact = |secrets: &[&str], line: &str| {
        let secrets: Vec<Secret> = secrets.iter().map(|text| Secret::new(text)).collect();
        let formatter = Formatter::new(LogFormat::Text, &secrets);
        let clean = formatter.redact(line.as_bytes());
        String::from_utf8(clean.unwrap_or_else(|| line.into())).unwrap()
    };
    assert_eq!(
        redact(
            &["token-one", "token-two"],
            "token-one token-two token-one!"
        ),
        "*** *** ***!"
    );
    assert_eq!(redact(&["abc", "abcdef"], "-abcdef-abc-"), "-***-***-");
    assert_eq!(redact(&["abcd", "cdef"], "-abcdef-"), "-***-");
    assert_eq!(redact(&["abab"], "-ababab-"), "-***-");
    assert_eq!(redact(&[], "abab"), "abab");
}

#[test]
fn secrets_of_before_a_reload_stay_hidden() {
    let mut stage = Stage::new(LogFormat::Text, None);
    stage
        .log
        .set(LogFormat::Text, &[Secret::new("new-token")], STALL);
    stage
        .log
        .take(&mut stage.source, format!("{TOKEN} new-token\n").as_bytes());
    assert_eq!(stage.end(), b"server   *** ***\n");
}

#[test]
fn levels_are_read_from_the_head_of_a_line_only() {
    let cases: &[(&[u8], Option<Level>)] = &[
        (
            b"[2026-11-21T04:34:20Z DEBUG sccache::server] x",
            Some(Level::Debug),
        ),
        (b"WARN refused Shutdown peer=1.2.3.4", Some(Level::Warn)),
        (b"[T INFO x] ERROR of a client", Some(Level::Info)),
        (b"TRACE: x", Some(Level::Trace)),
        (b"ERRORS everywhere", None),
        (b"MYERROR x", None),
        (b"nothing here", None),
        (b"", None),
    ];
    for (line, level) in cases {
        assert_eq!(
            Level::of_line(line),
            *level,
            "{}",
            String::from_utf8_lossy(line)
        );
    }
}

proptest! {
    #[test]
    fn any_bytes_in_any_reads_come_out_as_their_lines(
        parts in prop::collection::vec(
            prop_oneof![
                Just(b"\n".to_vec()), Just(b"\r\n".to_vec()), Just(TOKEN.into()), Just(TOKEN[..9].into()),
                prop::collection::vec(any::<u8>(), 0..40),
            ],
            0..40,
        ),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
    ) {
        let input = parts.concat();
        let mut cuts: Vec<usize> = cuts.iter().map(|it| it.index(input.len() + 1)).collect();
        cuts.extend([0, input.len()]);
        cuts.sort_unstable();
        let chunks: Vec<&[u8]> = cuts.windows(2).map(|pair| &input[pair[0]..pair[1]]).collect();

        // Ended, so that no line is unfinished.
        let all = printed(LogFormat::Text, &[chunks.as_slice(), &[b"\n"]].concat());
        let mut expected = Vec::new();
        for line in input.split(|byte| *byte == b'\n') {
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            expected.extend_from_slice(b"server   ");
            let mut at = 0;
            while at < line.len() {
                if line[at..].starts_with(TOKEN.as_bytes()) {
                    expected.extend_from_slice(b"***");
                    at += TOKEN.len();
                } else {
                    expected.push(line[at]);
                    at += 1;
                }
            }
            expected.push(b'\n');
        }
        // A line that is empty but for nothing read is none.
        if input.last().is_none_or(|byte| *byte == b'\n') {
            prop_assert!(expected.ends_with(b"server   \n"));
        }
        prop_assert_eq!(all, expected);
    }
}

#[test]
fn last_lines_are_whole_and_few() {
    let mut stage = Stage::new(LogFormat::Text, None);
    for number in 0..500 {
        let line = format!("line {number} with {TOKEN}\r\n");
        for chunk in line.as_bytes().chunks(7) {
            stage.log.take(&mut stage.source, chunk);
        }
    }
    stage.log.take(&mut stage.source, b"the end");
    let lines = stage.log.last_lines(&stage.source);
    assert_eq!(
        (lines.len(), lines[19].as_str(), lines[18].as_str()),
        (TAIL_LINES, "the end", "line 499 with ***")
    );
    assert!(stage.source.tail.len() <= 2 * TAIL);
}

#[test]
fn everything_reaches_an_output_that_does_not_block() {
    let (mut read, write) = io::pipe().unwrap();
    rustix::io::ioctl_fionbio(&write, true).unwrap();
    let text = vec![b'x'; 1 << 20];
    let reader = thread::spawn(move || {
        let mut all = Vec::new();
        read.read_to_end(&mut all).map(|_| all.len())
    });
    let mut out = File::from(std::os::fd::OwnedFd::from(write));
    output::write_all(&mut out, &text);
    drop(out);
    assert_eq!(reader.join().unwrap().unwrap(), text.len());
}

#[test]
fn error_file_that_takes_nothing_is_told_of_once() {
    let full = File::options().write(true).open("/dev/full").unwrap();
    let mut stage = Stage::new(LogFormat::Text, Some(full));
    stage.feed(b"ERROR first\n");
    let mut wake = [nix::poll::PollFd::new(
        stage.log.wake_fd(),
        nix::poll::PollFlags::POLLIN,
    )];
    assert_eq!(nix::poll::poll(&mut wake, 30_000_u16), Ok(1));
    assert!(stage.log.has_room(stage.clock));
    stage.feed(b"ERROR second\n");
    assert!(stage.log.has_room(stage.clock));
    let log = String::from_utf8(stage.end()).unwrap();
    let told = log.matches("cannot write to SCCACHE_ERROR_LOG: No space left on device");
    assert_eq!(told.count(), 1, "{log}");
    assert!(log.contains("first") && log.contains("second"), "{log}");
}
