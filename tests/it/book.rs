//! The site that mdBook makes of the documents: every page is in it, and every link and anchor leads somewhere.

use crate::deploy::{root, tool};
use crate::docker::{LONG, run};
use crate::harness::clean;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// All files below a folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        match entry.path().is_dir() {
            true => found.extend(files(&entry.path())),
            false => found.push(entry.path()),
        }
    }
    found
}

/// What stands in attributes of this name.
fn attributes<'a>(html: &'a str, name: &str) -> Vec<&'a str> {
    let begin = format!(" {name}=\"");
    let parts = html.split(&*begin).skip(1);
    parts.filter_map(|part| part.split('"').next()).collect()
}

#[test]
fn every_page_is_in_the_book_once() {
    let docs = root().join("docs");
    let summary = fs::read_to_string(docs.join("SUMMARY.md")).unwrap();
    let listed: Vec<&str> = summary
        .split("](")
        .skip(1)
        .map(|rest| rest.split(')').next().unwrap())
        .collect();
    let pages: BTreeSet<String> = files(&docs)
        .iter()
        .filter(|file| file.extension().is_some_and(|kind| kind == "md"))
        .map(|file| file.strip_prefix(&docs).unwrap().display().to_string())
        .filter(|page| page != "SUMMARY.md")
        .collect();
    let once: BTreeSet<String> = listed.iter().map(|page| (*page).to_owned()).collect();
    assert_eq!(once, pages);
    assert_eq!(listed.len(), pages.len(), "a page is listed twice");
}

#[test]
fn site_is_built_and_all_its_links_lead_somewhere() {
    let Some(mdbook) = tool("mdbook", "--version") else {
        return;
    };
    let site = tempfile::tempdir().unwrap();
    let mut build = clean(mdbook);
    build.arg("build").arg("--dest-dir").arg(site.path());
    let ran = run(build.arg(root().join("docs")), LONG);
    let said = format!("{}{}", ran.stdout, ran.stderr);
    assert_eq!(ran.code, Some(0), "{said}");
    assert!(!said.contains("WARN") && !said.contains("ERROR"), "{said}");

    let pages: BTreeMap<PathBuf, String> = files(site.path())
        .into_iter()
        .filter(|file| file.extension().is_some_and(|kind| kind == "html"))
        // All pages in one, and what is shown where there is none.
        .filter(|file| !file.ends_with("print.html") && !file.ends_with("404.html"))
        .map(|file| {
            let text = fs::read_to_string(&file).unwrap();
            (file.canonicalize().unwrap(), text)
        })
        .collect();
    let (mut links, mut broken) = (0, Vec::new());
    for (page, text) in &pages {
        let content = text.split("<main>").nth(1).unwrap_or_default();
        let content = content.split("</main>").next().unwrap();
        for link in attributes(content, "href")
            .into_iter()
            .chain(attributes(content, "src"))
        {
            if ["http:", "https:", "mailto:", "data:"]
                .iter()
                .any(|it| link.starts_with(it))
            {
                continue;
            }
            links += 1;
            let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = match path {
                "" => page.clone(),
                path => page.parent().unwrap().join(path),
            };
            let Ok(target) = target.canonicalize() else {
                broken.push(format!("{}: {link}", page.display()));
                continue;
            };
            let has_anchor = anchor.is_empty()
                || pages
                    .get(&target)
                    .is_some_and(|text| attributes(text, "id").contains(&anchor));
            if !has_anchor {
                broken.push(format!("{}: {link}", page.display()));
            }
        }
    }
    assert!(
        pages.len() > 20 && links > 100,
        "{} pages, {links} links",
        pages.len()
    );
    assert_eq!(broken, Vec::<String>::new());
    // What is typed into the search is looked for in all of them.
    let index = files(site.path()).into_iter().find(|file| {
        file.file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with("searchindex"))
    });
    assert!(fs::metadata(index.unwrap()).unwrap().len() > 100_000);
}
