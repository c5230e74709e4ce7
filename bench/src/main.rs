//! Figures beside a real peer: `./dev bench NAME`. Ours and the peer run interleaved (A B A B …) on the same
//! disk and cores in one run; results are data in `bench/results/`, from which `docs/benchmarks.md` is
//! written anew. Timings never decide a test.

mod chainfire;
mod flaredb;
mod peer;
mod report;
mod sample;
mod up;
mod vm;

use clap::Parser;
use photon_base::{Error, Result};
use std::path::PathBuf;

/// Measures PhotonCloud beside its peers.
#[derive(Parser)]
struct Args {
    /// The release build of photon.
    #[arg(long)]
    photon: PathBuf,
    /// Folder of the tiny guest image.
    #[arg(long)]
    guest: PathBuf,
    /// Only this case (`put/64`, `put-tls/1000`, `keys`, …); nothing is recorded then. `20g` runs only so, and is
    /// recorded: 20 GiB of data, or what PHOTON_BENCH_GIB says.
    #[arg(long)]
    only: Option<String>,
    /// What to measure: chainfire, chainfire-scale, flaredb, up, vm; or report, to write the page from the data there is.
    name: String,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|e| Error::internal("cannot start").why(e))?;
    let huge = args.name == "chainfire-scale" && args.only.as_deref() == Some("20g");
    let result = runtime.block_on(async {
        match args.name.as_str() {
            "chainfire" => Ok(Some(chainfire::run(&args.photon, args.only.as_deref()).await?)),
            "chainfire-scale" if huge => Ok(Some(chainfire::huge::run(&args.photon).await?)),
            "chainfire-scale" => Ok(Some(chainfire::scale::run(&args.photon, args.only.as_deref()).await?)),
            "flaredb" => Ok(Some(flaredb::measure(&args.photon, args.only.as_deref()).await?)),
            "up" => Ok(Some(up::run(&args.photon, &args.guest).await?)),
            "vm" => Ok(Some(vm::run(&args.photon, &args.guest).await?)),
            "report" => Ok(None),
            n => Err(Error::invalid("name", format!("there is no benchmark {n:?}"))
                .hint("chainfire, chainfire-scale, flaredb, up, vm")),
        }
    })?;
    if args.only.is_some() && !huge {
        return Ok(());
    }
    if let Some(r) = result {
        report::save(if huge { "chainfire-20g" } else { &args.name }, &r)?;
    }
    report::page()
}
