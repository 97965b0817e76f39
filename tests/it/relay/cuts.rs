//! Connections that break between the relay and a builder: what both know of jobs agrees afterwards.

use super::storm::Wire;
use super::{Cluster, builder};
use crate::dock::eventually;
use crate::site::free_port;

#[test]
fn slot_of_a_job_whose_end_could_not_be_reported_is_free_when_the_builder_is_back() {
    let Some(mut cluster) = Cluster::start(0, &[]) else {
        return;
    };
    let listen = format!("127.0.0.1:{}", free_port());
    let wires = [
        Wire::to(listen.parse().unwrap()),
        Wire::to(([127, 0, 0, 1], cluster.front).into()),
    ];
    let [reached, scheduler] = [0, 1].map(|one: usize| wires[one].address.to_string());
    let set = [
        ("SCCACHE_BUILDER_LISTEN", listen.as_str()),
        ("SCCACHE_PUBLIC_ADDR", reached.as_str()),
    ];
    let behind = builder(&format!("http://{scheduler}"), &set);
    cluster.builders.push(behind);
    cluster.warm();
    for number in 0..4 {
        let text = format!(
            "template <int A, int N> struct G {{ static int g(int x) {{ return G<A, N - 1>::g(x * N + A) ^ (x >> (N % 5)); }} }};\n\
             template <int A> struct G<A, 0> {{ static int g(int x) {{ return x; }} }};\n\
             int f{number}(int x) {{ return G<1, 800>::g(x) + G<2, 800>::g(x) + G<3, 800>::g(x) + G<4, 800>::g(x); }}\n"
        );
        cluster.client.write(&format!("f{number}.cpp"), &text);
    }
    let on_wire = || {
        let builders = cluster.dist()["builders"].as_array().unwrap().clone();
        let found = builders.iter().find(|one| one["address"] == reached);
        found.unwrap()["jobs"].as_u64().unwrap()
    };
    std::thread::scope(|scope| {
        let build = scope.spawn(|| cluster.client(&Cluster::build(4, 4)));
        eventually("a job runs there", || (on_wire() > 0).then_some(()));
        wires.iter().for_each(Wire::cut);
        let built = build.join().unwrap();
        assert_eq!(built.code, Some(0), "{}", built.output);
    });
    // `sccache-dist` reports the end of a job once, and never again.
    cluster.builders[0].wait_log(" error: ");
    assert!(cluster.figure("slots_used") > 0, "nobody has told");
    wires.iter().for_each(Wire::mend);
    eventually("both agree that nothing runs", || {
        (cluster.figure("slots_used") == 0 && on_wire() == 0).then_some(())
    });
}
