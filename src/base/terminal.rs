//! Output to a terminal: its width, colours, and text that fits into it. Pure except for [`Screen::of_stdout`].

use super::human::{cut, width};
use std::fmt::Write as _;
use std::io::{self, IsTerminal};

/// Width assumed if the terminal does not report one.
const USUAL_WIDTH: usize = 80;
/// Names and reasons are not truncated below this width; columns are omitted instead.
const LEAST: usize = 16;

/// Capabilities of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Screen {
    /// Width in columns; `None` for a file or a pipe, which has no limit.
    pub(crate) width: Option<usize>,
    /// Height in rows, for a terminal.
    pub(crate) height: Option<usize>,
    pub(crate) has_colours: bool,
}

/// A file or a pipe.
pub(crate) const PIPE: Screen = Screen {
    width: None,
    height: None,
    has_colours: false,
};

impl Screen {
    /// Standard output. Colours are used on terminals only, unless `NO_COLOR` is set or `TERM` is `dumb`.
    pub fn of_stdout() -> Screen {
        let out = io::stdout();
        if !out.is_terminal() {
            return PIPE;
        }
        let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        let size = rustix::termios::tcgetwinsize(&out).ok();
        let or_usual = |count: u16| match count {
            0 => USUAL_WIDTH,
            count => usize::from(count),
        };
        Screen {
            width: Some(size.map_or(USUAL_WIDTH, |size| or_usual(size.ws_col))),
            height: size
                .map(|size| usize::from(size.ws_row))
                .filter(|rows| *rows > 0),
            has_colours: !set("NO_COLOR") && !dumb,
        }
    }

    fn painted(self, tint: Tint, text: &str) -> String {
        let code = match tint {
            Tint::Plain => return text.to_owned(),
            Tint::Bold => 1,
            Tint::Good => 32,
            Tint::Doubtful => 33,
            Tint::Bad => 31,
        };
        match self.has_colours && !text.is_empty() {
            true => format!("\x1b[{code}m{text}\x1b[0m"),
            false => text.to_owned(),
        }
    }

    /// Appends a line that starts with the word `name`. Text that is too long continues below, indented by that word.
    pub(crate) fn line(self, out: &mut String, tint: Tint, name: &str, text: &str) {
        let indent = 11;
        let columns = self.width.unwrap_or(usize::MAX);
        let room = columns.saturating_sub(indent).max(1);
        for (place, part) in fold(text, room, room).into_iter().enumerate() {
            let name = if place == 0 { name } else { "" };
            let line = format!("{name:<indent$}{}", self.painted(tint, &part));
            let _ = writeln!(out, "{}", line.trim_end());
        }
    }

    /// Appends a coloured `word`, a `lead`, and a text that continues below with the same indentation if it is too
    /// long. Words are not broken, even if they are wider than the screen, so that they can be copied.
    pub(crate) fn hang(self, out: &mut String, tint: Tint, word: &str, lead: &str, text: &str) {
        let indent = width(word) + width(lead);
        let columns = self.width.unwrap_or(usize::MAX);
        let room = columns.saturating_sub(indent).max(LEAST);
        for (place, part) in fold(text, room, usize::MAX).into_iter().enumerate() {
            let before = match place {
                0 => format!("{}{lead}", self.painted(tint, word)),
                _ => " ".repeat(indent),
            };
            let _ = writeln!(out, "{}", format!("{before}{part}").trim_end());
        }
    }

    /// Appends a line without a leading word.
    pub(crate) fn heading(self, out: &mut String, text: &str) {
        let room = self.width.unwrap_or(usize::MAX);
        for part in fold(text, room, room) {
            let _ = writeln!(out, "{}", self.painted(Tint::Bold, &part));
        }
    }

    /// Appends a table at its natural width, or shrunk to fit the screen.
    pub(crate) fn table(self, out: &mut String, columns: &[Column], rows: &[Vec<Cell>]) {
        let widths = match self.width {
            None => columns
                .iter()
                .enumerate()
                .map(|(place, column)| Some(natural(place, columns, rows).max(column.least)))
                .collect(),
            Some(most) => fit(columns, rows, most),
        };
        let titles: Vec<Cell> = columns
            .iter()
            .map(|column| (Tint::Bold, column.title.to_owned()))
            .collect();
        for row in std::iter::once(&titles).chain(rows) {
            let mut line = String::new();
            let cells = columns.iter().zip(&widths).zip(row);
            let shown = cells.filter_map(|((column, width), cell)| Some((column, (*width)?, cell)));
            for (place, (column, room, (tint, text))) in shown.enumerate() {
                let text = cut(text, room);
                let gap = " ".repeat(room - width(&text));
                let text = self.painted(*tint, &text);
                let space = if place == 0 { "" } else { " " };
                let _ = match column.side {
                    Side::Left => write!(line, "{space}{text}{gap}"),
                    Side::Right => write!(line, "{space}{gap}{text}"),
                };
            }
            let _ = writeln!(out, "{}", line.trim_end());
        }
    }
}

/// Meaning of a piece of text, shown by its colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tint {
    Plain,
    Bold,
    Good,
    Doubtful,
    Bad,
}

/// Alignment of a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Left,
    Right,
}

/// A column of a table.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Column {
    pub(crate) title: &'static str,
    pub(crate) side: Side,
    /// Minimum width, in terminal columns, while the column is shown.
    pub(crate) least: usize,
    /// If there is not enough space, columns are omitted by descending rank; a column of rank 0 always stays.
    pub(crate) rank: u8,
    /// Whether its text may be truncated.
    pub(crate) may_be_cut: bool,
}

pub(crate) type Cell = (Tint, String);

fn natural(place: usize, columns: &[Column], rows: &[Vec<Cell>]) -> usize {
    let cells = rows.iter().filter_map(|row| row.get(place));
    let widest = cells.map(|(_, text)| width(text)).max().unwrap_or(0);
    widest.max(width(columns[place].title))
}

/// The widths at which a row fits into `most` columns; `None` for omitted columns.
fn fit(columns: &[Column], rows: &[Vec<Cell>], most: usize) -> Vec<Option<usize>> {
    let naturals: Vec<usize> = (0..columns.len())
        .map(|place| natural(place, columns, rows))
        .collect();
    let total = |widths: &[Option<usize>]| {
        let shown = widths.iter().flatten();
        shown.clone().sum::<usize>() + shown.count().saturating_sub(1)
    };
    let pretty: Vec<Option<usize>> = columns
        .iter()
        .zip(&naturals)
        .map(|(column, natural)| Some((*natural).max(column.least)))
        .collect();
    if total(&pretty) <= most {
        return pretty;
    }
    let mut widths: Vec<Option<usize>> = naturals.into_iter().map(Some).collect();
    loop {
        let over = total(&widths).saturating_sub(most);
        let give = |place: usize, width: usize| match columns[place].may_be_cut {
            true => width.saturating_sub(LEAST.max(width_of_title(columns, place))),
            false => 0,
        };
        let spare: usize = widths
            .iter()
            .enumerate()
            .filter_map(|(place, width)| Some(give(place, (*width)?)))
            .sum();
        if spare >= over {
            shrink(&mut widths, over, give);
            return widths;
        }
        let last = (0..columns.len())
            .filter(|place| widths[*place].is_some() && columns[*place].rank > 0)
            .max_by_key(|place| columns[*place].rank);
        match last {
            Some(place) => widths[place] = None,
            None => {
                for width in widths.iter_mut().flatten() {
                    *width = (*width).min(most);
                }
                return widths;
            }
        }
    }
}

fn width_of_title(columns: &[Column], place: usize) -> usize {
    width(columns[place].title)
}

/// Removes `over` columns, each time from the column that can give up most.
fn shrink(widths: &mut [Option<usize>], over: usize, give: impl Fn(usize, usize) -> usize) {
    for _ in 0..over {
        let richest = widths
            .iter()
            .enumerate()
            .filter_map(|(place, width)| Some((give(place, (*width)?), place)))
            .max();
        if let Some((_, place)) = richest
            && let Some(width) = &mut widths[place]
        {
            *width -= 1;
        }
    }
}

/// Breaks `text` between words into lines of at most `most` columns; words are truncated to `widest`.
fn fold(text: &str, most: usize, widest: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.lines().flat_map(|line| line.split(' ')) {
        let word = cut(word, widest);
        let last = lines.len() - 1;
        let taken = width(&lines[last]);
        if taken == 0 && lines[last].is_empty() {
            lines[last] = word;
        } else if taken + 1 + width(&word) <= most {
            lines[last].push(' ');
            lines[last].push_str(&word);
        } else {
            lines.push(word);
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    const COLUMNS: [Column; 3] = [
        Column {
            title: "NAME",
            side: Side::Left,
            least: 12,
            rank: 0,
            may_be_cut: true,
        },
        Column {
            title: "HITS",
            side: Side::Right,
            least: 6,
            rank: 1,
            may_be_cut: false,
        },
        Column {
            title: "SIZE",
            side: Side::Right,
            least: 6,
            rank: 2,
            may_be_cut: false,
        },
    ];

    fn table(width: Option<usize>) -> String {
        let row = |name: &str| {
            [name, "12", "1.5 GiB"]
                .map(|text| (Tint::Plain, text.to_owned()))
                .to_vec()
        };
        let mut out = String::new();
        let rows = [row("team"), row("ein-sehr-langer-名前-der-Gruppe")];
        Screen { width, ..PIPE }.table(&mut out, &COLUMNS, &rows);
        out
    }

    #[test]
    fn table_is_as_wide_as_its_names_in_a_file() {
        assert_eq!(
            table(None),
            "NAME                              HITS    SIZE\n\
             team                                12 1.5 GiB\n\
             ein-sehr-langer-名前-der-Gruppe     12 1.5 GiB\n"
        );
    }

    #[test]
    fn names_are_cut_first_then_columns_are_left_out() {
        assert_eq!(
            table(Some(30)),
            "NAME              HITS    SIZE\n\
             team                12 1.5 GiB\n\
             ein-sehr-langer-…   12 1.5 GiB\n"
        );
        assert_eq!(
            table(Some(22)),
            "NAME              HITS\n\
             team                12\n\
             ein-sehr-langer-…   12\n"
        );
    }

    #[test]
    fn no_line_is_wider_than_the_screen() {
        for most in 1..60 {
            for line in table(Some(most)).lines() {
                assert!(width(line) <= most, "{line:?} is wider than {most}");
            }
            let mut out = String::new();
            let screen = Screen {
                width: Some(most.max(12)),
                ..PIPE
            };
            screen.line(
                &mut out,
                Tint::Bad,
                "fault",
                "cannot write to 日本語: no space left on device",
            );
            screen.heading(&mut out, "sccache-dock 0.1.0  mode persistent");
            for line in out.lines() {
                assert!(width(line) <= most.max(12), "{line:?} is wider than {most}");
            }
        }
    }

    #[test]
    fn long_line_goes_on_below_its_text() {
        let mut out = String::new();
        let screen = Screen {
            width: Some(30),
            ..PIPE
        };
        screen.line(
            &mut out,
            Tint::Plain,
            "cache",
            "3.2 GiB of 10.0 GiB in 4 blobs",
        );
        assert_eq!(
            out,
            "cache      3.2 GiB of 10.0 GiB\n           in 4 blobs\n"
        );
    }

    #[test]
    fn words_that_may_be_copied_stay_whole() {
        let mut out = String::new();
        let screen = Screen {
            width: Some(30),
            ..PIPE
        };
        let text = "export NO_PROXY=\"${NO_PROXY:+$NO_PROXY,}cache\" in this shell";
        screen.hang(&mut out, Tint::Bad, "FAIL", "  proxy  ", text);
        assert_eq!(
            out,
            "FAIL  proxy  export\n             NO_PROXY=\"${NO_PROXY:+$NO_PROXY,}cache\"\n             in this shell\n"
        );
    }

    #[test]
    fn colours_are_for_those_who_can_see_them() {
        let mut out = String::new();
        PIPE.line(&mut out, Tint::Bad, "fault", "x");
        assert_eq!(out, "fault      x\n");
        out.clear();
        let screen = Screen {
            has_colours: true,
            ..PIPE
        };
        screen.line(&mut out, Tint::Bad, "fault", "x");
        assert_eq!(out, "fault      \x1b[31mx\x1b[0m\n");
    }
}
