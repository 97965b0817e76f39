//! The table of rows and lanes.

use super::Lane;
use super::known::{KNOWN, Known};
use super::scenes::{Row, SCENES};
use std::collections::BTreeMap;
use std::fmt;

/// In which scenes a row was wrong by a lane; empty where it never was.
type Column = BTreeMap<String, String>;

/// What came out, lane by lane.
#[derive(Default)]
pub(crate) struct Matrix {
    columns: Vec<(&'static str, Column)>,
}

impl Matrix {
    /// Takes the results of a lane, and prints what is wrong with them.
    pub(crate) fn add(&mut self, lane: &Lane, rows: Vec<Row>) {
        let mut column = Column::new();
        for row in rows {
            let cell = column.entry(row.name.clone()).or_default();
            if row.lane == row.plain {
                continue;
            }
            let number = row.scene.to_string();
            cell.push_str(if cell.is_empty() { "" } else { "," });
            cell.push_str(&number);
            if row.lane.starts_with("failed") {
                cell.push('!');
            }
            println!(
                "{}: {} is wrong in scene {number}, {}: {:?} instead of {:?}",
                lane.name,
                row.name,
                SCENES[row.scene - 1].what,
                row.lane,
                row.plain
            );
        }
        self.columns.push((lane.name, column));
    }

    /// What is not as known.
    pub(crate) fn surprises(&self) -> Vec<String> {
        let mut all = vec![];
        for (lane, column) in &self.columns {
            for (row, found) in column {
                let cells = known(row).map_or(&[][..], |known| known.cells);
                let cell = cells
                    .iter()
                    .find(|(lanes, _)| lanes.split(' ').any(|it| it == *lane));
                let expected = cell.map_or("", |(_, scenes)| scenes);
                if found != expected {
                    all.push(format!(
                        "{row} by {lane} is wrong in scenes {found:?}, not {expected:?} as tests/it/same/known.rs has it"
                    ));
                }
            }
        }
        all
    }
}

fn known(row: &str) -> Option<&'static Known> {
    KNOWN.iter().find(|known| known.row == row)
}

impl fmt::Display for Matrix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\n{:<24}", "project")?;
        for (lane, _) in &self.columns {
            write!(f, " {lane:<17}")?;
        }
        let rows = self.columns.first().map(|(_, column)| column.keys());
        for row in rows.into_iter().flatten() {
            write!(f, "\n{row:<24}")?;
            for (_, column) in &self.columns {
                let cell = match column.get(row).map(String::as_str) {
                    Some("") => "same".to_owned(),
                    Some(scenes) => format!("wrong {scenes}"),
                    None => "-".to_owned(),
                };
                write!(f, " {cell:<17}")?;
            }
            write!(f, " {}", known(row).map_or("", |known| known.why))?;
        }
        writeln!(
            f,
            "\n\nwrong N: in the scene of this number; N!: it did not build"
        )?;
        for (number, scene) in SCENES.iter().enumerate() {
            writeln!(f, "{}: {}", number + 1, scene.what)?;
        }
        Ok(())
    }
}
