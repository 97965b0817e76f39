use super::*;

fn nowhere() -> File {
    File::options().write(true).open("/dev/null").unwrap()
}

#[test]
fn secret_across_the_cut_of_a_long_line_is_hidden() {
    let (pipe, _write) = io::pipe().unwrap();
    let secrets = [Secret::new("the-secret-token")];
    let mut log = Log::start(
        nowhere(),
        LogFormat::Text,
        &secrets,
        Duration::from_secs(1),
        None,
    )
    .unwrap();
    for before in LINE_LIMIT - 20..LINE_LIMIT + 2 {
        let mut source = Source::new("server", pipe.try_clone().unwrap());
        let mut line = vec![b'x'; before];
        line.extend_from_slice(b"the-secret-token");
        line.resize(LINE_LIMIT + 40, b'y');
        // The cut is decided at the end of a chunk.
        let (first, second) = line.split_at(LINE_LIMIT);
        let printed = |log: &Log| log.shared.lock().text.clone();
        log.shared.lock().text.clear();
        log.take(&mut source, first);
        let head = printed(&log);
        log.take(&mut source, second);
        log.take(&mut source, b"\n");
        let all = printed(&log);
        for text in [head, all] {
            let text = String::from_utf8_lossy(&text).into_owned();
            assert!(
                !text.contains("secret") && !text.contains("token"),
                "{before}"
            );
        }
    }
    log.close(Duration::from_secs(5));
}

#[test]
fn everything_reaches_an_output_that_does_not_block() {
    let (mut read, write) = io::pipe().unwrap();
    let flags = nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK);
    nix::fcntl::fcntl(&write, flags).unwrap();
    let text = vec![b'x'; 1 << 20];
    let reader = std::thread::spawn(move || {
        let mut all = Vec::new();
        read.read_to_end(&mut all).map(|_| all.len())
    });
    let mut out = File::from(std::os::fd::OwnedFd::from(write));
    write_all(&mut out, &text);
    drop(out);
    assert_eq!(reader.join().unwrap().unwrap(), text.len());
}

fn formatted(format: LogFormat, secrets: &[&str], line: &[u8]) -> String {
    let secrets: Vec<Secret> = secrets.iter().map(|text| Secret::new(text)).collect();
    let mut out = Vec::new();
    Formatter::new(format, &secrets).line(&mut out, "T", "server", Level::of_line(line), line);
    String::from_utf8_lossy(&out).into_owned()
}

#[test]
fn text_line_carries_its_service() {
    assert_eq!(
        formatted(LogFormat::Text, &[], b"hello"),
        "server   hello\n"
    );
}

#[test]
fn json_line_carries_service_level_and_any_bytes() {
    let line = formatted(LogFormat::Json, &[], b"[T WARN sccache] \xff\"");
    let value: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!(value["service"], "server");
    assert_eq!(value["level"], "warn");
    assert_eq!(value["message"], "[T WARN sccache] \u{fffd}\"");
}

#[test]
fn every_secret_is_hidden_every_time() {
    let line = formatted(
        LogFormat::Text,
        &["token-one", "token-two"],
        b"token-one token-two token-one!",
    );
    assert_eq!(line, "server   *** *** ***!\n");
}

#[test]
fn last_lines_are_whole_few_and_without_secrets() {
    let (pipe, mut write) = io::pipe().unwrap();
    let secrets = [Secret::new("the-token")];
    let log = Log::start(
        nowhere(),
        LogFormat::Text,
        &secrets,
        Duration::from_secs(1),
        None,
    )
    .unwrap();
    let mut source = Source::new("server", pipe);
    for number in 0..500 {
        writeln!(write, "line {number} with the-token").unwrap();
    }
    write!(write, "the end").unwrap();
    drop(write);
    let mut chunk = [0; 7];
    loop {
        let count = source.pipe.read(&mut chunk).unwrap();
        if count == 0 {
            break;
        }
        source.bytes += count as u64;
        source.keep_tail(&chunk[..count]);
    }
    let lines = log.last_lines(&source);
    assert_eq!(lines.len(), TAIL_LINES);
    assert!(
        lines.iter().all(|line| !line.contains("token")),
        "{lines:?}"
    );
    assert!(source.tail.len() <= 2 * TAIL);
    log.close(Duration::from_secs(1));
}

#[test]
fn levels_are_read_from_the_head_of_a_line_only() {
    let cases: &[(&[u8], Option<Level>)] = &[
        (
            b"[2026-11-21T04:34:20Z DEBUG sccache::server] x",
            Some(Level::Debug),
        ),
        (b"WARN refused Shutdown peer=1.2.3.4", Some(Level::Warn)),
        (b"ERRORS everywhere", None),
        (b"nothing here", None),
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
