//! The documents say what the program does.

use clap::{CommandFactory, Parser};
use sccache_dock::cli::Cli;
use std::path::Path;
use std::process::Command;

fn document(name: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap()
}

/// Cells of the table rows below the heading that begins with `heading`.
fn table(text: &str, heading: &str) -> Vec<Vec<String>> {
    let rows = text.lines().skip_while(|line| !line.starts_with(heading));
    let rows = rows.skip(2).take_while(|line| line.starts_with('|'));
    rows.map(|row| {
        let cells = row.trim_start_matches('|').split('|');
        cells.map(|cell| cell.trim().to_owned()).collect()
    })
    .collect()
}

/// What stands between backquotes.
fn code(text: &str) -> Vec<String> {
    let parts = text.split('`').skip(1).step_by(2);
    parts.map(str::to_owned).collect()
}

#[test]
fn documents_list_every_setting_with_its_default() {
    let dir = tempfile::tempdir().unwrap();
    let output = Command::new(crate::dock::program())
        .arg("config")
        .env_clear()
        .env("HOME", dir.path())
        .output()
        .unwrap();
    let printed = String::from_utf8(output.stdout).unwrap();
    let rows = table(&document("docs/settings.md"), "| setting | default |");
    let documented: Vec<String> = rows.iter().map(|row| code(&row[0])[0].clone()).collect();
    let real: Vec<&str> = printed
        .lines()
        .skip(1)
        .filter_map(|line| line.split(' ').next())
        .collect();
    assert_eq!(
        documented, real,
        "the table of settings and `config` differ"
    );
    for (row, line) in rows.iter().zip(printed.lines().skip(1)) {
        let default = code(&row[1]);
        if let Some(default) = default.first() {
            let words: Vec<&str> = line.split_ascii_whitespace().collect();
            assert_eq!(words[1], default, "default of {}", row[0]);
        }
    }
    // The README has a few of the same rows.
    for row in table(&document("README.md"), "| setting | default |") {
        let same = rows.iter().any(|one| one[..2] == row[..2]);
        assert!(same, "docs/settings.md says otherwise: {row:?}");
    }
}

#[test]
fn readme_names_every_command_and_only_real_ones() {
    let text = document("README.md");
    let documented: Vec<String> = table(&text, "| command | |")
        .iter()
        .flat_map(|row| code(&row[0]))
        .map(|command| command.split(' ').next().unwrap().to_owned())
        .collect();
    for command in Cli::command()
        .get_subcommands()
        .filter(|c| !c.is_hide_set())
    {
        let name = command.get_name();
        assert!(
            name == "run" || documented.iter().any(|known| known == name),
            "README.md does not list {name}"
        );
    }
    for name in &documented {
        let known = Cli::command();
        assert!(
            known.find_subcommand(name).is_some(),
            "{name} is no command"
        );
    }
}

/// Command lines of the script and the program in all documents that people copy from.
fn command_lines(program: &str) -> Vec<(String, Vec<String>)> {
    let documents = [
        "README.md",
        "docs/clients.md",
        "docs/cluster.md",
        "docs/kubernetes.md",
        "docs/observability.md",
        "docs/operating.md",
        "docs/cache.md",
        "docs/settings.md",
        "images/compose/ephemeral.yml",
        "images/compose/persistent.yml",
        "images/compose/distributed.yml",
        "images/compose/cluster.yml",
    ];
    let mut found = Vec::new();
    for name in documents {
        for line in document(name).lines() {
            let Some((_, rest)) = line.split_once(&format!("{program} ")) else {
                continue;
            };
            let end = rest
                .find(['`', ')', '>', '#', '|', ';', '\\', ','])
                .unwrap_or(rest.len());
            let words = rest[..end]
                .split_ascii_whitespace()
                .map(|w| w.trim_matches('"').to_owned());
            found.push((name.to_owned(), words.collect()));
        }
    }
    assert!(found.len() >= 3, "no command lines of {program} found");
    found
}

#[test]
fn command_lines_of_the_program_in_the_documents_parse() {
    for (name, words) in command_lines("sccache-dock") {
        let prose = words
            .first()
            .is_none_or(|word| !word.starts_with(|c: char| c.is_ascii_lowercase()));
        if prose || words[0] == "on" || words[0] == "..." {
            continue;
        }
        let parsed =
            Cli::try_parse_from(std::iter::once("sccache-dock".to_owned()).chain(words.clone()));
        assert!(
            parsed.is_ok(),
            "{name}: sccache-dock {}: {}",
            words.join(" "),
            parsed.unwrap_err()
        );
    }
}

#[test]
fn commands_of_the_script_in_the_documents_are_in_its_help() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/sccache-docker-manage.sh");
    let help = Command::new(&script).arg("help").output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    for (name, words) in command_lines("sccache-docker-manage.sh") {
        assert!(
            help.contains(&format!(" {}", words[0])),
            "{name}: {words:?} is not in the help:\n{help}"
        );
    }
}

/// What `start` need not pass on: the container's own places, or what its arguments and ports say.
const THE_CONTAINERS_OWN: &[&str] = &[
    "MODE",
    "SCCACHE_DIR",
    "SCCACHE_RUN_DIR",
    "SCCACHE_LISTEN",
    "SCCACHE_SCHEDULER_LISTEN",
    "SCCACHE_BUILDER_LISTEN",
    "SCCACHE_BINARY",
    "SCCACHE_DIST_BINARY",
];

#[test]
fn script_passes_every_setting_on() {
    let script = document("scripts/sccache-docker-manage.sh");
    let list = script.split_once("\nsettings=\"").unwrap().1;
    let list = list.split_once('"').unwrap().0.replace('\\', "");
    let mut passed: Vec<&str> = list.split_ascii_whitespace().collect();
    passed.extend(THE_CONTAINERS_OWN);
    passed.sort_unstable();
    let rows = table(&document("docs/settings.md"), "| setting | default |");
    let mut documented: Vec<String> = rows.iter().map(|row| code(&row[0])[0].clone()).collect();
    documented.sort_unstable();
    assert_eq!(passed, documented);
}

#[test]
fn architecture_maps_every_source_file() {
    let text = document("ARCHITECTURE.md");
    let map = text
        .split("\n## ")
        .find(|part| part.starts_with("Code map"));
    let words: Vec<&str> = map
        .unwrap()
        .split(|one: char| !one.is_alphanumeric() && one != '_')
        .collect();
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut missing = Vec::new();
    for wing in std::fs::read_dir(&src).unwrap().map(Result::unwrap) {
        let wing = wing.path();
        let files = std::fs::read_dir(&wing).into_iter().flatten();
        for file in files.map(|file| file.unwrap().path()).chain([wing]) {
            let stem = file.file_stem().unwrap().to_str().unwrap().to_owned();
            let is_plain =
                !["tests", "lib", "sccache-dock-gateway", "sccache-dock-run"].contains(&&*stem);
            if is_plain && !words.contains(&&*stem) {
                missing.push(file.strip_prefix(&src).unwrap().to_owned());
            }
        }
    }
    assert!(missing.is_empty(), "not in the code map: {missing:?}");
    for named in text.split(|one: char| one.is_whitespace() || "`(),;:".contains(one)) {
        let is_path = named.starts_with("src/") || named.starts_with("tests/");
        let there = Path::new(env!("CARGO_MANIFEST_DIR")).join(named);
        assert!(!is_path || there.exists(), "ARCHITECTURE.md names {named}");
    }
}

#[test]
fn documents_stay_short_and_free_of_local_paths() {
    for (name, most) in [
        ("README.md", 200),
        ("ARCHITECTURE.md", 120),
        ("docs/clients.md", 100),
        ("docs/cluster.md", 100),
        ("docs/kubernetes.md", 100),
        ("docs/observability.md", 100),
        ("docs/operating.md", 100),
        ("docs/cache.md", 100),
        ("docs/image.md", 100),
        ("docs/keys.md", 100),
        ("docs/settings.md", 100),
    ] {
        let text = document(name);
        assert!(
            text.lines().count() <= most,
            "{name} has more than {most} lines"
        );
        assert!(
            !text.contains("/home/") && !text.contains("/root/"),
            "{name} names a private path"
        );
    }
}
