//! The settings in force, as a table.

use crate::base::terminal::{Column, Screen, Side, Tint};
use crate::config::settings::Loaded;
use std::io;

/// Prints the effective settings with their sources, secrets hidden, then the warnings.
///
/// # Errors
/// The output is closed.
pub fn print(loaded: &Loaded, screen: Screen, out: &mut impl io::Write) -> io::Result<()> {
    let column = |title, rank, may_be_cut| Column {
        title,
        side: Side::Left,
        least: 0,
        rank,
        may_be_cut,
    };
    let columns = [
        column("SETTING", 0, false),
        column("VALUE", 1, true),
        column("SOURCE", 2, true),
        column("ABOUT", 3, true),
    ];
    let rows = loaded.effective.iter().map(|line| {
        let source = line.source.to_string();
        let texts = [line.name, &*line.shown, &*source, line.about];
        texts.map(|text| (Tint::Plain, text.to_owned())).to_vec()
    });
    let mut table = String::new();
    screen.table(&mut table, &columns, &rows.collect::<Vec<_>>());
    out.write_all(table.as_bytes())?;
    for warning in &loaded.warnings {
        writeln!(out, "\nwarning: {warning}")?;
    }
    Ok(())
}
