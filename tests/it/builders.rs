//! Gradle, where it is installed.

use crate::dock::Dock;
use crate::harness::{Outcome, has_program};
use crate::machine::Machine;

/// Hits, misses and writes of a namespace.
pub(crate) fn counts(dock: &Dock, namespace: &str) -> [u64; 3] {
    let status = dock.status().unwrap();
    let counters = &status["cache"]["namespaces"][namespace];
    ["hits", "misses", "writes"].map(|name| counters[name].as_u64().unwrap_or(0))
}

pub(crate) fn assert_built(outcome: &Outcome) {
    assert_eq!(outcome.code, Some(0), "{}", outcome.output);
    assert!(outcome.output.ends_with("HELLO\n"), "{}", outcome.output);
}

#[test]
fn gradle_stores_and_hits() {
    let dock = Dock::start(&[]);
    let machine = Machine::new();
    if !has_program("gradle") {
        return;
    }
    machine.write(
        "settings.gradle",
        "buildCache {
            local { enabled = false }
            remote(HttpBuildCache) {
                url = System.getenv('CACHE_URL')
                push = true
                if (GradleVersion.current() >= GradleVersion.version('6.0')) allowInsecureProtocol = true
                credentials { username = 'any'; password = System.getenv('CACHE_TOKEN') }
            }
        }\n",
    );
    machine.write(
        "build.gradle",
        "@CacheableTask
        class Shout extends DefaultTask {
            @InputFile @PathSensitive(PathSensitivity.RELATIVE) File source
            @OutputFile File result
            @TaskAction void shout() { result.text = source.text.toUpperCase() }
        }
        task shout(type: Shout) { source = file('in.txt'); result = file(\"$buildDir/out.txt\") }\n",
    );
    machine.write("in.txt", "hello\n");
    let script = format!(
        "rm -rf build .gradle
        export CACHE_URL=http://{}/gradle/ CACHE_TOKEN={}
        gradle --gradle-user-home \"$PWD/own\" --no-daemon --build-cache --console=plain shout &&
        cat build/out.txt",
        dock.address(),
        dock.token()
    );
    assert_built(&machine.sh(&script));
    // A miss makes no namespace: the first one counts as another's.
    assert_eq!(counts(&dock, "gradle"), [0, 0, 1]);
    let warm = machine.sh(&script);
    assert_built(&warm);
    assert!(warm.output.contains("1 from cache"), "{}", warm.output);
    assert_eq!(counts(&dock, "gradle"), [1, 0, 1]);
}
