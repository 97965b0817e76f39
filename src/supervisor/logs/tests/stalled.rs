//! A reader of the log that is slow, stops, or floods.

use super::*;

/// Chunks of numbered lines, until the log will take no more at this moment.
fn fill(stage: &mut Stage, next: &mut u64) {
    for _ in 0..200 {
        if !stage.log.has_room(stage.clock) {
            return;
        }
        let chunk: String = (*next..*next + 500)
            .map(|it| format!("line {it:08} {:80}\n", ""))
            .collect();
        *next += 500;
        stage.log.take(&mut stage.source, chunk.as_bytes());
    }
    panic!("the log has room for ever");
}

/// Numbers of the lines and the sum of what was announced as dropped.
fn account(log: &[u8]) -> (Vec<u64>, u64) {
    let text = String::from_utf8(log.to_vec()).unwrap();
    let number = |line: &str, after: &str| {
        let rest = line.split_once(after)?.1;
        rest.split(' ').next()?.parse::<u64>().ok()
    };
    let numbers = text
        .lines()
        .filter_map(|line| number(line, "line "))
        .collect();
    (
        numbers,
        text.lines()
            .filter_map(|line| number(line, "dropped "))
            .sum(),
    )
}

#[test]
fn every_line_is_printed_or_counted_when_the_reader_stood_still() {
    let mut stage = Stage::new(LogFormat::Text, None);
    let mut next = 0;
    fill(&mut stage, &mut next);
    let kept = next;
    stage.clock += STALL - Duration::from_millis(1);
    assert!(
        !stage.log.has_room(stage.clock),
        "held back until the stall bound"
    );
    stage.clock += Duration::from_millis(2);
    for _ in 0..100 {
        assert!(stage.log.has_room(stage.clock), "read and dropped");
        assert_eq!(stage.log.deadline(), None, "nothing to wake for");
        let chunk: String = (next..next + 500)
            .map(|it| format!("line {it:08}\n"))
            .collect();
        next += 500;
        stage.log.take(&mut stage.source, chunk.as_bytes());
    }
    assert_eq!(stage.log.dropped, next - kept);
    stage
        .log
        .say(Level::Warn, "own lines have room of their own");
    let log = stage.end();
    let (numbers, announced) = account(&log);
    assert!(
        numbers.iter().copied().eq(0..kept),
        "what was taken before is whole and in order"
    );
    assert_eq!(numbers.len() as u64 + announced, next);
    assert!(String::from_utf8_lossy(&log).contains("WARN own lines have room of their own"));
}

#[test]
fn drops_are_announced_when_the_reader_reads_again() {
    let mut stage = Stage::new(LogFormat::Text, None);
    let mut next = 0;
    fill(&mut stage, &mut next);
    stage.clock += STALL;
    assert!(stage.log.has_room(stage.clock));
    stage
        .log
        .take(&mut stage.source, b"line 1 lost\nline 2 lost\n");
    assert_eq!(stage.log.dropped, 2);
    let mut buffer = vec![0; 2 * CAPACITY];
    let mut seen = Vec::new();
    // The byte on the wake socket ends a loop's wait; here its arrival is waited for.
    while stage.log.dropped > 0 {
        let count = stage.output.read(&mut buffer).unwrap();
        seen.extend_from_slice(&buffer[..count]);
        stage.log.has_room(stage.clock);
    }
    stage.log.take(&mut stage.source, b"line 3 kept\n");
    seen.extend(stage.end());
    let (numbers, announced) = account(&seen);
    assert_eq!((numbers.len() as u64, announced), (next + 1, 2));
}

#[test]
fn slow_reader_loses_nothing() {
    let mut stage = Stage::new(LogFormat::Text, None);
    let (mut next, mut seen, mut buffer) = (0, Vec::new(), vec![0; 128 << 10]);
    fill(&mut stage, &mut next);
    // Little by little, for longer than the stall bound: a reader that reads does not stand still.
    for _ in 0..12 {
        let before = stage.log.shared.lock().written;
        while stage.log.shared.lock().written == before {
            let count = stage.output.read(&mut buffer).unwrap();
            seen.extend_from_slice(&buffer[..count]);
        }
        stage.clock += STALL - Duration::from_secs(1);
        fill(&mut stage, &mut next);
    }
    assert_eq!(stage.log.dropped, 0);
    seen.extend(stage.end());
    let (numbers, announced) = account(&seen);
    assert!(numbers.into_iter().eq(0..next) && announced == 0);
}

#[test]
fn chunk_of_empty_lines_is_kept_though_it_grows_a_hundredfold() {
    for format in [LogFormat::Text, LogFormat::Json] {
        let mut stage = Stage::new(format, None);
        let size = if format == LogFormat::Json {
            CHUNK_JSON
        } else {
            CHUNK
        };
        stage.log.shared.lock().text.resize(CAPACITY - 1, b'\n');
        stage.log.take(&mut stage.source, &vec![b'\n'; size]);
        assert_eq!(stage.log.dropped, 0);
        assert!(stage.log.shared.lock().used() < LIMIT);
        stage.end();
    }
}

#[test]
fn full_log_leaves_the_pipe_alone() {
    let mut stage = Stage::new(LogFormat::Text, None);
    let mut next = 0;
    fill(&mut stage, &mut next);
    (&stage._pipe).write_all(b"line in the pipe\n").unwrap();
    assert!(stage.log.read(&mut stage.source));
    assert_eq!(stage.source.waiting(), 17, "it stays there");
    // A service that died is asked for its last words all the same.
    stage.log.catch_up(&mut stage.source);
    assert_eq!(
        stage.log.last_lines(&stage.source).last().unwrap(),
        "line in the pipe"
    );
    assert_eq!((stage.source.waiting(), stage.log.dropped), (0, 0));
}

#[test]
fn closed_output_holds_up_nobody() {
    let mut stage = Stage::new(LogFormat::Text, None);
    let (output, _) = io::pipe().unwrap();
    stage.output = output;
    let chunk = vec![b'\n'; CHUNK];
    for _ in 0..100 {
        stage.feed(&chunk);
    }
    assert_eq!(stage.log.dropped, 0);
    assert!(stage.end().is_empty());
}

#[test]
fn memory_of_a_flood_is_given_back() {
    let mut stage = Stage::new(LogFormat::Text, None);
    let mut output = stage.output.try_clone().unwrap();
    let reader = thread::spawn(move || io::copy(&mut output, &mut io::sink()));
    for _ in 0..64 {
        stage.feed(&vec![b'x'; CHUNK]);
    }
    stage.feed(b"\n");
    let begin = now();
    while stage.log.shared.lock().text.capacity() > 0 {
        assert!(
            begin.elapsed() < Duration::from_secs(30),
            "the buffer is kept"
        );
        thread::sleep(Duration::from_millis(10));
    }
    assert!(
        stage.source.partial.capacity() <= CHUNK,
        "{}",
        stage.source.partial.capacity()
    );
    let Stage { log, output, .. } = stage;
    drop(output);
    log.close(Duration::from_secs(30));
    reader.join().unwrap().unwrap();
}
