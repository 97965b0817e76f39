//! Who builds what where, and what came out.

use super::Lane;
use crate::dock::{Dock, eventually};
use crate::docker::{LONG, counts, run};
use crate::harness::has_program;
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

/// Places 0 and 1 are the checkouts of the two people.
pub(crate) const SCENES: &[Scene] = &[
    scene("the first build of all", 0, 0, 1),
    scene("again", 0, 0, 1),
    scene("another person's checkout, which differs", 1, 1, 2),
    scene("another person's checkout, which is equal", 1, 1, 1),
    scene(
        "another person at the first one's path, with other files",
        1,
        0,
        2,
    ),
    scene("the first person's checkout after an edit", 0, 0, 2),
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

pub(crate) const fn group(folder: &'static str, needs: &'static str) -> Group {
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

/// The checkouts of a group, and what its programs say there without a cache.
pub(crate) struct Site<'a> {
    group: &'a Group,
    places: [tempfile::TempDir; 2],
    plain: BTreeMap<(&'static str, usize, u8), Said>,
}

impl<'a> Site<'a> {
    /// `None` where the machine lacks what the group needs.
    pub(crate) fn open(group: &'a Group) -> Option<Site<'a>> {
        has_program(group.needs).then(|| Site {
            group,
            places: [(); 2].map(|()| tempfile::tempdir().unwrap()),
            plain: BTreeMap::new(),
        })
    }

    /// All scenes in turn.
    pub(crate) fn play(&mut self, dock: &Dock, lane: &'static Lane) -> Vec<Row> {
        let mut rows = vec![];
        let mut failed = 0;
        let stage = Stage::new(dock, lane, self.group, &self.places);
        for (number, scene) in SCENES.iter().enumerate() {
            if self.group.folder == "poison" {
                stage.poison(scene);
            }
            let mut said = stage.build(scene, true);
            if self.group.folder == "fails" {
                // They were looked for, and nothing came of it that could be stored.
                let fails = said.values().filter(|it| it.contains("exit code 1"));
                failed += fails.count() as u64;
            }
            stage.settle(failed);
            // Below `at` both checkouts lie at one path.
            let place = if lane.below.is_empty() {
                scene.place
            } else {
                0
            };
            let plain = self.plain.entry((lane.below, place, scene.content));
            for (name, plain) in plain.or_insert_with(|| stage.build(scene, false)) {
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
}

/// A group by a lane.
struct Stage<'a> {
    dock: &'a Dock,
    lane: &'a Lane,
    group: &'a Group,
    settings: String,
    /// For the lane whose clients have entries of direct mode.
    with_entries: String,
    /// Two who build, and one who spoils it for them.
    people: [Machine; 3],
    places: [PathBuf; 2],
}

impl<'a> Stage<'a> {
    fn new(
        dock: &'a Dock,
        lane: &'a Lane,
        group: &'a Group,
        places: &[tempfile::TempDir; 2],
    ) -> Stage<'a> {
        let settings = |arguments: &str| {
            let words = arguments.split(' ').collect::<Vec<_>>();
            let printed = dock.command(&[&["client-env"], &*words].concat());
            assert!(printed.status.success(), "{printed:?}");
            String::from_utf8(printed.stdout).unwrap()
        };
        Stage {
            dock,
            lane,
            group,
            settings: settings(lane.settings),
            with_entries: settings("--lane webdav"),
            people: [(); 3].map(|()| Machine::new()),
            places: places.each_ref().map(|place| place.path().join("checkout")),
        }
    }

    /// Waits for what clients write in the background, or it would be chance what the next one finds.
    fn settle(&self, failed: u64) {
        eventually("what was missing is stored", || {
            let (_, misses, writes) = counts(&self.dock.status()?);
            (writes + failed >= misses).then_some(())
        });
    }

    /// Somebody has built other content at the same path, and writes what direct mode remembers of it to the cache.
    fn poison(&self, scene: &Scene) {
        self.lay_out(scene);
        let script = format!(
            "cd {}\n{}\nexport CACHE=sccache\n{}\nsh {}",
            self.places[scene.place].display(),
            self.with_entries,
            self.drive(3 - scene.content, scene.content),
            fixtures().join("poison-all").display()
        );
        let ran = run(&mut self.people[2].command(&script), LONG);
        assert!(ran.stdout.contains("poisoned "), "{ran:?}");
    }

    fn lay_out(&self, scene: &Scene) {
        let place = &self.places[scene.place];
        let _ = fs::remove_dir_all(place);
        let copied = Command::new("cp")
            .arg("-r")
            .arg(fixtures().join(self.group.folder))
            .arg(place)
            .status();
        assert!(copied.unwrap().success());
    }

    /// The command that builds all projects of the current folder, with this content, and that of whoever builds next.
    fn drive(&self, content: u8, next: u8) -> String {
        let is_tomorrow = self.group.folder == "clock" && content == 2;
        format!(
            "export N={content} NEXT={next}\n{} {} sh {}",
            if is_tomorrow { "faketime -f +1d" } else { "" },
            self.lane.below,
            fixtures().join("drive").display()
        )
    }

    fn build(&self, scene: &Scene, is_cached: bool) -> Said {
        self.lay_out(scene);
        let place = &self.places[scene.place];
        let mut script = format!("cd {}\n", place.display());
        if is_cached {
            script += &self.before();
            script += &self.settings;
            script += "\nexport CACHE=sccache\n";
            // A daemon of yesterday has the clock of yesterday.
            if self.group.folder == "clock" {
                script += "[ \"${SCCACHE_CLIENT_SIDE:-false}\" = 1 ] || sccache --stop-server >/dev/null 2>&1\n";
            }
        } else {
            // Empty, so that no wrapper of cargo's files counts either.
            script += "export CACHE= RUSTC_WRAPPER= CARGO_INCREMENTAL=0\n";
        }
        script += &self.drive(scene.content, scene.content);
        let ran = run(&mut self.people[scene.who].command(&script), LONG);
        assert_eq!(ran.code, Some(0), "{ran:?}");
        said(&ran.stdout)
    }

    fn before(&self) -> String {
        if self.group.folder != "basedirs" {
            return String::new();
        }
        let places = match self.lane.below {
            "" => self
                .places
                .each_ref()
                .map(|place| place.display().to_string())
                .join(":"),
            _ => "/sdit-work".into(),
        };
        format!("export SCCACHE_BASEDIRS={places}\n")
    }
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/same")
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
