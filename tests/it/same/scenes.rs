//! Who builds what where, and what came out.

use super::Lane;
use crate::dock::Dock;
use crate::harness::finish;
use crate::machine::Machine;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A clean build.
pub(crate) struct Scene {
    pub(crate) what: &'static str,
    who: usize,
    place: usize,
    /// Which content the files have, 1 or 2.
    content: u8,
}

/// At places 0 and 1 are the checkouts of the two people; place 2 is a path that both have.
pub(crate) const SCENES: &[Scene] = &[
    scene("the first build of all", 0, 0, 1),
    scene("again", 0, 0, 1),
    scene("another person's checkout, which differs", 1, 1, 2),
    scene("another person's checkout, which is equal", 1, 1, 1),
    scene("the first checkout after an edit", 0, 0, 2),
    scene("the first person at a path that both have", 0, 2, 1),
    scene(
        "another person at the same path, who has other files",
        1,
        2,
        2,
    ),
];

const fn scene(what: &'static str, who: usize, place: usize, content: u8) -> Scene {
    Scene {
        what,
        who,
        place,
        content,
    }
}

/// Projects that are built with the same settings.
pub(crate) struct Group {
    folder: &'static str,
    needs: &'static str,
}

pub(crate) const GROUPS: &[Group] = &[
    group("base", "sh"),
    group("clock", "faketime"),
    group("basedirs", "sh"),
];

const fn group(folder: &'static str, needs: &'static str) -> Group {
    Group { folder, needs }
}

/// What the programs say, or how their builds failed.
type Said = BTreeMap<String, String>;

/// What the program of a row said in the scene of this number, plainly built and by the lane.
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) scene: usize,
    pub(crate) plain: String,
    pub(crate) lane: String,
}

pub(crate) struct Stage<'a> {
    lane: &'a Lane,
    group: &'a Group,
    settings: String,
    people: [Machine; 2],
    both: tempfile::TempDir,
}

impl<'a> Stage<'a> {
    pub(crate) fn new(dock: &Dock, lane: &'a Lane, group: &'a Group) -> Stage<'a> {
        let words = lane.settings.split(' ').collect::<Vec<_>>();
        let printed = dock.command(&[&["client-env"], &*words].concat());
        assert!(printed.status.success(), "{printed:?}");
        Stage {
            lane,
            group,
            settings: String::from_utf8(printed.stdout).unwrap(),
            people: [Machine::new(), Machine::new()],
            both: tempfile::tempdir().unwrap(),
        }
    }

    /// All scenes in turn.
    pub(crate) fn play(&self) -> Vec<Row> {
        if !has(self.group.needs) {
            let why = format!(
                "{}: {} is not installed",
                self.group.folder, self.group.needs
            );
            return crate::site::skip(&why).unwrap_or_default();
        }
        let mut plainly = BTreeMap::new();
        let mut rows = vec![];
        for (number, scene) in SCENES.iter().enumerate() {
            let mut said = self.build(scene, true);
            let plain: &mut Said = plainly
                .entry((scene.place, scene.content))
                .or_insert_with(|| self.build(scene, false));
            for (name, plain) in plain {
                assert!(!plain.starts_with("failed"), "{name}: {plain}");
                rows.push(Row {
                    name: name.clone(),
                    scene: number + 1,
                    plain: plain.clone(),
                    lane: said.remove(name).unwrap_or_else(|| "failed".into()),
                });
            }
        }
        rows
    }

    fn place(&self, number: usize) -> PathBuf {
        let above = match number {
            2 => self.both.path().to_owned(),
            _ => self.people[number].work(),
        };
        above.join("checkout")
    }

    fn build(&self, scene: &Scene, is_cached: bool) -> Said {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/same");
        let place = self.place(scene.place);
        let _ = fs::remove_dir_all(&place);
        let copied = Command::new("cp")
            .arg("-r")
            .arg(fixtures.join(self.group.folder))
            .arg(&place)
            .status();
        assert!(copied.unwrap().success());
        let mut script = format!("cd {}\n", place.display());
        let Lane { below, .. } = self.lane;
        if is_cached {
            script += &self.before();
            script += &self.settings;
            script += "\nexport CACHE=sccache\n";
            // A daemon of yesterday has the clock of yesterday.
            if self.group.folder == "clock" {
                script += "[ -n \"${SCCACHE_CLIENT_SIDE:-}\" ] || sccache --stop-server >/dev/null 2>&1\n";
            }
        } else {
            script += "export CACHE= CARGO_INCREMENTAL=0\n";
        }
        let day = if self.group.folder == "clock" && scene.content == 2 {
            "faketime -f +1d"
        } else {
            ""
        };
        script += &format!(
            "export N={}\n{day} {below} sh {}",
            scene.content,
            fixtures.join("drive").display()
        );
        let outcome = finish(&mut self.people[scene.who].command(&script));
        assert_eq!(outcome.code, Some(0), "{}", outcome.output);
        said(&outcome.output)
    }

    fn before(&self) -> String {
        if self.group.folder != "basedirs" {
            return String::new();
        }
        let places = match self.lane.below {
            "" => [0, 1, 2]
                .map(|place| self.place(place).display().to_string())
                .join(":"),
            _ => "/sdit-work".into(),
        };
        format!("export SCCACHE_BASEDIRS={places}\n")
    }
}

fn has(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap();
    std::env::split_paths(&path).any(|folder| folder.join(program).exists())
}

/// Takes the output of `drive` apart. A line `@NAME ...` of a project is a row of its own.
fn said(output: &str) -> Said {
    let mut said = Said::new();
    let mut project = "";
    for line in output.lines() {
        if let Some(name) = line.strip_prefix("== ") {
            project = name;
        } else if let Some((name, value)) = line.strip_prefix('@').and_then(|it| it.split_once(' '))
        {
            said.insert(name.to_owned(), value.to_owned());
        } else {
            let text = said.entry(project.to_owned()).or_default();
            if !text.is_empty() {
                text.push('\n');
            }
            text.push_str(line);
        }
    }
    said
}
