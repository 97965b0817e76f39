//! What is known to differ, and why.

/// A row that is known to be wrong.
pub(crate) struct Known {
    pub(crate) row: &'static str,
    /// Lane, and the numbers of the scenes in which it is wrong.
    pub(crate) cells: &'static [(&'static str, &'static str)],
    pub(crate) why: &'static str,
}

pub(crate) const KNOWN: &[Known] = &[
    Known {
        row: "basedirs",
        cells: &[("webdav", "6,7"), ("dist", "6,7")],
        why: "upstream: mozilla/sccache 2863",
    },
    Known {
        row: "coverage",
        cells: &[
            ("webdav", "4,5,6,7"),
            ("no-disk", "4,5,6,7"),
            ("ipc", "4,5,6,7"),
            ("socket", "4,5,6,7"),
            ("dist", "4,5,6,7"),
        ],
        why: "upstream: the object names the folder of its counts, which is in no key",
    },
    Known {
        row: "date",
        cells: &[
            ("webdav", "4,5"),
            ("ipc", "4,5,7"),
            ("socket", "4,5,7"),
            ("dist", "4,5"),
            ("at", "4,5"),
        ],
        why: "direct mode: compares no dates",
    },
    Known {
        row: "debug-folder",
        cells: &[("no-disk", "3,4,6,7")],
        why: "upstream: mozilla/sccache 1026, no line markers",
    },
    Known {
        row: "debug-lines",
        cells: &[("no-disk", "3,5,7")],
        why: "upstream: mozilla/sccache 1026, no line markers",
    },
    Known {
        row: "header-asked-for",
        cells: &[
            ("webdav", "4,5"),
            ("ipc", "4,5,7"),
            ("socket", "4,5,7"),
            ("dist", "4,5"),
            ("at", "4,5"),
        ],
        why: "direct mode: knows what was found, not what was looked for",
    },
    Known {
        row: "header-date",
        cells: &[
            ("webdav", "4,5"),
            ("ipc", "4,5,7"),
            ("socket", "4,5,7"),
            ("dist", "4,5"),
            ("at", "4,5"),
        ],
        why: "direct mode: compares no dates",
    },
    Known {
        row: "header-earlier",
        cells: &[
            ("webdav", "5"),
            ("ipc", "5,7"),
            ("socket", "5,7"),
            ("dist", "5"),
            ("at", "5,7"),
        ],
        why: "direct mode: knows what was found, not what was looked for",
    },
    Known {
        row: "header-names-date",
        cells: &[
            ("webdav", "4,5"),
            ("ipc", "4,5,7"),
            ("socket", "4,5,7"),
            ("dist", "4,5"),
            ("at", "4,5"),
        ],
        why: "direct mode: does not compare headers that name __DATE__",
    },
    Known {
        row: "header-time-stamp",
        cells: &[
            ("webdav", "4,5"),
            ("ipc", "4,5,7"),
            ("socket", "4,5,7"),
            ("dist", "4,5"),
            ("at", "4,5"),
        ],
        why: "direct mode: compares no time stamps",
    },
    Known {
        row: "header-vanishes",
        cells: &[
            ("webdav", "4"),
            ("ipc", "4"),
            ("socket", "4"),
            ("dist", "4"),
            ("at", "4,6"),
        ],
        why: "direct mode: knows what was found, not what was looked for",
    },
    Known {
        row: "incbin",
        cells: &[
            ("webdav", "3,5,7"),
            ("no-disk", "3,5,7"),
            ("ipc", "3,5,7"),
            ("socket", "3,5,7"),
            ("dist", "3,5,7"),
            ("at", "3,5,7"),
        ],
        why: "upstream: mozilla/sccache 2795, the assembler reads the file",
    },
    Known {
        row: "line-number",
        cells: &[("no-disk", "3,5,7")],
        why: "upstream: mozilla/sccache 2974, no line markers",
    },
    Known {
        row: "macro-asks-environment",
        cells: &[
            ("webdav", "4,5,7"),
            ("no-disk", "4,5,7"),
            ("ipc", "4,5,7"),
            ("socket", "4,5,7"),
            ("dist", "4,5,7"),
            ("at", "3,5,7"),
        ],
        why: "upstream: rustc is not told, so sccache cannot know",
    },
    Known {
        row: "macro-lists-folder",
        cells: &[
            ("webdav", "4,5,7"),
            ("no-disk", "4,5,7"),
            ("ipc", "4,5,7"),
            ("socket", "4,5,7"),
            ("dist", "1,2,3,4,5,6,7"),
            ("at", "3,5,7"),
        ],
        why: "upstream: rustc is not told, so sccache cannot know",
    },
    Known {
        row: "macro-reads-file",
        cells: &[
            ("webdav", "4,5,7"),
            ("no-disk", "4,5,7"),
            ("ipc", "4,5,7"),
            ("socket", "4,5,7"),
            ("dist", "3,4,5,6,7"),
            ("at", "3,5,7"),
        ],
        why: "upstream: rustc is not told, so sccache cannot know",
    },
    Known {
        row: "macro-runs-program",
        cells: &[
            ("webdav", "4,5,7"),
            ("no-disk", "4,5,7"),
            ("ipc", "4,5,7"),
            ("socket", "4,5,7"),
            ("dist", "3,4,5,6,7"),
            ("at", "3,5,7"),
        ],
        why: "upstream: rustc is not told, so sccache cannot know",
    },
    Known {
        row: "source-date-epoch",
        cells: &[
            ("webdav", "1,2,3,4,5,6,7"),
            ("no-disk", "1,2,3,4,5,6,7"),
            ("ipc", "1,2,3,4,5,6,7"),
            ("socket", "1,2,3,4,5,6,7"),
            ("dist", "1,2,3,4,5,6,7"),
            ("at", "1,2,3,4,5,6,7"),
        ],
        why: "upstream: sccache's client drops SOURCE_DATE_EPOCH",
    },
    Known {
        row: "time-stamp",
        cells: &[
            ("webdav", "4,5"),
            ("ipc", "4,5,7"),
            ("socket", "4,5,7"),
            ("dist", "4,5"),
            ("at", "4,5"),
        ],
        why: "direct mode: compares no time stamps",
    },
    Known {
        row: "twins",
        cells: &[("no-disk", "1,2,3,4,5,6,7")],
        why: "upstream: mozilla/sccache 2974, no line markers",
    },
    Known {
        row: "warnings",
        cells: &[("no-disk", "4,5,6,7"), ("dist", "1,2,3,4,5,6,7")],
        why: "upstream: warnings name the paths, or show the lines, of where they were made",
    },
];
