//! What is known to differ, and why.

/// A row that is known to be wrong.
pub(crate) struct Known {
    pub(crate) row: &'static str,
    /// Lanes, and the numbers of the scenes in which it is wrong by them.
    pub(crate) cells: &'static [(&'static str, &'static str)],
    pub(crate) why: &'static str,
}

pub(crate) const KNOWN: &[Known] = &[
    Known {
        row: "assembler-include",
        cells: &[("webdav no-disk ipc socket dist at", "3,5,6")],
        why: "upstream: mozilla/sccache 2795, the assembler reads the file",
    },
    Known {
        row: "check-cfg",
        cells: &[("webdav no-disk ipc socket dist", "5,6"), ("at", "3,5,6")],
        why: "upstream: --check-cfg is in no key",
    },
    Known {
        row: "coverage",
        cells: &[("webdav no-disk ipc socket dist", "4,5,6")],
        why: "upstream: the object names the folder of its counts, which is in no key",
    },
    Known {
        row: "date",
        cells: &[("webdav dist at", "4,6")],
        why: "direct mode: compares no dates",
    },
    Known {
        row: "folder-of-programs",
        cells: &[("webdav no-disk ipc socket dist at", "3,5,6")],
        why: "upstream: what is in the folder of -B is in no key",
    },
    Known {
        row: "header-asked-for",
        cells: &[("webdav dist at", "4,6")],
        why: "direct mode: knows what was found, not what was looked for",
    },
    Known {
        row: "header-date",
        cells: &[("webdav dist at", "4,6")],
        why: "direct mode: compares no dates",
    },
    Known {
        row: "header-earlier",
        cells: &[("webdav dist", "6"), ("at", "5,6")],
        why: "direct mode: knows what was found, not what was looked for",
    },
    Known {
        row: "header-names-date",
        cells: &[("webdav dist at", "4,6")],
        why: "direct mode: does not compare headers that name __DATE__",
    },
    Known {
        row: "header-time-stamp",
        cells: &[("webdav dist at", "4,6")],
        why: "direct mode: compares no time stamps",
    },
    Known {
        row: "header-vanishes",
        cells: &[("webdav dist at", "4")],
        why: "direct mode: knows what was found, not what was looked for",
    },
    Known {
        row: "incbin",
        cells: &[("webdav no-disk ipc socket dist at", "3,5,6")],
        why: "upstream: mozilla/sccache 2795, the assembler reads the file",
    },
    Known {
        row: "library-attribute",
        cells: &[("webdav no-disk ipc socket dist", "4,5,6"), ("at", "3,5,6")],
        why: "upstream: mozilla/sccache 2971, the library is in no key",
    },
    Known {
        row: "library-found",
        cells: &[
            ("webdav no-disk ipc socket dist", "4!,5!,6!"),
            ("at", "3!,5!,6!"),
        ],
        why: "upstream: what is in the folders of -L is in no key",
    },
    Known {
        row: "library-whole-archive",
        cells: &[("webdav no-disk ipc socket dist", "4,5,6"), ("at", "3,5,6")],
        why: "upstream: mozilla/sccache 2971, the library is in no key",
    },
    Known {
        row: "macro-asks-environment",
        cells: &[("webdav no-disk ipc socket dist", "4,5,6")],
        why: "upstream: rustc is not told, so sccache cannot know",
    },
    Known {
        row: "macro-lists-folder",
        cells: &[("webdav no-disk ipc socket dist", "4,5,6")],
        why: "upstream: rustc is not told, so sccache cannot know",
    },
    Known {
        row: "macro-reads-file",
        cells: &[("webdav no-disk ipc socket dist", "4,5,6")],
        why: "upstream: rustc is not told, so sccache cannot know",
    },
    Known {
        row: "macro-runs-program",
        cells: &[("webdav no-disk ipc socket dist", "4,5,6")],
        why: "upstream: rustc is not told, so sccache cannot know",
    },
    Known {
        row: "rustc-bootstrap",
        cells: &[("webdav no-disk ipc socket dist", "5,6"), ("at", "3,5,6")],
        why: "upstream: RUSTC_BOOTSTRAP is in no key",
    },
    Known {
        row: "source-date-epoch",
        cells: &[("webdav no-disk ipc socket dist at", "1,2,3,4,5,6")],
        why: "upstream: sccache's client drops SOURCE_DATE_EPOCH",
    },
    Known {
        row: "specs",
        cells: &[("webdav no-disk ipc socket dist at", "3,5,6")],
        why: "upstream: what the file of -specs= says is in no key",
    },
    Known {
        row: "time-stamp",
        cells: &[("webdav dist at", "4,6")],
        why: "direct mode: compares no time stamps",
    },
    Known {
        row: "warnings",
        cells: &[("dist", "1,2,3,4,5,6")],
        why: "upstream: warnings show the lines that the builder was sent",
    },
];
