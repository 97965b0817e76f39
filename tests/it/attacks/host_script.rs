//! The host's script as root must not hand over what a link of another user names.

use crate::site::{Site, skip};
use std::os::unix::fs::{MetadataExt, chown, symlink};

#[test]
fn root_follows_no_links_of_the_folders_owner() {
    let Some(site) = Site::open() else { return };
    if !nix::unistd::getuid().is_root() {
        return skip("only root can plant another user's links").unwrap_or(());
    }
    let (alice, home) = (1000, tempfile::tempdir().unwrap());
    let victim = tempfile::tempdir().unwrap();
    chown(home.path(), Some(alice), Some(alice)).unwrap();
    let folder = home.path().join("cache");
    std::fs::create_dir(&folder).unwrap();
    chown(&folder, Some(alice), Some(alice)).unwrap();
    symlink(victim.path(), folder.join("run")).unwrap();
    let link = home.path().join("link");
    symlink(victim.path(), &link).unwrap();
    let script = site.script("links");
    let start =
        |folder: &std::path::Path| script.call(&["start", "persistent", folder.to_str().unwrap()]);
    start(&folder).refused(1, &["it is a link", "hint: "]);
    start(&link).refused(1, &["it is a link", "hint: "]);
    start(&link.join("below")).refused(1, &["user 1000 owns a folder on the way to it", "hint: "]);
    assert_eq!(victim.path().metadata().unwrap().uid(), 0);
    assert_eq!(std::fs::read_dir(victim.path()).unwrap().count(), 0);
    // Without the links it is started, and all of it is the owner's.
    std::fs::remove_file(folder.join("run")).unwrap();
    start(&folder).ok();
    for made in ["run", "cache", "state"] {
        let made = folder.join(made).metadata().unwrap();
        assert_eq!(made.uid(), alice);
    }
}
