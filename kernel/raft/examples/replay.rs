//! One seed of the simulator again, everything that happens with SIM_TRACE=1: `SIM_SEED=N cargo run -p photon-raft --example replay`

use photon_raft::sim::{SimConfig, kv::KvWorkload, run};

fn main() {
    let seed: u64 = std::env::var("SIM_SEED").ok().and_then(|s| s.parse().ok()).expect("SIM_SEED=N");
    // The same shape as the seeds of `sim::tests`.
    let nodes = if seed.is_multiple_of(5) { 5 } else { 3 };
    match run(seed, &SimConfig::new(nodes), KvWorkload::default()) {
        Ok(r) => println!("{r:?}"),
        Err(v) => panic!("{v}"),
    }
}
