//! Formats numbers and names for people. Pure.

use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// Bytes with a binary unit: `1.5 GiB`.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut value = count as f64;
    let mut unit = "B";
    for larger in UNITS {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = larger;
    }
    if unit == "B" {
        format!("{count} B")
    } else {
        format!("{value:.1} {unit}")
    }
}

/// A duration in its two largest units: `3h 12m`.
pub fn span(seconds: f64) -> String {
    let seconds = seconds as u64;
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m {}s", seconds % 60),
        (0, _, _) => format!("{hours}h {minutes}m"),
        _ => format!("{days}d {hours}h"),
    }
}

/// A number in groups of three digits: `1 234 567`, with no-break spaces.
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push('\u{a0}');
        }
        text.push(digit);
    }
    text
}

/// `part` of `whole` in percent: `87.5 %`, or `-` if `whole` is 0.
pub fn percent(part: u64, whole: u64) -> String {
    match whole {
        0 => "-".to_owned(),
        _ => format!("{:.1} %", part as f64 * 100.0 / whole as f64),
    }
}

/// The number of terminal columns that `text` occupies.
pub fn width(text: &str) -> usize {
    text.width()
}

/// `text` truncated to `columns` of a terminal, with `…` at the end if something is missing. Control characters, which
/// could do anything to a terminal, become `?`.
pub fn cut(text: &str, columns: usize) -> String {
    let shown = |c: char| if c.is_control() { '?' } else { c };
    let clean: String = text.chars().map(shown).collect();
    if clean.width() <= columns {
        return clean;
    }
    let mut kept = String::new();
    let mut taken = 1;
    for c in clean.chars() {
        taken += c.width().unwrap_or(0);
        if taken > columns {
            break;
        }
        kept.push(c);
    }
    if columns > 0 {
        kept.push('…');
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_spans_are_short() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(10 << 30), "10.0 GiB");
        assert_eq!(span(59.9), "59s");
        assert_eq!(span(61.0), "1m 1s");
        assert_eq!(span(7_260.0), "2h 1m");
        assert_eq!(span(90_000.0), "1d 1h");
    }

    #[test]
    fn counts_are_grouped_by_three() {
        assert_eq!(count(0), "0");
        assert_eq!(count(999), "999");
        assert_eq!(count(1_234_567), "1\u{a0}234\u{a0}567");
        assert_eq!(percent(1, 8), "12.5 %");
        assert_eq!(percent(0, 0), "-");
    }

    #[test]
    fn long_text_is_cut_by_columns_not_by_letters() {
        assert_eq!(cut("team", 4), "team");
        assert_eq!(cut("teams", 4), "tea…");
        // Each of these takes two columns.
        assert_eq!(cut("日本語", 6), "日本語");
        assert_eq!(cut("日本語", 5), "日本…");
        assert_eq!(cut("日本語", 4), "日…");
        assert_eq!(cut("e\u{301}toile", 3), "e\u{301}t…");
        assert_eq!(cut("x", 0), "");
        assert_eq!(cut("a\u{1b}[2Jb", 20), "a?[2Jb");
        for columns in 0..12 {
            assert!(width(&cut("日本語 and more", columns)) <= columns);
        }
    }
}
