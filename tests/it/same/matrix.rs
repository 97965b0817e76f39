//! The table of rows and lanes.

use super::known::KNOWN;
use super::scenes::{Row, SCENES};
use super::{LANES, Lane};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// How a row went by a lane: `same`, or in which scenes it was wrong or did not build.
type Column = BTreeMap<String, String>;

/// Prints what differed, and the whole table once every lane has its column; says what is not as known.
pub(crate) fn report(lane: &Lane, rows: &Vec<Row>) -> Vec<String> {
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
    let surprises = surprises(lane, &column);
    print(lane, &column);
    surprises
}

fn surprises(lane: &Lane, column: &Column) -> Vec<String> {
    let mut all = vec![];
    for (row, found) in column {
        let known = KNOWN.iter().find(|known| known.row == row);
        let expected = known
            .and_then(|known| known.cells.iter().find(|(name, _)| *name == lane.name))
            .map_or("", |(_, scenes)| scenes);
        if found != expected {
            all.push(format!(
                "{row} by {} is wrong in scenes {found:?}, not {expected:?} as tests/it/same/known.rs has it",
                lane.name
            ));
        }
    }
    all
}

/// The lanes run as processes of their own: each leaves its column, and who finds all of them prints the table.
fn print(lane: &Lane, column: &Column) {
    let run = std::env::var("NEXTEST_RUN_ID").unwrap_or_else(|_| std::process::id().to_string());
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"))
        .join("same")
        .join(run);
    fs::create_dir_all(&folder).unwrap();
    let file = |lane: &Lane| -> PathBuf { folder.join(lane.name) };
    fs::write(file(lane), serde_json::to_string(column).unwrap()).unwrap();
    let read = |lane: &Lane| -> Option<Column> {
        serde_json::from_str(&fs::read_to_string(file(lane)).ok()?).ok()
    };
    let columns: Vec<Column> = LANES.iter().map_while(read).collect();
    if columns.len() < LANES.len() {
        return;
    }
    let titles: String = LANES
        .iter()
        .map(|lane| format!(" {:<12}", lane.name))
        .collect();
    println!("\n{:<24}{titles}", "project");
    for row in columns[0].keys() {
        let cells: String = columns
            .iter()
            .map(|column| match column.get(row).map(String::as_str) {
                Some("") => format!(" {:<12}", "same"),
                Some(cell) => format!(" {:<12}", format!("wrong {cell}")),
                None => format!(" {:<12}", "-"),
            })
            .collect();
        let known = KNOWN.iter().find(|known| known.row == row);
        let why = known.map_or("", |known| known.why);
        println!("{}", format!("{row:<24}{cells} {why}").trim_end());
    }
    println!("\nwrong N: in the scene of this number; N!: it did not build");
    for (number, scene) in SCENES.iter().enumerate() {
        println!("{}: {}", number + 1, scene.what);
    }
}
