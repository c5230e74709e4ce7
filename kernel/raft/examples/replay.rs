//! One seed of the simulator again, everything that happens with SIM_TRACE=1: `SIM_SEED=N cargo run -p photon-raft --example replay`

use photon_raft::sim::{SimConfig, kv::KvWorkload, run};

fn main() {
    let seed: u64 = std::env::var("SIM_SEED").ok().and_then(|s| s.parse().ok()).expect("SIM_SEED=N");
    match run(seed, &SimConfig::of_seed(seed), KvWorkload::default()) {
        Ok(r) => println!("{r:?}"),
        Err(v) => panic!("{v}"),
    }
}
